//! The fields of a request's line in the access log: one line each in the table below, which JSON, the templates and the
//! documentation (`conf/observability.md`, by a test) all follow.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::json_line::JsonLine;
use super::record::AccessRecord;

/// Longest host, SNI, request id and name of a certificate in the log, bytes.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// Longest path in the log, bytes; every path that a route names is shorter.
pub(super) const PATH_BYTES_MAX: usize = 2048;
/// Longest `User-Agent` in the log, bytes.
pub(super) const USER_AGENT_BYTES_MAX: usize = 256;
/// Longest JSON-RPC id in the log, bytes.
pub(super) const RPC_ID_BYTES_MAX: usize = 128;
/// Longest explanation in the log, bytes.
pub(super) const DETAIL_BYTES_MAX: usize = 512;

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// Nothing: the field is left out, or `-` in a text.
    Absent,
    /// A text, of which at most so many bytes are kept.
    Text(&'a [u8], usize),
    /// A number.
    Number(u64),
    /// Whole microseconds.
    Micros(Duration),
    /// An address.
    Address(IpAddr),
    /// A moment.
    Time(SystemTime),
}

#[inline(always)]
fn text<'a, T: AsRef<[u8]> + ?Sized>(value: Option<&'a T>, bytes_max: usize) -> Value<'a> {
    value.map_or(Value::Absent, |value| Value::Text(value.as_ref(), bytes_max))
}

/// What is not known of a request that never became one is empty.
#[inline(always)]
fn some<T: AsRef<[u8]> + ?Sized>(value: &T) -> Option<&T> {
    (!value.as_ref().is_empty()).then_some(value)
}

#[inline(always)]
fn number(value: impl Into<u64>) -> Value<'static> {
    Value::Number(value.into())
}

#[inline(always)]
fn micros(value: Option<Duration>) -> Value<'static> {
    value.map_or(Value::Absent, Value::Micros)
}

macro_rules! fields {
    ($($field:ident, $name:literal, |$record:ident| $value:expr, $help:literal;)+) => {
        /// A field of a request's line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Field {
            $(#[doc = $help] $field,)+
        }

        impl Field {
            /// Every field, in the order of the line.
            pub const ALL: &'static [Self] = &[$(Self::$field,)+];

            /// Its name in JSON, in templates and in the documentation.
            pub fn name(self) -> &'static str {
                match self { $(Self::$field => $name,)+ }
            }

            /// What it says.
            pub fn help(self) -> &'static str {
                match self { $(Self::$field => $help,)+ }
            }

            /// What it says of this request.
            pub fn of<'a>(self, record: &AccessRecord<'a>) -> Value<'a> {
                match self { $(Self::$field => { let $record = record; $value })+ }
            }
        }

        impl AccessRecord<'_> {
            /// Appends the record as one JSON object, without a line end.
            pub fn write_json(&self, out: &mut Vec<u8>) {
                let mut line = JsonLine::begin(out);
                $({ let $record = self; line.value($name, $value); })+
                line.end();
            }
        }
    };
}

