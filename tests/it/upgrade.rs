//! Another process takes over while requests run.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, ROUTES, Setup, runs, upstream};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

const CARD: &str = "/.well-known/agent-card.json";
const NO_UPGRADE: &str = "no upgrade, this process goes on";

/// A node that answers at once, and on `/echo/stream` with an event each 50 ms until it is told to end.
fn node() -> (Node, Arc<AtomicBool>) {
    let end = Arc::new(AtomicBool::new(false));
    let ended = end.clone();
    let node = Node::start_with(move |request, exchange| {
        if request.target() != "/echo/stream" {
            return exchange.answer(200, "", b"{}");
        }
        exchange.begin_stream()?;
        while !ended.load(Ordering::Relaxed) {
            exchange.event("x")?;
            std::thread::sleep(Duration::from_millis(50));
        }
        exchange.end_stream()
    });
    (node, end)
}

fn setup(node: &Node, drain: &str) -> Setup {
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[node.address], "health_check: { interval: 2s }");
    setup.plain = Some("    limits: { connections_per_address: 10000, new_connections_per_address: 100000/s }".into());
    setup.server = format!("drain: {drain}");
    setup
}

fn get(gateway: &Gateway) -> u16 {
    gateway.client("bob").get(gateway.address, CARD).unwrap().status
}

/// How a client of the load connects.
#[derive(Clone, Copy)]
enum Way {
    Kept,
    KeptPlain,
    Each,
    Http2,
}

/// A client in good order: after GOAWAY it takes another connection, also for a stream that GOAWAY says was not processed
/// (RFC 9113, section 6.8): it may have begun that before it had read it.
fn ask_http2(kept: &mut Option<H2>, connect: impl Fn() -> H2) -> Result<Response, String> {
    const UNPROCESSED: &str = "connection error received: not a result of an error";
    match ask_http2_once(kept, &connect) {
        Err(e) if e.contains(UNPROCESSED) => ask_http2_once(kept, &connect),
        answer => answer,
    }
}

fn ask_http2_once(kept: &mut Option<H2>, connect: impl Fn() -> H2) -> Result<Response, String> {
    let request = || H2::request("POST", "/echo").body(()).unwrap();
    let mut own = kept.take().unwrap_or_else(&connect);
    let (future, mut stream) = match own.begin(request(), false) {
        Ok(begun) => begun,
        Err(_) => {
            own = connect();
            own.begin(request(), false)?
        }
    };
    own.send_body(&mut stream, b"{}")?;
    let answer = own.finish(future);
    *kept = answer.is_ok().then_some(own);
    answer
}

/// Sends requests `every` so often until `stop`; the number of those that were answered as they should.
fn load(gateway: &Gateway, way: Way, every: Duration, stop: &AtomicBool, failed: &Mutex<Vec<String>>) -> usize {
    const POST: &[u8] = b"POST /echo HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 2\r\n\r\n{}";
    let alice = gateway.client("alice");
    let (mut kept, mut h2): (Option<Connection>, Option<H2>) = (None, None);
    let mut done = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        next += every;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let answer = match way {
            Way::Http2 => ask_http2(&mut h2, || H2::connect(&alice, gateway.address).unwrap()),
            Way::Kept | Way::KeptPlain | Way::Each => {
                let connect = || match way {
                    Way::KeptPlain => Connection::plain(gateway.plain),
                    _ => alice.connect(gateway.address),
                };
                let mut own = kept.take().map_or_else(connect, Ok);
                let answer =
                    own.as_mut().map_err(|e| e.to_string()).and_then(|c| c.exchange(POST).map_err(|e| e.to_string()));
                let closes = answer.as_ref().map_or(true, |a| a.header("connection") == Some("close"));
                kept = own.ok().filter(|_| !closes && !matches!(way, Way::Each));
                answer
            }
        };
        match answer {
            Ok(answer) if answer.status == 200 => done += 1,
            Ok(answer) => failed.lock().unwrap().push(format!("{} {}", answer.status, answer.text())),
            Err(e) => failed.lock().unwrap().push(e),
        }
    }
    done
}

/// What a reload changes, of everything a little; the next one changes it back.
const CHANGES: &[(&str, &str)] = &[
    ("body: { limit: 16MiB }", "body: { limit: 15MiB }"),
    ("connections_per_address: 15000", "connections_per_address: 14000"),
    ("\n  - { name: alice,", "\n  - { name: carol, uri: \"spiffe://mesh.test/hive/carol\" }\n  - { name: alice,"),
    (
        "\n  - { name: a2a,",
        "\n  - { name: carols, paths: [/carol], methods: [GET], peers: [carol], upstream: hive }\n  - { name: a2a,",
    ),
    ("paths: [/bob]", "paths: [/bob, /bobby]"),
    ("interval: 2s }", "interval: 3s }, balance: round_robin"),
];

