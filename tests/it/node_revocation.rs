//! Nodes whose certificates are revoked: nothing is sent to them.

use hive_gateway::cli::pki::CrlSpec;

use crate::support::certs::{self, Identity, Pki, client_leaf, from_now, server_leaf};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::wait_until;

const FAILURES: &str = "hive_gateway_upstream_tls_failures_total";

/// A list of the CA that issues the nodes.
fn list(mesh: &Pki, from: i64, to: i64, revoked: &[&Identity]) -> Vec<u8> {
    let dates = from_now(from, to);
    let spec = CrlSpec::new(dates.not_before, dates.not_after);
    let spec = revoked.iter().fold(spec, |spec, identity| spec.revoke(&identity.cert).unwrap());
    spec.issue(&mesh.0.intermediate).unwrap()
}

fn setup(mesh: &Pki, node: &Node, crl: &[u8], by: &str) -> Setup {
    let mut setup = Setup::new(&[]);
    let dir = setup.dir.path();
    std::fs::write(dir.join("hive-ca.pem"), mesh.0.bundle_pem().unwrap()).unwrap();
    std::fs::write(dir.join("hive.crl"), crl).unwrap();
    certs::write(&mesh.leaf(&client_leaf("gateway", "spiffe://mesh.test/gateway")), dir, "gw");
    let more = format!(
        "tls: {{ ca: hive-ca.pem, crl: [hive.crl], cert: gw.pem, key: gw.key, {by} }}, \
         timeouts: {{ idle: 60s }}, health_check: {{ enabled: false }}"
    );
    setup.upstreams = upstream("hive", "https", &[node.address], &more);
    setup.server = "watch: 100ms, threads: 1".into();
    setup
}

fn get(gateway: &Gateway) -> u16 {
    gateway.client("alice").get(gateway.address, "/echo").unwrap().status
}

fn failures(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(FAILURES, &[("upstream", "hive"), ("reason", reason)])
}

#[test]
fn a_revoked_node_gets_nothing_also_not_over_a_connection_that_stands() {
    let mesh = Pki::new("Hive");
    for by in ["server_name: hive.internal", "spiffe_id: \"spiffe://mesh.test/hive\""] {
        let identity = mesh.leaf(&server_leaf(&["hive.internal"]).uri("spiffe://mesh.test/hive"));
        let node = Node::start_tls(&identity, &mesh);
        let gateway = setup(&mesh, &node, &list(&mesh, -60, 3600, &[]), by).start();
        let mut client = gateway.connect("alice");
        for _ in 0..2 {
            let ask = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
            assert_eq!(client.exchange(ask).unwrap().status, 200);
        }
        assert_eq!(node.requests()[0].connection, node.requests()[1].connection, "the connection is kept");
        let write = |name: &str, bytes: &[u8]| std::fs::write(gateway.dir().join(name), bytes).unwrap();
        write("hive.crl", &list(&mesh, -30, 3600, &[&identity]));
        gateway.wait_metric("hive_gateway_tls_reload_total", &[("result", "ok")], 1.0);
        let served = node.count();
        assert_eq!((get(&gateway), node.count()), (502, served), "{by}");
        assert_eq!(failures(&gateway, "revoked"), 1.0);
        wait_until("the log says why", || {
            gateway.stderr().contains("is revoked")
                || gateway.access_log().iter().any(|l| l.to_string().contains("is revoked"))
        });
        // An older list brings it back no more than it does for clients; a newer one does.
        write("hive.crl", &list(&mesh, -40, 3600, &[]));
        gateway.wait_metric("hive_gateway_tls_reload_total", &[("result", "ok")], 2.0);
        assert_eq!((get(&gateway), node.count()), (502, served), "{by}");
        write("hive.crl", &list(&mesh, -20, 3600, &[]));
        gateway.wait_metric("hive_gateway_tls_reload_total", &[("result", "ok")], 3.0);
        assert_eq!(get(&gateway), 200);
    }
}

#[test]
fn without_a_list_that_is_in_time_no_node_is_believed() {
    let mesh = Pki::new("Hive");
    let node = Node::start_tls(&mesh.leaf(&server_leaf(&["hive.internal"])), &mesh);
    let by_name = "server_name: hive.internal";
    let late = setup(&mesh, &node, &list(&mesh, -7200, -60, &[]), by_name).start();
    assert_eq!((get(&late), failures(&late, "crl_expired")), (502, 1.0));
    wait_until("the log warns", || late.stderr().contains("upstream hive: the CRL of \"CN=Hive intermediate CA\""));
    // Other nodes may do, so the gateway is ready; status and metrics say what is wrong.
    let status = late.status();
    let (crl, ca) = (&status["upstreams"][0]["crls"][0], &status["upstreams"][0]["ca"]);
    assert_eq!((&crl["issuer"], &crl["expired"]), (&"CN=Hive intermediate CA".into(), &true.into()), "{status}");
    assert!(ca["source"].as_str().unwrap().ends_with("/hive-ca.pem"), "{ca}");
    assert_eq!(ca["certificates"].as_array().unwrap().len(), 2, "{ca}");
    let overdue = status["overdue"].as_array().unwrap().clone();
    assert_eq!(overdue.len(), 1, "{overdue:?}");
    let told = overdue[0].as_str().unwrap();
    assert!(told.contains("upstream hive: the CRL of") && told.ends_with("its nodes are refused"), "{told}");
    let labels = [("upstream", "hive"), ("issuer", "CN=Hive intermediate CA")];
    let due = late.metric("hive_gateway_upstream_crl_next_update_seconds", &labels);
    assert_eq!(Some(due), crl["next_update"].as_f64());
    crate::admin_api::fits_the_document(&late, "GET", "/v1/status");
    let dates = from_now(-60, 3600);
    let of_the_root = CrlSpec::new(dates.not_before, dates.not_after).issue(&mesh.0.root).unwrap();
    let none = setup(&mesh, &node, &of_the_root, by_name).start();
    assert_eq!((get(&none), failures(&none, "no_crl")), (502, 1.0));
    assert_eq!(node.count(), 0);
}

#[test]
fn a_list_of_nodes_is_checked_as_one_of_clients_and_taken_up_alone() {
    let (mesh, other) = (Pki::new("Hive"), Pki::new("Other"));
    let identity = mesh.leaf(&server_leaf(&["hive.internal"]));
    let node = Node::start_tls(&identity, &mesh);
    let by_name = "server_name: hive.internal";
    let (said, _) = setup(&mesh, &node, &list(&other, -60, 3600, &[]), by_name).check();
    assert!(said.contains("upstreams[0].tls.crl[0]: ") && said.contains("hive.crl"), "{said}");
    let setup = setup(&mesh, &node, &list(&mesh, -60, 3600, &[]), by_name);
    let (said, summary) = setup.check();
    assert!(summary.contains("CRL of CN=Hive intermediate CA: 0 revoked"), "{said}{summary}");
    let gateway = setup.start();
    // A connection to the node rests.
    assert_eq!(get(&gateway), 200);
    let served = node.count();
    // Another file is broken when the list comes.
    std::fs::write(gateway.dir().join("server.pem"), "nonsense").unwrap();
    gateway.wait_metric("hive_gateway_tls_reload_total", &[("result", "failed")], 1.0);
    std::fs::write(gateway.dir().join("hive.crl"), list(&mesh, -30, 3600, &[&identity])).unwrap();
    wait_until("it is in use", || gateway.stderr().contains("upstream hive: a newer CRL from a file is in use"));
    assert_eq!((get(&gateway), node.count(), failures(&gateway, "revoked")), (502, served, 1.0));
}
