//! Drain and maintenance: what operators take out of service, and what brings it back.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::client::Connection;
use crate::support::gateway::{Gateway, Setup, runs};
use crate::support::node::Node;
use crate::support::redis::Redis;
use crate::support::wait_until;

const MAINTENANCE: &str = "hive_gateway_maintenance";
const DRAINED: &str = "hive_gateway_upstream_node_drained";

fn echo(gateway: &Gateway) -> crate::support::client::Response {
    gateway.client("alice").get(gateway.address, "/echo").unwrap()
}

#[track_caller]
fn done(gateway: &Gateway, method: &str, target: &str) -> Value {
    let answer = gateway.admin_ask(method, target);
    assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
    answer.json()["orders"].clone()
}

fn drain(node: SocketAddr) -> String {
    format!("/v1/drain?upstream=hive&node=http://{node}")
}

fn call(gateway: &Gateway, id: &str) -> crate::support::client::Response {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"message/send","params":{{}}}}"#);
    let head = format!(
        "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    gateway.connect("alice").exchange(head.as_bytes()).unwrap()
}

#[test]
fn a_drained_node_gets_no_new_requests_and_finishes_what_it_has() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = Setup::new(&[a.address, b.address]).start();
    let orders = done(&gateway, "POST", &drain(a.address));
    assert_eq!(orders[0]["kind"], "node");
    assert_eq!((&orders[0]["fleet"], &orders[0]["persistent"]), (&json!(false), &json!(false)));
    let before = a.count();
    for _ in 0..8 {
        assert_eq!(echo(&gateway).status, 200);
    }
    assert_eq!((a.count(), b.count()), (before, 8), "all went to the other one");
    let url = format!("http://{}", a.address);
    assert_eq!(gateway.metric(DRAINED, &[("node", &url)]), 1.0);
    let status = gateway.status();
    let node = &status["upstreams"][0]["nodes"][0];
    assert_eq!((&node["drained"], &node["health"]), (&json!(true), &json!("up")), "it is probed all the same");
    assert!(gateway.stderr().contains(&format!("node {url} is drained")), "{}", gateway.stderr());
    assert_eq!(done(&gateway, "DELETE", &drain(a.address)), json!([]));
    wait_until("the returned node has its share", || {
        echo(&gateway);
        a.count() > before
    });
    assert_eq!(gateway.metric(DRAINED, &[("node", &url)]), 0.0);
}

/// A node has two names, and an order that was given under one ends under the other.
#[test]
fn a_node_is_returned_by_its_other_name_too() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[a.address, b.address]);
    setup.server = "state_dir: state".into();
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    let gateway = setup.start();
    let by_address = format!("/v1/drain?upstream=hive&node={}", a.address);
    let url = format!("http://{}", a.address);
    for (first, second) in [(drain(a.address), &by_address), (by_address.clone(), &drain(a.address))] {
        done(&gateway, "POST", &format!("{first}&persist=true"));
        assert_eq!(gateway.metric(DRAINED, &[("node", &url)]), 1.0);
        assert_eq!(done(&gateway, "DELETE", second), json!([]));
        assert_eq!(gateway.metric(DRAINED, &[("node", &url)]), 0.0);
    }
    done(&gateway, "POST", &drain(a.address));
    done(&gateway, "POST", &by_address);
    done(&gateway, "POST", &drain(b.address));
    let answer = gateway.admin_ask("DELETE", &by_address).json();
    let ended: Vec<_> = answer["ended"].as_array().unwrap().iter().map(|order| order["node"].clone()).collect();
    assert!(ended.contains(&json!(url)) && ended.contains(&json!(a.address.to_string())), "{answer}");
    assert_eq!((ended.len(), answer["orders"].as_array().unwrap().len()), (2, 1), "the other node's stays: {answer}");
    assert_eq!(std::fs::read_to_string(gateway.dir().join("state/maintenance.json")).unwrap(), "{}");
    // What a reload has taken away can be returned as well.
    gateway.edit(&format!(", \"http://{}\"", b.address), "");
    gateway.reload_ok();
    assert_eq!(done(&gateway, "DELETE", &drain(b.address)), json!([]));
    assert_eq!(gateway.admin_ask("DELETE", &drain(b.address)).status, 404, "now nothing knows it");
}

