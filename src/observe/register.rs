//! Makes the families of metrics in a registry.

use prometheus::core::Collector;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::definitions::{Definition, Kind};

/// Turns what `prometheus` says of a name or label into the value.
#[expect(clippy::expect_used, reason = "the names are constants, and the tests of `metrics` register all of them")]
pub(super) fn sound<T>(made: prometheus::Result<T>) -> T {
    made.expect("metric names and labels are well-formed and distinct")
}

pub(super) fn opts(d: &Definition) -> Opts {
    Opts::new(d.name, d.help)
}

pub(super) fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let family = sound(made);
    sound(registry.register(Box::new(family.clone())));
    family
}

pub(super) fn counters(registry: &Registry, d: &Definition) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(d), d.labels))
}

pub(super) fn counter(registry: &Registry, d: &Definition) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(d)))
}

pub(super) fn gauges(registry: &Registry, d: &Definition) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(d), d.labels))
}

pub(super) fn gauge(registry: &Registry, d: &Definition) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(d)))
}

pub(super) fn seconds(registry: &Registry, d: &Definition) -> Gauge {
    register(registry, Gauge::with_opts(opts(d)))
}

pub(super) fn histograms(registry: &Registry, d: &Definition) -> HistogramVec {
    let buckets = match d.kind {
        Kind::Histogram(buckets) => buckets.to_vec(),
        // `prometheus` then takes its own.
        Kind::Counter | Kind::Gauge => Vec::new(),
    };
    register(registry, HistogramVec::new(HistogramOpts::from(opts(d)).buckets(buckets), d.labels))
}
