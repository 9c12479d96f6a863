//! The gateway beside nginx and HAProxy as Debian installs them: processor time for the same requests over mutual TLS.
//!
//! `make bench-peers`, or `cargo bench --bench peers`. Each proxy has one thread, the same certificates and nodes, and writes
//! an access log; the rounds are interleaved. The others do plain work: they require a certificate of the CA, and forward.
//! The gateway has all its policies on: peers, a JSON-RPC allow-list, two rate limits, identity headers, breaker. `-- --rounds N`
//! (5), `--requests N` (20,000), `--handshakes N` (1,500).
// A bench that can't go on ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod gateway;

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use gateway::{CALL, Gateway, Policies, argument, h1_request, h2_call};

const H1_CONNECTIONS: usize = 32;
const H2_CONNECTIONS: usize = 4;
const H2_STREAMS: usize = 8;
const HANDSHAKES_AT_ONCE: usize = 8;
const KINDS: [&str; 3] = ["HTTP/1.1, keep-alive", "HTTP/2", "full handshake and one request"];

fn nginx(directory: &Path, address: SocketAddr, [a, b]: [SocketAddr; 2]) -> Command {
    let text = format!(
        "daemon off;
master_process off;
pid {0}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log {0}/access.log combined buffer=64k;
  client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
  upstream hive {{ server {a}; server {b}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen {address} ssl http2;
    ssl_certificate {0}/server.pem;
    ssl_certificate_key {0}/server.key;
    ssl_client_certificate {0}/ca.pem;
    ssl_verify_client on;
    ssl_verify_depth 3;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://hive;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
",
        directory.display()
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file);
    command
}

fn haproxy(directory: &Path, address: SocketAddr, [a, b]: [SocketAddr; 2]) -> Command {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    std::fs::write(directory.join("both.pem"), read("server.pem") + &read("server.key")).unwrap();
    let text = format!(
        "global
  nbthread 1
  log stdout format raw local0 info
  tune.ssl.cachesize 0
defaults
  mode http
  log global
  option httplog
  option http-keep-alive
  timeout client 60s
  timeout server 60s
  timeout connect 5s
frontend in
  bind {address} ssl crt {0}/both.pem ca-file {0}/ca.pem verify required alpn h2,http/1.1 ssl-min-ver TLSv1.3 no-tls-tickets
  http-request set-header X-Real-IP %[src]
  option forwardfor
  default_backend hive
backend hive
  http-reuse always
  server a {a}
  server b {b}
",
        directory.display()
    );
    let file = directory.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    command
}

async fn start(name: &str) -> Gateway {
    match name {
        "nginx" => Gateway::start_other(nginx).await,
        "haproxy" => Gateway::start_other(haproxy).await,
        _ => {
            let policies = Policies {
                route: "peers: [load], json_rpc: { methods: [message/send] }, rate_limits: [{ per: peer, rate: 1000000/s }]".into(),
                listener: "rate_limits: [{ per: address, rate: 1000000/s }]".into(),
                top: String::new(),
                threads: Some(1),
                other_peers: 0,
            };
            Gateway::start_as(&[gateway::built()], &policies, Duration::from_secs(20)).await
        }
    }
}

/// Processor time for each of `times` turns that the workers take, microseconds.
async fn cost<W>(proxy: &Gateway, times: usize, workers: Vec<W>) -> f64
where
    W: Future<Output = ()> + Send + 'static,
{
    let before = proxy.cpu();
    workers.into_iter().collect::<JoinSet<_>>().join_all().await;
    (proxy.cpu() - before) * 1e6 / times as f64
}

/// In the order of [`KINDS`].
async fn measure(proxy: &Arc<Gateway>, requests: usize, handshakes: usize) -> [f64; 3] {
    let request = h1_request(CALL);
    let turns = Arc::new(AtomicUsize::new(0));
    let take = |limit: usize| {
        let turns = turns.clone();
        move || turns.fetch_add(1, Ordering::Relaxed) < limit
    };
    let mut workers = Vec::new();
    for _ in 0..H1_CONNECTIONS {
        let (mut connection, request, more) = (proxy.h1().await, request.clone(), take(requests));
        connection.call(&request).await;
        workers.push(async move {
            while more() {
                connection.call(&request).await;
            }
        });
    }
    let http1 = cost(proxy, requests, workers).await;

    turns.store(0, Ordering::Relaxed);
    let mut workers = Vec::new();
    for _ in 0..H2_CONNECTIONS {
        let send = proxy.h2().await;
        h2_call(&send, CALL).await;
        for _ in 0..H2_STREAMS {
            let (send, more) = (send.clone(), take(requests));
            workers.push(async move {
                while more() {
                    h2_call(&send, CALL).await;
                }
            });
        }
    }
    let http2 = cost(proxy, requests, workers).await;

    turns.store(0, Ordering::Relaxed);
    let workers = (0..HANDSHAKES_AT_ONCE).map(|_| {
        let (proxy, request, more) = (proxy.clone(), request.clone(), take(handshakes));
        async move {
            while more() {
                proxy.h1().await.call(&request).await;
            }
        }
    });
    [http1, http2, cost(proxy, handshakes, workers.collect()).await]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn version(program: &str) -> String {
    let said = Command::new(program).arg("-v").output();
    let Ok(said) = said else { panic!("{program} is missing: apt-get install --no-install-recommends nginx haproxy") };
    let text = [said.stdout, said.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

fn main() {
    // `cargo test --benches` runs it too, with no intention to measure.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let amount = |name: &str, default: usize| argument(name).map_or(default, |n| n.parse().unwrap());
    let (rounds, requests) = (amount("--rounds", 5), amount("--requests", 20_000));
    let handshakes = amount("--handshakes", 1_500);
    let names = ["haproxy", "nginx", "hive-gateway"];
    println!("{}; {}; {} {}", version("haproxy"), version("nginx"), names[2], env!("CARGO_PKG_VERSION"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut all = vec![[const { Vec::new() }; KINDS.len()]; names.len()];
    runtime.block_on(async {
        for round in 0..rounds {
            for turn in 0..names.len() {
                let at = (round + turn) % names.len();
                let proxy = Arc::new(start(names[at]).await);
                for (kind, cost) in measure(&proxy, requests, handshakes).await.into_iter().enumerate() {
                    all[at][kind].push(cost);
                }
            }
        }
    });
    let mut text = format!(
        "| processor µs, median of {rounds} rounds | {} | to the best |\n|---|---|---|---|---|",
        names.join(" | ")
    );
    for (kind, title) in KINDS.iter().enumerate() {
        let medians: Vec<f64> = all.iter().map(|proxy| median(proxy[kind].clone())).collect();
        let best = medians[..2].iter().copied().fold(f64::INFINITY, f64::min);
        let shown: Vec<_> = medians.iter().map(|m| format!("{m:.1}")).collect();
        write!(text, "\n| {title} | {} | {:.2} |", shown.join(" | "), medians[2] / best).unwrap();
    }
    println!("{text}");
}
