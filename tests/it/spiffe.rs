//! The gateway's own certificate and trust from a SPIFFE agent, who comes and goes and changes his mind.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::support::certs::{Identity, Pki, from_now, serial};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::spiffe_agent::{Issue, SpiffeAgent, Svid, leaf};
use crate::support::wait_until;

const GATEWAY: &str = "spiffe://mesh.test/gateway";
const CARD: &str = "/.well-known/agent-card.json";
const ASK: &[u8] = b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
const RELOADS: &str = "hive_gateway_tls_reload_total";
const OK: &[(&str, &str)] = &[("result", "ok")];
const FAILED: &[(&str, &str)] = &[("result", "failed")];
const AGENT_UP: &str = "hive_gateway_spiffe_agent_up";

/// A listener with the agent's first SVID.
fn setup(agent: &SpiffeAgent, setup: Setup) -> Setup {
    Setup { top: agent.config(), spiffe: Some(String::new()), ..setup }
}

/// A gateway, its agent, and whom the agent said it is.
fn running(node: &Node) -> (Gateway, SpiffeAgent, Identity) {
    let base = Setup::new(&[node.address]);
    let (issue, identity) = Issue::new(GATEWAY, &base.pki);
    let agent = SpiffeAgent::start(base.dir.path(), issue);
    (setup(&agent, base).start(), agent, identity)
}

/// Serial of the certificate that a new connection gets.
fn shown(gateway: &Gateway) -> String {
    let mut connection = gateway.connect("alice");
    serial(&connection.ssl().ssl().peer_certificate().unwrap())
}

#[track_caller]
fn wait_shown(gateway: &Gateway, identity: &Identity) {
    let wanted = serial(&identity.cert);
    wait_until("the new SVID is shown", || shown(gateway) == wanted);
}

#[test]
fn a_listener_with_an_svid_serves_mutual_tls() {
    let node = Node::start();
    let (gateway, agent, identity) = running(&node);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!(shown(&gateway), serial(&identity.cert));
    let log = gateway.wait_log(|l| l["status"] == 200);
    assert_eq!((&log["peer"], &log["spiffe_id"]), (&json!("alice"), &json!("spiffe://mesh.test/hive/alice")));
    assert!(node.only().header("x-forwarded-client-cert").unwrap().contains("spiffe://mesh.test/hive/alice"));
    let stranger = Client::new(gateway.pki(), Some(Pki::new("Other").client("alice")));
    assert!(stranger.get(gateway.address, CARD).is_err());
    assert!(gateway.client_with(None).get(gateway.address, CARD).is_err());

    let status = gateway.status();
    assert_eq!(status["spiffe"]["svids"], json!([GATEWAY]));
    assert_eq!((&status["spiffe"]["connected"], &status["spiffe"]["waiting"]), (&json!(true), &json!([])));
    assert_eq!(status["listeners"][0]["certificates"][0]["serial"], serial(&identity.cert));
    assert_eq!(status["config"]["generation"], 1, "what the start was told is not told again");
    let end = leaf(GATEWAY).validity.not_after;
    let shown = gateway.metric("hive_gateway_certificate_not_after_seconds", &[("listener", "front")]);
    assert!((shown - end as f64).abs() < 30.0, "{shown} {end}");
    assert_eq!((gateway.metric(AGENT_UP, &[]), gateway.metric(RELOADS, &[])), (1.0, 0.0));
    assert!(agent.streams() >= 1);
    // HTTP/2, and another host: the SVID names none, so the routes decide.
    let other = gateway.client("alice").sni(Some("anything.test"));
    assert_eq!(other.get(gateway.address, CARD).unwrap().status, 200);
}

#[test]
fn an_svid_that_names_hosts_is_for_those_alone() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let identity = base.pki.leaf(&leaf(GATEWAY).dns("gateway.test"));
    let agent = SpiffeAgent::start(base.dir.path(), Issue::of(&[Svid::of(GATEWAY, &identity, &base.pki)]));
    let gateway = setup(&agent, base).start();
    assert_ne!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 421);
    let other = gateway.client("alice").sni(Some("other.test"));
    assert_eq!(other.get(gateway.address, CARD).unwrap().status, 421);
}

