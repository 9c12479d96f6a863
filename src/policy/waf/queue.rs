//! Requests that wait for the engine: each client's in their order, and the clients in turns, so that one that asks for much
//! waits for itself.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::{Condvar, Mutex};

/// Most that wait.
pub const QUEUE_MAX: usize = 256;
/// Most of one client: so that there is a place for others.
pub const CLIENT_MAX: usize = QUEUE_MAX / 4;

/// What waits. A client is an address; of IPv6 a network of 64 bits, for one host has at least that.
pub struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    one_more: Condvar,
}

struct Waiting<T> {
    /// A client has an entry only while something of it waits.
    by_client: HashMap<IpAddr, VecDeque<T>, ahash::RandomState>,
    turns: VecDeque<IpAddr>,
    count: usize,
}

impl<T> Queue<T> {
    /// Nothing waits.
    pub fn new() -> Self {
        let waiting = Waiting { by_client: HashMap::default(), turns: VecDeque::new(), count: 0 };
        Self { waiting: Mutex::new(waiting), one_more: Condvar::new() }
    }

    /// Lets one more wait; false if too many do, or too many of this client.
    #[must_use]
    pub fn push(&self, client: IpAddr, one: T) -> bool {
        let client = match client.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            v4 => v4,
        };
        let mut waiting = self.waiting.lock();
        if waiting.count >= QUEUE_MAX {
            return false;
        }
        let own = waiting.by_client.entry(client).or_default();
        if own.len() >= CLIENT_MAX {
            return false;
        }
        own.push_back(one);
        if own.len() == 1 {
            waiting.turns.push_back(client);
        }
        waiting.count += 1;
        self.one_more.notify_one();
        true
    }

    /// The next, once there is one.
    pub fn pop(&self) -> T {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(next) = waiting.next() {
                return next;
            }
            self.one_more.wait(&mut waiting);
        }
    }
}

impl<T> Waiting<T> {
    fn next(&mut self) -> Option<T> {
        let client = self.turns.pop_front()?;
        let own = self.by_client.get_mut(&client)?;
        let next = own.pop_front();
        if own.is_empty() {
            self.by_client.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        self.count -= usize::from(next.is_some());
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn clients_take_turns_and_each_has_its_order() {
        let queue = Queue::new();
        for n in 0..CLIENT_MAX {
            assert!(queue.push(host(1), (1, n)));
        }
        assert!(!queue.push(host(1), (1, 0)), "its part is taken");
        assert!(queue.push(host(2), (2, 0)) && queue.push(host(2), (2, 1)) && queue.push(host(3), (3, 0)));
        let first: Vec<_> = (0..6).map(|_| queue.pop()).collect();
        assert_eq!(first, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2)]);
        assert!(queue.push(host(1), (1, 0)), "and given back");
    }

    #[test]
    fn there_is_an_end_for_all_together_and_an_ipv6_client_has_a_network() {
        let queue = Queue::new();
        let network = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 7, 0, 0, 0, last]);
        let mut taken = 0;
        for n in 0..1000 {
            taken += usize::from(queue.push(network(n), ()));
        }
        assert_eq!(taken, CLIENT_MAX);
        for n in 0..=255 {
            taken += usize::from(queue.push(host(n), ()));
        }
        assert_eq!(taken, QUEUE_MAX);
        (0..taken).for_each(|_| queue.pop());
        assert!(queue.waiting.lock().by_client.is_empty(), "nothing is kept of a client that has gone");
    }
}
