//! Request bodies: byte-exact up to 16 MiB, limited in size, time and memory, whole before a node sees anything.

use bytes::Bytes;

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::{Node, sha256};
use crate::support::{noise, wait_until};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Around every buffer size on the way.
const SIZES: &[usize] = &[
    1,
    2,
    100,
    4 * KIB,
    16 * KIB - 1,
    16 * KIB + 1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    100_000,
    MIB,
    3 * MIB + 7,
    16 * MIB,
];

fn gateway() -> (Gateway, Node) {
    let node = Node::start();
    (Setup::new(&[node.address]).start(), node)
}

fn head(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n{fields}\r\n")
}

fn json_call() -> http::request::Builder {
    H2::request("POST", "/api/a2a/jsonrpc").header("content-type", "application/json")
}

#[track_caller]
fn assert_exact(answer: &Response, node: &Node, body: &[u8]) {
    assert_eq!(answer.status, 200, "{} bytes: {}", body.len(), answer.text());
    let seen = node.requests().pop().unwrap();
    assert_eq!(seen.body.len(), body.len());
    assert_eq!(sha256(&seen.body), sha256(body), "{} bytes", body.len());
    assert_eq!(answer.json()["sha256"], sha256(body));
}

#[test]
fn bodies_with_a_length_are_byte_exact_over_http_1() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    for size in SIZES {
        let body = noise(*size, *size as u64);
        let head = head("/echo", &format!("Content-Length: {size}\r\n"));
        let answer = connection.exchange(&[head.as_bytes(), &body].concat()).unwrap();
        assert_exact(&answer, &node, &body);
    }
    assert_eq!(node.count(), SIZES.len());
}

#[test]
fn chunked_bodies_are_byte_exact_over_http_1() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    for size in SIZES {
        let body = noise(*size, *size as u64 + 1);
        let mut request = head("/echo", "Transfer-Encoding: chunked\r\n").into_bytes();
        // Chunks of odd and growing lengths, with an extension here and there.
        let (mut rest, mut length) = (body.as_slice(), 1);
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(length.min(rest.len()));
            request.extend(format!("{:X}{}\r\n", chunk.len(), if length % 2 == 0 { "" } else { ";a=b" }).bytes());
            request.extend(chunk);
            request.extend(b"\r\n");
            (rest, length) = (after, length * 3 + 1);
        }
        request.extend(b"0\r\n\r\n");
        let answer = connection.exchange(&request).unwrap();
        assert_exact(&answer, &node, &body);
    }
}

#[test]
fn bodies_are_byte_exact_over_http_2_with_and_without_a_length() {
    let (gateway, node) = gateway();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    for with_length in [true, false] {
        for size in SIZES {
            let body = noise(*size, *size as u64 + 2);
            let mut request = H2::request("POST", "/echo");
            if with_length {
                request = request.header("content-length", size.to_string());
            }
            let answer = h2.send(request.body(()).unwrap(), &body).unwrap();
            assert_exact(&answer, &node, &body);
        }
    }
}

#[test]
fn an_empty_body_is_an_empty_body() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    for fields in ["Content-Length: 0\r\n", ""] {
        assert_exact(&connection.exchange(head("/echo", fields).as_bytes()).unwrap(), &node, b"");
    }
    let chunked = head("/echo", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n";
    assert_exact(&connection.exchange(chunked.as_bytes()).unwrap(), &node, b"");
}

#[test]
fn the_next_request_on_a_connection_is_not_touched_by_the_body_before() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    for body in ["first", "second one", "3"] {
        let request = head("/echo", &format!("Content-Length: {}\r\n", body.len())) + body;
        assert_exact(&connection.exchange(request.as_bytes()).unwrap(), &node, body.as_bytes());
    }
}

#[track_caller]
fn assert_too_large(answer: &Response) {
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], -32700);
}

#[test]
fn a_declared_length_beyond_the_limit_is_413_before_the_body() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    let head = head("/api/a2a/jsonrpc", &format!("Content-Length: {}\r\n", MIB + 1));
    assert_too_large(&connection.exchange(head.as_bytes()).unwrap());
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let request = json_call().header("content-length", (MIB + 1).to_string());
    let (future, _body) = h2.begin(request.body(()).unwrap(), false).unwrap();
    assert_too_large(&h2.finish(future).unwrap());
    assert_eq!(node.count(), 0);
}

#[test]
fn a_chunked_body_beyond_the_limit_is_413() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    connection.send(head("/api/a2a/jsonrpc", "Transfer-Encoding: chunked\r\n").as_bytes()).unwrap();
    // The gateway stops reading at its limit, so a late write may fail; the answer must be there all the same.
    for _ in 0..20 {
        if connection.send(&[b"10000\r\n".as_slice(), &[b' '; 64 * KIB], b"\r\n"].concat()).is_err() {
            break;
        }
    }
    assert_too_large(&connection.response(false).unwrap());
    assert_eq!(node.count(), 0);
}

