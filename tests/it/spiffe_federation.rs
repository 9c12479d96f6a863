//! Federated trust domains: a client is verified by the bundle of its own trust domain, and by no other.

use serde_json::json;

use crate::support::certs::{Pki, client_leaf};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::spiffe_agent::{Issue, SpiffeAgent, bundle, leaf};
use crate::support::wait_until;

const GATEWAY: &str = "spiffe://mesh.test/gateway";
const PARTNER: &str = "spiffe://partner.test/hive/oslo";
const CARD: &str = "/.well-known/agent-card.json";
const ASK: &[u8] = b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const RELOADS: &str = "hive_gateway_tls_reload_total";
const HANDSHAKES: &str = "hive_gateway_tls_handshakes_total";
const OK: &[(&str, &str)] = &[("result", "ok")];

/// A gateway of mesh.test whose agent has partner.test's bundle; `spiffe` is inside the listener's block.
struct Federated {
    gateway: Gateway,
    agent: SpiffeAgent,
    partner: Pki,
}

impl Federated {
    /// `partner` may have CAs of the same names as the gateway's own trust domain.
    fn start(node: &Node, spiffe: &str, partner: Pki) -> Self {
        let base = Setup::new(&[node.address]);
        let issue = Issue::new(GATEWAY, &base.pki).0.federate("partner.test", bundle(&partner));
        let agent = SpiffeAgent::start(base.dir.path(), issue);
        let timeouts = "revocation: 400ms".into();
        let gateway = Setup { top: agent.config(), spiffe: Some(spiffe.into()), timeouts, ..base }.start();
        Self { gateway, agent, partner }
    }

    fn both(node: &Node) -> Self {
        Self::start(node, "trust_domains: [mesh.test, partner.test]", Pki::new("Partner"))
    }

    /// A client with this ID, issued by this PKI.
    fn client(&self, pki: &Pki, id: &str) -> Client {
        self.gateway.client_with(Some(pki.leaf(&client_leaf("oslo", id))))
    }

    fn asks(&self, pki: &Pki, id: &str) -> Option<u16> {
        self.client(pki, id).get(self.gateway.address, CARD).map(|r| r.status).ok()
    }

    fn failed(&self) -> f64 {
        let of = |result| self.gateway.metric(HANDSHAKES, &[("listener", "front"), ("result", result)]);
        of("unknown_ca") + of("chain_incomplete") + of("bad_signature")
    }

    /// What the agent issues, without or with a bundle of the partner's.
    fn reissue(&self, bundle: Option<Vec<u8>>) {
        let issue = Issue::new(GATEWAY, self.gateway.pki()).0;
        self.agent.issue(match bundle {
            Some(bundle) => issue.federate("partner.test", bundle),
            None => issue,
        });
    }
}

#[test]
fn a_client_is_verified_by_its_own_trust_domain_and_by_no_other() {
    let node = Node::start();
    // The partner's CAs have our names: only keys tell them apart.
    for partner in [Pki::new("Partner"), Pki::default()] {
        let f = Federated::start(&node, "trust_domains: [mesh.test, partner.test]", partner);
        let ours = f.gateway.pki();
        assert_eq!(f.asks(ours, "spiffe://mesh.test/hive/alice"), Some(200));
        assert_eq!(f.asks(&f.partner, PARTNER), Some(200));
        // Each CA vouches for its own members only.
        assert_eq!(f.asks(&f.partner, "spiffe://mesh.test/hive/alice"), None, "the partner makes itself one of us");
        assert_eq!(f.asks(ours, PARTNER), None);
        wait_until("both are counted", || f.failed() == 2.0);
        // Known to nobody.
        assert_eq!(f.asks(ours, "spiffe://third.test/hive/rome"), None);
        f.gateway.wait_log(|l| {
            l["detail"].as_str().is_some_and(|d| d.contains("trust domain third.test is not among the listener's"))
                && l["result"] == "unknown_ca"
                && l["subject"] == "CN=oslo"
        });
        // No SPIFFE ID, or two: nobody's member, whoever signed it.
        let nobody = f.gateway.client_with(Some(ours.leaf(&crate::support::certs::server_leaf(&["x.test"]))));
        assert!(nobody.get(f.gateway.address, CARD).is_err());
        let twice = client_leaf("oslo", PARTNER).uri("spiffe://mesh.test/hive/alice");
        for pki in [ours, &f.partner] {
            let twice = f.gateway.client_with(Some(pki.leaf(&twice)));
            assert!(twice.get(f.gateway.address, CARD).is_err());
        }
        f.gateway.wait_log(|l| l["detail"].as_str().is_some_and(|d| d.contains("carries no SPIFFE ID")));
    }
}

