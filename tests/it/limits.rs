//! What a client may take up, and how long it may take.

use std::io::Read;
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::support::client::Connection;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::{self, H2};
use crate::support::node::Node;
use crate::support::{PATIENCE, wait_until};

const GET: &[u8] = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const REFUSED: &str = "hive_gateway_connections_refused_total";
const CLOSED: &str = "hive_gateway_connections_closed_total";

fn with_limits(limits: &str) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = limits.into();
    (setup.start(), node)
}

fn with_timeouts(timeouts: &str) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = timeouts.into();
    (setup.start(), node)
}

const fn ms(range: Range<u64>) -> Range<Duration> {
    Duration::from_millis(range.start)..Duration::from_millis(range.end)
}

#[track_caller]
fn assert_closed(connection: &mut Connection, within: Range<Duration>) {
    let after = connection.closed_after().expect("the connection stays open");
    assert!(within.contains(&after), "closed after {after:?}");
}

#[test]
fn a_silent_client_is_cut_in_its_handshake() {
    let (gateway, _node) = with_timeouts("handshake: 500ms");
    let mut connection = Connection::plain(gateway.address).unwrap();
    assert_closed(&mut connection, ms(350..3000));
    gateway.wait_metric("hive_gateway_tls_handshakes_total", &[("result", "timeout")], 1.0);
}

#[test]
fn a_header_that_dribbles_in_is_cut() {
    let (gateway, _node) = with_timeouts("request_header: 500ms");
    let mut connection = gateway.connect("alice");
    let start = Instant::now();
    connection.send(b"GET /echo HTTP/1.1\r\nX: ").unwrap();
    let mut other = gateway.connect("bob");
    while start.elapsed() < Duration::from_secs(5) && connection.send(b"y").is_ok() {
        // The time of an exchange lies between two drops.
        other.exchange(GET).unwrap();
    }
    assert!(ms(350..3000).contains(&start.elapsed()), "cut after {:?}", start.elapsed());
    gateway.wait_metric(CLOSED, &[("reason", "header_timeout")], 1.0);
}

#[test]
fn a_client_that_never_begins_its_first_request_is_cut() {
    let (gateway, _node) = with_timeouts("request_header: 500ms, idle: 1s");
    let mut connection = gateway.connect("alice");
    assert_closed(&mut connection, ms(350..4000));
}

#[test]
fn a_silent_http_2_client_is_cut_before_its_preface() {
    let (gateway, _node) = with_timeouts("request_header: 500ms");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = h2_client::tls(&gateway.client("alice"), gateway.address).await.unwrap();
        let start = Instant::now();
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
        let _ = tokio::time::timeout(PATIENCE, read).await.expect("the connection stays open");
        assert!(ms(350..3000).contains(&start.elapsed()), "cut after {:?}", start.elapsed());
    });
}

#[test]
fn a_client_that_stops_within_an_http_2_frame_is_cut() {
    let (gateway, _node) = with_timeouts("request_header: 500ms");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = h2_client::tls(&gateway.client("alice"), gateway.address).await.unwrap();
        // Preface, empty SETTINGS, and the first half of a HEADERS frame's own header.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40").await.unwrap();
        let start = Instant::now();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it stays open");
        assert!(ms(350..3000).contains(&start.elapsed()), "cut after {:?}", start.elapsed());
    });
}

#[test]
fn a_client_that_heeds_no_goaway_is_cut_when_nothing_runs() {
    let (gateway, _node) = with_timeouts("connection_age: 500ms");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = h2_client::tls(&gateway.client("alice"), gateway.address).await.unwrap();
        // Preface and empty SETTINGS; no answer to what the gateway sends, PING above all.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let start = Instant::now();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it stays open");
        assert!(ms(2000..8000).contains(&start.elapsed()), "cut after {:?}", start.elapsed());
    });
}

#[test]
fn an_old_connection_is_closed_while_it_rests() {
    let (gateway, _node) = with_timeouts("connection_age: 700ms");
    let mut connection = gateway.connect("alice");
    assert_eq!(connection.exchange(GET).unwrap().status, 200);
    assert_closed(&mut connection, ms(300..4000));
    gateway.wait_metric(CLOSED, &[("reason", "age")], 1.0);
}

