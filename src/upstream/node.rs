//! One node: what is known of it, and what it is doing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};

use super::idle_links::IdleLinks;
use super::link::Link;
use super::outlier::{Ejection, Standing};
use super::peer;
use super::settings::{NodeSettings, Settings, SettingsError};
use crate::config::file::UpstreamProtocol;
use crate::observe::NodeMetrics;
use crate::tls::{Findings, NodeFailure, NodeProof, Revocation};

/// Another node than the one that is configured took the connection.
pub const WRONG_NODE: ErrorType = ErrorType::Custom("WrongNode");

/// What the probes say of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No probe has been answered yet. Requests may go there; readiness doesn't count it.
    Unknown,
    /// Alive.
    Up,
    /// Gets no requests.
    Down,
}

impl Health {
    /// For logs and the admin page.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
        }
    }

    fn from_u8(value: u8) -> Self {
        match value {
            1 => Health::Up,
            2 => Health::Down,
            _ => Health::Unknown,
        }
    }
}

/// What tells a node from every other one, also across reloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(u64);

impl NodeId {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// The address that is meant by a text, if it is one: in an IPv6 form an IPv4 address is the same.
pub fn named_address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// A node of an upstream, as one configuration has it. What is learned of it is in its state, which outlives a reload.
pub struct Node {
    /// Its place in [`super::Upstream::nodes`] as they are with it; another set has a node of its own for it.
    pub(super) index: u16,
    pub(super) url: Arc<str>,
    pub(super) address: SocketAddr,
    /// `Host` of a probe.
    pub(super) host: HeaderValue,
    pub(super) weight: u16,
    pub(super) priority: u8,
    pub(super) peer: HttpPeer,
    idle: Duration,
    connect: Duration,
    http2: bool,
    /// Of the TLS material and the upstream.
    pool_key: u64,
    /// What its certificate is looked up in, if anything.
    revocation: Option<Arc<Revocation>>,
    /// Whether a connection counts only with [`NodeProof::Right`].
    proves_id: bool,
    /// What was found wrong with it in handshakes, and not told yet.
    findings: Arc<Findings>,
    /// Off: the node counts as up, whatever its state says from a time when it was on.
    checked: bool,
    /// Off: it takes part, whatever its state says from a time when it was on.
    ejects: bool,
    /// Under its name.
    metrics: Arc<NodeMetrics>,
    pub(super) state: Arc<State>,
}

impl Node {
    /// # Errors
    /// A `Host` that can't be sent.
    pub(super) fn new(
        index: u16,
        node: &NodeSettings,
        settings: &Settings,
        metrics: Arc<NodeMetrics>,
        state: Arc<State>,
    ) -> Result<Self, SettingsError> {
        let host = HeaderValue::from_str(&node.host)
            .map_err(|_| SettingsError::Probe(format!("{:?} can't be sent as Host", node.host)))?;
        let findings = Arc::default();
        let node = Self {
            index,
            url: node.url.as_str().into(),
            address: node.address,
            host,
            weight: node.weight,
            priority: node.priority,
            peer: peer::template(node, settings, &findings),
            findings,
            idle: settings.timeouts.idle.0,
            connect: settings.timeouts.connect.0,
            http2: matches!(settings.protocol, UpstreamProtocol::Http2),
            pool_key: peer::pool_key(settings),
            revocation: settings.tls.as_ref().and_then(|tls| tls.revocation.clone()),
            proves_id: node.tls,
            checked: settings.health_check.enabled,
            ejects: settings.outlier.enabled,
            metrics,
            state,
        };
        node.state.idle_links.open();
        node.metrics.set_up(node.is_healthy());
        if node.standing() == Standing::In {
            node.metrics.returned();
        }
        Ok(node)
    }

    /// What [`super::Upstream::pick`] takes as `tried`.
    pub fn id(&self) -> NodeId {
        self.state.id
    }

    /// The URL as configured: the node's name in logs and metrics.
    pub fn url(&self) -> &Arc<str> {
        &self.url
    }

