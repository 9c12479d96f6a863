//! What can't be left out, what to write there, and what stands in for it while the rest of a wrong file is checked.

use serde_yaml::{Mapping, Value};

/// A key that its block needs.
pub(super) struct Required {
    /// The block, indexes left out; empty for the whole file.
    block: &'static str,
    /// The key.
    key: &'static str,
    /// What to write.
    pub example: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Text(&'static str),
    List,
}

const fn text(block: &'static str, key: &'static str, example: &'static str, stand_in: &'static str) -> Required {
    Required { block, key, example, kind: Kind::Text(stand_in) }
}

const fn list(block: &'static str, key: &'static str, example: &'static str) -> Required {
    Required { block, key, example, kind: Kind::List }
}

/// The name that stands in for a missing one. No file can hold it: it is checked for nothing.
const STAND_IN: &str = "stand-in";

const PER_EXAMPLE: &str = "per: address, or per: [peer, method]";
const RATE_EXAMPLE: &str = "rate: 100/s";

const REQUIRED: &[Required] = &[
    list("", "listeners", "listeners: with at least one { name, address, tls }"),
    list("", "routes", "routes: with at least one { name, paths, methods, peers, upstream }"),
    list("", "upstreams", "upstreams: with at least one { name, endpoints }"),
    text("listeners[]", "name", "name: federation", STAND_IN),
    text("listeners[]", "address", "address: 0.0.0.0:8443", "127.0.0.1:1"),
    text("listeners[].tls.certificates[]", "cert", "cert: server.pem", STAND_IN),
    text("listeners[].tls.certificates[]", "key", "key: server.key", STAND_IN),
    text("listeners[].request_rules[]", "name", "name: scanners", STAND_IN),
    text("listeners[].request_rules[].header", "name", "name: X-Forwarded-Proto", STAND_IN),
    text("listeners[].request_rules[].header", "matches", "matches: ^http$", STAND_IN),
    text("listeners[].waf", "mode", "mode: detection_only, or mode: blocking", "off"),
    text("routes[].request_rules[]", "name", "name: scanners", STAND_IN),
    text("routes[].request_rules[].header", "name", "name: X-Forwarded-Proto", STAND_IN),
    text("routes[].request_rules[].header", "matches", "matches: ^http$", STAND_IN),
    text("routes[].waf", "mode", "mode: detection_only, or mode: blocking", "off"),
    text("peers[]", "name", "name: hive-paris", STAND_IN),
    text("routes[]", "name", "name: a2a", STAND_IN),
    list("routes[]", "paths", "paths: [/api/a2a/jsonrpc]"),
    list("routes[]", "methods", "methods: [POST]"),
    text("routes[]", "peers", "peers: [hive-paris], or peers: any for every valid certificate", "any"),
    text("routes[]", "upstream", "upstream: hive, the name of one of upstreams", STAND_IN),
    text("routes[].json_rpc.schemas[]", "method", "method: message/send", STAND_IN),
    text("routes[].json_rpc.schemas[]", "file", "file: schemas/message-send.json", STAND_IN),
    text("upstreams[]", "name", "name: hive", STAND_IN),
    text("upstreams[].discovery.dns", "name", "name: hive.internal", STAND_IN),
    text("upstreams[].discovery.srv", "name", "name: _http._tcp.hive.internal", STAND_IN),
    text("upstreams[].discovery.file", "path", "path: nodes.yaml", STAND_IN),
    text("upstreams[].endpoints[]", "url", "url: \"http://10.0.1.10:3000\"", "http://127.0.0.1:1"),
    text("routes[].rate_limits[]", "per", PER_EXAMPLE, "address"),
    text("routes[].rate_limits[]", "rate", RATE_EXAMPLE, "1/s"),
    text("listeners[].rate_limits[]", "per", PER_EXAMPLE, "address"),
    text("listeners[].rate_limits[]", "rate", RATE_EXAMPLE, "1/s"),
    text("redis", "url", "url: redis://127.0.0.1:6379", "redis://127.0.0.1"),
    text("access_log.rotate", "size", "size: 100MiB", "1MiB"),
    text("access_log.format", "template", "template: \"{time} {client} {status}\"", "-"),
    text("tracing", "otlp", "otlp: \"http://127.0.0.1:4318\"", "http://127.0.0.1:4318"),
];

/// The entry of `key` in `block`, a path whose indexes are left out.
pub(super) fn required(block: &str, key: &str) -> Option<&'static Required> {
    REQUIRED.iter().find(|r| r.block == block && r.key == key)
}

impl Required {
    pub fn stand_in(&self) -> Value {
        match self.kind {
            Kind::Text(text) => text.into(),
            Kind::List => Value::Sequence(Vec::new()),
        }
    }
}

/// What can stand in for a wrong value at `pattern`, a path whose indexes are left out. None: it can be left out.
pub(super) fn stand_in(pattern: &str) -> Option<Value> {
    let (block, key) = pattern.rsplit_once('.').unwrap_or(("", pattern));
    if let Some(r) = required(block, key) {
        return Some(r.stand_in());
    }
    match pattern {
        "listeners[]"
        | "peers[]"
        | "routes[]"
        | "upstreams[]"
        | "listeners[].tls.certificates[]"
        | "listeners[].rate_limits[]"
        | "routes[].rate_limits[]"
        | "routes[].json_rpc.schemas[]" => Some(Value::Mapping(Mapping::new())),
        _ if pattern.ends_with(".rate_limits[].per[]") => Some("address".into()),
        "upstreams[].endpoints[]" => Some("http://127.0.0.1:1".into()),
        _ if pattern.ends_with("[]") => Some(STAND_IN.into()),
        _ => None,
    }
}
