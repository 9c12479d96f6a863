//! Where an upstream's nodes come from, if not from the configuration: DNS or a file.
//!
//! ```text
//! ask (dns: A, AAAA │ srv: SRV, A, AAAA │ file: file_sd) ─ Source::offer ─ Upstream::follow ─ another view of the nodes
//!   └ no answer, or none of use: Source::fail ─ the nodes stay ─ asked again, ever less often
//! ```
//!
//! A [`Source`] belongs to all upstreams of one name and one `discovery` block, whichever configuration they are of: that
//! of the snapshot in use and those that running requests still hold. So an answer reaches all of them, and a reload
//! begins with what is known. Only the upstream in use asks ([`super::look_after`]).
//!
//! A node that is no longer named drains: it gets no request, those that it has end by themselves, and its idle
//! connections are closed at once. With health checks a new node gets requests after
//! its first good probe; if an answer names none of the nodes that are well, those get requests until the first new one is
//! well, for 30 s at most.
//!
//! # Why there is no EDS client
//! Envoy's Endpoint Discovery Service would be one more source here: each `ClusterLoadAssignment` becomes an offer
//! (`lb_endpoints` with `load_balancing_weight`, locality `priority`), and `health_status` what `held_back` is now. What it
//! takes beside that is the transport: the gRPC stream of ADS or EDS with versions, nonces and ACK or NACK, a node
//! identity, mutual TLS to the management server (the SPIFFE client here speaks gRPC without TLS only), reconnection, and
//! the xDS protobufs: about 40 files with their imports (`envoy.config.*`, `udpa`, `xds.core`, `validate`), built with
//! `prost`. That is some 600 lines and a third more of generated code than the whole gateway has, for operators who run a
//! control plane already; those can have it write a file, as Prometheus' users do. So it is left out.

mod dns;
mod file_sd;
mod srv;
mod yaml_depth;

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;

use super::Upstream;
use super::settings::{NODES_MAX, NodeSettings};
use crate::clock::Clock;
use crate::config::file::LookupFamily;
use crate::names::UpstreamName;
use crate::observe::{DiscoveryMetrics, Metrics};
use crate::request::is_private;

pub use file_sd::read as read_file;

/// After a failure one waits `min_ttl` or the file's interval, twice that after the next, and so on, up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// More nodes than these are not named in a log line.
const NAMED_MAX: usize = 5;

/// What `upstreams[].discovery` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Who is asked for what.
    pub kind: Kind,
    /// Whether the nodes are `https://`.
    pub tls: bool,
    /// Whether the nodes are our own Hive's.
    pub trusted: bool,
}

impl Discovery {
    /// Whether a node there is called in plain text over networks where others may listen.
    fn is_exposed(&self, ip: IpAddr) -> bool {
        !self.tls && !if self.trusted { is_private(ip) } else { ip.to_canonical().is_loopback() }
    }
}

/// Who is asked for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Addresses of a name.
    Dns {
        /// The name.
        name: String,
        /// The nodes' port.
        port: u16,
        /// How it is asked.
        dns: Dns,
    },
    /// SRV records of a name.
    Srv {
        /// The name.
        name: String,
        /// How it is asked.
        dns: Dns,
    },
    /// A file.
    File {
        /// Its absolute path.
        path: PathBuf,
        /// How often it is looked at.
        interval: Duration,
    },
}

/// How DNS is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Who; empty: as the system does.
    pub servers: Vec<SocketAddr>,
    /// For which addresses.
    pub family: LookupFamily,
    /// At most this often.
    pub min_ttl: Duration,
    /// At least this often.
    pub max_ttl: Duration,
    /// For how long one waits for one server's answer.
    pub timeout: Duration,
}

impl Kind {
    /// `dns`, `srv` or `file`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Dns { .. } => "dns",
            Kind::Srv { .. } => "srv",
            Kind::File { .. } => "file",
        }
    }

    /// What is asked for.
    pub fn subject(&self) -> String {
        match self {
            Kind::Dns { name, port, .. } => format!("{name}:{port}"),
            Kind::Srv { name, .. } => name.clone(),
            Kind::File { path, .. } => path.display().to_string(),
        }
    }

    /// What has gone wrong with it, in a line of its own. A file's errors name the file themselves.
    pub fn failure(&self, why: &str) -> String {
        match self {
            Kind::File { .. } => why.to_owned(),
            Kind::Dns { .. } | Kind::Srv { .. } => format!("{self}: {why}"),
        }
    }

    fn retry_first(&self) -> Duration {
        match self {
            Kind::Dns { dns, .. } | Kind::Srv { dns, .. } => dns.min_ttl,
            Kind::File { interval, .. } => *interval,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.as_str(), self.subject())
    }
}

