//! Nodes that are known by their SPIFFE ID: the right one passes, and to every other one nothing is sent.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use openssl::ssl::{Ssl, SslContext};

use crate::support::certs::{self, Identity, Leaf, Pki, client_leaf, from_now, server_leaf};
use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::{Node, server_context};
use crate::support::node_h2::NodeH2;
use crate::support::wait_until;

const PARIS: &str = "spiffe://mesh.test/hive/paris";
const NO_PROBES: &str = ", health_check: { enabled: false }";

/// A server's certificate with these URIs and no name.
fn svid(mesh: &Pki, uris: &[&str]) -> Identity {
    let leaf = Leaf::server("node", from_now(-3600, 86_400));
    mesh.leaf(&uris.iter().fold(leaf, |leaf, uri| leaf.uri(uri)))
}

fn setup(mesh: &Pki, node: SocketAddr, tls: &str, more: &str) -> Setup {
    let mut setup = Setup::new(&[]);
    mesh.write_root(setup.dir.path(), "hive-ca");
    certs::write(&mesh.leaf(&client_leaf("gateway", "spiffe://mesh.test/gateway")), setup.dir.path(), "gw");
    let tls = format!("tls: {{ ca: hive-ca.pem, cert: gw.pem, key: gw.key, {tls} }}{more}");
    setup.upstreams = upstream("hive", "https", &[node], &tls);
    setup
}

fn by_id(id: &str) -> String {
    format!("spiffe_id: \"{id}\"")
}

fn get(gateway: &Gateway) -> Response {
    gateway.client("alice").get(gateway.address, "/echo").unwrap()
}

/// A connection's SNI and its bytes.
type Heard = (Option<String>, Vec<u8>);

/// Takes connections and notes every byte that comes after the handshake, and the SNI before it.
struct Listening {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Listening {
    fn start(context: SslContext) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let Ok(mut stream) = Ssl::new(&context).unwrap().accept(tcp) else { continue };
                let sni = stream.ssl().servername(openssl::ssl::NameType::HOST_NAME).map(str::to_owned);
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes);
                sink.lock().unwrap().push((sni, bytes));
            }
        });
        Self { address, heard }
    }

    /// What the connections brought so far, waiting for so many to end.
    #[track_caller]
    fn wait(&self, count: usize) -> Vec<Heard> {
        wait_until("connections end", || self.heard.lock().unwrap().len() >= count);
        self.heard.lock().unwrap().clone()
    }
}

#[test]
fn the_node_with_the_right_id_gets_requests() {
    let mesh = Pki::new("Hive");
    for id in [PARIS, "spiffe://mesh.test/hive/*"] {
        let node = Node::start_tls(&svid(&mesh, &[PARIS]), &mesh);
        let mut setup = setup(&mesh, node.address, &by_id(id), "");
        // Each thread keeps connections of its own.
        setup.server = "threads: 1".into();
        let gateway = setup.start();
        assert_eq!((get(&gateway).status, get(&gateway).status), (200, 200), "{id}");
        let requests = node.requests();
        assert_eq!(requests[0].connection, requests[1].connection, "the connection is kept");
        assert!(!node.probes().is_empty());
    }
}

#[test]
fn the_node_with_the_right_id_gets_requests_over_http_2() {
    let mesh = Pki::new("Hive");
    let node = NodeH2::start(Some(server_context(&svid(&mesh, &[PARIS]), &mesh, b"\x02h2")));
    let gateway = setup(&mesh, node.address, &by_id(PARIS), ", protocol: http2").start();
    assert_eq!((get(&gateway).status, get(&gateway).status, node.seen().len()), (200, 200, 2));
}

#[test]
fn another_id_of_the_same_ca_is_sent_nothing() {
    let mesh = Pki::new("Hive");
    let others: [&[&str]; 5] = [
        &["spiffe://mesh.test/hive/rome"],
        &["spiffe://other.test/hive/paris"],
        &["spiffe://mesh.test/hive/paris/x"],
        // Two URIs are no SPIFFE ID, even if one of them is the right one.
        &[PARIS, "spiffe://mesh.test/hive/rome"],
        &[],
    ];
    for uris in others {
        for (alpn, protocol) in [(&b"\x08http/1.1"[..], "http1"), (b"\x02h2", "http2")] {
            if protocol == "http2" && uris.len() != 1 {
                continue;
            }
            let node = Listening::start(server_context(&svid(&mesh, uris), &mesh, alpn));
            let more = format!("{NO_PROBES}, protocol: {protocol}");
            let gateway = setup(&mesh, node.address, &by_id(PARIS), &more).start_unready();
            let answer = get(&gateway);
            assert_eq!((answer.status, answer.json()["error"].as_str()), (502, Some("upstream_connect_failed")));
            assert_eq!(get(&gateway).status, 502, "nothing of it is kept for the next one");
            let heard = node.wait(2);
            assert!(heard.iter().all(|(_, bytes)| bytes.is_empty()), "{uris:?} {protocol}: {heard:?}");
            let line = gateway.wait_log(|l| l["status"] == 502);
            if let (Some(uri), "http1", 1) = (uris.first(), protocol, uris.len()) {
                assert!(line["error"].as_str().unwrap().contains(uri), "{line}");
            }
        }
    }
}

