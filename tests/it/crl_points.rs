//! Revocation lists from where clients' own certificates say, lists of a part of a CA's certificates, and lists that
//! outlive the process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hive_gateway::cli::pki::{CrlSpec, RawExtension, issuing_distribution_point};

use crate::support::certs::{Identity, Pki, client_leaf, from_now};
use crate::support::crl_server::CrlServer;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const HANDSHAKES: &str = "hive_gateway_tls_handshakes_total";
const FETCHES: &str = "hive_gateway_crl_fetches_total";
const CARD: &str = "/.well-known/agent-card.json";

fn setup(node: &Node) -> Setup {
    let setup = Setup::new(&[node.address]);
    std::fs::write(setup.dir.path().join("ca.pem"), setup.pki.0.bundle_pem().unwrap()).unwrap();
    setup
}

/// The list of the part of the clients' certificates that name this URL; of all without one.
fn list(pki: &Pki, url: Option<&str>, from: i64, revoked: &[&Identity]) -> Vec<u8> {
    let dates = from_now(from, 3600);
    let extensions = url.map(|url| issuing_distribution_point(&[url])).into_iter().collect();
    let spec = CrlSpec { extensions, ..CrlSpec::new(dates.not_before, dates.not_after) };
    revoked.iter().fold(spec, |spec, identity| spec.revoke(&identity.cert).unwrap()).issue(&pki.0.intermediate).unwrap()
}

/// A client whose certificate names these URLs.
fn client(pki: &Pki, name: &str, urls: &[&str]) -> Identity {
    let point = RawExtension::crl_distribution_point(urls);
    pki.leaf(&client_leaf(name, &format!("spiffe://mesh.test/hive/{name}")).extension(point))
}

fn get(gateway: &Gateway, identity: &Identity) -> std::io::Result<u16> {
    let client = gateway.client_with(Some(identity.clone()));
    client.get(gateway.address, CARD).map(|answer| answer.status)
}

#[track_caller]
fn assert_refused(gateway: &Gateway, identity: &Identity, result: &str) {
    let count = || gateway.metric(HANDSHAKES, &[("listener", "front"), ("result", result)]);
    let before = count();
    get(gateway, identity).expect_err("it got in");
    gateway.wait_metric(HANDSHAKES, &[("listener", "front"), ("result", result)], before + 1.0);
}

/// A server that gives every client the same bytes, once it has read something; and how many came.
fn serve(answer: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    // Ends with the process: nothing else asks on this port.
    std::thread::spawn(move || {
        for mut tcp in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = tcp.read(&mut [0; 4096]);
                let _ = tcp.write_all(&answer);
            });
        }
    });
    (address, count)
}

