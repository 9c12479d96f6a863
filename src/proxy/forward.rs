//! From an admitted request to a node and back: which node, what it is told, when another is tried.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::context::{Context, Over, TRIES_MAX};
use super::exchange::{DEADLINE, Ended, GONE};
use super::node_request::NodeRequest;
use super::watch::refusal_of;
use super::{Shared, affinity, trace};
use crate::headers;
use crate::observe::UpstreamResult;
use crate::refusal::Refusal;
use crate::upstream::{Ask, Exchange, Outcome, Overflow, Picked, Request, Unread, Upstream, WRONG_NODE, left_in_error};

/// The request as nodes get it: what a client may not say is left out, what the gateway says is put in.
pub fn prepare(session: &Session, ctx: &mut Context, body: Bytes) -> Result<Request> {
    let Some(route) = &ctx.route else { return Err(Error::new(ErrorType::InternalError)) };
    let upstream = &route.upstream.upstream;
    if !upstream.hash_keys().is_empty() {
        ctx.upstream.key = affinity::key(upstream.hash_keys(), session, ctx);
    }
    let no_body = session.req_header().method == http::Method::HEAD;
    let mut request = Request { http2: None, http1: Bytes::new(), body, no_body };
    encode(session, ctx, &mut request)?;
    Ok(request)
}

/// The same for the next node: of a traced request each try has its own span, and each node is told that of its own.
pub fn prepare_again(session: &Session, ctx: &mut Context, request: &mut Request) -> Result<()> {
    if ctx.trace.is_some() { encode(session, ctx, request) } else { Ok(()) }
}

fn encode(session: &Session, ctx: &mut Context, request: &mut Request) -> Result<()> {
    let header = session.req_header();
    let traced = trace::for_node(&header.headers, ctx);
    let http2 = ctx.route.as_ref().is_some_and(|route| route.upstream.upstream.speaks_http2());
    let Some(node_request) = NodeRequest::new(header, ctx, traced) else {
        return Err(Error::explain(ErrorType::InternalError, "a request without a beginning"));
    };
    if http2 {
        request.http2 = Some(node_request.http2()?);
    } else {
        request.http1 = node_request.http1();
    }
    Ok(())
}

/// The circuit breaker does not let the request on.
pub fn refused(ctx: &mut Context, overflow: Overflow) -> Box<Error> {
    ctx.refusal = Some(match overflow {
        Overflow::Pending => Refusal::UpstreamMaxPending,
        Overflow::PendingTimeout => Refusal::UpstreamPendingTimeout,
        Overflow::Requests => Refusal::UpstreamMaxRequests,
    });
    Error::explain(ErrorType::ConnectNoRoute, "the circuit breaker is open")
}

/// To be called after a wait: maintenance may have begun meanwhile.
pub fn still_in_service(shared: &Shared, ctx: &mut Context) -> Result<()> {
    let (Some(route), Some(begun)) = (&ctx.route, &ctx.begun) else { return Err(Error::new(ErrorType::InternalError)) };
    let Err(refusal) = shared.maintenance.check(route, &begun.snapshot.config.maintenance) else { return Ok(()) };
    ctx.refusal = Some(refusal);
    ctx.upstream.entry = None;
    Err(Error::explain(ErrorType::ConnectNoRoute, "maintenance began while the request waited"))
}

