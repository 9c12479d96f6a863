//! Load on a whole gateway: what a request, a handshake, an idle connection and a stream cost its process.
//!
//! `cargo bench --bench load` starts two of the demo's nodes in this process and the gateway in one of its own, then runs
//! closed loops against it over mutual TLS. Processor time is the gateway's alone, from `/proc`. `-- --requests N`,
//! `--handshakes N`, `--idle N`, `--streams N` and `--peers N` (for reloads) change the amounts; 0 leaves a phase out. `--gateway FILE` measures another
//! binary. `--route 'peers: any'` puts other policies on the route, `--listener 'rate_limits: […]'` some on the listener.
// A load test that can't go on ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;

mod gateway;

use gateway::{CALL, Gateway, Policies, argument, count_events, h1_request, h2_call};

const H1_CONNECTIONS: usize = 64;
const H2_CONNECTIONS: usize = 8;
const H2_STREAMS: usize = 8;
/// Requests at a rate, as the reloads have them: a second, for how long, on how many connections.
const PACED_RATE: u32 = 500;
const PACED_SECONDS: u32 = 10;
const PACED_CONNECTIONS: u32 = 10;

/// Hands out a fixed number of turns to many workers.
#[derive(Clone)]
struct Turns(Arc<AtomicUsize>);

impl Turns {
    fn new(count: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(count)))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// Runs the workers and prints what their turns took.
async fn measure<W>(gateway: &Gateway, title: &str, unit: &str, workers: Vec<W>)
where
    W: Future<Output = Vec<u32>> + Send + 'static,
{
    let (cpu, start) = (gateway.cpu(), Instant::now());
    let running: JoinSet<_> = workers.into_iter().collect();
    let mut micros: Vec<u32> = running.join_all().await.concat();
    let (cpu, took) = (gateway.cpu() - cpu, start.elapsed().as_secs_f64());
    micros.sort_unstable();
    let at = |share: usize| f64::from(micros[(micros.len() * share / 1000).min(micros.len() - 1)]) / 1000.0;
    println!(
        "{title}: {} {unit}s, {:.0}/s, gateway's CPU {:.1} µs/{unit}, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        micros.len(),
        micros.len() as f64 / took,
        cpu * 1e6 / micros.len() as f64,
        at(500),
        at(990),
        at(999),
    );
}

fn micros(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX)
}

async fn h1_phase(gateway: &Gateway, connections: usize, requests: usize) {
    let turns = Turns::new(requests);
    let mut workers = Vec::new();
    for _ in 0..connections {
        let (mut connection, turns) = (gateway.h1().await, turns.clone());
        workers.push(async move {
            let (request, mut times) = (h1_request(CALL), Vec::new());
            while turns.take() {
                let start = Instant::now();
                connection.call(&request).await;
                times.push(micros(start));
            }
            times
        });
    }
    measure(gateway, &format!("HTTP/1.1, {connections} connections"), "request", workers).await;
}

async fn h2_phase(gateway: &Gateway, requests: usize) {
    let turns = Turns::new(requests);
    let mut workers = Vec::new();
    for _ in 0..H2_CONNECTIONS {
        let send = gateway.h2().await;
        for _ in 0..H2_STREAMS {
            let (send, turns) = (send.clone(), turns.clone());
            workers.push(async move {
                let mut times = Vec::new();
                while turns.take() {
                    let start = Instant::now();
                    h2_call(&send, CALL).await;
                    times.push(micros(start));
                }
                times
            });
        }
    }
    let title = format!("HTTP/2, {H2_CONNECTIONS} connections of {H2_STREAMS} streams");
    measure(gateway, &title, "request", workers).await;
}

async fn handshake_phase(gateway: &Arc<Gateway>, count: usize) {
    let turns = Turns::new(count);
    let workers = (0..8).map(|_| {
        let (gateway, turns) = (gateway.clone(), turns.clone());
        async move {
            let mut times = Vec::new();
            while turns.take() {
                let start = Instant::now();
                // With TLS 1.3 the server is done only when it has read the client's last flight: a request shows it.
                gateway.h1().await.call(&h1_request(CALL)).await;
                times.push(micros(start));
            }
            times
        }
    });
    let workers: Vec<_> = workers.collect();
    measure(gateway, "New connections, full handshake and one request each", "connection", workers).await;
}

