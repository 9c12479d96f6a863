//! Label values: closed sets, so that no text of a request becomes a metric label.

use http::Method;

/// Classes of a status. `other`: the client left before there was one.
pub(super) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// The place of a status in [`CLASSES`].
pub(super) fn class(status: u16) -> usize {
    usize::from(status / 100).wrapping_sub(1).min(CLASSES.len() - 1)
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// Every value, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The label's value, also the log's word for it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// Position in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label!(
    /// A request's method: `other` is what RFC 9110 and RFC 5789 don't name.
    MethodLabel {
        /// `GET`
        Get => "GET",
        /// `HEAD`
        Head => "HEAD",
        /// `POST`
        Post => "POST",
        /// `PUT`
        Put => "PUT",
        /// `PATCH`
        Patch => "PATCH",
        /// `DELETE`
        Delete => "DELETE",
        /// `OPTIONS`
        Options => "OPTIONS",
        /// `CONNECT`
        Connect => "CONNECT",
        /// `TRACE`
        Trace => "TRACE",
        /// Any other.
        Other => "other",
    }
);

label!(
    /// Why a shared limit was decided by the gateway alone.
    RedisFallback {
        /// No connection to Redis.
        Down => "down",
        /// No answer within `redis.timeout`.
        Timeout => "timeout",
        /// Redis answered with an error, such as while it loads its data.
        Error => "error",
    }
);

label!(
    /// What came of asking for a revocation list.
    CrlFetchResult {
        /// Another list than before.
        New => "new",
        /// The list at hand.
        Unchanged => "unchanged",
        /// None, or one that can't be used; the list at hand stays.
        Failed => "failed",
    }
);

label!(
    /// What a rate limit came to.
    RateLimitDecision {
        /// Within the limit.
        Admitted => "admitted",
        /// Beyond it: 429.
        Refused => "refused",
        /// Beyond it, but `enforce: false`.
        WouldRefuse => "would_refuse",
    }
);

label!(
    /// What the web application firewall made of a request.
    WafVerdict {
        /// Nothing, or less than the threshold.
        Passed => "passed",
        /// It would be refused with `mode: blocking`.
        Detected => "detected",
        /// Refused.
        Blocked => "blocked",
        /// With `mode: detection_only` only: the body is beyond `body_limit` and was not looked at.
        Skipped => "skipped",
        /// It could not be looked at: too many others wait, it took too long, or the engine failed.
        Unavailable => "unavailable",
    }
);

label!(
    /// A limit of overload protection.
    OverloadLimit {
        /// `overload.event_loop_lag`.
        EventLoopLag => "event_loop_lag",
        /// `overload.connections`.
        Connections => "connections",
        /// `overload.requests`.
        Requests => "requests",
        /// `listeners[].limits.requests`.
        ListenerRequests => "listener_requests",
        /// `listeners[].limits.requests_per_address`.
        AddressRequests => "address_requests",
        /// `listeners[].limits.requests_per_peer`.
        PeerRequests => "peer_requests",
    }
);

label!(
    /// What a limit of overload protection came to.
    OverloadAction {
        /// Refused.
        Shed => "shed",
        /// Passed, since `overload.enforce` is false.
        WouldShed => "would_shed",
    }
);

label!(
    /// What an OCSP responder said of a certificate.
    OcspResult {
        /// Not revoked.
        Good => "good",
        /// Revoked.
        Revoked => "revoked",
        /// Nothing that can be believed.
        Unknown => "unknown",
    }
);

impl From<&Method> for MethodLabel {
    fn from(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::OPTIONS => Self::Options,
            Method::CONNECT => Self::Connect,
            Method::TRACE => Self::Trace,
            // Methods are an open set.
            _ => Self::Other,
        }
    }
}

label!(
    /// What became of a span.
    SpanResult {
        /// The collector has it.
        Exported => "exported",
        /// Lost: the collector is slower than the requests, or down.
        QueueFull => "queue_full",
        /// Lost: the collector could not be reached, or had no time for it.
        ExportFailed => "export_failed",
        /// Lost: the collector would not have it.
        Rejected => "rejected",
    }
);

label!(
    /// What an open connection is doing.
    ConnectionState {
        /// In its TLS handshake.
        Handshake => "handshake",
        /// At least one request is being served.
        Active => "active",
        /// Between two requests.
        Idle => "idle",
    }
);

