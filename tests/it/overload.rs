//! How much is taken on at once, what is shed when the gateway is behind, and that what was let in is served.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::raw_h2::{END_HEADERS, END_STREAM, HEADERS, RST_STREAM, RawH2, frame, request};
use crate::support::{PATIENCE, wait_until};

const GET: &[u8] = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const HELD: &[u8] = b"GET /echo/held HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const CONNECTIONS_REFUSED: &str = "hive_gateway_connections_refused_total";
const OVERLOAD: &str = "hive_gateway_overload_total";

/// The block, with thresholds of lag that a busy machine of tests does not reach.
fn overload(inside: &str) -> String {
    let lag = "event_loop_lag: { scaling_threshold: 30s, saturation_threshold: 60s }";
    format!("overload: {{ {inside}, {lag} }}")
}

type Shared = Arc<(Mutex<bool>, Condvar)>;

/// Opens once, for all who wait; also when a test fails, so that nothing hangs.
#[derive(Default)]
struct Gate(Shared);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

fn wait_at(gate: &Shared) {
    let open = gate.0.lock().unwrap();
    let _ = gate.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

/// A node that answers `…/held` only when the gate is open.
fn holding() -> (Node, Gate) {
    let gate = Gate::default();
    let shared = gate.0.clone();
    let node = Node::start_with(move |request, exchange| {
        if request.target().contains("held") {
            wait_at(&shared);
        }
        exchange.answer(200, "", b"done")
    });
    (node, gate)
}

/// So many requests that wait at the node.
fn hold(gateway: &Gateway, node: &Node, who: &str, count: usize) -> Vec<Connection> {
    let before = node.count();
    let held = (0..count).map(|_| {
        let mut connection = gateway.connect(who);
        connection.send(HELD).unwrap();
        connection
    });
    let held: Vec<_> = held.collect();
    node.wait_count(before + count);
    held
}

#[track_caller]
fn assert_refused(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, answer.json()["error"].as_str()), (status, Some(code)), "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[track_caller]
fn assert_done(held: Vec<Connection>) {
    for mut connection in held {
        assert_eq!(connection.response(false).unwrap().text(), "done", "what was let in is served");
    }
}

fn from(address: IpAddr, gateway: &Gateway) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket.connect(&gateway.address.into()).unwrap();
    TcpStream::from(socket)
}

#[test]
fn requests_at_once_are_limited_at_a_listener() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "requests: 3".into();
    let gateway = setup.start();
    let held = hold(&gateway, &node, "alice", 3);
    let mut other = gateway.connect("bob");
    assert_refused(&other.exchange(GET).unwrap(), 503, "requests_exhausted");
    gate.open();
    assert_done(held);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
    assert_eq!(other.exchange(GET).unwrap().status, 200, "on the same connection");
    gateway.wait_metric(OVERLOAD, &[("limit", "listener_requests"), ("action", "shed")], 1.0);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "requests_exhausted")], 1.0);
}

#[test]
fn requests_at_once_of_an_address_are_its_own_affair() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "requests_per_address: 2".into();
    let gateway = setup.start();
    let held = hold(&gateway, &node, "alice", 2);
    assert_refused(&gateway.connect("bob").exchange(GET).unwrap(), 429, "address_requests_exhausted");
    let mut elsewhere =
        gateway.client("bob").ssl(b"\x08http/1.1").connect(from([127, 0, 0, 2].into(), &gateway)).unwrap();
    std::io::Write::write_all(&mut elsewhere, GET).unwrap();
    let mut status = [0; 12];
    std::io::Read::read_exact(&mut elsewhere, &mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    gate.open();
    assert_done(held);
}

#[test]
fn behind_a_trusted_proxy_each_client_has_its_share() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "requests_per_address: 1".into();
    setup.listener = "    trusted_proxies: [127.0.0.1]\n".into();
    let gateway = setup.start();
    let of = |client: &str, path: &str| {
        let mut connection = gateway.connect("alice");
        let request = format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\nX-Forwarded-For: {client}\r\n\r\n");
        connection.send(request.as_bytes()).unwrap();
        connection
    };
    let held = vec![of("203.0.113.1", "/echo/held"), of("203.0.113.2", "/echo/held")];
    node.wait_count(2);
    let refused = of("203.0.113.1", "/echo").response(false).unwrap();
    assert_refused(&refused, 429, "address_requests_exhausted");
    assert_eq!(of("203.0.113.3", "/echo").response(false).unwrap().status, 200);
    gate.open();
    assert_done(held);
    wait_until("its place is free", || of("203.0.113.1", "/echo").response(false).unwrap().status == 200);
}

