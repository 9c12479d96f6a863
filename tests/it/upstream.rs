//! Nodes: mutual TLS and HTTP/2 to them, their deaths and returns, and what is never tried twice.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use openssl::ssl::SslContext;

use crate::support::certs::{self, Identity, Pki, client_leaf, server_leaf};
use crate::support::client::Response;
use crate::support::gateway::{Gateway, ROUTES, Setup, upstream};
use crate::support::node::{Node, server_context, sha256};
use crate::support::node_h2::NodeH2;
use crate::support::{noise, wait_until};

const CHECK: &str = "health_check: { interval: 2s, unhealthy_after: 1, healthy_after: 1 }";

fn post(gateway: &Gateway, body: &[u8]) -> Response {
    let head = format!("POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: {}\r\n\r\n", body.len());
    gateway.connect("alice").exchange(&[head.as_bytes(), body].concat()).unwrap()
}

fn get(gateway: &Gateway) -> Response {
    gateway.client("alice").get(gateway.address, "/echo").unwrap()
}

/// An address where nothing listens and, while the guard lives, nobody else will.
fn dead_address() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Files and block of a TLS upstream; the nodes belong to a mesh of their own.
struct TlsSide {
    mesh: Pki,
    node: Identity,
    gateway: Identity,
}

impl TlsSide {
    fn new() -> Self {
        let mesh = Pki::new("Hive");
        let node = mesh.leaf(&server_leaf(&["hive.internal"]));
        let gateway = mesh.leaf(&client_leaf("gateway", "spiffe://mesh.test/gateway"));
        Self { mesh, node, gateway }
    }

    fn setup(&self, address: SocketAddr, client: bool, server_name: &str, more: &str) -> Setup {
        let mut setup = Setup::new(&[address]);
        self.mesh.write_root(setup.dir.path(), "hive-ca");
        certs::write(&self.gateway, setup.dir.path(), "gw");
        let own = if client { ", cert: gw.pem, key: gw.key" } else { "" };
        let tls = format!("tls: {{ ca: hive-ca.pem, server_name: {server_name}{own} }}{more}");
        setup.upstreams = upstream("hive", "https", &[address], &tls);
        setup
    }
}

#[test]
fn the_gateway_speaks_mutual_tls_to_a_node() {
    let side = TlsSide::new();
    let node = Node::start_tls(&side.node, &side.mesh);
    let gateway = side.setup(node.address, true, "hive.internal", "").start();
    let body = noise(200_000, 1);
    let answer = post(&gateway, &body);
    assert_eq!(answer.json()["sha256"], sha256(&body));
    assert!(node.peers().iter().all(|p| p.contains("gateway")), "{:?}", node.peers());
    assert_eq!(node.only().all("x-real-ip"), ["127.0.0.1"]);
}

#[test]
fn a_node_that_wants_a_certificate_gets_no_request_without_one() {
    let side = TlsSide::new();
    let node = Node::start_tls(&side.node, &side.mesh);
    let gateway =
        side.setup(node.address, false, "hive.internal", ", health_check: { enabled: false }").start_unready();
    let answer = get(&gateway);
    assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
    assert_eq!(node.count(), 0);
}

#[test]
fn a_node_with_another_name_or_ca_gets_no_request() {
    let side = TlsSide::new();
    let stranger = Pki::new("Hive").leaf(&server_leaf(&["hive.internal"]));
    for (identity, name) in [(&side.node, "other.internal"), (&stranger, "hive.internal")] {
        let node = Node::start_tls(identity, &side.mesh);
        let gateway = side.setup(node.address, true, name, ", health_check: { enabled: false }").start_unready();
        let answer = get(&gateway);
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
        assert_eq!(node.count(), 0);
        gateway.wait_metric("hive_gateway_upstream_requests_total", &[("result", "tls_failed")], 1.0);
    }
}

