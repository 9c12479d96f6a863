//! The strict form: everything that two parsers could read in two ways is 400 (design, decision 1).
//!
//! Behind the gateway stands Node.js. What it, Pingora or a load balancer between them is known to read differently is
//! refused here instead of repaired: lengths (request smuggling), hosts, paths, repeated single-value fields (Node.js
//! silently takes the first).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::{HeaderMap, Method, Version};

use super::raw::check_raw;
use super::target::{PathFault, check_path, check_query};
use crate::headers::{FEDERATION_JWT_END, connection_tokens, never_nominated};

/// Most fields of a request, those of the same name counted one by one.
pub const FIELDS_MAX: usize = 100;
/// Longest federation JWT, in bytes (`hive-contract`, "Federation JWT").
pub const FEDERATION_JWT_LENGTH_MAX: usize = 8192;

/// Most elements of `Connection`; Pingora stops at as many.
const NOMINATIONS_MAX: usize = 10;

/// A request's head, as received, before anything is removed or set.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// HTTP/1: the request target's bytes (Pingora's `RequestHeader::raw_path`). HTTP/2: `:path`.
    pub target: &'a [u8],
    /// HTTP/2: `:authority`. HTTP/1: `None`.
    pub authority: Option<&'a str>,
    /// HTTP/2: `:scheme`. HTTP/1: `None`.
    pub scheme: Option<&'a str>,
    /// All fields, without pseudo-headers.
    pub headers: &'a HeaderMap,
    /// The version.
    pub version: Version,
    /// HTTP/1: the head's bytes from the request line to the empty line (`get_headers_raw_bytes`). Needed there to see
    /// what Pingora drops: `Content-Length` beside `Transfer-Encoding`, fragments, bare line feeds.
    pub raw: Option<&'a [u8]>,
}

/// What a request of strict form asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form<'a> {
    /// The path, byte for byte.
    pub path: &'a [u8],
    /// The path with its query: what is to be forwarded.
    pub path_and_query: &'a [u8],
    /// Host and port as the client wrote them.
    pub authority: &'a str,
    /// The host alone in lower case; an IPv6 address keeps its brackets.
    pub host: Cow<'a, str>,
    /// HTTP/1: the target was in absolute form, so [`Self::path_and_query`] must replace it on the way to the node.
    pub absolute: bool,
}

/// Why a request's form is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FormFault {
    /// Two federation credentials: JWT and secret, or one of them twice, under whatever prefix. Its own refusal.
    TwoFederationCredentials,
    /// A federation JWT of more than [`FEDERATION_JWT_LENGTH_MAX`] bytes. Its own refusal.
    FederationTokenTooLong,
    /// More than [`FIELDS_MAX`] fields. Its own refusal.
    TooManyFields,
    /// The path or the query.
    Target(PathFault),
    /// `*` as target.
    AsteriskForm,
    /// `CONNECT`.
    Connect,
    /// `Upgrade`, or `Connection: upgrade`.
    Upgrade,
    /// Neither HTTP/1.0, 1.1 nor 2.
    Version,
    /// A `:scheme`, or the scheme of an absolute target, that is neither `http` nor `https`.
    Scheme,
    /// Neither `Host` nor `:authority`.
    HostMissing,
    /// More than one `Host`.
    HostTwice,
    /// `Host` or `:authority` is not a host with an optional port: user information, an empty port, a trailing dot, …
    HostSyntax,
    /// `Host` differs from `:authority` or from the host of an absolute target.
    HostsDisagree,
    /// `Content-Length` that is no number, or more than one.
    ContentLength,
    /// Both `Content-Length` and `Transfer-Encoding`.
    TwoLengths,
    /// `Transfer-Encoding` other than exactly one `chunked`, or on HTTP/1.0 or HTTP/2.
    TransferEncoding,
    /// A field of HTTP/1 connections on HTTP/2 (RFC 9113, section 8.2.2).
    ConnectionFieldOnHttp2,
    /// `Connection` with an element that is no field name, or with more than ten.
    ConnectionSyntax,
    /// `Connection` nominates an end-to-end field.
    ConnectionNominatesEndToEnd,
    /// A field that has one value came twice: `Authorization`, `Content-Type`, `Content-Encoding`, `Expect`.
    FieldTwice,
    /// A control byte in a field.
    ControlInField,
    /// HTTP/1: a line that does not end with CR LF, or a CR elsewhere.
    LineEnd,
    /// HTTP/1: a field that continues on the next line (obs-fold).
    Folded,
    /// HTTP/1: a line without a name, or with white space before the colon.
    FieldName,
    /// HTTP/1: the request line is not method, target and version with one space between, as they were parsed.
    RequestLine,
    /// HTTP/1: not every line of the head became a field.
    FieldsDisagree,
}

