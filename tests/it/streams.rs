//! Event streams: one by one, in time, and honest about their end.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::gateway::{Gateway, ROUTES, Setup};
use crate::support::h2_client::H2;
use crate::support::node::{Exchange, Node, Recorded};

const REQUEST: &[u8] = b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
/// By how much a gap at the client may differ from the node's.
const TOLERANCE: Duration = Duration::from_millis(50);
const GAPS_MS: &[u64] = &[0, 120, 40, 300, 5, 200];

type Behaviour = Box<dyn Fn(&Recorded, &mut Exchange) -> io::Result<()> + Send + Sync>;

/// Sends one event after each gap and notes when.
fn timed(sent: Arc<Mutex<Vec<Instant>>>) -> Behaviour {
    Box::new(move |_, exchange| {
        exchange.begin_stream()?;
        for (n, gap) in GAPS_MS.iter().enumerate() {
            // The gap is the behaviour under test, not a wait for something.
            std::thread::sleep(Duration::from_millis(*gap));
            sent.lock().unwrap().push(Instant::now());
            exchange.event(&format!("event {n}"))?;
        }
        exchange.end_stream()
    })
}

/// Where the gaps differ by more than [`TOLERANCE`].
fn late(sent: &[Instant], seen: &[Instant]) -> Vec<String> {
    assert_eq!(sent.len(), seen.len());
    let gaps = sent.windows(2).zip(seen.windows(2)).map(|(sent, seen)| (sent[1] - sent[0], seen[1] - seen[0]));
    let late = gaps.enumerate().filter(|(_, (sent, seen))| sent.abs_diff(*seen) > TOLERANCE);
    late.map(|(n, (sent, seen))| format!("gap {n}: {sent:?} at the node, {seen:?} at the client")).collect()
}

/// Runs streams until one is in time, three at most: a busy machine is late now and then, a gateway that holds events back
/// is late each time.
#[track_caller]
fn assert_in_time(sent: &Mutex<Vec<Instant>>, mut stream: impl FnMut() -> Vec<Instant>) {
    let mut found = Vec::new();
    for _ in 0..3 {
        sent.lock().unwrap().clear();
        let seen = stream();
        found = late(&sent.lock().unwrap(), &seen);
        if found.is_empty() {
            return;
        }
    }
    panic!("{found:?}");
}

#[test]
fn events_arrive_one_by_one_and_in_time_over_http_1() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let node = Node::start_with(timed(sent.clone()));
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    assert_in_time(&sent, || {
        connection.send(REQUEST).unwrap();
        let head = connection.head().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        assert_eq!(head.header("x-accel-buffering"), Some("no"));
        let mut seen = Vec::new();
        while let Some(chunk) = connection.chunk().unwrap() {
            assert_eq!(String::from_utf8_lossy(&chunk), format!("data: event {}\n\n", seen.len()));
            seen.push(Instant::now());
        }
        seen
    });
    node.behave(|_, exchange| exchange.answer(200, "", b""));
    assert_eq!(connection.exchange(REQUEST).unwrap().status, 200, "the connection goes on");
}

#[test]
fn events_arrive_one_by_one_and_in_time_over_http_2() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let node = Node::start_with(timed(sent.clone()));
    let gateway = Setup::new(&[node.address]).start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    assert_in_time(&sent, || {
        let mut stream = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
        assert_eq!(stream.status, 200);
        let mut seen = Vec::new();
        while let Some(data) = stream.next().unwrap() {
            if data.is_empty() {
                continue;
            }
            assert_eq!(String::from_utf8_lossy(&data), format!("data: event {}\n\n", seen.len()));
            seen.push(Instant::now());
        }
        seen
    });
}

#[test]
fn a_stream_lives_longer_than_the_response_timeout() {
    let node = Node::start_with(timed(Arc::default()));
    let mut setup = Setup::new(&[node.address]);
    setup.routes = ROUTES.replace("body: { limit: 16MiB }", "timeouts: { response: 250ms }");
    let gateway = setup.start();
    let answer = gateway.client("alice").get(gateway.address, "/echo/stream").unwrap();
    assert_eq!(answer.text().matches("data: ").count(), GAPS_MS.len());
}

/// A node that sends one event, then reports how long the gateway held on once the client was told to go.
fn watched() -> (Node, Receiver<Option<Duration>>) {
    let (report, reports) = channel();
    let node = Node::start_with(move |_, exchange| {
        exchange.begin_stream()?;
        exchange.event("one")?;
        let _ = report.send(exchange.gone_after());
        exchange.close();
        Ok(())
    });
    (node, reports)
}

