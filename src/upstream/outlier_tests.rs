use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::super::fakes::{build, node, plain, rebuild, settings};
use super::super::node::Thresholds;
use super::super::{Ask, Settings};
use super::*;
use crate::config::file::{Balance, Outlier};
use crate::units::{Percent, Span};

const SECOND: Duration = Duration::from_secs(1);

fn with(count: u16, outlier: Outlier) -> Settings {
    let nodes = (1..=count).map(|port| node(SocketAddr::from(([127, 0, 0, 1], port)), 1)).collect();
    Settings { balance: Balance::RoundRobin, outlier, ..settings(nodes) }
}

fn quick() -> Outlier {
    Outlier { consecutive_failures: 3, eject_for: Span(10 * SECOND), max_ejected: Percent(500), ..Outlier::default() }
}

fn upstream(count: u16) -> Arc<Upstream> {
    build(with(count, quick()))
}

/// A request to the node of this index.
fn at(upstream: &Upstream, index: u16, now: Instant) -> Option<Picked> {
    let tried: Vec<_> = upstream.nodes().iter().filter(|n| n.index != index).map(|n| n.id()).collect();
    upstream.pick(&Ask { tried: &tried, key: None, now })
}

fn fail(upstream: &Upstream, index: u16, times: u32, now: Instant) {
    let picked: Vec<_> = (0..times).map(|_| at(upstream, index, now).unwrap()).collect();
    picked.iter().for_each(|p| upstream.record(p, came_to(UpstreamResult::ConnectFailed, None), now));
}

fn came_to(result: UpstreamResult, status: Option<u16>) -> Outcome {
    Outcome { result, status, fair: true }
}

fn standing(upstream: &Upstream, index: usize) -> Standing {
    upstream.nodes()[index].standing()
}

#[test]
fn failures_in_a_row_eject_and_a_good_answer_begins_anew() {
    let (upstream, now) = (upstream(3), Instant::now());
    fail(&upstream, 0, 2, now);
    let good = at(&upstream, 0, now).unwrap();
    upstream.record(&good, came_to(UpstreamResult::Ok, Some(200)), now);
    upstream.completed(&good, 200);
    fail(&upstream, 0, 2, now);
    assert_eq!(standing(&upstream, 0), Standing::In);
    fail(&upstream, 0, 1, now);
    assert_eq!(standing(&upstream, 0), Standing::Ejected);
    assert!((0..30).all(|_| upstream.pick(&Ask { now, ..plain() }).unwrap().node().index != 0));
}

#[test]
fn what_counts_against_a_node_and_what_does_not() {
    for (result, status, counts) in [
        (UpstreamResult::ConnectFailed, None, true),
        (UpstreamResult::ConnectTimeout, None, true),
        (UpstreamResult::TlsFailed, None, true),
        (UpstreamResult::ResponseTimeout, None, true),
        (UpstreamResult::StreamTimeout, Some(200), true),
        (UpstreamResult::Broken, None, true),
        (UpstreamResult::ServerError, Some(502), true),
        (UpstreamResult::ServerError, Some(503), true),
        (UpstreamResult::ServerError, Some(504), true),
        (UpstreamResult::ServerError, Some(500), false),
        (UpstreamResult::ServerError, Some(501), false),
        // A JSON-RPC error is an answer with 200.
        (UpstreamResult::Ok, Some(200), false),
        (UpstreamResult::Ok, Some(429), false),
        (UpstreamResult::ClientGone, None, false),
        (UpstreamResult::StreamDuration, Some(200), false),
    ] {
        let (upstream, now) = (upstream(3), Instant::now());
        for _ in 0..10 {
            let Some(picked) = at(&upstream, 0, now) else { break };
            upstream.record(&picked, came_to(result, status), now);
            if let Some(status) = status.filter(|_| result == UpstreamResult::ServerError) {
                upstream.completed(&picked, status);
            }
        }
        assert_eq!(standing(&upstream, 0) == Standing::Ejected, counts, "{result:?} {status:?}");
    }
}

#[test]
fn a_timeout_of_a_request_without_time_and_a_stale_connection_are_not_the_nodes_fault() {
    for (result, counts) in [
        (UpstreamResult::Broken, false),
        (UpstreamResult::ResponseTimeout, false),
        (UpstreamResult::ConnectTimeout, true),
        (UpstreamResult::ConnectFailed, true),
    ] {
        let (upstream, now) = (upstream(2), Instant::now());
        for _ in 0..5 {
            let Some(picked) = at(&upstream, 0, now) else { break };
            upstream.record(&picked, Outcome { result, status: None, fair: false }, now);
        }
        assert_eq!(standing(&upstream, 0) == Standing::Ejected, counts, "{result:?}");
    }
}

