use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::fakes::{Does, FakeNode, OK, build, node, plain, rebuild, settings, until};
use super::super::{NodeSettings, Settings};
use super::*;
use crate::units::Span;

const BUSY: Does = Does::Answer("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n");
const SICK: Does = Does::Answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 12\r\n\r\n{\"ok\":false}");

/// Probes run until this is dropped.
struct Probing {
    _stop: tokio::sync::watch::Sender<bool>,
}

fn probing(upstream: &Arc<Upstream>) -> Probing {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(look_after(upstream.clone(), Clock::System, stopped));
    Probing { _stop: stop }
}

async fn becomes(upstream: &Upstream, health: Health) {
    until(&format!("{health:?}"), || upstream.nodes()[0].health() == health).await;
}

fn last_error(upstream: &Upstream) -> String {
    upstream.status()[0].last_error.clone().unwrap_or_default()
}

#[tokio::test]
async fn one_good_probe_makes_an_upstream_ready() {
    let fake = FakeNode::start(OK).await;
    let upstream = build(Settings {
        health_check: file::HealthCheck { interval: Span(Duration::from_secs(3600)), ..settings(vec![]).health_check },
        ..settings(vec![node(fake.address, 1)])
    });
    assert!(!upstream.is_ready(), "unknown is not ready");
    assert!(upstream.pick(&plain()).is_some(), "but gets requests");
    let _probing = probing(&upstream);
    becomes(&upstream, Health::Up).await;
    assert!(upstream.is_ready());
    assert!(upstream.status()[0].last_change.is_some());
}

#[tokio::test]
async fn a_probe_names_itself() {
    let fake = FakeNode::start(OK).await;
    let upstream = build(settings(vec![node(fake.address, 1)]));
    let _probing = probing(&upstream);
    becomes(&upstream, Health::Up).await;
    let head = fake.last.borrow().to_ascii_lowercase();
    assert!(head.starts_with("get /api/health http/1.1\r\n"), "{head}");
    for line in [&format!("host: {}", fake.address), "user-agent: hive-gateway-health", "x-real-ip: 127.0.0.1"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
}

#[tokio::test]
async fn a_node_that_counts_requests_is_alive() {
    let fake = FakeNode::start(BUSY).await;
    let upstream = build(settings(vec![node(fake.address, 1)]));
    let _probing = probing(&upstream);
    becomes(&upstream, Health::Up).await;
}

#[tokio::test]
async fn what_comes_before_the_answer_to_a_probe_is_none() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let answer = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let fake = FakeNode::start(Does::Answer(Box::leak(format!("{hints}{answer}").into_boxed_str()))).await;
    let upstream = build(settings(vec![node(fake.address, 1)]));
    let _probing = probing(&upstream);
    becomes(&upstream, Health::Up).await;
}

#[tokio::test]
async fn every_bad_answer_takes_a_node_out_and_says_why() {
    let redirect = Does::Answer("HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n");
    let short = Does::AnswerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\"");
    let half = Does::Answer("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\"");
    for (does, why) in [
        (SICK, "status 503"),
        (redirect, "status 301"),
        (Does::Answer("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n"), "status 503"),
        (Does::Answer("HTTP/1.1 102 Processing\r\n\r\n"), "no answer within 500 ms"),
        (Does::Answer("HTTP/1.1 101 Switching Protocols\r\n\r\n"), "status 101"),
        (Does::Answer("SSH-2.0-OpenSSH_9.2\r\n\r\n"), "InvalidHTTPHeader"),
        (Does::Close, "ConnectionClosed"),
        (short, "ConnectionClosed"),
        (half, "no answer within 500 ms"),
        (Does::Hang, "no answer within 500 ms"),
    ] {
        let fake = FakeNode::start(does).await;
        let upstream = build(settings(vec![node(fake.address, 1)]));
        let _probing = probing(&upstream);
        becomes(&upstream, Health::Down).await;
        until(why, || last_error(&upstream).contains(why)).await;
        assert!(upstream.pick(&plain()).is_none());
        assert!(!upstream.has_usable());
    }
}

