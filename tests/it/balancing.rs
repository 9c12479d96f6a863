//! Which node gets what: shares, keys, groups.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const PROBES_OFF: &str = "health_check: { enabled: false }";

fn nodes(count: usize) -> Vec<Node> {
    (0..count).map(|_| Node::start()).collect()
}

fn gateway(nodes: &[Node], more: &str) -> Gateway {
    let mut setup = Setup::new(&[]);
    let addresses: Vec<_> = nodes.iter().map(|n| n.address).collect();
    setup.upstreams = upstream("hive", "http", &addresses, more);
    setup.start()
}

fn counts(nodes: &[Node]) -> Vec<usize> {
    nodes.iter().map(Node::count).collect()
}

fn call(connection: &mut Connection, method: &str, params: Value) -> Response {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let head = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n";
    connection.exchange(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap()
}

/// The node whose count has grown since.
fn met(nodes: &[Node], before: &[usize]) -> usize {
    let grown: Vec<_> = counts(nodes).iter().zip(before).map(|(now, was)| now - was).collect();
    assert_eq!(grown.iter().sum::<usize>(), 1, "{grown:?}");
    grown.iter().position(|g| *g == 1).unwrap()
}

#[test]
fn equal_load_is_spread_within_two_percent() {
    for balance in ["round_robin", "least_requests"] {
        let nodes = nodes(3);
        let gateway = gateway(&nodes, &format!("balance: {balance}, {PROBES_OFF}"));
        let mut connection = gateway.connect("alice");
        for _ in 0..600 {
            let answer = connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
            assert_eq!(answer.status, 200);
        }
        let counts = counts(&nodes);
        assert!(counts.iter().all(|c| (196..=204).contains(c)), "{balance}: {counts:?}");
    }
}

#[test]
fn one_slow_node_of_three_gets_its_fair_little() {
    let nodes = nodes(3);
    nodes[0].behave(|_, exchange| {
        // Slowness is the behaviour under test.
        std::thread::sleep(Duration::from_millis(200));
        exchange.answer(200, "", b"{}")
    });
    let gateway = gateway(&nodes, PROBES_OFF);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut connection = gateway.connect("alice");
                for _ in 0..60 {
                    connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
                }
            });
        }
    });
    let counts = counts(&nodes);
    // A third would be 120. It is not forgotten, and gets what it can do in the time.
    assert!((2..=60).contains(&counts[0]), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 360);
}

#[test]
fn a_task_s_calls_meet_the_same_node() {
    let nodes = nodes(4);
    let more = format!("balance: consistent_hash, hash_key: [task_id, context_id], {PROBES_OFF}");
    let gateway = gateway(&nodes, &more);
    let mut one = gateway.connect("alice");
    let mut used = HashSet::new();
    for n in 0..12 {
        let task = format!("task-{n}");
        let mut at = HashSet::new();
        for (method, params) in [
            ("message/send", json!({ "message": { "taskId": task, "contextId": format!("other-{n}"), "parts": [] } })),
            ("tasks/get", json!({ "id": task })),
            ("tasks/cancel", json!({ "id": task })),
            ("tasks/pushNotificationConfig/set", json!({ "taskId": task, "pushNotificationConfig": { "id": "x" } })),
            ("GetTask", json!({ "id": task })),
        ] {
            let before = counts(&nodes);
            assert_eq!(call(&mut one, method, params).status, 200);
            at.insert(met(&nodes, &before));
        }
        // Over HTTP/2 and another connection, too.
        let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
        let before = counts(&nodes);
        let body = json!({ "jsonrpc": "2.0", "id": 2, "method": "tasks/resubscribe", "params": { "id": task } });
        let request =
            H2::request("POST", "/api/a2a/jsonrpc").header("content-type", "application/json").body(()).unwrap();
        assert_eq!(h2.send(request, body.to_string().as_bytes()).unwrap().status, 200);
        at.insert(met(&nodes, &before));
        assert_eq!(at.len(), 1, "{task} met {at:?}");
        used.extend(at);
    }
    assert!(used.len() >= 3, "{used:?}");
    // Without a task the context counts.
    let at: HashSet<_> = (0..5)
        .map(|_| {
            let before = counts(&nodes);
            call(&mut one, "message/send", json!({ "message": { "contextId": "c", "parts": [] } }));
            met(&nodes, &before)
        })
        .collect();
    assert_eq!(at.len(), 1);
    // Without either, requests go around.
    let before = counts(&nodes);
    (0..8).for_each(|_| drop(call(&mut one, "message/send", json!({ "message": { "parts": [] } }))));
    assert!(counts(&nodes).iter().zip(&before).all(|(now, was)| now - was == 2), "{:?}", counts(&nodes));
}

