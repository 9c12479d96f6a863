//! The exact stage: a table of GCRA buckets of fixed size.
//!
//! A key belongs to one small set of places, as in a processor's cache: a look-up touches two lines of memory and one
//! lock that hardly anybody else wants. A drained bucket's place is free.

use parking_lot::Mutex;

use super::gcra::{Exceeded, Quota};

/// Places of a set: with its lock, three cache lines of 64 bytes.
const WAYS: usize = 11;
/// Keys that a set is made for. Fewer than there are places, since hashes spread unevenly.
const KEYS_PER_SET: usize = 6;

/// What a set came to.
type Taken = Result<(), Exceeded>;

#[derive(Debug, Default, Clone, Copy)]
struct Places {
    keys: [u64; WAYS],
    /// When each bucket has drained; 0 where there is none.
    drained_at: [u64; WAYS],
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set(Mutex<Places>);

/// What a key came to that had no bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    pub taken: Taken,
    /// The key that lost its bucket, and when that would have drained.
    pub pushed_out: Option<(u64, u64)>,
}

/// Buckets of one limit.
#[derive(Debug)]
pub(super) struct Buckets {
    sets: Box<[Set]>,
}

impl Buckets {
    /// Room for about `keys` busy keys.
    pub fn new(keys: usize) -> Self {
        Self { sets: (0..keys.div_ceil(KEYS_PER_SET).max(1)).map(|_| Set::default()).collect() }
    }

    /// Memory taken, bytes: the same from first to last.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.sets)
    }

    /// Buckets that have not drained.
    pub fn busy(&self, now: u64) -> usize {
        self.sets.iter().map(|set| set.0.lock().drained_at.iter().filter(|at| **at > now).count()).sum()
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
    pub fn learn(&self, key: u64, drained_at: u64, returned_ns: u64, now: u64, make_room: bool) {
        let mut places = self.set(key).0.lock();
        if let Some(place) = places.keys.iter().position(|k| *k == key) {
            // What is still held beyond that are calls whose answers are on their way.
            places.drained_at[place] = places.drained_at[place].saturating_sub(returned_ns).max(drained_at);
            return;
        }
        let first = places.drained_at.iter().copied().enumerate().min_by_key(|(_, at)| *at);
        // A fuller bucket is never the one that makes room.
        let place = first.filter(|(_, drains)| *drains <= now || (make_room && *drains < drained_at));
        if let Some((place, _)) = place {
            places.keys[place] = key;
            places.drained_at[place] = drained_at;
        }
    }

    /// As [`Self::take`], and gives the key a bucket if it has none. With `owes`, when its bucket drains at the earliest, room is
    /// made for it. None: no place is free, and none is to be made.
    pub fn open(&self, key: u64, quota: &Quota, calls: u32, now: u64, owes: Option<u64>) -> Option<Opened> {
        let mut places = self.set(key).0.lock();
        // Another thread may have been faster.
        if let Some(taken) = places.take(key, quota, calls, now) {
            return Some(Opened { taken, pushed_out: None });
        }
        // The bucket that drains first: one that has drained if there is any, and never that of the worst abuser.
        let (place, drains) = places.drained_at.iter().copied().enumerate().min_by_key(|(_, at)| *at)?;
        let busy = drains > now;
        // Pushed out itself, it would have owed no more than those that stayed; and where a neighbour in the sketch lends it
        // debts that it hasn't, it is held to no more than the least that is owed here.
        let from = if busy { owes?.min(drains) } else { 0 };
        let taken = quota.take(from, now, calls).map(|drained_at| {
            let other = std::mem::replace(&mut places.keys[place], key);
            places.drained_at[place] = drained_at;
            busy.then_some((other, drains))
        });
        match taken {
            Ok(pushed_out) => Some(Opened { taken: Ok(()), pushed_out }),
            Err(exceeded) => Some(Opened { taken: Err(exceeded), pushed_out: None }),
        }
    }
}

