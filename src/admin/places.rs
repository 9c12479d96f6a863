//! The admin listener's places for connections: few, and none may take them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections at once: some scrapers, probes and operators.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// Of them those of one address: whoever takes these leaves as many to all others.
pub(super) const CONNECTIONS_PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 2;

/// Who has how many; an address that has none is not in it.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<IpAddr, usize>>);

impl Places {
    /// A place for a connection of `remote`, until the result is dropped; `None`: there is none.
    pub(super) fn take(self: &Arc<Self>, remote: IpAddr) -> Option<Place> {
        let address = owner(remote);
        let mut taken = self.0.lock();
        if taken.values().sum::<usize>() >= CONNECTIONS_MAX {
            return None;
        }
        let own = taken.entry(address).or_default();
        if *own >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *own += 1;
        Some(Place { places: self.clone(), address })
    }
}

/// An IPv6 host has at least a /64.
fn owner(remote: IpAddr) -> IpAddr {
    match remote.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// See [`Places::take`].
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_half_of_the_places_and_all_together_have_all() {
        let places = Arc::new(Places::default());
        let of = |address: &str| places.take(address.parse().unwrap());
        let mut taken: Vec<_> = (0..1000).map_while(|_| of("10.0.0.1")).collect();
        assert_eq!((taken.len(), of("::ffff:10.0.0.1").is_some()), (CONNECTIONS_PER_ADDRESS_MAX, false));
        taken.extend((0..1000).map_while(|i| of(&format!("2001:db8::{i:x}"))));
        assert_eq!((taken.len(), of("10.0.0.9").is_some()), (CONNECTIONS_MAX, false), "a /64 counts as one");
        taken.pop();
        assert!(of("10.0.0.9").is_some());
        drop(taken);
        assert!(places.0.lock().is_empty());
    }
}
