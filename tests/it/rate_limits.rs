//! Rate limits on the real gateway: who is counted by what, what the refusal says, and what a dry run leaves alone.

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::tokens;

const DECISIONS: &str = "hive_gateway_rate_limit_decisions_total";

/// The usual routes; `a2a` and `echo` with these limits.
fn gateway(a2a: &str, echo: &str) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.routes = format!(
        "
  - {{ name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: [alice, bob], upstream: hive, json_rpc: {{ batch: 20 }},
      rate_limits: [ {a2a} ] }}
  - {{ name: echo, paths: [/echo], methods: [GET], peers: any, upstream: hive, rate_limits: [ {echo} ] }}
"
    );
    (setup.start(), node)
}

#[track_caller]
fn call(gateway: &Gateway, who: &str, body: &str) -> Response {
    let request = format!(
        "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    gateway.connect(who).exchange(request.as_bytes()).unwrap()
}

fn method(name: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": 7, "method": name }).to_string()
}

#[track_caller]
fn get(gateway: &Gateway, who: &str) -> Response {
    gateway.client(who).get(gateway.address, "/echo").unwrap()
}

fn number(response: &Response, header: &str) -> u64 {
    response.header(header).unwrap_or_else(|| panic!("no {header}")).parse().unwrap()
}

#[test]
fn a_peer_beyond_its_limit_is_answered_as_hive_does_and_another_is_not() {
    let (gateway, node) = gateway("{ per: peer, rate: 30/h, burst: 2 }", "");
    let send = || call(&gateway, "alice", &method("message/send"));
    assert_eq!((send().status, send().status), (200, 200));
    let refused = send();
    assert_eq!(refused.status, 429);
    assert_eq!((number(&refused, "x-ratelimit-limit"), number(&refused, "x-ratelimit-remaining")), (30, 0));
    let after = number(&refused, "retry-after");
    assert!((110..=120).contains(&after), "a call each two minutes, but Retry-After is {after}");
    assert_eq!(
        refused.json(),
        json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32005, "message": "Too many requests.",
            "data": { "retryAfterSeconds": after, "limit": 30 } } })
    );
    assert_eq!(call(&gateway, "bob", &method("message/send")).status, 200);
    assert_eq!(node.count(), 3);
    let line = gateway.wait_log(|l| l["status"] == 429);
    assert_eq!((&line["refusal"], &line["rate_limit"]), (&json!("rate_limited"), &json!("route/a2a/peer")));
    gateway.wait_metric(DECISIONS, &[("limit", "route/a2a/peer"), ("decision", "admitted")], 3.0);
    gateway.wait_metric(DECISIONS, &[("limit", "route/a2a/peer"), ("decision", "refused")], 1.0);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "rate_limited")], 1.0);
}

#[test]
fn off_the_json_rpc_routes_the_refusal_is_small_json() {
    let (gateway, node) = gateway("", "{ per: address, rate: 1/h }");
    assert_eq!(get(&gateway, "alice").status, 200);
    let client = gateway.client("bob");
    let h2 = H2::connect(&client, gateway.address).unwrap();
    for refused in [get(&gateway, "bob"), h2.get("/echo").unwrap()] {
        assert_eq!(refused.status, 429, "one address, whoever it is");
        assert_eq!(refused.json(), json!({ "error": "rate_limited", "message": "Too many requests." }));
        assert_eq!((number(&refused, "x-ratelimit-limit"), number(&refused, "retry-after")), (1, 3600));
    }
    assert_eq!(node.count(), 1);
}

#[test]
fn malformed_and_misdirected_requests_count_against_the_listeners_limit_and_end_the_connection() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.listener = "    rate_limits: [ { per: address, rate: 1/h, burst: 40 } ]\n".into();
    let gateway = setup.start();
    let bad: &[u8] = b"GET /echo//x HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
    for _ in 0..4 {
        assert_eq!(gateway.connect("alice").exchange(bad).unwrap().status, 400);
    }
    let elsewhere: &[u8] = b"GET /echo HTTP/1.1\r\nHost: other.test\r\n\r\n";
    for _ in 0..4 {
        assert_eq!(gateway.connect("alice").exchange(elsewhere).unwrap().status, 421);
    }
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    for _ in 0..32 {
        assert_eq!(h2.get("/echo//x").unwrap().status, 400);
    }
    h2.wait_ended();
    assert_eq!(get(&gateway, "bob").status, 429, "all forty are used up");
}

#[test]
fn strangers_are_counted_one_by_one() {
    let (gateway, _node) = gateway("", "{ per: peer, rate: 1/h }");
    for who in ["carol", "dave"] {
        assert_eq!((get(&gateway, who).status, get(&gateway, who).status), (200, 429), "{who}");
    }
}