#[test]
fn rotation_under_load_fails_no_connection_and_old_connections_live_on() {
    let node = Node::start();
    let (gateway, agent, _) = running(&node);
    let mut old = gateway.connect("alice");
    assert_eq!(old.exchange(ASK).unwrap().status, 200);
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let load = || {
            let client = gateway.client("alice");
            while !done.load(Ordering::Relaxed) {
                assert_eq!(client.get(gateway.address, CARD).unwrap().status, 200);
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let loads = [scope.spawn(load), scope.spawn(load)];
        for n in 1..=20 {
            let (issue, identity) = Issue::new(GATEWAY, gateway.pki());
            let before = count.load(Ordering::Relaxed);
            agent.issue(issue);
            wait_shown(&gateway, &identity);
            gateway.wait_metric(RELOADS, OK, f64::from(n));
            wait_until("requests go on", || {
                count.load(Ordering::Relaxed) > before + 2 || loads.iter().any(|l| l.is_finished())
            });
        }
        done.store(true, Ordering::Relaxed);
        for load in loads {
            load.join().expect("no connection fails");
        }
    });
    assert_eq!(old.exchange(ASK).unwrap().status, 200);
    assert_eq!((gateway.metric(RELOADS, FAILED), agent.streams()), (0.0, 2), "one for the start, one for good");
    assert_eq!(gateway.status()["last_reload"]["trigger"], "spiffe");
}

#[test]
fn an_agent_that_restarts_is_found_again() {
    let node = Node::start();
    let (gateway, mut agent, first) = running(&node);
    for _ in 0..2 {
        agent.go();
        gateway.wait_metric(AGENT_UP, &[], 0.0);
        wait_until("the log says so", || gateway.stderr().contains("what it issued last stays in use"));
        assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
        assert_eq!(gateway.admin_get("/v1/ready").unwrap().status, 200, "what is in use is good");
        assert!(gateway.status()["spiffe"]["error"].is_string());
        agent.come();
        gateway.wait_metric(AGENT_UP, &[], 1.0);
        wait_until("the error is gone", || gateway.status()["spiffe"]["error"].is_null());
    }
    assert_eq!(shown(&gateway), serial(&first.cert));
    assert_eq!(gateway.status()["config"]["generation"], 1, "nothing new was said");
    let (issue, second) = Issue::new(GATEWAY, gateway.pki());
    agent.issue(issue);
    wait_shown(&gateway, &second);
    // One that has rotated while it was away.
    agent.go();
    let (issue, third) = Issue::new(GATEWAY, gateway.pki());
    agent.issue(issue);
    assert_eq!(shown(&gateway), serial(&second.cert));
    agent.come();
    wait_shown(&gateway, &third);
}

#[test]
fn without_its_agent_the_gateway_waits_says_so_and_comes_up_when_the_agent_does() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let (issue, identity) = Issue::new(GATEWAY, &base.pki);
    let mut agent = SpiffeAgent::away(base.dir.path(), issue);
    let gateway = setup(&agent, base).start_unready();
    let ready = gateway.admin_get("/v1/ready").unwrap();
    assert_eq!((ready.status, &ready.json()["waiting_for_svid"]), (503, &json!(["listener front"])));
    assert!(ready.json()["spiffe"].as_str().unwrap().contains("can't be reached"), "{}", ready.text());
    assert!(gateway.client("alice").get(gateway.address, CARD).is_err());
    gateway.wait_metric("hive_gateway_tls_handshakes_total", &[("listener", "front"), ("result", "no_svid")], 1.0);
    gateway.wait_log(|l| l["result"] == "no_svid" && l["tls_version"] == "TLSv1.3");
    // A reload is no way around it, and no failure either.
    gateway.reload_ok();
    agent.come();
    wait_until("the gateway is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!(shown(&gateway), serial(&identity.cert));
}

#[test]
fn a_denial_is_told_clearly_and_the_last_good_svid_is_kept() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let (issue, identity) = Issue::new(GATEWAY, &base.pki);
    let agent = SpiffeAgent::start(base.dir.path(), issue.clone());
    agent.deny("no identity issued");
    let gateway = setup(&agent, base).start_unready();
    let why = gateway.admin_get("/v1/ready").unwrap().json()["spiffe"].as_str().unwrap().to_owned();
    assert!(why.contains("issues no identity to this process (PermissionDenied: no identity issued)"), "{why}");
    wait_until("the log says so", || gateway.stderr().contains("issues no identity to this process"));
    agent.issue(issue);
    wait_until("the gateway is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    agent.deny("no identity issued");
    wait_until("the denial is told", || {
        gateway.status()["spiffe"]["error"].as_str().is_some_and(|e| e.contains("PermissionDenied"))
    });
    assert_eq!(shown(&gateway), serial(&identity.cert));
    assert_eq!(gateway.status()["spiffe"]["connected"], false);
    let streams = agent.streams();
    wait_until("it is asked again", || agent.streams() > streams);
}

