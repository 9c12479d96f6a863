//! Certificates, keys and bundles that change while the gateway runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hive_gateway::cli::pki::KeyKind;
use openssl::pkey::Id;

use crate::support::certs::{self, Identity, Leaf, Pki, client_leaf, from_now, serial, server_leaf};
use crate::support::client::{Client, Connection};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::wait_until;

const CARD: &[u8] = b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const TLS_RELOADS: &str = "hive_gateway_tls_reload_total";
const CONFIG_RELOADS: &str = "hive_gateway_config_reload_total";
const OK: &[(&str, &str)] = &[("result", "ok")];
const FAILED: &[(&str, &str)] = &[("result", "failed")];

/// A gateway that looks at its files ten times a second.
fn watching() -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.server = "watch: 100ms".into();
    (setup.start(), node)
}

/// One that never does.
fn asked() -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.server = "watch: 0s".into();
    (setup.start(), node)
}

fn new_server(gateway: &Gateway) -> Identity {
    gateway.pki().leaf(&server_leaf(&["gateway.test", "other.test"]))
}

/// Each file at once, by renaming.
fn replace(dir: &Path, name: &str, identity: &Identity) {
    for (ending, bytes) in [("key", &identity.key_pem), ("pem", &identity.chain_pem)] {
        replace_file(&dir.join(format!("{name}.{ending}")), bytes);
    }
}

fn replace_file(file: &Path, bytes: &[u8]) {
    let new = file.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, file).unwrap();
}

fn shown_to(connection: &mut Connection) -> String {
    serial(&connection.ssl().ssl().peer_certificate().unwrap())
}

/// Serial of the certificate that a new connection gets.
fn shown(gateway: &Gateway) -> String {
    shown_to(&mut gateway.connect("alice"))
}

#[track_caller]
fn wait_shown(gateway: &Gateway, identity: &Identity) {
    let wanted = serial(&identity.cert);
    wait_until("the new certificate is shown", || shown(gateway) == wanted);
}

#[test]
fn new_connections_get_the_new_certificate_and_old_connections_live_on() {
    let (gateway, _node) = asked();
    let mut old = gateway.connect("alice");
    assert_eq!(old.exchange(CARD).unwrap().status, 200);
    let before = shown_to(&mut old);
    let new = new_server(&gateway);
    replace(gateway.dir(), "server", &new);
    assert_eq!(shown(&gateway), before, "nobody asked for the new one yet");
    let answer = gateway.reload_ok();
    assert_eq!((&answer["generation"], &answer["warnings"]), (&2.into(), &serde_json::json!([])), "{answer}");
    assert_eq!(answer["hash"], gateway.status()["config"]["hash"]);
    assert_eq!(shown(&gateway), serial(&new.cert));
    assert_eq!(old.exchange(CARD).unwrap().status, 200);
    let status = gateway.status();
    assert_eq!(status["listeners"][0]["certificates"][0]["serial"], serial(&new.cert));
    assert_eq!((&status["last_reload"]["result"], &status["last_reload"]["trigger"]), (&"ok".into(), &"admin".into()));
    assert_eq!((gateway.metric(CONFIG_RELOADS, OK), gateway.metric(TLS_RELOADS, OK)), (1.0, 1.0));
}

#[test]
fn a_broken_certificate_on_reload_keeps_the_old_one() {
    let (gateway, _node) = asked();
    let before = shown(&gateway);
    replace_file(
        &gateway.dir().join("server.pem"),
        b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
    );
    let answer = gateway.reload();
    let body = answer.json();
    assert_eq!((answer.status, &body["error"], &body["generation"]), (422, &"config_invalid".into(), &1.into()));
    let error = &body["errors"][0];
    assert_eq!(error["path"], "listeners[0].tls.certificates[0].cert", "{body}");
    assert!(error["line"].as_u64().unwrap() > 1 && error["message"].as_str().unwrap().contains("server.pem"), "{body}");
    assert_eq!(shown(&gateway), before);
    assert_eq!(gateway.status()["last_reload"]["errors"], body["errors"]);
    assert_eq!((gateway.metric(CONFIG_RELOADS, FAILED), gateway.metric(TLS_RELOADS, FAILED)), (1.0, 1.0));
    assert_eq!(gateway.metric(TLS_RELOADS, OK), 0.0);
    wait_until("the log says why", || gateway.stderr().contains("listeners[0].tls.certificates[0].cert: "));
    // With the right file all is well again.
    let new = new_server(&gateway);
    replace(gateway.dir(), "server", &new);
    gateway.reload_ok();
    assert_eq!((shown(&gateway), &gateway.status()["last_reload"]["result"]), (serial(&new.cert), &"ok".into()));
}

