//! The JSON-RPC firewall: each hostile body has a refusal of its own, and what passes is byte for byte what was sent.

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::{Node, sha256};
use crate::support::noise;

const PATH: &str = "/api/a2a/jsonrpc";

/// The usual JSON-RPC route, with these settings.
fn gateway(json_rpc: &str, more: &str) -> (Gateway, Node) {
    let node = Node::start();
    (setup(&node, json_rpc, more).start(), node)
}

fn setup(node: &Node, json_rpc: &str, more: &str) -> Setup {
    let mut setup = Setup::new(&[node.address]);
    setup.routes = format!(
        "
  - {{ name: a2a, paths: [{PATH}], methods: [POST], peers: [alice, bob], upstream: hive, json_rpc: {{ {json_rpc} }}, {more} }}
"
    );
    setup
}

fn head(fields: &str) -> String {
    format!("POST {PATH} HTTP/1.1\r\nHost: gateway.test\r\n{fields}\r\n")
}

#[track_caller]
fn send(gateway: &Gateway, fields: &str, body: &[u8]) -> Response {
    let fields = format!("{fields}Content-Length: {}\r\n", body.len());
    gateway.connect("alice").exchange(&[head(&fields).as_bytes(), body].concat()).unwrap()
}

#[track_caller]
fn call(gateway: &Gateway, body: impl AsRef<[u8]>) -> Response {
    send(gateway, "Content-Type: application/json\r\n", body.as_ref())
}

/// Status, JSON-RPC code and id of the answer; its code in the log and in the metric is `code`.
#[track_caller]
fn assert_refused(gateway: &Gateway, answer: &Response, status: u16, code: i64, id: Value, named: &str) {
    let json = answer.json();
    assert_eq!((answer.status, &json["error"]["code"], &json["id"]), (status, &json!(code), &id), "{named}: {json}");
    gateway.wait_log(|line| line["refusal"] == named && line["status"] == status);
    let seen = gateway.metric("hive_gateway_refusals_total", &[("reason", named)]);
    assert!(seen >= 1.0, "{named} is not counted");
}

