//! What has been counted up to now, summed up for [`super::history`]: read from the metrics, so that no request pays for it.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::Metric;

use super::metrics::Metrics;

/// Sums since the start of the process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Those with a status of 500 and above.
    pub server_errors: u64,
    /// Requests that took up to so many seconds, ascending; what took longer is in `requests` alone.
    pub durations: Vec<(f64, u64)>,
    /// Requests by peer's label.
    pub peers: BTreeMap<String, u64>,
    /// Refusals by code.
    pub refusals: BTreeMap<String, u64>,
    /// Requests that run now.
    pub in_flight: i64,
}

impl Metrics {
    /// The sums of the moment.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { in_flight: self.requests_in_flight.get(), ..Totals::default() };
        let mut durations: BTreeMap<u64, u64> = BTreeMap::new();
        for family in self.routes.duration.collect() {
            for metric in family.get_metric() {
                let histogram = metric.get_histogram();
                totals.requests += histogram.get_sample_count();
                for bucket in histogram.get_bucket() {
                    // Bounds are positive, and such floats are in the order of their bits.
                    *durations.entry(bucket.upper_bound().to_bits()).or_default() += bucket.cumulative_count();
                }
            }
        }
        let finite = durations.into_iter().map(|(bits, count)| (f64::from_bits(bits), count));
        totals.durations = finite.filter(|(bound, _)| bound.is_finite()).collect();
        for family in self.routes.requests.collect() {
            let failed = family.get_metric().iter().filter(|m| label(m, "code").is_some_and(|c| c.starts_with('5')));
            totals.server_errors += failed.map(count).sum::<u64>();
        }
        totals.peers = sums(self.peers.requests(), "peer");
        totals.refusals = sums(&self.refusals, "reason");
        totals
    }
}

/// Sums by one label's value.
fn sums(family: &impl Collector, by: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for family in family.collect() {
        for metric in family.get_metric() {
            let Some(value) = label(metric, by) else { continue };
            *sums.entry(value.to_owned()).or_default() += count(metric);
        }
    }
    sums
}

fn label<'m>(metric: &'m Metric, name: &str) -> Option<&'m str> {
    metric.get_label().iter().find(|pair| pair.name() == name).map(|pair| pair.value())
}

/// Counters hold whole numbers, and none that a float could not.
fn count(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::names::PeerName;
    use crate::observe::MethodLabel;

    #[test]
    fn totals_are_the_sums_of_what_was_counted() {
        let metrics = Metrics::new();
        let route = metrics.route("a2a", "/a");
        for (status, ms) in [(200, 1), (200, 30), (503, 2), (400, 400_000)] {
            route.record(MethodLabel::Post, status, Duration::from_millis(ms));
        }
        metrics.unmatched().record(MethodLabel::Get, 404, Duration::from_millis(1));
        let names = [PeerName::new("paris").unwrap()];
        let peers = metrics.peers(names.into_iter(), 10);
        peers.of(Some(0)).record(200, Duration::ZERO);
        peers.of(Some(0)).record(503, Duration::ZERO);
        peers.of(None).record(404, Duration::ZERO);
        metrics.refusal("not_found");
        let _running = metrics.request_started();
        let totals = metrics.totals();
        assert_eq!((totals.requests, totals.server_errors, totals.in_flight), (5, 1, 1));
        assert_eq!(totals.durations.last(), Some(&(300.0, 4)));
        assert!(totals.durations.contains(&(0.01, 3)), "{:?}", totals.durations);
        assert_eq!((totals.peers["paris"], totals.peers["none"], totals.refusals["not_found"]), (2, 1, 1));
    }
}
