//! `conf/wan-gateway-v1.yaml`, that very file, in the place of the older gateway: routes, answers, error bodies, metric.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use hive_gateway::cli::pki::CrlSpec;
use serde_json::{Value, json};

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::node_h2::NodeH2;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"message/send","params":{}}"#;

/// The shipped file with the addresses of this test and `changes`, each of which must be found.
fn drop_in(node: &str, changes: &[(&str, &str)]) -> Gateway {
    let mut text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/wan-gateway-v1.yaml")).unwrap();
    let addresses = [("0.0.0.0:4080", "LISTEN"), ("127.0.0.1:9901", "ADMIN"), ("10.0.1.10:3000", node)];
    for (from, to) in addresses.iter().chain(changes) {
        assert!(text.contains(from), "{from:?} is not in the file");
        text = text.replace(from, to);
    }
    // A busy machine must not shed here.
    text += "\noverload: { event_loop_lag: { scaling_threshold: 30s, saturation_threshold: 60s } }\n";
    let mut setup = Setup::new(&[]);
    let dir = setup.dir.path();
    for name in ["tls", "secrets"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::rename(dir.join("server.pem"), dir.join("tls/server.pem")).unwrap();
    fs::rename(dir.join("server.key"), dir.join("tls/server.key")).unwrap();
    fs::write(dir.join("tls/mesh-ca.pem"), setup.pki.0.bundle_pem().unwrap()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let crl = CrlSpec::new(now - 60, now + 3600).issue_pem(&setup.pki.0.intermediate).unwrap();
    fs::write(dir.join("tls/mesh.crl"), crl).unwrap();
    for name in ["gateway", "admin"] {
        let path = dir.join("secrets").join(name);
        fs::write(&path, SECRET).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    setup.whole = Some(text);
    setup.start()
}

fn post(gateway: &Gateway, target: &str, headers: &str, body: &str) -> Response {
    let length = body.len();
    let head = format!("POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n");
    let request = format!("{head}Content-Length: {length}\r\n{headers}\r\n{body}");
    gateway.connect("alice").exchange(request.as_bytes()).unwrap()
}

fn get(gateway: &Gateway, target: &str, headers: &str) -> Response {
    let request = format!("GET {target} HTTP/1.1\r\nHost: gateway.test\r\n{headers}\r\n");
    gateway.connect("alice").exchange(request.as_bytes()).unwrap()
}

/// The status and the whole body of the older gateway, and the headers that it could be asked for.
#[track_caller]
fn assert_error(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, answer.json()), (status, json!({ "error": code })));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
}

#[test]
fn calls_reach_the_public_path_of_hive() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[]);
    let traced = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let spoofed = "X-Forwarded-For: 6.6.6.6\r\nX-Hive-Gateway-Auth: Bearer guess\r\n";
    let answer = post(&gateway, "/v1/a2a/jsonrpc?x=1", &format!("{traced}{spoofed}"), CALL);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let got = node.only();
    assert_eq!((got.method().as_str(), got.target().as_str()), ("POST", "/api/a2a/jsonrpc/public?x=1"));
    assert_eq!(got.body, CALL.as_bytes());
    assert_eq!(got.all("x-hive-gateway-auth"), [format!("Bearer {SECRET}")]);
    assert_eq!(got.all("x-forwarded-for"), ["127.0.0.1"]);
    assert!(got.header("traceparent").unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    // The log tells what the client asked for.
    assert_eq!(gateway.wait_log(|line| line["route"] == "jsonrpc")["path"], "/v1/a2a/jsonrpc");
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let request = H2::request("POST", "/v1/a2a/jsonrpc").body(()).unwrap();
    assert_eq!(h2.send(request, CALL.as_bytes()).unwrap().status, 200);
    assert_eq!(node.requests()[1].target(), "/api/a2a/jsonrpc/public");
}

/// What the older gateway left out, as the file's list of differences says.
#[test]
fn end_to_end_headers_and_the_query_pass_in_both_directions() {
    let node = Node::start_with(|_, exchange| exchange.answer(200, "X-Hive-Version: 7\r\nSet-Cookie: a=b\r\n", b"{}"));
    let gateway = drop_in(&node.address.to_string(), &[]);
    let answer = post(&gateway, "/v1/a2a/jsonrpc?x=1", "Accept: text/event-stream\r\nA2A-Version: 1\r\n", CALL);
    assert_eq!((answer.header("x-hive-version"), answer.header("set-cookie")), (Some("7"), Some("a=b")));
    let got = node.only();
    assert_eq!(got.header("accept").as_deref(), Some("text/event-stream"));
    assert_eq!(
        (got.header("a2a-version").as_deref(), got.target().as_str()),
        (Some("1"), "/api/a2a/jsonrpc/public?x=1")
    );
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/wan-gateway-v1.yaml")).unwrap();
    let differs = text.split_once("# What differs, and why:").unwrap().1;
    assert!(differs.contains("the query and all end-to-end headers"), "{differs}");
}

