//! Active health checks: one loop per node, so that a slow node holds up no other one.
//!
//! The check itself is Pingora's [`HealthCheck`] over Pingora's HTTP connector. Its `HttpHealthCheck` is not used: it
//! brings a connector of its own, which reads the system's certificate bundle twice (31 ms and 1.7 MiB, measured), and one
//! is needed for each `Host`; it has no limit on a probe as a whole; and it shows no one the answer's `Keep-Alive`.
//! Its service, too, checks in passes, in which the slowest node sets the pace for all.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use http::header::{ACCEPT, HOST, HeaderName, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderValue, Uri};
use log::{info, warn};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::lb::Backend;
use pingora::lb::health_check::HealthCheck;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::server::ShutdownWatch;
use pingora::{Error, ErrorType, OkOrErr, OrErr};
use tokio::sync::watch;

use super::node::{Health, Node, NodeId, Thresholds};
use super::random::{fresh_seed, mix};
use super::{Upstream, discovery};
use crate::clock::Clock;
use crate::config::file;

/// The address that a probe calls its own. Hive counts health requests by client address (60 a minute), so without it
/// they would be counted with those of some client.
const PROBE_ADDRESS: HeaderValue = HeaderValue::from_static("127.0.0.1");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const PROBE_AGENT: HeaderValue = HeaderValue::from_static("hive-gateway-health");
const PROBE_ACCEPT: HeaderValue = HeaderValue::from_static("application/json");

/// A health answer is a few bytes; what comes beyond this is not read.
const PROBE_BODY_MAX: usize = 64 << 10;

/// The least time between two probes that Hive's limit allows. A node that was never up is probed so often.
const PROBE_INTERVAL_MIN: Duration = Duration::from_secs(2);

/// How often connections that rest are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The first probes of an upstream's nodes stand so far apart, so that a thousand nodes are not asked in one instant.
const FIRST_PROBE_STAGGER: Duration = Duration::from_millis(1);

/// One for the process: see the module's text for what a connector costs. Nothing is pooled in it, for each probe shall
/// find out whether the node takes connections.
static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| Connector::new(None));

/// Follows where its nodes come from, probes every one of them, unless health checks are off, and closes connections that have rested long enough,
/// until `shutdown` turns true or its sender is gone; returns then, and what probes are under way end by themselves within
/// their time limit.
///
/// It is made for one loop after another: a reload ends the old upstream's and starts the new one's. A node that both
/// have keeps its times, so a probe is neither missed nor doubled however often that happens.
pub async fn look_after(upstream: Arc<Upstream>, clock: Clock, mut shutdown: ShutdownWatch) {
    if let Some(source) = &upstream.source {
        tokio::spawn(discovery::follow(source.clone(), clock.clone(), shutdown.clone()));
    }
    let seed = fresh_seed();
    // The loops that run, each until its sender is gone.
    let mut watched: HashMap<NodeId, watch::Sender<bool>> = HashMap::new();
    loop {
        let nodes = upstream.nodes();
        if upstream.health_check.enabled {
            watched = watch_nodes(&upstream, &nodes, watched, &clock, seed);
        }
        tokio::select! {
            biased;
            // An error means that the sender is gone, and with it whoever wanted the probes.
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = upstream.nodes_changed() => continue,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        for node in upstream.nodes().iter() {
            node.close_idle(clock.now());
        }
        upstream.settle(clock.now());
    }
}

/// A loop for each node: those that have one keep it, those of nodes that are gone end.
fn watch_nodes(
    upstream: &Arc<Upstream>,
    nodes: &[Arc<Node>],
    mut before: HashMap<NodeId, watch::Sender<bool>>,
    clock: &Clock,
    seed: u64,
) -> HashMap<NodeId, watch::Sender<bool>> {
    // Those that are new are counted, so that one of them need not wait behind a thousand that are not.
    let mut turn = 0;
    let each = nodes.iter().map(|node| {
        if let Some(running) = before.remove(&node.id()) {
            return (node.id(), running);
        }
        let (stop, stopped) = watch::channel(false);
        let watch = NodeWatch {
            node: node.clone(),
            check: Probe::new(&upstream.health_check),
            target: target(node),
            upstream: upstream.clone(),
            clock: clock.clone(),
            turn,
            seed: mix(seed, node.index.into()),
        };
        turn += 1;
        tokio::spawn(watch.run(stopped));
        (node.id(), stop)
    });
    each.collect()
}

/// The loop of one node.
struct NodeWatch {
    upstream: Arc<Upstream>,
    node: Arc<Node>,
    check: Probe,
    target: Backend,
    clock: Clock,
    /// How many loops began before it.
    turn: u32,
    seed: u64,
}

impl NodeWatch {
    async fn run(self, mut shutdown: ShutdownWatch) {
        let mut wait = match self.node.last_probe() {
            Some(last) => self.interval(0).saturating_sub(self.clock.now().saturating_duration_since(last)),
            None => FIRST_PROBE_STAGGER * self.turn,
        };
        for n in 1.. {
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(wait) => {}
            }
            self.probe_once().await;
            wait = self.interval(n);
        }
    }

    /// Time to the next probe: up to a tenth more than configured, never less, so that many gateways don't fall into step.
    fn interval(&self, n: u64) -> Duration {
        let configured = self.upstream.health_check.interval.0;
        let base = if self.node.was_ever_up() { configured } else { configured.min(PROBE_INTERVAL_MIN) };
        let permille = u32::try_from(1000 + mix(self.seed, n) % 101).unwrap_or(1000);
        base * permille / 1000
    }

    async fn probe_once(&self) {
        let limit = self.upstream.health_check.timeout.0;
        self.node.probe_began(self.clock.now());
        let result = match tokio::time::timeout(limit, self.check.check(&self.target)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.node.tls_failure(&e).unwrap_or_else(|| reason(&e))),
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        };
        let why = result.clone().err().unwrap_or_default();
        let changed = self.node.probed(result, &self.check.limits, self.clock.now(), self.clock.wall());
        // Always, not only if this probe changed something: the change may have come from the loop of an older
        // configuration, whose last probe ended after the new upstream was built.
        self.upstream.refresh();
        self.upstream.settle(self.clock.now());
        let (upstream, url) = (self.upstream.name(), self.node.url());
        match changed {
            None => {}
            Some(Health::Down) => warn!("upstream {upstream}: node {url} is down: {why}"),
            Some(health) => info!("upstream {upstream}: node {url} is {}", health.as_str()),
        }
    }
}

