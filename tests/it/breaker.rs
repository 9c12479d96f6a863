//! Circuit breakers: who waits, who is refused, and that nobody's place is lost.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::node_h2::NodeH2;
use crate::support::wait_until;

const OVERFLOW: &str = "hive_gateway_upstream_circuit_breaker_overflow_total";
const PENDING: &str = "hive_gateway_upstream_pending";

/// A node that answers one request for each token.
fn gated() -> (Node, Sender<()>) {
    let (tokens, gate) = channel();
    let gate = Mutex::new(gate);
    let node = Node::start_with(move |_, exchange| {
        let _ = gate.lock().unwrap().recv();
        exchange.answer(200, "", b"{}")
    });
    (node, tokens)
}

fn gateway(node: &Node, breaker: &str) -> Gateway {
    let mut setup = Setup::new(&[]);
    let more = format!("circuit_breaker: {{ {breaker} }}, health_check: {{ enabled: false }}");
    setup.upstreams = upstream("hive", "http", &[node.address], &more);
    setup.start()
}

fn begin(gateway: &Gateway, path: &str) -> Connection {
    let mut connection = gateway.connect("alice");
    let head = format!("POST {path} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{{}}");
    connection.send(head.as_bytes()).unwrap();
    connection
}

#[track_caller]
fn assert_refused(answer: &Response, code: &str) {
    assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some(code)), "{}", answer.text());
    assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
}

#[test]
fn requests_wait_in_turn_and_the_rest_is_refused() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, max_pending: 3, pending_timeout: 1h");
    let mut clients = vec![begin(&gateway, "/echo/0")];
    node.wait_count(1);
    for n in 1..=3 {
        clients.push(begin(&gateway, &format!("/echo/{n}")));
        gateway.wait_metric(PENDING, &[("upstream", "hive")], f64::from(n));
    }
    let refused = begin(&gateway, "/echo/refused").response(false).unwrap();
    assert_refused(&refused, "upstream_max_pending");
    assert_eq!(gateway.metric(OVERFLOW, &[("limit", "pending")]), 1.0);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "upstream_max_pending")], 1.0);
    let open = |limit| gateway.metric("hive_gateway_upstream_circuit_breaker_open", &[("limit", limit)]);
    assert_eq!([open("connections"), open("pending"), open("requests")], [1.0, 1.0, 0.0]);
    let breaker = gateway.status()["upstreams"][0]["circuit_breaker"].clone();
    assert_eq!((&breaker["requests"], &breaker["pending"]), (&1.into(), &3.into()), "{breaker}");

    // One that waits goes away; its place is free at once, and the others stay in their order.
    clients.remove(2).vanish();
    gateway.wait_metric(PENDING, &[("upstream", "hive")], 2.0);
    clients.push(begin(&gateway, "/echo/4"));
    gateway.wait_metric(PENDING, &[("upstream", "hive")], 3.0);
    for (served, client) in clients.iter_mut().enumerate() {
        tokens.send(()).unwrap();
        assert_eq!(client.response(false).unwrap().status, 200);
        node.wait_count((served + 2).min(4));
    }
    let order: Vec<_> = node.requests().iter().map(|r| r.target()).collect();
    assert_eq!(order, ["/echo/0", "/echo/1", "/echo/3", "/echo/4"]);
    let gone = gateway.wait_log(|l| l["path"] == "/echo/2");
    assert_eq!((&gone["status"], &gone["tries"]), (&499.into(), &0.into()), "{gone}");
    let waited = gateway.wait_log(|l| l["path"] == "/echo/1");
    assert!(waited["upstream_queue_us"].as_u64().unwrap() > 0, "{waited}");
    assert_eq!(gateway.wait_log(|l| l["path"] == "/echo/0")["upstream_queue_us"], serde_json::Value::Null);
    gateway.wait_metric(PENDING, &[("upstream", "hive")], 0.0);
    let remaining = "hive_gateway_upstream_circuit_breaker_remaining";
    gateway.wait_metric(remaining, &[("limit", "connections")], 1.0);
}

