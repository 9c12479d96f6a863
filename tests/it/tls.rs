//! Who gets a connection, who does not, and how that is counted.

use std::ffi::c_int;

use foreign_types::ForeignTypeRef;
use openssl::hash::MessageDigest;
use openssl::ssl::{SslSessionCacheMode, SslVersion};

use crate::support::certs::{Identity, Leaf, Pki, Usage, client_leaf, from_now};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;

const HANDSHAKES: &str = "hive_gateway_tls_handshakes_total";
const CARD: &str = "/.well-known/agent-card.json";

fn gateway() -> (Gateway, Node) {
    let node = Node::start();
    (Setup::new(&[node.address]).start(), node)
}

fn alice() -> Leaf {
    client_leaf("alice", "spiffe://mesh.test/hive/alice")
}

/// Neither HTTP version gets through, and both are counted as one of these results.
#[track_caller]
fn assert_refused(gateway: &Gateway, node: &Node, client: &Client, results: &[&str]) {
    let sum =
        || results.iter().map(|r| gateway.metric(HANDSHAKES, &[("listener", "front"), ("result", r)])).sum::<f64>();
    let before = (sum(), gateway.metric(HANDSHAKES, &[("result", "ok")]));
    let h1 = client.get(gateway.address, CARD);
    assert!(h1.is_err(), "HTTP/1.1 got {h1:?}");
    let h2 = H2::connect(client, gateway.address).and_then(|h2| h2.get(CARD));
    assert!(h2.is_err(), "HTTP/2 got {h2:?}");
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while sum() != before.0 + 2.0 {
        assert!(std::time::Instant::now() < deadline, "not counted twice as {results:?}:\n{}", shown(gateway));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(gateway.metric(HANDSHAKES, &[("result", "ok")]), before.1, "counted as ok");
    assert_eq!(node.count(), 0, "the node saw a request");
}

fn shown(gateway: &Gateway) -> String {
    gateway.metrics().lines().filter(|l| l.starts_with(HANDSHAKES)).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_identity_refused(identity: impl FnOnce(&Pki) -> Option<Identity>, results: &[&str]) {
    let (gateway, node) = gateway();
    let client = gateway.client_with(identity(gateway.pki()));
    assert_refused(&gateway, &node, &client, results);
}

#[test]
fn a_client_with_its_intermediate_gets_through_on_both_versions() {
    let (gateway, node) = gateway();
    let client = gateway.client("alice");
    assert_eq!(client.get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!(H2::connect(&client, gateway.address).unwrap().get(CARD).unwrap().status, 200);
    gateway.wait_metric(HANDSHAKES, &[("listener", "front"), ("result", "ok")], 2.0);
    assert_eq!(node.count(), 2);
}

#[test]
fn tls_1_2_works_with_forward_secrecy_only() {
    let (gateway, _node) = gateway();
    let client = gateway.client("alice").configure(|b| b.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap());
    let mut connection = client.connect(gateway.address).unwrap();
    let cipher = connection.ssl().ssl().current_cipher().unwrap().name().to_owned();
    assert!(cipher.starts_with("ECDHE-") && (cipher.contains("GCM") || cipher.contains("CHACHA20")), "{cipher}");
    let weak = gateway.client("alice").configure(|b| {
        b.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
        b.set_cipher_list("ECDHE-ECDSA-AES128-SHA:AES128-GCM-SHA256:@SECLEVEL=0").unwrap();
    });
    assert!(weak.connect(gateway.address).is_err(), "CBC and RSA key exchange");
}

#[test]
fn no_certificate_is_refused() {
    assert_identity_refused(|_| None, &["no_certificate"]);
}

#[test]
fn a_self_signed_certificate_is_refused() {
    assert_identity_refused(|_| Some(alice().self_signed().unwrap()), &["unknown_ca"]);
}

#[test]
fn another_ca_with_the_same_subject_is_refused() {
    assert_identity_refused(|_| Some(Pki::default().leaf(&alice())), &["unknown_ca", "bad_signature"]);
}

#[test]
fn another_ca_with_the_subject_of_a_known_intermediate_is_refused() {
    let node = Node::start();
    let setup = Setup::new(&[node.address]);
    let bundle = setup.pki.0.bundle_pem().unwrap();
    std::fs::write(setup.dir.path().join("ca.pem"), bundle).unwrap();
    let gateway = setup.start();
    let stranger = Pki::default().leaf(&Leaf { with_intermediates: false, ..alice() });
    assert_refused(&gateway, &node, &gateway.client_with(Some(stranger)), &["bad_signature", "unknown_ca"]);
    // With the intermediate in the bundle a client need not send it.
    let known = gateway.pki().leaf(&Leaf { with_intermediates: false, ..alice() });
    assert_eq!(gateway.client_with(Some(known)).get(gateway.address, CARD).unwrap().status, 200);
}

#[test]
fn an_expired_certificate_is_refused() {
    assert_identity_refused(|pki| Some(pki.leaf(&Leaf { validity: from_now(-7200, -60), ..alice() })), &["expired"]);
}

#[test]
fn a_certificate_that_is_not_yet_valid_is_refused() {
    assert_identity_refused(
        |pki| Some(pki.leaf(&Leaf { validity: from_now(3600, 7200), ..alice() })),
        &["not_yet_valid"],
    );
}

#[test]
fn a_server_only_certificate_is_refused() {
    let leaf = Leaf { usage: Usage::Server, ..alice() };
    assert_identity_refused(|pki| Some(pki.leaf(&leaf)), &["wrong_purpose"]);
}

#[test]
fn a_missing_intermediate_is_refused() {
    assert_identity_refused(
        |pki| Some(pki.leaf(&Leaf { with_intermediates: false, ..alice() })),
        &["chain_incomplete", "unknown_ca"],
    );
}

#[test]
fn a_sha1_signature_is_refused() {
    let (gateway, node) = gateway();
    let weak = gateway.pki().leaf(&Leaf { digest: MessageDigest::sha1(), ..alice() });
    let client = gateway.client_with(Some(weak)).configure(|b| b.set_cipher_list("DEFAULT:@SECLEVEL=0").unwrap());
    assert_refused(&gateway, &node, &client, &["weak_signature"]);
}

#[test]
fn tls_1_1_is_refused() {
    let (gateway, node) = gateway();
    let client = gateway.client("alice").configure(|b| {
        b.set_cipher_list("DEFAULT:@SECLEVEL=0").unwrap();
        b.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
        b.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
    });
    assert_refused(&gateway, &node, &client, &["protocol_version"]);
}

#[test]
fn min_version_1_3_refuses_tls_1_2() {
    let node = Node::start();
    let setup = Setup::new(&[node.address]);
    let gateway = setup.tls("min_version: \"1.3\"").start();
    let client = gateway.client("alice").configure(|b| b.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap());
    assert_refused(&gateway, &node, &client, &["protocol_version"]);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
}

#[test]
fn plain_http_on_the_tls_port_is_counted_as_not_tls() {
    let (gateway, _node) = gateway();
    let mut connection = crate::support::client::Connection::plain(gateway.address).unwrap();
    connection.send(b"GET / HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    connection.closed_after().unwrap();
    gateway.wait_metric(HANDSHAKES, &[("result", "not_tls")], 1.0);
}

#[test]
fn without_sni_only_what_the_default_certificate_covers_is_served() {
    let (gateway, node) = gateway();
    let client = gateway.client("alice").sni(None);
    let ask = |host: &str| {
        let mut connection = client.connect(gateway.address).unwrap();
        connection.exchange(format!("GET {CARD} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap().status
    };
    assert_eq!((ask("evil.example"), ask("127.0.0.1"), node.count()), (421, 421, 0));
    assert_eq!((ask("gateway.test"), node.count()), (200, 1));
}

#[test]
fn another_sni_than_the_host_is_misdirected() {
    let (gateway, node) = gateway();
    // other.test is served as well, so the certificate alone would let it pass.
    let client = gateway.client("alice").sni(Some("other.test"));
    let mut connection = client.connect(gateway.address).unwrap();
    let answer = connection.exchange(b"GET /.well-known/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(answer.status, 421);
    assert_eq!(answer.json()["error"], "misdirected_request");
    assert_eq!(H2::connect(&client, gateway.address).unwrap().get(CARD).unwrap().status, 421);
    assert_eq!(node.count(), 0);
    let answer = client.get(gateway.address, CARD).unwrap();
    assert_eq!(answer.status, 200, "the same name in both");
}

#[test]
fn an_sni_that_no_certificate_covers_is_not_served() {
    let (gateway, node) = gateway();
    let client = gateway.client("alice").sni(Some("evil.example")).configure(|b| {
        // The gateway has no certificate for it; what it does with a client that does not mind is the question.
        b.set_verify(openssl::ssl::SslVerifyMode::NONE);
    });
    if let Ok(answer) = client.get(gateway.address, CARD) {
        assert_eq!(answer.status, 421);
    }
    assert_eq!(node.count(), 0);
}

unsafe extern "C" {
    // Not in the openssl crate: nobody should want it.
    fn SSL_renegotiate(ssl: *mut openssl_sys::SSL) -> c_int;
}

#[test]
fn renegotiation_is_refused() {
    let (gateway, _node) = gateway();
    let client = gateway.client("alice").configure(|b| b.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap());
    let mut connection = client.connect(gateway.address).unwrap();
    let first = connection.exchange(b"GET /.well-known/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(first.status, 200);
    // SAFETY: the pointer is of a live session that nothing else uses now.
    let asked = unsafe { SSL_renegotiate(connection.ssl().ssl().as_ptr()) };
    assert_eq!(asked, 1);
    let handshake = connection.ssl().do_handshake();
    let later = connection.exchange(b"GET /.well-known/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    assert!(handshake.is_err() || later.is_err(), "the gateway shook hands a second time");
    assert_eq!(gateway.metric(HANDSHAKES, &[("result", "ok")]), 1.0);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
}

#[test]
fn no_session_is_resumed() {
    let (gateway, _node) = gateway();
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let client = gateway.client("alice").configure(move |b| {
            b.set_max_proto_version(Some(version)).unwrap();
            b.set_session_cache_mode(SslSessionCacheMode::CLIENT);
            b.set_new_session_callback(|_, _| panic!("the gateway gave out a session to resume"));
        });
        let mut connection = client.connect(gateway.address).unwrap();
        if version == SslVersion::TLS1_3 {
            connection.exchange(b"GET /.well-known/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
            continue;
        }
        let session = connection.ssl().ssl().session().unwrap().to_owned();
        let mut ssl = client.ssl(b"\x08http/1.1");
        // SAFETY: the session comes from a context of the same kind.
        unsafe { ssl.set_session(&session).unwrap() };
        let second = ssl.connect(std::net::TcpStream::connect(gateway.address).unwrap()).unwrap();
        assert!(!second.ssl().session_reused());
    }
}

#[test]
fn a_failed_handshake_is_logged_with_its_reason() {
    let (gateway, _node) = gateway();
    let expired = gateway.pki().leaf(&Leaf { validity: from_now(-7200, -60), ..alice() });
    let _ = gateway.client_with(Some(expired)).get(gateway.address, CARD);
    crate::support::wait_until("the log names reason, SNI and subject", || {
        let said = gateway.stderr() + &gateway.stdout();
        said.lines().any(|l| l.contains("expired") && l.contains("alice") && l.contains("gateway.test"))
    });
}
