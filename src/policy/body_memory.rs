//! The memory that request bodies may take while they wait: one budget for the whole process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The budget. Cheap to share.
#[derive(Debug)]
pub struct BodyMemory {
    used: AtomicU64,
    limit: AtomicU64,
}

impl BodyMemory {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit: AtomicU64::new(limit) })
    }

    /// Bytes taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Changes the budget; what is taken stays taken.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// An empty share, to be grown.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { memory: self.clone(), bytes: 0 }
    }
}

/// One body's part of the budget. Dropping it gives the bytes back.
#[derive(Debug)]
pub struct Share {
    memory: Arc<BodyMemory>,
    bytes: u64,
}

impl Share {
    /// Takes `bytes` more; false, and nothing taken, if the budget has less.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        // Count before checking, so that two at once can't both take the rest.
        let before = self.memory.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.memory.limit.load(Ordering::Relaxed) {
            self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_beyond_the_budget_takes_nothing_and_a_dropped_one_gives_back() {
        let memory = BodyMemory::new(100);
        let mut first = memory.share();
        assert!(first.grow(60));
        let mut second = memory.share();
        assert!(!second.grow(41));
        assert!(second.grow(40));
        assert_eq!(memory.used(), 100);
        drop(first);
        assert_eq!(memory.used(), 40);
    }
}
