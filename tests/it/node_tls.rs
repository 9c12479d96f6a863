//! Handshakes with nodes that fail: nothing is sent, the log says why, a metric counts by reason.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use hive_gateway::cli::pki::KeyKind;
use openssl::ssl::{
    AlpnError, HandshakeError, Ssl, SslContext, SslContextBuilder, SslMethod, SslVersion, select_next_proto,
};

use crate::support::certs::{self, Identity, Leaf, Pki, client_leaf, from_now, server_leaf};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::server_context;
use crate::support::wait_until;

const FAILURES: &str = "hive_gateway_upstream_tls_failures_total";
const NO_PROBES: &str = "health_check: { enabled: false }";
const NAME: &str = "hive.internal";

/// A node's context that asks nobody for a certificate.
fn context(identity: &Identity, change: impl FnOnce(&mut SslContextBuilder)) -> SslContext {
    let mut b = SslContext::builder(SslMethod::tls_server()).unwrap();
    // Whatever is too weak is the gateway's to refuse.
    b.set_security_level(0);
    b.set_certificate(&identity.cert).unwrap();
    b.set_private_key(&identity.key).unwrap();
    identity.chain.iter().for_each(|c| b.add_extra_chain_cert(c.clone()).unwrap());
    change(&mut b);
    b.build()
}

fn alpn(builder: &mut SslContextBuilder, offered: &'static [u8]) {
    builder.set_alpn_select_callback(move |_, client| select_next_proto(offered, client).ok_or(AlpnError::NOACK));
}

/// Takes connections and keeps what comes after the handshake.
struct Listening {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Listening {
    fn start(context: SslContext) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let mut bytes = Vec::new();
                match Ssl::new(&context).unwrap().accept(tcp) {
                    Ok(mut stream) => _ = stream.read_to_end(&mut bytes),
                    Err(HandshakeError::Failure(failed)) => {
                        // Closed at once, with bytes unread, the connection would be reset, and the alert lost.
                        let mut tcp = failed.get_ref();
                        let _ = tcp.shutdown(Shutdown::Write);
                        let _ = tcp.read_to_end(&mut Vec::new());
                    }
                    Err(_) => {}
                }
                sink.lock().unwrap().extend(bytes);
            }
        });
        Self { address, heard }
    }
}

fn setup(mesh: &Pki, node: SocketAddr, tls: &str, more: &str) -> Setup {
    let mut setup = Setup::new(&[]);
    mesh.write_root(setup.dir.path(), "hive-ca");
    certs::write(&mesh.leaf(&client_leaf("gateway", "spiffe://mesh.test/gateway")), setup.dir.path(), "gw");
    setup.upstreams = upstream("hive", "https", &[node], &format!("tls: {{ ca: hive-ca.pem, {tls} }}, {more}"));
    setup
}