#[test]
fn requests_at_once_of_a_peer_are_limited_in_the_route_s_own_form() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "requests_per_peer: 2".into();
    let gateway = setup.start();
    let held = hold(&gateway, &node, "alice", 2);
    let call = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n\
                Content-Length: 2\r\n\r\n{}";
    let refused = gateway.connect("alice").exchange(call.as_bytes()).unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["code"], -32005, "{}", refused.text());
    assert_eq!(gateway.connect("bob").exchange(GET).unwrap().status, 200, "another peer has its own share");
    gate.open();
    assert_done(held);
}

#[test]
fn connections_of_one_peer_are_limited_whatever_their_addresses() {
    let (node, _gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "connections_per_peer: 2".into();
    let gateway = setup.start();
    let mut held = Vec::new();
    for last in [1, 2] {
        let tcp = from([127, 0, 0, last].into(), &gateway);
        held.push(gateway.client("alice").ssl(b"\x08http/1.1").connect(tcp).unwrap());
    }
    gateway.wait_metric("hive_gateway_connections", &[], 2.0);
    assert!(gateway.client("alice").get(gateway.address, "/echo").is_err());
    gateway.wait_metric(CONNECTIONS_REFUSED, &[("reason", "per_peer")], 1.0);
    assert_eq!(gateway.client("bob").get(gateway.address, "/echo").unwrap().status, 200);
    held.pop();
    wait_until("there is room again", || gateway.client("alice").get(gateway.address, "/echo").is_ok());
}

#[test]
fn one_address_cannot_take_all_handshakes() {
    let (node, _gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "handshakes: 4, handshakes_per_address: 3".into();
    let gateway = setup.start();
    // Whoever only connects is in its handshake.
    let silent: Vec<_> = (0..3).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    let mut refused = || gateway.client("alice").get(gateway.address, "/echo").is_err();
    wait_until("the address is full", &mut refused);
    assert!(gateway.metric(CONNECTIONS_REFUSED, &[("reason", "handshakes_per_address")]) >= 1.0);
    let elsewhere = from([127, 0, 0, 2].into(), &gateway);
    wait_until("two addresses take all", || {
        let tcp = from([127, 0, 0, 3].into(), &gateway);
        gateway.client("alice").ssl(b"\x08http/1.1").connect(tcp).is_err()
    });
    assert!(gateway.metric(CONNECTIONS_REFUSED, &[("reason", "handshakes")]) >= 1.0);
    drop((silent, elsewhere));
    wait_until("there is room again", || gateway.client("alice").get(gateway.address, "/echo").is_ok());
}

const PRIORITIES: &str = r#"
  - { name: echo, paths: ["/echo", "/echo/*"], methods: [GET], peers: any, upstream: hive }
  - { name: urgent, paths: ["/urgent", "/urgent/*"], methods: [GET], peers: any, upstream: hive, priority: critical }
"#;

#[test]
fn a_reserve_is_kept_for_critical_routes() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.top = overload("requests: 4, critical_reserve: 50%, retry_after: 7s");
    setup.routes = PRIORITIES.into();
    let gateway = setup.start();
    let mut held = hold(&gateway, &node, "alice", 2);
    let refused = gateway.connect("bob").exchange(GET).unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("7")));
    let mut urgent: Vec<_> = (0..2).map(|_| gateway.connect("bob")).collect();
    for connection in &mut urgent {
        connection.send(b"GET /urgent/held HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    }
    node.wait_count(4);
    let last = gateway.connect("bob").exchange(b"GET /urgent HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(last.json()["error"], "requests_exhausted", "the last limit holds for critical ones too");
    gateway.wait_metric("hive_gateway_http_requests_total", &[("path", "/urgent"), ("code", "503")], 1.0);
    gate.open();
    held.append(&mut urgent);
    assert_done(held);
}

#[test]
fn a_listeners_own_limit_keeps_the_reserve_too() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.top = overload("critical_reserve: 50%");
    setup.limits = "requests: 4".into();
    setup.routes = PRIORITIES.into();
    let gateway = setup.start();
    let mut held = hold(&gateway, &node, "alice", 2);
    assert_eq!(gateway.connect("bob").exchange(GET).unwrap().status, 503);
    let mut urgent: Vec<_> = (0..2).map(|_| gateway.connect("bob")).collect();
    for connection in &mut urgent {
        connection.send(b"GET /urgent/held HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    }
    node.wait_count(4);
    let last = gateway.connect("bob").exchange(b"GET /urgent HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(last.status, 503);
    gate.open();
    held.append(&mut urgent);
    assert_done(held);
}

/// A client of HTTP/2 with a window of nothing, which so never reads an answer's body, and so many streams to nowhere.
fn deaf(gateway: &Gateway, streams: u32) -> RawH2 {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut client = RawH2::connect(&gateway.client("alice"), gateway.address, &[(INITIAL_WINDOW_SIZE, 0)]).unwrap();
    for n in 0..streams {
        let request = request("GET", "/nowhere");
        client.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &request)).unwrap();
    }
    client
}

#[test]
fn refusals_that_nobody_reads_take_no_places() {
    let (node, _gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.top = overload("requests: 12, critical_reserve: 20%");
    setup.limits = "requests: 10, requests_per_address: 6, requests_per_peer: 8".into();
    setup.routes = PRIORITIES.into();
    let gateway = setup.start();
    let _deaf = deaf(&gateway, 40);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 40.0);
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(gateway.connect("bob").exchange(GET).unwrap().status, 200);
        let urgent = b"GET /urgent HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
        assert_eq!(gateway.connect("bob").exchange(urgent).unwrap().status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(25), "they were not waited for");
    assert!(gateway.metric("hive_gateway_requests_in_flight", &[]) >= 40.0, "all are still unread");
}

#[test]
fn a_refusal_that_was_not_written_to_its_end_resets_its_stream() {
    let (node, _gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = "write: 1s".into();
    let gateway = setup.start();
    let before = deaf(&gateway, 1).frames_until(RST_STREAM, 1).unwrap();
    assert!(before.iter().any(|(kind, _, stream)| (*kind, *stream) == (HEADERS, 1)), "{before:?}");
    let ended = |(kind, flags, stream): &(u8, u8, u32)| *stream == 1 && *kind <= HEADERS && flags & END_STREAM != 0;
    assert!(!before.iter().any(ended), "{before:?}");
}

#[test]
fn a_dry_run_counts_and_refuses_nothing() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.top = overload("enforce: false, requests: 1");
    setup.limits = "requests_per_address: 1, requests_per_peer: 1".into();
    let gateway = setup.start();
    let held = hold(&gateway, &node, "alice", 2);
    assert_eq!(gateway.connect("bob").exchange(GET).unwrap().status, 200);
    for (limit, times) in [("requests", 2.0), ("address_requests", 2.0), ("peer_requests", 1.0)] {
        gateway.wait_metric(OVERLOAD, &[("limit", limit), ("action", "would_shed")], times);
    }
    assert_eq!(gateway.metric(OVERLOAD, &[("action", "shed")]), 0.0);
    gate.open();
    assert_done(held);
}

#[test]
fn connections_of_all_listeners_together_are_limited() {
    let (node, _gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.top = overload("connections: 2");
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let connections = || gateway.metric("hive_gateway_connections", &[]);
    wait_until("the probes of the start are gone", || connections() == 0.0);
    let _one = gateway.connect("alice");
    let _two = Connection::plain(gateway.plain).unwrap();
    wait_until("both are in", || connections() == 2.0);
    assert!(gateway.client("bob").get(gateway.address, "/echo").is_err());
    gateway.wait_metric(CONNECTIONS_REFUSED, &[("listener", "front"), ("reason", "process")], 1.0);
}

/// Calls of `size` bytes again and again, from so many clients; `answered` sees every answer.
fn burden(gateway: &Gateway, clients: usize, size: usize, stop: &AtomicBool, answered: &(dyn Fn(&Response) + Sync)) {
    let filler = "x".repeat(size);
    let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"message/send","params":["{filler}"]}}"#);
    let head = format!(
        "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let call = [head.as_bytes(), body.as_bytes()].concat();
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    let opened = kept.take().map_or_else(|| gateway.client("alice").connect(gateway.address), Ok);
                    let Ok(mut connection) = opened else { continue };
                    if let Ok(answer) = connection.exchange(&call) {
                        answered(&answer);
                        kept = Some(connection);
                    }
                }
            });
        }
    });
}

