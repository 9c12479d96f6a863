//! The operator's listener.

use crate::support::client::Connection;
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;

fn ask(gateway: &Gateway, head: &str) -> crate::support::client::Response {
    Connection::plain(gateway.admin).unwrap().exchange(head.as_bytes()).unwrap()
}

#[test]
fn health_says_what_the_older_gateway_said() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let answer = gateway.admin_get("/v1/health").unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let health = answer.json();
    assert_eq!((&health["ok"], &health["role"]), (&true.into(), &"hive-mesh-gateway".into()));
    assert_eq!(health["metricsPath"], "/v1/metrics");
}

#[test]
fn a_flood_of_connections_leaves_a_few_lines_and_a_count() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let mut flood: Vec<_> = (0..128).map(|_| std::net::TcpStream::connect(gateway.admin).unwrap()).collect();
    flood.extend((0..200).map(|_| std::net::TcpStream::connect(gateway.admin).unwrap()));
    crate::support::wait_until("the rest is counted", || gateway.stderr().contains(" more are closed"));
    let said = gateway.stderr();
    let lines = said.lines().filter(|line| line.contains("admin: more than 128 connections")).count();
    assert!(lines < 50, "{lines} lines about 200 connections");
}

#[test]
fn readiness_needs_a_node_of_each_upstream() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[]);
    let check = "health_check: { interval: 2s, unhealthy_after: 1, healthy_after: 1 }";
    setup.upstreams = upstream("hive", "http", &[a.address], check) + &upstream("other", "http", &[b.address], check);
    setup.routes += "  - { name: more, paths: [/more], methods: [GET], peers: any, upstream: other }\n";
    let gateway = setup.start();
    b.set_health(500);
    crate::support::wait_until("not ready", || gateway.admin_get("/v1/ready").unwrap().status == 503);
    assert!(gateway.admin_get("/v1/ready").unwrap().text().contains("other"), "it says which upstream is down");
    assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200, "alive all the same");
}

#[test]
fn metrics_are_prometheus_text_with_the_names_that_dashboards_use() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    gateway.client("alice").get(gateway.address, "/.well-known/agent-card.json").unwrap();
    gateway.wait_metric("hive_gateway_http_requests_total", &[("code", "200")], 1.0);
    let answer = gateway.admin_get("/v1/metrics").unwrap();
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"), "{:?}", answer.header("content-type"));
    let text = answer.text();
    for line in [
        "# TYPE hive_gateway_http_requests_total counter",
        "# TYPE hive_gateway_http_request_duration_seconds histogram",
        "# TYPE hive_gateway_connections gauge",
        "# TYPE hive_gateway_tls_handshakes_total counter",
        "# TYPE hive_gateway_upstream_node_up gauge",
    ] {
        assert!(text.contains(line), "{line} is missing:\n{text}");
    }
    assert!(text.contains(r#"hive_gateway_http_request_duration_seconds_count{route="discovery"} 1"#), "{text}");
}

#[test]
fn the_admin_listener_serves_nothing_else() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    assert_eq!(gateway.admin_get("/x").unwrap().status, 404);
    assert_eq!(gateway.admin_get("/v1/metrics/x").unwrap().status, 404);
    assert_eq!(ask(&gateway, "POST /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").status, 405);
    let head = ask(&gateway, "HEAD /v1/health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[test]
fn the_public_listener_serves_nothing_of_it() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for path in ["/v1/health", "/v1/ready", "/v1/metrics"] {
        assert_eq!(gateway.client("alice").get(gateway.address, path).unwrap().status, 404, "{path}");
    }
    assert_eq!(node.count(), 0);
}

#[test]
fn a_bearer_secret_guards_all_but_health_and_readiness() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.admin = ", bearer_secret: 0123456789abcdef0123456789abcdef".into();
    let gateway = setup.start();
    assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200);
    let refused = gateway.admin_get("/v1/metrics").unwrap();
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
    for (secret, status) in
        [("0123456789abcdef0123456789abcdef", 200), ("0123456789abcdef0123456789abcdee", 401), ("", 401)]
    {
        let head = format!("GET /v1/metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n");
        assert_eq!(ask(&gateway, &head).status, status, "{secret:?}");
    }
}

#[test]
fn connections_are_counted_while_they_are_open() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut connection = gateway.connect("alice");
            connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
            connection
        })
        .collect();
    gateway.wait_metric("hive_gateway_connections", &[("listener", "front")], 3.0);
    drop(held);
    gateway.wait_metric("hive_gateway_connections", &[("listener", "front")], 0.0);
}