    /// Whether an operator means it: by its URL as configured, or by its address.
    pub fn is_named(&self, text: &str) -> bool {
        *self.url == *text || named_address(text) == Some(self.address)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the probes say; up if there are none.
    pub fn health(&self) -> Health {
        if self.checked { self.state.health() } else { Health::Up }
    }

    /// To be called with a connection's digest before anything is sent on it, also on one from the pool: whether this is
    /// the node that it should be. Says who is there instead.
    ///
    /// # Errors
    /// [`WRONG_NODE`]; the connection must not be used.
    pub fn check_proof(&self, digest: Option<&Digest>) -> pingora::Result<()> {
        let why = match NodeProof::of(digest) {
            _ if !self.proves_id => return Ok(()),
            Some(NodeProof::Right) => return Ok(()),
            Some(NodeProof::Wrong(failure)) => failure.why.clone(),
            None => "the node's certificate was not looked at".to_owned(),
        };
        Error::e_explain(WRONG_NODE, why)
    }

    /// To be called with the error that a try at the node ended with, before anything is waited for: if a TLS handshake
    /// failed, counts that and says why.
    pub fn tls_failure(&self, error: &Error) -> Option<String> {
        if !self.proves_id || *error.esource() == ErrorSource::Downstream {
            return None;
        }
        let found = match error.etype() {
            // What becomes of a connection with which something was found wrong.
            &WRONG_NODE
            | ErrorType::TLSHandshakeFailure
            | ErrorType::H2Error
            | ErrorType::HandshakeError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteError
            | ErrorType::ReadError => self.findings.take(),
            _ => None,
        };
        let failure = found.or_else(|| NodeFailure::of(error))?;
        self.metrics.tls_failed(failure.reason);
        Some(format!("TLS: {}", failure.why))
    }

    /// Longest wait for TCP and TLS together.
    pub fn connect_limit(&self) -> Duration {
        self.connect
    }

    /// Whether the probes have nothing against it. Of a node that was discovered they must have said something.
    pub fn is_healthy(&self) -> bool {
        self.health() != Health::Down && !self.is_held_back()
    }

    /// Whether it gets no request before its first probe has been answered.
    pub(super) fn is_held_back(&self) -> bool {
        self.state.joins != Joins::AtOnce && self.health() == Health::Unknown
    }

    /// It is no longer one of the upstream's nodes: its idle connections are closed, and those that are in use will be.
    pub(super) fn retire(&self) {
        self.state.idle_links.close();
        if self.http2 {
            self.close_http2();
        }
    }

    /// Whether it is one of the upstream's nodes no longer.
    pub(super) fn is_retired(&self) -> bool {
        self.state.idle_links.is_closed()
    }

    /// What it was made from.
    pub(super) fn settings(&self) -> NodeSettings {
        NodeSettings {
            url: self.url.to_string(),
            address: self.address,
            host: String::from_utf8_lossy(self.host.as_bytes()).into_owned(),
            tls: self.proves_id,
            weight: self.weight,
            priority: self.priority,
        }
    }

    /// Whether its requests speak against it.
    pub fn standing(&self) -> Standing {
        if self.ejects { self.state.ejection.standing() } else { Standing::In }
    }

    /// Whether an operator has taken it out: it gets no new requests, and is probed all the same.
    pub fn is_drained(&self) -> bool {
        self.state.drained.load(Ordering::Acquire)
    }

    /// Takes it out, or returns it. Whether that was a change.
    pub(super) fn set_drained(&self, drained: bool) -> bool {
        self.metrics.set_drained(drained);
        self.state.drained.swap(drained, Ordering::AcqRel) != drained
    }

    /// Whether a request may go there: probes, requests and operators have nothing against it, or it is time to try it
    /// again.
    pub fn is_usable(&self) -> bool {
        !self.is_drained() && self.is_healthy() && matches!(self.standing(), Standing::In | Standing::HalfOpen)
    }

    /// Requests under way, those of an older configuration included.
    pub fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Ordering::Relaxed)
    }

    /// The node's metrics: what comes of each try is recorded there.
    pub fn metrics(&self) -> &NodeMetrics {
        &self.metrics
    }

    /// To be called when no connection could be made: counted for [`NodeStatus`].
    pub fn connect_failed(&self) {
        self.state.connect_failures.fetch_add(1, Ordering::Relaxed);
        self.state.unreached.store(true, Ordering::Relaxed);
    }

    /// To be called when one was made.
    pub fn connected(&self) {
        // The load keeps the cache line shared.
        if self.is_unreached() {
            self.state.unreached.store(false, Ordering::Relaxed);
        }
    }

    /// Whether the last connection that was tried could not be made.
    pub(super) fn is_unreached(&self) -> bool {
        self.state.unreached.load(Ordering::Relaxed)
    }