/// A node's name in logs and metrics: what its URL would be in `endpoints`.
fn url(address: SocketAddr, tls: bool) -> String {
    format!("{}://{address}", if tls { "https" } else { "http" })
}

/// `Host` of a probe.
fn host(name: &str, port: u16, tls: bool) -> String {
    let name = name.trim_end_matches('.');
    if port == if tls { 443 } else { 80 } { name.to_owned() } else { format!("{name}:{port}") }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// At least one; each address once.
    pub nodes: Vec<NodeSettings>,
    /// For how long it holds.
    pub holds: Duration,
}

/// Asks once: for `hive-gateway check --discover`, and for the loop of an upstream.
///
/// # Errors
/// Why there is no answer, or none of use.
pub async fn ask(discovery: &Discovery) -> Result<Found, String> {
    let tls = discovery.tls;
    let found = match &discovery.kind {
        Kind::Dns { name, port, dns } => dns::addresses(name, *port, tls, dns).await,
        Kind::Srv { name, dns } => dns::services(name, tls, dns).await,
        Kind::File { path, interval } => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || file_sd::read(&path, tls)).await;
            let nodes = read.map_err(|e| e.to_string()).and_then(|read| read)?;
            Ok(Found { nodes, holds: *interval })
        }
    }?;
    if found.nodes.len() > NODES_MAX {
        return Err(format!("{} nodes; the most is {NODES_MAX}", found.nodes.len()));
    }
    Ok(found)
}

/// How it stands with a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryStatus {
    /// `dns`, `srv` or `file`.
    pub kind: &'static str,
    /// What is asked for.
    pub subject: String,
    /// When the last answer of use came; `None`: none has come yet.
    pub last_success: Option<SystemTime>,
    /// What has gone wrong since.
    pub error: Option<String>,
}

/// What an upstream's nodes are taken from, and what it said last.
pub struct Source {
    upstream: UpstreamName,
    discovery: Discovery,
    metrics: DiscoveryMetrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last answer of use.
    nodes: Option<Vec<NodeSettings>>,
    /// Whoever gets the next one.
    users: Vec<Weak<Upstream>>,
    last_success: Option<SystemTime>,
    error: Option<String>,
    failures: u32,
    /// When to ask next, also if it is the loop of the next configuration that does.
    due: Option<Instant>,
    /// Of the file whose content was judged last.
    seen: Option<file_sd::Content>,
}

impl Source {
    /// Nothing is known yet.
    pub(super) fn new(upstream: &UpstreamName, discovery: Discovery, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.discovery(upstream.as_str());
        Arc::new(Self { upstream: upstream.clone(), discovery, metrics, state: Mutex::default() })
    }

    /// What it is asked for.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// How it stands.
    pub fn status(&self) -> DiscoveryStatus {
        let state = self.state.lock();
        DiscoveryStatus {
            kind: self.discovery.kind.as_str(),
            subject: self.discovery.kind.subject(),
            last_success: state.last_success,
            error: state.error.clone(),
        }
    }

    /// The upstream gets the last answer, if there is one, and all further ones.
    pub(super) fn join(&self, upstream: &Arc<Upstream>, now: Instant) {
        let mut state = self.state.lock();
        state.users.retain(|user| user.strong_count() > 0);
        state.users.push(Arc::downgrade(upstream));
        if let Some(nodes) = &state.nodes {
            give(&state, upstream, nodes, now);
        }
    }

    /// The upstream gets the last answer again: nodes that it still keeps beside those may go by now.
    pub(super) fn again(&self, upstream: &Upstream, now: Instant) {
        let state = self.state.lock();
        if let Some(nodes) = &state.nodes {
            give(&state, upstream, nodes, now);
        }
    }

    /// An answer of use.
    fn offer(&self, nodes: Vec<NodeSettings>, clock: &Clock) {
        let mut state = self.state.lock();
        if state.error.take().is_some() || state.nodes.is_none() {
            info!("upstream {}: {} answers", self.upstream, self.discovery.kind);
        }
        state.failures = 0;
        state.last_success = Some(clock.wall());
        self.metrics.succeeded(nodes.len(), clock.unix_seconds());
        if state.nodes.as_ref() == Some(&nodes) {
            return;
        }
        self.tell(state.nodes.as_deref().unwrap_or_default(), &nodes);
        for user in state.users.iter().filter_map(Weak::upgrade) {
            give(&state, &user, &nodes, clock.now());
        }
        state.nodes = Some(nodes);
    }

