//! What is written down of those who are kept out before there is a request to write down, and of what the web
//! application firewall finds.

use std::net::IpAddr;
use std::time::SystemTime;

use super::json_line::JsonLine;

/// Longest request id and name, bytes.
const NAME_BYTES_MAX: usize = 256;
/// Longest text of a rule, bytes.
const MESSAGE_BYTES_MAX: usize = 256;

/// A connection that was closed at once, because its address is on a deny list.
#[derive(Debug, Clone)]
pub struct ConnectionDenied<'a> {
    /// When.
    pub time: SystemTime,
    /// The listener's name.
    pub listener: &'a str,
    /// The connection's address.
    pub client: IpAddr,
}

impl ConnectionDenied<'_> {
    /// Appends the record as one JSON object, without a line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut line = JsonLine::begin(out, self.time, "connection_denied");
        line.text("listener", self.listener.as_bytes(), NAME_BYTES_MAX);
        line.address("client", self.client);
        line.end();
    }
}

/// A rule of the web application firewall that a request matched. Never what matched: that may be a secret or a body.
#[derive(Debug, Clone)]
pub struct WafMatch<'a> {
    /// When.
    pub time: SystemTime,
    /// The request's id, as in its own line.
    pub request_id: Option<&'a str>,
    /// The listener's name.
    pub listener: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// The route's name.
    pub route: &'a str,
    /// The rule's number.
    pub rule: i64,
    /// The rule's text.
    pub message: &'a [u8],
    /// From 0, emergency, to 7, debug.
    pub severity: u32,
    /// The score of the whole request.
    pub score: u32,
    /// What becomes of the request.
    pub verdict: &'static str,
}

impl WafMatch<'_> {
    /// Appends the record as one JSON object, without a line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut line = JsonLine::begin(out, self.time, "waf_match");
        line.optional("request_id", self.request_id, NAME_BYTES_MAX);
        line.text("listener", self.listener.as_bytes(), NAME_BYTES_MAX);
        line.address("client", self.client);
        line.text("route", self.route.as_bytes(), NAME_BYTES_MAX);
        line.number("rule", u64::try_from(self.rule).unwrap_or(0));
        line.text("message", self.message, MESSAGE_BYTES_MAX);
        line.number("severity", u64::from(self.severity));
        line.number("score", u64::from(self.score));
        line.text("verdict", self.verdict.as_bytes(), NAME_BYTES_MAX);
        line.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_match_is_one_line_whatever_the_rule_says() {
        let mut out = Vec::new();
        let record = WafMatch {
            time: UNIX_EPOCH,
            request_id: Some("r"),
            listener: "front",
            client: [10, 0, 0, 1].into(),
            route: "a2a",
            rule: 942_100,
            message: b"a\"b\n\xff",
            severity: 2,
            score: 15,
            verdict: "blocked",
        };
        record.write_json(&mut out);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert!(!out.contains(&b'\n'));
        assert_eq!((&line["event"], &line["rule"], &line["score"]), (&"waf_match".into(), &942_100.into(), &15.into()));
        out.clear();
        ConnectionDenied { time: UNIX_EPOCH, listener: "front", client: [10, 0, 0, 1].into() }.write_json(&mut out);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&line["event"], &line["client"]), (&"connection_denied".into(), &"10.0.0.1".into()));
    }
}
