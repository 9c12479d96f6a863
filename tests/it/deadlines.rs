//! One deadline for everything up to the first byte, and one for the whole.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::certs::{Pki, server_leaf};
use crate::support::client::Connection;
use crate::support::gateway::{Gateway, ROUTES, Setup, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;

const POST: &[u8] = b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}";

fn with_timeouts(setup: &mut Setup, timeouts: &str) {
    setup.routes = ROUTES.replace("body: { limit: 16MiB }", &format!("timeouts: {{ {timeouts} }}"));
}

fn sent(gateway: &Gateway) -> Connection {
    let mut connection = gateway.connect("alice");
    connection.send(POST).unwrap();
    connection
}

/// In time: not before it, and long before any other limit.
#[track_caller]
fn assert_after(since: Instant, limit: Duration) {
    let took = since.elapsed();
    assert!(took >= limit.mul_f64(0.9) && took < limit + Duration::from_secs(5), "{took:?}");
}

#[test]
fn waiting_for_a_connection_is_part_of_the_response_time() {
    let node = Node::start_with(|_, exchange| {
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let mut setup = Setup::new(&[]);
    let more = "circuit_breaker: { max_connections: 1, pending_timeout: 1h }, health_check: { enabled: false }";
    setup.upstreams = upstream("hive", "http", &[node.address], more);
    with_timeouts(&mut setup, "response: 700ms");
    let gateway = setup.start();
    let _first = sent(&gateway);
    node.wait_count(1);
    // The first one's connection comes free at its own deadline, which is earlier than the second one's: so it is held on
    // the other side of that by a third.
    let start = Instant::now();
    let mut second = sent(&gateway);
    let mut third = sent(&gateway);
    for client in [&mut second, &mut third] {
        let answer = client.response(false).unwrap();
        assert_eq!((answer.status, answer.json()["error"].as_str()), (504, Some("upstream_timeout")));
        assert_after(start, Duration::from_millis(700));
    }
    assert!(node.count() <= 3);
    let line = gateway.wait_log(|l| l["status"] == 504 && l["upstream_queue_us"].is_u64());
    assert!(line["duration_us"].as_u64() >= line["upstream_queue_us"].as_u64(), "{line}");
}

#[test]
fn a_request_whose_time_runs_out_in_the_queue_never_reaches_a_node() {
    // Its first answer begins and never ends.
    let node = Node::start_with(|_, exchange| {
        exchange.begin_stream()?;
        exchange.event("one")?;
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let mut setup = Setup::new(&[]);
    let more = "circuit_breaker: { max_connections: 1, pending_timeout: 1h }, health_check: { enabled: false }";
    setup.upstreams = upstream("hive", "http", &[node.address], more);
    with_timeouts(&mut setup, "response: 500ms, stream_idle: 1h");
    let gateway = setup.start();
    let mut stream = sent(&gateway);
    assert_eq!(stream.head().unwrap().status, 200);
    let start = Instant::now();
    let answer = sent(&gateway).response(false).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (504, Some("upstream_timeout")));
    assert_after(start, Duration::from_millis(500));
    assert_eq!(node.count(), 1);
}

#[test]
fn connecting_is_part_of_the_response_time_over_all_tries() {
    // Both take the connection, and never answer the handshake.
    let silent = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = silent.each_ref().map(|l| l.local_addr().unwrap());
    let mesh = Pki::new("Hive");
    let _ = mesh.leaf(&server_leaf(&["hive.internal"]));
    let mut setup = Setup::new(&[]);
    mesh.write_root(setup.dir.path(), "hive-ca");
    let more = "tls: { ca: hive-ca.pem, server_name: hive.internal }, timeouts: { connect: 400ms }, \
                health_check: { enabled: false }";
    setup.upstreams = upstream("hive", "https", &addresses, more);
    with_timeouts(&mut setup, "response: 600ms");
    let gateway = setup.start();
    let start = Instant::now();
    let answer = sent(&gateway).response(false).unwrap();
    assert_eq!(answer.status, 504, "{}", answer.text());
    let took = start.elapsed();
    assert_after(start, Duration::from_millis(600));
    assert!(
        took < Duration::from_millis(790) + Duration::from_secs(1),
        "two tries of 400 ms have 600 together: {took:?}"
    );
    let line = gateway.wait_log(|l| l["status"] == 504);
    assert_eq!(line["tries"], 2, "{line}");
    let connecting = line["upstream_connect_us"].as_u64().unwrap();
    assert!(connecting >= 550_000, "both tries are told: {line}");
}

#[test]
fn a_stream_ends_at_its_longest_time_however_lively_it_is() {
    let node = Node::start_with(|_, exchange| {
        exchange.begin_stream()?;
        loop {
            exchange.event("tick")?;
            // A lively stream is the behaviour under test.
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut setup = Setup::new(&[node.address]);
    with_timeouts(&mut setup, "max_stream_duration: 800ms");
    let gateway = setup.start();
    let start = Instant::now();
    let mut stream = sent(&gateway);
    assert_eq!(stream.head().unwrap().status, 200);
    let mut events = 0;
    let end = loop {
        match stream.chunk() {
            Ok(Some(_)) => events += 1,
            end => break end,
        }
    };
    assert_after(start, Duration::from_millis(800));
    assert!(end.is_err(), "a stream that was cut off does not look whole");
    assert!(events > 5, "{events}");
    let line = gateway.wait_log(|l| l["error"].as_str().is_some_and(|e| e.contains("max_stream_duration")));
    assert_eq!(line["status"], 200);
    gateway.wait_metric("hive_gateway_upstream_requests_total", &[("result", "max_stream_duration")], 1.0);

    let start = Instant::now();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut stream = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
    while let Ok(Some(_)) = stream.next() {}
    assert_after(start, Duration::from_millis(800));
}

#[test]
fn an_answer_that_has_not_begun_by_its_longest_time_is_504() {
    let node = Node::start_with(|_, exchange| {
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let mut setup = Setup::new(&[node.address]);
    with_timeouts(&mut setup, "max_stream_duration: 300ms");
    let gateway = setup.start();
    let start = Instant::now();
    let answer = sent(&gateway).response(false).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (504, Some("upstream_timeout")));
    assert_after(start, Duration::from_millis(300));
}

#[test]
fn the_log_splits_the_time() {
    let node = Node::start_with(|_, exchange| {
        // Work of known length is the behaviour under test.
        std::thread::sleep(Duration::from_millis(120));
        exchange.begin_stream()?;
        std::thread::sleep(Duration::from_millis(120));
        exchange.end_stream()
    });
    let mut setup = Setup::new(&[]);
    let more = "circuit_breaker: { max_connections: 1, pending_timeout: 1h }, health_check: { enabled: false }";
    setup.upstreams = upstream("hive", "http", &[node.address], more);
    let gateway = setup.start();
    let mut first = sent(&gateway);
    node.wait_count(1);
    let mut second = sent(&gateway);
    assert_eq!((first.response(false).unwrap().status, second.response(false).unwrap().status), (200, 200));
    let line = gateway.wait_log(|l| l["upstream_queue_us"].is_u64());
    let us = |field: &str| line[field].as_u64().unwrap_or(0);
    assert!(us("upstream_queue_us") > 50_000 && us("upstream_first_byte_us") >= 120_000, "{line}");
    let parts = us("upstream_queue_us") + us("upstream_first_byte_us");
    assert!(us("duration_us") >= parts + 100_000, "{line}");
    let first = gateway.wait_log(|l| l["status"] == 200 && l["upstream_queue_us"].is_null());
    assert!(first["upstream_connect_us"].is_u64(), "{first}");
}
