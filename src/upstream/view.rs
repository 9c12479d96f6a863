//! An upstream's nodes as the balancer sees them: laid out anew whenever one of them changes, never on a request's time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::maglev::Maglev;
use super::node::Node;
use super::outlier::{Standing, Times};
use super::random::GOLDEN;
use crate::units::Percent;

/// Envoy's overprovisioning factor: a group is taken to carry all of its load while so many tenths of percent of its nodes,
/// times this, make a whole. With a few nodes out nothing goes elsewhere yet.
const OVERPROVISIONING: usize = 1400;

/// What does not change while the node set is the same.
pub(super) struct NodeSet {
    pub(super) nodes: Arc<[Arc<Node>]>,
    /// By priority, ascending.
    groups: Box<[Members]>,
}

/// All nodes of one priority.
struct Members {
    indexes: Box<[u16]>,
    /// By key, if any are looked up.
    table: Option<Arc<Maglev>>,
}

impl NodeSet {
    /// `keyed`: requests are looked up by their keys.
    pub(super) fn new(nodes: Vec<Arc<Node>>, keyed: bool) -> Self {
        let mut priorities: Vec<u8> = nodes.iter().map(|n| n.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let group = |priority: u8| {
            let indexes: Box<[u16]> = nodes.iter().filter(|n| n.priority == priority).map(|n| n.index).collect();
            let table = keyed.then(|| {
                let named = indexes.iter().map(|i| &nodes[usize::from(*i)]);
                Arc::new(Maglev::new(named.map(|n| (n.index, n.url.as_bytes(), n.weight)).collect()))
            });
            Members { indexes, table }
        };
        Self { groups: priorities.into_iter().map(group).collect(), nodes: nodes.into() }
    }
}

/// What the layout depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    drained: bool,
    healthy: bool,
    /// Not known yet, so that it neither counts as usable nor as out.
    held_back: bool,
    standing_in: bool,
    half_open: bool,
    times: Times,
}

/// Which of the nodes that are out get requests all the same. Drained ones never do: what an operator says is no guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// None.
    Normal,
    /// The ejected ones: no other is left.
    LastResort,
    /// All of a priority: fewer than `panic_threshold` of it are usable.
    Panic,
}

/// The layout of one moment.
pub(super) struct View {
    set: Arc<NodeSet>,
    pub(super) nodes: Arc<[Arc<Node>]>,
    pub(super) groups: Box<[Group]>,
    /// The furthest of the groups'.
    pub(super) mode: Mode,
    /// By index: since when a node's share rises. Empty if none does.
    pub(super) rising: Box<[Option<Instant>]>,
    /// When a node changes by itself.
    pub(super) wake: Option<Instant>,
    seen: Box<[Seen]>,
}

/// The nodes of one priority.
pub(super) struct Group {
    /// Each usable node as often as it weighs, evenly spread.
    pub(super) order: Box<[u16]>,
    /// Each usable node once.
    pub(super) usable: Box<[u16]>,
    /// Weight of the usable ones.
    pub(super) weight: u32,
    /// All of them by key.
    pub(super) table: Option<Arc<Maglev>>,
    mode: Mode,
    /// Its share of the load and that of all before it, in 1/65536.
    until: u32,
}

const WHOLE: u32 = 1 << 16;

impl View {
    pub(super) fn new(set: Arc<NodeSet>, panic_threshold: Percent, slow_start: Duration) -> Self {
        let seen = look(&set.nodes);
        let (mode, parts) = modes_and_shares(&set, &seen, panic_threshold);
        let mut until = 0;
        let groups = set.groups.iter().zip(parts).map(|(all, (mode, share))| {
            until += share;
            let members = all.indexes.iter().copied().filter(|i| seen[usize::from(*i)].counts(mode));
            Group::new(&set.nodes, members.collect(), all.table.clone(), mode, until)
        });
        let rising: Box<[_]> = seen.iter().map(|s| s.times.rising.filter(|_| !slow_start.is_zero())).collect();
        let ends = seen.iter().flat_map(|s| [s.times.until, s.times.rising.map(|since| since + slow_start)]);
        Self {
            groups: groups.collect(),
            nodes: set.nodes.clone(),
            mode,
            wake: ends.flatten().min(),
            rising: if rising.iter().any(Option::is_some) { rising } else { Box::default() },
            set: set.clone(),
            seen,
        }
    }

    /// Whether anything has changed since it was laid out.
    pub(super) fn is_stale(&self) -> bool {
        look(&self.nodes) != self.seen
    }

    /// The same nodes as they are now.
    pub(super) fn again(&self, panic_threshold: Percent, slow_start: Duration) -> Self {
        Self::new(self.set.clone(), panic_threshold, slow_start)
    }

    /// The group whose turn it is.
    pub(super) fn group_of(&self, turn: u64) -> usize {
        if self.groups.len() == 1 {
            return 0;
        }
        // The golden ratio's sequence: over any number of turns each group has its share.
        let point = turn.wrapping_mul(GOLDEN) >> 48;
        let group = self.groups.iter().position(|g| point < u64::from(g.until));
        group.unwrap_or(0)
    }

    /// That group, then the others by priority.
    pub(super) fn from(&self, first: usize) -> impl Iterator<Item = &Group> {
        let others = self.groups.iter().enumerate().filter(move |(i, _)| *i != first).map(|(_, group)| group);
        self.groups.get(first).into_iter().chain(others)
    }
}

