//! Ejection: a node whose requests fail in a row is left alone for a while, whatever its health checks say.
//!
//! ```text
//! in ── consecutive_failures ──▶ ejected ── n × eject_for ──▶ half open ── one request ──▶ in, with a slow start
//!                                   ▲                             └── which fails ──┐
//!                                   └───────────────────────────────────────────────┘
//! ```
//!
//! A node that its health checks found down and then up again is half open at once. A failure is a connection that can't be made, 502, 503 or 504, an answer that breaks off, and a timeout. What Hive says
//! inside of a JSON-RPC answer with status 200 is none, nor is what a client does. Nothing runs beside the requests: time is
//! looked at when a node is picked.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::Mutex;

use super::node::Node;
use super::{Picked, Upstream};
use crate::config::file;
use crate::observe::UpstreamResult;

/// Whether a node is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It takes part.
    In,
    /// It is left alone.
    Ejected,
    /// Its time is over: the next request shows whether it is well.
    HalfOpen,
    /// That request is there.
    Probing,
}

impl Standing {
    /// For logs and the admin page.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::In => "in",
            Standing::Ejected => "ejected",
            Standing::HalfOpen => "half_open",
            Standing::Probing => "probing",
        }
    }

    fn from_u8(value: u8) -> Self {
        match value {
            1 => Standing::Ejected,
            2 => Standing::HalfOpen,
            3 => Standing::Probing,
            _ => Standing::In,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is learned of a node from its requests; outlives a reload.
#[derive(Default)]
pub(super) struct Ejection {
    standing: AtomicU8,
    /// Failures in a row.
    failures: AtomicU32,
    track: Mutex<Track>,
}

#[derive(Default)]
struct Track {
    /// Ejections in a row.
    times: u32,
    /// When the present ejection ends.
    until: Option<Instant>,
    /// How long the last one was.
    last: Duration,
    /// When the last one ended well.
    returned: Option<Instant>,
    /// Since when the node is getting its share back; none once it has it.
    rising: Option<Instant>,
}

/// When a node changes by itself, and since when its share rises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) until: Option<Instant>,
    pub(super) rising: Option<Instant>,
}

impl Ejection {
    pub(super) fn standing(&self) -> Standing {
        Standing::from_u8(self.standing.load(Ordering::Acquire))
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }

    fn swap(&self, from: Standing, to: Standing) -> bool {
        self.standing.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the one request that a half open node may have.
    pub(super) fn claim_probe(&self) -> bool {
        self.swap(Standing::HalfOpen, Standing::Probing)
    }

    /// That request said nothing of the node; the next one may.
    pub(super) fn give_probe_back(&self) {
        self.swap(Standing::Probing, Standing::HalfOpen);
    }

    pub(super) fn times(&self) -> Times {
        let track = self.track.lock();
        let until = track.until.filter(|_| self.standing() == Standing::Ejected);
        Times { until, rising: track.rising }
    }

    /// What time alone changes.
    pub(super) fn tick(&self, now: Instant, slow_start: Duration) {
        let mut track = self.track.lock();
        if track.until.is_some_and(|until| now >= until) {
            self.swap(Standing::Ejected, Standing::HalfOpen);
        }
        if track.rising.is_some_and(|since| now.saturating_duration_since(since) >= slow_start) {
            track.rising = None;
        }
    }

    /// Probes have found the node down and now up again: its share rises from now on, and an ejection ends, for it was about
    /// the time before. One request still has to show that it is well.
    pub(super) fn recovered(&self, now: Instant) {
        let mut track = self.track.lock();
        track.rising = Some(now);
        self.swap(Standing::Ejected, Standing::HalfOpen);
    }

    /// Ejects the node; says for how long. A node that was well for as long as its last ejection took starts anew.
    fn eject(&self, settings: &file::Outlier, now: Instant) -> Duration {
        let mut track = self.track.lock();
        let well = track.returned.map(|since| now.saturating_duration_since(since));
        track.times = if well.is_some_and(|well| well >= track.last) { 1 } else { track.times.saturating_add(1) };
        track.last = settings.eject_for.0.saturating_mul(track.times).min(settings.eject_for_max.0);
        track.until = Some(now + track.last);
        track.rising = None;
        self.failures.store(0, Ordering::Relaxed);
        self.set(Standing::Ejected);
        track.last
    }

    fn come_back(&self, now: Instant) {
        let mut track = self.track.lock();
        track.until = None;
        track.returned = Some(now);
        track.rising = Some(now);
        self.failures.store(0, Ordering::Relaxed);
        self.set(Standing::In);
    }
}

/// What came of a try.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// As it is counted.
    pub result: UpstreamResult,
    /// The answer's, if there is one.
    pub status: Option<u16>,
    /// Whether a failure says something of the node: not if most of the request's time was spent waiting or elsewhere, nor
    /// if a connection that had rested turned out to be closed.
    pub fair: bool,
}

/// Statuses that say that the node could not do its work (RFC 9110, sections 15.6.3 to 15.6.5).
const GATEWAY_ERRORS: std::ops::RangeInclusive<u16> = 502..=504;

impl Outcome {
    /// What it says of its node.
    fn verdict(&self) -> Verdict {
        match self.result {
            UpstreamResult::Broken | UpstreamResult::ResponseTimeout if !self.fair => Verdict::Nothing,
            UpstreamResult::ConnectFailed
            | UpstreamResult::ConnectTimeout
            | UpstreamResult::TlsFailed
            | UpstreamResult::ResponseTimeout
            | UpstreamResult::StreamTimeout
            | UpstreamResult::Broken => Verdict::Failed,
            UpstreamResult::ServerError if self.status.is_some_and(|s| GATEWAY_ERRORS.contains(&s)) => Verdict::Failed,
            UpstreamResult::Ok | UpstreamResult::ServerError => Verdict::Answered,
            UpstreamResult::ClientGone | UpstreamResult::StreamDuration => Verdict::Nothing,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Failed,
    /// There is an answer; whether it gets to its end is not known yet.
    Answered,
    Nothing,
}

impl Upstream {
    /// What came of a try: counted, and perhaps the node is ejected for it, or is back.
    pub fn record(&self, picked: &Picked, outcome: Outcome, now: Instant) {
        let node = &picked.node;
        node.metrics().record(outcome.result);
        if !self.outlier.enabled {
            return;
        }
        match outcome.verdict() {
            Verdict::Failed => self.failed(picked, outcome.result, now),
            Verdict::Answered if picked.probe => self.recovered(node, now),
            // A node that answers and then breaks off, each time, must not look well for its headers.
            Verdict::Answered | Verdict::Nothing => {}
        }
    }

    /// An answer of this status came to its end.
    pub fn completed(&self, picked: &Picked, status: u16) {
        if GATEWAY_ERRORS.contains(&status) {
            return;
        }
        let failures = &picked.node.state.ejection.failures;
        // Most often there is nothing to forget; then nothing is written.
        if failures.load(Ordering::Relaxed) != 0 {
            failures.store(0, Ordering::Relaxed);
        }
    }

    fn recovered(&self, node: &Node, now: Instant) {
        // Requests of the time before the ejection may end now; only the probe speaks for the node.
        if node.state.ejection.standing() != Standing::Probing {
            return;
        }
        node.state.ejection.come_back(now);
        node.metrics().returned();
        info!("upstream {}: node {} is back: a request was answered", self.name, node.url);
        self.refresh();
    }

    fn failed(&self, picked: &Picked, result: UpstreamResult, now: Instant) {
        let node = &picked.node;
        let ejection = &node.state.ejection;
        let failures = ejection.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let again = picked.probe && ejection.standing() == Standing::Probing;
        let newly = ejection.standing() == Standing::In && failures >= self.outlier.consecutive_failures;
        if !again && !newly {
            return;
        }
        // One at a time, or two nodes could each believe that the other one stays.
        let guard = self.ejecting.lock();
        if newly && (ejection.standing() != Standing::In || !self.may_eject(node)) {
            return;
        }
        let span = ejection.eject(&self.outlier, now);
        drop(guard);
        node.metrics().ejected();
        let (name, url, why) = (&self.name, &node.url, result.as_str());
        if again {
            warn!("upstream {name}: node {url} is ejected again, for {span:?}: its probe came to {why}");
        } else {
            warn!("upstream {name}: node {url} is ejected for {span:?}: {failures} failures in a row, the last {why}");
        }
        self.refresh();
    }

    /// Whether the node is neither one too many nor the last.
    fn may_eject(&self, node: &Node) -> bool {
        let nodes = self.nodes();
        let out = nodes.iter().filter(|n| n.standing() != Standing::In).count();
        let most = (nodes.len() * usize::from(self.outlier.max_ejected.0) / 1000).max(1);
        let others = nodes
            .iter()
            .any(|n| n.id() != node.id() && n.is_healthy() && !n.is_drained() && n.standing() == Standing::In);
        out < most && others
    }
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
