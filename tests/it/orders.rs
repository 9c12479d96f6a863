//! Orders of operators that outlive what they were given for: a node with another URL, a file that is damaged, a Redis that is
//! away.

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;

const DRAINED: &str = "hive_gateway_upstream_node_drained";

fn echo(gateway: &Gateway) -> u16 {
    gateway.client("alice").get(gateway.address, "/echo").unwrap().status
}

#[track_caller]
fn done(gateway: &Gateway, method: &str, target: &str) -> Value {
    let answer = gateway.admin_ask(method, target);
    assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
    answer.json()
}

fn with_state(mut setup: Setup) -> Setup {
    setup.server = "state_dir: state".into();
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    setup
}

#[test]
fn a_node_that_gets_another_url_stays_drained_and_is_returned_under_either() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = with_state(Setup::new(&[a.address, b.address])).start();
    let (old, new) = (format!("http://{}", a.address), format!("http://localhost:{}", a.address.port()));
    let drain = |name: &str| format!("/v1/drain?upstream=hive&node={name}");
    let address = a.address.to_string();
    for (round, name) in [&new, &old, &address].into_iter().enumerate() {
        let orders = done(&gateway, "POST", &format!("{}&persist=true", drain(&old)))["orders"].clone();
        assert_eq!(orders[0]["nodes"], json!([old]));
        gateway.edit(&old, &new);
        assert_eq!(gateway.reload_ok()["warnings"], json!([]), "it has effect");
        assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
        assert_eq!(gateway.status()["orders"][0]["nodes"], json!([new]));
        let before = a.count();
        for _ in 0..6 {
            assert_eq!(echo(&gateway), 200);
        }
        assert_eq!(a.count(), before, "{round}: it gets nothing");
        let ended = done(&gateway, "DELETE", &drain(name));
        assert_eq!((&ended["ended"][0]["node"], &ended["orders"]), (&json!(old), &json!([])), "{name}");
        assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 0.0);
        gateway.edit(&new, &old);
        gateway.reload_ok();
    }
    // Also if the process was not there when it got the other one.
    done(&gateway, "POST", &format!("{}&persist=true", drain(&old)));
    let mut setup = gateway.stop();
    setup.upstreams = setup.upstreams.replace(&old, &new);
    let gateway = setup.start();
    assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
    assert_eq!(done(&gateway, "DELETE", &drain(&new))["orders"], json!([]));
}

#[test]
fn an_order_that_a_reload_leaves_without_effect_is_told() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = with_state(Setup::new(&[a.address, b.address])).start();
    let url = format!("http://{}", a.address);
    done(&gateway, "POST", &format!("/v1/drain?upstream=hive&node={url}&persist=true"));
    done(&gateway, "POST", "/v1/maintenance?route=bobs");
    gateway.edit(&format!("\"{url}\", "), "");
    let warnings = gateway.reload_ok()["warnings"].clone();
    let said = warnings[0].as_str().unwrap();
    assert!(said.starts_with(&format!("upstream hive: node {url}: its drain has no effect: ")), "{warnings}");
    assert_eq!(warnings.as_array().unwrap().len(), 1, "{warnings}");
    assert_eq!(gateway.status()["orders"][1]["nodes"], json!([]));
    assert!(gateway.stderr().contains(said));
    gateway.edit("name: bobs", "name: bobby");
    let warnings = gateway.reload_ok()["warnings"].clone();
    assert!(warnings[0].as_str().unwrap().starts_with("route bobs: its maintenance has no effect: "), "{warnings}");
    assert_eq!(warnings.as_array().unwrap().len(), 2, "as long as they stand: {warnings}");
    // By where it was, too.
    assert_eq!(
        done(&gateway, "DELETE", &format!("/v1/drain?upstream=hive&node={}", a.address))["ended"][0]["node"],
        json!(url)
    );
    done(&gateway, "DELETE", "/v1/maintenance?route=bobs");
    assert_eq!(gateway.reload_ok()["warnings"], json!([]));
}

#[test]
fn a_drain_that_an_older_version_kept_learns_where_its_node_is() {
    let (a, b) = (Node::start(), Node::start());
    let setup = with_state(Setup::new(&[a.address, b.address]));
    let (old, new) = (format!("http://{}", a.address), format!("http://localhost:{}", a.address.port()));
    let kept = json!({ format!("node/hive/{old}"): { "since": 7 } });
    std::fs::write(setup.dir.path().join("state/maintenance.json"), kept.to_string()).unwrap();
    let gateway = setup.start();
    assert_eq!(gateway.metric(DRAINED, &[("node", &old)]), 1.0);
    gateway.edit(&old, &new);
    gateway.reload_ok();
    assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
}