/// Picks a node of the upstream that has not been tried.
pub fn pick<'a>(shared: &Shared, ctx: &'a mut Context) -> Result<(&'a Upstream, &'a Picked)> {
    let route = ctx.route.as_ref().ok_or_else(|| Error::new(ErrorType::InternalError))?;
    let upstream = &route.upstream.upstream;
    let way = &mut ctx.upstream;
    way.picked = None;
    if way.tries > 0 && !std::mem::take(&mut way.stale) {
        way.retry = way.retry.take().or_else(|| upstream.retry());
        if way.retry.is_none() {
            let failure = ctx.error.take().unwrap_or_default();
            ctx.error = Some(format!("{failure}; retry_budget_exhausted: no other node is tried"));
            // Of what a node may have read nobody is told to come again.
            ctx.refusal = Some(if way.reached { Refusal::UpstreamFailed } else { Refusal::RetryBudgetExhausted });
            return Err(Error::explain(ErrorType::ConnectNoRoute, "no other try: retry_budget is used up"));
        }
    }
    let now = shared.clock.now();
    let mut picked = upstream.pick(&Ask { tried: &way.tried, key: way.key, now });
    if picked.is_none() && !way.again.is_empty() {
        // Nobody else is left. There may be room by now.
        way.tried.retain(|node| !way.again.contains(node));
        way.again.clear();
        picked = upstream.pick(&Ask { tried: &way.tried, key: way.key, now });
    }
    let Some(picked) = picked else {
        // After a try that failed, that try's reason is the better answer.
        ctx.refusal = Some(way.failed().unwrap_or(Refusal::NoHealthyUpstream));
        if let Some(why) = upstream.why_empty() {
            ctx.error = Some(format!("no node has been discovered: {why}"));
        }
        return Err(Error::explain(ErrorType::ConnectNoRoute, "no healthy node left"));
    };
    way.tries += 1;
    if !way.tried.is_empty() {
        route.upstream.metrics.retried();
    }
    way.connected = false;
    way.try_started = Some(now);
    if let Some(trace) = &mut ctx.trace {
        trace.try_started(picked.node().url(), now);
    }
    Ok((upstream, way.picked.insert(picked)))
}

/// A connection to the node is there.
pub fn connected(shared: &Shared, ctx: &mut Context, reused: bool) {
    let now = shared.clock.now();
    ctx.upstream.connected = true;
    // The budget is there so that nodes don't get the same work many times over. Of a request that no node could be reached
    // for, none has got any: it counts no longer than until one is reached, however long the answer then takes.
    if !ctx.upstream.reached && ctx.upstream.unreachable != Some(Refusal::UpstreamFailed) {
        ctx.upstream.retry = None;
    }
    if !reused {
        ctx.upstream.add_connect(now);
        if let Some(picked) = &ctx.upstream.picked {
            picked.node().connected();
        }
    }
    if let Some(trace) = &mut ctx.trace {
        trace.connected(reused, now);
    }
}

/// No connection came about: nothing of the request was sent, so another node may have it.
pub fn connect_failed(shared: &Shared, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    let tls_failure = ctx.upstream.picked.as_ref().and_then(|picked| picked.node().tls_failure(&error));
    let (result, refusal) = match error.etype() {
        _ if tls_failure.is_some() => (UpstreamResult::TlsFailed, Refusal::UpstreamConnectFailed),
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => {
            (UpstreamResult::ConnectTimeout, Refusal::UpstreamConnectTimeout)
        }
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | &WRONG_NODE => {
            (UpstreamResult::TlsFailed, Refusal::UpstreamConnectFailed)
        }
        _ => (UpstreamResult::ConnectFailed, Refusal::UpstreamConnectFailed),
    };
    let now = shared.clock.now();
    record_failure(ctx, result, true, now);
    ctx.error = Some(tls_failure.unwrap_or_else(|| describe(&error)));
    ctx.upstream.add_connect(now);
    ctx.upstream.unreachable = Some(refusal);
    if let Some(picked) = &ctx.upstream.picked {
        picked.node().connect_failed();
        ctx.upstream.tried.push(picked.node().id());
    }
    error.set_retry(ctx.upstream.tried.len() < TRIES_MAX);
    error
}

