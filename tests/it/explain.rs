//! `hive-gateway explain`: the way of a request, the line that decides each step, and the verdict that the gateway gives.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::TempDir;
use crate::support::certs::{self, Pki, server_leaf};
use crate::support::gateway::Setup;
use crate::support::node::Node;
use crate::support::tokens;

const CONFIG: &str = r#"hive: { gateway_auth_secret_file: proof, federation: { jwt: verify, audience: "https://gateway.test", shared_secret_file: secret } }
listeners:
  - name: front
    address: 127.0.0.1:8443
    tls:
      certificates: [{ cert: server.pem, key: server.key }]
      client_auth: { ca: ca.pem }
    trusted_proxies: [10.0.0.0/8]
    rate_limits: [{ per: address, rate: 500/s }]
    deny: [198.51.100.0/24]
    request_rules: [{ name: scanners, user_agent: [sqlmap] }, { name: tried, path: "^/api/", action: log }]
  - { name: plain, address: "127.0.0.1:8080", protocol: http }
peers:
  - { name: alice, uri: "spiffe://mesh.test/hive/alice" }
  - { name: bob, dns: bob.mesh.test }
routes:
  - name: a2a
    paths: [/api/a2a/jsonrpc]
    methods: [POST]
    peers: [alice]
    upstream: hive
    body: { limit: 200B }
    json_rpc:
      methods: [message/send]
      batch: 8
      schemas: [{ method: message/send, file: send.json }]
    rate_limits:
      - { per: [peer, method], rate: 5/s }
  - { name: open, paths: ["/.well-known/*"], methods: [GET], peers: any, upstream: hive }
upstreams:
  - { name: hive, endpoints: ["http://127.0.0.1:3000", "http://127.0.0.1:3001"] }
"#;

