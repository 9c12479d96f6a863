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
        (alice(&["--header", "X-Hive-Federation-JWT: a.b.c", POST]), None, "401 federation_token_invalid"),
        (alice(&["--header", "Content-Type: text/plain", POST]), Some("{}"), "415 unsupported_media_type"),
        (alice(&["--header", "Content-Encoding: gzip", POST]), Some("{}"), "415 unsupported_content_coding"),
        (alice(&[POST]), Some(&long), "413 payload_too_large"),
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

/// Whatever is asked, the running gateway answers as was explained.
#[test]
fn the_gateway_does_what_was_explained() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let config = gateway.dir().join("gateway.yaml");
    let dir = TempDir::new();
    for (target, method, sent) in [
        ("/echo", "GET", None),
        ("/nowhere", "GET", None),
        ("/bob", "GET", None),
        ("/echo", "DELETE", None),
        ("/api/a2a/jsonrpc", "POST", Some(r#"{"jsonrpc":"2.0","id":7,"method":"a"}"#)),
        ("/api/a2a/jsonrpc", "POST", Some(r#"{"jsonrpc":"2.0","id":"q","method":"a","method":"b"}"#)),
        ("/api/a2a/jsonrpc", "POST", Some("[1]")),
        ("/.well-known//x", "GET", None),
    ] {
        let url = format!("{method} https://gateway.test:{}{target}", gateway.address.port());
        let mut args = vec!["--peer", "alice", &url];
        let file = sent.map(|text| body(&dir, text));
        if let Some(file) = &file {
            args.extend(["--body", file]);
        }
        let output = explain(&config, &args);
        let said = String::from_utf8(output.stdout).unwrap();
        let fields = sent
            .map_or(String::new(), |b| format!("Content-Type: application/json\r\nContent-Length: {}\r\n", b.len()));
        let request = format!("{method} {target} HTTP/1.1\r\nHost: gateway.test\r\n{fields}\r\n{}", sent.unwrap_or(""));
        let answer = gateway.connect("alice").exchange(request.as_bytes()).unwrap();
        if output.status.success() {
            assert_eq!(answer.status, 200, "{url}\n{said}");
        } else {
            assert!(said.contains(&format!("refused with {} ", answer.status)), "{}: {url}\n{said}", answer.status);
            assert_eq!(answer.text(), said.lines().last().unwrap().trim(), "{url}");
        }
    }
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