#[test]
fn a_client_that_resets_its_stream_frees_its_place() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, max_pending: 1, pending_timeout: 1h");
    let mut first = begin(&gateway, "/echo/0");
    node.wait_count(1);
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let (answer, stream) = h2.begin(H2::request("GET", "/echo/1").body(()).unwrap(), true).unwrap();
    gateway.wait_metric(PENDING, &[], 1.0);
    drop((answer, stream));
    gateway.wait_metric(PENDING, &[], 0.0);
    let mut next = begin(&gateway, "/echo/2");
    gateway.wait_metric(PENDING, &[], 1.0);
    for client in [&mut first, &mut next] {
        tokens.send(()).unwrap();
        assert_eq!(client.response(false).unwrap().status, 200);
    }
    assert_eq!(node.count(), 2);
}

/// What a client sends behind its request hides from no one that it left, whether it waits for a node or for a place.
#[test]
fn a_client_that_sent_more_than_its_request_frees_its_place() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, max_pending: 1, pending_timeout: 1h");
    let more = |length: usize| {
        let next = "GET /echo/next HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
        next.bytes().cycle().take(length).collect::<Vec<u8>>()
    };
    for (n, (length, at_once, reset)) in
        [(1, false, false), (1, false, true), (5000, true, false), (100_000, true, true), (70_000, false, false)]
            .into_iter()
            .enumerate()
    {
        let path = format!("/echo/{n}");
        let mut bytes =
            format!("POST {path} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{{}}").into_bytes();
        let mut held = begin(&gateway, "/echo/held");
        node.wait_count(2 * n + 1);
        let mut client = gateway.connect("alice");
        if at_once {
            bytes.extend(more(length));
        }
        client.send(&bytes).unwrap();
        gateway.wait_metric(PENDING, &[], 1.0);
        if !at_once {
            client.send(&more(length)).unwrap();
        }
        if reset {
            socket2::SockRef::from(client.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
        }
        client.vanish();
        gateway.wait_metric(PENDING, &[], 0.0);
        let gone = gateway.wait_log(|l| l["path"] == path);
        assert_eq!((&gone["status"], &gone["tries"]), (&499.into(), &0.into()), "{length}: {gone}");
        tokens.send(()).unwrap();
        assert_eq!(held.response(false).unwrap().status, 200);

        // The same while the node works on it.
        let at_node = format!("{path}/at-node");
        let mut client = begin(&gateway, &at_node);
        node.wait_count(2 * n + 2);
        client.send(&more(length)).unwrap();
        client.vanish();
        let gone = gateway.wait_log(|l| l["path"] == at_node);
        assert_eq!((&gone["status"], &gone["tries"]), (&499.into(), &1.into()), "{length}: {gone}");
        tokens.send(()).unwrap();
    }
    wait_until("everything is free", || gateway.status()["upstreams"][0]["circuit_breaker"]["requests"] == 0);
}

/// What it sends behind its request is served in turn if it stays.
#[test]
fn a_client_that_sends_its_next_requests_early_gets_all_answers() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, pending_timeout: 1h");
    let mut client = begin(&gateway, "/echo/0");
    node.wait_count(1);
    let body = "x".repeat(20_000);
    for n in 1..=4 {
        let head = format!("POST /echo/{n} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(format!("{head}{body}").as_bytes()).unwrap();
    }
    for _ in 0..=4 {
        tokens.send(()).unwrap();
        assert_eq!(client.response(false).unwrap().status, 200);
    }
    let order: Vec<_> = node.requests().iter().map(|r| r.target()).collect();
    assert_eq!(order, ["/echo/0", "/echo/1", "/echo/2", "/echo/3", "/echo/4"]);
    assert!(node.requests()[1..].iter().all(|r| r.body == body.as_bytes()));
}

