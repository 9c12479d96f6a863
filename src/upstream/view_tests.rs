use std::net::SocketAddr;
use std::time::SystemTime;

use super::super::fakes::{build, node, plain, settings};
use super::super::node::Thresholds;
use super::super::{Drained, NodeSettings, Settings, Upstream};
use super::*;
use crate::config::file::Balance;

const AT_ONCE: Thresholds = Thresholds { healthy_after: 1, unhealthy_after: 1 };

/// Nodes of these priorities.
fn upstream(priorities: &[u8], balance: Balance, panic: u16) -> Arc<Upstream> {
    let nodes = (1..)
        .zip(priorities)
        .map(|(port, &priority)| NodeSettings { priority, ..node(SocketAddr::from(([127, 0, 0, 1], port)), 1) });
    build(Settings { balance, panic_threshold: Percent(panic), ..settings(nodes.collect()) })
}

fn set(upstream: &Upstream, nodes: std::ops::Range<usize>, up: bool) {
    for node in &upstream.nodes()[nodes] {
        let result = if up { Ok(()) } else { Err("told so".to_owned()) };
        node.probed(result, &AT_ONCE, Instant::now(), SystemTime::UNIX_EPOCH);
    }
    upstream.refresh();
}

/// Requests of each priority, of a thousand.
fn by_priority(upstream: &Upstream) -> [usize; 3] {
    let mut counts = [0; 3];
    for n in 0..1000u64 {
        let key = Some(super::super::hash_key(&n.to_le_bytes()));
        let picked = upstream.pick(&super::super::Ask { key, ..plain() }).unwrap();
        counts[usize::from(picked.node().priority)] += 1;
    }
    counts
}

fn near(got: [usize; 3], fair: [usize; 3]) -> bool {
    got.iter().zip(fair).all(|(got, fair)| got.abs_diff(fair) <= if fair == 0 { 0 } else { 45 })
}

#[test]
fn a_lower_priority_gets_what_the_higher_one_can_t_carry() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::ConsistentHash] {
        let upstream = upstream(&[[0; 10], [1; 10], [2; 10]].concat(), balance, 0);
        for (down, fair) in [
            (0, [1000, 0, 0]),
            // Seven tenths carry all, with Envoy's factor of 1.4 on top: 3 of 10 may be out.
            (2, [1000, 0, 0]),
            (5, [700, 300, 0]),
            (9, [140, 860, 0]),
            (10, [0, 1000, 0]),
            (15, [0, 700, 300]),
            (20, [0, 0, 1000]),
        ] {
            set(&upstream, 0..30, true);
            set(&upstream, 0..down, false);
            let got = by_priority(&upstream);
            assert!(near(got, fair), "{balance:?}, {down} down: {got:?} for {fair:?}");
        }
    }
}

#[test]
fn what_is_left_is_shared_when_all_can_carry_less_than_the_whole() {
    let upstream = upstream(&[[0; 10], [1; 10]].concat(), Balance::RoundRobin, 0);
    set(&upstream, 0..8, false);
    set(&upstream, 10..19, false);
    // 28 % and 14 % of the load could be carried.
    let got = by_priority(&upstream);
    assert!(near(got, [666, 333, 0]), "{got:?}");
    set(&upstream, 0..20, false);
    assert!(upstream.pick(&plain()).is_none(), "nobody is left, and there is no panic");
    assert!(!upstream.has_usable() && !upstream.is_in_panic());
}

#[test]
fn all_nodes_tried_in_one_priority_leads_to_the_next() {
    let upstream = upstream(&[0, 1], Balance::LeastRequests, 0);
    let first = upstream.pick(&plain()).unwrap();
    assert_eq!(first.node().priority, 0);
    let tried = [first.node().id()];
    assert_eq!(upstream.pick(&super::super::Ask { tried: &tried, ..plain() }).unwrap().node().priority, 1);
}