#[test]
fn a_bundle_alone_lets_nobody_in() {
    let node = Node::start();
    let own = Federated::start(&node, "", Pki::new("Partner"));
    assert_eq!(own.asks(own.gateway.pki(), "spiffe://mesh.test/hive/alice"), Some(200));
    assert_eq!(own.asks(&own.partner, PARTNER), None, "federated by the agent, but not by the configuration");
    let partners = Federated::start(&node, "trust_domains: [partner.test]", Pki::new("Partner"));
    assert_eq!(partners.asks(&partners.partner, PARTNER), Some(200));
    assert_eq!(partners.asks(partners.gateway.pki(), "spiffe://mesh.test/hive/alice"), None);
}

#[test]
fn a_trust_domain_vouches_for_no_dns_name() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let partner = Pki::new("Partner");
    let issue = Issue::new(GATEWAY, &base.pki).0.federate("partner.test", bundle(&partner));
    let agent = SpiffeAgent::start(base.dir.path(), issue);
    let peers =
        "[{ name: alice, dns: alice.mesh.test }, { name: bob, uri: \"spiffe://partner.test/hive/oslo\" }]".into();
    let spiffe = Some("trust_domains: [mesh.test, partner.test]".into());
    let gateway = Setup { top: agent.config(), spiffe, peers, ..base }.start();
    let forged = gateway.client_with(Some(partner.leaf(&client_leaf("oslo", PARTNER).dns("alice.mesh.test"))));
    assert_eq!(forged.get(gateway.address, "/bob").unwrap().status, 200);
    let other = client_leaf("rome", "spiffe://partner.test/hive/rome").dns("alice.mesh.test");
    let other = gateway.client_with(Some(partner.leaf(&other)));
    assert_eq!(other.get(gateway.address, CARD).unwrap().status, 200);
    let log = gateway.wait_log(|l| l["spiffe_id"] == "spiffe://partner.test/hive/rome");
    assert!(log["peer"].is_null(), "{log}");
}

#[test]
fn a_trust_domain_that_is_withdrawn_loses_its_connections_and_streams() {
    let node = Node::endless();
    let f = Federated::both(&node);
    let gateway = &f.gateway;
    let client = f.client(&f.partner, PARTNER);
    let mut h1 = client.connect(gateway.address).unwrap();
    assert_eq!(h1.exchange(ASK).unwrap().status, 200);
    let h2 = H2::connect(&client, gateway.address).unwrap();
    assert_eq!(h2.get(CARD).unwrap().status, 200);
    let mut streaming = client.connect(gateway.address).unwrap();
    streaming.send(b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(streaming.head().unwrap().status, 200);
    let mut ours = gateway.connect("alice");
    assert_eq!(ours.exchange(ASK).unwrap().status, 200);

    f.reissue(None);
    gateway.wait_metric(RELOADS, OK, 1.0);
    let answer = h1.exchange(ASK).unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("certificate_not_trusted")));
    h1.closed_after().unwrap();
    assert_eq!(h2.get(CARD).unwrap().status, 401);
    h2.wait_ended();
    while let Ok(chunk) = streaming.chunk() {
        assert!(chunk.is_some(), "the stream pretends to be whole");
    }
    assert_eq!(ours.exchange(ASK).unwrap().status, 200, "ours stay");
    assert_eq!(f.asks(&f.partner, PARTNER), None);
    wait_until("the log tells", || gateway.stderr().contains("no bundle of partner.test; its members are not trusted"));

    // It comes back, goes as an empty bundle, and comes back with another CA.
    f.reissue(Some(bundle(&f.partner)));
    gateway.wait_metric(RELOADS, OK, 2.0);
    assert_eq!(f.asks(&f.partner, PARTNER), Some(200));
    f.reissue(Some(Vec::new()));
    gateway.wait_metric(RELOADS, OK, 3.0);
    assert_eq!(f.asks(&f.partner, PARTNER), None);
    let next = Pki::new("Partner's next");
    f.reissue(Some(bundle(&next)));
    gateway.wait_metric(RELOADS, OK, 4.0);
    assert_eq!((f.asks(&f.partner, PARTNER), f.asks(&next, PARTNER)), (None, Some(200)));
    // A broken one is no withdrawal.
    f.reissue(Some(b"nonsense".to_vec()));
    gateway.wait_metric(RELOADS, &[("result", "failed")], 1.0);
    assert_eq!(f.asks(&next, PARTNER), Some(200));
}

