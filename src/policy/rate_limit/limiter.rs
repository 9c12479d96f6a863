//! Both stages together: one for the process, so that its memory is bounded in one place and a reload changes nothing
//! of what has been counted.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;

use super::buckets::Buckets;
use super::gcra::{Exceeded, Quota, WINDOWS, window_ns};
use super::key::Facts;
use super::limit::Limit;
use super::shared::Answer;
use super::window::{Sketch, Windows};

/// Of a burst, the part that passes without a bucket: keys that come now and then never take one. It is what a limit
/// may be exceeded by at most: 1 of 50, and nothing where the burst is less than 50.
const UNWATCHED: u32 = 50;
/// Time begins here and not at 0, so that one can look back from the first moment.
const BEGINNING_NS: u64 = 1 << 62;

/// Counts requests of all limits.
#[derive(Debug)]
pub struct RateLimiter<S> {
    /// Random keys: a client can't choose addresses that meet in one place.
    hasher: ahash::RandomState,
    began: Instant,
    keys: usize,
    ipv6_prefix: u8,
    /// Each limit's own, by its name: else keys of one that drains in an hour, which a client may choose, would push out those
    /// of one that drains in a second. They stay across a reload.
    tables: Mutex<HashMap<Box<str>, Arc<Buckets>>>,
    /// By length; a length that no limit has takes no memory.
    windows: [OnceLock<Windows<S>>; WINDOWS],
}

impl<S: Sketch> RateLimiter<S> {
    /// For about `keys` keys of each limit that are busy at once, in constant memory: see [`Self::bytes`]. IPv6 addresses are counted by
    /// the network of `ipv6_prefix` bits.
    pub fn new(keys: usize, ipv6_prefix: u8, now: Instant) -> Self {
        Self {
            hasher: ahash::RandomState::new(),
            began: now,
            keys,
            ipv6_prefix,
            tables: Mutex::default(),
            windows: [const { OnceLock::new() }; WINDOWS],
        }
    }

    /// The key under which a limit counts a request.
    pub fn key(&self, limit: &Limit, facts: &Facts<'_>) -> u64 {
        let mut hash = self.hasher.build_hasher();
        limit.feed(facts, self.ipv6_prefix, &mut hash);
        hash.finish()
    }

    /// Whether a key may make `calls` calls more. They are taken from its quota, or none of them is.
    ///
    /// # Errors
    /// It may not; what is left and when to come back.
    pub fn decide(&self, limit: &Limit, key: u64, calls: u32, now: Instant) -> Result<(), Exceeded> {
        let now = self.nanoseconds(now);
        let (quota, buckets) = (&limit.quota, self.table(limit, now));
        if let Some(taken) = buckets.take(key, quota, calls, now) {
            return taken;
        }
        let few = u64::from(quota.burst() / UNWATCHED);
        if few > 0 && self.window(quota, now).is_few(key, calls, few, now) {
            return Ok(());
        }
        buckets.open(key, quota, calls, now).unwrap_or_else(|| {
            limit.metrics.uncounted(calls);
            Ok(())
        })
    }

    /// What Redis answered to calls that [`Self::decide`] let pass at `asked`.
    ///
    /// # Errors
    /// They are refused; what is left and when to come back.
    pub fn learn(&self, limit: &Limit, key: u64, calls: u32, answer: Answer, asked: Instant) -> Result<(), Exceeded> {
        let now = self.nanoseconds(asked);
        let quota = &limit.quota;
        // Not sooner: others only fill it, and the way to Redis and back took some time too.
        let drained_at = now.saturating_add(u64::try_from(answer.drains_in.as_nanos()).unwrap_or(u64::MAX));
        let taken_ns = quota.interval_ns().saturating_mul(u64::from(calls));
        self.table(limit, now).learn(key, quota, drained_at, taken_ns, now, !answer.admitted);
        match answer.admitted {
            true => Ok(()),
            // Redis counts in microseconds; what it refuses may just fit here.
            false => Err(quota.take(drained_at, now, calls).err().unwrap_or_default()),
        }
    }

    /// Bits of an IPv6 address that are counted by.
    pub fn ipv6_prefix(&self) -> u8 {
        self.ipv6_prefix
    }

    /// What [`Self::decide`] would refuse, as far as the key has a bucket. Nothing is taken.
    ///
    /// # Errors
    /// As there.
    pub fn foresee(&self, limit: &Limit, key: u64, calls: u32, now: Instant) -> Result<(), Exceeded> {
        let now = self.nanoseconds(now);
        let (quota, buckets) = (&limit.quota, self.table(limit, now));
        // No bucket has room for so many: that is refused, and what is left is said.
        match buckets.take(key, quota, u32::MAX, now) {
            Some(Err(left)) if left.remaining < calls => buckets.take(key, quota, calls, now).unwrap_or(Ok(())),
            _ => Ok(()),
        }
    }

