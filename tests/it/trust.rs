//! Trust that changes while clients are connected: the CA bundle, and revocation lists in files.

use std::fs;
use std::path::Path;

use hive_gateway::cli::pki::CrlSpec;

use crate::support::certs::{Identity, Pki, from_now};
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const CARD: &str = "/.well-known/agent-card.json";
const ASK: &[u8] = b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const RELOADS: &str = "hive_gateway_tls_reload_total";

fn replace(file: &Path, bytes: &[u8]) {
    let new = file.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(&new, file).unwrap();
}

fn list(pki: &Pki, number: u64, revoked: &[&Identity]) -> Vec<u8> {
    let dates = from_now(-60, 3600);
    let spec = CrlSpec { number, ..CrlSpec::new(dates.not_before, dates.not_after) };
    let spec = revoked.iter().fold(spec, |spec, identity| spec.revoke(&identity.cert).unwrap());
    spec.issue(&pki.0.intermediate).unwrap()
}

/// A gateway that watches its bundle and its list.
fn watching(node: &Node) -> Gateway {
    let mut setup = Setup::new(&[node.address]);
    fs::write(setup.dir.path().join("ca.pem"), setup.pki.0.bundle_pem().unwrap()).unwrap();
    fs::write(setup.dir.path().join("mesh.crl"), list(&setup.pki, 1, &[])).unwrap();
    setup.client_auth = "crl: [mesh.crl]".into();
    setup.server = "watch: 100ms".into();
    setup.timeouts = "revocation: 400ms".into();
    setup.start()
}

#[test]
fn a_client_whose_ca_is_withdrawn_is_sent_away_with_its_stream() {
    let node = Node::endless();
    let gateway = watching(&node);
    let client = gateway.client("alice");
    let mut h1 = client.connect(gateway.address).unwrap();
    assert_eq!(h1.exchange(ASK).unwrap().status, 200);
    let h2 = H2::connect(&client, gateway.address).unwrap();
    assert_eq!(h2.get(CARD).unwrap().status, 200);
    let mut streaming = client.connect(gateway.address).unwrap();
    streaming.send(b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(streaming.head().unwrap().status, 200);

    // The list must be by a CA that is trusted, so both change; the pair of files may be seen one by one.
    let other = Pki::new("Other Mesh");
    replace(&gateway.dir().join("mesh.crl"), &list(&other, 1, &[]));
    replace(&gateway.dir().join("ca.pem"), &other.0.bundle_pem().unwrap());
    wait_until("the new bundle is in use", || gateway.metric(RELOADS, &[("result", "ok")]) >= 1.0);
    let answer = h1.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_not_trusted")));
    h1.closed_after().unwrap();
    assert_eq!(h2.get(CARD).unwrap().status, 401);
    h2.wait_ended();
    while let Ok(chunk) = streaming.chunk() {
        assert!(chunk.is_some(), "the stream pretends to be whole");
    }
    gateway.wait_log(|l| l["refusal"] == "certificate_not_trusted" && l["status"] == 200);
    let newcomer = gateway.client_with(Some(other.client("alice")));
    assert_eq!(newcomer.get(gateway.address, CARD).unwrap().status, 200, "clients of the new CA come in");
}

#[test]
fn a_bundle_that_grows_keeps_its_clients() {
    let node = Node::start();
    let gateway = watching(&node);
    let mut connection = gateway.connect("alice");
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    let both = [gateway.pki().0.bundle_pem().unwrap(), Pki::new("Other Mesh").0.root.cert_pem().unwrap()].concat();
    replace(&gateway.dir().join("ca.pem"), &both);
    wait_until("the new bundle is in use", || gateway.metric(RELOADS, &[("result", "ok")]) >= 1.0);
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
}

#[test]
fn a_list_in_a_file_counts_as_soon_as_it_changes_and_a_bad_one_does_not() {
    let node = Node::start();
    let gateway = watching(&node);
    let bad = gateway.pki().client("alice");
    let mut connection = gateway.client_with(Some(bad.clone())).connect(gateway.address).unwrap();
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    replace(&gateway.dir().join("mesh.crl"), &list(&Pki::new("Other Mesh"), 2, &[]));
    wait_until("the forged list is refused", || gateway.metric(RELOADS, &[("result", "failed")]) >= 1.0);
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    replace(&gateway.dir().join("mesh.crl"), &list(gateway.pki(), 3, &[&bad]));
    gateway.wait_metric("hive_gateway_crl_entries", &[], 1.0);
    let answer = connection.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_revoked")));
    assert!(gateway.client_with(Some(bad)).get(gateway.address, CARD).is_err());
}
