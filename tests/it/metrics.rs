//! The metrics, as Prometheus itself reads them.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup, sum};
use crate::support::node::Node;
use crate::support::{TempDir, wait_until};

/// A gateway of which nearly every metric has something to say.
fn busy() -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.routes = setup.routes.replace("json_rpc: {}", "json_rpc: {}, rate_limits: [{ per: peer, rate: 100/s }]");
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    for path in ["/echo", "/nowhere", "/bob"] {
        connection.exchange(format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n").as_bytes()).unwrap();
    }
    gateway.client("bob").get(gateway.address, "/bob").unwrap();
    gateway.client("carol").get(gateway.address, "/echo").unwrap();
    let _ = gateway.client_with(None).connect(gateway.address).and_then(|mut c| c.exchange(b"GET / HTTP/1.1\r\n\r\n"));
    gateway.wait_metric("hive_gateway_http_requests_total", &[], 5.0);
    (gateway, node)
}

fn ask(gateway: &Gateway, accept: &str) -> Response {
    let request = format!("GET /v1/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n");
    Connection::plain(gateway.admin).unwrap().exchange(request.as_bytes()).unwrap()
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let (gateway, _node) = busy();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool; scripts/setup installs it");
    promtool.stdin.take().unwrap().write_all(gateway.metrics().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn requests_are_counted_by_peer() {
    let (gateway, _node) = busy();
    let count =
        |peer: &str, code: &str| gateway.metric("hive_gateway_peer_requests_total", &[("peer", peer), ("code", code)]);
    assert_eq!((count("alice", "2xx"), count("alice", "4xx"), count("bob", "2xx")), (1.0, 2.0, 1.0));
    assert_eq!(count("none", "2xx"), 1.0, "carol's certificate belongs to no peer");
    assert_eq!(gateway.metric("hive_gateway_peer_request_duration_seconds_count", &[("peer", "alice")]), 3.0);
}

#[test]
fn requests_are_counted_by_route() {
    let (gateway, _node) = busy();
    let total = gateway.metric("hive_gateway_http_requests_total", &[]);
    assert_eq!(gateway.metric("hive_gateway_route_requests_total", &[]), total);
    let count = |code: &str| gateway.metric("hive_gateway_route_requests_total", &[("route", "echo"), ("code", code)]);
    assert!(count("2xx") > 0.0 && count("5xx") == 0.0, "{}", gateway.metrics());
    assert!(gateway.metric("hive_gateway_route_requests_total", &[("route", "unmatched"), ("code", "4xx")]) > 0.0);
}

#[test]
fn connections_are_told_by_what_they_do() {
    let node = Node::start_with(|_, exchange| {
        exchange.begin_stream()?;
        exchange.event("one")?;
        exchange.gone_after();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    let state = |state: &'static str| [("listener", "front"), ("state", state)];
    let mut idle = gateway.connect("alice");
    idle.exchange(b"GET /nowhere HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    let mut active = gateway.connect("alice");
    active.send(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    active.head().unwrap();
    let silent = std::net::TcpStream::connect(gateway.address).unwrap();
    for (name, count) in [("idle", 1.0), ("active", 1.0), ("handshake", 1.0)] {
        gateway.wait_metric("hive_gateway_connections", &state(name), count);
    }
    drop((silent, idle));
    active.vanish();
    for name in ["idle", "active", "handshake"] {
        gateway.wait_metric("hive_gateway_connections", &state(name), 0.0);
    }
}

#[test]
fn the_process_and_its_allocator_are_seen() {
    let (gateway, _node) = busy();
    let text = gateway.metrics();
    let value = |name: &str| sum(&text, name, &[]);
    assert!(value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") > 10.0, "{text}");
    assert!(value("process_threads") > 2.0 && value("process_cpu_seconds_total") > 0.0, "{text}");
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
        - value("process_start_time_seconds");
    assert!((-5.0..600.0).contains(&age), "{age}");
    assert!(value("hive_gateway_allocator_committed_bytes") > 1e5, "{text}");
}

/// A real Prometheus that scrapes one target each second.
struct Prometheus {
    child: Child,
    address: std::net::SocketAddr,
    _dir: TempDir,
}

impl Prometheus {
    fn start(target: std::net::SocketAddr) -> Self {
        for _ in 0..10 {
            let dir = TempDir::new();
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = dir.path().join("prometheus.yml");
            let text = format!(
                "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: gateway\n  metrics_path: /v1/metrics\n  \
                 static_configs: [{{ targets: [\"{target}\"] }}]\n"
            );
            std::fs::write(&config, text).unwrap();
            let child = Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("prometheus; scripts/setup installs it");
            let mut prometheus = Self { child, address, _dir: dir };
            let mut lives = true;
            wait_until("prometheus answers or ends", || {
                lives = prometheus.child.try_wait().unwrap().is_none();
                !lives || prometheus.get("/-/ready").is_some()
            });
            if lives {
                return prometheus;
            }
        }
        panic!("prometheus does not start");
    }

    fn get(&self, path: &str) -> Option<Response> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = Connection::plain(self.address).ok()?.exchange(request.as_bytes()).ok()?;
        (answer.status == 200).then_some(answer)
    }

    fn query(&self, query: &str) -> Option<String> {
        let answer = self.get(&format!("/api/v1/query?query={query}"))?.json();
        answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_reads_open_metrics_and_finds_what_was_counted() {
    let (gateway, _node) = busy();
    let prometheus = Prometheus::start(gateway.admin);
    let mut target = Value::Null;
    wait_until("the target was scraped", || {
        let targets = prometheus.get("/api/v1/targets").map(|a| a.json()).unwrap_or_default();
        target = targets["data"]["activeTargets"][0].clone();
        target["health"] != "unknown" && !target.is_null()
    });
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    let mut found = None;
    wait_until("the counter is there", || {
        found = prometheus.query("sum(hive_gateway_http_requests_total)");
        found.is_some()
    });
    assert_eq!(found.as_deref(), Some("5"));
    assert_eq!(prometheus.query("hive_gateway_upstream_node_up").as_deref(), Some("1"));
    let metadata = prometheus.get("/api/v1/metadata?metric=hive_gateway_http_requests").unwrap().json();
    // Only OpenMetrics names the family without _total.
    assert_eq!(metadata["data"]["hive_gateway_http_requests"][0]["type"], "counter", "{metadata}");
}

#[test]
fn each_reader_gets_the_format_that_it_asks_for() {
    let (gateway, _node) = busy();
    for (accept, kind, end) in [
        ("*/*", "text/plain; version=0.0.4", "\n"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", "\n# EOF\n"),
        ("text/plain;q=1, application/openmetrics-text;q=0.5", "text/plain; version=0.0.4", "\n"),
    ] {
        let answer = ask(&gateway, accept);
        assert!(answer.header("content-type").unwrap().starts_with(kind), "{accept}");
        assert!(answer.text().ends_with(end), "{accept}");
    }
}