#[test]
fn methods_are_counted_each_by_itself_and_the_refusal_has_the_id() {
    let (gateway, node) = gateway("{ per: [peer, method], rate: 1/h, burst: 2 }", "");
    for _ in 0..2 {
        assert_eq!(call(&gateway, "alice", &method("tasks/get")).status, 200);
    }
    let escaped = r#"{"jsonrpc":"2.0","id":"x","method":"tasks\/g\u0065t"}"#;
    let refused = call(&gateway, "alice", escaped);
    assert_eq!(refused.status, 429, "another spelling is the same method");
    assert_eq!(refused.json()["id"], "x");
    assert_eq!(call(&gateway, "alice", &method("tasks/list")).status, 200);
    assert_eq!(call(&gateway, "bob", &method("tasks/get")).status, 200);
    assert_eq!(node.count(), 4);
}

#[test]
fn a_batch_counts_as_its_calls() {
    let limits = "{ per: peer, rate: 10/h }, { per: method, rate: 4/h }";
    let (gateway, node) = gateway(limits, "");
    let batch = |names: &[&str]| {
        let calls: Vec<Value> = names.iter().map(|n| serde_json::from_str(&method(n)).unwrap()).collect();
        Value::from(calls).to_string()
    };
    assert_eq!(call(&gateway, "alice", &batch(&["a", "b", "a", "b", "a"])).status, 200);
    let refused = call(&gateway, "bob", &batch(&["a", "b", "a"]));
    assert_eq!(refused.status, 429, "two more calls of a");
    assert_eq!(number(&refused, "x-ratelimit-remaining"), 1);
    assert_eq!(refused.json()["id"], Value::Null, "it is the batch that is refused, and none of its calls");
    let line = gateway.wait_log(|l| l["status"] == 429);
    assert_eq!(line["rate_limit"], "route/a2a/method");
    assert_eq!(call(&gateway, "alice", &batch(&["c", "d", "e", "f"])).status, 200);
    assert_eq!(call(&gateway, "alice", &batch(&["g", "h"])).status, 429, "the tenth and eleventh call of alice");
    assert_eq!(node.count(), 2);
}

#[test]
fn a_refused_batch_takes_nothing_from_the_limits_of_its_calls() {
    let (gateway, _node) = gateway("{ per: peer, rate: 9/h }, { per: [peer, method], rate: 4/h }", "");
    let status = |body: &str| call(&gateway, "alice", body).status;
    for _ in 0..4 {
        assert_eq!(status(&method("tasks/get")), 200);
    }
    let batch = format!("[{},{},{}]", method("tasks/get"), method("m7"), method("m7"));
    assert_eq!(status(&batch), 429, "the fifth tasks/get");
    for _ in 0..4 {
        assert_eq!(status(&method("m7")), 200);
    }
    let refused = call(&gateway, "alice", &method("x"));
    assert_eq!(refused.status, 429, "eight calls, and the batch as one request");
    gateway.wait_log(|l| l["rate_limit"] == "route/a2a/peer");
}

#[test]
fn a_dry_run_counts_and_logs_and_refuses_nobody() {
    let (gateway, node) = gateway("", "{ per: peer, rate: 1/h, enforce: false }");
    for _ in 0..3 {
        assert_eq!(get(&gateway, "alice").status, 200);
    }
    assert_eq!(node.count(), 3);
    gateway.wait_metric(DECISIONS, &[("limit", "route/echo/peer"), ("decision", "would_refuse")], 2.0);
    gateway.wait_metric(DECISIONS, &[("decision", "refused")], 0.0);
    let line = gateway.wait_log(|l| l["rate_limit"] == "route/echo/peer");
    assert_eq!((&line["status"], line.get("refusal")), (&json!(200), None));
}

#[test]
fn a_listeners_limit_holds_on_all_routes_and_beside_them() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.listener = "    rate_limits: [ { per: [address, sni], rate: 1/h, burst: 3 } ]\n".into();
    setup.top = "hive: { rate_limited_code: -32029 }".into();
    let gateway = setup.start();
    assert_eq!(get(&gateway, "alice").status, 200);
    assert_eq!(gateway.client("alice").get(gateway.address, "/nowhere").unwrap().status, 404);
    assert_eq!(call(&gateway, "bob", "{}").status, 403);
    assert_eq!(get(&gateway, "alice").status, 429);
    assert_eq!(gateway.client("alice").get(gateway.address, "/nowhere").unwrap().status, 429);
    let refused = call(&gateway, "alice", "{}");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!(-32029)));
    let same = gateway.client("alice").sni(Some("GATEWAY.test")).get(gateway.address, "/echo").unwrap();
    assert_eq!(same.status, 429, "another spelling is the same name");
    let other = gateway.client("alice").sni(Some("other.test")).get(gateway.address, "/echo").unwrap();
    assert_eq!(other.status, 200, "another name has a quota of its own");
}

