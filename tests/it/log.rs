//! The access log: one JSON line for each request, complete, and without secrets.

use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const SECRET: &str = "s3cr3t-that-nobody-may-read";

fn gateway() -> (Gateway, Node) {
    let node = Node::start();
    (Setup::new(&[node.address]).start(), node)
}

fn call(extra: &str) -> Vec<u8> {
    let body = r#"{"jsonrpc":"2.0","id":"call-7","method":"message/send","params":{}}"#;
    format!(
        "POST /api/a2a/jsonrpc?token={SECRET} HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n\
         User-Agent: tester/1\r\nX-Request-Id: log-1\r\nContent-Length: {}\r\n{extra}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn sigusr1_opens_the_log_anew_after_it_was_moved() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "access_log: { path: access.log }".into();
    let gateway = setup.start();
    let path = gateway.dir().join("access.log");
    let moved = gateway.dir().join("access.log.1");
    let has_a_line = |file: &std::path::Path| std::fs::read_to_string(file).is_ok_and(|t| t.contains("\"status\":200"));
    assert_eq!(gateway.connect("alice").exchange(&call("")).unwrap().status, 200);
    wait_until("the line is written", || has_a_line(&path));
    std::fs::rename(&path, &moved).unwrap();
    gateway.signal(nix::sys::signal::Signal::SIGUSR1);
    wait_until("a new file is there", || path.exists());
    assert_eq!(gateway.connect("alice").exchange(&call("")).unwrap().status, 200);
    wait_until("the next line is in the new file", || has_a_line(&path));
    assert!(has_a_line(&moved));
}

#[test]
fn a_line_says_who_asked_what_and_what_came_of_it() {
    let (gateway, node) = gateway();
    assert_eq!(gateway.connect("alice").exchange(&call("")).unwrap().status, 200);
    let line = gateway.wait_log(|l| l["request_id"] == "log-1");
    for (field, value) in [
        ("listener", json!("front")),
        ("client", json!("127.0.0.1")),
        ("peer", json!("alice")),
        ("spiffe_id", json!("spiffe://mesh.test/hive/alice")),
        ("tls_version", json!("TLSv1.3")),
        ("sni", json!("gateway.test")),
        ("http_version", json!("HTTP/1.1")),
        ("method", json!("POST")),
        ("host", json!("gateway.test")),
        ("path", json!("/api/a2a/jsonrpc")),
        ("route", json!("a2a")),
        ("rpc_method", json!("message/send")),
        ("rpc_id", json!("call-7")),
        ("status", json!(200)),
        ("bytes_in", json!(67)),
        ("upstream", json!("hive")),
        ("node", json!(format!("http://{}", node.address))),
        ("tries", json!(1)),
        ("user_agent", json!("tester/1")),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["duration_us"].as_u64().is_some_and(|us| us > 0), "{line}");
    assert!(line["bytes_out"].as_u64().is_some_and(|n| n > 0), "{line}");
    assert!(line["trace_id"].as_str().is_some_and(|t| t.len() == 32), "{line}");
    let trace = node.only().header("traceparent").unwrap();
    assert!(trace.contains(line["trace_id"].as_str().unwrap()), "the trace that the node got");
    let stamp = line["time"].as_str().unwrap_or_else(|| panic!("no time in {line}"));
    assert!(stamp.len() >= 20 && stamp.ends_with('Z') && stamp.as_bytes()[10] == b'T', "RFC 3339 in UTC: {stamp}");
}

#[test]
fn http_2_requests_are_logged_each() {
    let (gateway, _node) = gateway();
    let h2 = H2::connect(&gateway.client("bob"), gateway.address).unwrap();
    for n in 0..3 {
        let request = H2::request("GET", "/bob").header("x-request-id", format!("h2-{n}"));
        assert_eq!(h2.send(request.body(()).unwrap(), b"").unwrap().status, 200);
    }
    for n in 0..3 {
        let line = gateway.wait_log(|l| l["request_id"] == format!("h2-{n}"));
        assert_eq!((&line["http_version"], &line["peer"]), (&json!("HTTP/2"), &json!("bob")), "{line}");
    }
}

#[test]
fn refusals_are_logged_with_their_code() {
    let (gateway, _node) = gateway();
    let mut connection = gateway.connect("carol");
    connection.exchange(b"GET /nowhere HTTP/1.1\r\nHost: gateway.test\r\nX-Request-Id: r-1\r\n\r\n").unwrap();
    connection.exchange(b"GET /bob HTTP/1.1\r\nHost: gateway.test\r\nX-Request-Id: r-2\r\n\r\n").unwrap();
    let line = gateway.wait_log(|l| l["request_id"] == "r-1");
    assert_eq!((&line["status"], &line["refusal"]), (&json!(404), &json!("not_found")), "{line}");
    assert!(line["peer"].is_null() && line["spiffe_id"] == "spiffe://mesh.test/hive/carol", "{line}");
    let line = gateway.wait_log(|l| l["request_id"] == "r-2");
    assert_eq!((&line["status"], &line["refusal"]), (&json!(403), &json!("peer_not_allowed")), "{line}");
    assert_eq!(line["route"], "bobs", "{line}");
}

#[test]
fn a_malformed_request_is_logged_too() {
    let (gateway, _node) = gateway();
    gateway.connect("alice").exchange(b"GET /a//b HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    let line = gateway.wait_log(|l| l["status"] == 400);
    assert_eq!((&line["refusal"], &line["path"]), (&json!("bad_request"), &json!("/a//b")), "{line}");
    assert!(line["refusal_detail"].is_string() && line["peer"] == "alice", "{line}");
    // Before there is a request, too, and both are counted.
    gateway.connect("alice").exchange(b"GET /echo HTTP/1.1\r\nHost gateway.test\r\n\r\n").unwrap();
    gateway.wait_metric("hive_gateway_http_requests_total", &[("path", "unmatched"), ("code", "400")], 2.0);
    gateway.wait_metric("hive_gateway_peer_requests_total", &[("peer", "alice"), ("code", "4xx")], 2.0);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "bad_request")], 2.0);
}

