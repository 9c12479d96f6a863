//! The admin API as its OpenAPI document describes it, against a gateway that has seen things.

use serde_json::{Value, json};

use crate::support::certs::{Pki, client_leaf};
use crate::support::client::{Client, Connection, Response};
use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::wait_until;

fn document(gateway: &Gateway) -> Value {
    gateway.admin_get("/v1/openapi.json").unwrap().json()
}

/// Whether a body is what the document says of this answer.
#[track_caller]
fn fits(document: &Value, method: &str, path: &str, answer: &Response) {
    let operation = &document["paths"][path][method.to_lowercase()];
    let described = &operation["responses"][answer.status.to_string()];
    assert!(described.is_object(), "{method} {path}: {} is not described", answer.status);
    let reference = &described["content"]["application/json"]["schema"]["$ref"];
    let schema = json!({ "$ref": reference, "components": document["components"] });
    let validator = jsonschema::options().offline().build(&schema).unwrap();
    let body = answer.json();
    let wrong: Vec<_> = validator.iter_errors(&body).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(wrong.is_empty(), "{method} {path}: {wrong:#?}\n{body:#}");
}

/// Whether the document describes this answer of a gateway.
pub fn fits_the_document(gateway: &Gateway, method: &str, path: &str) {
    fits(&document(gateway), method, path, &gateway.admin_ask(method, path));
}

/// A gateway with a peer that calls, one that is refused, a stranger whose handshake fails, a certificate and a list.
fn seen_things(node: &Node) -> Gateway {
    let mut setup = Setup::new(&[node.address]);
    setup.server = "state_dir: state".into();
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    let gateway = setup.start();
    let get = |who: &str, path: &str| gateway.client(who).get(gateway.address, path).unwrap().status;
    assert_eq!(
        (get("alice", "/echo"), get("bob", "/none"), get("bob", "/none"), get("alice", "/bob")),
        (200, 404, 404, 403)
    );
    let stranger = Pki::new("Elsewhere").leaf(&client_leaf("mallory", "spiffe://else.test/mallory"));
    let _ = Client::new(gateway.pki(), Some(stranger)).get(gateway.address, "/echo");
    gateway
}

#[test]
fn what_the_api_answers_is_what_its_document_says() {
    let node = Node::start();
    let gateway = seen_things(&node);
    wait_until("peers and handshakes are seen", || {
        let status = gateway.status();
        status["peers"].as_array().unwrap().len() == 2 && !status["failed_handshakes"].as_array().unwrap().is_empty()
    });
    let document = document(&gateway);
    assert_eq!(document["openapi"], "3.1.0");
    let drain = format!("upstream=hive&node=http://{}", node.address);
    for (method, path, query, status) in [
        ("GET", "/v1/health", "", 200),
        ("GET", "/v1/ready", "", 200),
        ("GET", "/v1/status", "", 200),
        ("POST", "/v1/reload", "", 200),
        ("POST", "/v1/maintenance", "?route=a2a&retry_after=5m&persist=true", 200),
        ("POST", "/v1/maintenance", "", 200),
        ("POST", "/v1/maintenance", "?route=none", 404),
        ("POST", "/v1/maintenance", "?fleet=true", 409),
        ("POST", "/v1/maintenance", "?x=y", 400),
        ("POST", "/v1/drain", &format!("?{drain}"), 200),
        ("GET", "/v1/status", "", 200),
        ("DELETE", "/v1/drain", &format!("?{drain}"), 200),
        ("DELETE", "/v1/maintenance", "", 200),
        ("DELETE", "/v1/maintenance", "?fleet=true", 409),
        ("GET", "/v1/log-level", "", 200),
        ("POST", "/v1/log-level", "?filter=info", 200),
        ("POST", "/v1/log-level", "?filter=loud", 400),
        ("POST", "/v1/log-level", "?filter=pingora_core=trace,pingora_proxy=trace", 400),
    ] {
        let answer = gateway.admin_ask(method, &format!("{path}{query}"));
        assert_eq!(answer.status, status, "{method} {path}{query}: {}", answer.text());
        fits(&document, method, path, &answer);
    }
    gateway.edit("upstream: hive", "upstream: hvie");
    let answer = gateway.reload();
    assert_eq!(answer.status, 422);
    fits(&document, "POST", "/v1/reload", &answer);
    fits(&document, "GET", "/v1/status", &gateway.admin_get("/v1/status").unwrap());
    node.kill();
    wait_until("not ready", || gateway.admin_get("/v1/ready").unwrap().status == 503);
    fits(&document, "GET", "/v1/ready", &gateway.admin_get("/v1/ready").unwrap());
}