#[track_caller]
fn assert_freed(gateway: &Gateway, reports: &Receiver<Option<Duration>>, left: Instant) {
    let report = reports.recv_timeout(Duration::from_secs(20)).expect("the node's connection is never freed");
    assert!(report.is_some(), "the gateway held the node's connection");
    assert!(left.elapsed() < Duration::from_secs(1), "freed after {:?}", left.elapsed());
    gateway.wait_metric("hive_gateway_upstream_in_flight", &[], 0.0);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
}

#[test]
fn a_client_that_goes_away_frees_the_node_at_once_over_http_1() {
    let (node, reports) = watched();
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    connection.send(REQUEST).unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
    assert!(connection.chunk().unwrap().is_some());
    connection.vanish();
    assert_freed(&gateway, &reports, Instant::now());
}

#[test]
fn a_client_that_goes_away_before_the_first_byte_frees_the_node() {
    let (report, reports) = channel();
    let node = Node::start_with(move |_, exchange| {
        let _ = report.send(exchange.gone_after());
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    connection.send(REQUEST).unwrap();
    node.wait_count(1);
    connection.vanish();
    assert_freed(&gateway, &reports, Instant::now());
}

#[test]
fn a_cancelled_stream_frees_the_node_at_once_over_http_2() {
    let (node, reports) = watched();
    let gateway = Setup::new(&[node.address]).start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut stream = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
    assert!(stream.next().unwrap().is_some());
    // Dropping the receiver resets the stream; the connection stays.
    drop(stream);
    assert_freed(&gateway, &reports, Instant::now());
    node.behave(|_, exchange| exchange.answer(200, "", b""));
    assert_eq!(h2.get("/echo").unwrap().status, 200);
}

#[test]
fn a_lost_http_2_connection_frees_the_node_at_once() {
    let (node, reports) = watched();
    let gateway = Setup::new(&[node.address]).start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut stream = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
    assert!(stream.next().unwrap().is_some());
    drop(stream);
    drop(h2);
    assert_freed(&gateway, &reports, Instant::now());
}

/// A node that dies when it is told to.
fn dies_after_one_event() -> (Node, Sender<()>) {
    let (die, told) = channel();
    let told = Mutex::new(told);
    let node = Node::start_with(move |_, exchange| {
        exchange.begin_stream()?;
        exchange.event("one")?;
        let _ = told.lock().unwrap().recv();
        exchange.close();
        Ok(())
    });
    (node, die)
}

#[test]
fn a_node_that_dies_mid_stream_is_no_clean_end_over_http_1() {
    let (node, die) = dies_after_one_event();
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    connection.send(REQUEST).unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
    assert!(connection.chunk().unwrap().is_some());
    die.send(()).unwrap();
    let end = connection.chunk();
    assert!(end.is_err(), "a torn stream ended like a whole one: {end:?}");
}

#[test]
fn a_node_that_dies_mid_stream_is_no_clean_end_over_http_2() {
    let (node, die) = dies_after_one_event();
    let gateway = Setup::new(&[node.address]).start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut stream = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
    assert!(stream.next().unwrap().is_some());
    die.send(()).unwrap();
    let end = loop {
        match stream.next() {
            Ok(Some(data)) => assert!(data.is_empty()),
            end => break end,
        }
    };
    assert!(end.is_err(), "a torn stream ended like a whole one");
}

#[test]
fn an_answer_shorter_than_its_length_is_no_clean_end() {
    let node = Node::start_with(|_, exchange| {
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")?;
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    assert!(gateway.client("alice").get(gateway.address, "/echo").is_err());
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    assert!(h2.get("/echo").is_err());
}

#[test]
fn a_stream_that_falls_silent_is_cut_after_stream_idle() {
    let (node, reports) = watched();
    let mut setup = Setup::new(&[node.address]);
    setup.routes = ROUTES.replace("body: { limit: 16MiB }", "timeouts: { stream_idle: 500ms }");
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    connection.send(REQUEST).unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
    assert!(connection.chunk().unwrap().is_some());
    let silent = Instant::now();
    assert!(connection.chunk().is_err(), "cut, and not as if it were whole");
    assert!((Duration::from_millis(350)..Duration::from_secs(3)).contains(&silent.elapsed()), "{:?}", silent.elapsed());
    assert!(reports.recv_timeout(Duration::from_secs(5)).unwrap().is_some());
}

#[test]
fn many_streams_share_one_http_2_connection() {
    let node = Node::start_with(timed(Arc::default()));
    let gateway = Setup::new(&[node.address]).start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let answers = h2.get_all("/echo/stream", 50).unwrap();
    assert!(answers.iter().all(|body| String::from_utf8_lossy(body).matches("data: ").count() == GAPS_MS.len()));
}