#[test]
fn odd_text_from_a_client_stays_inside_its_line() {
    let (gateway, _node) = gateway();
    let mut connection = gateway.connect("alice");
    connection
        .exchange(b"GET /echo/\"},{%22 HTTP/1.1\r\nHost: gateway.test\r\nUser-Agent: a\"\\\t\xc3\x28\xe2\x80\xa8b\r\nX-Request-Id: odd-1\r\n\r\n")
        .unwrap();
    let line =
        gateway.wait_log(|l| l["request_id"] == "odd-1" || l["path"].as_str().is_some_and(|p| p.contains("},{")));
    assert!(line.is_object());
}

#[test]
fn neither_log_nor_answers_show_a_secret() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let proof = "gateway-proof-0123456789abcdef0123456789";
    setup.top = format!("hive: {{ gateway_auth_secret: {proof} }}");
    let mut gateway = setup.start();
    let extra = format!(
        "Authorization: Bearer {SECRET}\r\nCookie: session={SECRET}\r\nX-Hive-Federation-JWT: {SECRET}\r\n\
         X-Hive-Public-A2A-Key: {SECRET}\r\nX-Hive-Federation-Proxy-Operator-Token: {SECRET}\r\n"
    );
    let mut connection = gateway.connect("alice");
    let answer = connection.exchange(&call(&extra)).unwrap();
    assert_eq!(answer.status, 200);
    let refused = format!("GET /nowhere?{SECRET} HTTP/1.1\r\nHost: gateway.test\r\n{extra}\r\n");
    let answer2 = connection.exchange(refused.as_bytes()).unwrap();
    assert!(!answer2.text().contains(SECRET));
    gateway.wait_log(|l| l["status"] == 404);
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    gateway.wait_exit();
    let said = gateway.stdout() + &gateway.stderr();
    assert!(!said.contains(SECRET), "a client's secret is in the log:\n{said}");
    assert!(!said.contains(proof), "the gateway's own secret is in the log");
}

#[test]
fn the_log_goes_to_a_file_and_is_whole_at_the_end() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "access_log: { path: access.log }".into();
    let mut gateway = setup.start();
    let mut connection = gateway.connect("alice");
    for _ in 0..200 {
        connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    }
    drop(connection);
    let file = gateway.dir().join("access.log");
    wait_until("the log is flushed within moments", || {
        std::fs::read_to_string(&file).is_ok_and(|t| t.lines().count() > 0)
    });
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(gateway.wait_exit().success());
    let text = std::fs::read_to_string(&file).unwrap();
    let requests = text.lines().filter(|l| {
        let line: serde_json::Value = serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"));
        line["path"] == "/echo"
    });
    assert_eq!(requests.count(), 200);
    assert!(gateway.access_log().iter().all(|l| l["path"] != "/echo"), "not to standard output as well");
}

#[test]
fn the_log_can_be_off() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "access_log: off".into();
    let mut gateway = setup.start();
    gateway.client("alice").get(gateway.address, "/echo").unwrap();
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    gateway.wait_exit();
    assert!(gateway.access_log().iter().all(|l| l["path"] != "/echo"));
}