fn look(nodes: &[Arc<Node>]) -> Box<[Seen]> {
    let seen = nodes.iter().map(|node| {
        let standing = node.standing();
        Seen {
            drained: node.is_drained(),
            healthy: node.is_healthy(),
            held_back: node.is_held_back(),
            standing_in: standing == Standing::In,
            half_open: matches!(standing, Standing::HalfOpen | Standing::Probing),
            times: node.state.ejection.times(),
        }
    });
    seen.collect()
}

impl Seen {
    /// Whether the node gets requests.
    fn counts(&self, mode: Mode) -> bool {
        if self.drained {
            return false;
        }
        match mode {
            Mode::Normal => self.healthy && (self.standing_in || self.half_open),
            Mode::LastResort => self.healthy,
            Mode::Panic => !self.held_back,
        }
    }
}

/// Who counts in each group, and what share of the load it has, in 1/65536; and the furthest mode of them. As Envoy does it:
/// the load is split by who is well, and panic then looks no further than into one priority. So nothing is kept from a node
/// that is well by dead ones of a higher priority.
fn modes_and_shares(set: &NodeSet, seen: &[Seen], panic_threshold: Percent) -> (Mode, Vec<(Mode, u32)>) {
    let of = |all: &Members, counts: &dyn Fn(&Seen) -> bool| {
        // Of drained nodes nothing is expected, so nothing is missing while they are out.
        let members = all.indexes.iter().map(|i| &seen[usize::from(*i)]).filter(|s| !s.drained && !s.held_back);
        (members.clone().filter(|s| counts(s)).count(), members.count())
    };
    let shares = |mode: Mode| {
        let available = set.groups.iter().map(|all| {
            let (usable, members) = of(all, &|s| s.counts(mode));
            (usable * OVERPROVISIONING / members.max(1)).min(1000)
        });
        split(&available.collect::<Vec<_>>())
    };
    let is_well = |s: &Seen| s.healthy && s.standing_in;
    let (enough, normal) = shares(Mode::Normal);
    // Nobody is well: then each counts for as much as any other.
    let nobody = normal.iter().all(|share| *share == 0);
    let panicked = if nobody { shares(Mode::Panic).1 } else { normal.clone() };
    let panics = set.groups.iter().zip(&panicked).map(|(all, share)| {
        let (well, members) = of(all, &is_well);
        !enough && (nobody || *share > 0) && well * 1000 < members * usize::from(panic_threshold.0)
    });
    let panics: Vec<bool> = panics.collect();
    if panics.contains(&true) {
        let mode = |panics: &bool| if *panics { Mode::Panic } else { Mode::Normal };
        return (Mode::Panic, panics.iter().map(mode).zip(panicked).collect());
    }
    let left = seen.iter().filter(|s| !s.drained && !s.held_back && s.healthy);
    let (mode, shares) = if left.clone().next().is_some() && !left.clone().any(is_well) {
        (Mode::LastResort, shares(Mode::LastResort).1)
    } else {
        (Mode::Normal, normal)
    };
    (mode, shares.into_iter().map(|share| (mode, share)).collect())
}

/// From how much of their load groups can carry, in thousandths, to what they get: each all that is left, as far as it
/// can; if all together can't carry it, in proportion. Whether they can.
fn split(available: &[usize]) -> (bool, Vec<u32>) {
    let sum: usize = available.iter().sum();
    let whole = sum.clamp(1, 1000);
    let mut left = whole;
    let parts = available.iter().map(|can| {
        let part = left.min(*can);
        left -= part;
        u32::try_from(part * WHOLE as usize / whole).unwrap_or(WHOLE)
    });
    let mut shares: Vec<u32> = parts.collect();
    // What rounding left over goes to the last that has some.
    let rest = WHOLE.saturating_sub(shares.iter().sum());
    if let Some(last) = shares.iter_mut().rev().find(|share| **share > 0) {
        *last += rest;
    }
    (sum >= 1000, shares)
}

impl Group {
    /// Whether a node of it may have a request now.
    pub(super) fn takes(&self, node: &Node) -> bool {
        match self.mode {
            Mode::Normal => node.is_usable(),
            Mode::LastResort => node.is_healthy() && !node.is_drained(),
            Mode::Panic => !node.is_drained() && !node.is_held_back(),
        }
    }

    /// Takes a node of it for a request: whether that request is its probe. None: somebody else's is.
    pub(super) fn claim(&self, node: &Node) -> Option<bool> {
        match node.standing() {
            Standing::In => Some(false),
            Standing::HalfOpen if node.state.ejection.claim_probe() => Some(true),
            _ if self.mode != Mode::Normal => Some(false),
            _ => None,
        }
    }

    fn new(nodes: &[Arc<Node>], usable: Box<[u16]>, table: Option<Arc<Maglev>>, mode: Mode, until: u32) -> Self {
        let weight = |index: &u16| nodes[usize::from(*index)].weight;
        let divisor = usable.iter().map(weight).fold(0, gcd).max(1);
        let mut places: Vec<(u64, u16)> = Vec::new();
        for (i, index) in (0u64..).zip(&usable) {
            let share = u64::from(weight(index) / divisor);
            let step = u64::MAX / share;
            // Each node starts somewhere else in the round, so that nodes of few turns don't stand side by side.
            let start = i.wrapping_mul(GOLDEN) % step;
            places.extend((0..share).map(|k| (start + k * step, *index)));
        }
        places.sort_unstable();
        Self {
            order: places.into_iter().map(|(_, index)| index).collect(),
            weight: usable.iter().map(|i| u32::from(weight(i))).sum(),
            usable,
            table,
            mode,
            until,
        }
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
