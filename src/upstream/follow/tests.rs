use std::time::SystemTime;

use super::super::discovery::{Discovery, Kind};
use super::super::fakes::{FakeNode, OK, build, node, plain, rebuild, settings, until};
use super::super::node::Thresholds;
use super::super::{Health, look_after};
use super::*;
use crate::clock::Clock;
use crate::units::Percent;

const AT_ONCE: Thresholds = Thresholds { healthy_after: 1, unhealthy_after: 1 };

fn at(port: u16) -> NodeSettings {
    node(SocketAddr::from(([127, 0, 0, 1], port)), 1)
}

fn discovered(path: &str) -> Settings {
    let kind = Kind::File { path: path.into(), interval: Duration::from_secs(3600) };
    Settings { discovery: Some(Discovery { kind, tls: false, trusted: true }), ..settings(Vec::new()) }
}

fn probed(upstream: &Upstream, port: u16, good: bool) {
    let nodes = upstream.nodes();
    let node = nodes.iter().find(|n| n.address().port() == port).unwrap();
    let result = if good { Ok(()) } else { Err("told so".to_owned()) };
    node.probed(result, &AT_ONCE, Instant::now(), SystemTime::UNIX_EPOCH);
    upstream.refresh();
}

fn ports(upstream: &Upstream) -> Vec<u16> {
    upstream.nodes().iter().map(|n| n.address().port()).collect()
}

