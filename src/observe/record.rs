//! What is written down of one request, and of one failed TLS handshake.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::fields::{DETAIL_BYTES_MAX, Field, NAME_BYTES_MAX, Value};
use super::handshake::HandshakeResult;
use super::json_line::JsonLine;
use super::log_format::Extras;

/// One request, at its end. Borrowed, so that it costs nothing to put together; what is `None` is left out of the line.
///
/// Texts that came from the client are bytes: they are escaped and cut when written, whatever they hold. Never put a
/// query, a token or a body here. [`super::fields`] says how each is written.
#[derive(Debug, Clone)]
pub struct AccessRecord<'a> {
    /// When the request's header was there.
    pub time: SystemTime,
    /// `X-Request-Id` as sent to Hive.
    pub request_id: Option<&'a str>,
    /// Trace id of `traceparent`, 32 hex digits.
    pub trace_id: Option<&'a str>,
    /// The listener's name.
    pub listener: &'a str,
    /// The client's address, as told to Hive.
    pub client: IpAddr,
    /// Name of the peer that the certificate belongs to.
    pub peer: Option<&'a str>,
    /// The certificate's SPIFFE ID.
    pub spiffe_id: Option<&'a str>,
    /// `iss` of the federation JWT: verified with `federation.jwt: verify`, only claimed with `pass`. Never the token.
    pub federation_issuer: Option<&'a str>,
    /// Such as `TLSv1.3`.
    pub tls_version: Option<&'a str>,
    /// The cipher suite.
    pub tls_cipher: Option<&'a str>,
    /// The key agreement's group.
    pub tls_group: Option<&'a str>,
    /// The name that the handshake asked for.
    pub sni: Option<&'a str>,
    /// Such as `HTTP/2`.
    pub http_version: &'a str,
    /// The method as sent: more than a metric's label.
    pub method: &'a str,
    /// `Host` or `:authority`.
    pub host: Option<&'a [u8]>,
    /// The path without its query, parameters (`;`) and fragment, also encoded ones: they may hold secrets.
    pub path: &'a [u8],
    /// The route's name.
    pub route: Option<&'a str>,
    /// The JSON-RPC method; of a batch, its first call's.
    pub rpc_method: Option<&'a [u8]>,
    /// The JSON-RPC id as it stood in the body; a string without its quotes.
    pub rpc_id: Option<&'a [u8]>,
    /// Calls in a batch; `None` for a single call.
    pub rpc_calls: Option<u32>,
    /// The status sent; 0 if the client left before there was one.
    pub status: u16,
    /// [`crate::refusal::Refusal::code`].
    pub refusal: Option<&'static str>,
    /// [`crate::refusal::Refusal::detail`].
    pub refusal_detail: Option<&'a str>,
    /// Name of the rate limit that the request is beyond; without a refusal, that limit is not enforced.
    pub rate_limit: Option<&'a str>,
    /// Names of the request rules that the request met; without a refusal, those only log.
    pub request_rule: Option<&'a str>,
    /// The web application firewall's score, where it looked at the request and found something.
    pub waf_score: Option<u32>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// From the header to the end of the answer.
    pub duration: Duration,
    /// Of it: waiting for the request's body.
    pub body: Option<Duration>,
    /// Of it: waiting for a connection, where the circuit breaker had none left.
    pub upstream_queue: Option<Duration>,
    /// Of it: TCP and TLS with nodes, over all tries; `None` where a connection was reused.
    pub upstream_connect: Option<Duration>,
    /// Of it: from the pick of the node that answered to its first byte.
    pub upstream_first_byte: Option<Duration>,
    /// The upstream's name.
    pub upstream: Option<&'a str>,
    /// Address of the node that was tried last.
    pub node: Option<&'a str>,
    /// Nodes that were tried.
    pub tries: u32,
    /// The client's `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// What broke, for an operator.
    pub error: Option<&'a str>,
    /// Where the headers are taken from that `access_log.headers` names.
    pub headers: Option<&'a HeaderMap>,
}