#[test]
fn a_gateway_that_is_behind_sheds_and_admin_and_running_requests_do_not_suffer() {
    let (node, gate) = holding();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "overload: { event_loop_lag: { scaling_threshold: 20ms, saturation_threshold: 40ms } }".into();
    setup.server = "threads: 1".into();
    setup.routes = r#"
  - { name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: any, upstream: hive, json_rpc: {}, body: { limit: 16MiB } }
  - { name: echo, paths: ["/echo", "/echo/*"], methods: [GET], peers: any, upstream: hive }
"#
    .into();
    let gateway = setup.start();
    let held = hold(&gateway, &node, "alice", 2);
    let stop = AtomicBool::new(false);
    let (served, shed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut admin_took = Vec::new();
    let count = |answer: &Response| match (answer.status, answer.header("retry-after")) {
        (200, _) => drop(served.fetch_add(1, Ordering::Relaxed)),
        (503, Some("1")) => drop(shed.fetch_add(1, Ordering::Relaxed)),
        other => panic!("{other:?}"),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| burden(&gateway, 8, 2 << 20, &stop, &count));
        let deadline = Instant::now() + PATIENCE;
        let enough = || served.load(Ordering::Relaxed) >= 5 && shed.load(Ordering::Relaxed) >= 5;
        while Instant::now() < deadline && (admin_took.len() < 50 || !enough()) {
            let start = Instant::now();
            assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200);
            admin_took.push(start.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    admin_took.sort();
    let admin = admin_took[admin_took.len() / 2];
    let (served, shed) = (served.load(Ordering::Relaxed), shed.load(Ordering::Relaxed));
    println!("admin answers in {admin:?}; {served} calls served, {shed} shed");
    assert!(admin < Duration::from_millis(500), "admin answers in {admin:?}");
    assert!(served >= 5 && shed >= 5, "some calls are served, {served}, and some shed, {shed}");
    let lag = gateway.metric(OVERLOAD, &[("limit", "event_loop_lag"), ("action", "shed")]);
    assert!(lag >= shed as f64, "{lag}");
    gate.open();
    assert_done(held);
    wait_until("it recovers", || gateway.client("bob").get(gateway.address, "/echo").is_ok_and(|a| a.status == 200));
}

#[test]
fn an_adaptive_limit_finds_what_its_nodes_can_do() {
    // Four at once, 20 ms each; what is more waits.
    let places = Arc::new((Mutex::new(4), Condvar::new()));
    let node = Node::start_with(move |_, exchange| {
        let (free, freed) = &*places;
        *freed.wait_while(free.lock().unwrap(), |free| *free == 0).unwrap() -= 1;
        // The node's own work.
        std::thread::sleep(Duration::from_millis(20));
        *free.lock().unwrap() += 1;
        freed.notify_one();
        exchange.answer(200, "", b"done")
    });
    let mut setup = Setup::new(&[node.address]);
    setup.upstreams = upstream(
        "hive",
        "http",
        &[node.address],
        "health_check: { interval: 2s }, adaptive_concurrency: { min_rtt_request_count: 20 }",
    );
    let gateway = setup.start();
    let limit = || gateway.metric("hive_gateway_upstream_concurrency_limit", &[("upstream", "hive")]);
    assert_eq!(limit(), 3.0, "while it learns");
    let (busy, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = AtomicBool::new(false);
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut connection = gateway.connect("alice");
                while !stop.load(Ordering::Relaxed) {
                    let answer = connection.exchange(GET).unwrap();
                    match answer.status {
                        200 => drop(served.fetch_add(1, Ordering::Relaxed)),
                        _ => {
                            assert_refused(&answer, 503, "upstream_busy");
                            busy.fetch_add(1, Ordering::Relaxed);
                            // As a client that heeds Retry-After, in the test's time.
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(6) {
            std::thread::sleep(Duration::from_millis(50));
            if start.elapsed() > Duration::from_secs(3) {
                found.push(limit());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    found.sort_by(f64::total_cmp);
    let found = found[found.len() / 2];
    println!("limit {found}, {served:?} served, {busy:?} refused");
    assert!((4.0..=16.0).contains(&found), "the nodes serve 4 at once; the limit is {found}");
    assert!(busy.load(Ordering::Relaxed) > 0 && served.load(Ordering::Relaxed) > 100);
}

#[test]
fn event_streams_take_no_place_of_an_adaptive_limit() {
    let node = Node::start_with(|_, exchange| {
        exchange.begin_stream()?;
        exchange.event("first")?;
        exchange.gone_after();
        Ok(())
    });
    let mut setup = Setup::new(&[node.address]);
    let adaptive = "adaptive_concurrency: { min_concurrency: 1, max_concurrency: 1 }";
    setup.upstreams =
        upstream("hive", "http", &[node.address], &format!("health_check: {{ interval: 2s }}, {adaptive}"));
    let gateway = setup.start();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = gateway.connect("alice");
        stream.send(GET).unwrap();
        assert_eq!(stream.head().unwrap().status, 200);
        streams.push(stream);
    }
    assert_eq!(gateway.metric("hive_gateway_requests_in_flight", &[]), 5.0);
    streams.into_iter().for_each(Connection::vanish);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
}
