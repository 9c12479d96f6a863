//! The generic cell rate algorithm (ITU-T I.371, annex A): a token bucket in one number, exact at every moment. There is
//! no window, so there is no edge across which a client gets twice its burst.

use std::time::Duration;

use crate::units::Rate;

/// Shortest sketch window, nanoseconds.
const WINDOW_LEAST_NS: u64 = 1_000_000_000;
/// The windows' lengths are powers of this, in seconds.
const WINDOW_STEP: u64 = 4;

/// What is allowed: `burst` at once, and `rate` for as long as one likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    rate: u32,
    burst: u32,
    /// Nanoseconds in which one call is earned.
    interval_ns: u64,
}

/// A request beyond its quota.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// Calls that would still pass now; not 0 only for a batch that wanted more.
    pub remaining: u32,
    /// After this the same request passes, if nothing else comes.
    pub wait: Duration,
}

impl Exceeded {
    /// [`Self::wait`] for `Retry-After`: whole seconds, at least 1.
    pub fn retry_after_seconds(&self) -> u32 {
        u32::try_from(self.wait.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1)
    }
}

impl Quota {
    /// At most `burst` (at least 1) at once, `rate` on.
    pub fn new(rate: Rate, burst: u32) -> Self {
        let per = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX);
        Self { rate: rate.count, burst: burst.max(1), interval_ns: (per / u64::from(rate.count.max(1))).max(1) }
    }

    /// `X-RateLimit-Limit`: calls in the rate's own unit of time.
    pub fn limit(&self) -> u32 {
        self.rate
    }

    /// Calls that pass at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Nanoseconds in which one call is earned.
    pub fn interval_ns(&self) -> u64 {
        self.interval_ns
    }

    /// Nanoseconds in which an exhausted quota is whole again.
    pub fn full_ns(&self) -> u64 {
        self.interval_ns.saturating_mul(u64::from(self.burst))
    }

    /// Takes `calls` at `now` from a bucket that will have drained at `drained_at` (GCRA's theoretical arrival time, both
    /// in nanoseconds of one clock). The bucket's new time, or how much is missing.
    pub(super) fn take(&self, drained_at: u64, now: u64, calls: u32) -> Result<u64, Exceeded> {
        let full_at = now.saturating_add(self.full_ns());
        // A reload may have made the quota smaller than what is owed.
        let drained_at = drained_at.clamp(now, full_at);
        let next = drained_at.saturating_add(self.interval_ns.saturating_mul(u64::from(calls)));
        if next <= full_at {
            return Ok(next);
        }
        let remaining = (full_at - drained_at) / self.interval_ns;
        let wait = Duration::from_nanos(next - full_at);
        Err(Exceeded { remaining: u32::try_from(remaining).unwrap_or(u32::MAX), wait })
    }

    /// Calls that a bucket owes.
    pub(super) fn owed(&self, drained_at: u64, now: u64) -> u32 {
        let calls = drained_at.saturating_sub(now).div_ceil(self.interval_ns);
        u32::try_from(calls).unwrap_or(u32::MAX).min(self.burst)
    }

    /// Which of the sketch's windows is long enough: what was asked before it has drained by now. Limits of similar times
    /// share one.
    pub(super) fn window(&self) -> usize {
        let mut class = 0;
        while window_ns(class) < self.full_ns() && class + 1 < WINDOWS {
            class += 1;
        }
        class
    }
}

/// Lengths of windows that there are: the last is 136 years.
pub(super) const WINDOWS: usize = 17;