#[test]
fn with_every_node_drained_requests_are_refused_and_the_gateway_is_not_ready() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = Setup::new(&[a.address, b.address]).start();
    // By address this time.
    done(&gateway, "POST", &format!("/v1/drain?upstream=hive&node={}", a.address));
    done(&gateway, "POST", &drain(b.address));
    let refused = echo(&gateway);
    assert_eq!((refused.status, refused.json()["error"].as_str()), (503, Some("no_healthy_upstream")));
    assert_eq!(a.count() + b.count(), 0, "no panic reaches a drained node");
    let ready = gateway.admin_get("/v1/ready").unwrap();
    assert_eq!((ready.status, &ready.json()["upstreams_drained"]), (503, &json!(["hive"])));
    assert_eq!(ready.json()["upstreams_down"], json!([]), "they are up");
    assert_eq!(gateway.status()["upstreams"][0]["ready"], false);
    done(&gateway, "DELETE", &drain(b.address));
    assert_eq!(gateway.admin_get("/v1/ready").unwrap().status, 200);
}

#[test]
fn a_route_in_maintenance_answers_in_its_own_form_and_nothing_reaches_a_node() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "maintenance: { retry_after: 90s, message: Back at noon., body: \"<p>Back at noon\" }".into();
    let gateway = setup.start();
    assert_eq!(call(&gateway, "1").status, 200);
    let before = node.count();
    done(&gateway, "POST", "/v1/maintenance?route=a2a");
    let refused = call(&gateway, "\"x-7\"");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("90")));
    assert_eq!(refused.header("content-type"), Some("application/json"));
    let error = json!({ "jsonrpc": "2.0", "id": "x-7", "error": { "code": -32603, "message": "Back at noon." } });
    assert_eq!(refused.json(), error);
    assert_eq!(echo(&gateway).status, 200, "other routes go on");
    assert_eq!(node.count(), before + 1);
    assert_eq!(gateway.metric(MAINTENANCE, &[("route", "a2a")]), 1.0);
    assert_eq!(gateway.metric(MAINTENANCE, &[("route", "echo")]), 0.0);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "maintenance")], 1.0);
    assert_eq!(gateway.wait_log(|l| l["refusal"] == "maintenance")["route"], "a2a");

    done(&gateway, "POST", "/v1/maintenance?route=a2a&retry_after=1001ms");
    assert_eq!(call(&gateway, "1").header("retry-after"), Some("2"), "never too early");
    done(&gateway, "POST", "/v1/maintenance?route=a2a");
    done(&gateway, "POST", "/v1/maintenance?retry_after=10m");
    let refused = echo(&gateway);
    assert_eq!(
        (refused.status, refused.header("retry-after"), refused.text().as_str()),
        (503, Some("600"), "<p>Back at noon")
    );
    assert_eq!(refused.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(call(&gateway, "2").header("retry-after"), Some("90"), "the route's own order comes first");
    assert_eq!(
        gateway.client("alice").get(gateway.address, "/none").unwrap().status,
        404,
        "nothing is published by it"
    );
    assert_eq!(gateway.client("alice").get(gateway.address, "/bob").unwrap().status, 403);
    assert_eq!(gateway.admin_get("/v1/ready").unwrap().status, 200);
    done(&gateway, "DELETE", "/v1/maintenance");
    done(&gateway, "DELETE", "/v1/maintenance?route=a2a");
    assert_eq!((call(&gateway, "3").status, echo(&gateway).status), (200, 200));
    let said = gateway.stderr();
    for line in ["route a2a: maintenance begins", "the gateway: maintenance begins", "the gateway: maintenance ends"] {
        assert!(said.contains(line), "{line} is missing:\n{said}");
    }
}

