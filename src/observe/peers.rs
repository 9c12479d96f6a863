//! Counters by peer. There may be 100,000 peers, and each has some thirty series: the first that call get their own, the
//! rest is `other`.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::labels::{CLASSES, class};
use crate::names::PeerName;

/// The label of all peers beyond `metrics.peers_max`.
const OTHER: &str = "other";
/// The label of requests whose certificate belongs to no peer.
const NONE: &str = "none";

/// The families that peers resolve their handles in, and the peers that have handles now.
pub(super) struct PeerFamilies {
    requests: IntCounterVec,
    duration: HistogramVec,
    live: Mutex<HashMap<PeerName, Weak<PeerMetrics>>>,
}

impl PeerFamilies {
    pub(super) fn new(requests: IntCounterVec, duration: HistogramVec) -> Self {
        Self { requests, duration, live: Mutex::default() }
    }

    /// The counter behind all of them.
    pub(super) fn requests(&self) -> &IntCounterVec {
        &self.requests
    }

    fn series(self: &Arc<Self>, label: &str, own: Option<PeerName>) -> Arc<PeerMetrics> {
        Arc::new(PeerMetrics {
            classes: CLASSES.map(|class| self.requests.with_label_values(&[label, class])),
            duration: self.duration.with_label_values(&[label]),
            families: self.clone(),
            own,
        })
    }

    /// The handles that live for this peer.
    fn living(&self, name: &PeerName) -> Option<Arc<PeerMetrics>> {
        self.live.lock().get(name)?.upgrade()
    }

    /// The handles that live for this peer, or new ones if there is room for `max`.
    fn claim(self: &Arc<Self>, name: &PeerName, max: usize) -> Option<Arc<PeerMetrics>> {
        let mut live = self.live.lock();
        if let Some(metrics) = live.get(name).and_then(Weak::upgrade) {
            return Some(metrics);
        }
        if live.len() >= max {
            return None;
        }
        let metrics = self.series(name.as_str(), Some(name.clone()));
        live.insert(name.clone(), Arc::downgrade(&metrics));
        Some(metrics)
    }
}

/// Counters of one peer, or of all that share a label.
pub struct PeerMetrics {
    classes: [IntCounter; CLASSES.len()],
    duration: Histogram,
    families: Arc<PeerFamilies>,
    /// Whose these are alone: its series vanish with them.
    own: Option<PeerName>,
}

impl PeerMetrics {
    /// Counts a request at its end.
    pub fn record(&self, status: u16, duration: Duration) {
        self.classes[class(status)].inc();
        self.duration.observe(duration.as_secs_f64());
    }
}

impl Drop for PeerMetrics {
    fn drop(&mut self) {
        let Some(name) = &self.own else { return };
        let mut live = self.families.live.lock();
        // Another may have been made since the last handle went: then the series are its own.
        if live.get(name).is_some_and(|other| other.strong_count() > 0) {
            return;
        }
        live.remove(name);
        // A peer may be called as those are that share a label.
        if [OTHER, NONE].contains(&name.as_str()) {
            return;
        }
        // A missing series is what is wanted.
        let _ = self.families.duration.remove_label_values(&[name.as_str()]);
        for class in CLASSES {
            let _ = self.families.requests.remove_label_values(&[name.as_str(), class]);
        }
    }
}

/// The counters of a configuration's peers, by their index: after a peer's first request a look into a table.
pub struct PeerHandles {
    families: Arc<PeerFamilies>,
    named: Vec<(PeerName, OnceLock<Arc<PeerMetrics>>)>,
    max: usize,
    none: Arc<PeerMetrics>,
    other: Arc<PeerMetrics>,
}

impl PeerHandles {
    pub(super) fn new(families: &Arc<PeerFamilies>, names: impl Iterator<Item = PeerName>, max: usize) -> Self {
        let handle = |name: PeerName| {
            // Who has series keeps them across a reload.
            let known = families.living(&name).map_or_else(OnceLock::new, OnceLock::from);
            (name, known)
        };
        Self {
            named: names.map(handle).collect(),
            max,
            none: families.series(NONE, None),
            other: families.series(OTHER, None),
            families: families.clone(),
        }
    }

    /// The counters of the peer with this index; `None`: of who is no peer.
    pub fn of(&self, peer: Option<u32>) -> &PeerMetrics {
        let Some(index) = peer else { return &self.none };
        let named = usize::try_from(index).ok().and_then(|index| self.named.get(index));
        let Some((name, metrics)) = named else { return &self.other };
        metrics.get_or_init(|| self.families.claim(name, self.max).unwrap_or_else(|| self.other.clone()))
    }
}

#[cfg(test)]
mod tests {
    use crate::names::PeerName;
    use crate::observe::Metrics;
    use std::time::Duration;

    fn names(all: &[&str]) -> Vec<PeerName> {
        all.iter().map(|n| PeerName::new(n).unwrap()).collect()
    }

    fn count(text: &str, peer: &str, code: &str) -> Option<u64> {
        let series = format!("hive_gateway_peer_requests_total{{code=\"{code}\",peer=\"{peer}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&series)).map(|n| n.parse().unwrap())
    }

    #[test]
    fn the_first_that_call_have_their_own_series_and_the_rest_is_other() {
        let metrics = Metrics::new();
        let peers = metrics.peers(names(&["a", "b", "c", "d"]).into_iter(), 2);
        for index in [Some(3), Some(1), Some(0), Some(2), Some(3), None] {
            peers.of(index).record(200, Duration::from_millis(1));
        }
        peers.of(Some(0)).record(499, Duration::from_millis(1));
        peers.of(Some(3)).record(0, Duration::ZERO);
        peers.of(Some(3)).record(999, Duration::ZERO);
        let text = metrics.encode();
        let counts = ["a", "b", "c", "d", "other", "none"].map(|peer| count(&text, peer, "2xx"));
        assert_eq!(counts, [None, Some(1), None, Some(2), Some(2), Some(1)]);
        assert_eq!((count(&text, "other", "4xx"), count(&text, "d", "other")), (Some(1), Some(2)));
        assert!(text.contains("hive_gateway_peer_request_duration_seconds_count{peer=\"other\"} 3\n"), "{text}");
    }

    #[test]
    fn counts_go_on_across_a_reload_and_a_peer_that_is_gone_makes_room() {
        let metrics = Metrics::new();
        let before = metrics.peers(names(&["a", "b"]).into_iter(), 2);
        before.of(Some(0)).record(200, Duration::ZERO);
        before.of(Some(1)).record(200, Duration::ZERO);
        let after = metrics.peers(names(&["b", "c"]).into_iter(), 2);
        drop(before);
        after.of(Some(0)).record(200, Duration::ZERO);
        after.of(Some(1)).record(200, Duration::ZERO);
        let text = metrics.encode();
        assert_eq!(["a", "b", "c"].map(|peer| count(&text, peer, "2xx")), [None, Some(2), Some(1)]);
    }
}
