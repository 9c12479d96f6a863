//! What is published, and how everything else is refused.

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;

const REQUESTS: &str = "hive_gateway_http_requests_total";

fn gateway() -> (Gateway, Node) {
    let node = Node::start();
    (Setup::new(&[node.address]).start(), node)
}

/// The same bodiless request on both versions; both answers.
#[track_caller]
fn both(gateway: &Gateway, who: &str, method: &str, path: &str) -> [Response; 2] {
    let client = gateway.client(who);
    let mut h1 = client.connect(gateway.address).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    let first = h1.exchange(request.as_bytes()).unwrap();
    let h2 = H2::connect(&client, gateway.address).unwrap();
    [first, h2.send(H2::request(method, path).body(()).unwrap(), b"").unwrap()]
}

#[test]
fn a_path_that_no_route_names_is_404_in_small_json() {
    let (gateway, node) = gateway();
    for path in ["/", "/api/users", "/api/a2a/jsonrpc/", "/API/a2a/jsonrpc", "/.well-known", "/echoo"] {
        for answer in both(&gateway, "alice", "GET", path) {
            assert_eq!(answer.status, 404, "{path}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
            assert_eq!(answer.json()["error"], "not_found", "{path}");
            assert!(answer.json()["message"].is_string(), "{path}");
        }
    }
    assert_eq!(node.count(), 0);
    gateway.wait_metric(REQUESTS, &[("path", "unmatched"), ("code", "404"), ("method", "GET")], 12.0);
}

#[test]
fn another_method_is_405_with_allow() {
    let (gateway, node) = gateway();
    for answer in both(&gateway, "alice", "DELETE", "/.well-known/agent-card.json") {
        assert_eq!(answer.status, 405);
        let mut allow: Vec<_> = answer.header("allow").unwrap().split(", ").collect();
        allow.sort_unstable();
        assert_eq!(allow, ["GET", "HEAD"]);
        assert_eq!(answer.json()["error"], "method_not_allowed");
    }
    for answer in both(&gateway, "alice", "GET", "/api/a2a/jsonrpc") {
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
        assert_eq!(answer.json()["jsonrpc"], "2.0", "a JSON-RPC route refuses in its form");
        assert_eq!(answer.json()["error"]["code"], -32600);
    }
    assert_eq!(node.count(), 0);
}

#[test]
fn a_peer_that_the_route_does_not_name_is_403() {
    let (gateway, node) = gateway();
    for (who, path) in [("alice", "/bob"), ("carol", "/bob")] {
        for answer in both(&gateway, who, "GET", path) {
            assert_eq!(
                (answer.status, answer.json()["error"].as_str()),
                (403, Some("peer_not_allowed")),
                "{who} {path}"
            );
        }
    }
    for answer in both(&gateway, "carol", "POST", "/api/a2a/jsonrpc") {
        assert_eq!(answer.status, 403);
        assert_eq!(answer.json()["jsonrpc"], "2.0");
    }
    assert_eq!(node.count(), 0);
    for answer in both(&gateway, "bob", "GET", "/bob") {
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn a_valid_certificate_without_a_name_reaches_routes_for_any() {
    let (gateway, node) = gateway();
    for answer in both(&gateway, "nobody-in-particular", "GET", "/.well-known/agent-card.json") {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(node.count(), 2);
}

#[test]
fn head_works_where_get_does() {
    let (gateway, node) = gateway();
    for answer in both(&gateway, "alice", "HEAD", "/.well-known/agent-card.json") {
        assert_eq!(answer.status, 200);
        assert!(answer.body.is_empty());
    }
    assert!(node.requests().iter().all(|r| r.method() == "HEAD"));
    for answer in both(&gateway, "alice", "HEAD", "/nowhere") {
        assert_eq!((answer.status, answer.body.len()), (404, 0));
    }
}

#[test]
fn what_was_matched_is_byte_for_byte_what_the_node_gets() {
    let (gateway, node) = gateway();
    let path = "/.well-known/a%20b~c!$&'()*+,=:@?x=%2e%2E%2f&y=//..&z=%00";
    for answer in both(&gateway, "alice", "GET", path) {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(node.requests().iter().all(|r| r.target() == path), "{:?}", node.requests()[0].target());
}

#[test]
fn every_ambiguous_target_is_400() {
    let (gateway, node) = gateway();
    let targets = [
        "/.well-known/%2e%2e/x",
        "/.well-known/%2E",
        "/.well-known/a%2fb",
        "/.well-known/a%2Fb",
        "/.well-known/a%5cb",
        "/.well-known//x",
        "//.well-known/x",
        "/.well-known/./x",
        "/.well-known/../x",
        "/.well-known/..",
        "/echo;a=b",
        "/.well-known/a\\b",
        "/.well-known/a%00b",
        "/.well-known/x#y",
        "http://elsewhere.test/echo",
        "/.well-known/%zz",
        "/.well-known/%",
        "*",
    ];
    for target in targets {
        let mut connection = gateway.connect("alice");
        let request = format!("GET {target} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
        let answer = connection.exchange(request.as_bytes()).unwrap();
        assert_eq!(answer.status, 400, "{target}: {}", answer.text());
        assert_eq!(answer.json()["error"], "bad_request", "{target}");
    }
    assert_eq!(node.count(), 0);
}

#[test]
fn ambiguous_targets_are_400_on_http_2() {
    let (gateway, node) = gateway();
    for target in ["/.well-known/%2e%2e/x", "/.well-known//x", "/.well-known/../x", "/echo;a=b", "/.well-known/a%2fb"] {
        let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
        assert_eq!(h2.get(target).unwrap().status, 400, "{target}");
    }
    assert_eq!(node.count(), 0);
}

/// Refused by a 400, or by the connection's end where Pingora's own parser does not get as far as an answer.
#[test]
fn every_ambiguous_head_is_refused() {
    let (gateway, node) = gateway();
    let heads: [(&str, &[u8]); 17] = [
        ("no Host", b"GET /echo HTTP/1.1\r\n\r\n"),
        ("two Hosts", b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nHost: gateway.test\r\n\r\n"),
        ("two lengths", b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("length and chunked", b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("chunked and length", b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        ("odd coding", b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("coding twice", b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
        ("bare LF", b"GET /echo HTTP/1.1\nHost: gateway.test\n\n"),
        ("bare LF inside", b"GET /echo HTTP/1.1\r\nHost: gateway.test\nX-A: b\r\n\r\n"),
        ("folded line", b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-A: b\r\n c\r\n\r\n"),
        ("space before colon", b"GET /echo HTTP/1.1\r\nHost : gateway.test\r\n\r\n"),
        ("signed length", b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: +1\r\n\r\na"),
        ("odd Host", b"GET /echo HTTP/1.1\r\nHost: gateway.test/echo\r\n\r\n"),
        ("user in Host", b"GET /echo HTTP/1.1\r\nHost: a@gateway.test\r\n\r\n"),
        ("Connection takes Host", b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nConnection: host\r\n\r\n"),
        ("Connection takes a JWT", b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Hive-Federation-JWT: a\r\nConnection: x-hive-federation-jwt\r\n\r\n"),
        ("CONNECT", b"CONNECT gateway.test:443 HTTP/1.1\r\nHost: gateway.test:443\r\n\r\n"),
    ];
    for (what, head) in heads {
        let mut connection = gateway.connect("alice");
        connection.send(head).unwrap();
        match connection.response(false) {
            Ok(answer) => assert_eq!(answer.status, 400, "{what}: {}", answer.text()),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::UnexpectedEof, "{what}: {e}"),
        }
        connection.closed_after().unwrap_or_else(|e| panic!("{what}: the connection stays open: {e}"));
    }
    assert_eq!(node.count(), 0, "{:?}", node.requests().first().map(|r| r.text()));
}

#[test]
fn a_host_that_is_not_served_is_421() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.routes = "
  - { name: a, hosts: [gateway.test], paths: [/only], methods: [GET], peers: [alice, bob], upstream: hive }
"
    .into();
    let gateway = setup.start();
    assert_eq!(gateway.client("alice").get(gateway.address, "/only").unwrap().status, 200);
    let other = gateway.client("alice").sni(Some("other.test"));
    assert_eq!(other.get(gateway.address, "/only").unwrap().status, 421);
}

#[test]
fn a_host_is_the_same_in_capitals_and_with_its_port() {
    let (gateway, _node) = gateway();
    for host in ["GATEWAY.test".to_owned(), format!("gateway.test:{}", gateway.address.port())] {
        let mut connection = gateway.connect("alice");
        let answer = connection.exchange(format!("GET /echo HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{host}: {}", answer.text());
    }
}

#[test]
fn the_metric_says_the_configured_path() {
    let (gateway, _node) = gateway();
    for name in ["a", "b", "c"] {
        assert_eq!(gateway.client("alice").get(gateway.address, &format!("/.well-known/{name}")).unwrap().status, 200);
    }
    gateway.wait_metric(REQUESTS, &[("method", "GET"), ("path", "/.well-known/*"), ("code", "200")], 3.0);
    let labels = gateway.metrics().lines().find(|l| l.starts_with(REQUESTS)).unwrap().to_owned();
    assert_eq!(labels.matches('=').count(), 3, "exactly three labels, as dashboards have them: {labels}");
}

/// A JSON-RPC body to the A2A route; the answer.
#[track_caller]
fn call(gateway: &Gateway, body: &str) -> Response {
    let head = format!(
        "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    gateway.connect("alice").exchange(format!("{head}{body}").as_bytes()).unwrap()
}

#[test]
fn json_rpc_refusals_have_hives_codes_and_the_requests_id() {
    let (gateway, node) = gateway();
    for (body, status, code, id) in [
        ("{", 400, -32700, serde_json::Value::Null),
        (r#"{"jsonrpc":"2.0","id":7,"method":"a""#, 400, -32700, 7.into()),
        (r#"{"jsonrpc":"1.0","id":7,"method":"a"}"#, 400, -32600, 7.into()),
        (r#"{"jsonrpc":"2.0","id":"x","method":3}"#, 400, -32600, "x".into()),
        (r#"{"jsonrpc":"2.0","id":7,"method":"a","meth\u006fd":"b"}"#, 400, -32600, 7.into()),
        ("[]", 400, -32600, serde_json::Value::Null),
        (r#"[{"jsonrpc":"2.0","id":7,"method":"a"}]"#, 400, -32600, serde_json::Value::Null),
    ] {
        let answer = call(&gateway, body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        let json = answer.json();
        assert_eq!(json["error"]["code"], code, "{body}: {json}");
        assert!(json["id"] == id || json["id"].is_null(), "{body}: {json}");
    }
    assert_eq!(node.count(), 0);
    let answer = call(&gateway, r#"{"jsonrpc":"2.0","id":7,"method":"a"}"#);
    assert_eq!(answer.status, 200);
}

#[test]
fn a_json_rpc_method_off_the_list_is_403_with_its_id() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.routes = "
  - { name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: [alice, bob], upstream: hive, json_rpc: { methods: [message/send, \"tasks/*\"] } }
"
    .into();
    let gateway = setup.start();
    let refused = call(&gateway, r#"{"jsonrpc":"2.0","id":"q","method":"message/stream"}"#);
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &serde_json::json!(-32601)));
    assert_eq!(refused.json()["id"], "q");
    assert_eq!(node.count(), 0);
    assert_eq!(call(&gateway, r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get"}"#).status, 200);
    assert_eq!(call(&gateway, r#"{"jsonrpc":"2.0","id":1,"method":"message/\u0073end"}"#).status, 200);
}
