//! Which node is next.
//!
//! Pingora's own `Weighted<RoundRobin>` is not used: it lists a node of weight 5 five times in a row, sends all that a dead
//! node would get to its successor, and allocates a set for each pick (pingora-load-balancing, `selection`). It has no
//! least-requests at all. Here the order is laid out once per change of health, and a pick is one atomic addition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::node::Node;
use super::random::{GOLDEN, mix};
use crate::config::file::Balance;

/// Picks nodes in turn, by weight; for `least_requests` against one other node taken at random.
pub(super) struct Balancer {
    balance: Balance,
    seed: u64,
    /// Picks so far.
    turn: AtomicU64,
    rotation: ArcSwap<Rotation>,
}

/// The usable nodes, by index.
#[derive(Default)]
struct Rotation {
    /// Each node as often as it weighs, evenly spread.
    order: Box<[u16]>,
    /// Each node once.
    nodes: Box<[u16]>,
}

impl Rotation {
    fn of(nodes: &[Arc<Node>]) -> Self {
        let usable: Vec<&Arc<Node>> = nodes.iter().filter(|n| n.is_usable()).collect();
        let divisor = usable.iter().fold(0, |acc, n| gcd(acc, n.weight)).max(1);
        let mut places: Vec<(u64, u16)> = Vec::new();
        for (i, node) in (0u64..).zip(&usable) {
            let share = u64::from(node.weight / divisor);
            let step = u64::MAX / share;
            // Each node starts somewhere else in the round, so that nodes of few turns don't stand side by side.
            let start = i.wrapping_mul(GOLDEN) % step;
            places.extend((0..share).map(|k| (start + k * step, node.index)));
        }
        places.sort_unstable();
        Self {
            order: places.into_iter().map(|(_, index)| index).collect(),
            nodes: usable.iter().map(|n| n.index).collect(),
        }
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Balancer {
    pub(super) fn new(balance: Balance, seed: u64) -> Self {
        Self { balance, seed, turn: AtomicU64::new(0), rotation: ArcSwap::default() }
    }

    /// Lays the order out again if other nodes than before are usable: their shares are then right among themselves.
    pub(super) fn refresh(&self, nodes: &[Arc<Node>]) {
        let usable = || nodes.iter().filter(|n| n.is_usable()).map(|n| n.index);
        if usable().eq(self.rotation.load().nodes.iter().copied()) {
            return;
        }
        // rcu, so that of two changes at once the later view of the nodes is the one that stays.
        self.rotation.rcu(|_| Rotation::of(nodes));
    }

    pub(super) fn pick<'n>(&self, nodes: &'n [Arc<Node>], tried: &[u16]) -> Option<&'n Arc<Node>> {
        let rotation = self.rotation.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // A node may have gone down since the order was laid out.
        let may_take = |index: u16| !tried.contains(&index) && nodes[usize::from(index)].is_usable();
        let first = in_turn(&rotation.order, turn, may_take)?;
        let first = &nodes[usize::from(first)];
        match self.balance {
            Balance::RoundRobin => Some(first),
            // The first of the two is the one whose turn it is, so that idle nodes share exactly by weight; and an idle
            // node can't be beaten.
            Balance::LeastRequests if first.in_flight() == 0 => Some(first),
            Balance::LeastRequests => {
                let second = another(&rotation.nodes, first.index, mix(self.seed, turn)).filter(|&i| may_take(i));
                Some(second.map(|i| &nodes[usize::from(i)]).filter(|s| is_less_busy(s, first)).unwrap_or(first))
            }
        }
    }
}

/// The first acceptable member of the order, from the given turn on.
fn in_turn(order: &[u16], turn: u64, may_take: impl Fn(u16) -> bool) -> Option<u16> {
    let len = u64::try_from(order.len()).ok().filter(|&l| l > 0)?;
    let start = usize::try_from(turn % len).ok()?;
    order[start..].iter().chain(&order[..start]).copied().find(|&index| may_take(index))
}

/// A node at random that is not `first`.
fn another(nodes: &[u16], first: u16, random: u64) -> Option<u16> {
    let others = u64::try_from(nodes.len()).ok()?.checked_sub(1).filter(|&n| n > 0)?;
    // Multiply and shift instead of a division: the upper half of random × others is even over 0..others.
    let at = usize::try_from((u128::from(random) * u128::from(others)) >> 64).ok()?;
    Some(if nodes[at] == first { nodes[nodes.len() - 1] } else { nodes[at] })
}

