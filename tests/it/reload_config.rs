//! The configuration itself that changes while the gateway runs.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const CARD: &str = "/.well-known/agent-card.json";
const CONFIG_RELOADS: &str = "hive_gateway_config_reload_total";
const OK: &[(&str, &str)] = &[("result", "ok")];
const FAILED: &[(&str, &str)] = &[("result", "failed")];

fn gateway(server: &str) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.server = server.into();
    (setup.start(), node)
}

fn get(gateway: &Gateway, client: &str, path: &str) -> u16 {
    gateway.client(client).get(gateway.address, path).unwrap().status
}

#[test]
fn routes_and_peers_change_for_the_next_request_of_a_live_connection() {
    let (gateway, _node) = gateway("");
    let mut bob = gateway.connect("bob");
    let mut ask = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
        bob.exchange(request.as_bytes()).unwrap().status
    };
    assert_eq!((ask("/bob"), ask("/new")), (200, 404));
    gateway.edit("paths: [/bob]", "paths: [/new]");
    gateway.signal(Signal::SIGHUP);
    gateway.wait_metric(CONFIG_RELOADS, OK, 1.0);
    assert_eq!((ask("/bob"), ask("/new")), (404, 200));
    gateway.edit("name: bob, uri: \"spiffe://mesh.test/hive/bob\"", "name: bob, uri: \"spiffe://mesh.test/hive/rob\"");
    gateway.reload_ok();
    assert_eq!(ask("/new"), 403);
    assert_eq!(gateway.status()["config"]["generation"], 3);
}

#[test]
fn a_wrong_configuration_keeps_the_old_one_and_every_error_is_told() {
    let (gateway, _node) = gateway("");
    let before = gateway.status()["config"]["hash"].clone();
    gateway.edit("upstream: hive", "upstream: hvie");
    gateway.signal(Signal::SIGHUP);
    gateway.wait_metric(CONFIG_RELOADS, FAILED, 1.0);
    let status = gateway.status();
    assert_eq!(status["last_reload"]["errors"].as_array().unwrap().len(), 4, "{status}");
    assert_eq!((&status["last_reload"]["trigger"], &status["config"]["hash"]), (&"signal".into(), &before));
    wait_until("the log has all of them", || gateway.stderr().matches("no upstream named \"hvie\"").count() == 4);
    assert_eq!(get(&gateway, "bob", CARD), 200);
    // No file of the mesh changed, so nothing is said of them.
    assert_eq!(gateway.metric("hive_gateway_tls_reload_total", FAILED), 0.0);
    let answer = gateway.reload();
    assert_eq!(answer.status, 422);
    let error = &answer.json()["errors"][0];
    assert!(error["message"].as_str().unwrap().contains("did you mean \"hive\""), "{error}");
    assert!(error["line"].is_u64() && error["column"].is_u64(), "{error}");
}

#[test]
fn the_configuration_file_waits_to_be_asked_for() {
    let (gateway, _node) = gateway("watch: 100ms");
    gateway.edit("paths: [/bob]", "paths: [/new]");
    // A rotation goes by, and still nobody has asked.
    let ca = fs::read(gateway.dir().join("ca.pem")).unwrap();
    fs::write(gateway.dir().join("ca.pem"), [b"# rotated\n", &*ca].concat()).unwrap();
    gateway.wait_metric("hive_gateway_tls_reload_total", OK, 1.0);
    assert_eq!((get(&gateway, "bob", "/bob"), get(&gateway, "bob", "/new")), (200, 404));
    gateway.reload_ok();
    assert_eq!(get(&gateway, "bob", "/new"), 200);
}

#[test]
fn a_watched_configuration_file_is_taken_by_itself() {
    let (gateway, _node) = gateway("watch: 100ms, watch_config: true");
    gateway.edit("paths: [/bob]", "paths: [/new]");
    wait_until("it is in use", || get(&gateway, "bob", "/new") == 200);
    // It is in use a moment before it is told.
    wait_until("it is told", || gateway.status()["last_reload"]["trigger"] == "config_file");
    gateway.wait_metric(CONFIG_RELOADS, OK, 1.0);
    // One that is broken for a moment is not told.
    gateway.edit("routes:", "routs:");
    gateway.edit("routs:", "routes:");
    gateway.edit("paths: [/new]", "paths: [/newer]");
    wait_until("it is in use", || get(&gateway, "bob", "/newer") == 200);
    assert_eq!(gateway.metric(CONFIG_RELOADS, FAILED), 0.0);
}