#[tokio::test]
async fn a_node_that_refuses_connections_is_down_at_its_first_probe() {
    let gone = FakeNode::start(OK).await.die().await;
    let upstream = build(settings(vec![node(gone, 1)]));
    let _probing = probing(&upstream);
    becomes(&upstream, Health::Down).await;
    assert!(last_error(&upstream).contains("ConnectRefused"), "{}", last_error(&upstream));
}

#[tokio::test]
async fn a_node_that_goes_comes_back_by_itself() {
    let fake = FakeNode::start(OK).await;
    let other = FakeNode::start(OK).await;
    let upstream = build(settings(vec![node(fake.address, 1), node(other.address, 1)]));
    let _probing = probing(&upstream);
    becomes(&upstream, Health::Up).await;
    let address = fake.die().await;
    becomes(&upstream, Health::Down).await;
    for _ in 0..10 {
        assert_eq!(upstream.pick(&plain()).unwrap().node().address(), other.address);
    }
    let _again = FakeNode::start_at(address, OK).await;
    becomes(&upstream, Health::Up).await;
    until("in rotation", || upstream.pick(&plain()).unwrap().node().address() == address).await;
    assert_eq!(last_error(&upstream), "");
}

#[tokio::test]
async fn a_hanging_node_holds_up_no_other_one() {
    let hangs = FakeNode::start(Does::Hang).await;
    let fine = FakeNode::start(OK).await;
    let upstream = build(settings(vec![node(hangs.address, 1), node(fine.address, 1)]));
    let _probing = probing(&upstream);
    until("three probes of the other", || fine.connections.load(Ordering::SeqCst) >= 3).await;
    assert_eq!(upstream.nodes()[1].health(), Health::Up);
}

#[tokio::test]
async fn probes_end_with_the_shutdown() {
    let fake = FakeNode::start(OK).await;
    let upstream = build(settings(vec![node(fake.address, 1)]));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(look_after(upstream.clone(), Clock::System, stopped));
    becomes(&upstream, Health::Up).await;
    stop.send(true).unwrap();
    task.await.unwrap();
    until("the loops have let go", || Arc::strong_count(&upstream) == 1).await;
}

#[tokio::test]
async fn without_health_checks_every_node_is_up() {
    let off = |nodes| Settings {
        health_check: file::HealthCheck { enabled: false, ..file::HealthCheck::default() },
        ..settings(nodes)
    };
    let sick = FakeNode::start(SICK).await;
    let checked = build(settings(vec![node(sick.address, 1)]));
    let stop = probing(&checked);
    becomes(&checked, Health::Down).await;
    drop(stop);
    // Turned off by a reload while the node is down.
    let upstream = rebuild(off(vec![node(sick.address, 1)]), Some(&checked));
    assert!(upstream.is_ready());
    assert!(upstream.pick(&plain()).is_some());
}

#[tokio::test]
async fn a_reload_keeps_health_and_counts() {
    let sick = FakeNode::start(SICK).await;
    let fine = FakeNode::start(OK).await;
    let nodes = vec![node(sick.address, 1), node(fine.address, 1)];
    let old = build(settings(nodes.clone()));
    let stop = probing(&old);
    becomes(&old, Health::Down).await;
    until("the other is up", || old.nodes()[1].health() == Health::Up).await;
    drop(stop);
    let picked = old.pick(&plain()).unwrap();
    let new = rebuild(settings(nodes.into_iter().rev().collect()), Some(&old));
    assert_eq!(new.nodes()[1].health(), Health::Down);
    assert_eq!(new.nodes()[0].in_flight(), 1, "a request of the old configuration is still under way");
    drop(picked);
    assert_eq!(new.nodes()[0].in_flight(), 0);
    assert_eq!(new.status()[0].requests, 1);
}