    /// To be called with each answer's headers: learns how long the node keeps an idle connection
    /// (`Keep-Alive: timeout=5`).
    ///
    /// The shortest hint that a node ever gave is kept, and [`Node::idle_limit`] follows it. A hint longer than the
    /// configured time changes nothing.
    pub fn learn_keep_alive(&self, headers: &HeaderMap) {
        let Some(limit) = headers.get(KEEP_ALIVE).and_then(|v| keep_alive_limit(v.as_bytes())) else {
            return;
        };
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        // The load keeps the cache line shared: after the first answer nothing is written any more.
        if limit_ms < self.state.keep_alive_ms.load(Ordering::Relaxed) {
            self.state.keep_alive_ms.fetch_min(limit_ms, Ordering::Relaxed);
        }
    }

    /// How long an idle connection to this node may be reused: the configured time, or less if the node says so.
    pub fn idle_limit(&self) -> Duration {
        let hint = Duration::from_millis(self.state.keep_alive_ms.load(Ordering::Relaxed).into());
        self.idle.min(hint)
    }

    /// `https://`
    pub(super) fn is_tls(&self) -> bool {
        self.proves_id
    }

    /// Whether HTTP/2 is spoken to it.
    pub(super) fn speaks_http2(&self) -> bool {
        self.http2
    }

    /// Connections that were made with other TLS material, with other revocation lists, or for another upstream, are not for
    /// this one: whether the node is revoked is asked in handshakes.
    pub(super) fn generation(&self) -> u64 {
        self.pool_key ^ self.lists_key()
    }

    /// Changes with the revocation lists, which may come into use without anything else.
    pub(super) fn lists_key(&self) -> u64 {
        self.revocation.as_ref().map_or(0, |lists| lists.generation().wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    /// A connection that rests and may have the next request.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Link> {
        self.state.idle_links.take(self.generation(), now, self.idle_limit())
    }

    /// Lets a connection rest, if it is of use to another request.
    pub(super) fn keep_idle(&self, link: Link, now: Instant) {
        self.state.idle_links.put(link, now);
    }

    /// Closes one that rests, so that another one may be opened in its place. Whether there was one.
    pub(super) fn close_oldest_idle(&self) -> bool {
        self.state.idle_links.close_oldest()
    }

    /// Closes connections that have rested for too long, or that no request may use any more.
    pub(super) fn close_idle(&self, now: Instant) {
        self.state.idle_links.sweep(self.generation(), now, self.idle_limit());
    }

    /// What the admin page shows.
    pub fn status(&self) -> NodeStatus {
        let track = self.state.track.lock();
        NodeStatus {
            url: self.url.clone(),
            address: self.address,
            weight: self.weight,
            priority: self.priority,
            health: self.health(),
            standing: self.standing(),
            drained: self.is_drained(),
            in_flight: self.in_flight(),
            requests: self.state.requests.load(Ordering::Relaxed),
            connect_failures: self.state.connect_failures.load(Ordering::Relaxed),
            last_change: track.last_change,
            last_error: track.last_error.clone(),
        }
    }

    /// Takes a probe's result. Returns the change of health that it brought, if any.
    pub(super) fn probed(
        &self,
        result: Result<(), String>,
        limits: &Thresholds,
        now: Instant,
        wall: SystemTime,
    ) -> Option<Health> {
        let mut track = self.state.track.lock();
        track.last_probe = Some(now);
        let before = self.state.health();
        let returns = track.ever_up || self.state.joins == Joins::Slowly;
        let after = track.next(before, result.is_ok(), limits);
        track.last_error = match result {
            // The reason why a node is down stays readable while it is down.
            Ok(()) if after == Health::Down => track.last_error.take(),
            Ok(()) => None,
            Err(reason) => Some(reason),
        };
        if after == before {
            return None;
        }
        track.last_change = Some(wall);
        if after == Health::Up && returns {
            self.state.ejection.recovered(now);
        }
        // Stored under the lock, so that two loops (before and after a reload) can't overtake each other.
        self.state.health.store(after as u8, Ordering::Release);
        self.metrics.set_up(after != Health::Down);
        Some(after)
    }

    /// A probe begins: the loop of a newer configuration then does not begin another one beside it.
    pub(super) fn probe_began(&self, now: Instant) {
        self.state.track.lock().last_probe = Some(now);
    }

    /// When the last probe began or ended, whichever was later.
    pub(super) fn last_probe(&self) -> Option<Instant> {
        self.state.track.lock().last_probe
    }

    /// Whether any probe was ever good.
    pub(super) fn was_ever_up(&self) -> bool {
        self.state.track.lock().ever_up
    }
}

/// What an operator may see of a node.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// As configured.
    pub url: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Share of the requests.
    pub weight: u16,
    /// Which group it belongs to.
    pub priority: u8,
    /// What its requests say.
    pub standing: Standing,
    /// What the probes say. [`Health::Up`] is the only one that is confirmed.
    pub health: Health,
    /// Whether an operator has taken it out.
    pub drained: bool,
    /// Requests under way.
    pub in_flight: u32,
    /// Requests sent there since the process started.
    pub requests: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
    /// When the health last changed; `None` if it never did.
    pub last_change: Option<SystemTime>,
    /// Why the last probe failed, or why the node is down.
    pub last_error: Option<String>,
}