#[test]
fn files_that_change_in_any_way_are_taken_into_use_by_themselves() {
    let (gateway, _node) = watching();
    let dir = gateway.dir();
    // Renamed over the old ones.
    let new = new_server(&gateway);
    replace(dir, "server", &new);
    wait_shown(&gateway, &new);
    // Written in place.
    let new = new_server(&gateway);
    fs::write(dir.join("server.pem"), &new.chain_pem).unwrap();
    fs::write(dir.join("server.key"), &new.key_pem).unwrap();
    wait_shown(&gateway, &new);
    // As Kubernetes mounts a secret: links into a directory that is exchanged as one.
    let mount = |version: &str, identity: &Identity| {
        fs::create_dir(dir.join(version)).unwrap();
        certs::write(identity, &dir.join(version), "server");
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let new = new_server(&gateway);
    mount("..v1", &new);
    for name in ["server.pem", "server.key"] {
        symlink(format!("..data/{name}"), dir.join("link")).unwrap();
        fs::rename(dir.join("link"), dir.join(name)).unwrap();
    }
    wait_shown(&gateway, &new);
    let new = new_server(&gateway);
    mount("..v2", &new);
    wait_shown(&gateway, &new);
    assert_eq!(gateway.metric(TLS_RELOADS, FAILED), 0.0);
    assert_eq!(gateway.metric(CONFIG_RELOADS, OK), 0.0);
    assert_eq!(gateway.status()["last_reload"]["trigger"], "files");
}

#[test]
fn half_a_pair_is_waited_for_in_silence_and_then_told() {
    let (gateway, _node) = watching();
    let before = shown(&gateway);
    let new = new_server(&gateway);
    let start = Instant::now();
    replace_file(&gateway.dir().join("server.pem"), &new.chain_pem);
    // The pair is incomplete for two seconds: long enough to be judged several times over.
    wait_until("two seconds pass", || {
        assert_eq!(shown(&gateway), before);
        start.elapsed() > Duration::from_secs(2)
    });
    assert_eq!(gateway.metric(TLS_RELOADS, FAILED), 0.0);
    assert!(!gateway.stderr().contains("reload failed"), "{}", gateway.stderr());
    replace_file(&gateway.dir().join("server.key"), &new.key_pem);
    wait_shown(&gateway, &new);
    // A half that stays alone is a failure.
    let lone = new_server(&gateway);
    replace_file(&gateway.dir().join("server.key"), &lone.key_pem);
    gateway.wait_metric(TLS_RELOADS, FAILED, 1.0);
    assert_eq!(shown(&gateway), serial(&new.cert));
    let status = gateway.status();
    assert!(status["last_reload"]["errors"][0]["message"].as_str().unwrap().contains("is not the key"), "{status}");
    assert_eq!(gateway.metric(CONFIG_RELOADS, FAILED), 0.0);
}

#[test]
fn a_failure_is_over_when_the_old_file_comes_back() {
    let (gateway, _node) = watching();
    let file = gateway.dir().join("server.pem");
    let good = fs::read(&file).unwrap();
    replace_file(&file, b"nonsense");
    gateway.wait_metric(TLS_RELOADS, FAILED, 1.0);
    assert_eq!(gateway.status()["last_reload"]["result"], "failed");
    replace_file(&file, &good);
    wait_until("the status is good again", || gateway.status()["last_reload"]["result"] == "ok");
    let status = gateway.status();
    assert_eq!(
        (&status["last_reload"]["errors"], &status["config"]["generation"]),
        (&serde_json::json!([]), &1.into()),
        "{status}"
    );
    assert_eq!(
        (gateway.metric(TLS_RELOADS, OK), gateway.metric(TLS_RELOADS, FAILED)),
        (0.0, 1.0),
        "nothing was loaded"
    );
    // A failure that somebody asked for ends in the same way, but not while the configuration itself is wrong.
    let ask_in_vain = || {
        replace_file(&file, b"nonsense");
        assert_eq!((gateway.reload().status, &gateway.status()["last_reload"]["result"]), (422, &"failed".into()));
        replace_file(&file, &good);
    };
    ask_in_vain();
    wait_until("the status is good again", || gateway.status()["last_reload"]["result"] == "ok");
    gateway.edit("routes:", "routes_of_tomorrow:");
    ask_in_vain();
    let new = new_server(&gateway);
    let told = gateway.status()["last_reload"].clone();
    wait_until("the old file has been looked at", || {
        assert_eq!(gateway.status()["last_reload"], told);
        told["time"].as_i64().unwrap() + 2 < from_now(0, 0).not_before
    });
    replace(gateway.dir(), "server", &new);
    wait_shown(&gateway, &new);
}

#[test]
fn a_rotation_takes_no_half_edited_configuration_into_use() {
    let (gateway, node) = watching();
    gateway.edit("routes:", "routes_of_tomorrow:");
    let new = new_server(&gateway);
    replace(gateway.dir(), "server", &new);
    wait_shown(&gateway, &new);
    assert_eq!(gateway.connect("alice").exchange(CARD).unwrap().status, 200);
    assert_eq!(node.count(), 1);
    assert_eq!(gateway.reload().status, 422);
}

#[test]
fn trust_in_clients_follows_the_bundle() {
    let (gateway, _node) = watching();
    let other = Pki::new("Another Mesh");
    let stranger = Client::new(gateway.pki(), Some(other.client("alice")));
    let ask = |client: &Client| client.get(gateway.address, "/.well-known/agent-card.json").map(|r| r.status).ok();
    let alice = gateway.client("alice");
    assert_eq!((ask(&alice), ask(&stranger)), (Some(200), None));
    let [ours, theirs] = [gateway.pki(), &other].map(|pki| pki.0.root.cert_pem().unwrap());
    let bundle = gateway.dir().join("ca.pem");
    replace_file(&bundle, &[ours, theirs.clone()].concat());
    wait_until("both are trusted", || ask(&stranger) == Some(200));
    assert_eq!(ask(&alice), Some(200));
    let ca = |metrics: &str| metrics.matches("hive_gateway_ca_not_after_seconds{").count();
    assert_eq!(ca(&gateway.metrics()), 2);
    replace_file(&bundle, &theirs);
    wait_until("the first one is not trusted any more", || ask(&alice).is_none());
    assert_eq!(ask(&stranger), Some(200));
    wait_until("its series is gone", || ca(&gateway.metrics()) == 1);
}

#[test]
fn expiry_is_shown_of_the_certificate_in_use_and_warned_of_after_two_thirds_of_its_life() {
    let (gateway, _node) = asked();
    let name = "hive_gateway_certificate_not_after_seconds";
    assert_eq!(gateway.metrics().matches("hive_gateway_certificate_not_after_seconds{").count(), 1);
    let mut leaf = server_leaf(&["gateway.test"]);
    leaf.validity = from_now(-7 * 3600, 3 * 3600 - 60);
    leaf.common_name = "second".into();
    let new = gateway.pki().leaf(&leaf);
    replace(gateway.dir(), "server", &new);
    gateway.reload_ok();
    let series: Vec<_> = gateway.metrics().lines().filter(|l| l.starts_with(name)).map(str::to_owned).collect();
    assert_eq!(
        series,
        [format!(
            "{name}{{listener=\"front\",serial=\"{}\",subject=\"CN=second\"}} {}",
            serial(&new.cert),
            leaf.validity.not_after
        )]
    );
    let warning = format!("its certificate \"CN=second\" (serial {}) expires in 2 hours", serial(&new.cert));
    wait_until("the log warns", || gateway.stderr().contains(&warning));
    gateway.reload_ok();
    gateway.reload_ok();
    assert_eq!(gateway.stderr().matches(&warning).count(), 1);
}

fn rsa(names: &[&str]) -> Leaf {
    let mut leaf = server_leaf(names);
    leaf.key = KeyKind::Rsa(3072);
    leaf
}

#[test]
fn of_two_certificates_for_a_name_a_client_gets_the_one_that_it_can_verify() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let second = setup.pki.leaf(&rsa(&["gateway.test", "other.test"]));
    certs::write(&second, setup.dir.path(), "rsa");
    certs::write(&setup.pki.leaf(&rsa(&["third.test"])), setup.dir.path(), "third");
    setup.server = "watch: 0s".into();
    let gateway = setup.start();
    gateway.edit(
        "certificates: [ { cert: server.pem, key: server.key } ]",
        "certificates: [ { cert: server.pem, key: server.key }, { cert: rsa.pem, key: rsa.key }, { cert: third.pem, key: third.key } ]",
    );
    assert_eq!(gateway.reload_ok()["warnings"], serde_json::json!([]));
    let kind = |client: Client| {
        let mut connection = client.connect(gateway.address).unwrap();
        let ssl = connection.ssl().ssl();
        // The chain came along: the client knows the root alone.
        assert_eq!(ssl.verify_result(), openssl::x509::X509VerifyResult::OK);
        ssl.peer_certificate().unwrap().public_key().unwrap().id()
    };
    let alice = gateway.client("alice");
    assert_eq!(kind(alice.clone()), Id::EC);
    let rsa_only = "RSA-PSS+SHA256:RSA+SHA256:RSA-PSS+SHA384:RSA+SHA384";
    let rsa_identity =
        gateway.pki().leaf(&Leaf { key: KeyKind::Rsa(2048), ..client_leaf("a", "spiffe://mesh.test/hive/a") });
    for (version, name) in [(openssl::ssl::SslVersion::TLS1_3, "1.3"), (openssl::ssl::SslVersion::TLS1_2, "1.2")] {
        let mut client = alice.clone().configure(move |b| {
            b.set_max_proto_version(Some(version)).unwrap();
            b.set_sigalgs_list(rsa_only).unwrap();
        });
        client.identity = Some(rsa_identity.clone());
        for sni in [Some("gateway.test"), Some("other.test"), None, Some("unknown.test")] {
            assert_eq!(kind(client.clone().sni(sni)), Id::RSA, "{name} {sni:?}");
        }
    }
    assert_eq!(kind(alice.clone().sni(Some("third.test"))), Id::RSA);
    let ecdsa_only = alice.configure(|b| b.set_sigalgs_list("ECDSA+SHA256").unwrap());
    assert_eq!(kind(ecdsa_only.clone()), Id::EC);
    assert!(ecdsa_only.sni(Some("third.test")).connect(gateway.address).is_err());
}

