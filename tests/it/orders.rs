//! Orders of operators that outlive what they were given for: a node with another URL, a file that is damaged, a Redis that is
//! away.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::redis::Redis;
use crate::support::wait_until;

const UNREADABLE: &str = "hive_gateway_maintenance_orders_unreadable";
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
    wait_until("it is logged", || gateway.stderr().contains(said));
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
    // It is written down by then: the process may not be there when the node gets another URL.
    let mut setup = gateway.stop();
    setup.upstreams = setup.upstreams.replace(&old, &new);
    let gateway = setup.start();
    assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
}

#[test]
fn where_a_reload_finds_a_drained_node_outlives_a_restart() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = with_state(Setup::new(&[a.address, b.address]));
    let (old, new) = (format!("http://{}", a.address), format!("http://localhost:{}", a.address.port()));
    let file = setup.dir.path().join("state/maintenance.json");
    let kept = json!({ format!("node/hive/{old}"): { "since": 7 } });
    std::fs::write(&file, kept.to_string()).unwrap();
    setup.upstreams = setup.upstreams.replace(&format!("\"{old}\", "), "");
    let gateway = setup.start();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), kept.to_string());
    let left = format!("\"http://{}\"", b.address);
    gateway.edit(&left, &format!("\"{old}\", {left}"));
    gateway.reload_ok();
    let mut setup = gateway.stop();
    setup.upstreams = setup.upstreams.replace(&left, &format!("\"{new}\", {left}"));
    let gateway = setup.start();
    assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
}

#[test]
fn a_drain_of_the_fleet_s_that_an_older_version_gave_stays_with_its_node() {
    let (redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node);
    let (old, new) = (format!("http://{}", node.address), format!("http://localhost:{}", node.address.port()));
    done(&gateway, "POST", "/v1/maintenance?route=a2a&fleet=true");
    let (key, field) = (key(&redis), format!("node/hive/{old}"));
    redis.command(&format!("HSET {key} {field} \"{{\\\"since\\\":7}}\""));
    gateway.wait_metric(DRAINED, &[("node", &old)], 1.0);
    gateway.edit(&old, &new);
    gateway.reload_ok();
    assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
    // Also when Redis, which still has it without a place, has been read again.
    redis.command(&format!("HDEL {key} route/a2a"));
    gateway.wait_metric("hive_gateway_maintenance", &[("route", "a2a")], 0.0);
    assert_eq!(gateway.metric(DRAINED, &[("node", &new)]), 1.0);
    assert!(!redis.command(&format!("HGET {key} {field}")).contains("addresses"));
}

#[test]
fn a_node_is_named_by_its_address_in_ipv6_form_too() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = Setup::new(&[a.address, b.address]).start();
    let drain = format!("/v1/drain?upstream=hive&node=[::ffff:127.0.0.1]:{}", a.address.port());
    done(&gateway, "POST", &drain);
    assert_eq!(gateway.metric(DRAINED, &[("node", &format!("http://{}", a.address))]), 1.0);
    done(&gateway, "DELETE", &format!("/v1/drain?upstream=hive&node={}", a.address));
    assert_eq!(gateway.status()["orders"], json!([]));
}

