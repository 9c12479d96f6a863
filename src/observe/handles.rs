//! What a route, a listener, an upstream and a node hold to count with: resolved once, then only atomic additions.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::families::{ListenerFamilies, NodeFamilies, RouteFamilies};
use super::handshake::HandshakeResult;
use super::labels::{
    CLASSES, CloseReason, ConnectionRefusal, ConnectionState, MethodLabel, OverloadAction, OverloadLimit,
    RateLimitDecision, RedisFallback, SpanResult, UpstreamResult, UpstreamTlsFailure, WafVerdict, class,
};
use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

/// Statuses in one block of [`Codes`].
const BLOCK: usize = 16;
/// Blocks of [`Codes`]: 100 to 611, so all of 100 to 599.
const BLOCKS: usize = 32;

type Block = Box<[OnceLock<IntCounter>; BLOCK]>;

/// Counters of one method by status, made when a status is first seen: a route that answers 200 and 404 takes two blocks.
struct Codes([OnceLock<Block>; BLOCKS]);

impl Codes {
    fn new() -> Box<Self> {
        Box::new(Self([const { OnceLock::new() }; BLOCKS]))
    }

    /// `None`: no status of HTTP's.
    fn slot(&self, status: u16) -> Option<&OnceLock<IntCounter>> {
        if !(100..=599).contains(&status) {
            return None;
        }
        let offset = usize::from(status - 100);
        let block = self.0[offset / BLOCK].get_or_init(|| Box::new([const { OnceLock::new() }; BLOCK]));
        Some(&block[offset % BLOCK])
    }
}

/// Counters of one configured path of a route. [`RouteMetrics::record`] takes no lock once a method and status were seen.
pub struct RouteMetrics {
    families: Arc<RouteFamilies>,
    path: Box<str>,
    duration: Histogram,
    classes: [IntCounter; CLASSES.len()],
    codes: [OnceLock<Box<Codes>>; MethodLabel::ALL.len()],
}

impl RouteMetrics {
    pub(super) fn new(families: &Arc<RouteFamilies>, route: &str, path: &str) -> Self {
        Self {
            duration: families.duration.with_label_values(&[route]),
            classes: CLASSES.map(|class| families.classes.with_label_values(&[route, class])),
            families: families.clone(),
            path: path.into(),
            codes: [const { OnceLock::new() }; MethodLabel::ALL.len()],
        }
    }

    /// Counts a request at its end. A `status` outside 100 to 599 (a client that left before it had one) counts as `other`.
    pub fn record(&self, method: MethodLabel, status: u16, duration: Duration) {
        let codes = self.codes[method.index()].get_or_init(Codes::new);
        match codes.slot(status) {
            Some(slot) => slot.get_or_init(|| self.resolve(method, &status.to_string())).inc(),
            None => self.resolve(method, "other").inc(),
        }
        self.classes[class(status)].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// The configured path: never a request's.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn resolve(&self, method: MethodLabel, code: &str) -> IntCounter {
        self.families.requests.with_label_values(&[method.as_str(), &self.path, code])
    }
}

/// Counts a request as in flight until dropped.
#[must_use = "dropping it ends the request"]
pub struct RequestInFlight(IntGauge);

impl RequestInFlight {
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a connection as in its handshake until dropped.
#[must_use = "dropping it ends the handshake"]
pub struct Handshaking(IntGauge);

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counters of one listener.
pub struct ListenerMetrics {
    handshaking: IntGauge,
    active: IntGauge,
    idle: IntGauge,
    accepted: IntCounter,
    refused: Vec<IntCounter>,
    closed: Vec<IntCounter>,
    /// In the order of [`HandshakeResult::ALL`], which is that of declaration.
    handshakes: Vec<IntCounter>,
    handshake_duration: Histogram,
}

impl ListenerMetrics {
    pub(super) fn new(families: &ListenerFamilies, name: &str) -> Self {
        let refused = ConnectionRefusal::ALL.iter().map(|r| families.refused.with_label_values(&[name, r.as_str()]));
        let closed = CloseReason::ALL.iter().map(|r| families.closed.with_label_values(&[name, r.as_str()]));
        let handshakes = HandshakeResult::ALL.iter();
        let handshakes = handshakes.map(|r| families.handshakes.with_label_values(&[name, r.as_str()]));
        Self {
            handshaking: families.connections.with_label_values(&[name, ConnectionState::Handshake.as_str()]),
            active: families.connections.with_label_values(&[name, ConnectionState::Active.as_str()]),
            idle: families.connections.with_label_values(&[name, ConnectionState::Idle.as_str()]),
            accepted: families.accepted.with_label_values(&[name]),
            refused: refused.collect(),
            closed: closed.collect(),
            handshakes: handshakes.collect(),
            handshake_duration: families.handshake_duration.with_label_values(&[name]),
        }
    }

    /// A connection was let in; its handshake follows.
    pub fn accepted(&self) {
        self.accepted.inc();
    }

