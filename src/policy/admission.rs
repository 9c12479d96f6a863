//! Who may hold a connection: limits in total, per address, on new connections per address, and on handshakes at once.
//!
//! One look-up in a sharded table per accept and one per close. An entry lives as long as its address has a
//! connection or a rate to remember, so memory follows live connections, not addresses ever seen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::load::Load;
use crate::observe::ConnectionRefusal;
use crate::units::Rate;

const SHARDS: usize = 64;
/// A shard below this many entries is never swept.
const SWEEP_MIN: usize = 64;

/// The limits of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: u32,
    /// Connections at once from one address.
    pub per_address: u32,
    /// New connections from one address; as many as one period's may come at once.
    pub new_per_address: Rate,
    /// Handshakes at once.
    pub handshakes: u32,
    /// Handshakes at once from one address: the rest of `handshakes` stays for others.
    pub handshakes_per_address: u32,
}

impl Limits {
    /// Of a trusted proxy's connections: those of all its clients come from its one address, so only the totals hold. Its
    /// clients are told apart by request.
    pub fn of_trusted(self) -> Self {
        let none = Rate { count: u32::MAX, per: self.new_per_address.per };
        Self { per_address: u32::MAX, new_per_address: none, handshakes_per_address: u32::MAX, ..self }
    }
}

/// The addresses of one listener. Shared; [`Admission::admit`] hands out permits.
#[derive(Debug)]
pub struct Admission {
    live: AtomicU32,
    handshakes: AtomicU32,
    shards: Vec<Mutex<Shard>>,
    hasher: ahash::RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    by_address: HashMap<IpAddr, Address, ahash::RandomState>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Address {
    live: u32,
    handshakes: u32,
    /// Counts its requests, without this table.
    load: Arc<Load>,
    /// GCRA's theoretical arrival time: when the rate's bucket is empty again.
    drained_at: Instant,
}

impl Admission {
    /// Nobody connected yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            live: AtomicU32::new(0),
            handshakes: AtomicU32::new(0),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            // Random keys: a client can't choose addresses that meet in one shard.
            hasher: ahash::RandomState::new(),
        })
    }

    /// Connections that hold a permit now.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Handshakes that go on now.
    pub fn handshakes(&self) -> u32 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// The requests of an address that no connection comes from: of a client behind a trusted proxy.
    pub fn load_of(&self, address: IpAddr, now: Instant) -> Arc<Load> {
        let key = counted_address(address);
        let mut shard = self.shard(&key).lock();
        shard.sweep(now);
        shard.by_address.entry(key).or_insert_with(|| Address::new(now)).load.clone()
    }

    /// Takes a connection from `address` in, or says why not. The permit gives the place back when it is dropped. Its
    /// handshake counts until [`Permit::handshake_done`].
    ///
    /// # Errors
    /// The first limit that is reached.
    pub fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        limits: &Limits,
        now: Instant,
    ) -> Result<Permit, ConnectionRefusal> {
        let key = counted_address(address);
        // Count before checking, so that two at once can't both take the last place.
        if self.live.fetch_add(1, Ordering::Relaxed) >= limits.connections {
            self.live.fetch_sub(1, Ordering::Relaxed);
            return Err(ConnectionRefusal::Total);
        }
        if self.handshakes.fetch_add(1, Ordering::Relaxed) >= limits.handshakes {
            self.give_back();
            return Err(ConnectionRefusal::Handshakes);
        }
        match self.admit_address(key, limits, now) {
            Ok(load) => Ok(Permit { admission: self.clone(), key, load, shaking: true }),
            Err(denied) => {
                self.give_back();
                Err(denied)
            }
        }
    }

    fn give_back(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
    }

    fn shard(&self, key: &IpAddr) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(key);
        &self.shards[(hash % SHARDS as u64) as usize]
    }

    fn admit_address(&self, key: IpAddr, limits: &Limits, now: Instant) -> Result<Arc<Load>, ConnectionRefusal> {
        let mut shard = self.shard(&key).lock();
        shard.sweep(now);
        let address = match shard.by_address.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Address::new(now)),
        };
        if address.live >= limits.per_address {
            return Err(ConnectionRefusal::PerAddress);
        }
        if address.handshakes >= limits.handshakes_per_address {
            return Err(ConnectionRefusal::HandshakesPerAddress);
        }
        let each = limits.new_per_address.per / limits.new_per_address.count;
        let drained_at = address.drained_at.max(now) + each;
        if drained_at.saturating_duration_since(now) > limits.new_per_address.per.max(each) {
            return Err(ConnectionRefusal::Rate);
        }
        address.drained_at = drained_at;
        address.live += 1;
        address.handshakes += 1;
        Ok(address.load.clone())
    }

    fn handshake_done(&self, key: &IpAddr) {
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.shard(key).lock().by_address.get_mut(key) {
            address.handshakes -= 1;
        }
    }

    fn release(&self, key: &IpAddr) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.shard(key).lock().by_address.get_mut(key) {
            address.live -= 1;
        }
    }

    #[cfg(test)]
    fn addresses(&self) -> usize {
        self.shards.iter().map(|s| s.lock().by_address.len()).sum()
    }
}

