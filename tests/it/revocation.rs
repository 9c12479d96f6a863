//! Revoked clients: kept out, sent away, and told apart from clients of whom nothing is known.

use std::io;
use std::time::{Duration, Instant};

use hive_gateway::cli::pki::{Authority, CrlSpec};
use openssl::ssl::{SslContext, SslMethod, SslSession, SslSessionCacheMode, SslVersion};

use crate::support::certs::{Identity, Leaf, Pki, client_leaf, from_now};
use crate::support::client::{Client, Connection};
use crate::support::crl_server::CrlServer;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::{PATIENCE, wait_until};

const HANDSHAKES: &str = "hive_gateway_tls_handshakes_total";
const CARD: &str = "/.well-known/agent-card.json";
const ASK: &[u8] = b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: gateway.test\r\n\r\n";

/// A list of the intermediate, which issues the clients, valid from and to so many seconds from now.
fn list(pki: &Pki, from: i64, to: i64, revoked: &[&Identity]) -> Vec<u8> {
    let dates = from_now(from, to);
    let spec = CrlSpec::new(dates.not_before, dates.not_after);
    let spec = revoked.iter().fold(spec, |spec, identity| spec.revoke(&identity.cert).unwrap());
    spec.issue(&pki.0.intermediate).unwrap()
}

/// A setup that has root and intermediate in its bundle.
fn setup(node: &Node) -> Setup {
    let setup = Setup::new(&[node.address]);
    std::fs::write(setup.dir.path().join("ca.pem"), setup.pki.0.bundle_pem().unwrap()).unwrap();
    setup
}

/// A gateway with this list as a file, and more inside `client_auth`.
fn with_file(node: &Node, more: &str, make: impl FnOnce(&Pki) -> Vec<u8>) -> Gateway {
    let mut setup = setup(node);
    std::fs::write(setup.dir.path().join("mesh.crl"), make(&setup.pki)).unwrap();
    setup.client_auth = format!("crl: [mesh.crl]{more}");
    setup.start()
}

/// A gateway that asks a server for its list every second, and has got the first.
fn with_server(node: &Node, timeouts: &str) -> (Gateway, CrlServer) {
    let mut setup = setup(node);
    let server = CrlServer::start(list(&setup.pki, -60, 3600, &[]));
    setup.client_auth = format!("crl_url: [\"{}\"], crl_refresh: 1s", server.url());
    setup.timeouts = timeouts.into();
    let gateway = setup.start();
    gateway.wait_metric("hive_gateway_crl_fetches_total", &[("result", "new")], 1.0);
    (gateway, server)
}

fn alice(pki: &Pki) -> Identity {
    pki.client("alice")
}

#[track_caller]
fn assert_refused(gateway: &Gateway, client: &Client, result: &str) -> String {
    let count = || gateway.metric(HANDSHAKES, &[("listener", "front"), ("result", result)]);
    let before = count();
    let h1 = client.get(gateway.address, CARD).expect_err("HTTP/1.1 got in");
    assert!(H2::connect(client, gateway.address).and_then(|h2| h2.get(CARD)).is_err(), "HTTP/2 got in");
    gateway.wait_metric(HANDSHAKES, &[("listener", "front"), ("result", result)], before + 2.0);
    h1.to_string()
}

fn get(client: &Client, gateway: &Gateway) -> io::Result<u16> {
    client.get(gateway.address, CARD).map(|answer| answer.status)
}

#[test]
fn a_revoked_client_stays_out_and_others_come_in() {
    let node = Node::start();
    let mut bad = None;
    let gateway = with_file(&node, "", |pki| {
        let revoked = bad.insert(alice(pki));
        list(pki, -60, 3600, &[revoked])
    });
    let revoked = gateway.client_with(bad);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let client = revoked.clone().configure(move |b| b.set_max_proto_version(Some(version)).unwrap());
        let alert = assert_refused(&gateway, &client, "revoked");
        assert!(alert.contains("certificate revoked"), "{alert}");
    }
    assert_eq!(node.count(), 0);
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200, "another certificate of the same name");
    let line = gateway.wait_log(|l| l["result"] == "revoked");
    assert_eq!((line["sni"].as_str(), line["subject"].as_str()), (Some("gateway.test"), Some("CN=alice")), "{line}");
    assert_eq!(line["issuer"], "CN=Test Mesh intermediate CA", "{line}");
    assert!(gateway.access_log().iter().any(|l| l["tls_version"] == "TLSv1.2" && l["result"] == "revoked"));
    let issuer = ("issuer", "CN=Test Mesh intermediate CA");
    assert_eq!(gateway.metric("hive_gateway_crl_entries", &[issuer]), 1.0);
    assert!(gateway.metric("hive_gateway_crl_next_update_seconds", &[issuer]) > 1.7e9);
    let status = gateway.admin_get("/v1/status").unwrap().json();
    assert_eq!(status["listeners"][0]["crls"][0]["entries"], 1, "{status}");
}

