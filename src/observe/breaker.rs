//! What the metrics show of circuit breakers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::labels::BreakerLimit;
use super::metrics::Metrics;

/// The families that circuit breakers resolve their handles in.
pub(super) struct BreakerFamilies {
    pub(super) open: IntGaugeVec,
    pub(super) remaining: IntGaugeVec,
    pub(super) overflow: IntCounterVec,
    pub(super) pending: IntGaugeVec,
    /// How many breakers have handles, by upstream: an upstream may be taken out and put back while requests run.
    pub(super) live: Mutex<HashMap<String, usize>>,
}

impl BreakerFamilies {
    /// `[open, remaining, pending]`
    pub(super) fn new([open, remaining, pending]: [IntGaugeVec; 3], overflow: IntCounterVec) -> Arc<Self> {
        Arc::new(Self { open, remaining, overflow, pending, live: Mutex::default() })
    }
}

/// What is counted elsewhere, and shown only when somebody looks: so it costs requests nothing.
pub trait AtScrape: Send + Sync {
    /// Sets the gauges.
    fn show(&self);
}

impl Metrics {
    /// Handles of an upstream's circuit breaker. Its series vanish with them.
    pub fn breaker(&self, upstream: &str) -> BreakerMetrics {
        BreakerMetrics::new(&self.breakers, upstream)
    }

    /// Has it shown at each scrape, for as long as it lives.
    pub fn show_at_scrape(&self, shown: &Arc<dyn AtScrape>) {
        self.at_scrape.lock().push(Arc::downgrade(shown));
    }
}

/// Counters and gauges of an upstream's circuit breaker.
pub struct BreakerMetrics {
    families: Arc<BreakerFamilies>,
    upstream: String,
    overflow: Vec<IntCounter>,
}

impl BreakerMetrics {
    pub(super) fn new(families: &Arc<BreakerFamilies>, upstream: &str) -> Self {
        *families.live.lock().entry(upstream.to_owned()).or_default() += 1;
        let overflow = BreakerLimit::ALL.iter();
        let overflow = overflow.map(|limit| families.overflow.with_label_values(&[upstream, limit.as_str()])).collect();
        Self { families: families.clone(), upstream: upstream.to_owned(), overflow }
    }

    /// A request met the limit.
    pub fn overflowed(&self, limit: BreakerLimit) {
        self.overflow[limit.index()].inc();
    }

    /// How many there are of how many that may be.
    pub fn set(&self, limit: BreakerLimit, count: u32, max: u32) {
        let labels = [self.upstream.as_str(), limit.as_str()];
        self.families.open.with_label_values(&labels).set(i64::from(count >= max));
        self.families.remaining.with_label_values(&labels).set(i64::from(max.saturating_sub(count)));
    }

    /// How many requests wait.
    pub fn set_pending(&self, count: u32) {
        self.families.pending.with_label_values(&[self.upstream.as_str()]).set(i64::from(count));
    }
}

impl Drop for BreakerMetrics {
    fn drop(&mut self) {
        let mut live = self.families.live.lock();
        if let Some(others) = live.get_mut(&self.upstream).filter(|count| **count > 1) {
            *others -= 1;
            return;
        }
        live.remove(&self.upstream);
        // A missing series is what is wanted.
        for limit in BreakerLimit::ALL {
            let labels = [self.upstream.as_str(), limit.as_str()];
            let _ = self.families.open.remove_label_values(&labels);
            let _ = self.families.remaining.remove_label_values(&labels);
            let _ = self.families.overflow.remove_label_values(&labels);
        }
        let _ = self.families.pending.remove_label_values(&[self.upstream.as_str()]);
    }
}
