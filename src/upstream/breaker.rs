//! The circuit breaker of an upstream: how many requests run at its nodes, how many wait, how many tries are later ones.
//! Names and meaning are Envoy's.
//!
//! What happens at each limit:
//!
//! | limit | beyond it |
//! |---|---|
//! | `max_connections` (HTTP/1.1) | the request waits: first come, first served |
//! | `max_pending` | refused at once |
//! | `pending_timeout` | refused when it is over |
//! | `max_requests` | refused at once |
//! | `retry_budget` | no other node is tried; the first try's failure is the answer |
//!
//! A later try counts until its answer begins; but if no node could be connected to before, only until one is. Envoy counts it
//! to the end in any case, so that slow answers use the budget up, and a node that is gone makes requests fail.
//!
//! Over HTTP/1.1 a request has a connection of its own from before it is opened until the answer's end. To all nodes together
//! there are no more than `max_connections`, those that rest included: where one more is needed, one that rests makes room, so
//! that a request waits only while all of them carry requests. Those of probes don't count, as in Envoy. Over HTTP/2 there is
//! no such relation, so there only `max_requests` counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::settings::{BreakerLimits, ConnectionLimits};
use crate::observe::{AtScrape, BreakerLimit, BreakerMetrics, Metrics};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// `max_pending` others wait.
    Pending,
    /// It waited for `pending_timeout`.
    PendingTimeout,
    /// `max_requests` others run.
    Requests,
}

/// The breaker, as one configuration has it. What it counts outlives a reload.
pub(super) struct Breaker {
    limits: BreakerLimits,
    pub(super) counts: Arc<Counts>,
}

/// What is counted; shared by the breakers of successive configurations.
pub(super) struct Counts {
    /// As many permits as further connections may be used.
    slots: Semaphore,
    /// The limits in force, for the metrics and for the size of `slots`.
    in_force: Mutex<BreakerLimits>,
    /// Permits that are not to come back: a reload lowered the limit while they were in use.
    debt: AtomicUsize,
    active: AtomicU32,
    /// Connections that are open or being opened.
    connections: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    metrics: BreakerMetrics,
}

impl Breaker {
    /// With the counts of `previous`, whose limits stay in force until [`Breaker::take_effect`].
    pub(super) fn new(limits: BreakerLimits, upstream: &str, metrics: &Metrics, previous: Option<&Breaker>) -> Self {
        let counts = previous.map_or_else(
            || {
                let counts = Arc::new(Counts::new(limits, metrics.breaker(upstream)));
                let shown: Arc<dyn AtScrape> = counts.clone();
                metrics.show_at_scrape(&shown);
                counts
            },
            |previous| previous.counts.clone(),
        );
        Self { limits, counts }
    }

    /// From now on these limits count.
    pub(super) fn take_effect(&self) {
        self.counts.resize(self.limits);
    }

    /// Takes a request in, unless it has to wait: `Ok(None)`.
    ///
    /// # Errors
    /// It is refused.
    pub(super) fn enter(&self) -> Result<Option<Permit>, Overflow> {
        if self.limits.connections.is_some() {
            match self.counts.slots.try_acquire() {
                Ok(slot) => slot.forget(),
                Err(_) => return Ok(None),
            }
        }
        self.begin().map(Some)
    }

    /// Waits until the request may go on. Whoever drops this gives up the place.
    ///
    /// # Errors
    /// It is refused.
    pub(super) async fn wait(&self) -> Result<Permit, Overflow> {
        let Some(ConnectionLimits { max_pending, pending_timeout, .. }) = self.limits.connections else {
            return self.begin();
        };
        let counts = &self.counts;
        counts.metrics.overflowed(BreakerLimit::Connections);
        // The place is given back in whatever way this ends.
        let place = Place::take(&counts.pending);
        if place.number > max_pending {
            counts.metrics.overflowed(BreakerLimit::Pending);
            return Err(Overflow::Pending);
        }
        match tokio::time::timeout(pending_timeout, counts.slots.acquire()).await {
            // The semaphore is never closed.
            Ok(slot) => slot.map(|slot| slot.forget()).map_err(|_| Overflow::Pending)?,
            Err(_) => {
                counts.metrics.overflowed(BreakerLimit::PendingTimeout);
                return Err(Overflow::PendingTimeout);
            }
        }
        drop(place);
        self.begin()
    }

    /// Counts a request in that has its connection.
    fn begin(&self) -> Result<Permit, Overflow> {
        let permit = Permit { counts: self.counts.clone(), has_slot: self.limits.connections.is_some() };
        if self.counts.active.fetch_add(1, Ordering::Relaxed) >= self.limits.max_requests {
            self.counts.metrics.overflowed(BreakerLimit::Requests);
            return Err(Overflow::Requests);
        }
        Ok(permit)
    }

