//! Nodes that a file names: taken in and let go while requests run.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::certs::{self, Pki, client_leaf, server_leaf};
use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::wait_until;

const NODES: &str = "hive_gateway_upstream_discovered_nodes";
const NODE_UP: &str = "hive_gateway_upstream_node_up";
const ANSWERS: &str = "hive_gateway_upstream_discovery_total";
const OK: &[(&str, &str)] = &[("result", "ok")];
const FAILED: &[(&str, &str)] = &[("result", "failed")];
const PROBES_OFF: &str = "health_check: { enabled: false }";
const PROBES: &str = "health_check: { interval: 2s, unhealthy_after: 1, healthy_after: 1 }, slow_start: 0s";

fn setup(more: &str) -> Setup {
    let mut setup = Setup::new(&[]);
    setup.upstreams =
        format!("\n  - {{ name: hive, discovery: {{ file: {{ path: nodes.yaml, interval: 100ms }} }}, {more} }}\n");
    setup
}

/// As it should be done: whole, then under its name.
fn write(dir: &Path, text: &str) {
    fs::write(dir.join("nodes.new"), text).unwrap();
    fs::rename(dir.join("nodes.new"), dir.join("nodes.yaml")).unwrap();
}

fn targets(nodes: &[&Node]) -> String {
    let all: Vec<_> = nodes.iter().map(|n| format!("\"{}\"", n.address)).collect();
    format!("- targets: [{}]\n", all.join(", "))
}

fn start(nodes: &[&Node], more: &str) -> Gateway {
    let setup = setup(more);
    write(setup.dir.path(), &targets(nodes));
    setup.start()
}

fn get(gateway: &Gateway) -> u16 {
    gateway.client("alice").get(gateway.address, "/echo").unwrap().status
}