#[test]
fn a_pooled_connection_of_an_older_client_certificate_is_not_reused() {
    let mesh = Pki::new("Hive");
    let node = Node::start_tls(&mesh.leaf(&server_leaf(&["hive.internal"])), &mesh);
    let own = || mesh.leaf(&client_leaf("gateway", "spiffe://mesh.test/gateway"));
    let (first, second) = (own(), own());
    let mut setup = Setup::new(&[]);
    mesh.write_root(setup.dir.path(), "hive-ca");
    certs::write(&first, setup.dir.path(), "gw");
    let more =
        "tls: { ca: hive-ca.pem, server_name: hive.internal, cert: gw.pem, key: gw.key }, timeouts: { idle: 60s }";
    setup.upstreams = upstream("hive", "https", &[node.address], more);
    setup.server = "watch: 100ms".into();
    let gateway = setup.start();
    let mut client = gateway.connect("alice");
    let mut ask = |count: usize| {
        assert_eq!(client.exchange(CARD).unwrap().status, 200);
        let connection = node.requests()[count - 1].connection;
        (connection, node.serial(connection))
    };
    let (one, two) = (ask(1), ask(2));
    assert_eq!((&one, &one.1), (&two, &serial(&first.cert)), "the second request reuses the connection");
    replace(gateway.dir(), "gw", &second);
    wait_until("the new one is in use", || {
        gateway.status()["upstreams"][0]["certificate"]["serial"] == serial(&second.cert)
    });
    let three = ask(3);
    assert_ne!(three.0, one.0);
    assert_eq!(three.1, serial(&second.cert));
    assert_eq!(ask(4), three);
    // Trust alone makes a new generation too.
    let other = Pki::new("More");
    let both = [&mesh, &other].map(|pki| pki.0.root.cert_pem().unwrap()).concat();
    replace_file(&gateway.dir().join("hive-ca.pem"), &both);
    gateway.wait_metric(TLS_RELOADS, OK, 2.0);
    assert_ne!(ask(5).0, three.0);
}