    /// Counts a connection that is to be opened. None: there are as many as there may be.
    pub(super) fn connection(&self) -> Option<Counted> {
        let most = self.limits.connections.map_or(u32::MAX, |limits| limits.max);
        let more = |count: u32| (count < most).then_some(count + 1);
        let counted = self.counts.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.ok().map(|_| Counted(self.counts.clone()))
    }

    /// Counts one more, however many there are.
    pub(super) fn connection_in_any_case(&self) -> Counted {
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
        Counted(self.counts.clone())
    }

    /// Whether one more request may have a later try now.
    pub(super) fn retry(&self) -> Option<RetryPermit> {
        let permit = RetryPermit(self.counts.clone());
        if self.counts.retries.fetch_add(1, Ordering::Relaxed) < self.counts.retries_max(&self.limits) {
            return Some(permit);
        }
        self.counts.metrics.overflowed(BreakerLimit::Retries);
        None
    }

    /// What an operator may see.
    pub(super) fn status(&self) -> BreakerStatus {
        let load = |count: &AtomicU32| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        BreakerStatus {
            requests: load(&counts.active),
            pending: load(&counts.pending),
            retries: load(&counts.retries),
            limits: *counts.in_force.lock(),
        }
    }
}

/// A breaker's state: `upstreams[].circuit_breaker` of the status.
#[derive(Debug, Clone, Copy)]
pub struct BreakerStatus {
    /// Requests at the nodes.
    pub requests: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Later tries under way.
    pub retries: u32,
    /// The limits in force.
    pub limits: BreakerLimits,
}

impl Counts {
    fn new(limits: BreakerLimits, metrics: BreakerMetrics) -> Self {
        Self {
            slots: Semaphore::new(slots(&limits)),
            in_force: Mutex::new(limits),
            debt: AtomicUsize::new(0),
            active: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            metrics,
        }
    }

    /// Requests that are at the nodes.
    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Changes the number of permits; those in use that are too many are kept when they come back.
    fn resize(&self, limits: BreakerLimits) {
        let mut in_force = self.in_force.lock();
        let (before, after) = (slots(&in_force), slots(&limits));
        if after < before {
            let kept = self.slots.forget_permits(before - after);
            self.debt.fetch_add(before - after - kept, Ordering::Relaxed);
        } else {
            let more = after - before;
            let debt = self.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |d| Some(d.saturating_sub(more)));
            self.slots.add_permits(more - debt.unwrap_or(0).min(more));
        }
        *in_force = limits;
    }

    fn give_slot_back(&self) {
        let owed = self.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |debt| debt.checked_sub(1));
        if owed.is_err() {
            self.slots.add_permits(1);
        }
    }

    /// Envoy's: a share of what runs and waits, and always a few.
    fn retries_max(&self, limits: &BreakerLimits) -> u32 {
        let live = u64::from(self.active()) + u64::from(self.pending.load(Ordering::Relaxed));
        let share = live * u64::from(limits.retry_budget.0) / 1000;
        limits.min_retry_concurrency.max(u32::try_from(share).unwrap_or(u32::MAX))
    }
}

/// Permits of the semaphore. Without a limit nobody takes one.
fn slots(limits: &BreakerLimits) -> usize {
    limits.connections.map_or(0, |c| usize::try_from(c.max).unwrap_or(Semaphore::MAX_PERMITS))
}

impl AtScrape for Counts {
    fn show(&self) {
        let limits = *self.in_force.lock();
        let (active, pending) = (self.active(), self.pending.load(Ordering::Relaxed));
        let retries = self.retries.load(Ordering::Relaxed);
        if let Some(c) = limits.connections {
            self.metrics.set(BreakerLimit::Connections, active, c.max);
            self.metrics.set(BreakerLimit::Pending, pending, c.max_pending);
        }
        self.metrics.set(BreakerLimit::Requests, active, limits.max_requests);
        self.metrics.set(BreakerLimit::Retries, retries, self.retries_max(&limits));
        self.metrics.set_pending(pending);
    }
}

/// A request at the nodes. It counts until this is dropped.
pub struct Permit {
    counts: Arc<Counts>,
    has_slot: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counts.active.fetch_sub(1, Ordering::Relaxed);
        if self.has_slot {
            self.counts.give_slot_back();
        }
    }
}

/// A connection to a node. It counts until this is dropped.
pub(super) struct Counted(Arc<Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A later try. It counts until this is dropped.
pub struct RetryPermit(Arc<Counts>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in the queue.
struct Place<'a> {
    pending: &'a AtomicU32,
    /// How many waited then, this one included.
    number: u32,
}

impl<'a> Place<'a> {
    fn take(pending: &'a AtomicU32) -> Self {
        Self { pending, number: pending.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
