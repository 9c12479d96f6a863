//! Clients about whom an OCSP responder is asked before their first request.

use std::time::{Duration, Instant};

use hive_gateway::cli::pki::{KeyKind, RawExtension};

use crate::support::certs::{Leaf, Pki, Usage, client_leaf, from_now};
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::ocsp_server::{OcspServer, Responder, Says, Signature};
use crate::support::relay::Relay;
use crate::support::wait_until;

const CARD: &str = "/.well-known/agent-card.json";
const ASK: &[u8] = b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const ANSWERS: &str = "hive_gateway_ocsp_answers_total";

fn gateway(node: &Node, more: &str, seconds: i64) -> (Gateway, OcspServer) {
    let mut setup = Setup::new(&[node.address]);
    let server = OcspServer::start(setup.pki.0.intermediate.clone(), seconds);
    setup.client_auth = format!("ocsp: leaf, ocsp_url: \"{}\"{more}", server.url());
    (setup.start(), server)
}

#[track_caller]
fn assert_refused(gateway: &Gateway, name: &str, why: &str) {
    let client = gateway.client(name);
    let answer = client.get(gateway.address, CARD).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some(why)));
    let h2 = H2::connect(&client, gateway.address).unwrap();
    assert_eq!(h2.get(CARD).unwrap().status, 401);
    h2.wait_ended();
}

#[test]
fn a_good_client_is_asked_about_once() {
    let node = Node::start();
    let (gateway, server) = gateway(&node, "", 3600);
    let client = gateway.client("alice");
    let mut connection = client.connect(gateway.address).unwrap();
    for _ in 0..3 {
        assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    }
    let h2 = H2::connect(&client, gateway.address).unwrap();
    assert_eq!(h2.get_all(CARD, 20).unwrap().len(), 20);
    assert_eq!(server.asked(), 1);
    assert_eq!(gateway.metric(ANSWERS, &[("listener", "front"), ("result", "good")]), 1.0);
}

#[test]
fn a_revoked_client_is_told_so_and_sent_away() {
    let node = Node::start();
    let (gateway, server) = gateway(&node, ", ocsp_failure: accept", 3600);
    server.say(Says::Revoked);
    assert_refused(&gateway, "alice", "certificate_revoked");
    assert_eq!((node.count(), server.asked()), (0, 1));
    assert_eq!(gateway.metric(ANSWERS, &[("result", "revoked")]), 1.0);
}

#[test]
fn an_answer_that_ends_is_asked_for_again_on_a_running_connection() {
    let node = Node::start();
    let (gateway, server) = gateway(&node, "", 2);
    let mut connection = gateway.connect("alice");
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    server.say(Says::Revoked);
    wait_until("the client is found to be revoked", || connection.exchange(ASK).unwrap().status == 401);
    connection.closed_after().unwrap();
    assert_eq!(server.asked(), 2);
}

#[test]
fn without_an_answer_the_configuration_decides() {
    let node = Node::start();
    for says in [Says::DoesNotKnow, Says::Silence, Says::Garbage] {
        let (strict, server) = gateway(&node, ", ocsp_timeout: 300ms", 3600);
        server.say(says.clone());
        let begun = Instant::now();
        assert_refused(&strict, "alice", "certificate_status_unknown");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let (lenient, server) = gateway(&node, ", ocsp_timeout: 300ms, ocsp_failure: accept", 3600);
        server.say(says);
        assert_eq!(lenient.client("alice").get(lenient.address, CARD).unwrap().status, 200);
    }
}

#[test]
fn an_answer_signed_by_somebody_else_says_nothing() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    // Of the same name and without the key; a client of the mesh may not speak for its CA either.
    let twin = Pki::default().0.intermediate;
    let server = OcspServer::start(twin, 3600);
    setup.client_auth = format!("ocsp: leaf, ocsp_url: \"{}\"", server.url());
    let gateway = setup.start();
    assert_refused(&gateway, "alice", "certificate_status_unknown");
    assert_eq!(node.count(), 0);
}

