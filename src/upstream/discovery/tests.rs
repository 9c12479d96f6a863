use super::super::fakes::{node, settings};
use super::super::{Settings, Upstream};
use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn dns(name: &str) -> Discovery {
    let dns = Dns {
        servers: Vec::new(),
        family: LookupFamily::default(),
        min_ttl: Duration::from_secs(1),
        max_ttl: MINUTE,
        timeout: Duration::from_secs(1),
    };
    Discovery { kind: Kind::Dns { name: name.into(), port: 3000, dns }, tls: false, trusted: true }
}

fn upstream(metrics: &Arc<Metrics>, previous: Option<&Upstream>) -> Arc<Upstream> {
    let settings = Settings { discovery: Some(dns("hive.test")), ..settings(Vec::new()) };
    Upstream::new(settings, metrics, previous, Some(1)).unwrap()
}

fn at(port: u16) -> NodeSettings {
    node(SocketAddr::from(([127, 0, 0, 1], port)), 1)
}

#[test]
fn one_that_fails_is_asked_ever_less_often_and_keeps_its_nodes() {
    let metrics = Metrics::new();
    let upstream = upstream(&metrics, None);
    let source = upstream.source.clone().unwrap();
    source.offer(vec![at(1)], &Clock::System);
    let waits: Vec<_> = (0..8).map(|_| source.fail("no".into()).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(upstream.nodes().len(), 1);
    let status = upstream.discovery().unwrap();
    assert_eq!((status.subject.as_str(), status.error.as_deref()), ("hive.test:3000", Some("no")));
    source.offer(vec![at(1)], &Clock::System);
    assert_eq!((source.status().error, source.fail("again".into()).as_secs()), (None, 1));
}

#[test]
fn every_upstream_of_a_source_gets_its_answers() {
    let metrics = Metrics::new();
    let first = upstream(&metrics, None);
    let source = first.source.clone().unwrap();
    source.offer(vec![at(1)], &Clock::System);
    let second = upstream(&metrics, Some(&first));
    assert_eq!(second.nodes().len(), 1);
    source.offer(vec![at(1), at(2)], &Clock::System);
    assert_eq!((first.nodes().len(), second.nodes().len()), (2, 2));
    assert_eq!(first.nodes()[1].id(), second.nodes()[1].id());
}

#[test]
fn its_series_vanish_with_it_and_those_of_a_node_with_the_node() {
    let metrics = Metrics::new();
    let first = upstream(&metrics, None);
    let source = first.source.clone().unwrap();
    source.offer(vec![at(1), at(2)], &Clock::System);
    assert!(metrics.encode().contains("hive_gateway_upstream_discovered_nodes{upstream=\"hive\"} 2\n"));
    source.offer(vec![at(2)], &Clock::System);
    let text = metrics.encode();
    assert!(!text.contains("127.0.0.1:1\"") && text.contains("127.0.0.1:2\""), "{text}");
    drop((first, source));
    assert!(!metrics.encode().contains("upstream=\"hive\",result"), "{}", metrics.encode());
    assert!(!metrics.encode().contains("discovered_nodes{"));
}

#[test]
fn plain_text_over_foreign_networks_is_exposed() {
    let exposed =
        |tls, trusted, ip: &str| Discovery { tls, trusted, ..dns("hive.test") }.is_exposed(ip.parse().unwrap());
    assert!(exposed(false, true, "203.0.113.1") && exposed(false, false, "10.0.0.1"));
    assert!(
        !exposed(false, true, "10.0.0.1")
            && !exposed(false, false, "127.0.0.1")
            && !exposed(true, false, "203.0.113.1")
    );
}

#[test]
fn hosts_of_probes_have_a_port_unless_it_is_the_scheme_s_own() {
    assert_eq!(host("hive.test.", 3000, false), "hive.test:3000");
    assert_eq!((host("h", 80, false), host("h", 443, true)), ("h".to_owned(), "h".to_owned()));
    assert_eq!(host("h", 443, false), "h:443");
}
