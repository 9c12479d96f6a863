//! HTTP/2 nodes that leave, fall silent, or have no room: what they say of a request is believed, and no more than that.

use std::time::Duration;

use crate::faults::{Got, Speaks, good, lenient_tls_to, lenient_to, post};
use crate::support::certs::{Pki, server_leaf};
use crate::support::client::Connection;
use crate::support::fault_node::{Fault, FaultNodes};
use crate::support::gateway::{Setup, upstream};
use crate::support::node::server_context;

#[test]
fn a_stream_above_the_last_one_of_goaway_has_not_been_processed() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::ENHANCE_YOUR_CALM] {
        let nodes = FaultNodes::new(3);
        let gateway = lenient_to(nodes.http2_that_goes_away(reason), ", protocol: http2");
        let mut speaks = Speaks::new(&gateway, 0);
        assert_eq!(post(&mut speaks, Fault::Good, 1), good(1), "{reason:?}");
        assert_eq!(nodes.ledger.seen(1), 1);
    }
}

/// As one of HTTP/1.1 that closes each new connection: another node is asked, and it counts.
#[test]
fn a_node_that_takes_no_request_is_passed_over_and_ejected() {
    for priority in [0, 1] {
        let nodes = FaultNodes::new(10);
        let (bad, good_one) = (nodes.http2_that_takes(0), nodes.http2(1, 0));
        let mut setup = Setup::new(&[]);
        setup.upstreams = format!(
            "
  - name: hive
    protocol: http2
    endpoints: [ {{ url: \"http://{bad}\" }}, {{ url: \"http://{good_one}\", priority: {priority} }} ]
    health_check: {{ enabled: false }}
"
        );
        setup.plain = Some(String::new());
        let gateway = setup.start();
        std::thread::scope(|scope| {
            for client in 0..2 {
                let (gateway, nodes) = (&gateway, &nodes);
                scope.spawn(move || {
                    let mut speaks = Speaks::new(gateway, 0);
                    for id in client * 40..(client + 1) * 40 {
                        assert_eq!(post(&mut speaks, Fault::Good, id), good(id), "priority {priority}");
                        assert_eq!(nodes.ledger.seen(id), 1);
                    }
                });
            }
        });
        assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 1.0, "priority {priority}");
    }
}

/// Nor does it count that the requests of a burst are more than a connection takes.
#[test]
fn a_node_that_takes_few_requests_on_a_connection_is_not_ejected() {
    let nodes = FaultNodes::new(11);
    let mut setup = Setup::new(&[]);
    let more = "protocol: http2, health_check: { enabled: false }, outlier: { consecutive_failures: 1 }";
    setup.upstreams = upstream("hive", "http", &[nodes.http2_that_takes(1)], more);
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let answered = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8u64)
            .map(|client| {
                let gateway = &gateway;
                scope.spawn(move || {
                    let mut speaks = Speaks::new(gateway, 0);
                    let got = (client * 20..(client + 1) * 20).map(|id| post(&mut speaks, Fault::Good, id));
                    got.filter(|got| matches!(got, Got::Answer { status: 200, .. })).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    let twice = gateway.access_log().iter().filter(|line| line["tries"].as_u64() > Some(1)).count();
    println!("{answered} of 160 were answered, {twice} were sent again");
    assert!(twice > 0, "no connection was shared");
    assert_eq!(answered, 160);
    assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 0.0);
}

/// HPACK makes a large header of few bytes, so what counts is what it is when it is unpacked.
#[test]
fn a_header_of_an_http2_answer_is_limited_as_one_of_http1_is() {
    // By the bytes of a field and the number of fields.
    for (length, fields, status) in
        [(10, 100, 200), (3000, 18, 200), (10, 129, 502), (3000, 24, 502), (3900, 3000, 502)]
    {
        let nodes = FaultNodes::new(12);
        let gateway = lenient_to(nodes.http2_with_headers(length, fields), ", protocol: http2");
        let got = post(&mut Speaks::new(&gateway, 0), Fault::Good, 1);
        assert!(matches!(&got, Got::Answer { status: s, .. } if *s == status), "{fields} of {length}: {got:?}");
    }
}

/// As `in_the_racy_instant_no_post_fails_but_those_that_the_node_may_have_read`, but the node says with GOAWAY what it has
/// read. That may lie unread when the request can't be written any more.
#[test]
fn a_node_that_says_goaway_and_closes_in_the_racy_instant_costs_no_post() {
    const EACH: u64 = 400;
    let nodes = FaultNodes::new(6);
    let mesh = Pki::new("Hive");
    let context = server_context(&mesh.leaf(&server_leaf(&["hive.internal"])), &mesh, b"\x02h2");
    // Nobody has worked for what nobody has read: it is not for the budget to limit.
    let more = ", protocol: http2, circuit_breaker: { retry_budget: 0%, min_retry_concurrency: 0 }";
    let plain = lenient_to(nodes.http2_that_leaves(1, None), more);
    let tls = lenient_tls_to(&mesh, nodes.http2_that_leaves(2, Some(context)), more);
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (gateway, nodes) = (if client < 2 { &plain } else { &tls }, &nodes);
            scope.spawn(move || {
                let mut speaks = Speaks::new(gateway, 0);
                for id in client * EACH..(client + 1) * EACH {
                    assert_eq!(post(&mut speaks, Fault::Good, id), good(id));
                    assert_eq!(nodes.ledger.seen(id), 1, "{id}");
                }
            });
        }
    });
    for (gateway, how) in [(&plain, "plain"), (&tls, "tls")] {
        let twice = gateway.access_log().iter().filter(|line| line["tries"].as_u64() > Some(1)).count();
        println!("{how}: {twice} of {} were sent again", 2 * EACH);
        assert!(twice > 0, "{how}: the race was never met");
    }
}

/// Only the requests on it can tell that a connection of HTTP/2 is dead: by a deadline, or by a client that has no more patience.
#[test]
fn a_connection_that_has_fallen_silent_gets_no_other_request() {
    let nodes = FaultNodes::new(7);
    let mut setup = Setup::new(&[]);
    let more = "protocol: http2, health_check: { enabled: false }, outlier: { enabled: false }";
    setup.upstreams = upstream("hive", "http", &[nodes.http2_that_falls_silent()], more);
    let rest = "methods: [POST], peers: any, upstream: hive, timeouts: { response";
    setup.routes = format!(
        "
  - {{ name: soon, paths: [\"/soon/*\"], {rest}: 300ms }} }}
  - {{ name: late, paths: [\"/late/*\"], {rest}: 1h }} }}
"
    );
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let mut speaks = Speaks::new(&gateway, 0);
    let mut ask = |id: u64| speaks.ask(&format!("/soon/Good/{id}"), Some("{}"));
    assert_eq!(ask(1), good(1));
    for id in [2, 4, 6] {
        let got = ask(id);
        assert!(matches!(&got, Got::Answer { status: 504, .. }), "{got:?}");
        assert_eq!(ask(id + 1), good(id + 1), "on a connection of its own");
    }
    for (id, patience) in [(8, 1100), (10, 300)] {
        let mut impatient = Connection::plain(gateway.plain).unwrap();
        let head = format!("POST /late/Good/{id} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{{}}");
        impatient.send(head.as_bytes()).unwrap();
        impatient.tcp().set_read_timeout(Some(Duration::from_millis(patience))).unwrap();
        assert!(impatient.tcp().peek(&mut [0]).is_err(), "there is no answer");
        drop(impatient);
        gateway.wait_metric("hive_gateway_requests_in_flight", &[], 0.0);
        assert_eq!(ask(id + 1), good(id + 1));
    }
    assert_eq!([2, 4, 6, 8, 10].map(|id| nodes.ledger.seen(id)), [0; 5]);
}

#[test]
fn a_refused_stream_goes_to_another_node_and_a_broken_one_does_not() {
    let nodes = FaultNodes::new(4);
    let two = [nodes.http2(1, 0), nodes.http2(2, 0)];
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &two, "protocol: http2, outlier: { enabled: false }");
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let mut speaks = Speaks::new(&gateway, 0);
    for id in 0..20 {
        assert_eq!(post(&mut speaks, Fault::Refuse, id), good(id));
        assert_eq!(nodes.ledger.seen(id), 1);
    }
    for (id, fault) in (100..).zip([Fault::Reset, Fault::MidHeader]) {
        let got = post(&mut speaks, fault, id);
        assert!(matches!(&got, Got::Answer { status: 502, .. }), "{got:?}");
        assert_eq!(nodes.ledger.seen(id), 1, "{fault:?}");
    }
}

/// RFC 9113, section 8.7: it may be sent again, to whomever. Nor does it speak against a node that it is full.
#[test]
fn a_refused_stream_goes_to_the_same_node_again_if_there_is_no_other() {
    let nodes = FaultNodes::new(8);
    let mut setup = Setup::new(&[]);
    let more = "protocol: http2, health_check: { enabled: false }, outlier: { consecutive_failures: 1 }";
    setup.upstreams = upstream("hive", "http", &[nodes.http2(1, 0)], more);
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let mut speaks = Speaks::new(&gateway, 0);
    for id in 0..20 {
        assert_eq!(post(&mut speaks, Fault::Refuse, id), good(id));
        assert_eq!(nodes.ledger.seen(id), 1);
    }
    // Not for ever; and as nobody has read it, it may come again.
    let got = post(&mut speaks, Fault::RefuseEach, 100);
    assert!(matches!(&got, Got::Answer { status: 503, .. }), "{got:?}");
    let line = gateway.wait_log(|l| l["path"] == "/echo/RefuseEach/100");
    assert_eq!((&line["tries"], &line["refusal"]), (&8.into(), &"retry_budget_exhausted".into()));
    assert_eq!(post(&mut speaks, Fault::Good, 101), good(101));
    assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 0.0);
}

/// The gateway does not know how many streams a new connection takes before the node has said so.
#[test]
fn a_node_that_takes_few_streams_serves_a_burst() {
    const CLIENTS: u64 = 24;
    let nodes = FaultNodes::new(9);
    let node = nodes.http2_of(3, 1, 0);
    for round in 0..5 {
        // A new gateway has no connection yet.
        let gateway = lenient_to(node, ", protocol: http2");
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (gateway, nodes) = (&gateway, &nodes);
                scope.spawn(move || {
                    let mut speaks = Speaks::new(gateway, 0);
                    for n in 0..3 {
                        let id = (round * CLIENTS + client) * 3 + n;
                        assert_eq!(post(&mut speaks, Fault::Good, id), good(id));
                        assert_eq!(nodes.ledger.seen(id), 1);
                    }
                });
            }
        });
    }
}

/// Resets of streams count as closed connections do, whether or not the connection has carried others, and so does GOAWAY
/// that says that something is wrong.
#[test]
fn an_http2_node_that_resets_streams_is_ejected() {
    let nodes = FaultNodes::new(5);
    for method in ["POST", "GET"] {
        let two = [nodes.http2(1, 0), nodes.http2(2, 0)];
        let mut setup = Setup::new(&[]);
        let more = "protocol: http2, health_check: { enabled: false }, outlier: { consecutive_failures: 3 }";
        setup.upstreams = upstream("hive", "http", &two, more);
        setup.plain = Some(String::new());
        let gateway = setup.start();
        let mut speaks = Speaks::new(&gateway, 0);
        let body = (method == "POST").then_some("{}");
        let first = if body.is_some() { 1000 } else { 2000 };
        for id in first..first + 6 {
            let got = speaks.ask(&format!("/echo/Reset/{id}"), body);
            assert!(matches!(&got, Got::Answer { status: 502, .. }), "{method}: {got:?}");
            assert_eq!(nodes.ledger.seen(id), 1, "{method}: what was reset is not sent again");
        }
        assert_eq!(gateway.metric("hive_gateway_upstream_ejections_total", &[]), 1.0, "{method}");
    }
}