fn assert_http_2_works(gateway: &Gateway, node: &NodeH2) {
    for size in [1, 70_000, 3 << 20] {
        let body = noise(size, 2);
        let answer = post(gateway, &body);
        assert_eq!((answer.status, answer.json()["sha256"].as_str()), (200, Some(sha256(&body).as_str())), "{size}");
        assert_eq!(sha256(&node.seen().pop().unwrap().body), sha256(&body));
    }
    let seen = node.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/echo"));
    assert_eq!(seen.headers["x-real-ip"], "127.0.0.1");
    assert!(seen.headers.contains_key("x-forwarded-client-cert"));
    let events = gateway.client("alice").get(gateway.address, "/echo/stream").unwrap();
    assert_eq!(events.text().matches("data: ").count(), 5);
}

#[test]
fn http_2_to_a_node_with_prior_knowledge() {
    let node = NodeH2::start(None);
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[node.address], &format!("protocol: http2, {CHECK}"));
    assert_http_2_works(&setup.start(), &node);
}

#[test]
fn http_2_to_a_node_over_mutual_tls() {
    let side = TlsSide::new();
    let context: SslContext = server_context(&side.node, &side.mesh, b"\x02h2");
    let node = NodeH2::start(Some(context));
    let gateway = side.setup(node.address, true, "hive.internal", ", protocol: http2").start();
    assert_http_2_works(&gateway, &node);
}

#[test]
fn all_nodes_down_is_503_with_retry_after_and_not_ready() {
    let node = Node::start();
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[node.address], CHECK);
    let gateway = setup.start();
    node.set_health(503);
    wait_until("the node is out", || gateway.admin_get("/v1/ready").unwrap().status == 503);
    let answer = get(&gateway);
    assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("no_healthy_upstream")));
    let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1);
    assert_eq!(gateway.metric("hive_gateway_upstream_node_up", &[("upstream", "hive")]), 0.0);
    assert_eq!(node.count(), 0);
    node.set_health(200);
    wait_until("the node is back", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert_eq!(get(&gateway).status, 200);
    assert_eq!(gateway.metric("hive_gateway_upstream_node_up", &[("upstream", "hive")]), 1.0);
}

#[test]
fn a_probe_says_who_it_is_and_429_is_alive() {
    let node = Node::start();
    node.set_health(429);
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[node.address], CHECK);
    let gateway = setup.start();
    wait_until("two probes", || node.probes().len() >= 2);
    assert_eq!(gateway.admin_get("/v1/ready").unwrap().status, 200);
    let probes = node.probes();
    assert!(probes.iter().all(|p| p.target() == "/api/health" && p.header("x-real-ip").is_some()), "{probes:?}");
    let apart = probes[1].at - probes[0].at;
    assert!(apart >= Duration::from_millis(1500), "Hive allows 60 a minute; probes are {apart:?} apart");
}

#[test]
fn a_node_that_answers_no_probe_in_time_is_out() {
    // Accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = Setup::new(&[]);
    let check = "health_check: { interval: 2s, timeout: 300ms, unhealthy_after: 1, healthy_after: 1 }";
    setup.upstreams = upstream("hive", "http", &[silent.local_addr().unwrap()], check);
    let gateway = setup.start_unready();
    wait_until("the node is out", || gateway.admin_get("/v1/ready").unwrap().status == 503);
    wait_until("the metric says so", || gateway.metric("hive_gateway_upstream_node_up", &[]) == 0.0);
}