#[test]
fn a_ca_that_passes_to_another_trust_domain_takes_its_clients_standing_along() {
    let node = Node::start();
    let f = Federated::both(&node);
    let mut connection = f.client(&f.partner, PARTNER).connect(f.gateway.address).unwrap();
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    // The same certificates are in use, but the partner's now vouches for ours.
    let base = f.gateway.pki();
    let mut issue = Issue::new(GATEWAY, base).0;
    issue.svids[0].bundle = [bundle(base), bundle(&f.partner)].concat();
    f.agent.issue(issue);
    f.gateway.wait_metric(RELOADS, OK, 1.0);
    assert_eq!(connection.exchange(ASK).unwrap().status, 401);
    assert_eq!(f.asks(&f.partner, "spiffe://mesh.test/hive/alice"), Some(200));
}

#[test]
fn a_partner_s_node_is_verified_by_its_own_trust_domain() {
    let (base, partner) = (Setup::new(&[]), Pki::new("Partner"));
    // It trusts our client certificate and is of its own CA; the impostor has the right ID from our CA.
    let right = partner.leaf(&leaf(PARTNER));
    let impostor = base.pki.leaf(&leaf(PARTNER));
    let nodes = [Node::start_tls(&right, &base.pki), Node::start_tls(&impostor, &base.pki)];
    let issue = |with: bool| {
        let issue = Issue::new(GATEWAY, &base.pki).0;
        if with { issue.federate("partner.test", bundle(&partner)) } else { issue }
    };
    let agent = SpiffeAgent::start(base.dir.path(), issue(true));
    let tls = format!("tls: {{ spiffe: {{}}, spiffe_id: \"{PARTNER}\" }}, health_check: {{ enabled: false }}");
    let top = agent.config();
    let withdrawn = issue(false);
    let routes = "
  - { name: right, paths: [/right], methods: [GET], peers: any, upstream: right }
  - { name: wrong, paths: [/wrong], methods: [GET], peers: any, upstream: wrong }
"
    .into();
    let upstreams =
        upstream("right", "https", &[nodes[0].address], &tls) + &upstream("wrong", "https", &[nodes[1].address], &tls);
    let gateway = Setup { top, routes, upstreams, ..base }.start();
    let get = |path| gateway.client("alice").get(gateway.address, path).unwrap().status;
    assert_eq!((get("/right"), get("/wrong")), (200, 502));
    agent.issue(withdrawn);
    gateway.wait_metric(RELOADS, OK, 1.0);
    assert_eq!(get("/right"), 502, "not even on the connection that was open");
    assert_eq!((nodes[0].count(), nodes[1].count()), (1, 0));
    assert_eq!(gateway.status()["spiffe"]["federated_trust_domains"], json!([]));
}
