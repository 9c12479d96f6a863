//! The Hive nodes behind the gateway: which are alive, which is next, and how Pingora connects to it.
//!
//! ```text
//! Upstream::enter ─ breaker: a permit, at once or after a wait
//!   └ Upstream::pick ─ balance (in turn, least requests, by key) over a view of the node set ─ Picked (counts while it lives)
//!       └ Picked::connect ─ a connection that rests, or a new one ─ Exchange
//!           └ Upstream::record ─ outlier: what its requests say of a node
//! look_after ─ one loop per node ─ Node (unknown, up, down)
//!   └ discovery ─ Upstream::follow ─ another node set
//! ```
//!
//! The nodes stand in one swappable view: whoever has picked one holds it until its request is done, so another
//! set of nodes may take its place at any time, and a node that is no longer in it drains. What is learned of a node is kept
//! in its state, which the next set or configuration takes over by address.

mod balance;
mod breaker;
pub mod discovery;
mod drain;
mod exchange;
#[cfg(test)]
mod fakes;
mod follow;
mod health;
mod http1;
mod http2;
mod idle_links;
mod last_words;
mod link;
mod maglev;
mod node;
mod outlier;
mod peer;
mod random;
mod settings;
mod unread;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{info, warn};
use parking_lot::Mutex;

pub use balance::Ask;
pub use breaker::{BreakerStatus, Overflow, Permit, RetryPermit};
pub use discovery::{Discovery, DiscoveryStatus};
pub use drain::Drained;
pub use exchange::{Exchange, Request};
pub use health::look_after;
pub use node::{Health, Node, NodeId, NodeStatus, WRONG_NODE, named_address};
pub use outlier::{Outcome, Standing};
pub use settings::{BreakerLimits, ConnectionLimits, NodeSettings, Settings, SettingsError};
pub use unread::{Unread, left_in_error};

use balance::Balancer;
use breaker::Breaker;
use discovery::Source;
use follow::Following;
use view::{Mode, NodeSet, View};

use crate::config::file;
use crate::names::UpstreamName;
use crate::observe::{Metrics, UpstreamMetrics};
use crate::units::Percent;

/// A group of Hive nodes that serve the same routes: `upstreams[]`.
pub struct Upstream {
    name: UpstreamName,
    view: ArcSwap<View>,
    balancer: Balancer,
    hash_keys: Box<[file::HashKey]>,
    panic_threshold: Percent,
    slow_start: Duration,
    health_check: file::HealthCheck,
    outlier: file::Outlier,
    /// Held while a node is ejected; shared with the upstream of the next configuration, as the nodes' states are.
    ejecting: Arc<Mutex<()>>,
    /// Nodes that operators have taken out.
    drained: Mutex<Box<[Drained]>>,
    breaker: Breaker,
    metrics: Arc<UpstreamMetrics>,
    http2: bool,
    tls: bool,
    /// Where its nodes come from, if not from the configuration.
    source: Option<Arc<Source>>,
    following: Following,
    /// A gateway that serves has taken it into its configuration.
    joined: AtomicBool,
}