#[test]
fn bad_updates_keep_what_is_in_use() {
    let node = Node::start();
    let (gateway, agent, identity) = running(&node);
    let pki = gateway.pki();
    let good = Svid::of(GATEWAY, &pki.leaf(&leaf(GATEWAY)), pki);
    let of = |leaf| Svid::of(GATEWAY, &pki.leaf(leaf), pki);
    let mut expired = leaf(GATEWAY);
    expired.validity = from_now(-7200, -60);
    let cases = [
        ("its key is not the certificate's", Svid { x509_svid_key: of(&leaf(GATEWAY)).x509_svid_key, ..good.clone() }),
        ("the bundle of mesh.test is empty", Svid { bundle: Vec::new(), ..good.clone() }),
        ("expired at", of(&expired)),
        ("its SPIFFE ID is malformed", Svid { spiffe_id: "spiffe://Mesh.Test/gateway".into(), ..good.clone() }),
        ("its certificate is for", Svid { spiffe_id: "spiffe://mesh.test/other".into(), ..good.clone() }),
        ("a certificate is cut off", Svid { x509_svid: good.x509_svid[..200].to_vec(), ..good.clone() }),
        ("a certificate is cut off", Svid { bundle: b"nonsense".to_vec(), ..good.clone() }),
        ("has no certificate", Svid { x509_svid: Vec::new(), ..good.clone() }),
        ("carries no SPIFFE ID", of(&leaf(GATEWAY).uri("spiffe://mesh.test/second"))),
    ];
    let mut failed = 0.0;
    let mut refuse = |why: &str, issue: Issue| {
        agent.issue(issue);
        failed += 1.0;
        gateway.wait_metric(RELOADS, FAILED, failed);
        wait_until("the status says why", || {
            gateway.status()["spiffe"]["error"].as_str().is_some_and(|said| said.contains(why))
        });
        let status = gateway.status();
        assert_eq!(
            (&status["last_reload"]["trigger"], &status["last_reload"]["result"]),
            (&json!("spiffe"), &json!("failed"))
        );
        assert_eq!(shown(&gateway), serial(&identity.cert), "{why}");
        assert!(gateway.stderr().contains(why), "{why}");
    };
    for (why, svid) in cases {
        refuse(why, Issue::of(&[svid]));
    }
    refuse("there is no SVID in it", Issue::default());
    refuse(
        "a bundle is for \"spiffe://Bad_Domain\"",
        Issue::of(std::slice::from_ref(&good)).federate("Bad_Domain", Vec::new()),
    );
    assert_eq!(gateway.metric(RELOADS, OK), 0.0);
    agent.issue(Issue::of(&[good]));
    gateway.wait_metric(RELOADS, OK, 1.0);
    assert!(gateway.status()["spiffe"]["error"].is_null());
}

#[test]
fn an_update_that_the_configuration_could_not_use_is_used_once_it_can() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let agent = SpiffeAgent::start(base.dir.path(), Issue::new(GATEWAY, &base.pki).0);
    let mut setup = setup(&agent, base);
    setup.spiffe = Some("id: \"spiffe://mesh.test/none\"".into());
    let gateway = setup.start_unready();
    wait_until("the gateway says why", || {
        let ready = gateway.admin_get("/v1/ready").unwrap();
        ready.status == 503 && ready.json()["spiffe"].as_str().unwrap().contains("issues no such SVID")
    });
    gateway.edit("spiffe://mesh.test/none", GATEWAY);
    gateway.reload_ok();
    wait_until("the gateway is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
}

#[test]
fn of_several_svids_the_configured_one_is_used() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let ids = [GATEWAY, "spiffe://mesh.test/edge", "spiffe://mesh.test/inner"];
    let identities = ids.map(|id| base.pki.leaf(&leaf(id)));
    let mut svids: Vec<_> = ids.iter().zip(&identities).map(|(id, who)| Svid::of(id, who, &base.pki)).collect();
    svids[2].hint = "internal".into();
    // What nobody uses can't hold up the rest.
    svids[0].x509_svid_key.clear();
    let agent = SpiffeAgent::start(base.dir.path(), Issue::of(&svids));
    let mut setup = setup(&agent, base);
    setup.spiffe = Some("id: \"spiffe://mesh.test/edge\"".into());
    let gateway = setup.start();
    assert_eq!(shown(&gateway), serial(&identities[1].cert));
    gateway.edit("id: \"spiffe://mesh.test/edge\"", "hint: internal");
    gateway.reload_ok();
    assert_eq!(shown(&gateway), serial(&identities[2].cert));
    gateway.edit("hint: internal", "id: \"spiffe://mesh.test/none\"");
    let answer = gateway.reload();
    let error = &answer.json()["errors"][0];
    assert_eq!((answer.status, &error["path"]), (422, &json!("listeners[0].tls.spiffe.id")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("it issues spiffe://mesh.test/gateway, "), "{error}");
}

/// A gateway that calls `node` with an SVID; the node must be `id`.
fn outbound(agent: &SpiffeAgent, base: Setup, node: &Node, id: &str) -> Setup {
    let tls = format!("tls: {{ spiffe: {{}}, spiffe_id: \"{id}\" }}");
    Setup { top: agent.config(), upstreams: upstream("hive", "https", &[node.address], &tls), ..base }
}