impl Places {
    fn take(&mut self, key: u64, quota: &Quota, calls: u32, now: u64) -> Option<Taken> {
        let place = self.keys.iter().position(|k| *k == key)?;
        let taken = quota.take(self.drained_at[place], now, calls);
        if let Ok(drained_at) = taken {
            self.drained_at[place] = drained_at;
        }
        Some(taken.map(|_| ()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::units::Rate;

    fn quota() -> Quota {
        Quota::new(Rate { count: 1, per: Duration::from_secs(1) }, 5)
    }

    const NOW: u64 = 1 << 40;

    const OK: Option<Opened> = Some(Opened { taken: Ok(()), pushed_out: None });

    #[test]
    fn a_set_is_three_cache_lines() {
        assert_eq!(std::mem::size_of::<Set>(), 192);
        assert_eq!(Buckets::new(60).bytes(), 1920);
    }

    #[test]
    fn a_full_set_gives_no_place_until_a_bucket_has_drained() {
        let buckets = Buckets::new(1);
        for key in 1..=WAYS as u64 {
            assert_eq!(buckets.open(key, &quota(), 1, NOW, None), OK);
        }
        assert_eq!(buckets.open(99, &quota(), 1, NOW, None), None);
        assert_eq!(buckets.busy(NOW), WAYS);
        let later = NOW + 1_000_000_000;
        assert_eq!(buckets.open(99, &quota(), 1, later, None), OK);
    }

    #[test]
    fn what_is_learned_fills_a_bucket_but_forgets_no_call_under_way() {
        let buckets = Buckets::new(1);
        let second = 1_000_000_000;
        for _ in 0..3 {
            buckets.open(1, &quota(), 1, NOW, None).unwrap().taken.unwrap();
        }
        // Two of the three are answered: others have taken one more. The third is under way.
        buckets.learn(1, NOW + 2 * second, second, NOW, false);
        buckets.learn(1, NOW + 3 * second, second, NOW, false);
        assert!(buckets.take(1, &quota(), 2, NOW).unwrap().is_ok());
        assert!(buckets.take(1, &quota(), 1, NOW).unwrap().is_err());
        buckets.learn(2, NOW + 5 * second, second, NOW, false);
        assert!(buckets.take(2, &quota(), 1, NOW).unwrap().is_err(), "a new key has a bucket too");
    }

    #[test]
    fn the_fullest_bucket_is_never_the_one_that_makes_room() {
        let buckets = Buckets::new(1);
        for _ in 0..5 {
            buckets.open(1, &quota(), 1, NOW, Some(NOW)).unwrap().taken.unwrap();
        }
        for key in 2..1000 {
            // Busy keys, but within their quota, push one another out.
            for _ in 0..3 {
                assert!(buckets.open(key, &quota(), 1, NOW, Some(NOW)).unwrap().taken.is_ok());
            }
            assert!(buckets.take(1, &quota(), 1, NOW).unwrap().is_err(), "the abuser is out after {key} others");
        }
    }

    #[test]
    fn who_owes_something_begins_with_that_but_with_no_more_than_the_least_that_is_owed() {
        let buckets = Buckets::new(1);
        let interval = quota().interval_ns();
        for key in 1..=WAYS as u64 {
            buckets.open(key, &quota(), 3, NOW, None).unwrap().taken.unwrap();
        }
        let opened = buckets.open(99, &quota(), 3, NOW, Some(NOW + 5 * interval)).unwrap();
        assert_eq!((opened.taken.unwrap_err().remaining, opened.pushed_out), (2, None), "three are owed, five allowed");
        let opened = buckets.open(99, &quota(), 2, NOW, Some(NOW + interval)).unwrap();
        assert_eq!(opened.pushed_out.map(|(_, drains)| drains), Some(NOW + 3 * interval));
        assert_eq!(buckets.take(99, &quota(), 3, NOW).unwrap().unwrap_err().remaining, 2);
    }
}
