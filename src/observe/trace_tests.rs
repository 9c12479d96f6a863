use super::*;
use crate::observe::Metrics;

const THEIRS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn random() -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[8..]);
    bytes
}

fn begin(sampler: Sampler, theirs: Option<&str>) -> (Option<Box<Trace>>, String) {
    let theirs = theirs.map(|t| HeaderValue::from_str(t).unwrap());
    let (trace, called) = sampler.begin(theirs.as_ref(), random);
    (trace, called.to_str().unwrap().to_owned())
}

#[test]
fn a_parent_decides_for_its_children() {
    let none = Sampler::new(Percent(0), true);
    let (trace, called) = begin(none, Some(THEIRS));
    assert_eq!(called, THEIRS);
    assert!(trace.unwrap().traceparent().to_str().unwrap().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    let all = Sampler::new(Percent(1000), true);
    let unsampled = THEIRS.replace("-01", "-00");
    let (trace, called) = begin(all, Some(&unsampled));
    assert!(trace.is_none() && called == unsampled);
    assert!(begin(all, None).0.is_some() && begin(none, None).0.is_none());
    assert!(begin(all, None).1.ends_with("-01") && begin(none, None).1.ends_with("-00"));
}

#[test]
fn without_the_parent_s_say_the_share_decides() {
    assert!(begin(Sampler::new(Percent(0), false), Some(THEIRS)).0.is_none());
    let trace = begin(Sampler::new(Percent(1000), false), Some(&THEIRS.replace("-01", "-02"))).0.unwrap();
    // The flag that the id is random stays, that of sampling is added.
    assert!(trace.traceparent().to_str().unwrap().ends_with("-03"));
}

#[test]
fn the_share_is_that_of_the_trace_ids() {
    let sampler = Sampler::new(Percent(100), true);
    let sampled = (0..20_000).filter(|_| begin(sampler, None).0.is_some()).count();
    // Six standard deviations of a fair draw.
    assert!((1745..2255).contains(&sampled), "{sampled}");
}

#[test]
fn the_stages_of_a_request_lie_in_its_span() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut trace = begin(Sampler::new(Percent(0), true), Some(THEIRS)).0.unwrap();
    trace.admitted(at(1));
    trace.forwarded(at(4));
    trace.try_started(&"http://10.0.0.1:3000".into(), at(5));
    trace.try_failed("connect_failed", at(6));
    let sent = trace.traceparent();
    trace.try_started(&"https://[::1]:3001".into(), at(6));
    trace.connected(false, at(8));
    trace.answered(200, at(20));
    let request = RequestSpan {
        name: "POST /a".into(),
        method: "POST",
        state: Some("a=b".into()),
        attributes: Vec::new(),
        error: None,
    };
    let moments = Moments {
        started: start,
        wall: UNIX_EPOCH + Duration::from_secs(1),
        body_read: Some(at(3)),
        queued: Some(Duration::from_millis(1)),
        ended: at(50),
    };
    let done = trace.finish(request, &moments);
    let shown: Vec<_> = done
        .spans
        .iter()
        .map(|s| (s.name.as_ref(), s.kind, s.start.as_millis(), s.end.as_millis(), s.error.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            ("POST /a", Kind::Server, 0, 50, None),
            ("admit", Kind::Internal, 0, 1, None),
            ("read body", Kind::Internal, 1, 3, None),
            ("check JSON-RPC and limits", Kind::Internal, 3, 4, None),
            ("queue", Kind::Internal, 4, 5, None),
            ("POST", Kind::Client, 5, 6, Some("connect_failed")),
            ("POST", Kind::Client, 6, 50, None),
            ("connect", Kind::Internal, 6, 8, None),
            ("stream", Kind::Internal, 20, 50, None),
        ]
    );
    let (own, second) = (done.spans[0].id, done.spans[6].id);
    assert_eq!(done.spans[0].parent, Some([0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
    assert!(done.spans[1..7].iter().all(|s| s.parent == Some(own)));
    assert!(done.spans[7..].iter().all(|s| s.parent == Some(second)));
    let ids: std::collections::HashSet<_> = done.spans.iter().map(|s| s.id).collect();
    assert_eq!(ids.len(), done.spans.len());
    let hex: String = second.iter().map(|b| format!("{b:02x}")).collect();
    assert!(sent.to_str().unwrap().contains(&hex), "the node's parent is the try that it was asked in");
    assert!(done.spans[6].attributes.contains(&("server.address", "::1".into())));
    assert!(done.spans[6].attributes.contains(&("server.port", Attribute::Number(3001))));
    assert_eq!(done.unix_nanos(done.spans[0].end), 1_050_000_000);
}

#[test]
fn a_full_queue_loses_spans_and_counts_them() {
    let metrics = Metrics::new();
    let queue = TraceQueue::new(metrics.spans());
    let finished = || {
        let trace = begin(Sampler::new(Percent(1000), true), None).0.unwrap();
        let (now, wall) = (Instant::now(), SystemTime::now());
        let moments = Moments { started: now, wall, body_read: None, queued: None, ended: now };
        let (name, method) = ("GET".into(), "GET");
        trace.finish(RequestSpan { name, method, state: None, attributes: Vec::new(), error: None }, &moments)
    };
    (0..QUEUE_MAX + 3).for_each(|_| queue.push(finished()));
    // A request that was refused at once has two spans.
    assert!(metrics.encode().contains("hive_gateway_trace_spans_total{result=\"queue_full\"} 6\n"));
    assert!(queue.take_receiver().is_some() && queue.take_receiver().is_none());
}
