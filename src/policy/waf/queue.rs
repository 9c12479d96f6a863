//! Requests that wait for the engine: callers in turns, of each caller its addresses in turns, of each address one after
//! the other; so that who asks for much waits for itself. When all places are taken, the newest of whoever has most
//! gives its place away: a caller who asks for little always gets a turn.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::{Condvar, Mutex};

/// Most that wait.
pub const QUEUE_MAX: usize = 256;

/// Who asks, as far as turns go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A certificate: its peer, or what tells it from others. From however many addresses, it is one caller.
    Certified(Box<[u8]>),
    /// An address without a certificate.
    Address(IpAddr),
}

/// What waits.
pub struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    one_more: Condvar,
}

/// Lines in the order of their turns; each has something in it. At most [`QUEUE_MAX`], so to look through them takes less
/// than anything that is done with what waits in them.
struct Turns<K, L>(VecDeque<(K, L)>);

struct Waiting<T> {
    callers: Turns<Caller, OfCaller<T>>,
    count: usize,
}

struct OfCaller<T> {
    addresses: Turns<IpAddr, VecDeque<T>>,
    count: usize,
}

impl<T> Queue<T> {
    /// Nothing waits.
    pub fn new() -> Self {
        let waiting = Waiting { callers: Turns(VecDeque::new()), count: 0 };
        Self { waiting: Mutex::new(waiting), one_more: Condvar::new() }
    }

    /// Lets one more wait, of a client at this address and with this certificate, if any. If too many do, one of them
    /// waits no longer, perhaps this one: it is dropped.
    pub fn push(&self, address: IpAddr, certificate: Option<Box<[u8]>>, one: T) {
        // Of IPv6 a network of 64 bits, for one host has at least that.
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            v4 => v4,
        };
        let caller = certificate.map_or(Caller::Address(address), Caller::Certified);
        // Dropped after the lock is given back: whoever waits for it is woken.
        let _out = {
            let mut waiting = self.waiting.lock();
            waiting.push(caller.clone(), address, one);
            if waiting.count > QUEUE_MAX { waiting.push_out(&caller, address) } else { None }
        };
        self.one_more.notify_one();
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

impl<K: PartialEq, L> Turns<K, L> {
    /// The line of `key`; a new one has its turn after all others.
    fn line(&mut self, key: K, new: impl FnOnce() -> L) -> Option<&mut L> {
        let at = self.0.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
            self.0.push_back((key, new()));
            self.0.len() - 1
        });
        self.0.get_mut(at).map(|(_, line)| line)
    }

    /// Where the longest line is; of several the one of `key`, which has come last.
    fn longest(&self, key: &K, length: impl Fn(&L) -> usize) -> Option<usize> {
        let lines = self.0.iter().enumerate();
        lines.max_by_key(|(_, (k, line))| (length(line), k == key)).map(|(i, _)| i)
    }
}

impl<T> Waiting<T> {
    fn push(&mut self, caller: Caller, address: IpAddr, one: T) {
        let of_caller = self.callers.line(caller, || OfCaller { addresses: Turns(VecDeque::new()), count: 0 });
        let Some(of_caller) = of_caller else { return };
        let Some(line) = of_caller.addresses.line(address, VecDeque::new) else { return };
        line.push_back(one);
        of_caller.count += 1;
        self.count += 1;
    }

    fn next(&mut self) -> Option<T> {
        let (caller, mut of_caller) = self.callers.0.pop_front()?;
        let (address, mut line) = of_caller.addresses.0.pop_front()?;
        let next = line.pop_front();
        if !line.is_empty() {
            of_caller.addresses.0.push_back((address, line));
        }
        of_caller.count -= 1;
        if of_caller.count > 0 {
            self.callers.0.push_back((caller, of_caller));
        }
        self.count -= 1;
        next
    }

    /// Takes out the newest of whoever has most.
    fn push_out(&mut self, newest: &Caller, address: IpAddr) -> Option<T> {
        let at = self.callers.longest(newest, |of| of.count)?;
        let (_, of_caller) = self.callers.0.get_mut(at)?;
        let within = of_caller.addresses.longest(&address, VecDeque::len)?;
        let (_, line) = of_caller.addresses.0.get_mut(within)?;
        let out = line.pop_back();
        if line.is_empty() {
            of_caller.addresses.0.remove(within);
        }
        of_caller.count -= 1;
        if of_caller.count == 0 {
            self.callers.0.remove(at);
        }
        self.count -= 1;
        out
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn host(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn named(name: &str) -> Option<Box<[u8]>> {
        Some(name.as_bytes().into())
    }

    #[test]
    fn callers_take_turns_and_so_do_the_addresses_of_one() {
        let queue = Queue::new();
        for n in 0..9 {
            queue.push(host(1), None, (1, n));
        }
        queue.push(host(2), None, (2, 0));
        queue.push(host(2), None, (2, 1));
        for (address, what) in [(3, (3, 0)), (3, (3, 1)), (4, (4, 0))] {
            queue.push(host(address), named("alice"), what);
        }
        let first: Vec<_> = (0..9).map(|_| queue.pop()).collect();
        assert_eq!(first, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (4, 0), (1, 2), (3, 1), (1, 3)]);
    }

    #[test]
    fn when_all_places_are_taken_the_newest_of_whoever_has_most_goes() {
        let queue = Queue::new();
        for n in 0..QUEUE_MAX {
            queue.push(host(1 + u8::try_from(n % 4).unwrap()), None, n);
        }
        // Their own newest: nothing changes.
        (1..=4).for_each(|n| queue.push(host(n), None, 9000));
        assert_eq!(queue.waiting.lock().count, QUEUE_MAX);
        for n in 0..3 {
            queue.push(host(9), None, 5000 + n);
        }
        assert_eq!(queue.waiting.lock().count, QUEUE_MAX);
        let all: Vec<_> = (0..QUEUE_MAX).map(|_| queue.pop()).collect();
        assert_eq!(all[..6], [0, 1, 2, 3, 5000, 4], "the fifth has its turn after the four");
        assert!([5001, 5002].iter().all(|n| all.contains(n)) && !all.contains(&9000));
        assert!((0..240).all(|n| all.contains(&n)), "who came first is not pushed out");
        assert!(queue.waiting.lock().callers.0.is_empty(), "nothing is kept of a caller that has gone");
    }

    #[test]
    fn a_certificate_of_many_addresses_is_one_caller_and_an_ipv6_client_has_a_network() {
        let queue = Queue::new();
        for n in 0..=255 {
            queue.push(host(n), named("mallory"), 0);
            queue.push(IpAddr::from([0x2001, 0xdb8, 0, 7, 0, 0, 0, u16::from(n)]), None, 1);
        }
        queue.push(host(7), named("alice"), 2);
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [0, 1, 2]);
        assert_eq!(queue.waiting.lock().callers.0.len(), 2);
    }

    #[test]
    fn an_honest_caller_is_always_served_in_a_flood_of_four() {
        let queue = Queue::new();
        let done = AtomicBool::new(false);
        let (served, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for n in 1..=4 {
                let (queue, done) = (&queue, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        queue.push(host(n), None, usize::from(n));
                    }
                });
            }
            let (worker, end) = (&queue, &done);
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    let _ = served.send(worker.pop());
                }
            });
            for n in 0..200 {
                queue.push(host(9), None, 1000 + n);
                // What was served before it came is told too, so their number says nothing.
                while told.recv_timeout(std::time::Duration::from_secs(20)).expect("it has been pushed out") != 1000 + n
                {
                }
            }
            done.store(true, Ordering::Relaxed);
            queue.push(host(1), None, 0);
        });
    }
}
