//! From an admitted request to a node and back: which node, what it is told, when another is tried.

use std::borrow::Cow;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::context::{Begun, Context, Over, TRIES_MAX};
use super::exchange::{DEADLINE, Ended, GONE};
use super::watch::refusal_of;
use super::{Shared, affinity, check, told, trace};
use crate::headers;
use crate::observe::UpstreamResult;
use crate::refusal::Refusal;
use crate::request::ClientAddress;
use crate::upstream::{Ask, Exchange, Outcome, Overflow, Picked, Request, WRONG_NODE};

/// The request as nodes get it: what a client may not say is taken out, what the gateway says is put in.
pub fn prepare(session: &mut Session, ctx: &mut Context, body: Bytes) -> Result<Request> {
    let (Some(begun), Some(route)) = (&ctx.begun, &ctx.route) else { return Err(Error::new(ErrorType::InternalError)) };
    let upstream = &route.upstream.upstream;
    let http2 = upstream.speaks_http2();
    if !upstream.hash_keys().is_empty() {
        // As the client wrote them: a key may be a header that is not passed on.
        ctx.upstream.key = affinity::key(upstream.hash_keys(), session, ctx);
    }
    for name in begun.snapshot.spoofable.to_remove(&session.req_header().headers) {
        session.req_header_mut().remove_header(&name);
    }
    let header = session.req_header_mut();
    ctx.body.chunked = header.headers.contains_key(headers::TRANSFER_ENCODING);
    rewrite_request(header, ctx)?;
    let no_body = header.method == http::Method::HEAD;
    let (http1, http2) = for_node(header, node_path(ctx), http2)?;
    Ok(Request { http2, http1, body, no_body })
}

/// The header in the form that the node reads. The session's keeps the client's path, which the log tells.
fn for_node(header: &RequestHeader, path: Option<&[u8]>, http2: bool) -> Result<(Bytes, Option<RequestHeader>)> {
    let target = target_of(header.raw_path(), path);
    if !http2 {
        return Ok((encode(header, &target), None));
    }
    let mut header = header.clone();
    if let Cow::Owned(target) = &target {
        header.set_raw_path(target)?;
    }
    Ok((Bytes::new(), Some(header)))
}

/// What the route puts in the place of the request's path.
fn node_path(ctx: &Context) -> Option<&[u8]> {
    ctx.route.as_ref()?.replace_full_path.as_deref()
}

/// What the node is asked for: the route's own path if it has one, with the request's query.
fn target_of<'a>(target: &'a [u8], path: Option<&[u8]>) -> Cow<'a, [u8]> {
    let Some(path) = path else { return Cow::Borrowed(target) };
    let query = memchr::memchr(b'?', target).map_or(&b""[..], |at| &target[at..]);
    Cow::Owned([path, query].concat())
}

/// The same for the next node: of a traced request each try has its own span, and each node is told that of its own.
pub fn prepare_again(session: &mut Session, ctx: &Context, request: &mut Request) -> Result<()> {
    let Some(trace) = &ctx.trace else { return Ok(()) };
    let header = session.req_header_mut();
    header.insert_header(headers::TRACEPARENT, trace.traceparent())?;
    (request.http1, request.http2) = for_node(header, node_path(ctx), request.http2.is_some())?;
    Ok(())
}