#[test]
fn under_a_rotation_ten_times_a_second_no_handshake_fails() {
    let (gateway, _node) = watching();
    let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let both = Pki::new("Another Mesh");
    let bundles = [
        gateway.pki().0.root.cert_pem().unwrap(),
        [gateway.pki(), &both].map(|pki| pki.0.root.cert_pem().unwrap()).concat(),
    ];
    let mut serials = std::collections::BTreeSet::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let client = gateway.client("alice");
                    let mut seen = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let mut connection = client.connect(gateway.address).unwrap();
                        assert_eq!(connection.exchange(CARD).unwrap().status, 200);
                        seen.push(shown_to(&mut connection));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    seen
                })
            })
            .collect();
        let start = Instant::now();
        // Nobody asks for a reload: the files never rest, and are taken into use by themselves, some of them.
        for n in 1..=100 {
            replace(gateway.dir(), "server", &new_server(&gateway));
            replace_file(&gateway.dir().join("ca.pem"), &bundles[n % 2]);
            wait_until("100 ms pass", || start.elapsed() > Duration::from_millis(100) * n as u32);
            if n > 30 && gateway.metric(TLS_RELOADS, OK) >= 4.0 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|w| serials.extend(w.join().unwrap()));
    });
    let done = done.load(Ordering::Relaxed);
    println!("{done} handshakes, {} certificates seen", serials.len());
    assert!(done > 100 && serials.len() >= 4, "{done} handshakes, {} certificates", serials.len());
    assert_eq!(gateway.metric(CONFIG_RELOADS, OK), 0.0);
    assert_eq!(gateway.metric("hive_gateway_tls_handshakes_total", OK), done as f64);
}