#[test]
fn the_first_client_waits_for_the_list_of_its_own_certificate() {
    let node = Node::start();
    let mut setup = setup(&node);
    let server = CrlServer::start(Vec::new());
    let url = server.url();
    let (good, bad) = (client(&setup.pki, "alice", &[&url]), client(&setup.pki, "bob", &[&url]));
    server.set(Some(list(&setup.pki, Some(&url), -60, &[&bad])));
    setup.client_auth = format!("crl_distribution_points: [\"http://{}/\"], crl_refresh: 1s", server.address);
    let gateway = setup.start();
    assert!(server.asked().is_empty());
    // HTTP/2: many requests wait at once.
    let h2 = H2::connect(&gateway.client_with(Some(good.clone())), gateway.address).unwrap();
    assert_eq!(h2.get_all(CARD, 20).unwrap().len(), 20);
    assert_eq!(get(&gateway, &good).unwrap(), 200);
    assert_refused(&gateway, &bad, "revoked");
    assert_eq!(gateway.metric(FETCHES, &[("result", "new")]), 1.0);
    assert_refused(&gateway, &gateway.pki().client("alice"), "no_crl");
    let sources = gateway.status()["listeners"][0]["crl_sources"].clone();
    assert_eq!((sources[0]["url"].as_str(), sources[0]["fetched"].as_bool()), (Some(&*url), Some(true)), "{sources}");
    // It is kept fresh as any other, and what it says reaches running connections.
    let mut running = gateway.client_with(Some(good.clone())).connect(gateway.address).unwrap();
    let ask = format!("GET {CARD} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    assert_eq!(running.exchange(ask.as_bytes()).unwrap().status, 200);
    server.set(Some(list(gateway.pki(), Some(&url), -30, &[&good, &bad])));
    gateway.wait_metric(FETCHES, &[("result", "new")], 2.0);
    assert_eq!(running.exchange(ask.as_bytes()).unwrap().json()["error"], "certificate_revoked");
    assert_eq!(node.count(), 22);
}

#[test]
fn a_revoked_client_that_comes_first_is_told_so_before_its_request_reaches_anyone() {
    let node = Node::start();
    let mut setup = setup(&node);
    let server = CrlServer::start(Vec::new());
    let bad = client(&setup.pki, "alice", &[&server.url()]);
    server.set(Some(list(&setup.pki, None, -60, &[&bad])));
    setup.client_auth = format!("crl_distribution_points: [\"http://{}/\"]", server.address);
    let gateway = setup.start();
    let answer = gateway.client_with(Some(bad.clone())).get(gateway.address, CARD).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_revoked")));
    assert_refused(&gateway, &bad, "revoked");
    assert_eq!(node.count(), 0);
}

#[test]
fn a_client_whose_list_does_not_come_waits_alone_and_not_for_ever() {
    let node = Node::start();
    let mut setup = setup(&node);
    let server = CrlServer::start(list(&setup.pki, None, -60, &[]));
    server.set(Some(list(&setup.pki, Some(&server.url()), -60, &[])));
    // Takes connections, says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}/a.crl", silent.local_addr().unwrap());
    let stuck = client(&setup.pki, "alice", &[&silent_url]);
    let other = client(&setup.pki, "bob", &[&server.url()]);
    setup.client_auth = format!(
        "crl_distribution_points: [\"http://{}/\", \"http://{}\"]",
        server.address,
        silent.local_addr().unwrap()
    );
    setup.timeouts = "handshake: 3s".into();
    setup.server = "threads: 1".into();
    let gateway = setup.start();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let begun = Instant::now();
            let answer = gateway.client_with(Some(stuck.clone())).get(gateway.address, CARD).unwrap();
            (answer.status, answer.json()["error"].clone(), begun.elapsed())
        });
        gateway.wait_metric(HANDSHAKES, &[("result", "ok")], 1.0);
        let begun = Instant::now();
        for _ in 0..5 {
            assert_eq!(get(&gateway, &other).unwrap(), 200);
        }
        assert!(!waiting.is_finished(), "others took {:?}, as long as the one that waits", begun.elapsed());
        let (status, error, took) = waiting.join().unwrap();
        assert_eq!((status, error.as_str()), (401, Some("certificate_status_unknown")));
        assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(10), "{took:?}");
    });
}

