//! Which node is next.
//!
//! Pingora's own `Weighted<RoundRobin>` is not used: it lists a node of weight 5 five times in a row, sends all that a dead
//! node would get to its successor, and allocates a set for each pick (pingora-load-balancing, `selection`). It has no
//! least-requests at all, and its ring answers in the logarithm of its size. Here everything is laid out in a [`View`]
//! whenever a node changes, and a pick is one atomic addition.

use std::time::{Duration, Instant};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::node::{Node, NodeId};
use super::random::mix;
use super::view::{Group, View};
use crate::config::file::Balance;

/// Places at which a key is looked for before it goes to whichever node is next.
const PLACES: u64 = 16;

/// Of the turns of a node that could not be reached, each so manyth is taken.
const UNREACHED_TURNS: u64 = 8;

/// Least share of a node whose share is rising.
const RISE_LEAST: f64 = 0.1;

/// What a node is picked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Nodes that it may not be.
    pub tried: &'a [NodeId],
    /// With `consistent_hash`: what [`super::hash_key`] makes of the request's key, if it has one.
    pub key: Option<u64>,
    /// The time.
    pub now: Instant,
}

impl<'a> Ask<'a> {
    /// For a request without a key, whose first try this is.
    pub fn any(now: Instant) -> Self {
        Self { tried: &[], key: None, now }
    }
}

/// Picks nodes: in turn, by weight; for `least_requests` against one other node taken at random; for `consistent_hash` by
/// the request's key.
pub(super) struct Balancer {
    balance: Balance,
    /// Percent of the mean that a node may have.
    factor: Option<u16>,
    slow_start: Duration,
    seed: u64,
    /// Picks so far.
    turn: AtomicU64,
}

/// One pick.
struct Pick<'v, 'a> {
    view: &'v View,
    ask: &'a Ask<'a>,
    turn: u64,
    random: u64,
}

impl Balancer {
    pub(super) fn new(balance: Balance, factor: Option<u16>, slow_start: Duration, seed: u64) -> Self {
        Self { balance, factor, slow_start, seed, turn: AtomicU64::new(0) }
    }

    /// The next node, and whether its request is the one that shows whether it is well. `load`: requests at all nodes,
    /// the one that asks included.
    pub(super) fn pick<'v>(&self, view: &'v View, ask: &Ask<'_>, load: u32) -> Option<(&'v Arc<Node>, bool)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let pick = Pick { view, ask, turn, random: mix(self.seed, turn) };
        let chosen = match (self.balance, ask.key) {
            (Balance::ConsistentHash, Some(key)) => {
                let group = view.group_of(key >> 32);
                view.from(group).find_map(|group| Some((group, self.by_key(&pick, group, key, load)?)))
            }
            _ => view.from(view.group_of(turn)).find_map(|group| Some((group, self.by_load(&pick, group)?))),
        };
        let (group, index) = chosen?;
        let node = &view.nodes[usize::from(index)];
        match group.claim(node) {
            Some(probe) => Some((node, probe)),
            // Half open, and another request was faster.
            None => view.groups.iter().find_map(|group| pick.whoever(group)),
        }
    }

    fn by_load(&self, pick: &Pick<'_, '_>, group: &Group) -> Option<u16> {
        let first = pick.in_turn(group, pick.turn)?;
        let first = if self.holds_back(pick, first, pick.random) {
            pick.another(group, first, pick.random).unwrap_or(first)
        } else {
            first
        };
        let node = |index: u16| &pick.view.nodes[usize::from(index)];
        if self.balance == Balance::RoundRobin {
            return Some(first);
        }
        // A node that can't be reached is the idlest of all, and without probes and ejection would be everybody's favourite.
        // It counts as busier than any other until a connection is made; some of its turns show when that is.
        let shunned = node(first).is_unreached() && !pick.random.is_multiple_of(UNREACHED_TURNS);
        // The first of the two is the one whose turn it is, so that idle nodes share exactly by weight; and an idle node
        // can't be beaten.
        if node(first).in_flight() == 0 && !shunned {
            return Some(first);
        }
        let second = pick.another(group, first, pick.random);
        let second =
            second.filter(|&i| !self.holds_back(pick, i, pick.random.rotate_left(32)) && !node(i).is_unreached());
        second.filter(|&i| shunned || is_less_busy(node(i), node(first))).or(Some(first))
    }

    /// Whether a node whose share is rising does without this request.
    fn holds_back(&self, pick: &Pick<'_, '_>, index: u16, random: u64) -> bool {
        let Some(Some(since)) = pick.view.rising.get(usize::from(index)) else { return false };
        let gone = pick.ask.now.saturating_duration_since(*since).as_secs_f64();
        let share = (gone / self.slow_start.as_secs_f64()).max(RISE_LEAST);
        // The upper half, evenly from 0 to 1.
        f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX) >= share
    }

    fn by_key(&self, pick: &Pick<'_, '_>, group: &Group, key: u64, load: u32) -> Option<u16> {
        let table = group.table.as_ref()?;
        let mut places = (0..PLACES).filter_map(|n| table.node(key, n)).filter(|&i| pick.may_take(group, i));
        let Some(factor) = self.factor else { return places.next().or_else(|| pick.in_turn(group, key)) };
        let mut met = None;
        for index in places {
            let node = &pick.view.nodes[usize::from(index)];
            // Mirrokni, Thorup, Zadimoghaddam 2016, by weight: a node takes up to the factor times its share of the load.
            let most = u64::from(load.max(1)) * u64::from(node.weight) * u64::from(factor);
            if u64::from(node.in_flight()) * u64::from(group.weight) * 100 < most {
                return Some(index);
            }
            met = met.or(Some(index));
        }
        // All of its places are busy: the least busy of two, as without a key.
        self.by_load(pick, group).or(met)
    }
}

