//! The access log in other forms, at a share, and on a disk or a reader that does not keep up.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::wait_until;

fn gateway(access_log: &str) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = format!("access_log: {access_log}");
    (setup.start(), node)
}

fn text(gateway: &Gateway) -> String {
    std::fs::read_to_string(gateway.dir().join("access.log")).unwrap_or_default()
}

fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\n{headers}\r\n").into_bytes()
}

#[test]
fn the_combined_format_has_its_nine_parts_whatever_a_client_sends() {
    let (gateway, _node) = gateway("{ path: access.log, format: combined, headers: [referer] }");
    let mut connection = gateway.connect("alice");
    let evil = "a\" 200 1 \"-\" \"x\t[forged]";
    let headers = format!("User-Agent: {evil}\r\nReferer: https://r.example/\"\r\n");
    assert_eq!(connection.exchange(&get("/echo?secret=1", &headers)).unwrap().status, 200);
    assert_eq!(connection.exchange(&get("/nowhere", "")).unwrap().status, 404);
    wait_until("both lines are written", || text(&gateway).lines().count() == 2);
    let text = text(&gateway);
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("127.0.0.1 - alice [") && lines[1].contains("] \"GET /nowhere HTTP/1.1\" 404 "),
        "{text}"
    );
    assert!(lines[0].contains("\"GET /echo HTTP/1.1\" 200 "), "{text}");
    assert!(lines[0].ends_with(r#""https://r.example/\"" "a\" 200 1 \"-\" \"x\t[forged]""#), "{text}");
    assert!(lines[1].ends_with("\"-\" \"-\""), "{text}");
}

#[test]
fn a_template_is_written_as_the_operator_wants_it() {
    let format = r#"{ template: '{status} {route} {peer} {rpc_method} {header.x-note} "{user_agent}" {duration_us}' }"#;
    let (gateway, _node) = gateway(&format!("{{ path: access.log, format: {format}, headers: [X-Note] }}"));
    let headers = "X-Note: two words\r\nUser-Agent: two words\r\n";
    gateway.connect("alice").exchange(&get("/echo", headers)).unwrap();
    // No line of the log: it has no place in an operator's own.
    let _ = gateway.client_with(None).connect(gateway.address).and_then(|mut c| c.exchange(&get("/echo", "")));
    wait_until("the line is written", || !text(&gateway).is_empty());
    let line = text(&gateway);
    assert!(line.starts_with("200 echo alice - two\\u0020words \"two words\" "), "{line}");
    assert!(line.trim_end().rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 0, "{line}");
    wait_until("the handshake is in the process' log", || gateway.stderr().contains("handshake_failed"));
    assert_eq!(text(&gateway).lines().count(), 1);
}

#[test]
fn headers_are_added_by_name_and_redacted_if_asked() {
    let (gateway, _node) = gateway("{ headers: [a2a-version, x-user], redact: [x-user, client] }");
    let headers = "A2A-Version: 0.3\r\nX-User: mallory\r\nAuthorization: Bearer s3cr3t\r\nX-Request-Id: h-1\r\n";
    gateway.connect("alice").exchange(&get("/echo", headers)).unwrap();
    let line = gateway.wait_log(|l| l["request_id"] == "h-1");
    assert_eq!((&line["header.a2a-version"], &line["header.x-user"]), (&"0.3".into(), &"[redacted]".into()), "{line}");
    assert_eq!(line["client"], "[redacted]");
    // A handshake that fails tells no more of its client.
    let _ = gateway.client_with(None).connect(gateway.address).and_then(|mut c| c.exchange(&get("/echo", "")));
    gateway.wait_log(|l| l["event"] == "handshake_failed" && l["result"] == "no_certificate");
    let said = gateway.stdout();
    assert!(!["s3cr3t", "mallory", "127.0.0.1\",\"result"].iter().any(|text| said.contains(text)), "{said}");
}

#[test]
fn good_requests_can_be_sampled_and_bad_ones_are_all_there() {
    let (mut gateway, _node) = gateway("{ path: access.log, sample: 10% }");
    let mut connection = gateway.connect("alice");
    for _ in 0..200 {
        assert_eq!(connection.exchange(&get("/echo", "")).unwrap().status, 200);
        assert_eq!(connection.exchange(&get("/nowhere", "")).unwrap().status, 404);
    }
    drop(connection);
    gateway.signal(Signal::SIGTERM);
    gateway.wait_exit();
    let text = text(&gateway);
    let good = text.matches("\"status\":200").count();
    assert!((15..=25).contains(&good), "{good} of 200");
    assert_eq!(text.matches("\"status\":404").count(), 200);
}

#[test]
fn a_file_is_rotated_by_size_and_by_others_too() {
    let (mut gateway, _node) = gateway("{ path: access.log, rotate: { size: 64KiB, keep: 50 } }");
    let mut connection = gateway.connect("alice");
    let agent = format!("User-Agent: {}\r\n", "x".repeat(250));
    let path = |name: &str| gateway.dir().join(name);
    let mut sent = 0;
    while !(path("access.log.2").exists() && path("access.log").exists()) {
        assert_eq!(connection.exchange(&get("/echo", &agent)).unwrap().status, 200);
        sent += 1;
        assert!(sent < 5000, "nothing is rotated");
    }
    // It may be in the middle of the next rotation.
    wait_until("it can be moved away", || std::fs::rename(path("access.log"), path("moved")).is_ok());
    gateway.signal(Signal::SIGUSR1);
    wait_until("a new file is there", || path("access.log").exists());
    connection.exchange(&get("/echo", &agent)).unwrap();
    drop(connection);
    let numbered = (1..50).map(|n| path(&format!("access.log.{n}")));
    let files: Vec<_> = numbered.chain([path("moved"), path("access.log")]).collect();
    gateway.signal(Signal::SIGTERM);
    gateway.wait_exit();
    let files: Vec<_> = files.into_iter().filter(|file| file.exists()).collect();
    let whole = |file: &Path| {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.len() <= 64 << 10, "{} bytes", text.len());
        text.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["path"] == "/echo").count()
    };
    assert_eq!(files.iter().map(|file| whole(file)).sum::<usize>(), sent + 1, "no line is lost or torn");
}