label!(
    /// Why a connection was turned away before a request of it was read.
    ConnectionRefusal {
        /// `limits.connections` is reached.
        Total => "total",
        /// `limits.connections_per_address` is reached.
        PerAddress => "per_address",
        /// Faster than `limits.new_connections_per_address`.
        Rate => "rate",
        /// The address is on `deny` or `deny_file`.
        Denied => "denied",
        /// `limits.connections_per_peer` is reached, so after the handshake.
        PerPeer => "per_peer",
        /// `limits.handshakes` is reached.
        Handshakes => "handshakes",
        /// `limits.handshakes_per_address` is reached.
        HandshakesPerAddress => "handshakes_per_address",
        /// `overload.connections` is reached.
        Process => "process",
        /// The gateway is behind: `overload.event_loop_lag`.
        Overloaded => "overloaded",
    }
);

label!(
    /// Why a connection ended that had its TLS handshake behind it. Each ends for exactly one of them.
    CloseReason {
        /// In good order: by the client, or after an answer with `Connection: close`.
        Normal => "normal",
        /// No request for `timeouts.idle`.
        Idle => "idle",
        /// A request's header, an HTTP/2 preface or frame took longer than `timeouts.request_header`.
        HeaderTimeout => "header_timeout",
        /// A request's body took longer than `timeouts.request_body`.
        BodyTimeout => "body_timeout",
        /// The client left an answer unread, or 16 KiB of it, for `timeouts.write`.
        WriteTimeout => "write_timeout",
        /// A header beyond `limits.request_header`.
        HeaderTooLarge => "header_too_large",
        /// Older than `timeouts.connection_age`.
        Age => "age",
        /// `limits.requests_per_connection` requests were served.
        RequestLimit => "request_limit",
        /// Bytes that are not HTTP, or break it.
        ProtocolError => "protocol_error",
        /// HTTP/2: more went out than the windows had room for (RFC 9113, section 5.2).
        FlowControlError => "flow_control_error",
        /// HTTP/2: a frame of a size that it can't have (RFC 9113, section 4.2).
        FrameSizeError => "frame_size_error",
        /// HTTP/2: a header block that can't be decompressed (RFC 7541).
        CompressionError => "compression_error",
        /// HTTP/2: one malformed or misdirected request after the other, or beyond the number of streams.
        MalformedRequests => "malformed_requests",
        /// A refusal after which the connection can't be used again.
        Refused => "refused",
        /// The client broke it: reset, or closed within a request.
        Aborted => "aborted",
        /// The node broke an answer off, so the client's connection had to end too.
        UpstreamAborted => "upstream_aborted",
        /// The process is ending.
        ShuttingDown => "shutting_down",
        /// Any other error of the socket.
        Error => "error",
        /// HTTP/2: streams opened and reset, faster than any use of it (CVE-2023-44487).
        RapidReset => "rapid_reset",
        /// HTTP/2: a header in more frames than it needs (CVE-2024-27316).
        ContinuationFlood => "continuation_flood",
        /// HTTP/2: SETTINGS that all want an answer (CVE-2019-9515).
        SettingsFlood => "settings_flood",
        /// HTTP/2: PINGs that all want an answer (CVE-2019-9512).
        PingFlood => "ping_flood",
        /// HTTP/2: PRIORITY frames (CVE-2019-9513).
        PriorityFlood => "priority_flood",
        /// HTTP/2: more WINDOW_UPDATEs than the answers sent call for; windows of a few bytes (CVE-2019-9511, -9517).
        WindowUpdateFlood => "window_update_flood",
        /// HTTP/2: DATA frames that hold nothing, or next to nothing (CVE-2019-9518).
        EmptyDataFlood => "empty_data_flood",
        /// HTTP/2: frames of types that nobody knows, or that no client sends.
        UnknownFrameFlood => "unknown_frame_flood",
        /// HTTP/2: a limit of the codec's own, told by GOAWAY with ENHANCE_YOUR_CALM.
        EnhanceYourCalm => "enhance_your_calm",
        /// TLS: records without data, such as KeyUpdates.
        TlsFlood => "tls_flood",
    }
);