#[test]
fn a_body_without_a_length_beyond_the_limit_is_413_over_http_2() {
    let (gateway, node) = gateway();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let answer = h2.send(json_call().body(()).unwrap(), &vec![b' '; 2 * MIB]).unwrap();
    assert_too_large(&answer);
    assert_eq!(h2.get("/echo").unwrap().status, 200, "the connection goes on");
    assert_eq!(node.count(), 1);
}

#[test]
fn a_body_of_exactly_the_limit_passes() {
    let (gateway, node) = gateway();
    let frame = r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[""]}"#;
    let body = frame.replace("\"\"", &format!("\"{}\"", "x".repeat(MIB - frame.len())));
    assert_eq!(body.len(), MIB);
    let request = head("/api/a2a/jsonrpc", &format!("Content-Length: {MIB}\r\n")) + &body;
    assert_exact(&gateway.connect("alice").exchange(request.as_bytes()).unwrap(), &node, body.as_bytes());
}

#[test]
fn a_slow_body_is_408() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = "request_body: 500ms".into();
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    connection.send((head("/echo", "Content-Length: 10\r\n") + "half ").as_bytes()).unwrap();
    let start = std::time::Instant::now();
    let answer = connection.response(false).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (408, Some("body_timeout")));
    let waited = start.elapsed().as_millis();
    assert!((400..3000).contains(&waited), "{waited} ms");
    connection.closed_after().unwrap();

    // Drops that keep coming don't extend the time.
    let mut connection = gateway.connect("alice");
    connection.send(head("/echo", "Transfer-Encoding: chunked\r\n").as_bytes()).unwrap();
    let start = std::time::Instant::now();
    let mut dribble = gateway.connect("bob");
    while start.elapsed().as_millis() < 1500 && connection.send(b"1\r\nx\r\n").is_ok() {
        // Exchanges on another connection take a moment: so many that the drops are too few to be refused for their number.
        for _ in 0..8 {
            dribble.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
        }
    }
    assert_eq!(connection.response(false).unwrap().status, 408);

    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let (future, mut body) = h2.begin(H2::request("POST", "/echo").body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(b"half"), false).unwrap();
    assert_eq!(h2.finish(future).unwrap().status, 408);
    assert!(node.requests().iter().all(|r| r.method() == "GET"));
}

#[test]
fn a_node_sees_nothing_before_the_body_is_whole() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    connection.send((head("/echo", "Content-Length: 10\r\n") + "half ").as_bytes()).unwrap();
    wait_until("the gateway works on the request", || gateway.metric("hive_gateway_requests_in_flight", &[]) == 1.0);
    wait_until("half a body is held", || gateway.metric("hive_gateway_body_memory_bytes", &[]) > 0.0);
    assert_eq!(gateway.metric("hive_gateway_upstream_in_flight", &[]), 0.0);
    assert_eq!(node.count(), 0);
    connection.send(b"whole").unwrap();
    assert_exact(&connection.response(false).unwrap(), &node, b"half whole");
    gateway.wait_metric("hive_gateway_body_memory_bytes", &[], 0.0);
}

#[test]
fn a_client_that_leaves_within_its_body_is_forgotten() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    connection.send((head("/echo", "Content-Length: 10\r\n") + "half ").as_bytes()).unwrap();
    wait_until("half a body is held", || gateway.metric("hive_gateway_body_memory_bytes", &[]) > 0.0);
    connection.vanish();
    gateway.wait_metric("hive_gateway_body_memory_bytes", &[], 0.0);
    gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
    assert_eq!(node.count(), 0);
}

#[test]
fn a_body_takes_of_the_budget_what_it_takes_of_memory() {
    let (gateway, _node) = gateway();
    let held = || gateway.metric("hive_gateway_body_memory_bytes", &[]);
    // By HTTP/1.1 Pingora has a buffer of 64 KiB for each body that is being read.
    let mut connection = gateway.connect("alice");
    connection.send((head("/echo", "Transfer-Encoding: chunked\r\n") + "1\r\na\r\n").as_bytes()).unwrap();
    wait_until("a buffer and a byte are held", || (65_536.0..70_000.0).contains(&held()) && held() > 65_536.0);
    connection.vanish();
    gateway.wait_metric("hive_gateway_body_memory_bytes", &[], 0.0);
    // By HTTP/2 nothing is taken for what is announced and has not come.
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let streams: Vec<_> = (0..50)
        .map(|_| {
            let request = H2::request("POST", "/echo").header("content-length", "1000000").body(()).unwrap();
            let (future, mut body) = h2.begin(request, false).unwrap();
            body.send_data(Bytes::from_static(b"a"), false).unwrap();
            (future, body)
        })
        .collect();
    wait_until("all bytes are held", || {
        gateway.metric("hive_gateway_requests_in_flight", &[]) == 50.0 && held() >= 50.0
    });
    assert!(held() <= 50.0 * 1024.0, "{}", held());
    drop(streams);
    gateway.wait_metric("hive_gateway_body_memory_bytes", &[], 0.0);
}

