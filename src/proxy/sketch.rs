//! The rate limits' first stage on Pingora's count-min sketch.

use pingora_limits::estimator::Estimator;

use crate::policy::rate_limit::Sketch;

/// Rows: a key's count is the least of so many counters, each shared with other keys of its own.
const ROWS: usize = 2;

/// [`Estimator`] alone: Pingora's `Rate` around it reads the clock itself, and has windows with edges.
pub struct CountMin {
    counters: Estimator,
    slots: usize,
}

impl Sketch for CountMin {
    fn sized(keys: usize) -> Self {
        let slots = keys.max(1);
        Self { counters: Estimator::new(ROWS, slots), slots }
    }

    fn add(&self, key: u64, calls: u32) -> u64 {
        let count = self.counters.incr(key, isize::try_from(calls).unwrap_or(isize::MAX));
        // Negative only after more calls than there are in a window.
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    fn count(&self, key: u64) -> u64 {
        u64::try_from(self.counters.get(key)).unwrap_or(u64::MAX)
    }

    fn clear(&self) {
        self.counters.reset();
    }

    fn bytes(&self) -> usize {
        ROWS * self.slots * size_of::<isize>()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::policy::rate_limit::{KeyPart, Limit, Quota, RateLimiter};
    use crate::units::Rate;

    #[test]
    fn it_never_counts_too_little() {
        let sketch = CountMin::sized(100);
        for round in 1..=3u64 {
            for key in 0..1000 {
                assert!(sketch.add(key, 2) >= 2 * round);
            }
        }
        assert!((0..1000).all(|key| sketch.count(key) >= 6));
        sketch.clear();
        assert_eq!(sketch.count(1), 0);
    }

    /// Issue 4: a million addresses within their limits, and an abuser among them. The default size.
    #[test]
    fn of_a_million_keys_within_their_limit_not_one_is_refused_and_an_abuser_is_cut_to_its_rate() {
        // The smaller is exact from a key's first request; the larger is watched by the sketch first.
        for (rate, burst) in [(10, 20), (100, 200)] {
            million(rate, burst);
        }
    }

    fn limit(rate: Rate, burst: u32) -> Limit {
        let metrics = crate::observe::Metrics::new();
        Limit::new("listener/x/address".into(), &[KeyPart::Address], Quota::new(rate, burst), true, false, &metrics)
    }

    fn million(rate: u32, burst: u32) {
        let limit = limit(Rate { count: rate, per: Duration::from_secs(1) }, burst);
        let start = Instant::now();
        let limiter = RateLimiter::<CountMin>::new(100_000, 64, start);
        let spread = |key: u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let abuser = spread(5_000_000);
        limiter.decide(&limit, spread(0), 1, start).unwrap();
        let bytes = limiter.bytes();
        assert!(bytes < 12 << 20, "{bytes}");
        let (mut refused, mut passed) = (0, 0);
        // Twenty seconds; each honest key comes three times at once in one of them, the abuser ten thousand times a second.
        for tick in 0..200_000u64 {
            let now = start + Duration::from_micros(tick * 100);
            for key in 1 + tick * 5..=tick * 5 + 5 {
                for _ in 0..3 {
                    refused += u32::from(limiter.decide(&limit, spread(key), 1, now).is_err());
                }
            }
            passed += u32::from(limiter.decide(&limit, abuser, 1, now).is_ok());
        }
        assert_eq!(refused, 0);
        let allowed = f64::from(burst) + f64::from(rate) * 20.0;
        assert!((f64::from(passed) / allowed - 1.0).abs() <= 0.02, "{passed} passed, {allowed} are allowed");
        assert_eq!(limiter.bytes(), bytes, "memory is what it was");
    }

    /// The same with five times as many busy keys as there are places, so that the table is full throughout.
    #[test]
    fn a_table_that_is_too_small_refuses_no_honest_key_and_still_cuts_the_abuser() {
        let limit = limit(Rate { count: 1, per: Duration::from_secs(1) }, 50);
        let start = Instant::now();
        let limiter = RateLimiter::<CountMin>::new(1_000, 64, start);
        let spread = |key: u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let abuser = spread(5_000_000);
        let (mut refused, mut passed) = (0, 0);
        for round in 0..100u64 {
            let now = start + Duration::from_secs(round * 10);
            // A tenth of the limit each.
            for key in (1..=10_000).filter(|key| key % 5 == round % 5) {
                refused += u32::from(limiter.decide(&limit, spread(key), 5, now).is_err());
            }
            passed += (0..200).filter(|_| limiter.decide(&limit, abuser, 1, now).is_ok()).count();
        }
        assert_eq!(refused, 0);
        // The burst, once more before a bucket is taken from another, and ten calls for each of 99 pauses.
        assert!(passed <= (50 + 50 + 990) * 102 / 100, "{passed} passed");
    }

    /// Three times as many abusers as there are places: they push one another out, and yet none has a new burst each time.
    #[test]
    fn more_abusers_than_places_are_cut_and_hardly_an_honest_key_among_them_is() {
        let limit = limit(Rate { count: 1, per: Duration::from_secs(1) }, 20);
        let start = Instant::now();
        let limiter = RateLimiter::<CountMin>::new(1_000, 64, start);
        let spread = |key: u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let (mut refused, mut passed) = (0, 0);
        for tick in 0..500u64 {
            let now = start + Duration::from_millis(tick * 200);
            passed += (1..=5_000).filter(|key| limiter.decide(&limit, spread(*key), 2, now).is_ok()).count() * 2;
            // Each honest one once in ten seconds.
            let honest = (10_000..15_000).filter(|key| key % 50 == tick % 50);
            refused += honest.filter(|key| limiter.decide(&limit, spread(*key), 1, now).is_err()).count();
        }
        let allowed = 5_000 * (20 + 100);
        println!("{passed} calls of abusers passed of {allowed} allowed; {refused} of 50000 honest ones were refused");
        assert!(passed <= allowed * 2, "{passed} passed, {allowed} are allowed");
        // Those that share all of their counters with abusers: before, no abuser was cut.
        assert!(refused <= 50_000 / 50, "{refused} of 50000 honest calls were refused");
    }
}