#[test]
fn an_idle_connection_is_closed() {
    let (gateway, _node) = with_timeouts("idle: 700ms");
    let mut connection = gateway.connect("alice");
    assert_eq!(connection.exchange(GET).unwrap().status, 200);
    assert_closed(&mut connection, ms(500..4000));
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    assert_eq!(h2.get("/echo").unwrap().status, 200);
    let lived = h2.wait_ended();
    assert!(ms(500..4000).contains(&lived), "HTTP/2 closed after {lived:?}");
    gateway.wait_metric(CLOSED, &[("reason", "idle")], 2.0);
}

#[test]
fn a_running_request_is_not_idle() {
    let node = Node::start_with(|_, exchange| {
        // The answer's slowness is what the test is about.
        std::thread::sleep(Duration::from_millis(1200));
        exchange.answer(200, "", b"late")
    });
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = "idle: 500ms, request_header: 500ms, request_body: 500ms".into();
    let gateway = setup.start();
    assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().text(), "late");
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    assert_eq!(h2.get("/echo").unwrap().text(), "late");
}

#[test]
fn a_header_beyond_the_limit_is_431() {
    let (gateway, node) = with_limits("request_header: 4KiB");
    for fields in [format!("X-Long: {}\r\n", "a".repeat(5000)), format!("X-Many: {}\r\n", "a".repeat(90)).repeat(50)] {
        let mut connection = gateway.connect("alice");
        let request = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n{fields}\r\n");
        // The gateway may answer and close before it has read all of it.
        let _ = connection.send(request.as_bytes());
        assert_eq!(connection.response(false).unwrap().status, 431);
        assert_closed(&mut connection, ms(0..5000));
    }
    let mut connection = gateway.connect("alice");
    let request = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Long: {}\r\n\r\n", "a".repeat(3500));
    assert_eq!(connection.exchange(request.as_bytes()).unwrap().status, 200);
    assert_eq!(node.count(), 1);
}

/// RFC 9112, section 3; and the older gateway's clients know it by this name.
#[test]
fn a_request_line_beyond_the_limit_is_414() {
    let (gateway, node) = with_limits("request_header: 4KiB");
    // In one piece; in several, of which none has the line's end within the limit; and without an end.
    let long = |length: usize| format!("GET /echo?{} HTTP/1.1\r\nHost: gateway.test\r\n\r\n", "a".repeat(length));
    let endless = format!("GET /{}", "a".repeat(9000));
    for request in [long(4200), long(40_000), endless] {
        let mut connection = gateway.connect("alice");
        // The gateway may answer and close before it has read all of it.
        let _ = connection.send(request.as_bytes());
        let answer = connection.response(false).unwrap();
        assert_eq!((answer.status, answer.json()["error"].as_str()), (414, Some("uri_too_long")));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_closed(&mut connection, ms(0..5000));
    }
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "uri_too_long")], 3.0);
    // The line fits, and what follows does not.
    let mut connection = gateway.connect("alice");
    let fields = format!("X-Long: {}\r\n", "a".repeat(2000));
    let _ = connection.send(long(3000).replace("\r\n\r\n", &format!("\r\n{fields}\r\n")).as_bytes());
    assert_eq!(connection.response(false).unwrap().status, 431);
    assert_eq!(node.count(), 0);
}

#[test]
fn an_endless_header_is_cut_at_the_limit() {
    let (gateway, node) = with_limits("request_header: 4KiB");
    let mut connection = gateway.connect("alice");
    connection.send(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Long: ").unwrap();
    let mut sent = 0;
    while sent < 64 << 20 && connection.send(&[b'a'; 4096]).is_ok() {
        sent += 4096;
    }
    assert!(sent < 16 << 20, "{sent} bytes of header were taken");
    assert_eq!(node.count(), 0);
}

#[test]
fn a_header_beyond_the_limit_is_refused_on_http_2() {
    let (gateway, node) = with_limits("request_header: 4KiB");
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let request = H2::request("GET", "/echo").header("x-long", "a".repeat(5000));
    match h2.send(request.body(()).unwrap(), b"") {
        Ok(answer) => assert_eq!(answer.status, 431),
        Err(reset) => println!("refused by {reset}"),
    }
    assert_eq!(node.count(), 0);
    assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 200);
}