#[test]
fn health_and_metrics_answer_on_the_public_listener() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[]);
    let health = get(&gateway, "/v1/health", "");
    assert_eq!(health.status, 200);
    let told = health.json();
    let has = |name: &str| told[name].clone();
    assert_eq!((has("ok"), has("role")), (json!(true), json!("hive-mesh-gateway")));
    assert_eq!((has("metricsPath"), has("metricsAuthRequired")), (json!("/v1/metrics"), json!(true)));

    let refused = get(&gateway, "/v1/metrics", "");
    assert_eq!((refused.status, &refused.json()["error"]), (401, &json!("unauthorized")));
    assert_eq!(get(&gateway, "/v1/metrics", "Authorization: Bearer wrong-wrong-wrong\r\n").status, 401);
    post(&gateway, "/v1/a2a/jsonrpc", "", CALL);
    let answer = get(&gateway, "/v1/metrics", &format!("Authorization: Bearer {SECRET}\r\n"));
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let text = answer.text();
    for (method, path, code) in
        [("GET", "/v1/health", 200), ("GET", "/v1/metrics", 401), ("POST", "/v1/a2a/jsonrpc", 200)]
    {
        let series = format!("hive_gateway_http_requests_total{{code=\"{code}\",method=\"{method}\",path=\"{path}\"}}");
        assert!(text.contains(&series), "{series}\n{text}");
    }
    assert_eq!(node.count(), 1, "the node got the call alone");
    // Nothing else of the admin listener can be reached.
    for path in ["/v1/status", "/v1/ready", "/v1/reload", "/v1/health/", "/v1/metrics/../status"] {
        let answer = get(&gateway, path, &format!("Authorization: Bearer {SECRET}\r\n"));
        assert!(matches!(answer.status, 400 | 404), "{path} {}", answer.status);
    }
}

/// The admin listener takes 128 connections, and operators and the kubelet need some of them.
#[test]
fn clients_can_not_take_the_admin_listeners_connections() {
    let node = Node::start();
    // The breaker alone, without the help of the rate limit.
    let gateway = drop_in(&node.address.to_string(), &[("50/s", "5000/s")]);
    let clients: Vec<_> = (0..4).map(|_| H2::connect(&gateway.client("alice"), gateway.address).unwrap()).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || client.get_all("/v1/health", 100).unwrap());
        }
        assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200, "from within the flood");
    });
    let held = sockets_to(gateway.admin.port());
    assert!((1..=32).contains(&held), "{held} connections rest at the admin listener");
    assert!(!gateway.stderr().contains("admin: more than"), "{}", gateway.stderr());
}

/// How many connections to this port of the loopback are established, by their client's end.
fn sockets_to(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    table
        .lines()
        .filter(|line| line.split_whitespace().nth(2) == Some(remote.as_str()) && line.contains(" 01 "))
        .count()
}

#[test]
fn health_on_the_public_listener_is_limited_by_address() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[("50/s", "2/min")]);
    let statuses = [(); 3].map(|()| get(&gateway, "/v1/health", "").status);
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200, "operators have no limit");
    assert_eq!(post(&gateway, "/v1/a2a/jsonrpc", "", CALL).status, 200, "calls have their own");
}

#[test]
fn metrics_are_open_without_a_secret() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[("  bearer_secret_file: secrets/admin", "  # none")]);
    assert_eq!(get(&gateway, "/v1/metrics", "").status, 200);
    assert_eq!(get(&gateway, "/v1/health", "").json()["metricsAuthRequired"], false);
}

