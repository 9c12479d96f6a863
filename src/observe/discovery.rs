//! What the metrics show of where upstreams' nodes come from.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::metrics::{RESULT_FAILED, RESULT_OK};

/// The families that sources resolve their handles in.
pub(super) struct DiscoveryFamilies {
    answers: IntCounterVec,
    nodes: IntGaugeVec,
    last_success: IntGaugeVec,
    up: IntGaugeVec,
    /// How many sources have handles, by upstream: a reload makes another one while the first is still there.
    live: Mutex<HashMap<String, usize>>,
}

impl DiscoveryFamilies {
    pub(super) fn new(
        answers: IntCounterVec,
        nodes: IntGaugeVec,
        last_success: IntGaugeVec,
        up: IntGaugeVec,
    ) -> Arc<Self> {
        Arc::new(Self { answers, nodes, last_success, up, live: Mutex::default() })
    }
}

/// Counters and gauges of one source of nodes.
pub struct DiscoveryMetrics {
    families: Arc<DiscoveryFamilies>,
    upstream: String,
    ok: IntCounter,
    failed: IntCounter,
    nodes: IntGauge,
    last_success: IntGauge,
    up: IntGauge,
}

impl DiscoveryMetrics {
    pub(super) fn new(families: &Arc<DiscoveryFamilies>, upstream: &str) -> Self {
        *families.live.lock().entry(upstream.to_owned()).or_default() += 1;
        Self {
            ok: families.answers.with_label_values(&[upstream, RESULT_OK]),
            failed: families.answers.with_label_values(&[upstream, RESULT_FAILED]),
            nodes: families.nodes.with_label_values(&[upstream]),
            last_success: families.last_success.with_label_values(&[upstream]),
            up: families.up.with_label_values(&[upstream]),
            families: families.clone(),
            upstream: upstream.to_owned(),
        }
    }

    /// A good answer: so many nodes, at this time in seconds since 1970.
    pub fn succeeded(&self, nodes: usize, now_unix: i64) {
        self.ok.inc();
        self.nodes.set(i64::try_from(nodes).unwrap_or(i64::MAX));
        self.last_success.set(now_unix);
        self.up.set(1);
    }

    /// No answer, or none of use.
    pub fn failed(&self) {
        self.failed.inc();
        self.up.set(0);
    }
}

impl Drop for DiscoveryMetrics {
    fn drop(&mut self) {
        let mut live = self.families.live.lock();
        if let Some(others) = live.get_mut(&self.upstream).filter(|count| **count > 1) {
            *others -= 1;
            return;
        }
        live.remove(&self.upstream);
        let upstream = self.upstream.as_str();
        // A missing series is what is wanted.
        for result in [RESULT_OK, RESULT_FAILED] {
            let _ = self.families.answers.remove_label_values(&[upstream, result]);
        }
        let _ = self.families.nodes.remove_label_values(&[upstream]);
        let _ = self.families.last_success.remove_label_values(&[upstream]);
        let _ = self.families.up.remove_label_values(&[upstream]);
    }
}