/// Fewer requests under way for its weight.
fn is_less_busy(a: &Node, b: &Node) -> bool {
    u64::from(a.in_flight()) * u64::from(b.weight) < u64::from(b.in_flight()) * u64::from(a.weight)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use proptest::prelude::*;

    use super::super::fakes::unprobed;
    use super::super::node::Thresholds;
    use super::super::{Picked, Upstream};
    use super::*;

    const LIMITS: Thresholds = Thresholds { healthy_after: 1, unhealthy_after: 1 };

    fn set_up(upstream: &Upstream, index: usize, up: bool) {
        let result = if up { Ok(()) } else { Err("told so".to_owned()) };
        upstream.nodes()[index].probed(result, &LIMITS, Instant::now(), SystemTime::UNIX_EPOCH);
    }

    fn counts(upstream: &Upstream, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; upstream.nodes().len()];
        for _ in 0..picks {
            counts[usize::from(upstream.pick(&[]).unwrap().node().index())] += 1;
        }
        counts
    }

    #[test]
    fn shares_follow_the_weights_within_two_percent() {
        for balance in [Balance::RoundRobin, Balance::LeastRequests] {
            for weights in
                [vec![1, 1, 1], vec![5, 1, 1], vec![2, 3, 7, 100], vec![100, 100], vec![1; 100], vec![10, 15]]
            {
                let total: u16 = weights.iter().sum();
                for (count, weight) in counts(&unprobed(balance, &weights), 10_000).iter().zip(&weights) {
                    let fair = 10_000.0 * f64::from(*weight) / f64::from(total);
                    let off = (*count as f64 - fair).abs();
                    assert!(off <= (fair * 0.02).max(1.0), "{balance:?} {weights:?}: {count} for {fair}");
                }
            }
        }
    }

    #[test]
    fn a_dead_nodes_share_is_spread_over_all_others() {
        for balance in [Balance::RoundRobin, Balance::LeastRequests] {
            let upstream = unprobed(balance, &[1, 1, 1, 1]);
            set_up(&upstream, 1, false);
            upstream.refresh();
            assert_eq!(counts(&upstream, 9_999), [3333, 0, 3333, 3333]);
        }
    }

    #[test]
    fn a_heavy_node_gets_no_burst() {
        let upstream = unprobed(Balance::RoundRobin, &[5, 1, 1]);
        let picks: Vec<u16> = (0..70).map(|_| upstream.pick(&[]).unwrap().node().index()).collect();
        let longest = picks.chunk_by(|a, b| a == b).map(<[u16]>::len).max().unwrap();
        assert!(longest <= 4, "{picks:?}");
        let light = unprobed(Balance::RoundRobin, &[1, 1, 1]);
        let picks: Vec<u16> = (0..30).map(|_| light.pick(&[]).unwrap().node().index()).collect();
        assert!(picks.windows(2).all(|w| w[0] != w[1]), "{picks:?}");
    }

    #[test]
    fn a_slow_node_gets_less() {
        let upstream = unprobed(Balance::LeastRequests, &[1, 1, 1]);
        // Node 0 never finishes what it has, the others finish after six more requests.
        let mut stuck: Vec<Picked> = Vec::new();
        let mut running = std::collections::VecDeque::new();
        for _ in 0..3_000 {
            let picked = upstream.pick(&[]).unwrap();
            if picked.node().index() == 0 {
                stuck.push(picked)
            } else {
                running.push_back(picked)
            }
            if running.len() > 6 {
                running.pop_front();
            }
        }
        assert!(stuck.len() < 20, "{}", stuck.len());
        let [_, b, c] = [0, 1, 2].map(|i| upstream.status()[i].requests);
        assert!(b.abs_diff(c) < 60, "{b} {c}");
    }

    #[test]
    fn held_requests_stand_in_proportion_to_the_weights() {
        let upstream = unprobed(Balance::LeastRequests, &[1, 2, 5]);
        let held: Vec<Picked> = (0..8_000).filter_map(|_| upstream.pick(&[])).collect();
        for (node, fair) in upstream.nodes().iter().zip([1000u32, 2000, 5000]) {
            assert!(node.in_flight().abs_diff(fair) <= fair / 50, "{} for {fair}", node.in_flight());
        }
        drop(held);
        assert!(upstream.nodes().iter().all(|n| n.in_flight() == 0));
    }

    #[test]
    fn the_same_seed_picks_the_same_nodes() {
        let run = || {
            let upstream = unprobed(Balance::LeastRequests, &[1, 2, 5, 1]);
            let held: Vec<Picked> = (0..500).filter_map(|_| upstream.pick(&[])).collect();
            held.iter().map(|p| p.node().index()).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn picks_from_many_threads_are_still_even() {
        let upstream = unprobed(Balance::RoundRobin, &[1, 1, 1]);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| counts(&upstream, 3_000));
            }
        });
        assert!(upstream.status().iter().all(|n| n.requests == 4_000));
    }

    proptest! {
        #[test]
        fn a_pick_is_never_down_nor_tried(
            least in any::<bool>(),
            nodes in prop::collection::vec((1u16..=100, any::<bool>(), any::<bool>(), 0usize..4), 1..12),
            refreshed in any::<bool>(),
            picks in 1usize..40,
        ) {
            let balance = if least { Balance::LeastRequests } else { Balance::RoundRobin };
            let weights: Vec<u16> = nodes.iter().map(|n| n.0).collect();
            let upstream = unprobed(balance, &weights);
            let busy: Vec<Picked> =
                upstream.nodes().iter().zip(&nodes).flat_map(|(n, s)| (0..s.3).map(|_| Picked::new(n.clone()))).collect();
            for (i, node) in nodes.iter().enumerate() {
                set_up(&upstream, i, node.1);
            }
            if refreshed {
                upstream.refresh();
            }
            let tried: Vec<u16> = (0u16..).zip(&nodes).filter(|(_, n)| n.2).map(|(i, _)| i).collect();
            let possible = (0u16..).zip(&nodes).any(|(i, n)| n.1 && !tried.contains(&i));
            let mut held = Vec::new();
            for _ in 0..picks {
                let picked = upstream.pick(&tried);
                prop_assert_eq!(picked.is_some(), possible);
                if let Some(picked) = picked {
                    prop_assert!(picked.node().is_usable());
                    prop_assert!(!tried.contains(&picked.node().index()));
                    held.push(picked);
                }
            }
            drop((busy, held));
            prop_assert!(upstream.nodes().iter().all(|n| n.in_flight() == 0));
        }
    }
}