/// Where requests go.
fn used(upstream: &Upstream) -> Vec<u16> {
    let picked = (0..50).filter_map(|_| upstream.pick(&plain()));
    let mut ports: Vec<_> = picked.map(|p| p.node().address().port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn without_an_answer_there_is_no_node() {
    let upstream = build(discovered("/no/such/file"));
    assert!(upstream.pick(&plain()).is_none() && !upstream.has_usable() && !upstream.is_ready());
    assert!(upstream.why_empty().unwrap().contains("no answer yet"));
}

#[test]
fn a_new_node_gets_requests_after_its_first_good_probe() {
    let upstream = build(Settings { panic_threshold: Percent(500), ..discovered("/n") });
    let now = Instant::now();
    upstream.follow(&[at(1)], &[], now).unwrap();
    assert!(used(&upstream).is_empty(), "not even the first one");
    probed(&upstream, 1, true);
    assert_eq!(used(&upstream), [1]);
    // Many that nobody knows yet are no reason to panic.
    upstream.follow(&[at(1), at(2), at(3), at(4)], &[], now).unwrap();
    assert!(!upstream.is_in_panic());
    assert_eq!(used(&upstream), [1]);
    probed(&upstream, 3, true);
    probed(&upstream, 4, false);
    assert_eq!(used(&upstream), [1, 3]);
    assert_eq!(upstream.nodes()[3].health(), Health::Down);
}

#[test]
fn a_new_node_beside_others_starts_slowly() {
    let upstream = build(Settings { slow_start: Duration::from_secs(3600), ..discovered("/n") });
    upstream.follow(&[at(1)], &[], Instant::now()).unwrap();
    probed(&upstream, 1, true);
    upstream.follow(&[at(1), at(2)], &[], Instant::now()).unwrap();
    probed(&upstream, 2, true);
    let mut counts = [0; 2];
    for _ in 0..1000 {
        counts[usize::from(upstream.pick(&plain()).unwrap().node().address().port() - 1)] += 1;
    }
    // A tenth of a half, and what luck adds.
    assert!((10..=120).contains(&counts[1]), "{counts:?}");
}

#[test]
fn a_node_that_stays_keeps_what_is_known_of_it() {
    let upstream = build(discovered("/n"));
    let now = Instant::now();
    upstream.follow(&[at(1), at(2)], &[], now).unwrap();
    probed(&upstream, 1, true);
    probed(&upstream, 2, false);
    let held = upstream.pick(&plain()).unwrap();
    let id = held.node().id();
    let other_weight = NodeSettings { weight: 7, ..at(1) };
    upstream.follow(&[at(2), other_weight], &[], now).unwrap();
    let nodes = upstream.nodes();
    assert_eq!((nodes[1].id(), nodes[1].in_flight(), nodes[1].health()), (id, 1, Health::Up));
    assert_eq!((nodes[1].weight, nodes[0].health()), (7, Health::Down));
    // Taken out while a request is there, and put back: it is another one.
    upstream.follow(&[at(2), at(3)], &[], now).unwrap();
    probed(&upstream, 3, true);
    upstream.follow(&[at(2), at(3)], &[], now).unwrap();
    assert_eq!(held.node().in_flight(), 1);
    upstream.follow(&[at(1), at(3)], &[], now).unwrap();
    assert_eq!(upstream.nodes()[0].in_flight(), 0);
    assert_ne!(upstream.nodes()[0].id(), id);
}

#[test]
fn all_other_nodes_at_once_wait_for_a_good_probe() {
    let upstream = build(discovered("/n"));
    let now = Instant::now();
    upstream.follow(&[at(1), at(2)], &[], now).unwrap();
    probed(&upstream, 1, true);
    probed(&upstream, 2, false);
    upstream.follow(&[at(3)], &[], now).unwrap();
    // The one that is well stays, the other one goes.
    assert_eq!((ports(&upstream), used(&upstream)), (vec![3, 1], vec![1]));
    upstream.follow(&[at(3)], &[], now + HANDOVER_MAX / 2).unwrap();
    assert_eq!(used(&upstream), [1]);
    probed(&upstream, 3, true);
    upstream.follow(&[at(3)], &[], now + HANDOVER_MAX / 2).unwrap();
    assert_eq!((ports(&upstream), used(&upstream)), (vec![3], vec![3]));
    // None of the next ones is ever well.
    upstream.follow(&[at(4)], &[], now).unwrap();
    probed(&upstream, 4, false);
    upstream.follow(&[at(4)], &[], now + HANDOVER_MAX - Duration::from_millis(1)).unwrap();
    assert_eq!(used(&upstream), [3]);
    upstream.follow(&[at(4)], &[], now + HANDOVER_MAX).unwrap();
    assert_eq!((ports(&upstream), used(&upstream)), (vec![4], vec![]));
}

#[test]
fn without_health_checks_nodes_change_at_once() {
    let mut settings = discovered("/n");
    settings.health_check.enabled = false;
    let upstream = build(settings);
    upstream.follow(&[at(1)], &[], Instant::now()).unwrap();
    assert_eq!(used(&upstream), [1]);
    upstream.follow(&[at(2)], &[], Instant::now()).unwrap();
    assert_eq!((ports(&upstream), used(&upstream)), (vec![2], vec![2]));
}

#[test]
fn the_next_configuration_begins_with_the_nodes_there_are() {
    let first = build(discovered("/n"));
    first.follow(&[at(1), at(2)], &[], Instant::now()).unwrap();
    probed(&first, 1, true);
    let another_limit = Settings { panic_threshold: Percent(1), ..discovered("/n") };
    let second = rebuild(another_limit, Some(&first));
    assert_eq!((ports(&second), used(&second)), (vec![1, 2], vec![1]));
    assert!(Arc::ptr_eq(first.source.as_ref().unwrap(), second.source.as_ref().unwrap()));
    // Another source: until it answers.
    let third = rebuild(discovered("/other"), Some(&second));
    assert_eq!(used(&third), [1]);
    assert!(!Arc::ptr_eq(second.source.as_ref().unwrap(), third.source.as_ref().unwrap()));
    // From the configuration to a source and back.
    let fixed = rebuild(settings(vec![at(1), at(9)]), Some(&third));
    assert_eq!(fixed.nodes()[0].id(), first.nodes()[0].id());
    assert_eq!(ports(&rebuild(discovered("/n"), Some(&fixed))), [1, 9]);
}

#[test]
fn wrong_nodes_change_nothing() {
    let upstream = build(discovered("/n"));
    upstream.follow(&[at(1)], &[], Instant::now()).unwrap();
    let weightless = NodeSettings { weight: 0, ..at(2) };
    assert!(upstream.follow(&[weightless], &[], Instant::now()).is_err());
    let tls = NodeSettings { tls: true, ..at(2) };
    assert!(upstream.follow(&[tls], &[], Instant::now()).is_err());
    assert_eq!(ports(&upstream), [1]);
}

#[tokio::test]
async fn probes_begin_and_end_with_their_node() {
    let (one, two) = (FakeNode::start(OK).await, FakeNode::start(OK).await);
    let upstream = build(discovered("/no/such/file"));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(look_after(upstream.clone(), Clock::System, stopped));
    upstream.follow(&[node(one.address, 1)], &[], Instant::now()).unwrap();
    until("the first is up", || upstream.is_ready()).await;
    upstream.follow(&[node(two.address, 1)], &[], Instant::now()).unwrap();
    until("the second is up", || upstream.nodes()[0].health() == Health::Up).await;
    upstream.follow(&[node(two.address, 1)], &[], Instant::now()).unwrap();
    until("the first is gone", || ports(&upstream) == [two.address.port()]).await;
    // What was under way may end.
    let probes = || one.connections.load(Ordering::SeqCst);
    let mut before = probes();
    let seen = two.connections.load(Ordering::SeqCst);
    until("another probe of the second", || two.connections.load(Ordering::SeqCst) > seen + 2).await;
    before = before.max(probes()).min(before + 1);
    let seen = two.connections.load(Ordering::SeqCst);
    until("and more", || two.connections.load(Ordering::SeqCst) > seen + 5).await;
    assert_eq!(probes(), before, "nobody asks a node that is gone");
    stop.send_replace(true);
    task.await.unwrap();
}
