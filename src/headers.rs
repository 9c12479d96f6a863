//! Every header name that the gateway speaks of, and the names that a client may never say.
//!
//! The rule (design, decision 10): strip what [`Spoofable`] names, then set the gateway's own.

use http::{HeaderMap, HeaderName, HeaderValue};

pub use http::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_TYPE, COOKIE, DATE, EXPECT, FORWARDED, HOST, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER,
    RETRY_AFTER, SERVER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA, X_CONTENT_TYPE_OPTIONS,
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

/// The length that a body is announced to have; none: it is not said, or not as a number.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether a body under these fields is written in a content coding. `identity` is none: it says that there is none, though
/// nobody is to send it here (RFC 9110, section 8.4.1).
pub fn has_content_coding(headers: &HeaderMap) -> bool {
    let identity = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    !headers.get_all(CONTENT_ENCODING).iter().all(identity)
}

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

/// End of every federation JWT's name.
pub const FEDERATION_JWT_END: &str = "-federation-jwt";

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
    /// Says what is wrong with a prefix that is not 1 to 32 letters, digits and single dashes, beginning with a letter,
    /// or one whose headers the gateway would strip (`X-Forwarded`).
    pub fn with_prefix(prefix: &str) -> Result<Self, String> {
        const PREFIX_LENGTH_MAX: usize = 32;
        if prefix.is_empty() || prefix.len() > PREFIX_LENGTH_MAX {
            return Err(format!("a header prefix has 1 to {PREFIX_LENGTH_MAX} characters, not {}", prefix.len()));
        }
        if let Some(c) = prefix.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-')) {
            return Err(format!("character {c:?} in header prefix {prefix:?}; use letters, digits and '-'"));
        }
        if !prefix.starts_with(|c: char| c.is_ascii_alphabetic()) || prefix.ends_with('-') || prefix.contains("--") {
            return Err(format!(
                "header prefix {prefix:?} must begin with a letter, without '--' and a '-' at its end"
            ));
        }
        let prefix = prefix.to_ascii_lowercase();
        let name = |end: &str| {
            HeaderName::try_from(format!("{prefix}-{end}")).map_err(|e| format!("header prefix {prefix:?}: {e}"))
        };
        let headers = Self {
            gateway_auth: name("gateway-auth")?,
            federation_jwt: name("federation-jwt")?,
            federation_secret: name("federation-secret")?,
            federation_proxy_operator_token: name("federation-proxy-operator-token")?,
            public_a2a_key: name("public-a2a-key")?,
        };
        if let Some(lost) = headers.passed().into_iter().find(|n| is_spoofable(n.as_str())) {
            return Err(format!("header prefix {prefix:?} can't work: {lost} is removed from every request"));
        }
        Ok(headers)
    }

    /// Those that pass byte for byte.
    fn passed(&self) -> [&HeaderName; 4] {
        [&self.federation_jwt, &self.federation_secret, &self.federation_proxy_operator_token, &self.public_a2a_key]
    }
}

/// The federation JWT, under whatever product's prefix: a Hive may read another one than is configured here, and none may
/// get past the check. `request::check_form` has seen to it that there is no second one.
pub fn federation_jwt(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.iter().find(|(name, _)| name.as_str().ends_with(FEDERATION_JWT_END)).map(|(_, value)| value)
}

/// What a client may never say. Built once per configuration.
#[derive(Debug, Clone)]
pub struct Spoofable {
    /// `x-hive-gateway-`: everything below it is between gateway and Hive.
    gateway_prefix: Box<str>,
}

impl Spoofable {
    /// For the configured product headers. The gateway proofs of both product names are covered whatever the prefix.
    pub fn new(product: &ProductHeaders) -> Self {
        Self { gateway_prefix: product.gateway_auth.as_str().trim_end_matches("auth").into() }
    }

    /// Whether a header of this name is removed from every request: addresses, identities, gateway proofs, overrides of
    /// method, path or host, what Next.js says to itself, and every name with an underscore, because CGI-like parsers
    /// can't tell `X_Real_IP` from `X-Real-IP`.
    pub fn contains(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        is_spoofable(name) || name.starts_with(&*self.gateway_prefix)
    }