/// A window's length in nanoseconds.
pub(super) fn window_ns(class: usize) -> u64 {
    WINDOW_LEAST_NS.saturating_mul(WINDOW_STEP.saturating_pow(u32::try_from(class).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(count: u32, per_s: u64, burst: u32) -> Quota {
        Quota::new(Rate { count, per: Duration::from_secs(per_s) }, burst)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let quota = quota(10, 1, 3);
        let mut at = 0;
        for _ in 0..3 {
            at = quota.take(at, 1_000, 1).unwrap();
        }
        let exceeded = quota.take(at, 1_000, 1).unwrap_err();
        assert_eq!(exceeded, Exceeded { remaining: 0, wait: Duration::from_millis(100) });
        assert_eq!(exceeded.retry_after_seconds(), 1);
        assert!(quota.take(at, 100_000_999, 1).is_err());
        at = quota.take(at, 100_001_000, 1).unwrap();
        assert!(quota.take(at, 100_001_000, 1).is_err());
    }

    #[test]
    fn a_batch_takes_all_of_its_calls_or_none() {
        let quota = quota(60, 60, 5);
        let at = quota.take(0, 0, 3).unwrap();
        let exceeded = quota.take(at, 0, 3).unwrap_err();
        assert_eq!((exceeded.remaining, exceeded.retry_after_seconds()), (2, 1));
        assert!(quota.take(at, 0, 2).is_ok());
        assert!(quota.take(0, 0, 6).is_err(), "a batch longer than the burst never passes");
    }

    #[test]
    fn a_smaller_quota_after_a_reload_does_not_punish_for_the_old_one() {
        let slow = quota(1, 3600, 5);
        let mut at = 0;
        for _ in 0..5 {
            at = slow.take(at, 0, 1).unwrap();
        }
        assert!(quota(1, 1, 1).take(at, 1_000_000_000, 1).is_err());
        assert!(quota(1, 1, 2).take(at.min(2_000_000_000), 1_000_000_000, 1).is_ok());
    }

    #[test]
    fn a_window_is_as_long_as_a_burst_takes_to_drain() {
        for (quota, seconds) in [(quota(100, 1, 200), 4), (quota(10, 1, 10), 1), (quota(5, 3600, 5), 4096)] {
            assert_eq!(window_ns(quota.window()), seconds * 1_000_000_000);
        }
        let longest = quota(1, 3600, 1_000_000);
        assert!(window_ns(longest.window()) >= longest.full_ns());
    }

    proptest! {
        /// Against a token bucket kept in whole numbers: the same answer to every request.
        #[test]
        fn it_admits_what_a_token_bucket_admits(
            interval in 1u64..2_000_000,
            burst in 1u32..50,
            steps in proptest::collection::vec((0u64..4_000_000, 1u32..4), 1..300),
        ) {
            let quota = Quota { rate: 1, burst, interval_ns: interval };
            let (mut now, mut at) = (0, 0);
            // Tokens are kept as nanoseconds earned.
            let full = interval * u64::from(burst);
            let mut tokens = full;
            for (pause, calls) in steps {
                now += pause;
                tokens = (tokens + pause).min(full);
                let cost = interval * u64::from(calls);
                match quota.take(at, now, calls) {
                    Ok(next) => {
                        prop_assert!(tokens >= cost);
                        tokens -= cost;
                        at = next;
                    }
                    Err(exceeded) => {
                        prop_assert!(tokens < cost);
                        prop_assert_eq!(u64::from(exceeded.remaining), tokens / interval);
                        let wait = u64::try_from(exceeded.wait.as_nanos()).unwrap();
                        prop_assert_eq!(wait, cost - tokens);
                    }
                }
            }
        }

        /// In any stretch of time there pass at most the burst and what the stretch earns: no edge to send twice across.
        #[test]
        fn no_stretch_of_time_has_more_than_burst_and_rate(
            interval in 1u64..1_000_000,
            burst in 1u32..20,
            pauses in proptest::collection::vec(0u64..1_000_000, 1..200),
        ) {
            let quota = Quota { rate: 1, burst, interval_ns: interval };
            let (mut now, mut at) = (0, 0);
            let mut passed: Vec<u64> = Vec::new();
            for pause in pauses {
                now += pause;
                if let Ok(next) = quota.take(at, now, 1) {
                    at = next;
                    passed.push(now);
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (j, to) in passed.iter().enumerate().skip(i) {
                    prop_assert!((j - i + 1) as u64 <= u64::from(burst) + (to - from) / interval);
                }
            }
        }
    }
}
