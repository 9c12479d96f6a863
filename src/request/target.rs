//! Paths and queries: one spelling for each, so that what the gateway matched is what Hive serves.

/// What is wrong with a path or a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathFault {
    /// Does not begin with `/`.
    NotAbsolute,
    /// `//`: parsers fold it, or take what follows for a host.
    EmptySegment,
    /// A segment `.` or `..`.
    DotSegment,
    /// `;`: some parsers cut path parameters off.
    Semicolon,
    /// `\`: WHATWG URL parsers (Node.js) take it for `/`.
    Backslash,
    /// `#`: belongs to no request target (RFC 9112, section 3.2). Over HTTP/2 it is never seen: `http::Uri`, into which h2 puts
    /// `:path`, cuts it off, for the checks and for the node alike.
    Fragment,
    /// A control byte.
    Control,
    /// A byte of 0x80 or more; it must be percent-encoded.
    NonAscii,
    /// A character that RFC 3986 does not allow there, such as a space, a quote or a bracket.
    ForbiddenCharacter,
    /// `%` without two hex digits.
    BadEscape,
    /// An escape of what has, or decodes to, a meaning: `%2e`, `%2f`, `%5c`, `%00`, control characters, `%25` (decoded
    /// twice it is any of them), or a second spelling: an escape of a character that may stand unescaped, or one in
    /// lower-case hex.
    AmbiguousEscape,
    /// Escapes that are not UTF-8, such as the overlong `%C0%AF` for `/`.
    EscapeNotUtf8,
}

impl PathFault {
    /// For a log or a configuration error.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotAbsolute => "the path does not begin with /",
            Self::EmptySegment => "empty segment (//) in the path",
            Self::DotSegment => "segment . or .. in the path",
            Self::Semicolon => "; in the path",
            Self::Backslash => "backslash in the path",
            Self::Fragment => "# in the request target",
            Self::Control => "control byte in the request target",
            Self::NonAscii => "byte outside of ASCII in the request target",
            Self::ForbiddenCharacter => "character that RFC 3986 does not allow in the request target",
            Self::BadEscape => "% without two hex digits in the request target",
            Self::AmbiguousEscape => "ambiguous percent-encoding in the path",
            Self::EscapeNotUtf8 => "percent-encoding that is not UTF-8 in the path",
        }
    }
}

/// Whether RFC 3986 lets a byte stand in a path segment (`pchar` without escapes), less `;`.
const PATH: [bool; 256] = literals(b"-._~!$&'()*+,=:@");
/// The same for a query (section 3.4).
const QUERY: [bool; 256] = literals(b"-._~!$&'()*+,;=:@/?");

const fn literals(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 128 {
        table[i] = (i as u8).is_ascii_alphanumeric();
        i += 1;
    }
    let mut i = 0;
    while i < marks.len() {
        table[marks[i] as usize] = true;
        i += 1;
    }
    table
}

/// Whether a path (without query) has the one spelling that the gateway serves: absolute, no empty or dot segment, only
/// characters of RFC 3986 less `;`, and escapes only where nothing else is possible: upper-case hex, UTF-8, and nothing
/// that may stand unescaped. So two different byte strings never name the same resource behind the gateway, and a rule
/// for `/x/secret` can't be passed by as `/x/%73ecret`.
///
/// # Errors
/// The first fault from the left.
pub fn check_path(path: &[u8]) -> Result<(), PathFault> {
    if path.first() != Some(&b'/') {
        return Err(PathFault::NotAbsolute);
    }
    let mut segment = 1;
    let mut at = 1;
    let mut non_ascii_escapes = false;
    while let Some(&byte) = path.get(at) {
        if PATH[usize::from(byte)] {
            at += 1;
        } else if byte == b'/' {
            if at == segment {
                return Err(PathFault::EmptySegment);
            }
            check_segment(&path[segment..at])?;
            at += 1;
            segment = at;
        } else if byte == b'%' {
            non_ascii_escapes |= path_escape(&path[at..])? >= 0x80;
            at += 3;
        } else {
            return Err(literal_fault(byte));
        }
    }
    check_segment(&path[segment..])?;
    if non_ascii_escapes { check_utf8(path) } else { Ok(()) }
}

fn check_segment(segment: &[u8]) -> Result<(), PathFault> {
    if segment == b"." || segment == b".." { Err(PathFault::DotSegment) } else { Ok(()) }
}

fn literal_fault(byte: u8) -> PathFault {
    match byte {
        b';' => PathFault::Semicolon,
        b'\\' => PathFault::Backslash,
        b'#' => PathFault::Fragment,
        0..=0x1f | 0x7f => PathFault::Control,
        0x80..=0xff => PathFault::NonAscii,
        _ => PathFault::ForbiddenCharacter,
    }
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    char::from(*digit?).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// The byte that the escape at the beginning of `text` stands for.
fn escape(text: &[u8]) -> Result<u8, PathFault> {
    match (hex(text.get(1)), hex(text.get(2))) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(PathFault::BadEscape),
    }
}

fn path_escape(text: &[u8]) -> Result<u8, PathFault> {
    let byte = escape(text)?;
    let needless = PATH[usize::from(byte)];
    let dangerous = byte < 0x20 || matches!(byte, b'/' | b'\\' | b'%' | b';' | b'?' | b'#' | 0x7f);
    let lower_case = text[1].is_ascii_lowercase() || text[2].is_ascii_lowercase();
    if needless || dangerous || lower_case { Err(PathFault::AmbiguousEscape) } else { Ok(byte) }
}