#[test]
fn nodes_are_called_with_the_svid_and_no_connection_outlives_its_generation() {
    let base = Setup::new(&[]);
    let id = "spiffe://mesh.test/hive/paris";
    let node = Node::start_tls(&base.pki.leaf(&leaf(id)), &base.pki);
    let (issue, first) = Issue::new(GATEWAY, &base.pki);
    let agent = SpiffeAgent::start(base.dir.path(), issue);
    let gateway = outbound(&agent, base, &node, id).start();
    let mut connection = gateway.connect("alice");
    for _ in 0..2 {
        assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    }
    let requests = node.requests();
    assert_eq!(requests[0].connection, requests[1].connection);
    assert_eq!(node.serial(requests[0].connection), serial(&first.cert));
    assert_eq!(gateway.status()["upstreams"][0]["certificate"]["serial"], serial(&first.cert));
    let (issue, second) = Issue::new(GATEWAY, gateway.pki());
    agent.issue(issue);
    gateway.wait_metric(RELOADS, OK, 1.0);
    assert_eq!(connection.exchange(ASK).unwrap().status, 200);
    assert_eq!(node.serial(node.requests()[2].connection), serial(&second.cert));
}

#[test]
fn an_upstream_waits_for_the_agent_too() {
    let base = Setup::new(&[]);
    let id = "spiffe://mesh.test/hive/paris";
    let node = Node::start_tls(&base.pki.leaf(&leaf(id)), &base.pki);
    let mut agent = SpiffeAgent::away(base.dir.path(), Issue::new(GATEWAY, &base.pki).0);
    let gateway = outbound(&agent, base, &node, id).start_unready();
    let ready = gateway.admin_get("/v1/ready").unwrap();
    assert_eq!((ready.status, &ready.json()["waiting_for_svid"]), (503, &json!(["upstream hive"])));
    assert_ne!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
    assert_eq!(node.count(), 0, "nobody vouches for the node yet");
    agent.come();
    wait_until("the gateway is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert_eq!(gateway.client("alice").get(gateway.address, CARD).unwrap().status, 200);
}

#[test]
fn a_broken_file_keeps_no_svid_out() {
    let base = Setup::new(&[]);
    let plain = Node::start();
    let node = Node::start_tls(&base.pki.leaf(&leaf("spiffe://mesh.test/hive/paris")), &base.pki);
    let agent = SpiffeAgent::start(base.dir.path(), Issue::new(GATEWAY, &base.pki).0);
    let mut setup = setup(&agent, base);
    let tls = "tls: { ca: ca.pem, spiffe_id: \"spiffe://mesh.test/hive/paris\" }, health_check: { enabled: false }";
    setup.upstreams =
        upstream("hive", "http", &[plain.address], "") + &upstream("other", "https", &[node.address], tls);
    setup.server = "watch: 100ms".into();
    let gateway = setup.start();
    fs::write(gateway.dir().join("ca.pem"), "nonsense").unwrap();
    gateway.wait_metric(RELOADS, FAILED, 1.0);
    let (issue, identity) = Issue::new(GATEWAY, gateway.pki());
    agent.issue(issue);
    wait_shown(&gateway, &identity);
}

#[test]
fn check_shows_what_the_agent_issues() {
    let node = Node::start();
    let base = Setup::new(&[node.address]);
    let issue = Issue::new(GATEWAY, &base.pki).0.federate("partner.test", Vec::new());
    let mut agent = SpiffeAgent::start(base.dir.path(), issue);
    let mut setup = setup(&agent, base);
    let (problems, said) = setup.check();
    for part in
        ["an SVID of the SPIFFE agent", "issues spiffe://mesh.test/gateway to this process", "bundle of partner"]
    {
        assert!(said.contains(part), "{part}\n{said}\n{problems}");
    }
    agent.go();
    let (problems, said) = setup.check();
    assert!(said.contains("can't be reached") && problems.is_empty(), "{said}\n{problems}");
    agent.come();
    setup.spiffe = Some("hint: internal".into());
    let (problems, _) = setup.check();
    assert!(problems.contains("listeners[0].tls.spiffe.hint: the SPIFFE agent issues no such SVID"), "{problems}");
}

#[test]
fn a_change_of_the_agent_waits_for_a_restart() {
    let node = Node::start();
    let (gateway, agent, identity) = running(&node);
    gateway.edit("agent.sock", "other.sock");
    let warnings = gateway.reload_ok()["warnings"].to_string();
    assert!(warnings.contains("change of the agent needs an upgrade or a restart"), "{warnings}");
    assert_eq!(shown(&gateway), serial(&identity.cert));
    let (issue, second) = Issue::new(GATEWAY, gateway.pki());
    agent.issue(issue);
    wait_shown(&gateway, &second);
}
