//! Which node is next.
//!
//! Pingora's own `Weighted<RoundRobin>` is not used: it lists a node of weight 5 five times in a row, sends all that a dead
//! node would get to its successor, and allocates a set for each pick (pingora-load-balancing, `selection`). It has no
//! least-requests at all. Here the order is laid out once per change of health, and a pick is one atomic addition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::node::Node;
use crate::config::file::Balance;

/// 2^64 divided by the golden ratio: an additive sequence of it is spread evenly, with any number of members.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

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

    /// Lays the order out again, with the nodes that are usable now: their shares are then right among themselves.
    pub(super) fn rebuild(&self, nodes: &[Arc<Node>]) {
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

/// SplitMix64 (Steele, Lea, Flood 2014): the turn's own random number, with no state beyond the turn itself.
fn mix(seed: u64, turn: u64) -> u64 {
    let mut z = seed.wrapping_add(turn.wrapping_add(1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
