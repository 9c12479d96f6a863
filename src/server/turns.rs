//! When something that is fetched over HTTP is asked for next.

use std::time::{Duration, Instant};

/// After the first failure; doubled by each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The next turn of one thing to fetch.
pub struct Turn {
    at: Instant,
    running: bool,
    failures: u32,
}

impl Turn {
    /// Due at once.
    pub fn new(now: Instant) -> Self {
        Self { at: now, running: false, failures: 0 }
    }

    /// Due after so long.
    pub fn after(now: Instant, wait: Duration) -> Self {
        let mut turn = Self::new(now);
        turn.succeeded(now, wait);
        turn
    }

    /// Whether it is being asked for.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// When it is due; none while it is being asked for.
    pub fn next(&self) -> Option<Instant> {
        Some(self.at).filter(|_| !self.running)
    }

    /// Whether it is to be asked for now. `lost`: what it brought is not there any more, so its time does not count.
    pub fn is_due(&self, now: Instant, lost: bool) -> bool {
        !self.running && (self.at <= now || (lost && self.failures == 0))
    }

    /// It is being asked for.
    pub fn begin(&mut self) {
        self.running = true;
    }

    /// It was had; the next one is wanted after so long.
    pub fn succeeded(&mut self, now: Instant, wait: Duration) {
        *self = Self { at: now + jittered(wait.max(RETRY_FIRST), random_share()), running: false, failures: 0 };
    }

    /// It was not. Returns how often in a row, this time included.
    pub fn failed(&mut self, now: Instant, wait_max: Duration) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.running = false;
        self.at = now + jittered(wait_after_failure(self.failures, wait_max), random_share());
        self.failures
    }
}

fn wait_after_failure(failures: u32, wait_max: Duration) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(wait_max.max(RETRY_FIRST))
}

/// Up to a tenth less, so that gateways that started together don't ask together. `share` is 0 to 1.
fn jittered(wait: Duration, share: f64) -> Duration {
    wait.mul_f64(1.0 - 0.1 * share.clamp(0.0, 1.0))
}

fn random_share() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn failures_are_tried_again_ever_less_often() {
        let waits = [1, 2, 3, 6, 7, 40, u32::MAX].map(|n| wait_after_failure(n, MINUTE).as_secs());
        assert_eq!(waits, [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(wait_after_failure(9, Duration::from_secs(5)).as_secs(), 5);
    }

    #[test]
    fn jitter_takes_a_tenth_at_most() {
        assert_eq!(jittered(10 * MINUTE, 0.0), 10 * MINUTE);
        assert_eq!(jittered(10 * MINUTE, 1.0), 9 * MINUTE);
        assert!((0.0..=1.0).contains(&random_share()));
    }

    #[test]
    fn a_turn_comes_when_it_is_time_or_what_it_brought_is_lost() {
        let now = Instant::now();
        let mut turn = Turn::new(now);
        assert!(turn.is_due(now, false));
        turn.begin();
        assert!(!turn.is_due(now, true) && turn.next().is_none());
        turn.succeeded(now, 10 * MINUTE);
        assert!(
            !turn.is_due(now + 8 * MINUTE, false) && turn.is_due(now, true) && turn.is_due(now + 10 * MINUTE, false)
        );
        assert_eq!((turn.failed(now, MINUTE), turn.failed(now, MINUTE)), (1, 2));
        assert!(!turn.is_due(now, true), "a failure is not tried again at once");
    }
}
