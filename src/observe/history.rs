//! The last minutes in small steps, for the status page: made of the counters' sums, beside the requests.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use super::totals::Totals;

/// Between two looks at the counters.
pub const STEP: Duration = Duration::from_secs(2);
/// Steps that are kept: five minutes.
const STEPS: usize = 150;
/// Rates are over so many steps at most: a minute.
const RATE_STEPS: usize = 30;
/// Peers that are kept; there are no more series than `metrics.peers_max`.
const PEERS_MAX: usize = 20_000;

/// One step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Step {
    /// Requests that ended, each second.
    pub requests: f64,
    /// Those with a status of 500 and above.
    pub server_errors: f64,
    /// Those that the gateway refused.
    pub refusals: f64,
    /// Half of the requests took no longer, seconds; none if there were none.
    pub median: Option<f64>,
    /// 99 % of them took no longer.
    pub p99: Option<f64>,
    /// Requests that ran at its end.
    pub in_flight: i64,
}

/// A counter's way.
#[derive(Debug, Clone)]
pub struct Track {
    /// Its value.
    pub total: u64,
    /// When it was last seen to grow; none if it has not since the first look.
    pub last: Option<SystemTime>,
    /// What it was at the steps before, the oldest first.
    before: VecDeque<u64>,
}

impl Track {
    fn follow(&mut self, total: u64, wall: SystemTime) {
        if total > self.total {
            self.last = Some(wall);
        }
        if self.before.len() == RATE_STEPS {
            self.before.pop_front();
        }
        self.before.push_back(self.total);
        self.total = total;
    }

    /// Growth each second, over the last minute or since the process began.
    pub fn rate(&self) -> f64 {
        let oldest = self.before.front().copied().unwrap_or(self.total);
        self.total.saturating_sub(oldest) as f64 / (STEP.as_secs_f64() * self.before.len().max(1) as f64)
    }
}

/// What the looks have found.
#[derive(Debug, Clone, Default)]
pub struct History {
    last: Option<(Instant, Totals)>,
    /// The oldest first.
    pub steps: VecDeque<Step>,
    /// By peer's label.
    pub peers: BTreeMap<String, Track>,
    /// By refusal's code.
    pub refusals: BTreeMap<String, Track>,
}

impl History {
    /// Takes a look in.
    pub fn look(&mut self, totals: Totals, now: Instant, wall: SystemTime) {
        let before = self.last.as_ref();
        let since = before.map_or(STEP, |(at, _)| now.saturating_duration_since(*at)).as_secs_f64().max(0.001);
        let none = Totals::default();
        let before = before.map_or(&none, |(_, totals)| totals);
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / since;
        let sum = |by: &BTreeMap<String, u64>| by.values().sum::<u64>();
        let requests = totals.requests.saturating_sub(before.requests);
        let grown = totals.durations.iter().map(|(bound, count)| {
            let earlier = before.durations.iter().find(|(b, _)| b == bound).map_or(0, |(_, count)| *count);
            (*bound, count.saturating_sub(earlier))
        });
        let grown: Vec<_> = grown.collect();
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(Step {
            requests: requests as f64 / since,
            server_errors: per_second(totals.server_errors, before.server_errors),
            refusals: per_second(sum(&totals.refusals), sum(&before.refusals)),
            median: quantile(&grown, requests, 0.5),
            p99: quantile(&grown, requests, 0.99),
            in_flight: totals.in_flight,
        });
        follow(&mut self.peers, &totals.peers, wall);
        follow(&mut self.refusals, &totals.refusals, wall);
        self.last = Some((now, totals));
    }
}

/// What is not counted any more is forgotten: its peer is gone.
fn follow(tracks: &mut BTreeMap<String, Track>, totals: &BTreeMap<String, u64>, wall: SystemTime) {
    tracks.retain(|name, _| totals.contains_key(name));
    for (name, total) in totals {
        if let Some(track) = tracks.get_mut(name) {
            track.follow(*total, wall);
        } else if tracks.len() < PEERS_MAX {
            let last = (*total > 0).then_some(wall);
            tracks.insert(name.clone(), Track { total: *total, last, before: VecDeque::from([0]) });
        }
    }
}

/// As Prometheus' `histogram_quantile`: in proportion within the bucket. What is beyond the last bound counts as that.
fn quantile(cumulative: &[(f64, u64)], count: u64, share: f64) -> Option<f64> {
    if count == 0 {
        return None;
    }
    let rank = share * count as f64;
    let mut below = (0.0, 0);
    for (bound, upto) in cumulative {
        if *upto as f64 >= rank {
            let inside = upto.saturating_sub(below.1).max(1) as f64;
            return Some(below.0 + (bound - below.0) * ((rank - below.1 as f64) / inside).clamp(0.0, 1.0));
        }
        below = (*bound, *upto);
    }
    Some(below.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64, paris: u64) -> Totals {
        let durations = vec![(0.01, requests / 2), (0.1, requests)];
        let peers = BTreeMap::from([("paris".to_owned(), paris)]);
        Totals { requests, durations, peers, ..Totals::default() }
    }

    #[test]
    fn steps_are_differences_and_peers_are_seen_when_their_counter_grows() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut history = History::default();
        for (n, (requests, paris)) in [(0, 0), (100, 10), (100, 10), (300, 70)].into_iter().enumerate() {
            history.look(totals(requests, paris), start + STEP * n as u32, wall + STEP * n as u32);
        }
        let rates: Vec<_> = history.steps.iter().map(|s| s.requests).collect();
        assert_eq!(rates, [0.0, 50.0, 0.0, 100.0]);
        assert_eq!((history.steps[2].median, history.steps[3].median), (None, Some(0.01)));
        let paris = &history.peers["paris"];
        assert_eq!((paris.total, paris.last), (70, Some(wall + STEP * 3)));
        assert!((paris.rate() - 70.0 / 8.0).abs() < 1e-9, "{}", paris.rate());
        for n in 4..400 {
            history.look(totals(300, 70), start + STEP * n, wall + STEP * n);
        }
        assert_eq!(history.steps.len(), STEPS);
        assert_eq!((history.peers["paris"].rate(), history.peers["paris"].last), (0.0, Some(wall + STEP * 3)));
        history.look(Totals::default(), start + STEP * 401, wall);
        assert!(history.peers.is_empty(), "a peer that is gone is forgotten");
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let buckets = [(0.1, 10), (0.2, 90), (0.4, 100)];
        assert_eq!(quantile(&buckets, 100, 0.5), Some(0.1 + 0.1 * 40.0 / 80.0));
        assert_eq!(quantile(&buckets, 200, 0.99), Some(0.4), "beyond the last bound");
        assert_eq!(quantile(&buckets, 0, 0.5), None);
    }
}
