use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509NameBuilder};
use pingora::ErrorType;
use pingora::upstreams::peer::Peer;
use pingora::utils::tls::CertKey;

use super::super::fakes::{Does, FakeNode, OK, build, node, plain, rebuild, settings, until};
use super::super::{BreakerLimits, ConnectionLimits, Request, SettingsError, Upstream};
use super::*;
use crate::config::file::{Balance, HealthCheck, UpstreamTimeouts};
use crate::tls::UpstreamTlsMaterial;
use crate::units::Span;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn idle(settings: Settings, idle: Duration) -> Settings {
    Settings { timeouts: UpstreamTimeouts { idle: Span(idle), ..UpstreamTimeouts::default() }, ..settings }
}

/// One request as the proxy makes it, at `now`; whether its connection was an old one.
async fn request_at(upstream: &Upstream, now: Instant) -> bool {
    let picked = upstream.pick(&plain()).unwrap();
    let mut exchange = picked.connect(upstream, now).await.unwrap();
    let reused = exchange.reused();
    let http1 = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: hive\r\n\r\n");
    let request = Request { http2: None, http1, body: Bytes::new(), no_body: false };
    let header = exchange.send(&request).await.unwrap();
    picked.node().learn_keep_alive(&header.headers);
    while exchange.body().await.unwrap().is_some() {}
    picked.release(exchange, now);
    reused
}

fn certificate(name: &str) -> CertKey {
    let key =
        PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut cert = X509::builder().unwrap();
    cert.set_subject_name(&subject).unwrap();
    cert.set_issuer_name(&subject).unwrap();
    cert.set_pubkey(&key).unwrap();
    cert.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    cert.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    cert.sign(&key, MessageDigest::sha256()).unwrap();
    CertKey::new(vec![cert.build()], key)
}

fn material(generation: u64) -> UpstreamTlsMaterial {
    let client = certificate("gateway");
    UpstreamTlsMaterial {
        ca: Arc::new(vec![client.leaf().clone()].into()),
        server_name: "hive.internal".into(),
        spiffe_id: None,
        client: Some(Arc::new(client)),
        generation,
        min_version: crate::config::file::TlsVersion::Tls12,
        client_facts: None,
        authorities: Vec::new(),
        revocation: None,
        warnings: Vec::new(),
        waiting: false,
    }
}

fn https(address: std::net::SocketAddr, tls: Option<UpstreamTlsMaterial>) -> Settings {
    let node = super::super::NodeSettings { tls: true, ..node(address, 1) };
    Settings { tls, ..settings(vec![node]) }
}

const ANYWHERE: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 1);

#[test]
fn a_peer_carries_the_limits_and_nothing_that_weakens_it() {
    let upstream = build(https(ANYWHERE, Some(material(1))));
    let peer = upstream.pick(&plain()).unwrap().node().peer_for_exchange();
    assert_eq!(peer.options.total_connection_timeout, Some(Duration::from_secs(2)));
    assert_eq!(peer.options.connection_timeout, None);
    assert_eq!(peer.options.http_upstream_request_policy, HttpUpstreamRequestPolicy::deny_upgrades());
    assert_eq!(peer.options.alpn, ALPN::H1);
    assert!(peer.options.verify_cert && peer.options.verify_hostname);
    assert!(peer.is_tls() && peer.proxy.is_none());
    assert_eq!(peer.sni, "hive.internal");
    assert!(peer.options.ca.is_some() && peer.client_cert_key.is_some());
}

#[test]
fn tls_without_the_means_to_verify_is_refused() {
    let refused = |settings| Upstream::new(settings, &crate::observe::Metrics::new(), None, None).err();
    assert!(matches!(refused(https(ANYWHERE, None)), Some(SettingsError::NoTlsMaterial(_))));
    let nameless = UpstreamTlsMaterial { server_name: String::new(), ..material(1) };
    assert_eq!(refused(https(ANYWHERE, Some(nameless))), Some(SettingsError::EmptyServerName));
    assert_eq!(refused(settings(vec![])), Some(SettingsError::NoNodes));
    assert!(matches!(refused(settings(vec![node(ANYWHERE, 0)])), Some(SettingsError::Weight { .. })));
}