    /// A connection was turned away.
    pub fn refused(&self, reason: impl Into<ConnectionRefusal>) {
        self.refused[reason.into().index()].inc();
    }

    /// A TLS handshake ended.
    pub fn handshake(&self, result: HandshakeResult, duration: Duration) {
        self.handshakes[result as usize].inc();
        self.handshake_duration.observe(duration.as_secs_f64());
    }

    /// A TLS handshake begins; it ends when the value returned is dropped.
    pub fn handshaking(&self) -> Handshaking {
        self.handshaking.inc();
        Handshaking(self.handshaking.clone())
    }

    /// A connection is ready for requests; [`Self::closed`] follows once.
    pub fn opened(&self) {
        self.idle.inc();
    }

    /// An open connection has something to do; [`Self::rests`] follows once.
    pub fn works(&self) {
        self.idle.dec();
        self.active.inc();
    }

    /// It has nothing to do any more.
    pub fn rests(&self) {
        self.active.dec();
        self.idle.inc();
    }

    /// A connection that was [`Self::opened`] ended.
    pub fn closed(&self, reason: CloseReason) {
        self.idle.dec();
        self.closed[reason.index()].inc();
    }

    /// Connections that are open now, those in their handshake left out.
    pub fn open_connections(&self) -> i64 {
        self.active.get() + self.idle.get()
    }
}

/// Counters of one rate limit.
pub struct RateLimitMetrics {
    decisions: Vec<IntCounter>,
    uncounted: IntCounter,
}

impl RateLimitMetrics {
    pub(super) fn new(decisions: &IntCounterVec, uncounted: &IntCounterVec, limit: &str) -> Self {
        let all = RateLimitDecision::ALL.iter();
        Self {
            decisions: all.map(|d| decisions.with_label_values(&[limit, d.as_str()])).collect(),
            uncounted: uncounted.with_label_values(&[limit]),
        }
    }

    /// So many calls passed for want of a place to count them.
    pub fn uncounted(&self, calls: u32) {
        self.uncounted.inc_by(calls.into());
    }

    /// The limit was asked.
    pub fn decided(&self, decision: RateLimitDecision) {
        self.decisions[decision.index()].inc();
    }
}

/// Counters of spans.
#[derive(Clone)]
pub struct SpanMetrics {
    results: Vec<IntCounter>,
}

impl SpanMetrics {
    pub(super) fn new(spans: &IntCounterVec) -> Self {
        Self { results: SpanResult::ALL.iter().map(|r| spans.with_label_values(&[r.as_str()])).collect() }
    }

    /// This became of so many.
    pub fn count(&self, result: SpanResult, spans: usize) {
        self.results[result.index()].inc_by(spans as u64);
    }
}

/// Counters of the web application firewall.
pub struct WafMetrics {
    verdicts: Vec<IntCounter>,
    duration: Histogram,
}

impl WafMetrics {
    pub(super) fn new(verdicts: &IntCounterVec, duration: &HistogramVec) -> Self {
        Self {
            verdicts: WafVerdict::ALL.iter().map(|v| verdicts.with_label_values(&[v.as_str()])).collect(),
            duration: duration.with_label_values::<&str>(&[]),
        }
    }

    /// A request was looked at, or not; `took` the wait for it.
    pub fn judged(&self, verdict: WafVerdict, took: Duration) {
        self.verdicts[verdict.index()].inc();
        self.duration.observe(took.as_secs_f64());
    }
}

/// Counters of overload protection.
pub struct OverloadMetrics {
    /// By limit, then by action.
    decisions: Vec<[IntCounter; OverloadAction::ALL.len()]>,
    lag: Gauge,
}

impl OverloadMetrics {
    pub(super) fn new(family: &IntCounterVec, lag: Gauge) -> Self {
        let of = |limit: &OverloadLimit| {
            [OverloadAction::Shed, OverloadAction::WouldShed]
                .map(|action| family.with_label_values(&[limit.as_str(), action.as_str()]))
        };
        Self { decisions: OverloadLimit::ALL.iter().map(of).collect(), lag }
    }

    /// A limit was exceeded.
    pub fn exceeded(&self, limit: OverloadLimit, action: OverloadAction) {
        self.decisions[limit.index()][action.index()].inc();
    }

    /// The lag now.
    pub fn set_lag(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }
}

/// What is shown of an upstream's adaptive limit.
pub struct ConcurrencyMetrics(IntGauge);

impl ConcurrencyMetrics {
    pub(super) fn new(limit: IntGauge) -> Self {
        Self(limit)
    }

    /// The limit now.
    pub fn set_limit(&self, limit: u32) {
        self.0.set(i64::from(limit));
    }
}

/// Counters of Redis.
pub struct RedisMetrics {
    duration: Histogram,
    fallbacks: Vec<IntCounter>,
    up: IntGauge,
}

impl RedisMetrics {
    pub(super) fn new(duration: Histogram, fallbacks: &IntCounterVec, up: IntGauge) -> Self {
        let reasons = RedisFallback::ALL.iter();
        Self { duration, fallbacks: reasons.map(|r| fallbacks.with_label_values(&[r.as_str()])).collect(), up }
    }