    /// What has changed, in one line.
    fn tell(&self, before: &[NodeSettings], after: &[NodeSettings]) {
        let only_in = |these: &[NodeSettings], others: &[NodeSettings]| {
            let known: HashSet<_> = others.iter().map(|n| n.address).collect();
            let only = these.iter().map(|n| n.address).filter(|address| !known.contains(address));
            let named: Vec<_> = only.clone().take(NAMED_MAX).map(|address| address.to_string()).collect();
            match only.count() {
                0 => "none".to_owned(),
                count if count > NAMED_MAX => format!("{} and {} more", named.join(", "), count - NAMED_MAX),
                _ => named.join(", "),
            }
        };
        let (new, gone) = (only_in(after, before), only_in(before, after));
        let exposed = after.iter().find(|n| self.discovery.is_exposed(n.address.ip()));
        if let Some(node) = exposed {
            let what = "all that is said to it can be read on the way";
            warn!("upstream {}: {} is called in plain text: {what}; give the upstream tls", self.upstream, node.url);
        }
        info!("upstream {}: {} nodes; new: {new}; gone: {gone}", self.upstream, after.len());
    }

    /// No answer of use: what there is stays. Says when to ask again.
    fn fail(&self, why: String) -> Duration {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        self.metrics.failed();
        if state.error.as_ref() != Some(&why) {
            let so = if state.nodes.is_some() { "the last nodes stay" } else { "there are no nodes yet" };
            warn!("upstream {}: {}; {so}", self.upstream, self.discovery.kind.failure(&why));
        }
        state.error = Some(why);
        let first = self.discovery.kind.retry_first();
        first.saturating_mul(1 << (state.failures - 1).min(16)).min(RETRY_MAX.max(first))
    }

    /// Asks again and again. To be dropped when nobody wants to know any more.
    async fn run(&self, clock: &Clock) {
        loop {
            let due = self.state.lock().due;
            if let Some(due) = due {
                tokio::time::sleep(due.saturating_duration_since(clock.now())).await;
            }
            let wait = match &self.discovery.kind {
                Kind::File { path, interval } => {
                    self.look(path, clock).await;
                    *interval
                }
                Kind::Dns { .. } | Kind::Srv { .. } => match ask(&self.discovery).await {
                    Ok(Found { nodes, holds }) => {
                        self.offer(nodes, clock);
                        holds
                    }
                    Err(why) => self.fail(why),
                },
            };
            self.state.lock().due = Some(clock.now() + wait);
        }
    }

    /// Looks whether the file's content is another one, and takes it if so.
    async fn look(&self, path: &Path, clock: &Clock) {
        let seen = self.state.lock().seen.clone();
        let content = file_sd::at_rest(path.to_owned(), seen.clone()).await;
        if seen.as_ref() == Some(&content) {
            return;
        }
        let (content, found) = file_sd::judged(path.to_owned(), content, self.discovery.tls).await;
        match found {
            Ok(nodes) if nodes.len() > NODES_MAX => {
                self.fail(format!("{} nodes; the most is {NODES_MAX}", nodes.len()));
            }
            Ok(nodes) => self.offer(nodes, clock),
            Err(why) => {
                self.fail(why);
            }
        }
        self.state.lock().seen = Some(content);
    }
}

/// A node is the same for all of them, whoever was the first to have it.
fn give(state: &State, upstream: &Upstream, nodes: &[NodeSettings], now: Instant) {
    let users = state.users.iter().filter_map(Weak::upgrade);
    let known: Vec<_> = users.flat_map(|user| user.nodes().to_vec()).collect();
    if let Err(why) = upstream.follow(nodes, &known, now) {
        // What can be wrong has been looked for, so this is a defect of the gateway's.
        warn!("upstream {}: its nodes stay as they are: {why}", upstream.name());
    }
}

/// Follows a source until `shutdown` turns true or its sender is gone.
pub(super) async fn follow(source: Arc<Source>, clock: Clock, mut shutdown: ShutdownWatch) {
    tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => {}
        () = source.run(&clock) => {}
    }
}

#[cfg(test)]
mod tests;
