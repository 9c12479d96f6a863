//! HTTP/1.1 as a node speaks it (RFC 9112): an answer's head, and where its body ends. Bytes in, bytes out.
//!
//! Whatever two parsers could read in two ways is an error, for there may be another proxy behind an egress route.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use pingora::http::ResponseHeader;

use crate::headers;

/// Longest head of an answer. Node's own limit for heads is 16 KiB.
pub(super) const HEAD_MAX: usize = 64 << 10;
/// Most fields in it.
pub(super) const FIELDS_MAX: usize = 128;
/// Longest line that says how long a chunk is, its extensions included.
const CHUNK_LINE_MAX: usize = 256;
/// Longest trailer section. It is read and dropped.
const TRAILERS_MAX: usize = 8 << 10;

/// Why an answer can't be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// An answer's head.
pub struct Head {
    /// As the node sent it, hop-by-hop fields included.
    pub header: ResponseHeader,
    /// Where the body ends.
    pub body: Body,
    /// Whether the node will take another request on this connection.
    pub keep_alive: bool,
}

/// Takes a head from the front of `buf` once it is whole. `scanned` is what of `buf` is known not to end it; 0 at first.
/// `no_body` says that the request was a HEAD.
///
/// # Errors
/// A head that is too long, not HTTP/1, or ambiguous.
pub fn take_head(buf: &mut BytesMut, scanned: &mut usize, no_body: bool) -> Result<Option<Head>, Malformed> {
    let from = scanned.saturating_sub(3);
    let Some(end) = memchr::memmem::find(&buf[from..], b"\r\n\r\n").map(|at| from + at + 4) else {
        *scanned = buf.len();
        return if buf.len() > HEAD_MAX { Err(Malformed("a header of more than 64 KiB")) } else { Ok(None) };
    };
    if end > HEAD_MAX {
        return Err(Malformed("a header of more than 64 KiB"));
    }
    *scanned = 0;
    parse_head(buf.split_to(end).freeze(), no_body).map(Some)
}

fn parse_head(raw: Bytes, no_body: bool) -> Result<Head, Malformed> {
    if memchr::memchr_iter(b'\n', &raw).any(|at| at == 0 || raw[at - 1] != b'\r') {
        return Err(Malformed("a bare LF in the header"));
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, &raw, &mut fields);
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
        Ok(_) => return Err(Malformed("a header that ends early")),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed("more than 128 header fields")),
        Err(_) => return Err(Malformed("not an HTTP/1 header")),
    }
    let (Some(code), Some(minor)) = (response.code, response.version) else {
        return Err(Malformed("not an HTTP/1 header"));
    };
    let status = StatusCode::from_u16(code).map_err(|_| Malformed("a status that is none"))?;
    let mut header = ResponseHeader::build_no_case(status, Some(response.headers.len() + 1))
        .map_err(|_| Malformed("a status that is none"))?;
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed("a field name that is none"))?;
        let value = HeaderValue::from_maybe_shared(raw.slice_ref(field.value))
            .map_err(|_| Malformed("a field value with control characters"))?;
        header.append_header(name, value).map_err(|_| Malformed("too many header fields"))?;
    }
    if let Some(reason) = response.reason.filter(|r| status.canonical_reason() != Some(r)) {
        // One that can't be sent on is left out: it means nothing to anybody (RFC 9112, section 4).
        let _ = header.set_reason_phrase(Some(reason));
    }
    let body = Body::of(status, minor, &header.headers, no_body)?;
    let keep_alive = keeps_alive(minor, &header.headers) && !matches!(body, Body::UntilClose);
    Ok(Head { header, body, keep_alive })
}

fn keeps_alive(minor: u8, headers: &HeaderMap) -> bool {
    let says = |what: &str| headers::connection_tokens(headers).any(|t| t.eq_ignore_ascii_case(what.as_bytes()));
    if headers.contains_key(CONNECTION) { !says("close") && (minor == 1 || says("keep-alive")) } else { minor == 1 }
}

/// What of an answer's body is still to come (RFC 9112, section 6.3).
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; 0 is the end.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// Whatever comes until the node closes.
    UntilClose,
}

/// Where in a chunked body the next byte stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// In the line with the size.
    Size,
    /// In the data, with so much of it to come.
    Data(u64),
    /// In the CRLF after the data.
    End,
    /// In the trailer section, of which so much has been read.
    Trailers(usize),
    /// Behind it all.
    Done,
}