    /// Memory taken, bytes. It grows only when a limit is first asked.
    pub fn bytes(&self) -> usize {
        self.tables.lock().values().map(|table| table.bytes()).sum::<usize>()
            + self.windows.iter().filter_map(OnceLock::get).map(Windows::bytes).sum::<usize>()
    }

    /// Keys with a bucket that has not drained.
    pub fn busy(&self, now: Instant) -> usize {
        let now = self.nanoseconds(now);
        self.tables.lock().values().map(|table| table.busy(now)).sum()
    }

    fn table<'l>(&self, limit: &'l Limit, now: u64) -> &'l Buckets {
        limit.table.get_or_init(|| {
            let mut tables = self.tables.lock();
            // Those of limits that a reload took away, once nothing is owed in them.
            tables.retain(|name, table| **name == *limit.name || Arc::strong_count(table) > 1 || table.busy(now) > 0);
            tables.entry(limit.name.clone()).or_insert_with(|| Arc::new(Buckets::new(self.keys))).clone()
        })
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began).as_nanos();
        BEGINNING_NS.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    fn window(&self, quota: &Quota, now: u64) -> &Windows<S> {
        let class = quota.window();
        self.windows[class].get_or_init(|| Windows::new(self.keys, window_ns(class), now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::key::{Caller, KeyPart};
    use super::super::window::tests::Exact;
    use super::*;
    use crate::units::Rate;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(count: u32, per: Duration, burst: u32) -> Limit {
        named("route/a2a/peer", count, per, burst)
    }

    fn named(name: &str, count: u32, per: Duration, burst: u32) -> Limit {
        let metrics = crate::observe::Metrics::new();
        Limit::new(name.into(), &[KeyPart::Peer], Quota::new(Rate { count, per }, burst), true, false, &metrics)
    }

    fn limiter(keys: usize) -> (RateLimiter<Exact>, Instant) {
        let now = Instant::now();
        (RateLimiter::new(keys, 64, now), now)
    }

    #[test]
    fn a_small_limit_is_exact() {
        let (limiter, now) = limiter(100);
        let limit = limit(2, 60 * SECOND, 3);
        for _ in 0..3 {
            limiter.decide(&limit, 7, 1, now).unwrap();
        }
        let exceeded = limiter.decide(&limit, 7, 1, now).unwrap_err();
        assert_eq!((exceeded.remaining, exceeded.retry_after_seconds()), (0, 30));
        assert!(limiter.decide(&limit, 8, 1, now).is_ok(), "another key has a quota of its own");
        assert!(limiter.decide(&limit, 7, 1, now + 30 * SECOND).is_ok());
        assert!(limiter.decide(&limit, 7, 1, now + 31 * SECOND).is_err());
    }

    #[test]
    fn what_is_foreseen_is_not_taken() {
        let (limiter, now) = limiter(100);
        let limit = limit(2, 60 * SECOND, 3);
        assert!(limiter.foresee(&limit, 7, 3, now).is_ok(), "no bucket yet");
        limiter.decide(&limit, 7, 1, now).unwrap();
        for _ in 0..3 {
            assert!(limiter.foresee(&limit, 7, 2, now).is_ok());
            let exceeded = limiter.foresee(&limit, 7, 3, now).unwrap_err();
            assert_eq!((exceeded.remaining, exceeded.retry_after_seconds()), (2, 30));
        }
        assert!(limiter.decide(&limit, 7, 2, now).is_ok());
        assert!(limiter.foresee(&limit, 7, 1, now).is_err());
    }

    #[test]
    fn a_reload_goes_on_counting_under_the_same_name() {
        let (limiter, now) = limiter(100);
        let headers = http::HeaderMap::new();
        let facts = Facts {
            address: "192.0.2.1".parse().unwrap(),
            caller: Caller::Peer("alice"),
            sni: None,
            route: Some("a2a"),
            method: None,
            issuer: None,
            headers: &headers,
        };
        let built = |name: &str| named(name, 1, 60 * SECOND, 1);
        let (before, after) = (built("route/a2a/peer"), built("route/a2a/peer"));
        assert!(limiter.decide(&before, limiter.key(&before, &facts), 1, now).is_ok());
        assert!(limiter.decide(&after, limiter.key(&after, &facts), 1, now).is_err());
        let other = built("route/other/peer");
        assert!(limiter.decide(&other, limiter.key(&other, &facts), 1, now).is_ok());
    }

    #[test]
    fn there_is_no_edge_across_which_twice_the_burst_passes() {
        let (limiter, start) = limiter(100);
        let limit = limit(100, SECOND, 100);
        let mut passed = Vec::new();
        // A thousand a second for three seconds; the fullest 100 ms anywhere are looked for.
        for ms in 0..3000u32 {
            let now = start + Duration::from_millis(u64::from(ms));
            if limiter.decide(&limit, 7, 1, now).is_ok() {
                passed.push(ms);
            }
        }
        assert!((400..=402).contains(&passed.len()), "{} passed, not the burst and three seconds' rate", passed.len());
        let fullest = passed
            .iter()
            .filter(|ms| **ms > 1000)
            .map(|from| passed.iter().filter(|ms| (*from..from + 100).contains(ms)).count());
        assert!(fullest.max().unwrap() <= 11);
    }

    #[test]
    fn without_a_free_place_whoever_is_below_the_limit_passes_and_an_abuser_soon_does_not() {
        let (limiter, now) = limiter(1);
        let limit = limit(1, SECOND, 10);
        for key in 1..1000 {
            for _ in 0..10 {
                assert!(limiter.decide(&limit, key, 1, now).is_ok(), "key {key}");
            }
        }
        let passed = (0..1000).filter(|_| limiter.decide(&limit, 5000, 1, now).is_ok()).count();
        assert!(passed <= 20, "{passed} passed");
        let passed = (1..=100).filter(|s| limiter.decide(&limit, 5000, 1, now + SECOND * *s).is_ok()).count();
        assert_eq!(passed, 100);
    }

    #[test]
    fn as_many_keys_as_there_are_places_are_cut_the_others_pass_and_a_metric_tells_it() {
        let (limiter, start) = limiter(1);
        let metrics = crate::observe::Metrics::new();
        let quota = Quota::new(Rate { count: 1, per: SECOND }, 10);
        let limit = Limit::new("route/a2a/peer".into(), &[KeyPart::Peer], quota, true, false, &metrics);
        let mut passed = 0;
        // Twice as many keys as there are places, each twenty times as fast as it may be, for a hundred seconds.
        for tick in 0..2000u32 {
            let now = start + tick * SECOND / 20;
            passed += (1..=42).filter(|key| limiter.decide(&limit, *key, 1, now).is_ok()).count();
        }
        // The last place goes round among those that have none.
        let (cut, uncut) = (20 * (10 + 100), 22 * 2000);
        assert!(passed >= uncut && passed <= (cut + uncut) * 102 / 100, "{passed} passed, {cut} and {uncut} are due");
        let text = metrics.encode();
        let uncounted =
            text.lines().find(|l| l.starts_with("hive_gateway_rate_limit_uncounted_total{limit=\"route/a2a/peer\"}"));
        let uncounted: usize = uncounted.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(uncounted > 0 && uncounted <= uncut, "{uncounted}");
    }

    #[test]
    fn honest_keys_are_refused_in_no_flood_of_keys_that_push_one_another_out() {
        let (limiter, start) = limiter(1);
        let limit = limit(1, SECOND, 10);
        for tick in 0..2000u32 {
            let now = start + tick * SECOND / 20;
            for key in 1..=110 {
                let _ = limiter.decide(&limit, key, 1, now);
            }
            // One a second, and now and then ten at once.
            let calls = if tick % 400 == 0 { 10 } else { u32::from(tick % 20 == 0 && tick % 400 > 200) };
            for key in 500..520 {
                for _ in 0..calls {
                    assert!(limiter.decide(&limit, key, 1, now).is_ok(), "key {key} in tick {tick}");
                }
            }
        }
    }

    #[test]
    fn keys_of_one_limit_push_out_none_of_another() {
        let (limiter, now) = limiter(1);
        let (second, hour) =
            (named("route/a2a/address", 10, SECOND, 10), named("route/b/header:x", 1, 3600 * SECOND, 1));
        let mut passed = 0;
        for key in 1..2000 {
            // A client that goes on and on, and one that chooses ever new keys with a debt of an hour each.
            passed += u32::from(limiter.decide(&second, 5000, 1, now).is_ok());
            let _ = limiter.decide(&hour, key, 1, now);
            let _ = limiter.decide(&hour, key, 1, now);
        }
        assert_eq!(passed, 10);
    }

    #[test]
    fn a_table_of_a_limit_that_is_gone_stays_until_nothing_is_owed() {
        let (limiter, now) = limiter(1);
        limiter.decide(&limit(1, SECOND, 1), 7, 1, now).unwrap();
        assert!(limiter.decide(&limit(1, SECOND, 1), 7, 1, now).is_err(), "gone and back in one reload");
        let one = limiter.tables.lock().len();
        limiter.decide(&named("other", 1, SECOND, 1), 7, 1, now).unwrap();
        assert_eq!((one, limiter.tables.lock().len()), (1, 2));
        limiter.decide(&named("third", 1, SECOND, 1), 7, 1, now + 2 * SECOND).unwrap();
        assert_eq!(limiter.tables.lock().len(), 1);
    }

    #[test]
    fn a_key_that_comes_now_and_then_takes_no_bucket() {
        let (limiter, now) = limiter(1000);
        let limit = limit(100, SECOND, 200);
        for key in 1..500 {
            assert!(limiter.decide(&limit, key, 1, now).is_ok());
        }
        assert_eq!(limiter.busy(now), 0);
        for _ in 0..10 {
            limiter.decide(&limit, 7, 1, now).unwrap();
        }
        assert_eq!(limiter.busy(now), 1);
    }
}
