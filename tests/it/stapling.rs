//! OCSP answers about the gateway's own certificates, sent along in the handshake.

use std::net::TcpStream;
use std::time::Duration;

use hive_gateway::cli::pki::{KeyKind, RawExtension};
use openssl::hash::MessageDigest;
use openssl::ocsp::{OcspCertId, OcspCertStatus, OcspResponse};
use openssl::ssl::{SslVersion, StatusType};
use openssl::x509::X509;

use crate::support::certs::{self, Leaf, server_leaf};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::ocsp_server::{OcspServer, Responder, Says, Signature};
use crate::support::wait_until;

const CARD: &str = "/.well-known/agent-card.json";
const FETCHES: &str = "hive_gateway_ocsp_staple_fetches_total";
const NEXT_UPDATE: &str = "hive_gateway_ocsp_staple_next_update_seconds";

/// A certificate for the names that asks the server, written as the files `NAME.pem` and `NAME.key`.
fn write(setup: &Setup, name: &str, leaf: Leaf, server: &OcspServer) {
    let leaf = leaf.extension(RawExtension::ocsp_responder(&server.url()));
    certs::write(&setup.pki.leaf(&leaf), setup.dir.path(), name);
}

fn setup(node: &Node, seconds: i64) -> (Setup, OcspServer) {
    let setup = Setup::new(&[node.address]);
    let server = OcspServer::start(setup.pki.0.intermediate.clone(), seconds);
    write(&setup, "server", server_leaf(&["gateway.test", "other.test"]), &server);
    (setup, server)
}

/// What comes along with the certificate that a client is shown: both, if the client asks for it.
fn handshake(gateway: &Gateway, client: &Client, asks: bool) -> (X509, Option<Vec<u8>>) {
    let mut ssl = client.ssl(b"\x08http/1.1");
    if asks {
        ssl.set_status_type(StatusType::OCSP).unwrap();
    }
    let stream = ssl.connect(TcpStream::connect(gateway.address).unwrap()).unwrap();
    let answer = stream.ssl().ocsp_status().map(<[u8]>::to_vec);
    (stream.ssl().peer_certificate().unwrap(), answer)
}

fn stapled(gateway: &Gateway) -> Option<Vec<u8>> {
    handshake(gateway, &gateway.client("alice"), true).1
}

/// Whether the answer is a good one about the certificate.
#[track_caller]
fn assert_good(gateway: &Gateway, (cert, answer): (X509, Option<Vec<u8>>)) {
    let basic = OcspResponse::from_der(&answer.expect("nothing stapled")).unwrap().basic().unwrap();
    let id = OcspCertId::from_cert(MessageDigest::sha1(), &cert, &gateway.pki().0.intermediate.cert).unwrap();
    let status = basic.find_status(&id).expect("about another certificate");
    assert_eq!(status.status, OcspCertStatus::GOOD);
}

#[test]
fn a_client_that_asks_gets_the_answer_and_others_get_none() {
    let node = Node::start();
    let (setup, server) = setup(&node, 3600);
    let gateway = setup.start();
    gateway.wait_metric(FETCHES, &[("listener", "front"), ("result", "good")], 1.0);
    let client = gateway.client("alice");
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let client = client.clone().configure(move |b| b.set_max_proto_version(Some(version)).unwrap());
        assert_good(&gateway, handshake(&gateway, &client, true));
        assert_eq!(handshake(&gateway, &client, false).1, None);
    }
    assert_eq!(client.get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!(server.asked(), 1, "handshakes ask nobody");
    assert!(gateway.metric(NEXT_UPDATE, &[("listener", "front"), ("subject", "CN=gateway.test")]) > 1.7e9);
    let ocsp = &gateway.status()["listeners"][0]["certificates"][0]["ocsp"];
    assert_eq!((ocsp["status"].as_str(), ocsp["responder"].as_str()), (Some("good"), Some(&*server.url())), "{ocsp}");
}

#[test]
fn each_certificate_has_its_own_answer() {
    let node = Node::start();
    let (setup, first) = setup(&node, 3600);
    let ca = &setup.pki.0.intermediate;
    let delegate = Leaf { usage: certs::Usage::OcspSigning, ..Leaf::client("responder", certs::from_now(-60, 3600)) };
    let delegate = Responder::delegated(&delegate.issue(ca).unwrap(), Signature::EcdsaSha256);
    let (second, third) = (OcspServer::start_as(delegate, 3600), OcspServer::start(ca.clone(), 3600));
    write(&setup, "rsa", Leaf { key: KeyKind::Rsa(2048), ..server_leaf(&["gateway.test", "other.test"]) }, &second);
    write(&setup, "third", server_leaf(&["third.test"]), &third);
    let gateway = setup.start_unready();
    gateway.edit(
        "certificates: [ { cert: server.pem, key: server.key } ]",
        "certificates: [ { cert: server.pem, key: server.key }, { cert: rsa.pem, key: rsa.key }, \
         { cert: third.pem, key: third.key } ]",
    );
    gateway.reload_ok();
    gateway.wait_metric(FETCHES, &[("result", "good")], 3.0);
    assert_eq!([first.asked(), second.asked(), third.asked()], [1, 1, 1]);
    let rsa_only = |b: &mut openssl::ssl::SslContextBuilder| {
        b.set_sigalgs_list("rsa_pss_rsae_sha256:rsa_pkcs1_sha256:ecdsa_secp256r1_sha256").unwrap();
        b.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
        b.set_cipher_list("ECDHE-RSA-AES128-GCM-SHA256").unwrap();
    };
    let client = gateway.client("alice");
    let rsa = handshake(&gateway, &client.clone().configure(rsa_only), true);
    assert_eq!(rsa.0.public_key().unwrap().id(), openssl::pkey::Id::RSA);
    assert_good(&gateway, rsa);
    let ecdsa = handshake(&gateway, &client, true);
    assert_eq!(ecdsa.0.public_key().unwrap().id(), openssl::pkey::Id::EC);
    assert_good(&gateway, ecdsa);
    let by_name = handshake(&gateway, &client.clone().sni(Some("third.test")), true);
    assert!(by_name.0.subject_alt_names().unwrap().iter().any(|san| san.dnsname() == Some("third.test")));
    assert_good(&gateway, by_name);
}

