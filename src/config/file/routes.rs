//! Block `routes`: what is published, for whom, and how often.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::{RequestRule, Waf, seconds};
use crate::names::{ListenerName, PeerName, RouteName, UpstreamName};
use crate::policy::rate_limit::KeyPart;
use crate::units::{Rate, Size, Span};

/// `routes[]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Appears in logs and metrics.
    pub name: RouteName,
    /// Names of the listeners that serve it. Default: all of them.
    #[serde(default)]
    pub listeners: Vec<ListenerName>,
    /// Host names, exact or `*.`-prefixed. Default: any host that the listener's certificate covers.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Paths, byte for byte; a trailing `/*` takes everything below.
    pub paths: Vec<String>,
    /// Methods; `GET` brings `HEAD` along.
    pub methods: Vec<String>,
    /// Who may call: names, or `any` for every valid certificate.
    pub peers: RoutePeers,
    /// Where it goes.
    pub upstream: UpstreamName,
    /// The path that nodes are asked for in place of the request's; its query stays. Default: the request's own.
    pub replace_full_path: Option<String>,
    /// The request body.
    #[serde(default)]
    pub body: Body,
    /// Present: the route speaks JSON-RPC 2.0, and so do its refusals.
    pub json_rpc: Option<JsonRpc>,
    /// How long Hive may take.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// What is shed when the gateway is behind: `normal` (default), or `critical`: after all others.
    #[serde(default)]
    pub priority: Priority,
    /// How often clients may ask; all limits count. Default: as often as they like.
    #[serde(default)]
    pub rate_limits: Vec<RateLimit>,
    /// Requests that are not taken. Default: none.
    #[serde(default)]
    pub request_rules: Vec<RequestRule>,
    /// The web application firewall, in place of the listener's. Default: the listener's.
    pub waf: Option<Waf>,
}

/// `routes[].priority`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Shed when the gateway is behind.
    #[default]
    Normal,
    /// Shed after all others.
    Critical,
}

/// `routes[].rate_limits[]` and `listeners[].rate_limits[]`: beyond it 429, with `Retry-After`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What is counted by: one of `address`, `peer`, `sni`, `route`, `method`, `issuer` (on routes),
    /// `header:NAME`, or a list of them.
    pub per: KeyParts,
    /// How many requests in how much time; with `method`, JSON-RPC calls. A batch counts as its calls.
    pub rate: Rate,
    /// How many at once, 1 to 1000000. Default: as many as the rate's number.
    pub burst: Option<u32>,
    /// All gateways count together, through `redis`; the limit's owner has the same name on each. Default false.
    #[serde(default)]
    pub shared: bool,
    /// False: what goes beyond is counted and logged, and passes. Default true.
    #[serde(default = "super::yes")]
    pub enforce: bool,
}

/// `rate_limits[].per`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyParts(pub Vec<KeyPart>);

impl<'de> Deserialize<'de> for KeyParts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = KeyParts;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("address, peer, sni, route, method, issuer, header:NAME, or a list of them")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<KeyParts, E> {
                KeyPart::parse(v).map(|part| KeyParts(vec![part])).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<KeyParts, A::Error> {
                let mut parts = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    parts.push(KeyPart::parse(&text).map_err(de::Error::custom)?);
                }
                Ok(KeyParts(parts))
            }
        }
        d.deserialize_any(V)
    }
}

/// `routes[].peers`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePeers {
    /// Every client with a valid certificate.
    Any,
    /// These.
    Named(Vec<PeerName>),
}

impl<'de> Deserialize<'de> for RoutePeers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = RoutePeers;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of peer names, or the word any")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<RoutePeers, E> {
                if v == "any" {
                    Ok(RoutePeers::Any)
                } else {
                    Err(E::custom(format!("{v:?} is not a list of peer names; write [{v}], or any")))
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RoutePeers, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(RoutePeers::Named(names))
            }
        }
        d.deserialize_any(V)
    }
}

/// `routes[].body`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Body {
    /// Longest request body, up to 16 MiB. Default 1 MiB, as Hive's `A2A_JSONRPC_MAX_BODY_BYTES`.
    pub limit: Size,
}

impl Default for Body {
    fn default() -> Self {
        Self { limit: Size(1 << 20) }
    }
}

/// `routes[].json_rpc`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JsonRpc {
    /// Methods let through: exact, or with a trailing `*`. Default: every method.
    pub methods: Option<Vec<String>>,
    /// `reject` (default), or the most calls that a batch may hold.
    pub batch: Batch,
    /// Deepest nesting. Default 64, at most 512; 128 with `schemas`.
    pub max_depth: u16,
    /// Calls without an id: `allow` (default, as A2A's clients send them and Hive takes them) or `reject`.
    pub notifications: Notifications,
    /// Longest `params` of a call, in bytes as written, up to 16 MiB. Default: as long as the body may be.
    pub params_limit: Option<Size>,
    /// What the member `jsonrpc` must be: `"2.0"` (default), or `any`: it may be missing or hold anything.
    pub version: JsonRpcVersion,
    /// What `params` of some methods must look like. Default: nobody looks at them.
    pub schemas: Vec<MethodSchema>,
}

impl Default for JsonRpc {
    fn default() -> Self {
        Self {
            methods: None,
            batch: Batch::Reject,
            max_depth: 64,
            notifications: Notifications::Allow,
            params_limit: None,
            version: JsonRpcVersion::V2,
            schemas: Vec::new(),
        }
    }
}

/// `routes[].json_rpc.notifications`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notifications {
    /// They pass.
    #[default]
    Allow,
    /// They are refused.
    Reject,
}

/// `routes[].json_rpc.version`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum JsonRpcVersion {
    /// JSON-RPC 2.0 and nothing else.
    #[default]
    #[serde(rename = "2.0")]
    V2,
    /// Left to the node.
    #[serde(rename = "any")]
    Any,
}

/// `routes[].json_rpc.schemas[]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodSchema {
    /// The method, exactly.
    pub method: String,
    /// A JSON Schema for its `params`, up to 1 MiB; missing `params` count as `{}`. What is referred to stands in the same
    /// file.
    pub file: String,
}

/// `routes[].json_rpc.batch`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// A batch is refused.
    Reject,
    /// A batch of up to so many calls passes; each is checked.
    UpTo(u32),
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Batch;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the word reject, or a number of calls from 1 to 1000")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Batch, E> {
                if v == "reject" { Ok(Batch::Reject) } else { Err(E::invalid_value(de::Unexpected::Str(v), &self)) }
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Batch, E> {
                match u32::try_from(v) {
                    Ok(n @ 1..=1000) => Ok(Batch::UpTo(n)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(v), &self)),
                }
            }
        }
        d.deserialize_any(V)
    }
}

/// `routes[].timeouts`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// From the request's end to the first byte of the answer: waiting for a connection, connecting, every try. Default
    /// 300s, as long as Hive's JSON-RPC runs.
    pub response: Span,
    /// Longest silence inside an answer. Default 5m: an event stream may be silent for minutes.
    pub stream_idle: Span,
    /// From the request's end to the answer's end, up to 7d. Default: no limit.
    pub max_stream_duration: Option<Span>,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self { response: seconds(300), stream_idle: seconds(300), max_stream_duration: None }
    }
}