impl Upstream {
    /// Builds an upstream. Nodes that `previous` has too (same address) keep their health, their ejections and
    /// their counters, so that a reload neither forgets a dead node nor loses count of the requests that are under way.
    ///
    /// `seed` makes the random choice of `least_requests` the same in each run; `None` takes a fresh one.
    ///
    /// # Errors
    /// See [`SettingsError`]: what would make a node unreachable, or reachable without proof of who it is.
    pub fn new(
        mut settings: Settings,
        metrics: &Arc<Metrics>,
        previous: Option<&Upstream>,
        seed: Option<u64>,
    ) -> Result<Arc<Self>, SettingsError> {
        settings.check()?;
        let name = settings.name.as_str();
        if settings.tls.is_some() {
            metrics.expect_tls(name);
        }
        let before = previous.map(Upstream::nodes).unwrap_or_default();
        let source = settings.discovery.clone().map(|discovery| {
            let same = previous.and_then(|p| p.source.clone()).filter(|source| *source.discovery() == discovery);
            same.unwrap_or_else(|| Source::new(&settings.name, discovery, metrics))
        });
        let initial = match &source {
            // Until the source answers, the nodes that there were do.
            Some(source) => follow::settings_of(&before, source.discovery().tls),
            None => std::mem::take(&mut settings.nodes),
        };
        let nodes = follow::nodes(&initial, &before, &settings, metrics, node::Joins::AtOnce)?;
        let set = NodeSet::new(nodes, settings.balance == file::Balance::ConsistentHash);
        let view = View::new(Arc::new(set), settings.panic_threshold, settings.slow_start);
        let seed = seed.unwrap_or_else(random::fresh_seed);
        let following = Following::new(settings.clone(), metrics.clone());
        let upstream = Arc::new(Self {
            view: ArcSwap::from_pointee(view),
            balancer: Balancer::new(settings.balance, settings.hash_balance_factor, settings.slow_start, seed),
            hash_keys: settings.hash_keys.into(),
            panic_threshold: settings.panic_threshold,
            slow_start: settings.slow_start,
            health_check: settings.health_check,
            outlier: settings.outlier,
            ejecting: previous.map_or_else(Arc::default, |p| p.ejecting.clone()),
            drained: Mutex::default(),
            breaker: Breaker::new(settings.circuit_breaker, name, metrics, previous.map(|p| &p.breaker)),
            metrics: metrics.upstream(name),
            http2: matches!(settings.protocol, file::UpstreamProtocol::Http2),
            tls: settings.tls.is_some(),
            name: settings.name,
            source,
            following,
            joined: AtomicBool::new(false),
        });
        if let Some(source) = &upstream.source {
            source.join(&upstream, Instant::now());
        }
        Ok(upstream)
    }

    /// To be called when the configuration is in use: from now on its limits count.
    pub fn take_effect(&self) {
        self.breaker.take_effect();
        self.metrics.set_panic(self.view.load().mode == Mode::Panic);
    }