#[test]
fn the_small_json_body_is_the_default() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    done(&gateway, "POST", "/v1/maintenance");
    let refused = echo(&gateway);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("60")));
    let body = json!({ "error": "maintenance", "message": "Under maintenance. Try again later." });
    assert_eq!(refused.json(), body);
}

#[test]
fn running_requests_end_as_they_would_have() {
    let node = Node::start();
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    node.behave(move |_, exchange| {
        let _ = held.lock().unwrap().recv();
        exchange.answer(200, "", b"ok")
    });
    let gateway = Setup::new(&[node.address]).start();
    let (client, address) = (gateway.client("alice"), gateway.address);
    let running = std::thread::spawn(move || client.get(address, "/echo").unwrap().status);
    wait_until("the request is at the node", || node.count() == 1);
    done(&gateway, "POST", "/v1/maintenance");
    done(&gateway, "POST", &drain(node.address));
    drop(let_go);
    assert_eq!(running.join().unwrap(), 200);
}

#[test]
fn a_reload_keeps_what_is_out_of_service() {
    let (a, b) = (Node::start(), Node::start());
    let gateway = Setup::new(&[a.address, b.address]).start();
    done(&gateway, "POST", &drain(a.address));
    done(&gateway, "POST", "/v1/maintenance?route=bobs");
    // Another configuration of the upstream makes its nodes anew.
    gateway.edit("interval: 2s", "interval: 3s");
    gateway.reload_ok();
    for _ in 0..8 {
        assert_eq!(echo(&gateway).status, 200);
    }
    assert_eq!((a.count(), b.count()), (0, 8));
    assert_eq!(gateway.client("bob").get(gateway.address, "/bob").unwrap().status, 503);
    // An upstream that goes and comes back finds its node drained as before.
    let url = format!("http://{}", a.address);
    gateway.edit(&format!("\"{url}\", "), "");
    gateway.reload_ok();
    // Its series goes with the last that holds it.
    gateway.wait_metric(DRAINED, &[("node", &url)], 0.0);
    gateway.edit(&format!("\"http://{}\"", b.address), &format!("\"http://{}\", \"{url}\"", b.address));
    gateway.reload_ok();
    assert_eq!(gateway.metric(DRAINED, &[("node", &url)]), 1.0);
}

#[test]
fn what_was_asked_to_persist_outlives_a_restart_and_nothing_else_does() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[a.address, b.address]);
    setup.server = "state_dir: state".into();
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    let gateway = setup.start();
    done(&gateway, "POST", &format!("{}&persist=true", drain(a.address)));
    done(&gateway, "POST", "/v1/maintenance?route=a2a&retry_after=5m&persist=true");
    done(&gateway, "POST", "/v1/maintenance?route=echo");
    let gateway = gateway.stop().start();
    assert_eq!((echo(&gateway).status, a.count()), (200, 0));
    assert_eq!(call(&gateway, "1").header("retry-after"), Some("300"));
    done(&gateway, "DELETE", "/v1/maintenance?route=a2a");
    let orders = gateway.status()["orders"].clone();
    assert_eq!(orders.as_array().unwrap().len(), 1, "{orders}");
    assert_eq!(orders[0]["persistent"], true);
    let gateway = gateway.stop().start();
    assert_eq!(call(&gateway, "1").status, 200);
    // A file that somebody broke is told of, and does not keep the gateway down.
    std::fs::write(gateway.dir().join("state/maintenance.json"), "{").unwrap();
    let gateway = gateway.stop().start();
    assert!(gateway.stderr().contains("maintenance.json: "), "{}", gateway.stderr());
}

