//! The bytes of an HTTP/1 head: what a lenient parser has repaired or dropped before anyone could look at it.

use http::Version;
use memchr::memchr;

use super::form::{FormFault, Head, has_control};
use super::target::PathFault;

/// Checks that the head is lines that end with CR LF, the first of them the request line that was parsed, the others one
/// field each, and that none of the fields that give a body its length is there twice.
pub(super) fn check_raw(raw: &[u8], head: &Head<'_>) -> Result<(), FormFault> {
    // One empty line before the request line is allowed (RFC 9112, section 2.2).
    let raw = raw.strip_prefix(b"\r\n").unwrap_or(raw);
    let (line, mut rest) = next_line(raw)?;
    check_request_line(line, head)?;
    let (mut fields, mut lengths, mut codings) = (0, 0, 0);
    loop {
        let (line, after) = next_line(rest)?;
        if line.is_empty() {
            break;
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(FormFault::Folded);
        }
        let Some(colon) = memchr(b':', line) else { return Err(FormFault::FieldName) };
        let name = &line[..colon];
        if matches!(name.last(), None | Some(b' ' | b'\t')) {
            return Err(FormFault::FieldName);
        }
        fields += 1;
        lengths += u32::from(name.eq_ignore_ascii_case(b"content-length"));
        codings += u32::from(name.eq_ignore_ascii_case(b"transfer-encoding"));
        rest = after;
    }
    match (lengths, codings) {
        (2.., _) => Err(FormFault::ContentLength),
        (_, 2..) => Err(FormFault::TransferEncoding),
        (1, 1) => Err(FormFault::TwoLengths),
        _ if fields != head.headers.len() => Err(FormFault::FieldsDisagree),
        _ => Ok(()),
    }
}

/// A line without its CR LF, and what follows it.
fn next_line(text: &[u8]) -> Result<(&[u8], &[u8]), FormFault> {
    let end = memchr(b'\n', text).ok_or(FormFault::LineEnd)?;
    let line = text[..end].strip_suffix(b"\r").ok_or(FormFault::LineEnd)?;
    if has_control(line) {
        return Err(if line.contains(&b'\r') { FormFault::LineEnd } else { FormFault::ControlInField });
    }
    Ok((line, &text[end + 1..]))
}

fn check_request_line(line: &[u8], head: &Head<'_>) -> Result<(), FormFault> {
    let version: &[u8] = if head.version == Version::HTTP_10 { b" HTTP/1.0" } else { b" HTTP/1.1" };
    let method = head.method.as_str().as_bytes();
    let target = line
        .strip_prefix(method)
        .and_then(|rest| rest.strip_prefix(b" "))
        .and_then(|rest| rest.strip_suffix(version))
        .ok_or(FormFault::RequestLine)?;
    if target == head.target {
        return Ok(());
    }
    // Pingora drops fragments without a word.
    Err(if target.contains(&b'#') { PathFault::Fragment.into() } else { FormFault::RequestLine })
}
