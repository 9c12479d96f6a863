use std::time::{Instant, SystemTime};

use proptest::prelude::*;

use super::super::fakes::{any, unprobed};
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
        counts[usize::from(upstream.pick(&any()).unwrap().node().index)] += 1;
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
    let picks: Vec<u16> = (0..70).map(|_| upstream.pick(&any()).unwrap().node().index).collect();
    let longest = picks.chunk_by(|a, b| a == b).map(<[u16]>::len).max().unwrap();
    assert!(longest <= 4, "{picks:?}");
    let light = unprobed(Balance::RoundRobin, &[1, 1, 1]);
    let picks: Vec<u16> = (0..30).map(|_| light.pick(&any()).unwrap().node().index).collect();
    assert!(picks.windows(2).all(|w| w[0] != w[1]), "{picks:?}");
}

#[test]
fn a_slow_node_gets_less() {
    let upstream = unprobed(Balance::LeastRequests, &[1, 1, 1]);
    // Node 0 never finishes what it has, the others finish after six more requests.
    let mut stuck: Vec<Picked> = Vec::new();
    let mut running = std::collections::VecDeque::new();
    for _ in 0..3_000 {
        let picked = upstream.pick(&any()).unwrap();
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
fn held_requests_stand_in_proportion_to_the_weights() {
    let upstream = unprobed(Balance::LeastRequests, &[1, 2, 5]);
    let held: Vec<Picked> = (0..8_000).filter_map(|_| upstream.pick(&any())).collect();
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
        let held: Vec<Picked> = (0..500).filter_map(|_| upstream.pick(&any())).collect();
        held.iter().map(|p| p.node().index).collect::<Vec<_>>()
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
            let picked = upstream.pick(&Ask { tried: &tried, ..super::super::fakes::any() });
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