#[test]
fn what_is_refused_is_refused_in_the_older_gateways_words() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[("  bearer_secret_file: secrets/admin", "  # none")]);
    assert_error(&get(&gateway, "/", ""), 404, "not_found");
    assert_error(&get(&gateway, "/api/a2a/jsonrpc/public", ""), 404, "not_found");
    let wrong_method = get(&gateway, "/v1/a2a/jsonrpc", "");
    assert_error(&wrong_method, 404, "not_found");
    assert_eq!(wrong_method.header("allow"), None);
    assert_error(&get(&gateway, &format!("/v1/health?{}", "x".repeat(9000)), ""), 414, "uri_too_long");
    let scanner = post(&gateway, "/v1/a2a/jsonrpc", "User-Agent: SQLMap/1.0\r\n", CALL);
    assert_error(&scanner, 403, "user_agent_blocked");
    let long = post(&gateway, "/v1/a2a/jsonrpc", "", &"x".repeat((512 << 10) + 1));
    assert_error(&long, 413, "payload_too_large");
    assert_eq!(node.count(), 0);
    // What only the node can judge is the node's to answer.
    assert_eq!(post(&gateway, "/v1/a2a/jsonrpc", "", "no JSON").status, 200);
    // The log and the metric of refusals have the reason in full.
    assert_eq!(gateway.wait_log(|line| line["refusal"] == "method_not_allowed")["status"], 404);
    gateway.wait_metric("hive_gateway_http_requests_total", &[("path", "unmatched"), ("code", "404")], 2.0);
}

#[test]
fn beyond_the_limit_it_is_rate_limited() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[("600/min", "2/min")]);
    let answers: Vec<_> = (0..3).map(|_| post(&gateway, "/v1/a2a/jsonrpc", "", CALL)).collect();
    assert_eq!([answers[0].status, answers[1].status], [200, 200]);
    assert_error(&answers[2], 429, "rate_limited");
    assert!(answers[2].header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(node.count(), 2);
    assert_eq!(get(&gateway, "/v1/health", "").status, 200, "the limit is of calls");
}

#[test]
fn an_origin_that_is_late_or_gone_is_told_by_two_codes() {
    let node = Node::start_with(|_, exchange| {
        exchange.gone_after();
        Ok(())
    });
    let changes = [("response: 60s", "response: 1s")];
    let gateway = drop_in(&node.address.to_string(), &changes);
    assert_error(&post(&gateway, "/v1/a2a/jsonrpc", "", CALL), 504, "upstream_timeout");
    node.behave(|_, exchange| {
        exchange.close();
        Ok(())
    });
    assert_error(&post(&gateway, "/v1/a2a/jsonrpc", "", CALL), 503, "origin_unavailable");
    node.kill();
    assert_error(&post(&gateway, "/v1/a2a/jsonrpc", "", CALL), 503, "origin_unavailable");
    assert_eq!(get(&gateway, "/v1/health", "").status, 200, "the process lives");
    gateway.wait_log(|line| line["refusal"] == "upstream_failed");
}

#[test]
fn with_the_firewall_on_the_call_is_refused_in_hives_form() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[("    # json_rpc: ", "    json_rpc: ")]);
    let answer = post(&gateway, "/v1/a2a/jsonrpc", "", &CALL.replace("message/send", "admin/drop"));
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"], &answer.json()["id"]),
        (403, &json!(-32601), &json!(1))
    );
    assert_eq!(post(&gateway, "/v1/a2a/jsonrpc", "", "no JSON").json()["error"]["code"], json!(-32700));
    let long = post(&gateway, "/v1/a2a/jsonrpc", "", &"x".repeat((512 << 10) + 1));
    assert_error(&long, 413, "payload_too_large");
    assert_eq!(post(&gateway, "/v1/a2a/jsonrpc", "", CALL).status, 200);
    assert_eq!(node.count(), 1);
}

/// Plain HTTP behind an ingress, as the older gateway ran by default.
#[test]
fn behind_an_ingress_it_speaks_plain_http() {
    let node = Node::start();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/wan-gateway-v1.yaml")).unwrap();
    let block = text.split_once("    tls:\n").unwrap().1.split_once("    local_reply").unwrap().0;
    let plain = "    protocol: http\n    trusted_proxies: [127.0.0.0/8]\n";
    let gateway = drop_in(&node.address.to_string(), &[(&format!("    tls:\n{block}"), plain)]);
    let ask = |request: &str| Connection::plain(gateway.address).unwrap().exchange(request.as_bytes()).unwrap();
    let call = format!(
        "POST /v1/a2a/jsonrpc HTTP/1.1\r\nHost: edge.example\r\nX-Forwarded-For: 6.6.6.6, 198.51.100.9\r\n\
         Content-Length: {}\r\n\r\n{CALL}",
        CALL.len()
    );
    assert_eq!(ask(&call).status, 200);
    assert_eq!(node.only().header("x-real-ip").as_deref(), Some("198.51.100.9"));
    assert_eq!(ask("GET /v1/health HTTP/1.1\r\nHost: edge.example\r\n\r\n").json()["ok"], Value::from(true));
}