#[test]
fn a_reader_that_does_not_read_slows_no_request() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    // Long lines fill the pipe, the writer's buffer and the queue (8 MiB each) with fewer requests.
    let names: Vec<_> = (0..30).map(|n| format!("x-{n}")).collect();
    setup.top = format!("access_log: {{ path: fifo, headers: [{}] }}", names.join(", "));
    let fifo = setup.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut gateway = setup.start();
    let value = "\u{1}é".replace('\u{1}', "").repeat(200);
    let headers: String = names.iter().map(|name| format!("{name}: {value}\r\n")).collect();
    let request = get("/nowhere", &headers);
    let dropped = |gateway: &Gateway| gateway.metric("hive_gateway_access_log_dropped_total", &[]);
    let mut connection = gateway.connect("alice");
    let (mut times, mut sent) = (Vec::new(), 0);
    while sent % 100 != 0 || sent == 0 || dropped(&gateway) < 100.0 {
        let started = Instant::now();
        assert_eq!(connection.exchange(&request).unwrap().status, 404);
        times.push(started.elapsed());
        sent += 1;
        assert!(sent < 20_000, "nothing is dropped");
    }
    times.sort_unstable();
    // A wait for the reader would last for ever; one in a thousand may meet a busy machine.
    assert!(times[times.len() * 999 / 1000] < Duration::from_secs(1), "{:?}", times.last());
    // Nor does it hold up the end.
    let started = Instant::now();
    gateway.signal(Signal::SIGTERM);
    gateway.wait_exit();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