#[test]
fn sockets_and_threads_need_a_restart_and_the_rest_is_taken() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.plain = Some(String::new());
    setup.server = "threads: 2".into();
    let gateway = setup.start();
    gateway.edit(&format!("address: {}", gateway.address), "address: 127.0.0.1:1");
    gateway.edit("- name: plain", "- name: other\n    address: 127.0.0.1:2\n    protocol: http\n  - name: plain");
    gateway.edit(&format!("address: {}", gateway.admin), "address: 127.0.0.1:3");
    gateway.edit("threads: 2", "threads: 1");
    gateway.edit("paths: [/bob]", "paths: [/new]");
    let answer = gateway.reload_ok();
    let said = answer["warnings"].as_array().unwrap().clone();
    let expected =
        ["listener front: address change", "listener other: a new listener", "admin: address", "server: change"];
    for what in expected {
        assert!(said.iter().any(|w| w.as_str().unwrap().starts_with(what)), "{what}: {answer}");
        wait_until(what, || gateway.stderr().contains(what));
    }
    assert_eq!(answer["needs_upgrade"].as_array().unwrap().len(), 4);
    assert!(
        answer["needs_upgrade"]
            .as_array()
            .unwrap()
            .iter()
            .all(|what| what.as_str().unwrap().contains("needs an upgrade"))
    );
    assert_eq!(gateway.status()["needs_upgrade"], answer["needs_upgrade"]);
    assert_eq!(gateway.status()["listeners"][0]["address"], gateway.address.to_string());
    assert_eq!(get(&gateway, "bob", "/new"), 200);
}

#[test]
fn a_listener_that_is_gone_takes_no_more_requests() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let mut plain = crate::support::client::Connection::plain(gateway.plain).unwrap();
    let request = format!("GET {CARD} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    assert_eq!(plain.exchange(request.as_bytes()).unwrap().status, 200);
    let block = format!("  - name: plain\n    address: {}\n    protocol: http\n", gateway.plain);
    gateway.edit(&block, "");
    let said = gateway.reload_ok();
    assert!(said["warnings"][0].as_str().unwrap().starts_with("listener plain: it is gone"), "{said}");
    let answer = plain.exchange(request.as_bytes()).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    let mut new = crate::support::client::Connection::plain(gateway.plain).unwrap();
    assert!(new.exchange(request.as_bytes()).is_err());
    assert_eq!(get(&gateway, "bob", CARD), 200);
}

#[test]
fn a_removed_node_finishes_what_it_has_and_its_probes_end() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let old = Node::start_with(move |_, exchange| {
        let _ = gate.lock().unwrap().recv();
        exchange.answer(200, "", b"late")
    });
    let new = Node::start();
    let gateway = Setup::new(&[old.address]).start();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| gateway.client("alice").get(gateway.address, CARD).unwrap());
        old.wait_count(1);
        gateway.edit(&old.address.to_string(), &new.address.to_string());
        gateway.reload_ok();
        wait_until("the new node is up", || gateway.admin_get("/v1/ready").unwrap().status == 200);
        assert_eq!(get(&gateway, "alice", CARD), 200);
        assert_eq!((old.count(), new.count()), (1, 1));
        go.send(()).unwrap();
        assert_eq!(running.join().unwrap().body, b"late");
    });
    let probes = old.probes().len();
    let seen = new.probes().len();
    wait_until("the new node is probed again", || new.probes().len() >= seen + 2);
    assert_eq!(old.probes().len(), probes, "the old node is still probed");
    let node = format!("http://{}", old.address);
    wait_until("its series are gone", || !gateway.metrics().contains(&node));
}

#[test]
fn health_and_probes_of_unchanged_upstreams_go_on() {
    let (gateway, node) = gateway("");
    let probes = node.probes().len();
    for _ in 0..50 {
        gateway.reload_ok();
        assert_eq!(gateway.admin_get("/v1/ready").unwrap().status, 200);
    }
    assert!(node.probes().len() <= probes + 2, "{} probes", node.probes().len() - probes);
    // Of an upstream that did change the nodes keep what is known of them, and are not probed anew.
    for n in 0..20 {
        gateway.edit("interval: 2s", &format!("interval: 2s, unhealthy_after: {}", n % 5 + 2));
        gateway.reload_ok();
        gateway.edit(&format!("interval: 2s, unhealthy_after: {}", n % 5 + 2), "interval: 2s");
        gateway.reload_ok();
        assert_eq!(gateway.admin_get("/v1/ready").unwrap().status, 200);
    }
    assert!(node.probes().len() <= probes + 5, "{} probes", node.probes().len() - probes);
}