#[test]
fn a_task_moves_while_its_node_is_gone_and_comes_back_with_it() {
    let nodes = nodes(3);
    let more = "balance: consistent_hash, hash_key: task_id, \
                health_check: { interval: 2s, unhealthy_after: 1, healthy_after: 1 }";
    let gateway = gateway(&nodes, more);
    wait_until("all have been probed", || gateway.metric("hive_gateway_upstream_node_up", &[]) == 3.0);
    let mut connection = gateway.connect("alice");
    let mut at = |task: usize| {
        let before = counts(&nodes);
        assert_eq!(call(&mut connection, "tasks/get", json!({ "id": format!("task-{task}") })).status, 200);
        met(&nodes, &before)
    };
    let before: Vec<_> = (0..30).map(&mut at).collect();
    nodes[1].set_health(503);
    gateway.wait_metric("hive_gateway_upstream_node_up", &[], 2.0);
    let without: Vec<_> = (0..30).map(&mut at).collect();
    assert!(before.contains(&1) && !without.contains(&1));
    assert!(before.iter().zip(&without).all(|(was, is)| *was == 1 || was == is), "{before:?} {without:?}");
    nodes[1].set_health(200);
    gateway.wait_metric("hive_gateway_upstream_node_up", &[], 3.0);
    wait_until("its tasks are back", || (0..30).map(&mut at).collect::<Vec<_>>() == before);
}

#[test]
fn peers_and_headers_are_keys_too() {
    let nodes = nodes(4);
    let gateway =
        gateway(&nodes, &format!("balance: consistent_hash, hash_key: [\"header:X-Tenant\", peer], {PROBES_OFF}"));
    let at = |name: &str, header: &str| {
        let before = counts(&nodes);
        let request = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n{header}\r\n");
        assert_eq!(gateway.connect(name).exchange(request.as_bytes()).unwrap().status, 200);
        met(&nodes, &before)
    };
    let names = ["alice", "bob", "carol", "dave", "erin", "frank"];
    let by_peer: Vec<_> = names.iter().map(|name| at(name, "")).collect();
    assert_eq!(by_peer, names.iter().map(|name| at(name, "")).collect::<Vec<_>>());
    assert!(by_peer.iter().collect::<HashSet<_>>().len() >= 2, "{by_peer:?}");
    let tenants: Vec<_> = (0..12).map(|n| at("alice", &format!("X-Tenant: tenant-{n}\r\n"))).collect();
    assert_eq!(tenants, (0..12).map(|n| at("bob", &format!("X-Tenant: tenant-{n}\r\n"))).collect::<Vec<_>>());
    assert!(tenants.iter().collect::<HashSet<_>>().len() >= 3, "{tenants:?}");
}

#[test]
fn another_priority_takes_over_and_gives_back() {
    let nodes = nodes(2);
    let mut setup = Setup::new(&[]);
    setup.upstreams = format!(
        "\n  - {{ name: hive, endpoints: [\"http://{}\", {{ url: \"http://{}\", priority: 1 }}], slow_start: 0s, \
         health_check: {{ interval: 2s, unhealthy_after: 1, healthy_after: 1 }} }}\n",
        nodes[0].address, nodes[1].address
    );
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    let mut ten = || {
        let before = counts(&nodes);
        for _ in 0..10 {
            let answer = connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
            assert_eq!(answer.status, 200);
        }
        counts(&nodes)[0] - before[0]
    };
    wait_until("both have been probed", || gateway.metric("hive_gateway_upstream_node_up", &[]) == 2.0);
    assert_eq!(ten(), 10);
    nodes[0].set_health(503);
    gateway.wait_metric("hive_gateway_upstream_node_up", &[], 1.0);
    wait_until("the other one takes all", || ten() == 0);
    nodes[0].set_health(200);
    gateway.wait_metric("hive_gateway_upstream_node_up", &[], 2.0);
    wait_until("the first one has all again", || ten() == 10);
}
