//! Nodes that DNS names, asked of a real server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::Value;

use crate::support::dns::{A, AAAA, Data, DnsServer, NXDOMAIN, SERVFAIL, SRV, Says};
use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::wait_until;

const NAME: &str = "hive.test";
const NODES: &str = "hive_gateway_upstream_discovered_nodes";
const ANSWERS: &str = "hive_gateway_upstream_discovery_total";
const OK: &[(&str, &str)] = &[("result", "ok")];
const FAILED: &[(&str, &str)] = &[("result", "failed")];

/// Nodes of one port on 127.0.0.2, 127.0.0.3, ...
fn nodes(count: u8) -> (u16, Vec<Node>) {
    for _ in 0..20 {
        let port = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port();
        let at = |n: u8| SocketAddr::from(([127, 0, 0, 2 + n], port));
        if (0..count).all(|n| TcpListener::bind(at(n)).is_ok()) {
            return (port, (0..count).map(|n| Node::start_on(at(n))).collect());
        }
    }
    panic!("no port that is free on all addresses");
}

/// `what` is the inside of `discovery`, without servers and times.
fn setup(server: &DnsServer, what: &str, more: &str) -> Setup {
    let mut setup = Setup::new(&[]);
    let times = "min_ttl: 100ms, max_ttl: 1h, timeout: 200ms";
    let what = what.replacen(" }", &format!(", servers: [\"{}\"], {times} }}", server.address), 1);
    setup.upstreams = format!(
        "\n  - {{ name: hive, discovery: {{ {what} }}, balance: round_robin, health_check: {{ enabled: false }}{more} }}\n"
    );
    setup
}

fn dns(port: u16) -> String {
    format!("dns: {{ name: {NAME}, port: {port} }}")
}

fn get(gateway: &Gateway) -> u16 {
    gateway.client("alice").get(gateway.address, "/echo").unwrap().status
}