#[test]
fn a_node_that_answers_and_then_breaks_off_is_ejected() {
    let (upstream, now) = (upstream(3), Instant::now());
    for _ in 0..3 {
        let picked = at(&upstream, 0, now).unwrap();
        upstream.record(&picked, came_to(UpstreamResult::Ok, Some(200)), now);
        upstream.record(&picked, came_to(UpstreamResult::Broken, Some(200)), now);
    }
    assert_eq!(standing(&upstream, 0), Standing::Ejected);
}

#[test]
fn after_its_time_one_request_shows_whether_it_is_well() {
    let (upstream, start) = (upstream(2), Instant::now());
    fail(&upstream, 0, 3, start);
    assert!(at(&upstream, 0, start + 9 * SECOND).is_none());
    let later = start + 10 * SECOND;
    let probe = at(&upstream, 0, later).unwrap();
    assert_eq!(standing(&upstream, 0), Standing::Probing);
    assert!(at(&upstream, 0, later).is_none(), "one request alone");
    // Its client goes away: it has shown nothing, and the next one may.
    upstream.record(&probe, came_to(UpstreamResult::ClientGone, None), later);
    drop(probe);
    assert_eq!(standing(&upstream, 0), Standing::HalfOpen);
    let probe = at(&upstream, 0, later).unwrap();
    upstream.record(&probe, came_to(UpstreamResult::Ok, Some(200)), later);
    assert_eq!(standing(&upstream, 0), Standing::In);
    assert!(at(&upstream, 0, later).is_some());
    drop(probe);
    assert_eq!(standing(&upstream, 0), Standing::In);
}

#[test]
fn while_a_node_is_tried_again_the_others_share_its_turns() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests] {
        let upstream = build(Settings { balance, ..with(4, quick()) });
        let start = Instant::now();
        fail(&upstream, 1, 3, start);
        let later = start + 10 * SECOND;
        let probe = at(&upstream, 1, later).unwrap();
        let mut counts = [0u32; 4];
        for _ in 0..1200 {
            let picked = upstream.pick(&Ask { now: later, ..plain() }).unwrap();
            counts[usize::from(picked.node().index)] += 1;
        }
        assert!(
            counts.iter().enumerate().all(|(i, n)| if i == 1 { *n == 0 } else { n.abs_diff(400) <= 2 }),
            "{counts:?}"
        );
        drop(probe);
    }
}

#[test]
fn a_probe_that_fails_ejects_for_longer_and_time_in_good_order_shortens() {
    let (upstream, start) = (upstream(2), Instant::now());
    let length = |from: Instant| (1..).find(|s| at(&upstream, 0, from + *s * SECOND).is_some()).unwrap();
    fail(&upstream, 0, 3, start);
    assert_eq!(length(start), 10);
    let mut now = start + 10 * SECOND;
    for longer in [20, 30, 40] {
        let probe = at(&upstream, 0, now).unwrap();
        upstream.record(&probe, came_to(UpstreamResult::ServerError, Some(503)), now);
        drop(probe);
        assert_eq!(length(now), longer);
        now += longer * SECOND;
    }
    let probe = at(&upstream, 0, now).unwrap();
    upstream.record(&probe, came_to(UpstreamResult::Ok, Some(200)), now);
    drop(probe);
    // Back for less than the last ejection took: the count goes on.
    now += 39 * SECOND;
    fail(&upstream, 0, 3, now);
    assert_eq!(length(now), 50);
    now += 50 * SECOND;
    let probe = at(&upstream, 0, now).unwrap();
    upstream.record(&probe, came_to(UpstreamResult::Ok, Some(200)), now);
    now += 50 * SECOND;
    fail(&upstream, 0, 3, now);
    assert_eq!(length(now), 10);
}

#[test]
fn an_ejection_has_a_longest_time() {
    let upstream = build(with(2, Outlier { eject_for_max: Span(15 * SECOND), ..quick() }));
    let mut now = Instant::now();
    fail(&upstream, 0, 3, now);
    now += 10 * SECOND;
    upstream.record(&at(&upstream, 0, now).unwrap(), came_to(UpstreamResult::Broken, None), now);
    assert!(at(&upstream, 0, now + 14 * SECOND).is_none());
    assert!(at(&upstream, 0, now + 15 * SECOND).is_some());
}

