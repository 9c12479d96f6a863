//! The first stage: sketches over the last stretch of time.
//!
//! Two of them, for the running window and the one before: together they have counted everything of the last window's
//! length, and up to as much again. Too much is no harm here.

use parking_lot::Mutex;

/// Parts of a sketch, each with its own lock. They turn over one after the other, so that no request clears all.
const PARTS: u64 = 64;
/// Fewest counters of a row.
const PART_LEAST: usize = 16;

/// Counts keys in constant memory: a key's count may come out too high, never too low.
pub trait Sketch: Send {
    /// A sketch that counts about `keys` keys well.
    fn sized(keys: usize) -> Self;
    /// Counts a key `calls` times more. Its count so far, these included.
    fn add(&self, key: u64, calls: u32) -> u64;
    /// A key's count so far.
    fn count(&self, key: u64) -> u64;
    /// Forgets everything.
    fn clear(&self);
    /// Memory taken, bytes.
    fn bytes(&self) -> usize;
}

/// A sketch that forgets.
#[derive(Debug)]
pub(super) struct Windows<S> {
    parts: Box<[Mutex<Part<S>>]>,
    length_ns: u64,
}

#[derive(Debug)]
struct Part<S> {
    /// When the running window began.
    began: u64,
    running: S,
    before: S,
}

impl<S: Sketch> Windows<S> {
    /// Nothing counted yet.
    pub fn new(keys: usize, length_ns: u64, now: u64) -> Self {
        let each = (keys / PARTS as usize).max(PART_LEAST);
        let part = |i: u64| Part {
            began: now.saturating_sub(length_ns / PARTS * i),
            running: S::sized(each),
            before: S::sized(each),
        };
        Self { parts: (0..PARTS).map(|i| Mutex::new(part(i))).collect(), length_ns }
    }

    /// Whether a key, with these calls, was counted at most `few` times within a window's length: then they are counted.
    pub fn is_few(&self, key: u64, calls: u32, few: u64, now: u64) -> bool {
        let mut part = self.parts[(key % PARTS) as usize].lock();
        part.turn(now, self.length_ns);
        let count = part.running.count(key).saturating_add(part.before.count(key)).saturating_add(calls.into());
        if count <= few {
            part.running.add(key, calls);
        }
        count <= few
    }

    /// Memory taken, bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.lock()).map(|p| p.running.bytes() + p.before.bytes()).sum()
    }
}

impl<S: Sketch> Part<S> {
    fn turn(&mut self, now: u64, length_ns: u64) {
        let windows = now.saturating_sub(self.began) / length_ns;
        if windows == 0 {
            return;
        }
        std::mem::swap(&mut self.running, &mut self.before);
        self.running.clear();
        if windows > 1 {
            self.before.clear();
        }
        self.began += windows * length_ns;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;

    /// Counts exactly, in as much memory as it takes.
    #[derive(Debug, Default)]
    pub struct Exact(RefCell<HashMap<u64, u64>>);

    impl Sketch for Exact {
        fn sized(_: usize) -> Self {
            Self::default()
        }
        fn add(&self, key: u64, calls: u32) -> u64 {
            let mut counts = self.0.borrow_mut();
            let count = counts.entry(key).or_default();
            *count += u64::from(calls);
            *count
        }
        fn count(&self, key: u64) -> u64 {
            self.0.borrow().get(&key).copied().unwrap_or(0)
        }
        fn clear(&self) {
            self.0.borrow_mut().clear();
        }
        fn bytes(&self) -> usize {
            0
        }
    }

    #[test]
    fn what_is_too_much_is_not_counted() {
        let windows = Windows::<Exact>::new(100, 1000, 10_000);
        assert!(windows.is_few(0, 3, 4, 10_000));
        assert!(!windows.is_few(0, 2, 4, 10_500));
        assert!(windows.is_few(0, 1, 4, 10_500));
        assert!(!windows.is_few(0, 1, 4, 11_500), "four came within the last two seconds");
    }

    #[test]
    fn what_came_within_a_windows_length_is_always_counted() {
        for key in [0, 1, 63] {
            let windows = Windows::<Exact>::new(100, 1000, 10_000);
            for now in [10_000, 10_999, 11_000] {
                assert!(windows.is_few(key, 1, 3, now), "key {key} at {now}");
            }
            for now in [11_500, 11_999] {
                assert!(!windows.is_few(key, 1, 2, now), "key {key} at {now}");
            }
            assert!(windows.is_few(key, 1, 1, 14_000), "after two windows all is forgotten");
        }
    }
}
