//! Ejection: what takes a node out, for how long, and how it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::wait_until;

const EJECTED: &str = "hive_gateway_upstream_node_ejected";
const PROBES_OFF: &str = "balance: round_robin, slow_start: 0s, health_check: { enabled: false }";

fn post(gateway: &Gateway) -> Response {
    gateway
        .connect("alice")
        .exchange(b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap()
}

fn gateway(nodes: &[&Node], more: &str) -> Gateway {
    let mut setup = Setup::new(&[]);
    let addresses: Vec<_> = nodes.iter().map(|n| n.address).collect();
    setup.upstreams = upstream("hive", "http", &addresses, more);
    setup.start()
}

fn ejected(gateway: &Gateway, node: &Node) -> bool {
    gateway.metric(EJECTED, &[("node", &format!("http://{}", node.address))]) == 1.0
}

/// A node that answers with this status.
fn answering() -> (Node, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let with = status.clone();
    let node = Node::start_with(move |_, exchange| exchange.answer(with.load(Ordering::SeqCst), "", b"{}"));
    (node, status)
}

#[test]
fn a_node_that_fails_is_left_alone_and_comes_back_through_one_request() {
    let ((sick, status), well) = (answering(), Node::start());
    let more = format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 3, eject_for: 2s }}");
    let gateway = gateway(&[&sick, &well], &more);
    status.store(503, Ordering::SeqCst);
    let statuses: Vec<_> = (0..6).map(|_| post(&gateway).status).collect();
    assert_eq!(statuses.iter().filter(|s| **s == 503).count(), 3, "{statuses:?}");
    wait_until("it is ejected", || ejected(&gateway, &sick));
    let since = Instant::now();
    let seen = sick.count();
    assert!((0..20).all(|_| post(&gateway).status == 200));
    if since.elapsed() < Duration::from_millis(1500) {
        assert_eq!(sick.count(), seen, "an ejected node got a request");
    }
    wait_until("the log says so", || {
        gateway.stderr().contains("is ejected for 2s: 3 failures in a row, the last server_error")
    });

    // Still sick: its probe fails, and it is left alone for twice as long.
    wait_until("a probe", || post(&gateway).status == 503);
    wait_until("it is ejected again", || gateway.stderr().contains("is ejected again, for 4s"));
    assert_eq!(sick.count(), seen + 1, "one request alone tried it");
    assert_eq!(gateway.status()["upstreams"][0]["nodes"][0]["outlier"], "ejected");
    status.store(200, Ordering::SeqCst);
    wait_until("it is back", || {
        assert_eq!(post(&gateway).status, 200);
        !ejected(&gateway, &sick)
    });
    let before = sick.count();
    (0..10).for_each(|_| assert_eq!(post(&gateway).status, 200));
    assert_eq!(sick.count(), before + 5, "its whole share again");
    assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 2.0);
}

#[test]
fn refused_connections_eject_and_cost_no_request() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let dead = socket.local_addr().unwrap().as_socket().unwrap();
    let node = Node::start();
    let mut setup = Setup::new(&[]);
    let more = format!("{PROBES_OFF}, outlier: {{ eject_for: 1h, eject_for_max: 1h }}");
    setup.upstreams = upstream("hive", "http", &[dead, node.address], &more);
    let gateway = setup.start();
    assert!((0..30).all(|_| post(&gateway).status == 200));
    assert_eq!(node.count(), 30);
    let failed = || gateway.metric("hive_gateway_upstream_requests_total", &[("result", "connect_failed")]);
    assert_eq!(failed(), 5.0, "after five it is not tried any more");
    assert!((0..5).all(|_| post(&gateway).status == 200));
    assert_eq!(failed(), 5.0);
}

#[test]
fn torn_connections_and_timeouts_eject() {
    for hangs in [false, true] {
        let well = Node::start();
        let sick = Node::start_with(move |_, exchange| {
            if hangs {
                exchange.gone_after();
            }
            exchange.close();
            Ok(())
        });
        let mut setup = Setup::new(&[]);
        let more = format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 2, eject_for: 1h, eject_for_max: 1h }}");
        setup.upstreams = upstream("hive", "http", &[sick.address, well.address], &more);
        setup.routes = setup.routes.replace("body: { limit: 16MiB }", "timeouts: { response: 2s }");
        let gateway = setup.start();
        let statuses: Vec<_> = (0..10).map(|_| post(&gateway).status).collect();
        let expected = if hangs { 504 } else { 502 };
        assert_eq!(statuses.iter().filter(|s| **s == expected).count(), 2, "{statuses:?}");
        assert_eq!((sick.count(), well.count()), (2, 8), "and nothing arrives twice");
        assert!(ejected(&gateway, &sick));
    }
}

#[test]
fn what_hive_says_in_json_rpc_never_ejects() {
    let sick = Node::start_with(|_, exchange| {
        let body = br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Internal error"}}"#;
        exchange.answer(200, "Content-Type: application/json\r\n", body)
    });
    let well = Node::start();
    let gateway = gateway(&[&sick, &well], &format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 1 }}"));
    (0..10).for_each(|_| assert_eq!(post(&gateway).status, 200));
    assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 0.0);
}