    /// The upstream's name.
    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    /// Whether the nodes are spoken to in HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.http2
    }

    /// Whether the nodes are spoken to over TLS: all of them are, or none.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Every node, usable or not, in the order of the configuration.
    pub fn nodes(&self) -> Arc<[Arc<Node>]> {
        self.view.load().nodes.clone()
    }

    /// What requests are told apart by; empty unless they are.
    pub fn hash_keys(&self) -> &[file::HashKey] {
        &self.hash_keys
    }

    /// Takes a request in, if there is a connection for it: `Ok(None)` means that it has to [`Upstream::wait`].
    ///
    /// # Errors
    /// It is refused.
    pub fn enter(&self) -> Result<Option<Permit>, Overflow> {
        self.breaker.enter()
    }

    /// Waits for a connection, first come, first served. Whoever drops this gives up the place.
    ///
    /// # Errors
    /// It is refused.
    pub async fn wait(&self) -> Result<Permit, Overflow> {
        self.breaker.wait().await
    }

    /// Whether a request may be tried once more.
    pub fn retry(&self) -> Option<RetryPermit> {
        self.breaker.retry()
    }

    /// Takes the next node for a request: one that is usable and has not been tried.
    ///
    /// `None`: no such node.
    pub fn pick(&self, ask: &Ask<'_>) -> Option<Picked> {
        let mut view = self.view.load();
        if view.wake.is_some_and(|wake| ask.now >= wake) {
            view.nodes.iter().for_each(|node| node.state.ejection.tick(ask.now, self.slow_start));
            self.refresh();
            view = self.view.load();
        }
        let picked = self.balancer.pick(&view, ask, self.breaker.counts.active());
        picked.map(|(node, probe)| Picked::new(node.clone(), probe))
    }

    /// Whether a request would find a node now. Before the first probe's answer a node counts as usable.
    pub fn has_usable(&self) -> bool {
        self.view.load().groups.iter().any(|group| !group.usable.is_empty())
    }

    /// To be called when it is built for a gateway that serves already: that does not cease to be ready because nodes which
    /// it has just been told of are not probed yet.
    pub fn joins_running(&self) {
        self.joined.store(true, Ordering::Relaxed);
    }

    /// Whether a node that is not drained is known to be alive (a probe said so, or health checks are off): the gateway's
    /// readiness.
    pub fn is_ready(&self) -> bool {
        let joined = self.joined.load(Ordering::Relaxed);
        let counts = |n: &Node| match n.health() {
            Health::Up => true,
            Health::Unknown => joined && !n.is_held_back(),
            Health::Down => false,
        };
        self.view.load().nodes.iter().any(|n| counts(n) && !n.is_drained())
    }

    /// Whether it is not ready only because operators have drained the nodes that are alive.
    pub fn is_drained(&self) -> bool {
        !self.is_ready() && self.view.load().nodes.iter().any(|n| n.health() == Health::Up)
    }

    /// Whether requests go to all nodes of a priority, because fewer than `panic_threshold` of it are usable.
    pub fn is_in_panic(&self) -> bool {
        self.view.load().mode == Mode::Panic
    }

    /// What the admin page shows, one entry per node.
    pub fn status(&self) -> Vec<NodeStatus> {
        self.nodes().iter().map(|n| n.status()).collect()
    }

    /// How it stands with where the nodes come from; `None`: from the configuration.
    pub fn discovery(&self) -> Option<DiscoveryStatus> {
        self.source.as_ref().map(|source| source.status())
    }

    /// Why there is no node at all: none has been discovered yet. `None`: there are nodes.
    pub fn why_empty(&self) -> Option<String> {
        let source = self.source.as_ref().filter(|_| self.view.load().nodes.is_empty())?;
        let kind = &source.discovery().kind;
        Some(source.status().error.map_or_else(|| format!("{kind}: no answer yet"), |why| kind.failure(&why)))
    }

    /// What the admin page shows of the circuit breaker.
    pub fn breaker(&self) -> BreakerStatus {
        self.breaker.status()
    }

    /// Must follow every change of a node's usability. Lays the nodes out again if anything has changed.
    fn refresh(&self) {
        self.drain_again();
        let before = self.view.load_full();
        if !before.is_stale() {
            return;
        }
        // rcu, so that of two changes at once the later view of the nodes is the one that stays.
        self.view.rcu(|view| view.again(self.panic_threshold, self.slow_start));
        self.tell_mode(before.mode);
    }

    /// Says so, if requests go to other nodes than before.
    fn tell_mode(&self, before: Mode) {
        let mode = self.view.load().mode;
        if mode == before {
            return;
        }
        self.metrics.set_panic(mode == Mode::Panic);
        let (name, least) = (&self.name, self.panic_threshold);
        match mode {
            Mode::Panic => {
                warn!(
                    "upstream {name}: panic: fewer than {least} of a priority's nodes are usable; all of it get requests"
                )
            }
            Mode::LastResort => warn!("upstream {name}: no node is left but ejected ones; they get requests"),
            Mode::Normal => info!("upstream {name}: only nodes that are well get requests again"),
        }
    }
}

/// What a key is looked up by: the same in every gateway and every run. FNV-1a of 64 bits; the look-up mixes it.
pub fn hash_key(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A node taken for one request. It counts as in flight until this is dropped.
pub struct Picked {
    node: Arc<Node>,
    /// This request shows whether the node is well again.
    probe: bool,
}

impl Picked {
    fn new(node: Arc<Node>, probe: bool) -> Self {
        node.state.requests.fetch_add(1, Ordering::Relaxed);
        node.state.in_flight.fetch_add(1, Ordering::Relaxed);
        node.metrics().request_started();
        Self { node, probe }
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
        if self.probe {
            self.node.state.ejection.give_probe_back();
        }
    }
}
