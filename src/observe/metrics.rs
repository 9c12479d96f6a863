//! The families of metrics behind the handles of [`super::handles`].

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::breaker::{AtScrape, BreakerFamilies};
use super::crl::{CrlFamilies, CrlGauges};
use super::definitions::*;
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
use super::process::ProcessMetrics;
use super::process_log;
use super::refusals::RefusalTable;
use super::register::{counter, counters, gauge, gauges, histograms, register, seconds};
use crate::clock::Clock;
use crate::names::PeerName;
use crate::refusal::Refusal;

/// The `path` and `route` of a request that no route took.
pub const UNMATCHED: &str = "unmatched";

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

fn crl_families(registry: &Registry) -> CrlFamilies {
    CrlFamilies {
        of_listeners: CrlGauges::new(registry, [&CRL_THIS_UPDATE, &CRL_NEXT_UPDATE, &CRL_ENTRIES]),
        of_upstreams: CrlGauges::new(
            registry,
            [&UPSTREAM_CRL_THIS_UPDATE, &UPSTREAM_CRL_NEXT_UPDATE, &UPSTREAM_CRL_ENTRIES],
        ),
        fetches: counters(registry, &CRL_FETCHES),
        ocsp: counters(registry, &OCSP_ANSWERS),
        staples: counters(registry, &OCSP_STAPLE_FETCHES),
    }
}

fn expiry_gauges(registry: &Registry) -> ExpiryGauges {
    ExpiryGauges::new([
        (
            Expiring::Certificate,
            gauges(registry, &CERTIFICATE_NOT_AFTER),
            Some(gauges(registry, &CERTIFICATE_NOT_BEFORE)),
        ),
        (Expiring::Authority, gauges(registry, &CA_NOT_AFTER), Some(gauges(registry, &CA_NOT_BEFORE))),
        (
            Expiring::UpstreamCertificate,
            gauges(registry, &UPSTREAM_CERTIFICATE_NOT_AFTER),
            Some(gauges(registry, &UPSTREAM_CERTIFICATE_NOT_BEFORE)),
        ),
        (
            Expiring::UpstreamAuthority,
            gauges(registry, &UPSTREAM_CA_NOT_AFTER),
            Some(gauges(registry, &UPSTREAM_CA_NOT_BEFORE)),
        ),
        (Expiring::Staple, gauges(registry, &OCSP_STAPLE_NEXT_UPDATE), None),
    ])
}

/// Both results from the start, so that the first failure is an increase and not a new series.
fn by_result(family: IntCounterVec) -> IntCounterVec {
    for result in [RESULT_OK, RESULT_FAILED] {
        family.with_label_values(&[result]);
    }
    family
}