impl Body {
    fn of(status: StatusCode, minor: u8, headers: &HeaderMap, no_body: bool) -> Result<Self, Malformed> {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let length = lengths.next().map(length_of).transpose()?;
        if lengths.next().is_some() {
            return Err(Malformed("more than one Content-Length"));
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let coding = codings.next();
        if coding.is_some() && length.is_some() {
            return Err(Malformed("Content-Length together with Transfer-Encoding"));
        }
        if coding.is_some_and(|c| !c.as_bytes().eq_ignore_ascii_case(b"chunked")) || codings.next().is_some() {
            return Err(Malformed("a Transfer-Encoding other than chunked"));
        }
        if no_body
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
        {
            return Ok(Body::Length(0));
        }
        match (coding, length) {
            (Some(_), _) if minor == 0 => Err(Malformed("Transfer-Encoding from an HTTP/1.0 node")),
            (Some(_), _) => Ok(Body::Chunked(Chunk::Size)),
            (None, Some(length)) => Ok(Body::Length(length)),
            (None, None) => Ok(Body::UntilClose),
        }
    }

    /// Whether nothing more of it will come.
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked(Chunk::Done))
    }

    /// Takes what `buf` holds of it. `None`: nothing, or only framing; if it is not done then, more must be read.
    ///
    /// # Errors
    /// Broken chunks.
    pub fn take(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        match self {
            _ if buf.is_empty() => Ok(None),
            Body::UntilClose => Ok(Some(buf.split().freeze())),
            Body::Length(0) => Ok(None),
            Body::Length(left) => Ok(Some(take_up_to(buf, left))),
            Body::Chunked(chunk) => chunk.take(buf),
        }
    }

    /// The node has closed: the end, if it may be one.
    ///
    /// # Errors
    /// The body is not whole.
    pub fn closed(&mut self) -> Result<(), Malformed> {
        match self {
            Body::UntilClose => {
                *self = Body::Length(0);
                Ok(())
            }
            body if body.is_done() => Ok(()),
            _ => Err(Malformed("the node closed the connection before the answer's end")),
        }
    }
}

fn take_up_to(buf: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= length as u64;
    buf.split_to(length).freeze()
}

/// Digits and nothing else (RFC 9110, section 8.6).
fn length_of(value: &HeaderValue) -> Result<u64, Malformed> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed("a Content-Length that is no number"));
    }
    let text = value.to_str().map_err(|_| Malformed("a Content-Length that is no number"))?;
    text.parse().map_err(|_| Malformed("a Content-Length that is too large"))
}

impl Chunk {
    /// All data that `buf` holds whole or in part, joined.
    fn take(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        let mut first: Option<Bytes> = None;
        let mut joined: Option<BytesMut> = None;
        loop {
            match self {
                Chunk::Size => {
                    let Some(line) = take_line(buf, CHUNK_LINE_MAX, "a chunk's size line of more than 256 bytes")?
                    else {
                        break;
                    };
                    *self = match chunk_size(&line)? {
                        0 => Chunk::Trailers(0),
                        size => Chunk::Data(size),
                    };
                }
                Chunk::Data(left) => {
                    if buf.is_empty() {
                        break;
                    }
                    let data = take_up_to(buf, left);
                    if *left == 0 {
                        *self = Chunk::End;
                    }
                    match (&mut joined, first.as_ref()) {
                        (Some(joined), _) => joined.extend_from_slice(&data),
                        (None, None) => first = Some(data),
                        (None, Some(before)) => {
                            let mut both = BytesMut::with_capacity(before.len() + data.len() + buf.len());
                            both.extend_from_slice(before);
                            both.extend_from_slice(&data);
                            joined = Some(both);
                        }
                    }
                }
                Chunk::End => {
                    if buf.len() < 2 {
                        break;
                    }
                    if &buf.split_to(2)[..] != b"\r\n" {
                        return Err(Malformed("a chunk that does not end where it says"));
                    }
                    *self = Chunk::Size;
                }
                Chunk::Trailers(read) => {
                    let Some(line) = take_line(buf, TRAILERS_MAX, "trailers of more than 8 KiB")? else { break };
                    *read += line.len() + 2;
                    if *read > TRAILERS_MAX {
                        return Err(Malformed("trailers of more than 8 KiB"));
                    }
                    if line.is_empty() {
                        *self = Chunk::Done;
                    } else if !line.contains(&b':') {
                        return Err(Malformed("a trailer line without a colon"));
                    }
                }
                Chunk::Done => break,
            }
        }
        Ok(joined.map(BytesMut::freeze).or(first))
    }
}

/// A line without its CRLF. `None`: it is not whole yet.
fn take_line(buf: &mut BytesMut, longest: usize, too_long: &'static str) -> Result<Option<BytesMut>, Malformed> {
    let Some(lf) = memchr::memchr(b'\n', &buf[..buf.len().min(longest)]) else {
        return if buf.len() >= longest { Err(Malformed(too_long)) } else { Ok(None) };
    };
    let mut line = buf.split_to(lf + 1);
    line.truncate(lf);
    if line.last() != Some(&b'\r') {
        return Err(Malformed("a bare LF between chunks"));
    }
    line.truncate(lf - 1);
    if line.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(Malformed("a control character between chunks"));
    }
    Ok(Some(line))
}

/// Hexadecimal digits, then nothing or extensions, which mean nothing here (RFC 9112, section 7.1).
fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    const WRONG: Malformed = Malformed("a chunk's size that is no number");
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 16 || !(rest.is_empty() || rest[0] == b';') {
        return Err(WRONG);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| WRONG)?;
    u64::from_str_radix(text, 16).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests;