#[test]
fn no_handshake_fails_for_want_of_an_answer() {
    let node = Node::start();
    for says in [Says::Silence, Says::Garbage, Says::DoesNotKnow, Says::TryLater, Says::OtherSerial] {
        let (setup, server) = setup(&node, 3600);
        server.say(says);
        let gateway = setup.start();
        wait_until("the responder is asked", || server.asked() > 0);
        assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
        assert_eq!(stapled(&gateway), None);
        assert_eq!(gateway.status()["listeners"][0]["certificates"][0]["ocsp"]["status"], "unknown");
        // It is asked again, and again, until there is an answer.
        server.say(Says::Good);
        if gateway.metric(FETCHES, &[("result", "unknown")]) > 0.0 {
            wait_until("the answer is there", || stapled(&gateway).is_some());
        }
    }
}

#[test]
fn a_revoked_certificate_is_told_of_loudly_and_the_answer_is_not_sent() {
    let node = Node::start();
    let (setup, server) = setup(&node, 3);
    let gateway = setup.start();
    gateway.wait_metric(FETCHES, &[("result", "good")], 1.0);
    assert!(stapled(&gateway).is_some());
    server.say(Says::Revoked);
    gateway.wait_metric(FETCHES, &[("result", "revoked")], 1.0);
    assert_eq!(stapled(&gateway), None);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
    let said = gateway.stderr();
    assert!(
        said.lines().any(|l| l.contains("ERROR") && l.contains("REVOKED") && l.contains("CN=gateway.test")),
        "{said}"
    );
    assert_eq!(gateway.metric(NEXT_UPDATE, &[]), 0.0);
}

#[test]
fn an_answer_is_renewed_before_its_end_and_dropped_at_it() {
    let node = Node::start();
    let (setup, server) = setup(&node, 8);
    let gateway = setup.start();
    wait_until("there is an answer", || stapled(&gateway).is_some());
    let first = stapled(&gateway).unwrap();
    wait_until("it is renewed, and at no time missing", || stapled(&gateway).expect("missing") != first);
    server.say(Says::Garbage);
    wait_until("the last one ends", || stapled(&gateway).is_none());
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
    server.say(Says::Good);
    server.lasts(3600);
    wait_until("there is one again", || stapled(&gateway).is_some());
}

#[test]
fn an_answer_outlives_reloads_and_a_new_certificate_gets_its_own() {
    let node = Node::start();
    let (setup, server) = setup(&node, 3600);
    let gateway = setup.start();
    gateway.wait_metric(FETCHES, &[("result", "good")], 1.0);
    let before = stapled(&gateway).unwrap();
    server.say(Says::Silence);
    gateway.reload_ok();
    assert_eq!(stapled(&gateway), Some(before));
    assert_eq!(server.asked(), 1);
    server.say(Says::Good);
    write(gateway.setup(), "server", server_leaf(&["gateway.test", "other.test"]), &server);
    gateway.wait_metric(FETCHES, &[("result", "good")], 2.0);
    assert_good(&gateway, handshake(&gateway, &gateway.client("alice"), true));
}

#[test]
fn with_a_state_directory_the_answer_is_there_from_the_first_handshake_on() {
    let node = Node::start();
    let (mut setup, server) = setup(&node, 3600);
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    setup.server = "state_dir: state".into();
    let gateway = setup.start();
    gateway.wait_metric(FETCHES, &[("result", "good")], 1.0);
    let state = gateway.dir().join("state");
    wait_until("it is kept", || std::fs::read_dir(&state).unwrap().flatten().any(|f| f.path().extension().is_none()));
    let before = stapled(&gateway).unwrap();
    server.say(Says::Silence);
    let gateway = gateway.stop().start();
    assert_eq!(stapled(&gateway), Some(before));
    assert_eq!(server.asked(), 1, "it is fresh enough");
}

#[test]
fn stapling_can_be_switched_off_and_must_staple_is_warned_of() {
    let node = Node::start();
    let (setup, server) = setup(&node, 3600);
    let (said, summary) = setup.check();
    assert!(!said.contains("staple") && summary.contains(&format!("OCSP answers to staple from {}", server.url())));
    let leaf = server_leaf(&["gateway.test"]).extension(RawExtension::must_staple());
    certs::write(&setup.pki.leaf(&leaf), setup.dir.path(), "server");
    let (said, _) = setup.check();
    assert!(said.contains("it is must-staple, but names no http:// responder"), "{said}");
    write(&setup, "server", leaf, &server);
    let (said, _) = setup.check();
    assert!(said.contains("until its responder has answered once"), "{said}");
    let setup = setup.tls("ocsp_stapling: off");
    let (said, summary) = setup.check();
    assert!(said.contains("ocsp_stapling is off") && !summary.contains("to staple"), "{said}{summary}");
    let gateway = setup.start();
    // Longer than it would take to ask; nothing else shows that nobody is asked.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((server.asked(), stapled(&gateway)), (0, None));
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
}