    /// The names to remove from a request that passed `request::check_form`, before the gateway sets its own; read
    /// `X-Forwarded-For` for `request::client_address` first. Contains what [`Self::contains`] says, what `Connection`
    /// nominates, and then `Connection` itself, so that nobody downstream removes what the gateway sets under such a
    /// name. Hop-by-hop headers that are not nominated are left to the forwarding code. No allocation for an empty list.
    pub fn to_remove(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        let mut names: Vec<HeaderName> = headers.keys().filter(|name| self.contains(name)).cloned().collect();
        let before = names.len();
        let mut foreign = false;
        for token in connection_tokens(headers) {
            if token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive") {
                continue;
            }
            foreign = true;
            if let Ok(name) = HeaderName::from_bytes(token)
                && headers.contains_key(&name)
                && !names[before..].contains(&name)
                && !self.contains(&name)
            {
                names.push(name);
            }
        }
        if foreign && !names.contains(&CONNECTION) {
            names.push(CONNECTION);
        }
        names
    }
}

/// The elements of `Connection`, trimmed, without empty ones.
pub fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(CONNECTION)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Whether a name is end-to-end, so that `Connection` can't nominate it (RFC 9110, section 7.6.1). A client that tries
/// wants a header to vanish between two parties that both look at it; `request::check_form` refuses it.
pub fn never_nominated(name: &[u8]) -> bool {
    const NAMES: [&str; 33] = [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "baggage",
        "cache-control",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "max-forwards",
        "origin",
        "pragma",
        "range",
        "referer",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "user-agent",
        "via",
        "x-correlation-id",
        "x-request-id",
    ];
    const PARTS: [&[u8]; 3] = [b"-federation-", b"a2a-", b"-a2a"];
    NAMES.iter().any(|n| n.as_bytes().eq_ignore_ascii_case(name))
        || PARTS.iter().any(|part| name.windows(part.len()).any(|w| w.eq_ignore_ascii_case(part)))
}

/// The fixed part of the list, on names in lower case.
fn is_spoofable(name: &str) -> bool {
    fn any_prefix(name: &str, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|p| name.starts_with(p))
    }
    let bytes = name.as_bytes();
    if bytes.contains(&b'_') {
        return true;
    }
    let Some(rest) = name.strip_prefix("x-") else {
        return match bytes.first() {
            // Cloudflare's; RFC 9440.
            Some(b'c') => {
                any_prefix(name, &["cf-", "client-cert", "cloudfront-"])
                    || matches!(name, "client-ip" | "cluster-client-ip")
            }
            // RFC 7239 and its forerunners; Fastly's, Fly's.
            Some(b'f') => any_prefix(name, &["forwarded", "fastly-", "fly-"]),
            Some(b'a') => any_prefix(name, &["ali-cdn-"]),
            // DigitalOcean's.
            Some(b'd') => name == "do-connecting-ip",
            // Server actions of Next.js; the gateway publishes none.
            Some(b'n') => any_prefix(name, &["next-action", "next-resume"]),
            // CGI turns `Proxy` into HTTP_PROXY ("httpoxy").
            Some(b'p') => name == "proxy" || name == "proxy-client-ip",
            Some(b'r') => any_prefix(name, &["real-ip", "remote-"]),
            Some(b's') => any_prefix(name, &["ssl-"]),
            Some(b't') => name == "true-client-ip",
            Some(b'w') => any_prefix(name, &["wl-proxy-"]),
            _ => false,
        };
    };
    match rest.as_bytes().first() {
        Some(b'a') => any_prefix(rest, &["amzn-mtls-", "appengine-", "arr-", "azure-"]),
        Some(b'c') => any_prefix(rest, &["client-", "cluster-", "cf-"]) || rest == "clientip",
        Some(b'e') => any_prefix(rest, &["envoy-", "external-address"]),
        Some(b'f') => any_prefix(rest, &["forward"]),
        // Overrides of host and method; the older product name's gateway proof.
        Some(b'h') => any_prefix(rest, &["hive-gateway-", "http-method", "http-host", "host"]),
        // What Next.js says to itself: with `x-middleware-subrequest` a client once skipped its middleware
        // (CVE-2025-29927).
        Some(b'i') => any_prefix(rest, &["invoke-"]),
        Some(b'm') => any_prefix(rest, &["middleware-", "matched-path", "method-override"]),
        Some(b'n') => any_prefix(rest, &["next", "nf-", "now-"]),
        Some(b'o') => any_prefix(rest, &["original-", "originating-", "override-"]),
        Some(b'p') => any_prefix(rest, &["pilox-gateway-", "prerender-", "proxyuser-"]),
        Some(b'r') => any_prefix(rest, &["real-", "remote-", "rewrite-"]),
        Some(b's') => any_prefix(rest, &["scheme", "spiffe-", "ssl-"]),
        Some(b't') => any_prefix(rest, &["tls-", "true-client-"]),
        Some(b'u') => any_prefix(rest, &["url-scheme"]),
        Some(b'v') => any_prefix(rest, &["vercel-", "verified-"]),
        Some(b'w') => any_prefix(rest, &["wap-"]),
        _ => false,
    }
}

