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
        let abuser = spread(5_000_000);
        limiter.decide(&limit, spread(7_000_000), 1, start).unwrap();
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

    const SECOND: Rate = Rate { count: 1, per: Duration::from_secs(1) };

    /// As uneven as a hash (the finalizer of splitmix64): multiples of a number would lie as if laid out with a ruler.
    fn spread(key: u64) -> u64 {
        let mixed = (key ^ (key >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The same with far more busy keys than there are places, so that the table is full throughout.
    #[test]
    fn a_table_that_is_too_small_refuses_no_honest_key_and_still_cuts_the_abuser() {
        let limit = limit(SECOND, 50);
        let start = Instant::now();
        let limiter = RateLimiter::<CountMin>::new(1_000, 64, start);
        let abuser = spread(5_000_000);
        let (mut refused, mut passed) = (0, 0);
        for round in 0..100u64 {
            let now = start + Duration::from_secs(round * 10);
            for key in 1..=10_000 {
                refused += u32::from(limiter.decide(&limit, spread(key), 5, now).is_err());
            }
            passed += (0..200).filter(|_| limiter.decide(&limit, abuser, 1, now).is_ok()).count();
        }
        assert_eq!(refused, 0);
        // The burst, and ten calls for each of 99 pauses.
        assert!(passed <= (50 + 990) * 102 / 100, "{passed} passed");
    }

    /// What abusers, ten times as fast as they may be, got of what they are allowed, and the most that one of them got; among
    /// them are honest keys, each as fast as it may be, in bursts and one by one.
    fn abusers_share(abusers: u64, honest: u64) -> (f64, u32) {
        let limit = limit(SECOND, 20);
        let start = Instant::now();
        let limiter = RateLimiter::<CountMin>::new(1_000, 64, start);
        limiter.decide(&limit, spread(7_000_000), 1, start).unwrap();
        let bytes = limiter.bytes();
        let (mut passed, mut calls_of_honest) = (vec![0; abusers as usize], 0);
        for tick in 0..250u64 {
            let now = start + Duration::from_millis(tick * 200);
            for (key, passed) in (1..).zip(&mut passed) {
                *passed += 2 * u32::from(limiter.decide(&limit, spread(key), 2, now).is_ok());
            }
            for key in (1_000_000..1_000_000 + honest).filter(|key| key % 5 == tick % 5) {
                // Twenty at once, a pause of twenty seconds, and then one a second.
                let calls = [20, 0, 1][usize::from(tick >= 5) + usize::from(tick >= 105)];
                for _ in 0..calls {
                    calls_of_honest += 1;
                    assert!(limiter.decide(&limit, spread(key), 1, now).is_ok(), "key {key} in tick {tick}");
                }
            }
        }
        assert!(calls_of_honest >= honest * 45);
        assert_eq!(limiter.bytes(), bytes, "memory is what it was");
        let share = f64::from(passed.iter().sum::<u32>()) / (abusers * (20 + 50)) as f64;
        let most = passed.into_iter().max().unwrap();
        println!("{abusers} abusers: {share:.2} times what they are allowed, the most of one is {most}");
        (share, most)
    }

    #[test]
    fn of_three_times_as_many_abusers_as_configured_each_is_cut_and_not_one_honest_key_among_them_is() {
        let (share, most) = abusers_share(3_000, 500);
        assert!(share <= 1.0 && most <= 20 + 50, "{most}");
    }

    #[test]
    fn of_five_times_as_many_nearly_all_are_cut_and_not_one_honest_key_is() {
        let (share, _) = abusers_share(5_000, 500);
        assert!(share <= 1.1, "{share}");
    }

    /// What can't be counted in so much memory is not refused: it might be honest.
    #[test]
    fn of_more_abusers_than_can_be_told_apart_as_many_are_cut_as_there_are_places() {
        // 334 sets of 21, one of which goes round; of ten times what is allowed the others get all.
        let (cut, uncut) = (334.0 * 20.0, 10_000.0 - 334.0 * 20.0);
        let due = (cut * 70.0 + uncut * 500.0) / (10_000.0 * 70.0);
        let (share, _) = abusers_share(10_000, 500);
        assert!(share <= due * 1.1, "{share} of {due}");
    }
}
