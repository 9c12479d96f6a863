//! Limits that two gateways share through a real Redis, and what they do when it is gone.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::certs::{self, server_leaf};
use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::redis::Redis;
use crate::support::{TempDir, wait_until};

const UP: &str = "hive_gateway_redis_up";
const FALLBACKS: &str = "hive_gateway_redis_fallbacks_total";
const GET: &[u8] = b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n";

fn setup(node: &Node, redis: &str, limit: &str) -> Setup {
    let mut setup = Setup::new(&[node.address]);
    setup.top = format!("redis: {{ {redis} }}");
    setup.limits = "requests_per_connection: 100000000".into();
    setup.routes = format!(
        "
  - {{ name: echo, paths: [/echo], methods: [GET], peers: any, upstream: hive, rate_limits: [ {{ shared: true, {limit} }} ] }}
  - {{ name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: [alice, bob], upstream: hive, json_rpc: {{}},
      rate_limits: [ {{ per: method, rate: 1/h, shared: true }} ] }}
"
    );
    setup
}

/// Two gateways before one node, connected to Redis.
fn fleet(redis: &str, limit: &str) -> ([Gateway; 2], Node) {
    let node = Node::start();
    let gateways = [(); 2].map(|()| setup(&node, redis, limit).start());
    gateways.iter().for_each(|g| g.wait_metric(UP, &[], 1.0));
    (gateways, node)
}

fn url(redis: &Redis) -> String {
    // Patience for a busy machine; how short it can be is what another test is about.
    format!("url: \"redis://{}\", timeout: 500ms", redis.address)
}

/// What a load came to.
#[derive(Debug, Default)]
struct Load {
    admitted: u32,
    refused: u32,
    slowest: Duration,
    took: Duration,
    /// From an answer that came after the first decision to a question that was asked before the last refusal's: in this time
    /// the limit was used up, however often the machine had something else to do.
    surely: Duration,
}

/// Asks as fast as can be, on two connections to each gateway, until `stop`.
fn load(gateways: &[Gateway], stop: impl FnOnce()) -> Load {
    let (ending, admitted, refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let mut connections: Vec<_> = gateways.iter().flat_map(|g| [g.connect("alice"), g.connect("alice")]).collect();
    let began = Instant::now();
    let told: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = connections
            .iter_mut()
            .map(|connection| {
                scope.spawn(|| {
                    let mut slowest = Duration::ZERO;
                    let (mut first, mut last) = (None, None);
                    while !ending.load(Ordering::Relaxed) {
                        let asked = Instant::now();
                        match connection.exchange(GET).unwrap().status {
                            200 => admitted.fetch_add(1, Ordering::Relaxed),
                            429 => {
                                last = Some(asked);
                                refused.fetch_add(1, Ordering::Relaxed)
                            }
                            other => panic!("{other}"),
                        };
                        first.get_or_insert_with(Instant::now);
                        slowest = slowest.max(asked.elapsed());
                    }
                    (slowest, first, last)
                })
            })
            .collect();
        stop();
        ending.store(true, Ordering::Relaxed);
        workers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    let slowest = told.iter().map(|(slowest, ..)| *slowest).max().unwrap();
    let (first, last) = (told.iter().filter_map(|t| t.1).min(), told.iter().filter_map(|t| t.2).max());
    let surely = first.zip(last).map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(first));
    let (admitted, refused) = (admitted.into_inner(), refused.into_inner());
    Load { admitted, refused, slowest, took: began.elapsed(), surely }
}

#[test]
fn two_gateways_together_admit_the_rate() {
    let redis = Redis::start();
    // A burst of a second: nothing is lost while the machine has something else to do for less than that.
    let (gateways, _node) = fleet(&url(&redis), "per: peer, rate: 200/s, burst: 200");
    // How long they are asked is what the test is about.
    let load = load(&gateways, || std::thread::sleep(Duration::from_secs(4)));
    let within = |time: Duration| 200.0 + 200.0 * time.as_secs_f64();
    let (allowed, admitted) = (within(load.took), f64::from(load.admitted));
    assert!(admitted <= allowed * 1.02, "{admitted} were admitted of {allowed}: {load:?}");
    assert!(admitted >= within(load.surely) * 0.98, "only {admitted} were admitted: {load:?}");
    assert!(load.refused > load.admitted, "{load:?}");
    let asked = redis.decisions();
    // Each gateway asks about as often as it would admit by itself, and now and then a moment too early.
    assert!(asked as f64 <= 4.0 * allowed, "{asked} decisions reached Redis: {load:?}");
    gateways.iter().for_each(|g| g.wait_metric(FALLBACKS, &[], 0.0));
}

