//! Which node a key meets: Maglev's look-up table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4).
//!
//! A look-up is one multiplication and one read, however many nodes there are. Each node fills the table in an order of its
//! own that only its name decides, so every gateway of a fleet has the same table, and a node that comes or goes moves
//! little but its own keys. The table holds every node of its group: one that is down is stepped over when it is met
//! ([`slot`] has further places for a key), so its keys, and no others, are spread over the rest until it is back.

use super::random::mix;

/// Primes near powers of four.
const SIZES: [usize; 5] = [4_093, 16_381, 65_521, 262_139, 1_048_573];

/// Places of the lightest node: its share is then right to a hundredth.
const PLACES_LEAST: usize = 100;

/// A table of node indexes.
pub(super) struct Maglev(Box<[u16]>);

impl Maglev {
    /// From each node's index, name and weight, in whatever order.
    pub(super) fn new(mut nodes: Vec<(u16, &[u8], u16)>) -> Self {
        nodes.sort_unstable_by_key(|n| n.1);
        let total: usize = nodes.iter().map(|n| usize::from(n.2)).sum();
        let lightest = nodes.iter().map(|n| usize::from(n.2)).min().unwrap_or(1).max(1);
        let wanted = total / lightest * PLACES_LEAST;
        let size = SIZES.iter().copied().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
        Self(fill(&nodes, size))
    }

    /// The node at a key's `nth` place.
    pub(super) fn node(&self, key: u64, nth: u64) -> Option<u16> {
        self.0.get(slot(mix(key, nth), self.0.len())).copied()
    }
}

/// An even share of the size: multiply and shift instead of a division.
fn slot(random: u64, size: usize) -> usize {
    // The product of a u64 and a usize, shifted down by 64, is below the usize.
    usize::try_from((u128::from(random) * size as u128) >> 64).unwrap_or(0)
}

/// One node's way through the table: every place once, for the size is prime.
struct Way {
    next: usize,
    step: usize,
    credit: u16,
}

fn fill(nodes: &[(u16, &[u8], u16)], size: usize) -> Box<[u16]> {
    const FREE: u16 = u16::MAX;
    let heaviest = nodes.iter().map(|n| n.2).max().unwrap_or(1);
    let mut ways: Vec<Way> = nodes
        .iter()
        .map(|(_, name, _)| {
            let hash = super::hash_key(name);
            Way { next: slot(mix(hash, 1), size), step: 1 + slot(mix(hash, 2), size - 1), credit: 0 }
        })
        .collect();
    let mut table = vec![FREE; size].into_boxed_slice();
    let mut left = if nodes.is_empty() { 0 } else { size };
    while left > 0 {
        for (way, (index, _, weight)) in ways.iter_mut().zip(nodes) {
            // The heaviest node takes a place in each round, the others as often as they weigh.
            way.credit += weight;
            if way.credit < heaviest || left == 0 {
                continue;
            }
            way.credit -= heaviest;
            while table[way.next] != FREE {
                way.next = (way.next + way.step) % size;
            }
            table[way.next] = *index;
            left -= 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: u16) -> Vec<String> {
        (0..count).map(|i| format!("http://10.0.{}.{}:3000", i / 256, i % 256)).collect()
    }

    fn table(names: &[String], weight: impl Fn(usize) -> u16) -> Maglev {
        let nodes: Vec<_> =
            names.iter().enumerate().map(|(i, n)| (u16::try_from(i).unwrap(), n.as_bytes(), weight(i))).collect();
        Maglev::new(nodes)
    }

    fn shares(maglev: &Maglev, nodes: usize) -> Vec<f64> {
        let mut counts = vec![0u32; nodes];
        maglev.0.iter().for_each(|i| counts[usize::from(*i)] += 1);
        counts.iter().map(|c| f64::from(*c) / maglev.0.len() as f64).collect()
    }

    #[test]
    fn every_node_has_its_share_within_two_percent() {
        for count in [1, 2, 3, 10, 100, 1000] {
            let names = names(count);
            for share in shares(&table(&names, |_| 1), names.len()) {
                assert!((share * f64::from(count) - 1.0).abs() < 0.02, "{count}: {share}");
            }
        }
        let weighted = shares(&table(&names(3), |i| [1, 2, 5][i]), 3);
        for (share, fair) in weighted.iter().zip([0.125, 0.25, 0.625]) {
            assert!((share / fair - 1.0).abs() < 0.02, "{weighted:?}");
        }
    }

    #[test]
    fn a_node_that_goes_moves_little_but_its_own_keys() {
        let names = names(100);
        let whole = table(&names, |_| 1);
        let fewer = table(&names[..99], |_| 1);
        let keys = 20_000u64;
        let others = (0..keys).filter(|k| whole.node(*k, 0) != Some(99));
        let moved = others.filter(|k| whole.node(*k, 0) != fewer.node(*k, 0)).count();
        assert!(moved < 600, "{moved} of {keys} keys moved without need");
    }

    #[test]
    fn the_order_of_the_configuration_moves_no_key() {
        let names = names(10);
        let turned: Vec<_> = names.iter().rev().cloned().collect();
        let (a, b) = (table(&names, |_| 1), table(&turned, |_| 1));
        assert!((0..10_000u64).all(|k| a.node(k, 0).map(|i| 9 - i) == b.node(k, 0)));
    }

    #[test]
    fn a_keys_further_places_are_spread() {
        let names = names(4);
        let maglev = table(&names, |_| 1);
        let mut next = [0u32; 4];
        for key in (0..40_000u64).filter(|k| maglev.node(*k, 0) == Some(0)) {
            let other = (1..).find_map(|n| maglev.node(key, n).filter(|i| *i != 0)).unwrap();
            next[usize::from(other)] += 1;
        }
        assert!(next[1..].iter().all(|n| (3_000..3_700).contains(n)), "{next:?}");
    }
}
