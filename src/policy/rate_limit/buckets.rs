//! The exact stage: a table of GCRA buckets of fixed size.
//!
//! A key belongs to one small set of places, as in a processor's cache: a look-up touches three lines of memory and one
//! lock that hardly anybody else wants. A drained bucket's place is free.
//!
//! What a bucket holds was taken by its own key, so nobody is refused for what others did. Keys are told apart within a set
//! by 32 bits of a hash that no client knows: one pair of clients in two hundred million shares a bucket.

use parking_lot::Mutex;

use super::gcra::{Exceeded, Quota};

/// Places of a set: with its lock, three cache lines of 64 bytes.
const WAYS: usize = 21;
/// Keys that a set is made for. Far fewer than there are places, so that a flood of many times as many is still counted.
const KEYS_PER_SET: usize = 3;
/// Bits of the longest time that a place can hold.
const TIME_BITS: u32 = 31;

/// What a set came to.
type Taken = Result<(), Exceeded>;

#[derive(Debug, Default)]
struct Places {
    /// Times below are counted from here.
    base: u64,
    /// And in units of two to the power of this, nanoseconds.
    unit: u32,
    /// Calls that passed uncounted since a place was last given away.
    turned_away: u32,
    tags: [u32; WAYS],
    /// When each bucket has drained.
    drains: [u32; WAYS],
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set(Mutex<Places>);

/// Buckets of one limit.
#[derive(Debug)]
pub(super) struct Buckets {
    sets: Box<[Set]>,
}

impl Buckets {
    /// Room for `keys` busy keys, and for a flood of some six times as many.
    pub fn new(keys: usize) -> Self {
        Self { sets: (0..keys.div_ceil(KEYS_PER_SET).max(1)).map(|_| Set::default()).collect() }
    }

    /// Memory taken, bytes: the same from first to last.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.sets)
    }

    /// Buckets that have not drained.
    pub fn busy(&self, now: u64) -> usize {
        let busy = |places: &Places| (0..WAYS).filter(|place| places.drained_at(*place) > now).count();
        self.sets.iter().map(|set| busy(&set.0.lock())).sum()
    }

    fn set(&self, key: u64) -> &Set {
        // The upper half of the product: as good as a remainder, and cheaper.
        let index = (u128::from(key) * self.sets.len() as u128) >> 64;
        &self.sets[index as usize]
    }

    /// Takes `calls` from the key's bucket. None: it has no bucket.
    pub fn take(&self, key: u64, quota: &Quota, calls: u32, now: u64) -> Option<Taken> {
        self.set(key).0.lock().take(key, quota, calls, now)
    }

    /// The key's bucket is known to drain at `drained_at`; of what it holds here, `returned_ns` are part of that already. A key
    /// without a bucket gets one if a place is free, or is made.
    pub fn learn(&self, key: u64, quota: &Quota, drained_at: u64, returned_ns: u64, now: u64, make_room: bool) {
        let mut places = self.set(key).0.lock();
        if let Some(place) = places.find(key) {
            // What is still held beyond that are calls whose answers are on their way.
            let held = places.drained_at(place).saturating_sub(returned_ns);
            places.put(place, key, held.max(drained_at), quota, now);
            return;
        }
        let (place, drains) = places.emptiest();
        // A fuller bucket is never the one that makes room.
        if drains <= now || (make_room && drains < drained_at) {
            places.put(place, key, drained_at, quota, now);
        }
    }

    /// As [`Self::take`], and gives the key a bucket if it has none: a free place, or that of the bucket which is nearest to
    /// empty once as many calls as it holds have passed without one. None: it has none yet, and the calls are not counted.
    ///
    /// So whoever stays in its bucket's place is whoever asks most, and one that goes on without a place soon gets one (the
    /// method of Misra and Gries for what occurs most often).
    pub fn open(&self, key: u64, quota: &Quota, calls: u32, now: u64) -> Option<Taken> {
        let mut places = self.set(key).0.lock();
        // Another thread may have been faster.
        if let Some(taken) = places.take(key, quota, calls, now) {
            return Some(taken);
        }
        let drained_at = match quota.take(0, now, calls) {
            Ok(drained_at) => drained_at,
            Err(exceeded) => return Some(Err(exceeded)),
        };
        let (place, drains) = places.emptiest();
        if drains > now {
            places.turned_away = places.turned_away.saturating_add(calls);
            if places.turned_away <= quota.owed(drains, now) {
                return None;
            }
        }
        places.turned_away = 0;
        places.put(place, key, drained_at, quota, now);
        Some(Ok(()))
    }
}

/// What tells a key from the others of its set, which agree in their upper bits.
fn tag(key: u64) -> u32 {
    key as u32
}