/// The header for an HTTP/1.1 node. What concerns only the client's connection stays here (RFC 9110, section 7.6.1).
fn encode(header: &RequestHeader, target: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1024);
    out.put_slice(header.method.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(target);
    out.put_slice(b" HTTP/1.1\r\n");
    for (name, value) in &header.headers {
        if headers::HOP_BY_HOP.contains(name) || *name == headers::COOKIE {
            continue;
        }
        put_field(&mut out, name, value.as_bytes());
    }
    // HTTP/2 splits a cookie into fields, HTTP/1.1 has one (RFC 9113, section 8.2.3).
    let mut cookies = header.headers.get_all(headers::COOKIE).iter();
    if let Some(first) = cookies.next() {
        let mut whole = first.as_bytes().to_vec();
        for crumb in cookies {
            whole.extend_from_slice(b"; ");
            whole.extend_from_slice(crumb.as_bytes());
        }
        put_field(&mut out, &headers::COOKIE, &whole);
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

fn put_field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
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

/// Picks a node that has not been tried.
pub fn pick<'a>(shared: &Shared, ctx: &'a mut Context) -> Result<&'a Picked> {
    let route = ctx.route.as_ref().ok_or_else(|| Error::new(ErrorType::InternalError))?;
    let upstream = &route.upstream.upstream;
    let way = &mut ctx.upstream;
    way.picked = None;
    if way.tries > 0 {
        way.retry = way.retry.take().or_else(|| upstream.retry());
        if way.retry.is_none() {
            // The failure that there was is the answer.
            ctx.refusal = way.unreachable.take().or(Some(Refusal::UpstreamFailed));
            return Err(Error::explain(ErrorType::ConnectNoRoute, "no other try: retry_budget is used up"));
        }
    }
    let now = shared.clock.now();
    let Some(picked) = upstream.pick(&Ask { tried: &way.tried, key: way.key, now }) else {
        // After a try that failed, that try's reason is the better answer.
        ctx.refusal = way.unreachable.take().or(Some(Refusal::NoHealthyUpstream));
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
    Ok(way.picked.insert(picked))
}

/// A connection to the node is there.
pub fn connected(shared: &Shared, ctx: &mut Context, reused: bool) {
    let now = shared.clock.now();
    ctx.upstream.connected = true;
    if !reused {
        ctx.upstream.add_connect(now);
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

/// The exchange with a node broke. If nothing was sent, the next connection may have it. Else the node may have read
/// it, so only what changes nothing is tried again: GET and HEAD on a connection that had rested and that the node had
/// closed meanwhile (design, decision 3).
pub fn broke(
    shared: &Shared,
    session: &Session,
    ctx: &mut Context,
    mut error: Box<Error>,
    exchange: &Exchange,
) -> Box<Error> {
    let client = *error.esource() == ErrorSource::Downstream;
    let harmless = matches!(session.req_header().method, http::Method::GET | http::Method::HEAD);
    let stale = exchange.reused() && (harmless || !exchange.sent_any()) && ctx.upstream.status.is_none();
    let result = if client { UpstreamResult::ClientGone } else { UpstreamResult::Broken };
    // A node may close a connection that rests; that says nothing against it.
    record_failure(ctx, result, !stale, shared.clock.now());
    // With TLS 1.3 a node may refuse the gateway's certificate when the request is already on its way.
    let tls_failure = ctx.upstream.picked.as_ref().and_then(|picked| picked.node().tls_failure(&error));
    ctx.error = Some(tls_failure.unwrap_or_else(|| describe(&error)));
    error.set_retry(!client && stale && (ctx.upstream.tries as usize) < TRIES_MAX);
    error
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

/// Sets what the gateway says; what a client may not say has been stripped (design, decision 10).
pub fn rewrite_request(request: &mut RequestHeader, ctx: &mut Context) -> Result<()> {
    let (Some(begun), Some(client)) = (&ctx.begun, &ctx.client) else {
        return Err(Error::explain(ErrorType::InternalError, "a request without a beginning"));
    };
    request.remove_header(&headers::EXPECT);
    // HTTP/2 names the host in a field of its own.
    if !request.headers.contains_key(headers::HOST)
        && let Some(authority) = request.uri.authority()
    {
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.map_err(|_| Error::explain(ErrorType::InvalidHTTPHeader, "an authority that is no host"))?;
        request.insert_header(headers::HOST, host)?;
    }
    if request.raw_path().first() != Some(&b'/') {
        let target = check::origin_form(request.raw_path()).to_vec();
        request.set_raw_path(&target)?;
    }
    frame_body(request, ctx.body.length)?;

    if ctx.route.as_ref().is_some_and(|r| r.upstream.trusted) {
        tell_hive(request, begun, client)?;
    }
    if let Some(id) = &ctx.request_id {
        request.insert_header(headers::X_REQUEST_ID, id.clone())?;
    }
    trace::tell_node(request, ctx)
}

/// What our own Hive is told, and nobody else.
fn tell_hive(request: &mut RequestHeader, begun: &Begun, client: &ClientAddress) -> Result<()> {
    let host = request.headers.get(headers::HOST).cloned();
    let client = told::Client {
        address: client,
        identity: begun.connection.identity.as_deref(),
        https: begun.connection.tls.is_some() || begun.proxied_https,
        host: host.as_ref(),
    };
    let fields = client
        .told(&begun.snapshot)
        .map_err(|e| Error::because(ErrorType::InternalError, "what no header can carry", e))?;
    for (name, value) in fields.into_iter().flatten() {
        request.insert_header(name, value)?;
    }
    Ok(())
}

/// The body is here whole, so its length is known, however the client framed it.
fn frame_body(request: &mut RequestHeader, length: u64) -> Result<()> {
    let framed = request.headers.contains_key(headers::TRANSFER_ENCODING);
    request.remove_header(&headers::TRANSFER_ENCODING);
    request.remove_header(&headers::TRAILER);
    if length > 0 || framed || matches!(request.method, http::Method::POST | http::Method::PUT | http::Method::PATCH) {
        request.insert_header(headers::CONTENT_LENGTH, HeaderValue::from(length))?;
    }
    Ok(())
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
    let nominated: Vec<_> = headers::connection_tokens(&response.headers)
        .filter_map(|token| http::HeaderName::from_bytes(token).ok())
        .filter(|name| *name != headers::CONTENT_LENGTH && *name != headers::TRANSFER_ENCODING)
        .collect();
    for name in nominated {
        response.remove_header(&name);
    }
    for name in [
        headers::CONNECTION,
        headers::KEEP_ALIVE,
        headers::PROXY_AUTHENTICATE,
        headers::PROXY_CONNECTION,
        headers::TE,
        headers::TRAILER,
        headers::UPGRADE,
    ] {
        response.remove_header(&name);
    }
    if let Some(begun) = &ctx.begun {
        response.remove_header(&begun.snapshot.product.gateway_auth);
    }
    if let Some(id) = &ctx.request_id
        && !response.headers.contains_key(headers::X_REQUEST_ID)
    {
        response.insert_header(headers::X_REQUEST_ID, id.clone())?;
    }
    Ok(())
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
