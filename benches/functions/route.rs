//! Route look-up among 10, 100 and 1,000 routes, peer look-up among 10 to 100,000 peers, and the checks that every request
//! passes before them.
//!
//! `cargo bench --bench functions -- route`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group};
use hive_gateway::headers::{ProductHeaders, Spoofable};
use hive_gateway::names::PeerName;
use hive_gateway::policy::peers::{PeerMatcher, PeerRule, Peers};
use hive_gateway::request::{TrustedProxies, check_form, client_address};
use hive_gateway::route::{HostPattern, MethodSet, PathPattern, Table, TableBuilder};
use http::Method;

use super::sample;

fn table(routes: usize) -> Table<usize> {
    let mut builder = TableBuilder::new();
    for i in 0..routes {
        let hosts = match i % 3 {
            0 => vec![HostPattern::parse(&format!("node{i}.example.com")).unwrap()],
            1 => vec![HostPattern::parse(&format!("*.group{i}.example.com")).unwrap()],
            _ => vec![],
        };
        let paths = [format!("/api/{i}/jsonrpc"), format!("/api/{i}/files/*")].map(|p| PathPattern::parse(&p).unwrap());
        builder.add(&hosts, &paths, MethodSet::parse(&["GET", "POST"]).unwrap(), i).unwrap();
    }
    builder.build()
}

fn routes(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for routes in [10, 100, 1000] {
        let table = table(routes);
        for (what, host, path) in [
            ("exact", "node3.example.com", "/api/3/jsonrpc"),
            ("wildcard_prefix", "a.group4.example.com", "/api/4/files/a/b/c"),
            ("unknown", "elsewhere.example.com", "/admin/users/7"),
        ] {
            group.bench_function(BenchmarkId::new(what, routes), |b| {
                b.iter(|| {
                    matches!(
                        table.find(black_box(host), black_box(path.as_bytes()), &Method::POST),
                        hive_gateway::route::Lookup::Found { .. }
                    )
                });
            });
        }
    }
    group.finish();
}

fn peers(c: &mut Criterion) {
    let uri = |i: u32| format!("spiffe://mesh.example/hive/node-{i}");
    let mut group = c.benchmark_group("peer");
    for count in [10, 1_000, 100_000] {
        let matchers = (0..count).map(|i| PeerMatcher {
            name: PeerName::new(&format!("node-{i}")).unwrap(),
            rule: PeerRule::parse_uri(&uri(i)).unwrap(),
        });
        let peers = Peers::build(matchers.collect()).unwrap();
        let identities: Vec<_> =
            (0..256u32).map(|i| sample::identity(uri(i.wrapping_mul(2_654_435_761) % count))).collect();
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("uri", count), |b| {
            b.iter(|| {
                turn = (turn + 1) % identities.len();
                peers.find(black_box(&identities[turn])).is_some()
            });
        });
    }
    group.finish();
}

const HEAD: &str = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: federation.example.com\r\nUser-Agent: a2a-sdk/1.3.0\r\nAccept: \
                    application/json, text/event-stream\r\nAccept-Encoding: gzip, deflate\r\nContent-Type: application/json\r\n\
                    Content-Length: 300\r\nConnection: keep-alive\r\nA2A-Version: 1.0\r\n\
                    X-Request-Id: 0192f0c1-7e57-7c10-8b1a-6d1a2a1f9a11\r\nX-Hive-Federation-JWT: ";

fn checks(c: &mut Criterion) {
    let raw = format!("{HEAD}{}\r\n\r\n", "eyJhbGciOiJFZERTQSJ9.".repeat(20));
    let headers = sample::fields(&raw);
    let head = sample::head(&headers, &raw);
    assert!(check_form(&head).is_ok());
    let spoofable = Spoofable::new(&ProductHeaders::with_prefix("X-Hive").unwrap());
    let trusted = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]);
    let remote = "203.0.113.9".parse().unwrap();
    let mut group = c.benchmark_group("request");
    group.bench_function("check_form", |b| b.iter(|| check_form(black_box(&head)).is_ok()));
    group.bench_function("to_remove", |b| b.iter(|| spoofable.to_remove(black_box(&headers)).len()));
    group.bench_function("client_address", |b| b.iter(|| client_address(black_box(remote), &headers, &trusted)));
    group.finish();
}

criterion_group!(benches, routes, peers, checks);