impl<'a> AccessRecord<'a> {
    /// A record of a request that got as far as its address; the rest is filled in with `..AccessRecord::new(…)`.
    pub fn new(time: SystemTime, listener: &'a str, client: IpAddr) -> Self {
        Self {
            time,
            request_id: None,
            trace_id: None,
            listener,
            client,
            peer: None,
            spiffe_id: None,
            federation_issuer: None,
            tls_version: None,
            tls_cipher: None,
            tls_group: None,
            sni: None,
            http_version: "",
            method: "",
            host: None,
            path: b"",
            route: None,
            rpc_method: None,
            rpc_id: None,
            rpc_calls: None,
            status: 0,
            refusal: None,
            refusal_detail: None,
            rate_limit: None,
            request_rule: None,
            waf_score: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            body: None,
            upstream_queue: None,
            upstream_connect: None,
            upstream_first_byte: None,
            upstream: None,
            node: None,
            tries: 0,
            user_agent: None,
            error: None,
            headers: None,
        }
    }

    /// A success of which nothing needs to be told.
    pub(super) fn went_well(&self) -> bool {
        let quiet = self.rate_limit.is_none() && self.request_rule.is_none() && self.waf_score.is_none();
        self.status < 400 && self.refusal.is_none() && self.error.is_none() && quiet
    }
}

/// One failed TLS handshake.
#[derive(Debug, Clone)]
pub struct HandshakeRecord<'a> {
    /// When it failed.
    pub time: SystemTime,
    /// The listener's name.
    pub listener: &'a str,
    /// The connection's address.
    pub client: IpAddr,
    /// Why.
    pub result: HandshakeResult,
    /// What OpenSSL says of it.
    pub detail: Option<&'a str>,
    /// The name that the handshake asked for.
    pub sni: Option<&'a str>,
    /// The greatest TLS version that the client offered.
    pub tls_version: Option<&'a str>,
    /// Subject of the client's certificate, where there was one.
    pub subject: Option<&'a str>,
    /// Its issuer.
    pub issuer: Option<&'a str>,
    /// From accept to the failure.
    pub duration: Duration,
}

impl HandshakeRecord<'_> {
    /// Appends the record as one JSON object, without a line end. What a request's line hides of a client, this one hides
    /// too: the names of the certificate with the SPIFFE ID.
    pub fn write_json(&self, extras: &Extras, out: &mut Vec<u8>) {
        let mut line = JsonLine::event(out, self.time, "handshake_failed");
        line.text("listener", self.listener.as_bytes(), NAME_BYTES_MAX);
        line.value("client", extras.shown(Field::Client, Value::Address(self.client)));
        line.text("result", self.result.as_str().as_bytes(), NAME_BYTES_MAX);
        line.optional("detail", self.detail, DETAIL_BYTES_MAX);
        let mut named = |key, field, value: Option<&str>, bytes_max| {
            if let Some(value) = value {
                line.value(key, extras.shown(field, Value::Text(value.as_bytes(), bytes_max)));
            }
        };
        named("sni", Field::Sni, self.sni, NAME_BYTES_MAX);
        named("tls_version", Field::TlsVersion, self.tls_version, NAME_BYTES_MAX);
        named("subject", Field::SpiffeId, self.subject, DETAIL_BYTES_MAX);
        named("issuer", Field::SpiffeId, self.issuer, DETAIL_BYTES_MAX);
        line.micros("duration_us", Some(self.duration));
        line.end();
    }
}

/// Failed handshakes that got no line of their own, because there were too many.
#[derive(Debug, Clone)]
pub struct HandshakesOmitted<'a> {
    /// When it is told.
    pub time: SystemTime,
    /// The listener's name.
    pub listener: &'a str,
    /// How many.
    pub count: u64,
}

