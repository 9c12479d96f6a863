use std::thread;

use super::*;
use crate::observe::Metrics;

fn lines(metrics: &Metrics, prefix: &str) -> Vec<String> {
    metrics.encode().lines().filter(|l| l.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn each_method_and_status_has_its_own_counter() {
    let metrics = Metrics::new();
    let route = metrics.route("a2a", "/a");
    for status in (100..=599).chain([0, 99, 600, u16::MAX]) {
        route.record(MethodLabel::Post, status, Duration::ZERO);
    }
    route.record(MethodLabel::Other, 599, Duration::ZERO);
    let counters = lines(&metrics, "hive_gateway_http_requests_total{");
    assert_eq!(counters.len(), 502);
    assert_eq!(counters.iter().filter(|l| l.ends_with(" 1")).count(), 501);
    assert!(
        counters.contains(&"hive_gateway_http_requests_total{code=\"other\",method=\"POST\",path=\"/a\"} 4".into())
    );
    assert!(
        lines(&metrics, "hive_gateway_http_request_duration_seconds_count")
            .contains(&"hive_gateway_http_request_duration_seconds_count{route=\"a2a\"} 505".into())
    );
}

#[test]
fn requests_are_counted_by_route_and_class_of_status() {
    let metrics = Metrics::new();
    let (one, two) = (metrics.route("a2a", "/a"), metrics.route("a2a", "/b"));
    for (route, status) in [(&one, 200), (&two, 204), (&two, 503), (&one, 404), (&one, 0), (&one, 600)] {
        route.record(MethodLabel::Get, status, Duration::ZERO);
    }
    let counts = lines(&metrics, "hive_gateway_route_requests_total{");
    // Those that are 0 stand there too, so that the first failure is an increase.
    let expected = [("1xx", 0), ("2xx", 2), ("3xx", 0), ("4xx", 1), ("5xx", 1), ("other", 2)];
    for (class, count) in expected {
        let line = format!("hive_gateway_route_requests_total{{code=\"{class}\",route=\"a2a\"}} {count}");
        assert!(counts.contains(&line), "{line}\n{counts:#?}");
    }
}

#[test]
fn handles_made_again_go_on_counting() {
    let metrics = Metrics::new();
    for _ in 0..2 {
        metrics.route("a2a", "/a").record(MethodLabel::Get, 200, Duration::ZERO);
        metrics.listener("l").accepted();
    }
    assert!(lines(&metrics, "hive_gateway_http_requests_total{")[0].ends_with(" 2"));
    assert!(lines(&metrics, "hive_gateway_connections_accepted_total")[0].ends_with(" 2"));
}

#[test]
fn no_count_is_lost_between_threads() {
    let metrics = Metrics::new();
    let route = metrics.route("a2a", "/a");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..5000 {
                    route.record(MethodLabel::Post, 200 + i % 3, Duration::from_micros(i.into()));
                    metrics.refusal(["a", "b", "c"][usize::from(i % 3)]);
                }
            });
        }
    });
    let sum = |prefix: &str| -> u64 {
        lines(&metrics, prefix).iter().filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    assert_eq!(sum("hive_gateway_http_requests_total{"), 20_000);
    assert_eq!(sum("hive_gateway_refusals_total{"), 20_000);
    assert_eq!(sum("hive_gateway_http_request_duration_seconds_count{"), 20_000);
}

#[test]
fn a_request_is_in_flight_until_its_guard_goes() {
    let metrics = Metrics::new();
    let guard = metrics.request_started();
    assert_eq!(lines(&metrics, "hive_gateway_requests_in_flight"), ["hive_gateway_requests_in_flight 1"]);
    drop(guard);
    assert_eq!(lines(&metrics, "hive_gateway_requests_in_flight"), ["hive_gateway_requests_in_flight 0"]);
}

#[test]
fn a_failed_handshake_is_counted_by_its_result() {
    let metrics = Metrics::new();
    let listener = metrics.listener("l");
    for result in HandshakeResult::ALL {
        listener.handshake(result, Duration::from_millis(1));
    }
    let counters = lines(&metrics, "hive_gateway_tls_handshakes_total{");
    assert_eq!(counters.len(), HandshakeResult::ALL.len());
    assert!(counters.iter().all(|l| l.ends_with(" 1")), "{counters:?}");
}

#[test]
fn a_nodes_series_vanish_with_its_last_handle_and_not_before() {
    let metrics = Metrics::new();
    let first = metrics.upstream_node("hive", "a");
    let other = metrics.upstream_node("hive", "b");
    first.set_up(true);
    // A reload: the new configuration resolves the node before the old one lets go of it.
    let second = metrics.upstream_node("hive", "a");
    drop(first);
    second.record(UpstreamResult::Ok);
    assert!(lines(&metrics, "hive_gateway_upstream_node_up{")[0].ends_with("node=\"a\",upstream=\"hive\"} 1"));
    drop(second);
    assert_eq!(lines(&metrics, "hive_gateway_upstream_").iter().filter(|l| l.contains("node=\"a\"")).count(), 0);
    assert!(!lines(&metrics, "hive_gateway_upstream_node_up{").is_empty());
    drop(other);
    assert!(lines(&metrics, "hive_gateway_upstream_node_up{").is_empty());
}