#[test]
fn a_key_that_is_over_its_limit_does_not_reach_redis() {
    let redis = Redis::start();
    let ([one, other], _node) = fleet(&url(&redis), "per: peer, rate: 2/h");
    let get = |g: &Gateway| g.client("alice").get(g.address, "/echo").unwrap();
    assert_eq!((get(&one).status, get(&other).status), (200, 200));
    for _ in 0..20 {
        for gateway in [&one, &other] {
            let refused = get(gateway);
            assert_eq!((refused.status, refused.header("x-ratelimit-remaining")), (429, Some("0")));
            let after: u32 = refused.header("retry-after").unwrap().parse().unwrap();
            assert!((1700..=1800).contains(&after), "{after}");
        }
    }
    // The first gateway asked once more: it could not know of the other's call.
    assert!(redis.decisions() <= 3, "{}", redis.decisions());
    assert!(one.metric("hive_gateway_redis_seconds_count", &[]) >= 1.0);
    assert_eq!(other.client("bob").get(other.address, "/echo").unwrap().status, 200);
}

#[test]
fn without_redis_no_request_fails_or_waits_and_with_it_limits_are_shared_again() {
    let mut redis = Redis::start();
    let (gateways, _node) =
        fleet(&format!("url: \"redis://{}\", timeout: 50ms", redis.address), "per: peer, rate: 100000/s");
    let before = redis.decisions();
    let load = load(&gateways, || {
        wait_until("Redis decides", || redis.decisions() > before + 100);
        redis.kill();
        gateways.iter().for_each(|g| g.wait_metric(UP, &[], 0.0));
        for gateway in &gateways {
            wait_until("the gateway decides by itself", || gateway.metric(FALLBACKS, &[("reason", "down")]) > 100.0);
        }
        redis.restart();
        gateways.iter().for_each(|g| g.wait_metric(UP, &[], 1.0));
        wait_until("Redis decides again", || redis.decisions() > 100);
    });
    assert_eq!(load.refused, 0);
    // The deadline, and what a busy machine takes.
    assert!(load.slowest < Duration::from_millis(50 + 400), "{load:?}");
    for gateway in &gateways {
        let said = gateway.stderr();
        assert_eq!(said.matches("until it is back, this gateway counts").count(), 1, "{said}");
        assert_eq!(said.matches("rate limits are shared").count(), 2, "{said}");
    }
}

#[test]
fn a_redis_that_hangs_costs_no_more_than_the_deadline() {
    let redis = Redis::start();
    let (gateways, _node) =
        fleet(&format!("url: \"redis://{}\", timeout: 50ms", redis.address), "per: peer, rate: 100000/s");
    let load = load(&gateways, || {
        wait_until("Redis decides", || redis.decisions() > 100);
        redis.signal(Signal::SIGSTOP);
        gateways.iter().for_each(|g| g.wait_metric(UP, &[], 0.0));
        redis.signal(Signal::SIGCONT);
        gateways.iter().for_each(|g| g.wait_metric(UP, &[], 1.0));
    });
    assert_eq!(load.refused, 0);
    assert!(load.slowest < Duration::from_millis(50 + 400), "{load:?}");
    for gateway in &gateways {
        assert!(gateway.metric(FALLBACKS, &[]) >= 1.0);
    }
}

#[test]
fn without_redis_each_gateway_holds_the_limit_by_itself() {
    let node = Node::start();
    // Port 1 answers nobody.
    let gateway = setup(&node, "url: \"redis://127.0.0.1:1\"", "per: peer, rate: 2/h").start();
    let status = || gateway.client("alice").get(gateway.address, "/echo").unwrap().status;
    assert_eq!((status(), status(), status()), (200, 200, 429));
    gateway.wait_metric(FALLBACKS, &[("reason", "down")], 2.0);
}

#[test]
fn a_reload_goes_to_another_redis() {
    let (first, second) = (Redis::start(), Redis::start());
    let ([gateway, _other], _node) = fleet(&url(&first), "per: peer, rate: 1000/s");
    let get = || assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 200);
    get();
    // Its second connection may be just beginning.
    wait_until("the first Redis has decided", || first.decisions() == 1);
    gateway.edit(&first.address.to_string(), &second.address.to_string());
    gateway.reload_ok();
    wait_until("the other Redis decides", || {
        get();
        second.decisions() > 0
    });
    let before = first.decisions();
    get();
    assert_eq!(first.decisions(), before);
    // The other gateway's two connections, and the one that asks.
    wait_until("the first Redis is left", || first.command("INFO clients").contains("connected_clients:3\r"));
}