/// Opens connections until one is closed before its handshake; the ones that live.
fn fill(gateway: &Gateway, most: usize) -> Vec<Connection> {
    let client = gateway.client("alice");
    let mut held = Vec::new();
    for _ in 0..most {
        match client.connect(gateway.address).and_then(|mut c| c.exchange(GET).map(|_| c)) {
            Ok(connection) => held.push(connection),
            Err(_) => return held,
        }
    }
    held
}

#[test]
fn connections_of_one_address_are_limited_and_a_closed_one_makes_room() {
    let (gateway, _node) = with_limits("connections_per_address: 3");
    let mut held = fill(&gateway, 10);
    assert_eq!(held.len(), 3);
    gateway.wait_metric(REFUSED, &[("listener", "front"), ("reason", "per_address")], 1.0);
    held.pop();
    gateway.wait_metric("hive_gateway_connections", &[], 2.0);
    assert_eq!(fill(&gateway, 1).len(), 1);
    assert!(held.iter_mut().all(|c| c.exchange(GET).unwrap().status == 200), "the others are not touched");
}

#[test]
fn an_address_is_limited_by_itself() {
    let (gateway, _node) = with_limits("connections_per_address: 2");
    let _held = fill(&gateway, 10);
    // 127.0.0.2 is another address of this machine.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&gateway.address.into()).unwrap();
    let stream = gateway.client("alice").ssl(b"\x08http/1.1").connect(TcpStream::from(socket));
    assert!(stream.is_ok(), "{:?}", stream.err());
}

/// An ingress has one address and everybody's connections.
#[test]
fn a_trusted_proxy_is_not_limited_as_an_address() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.limits = "connections_per_address: 2, new_connections_per_address: 3/min, handshakes_per_address: 1".into();
    setup.listener = "    trusted_proxies: [127.0.0.1]\n".into();
    let gateway = setup.start();
    assert_eq!(fill(&gateway, 8).len(), 8);
    assert_eq!(gateway.metric(REFUSED, &[]), 0.0);
}

#[test]
fn connections_in_total_are_limited() {
    let (gateway, _node) = with_limits("connections: 4");
    let held = fill(&gateway, 10);
    assert_eq!(held.len(), 4);
    gateway.wait_metric(REFUSED, &[("reason", "total")], 1.0);
}

#[test]
fn half_open_handshakes_count_as_connections() {
    let (gateway, _node) = with_limits("connections_per_address: 3");
    let mut silent: Vec<_> = (0..3).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    let accepted = || gateway.metric("hive_gateway_connections_accepted_total", &[]);
    // The three, and one that looked whether the gateway listens.
    wait_until("they are accepted", || accepted() == 4.0);
    assert!(gateway.client("alice").get(gateway.address, "/echo").is_err());
    gateway.wait_metric(REFUSED, &[("reason", "per_address")], 1.0);
    silent.clear();
    wait_until("there is room again", || gateway.client("alice").get(gateway.address, "/echo").is_ok());
}

#[test]
fn new_connections_of_one_address_are_limited_in_their_rate() {
    let (gateway, _node) = with_limits("new_connections_per_address: 5/min");
    // The start of the gateway itself made one or two connections to see whether it listens.
    let mut refused = 0;
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(gateway.address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // A refused connection is closed at once, an admitted one waits for a ClientHello.
        match tcp.read(&mut [0]) {
            Ok(_) => refused += 1,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => refused += 1,
            Err(_) => {}
        }
    }
    assert!((15..20).contains(&refused), "{refused} of 20 were refused");
    gateway.wait_metric(REFUSED, &[("reason", "rate")], f64::from(refused));
}

#[test]
fn a_connection_ends_after_its_number_of_requests() {
    let (gateway, node) = with_limits("requests_per_connection: 3");
    let mut connection = gateway.connect("alice");
    for n in 1..=3 {
        let answer = connection.exchange(GET).unwrap();
        assert_eq!(answer.status, 200);
        let closes = answer.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        assert_eq!(closes, n == 3, "the last answer says that it is the last");
    }
    assert_closed(&mut connection, ms(0..2000));
    assert_eq!(node.count(), 3);
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut served = 0;
    while served < 10 && h2.get("/echo").is_ok_and(|a| a.status == 200) {
        served += 1;
    }
    assert!((3..=4).contains(&served), "{served} requests on one HTTP/2 connection");
    h2.wait_ended();
}