#[test]
fn an_answer_that_is_over_says_nothing() {
    let node = Node::start();
    // Longer ago than clocks may differ.
    let (gateway, _server) = gateway(&node, "", -400);
    assert_refused(&gateway, "alice", "certificate_status_unknown");
}

#[test]
fn a_running_stream_ends_when_the_next_answer_is_bad() {
    let node = Node::endless();
    let mut setup = Setup::new(&[node.address]);
    let server = OcspServer::start(setup.pki.0.intermediate.clone(), 2);
    setup.client_auth = format!("ocsp: leaf, ocsp_url: \"{}\"", server.url());
    setup.timeouts = "revocation: 400ms".into();
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    connection.send(b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
    wait_until("a good answer is asked for again", || {
        assert!(connection.chunk().unwrap().is_some());
        server.asked() >= 2
    });
    server.say(Says::Revoked);
    while let Ok(chunk) = connection.chunk() {
        assert!(chunk.is_some(), "the stream pretends to be whole");
    }
    let line = gateway.wait_log(|l| l["refusal"] == "certificate_revoked");
    assert_eq!(line["status"], 200, "{line}");
}

/// What a client gets whose certificate names this responder, and what the gateway said about it on its standard error.
fn by_its_own_responder(gateway: &Gateway, relay: &Relay, responder: Responder, says: Says) -> (u16, String) {
    let server = OcspServer::start_as(responder, 3600);
    server.say(says.clone());
    // The host is the one that is allowed, the path tells one case from another.
    relay.lead_to(server.address);
    let url = format!("http://{}/ocsp/{}", relay.address, server.address.port());
    let leaf = client_leaf("alice", "spiffe://mesh.test/hive/alice").extension(RawExtension::ocsp_responder(&url));
    let client = gateway.client_with(Some(gateway.pki().leaf(&leaf)));
    let status = client.get(gateway.address, CARD).unwrap().status;
    assert_eq!(server.asked(), 1, "the responder of the certificate is asked");
    let why = || gateway.stderr().lines().filter(|l| l.contains(&url)).collect::<Vec<_>>().join("\n");
    if status == 401 && !matches!(says, Says::Revoked) {
        wait_until("it says why", || !why().is_empty());
    }
    (status, why())
}

#[test]
fn who_may_answer_for_the_ca_and_how() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let relay = Relay::start();
    setup.client_auth = format!("ocsp: leaf, ocsp_responders: [\"http://{}/ocsp/\"]", relay.address);
    let gateway = setup.start();
    let pki = &gateway.pki().0;
    let delegate = |usage: Usage, key: KeyKind, ca| {
        let spec = Leaf { usage, key, ..Leaf::client("responder", from_now(-3600, 3600)) };
        spec.issue(ca).unwrap()
    };
    let rsa = delegate(Usage::OcspSigning, KeyKind::Rsa(2048), &pki.intermediate);
    let ecdsa = delegate(Usage::OcspSigning, KeyKind::P256, &pki.intermediate);
    let with_nonce = Responder { nonce: true, ..Responder::ca(&pki.intermediate) };
    for (case, good) in [
        ("the CA", Responder::ca(&pki.intermediate)),
        ("the CA with a nonce that nobody asked for", with_nonce),
        ("delegated", Responder::delegated(&ecdsa, Signature::EcdsaSha256)),
        ("RSA", Responder::delegated(&rsa, Signature::RsaSha256)),
        ("RSA-PSS", Responder::delegated(&rsa, Signature::RsaPssSha256)),
    ] {
        assert_eq!(by_its_own_responder(&gateway, &relay, good.clone(), Says::Good), (200, String::new()), "{case}");
        assert_eq!(by_its_own_responder(&gateway, &relay, good, Says::Revoked).0, 401, "{case}");
    }
    let no_leave = delegate(Usage::Client, KeyKind::P256, &pki.intermediate);
    let by_the_root = delegate(Usage::OcspSigning, KeyKind::P256, &pki.root);
    let stranger = delegate(Usage::OcspSigning, KeyKind::P256, &Pki::default().0.intermediate);
    let expired = Leaf { usage: Usage::OcspSigning, ..Leaf::client("responder", from_now(-7200, -3600)) };
    let expired = expired.issue(&pki.intermediate).unwrap();
    for (case, bad) in [
        ("without OCSPSigning", Responder::delegated(&no_leave, Signature::EcdsaSha256)),
        ("by another CA than the certificate's", Responder::delegated(&by_the_root, Signature::EcdsaSha256)),
        ("by a CA that is not trusted", Responder::delegated(&stranger, Signature::EcdsaSha256)),
        ("expired", Responder::delegated(&expired, Signature::EcdsaSha256)),
        ("SHA-1", Responder::delegated(&rsa, Signature::RsaSha1)),
        ("another's key", Responder { key: stranger.key.clone(), ..Responder::ca(&pki.intermediate) }),
    ] {
        let (status, why) = by_its_own_responder(&gateway, &relay, bad, Says::Good);
        assert_eq!(status, 401, "{case}: {why}");
    }
    for (says, part) in [
        (Says::OtherSerial, "about another certificate"),
        (Says::DoesNotKnow, "does not know"),
        (Says::TryLater, "the responder says 3"),
        (Says::Garbage, "no OCSP answer"),
    ] {
        let (status, why) = by_its_own_responder(&gateway, &relay, Responder::ca(&pki.intermediate), says);
        assert!(status == 401 && why.contains(part), "{part}: {status} {why}");
    }
}

