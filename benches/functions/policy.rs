//! What each policy costs a call of 300 bytes by itself, and all of them together, on a gateway built from a
//! configuration as it would run. Each is the gateway's own code, as `proxy::admit` calls it.
//!
//! `cargo bench --bench functions -- policy`

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group};
use hive_gateway::cli::pki::{CertificateSpec, Development, Validity, write_issued};
use hive_gateway::clock::Clock;
use hive_gateway::config::{Surroundings, load_text};
use hive_gateway::observe::Metrics;
use hive_gateway::policy::body_memory::BodyMemory;
use hive_gateway::policy::json_rpc::check_media_type;
use hive_gateway::policy::load::Load;
use hive_gateway::policy::overload::{Class, Lag};
use hive_gateway::policy::rate_limit::{Caller, Facts, Limit, RateLimiter};
use hive_gateway::policy::rules;
use hive_gateway::proxy::sketch::CountMin;
use hive_gateway::proxy::{check, told};
use hive_gateway::request::client_address;
use hive_gateway::snapshot::{Ground, Route, Snapshot};
use http::Method;

use super::sample;

const CONFIG: &str = r#"
listeners:
  - name: federation
    address: 127.0.0.1:8443
    tls:
      certificates: [{ cert: server.pem, key: server.key }]
      client_auth: { ca: ca.pem }
    rate_limits: [{ per: address, rate: 100000000/s, burst: 1000000 }]
    deny: [198.51.100.0/24, "2001:db8:bad::/48"]
    request_rules:
      - { name: scanners, user_agent: [sqlmap, nikto, masscan, nmap, zgrab] }
      - { name: dotfiles, path: '/\.(?:git|env|svn)' }
      - { name: debug, query: '(?:^|&)debug=' }
      - { name: many-headers, max_headers: 50 }
      - { name: large-header, max_header_bytes: 8KiB }
      - { name: long-uri, max_uri_bytes: 2KiB }
peers:
  - { name: hive-paris, uri: "spiffe://mesh.example/hive/paris" }
  - { name: operators, uri: "spiffe://mesh.example/operator/*" }
routes:
  - name: a2a
    hosts: [federation.example.com]
    paths: [/api/a2a/jsonrpc, /api/a2a/federated/jsonrpc]
    methods: [POST]
    peers: [hive-paris]
    upstream: hive
    json_rpc:
      methods: [message/send, message/stream, "tasks/*"]
      notifications: reject
      params_limit: 64KiB
    rate_limits:
      - { per: peer, rate: 100000000/s, burst: 1000000 }
      - { per: [peer, method], rate: 100000000/s, burst: 1000000 }
  - name: schema
    paths: [/schema]
    methods: [POST]
    peers: any
    upstream: hive
    json_rpc: { schemas: [{ method: message/send, file: send.json }] }
  - { name: discovery, paths: ["/.well-known/*"], methods: [GET], peers: any, upstream: hive }
upstreams: [{ name: hive, endpoints: ["http://127.0.0.1:3000"], adaptive_concurrency: {} }]
"#;

const SCHEMA: &str = r#"{ "type": "object", "required": ["message"], "properties": { "message": { "type": "object",
    "required": ["role", "parts", "messageId"], "properties": { "role": { "enum": ["user", "agent"] }, "messageId": { "type": "string",
    "pattern": "^[0-9a-z-]{1,64}$" }, "parts": { "type": "array", "maxItems": 50, "items": { "required": ["kind"] } } } } } }"#;

const HEAD: &str = "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: federation.example.com\r\nUser-Agent: a2a-sdk/1.3.0\r\nAccept: \
                    application/json, text/event-stream\r\nAccept-Encoding: gzip, deflate\r\nContent-Type: application/json\r\n\
                    Content-Length: 300\r\nConnection: keep-alive\r\nA2A-Version: 1.0\r\n\
                    X-Request-Id: 0192f0c1-7e57-7c10-8b1a-6d1a2a1f9a11\r\n\r\n";