#[test]
fn an_order_that_can_not_be_read_keeps_no_other_back_and_nothing_of_it_is_lost() {
    let node = Node::start();
    let setup = with_state(Setup::new(&[node.address]));
    let state = |dir: &Path, name: &str| std::fs::read_to_string(dir.join("state").join(name)).ok();
    let own = [("scope", "own")];
    let mixed = r#"{"route/echo":{"since":1},"gateway":{"since":"x"},"peer/paris":{"since":1}}"#;
    std::fs::write(setup.dir.path().join("state/maintenance.json"), mixed).unwrap();
    let mut gateway = setup.start();
    for _ in 0..2 {
        assert_eq!((echo(&gateway), gateway.metric(UNREADABLE, &own)), (503, 1.0));
        let told = gateway.status()["orders_unreadable"].to_string();
        assert!(["gateway", "peer/paris"].iter().all(|name| told.contains(name)), "{told}");
        assert_eq!(state(gateway.dir(), "maintenance.json.damaged").as_deref(), Some(mixed));
        assert_eq!(state(gateway.dir(), "maintenance.json").as_deref(), Some(r#"{"route/echo":{"since":1}}"#));
        assert_eq!(state(gateway.dir(), "maintenance.json.damaged.2"), None);
        gateway = gateway.stop().start();
    }
    // Another damage leaves what was put aside before alone.
    std::fs::write(gateway.dir().join("state/maintenance.json"), "garbage").unwrap();
    let gateway = gateway.stop().start();
    assert_eq!((echo(&gateway), gateway.metric(UNREADABLE, &own)), (200, 2.0));
    // A process that takes over has the orders in force from the one before.
    done(&gateway, "POST", "/v1/maintenance?route=echo&persist=true");
    std::fs::write(gateway.dir().join("state/maintenance.json"), "more").unwrap();
    gateway.upgrade();
    gateway.wait_metric(UNREADABLE, &own, 3.0);
    assert_eq!(echo(&gateway), 503);
    assert!(state(gateway.dir(), "maintenance.json").is_some_and(|kept| kept.contains("route/echo")));
    for (name, text, left) in [("", mixed, 2.0), (".3", "more", 1.0), (".2", "garbage", 0.0)] {
        let name = format!("maintenance.json.damaged{name}");
        assert_eq!(state(gateway.dir(), &name).as_deref(), Some(text));
        std::fs::remove_file(gateway.dir().join("state").join(name)).unwrap();
        gateway.wait_metric(UNREADABLE, &own, left);
    }
}

/// The file's orders are not in force, and whoever looks at the gateway must see that.
#[test]
fn a_damaged_file_is_put_aside_and_told_of_until_it_is_gone() {
    let node = Node::start();
    let setup = with_state(Setup::new(&[node.address]));
    let state = |dir: &Path, name: &str| std::fs::read_to_string(dir.join("state").join(name));
    std::fs::write(setup.dir.path().join("state/maintenance.json"), r#"{"route/ec"#).unwrap();
    let gateway = setup.start();
    let told = |gateway: &Gateway| {
        let unreadable = gateway.status()["orders_unreadable"].clone();
        assert!(unreadable[0].as_str().is_some_and(|why| why.contains("maintenance.json.damaged")), "{unreadable}");
        assert_eq!(gateway.metric(UNREADABLE, &[("scope", "own")]), 1.0);
    };
    told(&gateway);
    wait_until("it is told", || gateway.stderr().contains("maintenance.json: "));
    assert_eq!(echo(&gateway), 200, "it does not keep the gateway down");
    done(&gateway, "POST", "/v1/maintenance?route=a2a&persist=true");
    assert!(state(gateway.dir(), "maintenance.json").unwrap().contains("route/a2a"));
    assert_eq!(state(gateway.dir(), "maintenance.json.damaged").unwrap(), r#"{"route/ec"#);
    let gateway = gateway.stop().start();
    told(&gateway);
    assert_eq!(gateway.status()["orders"].as_array().unwrap().len(), 1);
    std::fs::remove_file(gateway.dir().join("state/maintenance.json.damaged")).unwrap();
    gateway.wait_metric(UNREADABLE, &[("scope", "own")], 0.0);
    assert_eq!(gateway.status()["orders_unreadable"], json!([]));
}

fn fleet(redis: &Redis) -> String {
    format!("redis: {{ url: \"redis://{}\", timeout: 500ms }}\nmaintenance: {{ fleet: true }}", redis.address)
}

fn of_fleet(redis: &Redis, node: &Node) -> Gateway {
    let mut setup = Setup::new(&[node.address]);
    setup.top = fleet(redis);
    let gateway = setup.start();
    gateway.wait_metric("hive_gateway_redis_up", &[], 1.0);
    gateway
}

fn key(redis: &Redis) -> String {
    redis.command("EVAL \"return redis.call('KEYS', '*maintenance*')[1]\" 0")
}

#[test]
fn an_order_of_the_fleet_s_that_can_not_be_read_is_shown_as_long_as_it_stands() {
    let (mut redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node);
    done(&gateway, "POST", "/v1/maintenance?route=a2a&fleet=true");
    let key = key(&redis);
    assert_eq!(gateway.metric(UNREADABLE, &[("scope", "fleet")]), 0.0);
    redis.command(&format!("HSET {key} route/echo broken"));
    redis.command(&format!("HSET {key} route/a2a broken"));
    redis.command(&format!("HSET {key} peer/paris later"));
    gateway.wait_metric(UNREADABLE, &[("scope", "fleet")], 3.0);
    let shown = gateway.status()["orders_unreadable"].to_string();
    assert!(shown.contains("field route/echo: ") && shown.contains("it is not in force here"), "{shown}");
    assert!(shown.contains("field route/a2a: ") && shown.contains("it stays in force as it was known"), "{shown}");
    assert!(shown.contains("nothing that this version knows") && shown.contains("peer/paris"), "{shown}");
    redis.command(&format!("HDEL {key} route/echo route/a2a peer/paris"));
    gateway.wait_metric(UNREADABLE, &[("scope", "fleet")], 0.0);
    assert_eq!(gateway.status()["orders_unreadable"], json!([]));
    redis.kill();
    gateway.wait_metric(UNREADABLE, &[("scope", "fleet")], 1.0);
    redis.restart();
    gateway.wait_metric(UNREADABLE, &[("scope", "fleet")], 0.0);
}

#[test]
fn the_end_of_all_orders_of_the_fleet_s_at_once_is_told() {
    let (redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node);
    done(&gateway, "POST", "/v1/maintenance?route=echo&fleet=true");
    done(&gateway, "POST", "/v1/maintenance?route=a2a&fleet=true");
    assert_eq!(echo(&gateway), 503);
    let key = key(&redis);
    assert_eq!(redis.command(&format!("DEL {key}")), ":1");
    let line = format!("all 2 orders of the fleet's end at once: Redis has no {key} any more");
    wait_until("it is told", || gateway.stderr().contains(&line));
    wait_until("they end", || echo(&gateway) == 200);
    // What an operator ends is no news.
    done(&gateway, "POST", "/v1/maintenance?route=echo&fleet=true");
    done(&gateway, "DELETE", "/v1/maintenance?route=echo&fleet=true");
    wait_until("that is told", || gateway.stderr().matches("route echo: maintenance ends").count() == 2);
    assert_eq!(gateway.stderr().matches("at once").count(), 1, "{}", gateway.stderr());
}

#[test]
fn a_reload_that_leaves_or_joins_the_fleet_says_what_is_so() {
    let (mut redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node);
    let fleet = fleet(&redis);
    done(&gateway, "POST", "/v1/maintenance?route=echo&fleet=true");
    let key = key(&redis);
    redis.kill();
    let stays = "those known last stay in force";
    wait_until("Redis is missed", || gateway.stderr().contains(stays));
    assert_eq!((echo(&gateway), gateway.metric(UNREADABLE, &[("scope", "fleet")])), (503, 1.0));
    // It leaves: the order ends with the reload, and nothing is missed any more.
    gateway.edit(&fleet, "# alone");
    assert_eq!(gateway.reload_ok()["warnings"], json!([]));
    assert_eq!(echo(&gateway), 200);
    let status = gateway.status();
    assert_eq!((&status["orders"], &status["orders_unreadable"]), (&json!([]), &json!([])));
    // It joins, and can't know.
    gateway.edit("# alone", &fleet);
    let warnings = gateway.reload_ok()["warnings"].clone();
    assert!(warnings[0].as_str().is_some_and(|why| why.ends_with("joins it without any")), "{warnings}");
    assert_eq!((echo(&gateway), gateway.metric(UNREADABLE, &[("scope", "fleet")])), (200, 1.0));
    assert_eq!(gateway.stderr().matches(stays).count(), 1, "none is known: {}", gateway.stderr());
    redis.restart();
    gateway.wait_metric(UNREADABLE, &[("scope", "fleet")], 0.0);
    wait_until("that is told", || gateway.stderr().contains("the fleet's orders are known again"));
    // One that stands there and can't be read.
    gateway.edit(&fleet, "# alone");
    gateway.reload_ok();
    redis.command(&format!("HSET {key} route/echo broken"));
    gateway.edit("# alone", &fleet);
    let warnings = gateway.reload_ok()["warnings"].clone();
    assert!(warnings[0].as_str().is_some_and(|why| why.ends_with("it is not in force here")), "{warnings}");
}