#[test]
fn bodies_beyond_the_memory_budget_are_503_and_the_budget_comes_back() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.server = "body_memory: 2MiB".into();
    setup.routes = setup.routes.replace("16MiB", "1MiB");
    let gateway = setup.start();
    let body = noise(900 * KIB, 5);
    let head = head("/echo", &format!("Content-Length: {}\r\n", body.len()));
    // Two bodies wait, all but one byte sent.
    let mut waiting: Vec<_> = (0..2)
        .map(|n| {
            let mut connection = gateway.connect("alice");
            connection.send(head.as_bytes()).unwrap();
            connection.send(&body[..body.len() - 1]).unwrap();
            let held = ((n + 1) * (body.len() - 1)) as f64;
            wait_until("the body is held", || gateway.metric("hive_gateway_body_memory_bytes", &[]) >= held);
            connection
        })
        .collect();
    let mut third = gateway.connect("alice");
    third.send(head.as_bytes()).unwrap();
    let _ = third.send(&body);
    let answer = third.response(false).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("body_memory_exhausted")));
    assert!(answer.header("retry-after").is_some());
    for connection in &mut waiting {
        connection.send(&body[body.len() - 1..]).unwrap();
        assert_eq!(connection.response(false).unwrap().status, 200);
    }
    gateway.wait_metric("hive_gateway_body_memory_bytes", &[], 0.0);
    let answer = gateway.connect("alice").exchange(&[head.as_bytes(), &body].concat()).unwrap();
    assert_exact(&answer, &node, &body);
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    connection.send(head("/echo", "Content-Length: 5\r\nExpect: 100-continue\r\n").as_bytes()).unwrap();
    assert_eq!(connection.head().unwrap().status, 100);
    assert_eq!(node.count(), 0);
    connection.send(b"hello").unwrap();
    assert_exact(&connection.response(false).unwrap(), &node, b"hello");
    assert!(node.only().header("expect").is_none(), "the gateway has answered it");
}

#[test]
fn a_refused_expectation_gets_its_refusal_instead_of_100() {
    let (gateway, node) = gateway();
    let length = format!("Content-Length: {}\r\nExpect: 100-continue\r\n", 2 * MIB);
    let mut connection = gateway.connect("alice");
    connection.send(head("/api/a2a/jsonrpc", &length).as_bytes()).unwrap();
    assert_eq!(connection.head().unwrap().status, 413);
    let mut connection = gateway.connect("alice");
    connection.send(head("/nowhere", "Content-Length: 5\r\nExpect: 100-continue\r\n").as_bytes()).unwrap();
    assert_eq!(connection.head().unwrap().status, 404);
    let mut connection = gateway.connect("alice");
    let answer =
        connection.exchange(head("/echo", "Content-Length: 5\r\nExpect: something-else\r\n").as_bytes()).unwrap();
    assert_eq!(answer.status, 417);
    assert_eq!(node.count(), 0);
}

#[test]
fn a_refused_request_with_a_body_does_not_leak_into_the_next() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    // The body is a request itself: a classic way to smuggle.
    let inner = "GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
    let request = head("/nowhere", &format!("Content-Length: {}\r\n", inner.len())) + inner;
    assert_eq!(connection.exchange(request.as_bytes()).unwrap().status, 404);
    let rest = connection.exchange(b"GET /nowhere-else HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    if let Ok(answer) = rest {
        assert_eq!(answer.status, 404);
    }
    assert_eq!(node.count(), 0);
}

#[test]
fn requests_sent_at_once_are_answered_in_their_order() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    let chunked = format!("{}3\r\nabc\r\n0\r\n\r\n", head("/echo", "X-N: 2\r\nTransfer-Encoding: chunked\r\n"));
    let requests = [
        format!("{}one", head("/echo", "X-N: 1\r\nContent-Length: 3\r\n")),
        chunked,
        "GET /echo HTTP/1.1\r\nHost: gateway.test\r\nX-N: 3\r\n\r\n".to_owned(),
        format!("{}four", head("/echo", "X-N: 4\r\nContent-Length: 4\r\n")),
    ];
    for round in 0..3 {
        // All at once, and cut in two at every third place.
        let all = requests.concat();
        let cut = all.len() * round / 3;
        connection.send(&all.as_bytes()[..cut]).unwrap();
        connection.send(&all.as_bytes()[cut..]).unwrap();
        for n in 0..requests.len() {
            assert_eq!(connection.response(false).unwrap().status, 200, "request {n} of round {round}");
        }
        let seen: Vec<_> = node.requests().iter().rev().take(4).rev().map(|r| r.header("x-n").unwrap()).collect();
        assert_eq!(seen, ["1", "2", "3", "4"], "round {round}");
    }
    assert_eq!(connection.exchange(requests[2].as_bytes()).unwrap().status, 200, "the connection can still be used");
}