#[test]
fn an_old_connection_takes_no_new_request() {
    let (gateway, _node) = with_timeouts("connection_age: 1s");
    let mut connection = gateway.connect("alice");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) && connection.exchange(GET).is_ok_and(|a| a.status == 200) {}
    assert!(ms(800..4000).contains(&start.elapsed()), "HTTP/1.1: {:?}", start.elapsed());
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) && h2.get("/echo").is_ok_and(|a| a.status == 200) {}
    assert!(ms(800..4000).contains(&start.elapsed()), "HTTP/2: {:?}", start.elapsed());
}

#[test]
fn a_stream_outlives_the_connection_s_age() {
    let node = Node::start_with(|_, exchange| {
        exchange.begin_stream()?;
        for n in 0..5 {
            exchange.event(&n.to_string())?;
            // Longer than the connection may take requests, all in all.
            std::thread::sleep(Duration::from_millis(300));
        }
        exchange.end_stream()
    });
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = "connection_age: 1s, idle: 500ms".into();
    let gateway = setup.start();
    let answer = gateway.client("alice").get(gateway.address, "/echo").unwrap();
    assert_eq!(answer.text().matches("data: ").count(), 5);
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    assert_eq!(h2.get("/echo").unwrap().text().matches("data: ").count(), 5);
}

#[test]
fn a_client_that_leaves_its_answer_unread_is_cut() {
    let node = Node::start_with(|_, exchange| {
        let _ = exchange.answer(200, "", &vec![b'x'; 32 << 20]);
        exchange.close();
        Ok(())
    });
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = "write: 700ms".into();
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    connection.send(GET).unwrap();
    gateway.wait_metric(CLOSED, &[("reason", "write_timeout")], 1.0);
    assert!(connection.rest().len() < 32 << 20, "cut before its end");
    // HTTP/2: no window is given, so the answer can't go on.
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let (future, _) = h2.begin(H2::request("GET", "/echo").body(()).unwrap(), true).unwrap();
    let _unread = h2.head(future).unwrap();
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
}

#[test]
fn too_many_headers_are_refused() {
    let (gateway, node) = with_limits("request_header: 64KiB");
    let many: String = (0..150).map(|n| format!("X-{n}: a\r\n")).collect();
    let mut connection = gateway.connect("alice");
    let answer = connection.exchange(format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n{many}\r\n").as_bytes());
    let status = answer.unwrap().status;
    assert!(matches!(status, 400 | 431), "{status}");
    assert_eq!(node.count(), 0);
}

#[test]
fn a_flood_of_resets_does_not_stop_the_gateway() {
    let (gateway, _node) = with_limits("");
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    // CVE-2023-44487: open and reset at once.
    for _ in 0..5_000 {
        match h2.begin(H2::request("POST", "/echo").body(()).unwrap(), false) {
            Ok((_, mut body)) => {
                let _ = body.send_data(Bytes::from_static(b"x"), false);
                body.send_reset(h2::Reason::CANCEL);
            }
            Err(_) => break,
        }
    }
    assert_eq!(gateway.client("bob").get(gateway.address, "/echo").unwrap().status, 200);
    drop(h2);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
}

#[test]
fn sigterm_lets_running_requests_end_and_takes_no_new_ones() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let node = Node::start_with(move |request, exchange| {
        if request.text().contains("X-Hold") {
            let _ = gate.lock().unwrap().recv();
        }
        exchange.answer(200, "", b"after the signal")
    });
    let mut setup = Setup::new(&[node.address]);
    setup.server = "drain: 10s".into();
    let mut gateway = setup.start();
    let mut running = gateway.connect("alice");
    running.send(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Hold: yes\r\n\r\n").unwrap();
    node.wait_count(1);
    let mut idle = gateway.connect("bob");
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("no new connection is taken", || {
        // A path that goes to no node: one that got in just before the signal's arrival would wait there for `go` too.
        gateway.client("bob").get(gateway.address, "/nowhere").is_err()
    });
    go.send(()).unwrap();
    assert_eq!(running.response(false).unwrap().text(), "after the signal");
    let signalled = Instant::now();
    drop(go);
    assert!(gateway.wait_exit().success());
    assert!(signalled.elapsed() < Duration::from_secs(8), "the drain is not slept in full");
    let _ = idle.closed_after();
}
