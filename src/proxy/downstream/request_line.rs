//! What a request line says that the parser has refused.

/// What can be told of a request line that nobody has parsed; empty is what is not there or is none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RequestLine<'a> {
    /// A token (RFC 9110, section 9.1).
    pub method: &'a str,
    /// The target as it came, with its query.
    pub target: &'a [u8],
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: &'static str,
}

impl<'a> RequestLine<'a> {
    pub(super) fn of(line: &'a [u8]) -> Self {
        let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|b| *b == b' ');
        let method = words.next().and_then(|word| std::str::from_utf8(word).ok());
        let Some(method) = method.filter(|word| http::Method::from_bytes(word.as_bytes()).is_ok()) else {
            return Self::default();
        };
        let Some(target) = words.next() else { return Self::default() };
        let version = match (words.next(), words.next()) {
            (Some(b"HTTP/1.1"), None) => "HTTP/1.1",
            (Some(b"HTTP/1.0"), None) => "HTTP/1.0",
            _ => "",
        };
        Self { method, target, version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_request_line_is_told_what_it_has() {
        let line = |method, target: &'static str, version| RequestLine { method, target: target.as_bytes(), version };
        for (text, told) in [
            ("GET /a?b HTTP/1.1\r", line("GET", "/a?b", "HTTP/1.1")),
            ("M-SEARCH * HTTP/1.0", line("M-SEARCH", "*", "HTTP/1.0")),
            ("POST /cut", line("POST", "/cut", "")),
            ("GET /a b HTTP/1.1", line("GET", "/a", "")),
            ("GET /a HTTP/9.9", line("GET", "/a", "")),
            ("G\u{e9}T /a HTTP/1.1", line("", "", "")),
            ("Bearer-without-anything", line("", "", "")),
            ("", line("", "", "")),
        ] {
            assert_eq!(RequestLine::of(text.as_bytes()), told, "{text:?}");
        }
    }
}
