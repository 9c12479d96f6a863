//! The end of a request: its log line and its counters.

use http::Version;
use pingora::proxy::Session;

use super::context::{Begun, Context};
use super::overload::Places;
use super::{Shared, body, check, trace};
use crate::headers;
use crate::observe::recent::{RefusedRequest, readable};
use crate::observe::{AccessRecord, MethodLabel};
use crate::refusal::Refusal;

/// The status that is logged when the client left before there was one (nginx's 499).
const CLIENT_GONE: u16 = 499;

/// Writes the request down and lets its connection go on.
pub fn record(shared: &Shared, session: &mut Session, ctx: &mut Context) {
    let Some(begun) = ctx.begun.take() else { return };
    let now = shared.clock.now();
    // A refused client may linger after its answer; that is not the request's time.
    let duration = ctx.answered.unwrap_or(now).saturating_duration_since(begun.started);
    let status = session.response_written().map_or(CLIENT_GONE, |r| r.status.as_u16());
    let method = MethodLabel::from(&session.req_header().method);
    match &ctx.route_metrics {
        Some(metrics) => metrics.record(method, status, duration),
        None => shared.metrics.unmatched().record(method, status, duration),
    }
    if ctx.peer.is_none() {
        // Refused before anybody asked whose certificate it is.
        ctx.peer = begun.connection.peer(&begun.snapshot);
    }
    begun.snapshot.peer_metrics.of(ctx.peer.as_ref().map(|p| p.index)).record(status, duration);
    if let Some(refusal) = &ctx.refusal {
        shared.metrics.refusal(refusal.code());
        note_refusal(shared, session, ctx, &begun, refusal, status);
    }
    log(shared, session, ctx, &begun, status, duration);
    if let Some(trace) = ctx.trace.take() {
        shared.traces.push(trace::finish(*trace, session, ctx, &begun, status, begun.started + duration));
    }
    if let Some(h1) = session.as_downstream().as_http1() {
        let chunked = session.req_header().headers.contains_key(headers::TRANSFER_ENCODING);
        let body = (!chunked).then(|| body::announced(session).unwrap_or(0));
        begun.connection.request_was(h1.get_headers_raw_bytes().len() as u64, body);
    }
    begun.connection.end_request(now);
    if ctx.body.memory.take().is_some() {
        shared.show_body_memory();
    }
    let way = &mut ctx.upstream;
    if let (Some(picked), Some(status), None, Some(route)) = (&way.picked, way.status, &ctx.error, &ctx.route) {
        route.upstream.upstream.completed(picked, status);
    }
    way.picked = None;
    way.retry = None;
    way.entry = None;
    way.permit = None;
    ctx.places = Places::default();
    shared.request_ended();
}

/// For operators who ask what was refused last.
fn note_refusal(shared: &Shared, session: &Session, ctx: &Context, begun: &Begun, refusal: &Refusal, status: u16) {
    let code = refusal.code();
    let client = ctx.client.as_ref().map_or_else(|| begun.remote_ip(), |c| c.address);
    let listener = begun.connection.listener.name.as_str();
    let route = ctx.route.as_ref().map(|r| r.name.as_str());
    let peer = ctx.peer.as_ref().map(|p| p.name.as_str());
    shared.recent.refusals.note(
        begun.wall,
        client,
        |seen| {
            let same = seen.client == client && seen.code == code && seen.route.as_deref() == route;
            same && seen.peer.as_deref() == peer && seen.listener == listener
        },
        || RefusedRequest {
            code,
            status,
            listener: listener.to_owned(),
            client,
            peer: peer.map(str::to_owned),
            route: route.map(str::to_owned),
            path: readable(check::shown_path(session.req_header().raw_path())),
            request_id: ctx.request_id.as_ref().and_then(|id| id.to_str().ok()).map(str::to_owned),
        },
    );
}

fn log(shared: &Shared, session: &Session, ctx: &Context, begun: &Begun, status: u16, duration: std::time::Duration) {
    let header = session.req_header();
    let connection = &begun.connection;
    let tls = connection.tls.as_ref();
    let trace = ctx.traceparent.as_ref().or_else(|| headers::traceparent(&header.headers)).map(|t| t.as_bytes());
    let way = &ctx.upstream;
    let client = ctx.client.as_ref().map_or_else(|| begun.remote_ip(), |c| c.address);
    shared.log().record(&AccessRecord {
        request_id: ctx.request_id.as_ref().and_then(|id| id.to_str().ok()),
        trace_id: trace.and_then(|t| std::str::from_utf8(t.get(3..35)?).ok()),
        peer: ctx.peer.as_ref().map(|p| p.name.as_str()),
        spiffe_id: connection.identity.as_ref().and_then(|i| i.spiffe_id.as_ref()).map(|id| id.as_str()),
        federation_issuer: ctx.federation_issuer.as_deref(),
        tls_version: tls.map(|t| t.version),
        tls_cipher: tls.map(|t| t.cipher),
        tls_group: tls.and_then(|t| t.group),
        sni: tls.and_then(|t| t.sni.as_deref()),
        http_version: version(header.version),
        method: header.method.as_str(),
        host: ctx
            .host
            .as_deref()
            .map(str::as_bytes)
            .or_else(|| header.headers.get(headers::HOST).map(|h| h.as_bytes())),
        path: check::shown_path(header.raw_path()),
        route: ctx.route.as_ref().map(|r| r.name.as_str()),
        rpc_method: ctx.rpc.as_ref().map(|r| r.method.as_bytes()).filter(|m| !m.is_empty()),
        rpc_id: ctx.rpc.as_ref().and_then(|r| r.id.as_deref()).map(str::as_bytes),
        rpc_calls: ctx.rpc.as_ref().filter(|r| r.batch).map(|r| r.calls),
        status,
        refusal: ctx.refusal.as_ref().map(|r| r.code()),
        refusal_detail: ctx.refusal.as_ref().and_then(|r| r.detail()),
        rate_limit: ctx.rate_limit.as_ref().map(|l| &*l.name),
        request_rule: ctx.rules_met.as_deref(),
        waf_score: ctx.waf_score,
        bytes_in: ctx.body.length,
        bytes_out: session.as_downstream().body_bytes_sent() as u64,
        duration,
        body: ctx.body.took,
        upstream_queue: way.queued,
        upstream_connect: way.connect,
        upstream_first_byte: way.first_byte,
        upstream: ctx.route.as_ref().filter(|_| way.tries > 0).map(|r| r.upstream.upstream.name().as_str()),
        node: way.picked.as_ref().map(|p| &**p.node().url()),
        tries: way.tries,
        user_agent: header.headers.get(headers::USER_AGENT).map(|u| u.as_bytes()),
        error: ctx.error.as_deref(),
        headers: Some(&header.headers),
        ..AccessRecord::new(begun.wall, connection.listener.name.as_str(), client)
    });
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        // Nothing else gets as far as a request.
        _ => "HTTP/1.1",
    }
}