#[test]
fn a_stream_cut_by_the_client_is_logged_with_what_was_sent() {
    let node = Node::start_with(|_, exchange| {
        exchange.begin_stream()?;
        exchange.event("one")?;
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    connection.send(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Request-Id: cut-1\r\n\r\n").unwrap();
    connection.head().unwrap();
    connection.chunk().unwrap();
    connection.vanish();
    let line = gateway.wait_log(|l| l["request_id"] == "cut-1");
    assert_eq!(line["status"], 200, "{line}");
    assert!(line["bytes_out"].as_u64().is_some_and(|n| n > 0), "{line}");
    assert!(line["error"].is_string(), "that it was cut is said: {line}");
}

/// A gateway both of whose outputs go to one pipe that is full already, and that nobody reads.
fn with_a_stuck_reader() -> (Gateway, Node, PipeReader) {
    let node = Node::start();
    let (reader, mut writer) = pipe().unwrap();
    let set_flags = |flags: libc::c_int| {
        // SAFETY: the descriptor is open, and the call changes only its flags.
        assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) }, 0);
    };
    set_flags(libc::O_NONBLOCK);
    while (&writer).write(&[b'\n'; 4096]).is_ok() {}
    while (&writer).write(b"\n").is_ok() {}
    set_flags(0);
    writer.flush().unwrap();
    let mut setup = Setup::new(&[node.address]);
    setup.output = Some(writer);
    (setup.start(), node, reader)
}

#[test]
fn a_stuck_reader_of_the_process_log_holds_up_no_request_and_learns_later_what_it_missed() {
    const LOST: &str = "hive_gateway_process_log_dropped_total";
    let (gateway, _node, mut reader) = with_a_stuck_reader();
    let get = || assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 200);
    get();
    let long = format!("/v1/log-level?filter=info,{}=off", "x".repeat(900));
    // Each is a line that the queue soon has no room for.
    for n in 0.. {
        assert!(n < 2000, "no line is lost");
        assert_eq!(gateway.admin_ask("POST", &long).status, 200);
        if n % 50 == 0 && gateway.metric(LOST, &[]) > 0.0 {
            break;
        }
    }
    get();
    let read = Arc::new(Mutex::new(Vec::new()));
    let sink = read.clone();
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut part) {
            sink.lock().unwrap().extend_from_slice(&part[..count]);
        }
    });
    let said = || String::from_utf8_lossy(&read.lock().unwrap()).into_owned();
    wait_until("the loss is told, and no more than that", || {
        let said = said();
        let told = said.lines().rev().find_map(|l| l.split_once(" are lost since the start")?.0.rsplit(' ').next());
        told.and_then(|n| n.parse().ok()) == Some(gateway.metric(LOST, &[]))
    });
    assert!(said().contains(&"x".repeat(900)), "what had room is whole");
}

#[test]
fn a_stuck_reader_of_the_process_log_does_not_keep_the_process() {
    let (mut gateway, _node, _reader) = with_a_stuck_reader();
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.wait_exit().success());
}

#[test]
fn a_request_that_the_parser_refuses_is_logged_with_what_it_had() {
    let (gateway, _node) = gateway();
    let refused = |request: &str| {
        let answer = gateway.connect("alice").exchange(request.as_bytes()).unwrap();
        assert_eq!(answer.status, 400);
        let id = answer.header("x-request-id").unwrap().to_owned();
        let line = gateway.wait_log(|l| l["request_id"] == id.as_str());
        assert_eq!((&line["refusal"], &line["peer"]), (&json!("bad_request"), &json!("alice")), "{line}");
        assert_eq!(line["bytes_out"], json!(answer.text().len()), "{line}");
        let last = gateway.status()["refusals"]["last"][0].clone();
        assert_eq!(last["request_id"], id.as_str(), "{last}");
        (line, last)
    };
    let bad_line = format!("GET /echo/a?{SECRET} HTTP/1.1\r\nHost gateway.test\r\n\r\n");
    let (line, last) = refused(&bad_line);
    let told = ["method", "path", "http_version"].map(|field| line[field].as_str().unwrap_or("").to_owned());
    assert_eq!(told, ["GET", "/echo/a", "HTTP/1.1"], "{line}");
    assert!(!line.to_string().contains(SECRET) && !last.to_string().contains(SECRET), "{line}");
    assert!(line.get("host").is_none(), "{line}");
}

#[test]
fn what_is_no_request_line_is_logged_without_what_it_never_had() {
    let (gateway, _node) = gateway();
    let answer = gateway.connect("alice").exchange(b"(\x01) nonsense\r\n\r\n").unwrap();
    assert_eq!(answer.status, 400);
    let line = gateway.wait_log(|l| l["status"] == 400);
    for field in ["http_version", "method", "path", "host"] {
        assert!(line.get(field).is_none(), "{field} in {line}");
    }
}