#[test]
fn no_more_than_the_share_is_ejected_and_never_the_last() {
    let now = Instant::now();
    let out = |upstream: &Upstream| upstream.nodes().iter().filter(|n| n.standing() == Standing::Ejected).count();
    for (count, share, most) in [(10, 500, 5), (10, 0, 1), (10, 1000, 9), (3, 100, 1), (2, 1000, 1), (1, 1000, 0)] {
        let upstream = build(with(count, Outlier { max_ejected: Percent(share), ..quick() }));
        for index in 0..count {
            fail(&upstream, index, 3, now);
        }
        assert_eq!(out(&upstream), most, "{count} nodes, {share} thousandths");
    }
}

#[test]
fn a_node_that_probes_took_out_does_not_count_as_left() {
    let (upstream, now) = (upstream(2), Instant::now());
    let limits = Thresholds { healthy_after: 1, unhealthy_after: 1 };
    upstream.nodes()[1].probed(Err("dead".into()), &limits, now, SystemTime::UNIX_EPOCH);
    upstream.refresh();
    fail(&upstream, 0, 9, now);
    assert_eq!(standing(&upstream, 0), Standing::In, "it is the last");
}

#[test]
fn when_only_ejected_nodes_are_left_they_get_requests() {
    let (upstream, now) = (upstream(2), Instant::now());
    let limits = Thresholds { healthy_after: 1, unhealthy_after: 1 };
    fail(&upstream, 0, 3, now);
    upstream.nodes()[1].probed(Err("dead".into()), &limits, now, SystemTime::UNIX_EPOCH);
    upstream.refresh();
    assert!((0..5).all(|_| upstream.pick(&Ask { now, ..plain() }).unwrap().node().index == 0));
    upstream.nodes()[0].probed(Err("dead".into()), &limits, now, SystemTime::UNIX_EPOCH);
    upstream.refresh();
    assert!(upstream.pick(&Ask { now, ..plain() }).is_none(), "a dead node gets none");
    upstream.nodes()[1].probed(Ok(()), &limits, now, SystemTime::UNIX_EPOCH);
    upstream.refresh();
    assert!((0..5).all(|_| upstream.pick(&Ask { now, ..plain() }).unwrap().node().index == 1));
}

#[test]
fn a_node_that_probes_found_down_and_up_again_is_tried_at_once() {
    let (upstream, now) = (upstream(3), Instant::now());
    let limits = Thresholds { healthy_after: 1, unhealthy_after: 1 };
    let probe = |result: Result<(), String>| {
        upstream.nodes()[0].probed(result, &limits, now, SystemTime::UNIX_EPOCH);
        upstream.refresh();
    };
    probe(Ok(()));
    fail(&upstream, 0, 3, now);
    probe(Ok(()));
    assert!(at(&upstream, 0, now).is_none(), "that its probes are good says nothing new");
    probe(Err("gone".into()));
    probe(Ok(()));
    let first = at(&upstream, 0, now).unwrap();
    assert!(at(&upstream, 0, now).is_none(), "one request alone");
    upstream.record(&first, came_to(UpstreamResult::Ok, Some(200)), now);
    assert_eq!(standing(&upstream, 0), Standing::In);
}

#[test]
fn a_reload_forgets_no_ejection_unless_it_turns_them_off() {
    let now = Instant::now();
    let old = upstream(3);
    fail(&old, 1, 3, now);
    let mut turned = with(3, quick());
    turned.nodes.reverse();
    let new = rebuild(turned, Some(&old));
    assert_eq!(standing(&new, 1), Standing::Ejected);
    assert!(at(&new, 1, now).is_none());
    assert!(at(&new, 1, now + 10 * SECOND).is_some());
    let off = rebuild(with(3, Outlier { enabled: false, ..quick() }), Some(&old));
    assert!(at(&off, 1, now).is_some());
    for _ in 0..10 {
        off.record(&at(&off, 2, now).unwrap(), came_to(UpstreamResult::Broken, None), now);
    }
    assert!(at(&off, 2, now).is_some());
}

#[test]
fn a_returning_node_rises_slowly() {
    let upstream = build(Settings { slow_start: 10 * SECOND, ..with(2, quick()) });
    let start = Instant::now();
    fail(&upstream, 0, 3, start);
    let back = start + 10 * SECOND;
    let probe = at(&upstream, 0, back).unwrap();
    upstream.record(&probe, came_to(UpstreamResult::Ok, Some(200)), back);
    drop(probe);
    let share = |now: Instant| {
        let picks = (0..1000).map(|_| upstream.pick(&Ask { now, ..plain() }).unwrap());
        picks.filter(|p| p.node().index == 0).count()
    };
    let (first, middle, last) = (share(back), share(back + 5 * SECOND), share(back + 10 * SECOND));
    assert!((20..90).contains(&first) && (200..300).contains(&middle), "{first} {middle}");
    assert_eq!(last, 500);
}
