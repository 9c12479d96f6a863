//! Whether the gateway is behind, and what is shed then: first new connections, then requests, those of critical routes
//! last; nothing that has been let in.
//!
//! The sign is how late the threads that serve requests get to what is due (their event loops' lag). A few tasks sleep
//! on those threads and note how late they are woken. What counts is the least of the last notes: one late wake-up is
//! chance, all of them late is a queue (as CoDel tells the two apart, RFC 8289).

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// Tasks that sleep and note how late they are woken.
pub const PROBES: usize = 4;
/// How long each sleeps.
pub const PROBE_SLEEP: Duration = Duration::from_millis(100);

/// From when on it is too much: `overload` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// False: counted only.
    pub enforce: bool,
    /// Connections at once.
    pub connections: u32,
    /// Requests at once of routes that are not critical.
    pub requests: u64,
    /// Requests at once of all routes.
    pub requests_critical: u64,
    /// Lag from which requests are shed.
    pub scaling: Duration,
    /// Lag from which all are, but critical ones.
    pub saturation: Duration,
    /// `Retry-After`.
    pub retry_after_seconds: u32,
}

/// What may be shed, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A new connection: its handshake costs as much as ten requests, and nobody waits for an answer yet.
    Connection,
    /// A request.
    Request,
    /// A request of a critical route.
    Critical,
}

/// The lag of the moment. Shared by all.
#[derive(Debug, Default)]
pub struct Lag {
    notes_us: [AtomicU32; PROBES],
    next: AtomicUsize,
    /// The least of the notes.
    now_us: AtomicU32,
    /// Spreads what is shed evenly over what comes.
    dither: AtomicU32,
}

impl Lag {
    /// A task was woken so late.
    pub fn note(&self, late: Duration) {
        let late_us = u32::try_from(late.as_micros()).unwrap_or(u32::MAX);
        let at = self.next.fetch_add(1, Ordering::Relaxed) % PROBES;
        self.notes_us[at].store(late_us, Ordering::Relaxed);
        let least = self.notes_us.iter().map(|note| note.load(Ordering::Relaxed)).min().unwrap_or(0);
        self.now_us.store(least, Ordering::Relaxed);
    }

    /// How often it was noted. It stands still only while those threads do.
    pub fn notes(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// The lag now.
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.now_us.load(Ordering::Relaxed).into())
    }

    /// Whether one more of `class` is to be shed. One load and one comparison while all is well.
    pub fn sheds(&self, class: Class, limits: &Limits) -> bool {
        let lag = self.now();
        let (from, to) = match class {
            Class::Connection => (limits.scaling / 2, limits.scaling),
            Class::Request => (limits.scaling, limits.saturation),
            Class::Critical => (limits.saturation, limits.saturation * 2),
        };
        if lag <= from {
            return false;
        }
        let share = (lag - from).as_secs_f64() / to.saturating_sub(from).as_secs_f64().max(1e-9);
        // Steps of the golden ratio fill the circle evenly: of any n in a row the share is shed, give or take one.
        let at = self.dither.fetch_add(0x9E37_79B9, Ordering::Relaxed);
        f64::from(at) / f64::from(u32::MAX) < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        enforce: true,
        connections: 1,
        requests: 1,
        requests_critical: 1,
        scaling: Duration::from_millis(200),
        saturation: Duration::from_millis(1000),
        retry_after_seconds: 1,
    };

    fn lag(ms: u64) -> Lag {
        let lag = Lag::default();
        for _ in 0..PROBES {
            lag.note(Duration::from_millis(ms));
        }
        lag
    }

    fn shed_of_1000(ms: u64, class: Class) -> usize {
        let lag = lag(ms);
        (0..1000).filter(|_| lag.sheds(class, &LIMITS)).count()
    }

    #[test]
    fn connections_are_shed_first_and_critical_requests_last() {
        for (ms, connections, requests, critical) in [
            (0, 0, 0, 0),
            (100, 0, 0, 0),
            (150, 500, 0, 0),
            (200, 1000, 0, 0),
            (600, 1000, 500, 0),
            (1000, 1000, 1000, 0),
            (1500, 1000, 1000, 500),
            (9000, 1000, 1000, 1000),
        ] {
            for (class, wanted) in
                [(Class::Connection, connections), (Class::Request, requests), (Class::Critical, critical)]
            {
                let shed = shed_of_1000(ms, class);
                assert!(shed.abs_diff(wanted) <= 2, "{class:?} at {ms} ms: {shed}, not {wanted}");
            }
        }
    }

    #[test]
    fn one_late_wake_up_is_no_queue() {
        let lag = Lag::default();
        for ms in [0, 900, 900, 900] {
            lag.note(Duration::from_millis(ms));
        }
        assert_eq!(lag.now(), Duration::ZERO);
        lag.note(Duration::from_millis(900));
        assert_eq!(lag.now(), Duration::from_millis(900));
        lag.note(Duration::from_millis(3));
        assert_eq!(lag.now(), Duration::from_millis(3), "and it is over with the first that is in time");
    }
}
