//! Traces, as a collector gets them.

use std::collections::BTreeSet;

use crate::documentation::first_column;
use crate::support::certs::server_leaf;
use crate::support::collector::{Collector, Span, attributes, hex};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::Node;
use crate::support::wait_until;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn setup(nodes: &[std::net::SocketAddr], collector: &Collector, more: &str) -> Setup {
    let mut setup = Setup::new(nodes);
    setup.top = format!("tracing: {{ otlp: \"http://{}\"{more} }}", collector.address);
    setup
}

fn call(headers: &str) -> String {
    let body = r#"{"jsonrpc":"2.0","id":"call-7","method":"message/send","params":{}}"#;
    format!(
        "POST /api/a2a/jsonrpc?token=s3cr3t HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n\
         User-Agent: tester/1\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\n{headers}\r\n")
}

fn sampled() -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n")
}

fn status_of(gateway: &Gateway, request: &str) -> u16 {
    gateway.connect("alice").exchange(request.as_bytes()).unwrap().status
}

#[track_caller]
fn one(spans: &[Span], kind: SpanKind) -> &Span {
    let mut found = spans.iter().filter(|span| span.kind == kind as i32);
    let first = found.next().unwrap_or_else(|| panic!("no {kind:?} in {spans:#?}"));
    assert!(found.next().is_none(), "{spans:#?}");
    first
}