#[test]
fn no_answer_in_time_is_504_and_not_tried_again() {
    let node = Node::start_with(|_, exchange| {
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let other = Node::start_with(|_, exchange| {
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let mut setup = Setup::new(&[node.address, other.address]);
    setup.routes = ROUTES.replace("body: { limit: 16MiB }", "timeouts: { response: 500ms }");
    let gateway = setup.start();
    let start = Instant::now();
    let answer = post(&gateway, b"{}");
    assert_eq!((answer.status, answer.json()["error"].as_str()), (504, Some("upstream_timeout")));
    assert!((Duration::from_millis(350)..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(node.count() + other.count(), 1, "delivered once");
}

#[test]
fn a_connect_failure_goes_to_the_next_node() {
    let (_guard, dead) = dead_address();
    let node = Node::start();
    let mut setup = Setup::new(&[]);
    let more = "balance: round_robin, health_check: { enabled: false }";
    setup.upstreams = upstream("hive", "http", &[dead, node.address], more);
    let gateway = setup.start();
    for _ in 0..6 {
        let answer = post(&gateway, b"{\"a\":1}");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(node.count(), 6);
    wait_until("the failures are counted", || {
        gateway.metric("hive_gateway_upstream_requests_total", &[("result", "connect_failed")]) >= 1.0
    });
}

#[test]
fn no_node_that_takes_a_connection_is_502() {
    let (_guard, dead) = dead_address();
    let (_guard2, dead2) = dead_address();
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[dead, dead2], "health_check: { enabled: false }");
    let gateway = setup.start();
    let answer = post(&gateway, b"{}");
    assert_eq!((answer.status, answer.json()["error"].as_str()), (502, Some("upstream_connect_failed")));
}

#[test]
fn a_failure_of_the_nodes_does_not_cost_the_client_its_connection() {
    let (_guard, dead) = dead_address();
    let torn = Node::start_with(|request, exchange| {
        if request.target().ends_with("torn") {
            exchange.close();
            return Ok(());
        }
        exchange.answer(200, "", b"fine")
    });
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[torn.address], "health_check: { enabled: false }")
        + &upstream("dead", "http", &[dead], "health_check: { enabled: false }");
    setup.routes += "  - { name: dead, paths: [/dead], methods: [POST], peers: any, upstream: dead }\n";
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    for (path, expected) in [("/dead", 502), ("/echo?torn", 502), ("/echo", 200)] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{{}}");
        let answer = connection.exchange(request.as_bytes()).unwrap();
        assert_eq!(answer.status, expected, "{path}: {}", answer.text());
    }
}

#[test]
fn a_request_that_a_node_has_seen_is_never_sent_again() {
    let tear = |_: &_, exchange: &mut crate::support::node::Exchange| {
        exchange.close();
        Ok(())
    };
    let nodes = [Node::start_with(tear), Node::start_with(tear)];
    let gateway = Setup::new(&[nodes[0].address, nodes[1].address]).start();
    for n in 1..=4 {
        let answer = post(&gateway, b"{}");
        assert_eq!((answer.status, answer.json()["error"].as_str()), (502, Some("upstream_failed")));
        assert_eq!(nodes[0].count() + nodes[1].count(), n, "delivered once");
    }
}

#[test]
fn a_torn_kept_connection_delivers_no_post_twice() {
    // Answers once, then swallows the next request of the same connection and closes: the classic keep-alive race.
    let node = Node::start_with(|request, exchange| {
        if request.target().ends_with("/swallow") {
            exchange.close();
            return Ok(());
        }
        exchange.answer(200, "", b"{}")
    });
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    assert_eq!(connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap().status, 200);
    let swallowed = connection
        .exchange(b"POST /echo/swallow HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap();
    assert_eq!(swallowed.status, 502);
    assert_eq!(node.requests().iter().filter(|r| r.target() == "/echo/swallow").count(), 1);
}

#[test]
fn an_answer_that_is_not_http_is_502() {
    let node = Node::start_with(|_, exchange| {
        exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")?;
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    assert_eq!(get(&gateway).status, 502);
}

#[test]
fn a_node_s_own_error_passes_as_it_is() {
    let node = Node::start_with(|_, exchange| {
        exchange.answer(503, "Retry-After: 7\r\nContent-Type: text/plain\r\n", b"Hive says no")
    });
    let gateway = Setup::new(&[node.address]).start();
    let answer = post(&gateway, b"{}");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("retry-after")), (503, "Hive says no", Some("7")));
    assert_eq!(node.count(), 1);
}

#[test]
fn an_idle_connection_is_reused_but_not_for_long() {
    let node = Node::start();
    let mut setup = Setup::new(&[]);
    setup.server = "threads: 1".into();
    setup.upstreams = upstream("hive", "http", &[node.address], "timeouts: { idle: 1s }");
    let gateway = setup.start();
    get(&gateway);
    get(&gateway);
    let early: Vec<_> = node.requests().iter().map(|r| r.connection).collect();
    assert_eq!(early[0], early[1], "reused at once");
    // Idleness is the behaviour under test.
    std::thread::sleep(Duration::from_millis(1600));
    get(&gateway);
    assert_ne!(node.requests()[2].connection, early[0], "given up before the node would close it");
}

#[test]
fn the_node_s_keep_alive_hint_is_honoured() {
    let node = Node::start_with(|_, exchange| exchange.answer(200, "Keep-Alive: timeout=1\r\n", b"{}"));
    let mut setup = Setup::new(&[]);
    setup.server = "threads: 1".into();
    setup.upstreams = upstream("hive", "http", &[node.address], "");
    let gateway = setup.start();
    get(&gateway);
    // Idleness is the behaviour under test.
    std::thread::sleep(Duration::from_millis(1500));
    get(&gateway);
    let requests = node.requests();
    assert_ne!(requests[0].connection, requests[1].connection);
}

#[test]
fn weights_share_out_the_requests() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[]);
    setup.upstreams = format!(
        "\n  - {{ name: hive, endpoints: [\"http://{}\", {{ url: \"http://{}\", weight: 3 }}], balance: round_robin }}\n",
        a.address, b.address
    );
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    for _ in 0..40 {
        connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    }
    assert!((9..=11).contains(&a.count()), "{} and {}", a.count(), b.count());
}

#[test]
fn least_requests_avoids_a_busy_node() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let slow = Node::start_with(move |_, exchange| {
        let _ = gate.lock().unwrap().recv();
        exchange.answer(200, "", b"{}")
    });
    let fast = Node::start();
    let mut setup = Setup::new(&[]);
    let more = "balance: least_requests, health_check: { interval: 10s }";
    setup.upstreams = upstream("hive", "http", &[slow.address, fast.address], more);
    let gateway = setup.start();
    // Requests one after the other, until one of them is stuck at the slow node.
    let stuck = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..50 {
            if slow.count() > 0 {
                break;
            }
            let (gateway, stuck) = (&gateway, &stuck);
            let asked = AtomicUsize::new(slow.count() + fast.count()).into_inner();
            scope.spawn(move || {
                get(gateway);
                stuck.store(true, Ordering::Relaxed);
            });
            wait_until("it arrives", || slow.count() + fast.count() > asked);
        }
        let before = slow.count();
        for _ in 0..20 {
            assert_eq!(get(&gateway).status, 200);
        }
        assert_eq!(slow.count(), before, "a busy node got more work while the other was free");
        drop(go);
    });
}