/// The error in the log of a request that comes to nothing, and that it was counted, once, by this reason.
#[track_caller]
fn refused(gateway: &Gateway, reason: &str) -> String {
    let answer = gateway.client("alice").get(gateway.address, "/echo").unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    let line = gateway.wait_log(|l| l["status"] == 502);
    gateway.wait_metric(FAILURES, &[("upstream", "hive"), ("reason", reason)], 1.0);
    assert_eq!(gateway.metric(FAILURES, &[]), 1.0, "one failure, one count: {line}");
    line["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_node_s_certificate_that_is_not_good_is_told_in_openssl_s_words() {
    let (mesh, stranger) = (Pki::new("Hive"), Pki::new("Stranger"));
    let day = from_now(-3600, 86_400);
    let named = |leaf: Leaf| mesh.leaf(&leaf.dns(NAME));
    let weak = Leaf { key: KeyKind::Rsa(1024), ..Leaf::server("small", day) };
    for (identity, reason, said) in [
        (named(Leaf::server("old", from_now(-7200, -60))), "expired", "certificate has expired: \"CN=old\" issued by"),
        (named(Leaf::server("new", from_now(3600, 7200))), "not_yet_valid", "certificate is not yet valid"),
        (stranger.leaf(&server_leaf(&[NAME])), "unknown_ca", "\"CN=Stranger"),
        (
            mesh.leaf(&server_leaf(&["a.example", "b.example"])),
            "name_mismatch",
            "[a.example, b.example], not for hive.internal",
        ),
        (mesh.leaf(&Leaf::server(NAME, day)), "name_mismatch", "has no DNS name among its SANs"),
        (named(Leaf::client("client", day)), "wrong_purpose", "\"CN=client\""),
        (named(weak), "weak_signature", "EE certificate key too weak"),
    ] {
        let node = Listening::start(context(&identity, |b| alpn(b, b"\x08http/1.1")));
        let gateway = setup(&mesh, node.address, &format!("server_name: {NAME}"), NO_PROBES).start();
        let error = refused(&gateway, reason);
        assert!(error.starts_with("TLS: ") && error.contains(said), "{reason}: {error}");
        gateway.wait_metric("hive_gateway_upstream_requests_total", &[("result", "tls_failed")], 1.0);
        assert_eq!(*node.heard.lock().unwrap(), b"", "{reason}");
    }
}

#[test]
fn a_node_of_an_old_version_gets_nothing() {
    let mesh = Pki::new("Hive");
    let identity = mesh.leaf(&server_leaf(&[NAME]));
    for (greatest, least, refuses) in [
        (SslVersion::TLS1, "", true),
        (SslVersion::TLS1_1, "", true),
        (SslVersion::TLS1_2, ", min_version: \"1.3\"", true),
        (SslVersion::TLS1_2, "", false),
        (SslVersion::TLS1_3, ", min_version: \"1.3\"", false),
    ] {
        let context = context(&identity, |b| {
            b.set_min_proto_version(None).unwrap();
            b.set_max_proto_version(Some(greatest)).unwrap();
        });
        let node = Listening::start(context);
        let mut setup = setup(&mesh, node.address, &format!("server_name: {NAME}{least}"), NO_PROBES);
        let route = "name: echo, paths: [/echo], methods: [GET], peers: any, upstream: hive";
        setup.routes = format!("[{{ {route}, timeouts: {{ response: 500ms }} }}]");
        let gateway = setup.start();
        if refuses {
            let error = refused(&gateway, "protocol_version");
            assert!(error.contains("protocol version") || error.contains("speaks TLSv1.2, less than"), "{error}");
            assert_eq!(*node.heard.lock().unwrap(), b"");
        } else {
            // The node only listens.
            assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 504);
            wait_until("the request has come", || node.heard.lock().unwrap().starts_with(b"GET /echo "));
            assert_eq!(gateway.metric(FAILURES, &[]), 0.0);
        }
    }
}

#[test]
fn a_node_without_http_2_is_not_fallen_back_to_in_silence() {
    let mesh = Pki::new("Hive");
    let identity = mesh.leaf(&server_leaf(&[NAME]));
    for offered in [Some(&b"\x08http/1.1"[..]), None] {
        let context = context(&identity, |b| _ = offered.map(|offered| alpn(b, offered)));
        let node = Listening::start(context);
        let more = format!("{NO_PROBES}, protocol: http2");
        let gateway = setup(&mesh, node.address, &format!("server_name: {NAME}"), &more).start();
        let error = refused(&gateway, "no_application_protocol");
        assert!(error.contains("no HTTP/2") && error.contains("write protocol: http1"), "{error}");
        assert_eq!(*node.heard.lock().unwrap(), b"");
    }
}

#[test]
fn the_wrong_spiffe_id_is_told_over_http_2_too() {
    let mesh = Pki::new("Hive");
    let identity = mesh.leaf(&Leaf::server("rome", from_now(-60, 3600)).uri("spiffe://mesh.test/hive/rome"));
    for (protocol, offered) in [("http1", &b"\x08http/1.1"[..]), ("http2", b"\x02h2")] {
        let node = Listening::start(context(&identity, |b| alpn(b, offered)));
        let more = format!("{NO_PROBES}, protocol: {protocol}");
        let gateway = setup(&mesh, node.address, "spiffe_id: \"spiffe://mesh.test/hive/paris\"", &more).start();
        let error = refused(&gateway, "wrong_spiffe_id");
        assert_eq!(error, "TLS: the node is spiffe://mesh.test/hive/rome, not spiffe://mesh.test/hive/paris");
    }
}