#[test]
fn nobody_waits_longer_than_pending_timeout() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, pending_timeout: 300ms");
    let mut first = begin(&gateway, "/echo/0");
    node.wait_count(1);
    let start = Instant::now();
    let body = r#"{"jsonrpc":"2.0","id":"call-7","method":"message/send","params":{}}"#;
    let head = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let mut connection = gateway.connect("alice");
    let answer = connection.exchange(request.as_bytes()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!((answer.status, answer.json()["id"].as_str()), (503, Some("call-7")), "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let line = gateway.wait_log(|l| l["refusal"] == "upstream_pending_timeout");
    assert!(line["upstream_queue_us"].as_u64().unwrap() >= 290_000, "{line}");
    assert_eq!(gateway.metric(OVERFLOW, &[("limit", "pending_timeout")]), 1.0);
    // Nothing was lost of the connection: it can be used again.
    tokens.send(()).unwrap();
    tokens.send(()).unwrap();
    assert_eq!(first.response(false).unwrap().status, 200);
    assert_eq!(connection.exchange(request.as_bytes()).unwrap().status, 200);
}

#[test]
fn requests_beyond_max_requests_are_refused_at_once() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_requests: 1");
    let mut first = begin(&gateway, "/echo/0");
    node.wait_count(1);
    let refused = begin(&gateway, "/echo/1").response(false).unwrap();
    assert_refused(&refused, "upstream_max_requests");
    tokens.send(()).unwrap();
    assert_eq!(first.response(false).unwrap().status, 200);
    tokens.send(()).unwrap();
    let again = || begin(&gateway, "/echo/2").response(false).unwrap().status;
    wait_until("the first is counted out", || again() == 200);
}

#[test]
fn http_2_nodes_are_held_to_max_requests() {
    let node = NodeH2::start(None);
    let mut setup = Setup::new(&[]);
    let more = "protocol: http2, circuit_breaker: { max_requests: 1 }";
    setup.upstreams = upstream("hive", "http", &[node.address], more);
    let gateway = setup.start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    // Each stream lasts for most of a second, and they come all at once.
    let bodies = h2.get_all("/echo/stream", 6).unwrap();
    let has = |text: &str| bodies.iter().filter(|b| String::from_utf8_lossy(b).contains(text)).count();
    let (served, refused) = (has("data: 4"), has("upstream_max_requests"));
    assert!(served >= 1 && refused >= 1 && served + refused == 6, "{served} served, {refused} refused");
    wait_until("the last one is counted out", || {
        gateway.client("alice").get(gateway.address, "/echo").unwrap().status == 200
    });
    gateway.wait_metric("hive_gateway_upstream_circuit_breaker_remaining", &[("limit", "requests")], 1.0);
    assert!(!gateway.metrics().contains("circuit_breaker_remaining{limit=\"connections\""));
}

#[test]
fn without_a_retry_budget_no_other_node_is_tried() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let dead = socket.local_addr().unwrap().as_socket().unwrap();
    let node = Node::start();
    for (budget, all_served) in [("retry_budget: 0%, min_retry_concurrency: 0", false), ("retry_budget: 0%", true)] {
        let mut setup = Setup::new(&[]);
        let more = format!(
            "balance: round_robin, outlier: {{ enabled: false }}, health_check: {{ enabled: false }}, \
             circuit_breaker: {{ {budget} }}"
        );
        setup.upstreams = upstream("hive", "http", &[dead, node.address], &more);
        let gateway = setup.start();
        let answers: Vec<_> = (0..4).map(|_| begin(&gateway, "/echo").response(false).unwrap()).collect();
        let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
        assert_eq!((served.len(), refused.len()), if all_served { (4, 0) } else { (2, 2) });
        refused.iter().for_each(|answer| assert_refused(answer, "retry_budget_exhausted"));
        gateway.wait_metric(OVERFLOW, &[("limit", "retries")], if all_served { 0.0 } else { 2.0 });
        if !all_served {
            let line = gateway.wait_log(|l| l["refusal"] == "retry_budget_exhausted");
            assert!(line["error"].as_str().unwrap().contains("onnect"), "also why the first try failed: {line}");
        }
    }
}

/// Nothing was delivered twice by it, so a slow answer does not keep others from being tried elsewhere.
#[test]
fn a_request_that_found_a_connection_elsewhere_leaves_the_retry_budget() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let dead = socket.local_addr().unwrap().as_socket().unwrap();
    let (node, tokens) = gated();
    let mut setup = Setup::new(&[]);
    let more = "balance: round_robin, outlier: { enabled: false }, health_check: { enabled: false }, \
                circuit_breaker: { retry_budget: 0%, min_retry_concurrency: 1 }";
    setup.upstreams = upstream("hive", "http", &[dead, node.address], more);
    let gateway = setup.start();
    let mut clients = Vec::new();
    for n in 1..=6 {
        clients.push(begin(&gateway, "/echo"));
        node.wait_count(n);
    }
    clients.iter().for_each(|_| tokens.send(()).unwrap());
    assert!(clients.iter_mut().all(|client| client.response(false).unwrap().status == 200));
}