#[test]
fn each_hostile_body_is_refused_by_its_own_name_with_the_right_code_and_id() {
    let (gateway, node) = gateway("methods: [a], batch: 2, max_depth: 4", "");
    let good = r#""jsonrpc":"2.0","id":7,"method":"a""#;
    let with = |more: &str| format!("{{{good},{more}}}").into_bytes();
    let cases: Vec<(&str, Vec<u8>, i64, Value)> = vec![
        ("json_byte_order_mark", [b"\xef\xbb\xbf", with("\"x\":1").as_slice()].concat(), -32700, Value::Null),
        ("json_nul", with("\"x\":\"\0\""), -32700, json!(7)),
        ("json_nul", format!("{{{good}}}").encode_utf16().flat_map(u16::to_le_bytes).collect(), -32700, Value::Null),
        ("json_lone_surrogate", with(r#""x":"\ud800""#), -32700, json!(7)),
        ("json_trailing_text", [with("\"x\":1").as_slice(), b"{}"].concat(), -32700, json!(7)),
        ("json_not_utf8", with("\"x\":\"\u{ff}\"").iter().filter(|b| **b != 0xc3).copied().collect(), -32700, json!(7)),
        ("json_unexpected_end", b"{".to_vec(), -32700, Value::Null),
        ("json_unexpected_end", Vec::new(), -32700, Value::Null),
        ("json_control_character", with("\"x\":\"\u{1}\""), -32700, json!(7)),
        ("json_bad_escape", with(r#""x":"\x""#), -32700, json!(7)),
        ("json_bad_number", with("\"x\":01"), -32700, json!(7)),
        ("json_too_deep", with(r#""x":[[[[]]]]"#), -32600, json!(7)),
        ("rpc_method_not_a_string", br#"{"jsonrpc":"2.0","id":"q","method":7}"#.to_vec(), -32600, json!("q")),
        ("rpc_method_missing", br#"{"jsonrpc":"2.0","id":"q"}"#.to_vec(), -32600, json!("q")),
        (
            "rpc_method_too_long",
            format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{}"}}"#, "a".repeat(300)).into(),
            -32600,
            json!(7),
        ),
        ("rpc_id_type", br#"{"jsonrpc":"2.0","id":[7],"method":"a"}"#.to_vec(), -32600, Value::Null),
        ("rpc_id_type", br#"{"jsonrpc":"2.0","id":true,"method":"a"}"#.to_vec(), -32600, Value::Null),
        ("rpc_params_type", with("\"params\":\"x\""), -32600, json!(7)),
        ("rpc_version", br#"{"jsonrpc":"1.0","id":7,"method":"a"}"#.to_vec(), -32600, json!(7)),
        ("rpc_not_an_object", b"7".to_vec(), -32600, Value::Null),
        ("rpc_empty_batch", b"[]".to_vec(), -32600, Value::Null),
        ("rpc_call_not_an_object", b"[7]".to_vec(), -32600, Value::Null),
        ("rpc_batch_too_long", format!("[{{{good}}},{{{good}}},{{{good}}}]").into(), -32600, Value::Null),
        ("rpc_duplicate_method", with(r#""method":"b""#), -32600, json!(7)),
        ("rpc_duplicate_method", with(r#""\u006d\u0065\u0074\u0068\u006f\u0064":"b""#), -32600, json!(7)),
        ("rpc_duplicate_id", with(r#""\u0069d":8"#), -32600, Value::Null),
        ("rpc_duplicate_jsonrpc", with(r#""json\u0072pc":"2.0""#), -32600, json!(7)),
        ("rpc_duplicate_params", with(r#""params":{},"p\u0061rams":[]"#), -32600, json!(7)),
    ];
    for (named, body, code, id) in cases {
        let answer = call(&gateway, &body);
        assert_refused(&gateway, &answer, 400, code, id, named);
    }
    let off_the_list = call(&gateway, r#"{"jsonrpc":"2.0","id":7,"method":"\u0062"}"#);
    assert_refused(&gateway, &off_the_list, 403, -32601, json!(7), "json_rpc_method_not_allowed");
    assert_eq!(node.count(), 0);
    assert_eq!(call(&gateway, with("\"x\":[[[]]]")).status, 200);
}

#[test]
fn what_is_not_plain_json_is_415_before_its_body_is_read() {
    let (gateway, node) = gateway("", "");
    let good = br#"{"jsonrpc":"2.0","id":7,"method":"a"}"#;
    for (fields, named) in [
        ("Content-Type: text/plain\r\n", "unsupported_media_type"),
        ("", "unsupported_media_type"),
        ("Content-Type: application/json; charset=utf-7\r\n", "unsupported_media_type"),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", "unsupported_content_coding"),
        ("Content-Type: application/json\r\nContent-Encoding: identity, gzip\r\n", "unsupported_content_coding"),
    ] {
        let answer = send(&gateway, fields, good);
        assert_refused(&gateway, &answer, 415, -32700, Value::Null, named);
        assert_eq!(answer.header("accept-encoding").is_some(), named == "unsupported_content_coding");
        let said = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(said == "Send the body without a content coding.", named == "unsupported_content_coding", "{said}");
    }
    // The refusal comes although the body never does.
    let mut connection = gateway.connect("alice");
    connection.send(head("Content-Type: text/plain\r\nContent-Length: 1000\r\n").as_bytes()).unwrap();
    assert_eq!(connection.response(false).unwrap().status, 415);
    let twice = send(&gateway, "Content-Type: application/json\r\nContent-Type: text/plain\r\n", good);
    assert_eq!(twice.status, 400);
    assert_eq!(node.count(), 0);
    for fields in ["application/json; charset=UTF-8", "application/json\r\nContent-Encoding: identity"] {
        assert_eq!(send(&gateway, &format!("Content-Type: {fields}\r\n"), good).status, 200, "{fields}");
    }
}

#[test]
fn notifications_pass_unless_they_are_rejected() {
    let notification = r#"{"jsonrpc":"2.0","method":"a"}"#;
    let with_null = r#"{"jsonrpc":"2.0","method":"a","id":null}"#;
    let (open, node) = gateway("batch: 5", "");
    assert_eq!((call(&open, notification).status, call(&open, with_null).status), (200, 200));
    assert_eq!(node.count(), 2);
    let (closed, node) = gateway("batch: 5, notifications: reject", "");
    for body in [notification.to_owned(), format!("[{with_null},{notification}]")] {
        let answer = call(&closed, body);
        assert_refused(&closed, &answer, 400, -32600, Value::Null, "rpc_notification_refused");
    }
    assert_eq!(call(&closed, with_null).status, 200, "null is an id");
    assert_eq!(node.count(), 1);
}

#[test]
fn params_beyond_their_limit_are_413() {
    let (gateway, node) = gateway("params_limit: 10B", "");
    let with = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":"q","method":"a","params":{params}}}"#);
    assert_eq!(call(&gateway, with("[12345678]")).status, 200);
    let answer = call(&gateway, with("[123456789]"));
    assert_refused(&gateway, &answer, 413, -32602, json!("q"), "rpc_params_too_long");
    assert_eq!(node.count(), 1);
}

#[test]
fn the_version_can_be_left_to_the_node() {
    let old = r#"{"id":7,"method":"a","params":[]}"#;
    let (strict, _) = gateway("version: \"2.0\"", "");
    assert_refused(&strict, &call(&strict, old), 400, -32600, json!(7), "rpc_version");
    let (lax, node) = gateway("version: any", "");
    assert_eq!(call(&lax, old).status, 200);
    assert_eq!(node.only().body, old.as_bytes());
}

#[test]
fn params_are_held_against_a_schema_and_a_changed_schema_is_taken_into_use() {
    let node = Node::start();
    let setup = setup(&node, "schemas: [ { method: message/send, file: send.json } ]", "");
    let file = setup.dir.path().join("send.json");
    std::fs::write(&file, r#"{"properties":{"message":{"properties":{"role":{"enum":["user"]}}}}}"#).unwrap();
    let gateway = setup.start();
    let with = |role: &str| {
        json!({ "jsonrpc": "2.0", "id": "q", "method": "message/send", "params": { "message": { "role": role } } })
            .to_string()
    };
    assert_eq!(call(&gateway, with("user")).status, 200);
    let answer = call(&gateway, with("hidden"));
    assert_refused(&gateway, &answer, 400, -32602, json!("q"), "rpc_params_invalid");
    assert_eq!(answer.json()["error"]["message"], "Invalid params.");
    let line = gateway.wait_log(|line| line["refusal"] == "rpc_params_invalid");
    let detail = line["refusal_detail"].as_str().unwrap();
    assert!(detail.starts_with("params/message/role: ") && !detail.contains("hidden"), "{detail}");
    assert_eq!(call(&gateway, with("hidden").replace("message/send", "other")).status, 200, "it has no schema");
    // Files that the configuration names are watched.
    std::fs::write(&file, r#"{"properties":{"message":{"properties":{"role":{"enum":["hidden"]}}}}}"#).unwrap();
    crate::support::wait_until("the new schema is in use", || call(&gateway, with("hidden")).status == 200);
    assert_eq!(call(&gateway, with("user")).status, 400);
    // A broken one keeps the old.
    std::fs::write(&file, r#"{"$ref":"https://example.com/other.json"}"#).unwrap();
    let report = gateway.reload();
    assert!(report.status != 200 && report.text().contains("$defs"), "{}", report.text());
    assert_eq!(call(&gateway, with("hidden")).status, 200);
}

#[test]
fn check_tells_of_a_bad_schema_and_of_batches_that_never_pass() {
    let node = Node::start();
    let rpc = "methods: [message/send], batch: 20, schemas: [ { method: message/send, file: a.json }, { method: other, file: b.json } ]";
    let setup = setup(&node, rpc, "rate_limits: [ { per: peer, rate: 5/s } ]");
    let write = |name: &str, text: &str| std::fs::write(setup.dir.path().join(name), text).unwrap();
    write("a.json", r#"{"properties":{"a":{"pattern":"(?=x)"}}}"#);
    write("b.json", "{}");
    let (errors, _) = setup.check();
    assert!(errors.contains("routes[0].json_rpc.schemas[0].file: ") && errors.contains("linear time"), "{errors}");
    write("a.json", "true");
    let (warnings, summary) = setup.check();
    assert!(summary.contains("is good"), "{warnings}");
    assert!(
        warnings.contains("routes[0].json_rpc.schemas[1].method: ") && warnings.contains("never used"),
        "{warnings}"
    );
    assert!(warnings.contains("routes[0].json_rpc.batch: ") && warnings.contains("at most 5"), "{warnings}");
}

#[test]
fn a_batch_beyond_a_limits_burst_is_not_told_to_come_back() {
    let (gateway, node) =
        gateway("batch: 10", "rate_limits: [ { per: peer, rate: 2/h, burst: 3 }, { per: method, rate: 2/h } ]");
    let batch = |methods: &[&str]| {
        let calls = methods.iter().map(|m| json!({ "jsonrpc": "2.0", "id": 1, "method": m }));
        Value::from_iter(calls).to_string()
    };
    let answer = call(&gateway, batch(&["a", "b", "c", "d"]));
    assert_refused(&gateway, &answer, 400, -32600, Value::Null, "rpc_batch_beyond_rate_limit");
    assert!(answer.header("retry-after").is_none());
    let line = gateway.wait_log(|line| line["refusal"] == "rpc_batch_beyond_rate_limit");
    assert_eq!(line["rate_limit"], "route/a2a/peer");
    let bob = |body: &str| {
        let fields = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        gateway.connect("bob").exchange((head(&fields) + body).as_bytes()).unwrap()
    };
    let of_one_method = bob(&batch(&["a", "a", "a"]));
    assert_eq!((of_one_method.status, of_one_method.header("retry-after")), (400, None));
    assert_eq!(node.count(), 0);
    gateway.wait_metric("hive_gateway_rate_limit_decisions_total", &[("decision", "refused")], 2.0);
}

/// A call of `length` bytes, with white space and escapes that a rewriting gateway would change.
fn call_of(length: usize) -> Vec<u8> {
    let (front, back) =
        ("\r\n{ \"jsonrpc\" : \"2.0\",\t\"id\": 1.0e0, \"m\\u0065thod\":\"a\\/b\", \"x\": \"\u{e9}\\u00e9", "\" }\n");
    let filling = noise(length.saturating_sub(front.len() + back.len()), length as u64);
    let text: String = filling
        .iter()
        .map(|b| char::from(b' ' + b % 64))
        .map(|c| if c == '"' || c == '\\' { 'x' } else { c })
        .collect();
    format!("{front}{text}{back}").into_bytes()
}

#[test]
fn what_passes_the_firewall_is_byte_for_byte_what_was_sent() {
    let (gateway, node) = gateway("", "body: { limit: 16MiB }");
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut h1 = gateway.connect("alice");
    let mut sent = 0;
    for size in
        [100, 300, 4 << 10, (16 << 10) - 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20, (3 << 20) + 7, 16 << 20]
    {
        let body = call_of(size);
        assert_eq!(body.len(), size);
        let json = "Content-Type: application/json\r\n";
        let with_length = head(&format!("{json}Content-Length: {size}\r\n"));
        let mut chunked = head(&format!("{json}Transfer-Encoding: chunked\r\n")).into_bytes();
        for chunk in body.chunks(size / 3 + 1) {
            chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
            chunked.extend(chunk);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        let request = H2::request("POST", PATH).header("content-type", "application/json").body(()).unwrap();
        let answers = [
            h1.exchange(&[with_length.as_bytes(), &body].concat()).unwrap(),
            h1.exchange(&chunked).unwrap(),
            h2.send(request, &body).unwrap(),
        ];
        for answer in answers {
            assert_eq!(answer.status, 200, "{size} bytes: {}", answer.text());
            assert_eq!(answer.json()["sha256"], sha256(&body), "{size} bytes");
            sent += 1;
        }
    }
    assert_eq!(node.count(), sent);
}