#[test]
fn only_allowed_places_are_asked_and_no_redirect_leads_elsewhere() {
    let node = Node::start();
    let mut setup = setup(&node);
    let body = list(&setup.pki, None, -60, &[]);
    let good =
        |body: &[u8]| [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    let (elsewhere, elsewhere_asked) = serve(good(&body));
    let (redirect, redirected) =
        serve(format!("HTTP/1.1 302 Found\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n").into());
    setup.client_auth = format!("crl_distribution_points: [\"http://{redirect}/crl/\"], crl_refresh: 1s");
    let gateway = setup.start();
    let inside = |path: &str| format!("http://{redirect}{path}");
    for url in [
        format!("http://{elsewhere}/crl/a"),
        format!("http://{redirect}@{elsewhere}/crl/a"),
        inside("/admin"),
        inside("/crl/../admin"),
        inside("/crl/%2e%2e/admin"),
        format!("https://{redirect}/crl/a"),
        "ldap://127.0.0.1/crl".into(),
        "http://x\r\nHost: y/".into(),
    ] {
        assert_refused(&gateway, &client(gateway.pki(), "alice", &[&url]), "no_crl");
    }
    assert_eq!((elsewhere_asked.load(Ordering::SeqCst), redirected.load(Ordering::SeqCst)), (0, 0));
    // A certificate of a CA that is not trusted makes nobody ask anything.
    let stranger = client(&Pki::default(), "alice", &[&inside("/crl/a")]);
    assert_refused(&gateway, &stranger, "bad_signature");
    assert_eq!(redirected.load(Ordering::SeqCst), 0);
    let sent_on = client(gateway.pki(), "alice", &[&inside("/crl/a")]);
    assert_eq!(get(&gateway, &sent_on).unwrap(), 401);
    assert_refused(&gateway, &sent_on, "no_crl");
    assert!(redirected.load(Ordering::SeqCst) > 0);
    assert_eq!(elsewhere_asked.load(Ordering::SeqCst), 0);
    wait_until("the reason is told", || gateway.stderr().contains("status 302"));
}

#[test]
fn the_first_part_of_a_split_list_does_not_answer_for_the_others() {
    let node = Node::start();
    let mut setup = setup(&node);
    let (one, two) = (CrlServer::start(Vec::new()), CrlServer::start(Vec::new()));
    let (of_one, of_two) = (client(&setup.pki, "alice", &[&one.url()]), client(&setup.pki, "alice", &[&two.url()]));
    one.set(Some(list(&setup.pki, Some(&one.url()), -60, &[])));
    two.set(None);
    setup.client_auth = format!("crl_url: [\"{}\", \"{}\"], crl_refresh: 1s", one.url(), two.url());
    let gateway = setup.start_unready();
    gateway.wait_metric(FETCHES, &[("result", "new")], 1.0);
    assert_eq!(get(&gateway, &of_one).unwrap(), 200);
    assert_refused(&gateway, &of_two, "no_crl");
    assert_refused(&gateway, &gateway.pki().client("alice"), "no_crl");
    two.set(Some(list(gateway.pki(), Some(&two.url()), -60, &[&of_two])));
    gateway.wait_metric(FETCHES, &[("result", "new")], 2.0);
    assert_refused(&gateway, &of_two, "revoked");
}

#[test]
fn readiness_waits_for_the_first_list() {
    let node = Node::start();
    let mut setup = setup(&node);
    let server = CrlServer::start(Vec::new());
    server.set(None);
    setup.client_auth = format!("crl_url: [\"{}\"], crl_refresh: 1s", server.url());
    let gateway = setup.start_unready();
    let ready = || gateway.admin_get("/v1/ready").unwrap();
    wait_until("it is asked for, and the node is up", || {
        !server.asked().is_empty() && ready().json()["upstreams_down"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!((ready().status, ready().json()["crls_awaited"][0].as_str()), (503, Some(&*server.url())));
    server.set(Some(list(gateway.pki(), None, -60, &[])));
    wait_until("it is ready", || ready().status == 200);
    assert_eq!(get(&gateway, &gateway.pki().client("alice")).unwrap(), 200);
}

#[test]
fn what_was_fetched_outlives_the_process_while_the_cas_server_is_away() {
    let node = Node::start();
    let mut setup = setup(&node);
    let (server, own) = (CrlServer::start(Vec::new()), CrlServer::start(Vec::new()));
    let bad = setup.pki.client("bob");
    let of_own = client(&setup.pki, "alice", &[&own.url()]);
    // Of the root: it says nothing of clients, so those of `own` need that one's.
    let dates = from_now(-60, 3600);
    let of_root = CrlSpec::new(dates.not_before, dates.not_after).issue(&setup.pki.0.root).unwrap();
    server.set(Some(of_root));
    own.set(Some(list(&setup.pki, Some(&own.url()), -60, &[&bad])));
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    setup.server = "state_dir: state".into();
    setup.client_auth = format!(
        "crl_url: [\"{}\"], crl_distribution_points: [\"http://{}\"], crl_refresh: 1s",
        server.url(),
        own.address
    );
    let gateway = setup.start();
    assert_eq!(get(&gateway, &of_own).unwrap(), 200);
    let kept = || std::fs::read_dir(gateway.dir().join("state")).unwrap().flatten().collect::<Vec<_>>();
    wait_until("both are kept", || kept().iter().filter(|f| f.path().extension().is_none()).count() == 2);
    server.set(None);
    own.set(None);
    let gateway = gateway.stop().start();
    assert_eq!(get(&gateway, &of_own).unwrap(), 200);
    assert_refused(&gateway, &bad, "revoked");
    assert_eq!(gateway.metric(FETCHES, &[("result", "new")]), 0.0);
    // What somebody else put there is worth nothing.
    for file in std::fs::read_dir(gateway.dir().join("state")).unwrap().flatten() {
        std::fs::write(file.path(), list(&Pki::default(), None, -60, &[])).unwrap();
    }
    let gateway = gateway.stop().start_unready();
    assert_eq!(get(&gateway, &of_own).unwrap(), 401);
    assert!(gateway.stderr().contains("in server.state_dir is not used"), "{}", gateway.stderr());
}

#[test]
fn a_file_that_goes_back_to_an_older_list_is_told_of_and_does_not_count() {
    let node = Node::start();
    let mut setup = setup(&node);
    let bad = setup.pki.client("alice");
    let put = |setup: &Setup, from: i64, revoked: &[&Identity]| {
        std::fs::write(setup.dir.path().join("mesh.crl"), list(&setup.pki, None, from, revoked)).unwrap();
    };
    put(&setup, -60, &[&bad]);
    setup.client_auth = "crl: [mesh.crl]".into();
    let gateway = setup.start();
    assert_refused(&gateway, &bad, "revoked");
    put(gateway.setup(), -7200, &[]);
    wait_until("it is told", || gateway.stderr().contains("holds an older one than before"));
    assert_refused(&gateway, &bad, "revoked");
    assert_eq!(gateway.status()["listeners"][0]["crls"][0]["file_is_older"], true);
    put(gateway.setup(), -10, &[]);
    wait_until("a newer one counts", || get(&gateway, &bad).is_ok());
    assert!(gateway.status()["listeners"][0]["crls"][0]["file_is_older"].is_null());
}

#[test]
fn answers_that_are_too_long_take_memory_one_at_a_time() {
    const MIB: usize = 1 << 20;
    let node = Node::start();
    let mut setup = setup(&node);
    // Beyond the limit of 128 MiB, without a length that would tell at once.
    let endless = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut tcp in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let _ = tcp.read(&mut [0; 4096]);
                    let mut sent = tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n\x30\x84\x09\x00\x00\x00");
                    for _ in 0..200 {
                        sent = sent.and_then(|()| tcp.write_all(&vec![0x30; MIB]));
                    }
                });
            }
        });
        format!("\"http://{address}/\"")
    };
    let urls = [endless(), endless(), endless()].join(", ");
    setup.client_auth = format!("crl_url: [{urls}]");
    let gateway = setup.start_unready();
    wait_until("all were asked", || gateway.metric(FETCHES, &[("result", "failed")]) >= 3.0);
    assert!(gateway.stderr().contains("longer than 134217728 bytes"), "{}", gateway.stderr());
    let peak = gateway.peak_memory_bytes();
    println!("at most {} MiB", peak / MIB);
    // The allocator may keep the block of the one before for a moment; three at once would be more than 440 MiB.
    assert!(peak < 400 * MIB, "{} MiB", peak / MIB);
}
