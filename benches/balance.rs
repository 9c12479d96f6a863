//! What it costs to pick a node for one request.

#![allow(clippy::expect_used)] // A bench that can't be set up has nothing to measure.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hive_gateway::config::file::{Balance, HealthCheck, UpstreamProtocol, UpstreamTimeouts};
use hive_gateway::names::UpstreamName;
use hive_gateway::observe::Metrics;
use hive_gateway::upstream::{NodeSettings, Settings, Upstream};
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
    });
    let settings = Settings {
        name: UpstreamName::new("hive").expect("a fine name"),
        nodes: nodes.collect(),
        balance,
        protocol: UpstreamProtocol::Http1,
        health_check: HealthCheck::default(),
        timeouts: UpstreamTimeouts::default(),
        tls: None,
    };
    Upstream::new(settings, &Metrics::new(), None, Some(1)).expect("fine settings")
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for count in [3, 1000] {
        for (name, balance) in [("round_robin", Balance::RoundRobin), ("least_requests", Balance::LeastRequests)] {
            let upstream = upstream(balance, count);
            // A request is under way at each node, else least_requests has nothing to compare.
            let _busy: Vec<_> = (0..count).map(|_| upstream.pick(&[])).collect();
            group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| black_box(upstream.pick(&[]))));
        }
        let pingora = LoadBalancer::<RoundRobin>::try_from_iter(addresses(count)).expect("fine addresses");
        group.bench_function(BenchmarkId::new("pingora_round_robin", count), |b| {
            b.iter(|| black_box(pingora.select(b"", 8)));
        });
    }
    group.finish();
}

criterion_group!(benches, picks);
criterion_main!(benches);
