//! Every metric: its name, help and labels, and the families behind the handles of [`super::handles`].

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::breaker::{AtScrape, BreakerFamilies};
use super::buckets::{DURATION_BUCKETS, HANDSHAKE_BUCKETS, REDIS_BUCKETS, WAF_BUCKETS};
use super::crl::CrlFamilies;
use super::discovery::{DiscoveryFamilies, DiscoveryMetrics};
use super::expiry::{Expiring, Expiry, ExpiryGauges};
use super::exposition::{self, Exposition};
use super::families::{ListenerFamilies, NodeFamilies, RouteFamilies};
use super::handles::{
    ConcurrencyMetrics, ListenerMetrics, NodeMetrics, OverloadMetrics, RateLimitMetrics, RedisMetrics, RequestInFlight,
    RouteMetrics, SpanMetrics, UpstreamMetrics, WafMetrics,
};
use super::labels::UpstreamTlsFailure;
use super::maintenance::MaintenanceGauges;
use super::peers::{PeerFamilies, PeerHandles};
use super::process::{self, ProcessMetrics};
use super::refusals::RefusalTable;
use super::register::{counter, counters, gauge, gauges, histograms, seconds};
use crate::names::PeerName;

/// The `path` and `route` of a request that no route took.
pub const UNMATCHED: &str = "unmatched";

/// What a metric measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram(&'static [f64]),
}

/// A metric as an operator knows it.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// The whole name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What it measures.
    pub kind: Kind,
}

macro_rules! definitions {
    ($($const:ident: $kind:expr, $name:literal, [$($label:literal),*], $help:literal;)+) => {
        $(const $const: Definition = Definition {
            name: concat!("hive_gateway_", $name),
            help: $help,
            labels: &[$($label),*],
            kind: $kind,
        };)+

        /// Every metric, in the order of the documentation.
        pub const DEFINITIONS: &[Definition] = &[$($const),+];
    };
}