fn hosts(gateway: &Gateway) -> Vec<String> {
    let status = gateway.status();
    let nodes = status["upstreams"][0]["nodes"].as_array().unwrap();
    let address = |n: &Value| n["address"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip().to_string();
    nodes.iter().map(address).collect()
}

fn wait_hosts(gateway: &Gateway, wanted: &[&str]) {
    wait_until("those are the nodes", || hosts(gateway) == wanted);
}

fn error(gateway: &Gateway) -> String {
    gateway.status()["upstreams"][0]["discovery"]["error"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn addresses_of_a_name_are_nodes_and_follow_it() {
    let server = DnsServer::start();
    let (port, nodes) = nodes(3);
    server.set_a(NAME, 0, &["127.0.0.3", "127.0.0.2"]);
    let gateway = setup(&server, &dns(port), "").start();
    assert_eq!(hosts(&gateway), ["127.0.0.2", "127.0.0.3"]);
    (0..10).for_each(|_| assert_eq!(get(&gateway), 200));
    assert_eq!((nodes[0].count(), nodes[1].count()), (5, 5));
    let line = gateway.wait_log(|l| l["path"] == "/echo");
    assert!(line["node"].as_str().unwrap().starts_with("http://127.0.0."), "{line}");
    server.set_a(NAME, 0, &["127.0.0.4", "127.0.0.3"]);
    wait_hosts(&gateway, &["127.0.0.3", "127.0.0.4"]);
    (0..10).for_each(|_| assert_eq!(get(&gateway), 200));
    assert_eq!((nodes[0].count(), nodes[2].count()), (5, 5));
    wait_until("the log says what changed", || {
        gateway.stderr().contains(&format!("2 nodes; new: 127.0.0.4:{port}; gone: 127.0.0.2:{port}"))
    });
}

#[test]
fn the_time_to_live_says_when_to_ask_again() {
    let server = DnsServer::start();
    let (port, _nodes) = nodes(1);
    server.set_a(NAME, 2, &["127.0.0.2"]);
    let gateway = setup(&server, &dns(port), "").start();
    // Times between questions from the n-th on.
    let gaps = |from: usize| -> Vec<Duration> {
        server.times(NAME, A)[from..].windows(2).map(|pair| pair[1] - pair[0]).collect()
    };
    wait_until("it is asked again", || server.asked(NAME, A) >= 2);
    assert!(gaps(0)[0] >= Duration::from_secs(2), "{:?}", gaps(0));
    // No shorter than the least: from now on ten times a second at most.
    server.set_a(NAME, 0, &["127.0.0.2"]);
    let before = server.asked(NAME, A);
    wait_until("some more", || server.asked(NAME, A) >= before + 6);
    assert!(gaps(before).iter().all(|gap| *gap >= Duration::from_millis(100)), "{:?}", gaps(before));
    // No longer than the most.
    server.set_a(NAME, 7200, &["127.0.0.2"]);
    gateway.edit("max_ttl: 1h", "max_ttl: 200ms");
    gateway.reload_ok();
    let before = server.asked(NAME, A);
    wait_until("some more", || server.asked(NAME, A) >= before + 3);
}

#[test]
fn what_is_no_answer_keeps_the_last_one() {
    let server = DnsServer::start();
    let (port, _nodes) = nodes(1);
    server.set_a(NAME, 0, &["127.0.0.2"]);
    let gateway = setup(&server, &dns(port), "").start();
    for (says, why) in [
        (Says::Code(SERVFAIL), "Server Failure"),
        (Says::Code(NXDOMAIN), "NXDOMAIN"),
        (Says::NoData, "has no A record"),
        (Says::Silence, "no server answers"),
        (Says::Garbage, "hive.test"),
        (Says::Records(0, vec![Data::Address(Ipv4Addr::UNSPECIFIED.into())]), "has no A record of use"),
    ] {
        let failed = gateway.metric(ANSWERS, FAILED);
        server.set(NAME, A, says.clone());
        wait_until("that is noticed", || gateway.metric(ANSWERS, FAILED) > failed);
        let said = error(&gateway);
        assert!(said.contains(why), "{says:?}: {said}");
        assert_eq!((hosts(&gateway), get(&gateway)), (vec!["127.0.0.2".to_owned()], 200), "{says:?}");
        wait_until("the log says so", || gateway.stderr().contains("the last nodes stay"));
        // All is well again.
        let good = gateway.metric(ANSWERS, OK);
        server.set_a(NAME, 0, &["127.0.0.2"]);
        wait_until("it answers again", || gateway.metric(ANSWERS, OK) > good);
        assert_eq!(error(&gateway), "");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_over_tcp() {
    let server = DnsServer::start();
    let (port, _nodes) = nodes(1);
    // 300 records; the first is the only one that there is.
    let many = (0..300u32).map(|n| Data::Address(IpAddr::V4(Ipv4Addr::from(0x7f00_0002 + n))));
    server.set(NAME, A, Says::OverTcpOnly(3600, many.collect()));
    let gateway = setup(&server, &dns(port), "").start();
    gateway.wait_metric(NODES, &[], 300.0);
    assert_eq!((hosts(&gateway).len(), server.asked_over_tcp(NAME)), (300, 1));
}

#[test]
fn addresses_of_the_family_that_is_asked_for() {
    let server = DnsServer::start();
    let v6 = Node::start_on("[::1]:0".parse().unwrap());
    let port = v6.address.port();
    let here = vec![Data::Address("::1".parse().unwrap())];
    server.set(NAME, AAAA, Says::Records(3600, here));
    // IPv6 if there is no IPv4.
    let gateway = setup(&server, &dns(port), "").start();
    assert_eq!((hosts(&gateway), get(&gateway)), (vec!["::1".to_owned()], 200));
    server.set_a(NAME, 3600, &["127.0.0.2"]);
    for (family, wanted) in [
        ("v4_preferred", &["127.0.0.2"][..]),
        ("v6_only", &["::1"]),
        ("v4_only", &["127.0.0.2"]),
        ("all", &["127.0.0.2", "::1"]),
    ] {
        let name = format!("name: {NAME}, lookup_family: {family}");
        let gateway = setup(&server, &dns(port).replace(&format!("name: {NAME}"), &name), "").start();
        assert_eq!(hosts(&gateway), wanted, "{family}");
    }
}

#[test]
fn srv_records_bring_ports_priorities_and_weights() {
    let server = DnsServer::start();
    let (one, two, spare) = (Node::start(), Node::start(), Node::start());
    let name = "_http._tcp.hive.test";
    let srv = |priority, weight, node: &Node, target: &str| Data::Srv {
        priority,
        weight,
        port: node.address.port(),
        target: target.into(),
    };
    let all =
        vec![srv(10, 300, &one, "a.hive.test"), srv(10, 100, &two, "b.hive.test"), srv(20, 5, &spare, "a.hive.test")];
    server.set(name, SRV, Says::Records(0, all));
    server.set_a("a.hive.test", 0, &["127.0.0.1"]);
    server.set_a("b.hive.test", 0, &["127.0.0.1"]);
    let gateway = setup(&server, &format!("srv: {{ name: {name} }}"), "").start();
    let status = gateway.status();
    let mut ranks: Vec<_> = status["upstreams"][0]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| (n["priority"].as_u64().unwrap(), n["weight"].as_u64().unwrap()))
        .collect();
    ranks.sort_unstable();
    assert_eq!(ranks, [(0, 33), (0, 100), (1, 5)]);
    let mut connection = gateway.connect("alice");
    for _ in 0..133 {
        connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    }
    assert_eq!((one.count(), two.count(), spare.count()), (100, 33, 0));
    // A target that does not exist is left out, one that cannot be asked for leaves all as it is.
    server.set("b.hive.test", A, Says::Code(SERVFAIL));
    wait_until("that is noticed", || error(&gateway).contains("b.hive.test"));
    assert_eq!(hosts(&gateway).len(), 3);
    server.set("b.hive.test", A, Says::Code(NXDOMAIN));
    gateway.wait_metric(NODES, &[], 2.0);
    // No service at all.
    server.set(name, SRV, Says::Records(0, vec![Data::Srv { priority: 0, weight: 0, port: 0, target: ".".into() }]));
    wait_until("that is noticed", || error(&gateway).contains("name no service"));
    assert_eq!(hosts(&gateway).len(), 2);
}

#[test]
fn a_gateway_whose_dns_is_down_starts_and_waits() {
    let server = DnsServer::start();
    let (port, _nodes) = nodes(1);
    server.set(NAME, A, Says::Silence);
    let gateway = setup(&server, &dns(port), "").start_unready();
    wait_until("it says why it is not ready", || {
        let ready = gateway.admin_get("/v1/ready").unwrap();
        let why = ready.json()["without_nodes"][0].as_str().unwrap_or_default().to_owned();
        ready.status == 503 && why.contains("hive: dns hive.test:") && why.contains("no server answers")
    });
    let answer = gateway.client("alice").get(gateway.address, "/echo").unwrap();
    assert_eq!((answer.status, &answer.json()["error"]), (503, &"no_healthy_upstream".into()));
    server.set_a(NAME, 3600, &["127.0.0.2"]);
    wait_until("it is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert_eq!(get(&gateway), 200);
}

#[test]
fn a_probe_names_the_host_that_was_asked_for() {
    let server = DnsServer::start();
    let (port, nodes) = nodes(1);
    server.set_a(NAME, 3600, &["127.0.0.2"]);
    let mut setup = setup(&server, &dns(port), "");
    setup.upstreams = setup.upstreams.replace("enabled: false", "interval: 2s");
    let _gateway = setup.start();
    assert_eq!(nodes[0].probes()[0].header("Host").unwrap(), format!("{NAME}:{port}"));
}