impl<'v> Pick<'v, '_> {
    fn may_take(&self, group: &Group, index: u16) -> bool {
        let node = &self.view.nodes[usize::from(index)];
        !self.ask.tried.contains(&node.id()) && group.takes(node)
    }

    /// The member of the group's order whose turn it is. If that one may not have the request (it has gone down since the order
    /// was laid out, or is half open and has its one request), the others have its turns by turns, not its successor alone.
    fn in_turn(&self, group: &Group, turn: u64) -> Option<u16> {
        let length = u64::try_from(group.order.len()).ok().filter(|&n| n > 0)?;
        let whose = group.order[usize::try_from(turn % length).ok()?];
        if self.may_take(group, whose) {
            return Some(whose);
        }
        let others = || group.order.iter().copied().filter(|&index| self.may_take(group, index));
        let count = u64::try_from(others().count()).ok().filter(|&n| n > 0)?;
        // Between the two looks at them there may have come to be fewer.
        others().nth(usize::try_from(turn / length % count).ok()?).or_else(|| others().next())
    }

    /// A node at random that is not `first`.
    fn another(&self, group: &Group, first: u16, random: u64) -> Option<u16> {
        let nodes = &group.usable;
        let others = u64::try_from(nodes.len()).ok()?.checked_sub(1).filter(|&n| n > 0)?;
        // Multiply and shift instead of a division: the upper half of random × others is even over 0..others.
        let at = usize::try_from((u128::from(random) * u128::from(others)) >> 64).ok()?;
        let index = if nodes[at] == first { nodes[nodes.len() - 1] } else { nodes[at] };
        Some(index).filter(|&i| self.may_take(group, i))
    }

    /// Anyone who can be had.
    fn whoever(&self, group: &Group) -> Option<(&'v Arc<Node>, bool)> {
        from_turn(&group.order, self.turn).filter(|&index| self.may_take(group, index)).find_map(|index| {
            let node = &self.view.nodes[usize::from(index)];
            group.claim(node).map(|probe| (node, probe))
        })
    }
}

/// The members of an order, each once, from the given turn on.
fn from_turn(order: &[u16], turn: u64) -> impl Iterator<Item = u16> {
    let start = u64::try_from(order.len()).ok().filter(|&len| len > 0).map_or(0, |len| turn % len);
    let (before, from) = order.split_at(usize::try_from(start).unwrap_or(0));
    from.iter().chain(before).copied()
}

/// Fewer requests under way for its weight, with the one that is to be placed: without it any idle node would be less busy
/// than one of a hundred times its weight that has a single request, and under light load weights would mean little.
fn is_less_busy(a: &Node, b: &Node) -> bool {
    let with_one_more = |node: &Node| u64::from(node.in_flight()) + 1;
    with_one_more(a) * u64::from(b.weight) < with_one_more(b) * u64::from(a.weight)
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
