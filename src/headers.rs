//! Every header name that the gateway speaks of, and the names that a client may never say.
//!
//! The rule (design, decision 10): strip what [`Spoofable`] names, then set the gateway's own.

use http::{HeaderMap, HeaderName, HeaderValue};

pub use http::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, DATE,
    EXPECT, FORWARDED, HOST, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER, RETRY_AFTER, SERVER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA,
};

/// The client's address, set by the gateway (`hive-contract`, "Client address").
pub const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// The client's address, or the true chain from a trusted proxy; set by the gateway.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `https` or `http`: what the client spoke; set by the gateway.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The `Host` that the client asked for; set by the gateway.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The port that the client connected to; set by the gateway where it is known.
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// The certificate's identity in Envoy's format; set by the gateway.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The client's certificate (RFC 9440, section 2.2); set by the gateway.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// The certificates between the client's and the CA (RFC 9440, section 2.3).
pub const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
/// Names the request in the logs of everyone on its way; kept if sane, see [`sane_request_id`].
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// As [`X_REQUEST_ID`], the caller's own; passed on untouched.
pub const X_CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// W3C Trace Context, section 3.2; passed on if valid, else made.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context, section 3.3; passed on with a valid `traceparent` only.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// W3C Baggage; passed on untouched.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// A2A protocol version; passed on untouched.
pub const A2A_VERSION: HeaderName = HeaderName::from_static("a2a-version");
/// A2A extensions; passed on untouched.
pub const A2A_EXTENSIONS: HeaderName = HeaderName::from_static("a2a-extensions");
/// A2A extensions under the older name; passed on untouched.
pub const X_A2A_EXTENSIONS: HeaderName = HeaderName::from_static("x-a2a-extensions");
/// A2A push notification token; passed on untouched.
pub const X_A2A_NOTIFICATION_TOKEN: HeaderName = HeaderName::from_static("x-a2a-notification-token");
/// Hop-by-hop; a node's answer says there how long an idle connection lives.
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Hop-by-hop, never standardised.
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Hop-by-hop; belongs to the upgrade to cleartext HTTP/2, which is refused.
pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// `no` on event streams: no proxy may buffer them.
pub const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Rate limit answers (`hive-contract`, "Answers in Hive's own shape").
pub const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
/// Rate limit answers.
pub const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// Headers that belong to one connection (RFC 9110, section 7.6.1), never forwarded in either direction.
pub const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

/// The product's own headers: `hive.header_prefix` and a fixed end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductHeaders {
    /// `…-Gateway-Auth`: proof towards Hive that a request came through the gateway.
    pub gateway_auth: HeaderName,
    /// `…-Federation-JWT`; passes byte for byte.
    pub federation_jwt: HeaderName,
    /// `…-Federation-Secret`, the older credential; passes byte for byte.
    pub federation_secret: HeaderName,
    /// `…-Federation-Proxy-Operator-Token`; passes byte for byte.
    pub federation_proxy_operator_token: HeaderName,
    /// `…-Public-A2A-Key`; passes byte for byte.
    pub public_a2a_key: HeaderName,
}

impl ProductHeaders {
    /// The headers under a prefix such as `X-Hive`, in any case.
    ///
    /// # Errors
    /// Says what is wrong with a prefix that is not 1 to 32 letters, digits and single dashes, beginning with a letter.
    pub fn with_prefix(prefix: &str) -> Result<Self, String> {
        let _ = prefix;
        unimplemented!()
    }
}

/// What a client may never say. Built once per configuration; stateless.
#[derive(Debug, Clone)]
pub struct Spoofable {
    gateway_prefix: Box<str>,
}

impl Spoofable {
    /// For the configured product headers.
    pub fn new(product: &ProductHeaders) -> Self {
        let _ = product;
        Self { gateway_prefix: "".into() }
    }

    /// Whether a header of this name is removed from every request.
    pub fn contains(&self, name: &HeaderName) -> bool {
        let _ = (name, &self.gateway_prefix);
        unimplemented!()
    }

    /// The names to remove from a request that passed `request::check_form`, before the gateway sets its own.
    /// Allocates only if there is something to remove.
    pub fn to_remove(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        let _ = headers;
        unimplemented!()
    }
}

/// Whether a client's `X-Request-Id` is kept.
pub fn sane_request_id(value: &HeaderValue) -> bool {
    let _ = value;
    unimplemented!()
}

/// Whether a `traceparent` is valid.
pub fn valid_traceparent(value: &[u8]) -> bool {
    let _ = value;
    unimplemented!()
}

/// A new `traceparent` of version 00.
pub fn new_traceparent(random: [u8; 24], sampled: bool) -> HeaderValue {
    let _ = (random, sampled);
    unimplemented!()
}