#[test]
fn panic_begins_below_the_threshold_and_ends_at_it() {
    for balance in [Balance::RoundRobin, Balance::ConsistentHash] {
        let upstream = upstream(&[0; 10], balance, 500);
        set(&upstream, 0..5, false);
        assert!(!upstream.is_in_panic(), "half is enough");
        set(&upstream, 5..6, false);
        assert!(upstream.is_in_panic());
        let mut met = std::collections::HashSet::new();
        (0..1000u64).for_each(|n| {
            let key = Some(super::super::hash_key(&n.to_le_bytes()));
            met.insert(upstream.pick(&super::super::Ask { key, ..plain() }).unwrap().node().index);
        });
        assert_eq!(met.len(), 10, "dead ones, too");
        set(&upstream, 0..1, true);
        assert!(!upstream.is_in_panic());
    }
}

#[test]
fn panic_in_one_priority_takes_nothing_from_a_healthy_node_of_another() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::ConsistentHash] {
        // Of the first priority none is left, of the second one of two, which is enough by the threshold.
        let first = upstream(&[0, 0, 0, 0, 1, 1], balance, 500);
        set(&first, 0..6, true);
        set(&first, 0..5, false);
        assert_eq!(by_priority(&first), [0, 1000, 0], "{balance:?}");
        let requests: Vec<_> = first.status().iter().map(|n| n.requests).collect();
        assert!(!first.is_in_panic() && requests == [0, 0, 0, 0, 0, 1000], "{balance:?}: {requests:?}");
        // One of three is not: there the others are tried too, and still nobody of the first.
        let second = upstream(&[0, 0, 0, 0, 1, 1, 1], balance, 500);
        set(&second, 0..7, true);
        set(&second, 0..6, false);
        assert_eq!(by_priority(&second), [0, 1000, 0], "{balance:?}");
        let least = second.status()[4..].iter().map(|n| n.requests).min().unwrap();
        assert!(second.is_in_panic() && least > 200, "{balance:?}: {least}");
        // Where both have some, each has its share by who is well: 35 and 46 of 100.
        let both = upstream(&[0, 0, 0, 0, 1, 1, 1], balance, 500);
        set(&both, 0..7, true);
        set(&both, 0..3, false);
        set(&both, 4..6, false);
        let got = by_priority(&both);
        assert!(both.is_in_panic() && near(got, [429, 571, 0]), "{balance:?}: {got:?}");
    }
}

#[test]
fn another_priority_that_carries_all_keeps_panic_away() {
    let upstream = upstream(&[0, 0, 0, 1, 1, 1], Balance::RoundRobin, 800);
    set(&upstream, 0..3, false);
    assert!(!upstream.is_in_panic());
    assert_eq!(by_priority(&upstream), [0, 1000, 0]);
}

#[test]
fn a_drained_node_gets_nothing_in_any_mode_and_nothing_is_missing_without_it() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::ConsistentHash] {
        // Five of ten are drained, the other five carry all: nothing goes to the second priority.
        let upstream = upstream(&[[0; 10], [1; 10], [2; 10]].concat(), balance, 500);
        set(&upstream, 0..30, true);
        let named = |node: &Arc<Node>| Drained { name: (&**node.url()).into(), addresses: Box::default() };
        upstream.drain_only(upstream.nodes()[..5].iter().map(named).collect(), Instant::now());
        assert!(near(by_priority(&upstream), [1000, 0, 0]), "{balance:?}");
        let drained = |upstream: &Upstream| -> u64 { upstream.status()[..5].iter().map(|n| n.requests).sum() };
        assert_eq!(drained(&upstream), 0, "{balance:?}");
        // All others down is panic; the drained ones stay out all the same.
        set(&upstream, 0..30, false);
        assert!(upstream.is_in_panic());
        by_priority(&upstream);
        assert_eq!(drained(&upstream), 0, "{balance:?}");
        upstream.drain_only(upstream.nodes().iter().map(named).collect(), Instant::now());
        assert!(upstream.pick(&plain()).is_none() && !upstream.has_usable(), "{balance:?}");
        set(&upstream, 0..30, true);
        upstream.drain_only(Vec::new(), Instant::now());
        assert!(upstream.pick(&plain()).is_some(), "{balance:?}");
    }
}
