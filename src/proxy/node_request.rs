//! A request's header as nodes get it: what is kept of the client's, then what the gateway says (design, decision 10).
//!
//! The client's own header is left as it came, so that nothing is copied into a map only to be written out of it again.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, Uri};
use pingora::http::RequestHeader;
use pingora::{ErrorType, OrErr, Result};

use super::context::{Begun, Context};
use super::{check, told};
use crate::headers;
use crate::request::ClientAddress;

/// A client's header and what is to become of it.
pub struct NodeRequest<'a> {
    header: &'a RequestHeader,
    /// In origin form, whatever form the client's has (RFC 9112, section 3.2), with the route's own path if it has one.
    target: Cow<'a, [u8]>,
    /// What a client may not say, and what concerns only its connection with the gateway.
    removed: Vec<HeaderName>,
    /// The body is here whole, so its length is known, however the client framed it.
    content_length: Option<u64>,
    request_id: Option<&'a HeaderValue>,
    traceparent: HeaderValue,
    /// Whether the client's `traceparent` was valid: `tracestate` belongs to it.
    trace_state: bool,
    /// What the request is for: what the client calls the gateway.
    host: Option<&'a [u8]>,
    /// How the nodes are spoken to. HTTP/2 says so in each request.
    scheme: Scheme,
    /// Whom our own Hive is told of.
    told: Option<(&'a Begun, &'a ClientAddress)>,
}

impl<'a> NodeRequest<'a> {
    /// With what [`super::trace::for_node`] says. `None`: a request without a beginning.
    pub fn new(
        header: &'a RequestHeader,
        ctx: &'a Context,
        (traceparent, trace_state): (HeaderValue, bool),
    ) -> Option<Self> {
        let (begun, client, route) = (ctx.begun.as_ref()?, ctx.client.as_ref()?, ctx.route.as_ref()?);
        let headers = &header.headers;
        let framed = headers.contains_key(headers::TRANSFER_ENCODING) || headers.contains_key(headers::CONTENT_LENGTH);
        let has_length =
            ctx.body.length > 0 || framed || [Method::POST, Method::PUT, Method::PATCH].contains(&header.method);
        let asked = check::origin_form(header.raw_path());
        let target = route.replace_full_path.as_deref().map_or(Cow::Borrowed(asked), |path| {
            let query = memchr::memchr(b'?', asked).map_or(&b""[..], |at| &asked[at..]);
            Cow::Owned([path, query].concat())
        });
        let host = headers.get(headers::HOST).map(HeaderValue::as_bytes);
        // HTTP/2 names the host in a field of its own.
        let host = host.or_else(|| header.uri.authority().map(|authority| authority.as_str().as_bytes()));
        let scheme = if route.upstream.upstream.is_tls() { Scheme::HTTPS } else { Scheme::HTTP };
        Some(Self {
            host,
            scheme,
            header,
            target,
            removed: begun.snapshot.spoofable.to_remove(headers),
            content_length: has_length.then_some(ctx.body.length),
            request_id: ctx.request_id.as_ref(),
            traceparent,
            trace_state,
            told: route.upstream.trusted.then_some((begun, client)),
        })
    }

    fn keeps(&self, name: &HeaderName) -> bool {
        // The host, the body's length and the trace are said anew; what concerns only the client's connection stays here
        // (RFC 9110, section 7.6.1).
        let own = *name == headers::HOST
            || *name == headers::CONTENT_LENGTH
            || *name == headers::TRACEPARENT
            || *name == headers::EXPECT
            || (*name == headers::X_REQUEST_ID && self.request_id.is_some())
            || (*name == headers::TRACESTATE && !self.trace_state);
        !own && !headers::HOP_BY_HOP.contains(name) && !self.removed.contains(name)
    }

    /// Every field but the host, in order.
    fn each(&self, put: &mut impl FnMut(&HeaderName, &[u8])) {
        for (name, value) in self.header.headers.iter().filter(|(name, _)| self.keeps(name)) {
            put(name, value.as_bytes());
        }
        if let Some(length) = self.content_length {
            put(&headers::CONTENT_LENGTH, itoa::Buffer::new().format(length).as_bytes());
        }
        if let Some((begun, address)) = self.told {
            let client = told::Client {
                address,
                identity: begun.connection.identity.as_deref(),
                https: begun.connection.tls.is_some() || begun.proxied_https,
                host: self.host,
            };
            client.tell(&begun.snapshot, put);
        }
        if let Some(id) = self.request_id {
            put(&headers::X_REQUEST_ID, id.as_bytes());
        }
        put(&headers::TRACEPARENT, self.traceparent.as_bytes());
    }

    /// For an HTTP/1.1 node.
    pub fn http1(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(1024);
        out.put_slice(self.header.method.as_str().as_bytes());
        out.put_slice(b" ");
        out.put_slice(&self.target);
        out.put_slice(b" HTTP/1.1\r\n");
        if let Some(host) = self.host {
            put_field(&mut out, &headers::HOST, host);
        }
        // HTTP/2 splits a cookie into fields, HTTP/1.1 has one (RFC 9113, section 8.2.3).
        let mut cookie: Option<Vec<u8>> = None;
        self.each(&mut |name, value| {
            if *name != headers::COOKIE {
                return put_field(&mut out, name, value);
            }
            match &mut cookie {
                Some(crumbs) => crumbs.extend([b"; ", value].concat()),
                None => cookie = Some(value.to_vec()),
            }
        });
        if let Some(cookie) = cookie {
            put_field(&mut out, &headers::COOKIE, &cookie);
        }
        out.put_slice(b"\r\n");
        out.freeze()
    }

    /// For an HTTP/2 node. The host stands in `:authority` alone: some servers, nginx among them, take a `host` beside it for
    /// a second one (RFC 9113, section 8.3.1).
    ///
    /// # Errors
    /// None that can happen: what came in as a host or a field's value goes out as one.
    pub fn http2(&self) -> Result<RequestHeader> {
        let fields = self.header.headers.len() + 12;
        let mut out = RequestHeader::build_no_case(self.header.method.clone(), &self.target, Some(fields))?;
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.host.unwrap_or_default());
        let uri = uri.path_and_query(&*self.target).build();
        out.set_uri(uri.or_err(ErrorType::InvalidHTTPHeader, "a request's host and path")?);
        out.set_version(self.header.version);
        let mut done = Ok(());
        self.each(&mut |name, value| {
            let value = HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "a field's value");
            let put = value.and_then(|value| out.append_header(name.clone(), value).map(|_| ()));
            if done.is_ok() {
                done = put;
            }
        });
        done.map(|()| out)
    }
}

fn put_field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}