const BODY: &str = r#"{"jsonrpc":"2.0","id":"5f0a6ad2-2b0c-4f6a-9c59-4c9a2f8b7a10","method":"message/send","params":{"message":{"kind":"message","role":"user","messageId":"0192f0c1-7e57-7c10-8b1a-6d1a2a1f9a11","parts":[{"kind":"text","text":"What is the weather in Paris"}]},"configuration":{"blocking":true,"historyLength":10}}}"#;

/// A directory with what the configuration names, gone afterwards.
struct Directory(std::path::PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn snapshot() -> Snapshot {
    let directory = Directory(std::env::temp_dir().join(format!("hive-gateway-policy-{}", std::process::id())));
    let at: &Path = &directory.0;
    std::fs::create_dir(at).unwrap();
    let now = Clock::System.unix_seconds();
    let validity = Validity::hours_from(now, 24);
    let ca = Development::new("Policy", validity).unwrap();
    let server = CertificateSpec::server("federation", validity).dns("federation.example.com");
    write_issued(at, "server", &server.issue(&ca.intermediate).unwrap(), true).unwrap();
    std::fs::write(at.join("ca.pem"), ca.root.cert_pem().unwrap()).unwrap();
    std::fs::write(at.join("send.json"), SCHEMA).unwrap();
    let around = Surroundings::of_system(&|_| None);
    let loaded = load_text(&at.join("gateway.yaml"), CONFIG, &around).unwrap();
    let metrics = Metrics::new();
    let ground = Ground { metrics: &metrics, previous: None, issued: None, now_unix: now };
    Snapshot::build(Arc::new(loaded.config), 1, ground).unwrap()
}

/// What `proxy::overload` and the body ask for each request: whether threads are late, a place at the listener, of the
/// address and of the peer, memory for the body, one more for the upstream; and what its answer tells that.
fn overload<'a>(snapshot: &'a Snapshot, route: &'a Route) -> impl Fn(Instant) -> bool + 'a {
    let (lag, memory) = (Lag::default(), BodyMemory::new(1 << 28));
    let loads: [Arc<Load>; 3] = Default::default();
    let concurrency = route.upstream.concurrency.as_ref().unwrap();
    move |now| {
        let late = lag.sheds(Class::Request, &snapshot.overload);
        let places = loads.each_ref().map(Load::request);
        let mut body = memory.share();
        let room = body.grow(BODY.len() as u64);
        let permit = concurrency.acquire(false, now);
        let good = !late && room && permit.is_some() && places.iter().all(|(_, taken)| *taken == 1);
        permit.unwrap().answered(now + Duration::from_millis(2));
        good
    }
}

fn policies(c: &mut Criterion) {
    let snapshot = snapshot();
    let listener = &snapshot.listeners[0];
    let context = listener.tls.as_ref().unwrap();
    let headers = sample::fields(HEAD);
    let head = sample::head(&headers, HEAD);
    let (host, remote, identity) = (
        "federation.example.com",
        "203.0.113.9".parse().unwrap(),
        sample::identity("spiffe://mesh.example/hive/paris".into()),
    );
    let peer = snapshot.peers.find(&identity).unwrap().clone();
    let client = client_address(remote, &headers, &listener.trusted);
    let route_at = |path: &str| {
        let (found, _) = check::route(&listener.routes, host, path.as_bytes(), &Method::POST, Some(&peer));
        found.unwrap().route.clone()
    };
    let (route, with_schema) = (route_at("/api/a2a/jsonrpc"), route_at("/schema"));
    let (policy, schema) = (route.json_rpc.as_ref().unwrap(), with_schema.json_rpc.as_ref().unwrap());
    let (form, xfcc) = (|| check::form(&head, HEAD.len(), listener.deadlines.header_bytes), &identity);
    let told = || {
        let host = headers.get("host").map(|host| host.as_bytes());
        let client = told::Client { address: &client, identity: Some(xfcc), https: true, host };
        let mut bytes = 0;
        client.tell(&snapshot, &mut |name, value| bytes += name.as_str().len() + value.len());
        bytes
    };

    let denied = || check::address(listener.addresses.as_deref(), remote, Some(client.address)).is_ok();
    let rules = || listener.rules.check(&rules::Facts { target: head.target, headers: &headers }, |_| {}).is_ok();

    let overload = overload(&snapshot, &route);
    let start = Instant::now();
    let limiter = RateLimiter::<CountMin>::new(100_000, 64, start);
    let mut asked = 0u64;
    // Half a million decisions a second, so that time passes as it does under load.
    let mut decide = |limit: &Limit, method: Option<&str>| {
        asked += 1;
        let facts = Facts {
            address: client.address,
            caller: Caller::of(Some(peer.name.as_str()), Some(&identity)),
            sni: Some(host),
            route: Some(route.name.as_str()),
            method,
            issuer: None,
            headers: &headers,
        };
        let now = start + Duration::from_micros(2 * asked);
        limiter.decide(limit, limiter.key(limit, &facts), 1, now).is_ok()
    };
    let by_address = &listener.rate_limits.by_request[0];
    let (by_peer, by_method) = (&route.rate_limits.by_request[0], &route.rate_limits.by_call[0]);

    let mut group = c.benchmark_group("policy");
    group.bench_function("form", |b| b.iter(|| black_box(form()).is_ok()));
    group.bench_function("client_address", |b| {
        b.iter(|| client_address(black_box(remote), &headers, &listener.trusted));
    });
    group.bench_function("host_and_sni", |b| b.iter(|| check::host(black_box(host), Some(host), context).is_ok()));
    group.bench_function("peer_of_certificate", |b| b.iter(|| snapshot.peers.find(black_box(&identity)).is_some()));
    group.bench_function("deny", |b| b.iter(|| black_box(denied())));
    group.bench_function("request_rules", |b| b.iter(|| black_box(rules())));
    group.bench_function("route_and_peer", |b| {
        b.iter(|| check::route(&listener.routes, black_box(host), head.target, &Method::POST, Some(&peer)).1.is_ok());
    });
    group.bench_function("rate_limit_by_address", |b| b.iter(|| decide(black_box(by_address), None)));
    group.bench_function("rate_limit_by_peer_and_method", |b| {
        b.iter(|| decide(black_box(by_method), Some("message/send")));
    });
    let mut answers = 0u64;
    let mut in_time = || {
        answers += 1;
        overload(start + Duration::from_micros(2 * answers))
    };
    group.bench_function("overload", |b| b.iter(|| black_box(in_time())));
    group.bench_function("media_type", |b| b.iter(|| check_media_type(black_box(&headers)).is_ok()));
    group.bench_function("json_rpc", |b| b.iter(|| policy.check(black_box(BODY.as_bytes()), |_| {}).is_ok()));
    group.bench_function("json_rpc_with_schema", |b| {
        b.iter(|| schema.check(black_box(BODY.as_bytes()), |_| {}).is_ok());
    });
    group.bench_function("headers_to_remove", |b| b.iter(|| snapshot.spoofable.to_remove(black_box(&headers)).len()));
    group.bench_function("headers_to_set", |b| b.iter(told));
    // All but the look-up of the certificate, which is done once for a connection.
    for (name, json_rpc) in [("all", policy), ("all_with_schema", schema)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let Ok(form) = black_box(form()) else { return false };
                client_address(remote, &headers, &listener.trusted);
                let mut good = in_time() && check::host(&form.host, Some(host), context).is_ok() && denied();
                let path = check::path_of(head.target);
                good &= check::route(&listener.routes, &form.host, path, head.method, Some(&peer)).1.is_ok();
                good &= decide(by_address, None) && rules() && decide(by_peer, None);
                good &= check::no_body(head.method, true).is_ok() && check_media_type(&headers).is_ok();
                good &= json_rpc.check(BODY.as_bytes(), |_| {}).is_ok();
                good &= decide(by_method, Some("message/send"));
                good && snapshot.spoofable.to_remove(&headers).is_empty() && told() > 0
            });
        });
    }
    group.finish();
}

criterion_group!(benches, policies);