    /// Redis answered after so long.
    pub fn answered(&self, after: Duration) {
        self.duration.observe(after.as_secs_f64());
    }

    /// It did not, and the gateway went on without.
    pub fn fell_back(&self, reason: RedisFallback) {
        self.fallbacks[reason.index()].inc();
    }

    /// Whether there is a connection.
    pub fn set_up(&self, up: bool) {
        self.up.set(i64::from(up));
    }
}

/// Counters of an upstream as a whole.
pub struct UpstreamMetrics {
    first_byte: Histogram,
    retries: IntCounter,
    panic: IntGauge,
}

impl UpstreamMetrics {
    pub(super) fn new(first_byte: Histogram, retries: IntCounter, panic: IntGauge) -> Self {
        Self { first_byte, retries, panic }
    }

    /// Whether requests go to all nodes, because too few are usable.
    pub fn set_panic(&self, panic: bool) {
        self.panic.set(i64::from(panic));
    }

    /// The first byte of a node's answer came so long after the node was picked.
    pub fn first_byte(&self, after: Duration) {
        self.first_byte.observe(after.as_secs_f64());
    }

    /// A request goes to another node.
    pub fn retried(&self) {
        self.retries.inc();
    }
}

/// Counters of one node of an upstream.
pub struct NodeMetrics {
    families: Arc<NodeFamilies>,
    key: (String, String),
    up: IntGauge,
    in_flight: IntGauge,
    ejected: IntGauge,
    drained: IntGauge,
    ejections: IntCounter,
    requests: Vec<IntCounter>,
}

impl NodeMetrics {
    /// The handles that live for this node, or new ones.
    pub(super) fn resolve(families: &Arc<NodeFamilies>, upstream: &str, node: &str) -> Arc<Self> {
        let key = (upstream.to_owned(), node.to_owned());
        let mut live = families.live.lock();
        if let Some(metrics) = live.get(&key).and_then(std::sync::Weak::upgrade) {
            return metrics;
        }
        let requests = UpstreamResult::ALL.iter();
        let requests = requests.map(|r| families.requests.with_label_values(&[upstream, node, r.as_str()]));
        let metrics = Arc::new(Self {
            up: families.up.with_label_values(&[upstream, node]),
            in_flight: families.in_flight.with_label_values(&[upstream, node]),
            ejected: families.ejected.with_label_values(&[upstream, node]),
            drained: families.drained.with_label_values(&[upstream, node]),
            ejections: families.ejections.with_label_values(&[upstream, node]),
            requests: requests.collect(),
            families: families.clone(),
            key: key.clone(),
        });
        live.insert(key, Arc::downgrade(&metrics));
        metrics
    }

    /// Whether requests may go to the node.
    pub fn set_up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    /// A request was given to the node; [`Self::request_ended`] follows once.
    pub fn request_started(&self) {
        self.in_flight.inc();
    }

    /// A request has left the node.
    pub fn request_ended(&self) {
        self.in_flight.dec();
    }

    /// Whether an operator has taken it out.
    pub fn set_drained(&self, drained: bool) {
        self.drained.set(i64::from(drained));
    }

    /// The node is left alone because its requests failed.
    pub fn ejected(&self) {
        self.ejected.set(1);
        self.ejections.inc();
    }

    /// It is back.
    pub fn returned(&self) {
        self.ejected.set(0);
    }

    /// What came of a try at the node.
    pub fn record(&self, result: UpstreamResult) {
        self.requests[result.index()].inc();
    }

    /// A TLS handshake with the node failed. Looked up by name each time: these are rare.
    pub fn tls_failed(&self, reason: UpstreamTlsFailure) {
        self.families.tls_failures.with_label_values(&[&self.key.0, reason.as_str()]).inc();
    }
}

impl Drop for NodeMetrics {
    fn drop(&mut self) {
        let mut live = self.families.live.lock();
        // Another may have been made since the last handle went: then the series are its own.
        if live.get(&self.key).is_some_and(|other| other.strong_count() > 0) {
            return;
        }
        live.remove(&self.key);
        let labels = [self.key.0.as_str(), self.key.1.as_str()];
        // A missing series is what is wanted.
        let _ = self.families.up.remove_label_values(&labels);
        let _ = self.families.in_flight.remove_label_values(&labels);
        let _ = self.families.drained.remove_label_values(&labels);
        let _ = self.families.ejected.remove_label_values(&labels);
        let _ = self.families.ejections.remove_label_values(&labels);
        for result in UpstreamResult::ALL {
            let _ = self.families.requests.remove_label_values(&[labels[0], labels[1], result.as_str()]);
        }
    }
}

#[cfg(test)]
#[path = "handles_tests.rs"]
mod tests;
