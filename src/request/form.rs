//! Everything ambiguous is 400.
use std::borrow::Cow;

use http::{HeaderMap, Method, Version};

/// A request's head, as received.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// HTTP/1: the request target's bytes (`RequestHeader::raw_path`). HTTP/2: `:path`.
    pub target: &'a [u8],
    /// HTTP/2: `:authority`. HTTP/1: `None`.
    pub authority: Option<&'a str>,
    /// HTTP/2: `:scheme`. HTTP/1: `None`.
    pub scheme: Option<&'a str>,
    /// All fields, without pseudo-headers.
    pub headers: &'a HeaderMap,
    /// The version.
    pub version: Version,
    /// HTTP/1: the head's bytes, from the request line to the empty line (`get_headers_raw_bytes`).
    pub raw: Option<&'a [u8]>,
}

/// What a request of strict form asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form<'a> {
    /// The path, byte for byte.
    pub path: &'a [u8],
    /// The path with its query: what is forwarded (an absolute-form target is shortened to it).
    pub path_and_query: &'a [u8],
    /// Host and port as the client wrote them.
    pub authority: &'a str,
    /// The host alone, lower case; an IPv6 address keeps its brackets.
    pub host: Cow<'a, str>,
    /// HTTP/1: the target was in absolute form, so `path_and_query` must replace it.
    pub absolute: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FormFault {
    /// Both federation headers at once, or one of them twice.
    TwoFederationCredentials,
    /// A federation JWT of more than 8192 bytes.
    FederationTokenTooLong,
    /// More than 100 fields.
    TooManyHeaders,
}

impl FormFault {
    /// What the log says.
    pub fn message(self) -> &'static str {
        unimplemented!()
    }
}

/// Checks a request's form.
pub fn check_form<'a>(head: &Head<'a>) -> Result<Form<'a>, FormFault> {
    let _ = head;
    unimplemented!()
}

/// The host of an authority, without port, lower case. `None`: bad syntax.
pub fn host_of(authority: &str) -> Option<Cow<'_, str>> {
    let _ = authority;
    unimplemented!()
}