fields! {
    Time, "time", |r| Value::Time(r.time), "When the request's header was there: RFC 3339 in UTC, with microseconds.";
    Event, "event", |_r| Value::Text(b"request", NAME_BYTES_MAX), "`request`: tells the line from those of failed handshakes.";
    RequestId, "request_id", |r| text(r.request_id, NAME_BYTES_MAX), "`X-Request-Id` as sent to Hive and to the client.";
    TraceId, "trace_id", |r| text(r.trace_id, NAME_BYTES_MAX), "Trace id of `traceparent`, 32 hex digits.";
    Listener, "listener", |r| text(Some(r.listener), NAME_BYTES_MAX), "The listener's name.";
    Client, "client", |r| Value::Address(r.client), "The client's address, as told to Hive.";
    Peer, "peer", |r| text(r.peer, NAME_BYTES_MAX), "Name of the peer that the certificate belongs to.";
    // The specification lets a SPIFFE ID have 2048 bytes.
    SpiffeId, "spiffe_id", |r| text(r.spiffe_id, 2048), "The certificate's SPIFFE ID.";
    // Longer ones match nothing that is configured.
    FederationIssuer, "federation_issuer", |r| text(r.federation_issuer, DETAIL_BYTES_MAX),
        "`iss` of the federation JWT: verified with `federation.jwt: verify`, only claimed with `pass`.";
    TlsVersion, "tls_version", |r| text(r.tls_version, NAME_BYTES_MAX), "Such as `TLSv1.3`.";
    TlsCipher, "tls_cipher", |r| text(r.tls_cipher, NAME_BYTES_MAX), "The cipher suite.";
    TlsGroup, "tls_group", |r| text(r.tls_group, NAME_BYTES_MAX), "The group of the key agreement.";
    Sni, "sni", |r| text(r.sni, NAME_BYTES_MAX), "The name that the handshake asked for.";
    HttpVersion, "http_version", |r| text(some(r.http_version), NAME_BYTES_MAX), "Such as `HTTP/2`.";
    Method, "method", |r| text(some(r.method), NAME_BYTES_MAX), "The method as sent.";
    Host, "host", |r| text(r.host, NAME_BYTES_MAX), "`Host` or `:authority`, in lower case and without port where it was well-formed.";
    Path, "path", |r| text(some(r.path), PATH_BYTES_MAX), "The path without what may hold secrets: query, fragment and what follows a `;`, also if the sign is encoded.";
    Route, "route", |r| text(r.route, NAME_BYTES_MAX), "The route's name.";
    RpcMethod, "rpc_method", |r| text(r.rpc_method, NAME_BYTES_MAX), "The JSON-RPC method; of a batch the first call's, or the refused one's.";
    RpcId, "rpc_id", |r| text(r.rpc_id.map(without_quotes), RPC_ID_BYTES_MAX), "The JSON-RPC id, always as a string.";
    RpcCalls, "rpc_calls", |r| r.rpc_calls.map_or(Value::Absent, number), "Calls in a batch.";
    Status, "status", |r| number(r.status), "The status sent; 499 if the client left before there was one.";
    Refusal, "refusal", |r| text(r.refusal, NAME_BYTES_MAX), "Why the gateway answered itself; also the label of `hive_gateway_refusals_total`.";
    RefusalDetail, "refusal_detail", |r| text(r.refusal_detail, DETAIL_BYTES_MAX), "The same in more words.";
    RateLimit, "rate_limit", |r| text(r.rate_limit, NAME_BYTES_MAX), "The rate limit that the request is beyond; without `refusal` it is not enforced.";
    RequestRule,
        "request_rule",
        |r| text(r.request_rule, NAME_BYTES_MAX),
        "The request rules that the request met; without `refusal`, those only log.";
    WafScore, "waf_score", |r| r.waf_score.map_or(Value::Absent, number), "The web application firewall's score, where it found something.";
    BytesIn, "bytes_in", |r| number(r.bytes_in), "Bytes of the request's body.";
    BytesOut, "bytes_out", |r| number(r.bytes_out), "Bytes of the answer's body.";
    Duration, "duration_us", |r| micros(Some(r.duration)), "From the header to the end of the answer, microseconds.";
    Body, "body_us", |r| micros(r.body), "Of it: from the header to the end of the request's body.";
    UpstreamQueue,
        "upstream_queue_us",
        |r| micros(r.upstream_queue),
        "Of it: waiting for a place at the upstream (`circuit_breaker`); absent where there was one at once.";
    UpstreamConnect, "upstream_connect_us", |r| micros(r.upstream_connect), "Of it: TCP and TLS with the node; absent where a connection was reused.";
    UpstreamFirstByte, "upstream_first_byte_us", |r| micros(r.upstream_first_byte), "Of it: from the node's pick to the first byte of its answer.";
    Upstream, "upstream", |r| text(r.upstream, NAME_BYTES_MAX), "The upstream's name.";
    Node, "node", |r| text(r.node, NAME_BYTES_MAX), "The node that was tried last.";
    Tries, "tries", |r| number(r.tries), "Nodes that were tried.";
    UserAgent, "user_agent", |r| text(r.user_agent, USER_AGENT_BYTES_MAX), "The client's `User-Agent`.";
    Error, "error", |r| text(r.error, DETAIL_BYTES_MAX), "What broke on the way to or from the node, or to the client.";
}

/// Always a string in the log, whatever JSON type the id has: a field of two types breaks what reads the log.
fn without_quotes(id: &[u8]) -> &[u8] {
    match id {
        [b'"', inner @ .., b'"'] => inner,
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_fit_a_template() {
        for (at, field) in Field::ALL.iter().enumerate() {
            let name = field.name();
            assert_eq!(*field as usize, at);
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!Field::ALL[..at].iter().any(|other| other.name() == name), "{name}");
            assert!(field.help().ends_with('.'), "{name}");
        }
    }
}