impl Node {
    /// What HTTP/2 makes `:scheme`, `:authority` and `:path` of.
    fn uri(&self, path: &str) -> pingora::Result<Uri> {
        let scheme = if self.is_tls() { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder().scheme(scheme).authority(self.host.as_bytes()).path_and_query(path).build();
        uri.or_err(ErrorType::InvalidHTTPHeader, "the probe's host and path")
    }
}

/// Asks a node for its health path.
struct Probe {
    path: String,
    limits: Thresholds,
}

/// The node as Pingora's health check knows it.
fn target(node: &Arc<Node>) -> Backend {
    let mut ext = http::Extensions::new();
    ext.insert(node.clone());
    Backend { addr: SocketAddr::Inet(node.address()), weight: node.weight.into(), ext }
}

#[async_trait]
impl HealthCheck for Probe {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let node = target.ext.get::<Arc<Node>>().or_err(ErrorType::InternalError, "a target without its node")?;
        let mut request = RequestHeader::build("GET", self.path.as_bytes(), Some(4))?;
        if node.speaks_http2() {
            // Never both: some servers, nginx among them, take that for two hosts.
            request.set_uri(node.uri(&self.path)?);
        } else {
            request.insert_header(HOST, &node.host)?;
        }
        request.insert_header(USER_AGENT, PROBE_AGENT)?;
        request.insert_header(ACCEPT, PROBE_ACCEPT)?;
        request.insert_header(X_REAL_IP, PROBE_ADDRESS)?;

        let peer = node.peer_for_probe();
        let (mut session, _) = CONNECTOR.get_http_session(&peer).await?;
        node.check_proof(session.digest())?;
        session.write_request_header(Box::new(request)).await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        // What comes before the answer says nothing; the probe's time limit is that of all of it.
        while session.response_header().is_some_and(|header| is_interim(header.status)) {
            session.read_response_header().await?;
        }
        let header = session.response_header().or_err(ErrorType::InvalidHTTPHeader, "no header")?;
        node.learn_keep_alive(&header.headers);
        judge(header)?;
        read_body(&mut session).await
    }

    fn health_threshold(&self, success: bool) -> usize {
        let count = if success { self.limits.healthy_after } else { self.limits.unhealthy_after };
        usize::try_from(count).unwrap_or(usize::MAX)
    }
}

impl Probe {
    fn new(check: &file::HealthCheck) -> Self {
        let limits =
            Thresholds { healthy_after: check.healthy_after.max(1), unhealthy_after: check.unhealthy_after.max(1) };
        Self { path: check.path.clone(), limits }
    }
}

/// 1xx, but for 101, which is an answer to what nobody has asked.
fn is_interim(status: http::StatusCode) -> bool {
    status.is_informational() && status != http::StatusCode::SWITCHING_PROTOCOLS
}

/// 2xx is healthy. So is 429: who counts requests is alive.
fn judge(header: &ResponseHeader) -> pingora::Result<()> {
    if header.status.is_success() || header.status == http::StatusCode::TOO_MANY_REQUESTS {
        return Ok(());
    }
    Error::e_explain(ErrorType::HTTPStatus(header.status.as_u16()), "")
}

/// An answer that breaks off is a bad one; what it says is of no interest.
async fn read_body(session: &mut HttpSession) -> pingora::Result<()> {
    let mut total = 0;
    while let Some(bytes) = session.read_response_body().await? {
        total += bytes.len();
        if total > PROBE_BODY_MAX {
            break;
        }
    }
    Ok(())
}

/// Why a probe failed, short enough for a log line and the admin page.
fn reason(error: &Error) -> String {
    match (error.etype(), error.root_cause()) {
        (ErrorType::HTTPStatus(status), _) => format!("status {status}"),
        (kind, cause) => format!("{}: {cause}", kind.as_str()),
    }
}

#[cfg(test)]
mod tests;
