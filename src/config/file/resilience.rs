//! Parts of block `upstreams`: which node is next, when a node is left alone, and how much an upstream takes.

use std::fmt;

use http::HeaderName;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::seconds;
use crate::units::{Percent, Span};

/// `upstreams[].balance`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The less busy of two nodes taken at random, by weight. The default: a slow node gets less.
    #[default]
    LeastRequests,
    /// By `hash_key`: requests of one key meet the same node.
    ConsistentHash,
}

/// What requests are told apart by: an item of `upstreams[].hash_key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The peer that the certificate belongs to; a certificate of no peer by itself; without one, the client's address.
    Peer,
    /// A request header's value.
    Header(HeaderName),
    /// A2A's `contextId`, of the message or of the params.
    ContextId,
    /// A2A's task: `taskId` of the message or of the params, or `id` of the params of a method about tasks.
    TaskId,
}

impl HashKey {
    /// From the configuration.
    ///
    /// # Errors
    /// Says what may stand there.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "peer" => Self::Peer,
            "context_id" => Self::ContextId,
            "task_id" => Self::TaskId,
            _ => {
                let name = text.strip_prefix("header:").ok_or_else(|| {
                    format!("{text:?} is nothing to hash; write context_id, task_id, peer or header:NAME")
                })?;
                Self::Header(name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?)
            }
        })
    }
}

/// `upstreams[].hash_key`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashKeys(pub Vec<HashKey>);

impl<'de> Deserialize<'de> for HashKeys {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = HashKeys;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("context_id, task_id, peer, header:NAME, or a list of them")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<HashKeys, E> {
                HashKey::parse(v).map(|key| HashKeys(vec![key])).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<HashKeys, A::Error> {
                let mut keys = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    keys.push(HashKey::parse(&text).map_err(de::Error::custom)?);
                }
                Ok(HashKeys(keys))
            }
        }
        d.deserialize_any(V)
    }
}

/// `upstreams[].outlier`: a node that fails requests is left alone for a while (Envoy's outlier detection).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Off: only health checks take a node out. Default on.
    pub enabled: bool,
    /// Failures in a row that eject a node, 1 to 1000: failed connections, 502, 503, 504, broken answers, timeouts.
    /// Default 5.
    pub consecutive_failures: u32,
    /// How long it is left alone the first time, 1s to 1h; the n-th time in a row n times as long. Default 10s.
    pub eject_for: Span,
    /// The longest ejection, up to 1d. Default 5m.
    pub eject_for_max: Span,
    /// Most nodes that are ejected at once, but always one, and never the last that is left. Default 50%.
    pub max_ejected: Percent,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive_failures: 5,
            eject_for: seconds(10),
            eject_for_max: seconds(300),
            max_ejected: Percent(500),
        }
    }
}

/// `upstreams[].circuit_breaker`: how much an upstream takes at once, under Envoy's names. Beyond it: 503.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// HTTP/1.1: connections to all nodes together, idle ones included, 1 to 1000000; where one more is needed, an idle one is
    /// closed for it. Beyond: requests wait.
    /// Default 1024.
    pub max_connections: Option<u32>,
    /// HTTP/1.1: requests that wait for a connection, first come, first served; 0 to 1000000. Beyond: refused. Default 256.
    pub max_pending: Option<u32>,
    /// HTTP/1.1: longest wait, 1ms to 1h, and never longer than `timeouts.response`. Then: refused. Default 1s.
    pub pending_timeout: Option<Span>,
    /// Requests at the nodes, 1 to 1000000. Beyond: refused. Default 1024.
    pub max_requests: u32,
    /// Tries after the first one that run at once, as a share of the requests that run or wait. Beyond: no other try, and
    /// 503 `retry_budget_exhausted`; 502 if a node may have read the request. One counts until its answer begins; after
    /// nothing but connections that failed, only until it has a connection; and not at all if a node had left a connection
    /// that rested, or had no room for another HTTP/2 stream, without having read anything. Default 20%.
    pub retry_budget: Percent,
    /// So many such tries may run in any case, 0 to 1000. Default 3.
    pub min_retry_concurrency: u32,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_pending: None,
            pending_timeout: None,
            max_requests: 1024,
            retry_budget: Percent(200),
            min_retry_concurrency: 3,
        }
    }
}