#[test]
fn a_script_that_redis_forgot_is_loaded_again() {
    let redis = Redis::start();
    let ([gateway, _other], _node) = fleet(&url(&redis), "per: peer, rate: 1000/s");
    assert_eq!(redis.command("SCRIPT FLUSH"), "+OK");
    let get = || assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 200);
    get();
    gateway.wait_metric(FALLBACKS, &[("reason", "error")], 1.0);
    wait_until("the script is there again", || {
        let before = gateway.metric(FALLBACKS, &[]);
        get();
        gateway.metric(FALLBACKS, &[]) == before
    });
}

#[test]
fn redis_is_reached_over_tls_by_a_user_with_a_password() {
    let node = Node::start();
    let mut gateway = setup(&node, "", "per: peer, rate: 1/h");
    let dir = TempDir::new();
    certs::write(&gateway.pki.leaf(&server_leaf(&["localhost"])), dir.path(), "redis");
    gateway.pki.write_root(dir.path(), "ca");
    gateway.pki.write_root(gateway.dir.path(), "redis-ca");
    let redis = Redis::start_with(
        "port 0\ntls-port PORT\ntls-cert-file redis.pem\ntls-key-file redis.key\ntls-ca-cert-file ca.pem\n\
         tls-auth-clients no\nuser default off\n\
         user gate on >p@ss ~hive:gw:* +evalsha +script +select +time +get +set\n",
        dir,
    );
    std::fs::write(gateway.dir.path().join("redis-password"), "p@ss\n").unwrap();
    let port = redis.address.port();
    gateway.top = format!(
        "redis: {{ url: \"rediss://gate@localhost:{port}/0\", password_file: redis-password, ca: redis-ca.pem, timeout: 500ms }}"
    );
    let gateway = gateway.start();
    gateway.wait_metric(UP, &[], 1.0);
    let status = || gateway.client("alice").get(gateway.address, "/echo").unwrap().status;
    assert_eq!((status(), status()), (200, 429));
    gateway.wait_metric("hive_gateway_redis_seconds_count", &[], 1.0);
    gateway.wait_metric(FALLBACKS, &[], 0.0);
}

#[test]
fn the_keys_of_a_cluster_go_to_the_nodes_that_have_them() {
    let nodes = Redis::start_cluster();
    let redis = format!("url: \"redis-cluster://{}\", timeout: 500ms", nodes[0].address);
    let node = Node::start();
    let gateways = [(); 2].map(|()| setup(&node, &redis, "per: peer, rate: 1/h").start());
    gateways.iter().for_each(|g| g.wait_metric(UP, &[], 1.0));
    let call = |gateway: &Gateway, method: &str| {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method }).to_string();
        let head = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        gateway.connect("alice").exchange(request.as_bytes()).unwrap().status
    };
    wait_until("the connections to both nodes are up", || {
        let before = gateways.iter().map(|g| g.metric(FALLBACKS, &[])).sum::<f64>();
        gateways.iter().for_each(|g| (0..8).for_each(|n| _ = call(g, &format!("warm/{n}/{before}"))));
        gateways.iter().map(|g| g.metric(FALLBACKS, &[])).sum::<f64>() == before
    });
    for n in 0..16 {
        let method = format!("tasks/{n}");
        assert_eq!((call(&gateways[0], &method), call(&gateways[1], &method)), (200, 429), "{method}");
    }
    assert!(nodes.iter().all(|n| n.decisions() > 0));
}

#[test]
fn a_dead_node_of_a_cluster_is_told_by_name_and_by_the_metric() {
    let mut nodes = Redis::start_cluster();
    let redis = format!("url: \"redis-cluster://{}\", timeout: 500ms", nodes[0].address);
    let node = Node::start();
    let gateway = setup(&node, &redis, "per: peer, rate: 1/h").start();
    gateway.wait_metric(UP, &[], 1.0);
    nodes[1].kill();
    gateway.wait_metric(UP, &[], 0.0);
    let said = format!("redis: {}: ", nodes[1].address);
    wait_until("the node is named", || {
        gateway.stderr().lines().any(|l| l.contains(&said) && l.contains("counts its keys by itself"))
    });
    nodes[1].restart();
    gateway.wait_metric(UP, &[], 1.0);
}

#[test]
fn why_no_node_of_a_cluster_tells_its_slots_is_said() {
    let nodes = Redis::start_cluster();
    let redis = format!("url: \"redis-cluster://nobody:wrong@{}\", timeout: 500ms", nodes[0].address);
    let node = Node::start();
    let gateway = setup(&node, &redis, "per: peer, rate: 1/h").start();
    wait_until("the reason is named", || {
        gateway.stderr().lines().any(|l| l.contains("tells its slots") && l.contains("WRONGPASS"))
    });
}

