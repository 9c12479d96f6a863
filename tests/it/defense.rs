//! Deny lists and request rules on the real gateway.

use std::fs;

use serde_json::json;

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const GET: &[u8] = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const REFUSED: &str = "hive_gateway_connections_refused_total";
const RULES: &str = "hive_gateway_request_rules_total";

/// With more lines of the listener.
fn setup(listener: &str) -> (Setup, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.listener = listener.into();
    (setup, node)
}

fn get(gateway: &Gateway, headers: &str) -> Response {
    let request = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n{headers}\r\n");
    gateway.connect("alice").exchange(request.as_bytes()).unwrap()
}

#[test]
fn a_denied_address_is_turned_away_before_tls() {
    let (mut setup, node) = setup("    deny: [127.0.0.0/8]\n");
    // Readiness is asked of the admin listener, which has no such list.
    setup.plain = Some("    deny: [127.0.0.0/8]\n    allow: [127.0.0.1]\n".into());
    let gateway = setup.start();
    assert!(gateway.client("alice").connect(gateway.address).is_err());
    let mut raw = Connection::plain(gateway.address).unwrap();
    assert!(raw.closed_after().is_ok(), "nothing was sent, and it is closed");
    assert!(gateway.metric(REFUSED, &[("listener", "front"), ("reason", "denied")]) >= 2.0);
    assert_eq!(gateway.metric("hive_gateway_tls_handshakes_total", &[("listener", "front")]), 0.0);
    let line = gateway.wait_log(|l| l["event"] == "connection_denied");
    assert_eq!((&line["client"], &line["listener"]), (&json!("127.0.0.1"), &json!("front")));
    let mut plain = Connection::plain(gateway.plain).unwrap();
    assert_eq!(plain.exchange(GET).unwrap().status, 200, "an exception from the list");
    assert_eq!(node.count(), 1);
}

#[test]
fn behind_a_trusted_proxy_the_clients_address_counts_and_the_proxy_stays() {
    let (setup, node) = setup("    trusted_proxies: [127.0.0.1]\n    deny: [203.0.113.0/24, \"2001:db8::/32\"]\n");
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    let mut ask = |client: &str| {
        let head = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Forwarded-For: {client}\r\n\r\n");
        connection.exchange(head.as_bytes()).unwrap()
    };
    assert_eq!(ask("198.51.100.1").status, 200);
    let refused = ask("203.0.113.9");
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json(), json!({ "error": "address_denied", "message": "This address is not served." }));
    assert_eq!((ask("2001:db8::7").status, ask("198.51.100.2").status), (403, 200), "the same connection");
    assert_eq!(node.count(), 2);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "address_denied")], 2.0);
    assert_eq!(gateway.wait_log(|l| l["refusal"] == "address_denied")["client"], "203.0.113.9");
}

#[test]
fn a_file_of_a_million_is_watched_and_ends_live_connections_at_their_next_request() {
    let (mut setup, node) = setup("    deny_file: deny.txt\n");
    setup.server = "watch: 100ms".into();
    let file = setup.dir.path().join("deny.txt");
    let mut million = String::from("# a feed\n");
    for n in 0..1_000_000_u32 {
        // 1.0.0.0 and on: not loopback.
        million += &format!("{}\n", std::net::Ipv4Addr::from_bits(0x0100_0000 + n));
    }
    fs::write(&file, &million).unwrap();
    let gateway = setup.start();
    let (mut h1, h2) = (gateway.connect("alice"), H2::connect(&gateway.client("alice"), gateway.address).unwrap());
    assert_eq!((h1.exchange(GET).unwrap().status, h2.get("/echo").unwrap().status), (200, 200));
    // A line that is wrong keeps the list that is in use.
    fs::write(&file, million.clone() + "127.0.0.1/8\n").unwrap();
    let answer = gateway.reload();
    assert_eq!(answer.status, 422);
    let said = answer.text();
    assert!(said.contains("listeners[0].deny_file") && said.contains("deny.txt:1000002: 127.0.0.1/8 has"), "{said}");
    assert_eq!(h1.exchange(GET).unwrap().status, 200);
    fs::write(&file, million + "127.0.0.0/8\n").unwrap();
    wait_until("new connections are turned away", || gateway.client("alice").connect(gateway.address).is_err());
    let last = h1.exchange(GET).unwrap();
    assert_eq!((last.status, &last.json()["error"]), (403, &json!("address_denied")));
    assert!(h1.closed_after().is_ok());
    assert_eq!(h2.get("/echo").unwrap().status, 403);
    h2.wait_ended();
    assert_eq!(node.count(), 3);
    // A file that was cut off lifts no bans; one that says that it is empty does.
    for (cut_off, why) in [
        ("", "the file is empty"),
        ("\n", "nobody is listed"),
        ("# a feed\n", "nobody is listed"),
        ("127.0.0.0/8\n192.0.2.1", "deny.txt:2: the last line has no end"),
        ("# networks: 3\n192.0.2.1\n", "deny.txt:1: 3 networks are announced, and there are 1"),
    ] {
        fs::write(&file, cut_off).unwrap();
        let answer = gateway.reload();
        assert!(answer.status == 422 && answer.text().contains(why), "{}", answer.text());
        assert!(gateway.client("alice").connect(gateway.address).is_err());
    }
    fs::write(&file, "# nobody\n").unwrap();
    wait_until("they are let in again", || gateway.client("alice").get(gateway.address, "/echo").is_ok());
    let said = "listener front: 0 networks are denied now, and 1000001 were before; is the list whole?";
    wait_until("it is told that the list shrank", || gateway.stderr().contains(said));
}

