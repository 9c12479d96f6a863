//! Egress over TLS: our own Hive calls peers through a listener that asks nobody for a certificate.

use std::net::SocketAddr;

use crate::support::certs::{self, client_leaf};
use crate::support::client::{Client, Connection};
use crate::support::gateway::{Gateway, ROUTES, Setup, upstream};
use crate::support::node::Node;

/// A gateway on loopback whose only listener asks for no certificate, before these nodes of our own.
fn unasked(nodes: &[SocketAddr]) -> Setup {
    let mut setup = Setup::new(nodes);
    setup.client_auth = "mode: none".into();
    setup.server = "watch: 0s".into();
    let open: Vec<_> = ROUTES.lines().filter(|line| line.contains("peers: any")).collect();
    setup.routes = format!("\n{}\n", open.join("\n"));
    setup
}

fn nobody(gateway: &Gateway) -> Client {
    gateway.client_with(None)
}

const ECHO: &str = "POST /echo HTTP/1.1\r\nHost: gateway.test\r\nX-Forwarded-Client-Cert: Subject=forged\r\nContent-Length: 4\r\n\r\nbody";

#[test]
fn hive_calls_a_peer_over_tls_and_the_gateway_shows_its_certificate() {
    let node = Node::start();
    let far = Setup::new(&[node.address]).start();
    let mut near = unasked(&[]);
    let spiffe_id = "spiffe://mesh.test/hive/alice";
    certs::write(&far.pki().leaf(&client_leaf("our gateway", spiffe_id)), near.dir.path(), "gw");
    far.pki().write_root(near.dir.path(), "far-ca");
    let tls = "tls: { ca: far-ca.pem, server_name: gateway.test, cert: gw.pem, key: gw.key }";
    let more = format!("{tls}, trusted: false, health_check: {{ enabled: false }}");
    near.upstreams = upstream("hive", "https", &[far.address], &more);
    let near = near.start();
    // Over HTTP/1.1, over HTTP/2 and on a connection that is kept.
    let mut hive = nobody(&near).connect(near.address).unwrap();
    for n in 1..=2 {
        assert_eq!(hive.exchange(ECHO.as_bytes()).unwrap().status, 200);
        node.wait_count(n);
    }
    let seen = node.requests().remove(0);
    let xfcc = seen.header("x-forwarded-client-cert").unwrap();
    assert!(xfcc.contains(spiffe_id) && !xfcc.contains("forged"), "{xfcc}");
    assert_eq!(far.wait_log(|l| l["route"] == "echo")["peer"], "alice");
    let line = near.wait_log(|l| l["route"] == "echo");
    assert!(line["tls_version"].is_string() && line["peer"].is_null(), "{line}");
}

#[test]
fn nobody_is_anybody_there() {
    let node = Node::start();
    let gateway = unasked(&[node.address]).start();
    // A certificate at hand is not asked for.
    for client in [nobody(&gateway), gateway.client("alice")] {
        let answer = client.connect(gateway.address).unwrap().exchange(ECHO.as_bytes()).unwrap();
        assert_eq!(answer.status, 200);
    }
    for seen in node.requests() {
        assert_eq!(seen.header("x-forwarded-client-cert"), None, "{}", seen.text());
        assert_eq!(seen.all("x-forwarded-proto"), ["https"]);
    }
    assert!(gateway.access_log().iter().all(|l| l["peer"].is_null() && l["spiffe_id"].is_null()));
    // SNI and Host must agree as ever, and nobody speaks plain text.
    let mut misdirected = nobody(&gateway).sni(Some("other.test")).connect(gateway.address).unwrap();
    assert_eq!(misdirected.exchange(ECHO.as_bytes()).unwrap().status, 421);
    let plain = Connection::plain(gateway.address).unwrap().exchange(ECHO.as_bytes());
    assert!(plain.is_err(), "{plain:?}");
}

#[test]
fn a_reload_that_begins_or_ends_to_ask_reaches_connections_that_are_open() {
    let node = Node::start();
    let gateway = unasked(&[node.address]).start();
    let open = |client: &Client| client.connect(gateway.address).unwrap();
    let status = |connection: &mut Connection| connection.exchange(ECHO.as_bytes()).map(|answer| answer.status);
    let mut unknown = open(&nobody(&gateway));
    assert_eq!(status(&mut unknown).unwrap(), 200);
    gateway.edit("mode: none", "ca: ca.pem, crl: []");
    gateway.reload_ok();
    assert_eq!(status(&mut unknown).unwrap(), 401, "it never showed a certificate");
    assert!(nobody(&gateway).get(gateway.address, "/echo").is_err());
    let mut known = open(&gateway.client("alice"));
    assert_eq!(status(&mut known).unwrap(), 200);
    gateway.edit("ca: ca.pem, crl: []", "mode: none");
    gateway.reload_ok();
    assert_eq!(status(&mut known).unwrap(), 401, "whom nobody can judge any more");
    assert_eq!(status(&mut open(&nobody(&gateway))).unwrap(), 200);
}

#[test]
fn check_refuses_it_where_strangers_come() {
    let mut setup = unasked(&[]);
    setup.upstreams = upstream("hive", "http", &["127.0.0.1:9".parse().unwrap()], "");
    setup.peers = "[]".into();
    let (said, summary) = setup.check();
    assert!(said.is_empty() && summary.contains("asks for no client certificate"), "{said}{summary}");
    setup.listener = "
  - name: open
    address: 0.0.0.0:1
    tls: { certificates: [{ cert: server.pem, key: server.key }], client_auth: { mode: none } }
"
    .into();
    let (said, _) = setup.check();
    assert!(said.contains("listeners[1].tls.client_auth.mode: none on 0.0.0.0:1, which strangers can reach"), "{said}");
}
