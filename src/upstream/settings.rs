//! An upstream's settings with every name resolved and every file read.

use std::net::SocketAddr;
use std::time::Duration;

use super::discovery::Discovery;
use crate::config::file;
use crate::names::UpstreamName;
use crate::tls::UpstreamTlsMaterial;
use crate::units::Percent;

/// Most nodes of an upstream. A node's index is 16 bits wide.
pub const NODES_MAX: usize = 4096;

/// What an [`super::Upstream`] is built from.
#[derive(Clone)]
pub struct Settings {
    /// `upstreams[].name`
    pub name: UpstreamName,
    /// At least one, at most [`NODES_MAX`]. With `discovery` none.
    pub nodes: Vec<NodeSettings>,
    /// Where the nodes come from, if not from the configuration.
    pub discovery: Option<Discovery>,
    /// How a node is picked.
    pub balance: file::Balance,
    /// What requests are told apart by, with `consistent_hash`.
    pub hash_keys: Vec<file::HashKey>,
    /// The most requests of a node in percent of the mean.
    pub hash_balance_factor: Option<u16>,
    /// When fewer nodes are usable, all are used.
    pub panic_threshold: Percent,
    /// How long a node that comes back takes to get its full share again.
    pub slow_start: Duration,
    /// Which nodes are left alone because they fail.
    pub outlier: file::Outlier,
    /// How much goes to the nodes at once.
    pub circuit_breaker: BreakerLimits,
    /// What is spoken to the nodes.
    pub protocol: file::UpstreamProtocol,
    /// How a node is known to be alive.
    pub health_check: file::HealthCheck,
    /// Waiting for nodes.
    pub timeouts: file::UpstreamTimeouts,
    /// Needed if any node is `https://`.
    pub tls: Option<UpstreamTlsMaterial>,
}

/// One node: `upstreams[].endpoints[]`, its name resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// As configured; the node's name in logs, metrics and on the admin page.
    pub url: String,
    /// Where it is.
    pub address: SocketAddr,
    /// `Host` of a probe: the URL's host, with the port unless it is the scheme's own.
    pub host: String,
    /// `https://`
    pub tls: bool,
    /// Share of the requests, 1 to 100.
    pub weight: u16,
    /// Nodes of a higher number get requests when those of lower ones fail.
    pub priority: u8,
}

/// How much an upstream takes at once: `upstreams[].circuit_breaker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// None on HTTP/2, where a connection carries many requests.
    pub connections: Option<ConnectionLimits>,
    /// Requests at the nodes.
    pub max_requests: u32,
    /// Later tries at once, as a share of the requests.
    pub retry_budget: Percent,
    /// So many of them in any case.
    pub min_retry_concurrency: u32,
}

/// The limit that requests wait at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections, those that rest included.
    pub max: u32,
    /// Requests that wait for one.
    pub max_pending: u32,
    /// Longest wait.
    pub pending_timeout: Duration,
}

/// Why an upstream can't be built. Each of these is found by `check` before; this is the last line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// An empty `endpoints`.
    #[error("no endpoints")]
    NoNodes,
    /// More than [`NODES_MAX`].
    #[error("{0} endpoints; the most is {NODES_MAX}")]
    TooManyNodes(usize),
    /// A weight of 0, or above 100.
    #[error("endpoint {url}: weight {weight}; 1 to 100")]
    Weight {
        /// The endpoint.
        url: String,
        /// Its weight.
        weight: u16,
    },
    /// `https://` without `tls`.
    #[error("endpoint {0} is https, and there is no tls block to verify it with")]
    NoTlsMaterial(String),
    /// `tls.server_name` is empty.
    #[error("tls.server_name is empty; the nodes' certificates would not be verified")]
    EmptyServerName,
    /// A `Host` or a health check path that can't be sent.
    #[error("health check: {0}")]
    Probe(String),
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        if self.nodes.is_empty() && self.discovery.is_none() {
            return Err(SettingsError::NoNodes);
        }
        self.check_nodes(&self.nodes)?;
        let path = &self.health_check.path;
        if !path.starts_with('/') || path.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(SettingsError::Probe(format!("{path:?} is no path that can be sent")));
        }
        match &self.tls {
            Some(tls) if tls.server_name.is_empty() => Err(SettingsError::EmptyServerName),
            _ => Ok(()),
        }
    }

    /// Whether these can be its nodes.
    pub(super) fn check_nodes(&self, nodes: &[NodeSettings]) -> Result<(), SettingsError> {
        if nodes.len() > NODES_MAX {
            return Err(SettingsError::TooManyNodes(nodes.len()));
        }
        if let Some(n) = nodes.iter().find(|n| !(1..=100).contains(&n.weight)) {
            return Err(SettingsError::Weight { url: n.url.clone(), weight: n.weight });
        }
        match nodes.iter().find(|n| n.tls && self.tls.is_none()) {
            Some(n) => Err(SettingsError::NoTlsMaterial(n.url.clone())),
            None => Ok(()),
        }
    }
}