#[test]
fn connections_are_shared_only_under_the_same_upstream_and_material() {
    let hash = |upstream: &Upstream| upstream.pick(&plain()).unwrap().node().peer_for_exchange().reuse_hash();
    let tls = material(1);
    let old = build(https(ANYWHERE, Some(tls.clone())));
    let same = rebuild(https(ANYWHERE, Some(tls.clone())), Some(&old));
    assert_eq!(hash(&old), hash(&same), "a reload that changes nothing keeps the connections");
    let newer = rebuild(https(ANYWHERE, Some(UpstreamTlsMaterial { generation: 2, ..tls })), Some(&old));
    assert_ne!(hash(&old), hash(&newer));
    let plain = build(settings(vec![node(ANYWHERE, 1)]));
    let name = crate::names::UpstreamName::new("other").unwrap();
    let other = build(Settings { name, ..settings(vec![node(ANYWHERE, 1)]) });
    assert_ne!(hash(&plain), hash(&other));
}

#[tokio::test]
async fn an_idle_connection_is_reused_and_closed_after_the_configured_time() {
    let fake = FakeNode::start(OK).await;
    let upstream = build(idle(settings(vec![node(fake.address, 1)]), SECOND));
    let now = Instant::now();
    assert!(!request_at(&upstream, now).await);
    assert!(request_at(&upstream, now + SECOND / 2).await);
    assert!(!request_at(&upstream, now + SECOND * 3 / 2).await, "it has rested for a second");
    until("closed", || fake.open.load(Ordering::SeqCst) == 1).await;
    upstream.nodes()[0].close_idle(now + SECOND * 5 / 2);
    until("closed", || fake.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_anybody_asking_for_one() {
    let fake = FakeNode::start(OK).await;
    let quiet = HealthCheck { enabled: false, ..HealthCheck::default() };
    let upstream = build(Settings { health_check: quiet, ..idle(settings(vec![node(fake.address, 1)]), SECOND / 100) });
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(super::super::look_after(upstream.clone(), crate::clock::Clock::System, stopped));
    assert!(!request_at(&upstream, Instant::now()).await);
    until("closed", || fake.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_connection_is_not_reused_for_longer_than_the_node_keeps_it() {
    const SHORT: Does = Does::Answer("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=3\r\nContent-Length: 2\r\n\r\nok");
    let fake = FakeNode::start(SHORT).await;
    let upstream = build(idle(settings(vec![node(fake.address, 1)]), MINUTE));
    let now = Instant::now();
    assert!(!request_at(&upstream, now).await);
    assert!(request_at(&upstream, now + SECOND).await);
    assert_eq!(upstream.nodes()[0].idle_limit(), SECOND * 2);
    assert!(!request_at(&upstream, now + SECOND * 3).await, "for less than the node said");
}

#[tokio::test]
async fn a_longer_hint_changes_nothing() {
    const LONG: Does = Does::Answer("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=600\r\nContent-Length: 2\r\n\r\nok");
    let fake = FakeNode::start(LONG).await;
    let upstream = build(idle(settings(vec![node(fake.address, 1)]), SECOND));
    let now = Instant::now();
    assert!(!request_at(&upstream, now).await);
    assert_eq!(upstream.nodes()[0].idle_limit(), SECOND);
    assert!(!request_at(&upstream, now + SECOND).await);
}

#[tokio::test]
async fn a_connection_that_the_node_has_closed_is_not_reused() {
    const BYE: Does = Does::AnswerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let fake = FakeNode::start(BYE).await;
    let upstream = build(idle(settings(vec![node(fake.address, 1)]), MINUTE));
    let now = Instant::now();
    assert!(!request_at(&upstream, now).await);
    until("closed", || fake.open.load(Ordering::SeqCst) == 0).await;
    assert!(!request_at(&upstream, now).await);
}

#[tokio::test]
async fn a_connection_with_more_than_the_answer_on_it_is_not_reused() {
    const MORE: Does = Does::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n");
    let fake = FakeNode::start(MORE).await;
    let upstream = build(idle(settings(vec![node(fake.address, 1)]), MINUTE));
    assert!(!request_at(&upstream, Instant::now()).await);
    assert!(!request_at(&upstream, Instant::now()).await);
}

#[test]
fn hints_are_read_with_care() {
    let learned = |hint: &str| {
        let upstream = build(idle(settings(vec![node(ANYWHERE, 1)]), MINUTE));
        let mut headers = http::HeaderMap::new();
        headers.insert("keep-alive", hint.parse().unwrap());
        upstream.nodes()[0].learn_keep_alive(&headers);
        upstream.nodes()[0].idle_limit().as_millis()
    };
    for (hint, limit_ms) in [
        ("timeout=5", 4_000),
        ("max=100, Timeout = 5 ", 4_000),
        ("timeout=2", 1_000),
        ("timeout=1", 500),
        ("timeout=0", 0),
        ("timeout=4294967295", 60_000),
        ("timeout=-1", 60_000),
        ("timeout=five", 60_000),
        ("max=5", 60_000),
        ("timeout", 60_000),
    ] {
        assert_eq!(learned(hint), limit_ms, "{hint}");
    }
}

#[tokio::test]
async fn tcp_and_tls_share_one_limit() {
    // Takes the connection, and never answers the handshake.
    let fake = FakeNode::start(Does::Hang).await;
    let timeouts = UpstreamTimeouts { connect: Span(Duration::from_millis(100)), ..UpstreamTimeouts::default() };
    let upstream = build(Settings { timeouts, ..https(fake.address, Some(material(1))) });
    let before = Instant::now();
    let error = upstream.pick(&plain()).unwrap().connect(&upstream, before).await.err().unwrap();
    assert_eq!(error.etype(), &ErrorType::ConnectTimedout);
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}

/// As many connections as there may be, idle ones included: one at another node makes room, and a reload lowers the limit.
#[tokio::test]
async fn idle_connections_count_and_make_room() {
    let fakes = [FakeNode::start(OK).await, FakeNode::start(OK).await, FakeNode::start(OK).await];
    let with = |max: u32| {
        let connections = Some(ConnectionLimits { max, max_pending: 8, pending_timeout: MINUTE });
        let nodes = fakes.iter().map(|f| node(f.address, 1)).collect();
        let off = HealthCheck { enabled: false, ..HealthCheck::default() };
        let settings = Settings { balance: Balance::RoundRobin, health_check: off, ..settings(nodes) };
        let circuit_breaker = BreakerLimits { connections, ..settings.circuit_breaker };
        idle(Settings { circuit_breaker, ..settings }, MINUTE)
    };
    let open = || fakes.iter().map(|f| f.open.load(Ordering::SeqCst)).sum::<usize>();
    let two = build(with(2));
    let now = Instant::now();
    for _ in 0..30 {
        let permit = two.enter().unwrap();
        request_at(&two, now).await;
        drop(permit);
        until("no more than two", || open() <= 2).await;
    }
    assert_eq!(open(), 2);
    assert!(fakes.iter().all(|f| f.connections.load(Ordering::SeqCst) > 2), "each had its turn");
    let one = rebuild(with(1), Some(&two));
    one.take_effect();
    for _ in 0..4 {
        let permit = one.enter().unwrap();
        request_at(&one, now).await;
        drop(permit);
    }
    until("one is left", || open() == 1).await;
    // Nodes that the next configuration has not keep nothing.
    let none = Settings { nodes: vec![node(ANYWHERE, 1)], ..with(1) };
    one.succeeded_by(Some(&rebuild(none, Some(&one))));
    until("all are closed", || open() == 0).await;
}

#[tokio::test]
async fn http2_connections_to_a_node_that_is_gone_close_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counts = open.clone();
    tokio::spawn(async move {
        loop {
            let tcp = listener.accept().await.unwrap().0;
            let counts = counts.clone();
            tokio::spawn(async move {
                counts.fetch_add(1, Ordering::SeqCst);
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_response(http::Response::new(()), true).unwrap();
                }
                counts.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let off = HealthCheck { enabled: false, ..HealthCheck::default() };
    let settings =
        Settings { protocol: UpstreamProtocol::Http2, health_check: off, ..settings(vec![node(address, 1)]) };
    let settings = idle(settings, MINUTE);
    let header = || {
        let mut header = pingora::http::RequestHeader::build("GET", b"/", None).unwrap();
        header.insert_header("host", "hive").unwrap();
        header
    };
    let request = || Request { http2: Some(header()), http1: Bytes::new(), body: Bytes::new(), no_body: false };
    // One that rests, and one that carries a request when its node goes.
    for busy in [false, true] {
        let upstream = build(settings.clone());
        let picked = upstream.pick(&plain()).unwrap();
        let mut exchange = picked.connect(&upstream, Instant::now()).await.unwrap();
        exchange.send(&request()).await.unwrap();
        assert_eq!(open.load(Ordering::SeqCst), 1);
        if busy {
            upstream.succeeded_by(None);
        }
        picked.release(exchange, Instant::now());
        if !busy {
            upstream.succeeded_by(None);
        }
        until("it is closed", || open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn http2_in_plain_text_is_spoken_without_asking() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.headers()["x-real-ip"], "127.0.0.1");
            respond.send_response(http::Response::new(()), true).unwrap();
        }
    });
    let upstream = build(Settings { protocol: UpstreamProtocol::Http2, ..settings(vec![node(address, 1)]) });
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(super::super::look_after(upstream.clone(), crate::clock::Clock::System, stopped));
    until("up over HTTP/2", || upstream.is_ready()).await;
}