definitions! {
    HTTP_REQUESTS: Kind::Counter, "http_requests_total", ["method", "path", "code"],
        "Requests by method, the route's configured path, and status.";
    HTTP_REQUEST_DURATION: Kind::Histogram(DURATION_BUCKETS), "http_request_duration_seconds", ["route"],
        "From a request's header to the end of its answer.";
    PEER_REQUESTS: Kind::Counter, "peer_requests_total", ["peer", "code"],
        "Requests by peer (at most metrics.peers_max of them, then other; none without one) and class of status.";
    PEER_REQUEST_DURATION: Kind::Histogram(DURATION_BUCKETS), "peer_request_duration_seconds", ["peer"],
        "From a request's header to the end of its answer, by peer.";
    REQUESTS_IN_FLIGHT: Kind::Gauge, "requests_in_flight", [],
        "Requests being served.";
    MAINTENANCE: Kind::Gauge, "maintenance", ["route"],
        "1 while the route answers 503 because an operator said so, else 0; absent: the route is unknown.";
    REFUSALS: Kind::Counter, "refusals_total", ["reason"],
        "Requests that the gateway answered itself, by reason.";
    RATE_LIMIT_DECISIONS: Kind::Counter, "rate_limit_decisions_total", ["limit", "decision"],
        "Rate limits asked, by limit (where it stands and what it counts by) and decision.";
    REQUEST_RULES: Kind::Counter, "request_rules_total", ["rule", "action"],
        "Requests that met a request rule, by rule (where it stands and its name) and what it does with them.";
    WAF_REQUESTS: Kind::Counter, "waf_requests_total", ["verdict"],
        "Requests given to the web application firewall, by what it made of them.";
    WAF: Kind::Histogram(WAF_BUCKETS), "waf_seconds", [],
        "Time until the web application firewall had looked at a request, waiting for its turn included.";
    OVERLOAD: Kind::Counter, "overload_total", ["limit", "action"],
        "Connections and requests beyond a limit of overload protection, by limit and by what became of them.";
    EVENT_LOOP_LAG: Kind::Gauge, "event_loop_lag_seconds", [],
        "How late the threads that serve requests get to what is due; overload.event_loop_lag compares it.";
    REDIS_UP: Kind::Gauge, "redis_up", [],
        "1 while shared rate limits are counted in Redis, 0 while each gateway counts by itself or nothing is shared.";
    REDIS: Kind::Histogram(REDIS_BUCKETS), "redis_seconds", [],
        "Time until Redis answered a rate limit.";
    REDIS_FALLBACKS: Kind::Counter, "redis_fallbacks_total", ["reason"],
        "Shared rate limits that the gateway decided by itself, by reason.";
    CONNECTIONS: Kind::Gauge, "connections", ["listener", "state"],
        "Open client connections: in their handshake, active (a request is being served) or idle.";
    CONNECTIONS_ACCEPTED: Kind::Counter, "connections_accepted_total", ["listener"],
        "Client connections that were let in.";
    CONNECTIONS_REFUSED: Kind::Counter, "connections_refused_total", ["listener", "reason"],
        "Client connections turned away before a byte was read, by reason.";
    CONNECTIONS_CLOSED: Kind::Counter, "connections_closed_total", ["listener", "reason"],
        "Client connections that ended after their handshake, by reason.";
    TLS_HANDSHAKES: Kind::Counter, "tls_handshakes_total", ["listener", "result"],
        "TLS handshakes with clients, by result.";
    TLS_HANDSHAKE_DURATION: Kind::Histogram(HANDSHAKE_BUCKETS), "tls_handshake_duration_seconds", ["listener"],
        "Time of TLS handshakes with clients, failed ones too.";
    CERTIFICATE_NOT_AFTER: Kind::Gauge, "certificate_not_after_seconds", ["listener", "subject", "serial"],
        "When the gateway's own certificate expires, seconds since 1970.";
    CRL_NEXT_UPDATE: Kind::Gauge, "crl_next_update_seconds", ["listener", "issuer"],
        "When a newer revocation list of the issuer is due, seconds since 1970.";
    CRL_THIS_UPDATE: Kind::Gauge, "crl_this_update_seconds", ["listener", "issuer"],
        "When the revocation list of the issuer was made, seconds since 1970.";
    CRL_ENTRIES: Kind::Gauge, "crl_entries", ["listener", "issuer"],
        "Revoked certificates of the issuer.";
    CRL_FETCHES: Kind::Counter, "crl_fetches_total", ["listener", "result"],
        "Revocation lists asked for over HTTP, by result.";
    OCSP_ANSWERS: Kind::Counter, "ocsp_answers_total", ["listener", "result"],
        "Questions to OCSP responders about clients' certificates, by what came of them.";
    OCSP_STAPLE_NEXT_UPDATE: Kind::Gauge, "ocsp_staple_next_update_seconds", ["listener", "subject", "serial"],
        "When a newer OCSP answer about the gateway's own certificate is due, seconds since 1970; absent: none is stapled.";
    OCSP_STAPLE_FETCHES: Kind::Counter, "ocsp_staple_fetches_total", ["listener", "result"],
        "Questions to OCSP responders about the gateway's own certificates, by what came of them.";
    CA_NOT_AFTER: Kind::Gauge, "ca_not_after_seconds", ["listener", "subject", "serial"],
        "When a CA that clients are trusted by expires, seconds since 1970.";
    UPSTREAM_CERTIFICATE_NOT_AFTER: Kind::Gauge, "upstream_certificate_not_after_seconds", ["upstream", "subject", "serial"],
        "When the client certificate that nodes are shown expires, seconds since 1970.";
    UPSTREAM_CA_NOT_AFTER: Kind::Gauge, "upstream_ca_not_after_seconds", ["upstream", "subject", "serial"],
        "When a CA that nodes are trusted by expires, seconds since 1970.";
    SPIFFE_AGENT_UP: Kind::Gauge, "spiffe_agent_up", [],
        "1 while the SPIFFE agent's updates are listened to, else 0, also where none is asked.";
    UPSTREAM_FIRST_BYTE: Kind::Histogram(DURATION_BUCKETS), "upstream_first_byte_seconds", ["upstream"],
        "From a node's pick to the first byte of its answer.";
    UPSTREAM_RETRIES: Kind::Counter, "upstream_retries_total", ["upstream"],
        "Tries at another node after the first one failed.";
    BREAKER_OPEN: Kind::Gauge, "upstream_circuit_breaker_open", ["upstream", "limit"],
        "1 while a limit of the circuit breaker is reached, else 0.";
    BREAKER_REMAINING: Kind::Gauge, "upstream_circuit_breaker_remaining", ["upstream", "limit"],
        "How many more fit below a limit of the circuit breaker.";
    BREAKER_OVERFLOW: Kind::Counter, "upstream_circuit_breaker_overflow_total", ["upstream", "limit"],
        "Requests that met a limit of the circuit breaker: connections had to wait, retries were not tried again, others were refused.";
    UPSTREAM_PENDING: Kind::Gauge, "upstream_pending", ["upstream"],
        "Requests that wait for a connection.";
    UPSTREAM_PANIC: Kind::Gauge, "upstream_panic", ["upstream"],
        "1 while fewer nodes than panic_threshold are usable and requests go to all of them, else 0.";
    DISCOVERY: Kind::Counter, "upstream_discovery_total", ["upstream", "result"],
        "Answers about an upstream's nodes (of a file, its contents), by result; a failed one keeps the last nodes.";
    DISCOVERED_NODES: Kind::Gauge, "upstream_discovered_nodes", ["upstream"],
        "Nodes that the last good answer names.";
    DISCOVERY_LAST_SUCCESS: Kind::Gauge, "upstream_discovery_last_success_seconds", ["upstream"],
        "When the last good answer about an upstream's nodes came, seconds since 1970; 0: none has come.";
    UPSTREAM_NODE_EJECTED: Kind::Gauge, "upstream_node_ejected", ["upstream", "node"],
        "1 while the node is left alone because its requests failed, else 0.";
    UPSTREAM_NODE_DRAINED: Kind::Gauge, "upstream_node_drained", ["upstream", "node"],
        "1 while an operator has taken the node out, else 0.";
    UPSTREAM_EJECTIONS: Kind::Counter, "upstream_ejections_total", ["upstream", "node"],
        "How often a node was ejected because its requests failed.";
    UPSTREAM_CONCURRENCY_LIMIT: Kind::Gauge, "upstream_concurrency_limit", ["upstream"],
        "Requests that may wait for a first byte at once, as adaptive_concurrency has found.";
    UPSTREAM_NODE_UP: Kind::Gauge, "upstream_node_up", ["upstream", "node"],
        "1 while the node is healthy, else 0.";
    UPSTREAM_REQUESTS: Kind::Counter, "upstream_requests_total", ["upstream", "node", "result"],
        "Tries at a node, by result.";
    UPSTREAM_TLS_FAILURES: Kind::Counter, "upstream_tls_failures_total", ["upstream", "reason"],
        "TLS handshakes with nodes that failed, probes' too, by reason.";
    UPSTREAM_IN_FLIGHT: Kind::Gauge, "upstream_in_flight", ["upstream", "node"],
        "Requests at the node.";
    BODY_MEMORY: Kind::Gauge, "body_memory_bytes", [],
        "Memory taken by request bodies that wait; server.body_memory is the limit.";
    ACCESS_LOG_LINES: Kind::Counter, "access_log_lines_total", [],
        "Access log lines written.";
    ACCESS_LOG_DROPPED: Kind::Counter, "access_log_dropped_total", [],
        "Access log lines lost: the queue was full, or writing failed.";
    ACCESS_LOG_WRITE_ERRORS: Kind::Counter, "access_log_write_errors_total", [],
        "Failed writes of the access log, such as to a full disk.";
    TRACE_SPANS: Kind::Counter, "trace_spans_total", ["result"],
        "Spans of traced requests, by what became of them.";
    CONFIG_GENERATION: Kind::Gauge, "config_generation", [],
        "Grows with every configuration taken into use.";
    CONFIG_RELOADS: Kind::Counter, "config_reload_total", ["result"],
        "Reloads of the configuration file, by result; a failed one keeps what was in use.";
    TLS_RELOADS: Kind::Counter, "tls_reload_total", ["result"],
        "Changes of certificates, keys, CA bundles and secrets, by result; a failed one keeps what was in use.";
    BUILD_INFO: Kind::Gauge, "build_info", ["version"],
        "Always 1; its label says what runs.";
}