impl FormFault {
    /// For the log: what was wrong, never what was sent.
    pub fn message(self) -> &'static str {
        match self {
            Self::TwoFederationCredentials => "more than one federation credential",
            Self::FederationTokenTooLong => "federation JWT too long",
            Self::TooManyFields => "too many header fields",
            Self::Target(fault) => fault.message(),
            Self::AsteriskForm => "request target *",
            Self::Connect => "CONNECT is not served",
            Self::Upgrade => "protocol upgrade is not served",
            Self::Version => "unknown HTTP version",
            Self::Scheme => "scheme is neither http nor https",
            Self::HostMissing => "no Host",
            Self::HostTwice => "more than one Host",
            Self::HostSyntax => "malformed Host or :authority",
            Self::HostsDisagree => "Host differs from the request target's host",
            Self::ContentLength => "malformed or repeated Content-Length",
            Self::TwoLengths => "both Content-Length and Transfer-Encoding",
            Self::TransferEncoding => "Transfer-Encoding other than chunked, or where it can't be",
            Self::ConnectionFieldOnHttp2 => "connection-specific field on HTTP/2",
            Self::ConnectionSyntax => "malformed Connection",
            Self::ConnectionNominatesEndToEnd => "Connection nominates an end-to-end field",
            Self::FieldTwice => "field with one value came twice",
            Self::ControlInField => "control byte in a field",
            Self::LineEnd => "line that does not end with CR LF",
            Self::Folded => "folded field",
            Self::FieldName => "malformed field name",
            Self::RequestLine => "malformed request line",
            Self::FieldsDisagree => "line of the head that is not a field",
        }
    }
}

impl From<PathFault> for FormFault {
    fn from(fault: PathFault) -> Self {
        Self::Target(fault)
    }
}

/// Checks a request's form, before anything else is done with it. Never allocates, but for a `Host` in upper case.
///
/// # Errors
/// The first fault found; every one of them is 400 (431 may suit [`FormFault::TooManyFields`]).
pub fn check_form<'a>(head: &Head<'a>) -> Result<Form<'a>, FormFault> {
    if !matches!(head.version, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2) {
        return Err(FormFault::Version);
    }
    if *head.method == Method::CONNECT {
        return Err(FormFault::Connect);
    }
    if head.headers.len() > FIELDS_MAX {
        return Err(FormFault::TooManyFields);
    }
    if let Some(raw) = head.raw {
        check_raw(raw, head)?;
    }
    let host = check_fields(head)?;
    let target = split_target(head)?;
    let authority = match (target.authority.or(head.authority), host) {
        (Some(one), Some(other)) if !one.eq_ignore_ascii_case(other) => return Err(FormFault::HostsDisagree),
        // An absolute target does not make up for the Host that HTTP/1.1 asks for (RFC 9112, section 3.2).
        (_, None) if head.version != Version::HTTP_2 => return Err(FormFault::HostMissing),
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err(FormFault::HostMissing),
    };
    let host = host_of(authority).ok_or(FormFault::HostSyntax)?;
    let (path, query) = match target.path_and_query.iter().position(|b| *b == b'?') {
        Some(mark) => (&target.path_and_query[..mark], Some(&target.path_and_query[mark + 1..])),
        None => (target.path_and_query, None),
    };
    check_path(path)?;
    check_query(query.unwrap_or_default())?;
    Ok(Form { path, path_and_query: target.path_and_query, authority, host, absolute: target.authority.is_some() })
}

struct Target<'a> {
    authority: Option<&'a str>,
    path_and_query: &'a [u8],
}

/// Takes an absolute-form target apart (RFC 9112, section 3.2).
fn split_target<'a>(head: &Head<'a>) -> Result<Target<'a>, FormFault> {
    if let Some(scheme) = head.scheme
        && !scheme.eq_ignore_ascii_case("https")
        && !scheme.eq_ignore_ascii_case("http")
    {
        return Err(FormFault::Scheme);
    }
    let target = head.target;
    if target == b"*" {
        return Err(FormFault::AsteriskForm);
    }
    if target.first() == Some(&b'/') {
        return Ok(Target { authority: None, path_and_query: target });
    }
    if head.version == Version::HTTP_2 {
        return Err(PathFault::NotAbsolute.into());
    }
    let Some(colon) = target.windows(3).position(|w| w == b"://") else { return Err(PathFault::NotAbsolute.into()) };
    let (scheme, rest) = (&target[..colon], &target[colon + 3..]);
    if !scheme.eq_ignore_ascii_case(b"https") && !scheme.eq_ignore_ascii_case(b"http") {
        return Err(FormFault::Scheme);
    }
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#' | b'\\')).unwrap_or(rest.len());
    let authority = std::str::from_utf8(&rest[..end]).map_err(|_| FormFault::HostSyntax)?;
    let path_and_query = if end == rest.len() { b"/" } else { &rest[end..] };
    Ok(Target { authority: Some(authority), path_and_query })
}

/// What is counted in one pass over the fields.
#[derive(Default)]
struct Counts {
    content_length: u32,
    transfer_encoding: u32,
    federation: u32,
    authorization: u32,
    connection: u32,
    content_type: u32,
    content_encoding: u32,
    expect: u32,
}

