//! The Hive nodes behind the gateway: which are alive, which is next, and how Pingora connects to it.
//!
//! ```text
//! Upstream::pick ─ balance (round robin, least requests) over the usable nodes ─ Picked (counts while it lives)
//!   └ Picked::peer ─ the HttpPeer that Pingora connects to, with this request's limits
//! look_after ─ one loop per node ─ Node (unknown, up, down)
//! ```
//!
//! Room is left for what comes later: a breaker asks before [`Upstream::pick`], an ejection or a drained node is one
//! more reason in [`Node::is_usable`], and discovery builds a new [`Upstream`] from a `previous` one.

mod balance;
mod exchange;
#[cfg(test)]
mod fakes;
mod health;
mod http1;
mod idle_links;
mod link;
mod node;
mod peer;
mod random;
mod settings;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use exchange::{Exchange, Request};
pub use health::look_after;
pub use node::{Health, Node, NodeStatus, WRONG_NODE};
pub use settings::{NodeSettings, Settings, SettingsError};

use balance::Balancer;

use crate::config::file;
use crate::names::UpstreamName;
use crate::observe::Metrics;

/// A group of Hive nodes that serve the same routes: `upstreams[]`.
pub struct Upstream {
    name: UpstreamName,
    nodes: Box<[Arc<Node>]>,
    balancer: Balancer,
    health_check: file::HealthCheck,
    http2: bool,
}

impl Upstream {
    /// Builds an upstream. Nodes that `previous` has too (same URL and address) keep their health and their counters,
    /// so that a reload neither forgets a dead node nor loses count of the requests that are under way.
    ///
    /// `seed` makes the random choice of `least_requests` the same in each run; `None` takes a fresh one.
    ///
    /// # Errors
    /// See [`SettingsError`]: what would make a node unreachable, or reachable without proof of who it is.
    pub fn new(
        settings: Settings,
        metrics: &Metrics,
        previous: Option<&Upstream>,
        seed: Option<u64>,
    ) -> Result<Arc<Self>, SettingsError> {
        settings.check()?;
        let nodes: Box<[Arc<Node>]> = (0u16..)
            .zip(&settings.nodes)
            .map(|(index, node)| {
                let kept =
                    previous.and_then(|p| p.nodes.iter().find(|n| *n.url == *node.url && n.address == node.address));
                let state = kept.map_or_else(
                    || node::State::new(metrics.upstream_node(settings.name.as_str(), &node.url)),
                    |n| n.state.clone(),
                );
                Node::new(index, node, &settings, state).map(Arc::new)
            })
            .collect::<Result<_, _>>()?;
        let http2 = matches!(settings.protocol, file::UpstreamProtocol::Http2);
        let balancer = Balancer::new(settings.balance, seed.unwrap_or_else(random::fresh_seed));
        balancer.refresh(&nodes);
        Ok(Arc::new(Self { name: settings.name, nodes, balancer, health_check: settings.health_check, http2 }))
    }

    /// The upstream's name.
    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    /// Whether the nodes are spoken to in HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.http2
    }

    /// Every node, usable or not, in the order of the configuration.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Takes the next node for a request: one that is usable and not in `tried` (by [`Node::index`]).
    ///
    /// `None`: no such node. There is no panic mode: a request is not sent to a node that is known to be down.
    pub fn pick(&self, tried: &[u16]) -> Option<Picked> {
        self.balancer.pick(&self.nodes, tried).map(|node| Picked::new(node.clone()))
    }

    /// Whether a request would find a node now. Before the first probe's answer a node counts as usable.
    pub fn has_usable(&self) -> bool {
        self.nodes.iter().any(|n| n.is_usable())
    }

    /// Whether a node is known to be alive (a probe said so, or health checks are off): the gateway's readiness.
    pub fn is_ready(&self) -> bool {
        self.nodes.iter().any(|n| n.health() == Health::Up)
    }

    /// What the admin page shows, one entry per node.
    pub fn status(&self) -> Vec<NodeStatus> {
        self.nodes.iter().map(|n| n.status()).collect()
    }

    /// Must follow every change of a node's usability.
    fn refresh(&self) {
        self.balancer.refresh(&self.nodes);
    }
}

/// A node taken for one request. It counts as in flight until this is dropped.
pub struct Picked {
    node: Arc<Node>,
}

impl Picked {
    fn new(node: Arc<Node>) -> Self {
        node.state.requests.fetch_add(1, Ordering::Relaxed);
        node.state.in_flight.fetch_add(1, Ordering::Relaxed);
        node.metrics().request_started();
        Self { node }
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.node.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.node.metrics().request_ended();
    }
}