impl Address {
    fn new(now: Instant) -> Self {
        Self { live: 0, handshakes: 0, load: Arc::default(), drained_at: now }
    }
}

impl Shard {
    /// Forgets addresses without connections whose rate has recovered, each time the shard has doubled: constant cost
    /// per accept.
    fn sweep(&mut self, now: Instant) {
        if self.by_address.len() < self.sweep_at.max(SWEEP_MIN) {
            return;
        }
        self.by_address.retain(|_, a| a.live > 0 || a.drained_at > now || Arc::strong_count(&a.load) > 1);
        self.sweep_at = self.by_address.len() * 2;
    }
}

/// A connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    key: IpAddr,
    load: Arc<Load>,
    shaking: bool,
}

impl Permit {
    /// The handshake is over; the connection stays.
    pub fn handshake_done(&mut self) {
        if std::mem::take(&mut self.shaking) {
            self.admission.handshake_done(&self.key);
        }
    }

    /// What the connection's address has under way.
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.handshake_done();
        self.admission.release(&self.key);
    }
}

/// The address under which a client is counted: IPv4 whole, IPv6 by its /64, since one host owns at least that.
pub fn counted_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let s = v6.segments();
            IpAddr::from([s[0], s[1], s[2], s[3], 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> Limits {
        Limits {
            connections: 10,
            per_address: 3,
            new_per_address: Rate { count: 5, per: SECOND },
            handshakes: 100,
            handshakes_per_address: 100,
        }
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn a_dropped_permit_gives_its_place_back() {
        let (admission, now) = (Admission::new(), Instant::now());
        let limits = Limits { new_per_address: Rate { count: 1000, per: SECOND }, ..limits() };
        let held: Vec<_> = (0..3).map(|_| admission.admit(address(1), &limits, now).unwrap()).collect();
        assert_eq!(admission.admit(address(1), &limits, now).unwrap_err(), ConnectionRefusal::PerAddress);
        assert!(admission.admit(address(2), &limits, now).is_ok(), "another address has places of its own");
        drop(held);
        assert_eq!(admission.live(), 0);
        assert!(admission.admit(address(1), &limits, now).is_ok());
    }

    #[test]
    fn the_total_holds_over_all_addresses() {
        let (admission, now) = (Admission::new(), Instant::now());
        let held: Vec<_> = (0..10).map(|n| admission.admit(address(n), &limits(), now).unwrap()).collect();
        assert_eq!(admission.admit(address(99), &limits(), now).unwrap_err(), ConnectionRefusal::Total);
        assert_eq!(admission.live(), 10, "a refusal takes no place");
        drop(held);
    }

    #[test]
    fn new_connections_beyond_the_rate_are_refused_until_time_passes() {
        let (admission, now) = (Admission::new(), Instant::now());
        for _ in 0..5 {
            drop(admission.admit(address(1), &limits(), now).unwrap());
        }
        assert_eq!(admission.admit(address(1), &limits(), now).unwrap_err(), ConnectionRefusal::Rate);
        assert!(admission.admit(address(1), &limits(), now + SECOND / 5).is_ok());
        assert_eq!(admission.admit(address(1), &limits(), now + SECOND / 5).unwrap_err(), ConnectionRefusal::Rate);
    }

    #[test]
    fn for_a_trusted_proxy_only_the_totals_hold() {
        let (admission, now) = (Admission::new(), Instant::now());
        let limits = Limits { handshakes_per_address: 1, ..limits() };
        let held: Vec<_> = (0..10).map(|_| admission.admit(address(1), &limits.of_trusted(), now).unwrap()).collect();
        assert_eq!(admission.admit(address(1), &limits.of_trusted(), now).unwrap_err(), ConnectionRefusal::Total);
        drop(held);
        let few = Limits { handshakes: 1, ..limits.of_trusted() };
        let _one = admission.admit(address(1), &few, now).unwrap();
        assert_eq!(admission.admit(address(1), &few, now).unwrap_err(), ConnectionRefusal::Handshakes);
    }

    #[test]
    fn handshakes_are_limited_until_they_are_done() {
        let (admission, now) = (Admission::new(), Instant::now());
        let limits = Limits { handshakes: 3, handshakes_per_address: 2, ..limits() };
        let mut first = admission.admit(address(1), &limits, now).unwrap();
        let second = admission.admit(address(1), &limits, now).unwrap();
        let refused = |n| admission.admit(address(n), &limits, now).unwrap_err();
        assert_eq!(refused(1), ConnectionRefusal::HandshakesPerAddress);
        let _third = admission.admit(address(2), &limits, now).unwrap();
        assert_eq!(refused(3), ConnectionRefusal::Handshakes);
        first.handshake_done();
        first.handshake_done();
        assert_eq!(admission.handshakes(), 2, "done once, however often it is said");
        assert!(admission.admit(address(1), &limits, now).is_ok());
        drop((first, second));
        assert_eq!((admission.handshakes(), admission.live()), (1, 1));
    }

    #[test]
    fn an_address_behind_a_proxy_is_remembered_while_it_has_requests() {
        let (admission, start) = (Admission::new(), Instant::now());
        let load = admission.load_of(address(1), start);
        for n in 2..100_000u32 {
            admission.load_of(address(n), start + Duration::from_millis(u64::from(n)));
        }
        assert!(admission.addresses() < SHARDS * SWEEP_MIN * 2, "{} remembered", admission.addresses());
        assert!(Arc::ptr_eq(&load, &admission.load_of(address(1), start + SECOND * 1000)));
    }

    #[test]
    fn one_ipv6_network_counts_as_one_address() {
        let (admission, now) = (Admission::new(), Instant::now());
        let held: Vec<_> = (1..=3u16)
            .map(|n| admission.admit(IpAddr::from([0x2001, 0xdb8, 0, 1, n, 0, 0, 1]), &limits(), now).unwrap())
            .collect();
        assert!(admission.admit(IpAddr::from([0x2001, 0xdb8, 0, 1, 9, 9, 9, 9]), &limits(), now).is_err());
        assert!(admission.admit(IpAddr::from([0x2001, 0xdb8, 0, 2, 9, 9, 9, 9]), &limits(), now).is_ok());
        assert_eq!(counted_address("::ffff:10.0.0.1".parse().unwrap()), address(0x0a00_0001));
        drop(held);
    }

    #[test]
    fn addresses_that_went_away_are_forgotten() {
        let (admission, start) = (Admission::new(), Instant::now());
        for n in 0..100_000u32 {
            drop(admission.admit(address(n), &limits(), start + Duration::from_millis(u64::from(n))).unwrap());
        }
        assert!(admission.addresses() < SHARDS * SWEEP_MIN * 2, "{} remembered", admission.addresses());
    }
}