fn directory() -> TempDir {
    let dir = TempDir::new();
    let pki = Pki::default();
    certs::write(&pki.leaf(&server_leaf(&["gateway.test"])), dir.path(), "server");
    pki.write_root(dir.path(), "ca");
    fs::write(dir.path().join("gateway.yaml"), CONFIG).unwrap();
    fs::write(dir.path().join("send.json"), r#"{"required":["message"]}"#).unwrap();
    fs::write(dir.path().join("secret"), tokens::SECRET).unwrap();
    fs::write(dir.path().join("proof"), "0123456789abcdef0123456789abcdef").unwrap();
    dir
}

fn explain(config: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hive-gateway"));
    command.args(["explain", "--config"]).arg(config).args(args).output().unwrap()
}

/// What is said, and the exit code.
fn said(dir: &TempDir, args: &[&str]) -> (String, Option<i32>) {
    let output = explain(&dir.path().join("gateway.yaml"), args);
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (text, output.status.code())
}

/// The file of a body.
fn body(dir: &TempDir, text: &str) -> String {
    let file = dir.path().join("body.json");
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

const POST: &str = "POST https://gateway.test/api/a2a/jsonrpc";
const SEND: &str = r#"{"jsonrpc":"2.0","id":7,"method":"message/send","params":{"message":1}}"#;

#[test]
fn an_admitted_request_is_shown_step_by_step_with_the_lines_that_decide() {
    let dir = directory();
    let file = body(&dir, SEND);
    let token = tokens::hs256(&tokens::shared_claims("https://gateway.test", "1"));
    let jwt = format!("X-Hive-Federation-JWT: {token}");
    let spoofed = "X-Real-IP: 1.2.3.4";
    let forwarded = "X-Forwarded-For: 203.0.113.9";
    let args = [
        "--peer",
        "alice",
        "--body",
        &file,
        "--address",
        "10.1.2.3",
        "--header",
        &jwt,
        "--header",
        spoofed,
        "--header",
        forwarded,
        POST,
    ];
    let (text, code) = said(&dir, &args);
    assert_eq!(code, Some(0), "{text}");
    // Each in its turn, with the line of the key.
    let mut rest = text.as_str();
    for (part, line) in [
        ("front on 127.0.0.1:8443, https", 4),
        ("peer alice, by spiffe://mesh.test/hive/alice", 14),
        ("203.0.113.9, from X-Forwarded-For", 8),
        ("gateway.test; SNI gateway.test", 6),
        ("a2a: /api/a2a/jsonrpc of any host", 18),
        ("counts 1 for address=203.0.113.9: 500/s, 500 at once", 9),
        ("met: listener/front/tried", 11),
        ("alice may call", 20),
        ("a token, which is checked", 1),
        ("71 bytes, 200 are allowed", 22),
        ("methods: message/send", 24),
        ("schema for message/send", 26),
        ("counts 1 for peer=alice method=message/send: 5/s, 5 at once", 28),
        ("hive, one of", 21),
        ("http://127.0.0.1:3000", 31),
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part} is not in its place in\n{text}"));
        let of_line = rest[at..].lines().next().unwrap();
        let place = format!("gateway.yaml:{line}:");
        assert!(of_line.contains(&place), "{part}: {of_line}\nlacks {place}");
        rest = &rest[at..];
    }
    for part in [
        "removed         x-real-ip, x-forwarded-for",
        "x-real-ip: 203.0.113.9",
        "x-hive-gateway-auth: Bearer ...",
        "URI=spiffe://mesh.test/hive/alice",
        "verdict: forwarded to upstream hive\n",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("0123456789abcdef") && !text.contains(&token), "a secret is shown:\n{text}");
}

#[test]
fn each_refusal_is_shown_with_its_answer() {
    let dir = directory();
    let long =
        format!(r#"{{"jsonrpc":"2.0","id":7,"method":"message/send","params":{{"message":"{}"}}}}"#, "x".repeat(200));
    let batch =
        format!("[{}]", [r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#; 6].join(",").replace("\"x\"", "\"message/send\""));
    let no_params = r#"{"jsonrpc":"2.0","id":7,"method":"message/send"}"#;
    let alice = |more: &[&'static str]| [&["--peer", "spiffe://mesh.test/hive/alice"], more].concat();
    let well_known = "GET https://gateway.test/.well-known/agent.json";
    let cases: Vec<(Vec<&str>, Option<&str>, &str)> = vec![
        (vec![POST], None, "no connection: the TLS handshake asks for a client certificate"),
        (alice(&["POST https://elsewhere.test/api/a2a/jsonrpc"]), None, "421 misdirected_request"),
        (alice(&["--header", "Host: other.test", POST]), None, "421 misdirected_request"),
        (alice(&["POST https://gateway.test/api/../x"]), None, "400 bad_request"),
        (alice(&["--header", "Connection: authorization", POST]), None, "400 bad_request"),
        (alice(&["--address", "198.51.100.7", POST]), None, "no connection: the address is on the listener's list"),
        (
            alice(&["--address", "10.0.0.1", "--header", "X-Forwarded-For: 198.51.100.7", POST]),
            None,
            "403 address_denied",
        ),
        (alice(&["--header", "User-Agent: sqlmap/1.0", POST]), None, "403 user_agent_blocked"),
        (alice(&["POST https://gateway.test/nowhere"]), None, "404 not_found"),
        (alice(&["GET https://gateway.test/api/a2a/jsonrpc"]), None, "405 method_not_allowed"),
        (vec!["--peer", "bob", POST], None, "403 peer_not_allowed"),
        (vec!["--peer", "spiffe://mesh.test/stranger", POST], None, "403 peer_not_allowed"),
        (vec!["--peer", "bob.mesh.test", well_known], Some("x"), "400 bad_request (a GET or HEAD request with a body)"),
        (
            vec!["--peer", "bob.mesh.test", "--header", "Content-Length: 5", well_known],
            None,
            "400 bad_request (a GET or HEAD request with a body)",
        ),
        (alice(&["--header", "X-Hive-Federation-JWT: a.b.c", POST]), None, "401 federation_token_invalid"),
        (alice(&["--header", "Content-Type: text/plain", POST]), Some("{}"), "415 unsupported_media_type"),
        (alice(&["--header", "Content-Encoding: gzip", POST]), Some("{}"), "415 unsupported_content_coding"),
        (alice(&[POST]), Some(&long), "413 payload_too_large"),
        (alice(&["--header", "Content-Length: 2000000", POST]), Some(SEND), "413 payload_too_large"),
        (alice(&["--header", "Content-Length: 2000000", POST]), None, "413 payload_too_large"),
        (alice(&["--header", "Content-Length: 72", POST]), Some(SEND), "408 body_timeout"),
        (alice(&["--header", "Content-Length: 70", POST]), Some(SEND), "400 json_unexpected_end"),
        (
            alice(&["--header", "Content-Length: 0", "--header", "Content-Type: application/json", POST]),
            None,
            "400 json_unexpected_end",
        ),
        (alice(&["--header", "Transfer-Encoding: chunked", POST]), Some(&long), "413 payload_too_large"),
        (alice(&["--header", "Expect: x", POST]), Some(SEND), "417 expectation_failed"),
        (alice(&["--header", "Expect: x", POST]), None, "417 expectation_failed"),
        (alice(&[POST]), Some("{"), "400 json_unexpected_end"),
        (alice(&[POST]), Some(r#"{"jsonrpc":"2.0","id":7,"method":"x"}"#), "403 json_rpc_method_not_allowed"),
        (alice(&[POST]), Some(no_params), "400 rpc_params_invalid (params: the schema's /required)"),
    ];
    for (mut args, sent, verdict) in cases {
        let file = sent.map(|text| body(&dir, text));
        if let Some(file) = &file {
            args.splice(0..0, ["--body", file]);
        }
        let (text, code) = said(&dir, &args);
        assert_eq!(code, Some(1), "{args:?}\n{text}");
        let end = text.lines().skip_while(|l| !l.starts_with("verdict: ")).collect::<Vec<_>>();
        assert!(end[0].contains(verdict), "{args:?}: {verdict} is not in\n{text}");
        if verdict.starts_with(|c: char| c.is_ascii_digit()) {
            let answer: Value = serde_json::from_str(end.last().unwrap().trim()).unwrap();
            assert!(answer.get("error").is_some(), "{text}");
        }
    }
    let file = body(&dir, no_params);
    let (text, _) = said(&dir, &["--peer", "alice", "--body", &file, POST]);
    let answer: Value = serde_json::from_str(text.lines().last().unwrap().trim()).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(-32602)));
    fs::write(dir.path().join("gateway.yaml"), CONFIG.replace("200B", "2KiB").replace("schemas:", "# schemas:"))
        .unwrap();
    let file = body(&dir, &batch);
    let (text, code) = said(&dir, &["--peer", "alice", "--body", &file, POST]);
    assert!(code == Some(1) && text.contains("400 rpc_batch_beyond_rate_limit"), "{text}");
}

#[test]
fn a_question_that_makes_no_sense_is_2() {
    let dir = directory();
    for (args, why) in [
        (vec!["--peer", "alice", "nonsense"], "is not method and URL"),
        (vec!["--peer", "alicf", POST], "known: alice, bob"),
        (vec!["--listener", "back", "--peer", "alice", POST], "known: front, plain"),
        (vec!["--peer", "alice", "--header", "x", POST], "is not a header"),
        (vec!["--peer", "alice", "--body", "/nowhere", POST], "can't be read"),
    ] {
        let (text, code) = said(&dir, &args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(why), "{text}");
    }
    fs::write(dir.path().join("gateway.yaml"), CONFIG.replace("upstream: hive }", "upstream: hvie }")).unwrap();
    let (text, code) = said(&dir, &["--peer", "alice", POST]);
    assert!(code == Some(2) && text.contains("did you mean"), "{text}");
}

#[test]
fn without_a_body_the_way_ends_before_it_and_says_so() {
    let dir = directory();
    let (text, code) = said(&dir, &["--peer", "alice", POST]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("verdict: forwarded to upstream hive, if its body passes (--body FILE)"), "{text}");
    let (text, code) = said(&dir, &["GET http://gateway.test:8080/.well-known/x"]);
    assert!(code == Some(0) && text.contains("plain on 127.0.0.1:8080"), "{text}");
}

/// A request of the table below: target, method, more fields, body.
type Asked = (&'static str, &'static str, &'static str, Option<&'static str>);

const RPC: &str = "/api/a2a/jsonrpc";

/// Whatever is asked, the running gateway answers as was explained.
#[test]
fn the_gateway_does_what_was_explained() {
    let node = Node::start();
    let start = || {
        let mut setup = Setup::new(&[node.address]);
        fs::write(setup.dir.path().join("secret"), tokens::SECRET).unwrap();
        setup.top =
            r#"hive: { federation: { jwt: verify, audience: "https://gateway.test", shared_secret_file: secret } }"#
                .into();
        setup.listener =
            "    request_rules: [ { name: scanners, user_agent: [sqlmap] } ]\n    deny: [198.51.100.0/24]\n    \
                      trusted_proxies: [127.0.0.1]\n    rate_limits: [ { per: [peer, issuer], rate: 8/h } ]\n"
                .into();
        setup.routes = r#"
  - { name: echo, paths: [/echo, "/echo/*"], methods: [GET, POST], peers: any, upstream: hive }
  - { name: bob, paths: [/bob], methods: [GET], peers: [bob], upstream: hive }
  - { name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: [alice, bob], upstream: hive, body: { limit: 500B },
      json_rpc: { methods: [a, b], batch: 6, notifications: reject },
      rate_limits: [ { per: method, rate: 4/h }, { per: address, rate: 5/h } ] }
"#
        .into();
        setup.start()
    };
    let dir = TempDir::new();
    let long: &str =
        Box::leak(format!(r#"{{"jsonrpc":"2.0","id":7,"method":"a","params":["{}"]}}"#, "x".repeat(600)).into());
    let batch = |calls: &[&str]| -> &'static str { Box::leak(format!("[{}]", calls.join(",")).into()) };
    let (one, two) = (r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#, r#"{"jsonrpc":"2.0","id":2,"method":"b"}"#);
    let denied = r#"{"jsonrpc":"2.0","id":3,"method":"c"}"#;
    let asked: Vec<Asked> = vec![
        ("/echo", "GET", "", None),
        ("/nowhere", "GET", "", None),
        ("/bob", "GET", "", None),
        ("/bob", "HEAD", "", None),
        ("/echo", "DELETE", "", None),
        (RPC, "GET", "", None),
        ("/.well-known//x", "GET", "", None),
        ("/echo", "GET", "User-Agent: sqlmap/1\r\n", None),
        ("/echo", "GET", "X-Forwarded-For: 198.51.100.9\r\n", None),
        ("/echo", "GET", "X-Hive-Federation-JWT: a.b.c\r\n", None),
        (RPC, "POST", "Connection: authorization\r\n", Some(one)),
        (RPC, "POST", "X-Forwarded-For: 198.51.100.9\r\n", Some(one)),
        (RPC, "POST", "Content-Type: text/plain\r\n", Some(one)),
        (RPC, "POST", "Content-Encoding: gzip\r\n", Some(one)),
        (RPC, "POST", "Content-Encoding: identity\r\n", Some(one)),
        (RPC, "POST", "Content-Length: 2000000\r\n", Some(one)),
        (RPC, "POST", "Content-Length: 2000000\r\nExpect: x\r\n", Some(one)),
        (RPC, "POST", "Content-Length: 5\r\n", Some(one)),
        (RPC, "POST", "Expect: x\r\n", Some(one)),
        (RPC, "POST", "Expect: x\r\nContent-Encoding: gzip\r\n", Some(one)),
        ("/echo", "POST", "Expect: x\r\n", Some("x")),
        ("/echo", "POST", "Expect: x\r\n", None),
        ("/echo", "POST", "Content-Length: 2000000\r\n", None),
        (RPC, "POST", "", Some(one)),
        (RPC, "POST", "", Some(long)),
        (RPC, "POST", "", Some(r#"{"jsonrpc":"2.0","id":7,"method":"c"}"#)),
        (RPC, "POST", "", Some(r#"{"jsonrpc":"2.0","id":"q","method":"a","method":"b"}"#)),
        (RPC, "POST", "", Some(r#"{"jsonrpc":"2.0","method":"a"}"#)),
        (RPC, "POST", "", Some("[1]")),
        (RPC, "POST", "", Some("[]")),
        (RPC, "POST", "", Some("{")),
        (RPC, "POST", "", Some(batch(&[one, two]))),
        (RPC, "POST", "", Some(batch(&[one, two, one, two, one]))),
        (RPC, "POST", "", Some(batch(&[one, one, one, one, one]))),
        (RPC, "POST", "", Some(batch(&[one, two, one, two, one, two]))),
        (RPC, "POST", "", Some(batch(&[one; 7]))),
        (RPC, "POST", "", Some(batch(&[one, denied, two]))),
    ];
    for (target, method, fields, sent) in asked {
        // Each with limits that nobody has used: explain knows of no other request.
        let gateway = start();
        let url = format!("{method} https://gateway.test:{}{target}", gateway.address.port());
        let mut args = vec!["--peer", "alice", "--address", "127.0.0.1", &url];
        let file = sent.map(|text| body(&dir, text));
        if let Some(file) = &file {
            args.extend(["--body", file]);
        }
        for field in fields.lines() {
            args.extend(["--header", field]);
        }
        let output = explain(&gateway.dir().join("gateway.yaml"), &args);
        let said = String::from_utf8(output.stdout).unwrap();
        let json = if fields.contains("Content-Type") { "" } else { "Content-Type: application/json\r\n" };
        let length = match sent {
            Some(_) if fields.contains("Content-Length") => json.to_owned(),
            Some(body) => format!("{json}Content-Length: {}\r\n", body.len()),
            None => String::new(),
        };
        let host = format!("gateway.test:{}", gateway.address.port());
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n{}", sent.unwrap_or(""));
        let mut connection = gateway.connect("alice");
        connection.send(request.as_bytes()).unwrap();
        let answer = connection.response(method == "HEAD").unwrap();
        if output.status.success() {
            assert_eq!(answer.status, 200, "{request}\n{said}");
            continue;
        }
        assert!(said.contains(&format!("refused with {} ", answer.status)), "{}: {request}\n{said}", answer.status);
        let mut told: Vec<_> = said.lines().skip_while(|line| !line.starts_with("verdict")).skip(1).collect();
        if method != "HEAD" {
            assert_eq!(Some(answer.text().trim_end()), told.pop().map(str::trim), "{request}\n{said}");
        }
        for field in told {
            let (name, value) = field.trim().split_once(": ").unwrap();
            assert_eq!(answer.header(name), Some(value), "{request}\n{said}");
        }
    }
}

#[test]
fn a_body_that_is_announced_is_one_that_is_not_shown() {
    let dir = directory();
    let well_known = "POST https://gateway.test/.well-known/x";
    fs::write(dir.path().join("gateway.yaml"), CONFIG.replace("methods: [GET]", "methods: [GET, POST]")).unwrap();
    let (text, code) = said(&dir, &["--peer", "alice", "--header", "Content-Length: 9", well_known]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("9 bytes announced, 1048576 are allowed"), "{text}");
    assert!(text.contains("if its body passes (--body FILE)"), "{text}");
    let file = body(&dir, SEND);
    let with = |length: &str| said(&dir, &["--peer", "alice", "--header", length, "--body", &file, POST]).0;
    let (more, less) = (with("Content-Length: 100"), with("Content-Length: 70"));
    assert!(more.contains("71 of 100 announced bytes, 200 are allowed; the gateway waits for the rest"), "{more}");
    assert!(less.contains("70 bytes, 200 are allowed; what is behind them is the next request"), "{less}");
}

#[test]
fn a_batch_is_counted_once() {
    let dir = directory();
    let batch = format!("[{0},{0},{0}]", r#"{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":1}}"#);
    fs::write(dir.path().join("gateway.yaml"), CONFIG.replace("200B", "2KiB")).unwrap();
    let file = body(&dir, &batch);
    let (text, code) = said(&dir, &["--peer", "alice", "--body", &file, POST]);
    assert_eq!(code, Some(0), "{text}");
    let counted: Vec<_> = text.lines().filter_map(|l| Some(&l[l.find("counts ")?..l.find(" for ")?])).collect();
    assert_eq!(counted, ["counts 1", "counts 2 more", "counts 3 calls"], "{text}");
}

#[test]
fn discovered_nodes_are_named_by_their_source_and_nobody_is_asked() {
    let dir = directory();
    let found = "discovery: { dns: { name: hive.test, port: 3000, servers: [\"127.0.0.1:1\"] } }";
    let text = CONFIG.replace("endpoints: [\"http://127.0.0.1:3000\", \"http://127.0.0.1:3001\"]", found);
    fs::write(dir.path().join("gateway.yaml"), text).unwrap();
    let (text, code) = said(&dir, &["--peer", "alice", "GET https://gateway.test/.well-known/x"]);
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|l| l.contains("the nodes that dns hive.test:3000 names")).unwrap_or_default();
    assert!(line.contains("gateway.yaml:31"), "{text}");
}