impl CloseReason {
    /// Whether the client was cut for what it did, so that an operator wants to know who it was.
    pub fn is_hostile(self) -> bool {
        match self {
            Self::RapidReset
            | Self::ContinuationFlood
            | Self::SettingsFlood
            | Self::PingFlood
            | Self::PriorityFlood
            | Self::WindowUpdateFlood
            | Self::EmptyDataFlood
            | Self::UnknownFrameFlood
            | Self::EnhanceYourCalm
            | Self::TlsFlood
            | Self::MalformedRequests
            | Self::HeaderTimeout
            | Self::WriteTimeout => true,
            Self::Normal
            | Self::Idle
            | Self::BodyTimeout
            | Self::HeaderTooLarge
            | Self::Age
            | Self::RequestLimit
            | Self::ProtocolError
            | Self::FlowControlError
            | Self::FrameSizeError
            | Self::CompressionError
            | Self::Refused
            | Self::Aborted
            | Self::UpstreamAborted
            | Self::ShuttingDown
            | Self::Error => false,
        }
    }
}

label!(
    /// A limit of an upstream's circuit breaker.
    BreakerLimit {
        /// `max_connections`: beyond it a request waits.
        Connections => "connections",
        /// `max_pending`: beyond it a request is refused.
        Pending => "pending",
        /// `pending_timeout`: a request that waited so long is refused.
        PendingTimeout => "pending_timeout",
        /// `max_requests`: beyond it a request is refused.
        Requests => "requests",
        /// `retry_budget`: beyond it no other node is tried.
        Retries => "retries",
    }
);

label!(
    /// What came of one try at one node.
    UpstreamResult {
        /// An answer below 500.
        Ok => "ok",
        /// An answer of 500 or above.
        ServerError => "server_error",
        /// The node took no connection; nothing was sent.
        ConnectFailed => "connect_failed",
        /// `timeouts.connect` passed; nothing was sent.
        ConnectTimeout => "connect_timeout",
        /// The TLS handshake with the node failed; nothing was sent.
        TlsFailed => "tls_failed",
        /// No first byte within `timeouts.response`.
        ResponseTimeout => "response_timeout",
        /// The answer fell silent for `timeouts.stream_idle`.
        StreamTimeout => "stream_timeout",
        /// The answer went on for `timeouts.max_stream_duration`; the node is not to blame.
        StreamDuration => "max_stream_duration",
        /// The node broke the connection, or its answer is not HTTP.
        Broken => "broken",
        /// The client went away before the answer's end; the node is not to blame.
        ClientGone => "client_gone",
    }
);

label!(
    /// Why a TLS handshake with a node came to nothing.
    UpstreamTlsFailure {
        /// The node's certificate, or one above it, is past its end.
        Expired => "expired",
        /// The node's certificate, or one above it, is before its begin.
        NotYetValid => "not_yet_valid",
        /// The node's chain leads to no CA of `tls.ca`.
        UnknownCa => "unknown_ca",
        /// A list of `tls.crl` has the node's certificate.
        Revoked => "revoked",
        /// No list of `tls.crl` is about the node's certificate.
        NoCrl => "no_crl",
        /// The list of `tls.crl` that is about the node's certificate is past its nextUpdate.
        CrlExpired => "crl_expired",
        /// The node's certificate is for other names than `tls.server_name`, or for none.
        NameMismatch => "name_mismatch",
        /// The node's certificate has another SPIFFE ID than `tls.spiffe_id`, or none.
        WrongSpiffeId => "wrong_spiffe_id",
        /// The node's certificate is not for TLS servers, or was issued by one that is not a CA's.
        WrongPurpose => "wrong_purpose",
        /// SHA-1, or a key that is too small, in the node's certificate or above it.
        WeakSignature => "weak_signature",
        /// The node speaks only TLS versions below `tls.min_version`.
        ProtocolVersion => "protocol_version",
        /// The node does not speak what `protocol` says, by ALPN.
        NoApplicationProtocol => "no_application_protocol",
        /// The node wants a client certificate that it did not get.
        ClientCertificate => "client_certificate",
        /// The node broke off with another TLS alert: usually it does not trust the gateway's certificate.
        Alert => "alert",
        /// The connection ended in the middle.
        Aborted => "aborted",
        /// Not TLS at all.
        NotTls => "not_tls",
        /// Anything else; the log says what.
        Other => "other",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_the_position() {
        assert!(MethodLabel::ALL.iter().enumerate().all(|(i, m)| m.index() == i));
        assert!(CloseReason::ALL.iter().enumerate().all(|(i, r)| r.index() == i));
    }

    #[test]
    fn an_unheard_of_method_is_other() {
        assert_eq!(MethodLabel::from(&Method::HEAD), MethodLabel::Head);
        assert_eq!(MethodLabel::from(&Method::from_bytes(b"PROPFIND").unwrap()), MethodLabel::Other);
        assert_eq!(MethodLabel::from(&Method::from_bytes(b"get").unwrap()), MethodLabel::Other);
    }
}
