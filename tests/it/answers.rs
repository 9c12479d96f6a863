//! What a node answers, and what of it the client may rely on.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::support::gateway::Setup;
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const GET: &[u8] = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";

#[test]
fn informational_answers_do_not_put_the_deadline_off_and_stay_here() {
    let node = Node::start_with(|_, exchange| {
        // Until the gateway has had enough; the bound is the test's.
        for _ in 0..200 {
            exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
            if exchange.gone_within(Duration::from_millis(50)).is_some() {
                break;
            }
        }
        exchange.close();
        Ok(())
    });
    let mut setup = Setup::new(&[node.address]);
    setup.routes = r#"
  - { name: echo, paths: [/echo], methods: [GET], peers: any, upstream: hive, timeouts: { response: 1s } }
"#
    .into();
    let gateway = setup.start();
    let start = Instant::now();
    let answer = gateway.connect("alice").exchange(GET).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (504, Some("upstream_timeout")));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let answer = H2::connect(&gateway.client("alice"), gateway.address).unwrap().get("/echo").unwrap();
    assert_eq!(answer.status, 504);
}

#[test]
fn a_node_that_switches_protocols_unasked_is_502() {
    let node = Node::start_with(|_, exchange| {
        exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")?;
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    assert_eq!(gateway.connect("alice").exchange(GET).unwrap().status, 502);
    assert_eq!(H2::connect(&gateway.client("alice"), gateway.address).unwrap().get("/echo").unwrap().status, 502);
}

#[test]
fn the_first_part_of_an_answer_of_known_length_is_not_held_back() {
    let (go, told) = channel::<()>();
    let told = Mutex::new(told);
    let node = Node::start_with(move |_, exchange| {
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")?;
        let _ = told.lock().unwrap().recv();
        exchange.send(b"def")
    });
    let gateway = Setup::new(&[node.address]).start();
    let mut connection = gateway.connect("alice");
    connection.send(GET).unwrap();
    // The node goes on only when this has arrived.
    assert_eq!(connection.head().unwrap().status, 200);
    assert_eq!(connection.read(3).unwrap(), b"abc");
    go.send(()).unwrap();
    assert_eq!(connection.read(3).unwrap(), b"def");
}

#[test]
fn what_is_between_node_and_gateway_is_not_passed_on() {
    let node = Node::start_with(|_, exchange| {
        exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Secret\r\nX-Secret: s\r\nX-Public: p\r\n\
              Keep-Alive: timeout=5\r\nTrailer: X-T\r\n\r\nok",
        )
    });
    let gateway = Setup::new(&[node.address]).start();
    let answer = gateway.connect("alice").exchange(GET).unwrap();
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-public")), (200, "ok", Some("p")));
    for name in ["x-secret", "keep-alive", "trailer"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
}

#[test]
fn sigterm_waits_for_an_answer_that_the_client_has_not_taken_yet() {
    const LENGTH: usize = 3_000_000;
    let node = Node::start_with(|_, exchange| exchange.answer(200, "", &vec![b'x'; LENGTH]));
    let mut setup = Setup::new(&[node.address]);
    setup.server = "drain: 20s".into();
    let mut gateway = setup.start();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut stream = h2.stream(H2::request("GET", "/echo").body(()).unwrap(), b"").unwrap();
    let mut taken = stream.next().unwrap().unwrap().len();
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("the drain has begun", || gateway.stderr().contains("SIGTERM"));
    while let Some(data) = stream.next().unwrap() {
        taken += data.len();
    }
    assert_eq!(taken, LENGTH);
    drop(stream);
    assert!(gateway.wait_exit().success());
}

#[test]
fn a_broken_request_body_is_the_clients_fault() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for body in ["+4\r\nabcd\r\n0\r\n\r\n", "0x4\r\nabcd\r\n0\r\n\r\n", "ffffffffffffffff\r\n", "zz\r\n"] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let mut connection = gateway.connect("alice");
        connection.send(request.as_bytes()).unwrap();
        assert_eq!(connection.response(false).unwrap().status, 400, "{body:?}");
    }
    assert_eq!(node.count(), 0);
    let blamed = gateway.metric("hive_gateway_refusals_total", &[("reason", "upstream_connect_failed")]);
    assert_eq!(blamed, 0.0, "no node is to blame");
}

#[test]
fn a_request_line_of_more_than_three_parts_is_400() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for line in ["GET /echo a HTTP/1.1", "GET /echo? x HTTP/1.1", "GET  /echo HTTP/1.1", "GET /echo\tx HTTP/1.1"] {
        let mut connection = gateway.connect("alice");
        connection.send(format!("{line}\r\nHost: gateway.test\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(connection.response(false).unwrap().status, 400, "{line}");
        // The same behind a request that comes with it.
        let mut connection = gateway.connect("alice");
        let both = format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n{line}\r\nHost: gateway.test\r\n\r\n");
        connection.send(both.as_bytes()).unwrap();
        assert_eq!(connection.response(false).unwrap().status, 200, "before {line}");
        assert_eq!(connection.response(false).unwrap().status, 400, "pipelined {line}");
    }
    assert_eq!(node.count(), 4);
}

#[test]
fn a_get_with_a_body_is_400_however_it_is_framed() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for framing in ["Content-Length: 4\r\n\r\nabcd", "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"] {
        for method in ["GET", "HEAD"] {
            let mut connection = gateway.connect("alice");
            connection.send(format!("{method} /echo HTTP/1.1\r\nHost: gateway.test\r\n{framing}").as_bytes()).unwrap();
            assert_eq!(connection.response(method == "HEAD").unwrap().status, 400, "{method} {framing:?}");
        }
    }
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let answer = h2.send(H2::request("GET", "/echo").body(()).unwrap(), b"abcd").unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(node.count(), 0);
}

#[test]
fn a_transfer_coding_that_nobody_asked_for_is_502() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for coding in ["gzip", "identity", "gzip, chunked"] {
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\nContent-Length: 2\r\n\r\nok");
        node.behave(move |_, exchange| {
            exchange.send(head.as_bytes())?;
            exchange.close();
            Ok(())
        });
        assert_eq!(gateway.connect("alice").exchange(GET).unwrap().status, 502, "{coding}");
    }
}

#[test]
fn fields_that_http_2_forbids_do_not_spoil_an_answer() {
    let node = Node::start_with(|_, exchange| {
        exchange.answer(200, "TE: x\r\nProxy-Authenticate: Basic\r\nX-Hive-Gateway-Auth: Bearer s\r\n", b"ok")
    });
    let gateway = Setup::new(&[node.address]).start();
    let answer = H2::connect(&gateway.client("alice"), gateway.address).unwrap().get("/echo").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let answer = gateway.connect("alice").exchange(GET).unwrap();
    for name in ["te", "proxy-authenticate", "x-hive-gateway-auth"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
}

#[test]
fn the_metric_says_which_side_broke_a_connection_off() {
    const CLOSED: &str = "hive_gateway_connections_closed_total";
    let node = Node::start_with(|_, exchange| {
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")?;
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[node.address]).start();
    assert!(gateway.connect("alice").exchange(GET).is_err(), "the answer is torn");
    gateway.wait_metric(CLOSED, &[("reason", "upstream_aborted")], 1.0);
    node.behave(|_, exchange| {
        exchange.begin_stream()?;
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let mut connection = gateway.connect("alice");
    connection.send(GET).unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
    connection.vanish();
    gateway.wait_metric(CLOSED, &[("reason", "aborted")], 1.0);
}