/// Every metric of the documentation: the gateway's own, then those that every process has.
pub fn all_definitions() -> impl Iterator<Item = &'static Definition> {
    DEFINITIONS.iter().chain(process::DEFINITIONS)
}

fn listener_families(registry: &Registry) -> ListenerFamilies {
    ListenerFamilies {
        connections: gauges(registry, &CONNECTIONS),
        accepted: counters(registry, &CONNECTIONS_ACCEPTED),
        refused: counters(registry, &CONNECTIONS_REFUSED),
        closed: counters(registry, &CONNECTIONS_CLOSED),
        handshakes: counters(registry, &TLS_HANDSHAKES),
        handshake_duration: histograms(registry, &TLS_HANDSHAKE_DURATION),
    }
}

fn node_families(registry: &Registry) -> NodeFamilies {
    NodeFamilies {
        up: gauges(registry, &UPSTREAM_NODE_UP),
        requests: counters(registry, &UPSTREAM_REQUESTS),
        in_flight: gauges(registry, &UPSTREAM_IN_FLIGHT),
        tls_failures: counters(registry, &UPSTREAM_TLS_FAILURES),
        ejected: gauges(registry, &UPSTREAM_NODE_EJECTED),
        drained: gauges(registry, &UPSTREAM_NODE_DRAINED),
        ejections: counters(registry, &UPSTREAM_EJECTIONS),
        live: Mutex::default(),
    }
}

