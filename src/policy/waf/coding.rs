//! What a firewall can't read, because it is written in a code that whoever reads it may undo: a compressed body, a
//! charset in which other bytes than ASCII's make an attack's letters, a part of a form in base64.

use http::HeaderMap;

use crate::headers::{CONTENT_TYPE, has_content_coding};
use crate::refusal::Refusal;

const CHARSET: Refusal = Refusal::UnsupportedMediaType("a charset other than utf-8 before a firewall");
const PART: Refusal = Refusal::UnsupportedMediaType("a part with a Content-Transfer-Encoding before a firewall");

/// Whether a body under these header fields is what it looks like.
///
/// # Errors
/// It has a content coding (RFC 9110, section 8.4), or a charset other than UTF-8.
pub fn check_fields(headers: &HeaderMap) -> Result<(), Refusal> {
    if has_content_coding(headers) {
        return Err(Refusal::UnsupportedContentCoding);
    }
    if headers.get_all(CONTENT_TYPE).iter().any(|kind| foreign_charset(kind.as_bytes())) {
        return Err(CHARSET);
    }
    Ok(())
}

/// Whether the parts of a multipart body are. Header lines are looked for in the whole body, behind its first line of two
/// hyphens: which lines are boundaries, and where a header ends, readers don't agree on.
///
/// # Errors
/// A part has a Content-Transfer-Encoding that changes it (RFC 7578, section 4.7: nobody is to send one), or a charset other
/// than UTF-8.
pub fn check_parts(headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let multipart =
        |kind: &[u8]| kind.trim_ascii_start().get(..10).is_some_and(|k| k.eq_ignore_ascii_case(b"multipart/"));
    if !headers.get_all(CONTENT_TYPE).iter().any(|kind| multipart(kind.as_bytes())) {
        return Ok(());
    }
    let mut in_header = false;
    let mut kind = false;
    for line in body.split(|b| matches!(b, b'\n' | b'\r')) {
        if line.starts_with(b"--") {
            (in_header, kind) = (true, false);
        } else if !in_header {
            continue;
        } else if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
            // What is folded belongs to the line before.
            if kind && foreign_charset(line) {
                return Err(CHARSET);
            }
        } else if let Some(colon) = memchr::memchr(b':', line) {
            let (name, value) = (line[..colon].trim_ascii(), &line[colon + 1..]);
            kind = name.eq_ignore_ascii_case(b"content-type");
            let plain =
                || [&b"7bit"[..], b"8bit", b"binary"].iter().any(|p| value.trim_ascii().eq_ignore_ascii_case(p));
            if name.eq_ignore_ascii_case(b"content-transfer-encoding") && !plain() {
                return Err(PART);
            }
            if kind && foreign_charset(value) {
                return Err(CHARSET);
            }
        }
    }
    Ok(())
}

/// Whether a media type names a charset other than UTF-8 or ASCII, in whatever form.
fn foreign_charset(kind: &[u8]) -> bool {
    let lower = kind.to_ascii_lowercase();
    memchr::memmem::find_iter(&lower, b"charset").any(|at| {
        let rest = lower[at + 7..].trim_ascii_start();
        let Some(value) = rest.strip_prefix(b"=") else { return rest.first() == Some(&b'*') };
        let value = value.trim_ascii_start();
        let value = value.strip_prefix(b"\"").unwrap_or(value);
        let end = value.iter().position(|b| matches!(b, b'"' | b';' | b' ' | b'\t' | b',')).unwrap_or(value.len());
        !matches!(&value[..end], b"utf-8" | b"utf8" | b"us-ascii")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::CONTENT_ENCODING;

    use super::*;

    fn of(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn coded_bodies_are_told_by_their_fields() {
        for coding in ["gzip", "deflate", "br", "x-gzip", "identity, gzip", "GZIP"] {
            assert_eq!(check_fields(&of(CONTENT_ENCODING, coding)), Err(Refusal::UnsupportedContentCoding), "{coding}");
        }
        assert_eq!(check_fields(&of(CONTENT_ENCODING, "Identity")), Ok(()));
        for kind in [
            "application/json; charset=utf-16le",
            "text/xml;charset=\"UTF-7\"",
            "text/plain; charset = ibm037",
            "text/plain; charset*=utf-8''utf-7",
            "text/plain; charset=utf-8; charset=utf-16",
            "text/plain; charset=",
        ] {
            assert_eq!(check_fields(&of(CONTENT_TYPE, kind)), Err(CHARSET), "{kind}");
        }
        for kind in
            ["text/xml", "text/xml; charset=UTF-8", "a/b;charset=\"utf-8\"; x=y", "text/plain; charset=us-ascii"]
        {
            assert_eq!(check_fields(&of(CONTENT_TYPE, kind)), Ok(()), "{kind}");
        }
    }

    #[test]
    fn coded_parts_are_found_whatever_their_boundary() {
        let form = of(CONTENT_TYPE, "Multipart/form-data; boundary=b");
        let part = |header: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"a\"\r\n{header}\r\n\r\nx\r\n--b--\r\n")
        };
        for header in [
            "Content-Transfer-Encoding: base64",
            "content-transfer-encoding :\tquoted-printable",
            "CONTENT-TRANSFER-ENCODING:\r\n base64",
        ] {
            assert_eq!(check_parts(&form, part(header).as_bytes()), Err(PART), "{header}");
            assert_eq!(check_parts(&form, part(header).replace("--b", "--c").replace('\r', "").as_bytes()), Err(PART));
        }
        assert_eq!(check_parts(&form, part("Content-Type: text/plain;\r\n charset=utf-7").as_bytes()), Err(CHARSET));
        for header in ["Content-Transfer-Encoding: 8bit", "Content-Type: text/plain; charset=utf-8", "X: base64"] {
            assert_eq!(check_parts(&form, part(header).as_bytes()), Ok(()), "{header}");
        }
        let coded = part("Content-Transfer-Encoding: base64");
        assert_eq!(check_parts(&of(CONTENT_TYPE, "text/plain"), coded.as_bytes()), Ok(()), "no form");
    }
}