/// The exchange with a node broke. If it is known that the node has read nothing of it, another connection may have it
/// ([`Unread`]). Else only what changes nothing is tried again: GET and HEAD on a connection that had rested and that the
/// node had closed meanwhile (design, decision 3).
pub fn broke(
    shared: &Shared,
    session: &Session,
    ctx: &mut Context,
    mut error: Box<Error>,
    exchange: &Exchange,
) -> Box<Error> {
    let client = *error.esource() == ErrorSource::Downstream;
    let harmless = matches!(session.req_header().method, http::Method::GET | http::Method::HEAD);
    let unanswered = !client && ctx.upstream.status.is_none();
    let unread = exchange.unread().filter(|_| unanswered);
    // A node may close a connection that rests; that says nothing against it.
    let stale = unread == Some(Unread::Closed) || (unanswered && harmless && exchange.was_closed(&error));
    let result = if client { UpstreamResult::ClientGone } else { UpstreamResult::Broken };
    let fair = !(stale || unread == Some(Unread::NoRoom)) || left_in_error(&error);
    record_failure(ctx, result, fair, shared.clock.now());
    // With TLS 1.3 a node may refuse the gateway's certificate when the request is already on its way.
    let tls_failure = ctx.upstream.picked.as_ref().and_then(|picked| picked.node().tls_failure(&error));
    ctx.error = Some(tls_failure.unwrap_or_else(|| describe(&error)));
    ctx.upstream.reached |= !client && unread.is_none();
    // Neither takes from the budget: the node had nothing to do with it, or says when it has room, and is given time.
    ctx.upstream.stale = match unread {
        Some(Unread::Closed) => exchange.reused() && !left_in_error(&error),
        other => other == Some(Unread::NoRoom),
    };
    if let (Some(Unread::Refused | Unread::NoRoom), Some(picked)) = (unread, &ctx.upstream.picked) {
        ctx.upstream.tried.push(picked.node().id());
        ctx.upstream.unreachable = Some(Refusal::UpstreamFailed);
        if unread == Some(Unread::NoRoom) || matches!(exchange, Exchange::Http2(_)) {
            ctx.upstream.again.push(picked.node().id());
        }
        ctx.upstream.no_room += u32::from(unread == Some(Unread::NoRoom));
    }
    error.set_retry((stale || unread.is_some()) && (ctx.upstream.tries as usize) < TRIES_MAX);
    if unread == Some(Unread::NoRoom) && !error.retry() && !ctx.upstream.reached {
        ctx.refusal = Some(Refusal::RetryBudgetExhausted);
    }
    error
}

/// How long to wait before the next try. Not before the second; then, each time that a node had no room, twice as long.
pub fn pause(ctx: &mut Context) -> Option<Duration> {
    const FIRST: Duration = Duration::from_millis(10);
    let doublings = ctx.upstream.no_room.checked_sub(2)?;
    // It is at no node meanwhile.
    ctx.upstream.picked = None;
    Some(FIRST * 2u32.saturating_pow(doublings))
}

/// The exchange was given up.
pub fn ended(shared: &Shared, ctx: &mut Context, ended: Ended) -> Box<Error> {
    let Ended { mut error, over } = ended;
    ctx.upstream.over = over;
    let result = match over {
        Some(Over::Response) => UpstreamResult::ResponseTimeout,
        Some(Over::StreamIdle) => UpstreamResult::StreamTimeout,
        Some(Over::StreamDuration) => UpstreamResult::StreamDuration,
        Some(Over::Gone(_)) | None => UpstreamResult::ClientGone,
    };
    let now = shared.clock.now();
    if result == UpstreamResult::ResponseTimeout
        && let Some(permit) = ctx.upstream.permit.take()
    {
        permit.answered(now);
    }
    record_failure(ctx, result, true, now);
    if ctx.upstream.picked.is_some() && !ctx.upstream.connected {
        ctx.upstream.add_connect(now);
    }
    ctx.error = Some(describe(&error));
    error.set_retry(false);
    error
}

fn record_failure(ctx: &mut Context, result: UpstreamResult, fair: bool, now: Instant) {
    record_result(ctx, result, fair, now);
    if let Some(trace) = &mut ctx.trace {
        trace.try_failed(result.as_str(), now);
    }
}

/// `fair`: as far as the caller knows, it says something of the node.
fn record_result(ctx: &Context, result: UpstreamResult, fair: bool, now: Instant) {
    let way = &ctx.upstream;
    let (Some(route), Some(picked)) = (&ctx.route, &way.picked) else { return };
    let took = way.try_started.map(|started| now.saturating_duration_since(started)).unwrap_or_default();
    // Not if most of the request's time was spent in the queue or at other nodes.
    let had_time = result != UpstreamResult::ResponseTimeout || took >= route.response / 2;
    let outcome = Outcome { result, status: way.status, fair: fair && had_time };
    route.upstream.upstream.record(picked, outcome, now);
}