/// Everything but the target. Returns the value of `Host`.
fn check_fields<'a>(head: &Head<'a>) -> Result<Option<&'a str>, FormFault> {
    let http2 = head.version == Version::HTTP_2;
    let mut counts = Counts::default();
    let mut host = None;
    for (name, value) in head.headers {
        let value = value.as_bytes();
        // The raw head, where there is one, was searched for them already.
        if head.raw.is_none() && has_control(value) {
            return Err(FormFault::ControlInField);
        }
        match name.as_str() {
            "host" => {
                let text = std::str::from_utf8(value).map_err(|_| FormFault::HostSyntax)?;
                if host.replace(text).is_some() {
                    return Err(FormFault::HostTwice);
                }
            }
            "content-length" => {
                counts.content_length += 1;
                if !is_length(value) {
                    return Err(FormFault::ContentLength);
                }
            }
            "transfer-encoding" => {
                counts.transfer_encoding += 1;
                // Before HTTP/1.1 a chunked body has no meaning (RFC 9112, section 6.1).
                if head.version != Version::HTTP_11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FormFault::TransferEncoding);
                }
            }
            "upgrade" | "http2-settings" => return Err(FormFault::Upgrade),
            "connection" | "keep-alive" | "proxy-connection" if http2 => return Err(FormFault::ConnectionFieldOnHttp2),
            "te" if http2 && !value.eq_ignore_ascii_case(b"trailers") => return Err(FormFault::ConnectionFieldOnHttp2),
            "connection" => counts.connection += 1,
            "authorization" => counts.authorization += 1,
            "content-type" => counts.content_type += 1,
            "content-encoding" => counts.content_encoding += 1,
            "expect" => counts.expect += 1,
            other if other.ends_with(FEDERATION_JWT_END) => {
                counts.federation += 1;
                if value.len() > FEDERATION_JWT_LENGTH_MAX {
                    return Err(FormFault::FederationTokenTooLong);
                }
            }
            other if other.ends_with("-federation-secret") => counts.federation += 1,
            _ => {}
        }
    }
    if counts.connection > 0 {
        check_connection(head.headers)?;
    }
    counts.verdict().map(|()| host)
}

impl Counts {
    fn verdict(&self) -> Result<(), FormFault> {
        if self.content_length > 1 {
            return Err(FormFault::ContentLength);
        }
        if self.transfer_encoding > 1 {
            return Err(FormFault::TransferEncoding);
        }
        if self.content_length + self.transfer_encoding > 1 {
            return Err(FormFault::TwoLengths);
        }
        if self.federation > 1 {
            return Err(FormFault::TwoFederationCredentials);
        }
        if self.authorization > 1 || self.content_type > 1 || self.content_encoding > 1 || self.expect > 1 {
            return Err(FormFault::FieldTwice);
        }
        Ok(())
    }
}

fn is_length(value: &[u8]) -> bool {
    const DIGITS_MAX: usize = 19;
    (1..=DIGITS_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_digit)
}

fn check_connection(headers: &HeaderMap) -> Result<(), FormFault> {
    for (i, token) in connection_tokens(headers).enumerate() {
        if i == NOMINATIONS_MAX {
            return Err(FormFault::ConnectionSyntax);
        }
        if token.eq_ignore_ascii_case(b"upgrade") {
            return Err(FormFault::Upgrade);
        }
        if never_nominated(token) {
            return Err(FormFault::ConnectionNominatesEndToEnd);
        }
        if !token.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b)) {
            return Err(FormFault::ConnectionSyntax);
        }
    }
    Ok(())
}

/// Whether there is a control byte other than the tabulator. Without an early end, so that it compiles to vector code.
pub(super) fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |found, b| found | ((*b < 0x20) & (*b != b'\t')) | (*b == 0x7f))
}

/// The host of an authority (`host` or `host:port`), in lower case; an IPv6 address keeps its brackets. `None` if the
/// syntax is not that of a DNS name (underscores allowed), an IPv4 or a bracketed IPv6 address, with a port of 1 to 65535
/// after the colon. User information, an empty port, a trailing dot and percent-encoding are all refused.
pub fn host_of(authority: &str) -> Option<Cow<'_, str>> {
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']')?;
        authority[1..end].parse::<Ipv6Addr>().ok()?;
        match &authority[end + 1..] {
            "" => (authority, None),
            rest => (&authority[..=end], Some(rest.strip_prefix(':')?)),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if let Some(port) = port {
        let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || port.parse::<u16>().ok()? == 0 {
            return None;
        }
    }
    if !host.starts_with('[') && !is_name(host) {
        return None;
    }
    let upper_case = host.bytes().any(|b| b.is_ascii_uppercase());
    Some(if upper_case { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) })
}

fn is_name(host: &str) -> bool {
    const NAME_LENGTH_MAX: usize = 253;
    const LABEL_LENGTH_MAX: usize = 63;
    let mut label = 0;
    for byte in host.bytes() {
        match byte {
            b'.' if label == 0 => return false,
            b'.' => label = 0,
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' => label += 1,
            _ => return false,
        }
        if label > LABEL_LENGTH_MAX {
            return false;
        }
    }
    label > 0 && host.len() <= NAME_LENGTH_MAX
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