#[tokio::test]
async fn a_reload_keeps_what_is_known_of_a_node_whatever_else_changes() {
    let (sick, fine) = (FakeNode::start(SICK).await, FakeNode::start(OK).await);
    let old = build(settings(vec![node(sick.address, 1), node(fine.address, 1)]));
    let stop = probing(&old);
    becomes(&old, Health::Down).await;
    until("the other is up", || old.nodes()[1].health() == Health::Up).await;
    drop(stop);
    let picked = old.pick(&plain()).unwrap();
    let renamed = |address: SocketAddr, name: &str| NodeSettings {
        url: format!("http://{name}:{}", address.port()),
        host: name.to_owned(),
        priority: 1,
        ..node(address, 7)
    };
    let new = rebuild(
        Settings {
            balance: file::Balance::RoundRobin,
            outlier: file::Outlier { consecutive_failures: 9, ..file::Outlier::default() },
            health_check: file::HealthCheck { path: "/alive".into(), ..file::HealthCheck::default() },
            // One address under two names: the node is only one of them.
            ..settings(vec![
                renamed(fine.address, "fine"),
                renamed(fine.address, "other"),
                renamed(sick.address, "sick"),
            ])
        },
        Some(&old),
    );
    let healths: Vec<_> = new.nodes().iter().map(|n| n.health()).collect();
    assert_eq!(healths, [Health::Up, Health::Unknown, Health::Down]);
    assert!(new.is_ready());
    assert_eq!((new.nodes()[0].in_flight(), new.nodes()[1].in_flight()), (1, 0));
    drop(picked);
    assert_eq!(new.nodes()[0].in_flight(), 0);
    assert_eq!(new.nodes()[2].id(), old.nodes()[0].id());
}

#[test]
fn a_gateway_that_serves_stays_ready_while_nodes_it_is_told_of_are_unprobed() {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let upstream = build(settings(vec![node(address, 1)]));
    assert!(!upstream.is_ready(), "at the start nothing is known");
    upstream.joins_running();
    assert!(upstream.is_ready());
    let limits = Thresholds { healthy_after: 2, unhealthy_after: 3 };
    upstream.nodes()[0].probed(Err("bad".to_owned()), &limits, Instant::now(), std::time::SystemTime::UNIX_EPOCH);
    assert!(!upstream.is_ready());
}

#[test]
fn health_changes_after_as_many_probes_in_a_row_as_configured() {
    let upstream = build(settings(vec![node(SocketAddr::from(([127, 0, 0, 1], 1)), 1)]));
    let node = &upstream.nodes()[0];
    let limits = Thresholds { healthy_after: 2, unhealthy_after: 3 };
    let (now, wall) = (Instant::now(), std::time::SystemTime::UNIX_EPOCH);
    let probe = |good: bool| {
        let result = if good { Ok(()) } else { Err("bad".to_owned()) };
        node.probed(result, &limits, now, wall)
    };
    assert_eq!(probe(false), Some(Health::Down), "nothing speaks for a node that was never up");
    assert_eq!(probe(true), Some(Health::Up), "the first good probe counts at once");
    assert_eq!([probe(false), probe(false), probe(true), probe(false), probe(false)], [None; 5]);
    assert_eq!(probe(false), Some(Health::Down));
    assert_eq!([probe(true), probe(false), probe(true)], [None; 3]);
    assert_eq!(probe(true), Some(Health::Up));
}

#[test]
fn probes_come_up_to_a_tenth_late_and_often_until_the_first_good_one() {
    let upstream = build(Settings {
        health_check: file::HealthCheck::default(),
        ..settings(vec![node(SocketAddr::from(([127, 0, 0, 1], 1)), 1)])
    });
    let node = upstream.nodes()[0].clone();
    let watch = NodeWatch {
        check: Probe::new(&upstream.health_check),
        target: target(&node),
        node: node.clone(),
        upstream,
        clock: Clock::System,
        turn: 0,
        seed: 1,
    };
    let spread = |watch: &NodeWatch| {
        let all: Vec<u128> = (0..1000).map(|n| watch.interval(n).as_millis()).collect();
        (*all.iter().min().unwrap(), *all.iter().max().unwrap())
    };
    assert_eq!(spread(&watch), (2000, 2200));
    node.probed(Ok(()), &watch.check.limits, Instant::now(), std::time::SystemTime::UNIX_EPOCH);
    assert_eq!(spread(&watch), (10000, 11000));
}