#[test]
fn a_node_that_wants_a_certificate_is_told_to_want_one() {
    let mesh = Pki::new("Hive");
    let identity = mesh.leaf(&server_leaf(&[NAME]));
    let own = ", cert: gw.pem, key: gw.key";
    let tls = |more: &str| format!("server_name: {NAME}{more}");
    // TLS 1.3: the node finds out when the gateway's handshake is over.
    let node = Listening::start(server_context(&identity, &mesh, b"\x08http/1.1"));
    let error = refused(&setup(&mesh, node.address, &tls(""), NO_PROBES).start(), "client_certificate");
    assert!(error.starts_with("TLS: the node wants a client certificate: "), "{error}");
    // Another CA's is one too many.
    let node = Listening::start(server_context(&identity, &Pki::new("Other"), b"\x08http/1.1"));
    let error = refused(&setup(&mesh, node.address, &tls(own), NO_PROBES).start(), "alert");
    assert!(error.contains("unknown ca"), "{error}");
    assert_eq!(*node.heard.lock().unwrap(), b"");
}

#[test]
fn what_is_no_tls_or_breaks_off_is_told() {
    let mesh = Pki::new("Hive");
    let tls = format!("server_name: {NAME}");
    for (answer, reason) in [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not_tls"), (b"", "aborted")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut tcp in listener.incoming().map_while(Result::ok) {
                let _ = tcp.read(&mut [0; 4096]);
                let _ = tcp.write_all(answer);
            }
        });
        let error = refused(&setup(&mesh, address, &tls, NO_PROBES).start(), reason);
        assert!(error.starts_with("TLS: "), "{error}");
    }
}

#[test]
fn a_probe_s_failure_is_told_and_counted() {
    let mesh = Pki::new("Hive");
    let expired = mesh.leaf(&Leaf::server("old", from_now(-7200, -60)).dns(NAME));
    let node = Listening::start(server_context(&expired, &mesh, b"\x08http/1.1"));
    let check = "health_check: { interval: 2s, unhealthy_after: 1 }";
    let gateway = setup(&mesh, node.address, &format!("server_name: {NAME}"), check).start_unready();
    wait_until("the log says why", || gateway.stderr().contains("is down: TLS: certificate has expired: \"CN=old\""));
    assert!(gateway.metric(FAILURES, &[("reason", "expired")]) >= 1.0);
    let status = gateway.status();
    assert!(status.to_string().contains("certificate has expired"), "{status}");
}

/// Each request gets the reason of its own node, however many fail at once.
#[test]
fn reasons_are_not_mixed_up() {
    let mesh = Pki::new("Hive");
    let expired = mesh.leaf(&Leaf::server("old", from_now(-7200, -60)).dns(NAME));
    let misnamed = mesh.leaf(&server_leaf(&["a.example"]));
    let [old, other] = [expired, misnamed].map(|identity| Listening::start(context(&identity, |_| {})));
    let mut setup = setup(&mesh, old.address, &format!("server_name: {NAME}"), NO_PROBES);
    let tls = format!("tls: {{ ca: hive-ca.pem, server_name: {NAME} }}, {NO_PROBES}");
    setup.upstreams += &upstream("other", "https", &[other.address], &tls);
    let route = "methods: [GET], peers: any";
    setup.routes = format!(
        "[{{ name: old, paths: [/old], {route}, upstream: hive }}, {{ name: other, paths: [/other], {route}, upstream: other }}]"
    );
    let gateway = setup.start();
    const EACH: usize = 40;
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (gateway, path) = (&gateway, if n % 2 == 0 { "/old" } else { "/other" });
            scope.spawn(move || {
                let client = gateway.client("alice");
                (0..EACH).for_each(|_| assert_eq!(client.get(gateway.address, path).unwrap().status, 502));
            });
        }
    });
    let all = (2 * EACH) as f64;
    gateway.wait_metric(FAILURES, &[("upstream", "hive"), ("reason", "expired")], all);
    gateway.wait_metric(FAILURES, &[("upstream", "other"), ("reason", "name_mismatch")], all);
    assert_eq!(gateway.metric(FAILURES, &[]), 2.0 * all);
    let log = gateway.access_log();
    let failed = log.iter().filter(|l| l["status"] == 502);
    for line in failed {
        let wanted = if line["route"] == "old" { "has expired" } else { "hostname mismatch" };
        assert!(line["error"].as_str().unwrap().contains(wanted), "{line}");
    }
}
