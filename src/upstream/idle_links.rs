//! Connections to one node that wait for their next request.
//!
//! Each worker thread has a shelf of its own, so that threads don't wait for each other. The last one laid down is the first
//! one taken, so that under little load the rest grow old and are closed.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::link::Link;

/// More threads than this share shelves.
const SHELVES: usize = 16;
/// Most connections on a shelf; beyond it the oldest is closed.
const SHELF_MAX: usize = 128;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHELF: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % SHELVES);
}

/// What waits for one node.
pub(super) struct IdleLinks {
    shelves: [Mutex<Vec<Idle>>; SHELVES],
    /// Nothing is kept any more.
    closed: AtomicBool,
}

struct Idle {
    link: Link,
    since: Instant,
}

impl Idle {
    fn is_of_use(&self, generation: u64, now: Instant, limit: Duration) -> bool {
        self.link.generation() == generation && now.saturating_duration_since(self.since) < limit
    }
}

impl IdleLinks {
    pub(super) fn new() -> Self {
        Self { shelves: std::array::from_fn(|_| Mutex::new(Vec::new())), closed: AtomicBool::new(false) }
    }

    /// A connection that is still open, made with the TLS material of `generation`, that has rested for less than `limit`:
    /// of this thread's shelf, else of another's. A task may have been moved to this thread, and a new connection costs
    /// more than one whose wake-ups come from elsewhere.
    pub(super) fn take(&self, generation: u64, now: Instant, limit: Duration) -> Option<Link> {
        let own = SHELF.get();
        let others = (own + 1..SHELVES).chain(0..own);
        let mut each =
            std::iter::once(self.shelves[own].lock()).chain(others.filter_map(|other| self.shelves[other].try_lock()));
        each.find_map(|mut shelf| {
            while let Some(mut idle) = shelf.pop() {
                if idle.is_of_use(generation, now, limit) && idle.link.is_alive() {
                    return Some(idle.link);
                }
            }
            None
        })
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, mut link: Link, now: Instant) {
        if !link.may_rest() {
            return;
        }
        link.rest();
        let mut shelf = self.shelf().lock();
        // Under the lock, so that `close` either is seen here or finds the connection on the shelf.
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        if shelf.len() >= SHELF_MAX {
            shelf.remove(0);
        }
        shelf.push(Idle { link, since: now });
    }

    /// Closes what nobody may use any more. To be called now and then.
    pub(super) fn sweep(&self, generation: u64, now: Instant, limit: Duration) {
        for shelf in &self.shelves {
            shelf.lock().retain(|idle| idle.is_of_use(generation, now, limit));
        }
    }

    /// Closes one that has rested longer than the others of its shelf. Whether there was one.
    pub(super) fn close_oldest(&self) -> bool {
        let closed = self.shelves.iter().find_map(|shelf| {
            let mut shelf = shelf.lock();
            (!shelf.is_empty()).then(|| shelf.remove(0))
        });
        closed.is_some()
    }

    /// Closes all of them, and from now on each that comes back.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for shelf in &self.shelves {
            shelf.lock().clear();
        }
    }

    /// Whether nothing is kept any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// From now on connections are kept.
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    fn shelf(&self) -> &Mutex<Vec<Idle>> {
        &self.shelves[SHELF.get()]
    }
}
