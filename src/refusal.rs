//! Every way in which the gateway says no: one variant each, and one place that says what the client is told, what the
//! log and the metrics call it, and when to come back.

use std::borrow::Cow;
use std::sync::Arc;

use crate::json_rpc::EnvelopeError;

/// A request that the gateway answers itself. The client is told little; the log has [`Refusal::code`] and the details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request could be read in two ways, or breaks HTTP (design, decision 1).
    AmbiguousRequest(&'static str),
    /// Both federation headers at once (`hive-contract`, "Federation JWT").
    TwoFederationCredentials,
    /// A federation JWT longer than 8192 bytes.
    FederationTokenTooLong,
    /// A federation JWT that Hive would not take either; says why, for the log.
    FederationTokenInvalid(&'static str),
    /// A federation JWT that is good at another time; says which way, for the log.
    FederationTokenNotNow(&'static str),
    /// A federation JWT of another peer than the one that the certificate names (`federation.bind_issuer`).
    FederationIssuerMismatch,
    /// Request line and header fields beyond `limits.request_header`.
    HeaderTooLarge,
    /// `Host` is not the name that the TLS handshake asked for, or no route serves it (decision 2).
    MisdirectedRequest,
    /// No route has this path.
    NotFound,
    /// A route has this path, with other methods.
    MethodNotAllowed {
        /// Value of `Allow` (RFC 9110, section 10.2.1).
        allow: String,
    },
    /// The route exists, not for this peer.
    PeerNotAllowed,
    /// An address of `listeners[].deny` or `deny_file`.
    AddressDenied {
        /// Whether it is the connection's own address, and not one that a trusted proxy speaks for.
        of_connection: bool,
    },
    /// A request rule on `User-Agent`.
    UserAgentBlocked,
    /// A request rule on path, query or a header.
    RequestDenied,
    /// A request rule on the length of the request target, or a request line longer than `limits.request_header`.
    UriTooLong,
    /// The web application firewall says no.
    WafBlocked,
    /// The web application firewall could not look at the request in time, or at all.
    WafUnavailable,
    /// The client's certificate expired while its connection lived.
    CertificateExpired,
    /// Beyond a rate limit.
    RateLimited {
        /// `X-RateLimit-Limit`: calls in the rate's unit of time.
        limit: u32,
        /// `X-RateLimit-Remaining`.
        remaining: u32,
        /// `Retry-After`, at least 1.
        retry_after_seconds: u32,
        /// `hive.rate_limited_code`: A2A gives Hive's -32005 another meaning, so it is configuration.
        json_rpc_code: i32,
    },
    /// The client's certificate was revoked while its connection lived.
    CertificateRevoked,
    /// The CA of the client's certificate was taken out of the configuration while its connection lived.
    CertificateNotTrusted,
    /// Revocation is checked, and there is no list of the certificate's issuer any more that is not late.
    CertificateStatusUnknown,
    /// Neither a `Content-Length` nor a coding that ends the body.
    LengthRequired,
    /// The body is longer than `body.limit`.
    BodyTooLarge,
    /// The body did not arrive within `timeouts.request_body`.
    BodyTimeout,
    /// Waiting bodies take all of `server.body_memory`.
    BodyMemoryExhausted,
    /// The body came in far more pieces than a sender needs: each costs work, however small.
    BodyFragmented,
    /// The gateway is behind (`overload.event_loop_lag`).
    Overloaded {
        /// `overload.retry_after`.
        retry_after_seconds: u32,
    },
    /// More requests at once than the process (`overload.requests`) or the listener (`limits.requests`) takes.
    RequestsExhausted {
        /// `overload.retry_after`.
        retry_after_seconds: u32,
    },
    /// More requests at once than one client address gets (`limits.requests_per_address`).
    AddressRequestsExhausted {
        /// `hive.rate_limited_code`.
        json_rpc_code: i32,
    },
    /// More requests at once than one peer gets (`limits.requests_per_peer`).
    PeerRequestsExhausted {
        /// `hive.rate_limited_code`.
        json_rpc_code: i32,
    },
    /// As many requests wait for the upstream's answer as its `adaptive_concurrency` allows.
    UpstreamBusy,
    /// An `Expect` other than `100-continue` (RFC 9110, section 10.1.1).
    ExpectationFailed,
    /// A JSON-RPC route takes JSON only, and a firewall no charset or part that it can't read; says what was sent, for the log.
    UnsupportedMediaType(&'static str),
    /// A JSON-RPC route takes no compressed bodies, nor does a firewall that blocks.
    UnsupportedContentCoding,
    /// Not well-formed JSON, or not a JSON-RPC request; each way has its own code.
    Envelope(EnvelopeError),
    /// A JSON-RPC method that the route does not let through.
    JsonRpcMethodNotAllowed,
    /// A call without an id, where the route takes none.
    NotificationRefused,
    /// `params` beyond the route's `params_limit`.
    ParamsTooLong,
    /// `params` that the route's JSON Schema does not allow; says where, for the log.
    ParamsInvalid(String),
    /// A batch of more calls than a rate limit ever lets pass at once.
    BatchBeyondRateLimit,
    /// No node of the upstream is healthy.
    NoHealthyUpstream,
    /// `circuit_breaker.max_requests` requests run.
    UpstreamMaxRequests,
    /// `circuit_breaker.max_pending` requests wait for a connection.
    UpstreamMaxPending,
    /// No connection came free within `circuit_breaker.pending_timeout`.
    UpstreamPendingTimeout,
    /// The first node did not take it, and `circuit_breaker.retry_budget` allows no try at another; or HTTP/2 nodes had no room
    /// for it as often as it is tried.
    RetryBudgetExhausted,
    /// No node took the connection.
    UpstreamConnectFailed,
    /// No node took the connection in time.
    UpstreamConnectTimeout,
    /// The node broke the connection, or its answer is not HTTP.
    UpstreamFailed,
    /// No first byte within `timeouts.response`.
    UpstreamTimeout,
    /// An operator has put the route or the whole gateway in maintenance.
    Maintenance {
        /// What the client is told.
        notice: Arc<Notice>,
        /// `maintenance.retry_after`, or the operator's word.
        retry_after_seconds: u32,
    },
    /// The process is ending.
    ShuttingDown,
    /// A defect of the gateway's own.
    Internal,
}

/// What clients are told while a route is in maintenance: `maintenance`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// In the JSON forms.
    pub message: String,
    /// In place of the small JSON body, on routes that are no JSON-RPC ones.
    pub page: Option<Page>,
}

/// A body with its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: String,
}

/// What a client is told whose batch a limit never lets pass.
const BATCH_BEYOND: &str = "The batch holds more calls than the rate limit lets pass at once. Send fewer.";

/// What a client is told when the circuit breaker is open; the code says which limit.
const BUSY: &str = "The Hive nodes are busy. Try again.";

/// The codes of [`Refusal::row`], without those of [`EnvelopeError`].
const OWN_CODES: &[&str] = &[
    "upstream_timeout",
    "not_found",
    "bad_request",
    "two_federation_credentials",
    "federation_token_too_long",
    "federation_token_invalid",
    "federation_token_not_now",
    "federation_issuer_mismatch",
    "header_too_large",
    "misdirected_request",
    "method_not_allowed",
    "peer_not_allowed",
    "address_denied",
    "user_agent_blocked",
    "request_denied",
    "uri_too_long",
    "waf_blocked",
    "waf_unavailable",
    "certificate_expired",
    "rate_limited",
    "certificate_revoked",
    "certificate_not_trusted",
    "certificate_status_unknown",
    "length_required",
    "payload_too_large",
    "body_timeout",
    "body_memory_exhausted",
    "body_fragmented",
    "overloaded",
    "requests_exhausted",
    "address_requests_exhausted",
    "peer_requests_exhausted",
    "upstream_busy",
    "expectation_failed",
    "unsupported_media_type",
    "unsupported_content_coding",
    "json_rpc_method_not_allowed",
    "rpc_notification_refused",
    "rpc_params_too_long",
    "rpc_params_invalid",
    "rpc_batch_beyond_rate_limit",
    "no_healthy_upstream",
    "upstream_max_requests",
    "upstream_max_pending",
    "upstream_pending_timeout",
    "retry_budget_exhausted",
    "upstream_connect_failed",
    "upstream_connect_timeout",
    "upstream_failed",
    "maintenance",
    "shutting_down",
    "internal_error",
];

impl Refusal {
    /// Everything that [`Self::code`] may say.
    pub fn codes() -> impl Iterator<Item = &'static str> {
        OWN_CODES.iter().chain(EnvelopeError::CODES).copied()
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.row().0
    }

    /// Stable snake_case name: `error` in the small JSON body, `refusal` in the log, `reason` in the metrics.
    pub fn code(&self) -> &'static str {
        self.row().1
    }

    /// Code of the JSON-RPC error object, on JSON-RPC routes.
    pub fn json_rpc_code(&self) -> i32 {
        match self {
            Refusal::RateLimited { json_rpc_code, .. }
            | Refusal::AddressRequestsExhausted { json_rpc_code }
            | Refusal::PeerRequestsExhausted { json_rpc_code } => *json_rpc_code,
            _ => self.row().2,
        }
    }

    /// `data` of the JSON-RPC error object, as JSON text (`hive-contract`, "Answers in Hive's own shape").
    pub fn json_rpc_data(&self) -> Option<String> {
        match self {
            Refusal::RateLimited { limit, retry_after_seconds, .. } => {
                Some(format!(r#"{{"retryAfterSeconds":{retry_after_seconds},"limit":{limit}}}"#))
            }
            _ => None,
        }
    }

    /// What the client is told.
    pub fn message(&self) -> Cow<'_, str> {
        match self {
            Refusal::Envelope(error) => Cow::Borrowed(error.message()),
            Refusal::Maintenance { notice, .. } => Cow::Borrowed(&notice.message),
            _ => Cow::Borrowed(self.row().3),
        }
    }

    /// The body, where it is neither the route's JSON-RPC form nor the small JSON one: what Hive itself answers, so that a
    /// peer can't tell who checked its token (`hive-contract`, "Federation JWT").
    pub fn own_body(&self) -> Option<&'static str> {
        match self {
            Refusal::FederationTokenInvalid(_) => {
                Some(r#"{"error":"Unauthorized","message":"Invalid federation JWT."}"#)
            }
            Refusal::FederationTokenNotNow(_) => {
                Some(r#"{"error":"Unauthorized","message":"Federation JWT is not valid at this time."}"#)
            }
            _ => None,
        }
    }

    /// The operator's own body, where the route speaks no JSON-RPC.
    pub fn page(&self) -> Option<&Page> {
        match self {
            Refusal::Maintenance { notice, .. } => notice.page.as_ref(),
            _ => None,
        }
    }

    /// More for the log than the client is told.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Refusal::AmbiguousRequest(why)
            | Refusal::FederationTokenInvalid(why)
            | Refusal::FederationTokenNotNow(why)
            | Refusal::UnsupportedMediaType(why) => Some(why),
            Refusal::ParamsInvalid(why) => Some(why),
            Refusal::Envelope(error) => Some(error.message()),
            _ => None,
        }
    }

    /// Seconds for `Retry-After`, where coming back makes sense.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        match self {
            Refusal::RateLimited { retry_after_seconds, .. } => Some(*retry_after_seconds),
            Refusal::Overloaded { retry_after_seconds }
            | Refusal::RequestsExhausted { retry_after_seconds }
            | Refusal::Maintenance { retry_after_seconds, .. } => Some(*retry_after_seconds),
            Refusal::NoHealthyUpstream
            | Refusal::UpstreamMaxRequests
            | Refusal::UpstreamMaxPending
            | Refusal::UpstreamPendingTimeout
            | Refusal::RetryBudgetExhausted
            | Refusal::BodyMemoryExhausted
            | Refusal::ShuttingDown
            | Refusal::AddressRequestsExhausted { .. }
            | Refusal::PeerRequestsExhausted { .. }
            | Refusal::UpstreamBusy
            | Refusal::WafUnavailable => Some(1),
            _ => None,
        }
    }

    /// Status and code that clients of the older gateway's `gateway-v1` API know: it told all failures of the way to Hive
    /// by two codes, and knew no other answer to a wrong method than to a wrong path.
    pub fn gateway_v1(&self) -> (u16, &'static str) {
        match self {
            Refusal::UpstreamTimeout | Refusal::UpstreamConnectTimeout => (504, "upstream_timeout"),
            Refusal::NoHealthyUpstream
            | Refusal::UpstreamMaxRequests
            | Refusal::UpstreamMaxPending
            | Refusal::UpstreamPendingTimeout
            | Refusal::RetryBudgetExhausted
            | Refusal::UpstreamBusy
            | Refusal::UpstreamConnectFailed
            | Refusal::UpstreamFailed => (503, "origin_unavailable"),
            Refusal::MethodNotAllowed { .. } => (404, "not_found"),
            _ => (self.status(), self.code()),
        }
    }

    /// Whether it is about what a JSON-RPC call says, so that Hive itself would have answered with a JSON-RPC error.
    pub fn is_of_call(&self) -> bool {
        matches!(
            self,
            Refusal::Envelope(_)
                | Refusal::JsonRpcMethodNotAllowed
                | Refusal::NotificationRefused
                | Refusal::ParamsTooLong
                | Refusal::ParamsInvalid(_)
                | Refusal::BatchBeyondRateLimit
        )
    }

    /// Whether the connection can't be used again: the rest of the request is unread or its end unknown.
    pub fn closes_connection(&self) -> bool {
        matches!(
            self,
            Refusal::AmbiguousRequest(_)
                | Refusal::HeaderTooLarge
                | Refusal::UriTooLong
                | Refusal::LengthRequired
                | Refusal::BodyTooLarge
                | Refusal::BodyTimeout
                | Refusal::BodyMemoryExhausted
                | Refusal::AddressDenied { of_connection: true }
                | Refusal::BodyFragmented
                | Refusal::CertificateExpired
                | Refusal::CertificateRevoked
                | Refusal::CertificateNotTrusted
                | Refusal::CertificateStatusUnknown
                | Refusal::MisdirectedRequest
                | Refusal::ShuttingDown
        )
    }

    /// Status, code, JSON-RPC code and message of each variant. JSON-RPC codes: -32700 parse error and -32600 invalid
    /// request, -32601 method not found, -32602 invalid params (JSON-RPC 2.0, section 5.1); -32005 is Hive's for
    /// "too many"; the rest are -32603, internal error, or from the range that the specification leaves to servers.
    #[rustfmt::skip] // A table: one line each.
    fn row(&self) -> (u16, &'static str, i32, &'static str) {
        match self {
            Refusal::AmbiguousRequest(_) => (400, "bad_request", -32600, "The request is malformed or ambiguous."),
            Refusal::TwoFederationCredentials => (400, "two_federation_credentials", -32600, "Send a federation JWT or a federation secret, not both."),
            Refusal::FederationTokenTooLong => (400, "federation_token_too_long", -32600, "The federation JWT is longer than 8192 bytes."),
            Refusal::FederationTokenInvalid(_) => (401, "federation_token_invalid", -32600, "Invalid federation JWT."),
            Refusal::FederationTokenNotNow(_) => (401, "federation_token_not_now", -32600, "Federation JWT is not valid at this time."),
            Refusal::FederationIssuerMismatch => (403, "federation_issuer_mismatch", -32600, "The federation JWT is not of this certificate's peer."),
            Refusal::HeaderTooLarge => (431, "header_too_large", -32600, "The request header is too large."),
            Refusal::MisdirectedRequest => (421, "misdirected_request", -32600, "This connection does not serve the requested host."),
            Refusal::NotFound => (404, "not_found", -32601, "Not found."),
            Refusal::MethodNotAllowed { .. } => (405, "method_not_allowed", -32600, "HTTP method not allowed."),
            Refusal::PeerNotAllowed => (403, "peer_not_allowed", -32600, "This certificate may not use this route."),
            Refusal::AddressDenied { .. } => (403, "address_denied", -32600, "This address is not served."),
            Refusal::UserAgentBlocked => (403, "user_agent_blocked", -32600, "This user agent is not served."),
            Refusal::RequestDenied => (403, "request_denied", -32600, "The request is not allowed."),
            Refusal::UriTooLong => (414, "uri_too_long", -32600, "The request target is too long."),
            Refusal::WafBlocked => (403, "waf_blocked", -32600, "The request is not allowed."),
            Refusal::WafUnavailable => (503, "waf_unavailable", -32603, "The gateway is overloaded. Try again."),
            Refusal::CertificateExpired => (401, "certificate_expired", -32600, "The client certificate has expired."),
            Refusal::RateLimited { .. } => (429, "rate_limited", -32005, "Too many requests."),
            Refusal::CertificateRevoked => (401, "certificate_revoked", -32600, "The client certificate has been revoked."),
            Refusal::CertificateNotTrusted => (401, "certificate_not_trusted", -32600, "The client certificate is no longer trusted."),
            Refusal::CertificateStatusUnknown => (401, "certificate_status_unknown", -32600, "The client certificate can't be checked now."),
            Refusal::LengthRequired => (411, "length_required", -32600, "Send a Content-Length."),
            Refusal::BodyTooLarge => (413, "payload_too_large", -32700, "The request body is too large."),
            Refusal::BodyTimeout => (408, "body_timeout", -32700, "The request body took too long."),
            Refusal::BodyMemoryExhausted => (503, "body_memory_exhausted", -32603, "The gateway is overloaded. Try again."),
            Refusal::BodyFragmented => (400, "body_fragmented", -32700, "The request body came in too small pieces."),
            Refusal::Overloaded { .. } => (503, "overloaded", -32603, "The gateway is overloaded. Try again."),
            Refusal::RequestsExhausted { .. } => (503, "requests_exhausted", -32603, "The gateway serves as many requests as it takes. Try again."),
            Refusal::AddressRequestsExhausted { .. } => (429, "address_requests_exhausted", -32005, "Too many requests at once from this address."),
            Refusal::PeerRequestsExhausted { .. } => (429, "peer_requests_exhausted", -32005, "Too many requests at once of this certificate's peer."),
            Refusal::UpstreamBusy => (503, "upstream_busy", -32603, "Hive serves as many requests as it can. Try again."),
            Refusal::ExpectationFailed => (417, "expectation_failed", -32600, "Only Expect: 100-continue is supported."),
            Refusal::UnsupportedMediaType(_) => (415, "unsupported_media_type", -32700, "Send application/json in UTF-8."),
            Refusal::UnsupportedContentCoding => (415, "unsupported_content_coding", -32700, "Send the body without a content coding."),
            Refusal::Envelope(error) => (400, error.code(), error.json_rpc_code(), error.message()),
            Refusal::JsonRpcMethodNotAllowed => (403, "json_rpc_method_not_allowed", -32601, "Method not allowed."),
            Refusal::NotificationRefused => (400, "rpc_notification_refused", -32600, "Notifications are not accepted here: send an id."),
            Refusal::ParamsTooLong => (413, "rpc_params_too_long", -32602, "The parameters are too long."),
            Refusal::ParamsInvalid(_) => (400, "rpc_params_invalid", -32602, "Invalid params."),
            Refusal::BatchBeyondRateLimit => (400, "rpc_batch_beyond_rate_limit", -32600, BATCH_BEYOND),
            Refusal::NoHealthyUpstream => (503, "no_healthy_upstream", -32603, "No Hive node is available."),
            Refusal::UpstreamMaxRequests => (503, "upstream_max_requests", -32603, BUSY),
            Refusal::UpstreamMaxPending => (503, "upstream_max_pending", -32603, BUSY),
            Refusal::UpstreamPendingTimeout => (503, "upstream_pending_timeout", -32603, BUSY),
            Refusal::RetryBudgetExhausted => (503, "retry_budget_exhausted", -32603, BUSY),
            Refusal::UpstreamConnectFailed => (502, "upstream_connect_failed", -32603, "No Hive node could be reached."),
            Refusal::UpstreamConnectTimeout => (504, "upstream_connect_timeout", -32603, "No Hive node could be reached in time."),
            Refusal::UpstreamFailed => (502, "upstream_failed", -32603, "The Hive node did not answer properly."),
            Refusal::UpstreamTimeout => (504, "upstream_timeout", -32603, "The Hive node did not answer in time."),
            Refusal::Maintenance { .. } => (503, "maintenance", -32603, "Under maintenance. Try again later."),
            Refusal::ShuttingDown => (503, "shutting_down", -32603, "The gateway is restarting. Try again."),
            Refusal::Internal => (500, "internal_error", -32603, "Internal error."),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The metrics show them from the start: one that is missing here is missing there until it happens.
    #[test]
    fn every_code_is_in_the_list() {
        let table = include_str!("refusal.rs").split_once("fn row(&self)").unwrap().1;
        let row = regex::Regex::new(r#"=> \(\d{3}, "([a-z0-9_]+)""#).unwrap();
        let written: BTreeSet<_> = row.captures_iter(table).map(|found| found.get(1).unwrap().as_str()).collect();
        assert_eq!(OWN_CODES.iter().copied().collect::<BTreeSet<_>>(), written);
        assert_eq!(OWN_CODES.len(), written.len(), "a code twice");
        assert!(Refusal::codes().any(|code| code == Refusal::FederationIssuerMismatch.code()));
    }
}