#[test]
fn user_agents_are_blocked_under_the_older_gateways_code() {
    let (setup, node) = setup("    request_rules: [ { name: scanners, user_agent: [sqlmap, Nikto] } ]\n");
    let gateway = setup.start();
    assert_eq!(get(&gateway, "User-Agent: curl/8\r\n").status, 200);
    let refused = get(&gateway, "User-Agent: SQLMAP/1.7\r\n");
    assert_eq!((refused.status, &refused.json()["error"]), (403, &json!("user_agent_blocked")));
    assert_eq!(node.count(), 1);
    gateway.wait_metric(RULES, &[("rule", "listener/front/scanners"), ("action", "deny")], 1.0);
    let line = gateway.wait_log(|l| l["status"] == 403);
    assert_eq!(
        (&line["refusal"], &line["request_rule"]),
        (&json!("user_agent_blocked"), &json!("listener/front/scanners"))
    );
    let unknown = b"GET /wp-admin HTTP/1.1\r\nHost: gateway.test\r\nUser-Agent: nikto\r\n\r\n";
    assert_eq!(gateway.connect("alice").exchange(unknown).unwrap().status, 403, "also where there is no route");
}

#[test]
fn a_routes_rules_are_its_own_and_sizes_have_their_codes() {
    let (mut setup, node) = setup("");
    setup.routes = r#"
  - name: echo
    paths: [/echo, "/echo/*"]
    methods: [GET]
    peers: any
    upstream: hive
    request_rules:
      - { name: long-uri, max_uri_bytes: 100B }
      - { name: many, max_headers: 5 }
      - { name: large, max_header_bytes: 200B }
      - { name: admin, path: "^/echo/admin(/|$)" }
      - { name: debug, query: "(^|&)debug=", action: log }
      - { name: odd, header: { name: X-Odd, matches: '^[^ -~]' } }
  - { name: other, paths: [/other], methods: [GET], peers: any, upstream: hive }
"#
    .into();
    let gateway = setup.start();
    let ask = |target: &str, headers: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: gateway.test\r\n{headers}\r\n");
        let answer = gateway.connect("alice").exchange(head.as_bytes()).unwrap();
        let code = if answer.status == 200 { "".into() } else { answer.json()["error"].as_str().unwrap().to_owned() };
        (answer.status, code)
    };
    let long = format!("/echo?{}", "a".repeat(100));
    assert_eq!(ask(&long, ""), (414, "uri_too_long".into()));
    assert_eq!(ask(&long.replace("echo", "other"), ""), (200, "".into()), "another route");
    assert_eq!(ask("/echo", "A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\n"), (200, "".into()), "five with Host");
    assert_eq!(ask("/echo", "A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\n"), (431, "header_too_large".into()));
    assert_eq!(ask("/echo", &format!("A: {}\r\n", "a".repeat(201))), (431, "header_too_large".into()));
    assert_eq!(ask("/echo/admin", ""), (403, "request_denied".into()));
    assert_eq!((ask("/echo/administrator", ""), ask("/echo?debug=1", "")), ((200, "".into()), (200, "".into())));
    gateway.wait_metric(RULES, &[("rule", "route/echo/debug"), ("action", "log")], 1.0);
    let line = gateway.wait_log(|l| l["request_rule"] == "route/echo/debug");
    assert_eq!((&line["status"], line.get("refusal")), (&json!(200), None));
    let odd = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Odd: \xffa\r\n\r\n";
    assert_eq!(gateway.connect("alice").exchange(odd).unwrap().status, 403);
    assert_eq!(node.count(), 4);
}

#[cfg(not(feature = "waf"))]
#[test]
fn a_build_without_the_firewall_says_so() {
    let (setup, _node) = setup("    waf: { mode: blocking, rules: [a.conf] }\n");
    let (errors, _) = setup.check();
    assert!(
        errors.contains("listeners[0].waf: this build has no web application firewall; leave the key out"),
        "{errors}"
    );
}