#[test]
fn a_late_list_is_rejected_by_default_and_accepted_on_demand() {
    let node = Node::start();
    let gateway = with_file(&node, "", |pki| list(pki, -7200, -60, &[]));
    let alert = assert_refused(&gateway, &gateway.client("alice"), "crl_expired");
    assert!(alert.contains("certificate unknown"), "the alert says nothing of the lists: {alert}");
    assert!(gateway.stderr().contains("past its nextUpdate"), "{}", gateway.stderr());

    let mut bad = None;
    let gateway = with_file(&node, ", expired_crl: accept", |pki| {
        let revoked = bad.insert(alice(pki));
        list(pki, -7200, -60, &[revoked])
    });
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200);
    assert_refused(&gateway, &gateway.client_with(bad), "revoked");
}

#[test]
fn without_a_list_of_its_issuer_a_client_stays_out() {
    let node = Node::start();
    let gateway = with_file(&node, "", |pki| {
        let dates = from_now(-60, 3600);
        CrlSpec::new(dates.not_before, dates.not_after).issue(&pki.0.root).unwrap()
    });
    assert_refused(&gateway, &gateway.client("alice"), "no_crl");
}

#[test]
fn with_crl_check_chain_a_revoked_intermediate_takes_its_clients_along() {
    let node = Node::start();
    let lists = |pki: &Pki, revoked: bool| {
        let dates = from_now(-60, 3600);
        let spec = CrlSpec::new(dates.not_before, dates.not_after);
        let top = if revoked { spec.clone().revoke(&pki.0.intermediate.cert).unwrap() } else { spec.clone() };
        [top.issue_pem(&pki.0.root).unwrap(), spec.issue_pem(&pki.0.intermediate).unwrap()].concat()
    };
    let chain = with_file(&node, ", crl_check: chain", |pki| lists(pki, true));
    assert_refused(&chain, &chain.client("alice"), "revoked");
    let line = chain.wait_log(|l| l["result"] == "revoked");
    assert!(line["detail"].as_str().unwrap().contains("1 above the client's certificate"), "{line}");
    let leaf = with_file(&node, "", |pki| lists(pki, true));
    assert_eq!(get(&leaf.client("alice"), &leaf).unwrap(), 200, "crl_check: leaf");
    let good = with_file(&node, ", crl_check: chain", |pki| lists(pki, false));
    assert_eq!(get(&good.client("alice"), &good).unwrap(), 200);
    let half = with_file(&node, ", crl_check: chain", |pki| list(pki, -60, 3600, &[]));
    assert_refused(&half, &half.client("alice"), "no_crl");
}

#[test]
fn a_list_signed_by_somebody_else_is_an_error_with_its_place() {
    let node = Node::start();
    let mut setup = setup(&node);
    let twin = Authority { key: Pki::default().0.root.key, ..setup.pki.0.intermediate.clone() };
    let dates = from_now(-60, 3600);
    let forged = CrlSpec::new(dates.not_before, dates.not_after).issue(&twin).unwrap();
    std::fs::write(setup.dir.path().join("forged.crl"), forged).unwrap();
    std::fs::write(setup.dir.path().join("good.crl"), list(&setup.pki, -60, 3600, &[])).unwrap();
    setup.client_auth = "crl: [good.crl, forged.crl]".into();
    let (said, _) = setup.check();
    let place = "tls.client_auth.crl[1]: ";
    assert!(said.contains(place) && said.contains("its signature is not by"), "{said}");
    assert!(said.lines().any(|l| l.contains("gateway.yaml:9:")), "{said}");
    setup.client_auth = "crl: [good.crl]".into();
    let (said, summary) = setup.check();
    assert!(summary.contains("CRL of CN=Test Mesh intermediate CA: 0 revoked"), "{said}{summary}");
}

