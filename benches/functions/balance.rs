//! What it costs to pick a node for one request.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use hive_gateway::config::file::{Balance, HealthCheck, Outlier, UpstreamProtocol, UpstreamTimeouts};
use hive_gateway::names::UpstreamName;
use hive_gateway::observe::Metrics;
use hive_gateway::units::Percent;
use hive_gateway::upstream::{Ask, BreakerLimits, ConnectionLimits, NodeSettings, Settings, Upstream, hash_key};
use pingora::lb::LoadBalancer;
use pingora::lb::selection::RoundRobin;

fn addresses(count: u32) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|i| SocketAddr::from(((0x0a00_0001 + i).to_be_bytes(), 3000)))
}

fn upstream(balance: Balance, count: u32) -> Arc<Upstream> {
    let nodes = addresses(count).map(|address| NodeSettings {
        url: format!("http://{address}"),
        address,
        host: address.to_string(),
        tls: false,
        weight: 1,
        priority: 0,
    });
    let settings = Settings {
        name: UpstreamName::new("hive").expect("a fine name"),
        nodes: nodes.collect(),
        discovery: None,
        balance,
        hash_keys: Vec::new(),
        hash_balance_factor: (balance == Balance::ConsistentHash).then_some(150),
        panic_threshold: Percent(0),
        slow_start: Duration::from_secs(10),
        outlier: Outlier::default(),
        circuit_breaker: BreakerLimits {
            connections: Some(ConnectionLimits {
                max: 1_000_000,
                max_pending: 256,
                pending_timeout: Duration::from_secs(1),
            }),
            max_requests: 1_000_000,
            retry_budget: Percent(200),
            min_retry_concurrency: 3,
        },
        protocol: UpstreamProtocol::Http1,
        health_check: HealthCheck::default(),
        timeouts: UpstreamTimeouts::default(),
        tls: None,
    };
    Upstream::new(settings, &Metrics::new(), None, Some(1)).expect("fine settings")
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for count in [2, 1000] {
        for (name, balance) in [("round_robin", Balance::RoundRobin), ("least_requests", Balance::LeastRequests)] {
            let upstream = upstream(balance, count);
            // A request is under way at each node, else least_requests has nothing to compare.
            let ask = Ask::any(Instant::now());
            let _busy: Vec<_> = (0..count).map(|_| (upstream.enter(), upstream.pick(&ask))).collect();
            group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| black_box(upstream.pick(&ask))));
        }
        let upstream = upstream(Balance::ConsistentHash, count);
        let keys: Vec<u64> = (0..4096u64).map(|n| hash_key(&n.to_le_bytes())).collect();
        let asks: Vec<_> = keys.iter().map(|key| Ask { key: Some(*key), ..Ask::any(Instant::now()) }).collect();
        let _busy: Vec<_> = (0..count as usize).map(|n| (upstream.enter(), upstream.pick(&asks[n]))).collect();
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("consistent_hash", count), |b| {
            b.iter(|| {
                turn = (turn + 1) % asks.len();
                black_box(upstream.pick(&asks[turn]))
            });
        });
        let pingora = LoadBalancer::<RoundRobin>::try_from_iter(addresses(count)).expect("fine addresses");
        group.bench_function(BenchmarkId::new("pingora_round_robin", count), |b| {
            b.iter(|| black_box(pingora.select(b"", 8)));
        });
    }
    group.finish();
}

/// What a request pays for the circuit breaker.
fn breaker(c: &mut Criterion) {
    let upstream = upstream(Balance::RoundRobin, 3);
    c.bench_function("breaker", |b| b.iter(|| black_box(upstream.enter())));
}

criterion_group!(benches, picks, breaker);