impl Places {
    fn find(&self, key: u64) -> Option<usize> {
        let tag = tag(key);
        // Without a way out in the middle it takes a handful of vector instructions.
        let found = self.tags.iter().enumerate().fold(0u32, |found, (i, t)| found | (u32::from(*t == tag) << i));
        (found != 0).then(|| found.trailing_zeros() as usize)
    }

    fn take(&mut self, key: u64, quota: &Quota, calls: u32, now: u64) -> Option<Taken> {
        let place = self.find(key)?;
        let (owed, full_at) = (self.drained_at(place), now.saturating_add(quota.full_ns()));
        let taken = quota.take(owed, now, calls);
        if let Ok(drained_at) = taken {
            self.put(place, key, drained_at, quota, now);
        } else if owed > full_at {
            // Of another quota, before a reload: from here on it drains as this one does.
            self.put(place, key, full_at, quota, now);
        }
        Some(taken.map(|_| ()))
    }

    fn drained_at(&self, place: usize) -> u64 {
        self.base.saturating_add(u64::from(self.drains[place]) << self.unit)
    }

    /// The bucket that drains first, and when: one that has drained if there is any.
    fn emptiest(&self) -> (usize, u64) {
        let mut first = 0;
        for place in 1..WAYS {
            if self.drains[place] < self.drains[first] {
                first = place;
            }
        }
        (first, self.drained_at(first))
    }

    /// Rounded down, by less than the thousand millionth part of what a full bucket holds: no call is refused for it.
    fn put(&mut self, place: usize, key: u64, drained_at: u64, quota: &Quota, now: u64) {
        let unit = (u64::BITS - quota.full_ns().leading_zeros()).saturating_sub(TIME_BITS);
        let fits = |places: &Self| u32::try_from(drained_at.saturating_sub(places.base) >> unit).ok();
        let drains = fits(self).filter(|_| self.unit == unit).unwrap_or_else(|| {
            self.count_from(now, unit);
            fits(self).unwrap_or(u32::MAX)
        });
        self.tags[place] = tag(key);
        self.drains[place] = drains;
    }