#[test]
fn a_client_revoked_while_connected_is_sent_away_on_its_next_request() {
    let node = Node::start();
    let (gateway, server) = with_server(&node, "");
    let (bad, good) = (alice(gateway.pki()), alice(gateway.pki()));
    let (bad_client, good_client) = (gateway.client_with(Some(bad.clone())), gateway.client_with(Some(good)));
    let mut h1 = bad_client.connect(gateway.address).unwrap();
    let mut other = good_client.connect(gateway.address).unwrap();
    let h2 = H2::connect(&bad_client, gateway.address).unwrap();
    for connection in [&mut h1, &mut other] {
        assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    }
    assert_eq!(h2.get(CARD).unwrap().status, 200);
    let served = node.count();

    server.set(Some(list(gateway.pki(), -30, 3600, &[&bad])));
    gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
    let answer = h1.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_revoked")));
    assert!(h1.closed_after().unwrap() < Duration::from_secs(5));
    let answer = h2.get(CARD).unwrap();
    assert_eq!(answer.status, 401);
    h2.wait_ended();
    assert_eq!(node.count(), served, "the node saw a request of a revoked client");
    assert_eq!(other.exchange(ASK).unwrap().status, 200, "others stay");
    assert_refused(&gateway, &bad_client, "revoked");
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "certificate_revoked")], 2.0);
}

const STREAM: &[u8] = b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n";

#[test]
fn a_running_stream_ends_in_time_once_its_client_is_revoked() {
    let node = Node::endless();
    let (gateway, server) = with_server(&node, "revocation: 500ms");
    let bad = alice(gateway.pki());
    let client = gateway.client_with(Some(bad.clone()));
    let mut h1 = client.connect(gateway.address).unwrap();
    h1.send(STREAM).unwrap();
    assert_eq!(h1.head().unwrap().status, 200);
    let h2 = H2::connect(&client, gateway.address).unwrap();
    let mut over_h2 = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
    let mut others = gateway.connect("alice");
    others.send(STREAM).unwrap();
    others.head().unwrap();
    // It outlives several looks at a good certificate.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        assert!(h1.chunk().unwrap().is_some());
        assert!(over_h2.next().unwrap().is_some());
    }
    server.set(Some(list(gateway.pki(), -30, 3600, &[&bad])));
    gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
    let revoked = Instant::now();
    while let Ok(chunk) = h1.chunk() {
        assert!(chunk.is_some(), "the stream pretends to be whole");
        assert!(revoked.elapsed() < PATIENCE);
    }
    assert!(revoked.elapsed() < Duration::from_millis(1500), "{:?}", revoked.elapsed());
    while let Ok(data) = over_h2.next() {
        assert!(data.is_some(), "the stream pretends to be whole");
    }
    h2.wait_ended();
    assert!(others.chunk().unwrap().is_some(), "another client's stream goes on");
    let line = gateway.wait_log(|l| l["refusal"] == "certificate_revoked");
    assert_eq!(line["status"], 200, "{line}");
}

#[test]
fn a_client_that_waits_for_an_answer_is_told_that_it_is_revoked() {
    let node = Node::start_with(|_, exchange| {
        exchange.gone_after();
        exchange.close();
        Ok(())
    });
    let (gateway, server) = with_server(&node, "revocation: 300ms");
    let bad = alice(gateway.pki());
    let mut waiting = gateway.client_with(Some(bad.clone())).connect(gateway.address).unwrap();
    waiting.send(STREAM).unwrap();
    node.wait_count(1);
    server.set(Some(list(gateway.pki(), -30, 3600, &[&bad])));
    let answer = waiting.response(false).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_revoked")));
}

#[test]
fn a_client_that_is_revoked_while_it_sends_a_body_reaches_nobody() {
    let node = Node::start();
    // One that looks after the body alone, and one that looks meanwhile too.
    for (timeouts, comes_to_its_end) in [("revocation: 1h", true), ("revocation: 300ms", false)] {
        let (gateway, server) = with_server(&node, timeouts);
        let bad = alice(gateway.pki());
        let client = gateway.client_with(Some(bad.clone()));
        let mut h1 = client.connect(gateway.address).unwrap();
        h1.send(b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{").unwrap();
        let h2 = H2::connect(&client, gateway.address).unwrap();
        let request = H2::request("POST", "/echo").body(()).unwrap();
        let (answer, mut body) = h2.begin(request, false).unwrap();
        body.send_data("{".into(), false).unwrap();
        gateway.wait_metric("hive_gateway_requests_in_flight", &[], 2.0);
        server.set(Some(list(gateway.pki(), -30, 3600, &[&bad])));
        gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
        if comes_to_its_end {
            h1.send(b"}").unwrap();
            h2.send_body(&mut body, b"}").unwrap();
        }
        let told = h1.response(false).unwrap();
        assert_eq!((told.status, told.json()["error"].as_str()), (401, Some("certificate_revoked")));
        h1.closed_after().unwrap();
        assert_eq!(h2.finish(answer).unwrap().status, 401);
        h2.wait_ended();
        gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "certificate_revoked")], 2.0);
        assert_eq!(node.count(), 0, "the node saw a request of a revoked client");
    }
}