/// Each run of escapes of bytes from 0x80 must be UTF-8 by itself. The path's escapes are known to be well-formed.
fn check_utf8(path: &[u8]) -> Result<(), PathFault> {
    let mut at = 0;
    while at < path.len() {
        let Some(first) = escape_at(path, at) else {
            at += 1;
            continue;
        };
        let length = match first {
            0..=0x7f => 1,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return Err(PathFault::EscapeNotUtf8),
        };
        let mut character = [0; 4];
        for (i, byte) in character[..length].iter_mut().enumerate() {
            *byte = escape_at(path, at + 3 * i).ok_or(PathFault::EscapeNotUtf8)?;
        }
        std::str::from_utf8(&character[..length]).map_err(|_| PathFault::EscapeNotUtf8)?;
        at += 3 * length;
    }
    Ok(())
}

fn escape_at(path: &[u8], at: usize) -> Option<u8> {
    let rest = path.get(at..)?;
    if rest.first() == Some(&b'%') { escape(rest).ok() } else { None }
}

/// Whether a query (without its `?`) is one by RFC 3986, section 3.4. What its escapes stand for is the application's.
pub(super) fn check_query(query: &[u8]) -> Result<(), PathFault> {
    let mut at = 0;
    while let Some(&byte) = query.get(at) {
        if QUERY[usize::from(byte)] {
            at += 1;
        } else if byte == b'%' {
            escape(&query[at..])?;
            at += 3;
        } else {
            return Err(literal_fault(byte));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_pass() {
        for path in [
            "/",
            "/api/a2a/jsonrpc",
            "/.well-known/agent-card.json",
            "/a/",
            "/a/...",
            "/a/.b/c..",
            "/v1/message:send",
            "/~x/$&'()*+,=@!_-",
            "/caf%C3%A9",
            "/a%20b",
            "/%E2%82%AC/%F0%9F%90%9D",
            "/%7B%7D%5B%5D%22%3C%3E%7C%5E%60",
        ] {
            assert_eq!(check_path(path.as_bytes()), Ok(()), "{path}");
        }
    }

    #[test]
    fn a_path_with_a_second_reading_is_refused() {
        use PathFault::*;
        for (path, fault) in [
            ("", NotAbsolute),
            ("a", NotAbsolute),
            ("*", NotAbsolute),
            ("//", EmptySegment),
            ("//evil.example/x", EmptySegment),
            ("/a//b", EmptySegment),
            ("/.", DotSegment),
            ("/./a", DotSegment),
            ("/a/..", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/%2e%2e/b", AmbiguousEscape),
            ("/a/.%2E/b", AmbiguousEscape),
            ("/a%2fb", AmbiguousEscape),
            ("/a%2Fb", AmbiguousEscape),
            ("/a%5Cb", AmbiguousEscape),
            ("/a%5cb", AmbiguousEscape),
            ("/a%00", AmbiguousEscape),
            ("/a%0d%0a", AmbiguousEscape),
            ("/a%09", AmbiguousEscape),
            ("/a%7F", AmbiguousEscape),
            ("/a%252e", AmbiguousEscape),
            ("/a%25", AmbiguousEscape),
            ("/a%3B", AmbiguousEscape),
            ("/a%3F", AmbiguousEscape),
            ("/a%23", AmbiguousEscape),
            ("/x/%73ecret", AmbiguousEscape),
            ("/v1/message%3Asend", AmbiguousEscape),
            ("/caf%c3%a9", AmbiguousEscape),
            ("/%C0%AF", EscapeNotUtf8),
            ("/%E0%80%AF", EscapeNotUtf8),
            ("/%ED%A0%80", EscapeNotUtf8),
            ("/%C3", EscapeNotUtf8),
            ("/%C3/%A9", EscapeNotUtf8),
            ("/%C3A9", EscapeNotUtf8),
            ("/%A9", EscapeNotUtf8),
            ("/%F5%80%80%80", EscapeNotUtf8),
            ("/a;b", Semicolon),
            ("/a\\b", Backslash),
            ("/a#b", Fragment),
            ("/a b", ForbiddenCharacter),
            ("/a\"b", ForbiddenCharacter),
            ("/a[0]", ForbiddenCharacter),
            ("/a?b", ForbiddenCharacter),
            ("/a\tb", Control),
            ("/a\0", Control),
            ("/a\x7f", Control),
            ("/é", NonAscii),
            ("/%", BadEscape),
            ("/%4", BadEscape),
            ("/%zz", BadEscape),
            ("/%u0041", BadEscape),
            ("/%+1", BadEscape),
        ] {
            assert_eq!(check_path(path.as_bytes()), Err(fault), "{path:?}");
        }
    }

    #[test]
    fn a_query_is_what_rfc_3986_says() {
        for query in ["", "a=b&c=d", "a=%00%2F%2e", "x;y", "a=/?:@!$'()*+,-._~"] {
            assert_eq!(check_query(query.as_bytes()), Ok(()), "{query}");
        }
        for query in ["a b", "a#b", "a[0]=1", "%", "%4", "%g0", "\"", "<", "\\", "é", "\t", "{}", "|", "^", "`"] {
            assert!(check_query(query.as_bytes()).is_err(), "{query}");
        }
    }
}