/// The same for every reason to refuse: a stolen token is reported when it comes for the first time.
fn all_refusals(family: IntCounterVec) -> IntCounterVec {
    for code in Refusal::codes() {
        family.with_label_values(&[code]);
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
    rate_limits_uncounted: IntCounterVec,
    request_rules: IntCounterVec,
    waf: WafMetrics,
    overload: OverloadMetrics,
    redis: HistogramVec,
    redis_fallbacks: IntCounterVec,
    redis_up: IntGauge,
    spiffe_agent_up: IntGaugeVec,
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
    pub(super) access_log_rotate_errors: IntCounter,
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
            classes: counters(&r, &ROUTE_REQUESTS),
            duration: histograms(&r, &HTTP_REQUEST_DURATION),
        });
        register(&r, Ok(process_log::dropped().clone()));
        gauges(&r, &BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Arc::new(Self {
            unmatched: RouteMetrics::new(&routes, UNMATCHED, UNMATCHED),
            routes,
            peers: Arc::new(PeerFamilies::new(counters(&r, &PEER_REQUESTS), histograms(&r, &PEER_REQUEST_DURATION))),
            process: ProcessMetrics::new(&r, Clock::System.wall()),
            requests_in_flight: gauge(&r, &REQUESTS_IN_FLIGHT),
            refusals: all_refusals(counters(&r, &REFUSALS)),
            refusals_by_code: RefusalTable::new(),
            rate_limits: counters(&r, &RATE_LIMIT_DECISIONS),
            rate_limits_uncounted: counters(&r, &RATE_LIMIT_UNCOUNTED),
            request_rules: counters(&r, &REQUEST_RULES),
            waf: WafMetrics::new(&counters(&r, &WAF_REQUESTS), &histograms(&r, &WAF)),
            overload: OverloadMetrics::new(&counters(&r, &OVERLOAD), seconds(&r, &EVENT_LOOP_LAG)),
            redis: histograms(&r, &REDIS),
            redis_fallbacks: counters(&r, &REDIS_FALLBACKS),
            redis_up: gauge(&r, &REDIS_UP),
            spiffe_agent_up: gauges(&r, &SPIFFE_AGENT_UP),
            listeners: listener_families(&r),
            crls: crl_families(&r),
            expiries: expiry_gauges(&r),
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
                gauges(&r, &DISCOVERY_UP),
            ),
            maintenance: MaintenanceGauges::new(gauges(&r, &MAINTENANCE), &gauges(&r, &ORDERS_UNREADABLE)),
            body_memory: gauge(&r, &BODY_MEMORY),
            access_log_lines: counter(&r, &ACCESS_LOG_LINES),
            access_log_dropped: counter(&r, &ACCESS_LOG_DROPPED),
            access_log_write_errors: counter(&r, &ACCESS_LOG_WRITE_ERRORS),
            access_log_rotate_errors: counter(&r, &ACCESS_LOG_ROTATE_ERRORS),
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
        RateLimitMetrics::new(&self.rate_limits, &self.rate_limits_uncounted, limit)
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

    /// Whether the SPIFFE agent is listened to. Without an agent there is no such series, so that 0 is an alarm.
    pub fn set_spiffe_agent_up(&self, up: bool) {
        self.spiffe_agent_up.with_label_values::<&str>(&[]).set(i64::from(up));
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
    use crate::observe::buckets::DURATION_BUCKETS;
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
        metrics.set_spiffe_agent_up(true);
        metrics.spans().count(crate::observe::SpanResult::Exported, 1);
        let listener = metrics.listener("federation");
        drop(listener.handshaking());
        listener.opened();
        listener.closed(CloseReason::Idle);
        metrics.peers(std::iter::empty(), 1).of(None).record(200, Duration::from_millis(3));
        listener.handshake(HandshakeResult::Ok, Duration::from_millis(1));
        let crl = crate::observe::CrlShown { issuer: "CN=mesh", this_update: 1, next_update: 2, entries: 3 };
        metrics.set_crls("federation", &[crl]);
        metrics.set_upstream_crls("hive", &[crl]);
        metrics.crl_fetched("federation", crate::observe::CrlFetchResult::New);
        metrics.ocsp_answered("federation", crate::observe::OcspResult::Good);
        metrics.staple_fetched("federation", crate::observe::OcspResult::Good);
        let expiry = |kind| Expiry {
            kind,
            owner: "federation",
            subject: "CN=x",
            serial: "01",
            not_before: 1,
            not_after: 1_800_000_000,
        };
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
    fn what_an_alert_counts_is_there_before_it_happens() {
        let metrics = Metrics::new();
        metrics.expect_crl_fetches("front");
        metrics.expect_staples("front");
        let text = metrics.encode();
        for code in Refusal::codes() {
            assert!(text.contains(&format!("hive_gateway_refusals_total{{reason=\"{code}\"}} 0\n")), "{code}");
        }
        for (family, result) in [("crl_fetches", "failed"), ("ocsp_staple_fetches", "unknown")] {
            let failed = format!("hive_gateway_{family}_total{{listener=\"front\",result=\"{result}\"}} 0\n");
            assert!(text.contains(&failed), "{failed}{text}");
        }
        assert!(!text.contains("\nhive_gateway_spiffe_agent_up"), "no agent is asked");
        metrics.set_spiffe_agent_up(false);
        assert!(metrics.encode().contains("\nhive_gateway_spiffe_agent_up 0\n"));
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