#[test]
fn the_last_node_stays_and_clients_that_leave_blame_nobody() {
    let (only, status) = answering();
    status.store(502, Ordering::SeqCst);
    let gateway = gateway(&[&only], &format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 1 }}"));
    (0..5).for_each(|_| assert_eq!(post(&gateway).status, 502));
    assert_eq!(only.count(), 5);
    assert!(!ejected(&gateway, &only));

    let holding = || {
        Node::start_with(|_, exchange| {
            exchange.gone_after();
            exchange.close();
            Ok(())
        })
    };
    let nodes = [holding(), holding()];
    let gateway =
        self::gateway(&[&nodes[0], &nodes[1]], &format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 1 }}"));
    for n in 1..=4 {
        let mut client = gateway.connect("alice");
        client.send(b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        wait_until("it is at a node", || nodes[0].count() + nodes[1].count() == n);
        client.vanish();
    }
    let gone = "hive_gateway_upstream_requests_total";
    gateway.wait_metric(gone, &[("result", "client_gone")], 4.0);
    assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 0.0);
}

#[test]
fn a_reload_forgets_no_ejection() {
    let ((sick, status), well) = (answering(), Node::start());
    let more = format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 1, eject_for: 1h, eject_for_max: 1h }}");
    let gateway = gateway(&[&sick, &well], &more);
    status.store(504, Ordering::SeqCst);
    wait_until("it is ejected", || {
        post(&gateway);
        ejected(&gateway, &sick)
    });
    status.store(200, Ordering::SeqCst);
    let seen = sick.count();
    gateway.edit("balance: round_robin", "balance: least_requests");
    gateway.reload_ok();
    (0..10).for_each(|_| assert_eq!(post(&gateway).status, 200));
    assert_eq!(sick.count(), seen);
    assert!(ejected(&gateway, &sick));
    gateway.edit("outlier: {", "outlier: { enabled: false,");
    gateway.reload_ok();
    (0..10).for_each(|_| assert_eq!(post(&gateway).status, 200));
    assert!(sick.count() > seen && !ejected(&gateway, &sick));
}

#[test]
fn panic_uses_every_node_and_says_so() {
    let nodes = [Node::start(), Node::start()];
    let check = "health_check: { interval: 2s, unhealthy_after: 1, healthy_after: 1 }, panic_threshold: 50%";
    let gateway = gateway(&[&nodes[0], &nodes[1]], &format!("balance: round_robin, {check}"));
    wait_until("both have been probed", || nodes.iter().all(|n| !n.probes().is_empty()));
    nodes.iter().for_each(|n| n.set_health(503));
    gateway.wait_metric("hive_gateway_upstream_panic", &[("upstream", "hive")], 1.0);
    wait_until("both are out", || gateway.metric("hive_gateway_upstream_node_up", &[]) == 0.0);
    (0..10).for_each(|_| assert_eq!(post(&gateway).status, 200));
    assert!(nodes.iter().all(|n| n.count() == 5), "{} {}", nodes[0].count(), nodes[1].count());
    assert!(
        gateway.stderr().contains("panic: fewer than 50% of a priority's nodes are usable"),
        "{}",
        gateway.stderr()
    );
    assert_eq!(gateway.status()["upstreams"][0]["panic"], true);
    nodes[0].set_health(200);
    gateway.wait_metric("hive_gateway_upstream_panic", &[], 0.0);
    (0..4).for_each(|_| assert_eq!(post(&gateway).status, 200));
    assert_eq!(nodes[1].count(), 5);
}

/// Under load a node turns bad and is mended: clients see its failures and nothing else, and no request arrives twice.
#[test]
fn a_sick_node_under_load_costs_a_handful_of_requests() {
    let ((sick, status), well) = (answering(), Node::start());
    let more = format!("{PROBES_OFF}, outlier: {{ consecutive_failures: 5, eject_for: 1h, eject_for_max: 1h }}");
    let gateway = gateway(&[&sick, &well], &more);
    let (stop, failed, done) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = gateway.connect("alice");
                while !stop.load(Ordering::Relaxed) {
                    let request = b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}";
                    let answer = connection.exchange(request).unwrap();
                    assert!([200, 503].contains(&answer.status), "{}", answer.status);
                    failed.fetch_add(usize::from(answer.status != 200), Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("both nodes work", || sick.count() > 20 && well.count() > 20);
        status.store(503, Ordering::SeqCst);
        wait_until("it is ejected", || ejected(&gateway, &sick));
        let before = done.load(Ordering::Relaxed);
        wait_until("work goes on", || done.load(Ordering::Relaxed) > before + 200);
        stop.store(true, Ordering::Relaxed);
    });
    // Five in a row, and what was on its way beside them.
    let failed = failed.load(Ordering::Relaxed);
    assert!((5..=5 + 4).contains(&failed), "{failed}");
    assert_eq!(sick.count() + well.count(), done.load(Ordering::Relaxed));
}
