use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use proptest::prelude::*;

use super::super::fakes::{build, node, plain, settings, unprobed};
use super::super::node::Thresholds;
use super::super::{Picked, Settings, Upstream, hash_key};
use super::*;

const LIMITS: Thresholds = Thresholds { healthy_after: 1, unhealthy_after: 1 };

fn set_up(upstream: &Upstream, index: usize, up: bool) {
    let result = if up { Ok(()) } else { Err("told so".to_owned()) };
    upstream.nodes()[index].probed(result, &LIMITS, Instant::now(), SystemTime::UNIX_EPOCH);
}

fn counts(upstream: &Upstream, picks: usize) -> Vec<usize> {
    let mut counts = vec![0; upstream.nodes().len()];
    for _ in 0..picks {
        counts[usize::from(upstream.pick(&plain()).unwrap().node().index)] += 1;
    }
    counts
}

#[test]
fn shares_follow_the_weights_within_two_percent() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests] {
        for weights in [vec![1, 1, 1], vec![5, 1, 1], vec![2, 3, 7, 100], vec![100, 100], vec![1; 100], vec![10, 15]] {
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
    let picks: Vec<u16> = (0..70).map(|_| upstream.pick(&plain()).unwrap().node().index).collect();
    let longest = picks.chunk_by(|a, b| a == b).map(<[u16]>::len).max().unwrap();
    assert!(longest <= 4, "{picks:?}");
    let light = unprobed(Balance::RoundRobin, &[1, 1, 1]);
    let picks: Vec<u16> = (0..30).map(|_| light.pick(&plain()).unwrap().node().index).collect();
    assert!(picks.windows(2).all(|w| w[0] != w[1]), "{picks:?}");
}

#[test]
fn a_slow_node_gets_less() {
    let upstream = unprobed(Balance::LeastRequests, &[1, 1, 1]);
    // Node 0 never finishes what it has, the others finish after six more requests.
    let mut stuck: Vec<Picked> = Vec::new();
    let mut running = std::collections::VecDeque::new();
    for _ in 0..3_000 {
        let picked = upstream.pick(&plain()).unwrap();
        if picked.node().index == 0 {
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
fn a_node_that_cannot_be_reached_is_nobodys_favourite() {
    let upstream = unprobed(Balance::LeastRequests, &[1, 1, 1]);
    let turns = |upstream: &Upstream| {
        let mut running = std::collections::VecDeque::new();
        let mut failed = 0;
        for _ in 0..3_000 {
            let picked = upstream.pick(&plain()).unwrap();
            if picked.node().index == 0 {
                picked.node().connect_failed();
                failed += 1;
                // Tried elsewhere.
                let tried = [picked.node().id()];
                running.push_back(upstream.pick(&Ask { tried: &tried, ..plain() }).unwrap());
            } else {
                running.push_back(picked);
            }
            if running.len() > 20 {
                running.pop_front();
            }
        }
        failed
    };
    let failed = turns(&upstream);
    assert!((60..=250).contains(&failed), "{failed} of 3000 go to the dead one first");
    upstream.nodes()[0].connected();
    let before = upstream.status()[0].requests;
    (0..300).for_each(|_| drop(upstream.pick(&plain())));
    let now = upstream.status()[0].requests - before;
    assert!((95..=300).contains(&now), "{now} of 300 go to it once it is back");
}

#[test]
fn held_requests_stand_in_proportion_to_the_weights() {
    let upstream = unprobed(Balance::LeastRequests, &[1, 2, 5]);
    let held: Vec<Picked> = (0..8_000).filter_map(|_| upstream.pick(&plain())).collect();
    for (node, fair) in upstream.nodes().iter().zip([1000u32, 2000, 5000]) {
        assert!(node.in_flight().abs_diff(fair) <= fair / 50, "{} for {fair}", node.in_flight());
    }
    drop(held);
    assert!(upstream.nodes().iter().all(|n| n.in_flight() == 0));
}

#[test]
fn weights_count_under_light_load_too() {
    for weights in [&[1, 2, 7][..], &[1, 100], &[1, 3], &[1, 2, 3, 4], &[1, 1, 8]] {
        for clients in [1, 2, 4, 8, 32] {
            let upstream = unprobed(Balance::LeastRequests, weights);
            let mut held: Vec<Picked> = Vec::new();
            for n in 0..20_000 {
                if held.len() == clients {
                    // Each lasts as long as it happens to.
                    let ended = usize::try_from(mix(3, n) % clients as u64).unwrap();
                    held.swap_remove(ended);
                }
                held.push(upstream.pick(&plain()).unwrap());
            }
            let total: u16 = weights.iter().sum();
            for (node, weight) in upstream.status().iter().zip(weights) {
                let fair = 20_000.0 * f64::from(*weight) / f64::from(total);
                // Chance keeps a light node's one place taken now and then when its turn comes.
                let share = node.requests as f64 / fair;
                assert!((0.7..1.25).contains(&share), "{weights:?}, {clients} clients: {share} of {weight}'s share");
            }
        }
    }
}

#[test]
fn the_same_seed_picks_the_same_nodes() {
    let run = || {
        let upstream = unprobed(Balance::LeastRequests, &[1, 2, 5, 1]);
        let held: Vec<Picked> = (0..500).filter_map(|_| upstream.pick(&plain())).collect();
        held.iter().map(|p| p.node().index).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

fn keyed(weights: &[u16], factor: Option<u16>) -> Arc<Upstream> {
    let port = |i: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(i + 1).unwrap()));
    let nodes = weights.iter().enumerate().map(|(i, &w)| node(port(i), w)).collect();
    build(Settings { balance: Balance::ConsistentHash, hash_balance_factor: factor, ..settings(nodes) })
}

fn pick_key(upstream: &Upstream, key: u64) -> Picked {
    let key = Some(hash_key(format!("task-{key}").as_bytes()));
    upstream.pick(&Ask { key, ..plain() }).unwrap()
}

#[test]
fn a_key_meets_the_same_node_in_every_gateway_and_run() {
    let (one, other) = (keyed(&[1; 5], None), keyed(&[1; 5], None));
    for key in 0..1000 {
        let first = pick_key(&one, key).node().index;
        assert_eq!([pick_key(&one, key).node().index, pick_key(&other, key).node().index], [first; 2]);
    }
}

#[test]
fn keys_are_spread_by_weight() {
    let upstream = keyed(&[1, 2, 5], None);
    (0..80_000).for_each(|key| drop(pick_key(&upstream, key)));
    for (node, fair) in upstream.status().iter().zip([10_000.0, 20_000.0, 50_000.0]) {
        assert!((node.requests as f64 / fair - 1.0).abs() < 0.04, "{} for {fair}", node.requests);
    }
}

#[test]
fn only_a_dead_nodes_keys_move_and_they_come_back_with_it() {
    let upstream = keyed(&[1; 4], None);
    let met = || (0..4000).map(|key| pick_key(&upstream, key).node().index).collect::<Vec<_>>();
    let before = met();
    set_up(&upstream, 2, true);
    set_up(&upstream, 2, false);
    upstream.refresh();
    let without = met();
    let mut moved = [0; 4];
    for (was, is) in before.iter().zip(&without) {
        assert!(*was == 2 || was == is);
        moved[usize::from(*is)] += usize::from(*was == 2);
    }
    assert!([0, 1, 3].iter().all(|i| moved[*i] > 250) && moved[2] == 0, "{moved:?}");
    set_up(&upstream, 2, true);
    upstream.refresh();
    assert_eq!(met(), before);
}

#[test]
fn a_busy_node_gives_its_keys_away_beyond_the_factor() {
    let upstream = keyed(&[1; 4], Some(125));
    // The breaker counts what is at the nodes; here each request of one hot key stays.
    let mut held = Vec::new();
    for _ in 0..400 {
        let permit = upstream.enter().unwrap();
        held.push((pick_key(&upstream, 1), permit));
    }
    let most = upstream.nodes().iter().map(|n| n.in_flight()).max().unwrap();
    assert!((100..=126).contains(&most), "{most}");
    let free = keyed(&[1; 4], None);
    let held: Vec<_> = (0..400).map(|_| pick_key(&free, 1)).collect();
    assert_eq!(held[0].node().in_flight(), 400, "without a factor the key stays");
}

#[test]
fn a_request_without_a_key_goes_where_there_is_room() {
    let upstream = keyed(&[1, 1], None);
    let held: Vec<_> = (0..100).map(|_| upstream.pick(&plain()).unwrap()).collect();
    assert!(upstream.nodes().iter().all(|n| n.in_flight() == 50));
    drop(held);
}

#[test]
fn a_returning_node_gets_its_share_bit_by_bit() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests] {
        let nodes = (1..=4).map(|port| node(SocketAddr::from(([127, 0, 0, 1], port)), 1)).collect();
        let span = Duration::from_secs(10);
        let upstream = build(Settings { balance, slow_start: span, ..settings(nodes) });
        let start = Instant::now();
        for up in [true, false, true] {
            let result = if up { Ok(()) } else { Err("told so".to_owned()) };
            upstream.nodes()[0].probed(result, &LIMITS, start, SystemTime::UNIX_EPOCH);
        }
        upstream.refresh();
        let share = |after: Duration| {
            let before = upstream.status()[0].requests;
            (0..4000).for_each(|_| drop(upstream.pick(&Ask { now: start + after, ..plain() }).unwrap()));
            upstream.status()[0].requests - before
        };
        for (after, fair) in [(0, 100), (5, 500), (9, 900), (10, 1000)] {
            let got = share(Duration::from_secs(after));
            assert!(got.abs_diff(fair) <= 60, "{balance:?} after {after} s: {got} for {fair}");
        }
    }
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
            upstream.nodes().iter().zip(&nodes).flat_map(|(n, s)| (0..s.3).map(|_| Picked::new(n.clone(), false))).collect();
        for (i, node) in nodes.iter().enumerate() {
            set_up(&upstream, i, node.1);
        }
        if refreshed {
            upstream.refresh();
        }
        let all = upstream.nodes();
        let tried: Vec<NodeId> = all.iter().zip(&nodes).filter(|(_, n)| n.2).map(|(node, _)| node.id()).collect();
        // Probes alone leave every node out that is down; ejections and panic are tried elsewhere.
        let possible = nodes.iter().any(|n| n.1 && !n.2);
        let mut held = Vec::new();
        for _ in 0..picks {
            let picked = upstream.pick(&Ask { tried: &tried, ..plain() });
            prop_assert_eq!(picked.is_some(), possible);
            if let Some(picked) = picked {
                prop_assert!(picked.node().is_usable());
                prop_assert!(!tried.contains(&picked.node().id()));
                held.push(picked);
            }
        }
        drop((busy, held));
        prop_assert!(upstream.nodes().iter().all(|n| n.in_flight() == 0));
    }
}