#[test]
fn with_500_requests_a_second_a_reload_each_second_and_then_an_upgrade_no_request_fails() {
    let (node, _end) = node();
    let gateway = setup(&node, "10s").start();
    let (stop, failed, done) = (AtomicBool::new(false), Mutex::default(), AtomicUsize::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for way in [Way::Kept, Way::KeptPlain, Way::Each, Way::Http2].repeat(5) {
            let (gateway, stop, failed, done) = (&gateway, &stop, &failed, &done);
            scope.spawn(move || {
                done.fetch_add(load(gateway, way, Duration::from_millis(40), stop, failed), Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            // Whoever watches it does not see it gone either.
            while !stop.load(Ordering::Relaxed) {
                let ready = gateway.admin_get("/v1/ready").unwrap();
                assert_eq!(ready.status, 200, "{}", ready.text());
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let pass =
            |n: u32| std::thread::sleep((begun + Duration::from_secs(1) * n).saturating_duration_since(Instant::now()));
        for n in 1..=3 {
            pass(n);
            let back = n % 2 == 0;
            for (one, other) in CHANGES {
                let (from, to) = if back { (other, one) } else { (one, other) };
                gateway.edit(from, to);
            }
            let answer = gateway.reload_ok();
            assert_eq!((&answer["generation"], &answer["needs_upgrade"]), (&json!(n + 1), &json!([])));
        }
        pass(4);
        let old = gateway.upgrade();
        pass(5);
        // The one that took over hands over in its turn.
        let second = gateway.upgrade();
        wait_until("both have ended", || !runs(old) && !runs(second));
        gateway.reload_ok();
        pass(8);
        stop.store(true, Ordering::Relaxed);
    });
    let (done, took) = (done.load(Ordering::Relaxed), begun.elapsed());
    println!("{done} requests in {took:?}: {:.0} a second", done as f64 / took.as_secs_f64());
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {done} have failed: {:?}",
        failed.len(),
        failed.iter().take(5).collect::<Vec<_>>()
    );
    // A client that was held up makes up for it; less means that requests wait.
    assert!(done as f64 > 400.0 * took.as_secs_f64(), "{done} in {took:?}");
    assert!(!gateway.stderr().contains("cut off"), "{}", gateway.stderr());
}

#[test]
fn streams_live_on_for_the_drain_time_and_no_longer() {
    let (node, end) = node();
    let mut gateway = setup(&node, "3s").start();
    let request = b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
    let mut ends_well = gateway.connect("alice");
    ends_well.send(request).unwrap();
    assert_eq!(ends_well.head().unwrap().status, 200);
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut stream = h2.stream(H2::request("GET", "/echo/stream").body(()).unwrap(), b"").unwrap();
    let old = gateway.upgrade();
    let upgraded = Instant::now();
    assert_ne!(old, gateway.pid());
    while upgraded.elapsed() < Duration::from_secs(1) {
        ends_well.chunk().unwrap().unwrap();
        stream.next().unwrap().unwrap();
        assert_eq!(get(&gateway), 200);
    }
    assert!(runs(old));
    end.store(true, Ordering::Relaxed);
    while ends_well.chunk().unwrap().is_some() {}
    while stream.next().unwrap().is_some() {}
    drop((ends_well, h2));
    assert!(gateway.wait_exit().success());

    // One that does not end in time is cut off.
    end.store(false, Ordering::Relaxed);
    let mut cut = gateway.connect("alice");
    cut.send(request).unwrap();
    assert_eq!(cut.head().unwrap().status, 200);
    let old = gateway.upgrade();
    let upgraded = Instant::now();
    while cut.chunk().is_ok_and(|chunk| chunk.is_some()) {}
    let lived = upgraded.elapsed();
    assert!(lived > Duration::from_millis(2500) && lived < Duration::from_secs(10), "{lived:?}");
    wait_until("the old process ends", || !runs(old));
    assert_eq!(get(&gateway), 200);
}

#[test]
fn whoever_asks_the_old_process_in_the_moment_of_an_upgrade_is_told_that_the_gateway_is_ready() {
    let (node, end) = node();
    let gateway = setup(&node, "10s").start();
    let mut stream = gateway.connect("alice");
    stream.send(b"GET /echo/stream HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
    assert_eq!(stream.head().unwrap().status, 200);
    let mut early = Connection::plain(gateway.admin).unwrap();
    early.send(b"GET /v1/ready HTTP/1.1\r\n").unwrap();
    let old = gateway.upgrade();
    assert!(runs(old), "it has a stream to end");
    early.send(format!("Host: {}\r\n\r\n", gateway.admin).as_bytes()).unwrap();
    let answer = early.response(false).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    end.store(true, Ordering::Relaxed);
}

#[test]
fn a_new_process_that_can_not_start_leaves_the_old_one_serving() {
    let (node, _end) = node();
    let gateway = setup(&node, "1s").start();
    let before = gateway.pid();
    let fails = |times: usize, why: &str| {
        gateway.signal(Signal::SIGUSR2);
        wait_until(why, || gateway.stderr().matches(NO_UPGRADE).count() == times && gateway.stderr().contains(why));
        assert_eq!((get(&gateway), gateway.admin_get("/v1/ready").unwrap().status), (200, 200));
    };
    gateway.edit("upstream: hive", "upstream: hvie");
    fails(1, "no upstream named \"hvie\"");
    gateway.edit("upstream: hvie", "upstream: hive");
    // Another listener than the one that is handed over, whose port is in use.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, taken) = (format!("address: {}", gateway.plain), format!("address: {}", other.local_addr().unwrap()));
    gateway.edit(&own, &taken);
    fails(2, "cannot listen on");
    gateway.edit(&taken, &own);
    let key = std::fs::read(gateway.dir().join("server.key")).unwrap();
    std::fs::write(gateway.dir().join("server.key"), "no key").unwrap();
    fails(3, "server.key");
    std::fs::write(gateway.dir().join("server.key"), key).unwrap();
    assert_eq!(gateway.pid(), before);
    // What was wrong is forgotten: the next one succeeds.
    gateway.signal(Signal::SIGUSR2);
    wait_until("the old process ends", || !runs(before));
    assert_eq!(get(&gateway), 200);
    let said = gateway.stderr();
    let pid = said.lines().rfind(|line| line.contains("serves in the place")).unwrap();
    let pid: i32 = pid.split("process ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_until("the new process ends", || !runs(pid as u32));
}

#[test]
fn a_gateway_that_is_not_ready_can_be_upgraded() {
    let (node, _end) = node();
    let mut setup = setup(&node, "1s");
    setup.routes = ROUTES.into();
    let gateway = setup.start();
    node.set_health(503);
    wait_until("no node is up", || gateway.admin_get("/v1/ready").unwrap().status == 503);
    gateway.upgrade();
    assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200);
}

#[test]
fn an_upgrade_takes_into_use_what_a_reload_can_not() {
    let (node, _end) = node();
    let gateway = setup(&node, "1s").start();
    let new = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    gateway.edit(&format!("address: {}", gateway.plain), &format!("address: {new}"));
    let answer = gateway.reload_ok();
    let told =
        format!("listener plain: address change needs an upgrade or a restart; it still listens on {}", gateway.plain);
    assert_eq!(answer["needs_upgrade"], serde_json::json!([told]));
    assert_eq!(gateway.status()["needs_upgrade"], serde_json::json!([told]));
    wait_until("the log says so", || gateway.stderr().contains(&told));
    let request = format!("GET {CARD} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
    assert_eq!(Connection::plain(gateway.plain).unwrap().exchange(request.as_bytes()).unwrap().status, 200);
    let old = gateway.upgrade();
    assert_eq!(Connection::plain(new).unwrap().exchange(request.as_bytes()).unwrap().status, 200);
    assert_eq!(gateway.status()["needs_upgrade"], serde_json::json!([]));
    wait_until("the old process ends", || !runs(old));
    assert!(Connection::plain(gateway.plain).is_err(), "nobody listens there any more");
}

/// Processes that this one has started and that run.
fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let all: Vec<u32> =
        lists.flat_map(|l| l.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>()).collect();
    all.into_iter().filter(|pid| runs(*pid)).collect()
}

#[test]
fn sigterm_ends_an_upgrade_that_is_under_way() {
    let (node, _end) = node();
    let mut gateway = setup(&node, "1s").start();
    // The new process waits until a node is up; the old one has not noticed yet that none is.
    node.set_health(503);
    gateway.signal(Signal::SIGUSR2);
    wait_until("another process is started", || !children(gateway.pid()).is_empty());
    let new = children(gateway.pid())[0];
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.wait_exit().success());
    wait_until("the new process ends", || !runs(new));
}