/// Longest `X-Request-Id` that is kept, as Hive's own limit.
pub const REQUEST_ID_LENGTH_MAX: usize = 256;

/// Whether a client's `X-Request-Id` is kept: 1 to [`REQUEST_ID_LENGTH_MAX`] visible ASCII characters without quotes,
/// backslash, comma and angle brackets, so that no log or page can be broken by it. A comma would also hide that the
/// header came twice.
pub fn sane_request_id(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=REQUEST_ID_LENGTH_MAX).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| matches!(b, 0x21..=0x7e) && !matches!(b, b'"' | b'\'' | b'`' | b'\\' | b',' | b'<' | b'>'))
}

/// Whether a header's value is a secret by its name, so that no log may show it: credentials under any product's prefix, and
/// what is called as if it were one.
pub fn is_secret(name: &HeaderName) -> bool {
    const PARTS: [&str; 17] = [
        "auth",
        "cookie",
        "token",
        "secret",
        "passw",
        "passphrase",
        "credential",
        "jwt",
        "session",
        "signature",
        "apikey",
        "api-key",
        "access-key",
        "private-key",
        "dpop",
        "csrf",
        "xsrf",
    ];
    let name = name.as_str();
    PARTS.iter().any(|part| name.contains(part)) || name.ends_with("-key")
}

/// Length of a `traceparent` of version 00.
const TRACEPARENT_LENGTH: usize = 55;

/// Whether a `traceparent` is valid (W3C Trace Context level 1, section 3.2.2): lower-case hex, ids that are not all
/// zero, no version `ff`. Version 00 has exactly 55 bytes; a later one may go on after a dash (section 3.2.4).
pub fn valid_traceparent(value: &[u8]) -> bool {
    let Some((head, tail)) = value.split_at_checked(TRACEPARENT_LENGTH) else { return false };
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = |part: &[u8]| hex(part) && part.iter().any(|b| *b != b'0');
    let (version, trace_id, parent_id, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let end = if version == b"00" { tail.is_empty() } else { tail.first().is_none_or(|b| *b == b'-') };
    dashes && end && hex(version) && version != b"ff" && id(trace_id) && id(parent_id) && hex(flags)
}

/// The request's `traceparent`, if there is one and it is valid: of two nobody knows which is meant.
pub fn traceparent(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let first = all.next().filter(|value| valid_traceparent(value.as_bytes()))?;
    all.next().is_none().then_some(first)
}

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; not all zero.
    pub trace_id: [u8; 16],
    /// Of the caller's span; not all zero.
    pub span_id: [u8; 8],
    /// [`TraceContext::SAMPLED`], and what later versions define.
    pub flags: u8,
}

impl TraceContext {
    /// Somebody records this trace.
    pub const SAMPLED: u8 = 1;

    /// A new one out of 24 random bytes: 16 for the trace, 8 for the span. Nobody records it.
    pub fn new(mut random: [u8; 24]) -> Self {
        // An id of zeros is invalid.
        random[15] |= u8::from(random[..16].iter().all(|b| *b == 0));
        random[23] |= u8::from(random[16..].iter().all(|b| *b == 0));
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        trace_id.copy_from_slice(&random[..16]);
        span_id.copy_from_slice(&random[16..]);
        Self { trace_id, span_id, flags: 0 }
    }