#[test]
fn a_responder_that_the_configuration_does_not_allow_is_not_asked() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let (given, named) = (
        &OcspServer::start(setup.pki.0.intermediate.clone(), 3600),
        OcspServer::start(setup.pki.0.intermediate.clone(), 3600),
    );
    let leaf =
        client_leaf("alice", "spiffe://mesh.test/hive/alice").extension(RawExtension::ocsp_responder(&named.url()));
    let identity = setup.pki.leaf(&leaf);
    // Another path of the same host is not allowed either.
    setup.client_auth = format!("ocsp: leaf, ocsp_responders: [\"http://{}/other/\"]", named.address);
    let gateway = setup.start();
    let client = gateway.client_with(Some(identity.clone()));
    let answer = client.get(gateway.address, CARD).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_status_unknown")));
    // With a responder of the configuration that one is asked.
    let mut setup = gateway.stop();
    setup.client_auth += &format!(", ocsp_url: \"{}\"", given.url());
    let gateway = setup.start();
    assert_eq!(gateway.client_with(Some(identity.clone())).get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!((given.asked(), named.asked()), (1, 0));
    // And where it is allowed, the certificate's.
    let mut setup = gateway.stop();
    setup.client_auth =
        format!("ocsp: leaf, ocsp_url: \"{}\", ocsp_responders: [\"http://{}/\"]", given.url(), named.address);
    let summary = setup.check().1;
    for part in ["responders that they name below http://", "OCSP about clients by http://", "answer are refused"] {
        assert!(summary.contains(part), "{summary}");
    }
    let gateway = setup.start();
    assert_eq!(gateway.client_with(Some(identity)).get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!((given.asked(), named.asked()), (1, 1));
}

#[test]
fn connections_of_one_certificate_that_come_at_once_ask_once() {
    let node = Node::start();
    let (gateway, server) = gateway(&node, "", 3600);
    let client = gateway.client("alice");
    let mut connections: Vec<_> = (0..20).map(|_| client.connect(gateway.address).unwrap()).collect();
    connections.iter_mut().for_each(|connection| connection.send(ASK).unwrap());
    for connection in &mut connections {
        assert_eq!(connection.response(false).unwrap().status, 200);
    }
    assert_eq!(server.asked(), 1);
}

#[test]
fn a_certificate_that_names_no_responder_says_nothing() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.client_auth = "ocsp: leaf, ocsp_responders: [\"http://ocsp.mesh.example/\"]".into();
    let gateway = setup.start();
    assert_refused(&gateway, "alice", "certificate_status_unknown");
    assert!(gateway.stderr().contains("names no http:// responder"), "{}", gateway.stderr());
}