#[test]
fn a_redis_that_can_not_write_is_down_and_up_again_when_it_can() {
    let redis = Redis::start();
    let node = Node::start();
    let gateway = setup(&node, &url(&redis), "per: peer, rate: 1000/s, burst: 1000").start();
    gateway.wait_metric(UP, &[], 1.0);
    for (breaks, mends, word) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"),
    ] {
        redis.command(breaks);
        let mut connection = gateway.connect("alice");
        wait_until("Redis counts as down", || {
            assert_eq!(connection.exchange(GET).unwrap().status, 200, "the gateway decides by itself");
            gateway.metric(UP, &[]) == 0.0
        });
        wait_until("the log says why", || gateway.stderr().contains(&format!("{word} ")));
        redis.command(mends);
        gateway.wait_metric(UP, &[], 1.0);
        let before = redis.decisions();
        assert_eq!(connection.exchange(GET).unwrap().status, 200);
        assert!(redis.decisions() > before, "shared again");
    }
}

#[test]
fn what_redis_can_not_have_counted_is_cut_to_a_full_bucket_or_forgotten() {
    let redis = Redis::start();
    let ([one, other], _node) = fleet(&url(&redis), "per: peer, rate: 2/s, burst: 2");
    let status = |g: &Gateway, who: &str| g.client(who).get(g.address, "/echo").unwrap().status;
    let key_of = |who: &str| {
        let mut key = String::new();
        wait_until("Redis has the key", || {
            assert_eq!(redis.command("FLUSHALL"), "+OK");
            assert!([200, 429].contains(&status(&one, who)));
            key = redis.command("RANDOMKEY");
            key.contains("route/echo/peer:")
        });
        key
    };
    // As a clock that ran ahead leaves it; and the clock of the Redis that took its place.
    let key = key_of("alice");
    for ahead in ["99999999999999999999", "inf"] {
        assert_eq!(redis.command(&format!("SET {key} {ahead}")), "+OK");
        wait_until("the bucket drains", || status(&other, "alice") == 200);
    }
    let key = key_of("bob");
    for odd in ["nan", "hello"] {
        assert_eq!(redis.command(&format!("SET {key} {odd}")), "+OK");
        wait_until("the limit goes on", || status(&other, "bob") == 200);
        assert_eq!(other.metric(FALLBACKS, &[]), 0.0, "{odd}");
        assert!(redis.command(&format!("GET {key}")).starts_with("1"), "{odd}");
    }
    // What no script can read is this one key's affair.
    redis.command(&format!("DEL {key}"));
    redis.command(&format!("LPUSH {key} x"));
    wait_until("Redis has errors for this key", || {
        assert!([200, 429].contains(&status(&other, "bob")));
        other.metric(FALLBACKS, &[("reason", "error")]) >= 3.0
    });
    assert_eq!(other.metric(UP, &[]), 1.0);
    assert!(!other.stderr().contains("until it is back"), "{}", other.stderr());
}

#[test]
fn a_redis_that_lets_the_script_do_nothing_counts_as_down() {
    let commands = ["evalsha", "time", "get", "set", "script"];
    let user = format!("user gate on >pass ~hive:gw:* +{}\n", commands.join(" +"));
    let redis = Redis::start_with(&user, TempDir::new());
    let node = Node::start();
    let url = format!("url: \"redis://gate:pass@{}\", timeout: 500ms", redis.address);
    let gateway = setup(&node, &url, "per: peer, rate: 1000/s, burst: 1000").start();
    gateway.wait_metric(UP, &[], 1.0);
    let mut connection = gateway.connect("alice");
    for (times, command) in commands[..4].iter().enumerate() {
        assert_eq!(redis.command(&format!("ACL SETUSER gate -{command}")), "+OK");
        wait_until("Redis counts as down", || {
            assert_eq!(connection.exchange(GET).unwrap().status, 200, "the gateway decides by itself");
            gateway.metric(UP, &[]) == 0.0
        });
        let why = || gateway.stderr().matches("until it is back").count() == times + 1;
        wait_until("the log says why", why);
        assert_eq!(redis.command(&format!("ACL SETUSER gate +{command}")), "+OK");
        gateway.wait_metric(UP, &[], 1.0);
        let before = redis.decisions();
        assert_eq!(connection.exchange(GET).unwrap().status, 200);
        assert!(redis.decisions() > before, "shared again");
        // Each loss and each return is told once.
        let said = gateway.stderr();
        assert_eq!(said.matches("rate limits are shared").count(), times + 2, "{said}");
    }
}