#[test]
fn a_request_that_waits_is_refused_if_maintenance_begins_meanwhile() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, pending_timeout: 1h");
    let mut first = begin(&gateway, "/echo/0");
    node.wait_count(1);
    let mut second = begin(&gateway, "/echo/1");
    gateway.wait_metric(PENDING, &[("upstream", "hive")], 1.0);
    assert_eq!(gateway.admin_ask("POST", "/v1/maintenance").status, 200);
    // One for the first, and one for the second if it went to the node.
    (0..2).for_each(|_| tokens.send(()).unwrap());
    assert_eq!(first.response(false).unwrap().status, 200);
    assert_refused(&second.response(false).unwrap(), "maintenance");
    assert_eq!(node.count(), 1);
    // Its place is free again.
    assert_eq!(gateway.admin_ask("DELETE", "/v1/maintenance").status, 200);
    assert_eq!(begin(&gateway, "/echo/2").response(false).unwrap().status, 200);
}

#[test]
fn a_reload_changes_the_limits_and_keeps_the_counts() {
    let (node, tokens) = gated();
    let gateway = gateway(&node, "max_connections: 1, pending_timeout: 1h");
    let mut clients = vec![begin(&gateway, "/echo/0")];
    node.wait_count(1);
    clients.push(begin(&gateway, "/echo/1"));
    gateway.wait_metric(PENDING, &[], 1.0);
    gateway.edit("max_connections: 1,", "max_connections: 2,");
    gateway.reload_ok();
    node.wait_count(2);
    clients.push(begin(&gateway, "/echo/2"));
    gateway.wait_metric(PENDING, &[], 1.0);
    gateway.edit("max_connections: 2,", "max_connections: 1,");
    gateway.reload_ok();
    tokens.send(()).unwrap();
    // Whichever of the two that run got the token: one still runs, which is the new limit.
    wait_until("one is answered", || gateway.status()["upstreams"][0]["circuit_breaker"]["requests"] == 1);
    assert_eq!((gateway.metric(PENDING, &[]), node.count()), (1.0, 2));
    tokens.send(()).unwrap();
    node.wait_count(3);
    tokens.send(()).unwrap();
    for client in &mut clients {
        assert_eq!(client.response(false).unwrap().status, 200);
    }
}

/// Many clients that come, wait, leave and are served: at no time are there more at the node than there may be, and in the
/// end everything is free again.
#[test]
fn a_storm_of_clients_leaves_nothing_behind() {
    let now = Arc::new(Mutex::new((0usize, 0usize)));
    let counts = now.clone();
    let node = Node::start_with(move |_, exchange| {
        {
            let mut counts = counts.lock().unwrap();
            counts.0 += 1;
            counts.1 = counts.1.max(counts.0);
        }
        // Work takes a moment, or nobody would ever wait.
        std::thread::sleep(Duration::from_millis(3));
        counts.lock().unwrap().0 -= 1;
        exchange.answer(200, "", b"{}")
    });
    let gateway = gateway(&node, "max_connections: 3, max_pending: 6, pending_timeout: 1h");
    let tally = Mutex::new(std::collections::BTreeMap::<u16, usize>::new());
    std::thread::scope(|scope| {
        for worker in 0..12 {
            let (gateway, tally) = (&gateway, &tally);
            scope.spawn(move || {
                for n in 0..15 {
                    let mut client = begin(gateway, "/echo");
                    if (worker + n) % 4 == 0 {
                        client.vanish();
                        continue;
                    }
                    let status = client.response(false).unwrap().status;
                    *tally.lock().unwrap().entry(status).or_default() += 1;
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    assert!(tally.keys().all(|status| [200, 503].contains(status)) && tally[&200] > 20, "{tally:?}");
    // Counted out is who has been answered, and the node may see a request end a little later than its client left.
    wait_until("everything is free", || {
        let breaker = gateway.status()["upstreams"][0]["circuit_breaker"].clone();
        breaker["requests"] == 0 && breaker["pending"] == 0
    });
    gateway.wait_metric("hive_gateway_upstream_circuit_breaker_remaining", &[("limit", "connections")], 3.0);
}
