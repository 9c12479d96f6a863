//! What a rate limit costs per decision, key included, with 10 to 10,000,000 keys: keys within their limits, keys
//! that come now and then, and one key far beyond its limit.
//!
//! `cargo bench --bench functions -- rate_limit`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use hive_gateway::observe::Metrics;
use hive_gateway::policy::rate_limit::{Caller, Facts, KeyPart, Limit, Quota, RateLimiter};
use hive_gateway::proxy::sketch::CountMin;
use hive_gateway::units::Rate;
use http::HeaderMap;

fn limit(burst: u32) -> Limit {
    let quota = Quota::new(Rate { count: 100, per: Duration::from_secs(1) }, burst);
    Limit::new("route/a2a/address".into(), &[KeyPart::Address], quota, true, false, &Metrics::new())
}

fn facts(address: IpAddr, headers: &HeaderMap) -> Facts<'_> {
    Facts {
        address: black_box(address),
        caller: Caller::Peer("alice"),
        sni: None,
        route: Some("a2a"),
        method: None,
        issuer: None,
        headers,
    }
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("rate_limit");
    // Half a million decisions a second, so that time passes as it does under load.
    let each = Duration::from_micros(2);
    // A burst of 40 is watched exactly from the first request, one of 1000 only when a key comes more often.
    for (stage, burst) in [("exact", 40), ("sketch", 1000)] {
        for keys in [10u32, 10_000, 1_000_000, 10_000_000] {
            let limit = limit(burst);
            let headers = HeaderMap::new();
            let mut now = Instant::now();
            let limiter = RateLimiter::<CountMin>::new(keys.clamp(100_000, 1_000_000) as usize, 64, now);
            let mut n = 0u32;
            group.bench_function(BenchmarkId::new(stage, keys), |b| {
                b.iter(|| {
                    n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    now += each;
                    let address = IpAddr::V4(Ipv4Addr::from((n >> 8) % keys));
                    let facts = facts(address, &headers);
                    limiter.decide(&limit, limiter.key(&limit, &facts), 1, now).is_ok()
                });
            });
        }
    }
    let limit = limit(200);
    let headers = HeaderMap::new();
    let mut now = Instant::now();
    let limiter = RateLimiter::<CountMin>::new(100_000, 64, now);
    group.bench_function("abuser", |b| {
        b.iter(|| {
            now += each;
            let facts = facts(IpAddr::V4(Ipv4Addr::LOCALHOST), &headers);
            limiter.decide(&limit, limiter.key(&limit, &facts), 1, now).is_ok()
        });
    });
    group.finish();
}

criterion_group!(benches, decisions);
