//! A limit on the requests that wait for an upstream's answer, found by itself: the gradient of Envoy's filter of this
//! name, after Netflix's `concurrency-limits`.
//!
//! ```text
//! gradient  = (shortest time + buffer) / time now        0.5 to 2: below 1 there is a queue at the nodes
//! new limit = limit * gradient + square root of that     the root lets it grow while there is none
//! ```
//!
//! The time is that to the first byte, and a request counts until then: a stream of events may run for hours without
//! being taken for a slow answer. The shortest time is measured now and then with so few requests at once that none
//! can have waited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::observe::ConcurrencyMetrics;

/// Fewer answers say nothing about a window; it goes on.
const SAMPLES_MIN: usize = 5;
/// More are not kept; the first ones of a window speak for it.
const SAMPLES_MAX: usize = 1000;
/// The limit before anything is known, if it is between the least and the greatest.
const FIRST_LIMIT: u32 = 20;

/// `upstreams[].adaptive_concurrency`
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The least limit, and the one while the shortest time is measured.
    pub min: u32,
    /// The greatest limit.
    pub max: u32,
    /// How often the limit is set.
    pub window: Duration,
    /// How often the shortest time is measured.
    pub min_rtt_interval: Duration,
    /// How many answers that takes.
    pub min_rtt_requests: usize,
    /// By which share answers may be slower.
    pub buffer: f64,
}

/// The limit of one upstream, all its nodes together.
pub struct AdaptiveConcurrency {
    settings: Settings,
    limit: AtomicU32,
    waiting: AtomicU32,
    /// Most that waited in this window.
    most: AtomicU32,
    /// Counts the times that the shortest time was measured; odd while it is.
    phase: AtomicU32,
    state: Mutex<State>,
    metrics: Arc<ConcurrencyMetrics>,
}

struct State {
    samples: Vec<Duration>,
    shortest: Option<Duration>,
    /// None before the shortest time was measured for the first time.
    window: Option<Window>,
    /// The limit to go on with after measuring.
    limit_before: u32,
}

struct Window {
    since: Instant,
    /// When the shortest time is measured again.
    measure_at: Instant,
}

impl AdaptiveConcurrency {
    /// Nothing is known yet; the first answers tell the shortest time.
    pub fn new(settings: Settings, metrics: Arc<ConcurrencyMetrics>) -> Arc<Self> {
        let first = FIRST_LIMIT.clamp(settings.min, settings.max);
        let this = Self {
            limit: AtomicU32::new(settings.min),
            waiting: AtomicU32::new(0),
            most: AtomicU32::new(0),
            phase: AtomicU32::new(1),
            state: Mutex::new(State { samples: Vec::new(), shortest: None, window: None, limit_before: first }),
            settings,
            metrics,
        };
        this.metrics.set_limit(this.settings.min);
        Arc::new(this)
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Lets a request wait for an answer; critical ones up to twice the limit. None: too many do.
    pub fn acquire(self: &Arc<Self>, critical: bool, now: Instant) -> Option<Permit> {
        let limit = self.limit() << u32::from(critical);
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if waiting > limit {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.most.fetch_max(waiting, Ordering::Relaxed);
        Some(Permit { of: self.clone(), since: now, phase: self.phase.load(Ordering::Relaxed) })
    }

    fn answered(&self, permit: &Permit, now: Instant) {
        let took = now.saturating_duration_since(permit.since);
        let mut state = self.state.lock();
        let phase = self.phase.load(Ordering::Relaxed);
        // Who was let in with another limit says nothing about this one.
        if permit.phase != phase {
            return;
        }
        if state.samples.len() < SAMPLES_MAX.max(self.settings.min_rtt_requests) {
            state.samples.push(took);
        }
        if phase % 2 == 1 {
            if state.samples.len() >= self.settings.min_rtt_requests {
                self.end_measuring(&mut state, phase, now);
            }
            return;
        }
        let enough = state.samples.len() >= SAMPLES_MIN;
        let Some(window) = &mut state.window else { return };
        if enough && now.saturating_duration_since(window.since) >= self.settings.window {
            window.since = now;
            let measure = now >= window.measure_at;
            self.end_window(&mut state);
            if measure {
                state.limit_before = self.limit();
                self.phase.store(phase.wrapping_add(1), Ordering::Relaxed);
                self.set_limit(self.settings.min);
            }
        }
    }

    fn end_measuring(&self, state: &mut State, phase: u32, now: Instant) {
        state.shortest = Some(median(&mut state.samples));
        state.samples.clear();
        // Upstreams that began together do not go on measuring together.
        let jitter = f64::from(phase.wrapping_mul(0x9E37_79B9) >> 8) / f64::from(1 << 24);
        let measure_at = now + self.settings.min_rtt_interval.mul_f64(1.0 + jitter / 10.0);
        state.window = Some(Window { since: now, measure_at });
        self.phase.store(phase.wrapping_add(1), Ordering::Relaxed);
        self.set_limit(state.limit_before);
    }

    fn end_window(&self, state: &mut State) {
        let took = median(&mut state.samples);
        state.samples.clear();
        let Some(shortest) = state.shortest else { return };
        let limit = self.limit();
        let gradient = shortest.as_secs_f64() * (1.0 + self.settings.buffer) / took.as_secs_f64().max(1e-9);
        let scaled = f64::from(limit) * gradient.clamp(0.5, 2.0);
        let next = (scaled + scaled.sqrt()).round().clamp(f64::from(self.settings.min), f64::from(self.settings.max));
        let next = next as u32;
        // A limit that nobody comes near is not tried, so it does not grow.
        let tried = self.most.swap(self.waiting.load(Ordering::Relaxed), Ordering::Relaxed) >= limit.div_ceil(2);
        if next < limit || tried {
            self.set_limit(next);
        }
    }

    fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
        self.metrics.set_limit(limit);
    }
}

/// The middle one; zero of none.
fn median(samples: &mut [Duration]) -> Duration {
    if samples.is_empty() {
        return Duration::ZERO;
    }
    let middle = samples.len() / 2;
    *samples.select_nth_unstable(middle).1
}

/// A request that waits for its answer.
pub struct Permit {
    of: Arc<AdaptiveConcurrency>,
    since: Instant,
    phase: u32,
}

impl Permit {
    /// The first byte came, or the wait for it was given up: either way it took so long.
    pub fn answered(self, now: Instant) {
        self.of.answered(&self, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "adaptive_concurrency_tests.rs"]
mod tests;
