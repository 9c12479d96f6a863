//! The only place that reads the time. Everything else takes it as an argument.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time: the system's, or one that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clocks.
    #[default]
    System,
    /// Stands still until [`ManualClock::advance`] moves it.
    Manual(Arc<ManualClock>),
}

impl Clock {
    /// Monotonic time: for durations and deadlines.
    pub fn now(&self) -> Instant {
        match self {
            Clock::System => Instant::now(),
            Clock::Manual(m) => m.start + Duration::from_nanos(m.elapsed_ns.load(Ordering::Acquire)),
        }
    }

    /// Wall-clock time: for certificates and log lines.
    pub fn wall(&self) -> SystemTime {
        match self {
            Clock::System => SystemTime::now(),
            Clock::Manual(m) => m.wall_start + Duration::from_nanos(m.elapsed_ns.load(Ordering::Acquire)),
        }
    }

    /// Whole seconds since 1970-01-01 UTC; 0 if the clock stands before that.
    pub fn unix_seconds(&self) -> i64 {
        self.wall().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
    }
}

/// A clock for tests.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    wall_start: SystemTime,
    elapsed_ns: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `wall_start` until it is moved.
    pub fn starting_at(wall_start: SystemTime) -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), wall_start, elapsed_ns: AtomicU64::new(0) })
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.elapsed_ns.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
}