/// Both results from the start, so that the first failure is an increase and not a new series.
fn by_result(family: IntCounterVec) -> IntCounterVec {
    for result in [RESULT_OK, RESULT_FAILED] {
        family.with_label_values(&[result]);
    }
    family
}

pub(super) const RESULT_OK: &str = "ok";
pub(super) const RESULT_FAILED: &str = "failed";

/// All metrics of the process.
///
/// What a request touches is a handle resolved beforehand: [`Metrics::route`], [`Metrics::listener`], [`Metrics::upstream`],
/// [`Metrics::upstream_node`]. The same names give the same counters again, so counts go on across a reload.
pub struct Metrics {
    registry: Registry,
    pub(super) routes: Arc<RouteFamilies>,
    unmatched: RouteMetrics,
    pub(super) peers: Arc<PeerFamilies>,
    process: ProcessMetrics,
    pub(super) requests_in_flight: IntGauge,
    pub(super) refusals: IntCounterVec,
    refusals_by_code: RefusalTable,
    rate_limits: IntCounterVec,
    request_rules: IntCounterVec,
    waf: WafMetrics,
    overload: OverloadMetrics,
    redis: HistogramVec,
    redis_fallbacks: IntCounterVec,
    redis_up: IntGauge,
    spiffe_agent_up: IntGauge,
    listeners: ListenerFamilies,
    pub(super) crls: CrlFamilies,
    expiries: ExpiryGauges,
    upstream_first_byte: HistogramVec,
    upstream_retries: IntCounterVec,
    upstream_panic: IntGaugeVec,
    pub(super) breakers: Arc<BreakerFamilies>,
    pub(super) at_scrape: Mutex<Vec<Weak<dyn AtScrape>>>,
    upstream_concurrency: IntGaugeVec,
    concurrency_shown: Mutex<HashSet<String>>,
    nodes: Arc<NodeFamilies>,
    discovery: Arc<DiscoveryFamilies>,
    pub(super) maintenance: MaintenanceGauges,
    body_memory: IntGauge,
    pub(super) access_log_lines: IntCounter,
    pub(super) access_log_dropped: IntCounter,
    pub(super) access_log_write_errors: IntCounter,
    trace_spans: IntCounterVec,
    config_generation: IntGauge,
    config_reloads: IntCounterVec,
    tls_reloads: IntCounterVec,
}