#[test]
fn files_that_change_more_often_than_they_can_be_read_keep_no_rotation_out() {
    let (gateway, _node) = watching();
    let stop = AtomicBool::new(false);
    let root = gateway.pki().0.root.cert_pem().unwrap();
    let new = new_server(&gateway);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Every read finds another file; a bundle may say anything around its certificates.
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                replace_file(&gateway.dir().join("ca.pem"), &[format!("{n}\n").as_bytes(), &root].concat());
            }
        });
        replace(gateway.dir(), "server", &new);
        let wanted = serial(&new.cert);
        let begun = Instant::now();
        // On a machine with much to do files may be read between two changes at first.
        let told = || gateway.stderr().contains("change more often than they can be read");
        while (shown(&gateway) != wanted || !told()) && begun.elapsed() < Duration::from_secs(40) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(shown(&gateway), serial(&new.cert));
    wait_until("the log says so", || gateway.stderr().contains("change more often than they can be read"));
    assert_eq!(gateway.metric(TLS_RELOADS, FAILED), 0.0);
}

#[test]
fn a_fifo_in_a_file_s_place_fails_the_reload_and_does_not_hold_it_up() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let ca = gateway.dir().join("ca.pem");
    let before = std::fs::read(&ca).unwrap();
    std::fs::remove_file(&ca).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&ca).status().unwrap().success());
    let answer = gateway.reload();
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("is not a regular file"), "{}", answer.text());
    std::fs::remove_file(&ca).unwrap();
    std::fs::write(&ca, before).unwrap();
    gateway.reload_ok();
}