#[test]
fn addresses_behind_a_trusted_proxy_are_told_apart_and_an_ipv6_network_is_one() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.listener = "    trusted_proxies: [127.0.0.1]\n    rate_limits: [ { per: address, rate: 1/h } ]\n".into();
    setup.server = "rate_limit_ipv6_prefix: 56".into();
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    let mut from = |address: &str| {
        let request = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Forwarded-For: {address}\r\n\r\n");
        connection.exchange(request.as_bytes()).unwrap().status
    };
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8:0:100::1", "2001:db8:0:200::1"] {
        assert_eq!((from(address), from(address)), (200, 429), "{address}");
    }
    assert_eq!(from("2001:db8:0:1ff:ffff::9"), 429, "the same network of 56 bits");
    assert_eq!(from("::ffff:192.0.2.1"), 429, "the same address in IPv6's clothes");
}

#[test]
fn a_header_can_be_counted_by() {
    let (gateway, _node) = gateway("", r#"{ per: "header:X-Hive-Public-A2A-Key", rate: 1/h }"#);
    let with = |key: &str| {
        let request = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n{key}\r\n");
        gateway.connect("alice").exchange(request.as_bytes()).unwrap().status
    };
    for key in ["", "X-Hive-Public-A2A-Key: one\r\n", "x-hive-public-a2a-key: two\r\n"] {
        assert_eq!((with(key), with(key)), (200, 429), "{key}");
    }
}

#[test]
fn issuers_of_tokens_are_counted_and_bad_tokens_count_against_their_sender() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    std::fs::write(setup.dir.path().join("secret"), tokens::SECRET).unwrap();
    let audience = "https://gateway.test";
    setup.top =
        format!("hive: {{ federation: {{ jwt: verify, audience: \"{audience}\", shared_secret_file: secret }} }}");
    setup.routes = "
  - { name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: any, upstream: hive, json_rpc: {},
      rate_limits: [ { per: issuer, rate: 2/h }, { per: peer, rate: 4/h } ] }
  - { name: echo, paths: [/echo], methods: [GET], peers: any, upstream: hive }
"
    .into();
    setup.listener = "    rate_limits: [ { per: [peer, issuer], rate: 1/h } ]\n".into();
    let gateway = setup.start();
    let send = |who: &str, token: &str| {
        let body = method("message/send");
        let head = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n";
        let length = body.len();
        let request = format!("{head}X-Hive-Federation-JWT: {token}\r\nContent-Length: {length}\r\n\r\n{body}");
        gateway.connect(who).exchange(request.as_bytes()).unwrap().status
    };
    let token = |jti: &str| tokens::hs256(&tokens::shared_claims(audience, jti));
    assert_eq!((send("alice", &token("1")), send("bob", &token("2"))), (200, 200));
    assert_eq!(send("dave", &token("3")), 429, "the issuer's third");
    assert_eq!(gateway.wait_log(|l| l["status"] == 429)["rate_limit"], "route/a2a/issuer");
    assert_eq!(send("bob", &token("4")), 429, "the listener's limit, on any route");
    gateway.wait_log(|l| l["rate_limit"] == "listener/front/peer+issuer");
    assert_eq!(
        (get(&gateway, "bob").status, get(&gateway, "bob").status),
        (200, 429),
        "those without a token together"
    );
    for _ in 0..4 {
        assert_eq!(send("carol", "a.b.c"), 401);
    }
    assert_eq!(send("carol", "a.b.c"), 429);
    assert_eq!(node.count(), 3);
}

#[test]
fn a_reload_forgets_nothing_and_takes_the_new_rate() {
    let (gateway, _node) = gateway("", "{ per: peer, rate: 2/h, burst: 1 }");
    assert_eq!((get(&gateway, "alice").status, get(&gateway, "alice").status), (200, 429));
    gateway.edit("server: {", "server: { body_memory: 64MiB,");
    gateway.reload_ok();
    assert_eq!(get(&gateway, "alice").status, 429);
    gateway.edit("burst: 1 }", "burst: 2 }");
    gateway.reload_ok();
    assert_eq!((get(&gateway, "alice").status, get(&gateway, "alice").status), (200, 429), "one more at once");
}

#[test]
fn what_was_used_up_comes_back_with_time() {
    let (gateway, _node) = gateway("", "{ per: peer, rate: 2/s, burst: 1 }");
    assert_eq!(get(&gateway, "alice").status, 200);
    let mut refused = 0;
    crate::support::wait_until("the next request passes", || match get(&gateway, "alice").status {
        200 => true,
        429 => {
            refused += 1;
            false
        }
        other => panic!("{other}"),
    });
    assert!(refused > 0, "half a second has to pass");
}