/// What the client is told when forwarding failed.
pub fn refusal_for(error: &Error, ctx: &Context) -> Refusal {
    match ctx.upstream.over {
        Some(Over::Gone(gone)) => return refusal_of(gone),
        Some(Over::Response | Over::StreamIdle | Over::StreamDuration) => return Refusal::UpstreamTimeout,
        None => {}
    }
    if ctx.upstream.status.is_some() {
        // The node did answer; that its answer can't be passed on is not the client's doing.
        return Refusal::UpstreamFailed;
    }
    if ctx.upstream.reached {
        // That the last one could not be reached is not all there is to say.
        return Refusal::UpstreamFailed;
    }
    if *error.esource() == ErrorSource::Downstream {
        return Refusal::AmbiguousRequest("the request's body is malformed or broke off");
    }
    match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Refusal::UpstreamConnectTimeout,
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Refusal::UpstreamTimeout,
        _ if !ctx.upstream.connected && *error.esource() != ErrorSource::Internal => Refusal::UpstreamConnectFailed,
        _ => match error.esource() {
            ErrorSource::Upstream | ErrorSource::Unset => Refusal::UpstreamFailed,
            ErrorSource::Downstream => Refusal::AmbiguousRequest("the request broke off"),
            ErrorSource::Internal if ctx.upstream.connected => Refusal::UpstreamFailed,
            ErrorSource::Internal => Refusal::Internal,
        },
    }
}

/// An error in one line, for the log.
pub fn describe(error: &Error) -> String {
    if [DEADLINE, GONE].contains(error.etype()) {
        return error.context.as_ref().map_or_else(|| "deadline".to_owned(), |c| c.as_str().to_owned());
    }
    let mut text = error.to_string().trim().replace(['\n', '\r'], " ");
    if text.len() > 300 {
        let end = (0..=300).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Takes note of the node's answer and of what is between node and gateway only.
pub fn rewrite_response(shared: &Shared, response: &mut ResponseHeader, ctx: &mut Context) -> Result<()> {
    if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(
            Error::explain(ErrorType::InvalidHTTPHeader, "101 from a node that was asked for no upgrade").into_up()
        );
    }
    if response.status.is_informational() {
        // No sign of life: a node could go on like that for ever.
        return Ok(());
    }
    let coding = response.headers.get(headers::TRANSFER_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        let why = "a Transfer-Encoding other than chunked";
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
    }
    let now = shared.clock.now();
    if ctx.upstream.status.is_none() {
        answered(ctx, response.status.as_u16(), now);
    }
    if let Some(picked) = &ctx.upstream.picked {
        picked.node().learn_keep_alive(&response.headers);
    }
    let proof = ctx.begun.as_ref().map(|begun| &begun.snapshot.product.gateway_auth);
    for name in between_gateway_and_node(&response.headers, proof) {
        response.remove_header(&name);
    }
    if let Some(id) = &ctx.request_id
        && !response.headers.contains_key(headers::X_REQUEST_ID)
    {
        response.insert_header(headers::X_REQUEST_ID, id.clone())?;
    }
    Ok(())
}

/// Fields of an answer that concern only the connection to the node (RFC 9110, section 7.6.1), and the gateway's own proof.
/// No allocation for an empty list.
fn between_gateway_and_node(headers: &HeaderMap, proof: Option<&HeaderName>) -> Vec<HeaderName> {
    const HOP_BY_HOP: [HeaderName; 7] = [
        headers::CONNECTION,
        headers::KEEP_ALIVE,
        headers::PROXY_AUTHENTICATE,
        headers::PROXY_CONNECTION,
        headers::TE,
        headers::TRAILER,
        headers::UPGRADE,
    ];
    let hop_by_hop = headers.keys().filter(|name| HOP_BY_HOP.contains(name) || Some(*name) == proof).cloned();
    let nominated = headers::connection_tokens(headers)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| *name != headers::CONTENT_LENGTH && *name != headers::TRANSFER_ENCODING);
    hop_by_hop.chain(nominated).collect()
}

fn answered(ctx: &mut Context, status: u16, now: Instant) {
    ctx.upstream.status = Some(status);
    ctx.upstream.retry = None;
    ctx.error = None;
    if let Some(trace) = &mut ctx.trace {
        trace.answered(status, now);
    }
    let first_byte = ctx.upstream.try_started.map(|started| now.saturating_duration_since(started));
    ctx.upstream.first_byte = first_byte;
    if let Some(permit) = ctx.upstream.permit.take() {
        permit.answered(now);
    }
    let result = if status >= 500 { UpstreamResult::ServerError } else { UpstreamResult::Ok };
    record_result(ctx, result, true, now);
    if let (Some(route), Some(first_byte)) = (&ctx.route, first_byte) {
        route.upstream.metrics.first_byte(first_byte);
    }
}
