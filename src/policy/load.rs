//! What an address, a peer or a listener has under way: connections and requests at once.
//!
//! A connection finds its counters once, when it comes in; a request then only adds and subtracts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Counts of one owner.
#[derive(Debug, Default)]
pub struct Load {
    connections: AtomicU32,
    requests: AtomicU32,
}

impl Load {
    /// Counts a connection until the place is dropped, and says how many there are with it.
    pub fn connection(self: &Arc<Self>) -> (Place, u32) {
        Place::take(self.clone(), |load| &load.connections)
    }

    /// Counts a request until the place is dropped, and says how many there are with it.
    pub fn request(self: &Arc<Self>) -> (Place, u32) {
        Place::take(self.clone(), |load| &load.requests)
    }

    /// Requests now.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// One of those that are counted.
#[derive(Debug)]
#[must_use = "dropping it gives the place back"]
pub struct Place {
    load: Arc<Load>,
    count: fn(&Load) -> &AtomicU32,
}

impl Place {
    /// Counted before it is compared, so that two at once can't both take the last place.
    fn take(load: Arc<Load>, count: fn(&Load) -> &AtomicU32) -> (Self, u32) {
        let now = count(&load).fetch_add(1, Ordering::Relaxed) + 1;
        (Self { load, count }, now)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.count)(&self.load).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Below so many peers nothing is swept.
const SWEEP_MIN: usize = 64;

/// The peers that have something under way, by name or by what their certificates show. Asked once per connection.
#[derive(Debug, Default)]
pub struct PeerLoads(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_peer: HashMap<Box<[u8]>, Weak<Load>, ahash::RandomState>,
    sweep_at: usize,
}

impl PeerLoads {
    /// The peer's counts. It is forgotten when nobody holds them any more.
    pub fn of(&self, peer: &[u8]) -> Arc<Load> {
        let mut table = self.0.lock();
        if let Some(load) = table.by_peer.get(peer).and_then(Weak::upgrade) {
            return load;
        }
        if table.by_peer.len() >= table.sweep_at.max(SWEEP_MIN) {
            table.by_peer.retain(|_, load| load.strong_count() > 0);
            table.sweep_at = table.by_peer.len() * 2;
        }
        let load = Arc::default();
        table.by_peer.insert(peer.into(), Arc::downgrade(&load));
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_place_is_free_again() {
        let load = Arc::new(Load::default());
        let (first, one) = load.request();
        let (second, two) = load.request();
        let (_connection, connections) = load.connection();
        assert_eq!((one, two, connections), (1, 2, 1));
        drop(first);
        assert_eq!(load.requests(), 1);
        drop(second);
        assert_eq!(load.requests(), 0);
    }

    #[test]
    fn peers_are_told_apart_and_forgotten() {
        let peers = PeerLoads::default();
        let alice = peers.of(b"alice");
        let _connection = alice.connection();
        assert!(Arc::ptr_eq(&alice, &peers.of(b"alice")));
        assert_eq!(peers.of(b"bob").connection().1, 1);
        for n in 0..10_000u32 {
            peers.of(&n.to_be_bytes());
        }
        assert!(peers.0.lock().by_peer.len() <= 2 * SWEEP_MIN);
        assert!(Arc::ptr_eq(&alice, &peers.of(b"alice")), "who is there is not forgotten");
    }
}