#[test]
fn with_a_reload_each_100_ms_no_request_fails() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[a.address, b.address], "health_check: { interval: 2s }");
    let gateway = setup.start();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (gateway, stop, done) = (&gateway, &stop, &done);
            scope.spawn(move || {
                let client = gateway.client("alice");
                if n == 0 {
                    let h2 = H2::connect(&client, gateway.address).unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(h2.get(CARD).unwrap().status, 200);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    return;
                }
                let mut connection = client.connect(gateway.address).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let request = b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}";
                    assert_eq!(connection.exchange(request).unwrap().status, 200);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let start = Instant::now();
        let both = format!("\"http://{}\", \"http://{}\"", a.address, b.address);
        let one = format!("\"http://{}\"", a.address);
        for n in 1..=30u32 {
            // Nodes come and go, limits and routes change.
            let (from, to) = if n % 2 == 1 { (&both, &one) } else { (&one, &both) };
            gateway.edit(from, to);
            gateway.edit("body: { limit: 16MiB }", "body: { limit: 15MiB }");
            gateway.reload_ok();
            gateway.edit("body: { limit: 15MiB }", "body: { limit: 16MiB }");
            wait_until("100 ms pass", || start.elapsed() > Duration::from_millis(100) * n);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let done = done.load(Ordering::Relaxed);
    println!("{done} requests, 30 reloads");
    assert!(done > 300, "{done}");
    assert_eq!(gateway.metric("hive_gateway_refusals_total", &[]), 0.0);
    assert!(a.count() > 0 && b.count() > 0);
}

#[test]
fn another_site_can_not_reload_and_the_admin_secret_rotates() {
    let (secret, new_secret) = ("0123456789abcdef0", "fedcba98765432100");
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    fs::write(setup.dir.path().join("admin"), secret).unwrap();
    setup.admin = ", bearer_secret_file: admin".into();
    setup.server = "watch: 100ms".into();
    let gateway = setup.start();
    let post = |secret: &str, more: &str| {
        gateway.admin_post("/v1/reload", &format!("Authorization: Bearer {secret}\r\n{more}")).status
    };
    assert_eq!(gateway.reload().status, 401);
    assert_eq!(post(secret, "Origin: https://evil.example\r\n"), 403);
    assert_eq!(post(secret, "Sec-Fetch-Site: cross-site\r\n"), 403);
    let rebound = format!("POST /v1/reload HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {secret}\r\n\r\n");
    let mut connection = crate::support::client::Connection::plain(gateway.admin).unwrap();
    assert_eq!(connection.exchange(rebound.as_bytes()).unwrap().status, 403);
    assert_eq!(post(secret, &format!("Origin: http://{}\r\n", gateway.admin)), 200);
    fs::write(gateway.dir().join("admin"), new_secret).unwrap();
    wait_until("the new secret is asked for", || post(new_secret, "") == 200);
    assert_eq!(post(secret, ""), 401);
}

#[test]
fn the_access_log_moves_and_is_opened_again() {
    let (gateway, _node) = gateway("");
    get(&gateway, "bob", "/one");
    gateway.wait_log(|l| l["path"] == "/one");
    gateway.edit("\nadmin:", "\naccess_log: { path: access.log }\nadmin:");
    gateway.reload_ok();
    get(&gateway, "bob", "/two");
    let read = |name: &str| fs::read_to_string(gateway.dir().join(name)).unwrap_or_default();
    wait_until("the line is in the file", || read("access.log").contains("/two"));
    fs::rename(gateway.dir().join("access.log"), gateway.dir().join("access.log.1")).unwrap();
    gateway.signal(Signal::SIGHUP);
    gateway.wait_metric(CONFIG_RELOADS, OK, 2.0);
    get(&gateway, "bob", "/three");
    wait_until("the line is in a new file", || read("access.log").contains("/three"));
    assert!(!read("access.log.1").contains("/three"));
    assert!(gateway.access_log().iter().all(|l| l["path"] != "/two"));
    assert_eq!(gateway.metric("hive_gateway_access_log_dropped_total", &[]), 0.0);
    // A target that can't be opened is a wrong configuration.
    gateway.edit("access.log", "../nowhere/access.log");
    assert_eq!(gateway.reload().status, 422);
    get(&gateway, "bob", "/four");
    wait_until("the line is in the old file", || read("access.log").contains("/four"));
}

#[test]
fn thousands_of_warnings_alike_are_a_few_lines_of_log_and_status() {
    const UNUSED: usize = 6000;
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.routes = "\n  - { name: bobs, paths: [/bob], methods: [GET], peers: [bob], upstream: hive }\n".into();
    let peers = (0..UNUSED).map(|n| format!("  - {{ name: unused-{n}, uri: \"spiffe://mesh.test/hive/u{n}\" }}\n"));
    setup.peers += &peers.collect::<String>();
    let gateway = setup.start();
    let told = || gateway.stderr().matches("no route names the peer").count();
    let more = |times| gateway.stderr().matches("(and 5996 more like this;").count() == times;
    wait_until("the start tells of them", || more(1));
    assert_eq!(told(), 5);
    let answer = gateway.reload_ok();
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 5, "{answer}");
    assert_eq!(gateway.status()["last_reload"]["warnings"], answer["warnings"]);
    wait_until("the reload tells of them", || more(2));
    assert_eq!(gateway.metric("hive_gateway_process_log_dropped_total", &[]), 0.0);
    // Errors too.
    gateway.edit("name: unused-", "name: UNUSED ");
    let answer = gateway.reload();
    let errors = answer.json()["errors"].as_array().unwrap().clone();
    assert_eq!((answer.status, errors.len()), (422, 5), "{errors:?}");
    assert!(errors[4]["message"].as_str().unwrap().contains("more like this"), "{errors:?}");
    assert_eq!(gateway.metric("hive_gateway_process_log_dropped_total", &[]), 0.0);
}