impl Metrics {
    /// A registry of its own, all counters at 0.
    pub fn new() -> Arc<Self> {
        let r = Registry::new();
        let routes = Arc::new(RouteFamilies {
            requests: counters(&r, &HTTP_REQUESTS),
            duration: histograms(&r, &HTTP_REQUEST_DURATION),
        });
        gauges(&r, &BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Arc::new(Self {
            unmatched: RouteMetrics::new(&routes, UNMATCHED, UNMATCHED),
            routes,
            peers: Arc::new(PeerFamilies::new(counters(&r, &PEER_REQUESTS), histograms(&r, &PEER_REQUEST_DURATION))),
            process: ProcessMetrics::new(&r),
            requests_in_flight: gauge(&r, &REQUESTS_IN_FLIGHT),
            refusals: counters(&r, &REFUSALS),
            refusals_by_code: RefusalTable::new(),
            rate_limits: counters(&r, &RATE_LIMIT_DECISIONS),
            request_rules: counters(&r, &REQUEST_RULES),
            waf: WafMetrics::new(&counters(&r, &WAF_REQUESTS), &histograms(&r, &WAF)),
            overload: OverloadMetrics::new(&counters(&r, &OVERLOAD), seconds(&r, &EVENT_LOOP_LAG)),
            redis: histograms(&r, &REDIS),
            redis_fallbacks: counters(&r, &REDIS_FALLBACKS),
            redis_up: gauge(&r, &REDIS_UP),
            spiffe_agent_up: gauge(&r, &SPIFFE_AGENT_UP),
            listeners: listener_families(&r),
            crls: CrlFamilies {
                next_update: gauges(&r, &CRL_NEXT_UPDATE),
                this_update: gauges(&r, &CRL_THIS_UPDATE),
                entries: gauges(&r, &CRL_ENTRIES),
                fetches: counters(&r, &CRL_FETCHES),
                ocsp: counters(&r, &OCSP_ANSWERS),
                staples: counters(&r, &OCSP_STAPLE_FETCHES),
                shown: Mutex::default(),
            },
            expiries: ExpiryGauges::new([
                (Expiring::Certificate, gauges(&r, &CERTIFICATE_NOT_AFTER)),
                (Expiring::Authority, gauges(&r, &CA_NOT_AFTER)),
                (Expiring::UpstreamCertificate, gauges(&r, &UPSTREAM_CERTIFICATE_NOT_AFTER)),
                (Expiring::UpstreamAuthority, gauges(&r, &UPSTREAM_CA_NOT_AFTER)),
                (Expiring::Staple, gauges(&r, &OCSP_STAPLE_NEXT_UPDATE)),
            ]),
            upstream_first_byte: histograms(&r, &UPSTREAM_FIRST_BYTE),
            upstream_retries: counters(&r, &UPSTREAM_RETRIES),
            upstream_panic: gauges(&r, &UPSTREAM_PANIC),
            breakers: BreakerFamilies::new(
                [gauges(&r, &BREAKER_OPEN), gauges(&r, &BREAKER_REMAINING), gauges(&r, &UPSTREAM_PENDING)],
                counters(&r, &BREAKER_OVERFLOW),
            ),
            at_scrape: Mutex::default(),
            upstream_concurrency: gauges(&r, &UPSTREAM_CONCURRENCY_LIMIT),
            concurrency_shown: Mutex::default(),
            nodes: Arc::new(node_families(&r)),
            discovery: DiscoveryFamilies::new(
                counters(&r, &DISCOVERY),
                gauges(&r, &DISCOVERED_NODES),
                gauges(&r, &DISCOVERY_LAST_SUCCESS),
            ),
            maintenance: MaintenanceGauges::new(gauges(&r, &MAINTENANCE)),
            body_memory: gauge(&r, &BODY_MEMORY),
            access_log_lines: counter(&r, &ACCESS_LOG_LINES),
            access_log_dropped: counter(&r, &ACCESS_LOG_DROPPED),
            access_log_write_errors: counter(&r, &ACCESS_LOG_WRITE_ERRORS),
            trace_spans: counters(&r, &TRACE_SPANS),
            config_generation: gauge(&r, &CONFIG_GENERATION),
            config_reloads: by_result(counters(&r, &CONFIG_RELOADS)),
            tls_reloads: by_result(counters(&r, &TLS_RELOADS)),
            registry: r,
        })
    }

    /// The Prometheus text format.
    pub fn encode(&self) -> String {
        self.encode_as(Exposition::Text)
    }

    /// All metrics in this format.
    pub fn encode_as(&self, format: Exposition) -> String {
        self.process.update();
        self.at_scrape.lock().retain(|shown| shown.upgrade().inspect(|shown| shown.show()).is_some());
        exposition::encode(&self.registry.gather(), format)
    }

    /// Handles of a route for one of its configured paths.
    pub fn route(&self, route: &str, path: &str) -> Arc<RouteMetrics> {
        Arc::new(RouteMetrics::new(&self.routes, route, path))
    }

    /// Handles of these peers, in the order of their [`crate::policy::peers::Peer::index`]; at most `max` have their own.
    pub fn peers(&self, names: impl Iterator<Item = PeerName>, max: usize) -> PeerHandles {
        PeerHandles::new(&self.peers, names, max)
    }

    /// For requests that no route took.
    pub fn unmatched(&self) -> &RouteMetrics {
        &self.unmatched
    }

    /// Counts a request as being served until the value returned is dropped.
    pub fn request_started(&self) -> RequestInFlight {
        RequestInFlight::new(self.requests_in_flight.clone())
    }

    /// Counts a request that the gateway answered itself; `code` is [`crate::refusal::Refusal::code`].
    pub fn refusal(&self, code: &'static str) {
        self.refusals_by_code.inc(code, &self.refusals);
    }

    /// Handles of a rate limit, by [`crate::policy::rate_limit::Limit::name`].
    pub fn rate_limit(&self, limit: &str) -> RateLimitMetrics {
        RateLimitMetrics::new(&self.rate_limits, limit)
    }

    /// Counter of a request rule, by [`crate::policy::rules::Rules`]' name for it and what it does.
    pub fn request_rule(&self, rule: &str, action: &'static str) -> IntCounter {
        self.request_rules.with_label_values(&[rule, action])
    }

    /// Handles of the web application firewall.
    pub fn waf(&self) -> &WafMetrics {
        &self.waf
    }

    /// Handles of Redis.
    pub fn redis(&self) -> RedisMetrics {
        RedisMetrics::new(self.redis.with_label_values::<&str>(&[]), &self.redis_fallbacks, self.redis_up.clone())
    }

    /// 1 while the SPIFFE agent is listened to.
    pub fn spiffe_agent_up(&self) -> &IntGauge {
        &self.spiffe_agent_up
    }

    /// Handles of a listener.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        Arc::new(ListenerMetrics::new(&self.listeners, name))
    }