#[test]
fn a_certificate_that_expires_while_connected_is_sent_away() {
    let node = Node::endless();
    let mut setup = Setup::new(&[node.address]);
    setup.timeouts = "revocation: 300ms".into();
    let gateway = setup.start();
    let spec = Leaf { validity: from_now(-60, 2), ..client_leaf("alice", "spiffe://mesh.test/hive/alice") };
    let client = gateway.client_with(Some(gateway.pki().leaf(&spec)));
    let mut idle = client.connect(gateway.address).unwrap();
    let mut streaming = client.connect(gateway.address).unwrap();
    streaming.send(STREAM).unwrap();
    assert_eq!(streaming.head().unwrap().status, 200);
    while streaming.chunk().is_ok_and(|chunk| chunk.is_some()) {}
    let answer = idle.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_expired")));
    idle.closed_after().unwrap();
}

#[test]
fn a_fetched_list_is_kept_when_the_next_one_is_worse() {
    let node = Node::start();
    let (gateway, server) = with_server(&node, "");
    let bad = alice(gateway.pki());
    let newer = list(gateway.pki(), -30, 3600, &[&bad]);
    server.set(Some(newer.clone()));
    gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
    let failed = || gateway.metric("hive_gateway_crl_fetches_total", &[("result", "failed")]);
    let older = list(gateway.pki(), -3600, 3600, &[]);
    let forged = list(&Pki::default(), -10, 3600, &[]);
    for worse in [Some(older), Some(forged), Some(b"<html>".to_vec()), None] {
        let before = failed();
        server.set(worse);
        wait_until("the fetch fails", || failed() > before);
        assert_eq!(gateway.metric("hive_gateway_crl_entries", &[]), 1.0);
        assert_refused(&gateway, &gateway.client_with(Some(bad.clone())), "revoked");
        assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200);
        // Failures are waited after ever longer; a good answer begins anew.
        server.set(Some(newer.clone()));
        let unchanged = || gateway.metric("hive_gateway_crl_fetches_total", &[("result", "unchanged")]);
        let good = unchanged();
        wait_until("the fetch works again", || unchanged() > good);
    }
    assert!(server.asked().iter().any(|head| head.contains("If-None-Match: \"")), "{:?}", server.asked());
    assert!(gateway.stderr().contains("older than the one at hand"), "{}", gateway.stderr());
}

#[test]
fn a_broken_file_keeps_no_revocation_out() {
    let node = Node::start();
    let mut setup = setup(&node);
    setup.server = "watch: 100ms".into();
    std::fs::write(setup.dir.path().join("mesh.crl"), list(&setup.pki, -60, 3600, &[])).unwrap();
    setup.client_auth = "crl: [mesh.crl]".into();
    let gateway = setup.start();
    let bad = alice(gateway.pki());
    let client = gateway.client_with(Some(bad.clone()));
    let mut running = client.connect(gateway.address).unwrap();
    assert_eq!(running.exchange(ASK).unwrap().status, 200);
    let write = |name: &str, bytes: &[u8]| {
        let new = gateway.dir().join("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(&new, gateway.dir().join(name)).unwrap();
    };
    // First something else is broken, and stays so; then the list comes.
    write("server.pem", b"nonsense");
    gateway.wait_metric("hive_gateway_tls_reload_total", &[("result", "failed")], 1.0);
    write("mesh.crl", &list(gateway.pki(), -30, 3600, &[&bad]));
    gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
    let answer = running.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_revoked")));
    assert_refused(&gateway, &client, "revoked");
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200, "another certificate");
    // What waits is named.
    write("ca.pem", &[&b"\n"[..], gateway.pki().0.bundle_pem().unwrap().as_slice()].concat());
    assert_eq!(gateway.reload().status, 422);
    let said = gateway.status()["last_reload"]["warnings"][0].to_string();
    assert!(
        said.contains("ca.pem") && said.contains("wait until that is mended") && !said.contains("mesh.crl"),
        "{said}"
    );
}