    /// Counts times anew, from now and in such units. This happens about once in the time that a full bucket takes to drain,
    /// and where a reload has changed the quota.
    fn count_from(&mut self, now: u64, unit: u32) {
        for place in 0..WAYS {
            let left = self.drained_at(place).saturating_sub(now) >> unit;
            self.drains[place] = u32::try_from(left).unwrap_or(u32::MAX);
        }
        (self.base, self.unit) = (now, unit);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::units::Rate;

    fn quota() -> Quota {
        Quota::new(Rate { count: 1, per: Duration::from_secs(1) }, 5)
    }

    const NOW: u64 = 1 << 40;

    const OK: Option<Taken> = Some(Ok(()));

    #[test]
    fn a_set_is_three_cache_lines() {
        assert_eq!(std::mem::size_of::<Set>(), 192);
        assert_eq!(Buckets::new(30).bytes(), 1920);
    }

    #[test]
    fn a_full_set_gives_no_place_until_a_bucket_has_drained_or_as_much_as_it_holds_went_by() {
        let buckets = Buckets::new(1);
        for key in 1..=WAYS as u64 {
            assert_eq!(buckets.open(key, &quota(), 3, NOW), OK);
        }
        assert_eq!(buckets.open(99, &quota(), 1, NOW), None);
        assert_eq!(buckets.busy(NOW), WAYS);
        assert_eq!(buckets.open(99, &quota(), 1, NOW + 3_000_000_000), OK);
        let (mut uncounted, later) = (0, NOW + 3_000_000_000);
        (1..WAYS as u64).for_each(|key| assert_eq!(buckets.open(key, &quota(), 3, later), OK));
        while buckets.open(100, &quota(), 1, later).is_none() {
            uncounted += 1;
        }
        assert_eq!((uncounted, buckets.take(99, &quota(), 1, later)), (1, None), "the one with one call made room");
    }

    #[test]
    fn what_is_learned_fills_a_bucket_but_forgets_no_call_under_way() {
        let buckets = Buckets::new(1);
        let second = 1_000_000_000;
        for _ in 0..3 {
            assert_eq!(buckets.open(1, &quota(), 1, NOW), OK);
        }
        // Two of the three are answered: others have taken one more. The third is under way.
        buckets.learn(1, &quota(), NOW + 2 * second, second, NOW, false);
        buckets.learn(1, &quota(), NOW + 3 * second, second, NOW, false);
        assert!(buckets.take(1, &quota(), 2, NOW).unwrap().is_ok());
        assert!(buckets.take(1, &quota(), 1, NOW).unwrap().is_err());
        buckets.learn(2, &quota(), NOW + 5 * second, second, NOW, false);
        assert!(buckets.take(2, &quota(), 1, NOW).unwrap().is_err(), "a new key has a bucket too");
    }

    #[test]
    fn after_a_reload_the_new_quota_holds_at_once() {
        let quota = |count, per_s, burst| Quota::new(Rate { count, per: Duration::from_secs(per_s) }, burst);
        let (slow, fast, ms) = (quota(1, 3600, 24_000), quota(60, 1, 10), 1_000_000);
        for tried_again in [0, 1, 100] {
            let buckets = Buckets::new(1);
            for key in 1..10 {
                (0..20_000).for_each(|_| assert_eq!(buckets.open(key, &slow, 1, NOW), OK));
            }
            // Who has used up more than there is now has used up what there is now, and earns from there on.
            assert_eq!(buckets.take(1, &fast, 1, NOW).map(|taken| taken.is_ok()), Some(false));
            for _ in 0..tried_again {
                assert!(buckets.take(1, &fast, 1, NOW + 8 * ms).unwrap().is_err());
            }
            assert_eq!(buckets.take(1, &fast, 10, NOW + 167 * ms), OK);
            assert!(buckets.take(1, &fast, 1, NOW + 167 * ms).unwrap().is_err());
            // And whoever comes now is counted as finely as the quota needs.
            let passed = (0..30).filter(|_| buckets.open(77, &fast, 1, NOW + 200 * ms) == OK).count();
            assert_eq!(passed, 10);
        }
    }

    #[test]
    fn the_fullest_bucket_is_never_the_one_that_makes_room() {
        let buckets = Buckets::new(1);
        for _ in 0..5 {
            assert_eq!(buckets.open(1, &quota(), 1, NOW), OK);
        }
        for key in 2..1000 {
            // Busy keys, but within their quota, push one another out.
            for _ in 0..3 {
                assert!(buckets.open(key, &quota(), 1, NOW).is_none_or(|taken| taken.is_ok()));
            }
            assert!(buckets.take(1, &quota(), 1, NOW).unwrap().is_err(), "the abuser is out after {key} others");
        }
    }

    proptest! {
        /// Against one bucket for each key in as much memory as it takes. Twice as many keys as places, and quotas that
        /// change as a reload's do.
        #[test]
        fn nobody_is_refused_whose_own_calls_are_within_the_quota(
            quotas in proptest::collection::vec((1u32..1000, 1u64..100_000, 1u32..1000), 1..3),
            steps in proptest::collection::vec((1u64..43, 0u64..4, 1u32..4), 1..2000),
        ) {
            let buckets = Buckets::new(1);
            let mut owed = std::collections::HashMap::<u64, u64>::new();
            let mut now = NOW;
            let length = steps.len();
            for (step, (key, pause, calls)) in steps.into_iter().enumerate() {
                let (count, per_s, burst) = quotas[step * quotas.len() / length];
                let quota = Quota::new(Rate { count, per: Duration::from_secs(per_s) }, burst);
                now += quota.interval_ns() * pause / 40;
                let own = owed.entry(key).or_default();
                let due = quota.take(*own, now, calls);
                let taken = buckets.open(key, &quota, calls, now);
                prop_assert!(due.is_err() || taken.is_none_or(|t| t.is_ok()), "{due:?}, but {taken:?}");
                if taken.is_none_or(|t| t.is_ok()) {
                    *own = (*own).max(now) + quota.interval_ns() * u64::from(calls);
                }
            }
        }

        /// The times of a set are rounded; one key alone, over many times what a bucket holds.
        #[test]
        fn rounding_lets_pass_next_to_nothing(
            count in 1u32..1000, per_s in 1u64..100_000, burst in 1u32..1_000_000,
            pauses in proptest::collection::vec(0u64..300, 1..500),
        ) {
            let quota = Quota::new(Rate { count, per: Duration::from_secs(per_s) }, burst);
            let (buckets, mut exact, mut now) = (Buckets::new(1), 0, NOW);
            let calls = burst.div_ceil(100);
            let (mut passed, mut due) = (0u32, 0u32);
            for pause in pauses {
                now = now.saturating_add(quota.full_ns() / 10_000 * pause);
                passed += u32::from(buckets.open(7, &quota, calls, now).unwrap().is_ok());
                if let Ok(next) = quota.take(exact, now, calls) {
                    (exact, due) = (next, due + 1);
                }
            }
            prop_assert!(passed == due || passed == due + 1, "{passed} passed, {due} were due");
        }
    }
}