fn addresses(status: &Value) -> Vec<SocketAddr> {
    let nodes = status["upstreams"][0]["nodes"].as_array().unwrap();
    nodes.iter().map(|n| n["address"].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_file_names_the_nodes_and_changes_them() {
    let (one, two) = (Node::start(), Node::start());
    let gateway = start(&[&one], PROBES_OFF);
    assert_eq!(get(&gateway), 200);
    let status = gateway.status();
    let discovery = &status["upstreams"][0]["discovery"];
    assert_eq!(discovery["kind"], "file");
    assert!(discovery["subject"].as_str().unwrap().ends_with("/nodes.yaml"), "{discovery}");
    assert!(discovery["last_success"].is_u64() && discovery.get("error").is_none(), "{discovery}");
    assert_eq!(gateway.wait_log(|l| l["path"] == "/echo")["node"], format!("http://{}", one.address));
    // JSON is YAML; labels of others are theirs.
    let both = format!(
        r#"[{{"targets": ["{}"], "labels": {{"zone": "a", "weight": "3"}}}}, {{"targets": ["{}"]}}]"#,
        one.address, two.address
    );
    write(gateway.dir(), &both);
    gateway.wait_metric(NODES, &[], 2.0);
    wait_until("both are nodes", || addresses(&gateway.status()).len() == 2);
    let before = (one.count(), two.count());
    let mut connection = gateway.connect("alice");
    for _ in 0..40 {
        connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    }
    assert_eq!((one.count() - before.0, two.count() - before.1), (30, 10));
}

#[test]
fn a_bad_file_keeps_the_nodes_and_says_where_it_is_bad() {
    let node = Node::start();
    let gateway = start(&[&node], PROBES_OFF);
    fs::write(gateway.dir().join("nodes.yaml"), "- targets: ['hive-0:3000']\n").unwrap();
    gateway.wait_metric(ANSWERS, FAILED, 1.0);
    let error = gateway.status()["upstreams"][0]["discovery"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("nodes.yaml:1:13: [0].targets[0]: \"hive-0:3000\" is not an address"), "{error}");
    assert!(error.contains("names are looked up by discovery.dns"), "{error}");
    wait_until("the log says it", || gateway.stderr().contains(&format!("{error}; the last nodes stay")));
    assert_eq!(get(&gateway), 200);
    fs::remove_file(gateway.dir().join("nodes.yaml")).unwrap();
    gateway.wait_metric(ANSWERS, FAILED, 2.0);
    write(gateway.dir(), "[]");
    gateway.wait_metric(ANSWERS, FAILED, 3.0);
    assert_eq!((get(&gateway), gateway.metric(NODES, &[])), (200, 1.0));
    // The same as at first: all is well again.
    write(gateway.dir(), &targets(&[&node]));
    gateway.wait_metric(ANSWERS, OK, 2.0);
    assert!(gateway.status()["upstreams"][0]["discovery"].get("error").is_none());
}

#[test]
fn without_nodes_the_gateway_runs_and_says_why_it_is_not_ready() {
    let gateway = setup(PROBES).start_unready();
    let ready = gateway.admin_get("/v1/ready").unwrap();
    assert_eq!(ready.status, 503);
    wait_until("readiness says why", || {
        let ready = gateway.admin_get("/v1/ready").unwrap().json();
        ready["without_nodes"][0]
            .as_str()
            .is_some_and(|why| why.starts_with("hive: /") && why.contains("can't be read"))
    });
    let answer = gateway.client("alice").get(gateway.address, "/echo").unwrap();
    assert_eq!((answer.status, &answer.json()["error"]), (503, &"no_healthy_upstream".into()));
    let line = gateway.wait_log(|l| l["refusal"] == "no_healthy_upstream");
    assert!(line["error"].as_str().unwrap().contains("no node has been discovered"), "{line}");
    let node = Node::start();
    write(gateway.dir(), &targets(&[&node]));
    wait_until("it is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert_eq!(get(&gateway), 200);
}

#[test]
fn a_node_that_is_taken_out_drains() {
    let release = std::sync::Arc::new(AtomicBool::new(false));
    let let_go = release.clone();
    let old = Node::start_with(move |_, exchange| {
        exchange.begin_stream()?;
        exchange.event("first")?;
        wait_until("the test lets go", || let_go.load(Ordering::SeqCst));
        exchange.event("last")?;
        exchange.end_stream()
    });
    let new = Node::start();
    let gateway = start(&[&old], PROBES);
    let mut stream = gateway.connect("alice");
    stream.send(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(stream.head().unwrap().status, 200);
    assert!(stream.chunk().unwrap().is_some());
    write(gateway.dir(), &targets(&[&new]));
    wait_until("the new one is the only one", || addresses(&gateway.status()) == [new.address]);
    assert_eq!((get(&gateway), new.count()), (200, 1));
    // The stream is still there, and so is what is counted of its node.
    let label = format!("http://{}", old.address);
    assert_eq!(gateway.metric("hive_gateway_upstream_in_flight", &[("node", &label)]), 1.0);
    let probes = old.probes().len();
    release.store(true, Ordering::SeqCst);
    let mut rest = Vec::new();
    while let Some(chunk) = stream.chunk().unwrap() {
        rest.extend(chunk);
    }
    assert_eq!(String::from_utf8(rest).unwrap(), "data: last\n\n");
    wait_until("nothing is told of it any more", || !gateway.metrics().contains(&label));
    // Its connections are closed, and the next probe would have come by now.
    let seen = new.probes().len();
    wait_until("the new one is probed on", || new.probes().len() > seen);
    assert_eq!(old.probes().len(), probes);
}

#[test]
fn idle_connections_to_a_node_that_is_taken_out_are_closed() {
    let (old, new) = (Node::start(), Node::start());
    let gateway = start(&[&old], &format!("timeouts: {{ idle: 1h }}, {PROBES_OFF}"));
    assert_eq!(get(&gateway), 200);
    wait_until("it rests", || old.open() == 1);
    write(gateway.dir(), &targets(&[&new]));
    wait_until("it is closed", || old.open() == 0);
}

#[test]
fn a_new_node_is_probed_before_it_gets_requests() {
    let (old, new) = (Node::start(), Node::start());
    new.set_health(503);
    let gateway = start(&[&old], PROBES);
    // At first beside another node, then alone.
    write(gateway.dir(), &targets(&[&old, &new]));
    wait_until("it is a node", || addresses(&gateway.status()).len() == 2);
    wait_until("it has been probed", || !new.probes().is_empty());
    write(gateway.dir(), &targets(&[&new]));
    gateway.wait_metric(NODES, &[], 1.0);
    for _ in 0..20 {
        assert_eq!(get(&gateway), 200);
    }
    assert_eq!(new.count(), 0);
    new.set_health(200);
    wait_until("the old one has gone", || addresses(&gateway.status()) == [new.address]);
    assert_eq!((get(&gateway), new.count()), (200, 1));
}

/// Clients that ask all the time, each on a connection of its own, until told to end: what went wrong, and how many went
/// well.
fn under_load(gateway: &Gateway, change: impl FnOnce(&AtomicUsize)) -> (Vec<String>, usize) {
    let (stop, served, failures) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = gateway.connect("alice");
                let body = r#"{"jsonrpc":"2.0","id":1,"method":"message/send","params":{}}"#;
                let post = format!(
                    "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                while !stop.load(Ordering::SeqCst) {
                    match connection.exchange(post.as_bytes()) {
                        Ok(answer) if answer.status == 200 => {
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(answer) => failures.lock().unwrap().push(format!("{} {}", answer.status, answer.text())),
                        Err(e) => {
                            failures.lock().unwrap().push(e.to_string());
                            connection = gateway.connect("alice");
                        }
                    }
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(&served)));
        stop.store(true, Ordering::SeqCst);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    (failures.into_inner().unwrap(), served.into_inner())
}

#[test]
fn nodes_come_and_go_under_load_without_a_failed_request() {
    let all: Vec<_> = (0..6).map(|_| Node::start()).collect();
    for node in &all {
        node.behave(|_, exchange| {
            // So that there is always one under way.
            std::thread::sleep(Duration::from_millis(2));
            exchange.answer(200, "Content-Type: application/json\r\n", br#"{"jsonrpc":"2.0","id":1,"result":{}}"#)
        });
    }
    let of = |range: std::ops::Range<usize>| all[range].iter().collect::<Vec<_>>();
    let gateway = start(&of(0..2), PROBES);
    let (failures, served) = under_load(&gateway, |served| {
        // Grows, shrinks, is replaced as a whole, with reloads in between; what is taken out goes away for good.
        for (n, range) in [0..4, 1..4, 2..5, 4..6, 0..2, 2..6, 5..6].into_iter().enumerate() {
            write(gateway.dir(), &targets(&of(range.clone())));
            let wanted: Vec<_> = all[range].iter().map(|n| n.address).collect();
            wait_until("those are the nodes", || {
                let mut now = addresses(&gateway.status());
                now.sort_unstable();
                let mut wanted = wanted.clone();
                wanted.sort_unstable();
                now == wanted
            });
            gateway.wait_metric(NODE_UP, &[], wanted.len() as f64);
            if n % 2 == 1 {
                gateway.edit("slow_start: ", "slow_start:  ");
                gateway.reload_ok();
                assert_eq!(addresses(&gateway.status()).len(), wanted.len());
            }
            let before = served.load(Ordering::SeqCst);
            wait_until("requests run", || served.load(Ordering::SeqCst) > before + 50);
        }
    });
    assert!(failures.is_empty(), "{} failed of {}: {:?}", failures.len(), failures.len() + served, &failures[..1]);
    assert!(served > 300 && all.iter().all(|n| n.count() > 0), "{served}");
    for node in &all[..5] {
        let label = format!("http://{}", node.address);
        wait_until("nothing is told of those that are gone", || !gateway.metrics().contains(&label));
    }
}

#[test]
fn discovered_nodes_prove_who_they_are() {
    let mesh = Pki::default();
    let good = Node::start_tls(&mesh.leaf(&server_leaf(&["hive.internal"])), &mesh);
    let other = Node::start_tls(&mesh.leaf(&server_leaf(&["other.internal"])), &mesh);
    let tls = "tls: { ca: hive-ca.pem, server_name: hive.internal, cert: gw.pem, key: gw.key }";
    let setup = setup(&format!("{tls}, {PROBES}"));
    mesh.write_root(setup.dir.path(), "hive-ca");
    certs::write(&mesh.leaf(&client_leaf("gateway", "spiffe://mesh.test/gateway")), setup.dir.path(), "gw");
    write(setup.dir.path(), &targets(&[&good]));
    let gateway = setup.start();
    assert_eq!(get(&gateway), 200);
    assert_eq!(gateway.wait_log(|l| l["path"] == "/echo")["node"], format!("https://{}", good.address));
    // Whoever may write the file does not become a Hive node by that.
    write(gateway.dir(), &targets(&[&good, &other]));
    wait_until("it has been probed", || {
        gateway.metric("hive_gateway_upstream_tls_failures_total", &[("reason", "name_mismatch")]) > 0.0
    });
    (0..10).for_each(|_| assert_eq!(get(&gateway), 200));
    assert_eq!((good.count(), other.count(), other.probes().len()), (11, 0, 0));
}

#[test]
fn what_is_known_of_a_node_lasts_through_swaps_and_reloads() {
    let (bad, good) = (Node::start(), Node::start());
    bad.behave(|_, exchange| exchange.answer(503, "", b""));
    let outlier = "outlier: { consecutive_failures: 3, eject_for: 1h, eject_for_max: 1h }";
    let gateway = start(&[&bad, &good], &format!("balance: round_robin, {outlier}, {PROBES_OFF}"));
    let label = format!("http://{}", bad.address);
    wait_until("it is ejected", || {
        get(&gateway);
        gateway.metric("hive_gateway_upstream_node_ejected", &[("node", &label)]) == 1.0
    });
    let third = Node::start();
    write(gateway.dir(), &targets(&[&third, &good, &bad]));
    gateway.wait_metric(NODES, &[], 3.0);
    gateway.edit("balance: round_robin", "balance: least_requests");
    gateway.reload_ok();
    let status = gateway.status();
    assert_eq!(addresses(&status).len(), 3);
    assert_eq!(status["upstreams"][0]["nodes"][2]["outlier"], "ejected", "{status}");
    let before = bad.count();
    (0..10).for_each(|_| assert_eq!(get(&gateway), 200));
    assert_eq!(bad.count(), before);
    // From the configuration instead, with the same nodes.
    let block = "discovery: { file: { path: nodes.yaml, interval: 100ms } }";
    gateway.edit(block, &format!("endpoints: [\"http://{}\", \"http://{}\"]", bad.address, good.address));
    gateway.reload_ok();
    let status = gateway.status();
    assert_eq!(status["upstreams"][0]["nodes"][0]["outlier"], "ejected", "{status}");
    assert!(status["upstreams"][0].get("discovery").is_none());
    wait_until("nothing is told of the source any more", || !gateway.metrics().contains(&format!("{NODES}{{")));
}

#[test]
fn check_asks_only_if_it_is_told_to() {
    let mut setup = setup(PROBES_OFF);
    let (problems, said) = setup.check();
    assert!(
        problems.contains("upstreams[0].discovery.file.path: ") && problems.contains("can't be read"),
        "{problems}"
    );
    write(setup.dir.path(), "- targets: ['127.0.0.1:3000']\n  labels: { weight: 5 }\n");
    let (problems, again) = setup.check();
    assert!(!problems.contains("discovery"), "{problems}");
    assert!(said.contains("nodes from file ") && again.contains("nodes from file "), "{said}");
    let run = |dir: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
            .args(["check", "--discover", "--config"])
            .arg(dir.join("gateway.yaml"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (good, shown, _) = run(setup.dir.path());
    assert!(good && shown.contains("http://127.0.0.1:3000 weight 5 priority 0"), "{shown}");
    // A name that nobody has, at a server that is not there: only asked about if told to.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setup.upstreams = format!(
        "\n  - {{ name: hive, discovery: {{ dns: {{ name: hive.test, port: 3000, servers: [\"{closed}\"], \
         timeout: 50ms }} }} }}\n"
    );
    let (problems, said) = setup.check();
    assert!(said.contains("nodes from dns hive.test:3000"), "{problems}{said}");
    let (good, _, problems) = run(setup.dir.path());
    assert!(!good && problems.contains("hive: dns hive.test:3000: A of hive.test"), "{problems}");
}