impl HandshakesOmitted<'_> {
    /// Appends the record as one JSON object, without a line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut line = JsonLine::event(out, self.time, "handshakes_omitted");
        line.text("listener", self.listener.as_bytes(), NAME_BYTES_MAX);
        line.number("count", self.count);
        line.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::fields::USER_AGENT_BYTES_MAX;
    use super::*;

    fn parsed(record: &AccessRecord<'_>) -> serde_json::Value {
        let mut out = Vec::new();
        record.write_json(&mut out);
        assert!(!out.iter().any(|b| b.is_ascii_control()), "{}", String::from_utf8_lossy(&out));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_says_what_the_record_says() {
        let record = AccessRecord {
            peer: Some("hive-paris"),
            http_version: "HTTP/2",
            method: "POST",
            path: b"/api/a2a/jsonrpc",
            rpc_method: Some(b"message/send"),
            rpc_id: Some(b"\"7\""),
            status: 502,
            refusal: Some("upstream_failed"),
            duration: Duration::from_nanos(1_234_567),
            upstream_connect: Some(Duration::ZERO),
            tries: 2,
            ..AccessRecord::new(UNIX_EPOCH, "federation", "2001:db8::1".parse().unwrap())
        };
        assert_eq!(
            parsed(&record),
            serde_json::json!({
                "time": "1970-01-01T00:00:00.000000Z", "event": "request", "listener": "federation", "client": "2001:db8::1",
                "peer": "hive-paris", "http_version": "HTTP/2", "method": "POST", "path": "/api/a2a/jsonrpc",
                "rpc_method": "message/send", "rpc_id": "7", "status": 502, "refusal": "upstream_failed", "bytes_in": 0,
                "bytes_out": 0, "duration_us": 1234, "upstream_connect_us": 0, "tries": 2,
            })
        );
    }

    #[test]
    fn no_client_text_forges_a_line_or_a_field() {
        let evil = b"x\",\"peer\":\"admin\"}\r\n{\"time\":\"1970\",\"status\":200}\n\x00\x1b[2J\xff\\";
        let record = AccessRecord {
            host: Some(evil),
            path: evil,
            rpc_method: Some(evil),
            rpc_id: Some(evil),
            user_agent: Some(evil),
            ..AccessRecord::new(UNIX_EPOCH, "l", [10, 0, 255, 1].into())
        };
        let line = parsed(&record);
        assert_eq!(line["peer"], serde_json::Value::Null);
        assert_eq!(line["client"], "10.0.255.1");
        for field in ["host", "path", "rpc_method", "rpc_id", "user_agent"] {
            assert_eq!(line[field], *String::from_utf8_lossy(evil), "{field}");
        }
    }

    #[test]
    fn a_line_has_a_longest_length() {
        let long = vec![0u8; 100_000];
        let text = "\u{1}".repeat(100_000);
        let record = AccessRecord {
            request_id: Some(&text),
            sni: Some(&text),
            host: Some(&long),
            path: &long,
            method: &text,
            rpc_method: Some(&long),
            rpc_id: Some(&long),
            user_agent: Some(&long),
            refusal_detail: Some(&text),
            error: Some(&text),
            ..AccessRecord::new(UNIX_EPOCH, "l", [10, 0, 0, 1].into())
        };
        let mut out = Vec::new();
        record.write_json(&mut out);
        assert!(out.len() < 32 << 10, "{}", out.len());
        let line = parsed(&record);
        assert_eq!(line["user_agent"].as_str().unwrap().len(), USER_AGENT_BYTES_MAX + 3);
        assert!(line["user_agent"].as_str().unwrap().ends_with("..."));
    }

    #[test]
    fn a_failed_handshake_is_told_apart_from_a_request() {
        let mut out = Vec::new();
        HandshakeRecord {
            time: UNIX_EPOCH,
            listener: "federation",
            client: [10, 0, 0, 1].into(),
            result: HandshakeResult::Expired,
            detail: None,
            sni: Some("a.example"),
            tls_version: Some("TLSv1.2"),
            subject: Some("CN=\"x\""),
            issuer: None,
            duration: Duration::from_millis(2),
        }
        .write_json(&Extras::default(), &mut out);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["event"], "handshake_failed");
        assert_eq!(line["result"], "expired");
        assert_eq!(line["tls_version"], "TLSv1.2");
        assert_eq!(line["subject"], "CN=\"x\"");
        assert_eq!(line["duration_us"], 2000);
    }
}