    /// Shows when certificates expire, and nothing any more of those that are not among them.
    pub fn set_expiries(&self, all: &[Expiry<'_>]) {
        self.expiries.set(all);
    }

    /// Handles of an upstream as a whole.
    pub fn upstream(&self, upstream: &str) -> Arc<UpstreamMetrics> {
        Arc::new(UpstreamMetrics::new(
            self.upstream_first_byte.with_label_values(&[upstream]),
            self.upstream_retries.with_label_values(&[upstream]),
            self.upstream_panic.with_label_values(&[upstream]),
        ))
    }

    /// Handles of an upstream's adaptive limit.
    pub fn upstream_concurrency(&self, upstream: &str) -> Arc<ConcurrencyMetrics> {
        self.concurrency_shown.lock().insert(upstream.to_owned());
        Arc::new(ConcurrencyMetrics::new(self.upstream_concurrency.with_label_values(&[upstream])))
    }

    /// Shows no adaptive limit any more of upstreams that are not among these.
    pub fn keep_upstream_concurrency(&self, upstreams: &[&str]) {
        self.concurrency_shown.lock().retain(|shown| {
            let kept = upstreams.contains(&shown.as_str());
            if !kept {
                // A missing series is what is wanted.
                let _ = self.upstream_concurrency.remove_label_values(&[shown]);
            }
            kept
        });
    }

    /// Handles of overload protection.
    pub fn overload(&self) -> &OverloadMetrics {
        &self.overload
    }

    /// Handles of a node. The node's series vanish with the last of them, so that a node taken out of the configuration
    /// raises no alarm.
    pub fn upstream_node(&self, upstream: &str, node: &str) -> Arc<NodeMetrics> {
        NodeMetrics::resolve(&self.nodes, upstream, node)
    }

    /// Handles of where an upstream's nodes come from. Its series vanish with the last of them.
    pub fn discovery(&self, upstream: &str) -> DiscoveryMetrics {
        DiscoveryMetrics::new(&self.discovery, upstream)
    }

    /// Shows all reasons for which handshakes with an upstream's nodes may fail, so that the first failure is an increase
    /// and not a new series.
    pub fn expect_tls(&self, upstream: &str) {
        for reason in UpstreamTlsFailure::ALL {
            self.nodes.tls_failures.with_label_values(&[upstream, reason.as_str()]);
        }
    }

    /// Memory that waiting request bodies take, bytes: add and subtract.
    pub fn body_memory(&self) -> &IntGauge {
        &self.body_memory
    }

    /// Handles of what becomes of spans.
    pub fn spans(&self) -> SpanMetrics {
        SpanMetrics::new(&self.trace_spans)
    }

    /// Which configuration is in use.
    pub fn set_config_generation(&self, generation: u64) {
        self.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// Counts a reload of the configuration file.
    pub fn config_reloaded(&self, ok: bool) {
        self.config_reloads.with_label_values(&[if ok { RESULT_OK } else { RESULT_FAILED }]).inc();
    }

    /// Counts a change of the files that the configuration names.
    pub fn tls_reloaded(&self, ok: bool) {
        self.tls_reloads.with_label_values(&[if ok { RESULT_OK } else { RESULT_FAILED }]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{CloseReason, HandshakeResult, MethodLabel, RateLimitDecision, UpstreamResult};
    use std::time::Duration;

    /// Every metric with a sample.
    fn full() -> (Arc<Metrics>, Vec<Arc<NodeMetrics>>) {
        let metrics = Metrics::new();
        metrics.route("a2a", "/api/a2a/jsonrpc").record(MethodLabel::Post, 200, Duration::from_millis(3));
        metrics.refusal("not_found");
        metrics.rate_limit("route/a2a/peer").decided(RateLimitDecision::Admitted);
        metrics.request_rule("route/a2a/scanners", "deny").inc();
        metrics.waf().judged(crate::observe::WafVerdict::Passed, Duration::from_millis(2));
        metrics.redis().set_up(true);
        metrics.spans().count(crate::observe::SpanResult::Exported, 1);
        let listener = metrics.listener("federation");
        drop(listener.handshaking());
        listener.opened();
        listener.closed(CloseReason::Idle);
        metrics.peers(std::iter::empty(), 1).of(None).record(200, Duration::from_millis(3));
        listener.handshake(HandshakeResult::Ok, Duration::from_millis(1));
        let crl = crate::observe::CrlShown { issuer: "CN=mesh", this_update: 1, next_update: 2, entries: 3 };
        metrics.set_crls("federation", &[crl]);
        metrics.crl_fetched("federation", crate::observe::CrlFetchResult::New);
        metrics.ocsp_answered("federation", crate::observe::OcspResult::Good);
        metrics.staple_fetched("federation", crate::observe::OcspResult::Good);
        let expiry =
            |kind| Expiry { kind, owner: "federation", subject: "CN=x", serial: "01", not_after: 1_800_000_000 };
        metrics.set_expiries(&Expiring::ALL.map(expiry));
        metrics.upstream("hive").first_byte(Duration::from_millis(2));
        let breaker = Box::leak(Box::new(metrics.breaker("hive")));
        breaker.set(crate::observe::BreakerLimit::Pending, 1, 2);
        breaker.set_pending(1);
        metrics.upstream_concurrency("hive").set_limit(3);
        let node = metrics.upstream_node("hive", "10.0.0.1:3000");
        metrics.expect_tls("hive");
        Box::leak(Box::new(metrics.discovery("hive"))).succeeded(2, 1_800_000_000);
        metrics.set_maintenance(&[("a2a", true)]);
        node.set_up(true);
        node.record(UpstreamResult::Ok);
        (metrics, vec![node])
    }

    #[test]
    fn every_definition_is_written_out_once_with_its_kind() {
        let (metrics, _nodes) = full();
        let text = metrics.encode();
        for d in all_definitions() {
            let kind = match d.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            assert_eq!(text.matches(&format!("# TYPE {} {kind}\n", d.name)).count(), 1, "{}", d.name);
        }
        assert_eq!(text.matches("# TYPE ").count(), all_definitions().count());
    }

    /// The rules of `promtool check metrics`, as far as names, kinds and helps go.
    #[test]
    fn names_keep_the_rules_of_promtool() {
        for d in all_definitions() {
            assert!(!d.help.is_empty() && d.help.ends_with('.'), "{}", d.name);
            assert_eq!(d.name.ends_with("_total"), d.kind == Kind::Counter, "{}", d.name);
            assert!(d.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", d.name);
            assert!(!["_count", "_sum", "_bucket"].iter().any(|s| d.name.ends_with(s)), "{}", d.name);
            let words = ["ms", "us", "milliseconds", "minutes", "kilobytes", "counter", "gauge", "histogram"];
            assert!(!d.name.split('_').any(|w| words.contains(&w)), "{}", d.name);
            if let Kind::Histogram(buckets) = d.kind {
                assert!(d.name.ends_with("_seconds") && buckets.is_sorted(), "{}", d.name);
            }
        }
    }

    #[test]
    fn durations_are_told_apart_from_100_microseconds_to_300_seconds() {
        assert_eq!((DURATION_BUCKETS.first(), DURATION_BUCKETS.last()), (Some(&0.0001), Some(&300.0)));
    }

    #[test]
    fn the_metric_of_the_older_gateway_keeps_its_name_and_labels() {
        let (metrics, _nodes) = full();
        assert!(
            metrics.encode().contains(
                "hive_gateway_http_requests_total{code=\"200\",method=\"POST\",path=\"/api/a2a/jsonrpc\"} 1\n"
            )
        );
    }

    #[test]
    fn refusals_of_one_code_are_one_counter_wherever_its_text_stands() {
        let metrics = Metrics::new();
        let copy: &'static str = Box::leak(String::from("not_found").into_boxed_str());
        for code in ["not_found", copy, "overloaded"] {
            metrics.refusal(code);
        }
        let text = metrics.encode();
        assert!(text.contains("hive_gateway_refusals_total{reason=\"not_found\"} 2\n"), "{text}");
        assert!(text.contains("hive_gateway_refusals_total{reason=\"overloaded\"} 1\n"), "{text}");
    }
}