#[test]
fn a_killed_node_under_load_costs_only_the_requests_on_it_and_comes_back() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[a.address, b.address], CHECK);
    let gateway = setup.start();
    let (stop, done, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let client = gateway.client("alice");
    const WORKERS: usize = 4;
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut connection = client.connect(gateway.address).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = connection
                        .exchange(b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}")
                        .unwrap();
                    if answer.status != 200 {
                        assert_eq!(answer.status, 502, "{}", answer.text());
                        failed.fetch_add(1, Ordering::Relaxed);
                        if answer.header("connection") == Some("close") {
                            connection = client.connect(gateway.address).unwrap();
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("both nodes work", || a.count() > 20 && b.count() > 20);
        a.kill();
        let before = done.load(Ordering::Relaxed);
        wait_until("work goes on at the other node", || done.load(Ordering::Relaxed) > before + 200);
        wait_until("the dead node is out", || {
            gateway.metric("hive_gateway_upstream_node_up", &[("node", &format!("http://{}", a.address))]) == 0.0
        });
        let again = Node::start_on(a.address);
        wait_until("the node comes back by itself", || again.count() > 20);
        stop.store(true, Ordering::Relaxed);
    });
    // At most one request of each worker was on the node when it died.
    let failed = failed.load(Ordering::Relaxed);
    assert!(failed <= WORKERS, "{failed} requests failed");
}

#[test]
fn a_node_that_answers_before_the_body_s_end_is_heard() {
    let node = Node::start_with(|_, exchange| {
        exchange.answer(401, "Content-Type: application/json\r\n", br#"{"error":"Unauthorized"}"#)?;
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    let answer = post(&gateway, &noise(300_000, 3));
    assert_eq!(answer.status, 401);
}