/// On a gateway of its own: memory that an earlier phase gave back would be used again, and not be seen.
async fn idle_phase(gateway: &Gateway, count: usize) {
    let mut first = gateway.h1().await;
    for _ in 0..200 {
        first.call(&h1_request(CALL)).await;
    }
    let before = gateway.memory();
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = gateway.h1().await;
        connection.call(&h1_request(CALL)).await;
        held.push(connection);
    }
    // Long enough for what a request left behind to be given back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, cpu) = (gateway.memory(), gateway.cpu());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let share = (gateway.cpu() - cpu) / 5.0 * 100.0;
    for connection in held.iter_mut().step_by(100) {
        connection.call(&h1_request(CALL)).await;
    }
    println!(
        "{count} idle connections, each after one request: {:.1} KiB resident memory each (process {:.0} -> {:.0} MiB), \
         {share:.1} % of a processor; every hundredth answers",
        (after - before) / count as f64,
        before / 1024.0,
        after / 1024.0,
    );
}

async fn stream_phase(gateway: &Gateway, count: usize) {
    let body = CALL.replace("message/send", "message/stream");
    let (memory, cpu, start) = (gateway.memory(), gateway.cpu(), Instant::now());
    let mut running = JoinSet::new();
    for _ in 0..count / 2 {
        let (mut connection, request) = (gateway.h1().await, h1_request(&body));
        running.spawn(async move { connection.events(&request).await });
    }
    for _ in 0..count / 2 / 50 {
        let send = gateway.h2().await;
        for _ in 0..50 {
            let (send, body) = (send.clone(), body.clone());
            running.spawn(async move { count_events(&h2_call(&send, &body).await) });
        }
    }
    let streams = running.len();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let during = gateway.memory();
    let events: usize = running.join_all().await.into_iter().sum();
    println!(
        "{streams} streams at once, half HTTP/1.1 and half HTTP/2: {events} of {} events, {:.1} s, {:.1} KiB each, \
         gateway's CPU {:.0} µs/event with connections made",
        streams * 5,
        start.elapsed().as_secs_f64(),
        (during - memory) / streams as f64,
        (gateway.cpu() - cpu) * 1e6 / events as f64,
    );
    assert_eq!(events, streams * 5);
}

/// What reloads do to those who call meanwhile: as many requests in the same time, without and with.
async fn reload_phase(peers: usize) {
    let policies = Policies { other_peers: peers, ..Policies::asked() };
    let gateway = Gateway::start_as(&[gateway::built()], &policies, Duration::from_secs(60)).await;
    for reloads in [0, 3] {
        let mut workers = Vec::new();
        for _ in 0..PACED_CONNECTIONS {
            let mut connection = gateway.h1().await;
            workers.push(async move {
                let (request, mut times) = (h1_request(CALL), Vec::new());
                let mut due = tokio::time::interval(Duration::from_secs(1) * PACED_CONNECTIONS / PACED_RATE);
                for _ in 0..PACED_RATE * PACED_SECONDS / PACED_CONNECTIONS {
                    // From when it was due: who waits for another's answer waits too.
                    let start = due.tick().await.into_std();
                    connection.call(&request).await;
                    times.push(micros(start));
                }
                times
            });
        }
        let reloading = async {
            let mut took = Vec::new();
            for _ in 0..reloads {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let start = Instant::now();
                gateway.reload().await;
                took.push(format!("{:.2} s", start.elapsed().as_secs_f64()));
            }
            took
        };
        let title = format!("{peers} peers, {PACED_RATE} requests a second, {reloads} reloads");
        let (took, ()) = tokio::join!(reloading, measure(&gateway, &title, "request", workers));
        if reloads > 0 {
            println!("(they took {})", took.join(", "));
        }
    }
}

fn amount(name: &str, default: usize) -> usize {
    argument(name).map_or(default, |n| n.parse().unwrap_or_else(|e| panic!("{name} {n}: {e}")))
}

fn main() {
    // `cargo test --benches` runs it too, with no intention to measure.
    if std::env::args().any(|a| a == "--test") || !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The gateway inherits it.
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let gateway = Arc::new(Gateway::start().await);
        let requests = amount("--requests", 100_000);
        println!("{} {}, {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), openssl::version::version());
        if requests > 0 {
            h1_phase(&gateway, 8, (requests / 20).max(1)).await;
            println!("(that was the warm-up)");
            h1_phase(&gateway, 1, (requests / 10).max(1)).await;
            h1_phase(&gateway, H1_CONNECTIONS, requests).await;
            h2_phase(&gateway, requests).await;
        }
        match amount("--handshakes", 3_000) {
            0 => {}
            count => handshake_phase(&gateway, count).await,
        }
        drop(gateway);
        match amount("--streams", 1_000) {
            0 => {}
            count => stream_phase(&Gateway::start().await, count).await,
        }
        match amount("--idle", 10_000) {
            0 => {}
            count => idle_phase(&Gateway::start().await, count).await,
        }
        match amount("--peers", 100_000) {
            0 => {}
            count => reload_phase(count).await,
        }
    });
}