#[test]
fn an_upgrade_keeps_what_is_out_of_service_persisted_or_not() {
    let (a, b) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[a.address, b.address]);
    setup.server = "state_dir: state".into();
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    let gateway = setup.start();
    done(&gateway, "POST", &drain(a.address));
    done(&gateway, "POST", "/v1/maintenance?route=a2a&retry_after=5m");
    done(&gateway, "POST", "/v1/maintenance?route=bobs&persist=true");
    done(&gateway, "POST", "/v1/maintenance?route=echo&persist=true");
    // The new process has read the file, but is not ready yet, when something else is told to the old one.
    for node in [&a, &b] {
        node.set_health(503);
    }
    let old = gateway.upgrade_while(|| {
        wait_until("the new one has read the file", || gateway.stderr().matches("maintenance begins").count() == 3 + 2);
        done(&gateway, "DELETE", "/v1/maintenance?route=echo");
        for node in [&a, &b] {
            node.set_health(200);
        }
    });
    let orders = gateway.status()["orders"].clone();
    let of_a2a = orders.as_array().unwrap().iter().find(|o| o["route"] == "a2a").unwrap();
    assert_eq!((&of_a2a["persistent"], &of_a2a["fleet"]), (&json!(false), &json!(false)));
    wait_until("the old process ends", || !runs(old));
    assert_eq!(orders.as_array().unwrap().len(), 3, "{orders}");
    for _ in 0..4 {
        assert_eq!(echo(&gateway).status, 200);
    }
    assert_eq!((a.count(), b.count()), (0, 4));
    assert_eq!(call(&gateway, "1").header("retry-after"), Some("300"));
    // The new one is told in its turn, and knows what is kept.
    done(&gateway, "DELETE", &drain(a.address));
    assert_eq!(
        std::fs::read_to_string(gateway.dir().join("state/maintenance.json")).unwrap().matches("route/").count(),
        1
    );
    gateway.upgrade();
    assert_eq!(gateway.status()["orders"].as_array().unwrap().len(), 2);
}

#[test]
fn what_can_not_be_done_is_said() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    for (method, target, status, code) in [
        ("POST", "/v1/maintenance?route=a2b", 404, "unknown_route"),
        ("POST", "/v1/drain?upstream=hvie&node=x", 404, "unknown_upstream"),
        ("POST", "/v1/drain?upstream=hive&node=http://10.0.0.1:1", 404, "unknown_node"),
        ("POST", "/v1/drain?upstream=hive", 400, "bad_query"),
        ("POST", "/v1/maintenance?rout=a2a", 400, "bad_query"),
        ("POST", "/v1/maintenance?retry_after=0s", 400, "bad_query"),
        ("POST", "/v1/maintenance?retry_after=soon", 400, "bad_query"),
        ("POST", "/v1/maintenance?fleet=true&persist=true", 400, "bad_query"),
        ("POST", "/v1/maintenance?persist=true", 409, "no_state_dir"),
        ("POST", "/v1/maintenance?fleet=true", 409, "no_fleet"),
        ("DELETE", "/v1/maintenance?route=a2b", 404, "unknown_route"),
        ("DELETE", "/v1/drain?upstream=hvie&node=x", 404, "unknown_upstream"),
        ("DELETE", "/v1/drain?upstream=hive&node=http://10.0.0.1:1", 404, "unknown_node"),
        ("PUT", "/v1/maintenance", 405, "method_not_allowed"),
        ("GET", "/v1/maintenance", 405, "method_not_allowed"),
    ] {
        let answer = gateway.admin_ask(method, target);
        assert_eq!((answer.status, answer.json()["error"].as_str()), (status, Some(code)), "{method} {target}");
    }
    assert_eq!(done(&gateway, "DELETE", "/v1/maintenance?route=a2a"), json!([]), "it was in service");
    assert_eq!(echo(&gateway).status, 200);
}

fn of_fleet(redis: &Redis, node: &Node) -> Setup {
    let mut setup = Setup::new(&[node.address]);
    setup.top = format!("redis: {{ url: \"redis://{}\" }}\nmaintenance: {{ fleet: true }}", redis.address);
    setup
}

const BEGINS_WITH: &str = "this gateway begins with";