#[test]
fn the_status_tells_who_called_who_was_refused_and_whose_handshake_failed() {
    let node = Node::start();
    let gateway = seen_things(&node);
    wait_until("the counters were looked at", || {
        let status = gateway.status();
        let all = status["peers"].as_array().unwrap().iter().filter(|p| p["requests"] == 2).count() == 2;
        all && status["refusals"]["by_code"][0]["total"] == 2
    });
    let status = gateway.status();
    let peer = |name: &str| status["peers"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone();
    assert_eq!((peer("alice")["requests"].as_u64(), peer("bob")["requests"].as_u64()), (Some(2), Some(2)));
    let (seen, now) = (peer("alice")["last_seen"].as_i64().unwrap(), status["time"].as_i64().unwrap());
    assert!((0..60).contains(&(now - seen)), "{seen} {now}");
    assert!(peer("alice")["requests_per_second"].as_f64().unwrap() > 0.0);
    let refused = |code: &str| {
        let last = status["refusals"]["last"].as_array().unwrap();
        last.iter().find(|r| r["code"] == code).unwrap_or_else(|| panic!("{status:#}")).clone()
    };
    let not_found = refused("not_found");
    assert_eq!(
        (&not_found["count"], &not_found["path"], &not_found["peer"]),
        (&json!(2), &json!("/none"), &json!("bob"))
    );
    assert_eq!((&not_found["client"], &not_found["status"]), (&json!("127.0.0.1"), &json!(404)));
    assert_eq!(refused("peer_not_allowed")["route"], "bobs");
    let kinds = status["refusals"]["by_code"].as_array().unwrap();
    assert_eq!((&kinds[0]["code"], &kinds[0]["total"]), (&json!("not_found"), &json!(2)));
    let failed = status["failed_handshakes"].as_array().unwrap().iter().find(|h| h["result"] != "aborted").unwrap();
    assert!(failed["subject"].as_str().unwrap().contains("mallory"), "{failed}");
    assert_eq!(failed["sni"], "gateway.test");
    let certificate = &status["listeners"][0]["certificates"][0];
    let days = (certificate["not_after"].as_i64().unwrap() - now).div_euclid(24 * 3600);
    assert!((days - certificate["days_left"].as_i64().unwrap()).abs() <= 1, "{certificate}");
    let steps = status["traffic"]["requests_per_second"].as_array().unwrap();
    assert!(steps.iter().any(|n| n.as_f64().unwrap() > 0.0), "{steps:?}");
}

#[test]
fn the_log_s_level_changes_while_the_gateway_runs() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let set = |filter: &str| gateway.admin_ask("POST", &format!("/v1/log-level?filter={filter}"));
    assert!(gateway.admin_get("/v1/log-level").unwrap().json()["filter"].as_str().unwrap().starts_with("info,"));
    assert_eq!(set("error").status, 200);
    let drain = format!("/v1/drain?upstream=hive&node=http://{}", node.address);
    assert_eq!(gateway.admin_ask("POST", &drain).status, 200);
    let answer = set("info,hive_gateway::upstream=debug");
    assert!(answer.json()["filter"].as_str().unwrap().ends_with("hive_gateway::upstream=debug"), "{}", answer.text());
    assert_eq!(gateway.admin_ask("DELETE", &drain).status, 200);
    wait_until("it is told again", || gateway.stderr().contains("is returned"));
    let said = gateway.stderr();
    assert!(!said.contains("is drained") && said.contains("the log's filter is now"), "{said}");
}

#[test]
fn a_page_that_has_had_its_name_pointed_here_can_not_read_either() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let get = |path: &str, host: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        Connection::plain(gateway.admin).unwrap().exchange(head.as_bytes()).unwrap().status
    };
    for path in ["/", "/v1/status", "/v1/openapi.json", "/v1/log-level"] {
        assert_eq!((get(path, "evil.example"), get(path, "localhost")), (403, 200), "{path}");
    }
    // Probes and scrapers call it by any name.
    for path in ["/v1/health", "/v1/ready", "/v1/metrics"] {
        assert_eq!(get(path, "gateway.internal"), 200, "{path}");
    }
}

#[test]
fn another_site_s_page_can_change_nothing() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for (method, target) in [
        ("POST", "/v1/maintenance"),
        ("DELETE", "/v1/drain?upstream=hive&node=x"),
        ("POST", "/v1/log-level?filter=off"),
    ] {
        for line in ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Origin: null"] {
            let head =
                format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n{line}\r\nConnection: close\r\n\r\n", gateway.admin);
            let answer = Connection::plain(gateway.admin).unwrap().exchange(head.as_bytes()).unwrap();
            assert_eq!((answer.status, answer.json()["error"].as_str()), (403, Some("cross_site_request")), "{line}");
        }
    }
    assert_eq!(gateway.status()["orders"], json!([]));
}

#[test]
fn without_the_secret_nothing_changes_and_the_page_alone_is_shown() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.admin = ", bearer_secret: 0123456789abcdef0123456789abcdef".into();
    let gateway = setup.start();
    for (method, target) in [
        ("GET", "/v1/status"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/v1/log-level"),
        ("POST", "/v1/maintenance"),
        ("DELETE", "/v1/maintenance"),
        ("POST", "/v1/drain"),
        ("POST", "/v1/log-level"),
        ("POST", "/v1/reload"),
    ] {
        assert_eq!(gateway.admin_ask(method, target).status, 401, "{method} {target}");
    }
    let page = gateway.admin_get("/").unwrap();
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    for (name, value) in
        [("x-frame-options", "DENY"), ("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
    {
        assert_eq!(page.header(name), Some(value));
    }
    assert!(!page.text().contains(&node.address.to_string()));
}