#[test]
fn a_name_does_not_stand_in_for_the_id() {
    let mesh = Pki::new("Hive");
    let named = mesh.leaf(&server_leaf(&["hive.internal"]));
    let node = Listening::start(server_context(&named, &mesh, b"\x08http/1.1"));
    let tls = format!("server_name: hive.internal, {}", by_id(PARIS));
    let gateway = setup(&mesh, node.address, &tls, NO_PROBES).start_unready();
    assert_eq!(get(&gateway).status, 502);
    assert_eq!(node.wait(1), [(Some("hive.internal".into()), Vec::new())]);
    gateway.wait_metric("hive_gateway_upstream_requests_total", &[("result", "tls_failed")], 1.0);
}

#[test]
fn the_server_name_is_the_sni_and_the_trust_domain_where_there_is_none() {
    let mesh = Pki::new("Hive");
    for (more, sni) in [("", "mesh.test"), ("server_name: paris.example, ", "paris.example")] {
        let node = Listening::start(server_context(&svid(&mesh, &[PARIS]), &mesh, b"\x08http/1.1"));
        let tls = format!("{more}{}", by_id(PARIS));
        let mut setup = setup(&mesh, node.address, &tls, NO_PROBES);
        let route =
            "{ name: echo, paths: [/echo], methods: [GET], peers: any, upstream: hive, timeouts: { response: 1s } }";
        setup.routes = format!("\n  - {route}\n");
        assert_eq!(get(&setup.start_unready()).status, 504, "the node only listens");
        let (said, bytes) = node.wait(1).remove(0);
        assert_eq!(said.as_deref(), Some(sni));
        assert!(bytes.starts_with(b"GET /echo "), "the right node is asked");
    }
}

#[test]
fn the_right_id_of_another_ca_is_refused() {
    let (mesh, stranger) = (Pki::new("Hive"), Pki::new("Hive"));
    let node = Listening::start(server_context(&svid(&stranger, &[PARIS]), &mesh, b"\x08http/1.1"));
    let gateway = setup(&mesh, node.address, &by_id(PARIS), NO_PROBES).start_unready();
    assert_eq!(get(&gateway).status, 502);
    gateway.wait_metric("hive_gateway_upstream_requests_total", &[("result", "tls_failed")], 1.0);
    assert!(node.heard.lock().unwrap().iter().all(|(_, bytes)| bytes.is_empty()));
}

#[test]
fn the_right_id_with_a_client_s_or_an_expired_certificate_is_refused() {
    let mesh = Pki::new("Hive");
    let client = mesh.leaf(&client_leaf("node", PARIS));
    let expired = mesh.leaf(&Leaf::server("node", from_now(-7200, -60)).uri(PARIS));
    for identity in [client, expired] {
        let node = Listening::start(server_context(&identity, &mesh, b"\x08http/1.1"));
        let gateway = setup(&mesh, node.address, &by_id(PARIS), NO_PROBES).start_unready();
        assert_eq!(get(&gateway).status, 502);
        assert!(node.heard.lock().unwrap().iter().all(|(_, bytes)| bytes.is_empty()));
    }
}

#[test]
fn a_probe_of_the_wrong_node_is_a_bad_one() {
    let mesh = Pki::new("Hive");
    let node = Node::start_tls(&svid(&mesh, &["spiffe://mesh.test/hive/rome"]), &mesh);
    let gateway = setup(&mesh, node.address, &by_id(PARIS), "").start_unready();
    wait_until("the node is out", || {
        gateway.metric("hive_gateway_upstream_node_up", &[("upstream", "hive")]) == 0.0
            && gateway.stderr().contains("not spiffe://mesh.test/hive/paris")
    });
    assert_eq!((get(&gateway).status, node.probes().len(), node.count()), (503, 0, 0));
}

#[test]
fn another_node_gets_what_the_wrong_one_did_not() {
    let mesh = Pki::new("Hive");
    let wrong = Node::start_tls(&svid(&mesh, &["spiffe://mesh.test/hive/rome"]), &mesh);
    let right = Node::start_tls(&svid(&mesh, &[PARIS]), &mesh);
    let mut setup = setup(&mesh, wrong.address, &by_id(PARIS), "");
    let tls = format!(
        "tls: {{ ca: hive-ca.pem, cert: gw.pem, key: gw.key, {} }}{NO_PROBES}, balance: round_robin",
        by_id(PARIS)
    );
    setup.upstreams = upstream("hive", "https", &[wrong.address, right.address], &tls);
    let gateway = setup.start();
    for _ in 0..4 {
        let body = "POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(gateway.connect("alice").exchange(body.as_bytes()).unwrap().status, 200);
    }
    assert_eq!((wrong.count(), right.count()), (0, 4));
}

#[test]
fn a_common_name_is_no_name() {
    let mesh = Pki::new("hives");
    // OpenSSL would take the subject for a name where the certificate has none.
    let node = Node::start_tls(&mesh.leaf(&Leaf::server("hive.internal", from_now(-3600, 86_400))), &mesh);
    let gateway = setup(&mesh, node.address, "server_name: hive.internal", NO_PROBES).start();
    assert_eq!(get(&gateway).status, 502);
    assert_eq!(node.count(), 0);
    let named = Node::start_tls(&mesh.leaf(&server_leaf(&["hive.internal"])), &mesh);
    let gateway = setup(&mesh, named.address, "server_name: hive.internal", NO_PROBES).start();
    assert_eq!(get(&gateway).status, 200);
}