#[test]
fn a_gateway_serves_nobody_before_it_knows_the_fleet_s_orders() {
    let (redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node).start();
    done(&gateway, "POST", "/v1/maintenance?route=echo&fleet=true");
    let setup = gateway.stop();
    redis.signal(Signal::SIGSTOP);
    let gateway = setup.start_unready();
    wait_until("it waits", || gateway.admin_get("/v1/ready").unwrap().json()["upstreams_down"] == json!([]));
    let ready = gateway.admin_get("/v1/ready").unwrap();
    assert_eq!((ready.status, &ready.json()["fleet_orders_awaited"]), (503, &json!(true)));
    std::thread::scope(|scope| {
        // It is in the queue of the listener's socket, or still to come.
        let asked = scope.spawn(|| echo(&gateway).status);
        redis.signal(Signal::SIGCONT);
        assert_eq!(asked.join().unwrap(), 503);
    });
    wait_until("it is ready", || gateway.admin_get("/v1/ready").unwrap().status == 200);
    assert!(!gateway.stderr().contains(BEGINS_WITH), "{}", gateway.stderr());
    assert_eq!(node.count(), 0);
}

#[test]
fn a_reload_that_joins_the_fleet_comes_into_use_with_its_orders() {
    let (redis, node) = (Redis::start(), Node::start());
    let first = of_fleet(&redis, &node).start();
    done(&first, "POST", "/v1/maintenance?route=echo&fleet=true");
    let fleet = format!("redis: {{ url: \"redis://{}\" }}\nmaintenance: {{ fleet: true }}", redis.address);
    let mut alone = of_fleet(&redis, &node);
    alone.top = "# alone".into();
    let second = alone.start();
    // On a connection that there was before, at once.
    let ask = |client: &mut Connection| {
        client.send(b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        client.response(false).unwrap().status
    };
    for round in 0..5 {
        let mut client = second.connect("alice");
        assert_eq!(ask(&mut client), 200);
        second.edit("# alone", &fleet);
        second.reload_ok();
        assert_eq!(ask(&mut client), 503, "{round}");
        second.edit(&fleet, "# alone");
        second.reload_ok();
        wait_until("it is alone again", || echo(&second).status == 200);
    }
    let mut client = second.connect("alice");
    second.edit("# alone", &fleet);
    // Without Redis the reload waits no longer than it says.
    drop(redis);
    let begun = std::time::Instant::now();
    second.reload_ok();
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(ask(&mut client), 200);
}

#[test]
fn without_redis_a_gateway_begins_with_the_fleet_s_orders_that_it_knew_last() {
    let (mut redis, node) = (Redis::start(), Node::start());
    let mut setup = of_fleet(&redis, &node);
    setup.server = "state_dir: state".into();
    let file = setup.dir.path().join("state/maintenance-fleet.json");
    std::fs::create_dir(setup.dir.path().join("state")).unwrap();
    let gateway = setup.start();
    done(&gateway, "POST", "/v1/maintenance?route=echo&fleet=true&retry_after=7m");
    wait_until("it is kept", || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("route/echo")));
    redis.kill();
    let gateway = gateway.stop().start();
    wait_until("it is told", || gateway.stderr().contains(&format!("{BEGINS_WITH} 1 ")));
    assert_eq!(echo(&gateway).header("retry-after"), Some("420"));
    redis.restart();
    wait_until("the order is gone", || echo(&gateway).status == 200);
    wait_until("it is kept no more", || std::fs::read_to_string(&file).is_ok_and(|text| text == "{}"));
}

#[test]
fn an_upgrade_without_redis_keeps_the_fleet_s_orders() {
    let (mut redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node).start();
    done(&gateway, "POST", "/v1/maintenance?route=echo&fleet=true");
    redis.kill();
    let old = gateway.upgrade();
    wait_until("the old process ends", || !runs(old));
    assert_eq!(echo(&gateway).status, 503);
    wait_until("it is told", || gateway.stderr().contains(&format!("{BEGINS_WITH} 0 ")));
}