#[test]
fn a_broken_file_keeps_no_withdrawal_of_a_ca_out() {
    let node = Node::start();
    let other = Pki::new("Partner");
    let mut setup = setup(&node);
    setup.server = "watch: 100ms".into();
    let mesh = setup.pki.0.bundle_pem().unwrap();
    let both = [mesh.as_slice(), &other.0.bundle_pem().unwrap()].concat();
    std::fs::write(setup.dir.path().join("ca.pem"), &both).unwrap();
    let gateway = setup.start();
    let partner = gateway.client_with(Some(other.client("alice")));
    let mut running = partner.connect(gateway.address).unwrap();
    assert_eq!(running.exchange(ASK).unwrap().status, 200);
    let write = |name: &str, bytes: &[u8]| std::fs::write(gateway.dir().join(name), bytes).unwrap();
    let good = std::fs::read(gateway.dir().join("server.pem")).unwrap();
    write("server.pem", b"nonsense");
    write("ca.pem", &mesh);
    assert_eq!(gateway.reload().status, 422);
    let answer = running.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_not_trusted")));
    assert_eq!(get(&partner, &gateway).unwrap(), 401, "a new connection of the same CA");
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200, "the other CA");
    // Put back, it is trusted again; a bundle that is another one altogether waits.
    for (bundle, name) in [(&both, "put back"), (&Pki::new("New").0.bundle_pem().unwrap(), "replaced")] {
        write("ca.pem", bundle);
        assert_eq!(gateway.reload().status, 422);
        assert_eq!(
            (get(&partner, &gateway).unwrap(), get(&gateway.client("alice"), &gateway).unwrap()),
            (200, 200),
            "{name}"
        );
    }
    // By itself, once it has been told that something is broken; and all is well when that is mended.
    write("ca.pem", &mesh);
    wait_until("it is withdrawn again", || get(&partner, &gateway).unwrap() == 401);
    write("server.pem", &good);
    wait_until("the handshake refuses", || get(&partner, &gateway).is_err());
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200);
}

#[test]
fn a_list_that_runs_out_is_warned_of() {
    let node = Node::start();
    let gateway = with_file(&node, "", |pki| list(pki, -7200, 3000, &[]));
    let said = "listener front: the CRL of \"CN=Test Mesh intermediate CA\" (0 revoked) expires in ";
    wait_until("the log warns", || gateway.stderr().contains(said));
    assert!(gateway.stderr().contains("past its end its clients are refused"), "{}", gateway.stderr());
    let (told, _) = gateway.setup().check();
    assert!(told.contains("two thirds of its life are over"), "{told}");
    let gateway = with_file(&node, "", |pki| list(pki, -7200, -60, &[]));
    wait_until("the log warns", || gateway.stderr().contains("(0 revoked) expired 1 minutes ago"));
    let gateway = with_file(&node, "", |pki| list(pki, -60, 3600, &[]));
    assert!(!gateway.stderr().contains("the CRL of"), "{}", gateway.stderr());
}

#[test]
fn nobody_comes_in_before_the_first_list_has_come() {
    let node = Node::start();
    let mut setup = setup(&node);
    let server = CrlServer::start(Vec::new());
    server.set(None);
    setup.client_auth = format!("crl_url: [\"{}\"], crl_refresh: 1s", server.url());
    let gateway = setup.start_unready();
    wait_until("it is asked for", || !server.asked().is_empty());
    assert_refused(&gateway, &gateway.client("alice"), "no_crl");
    server.set(Some(list(gateway.pki(), -60, 3600, &[])));
    gateway.wait_metric("hive_gateway_crl_fetches_total", &[("result", "new")], 1.0);
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200);
}

