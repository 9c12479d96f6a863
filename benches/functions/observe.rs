//! What recording costs a request: the metrics, and a line of the access log.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, criterion_group};
use hive_gateway::clock::Clock;
use hive_gateway::observe::recent::{Recent, RefusedRequest};
use hive_gateway::observe::trace::{Moments, RequestSpan, Sampler};
use hive_gateway::observe::{AccessLog, AccessLogTarget, AccessRecord, MethodLabel, Metrics, UpstreamResult};
use hive_gateway::units::Percent;

fn record() -> AccessRecord<'static> {
    AccessRecord {
        request_id: Some("0193514b-7c1e-7d0a-b0a1-6d7d3c1f2a55"),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        peer: Some("hive-paris"),
        spiffe_id: Some("spiffe://mesh.example/hive/paris"),
        tls_version: Some("TLSv1.3"),
        tls_cipher: Some("TLS_AES_128_GCM_SHA256"),
        tls_group: Some("X25519MLKEM768"),
        sni: Some("federation.example.com"),
        http_version: "HTTP/1.1",
        method: "POST",
        host: Some(b"federation.example.com"),
        path: b"/api/a2a/jsonrpc",
        route: Some("a2a"),
        rpc_method: Some(b"message/send"),
        rpc_id: Some(b"\"7b1e\""),
        status: 200,
        bytes_in: 412,
        bytes_out: 1893,
        duration: Duration::from_micros(8312),
        body: Some(Duration::from_micros(31)),
        upstream_first_byte: Some(Duration::from_micros(8105)),
        upstream: Some("hive"),
        node: Some("http://10.0.1.10:3000"),
        tries: 1,
        user_agent: Some(b"a2a-python/1.3.0"),
        ..AccessRecord::new(SystemTime::now(), "federation", [203, 0, 113, 9].into())
    }
}

fn metrics(c: &mut Criterion) {
    let metrics = Metrics::new();
    let route = metrics.route("a2a", "/api/a2a/jsonrpc");
    let upstream = metrics.upstream("hive");
    let node = metrics.upstream_node("hive", "http://10.0.1.10:3000");
    let took = Duration::from_micros(8312);
    let names: Vec<_> = (0..1000).map(|n| hive_gateway::names::PeerName::new(&format!("peer-{n}")).unwrap()).collect();
    let peers = metrics.peers(names.into_iter(), 100);
    let listener = metrics.listener("federation");
    listener.opened();
    c.bench_function("metrics/route_record", |b| {
        b.iter(|| route.record(black_box(MethodLabel::Post), black_box(200), black_box(took)));
    });
    c.bench_function("metrics/peer_record", |b| b.iter(|| peers.of(black_box(Some(7))).record(black_box(200), took)));
    // What the status page shows of refusals: again from a client that is known, and of a flood from ever new ones.
    let recent = Recent::default();
    let refused = |n: u32| RefusedRequest {
        code: "not_found",
        status: 404,
        listener: "federation".into(),
        client: std::net::Ipv4Addr::from_bits(n).into(),
        peer: Some("hive-paris".into()),
        route: None,
        path: "/api/users".into(),
        request_id: Some("0193514b-7c1e-7d0a-b0a1-6d7d3c1f2a55".into()),
    };
    let mut client = 0;
    let note = |n: u32| {
        let address = std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        recent.refusals.note(
            SystemTime::now(),
            address,
            |seen| seen.client == address && seen.code == "not_found",
            || refused(n),
        );
    };
    (0..64).for_each(note);
    c.bench_function("recent/refusal_again", |b| b.iter(|| note(black_box(63))));
    c.bench_function("recent/refusal_flood", |b| {
        b.iter(|| {
            client += 1;
            note(black_box(1000 + client));
        });
    });
    c.bench_function("totals", |b| b.iter(|| metrics.totals()));
    c.bench_function("metrics/refusal", |b| b.iter(|| metrics.refusal(black_box("not_found"))));
    // All that one proxied request counts.
    c.bench_function("metrics/whole_request", |b| {
        b.iter(|| {
            let in_flight = metrics.request_started();
            listener.works();
            node.request_started();
            upstream.first_byte(black_box(took));
            node.record(black_box(UpstreamResult::Ok));
            node.request_ended();
            route.record(MethodLabel::from(black_box(&http::Method::POST)), black_box(200), black_box(took));
            peers.of(black_box(Some(7))).record(black_box(200), black_box(took));
            listener.rests();
            drop(in_flight);
        });
    });
}

/// What deciding costs a request when tracing is on, and what a traced one costs beside.
fn tracing(c: &mut Criterion) {
    let theirs = http::HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    let random = || {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        bytes[16..].copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[8..]);
        bytes
    };
    let sampler = Sampler::new(Percent(0), true);
    c.bench_function("tracing/not_sampled_with_parent", |b| b.iter(|| sampler.begin(black_box(Some(&theirs)), random)));
    c.bench_function("tracing/not_sampled_without_parent", |b| b.iter(|| sampler.begin(black_box(None), random)));
    let sampler = Sampler::new(Percent(1000), true);
    let node: std::sync::Arc<str> = "http://10.0.1.10:3000".into();
    c.bench_function("tracing/sampled", |b| {
        b.iter(|| {
            let (trace, _) = sampler.begin(None, random);
            let (mut trace, now) = (trace.unwrap(), Instant::now());
            trace.admitted(now);
            let told = trace.traceparent();
            trace.try_started(&node, now);
            trace.connected(true, now);
            trace.answered(200, now);
            trace.forwarded(now);
            let moments =
                Moments { started: now, wall: SystemTime::now(), body_read: Some(now), queued: None, ended: now };
            let (name, method) = ("POST /a".into(), "POST");
            let span = RequestSpan { name, method, state: None, attributes: Vec::new(), error: None };
            (told, trace.finish(span, &moments))
        });
    });
}

fn access_log(c: &mut Criterion) {
    let record = record();
    let mut line = Vec::new();
    c.bench_function("access_log/format", |b| {
        b.iter(|| {
            line.clear();
            black_box(&record).write_json(&mut line);
            line.len()
        });
    });
    println!("one line: {} bytes", line.len());
    let metrics = Metrics::new();
    let target = AccessLogTarget::File(PathBuf::from("/dev/null"));
    let log = AccessLog::open(&target.into(), Clock::System, &metrics).unwrap();
    c.bench_function("access_log/record", |b| b.iter(|| log.record(black_box(&record))));
    // All threads at once, each its own lines: what the lock between them costs.
    c.bench_function("access_log/record_2_threads", |b| {
        b.iter_custom(|rounds| {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..rounds).for_each(|_| log.record(black_box(&record))));
                }
            });
            started.elapsed()
        });
    });
    log.close(Duration::from_secs(10));
    for line in metrics.encode().lines().filter(|l| l.starts_with("hive_gateway_access_log")) {
        println!("{line}");
    }
}

criterion_group!(benches, metrics, access_log, tracing);