#[test]
fn a_broken_order_of_the_fleet_s_ends_none_and_holds_no_newer_one_back() {
    let (redis, node) = (Redis::start(), Node::start());
    let gateway = of_fleet(&redis, &node).start();
    done(&gateway, "POST", "/v1/maintenance?fleet=true");
    let key = redis.command("EVAL \"return redis.call('KEYS', '*maintenance*')[1]\" 0");
    assert_eq!(redis.command(&format!("HSET {key} gateway broken")), ":0");
    wait_until("it is told", || gateway.stderr().contains("field gateway: "));
    assert_eq!(echo(&gateway).status, 503);
    assert_eq!(redis.command(&format!("HSET {key} route/echo '{{\"since\":7,\"retry_after\":99}}'")), ":1");
    wait_until("the newer one is followed", || echo(&gateway).header("retry-after") == Some("99"));
    assert_eq!(gateway.stderr().matches("field gateway: ").count(), 1, "told once: {}", gateway.stderr());
    done(&gateway, "DELETE", "/v1/maintenance?route=echo&fleet=true");
    assert_eq!(echo(&gateway).status, 503, "the broken one is in force all the same");
    assert_eq!(done(&gateway, "DELETE", "/v1/maintenance?fleet=true"), json!([]));
    assert_eq!(echo(&gateway).status, 200);
}

#[test]
fn the_fleet_is_told_through_redis_and_stays_told_while_redis_is_gone() {
    let mut redis = Redis::start();
    let nodes = [Node::start(), Node::start()];
    let start = || {
        let mut setup = Setup::new(&[nodes[0].address, nodes[1].address]);
        setup.top = format!("redis: {{ url: \"redis://{}\" }}\nmaintenance: {{ fleet: true }}", redis.address);
        let gateway = setup.start();
        gateway.wait_metric("hive_gateway_redis_up", &[], 1.0);
        gateway
    };
    let (first, second) = (start(), start());
    done(&first, "POST", "/v1/maintenance?route=echo&fleet=true&retry_after=2m");
    assert_eq!(echo(&first).status, 503, "whoever is told follows at once");
    wait_until("the other gateway follows", || echo(&second).header("retry-after") == Some("120"));
    let by_address = format!("/v1/drain?upstream=hive&node={}&fleet=true", nodes[0].address);
    done(&second, "POST", &format!("{}&fleet=true", drain(nodes[0].address)));
    wait_until("the first follows too", || first.metric(DRAINED, &[]) == 1.0);
    done(&first, "DELETE", &by_address);
    wait_until("it is returned by its other name", || second.metric(DRAINED, &[]) == 0.0);
    done(&second, "POST", &format!("{}&fleet=true", drain(nodes[0].address)));
    wait_until("the first follows again", || first.metric(DRAINED, &[]) == 1.0);
    let orders = first.status()["orders"].clone();
    assert_eq!(orders.as_array().unwrap().len(), 2, "{orders}");
    assert!(orders.as_array().unwrap().iter().all(|o| o["fleet"] == true && o["persistent"] == true), "{orders}");

    let third = start();
    wait_until("a gateway that starts later knows it", || third.metric(MAINTENANCE, &[("route", "echo")]) == 1.0);
    redis.kill();
    for gateway in [&first, &second] {
        gateway.wait_metric("hive_gateway_redis_up", &[], 0.0);
        wait_until("it is told", || gateway.stderr().contains("those known last stay in force"));
        assert_eq!(echo(gateway).status, 503);
    }
    let refused = first.admin_ask("DELETE", "/v1/maintenance?route=echo&fleet=true");
    assert_eq!((refused.status, refused.json()["error"].as_str()), (503, Some("redis_unavailable")));
    // Redis comes back empty: nothing is out of service any more.
    redis.restart();
    for gateway in [&first, &second] {
        wait_until("the order is gone", || echo(gateway).status == 200);
    }
    assert_eq!(second.metric(DRAINED, &[]), 0.0);
}
