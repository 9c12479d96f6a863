//! For tests: nodes that do as they are told, on real sockets, and upstreams made of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{Ask, BreakerLimits, NodeSettings, Settings, Upstream};
use crate::config::file::{Balance, HealthCheck, Outlier, UpstreamProtocol, UpstreamTimeouts};
use crate::names::UpstreamName;
use crate::observe::Metrics;
use crate::units::{Percent, Span};

/// What a fake node does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    /// Sends these bytes and waits for the next request.
    Answer(&'static str),
    /// Sends these bytes and closes.
    AnswerAndClose(&'static str),
    /// Reads, and says nothing.
    Hang,
    /// Closes without a word.
    Close,
}

pub(super) const OK: Does = Does::Answer("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\":true}");

/// A node on a free port of the loopback address.
pub(super) struct FakeNode {
    pub(super) address: SocketAddr,
    /// The head of the last request.
    pub(super) last: watch::Receiver<String>,
    /// Connections taken so far.
    pub(super) connections: Arc<AtomicUsize>,
    /// Connections that are open.
    pub(super) open: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeNode {
    pub(super) async fn start(does: Does) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), does).await
    }

    pub(super) async fn start_at(address: SocketAddr, does: Does) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, last) = watch::channel(String::new());
        let connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(AtomicUsize::new(0));
        let counts = (connections.clone(), open.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counts.0.fetch_add(1, Ordering::SeqCst);
                counts.1.fetch_add(1, Ordering::SeqCst);
                let (seen, open) = (seen.clone(), counts.1.clone());
                tokio::spawn(async move {
                    serve(stream, does, seen).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, last, connections, open, task }
    }

    /// Stops listening; connections that are open stay.
    pub(super) async fn die(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

async fn serve(mut stream: TcpStream, does: Does, seen: watch::Sender<String>) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        seen.send_replace(String::from_utf8(std::mem::take(&mut head)).unwrap());
        match does {
            Does::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Does::AnswerAndClose(text) => return stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Does::Hang => std::future::pending().await,
            Does::Close => return,
        }
    }
}

pub(super) fn node(address: SocketAddr, weight: u16) -> NodeSettings {
    NodeSettings {
        url: format!("http://{address}"),
        address,
        host: address.to_string(),
        tls: false,
        weight,
        priority: 0,
    }
}

/// For a request without a key.
pub(super) fn plain() -> Ask<'static> {
    Ask::any(Instant::now())
}

/// Settings with probes fast enough for a test.
pub(super) fn settings(nodes: Vec<NodeSettings>) -> Settings {
    Settings {
        name: UpstreamName::new("hive").unwrap(),
        nodes,
        discovery: None,
        balance: Balance::LeastRequests,
        hash_keys: Vec::new(),
        hash_balance_factor: None,
        panic_threshold: Percent(0),
        slow_start: Duration::ZERO,
        outlier: Outlier::default(),
        circuit_breaker: BreakerLimits {
            connections: None,
            max_requests: u32::MAX,
            retry_budget: Percent(200),
            min_retry_concurrency: 3,
        },
        protocol: UpstreamProtocol::Http1,
        health_check: HealthCheck {
            interval: Span(Duration::from_millis(20)),
            timeout: Span(Duration::from_millis(500)),
            ..HealthCheck::default()
        },
        timeouts: UpstreamTimeouts::default(),
        tls: None,
    }
}

pub(super) fn build(settings: Settings) -> Arc<Upstream> {
    rebuild(settings, None)
}

pub(super) fn rebuild(settings: Settings, previous: Option<&Upstream>) -> Arc<Upstream> {
    Upstream::new(settings, &Metrics::new(), previous, Some(7)).unwrap()
}

/// An upstream of nodes that are nowhere, of these weights, without probes.
pub(super) fn unprobed(balance: Balance, weights: &[u16]) -> Arc<Upstream> {
    let port = |i: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(i + 1).unwrap()));
    let nodes = weights.iter().enumerate().map(|(i, &w)| node(port(i), w)).collect();
    build(Settings { balance, ..settings(nodes) })
}

/// Waits until the condition holds; a test that waits for 10 s has failed.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