/// A session with a ticket that a server of the same name gave to this client.
fn session_of_a_permissive_server(pki: &Pki, client: &Client, version: SslVersion) -> SslSession {
    let own = pki.leaf(&crate::support::certs::server_leaf(&["gateway.test"]));
    let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
    context.set_certificate(&own.cert).unwrap();
    context.set_private_key(&own.key).unwrap();
    own.chain.iter().for_each(|c| context.add_extra_chain_cert(c.clone()).unwrap());
    context.set_session_id_context(b"hive-gateway").unwrap();
    let context = context.build();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        let mut stream = openssl::ssl::Ssl::new(&context).unwrap().accept(tcp).unwrap();
        io::Write::write_all(&mut stream, b"!").unwrap();
        let _ = io::Read::read(&mut stream, &mut [0]);
    });
    let (sender, sessions) = std::sync::mpsc::channel();
    let client = client.clone().configure(move |b| {
        let sender = sender.clone();
        b.set_max_proto_version(Some(version)).unwrap();
        b.set_session_cache_mode(SslSessionCacheMode::CLIENT);
        b.set_new_session_callback(move |_, session| _ = sender.send(session));
    });
    let mut stream = client.ssl(b"\x08http/1.1").connect(std::net::TcpStream::connect(address).unwrap()).unwrap();
    io::Read::read_exact(&mut stream, &mut [0]).unwrap();
    drop(stream);
    serve.join().unwrap();
    sessions.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_revoked_client_gets_in_by_no_resumption() {
    let node = Node::start();
    let (gateway, server) = with_server(&node, "");
    let bad = alice(gateway.pki());
    let client = gateway.client_with(Some(bad.clone()));
    let mut sessions = Vec::new();
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let limited = client.clone().configure(move |b| {
            b.set_max_proto_version(Some(version)).unwrap();
            b.set_session_cache_mode(SslSessionCacheMode::CLIENT);
        });
        let mut connection = limited.connect(gateway.address).unwrap();
        assert_eq!(connection.exchange(ASK).unwrap().status, 200);
        sessions.push((version, connection.ssl().ssl().session().unwrap().to_owned()));
        sessions.push((version, session_of_a_permissive_server(gateway.pki(), &client, version)));
    }
    server.set(Some(list(gateway.pki(), -30, 3600, &[&bad])));
    gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
    let served = node.count();
    for (n, (version, session)) in sessions.iter().enumerate() {
        let version = *version;
        let limited = client.clone().configure(move |b| b.set_max_proto_version(Some(version)).unwrap());
        let mut ssl = limited.ssl(b"\x08http/1.1");
        // SAFETY: the session comes from a context of the same kind.
        unsafe { ssl.set_session(session).unwrap() };
        let tcp = std::net::TcpStream::connect(gateway.address).unwrap();
        let got = ssl.connect(tcp).map_err(io::Error::other).and_then(|mut stream| {
            assert!(!stream.ssl().session_reused());
            io::Write::write_all(&mut stream, ASK)?;
            io::Read::read(&mut stream, &mut [0; 64])
        });
        assert!(!matches!(got, Ok(1..)), "session {n} of {version:?} let it in");
        gateway.wait_metric(HANDSHAKES, &[("result", "revoked")], n as f64 + 1.0);
    }
    assert_eq!(node.count(), served);
}

#[test]
fn a_flood_of_failed_handshakes_leaves_some_lines_and_the_count_of_the_rest() {
    const FLOOD: usize = 300;
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let before = gateway.metric(HANDSHAKES, &[("result", "not_tls")]);
    for _ in 0..FLOOD {
        let mut connection = Connection::plain(gateway.address).unwrap();
        connection.send(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }
    gateway.wait_metric(HANDSHAKES, &[("result", "not_tls")], before + FLOOD as f64);
    let written = || gateway.access_log().iter().filter(|l| l["result"] == "not_tls").count();
    let omitted = || {
        let log = gateway.access_log();
        let lines = log.iter().filter(|l| l["event"] == "handshakes_omitted" && l["listener"] == "front");
        lines.filter_map(|l| l["count"].as_u64()).sum::<u64>() as usize
    };
    wait_until("all are told of", || written() + omitted() >= FLOOD);
    assert!(omitted() > 0 && written() >= 40, "{} written, {} omitted", written(), omitted());
}

#[test]
fn the_post_quantum_hybrid_is_negotiated() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    assert_eq!(get(&gateway.client("alice"), &gateway).unwrap(), 200);
    let line = gateway.wait_log(|l| l["status"] == 200);
    // The client here is the OpenSSL that the gateway was built with; the hybrid came with 3.5.
    if openssl::version::number() >= 0x3050_0000 {
        assert_eq!(line["tls_group"], "X25519MLKEM768", "{line}");
    }
    assert_eq!(line["tls_version"], "TLSv1.3", "{line}");
}
