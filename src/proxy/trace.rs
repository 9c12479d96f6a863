//! A request's trace: begun with its header, told to the nodes, put together at its end.

use std::time::Instant;

use http::{HeaderMap, HeaderValue, Version};
use pingora::proxy::Session;

use super::check;
use super::context::{Begun, Context};
use crate::headers::{self, TraceContext};
use crate::observe::MethodLabel;
use crate::observe::trace::{Attribute, Finished, Moments, RequestSpan, Trace, client_text, method_attribute};
use crate::snapshot::Snapshot;

/// Decides whether the request is traced. Without `tracing` nothing is done.
pub fn begin(session: &Session, ctx: &mut Context, snapshot: &Snapshot) {
    if let Some(sampler) = &snapshot.sampler {
        let (trace, traceparent) = sampler.begin(headers::traceparent(&session.req_header().headers), random);
        (ctx.trace, ctx.traceparent) = (trace, Some(traceparent));
    }
}

/// `traceparent` for a node: its parent is the gateway's span if there is one, else the client's. And whether the client's
/// was valid, for `tracestate` belongs to that.
pub fn for_node(headers: &HeaderMap, ctx: &mut Context) -> (HeaderValue, bool) {
    let theirs = headers::traceparent(headers);
    let called = ctx
        .traceparent
        .get_or_insert_with(|| theirs.cloned().unwrap_or_else(|| TraceContext::new(random()).to_header()));
    (ctx.trace.as_ref().map_or_else(|| called.clone(), |trace| trace.traceparent()), theirs.is_some())
}

/// The spans of a request that is done.
pub fn finish(trace: Trace, session: &Session, ctx: &Context, begun: &Begun, status: u16, ended: Instant) -> Finished {
    let method = method_attribute(MethodLabel::from(&session.req_header().method));
    let path = ctx.route_metrics.as_ref().map(|metrics| metrics.path());
    let request = RequestSpan {
        name: path.map_or(method.into(), |path| format!("{method} {path}").into()),
        attributes: attributes(session, ctx, begun, status, method),
        method,
        state: trace_state(&session.req_header().headers),
        // A server's span is in error from 500 on; what the client did wrong is not the gateway's (HTTP conventions).
        error: match &ctx.refusal {
            Some(refusal) if status >= 500 => Some(refusal.code().into()),
            _ if status >= 500 => Some(status.to_string().into()),
            _ => ctx.error.is_some().then_some("broken_off".into()),
        },
    };
    let moments = Moments {
        started: begun.started,
        wall: begun.wall,
        body_read: ctx.body.took.map(|took| begun.started + took),
        queued: ctx.upstream.queued,
        ended,
    };
    trace.finish(request, &moments)
}

/// After OpenTelemetry's semantic conventions for HTTP, RPC and TLS, and Hive's names.
fn attributes(
    session: &Session,
    ctx: &Context,
    begun: &Begun,
    status: u16,
    method: &'static str,
) -> Vec<(&'static str, Attribute)> {
    let (header, connection) = (session.req_header(), &begun.connection);
    let number = |n: u64| Attribute::Number(i64::try_from(n).unwrap_or(i64::MAX));
    let client = ctx.client.as_ref().map_or_else(|| begun.remote_ip(), |client| client.address);
    let mut all = vec![
        ("http.request.method", method.into()),
        ("url.path", client_text(check::shown_path(header.raw_path()))),
        ("url.scheme", if connection.tls.is_some() { "https" } else { "http" }.into()),
        ("http.response.status_code", number(status.into())),
        ("http.request.body.size", number(ctx.body.length)),
        ("http.response.body.size", number(session.as_downstream().body_bytes_sent() as u64)),
        ("network.protocol.version", version(header.version).into()),
        ("network.peer.address", begun.remote_ip().to_string().into()),
        ("network.peer.port", number(connection.remote.port().into())),
        ("client.address", client.to_string().into()),
        ("hive.listener", connection.listener.name.as_str().to_owned().into()),
    ];
    let mut add = |name, value: Option<Attribute>| all.extend(value.map(|value| (name, value)));
    let owned = |text: &str| Attribute::from(text.to_owned());
    add("server.address", ctx.host.as_deref().map(owned));
    add("http.route", ctx.route_metrics.as_ref().map(|metrics| owned(metrics.path())));
    add("user_agent.original", header.headers.get(headers::USER_AGENT).map(|agent| client_text(agent.as_bytes())));
    add("tls.protocol.version", connection.tls.as_ref().map(|tls| tls.version.trim_start_matches("TLSv").into()));
    add("hive.request_id", ctx.request_id.as_ref().map(|id| client_text(id.as_bytes())));
    add("hive.entrypoint", ctx.route.as_ref().map(|route| owned(route.name.as_str())));
    add("hive.peer", ctx.peer.as_ref().map(|peer| owned(peer.name.as_str())));
    add("hive.refusal", ctx.refusal.as_ref().map(|refusal| refusal.code().into()));
    add("hive.rate_limit", ctx.rate_limit.as_ref().map(|limit| owned(&limit.name)));
    if let Some(rpc) = ctx.rpc.as_ref().filter(|rpc| !rpc.method.is_empty()) {
        add("rpc.system", Some("jsonrpc".into()));
        add("rpc.jsonrpc.version", Some("2.0".into()));
        add("rpc.method", Some(client_text(rpc.method.as_bytes())));
        add("rpc.jsonrpc.request_id", rpc.id.as_deref().map(|id| client_text(id.trim_matches('"').as_bytes())));
    }
    all
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        // Nothing else gets as far as a request.
        _ => "1.1",
    }
}

/// `tracestate` as it came, if its context was valid. It may come in several fields (W3C Trace Context, section 3.3).
fn trace_state(headers: &HeaderMap) -> Option<String> {
    headers::traceparent(headers)?;
    let all: Vec<_> = headers.get_all(headers::TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
    (!all.is_empty()).then(|| all.join(","))
}

fn random() -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[8..]);
    bytes
}