/// How many probes in a row change a node's health.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thresholds {
    /// Good ones that bring a node back.
    pub(super) healthy_after: u32,
    /// Bad ones that take it out.
    pub(super) unhealthy_after: u32,
}

/// When a node that is new begins to get requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joins {
    /// At once: the configuration names it, or nobody probes.
    AtOnce,
    /// After its first good probe.
    Probed,
    /// The same, its share rising: others have been there before it.
    Slowly,
}

/// What is learned of a node while the process runs; shared by the [`Node`]s of successive configurations.
pub(super) struct State {
    id: NodeId,
    joins: Joins,
    pub(super) ejection: Ejection,
    drained: AtomicBool,
    health: AtomicU8,
    pub(super) in_flight: AtomicU32,
    pub(super) requests: AtomicU64,
    connect_failures: AtomicU64,
    unreached: AtomicBool,
    /// The shortest [`keep_alive_limit`] seen; `u32::MAX` before the first.
    keep_alive_ms: AtomicU32,
    track: Mutex<Track>,
    idle_links: IdleLinks,
}

/// The probes' history.
#[derive(Default)]
struct Track {
    /// Probes in a row that speak against the present health.
    against: u32,
    /// Whether any probe was ever good.
    ever_up: bool,
    last_probe: Option<Instant>,
    last_change: Option<SystemTime>,
    last_error: Option<String>,
}

impl Track {
    /// The health that follows from a probe. A node that was never up is believed at its first word, good or bad:
    /// nothing is known that a single probe would have to outweigh.
    fn next(&mut self, health: Health, good: bool, limits: &Thresholds) -> Health {
        let (turn, needed) = match (health, good) {
            (Health::Up, true) | (Health::Down, false) => (health, 0),
            (Health::Unknown, false) => (Health::Down, 1),
            (Health::Unknown | Health::Down, true) if !self.ever_up => (Health::Up, 1),
            (Health::Unknown | Health::Down, true) => (Health::Up, limits.healthy_after),
            (Health::Up, false) => (Health::Down, limits.unhealthy_after),
        };
        self.ever_up |= good;
        self.against = if turn == health { 0 } else { self.against + 1 };
        if self.against < needed {
            return health;
        }
        self.against = 0;
        turn
    }
}

impl State {
    /// A new node's state.
    pub(super) fn new(joins: Joins) -> Arc<Self> {
        Arc::new(Self {
            id: NodeId::next(),
            joins,
            ejection: Ejection::default(),
            drained: AtomicBool::new(false),
            health: AtomicU8::new(Health::Unknown as u8),
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            unreached: AtomicBool::new(false),
            keep_alive_ms: AtomicU32::new(u32::MAX),
            track: Mutex::new(Track::default()),
            idle_links: IdleLinks::new(),
        })
    }

    fn health(&self) -> Health {
        Health::from_u8(self.health.load(Ordering::Acquire))
    }
}

const KEEP_ALIVE: &str = "keep-alive";

/// How long a connection may lie idle after `Keep-Alive: timeout=N`: a second less than N, for the time that a request
/// is on its way to the node, and at least half of N.
fn keep_alive_limit(value: &[u8]) -> Option<Duration> {
    let value = std::str::from_utf8(value).ok()?;
    let seconds = value.split(',').find_map(|part| {
        let (name, number) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| number.trim().parse::<u32>().ok())?
    })?;
    let named = Duration::from_secs(seconds.into());
    Some(named.saturating_sub(Duration::from_secs(1)).max(named / 2))
}