#[test]
fn a_sampled_parent_gets_the_gateway_s_stages_as_children_and_the_node_its_span_as_parent() {
    let (node, collector) = (Node::start(), Collector::start());
    let gateway = setup(&[node.address], &collector, ", sample: 0%").start();
    let headers = format!("{}tracestate: a=b,c=d\r\nbaggage: user=1;p=2\r\n", sampled());
    assert_eq!(status_of(&gateway, &call(&headers)), 200);
    let spans = collector.trace(TRACE);
    let (server, client) = (one(&spans, SpanKind::Server), one(&spans, SpanKind::Client));

    // What the node got.
    let request = node.only();
    assert_eq!(request.header("traceparent").unwrap(), format!("00-{TRACE}-{}-01", hex(&client.span_id)));
    assert_eq!(request.header("tracestate").unwrap(), "a=b,c=d");
    assert_eq!(request.header("baggage").unwrap(), "user=1;p=2");

    // What the collector got.
    assert_eq!((hex(&server.parent_span_id).as_str(), &client.parent_span_id), (PARENT, &server.span_id));
    assert_eq!((server.name.as_str(), server.trace_state.as_str()), ("POST /api/a2a/jsonrpc", "a=b,c=d"));
    let names: BTreeSet<_> = spans.iter().map(|span| span.name.as_str()).collect();
    for name in ["admit", "read body", "check JSON-RPC and limits", "POST", "connect", "stream"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    for span in &spans {
        let around = spans.iter().find(|other| other.span_id == span.parent_span_id);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:#?}");
        let Some(around) = around else { continue };
        assert!(around.start_time_unix_nano <= span.start_time_unix_nano, "{span:#?} in {around:#?}");
        assert!(span.end_time_unix_nano <= around.end_time_unix_nano, "{span:#?} in {around:#?}");
    }
    let said = attributes(&server.attributes);
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/api/a2a/jsonrpc"),
        ("url.path", "/api/a2a/jsonrpc"),
        ("url.scheme", "https"),
        ("server.address", "gateway.test"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("tls.protocol.version", "1.3"),
        ("user_agent.original", "tester/1"),
        ("rpc.system", "jsonrpc"),
        ("rpc.method", "message/send"),
        ("rpc.jsonrpc.request_id", "call-7"),
        ("hive.entrypoint", "a2a"),
        ("hive.peer", "alice"),
        ("hive.listener", "front"),
        ("http.request.body.size", "67"),
    ] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name} in {said:?}");
    }
    let tried = attributes(&client.attributes);
    assert_eq!(tried["server.port"], node.address.port().to_string());
    assert!(!format!("{spans:?}").contains("s3cr3t"), "a query holds secrets");
    assert_eq!(collector.resource()["service.name"], "hive-gateway");
    let head = collector.heads().remove(0).to_ascii_lowercase();
    assert!(
        head.starts_with("post /v1/traces http/1.1") && head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    gateway.wait_metric("hive_gateway_trace_spans_total", &[("result", "exported")], spans.len() as f64);

    // The documentation has it all.
    let documented = &first_column("| attribute |") | &BTreeSet::new();
    let written: BTreeSet<_> = spans.iter().flat_map(|span| attributes(&span.attributes).into_keys()).collect();
    assert_eq!(written.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn who_is_not_sampled_passes_untouched_and_is_not_told() {
    let (node, collector) = (Node::start(), Collector::start());
    let gateway = setup(&[node.address], &collector, ", sample: 0%").start();
    let theirs = format!("00-{TRACE}-{PARENT}-00");
    assert_eq!(status_of(&gateway, &call(&format!("traceparent: {theirs}\r\ntracestate: a=b\r\n"))), 200);
    assert_eq!(status_of(&gateway, &call("tracestate: a=b\r\n")), 200);
    let requests = node.requests();
    assert_eq!(
        (requests[0].header("traceparent").unwrap(), requests[0].header("tracestate").unwrap()),
        (theirs, "a=b".into())
    );
    let made = requests[1].header("traceparent").unwrap();
    assert!(made.ends_with("-00") && requests[1].header("tracestate").is_none(), "{made}");
    // One that is sampled comes after them through the same queue.
    let other = "11111111111111112222222222222222";
    assert_eq!(status_of(&gateway, &call(&format!("traceparent: 00-{other}-{PARENT}-01\r\n"))), 200);
    collector.trace(other);
    assert!(collector.spans().iter().all(|span| hex(&span.trace_id) == other));
}

#[test]
fn a_client_can_be_kept_from_deciding() {
    let (node, collector) = (Node::start(), Collector::start());
    let gateway = setup(&[node.address], &collector, ", sample: 100%, parent_based: false").start();
    assert_eq!(status_of(&gateway, &call(&format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n"))), 200);
    let spans = collector.trace(TRACE);
    assert_eq!(hex(&one(&spans, SpanKind::Server).parent_span_id), PARENT);
    assert!(node.only().header("traceparent").unwrap().ends_with("-01"));
    assert_eq!(status_of(&gateway, &call("X-Request-Id: own\r\n")), 200);
    // The log knows the trace that the gateway made, and it is the one that is sent.
    let line = gateway.wait_log(|l| l["request_id"] == "own");
    let spans = collector.trace(line["trace_id"].as_str().unwrap());
    assert!(one(&spans, SpanKind::Server).parent_span_id.is_empty());
}

#[test]
fn refusals_are_traced_and_only_the_gateway_s_own_faults_are_errors() {
    let (node, collector) = (Node::start(), Collector::start());
    let mut setup = setup(&[node.address], &collector, "");
    setup.upstreams += &upstream("gone", "http", &["127.0.0.1:1".parse().unwrap()], "health_check: { enabled: false }");
    setup.routes += "\n  - { name: gone, paths: [/gone], methods: [GET], peers: any, upstream: gone }\n";
    let gateway = setup.start();
    assert_eq!(status_of(&gateway, &get("/nowhere", &sampled())), 404);
    let spans = collector.trace(TRACE);
    let server = one(&spans, SpanKind::Server);
    let said = attributes(&server.attributes);
    assert_eq!((said["hive.refusal"].as_str(), said["http.response.status_code"].as_str()), ("not_found", "404"));
    assert!(server.status.is_none() && server.name == "GET" && !said.contains_key("http.route"), "{server:?}");

    let other = "11111111111111112222222222222222";
    assert_eq!(status_of(&gateway, &get("/gone", &format!("traceparent: 00-{other}-{PARENT}-01\r\n"))), 502);
    let spans = collector.trace(other);
    let (server, client) = (one(&spans, SpanKind::Server), one(&spans, SpanKind::Client));
    for span in [server, client] {
        assert_eq!(span.status.as_ref().unwrap().code, StatusCode::Error as i32);
    }
    assert_eq!(attributes(&server.attributes)["error.type"], "upstream_connect_failed");
    assert_eq!(attributes(&client.attributes)["error.type"], "connect_failed");
}

#[test]
fn each_try_is_a_span_and_the_node_is_told_its_own() {
    let (node, collector) = (Node::start(), Collector::start());
    let mut setup = setup(&[node.address], &collector, "");
    let nodes = ["127.0.0.1:1".parse().unwrap(), node.address];
    setup.upstreams = upstream("hive", "http", &nodes, "balance: round_robin, health_check: { enabled: false }");
    let gateway = setup.start();
    // Two in a row meet the node that is not there once.
    let ids = ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"];
    for id in ids {
        assert_eq!(status_of(&gateway, &get("/echo", &format!("traceparent: 00-{id}-{PARENT}-01\r\n"))), 200);
    }
    let traces = ids.map(|id| collector.trace(id));
    let tries = |spans: &[Span]| -> Vec<_> {
        spans.iter().filter(|span| span.kind == SpanKind::Client as i32).cloned().collect()
    };
    let retried = traces.iter().find(|spans| tries(spans).len() == 2).expect("one was tried again");
    let tries = tries(retried);
    assert_eq!(attributes(&tries[0].attributes)["error.type"], "connect_failed");
    let second = attributes(&tries[1].attributes);
    assert_eq!(
        (second["http.request.resend_count"].as_str(), second["http.response.status_code"].as_str()),
        ("1", "200")
    );
    let told: Vec<_> = node.requests().iter().map(|r| r.header("traceparent").unwrap()).collect();
    assert!(told.iter().any(|t| t.contains(&hex(&tries[1].span_id))), "{told:?}");
}

#[test]
fn a_collector_that_is_down_costs_spans_and_no_request() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "tracing: { otlp: \"http://127.0.0.1:1\", sample: 100% }".into();
    let gateway = setup.start();
    let mut connection = gateway.connect("alice");
    for _ in 0..50 {
        assert_eq!(connection.exchange(get("/echo", "").as_bytes()).unwrap().status, 200);
    }
    // Four tries with pauses of one, two and four seconds between them.
    wait_until("the loss is counted", || {
        gateway.metric("hive_gateway_trace_spans_total", &[("result", "export_failed")]) > 0.0
    });
    let said = gateway.stderr();
    assert_eq!(said.matches("spans can't be sent").count(), 1, "{said}");
    assert!(gateway.metrics().contains("hive_gateway_trace_spans_total{result=\"exported\"} 0"));
}

#[test]
fn a_collector_that_refuses_is_told_of_once_and_not_asked_again() {
    let (node, collector) = (Node::start(), Collector::start());
    collector.answer_with(400);
    let gateway = setup(&[node.address], &collector, ", sample: 100%").start();
    assert_eq!(status_of(&gateway, &get("/echo", "")), 200);
    wait_until("the loss is counted", || {
        gateway.metric("hive_gateway_trace_spans_total", &[("result", "export_failed")]) > 0.0
    });
    assert!(gateway.stderr().contains("status 400"), "{}", gateway.stderr());
    let asked = collector.heads().len();
    collector.answer_with(200);
    assert_eq!(status_of(&gateway, &get("/echo", &sampled())), 200);
    collector.trace(TRACE);
    assert_eq!(collector.heads().len(), asked + 1);
    wait_until("it is said that spans are taken again", || gateway.stderr().contains("takes spans again"));
}

#[test]
fn tracing_comes_and_goes_with_a_reload_and_the_last_spans_with_the_end() {
    let (node, collector) = (Node::start(), Collector::start());
    let mut gateway = Setup::new(&[node.address]).start();
    assert_eq!(status_of(&gateway, &get("/echo", &sampled())), 200);
    assert_eq!(node.requests()[0].header("traceparent").unwrap(), format!("00-{TRACE}-{PARENT}-01"));
    gateway.edit("listeners:", &format!("tracing: {{ otlp: \"http://{}/\" }}\nlisteners:", collector.address));
    gateway.reload_ok();
    assert_eq!(status_of(&gateway, &get("/echo", &sampled())), 200);
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(gateway.wait_exit().success());
    assert!(!collector.trace(TRACE).is_empty());
}

#[test]
fn a_collector_over_tls_is_verified_and_shown_the_secret() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let identity = setup.pki.leaf(&server_leaf(&["localhost"]));
    let mut context = openssl::ssl::SslContext::builder(openssl::ssl::SslMethod::tls_server()).unwrap();
    context.set_certificate(&identity.cert).unwrap();
    context.set_private_key(&identity.key).unwrap();
    identity.chain.iter().for_each(|c| context.add_extra_chain_cert(c.clone()).unwrap());
    let collector = Collector::start_with(Some(context.build()));
    setup.top = format!(
        "tracing: {{ otlp: \"https://localhost:{}\", ca: ca.pem, bearer_secret: s3cr3t-of-the-collector }}",
        collector.address.port()
    );
    let gateway = setup.start();
    assert_eq!(status_of(&gateway, &get("/echo", &sampled())), 200);
    collector.trace(TRACE);
    let heads = collector.heads();
    assert!(heads[0].to_ascii_lowercase().contains("authorization: bearer s3cr3t-of-the-collector\r\n"), "{heads:?}");
    // Of another CA: nothing is sent.
    let stranger = crate::support::certs::Pki::new("stranger");
    stranger.write_root(gateway.dir(), "other");
    gateway.edit("ca: ca.pem, bearer", "ca: other.pem, bearer");
    gateway.reload_ok();
    assert_eq!(status_of(&gateway, &get("/echo", &sampled())), 200);
    wait_until("it is said", || gateway.stderr().contains("spans can't be sent"));
    assert_eq!(collector.heads().len(), heads.len());
}