/// Each variable of the older gateway has its line in the file's table, and each key that the line names exists.
#[test]
fn the_table_maps_every_variable_of_the_older_gateway() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("conf/wan-gateway-v1.yaml")).unwrap();
    let reference = fs::read_to_string(root.join("conf/reference.yaml")).unwrap();
    let rows: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# | ")).collect();
    let variables = [
        "PORT",
        "GATEWAY_UPSTREAM_BASE",
        "GATEWAY_JSONRPC_PATH",
        "GATEWAY_MAX_BODY_BYTES",
        "GATEWAY_RATE_LIMIT_PER_MIN",
        "GATEWAY_RATE_LIMIT_REDIS_URL",
        "GATEWAY_UPSTREAM_AUTH_SECRET",
        "GATEWAY_UPSTREAM_FORWARD_FOR",
        "GATEWAY_UPSTREAM_TIMEOUT_MS",
        "GATEWAY_BLOCK_USER_AGENTS",
        "GATEWAY_TLS_CERT_PATH",
        "GATEWAY_TLS_KEY_PATH",
        "GATEWAY_MTLS_CA_PATH",
        "GATEWAY_SECURITY_HEADERS",
        "GATEWAY_METRICS_AUTH_SECRET",
        "GATEWAY_MAX_URL_BYTES",
        "GATEWAY_REQUEST_TIMEOUT_MS",
    ];
    for variable in variables {
        let named = |row: &&&str| row.split('|').next().unwrap().split(", ").any(|name| name.trim() == variable);
        let row = rows.iter().find(named).unwrap_or_else(|| panic!("no row for {variable}"));
        for key in row.split('|').nth(1).unwrap().split([' ', ',', ';', ':']).filter(|word| word.contains("[].")) {
            let last = key.rsplit('.').next().unwrap().trim_end_matches("[]");
            assert!(reference.contains(&format!("{last}:")), "{variable}: no key {key}");
        }
    }
}

#[test]
fn check_and_explain_show_where_a_call_goes() {
    let node = Node::start();
    let gateway = drop_in(&node.address.to_string(), &[]);
    let config = gateway.dir().join("gateway.yaml");
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hive-gateway"));
        let output = command.arg(arguments[0]).arg("--config").arg(&config).args(&arguments[1..]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let checked = ask(&["check"]);
    assert!(checked.contains("any peer -> hive /api/a2a/jsonrpc/public\n"), "{checked}");
    let explained =
        ask(&["explain", "--peer", "spiffe://mesh.test/hive/alice", "POST https://gateway.test/v1/a2a/jsonrpc"]);
    assert!(explained.contains("asked for /api/a2a/jsonrpc/public"), "{explained}");
    let refused =
        ask(&["explain", "--peer", "spiffe://mesh.test/hive/alice", "GET https://gateway.test/v1/a2a/jsonrpc"]);
    assert!(
        refused.contains("refused with 404 method_not_allowed") && refused.contains(r#"  {"error":"not_found"}"#),
        "{refused}"
    );
}

/// A node that is gone is tried first by some of the calls: the next one is asked for the same path.
#[test]
fn every_try_and_every_protocol_asks_for_the_routes_path() {
    let (node, gone, http2) = (Node::start(), Node::start(), NodeH2::start(None));
    let mut setup = Setup::new(&[]);
    setup.routes = "
  - { name: one, paths: [/v1/one], methods: [POST], peers: any, upstream: hive, replace_full_path: /api/one }
  - { name: two, paths: [/v1/two], methods: [POST], peers: any, upstream: newer, replace_full_path: /api/two }
"
    .into();
    let probes = "health_check: { enabled: false }";
    setup.upstreams =
        upstream("hive", "http", &[node.address, gone.address], &format!("balance: round_robin, {probes}"))
            + upstream("newer", "http", &[http2.address], &format!("protocol: http2, {probes}"))
                .trim_start_matches('\n');
    let gateway = setup.start();
    gone.kill();
    for _ in 0..4 {
        assert_eq!(post(&gateway, "/v1/one", "", CALL).status, 200);
    }
    assert!(node.requests().iter().all(|request| request.target() == "/api/one"));
    assert!(gateway.metric("hive_gateway_upstream_retries_total", &[]) > 0.0);
    assert_eq!(post(&gateway, "/v1/two", "", CALL).status, 200);
    assert_eq!(http2.seen()[0].path, "/api/two");
}

/// The port is the test's own before it is the gateway's.
#[test]
fn an_origin_that_never_was_there_is_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::start_on(port);
    let gateway = drop_in(&port.to_string(), &[]);
    node.kill();
    assert_error(&post(&gateway, "/v1/a2a/jsonrpc", "", CALL), 503, "origin_unavailable");
}
