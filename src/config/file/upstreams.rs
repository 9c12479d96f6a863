//! Block `upstreams`: Hive nodes, in groups.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::{Balance, CircuitBreaker, Discovery, HashKeys, Outlier, TlsVersion, UpstreamSpiffe, seconds};
use crate::names::UpstreamName;
use crate::units::{Percent, Span};

/// `upstreams[]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Routes speak of this name.
    pub name: UpstreamName,
    /// The nodes, `http://` or `https://`, all of one kind. Needed without `discovery`.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Where the nodes come from, in place of `endpoints`.
    pub discovery: Option<Discovery>,
    /// How a node is picked.
    #[serde(default)]
    pub balance: Balance,
    /// Needed with `consistent_hash`: what requests are told apart by; of a list, the first that the request has. A request
    /// that has none goes where `least_requests` would send it.
    pub hash_key: Option<HashKeys>,
    /// With `consistent_hash`: the most requests of a node in percent of the mean, 101 to 10000 (Envoy's and HAProxy's
    /// meaning); what goes beyond meets another node. Default: no such limit.
    pub hash_balance_factor: Option<u16>,
    /// When fewer of a priority's nodes are usable, and not all of the load can be carried, all of that priority are used,
    /// down or not (Envoy's panic mode). Default 0%: never.
    #[serde(default)]
    pub panic_threshold: Percent,
    /// How long a node that comes back takes to get its full share again, up to 1h; 0s: at once. Default 10s.
    #[serde(default = "ten_seconds")]
    pub slow_start: Span,
    /// Which nodes are left alone because they fail.
    #[serde(default)]
    pub outlier: Outlier,
    /// How much goes to the nodes at once.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
    /// What is spoken to the nodes. Default `http1`.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// How a node is known to be alive. Default: on, with Hive's `/api/health`.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// How many requests may wait for an answer, by how long answers take. Default: no limit of this kind.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// Waiting for nodes.
    #[serde(default)]
    pub timeouts: UpstreamTimeouts,
    /// Needed with `https://` endpoints; with `discovery` it says that the nodes are.
    pub tls: Option<UpstreamTls>,
    /// Whether the nodes are our own Hive's (default true). False, for a partner's gateway: they are told neither the
    /// gateway's secret nor who the client is, and federation JWTs, which are the partner's to check, only pass.
    #[serde(default = "super::yes")]
    pub trusted: bool,
}

fn ten_seconds() -> Span {
    seconds(10)
}

/// `upstreams[].endpoints[]`: a URL, or `{ url, weight, priority }`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// Share of the requests, 1 to 100. Default 1.
    pub weight: u16,
    /// 0 to 9; nodes of a higher number get requests when those of lower ones fail (Envoy's meaning). Default 0.
    pub priority: u8,
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            url: String,
            #[serde(default = "one")]
            weight: u16,
            #[serde(default)]
            priority: u8,
        }
        fn one() -> u16 {
            1
        }
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Endpoint;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a URL, or { url, weight, priority }")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Endpoint, E> {
                Ok(Endpoint { url: v.into(), weight: 1, priority: 0 })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
                let fields = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let Fields { url, weight, priority } = fields;
                Ok(Endpoint { url, weight, priority })
            }
        }
        d.deserialize_any(V)
    }
}

/// `upstreams[].protocol`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1, what Hive's Node.js speaks.
    #[default]
    Http1,
    /// HTTP/2: by ALPN on `https://`, by prior knowledge on `http://`. A node that offers none is not used.
    Http2,
}

/// `upstreams[].health_check`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Off: every node counts as healthy. Default on.
    pub enabled: bool,
    /// Default `/api/health`.
    pub path: String,
    /// Between two probes of a node, at least 2s: Hive allows 60 a minute. Default 10s. A tenth of it is jitter.
    pub interval: Span,
    /// A probe's whole time. Default 2s.
    pub timeout: Span,
    /// Good probes in a row that bring a node back. Default 2.
    pub healthy_after: u32,
    /// Bad probes in a row that take a node out. Default 3.
    pub unhealthy_after: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/api/health".into(),
            interval: seconds(10),
            timeout: seconds(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

/// `upstreams[].adaptive_concurrency`: a limit on the requests that wait for the first byte of their answer, which
/// follows how long that takes (the gradient of Envoy's filter of this name). Beyond it: 503, `Retry-After`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveConcurrency {
    /// The least limit, and the one while the shortest time is measured, 1 to 100000. Default 3.
    pub min_concurrency: u32,
    /// The greatest limit, 1 to 100000. Default 1000.
    pub max_concurrency: u32,
    /// How often the limit is set anew, 10ms to 1m. Default 100ms.
    pub sample_window: Span,
    /// How often the time of an answer without a queue is measured anew, 1s to 1d. Default 60s; a tenth of it is jitter.
    pub min_rtt_interval: Span,
    /// How many answers that takes, 1 to 10000. Default 50.
    pub min_rtt_request_count: u32,
    /// By how much answers may be slower before the limit falls. Default 25%.
    pub buffer: Percent,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self {
            min_concurrency: 3,
            max_concurrency: 1000,
            sample_window: Span(std::time::Duration::from_millis(100)),
            min_rtt_interval: seconds(60),
            min_rtt_request_count: 50,
            buffer: Percent(250),
        }
    }
}

/// `upstreams[].timeouts`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTimeouts {
    /// TCP and TLS handshake together. Default 2s. Exceeded on every node: 504.
    pub connect: Span,
    /// How long an idle connection is kept for reuse. Default 4s: Node.js closes after 5.
    pub idle: Span,
}

impl Default for UpstreamTimeouts {
    fn default() -> Self {
        Self { connect: seconds(2), idle: seconds(4) }
    }
}

/// `upstreams[].tls`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM bundle that the nodes' certificates chain to. Needed without `spiffe`.
    pub ca: Option<String>,
    /// Files of certificate revocation lists, PEM or DER, up to 128 MiB each, by the CAs of the nodes: a node whose certificate
    /// is revoked, or about which no list that is not late says anything, gets no request. Default: none; nothing is
    /// checked then.
    #[serde(default)]
    pub crl: Vec<String>,
    /// Client certificate and CAs from a SPIFFE agent, in place of `ca`, `cert` and `key`. With it `spiffe_id` is needed.
    pub spiffe: Option<UpstreamSpiffe>,
    /// The name that every node's certificate must carry; sent as SNI. Never empty. Needed without `spiffe_id`; with it
    /// only the SNI, by default the ID's trust domain.
    pub server_name: Option<String>,
    /// The SPIFFE ID that every node's certificate must carry, as in `peers[].uri`, in place of the name.
    pub spiffe_id: Option<String>,
    /// `"1.2"` (default) or `"1.3"`. A node that speaks less is refused.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// The gateway's client certificate (chain, leaf first), with `key`.
    pub cert: Option<String>,
    /// Its key.
    pub key: Option<String>,
}