    /// Reads a valid one.
    pub fn parse(value: &[u8]) -> Option<Self> {
        fn bytes<const N: usize>(hex: &[u8]) -> [u8; N] {
            let digit = |b: u8| if b.is_ascii_digit() { b - b'0' } else { b - b'a' + 10 };
            std::array::from_fn(|i| digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]))
        }
        // What is valid has lower-case hex digits in all of these places.
        valid_traceparent(value).then(|| Self {
            trace_id: bytes(&value[3..35]),
            span_id: bytes(&value[36..52]),
            flags: bytes::<1>(&value[53..55])[0],
        })
    }

    /// Whether somebody records it.
    pub fn sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    /// The same, recorded or not.
    pub fn with_sampled(self, sampled: bool) -> Self {
        Self { flags: self.flags & !Self::SAMPLED | u8::from(sampled), ..self }
    }

    /// The last seven bytes of the trace id, as a number: those that are random (W3C Trace Context 2, section 3.2.2.5).
    pub fn tail(&self) -> u64 {
        let [.., a, b, c, d, e, f, g] = self.trace_id;
        u64::from_be_bytes([0, a, b, c, d, e, f, g])
    }

    /// As a `traceparent` of version 00.
    pub fn to_header(self) -> HeaderValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let mut write = |at: usize, bytes: &[u8]| {
            for (pair, byte) in text[at..].chunks_exact_mut(2).zip(bytes) {
                pair[0] = DIGITS[usize::from(byte >> 4)];
                pair[1] = DIGITS[usize::from(byte & 15)];
            }
        };
        write(3, &self.trace_id);
        write(36, &self.span_id);
        write(53, &[self.flags]);
        // Digits and dashes are always a header value.
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hive() -> ProductHeaders {
        ProductHeaders::with_prefix("X-Hive").unwrap()
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn removed(fields: &[(&str, &str)]) -> Vec<String> {
        let names = Spoofable::new(&hive()).to_remove(&map(fields));
        let mut names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_prefix_names_the_product_headers() {
        assert_eq!(hive().gateway_auth, "x-hive-gateway-auth");
        assert_eq!(ProductHeaders::with_prefix("x-PILOX").unwrap().federation_jwt, "x-pilox-federation-jwt");
        for bad in ["", "X_Hive", "X-Hive-", "X--Hive", "-X", "9", "X Hive", "X-Forwarded", "X-Hive-Gateway", "é"] {
            assert!(ProductHeaders::with_prefix(bad).is_err(), "{bad}");
        }
        assert!(ProductHeaders::with_prefix(&"x".repeat(33)).is_err());
    }

    #[test]
    fn a_client_may_not_speak_of_addresses_identities_and_proofs() {
        for name in [
            "X-Real-IP",
            "X_Real_IP",
            "x-real_ip",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "X-Forwarded",
            "Forwarded",
            "Forwarded-For",
            "X-Client-IP",
            "Client-IP",
            "True-Client-IP",
            "CF-Connecting-IP",
            "CF-IPCountry",
            "X-Cluster-Client-IP",
            "Fastly-Client-IP",
            "X-Original-URL",
            "X-Original-Forwarded-For",
            "X-Rewrite-URL",
            "X-Envoy-External-Address",
            "X-Envoy-Original-Path",
            "X-Hive-Gateway-Auth",
            "X-Pilox-Gateway-Auth",
            "X-Forwarded-Client-Cert",
            "Client-Cert",
            "Client-Cert-Chain",
            "X-SSL-Client-Verify",
            "SSL-Client-Cert",
            "X-Client-Cert",
            "X-HTTP-Method-Override",
            "X-HTTP-Method",
            "X-Method-Override",
            "X-Host",
            "Proxy",
            "X-Middleware-Subrequest",
            "X-Invoke-Path",
            "X-Nextjs-Data",
            "Next-Action",
            "X-Matched-Path",
            "foo_bar",
            "X-Azure-ClientIP",
            "X-Appengine-User-IP",
            "X-Remote-Addr",
            "X-ProxyUser-IP",
            "X-Spiffe-Id",
        ] {
            assert_eq!(removed(&[(name, "1")]), [name.to_ascii_lowercase()], "{name}");
        }
    }

    #[test]
    fn the_gateway_proof_of_a_configured_prefix_is_removed() {
        let acme = ProductHeaders::with_prefix("Acme").unwrap();
        let spoofable = Spoofable::new(&acme);
        for name in ["acme-gateway-auth", "x-hive-gateway-auth", "x-pilox-gateway-auth"] {
            assert!(spoofable.contains(&HeaderName::from_static(name)), "{name}");
        }
        assert!(!spoofable.contains(&acme.federation_jwt));
    }

    #[test]
    fn what_hive_reads_passes() {
        let fields: Vec<(&str, &str)> = [
            "Authorization",
            "Cookie",
            "X-Hive-Federation-JWT",
            "X-Pilox-Federation-Secret",
            "X-Hive-Public-A2A-Key",
            "X-Hive-Federation-Proxy-Operator-Token",
            "A2A-Version",
            "A2A-Extensions",
            "X-A2A-Extensions",
            "X-A2A-Notification-Token",
            "Origin",
            "Referer",
            "traceparent",
            "tracestate",
            "baggage",
            "X-Request-Id",
            "X-Correlation-Id",
            "Accept",
            "Content-Type",
            "User-Agent",
            "Host",
            "Content-Length",
        ]
        .map(|name| (name, "1"))
        .into();
        let names = Spoofable::new(&hive()).to_remove(&map(&fields));
        assert!(names.is_empty(), "{names:?}");
        assert_eq!(names.capacity(), 0);
    }

    #[test]
    fn what_connection_nominates_goes_with_it() {
        assert!(removed(&[("connection", "keep-alive"), ("accept", "*/*")]).is_empty());
        assert!(removed(&[("connection", "Close")]).is_empty());
        assert_eq!(
            removed(&[("connection", "close, X-Foo , x-foo,, absent"), ("x-foo", "1")]),
            ["connection", "x-foo"]
        );
        // Nominated though absent: the gateway sets it later, and nobody may then remove it.
        assert_eq!(removed(&[("connection", "X-Real-IP")]), ["connection"]);
        assert_eq!(removed(&[("connection", "x-real-ip"), ("x-real-ip", "1")]), ["connection", "x-real-ip"]);
    }

    #[test]
    fn end_to_end_names_are_never_nominated() {
        for name in
            ["Host", "content-length", "X-Hive-Federation-JWT", "Authorization", "A2A-Version", "X-Hive-Public-A2A-Key"]
        {
            assert!(never_nominated(name.as_bytes()), "{name}");
        }
        for name in ["close", "Keep-Alive", "TE", "x-foo"] {
            assert!(!never_nominated(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_request_id_that_could_break_a_log_is_not_kept() {
        let sane = |s: &str| sane_request_id(&HeaderValue::from_bytes(s.as_bytes()).unwrap());
        assert!(sane("0192f0c1-7e57-7c10-8b1a-6d1a2a1f9a11"));
        assert!(sane("a/b+c=:@{}"));
        assert!(sane(&"x".repeat(256)));
        for bad in ["", "a b", "a,b", "a\"", "a'", "a\\", "<a>", "é", "a\tb", &"x".repeat(257)] {
            assert!(!sane(bad), "{bad}");
        }
    }

    #[test]
    fn credentials_are_secret_under_any_prefix() {
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "x-hive-federation-jwt",
            "x-pilox-federation-secret",
            "x-hive-gateway-auth",
            "x-hive-federation-proxy-operator-token",
            "x-hive-public-a2a-key",
            "x-a2a-notification-token",
            "x-api-key",
            "dpop",
            "x-csrftoken",
            "x-csrf",
            "x-xsrf",
            "idempotency-key",
        ] {
            assert!(is_secret(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["a2a-version", "referer", "x-correlation-id", "accept-language", "origin", "x-keyboard"] {
            assert!(!is_secret(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn a_traceparent_is_valid_as_w3c_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(valid_traceparent(good.as_bytes()));
        assert!(valid_traceparent(good.replacen("00", "cc", 1).as_bytes()));
        assert!(valid_traceparent(format!("{}-more", good.replacen("00", "cc", 1)).as_bytes()));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
        ] {
            assert!(!valid_traceparent(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_traceparent_is_read_and_written_back() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03";
        let context = TraceContext::parse(text.as_bytes()).unwrap();
        assert!(context.sampled() && context.tail() == 0xce_929d_0e0e_4736);
        assert_eq!(context.to_header(), text);
        assert_eq!(context.with_sampled(false).flags, 2);
        assert_eq!(TraceContext::parse(&text.as_bytes()[1..]), None);
    }

    #[test]
    fn a_new_traceparent_is_valid_even_without_randomness() {
        for random in [[0; 24], [0xff; 24], [0xa5; 24]] {
            for sampled in [false, true] {
                let value = TraceContext::new(random).with_sampled(sampled).to_header();
                assert!(valid_traceparent(value.as_bytes()), "{value:?}");
                assert_eq!(value.as_bytes().ends_with(b"01"), sampled);
            }
        }
    }
}
