//! Decides about a request: one straight line of checks, cheapest and most basic first, until it is admitted or refused.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Version};
use pingora::Error;
use pingora::proxy::Session;

use super::body::{self, NoBody};
use super::check;
use super::connection::Connection;
use super::context::{Begun, Context, Rpc};
use super::filter;
use super::overload;
use super::rate_limit::{Asking, Calls};
use super::trace;
use super::watch::{gone_meanwhile, refusal_of};
use super::{Shared, affinity};
use crate::headers;
use crate::json_rpc::{RawId, Text};
use crate::observe::CloseReason;
use crate::policy::json_rpc::{JsonRpcPolicy, check_media_type};
use crate::refusal::Refusal;
use crate::request::{self, Head};
use crate::route::Table;
use crate::snapshot::{ListenerSnapshot, Published, Route, Snapshot};
use crate::tls::Gone;

/// Longest JSON-RPC method name and id that are kept for the log, in bytes.
const LOGGED_MAX: usize = 128;

/// Why a request goes no further.
pub enum Stop {
    /// It is refused.
    Refused(Refusal),
    /// Nobody is there to be told.
    Gone(Box<Error>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

impl From<NoBody> for Stop {
    fn from(no_body: NoBody) -> Self {
        match no_body {
            NoBody::Refused(refusal) => Stop::Refused(refusal),
            NoBody::Gone(error) => Stop::Gone(error),
        }
    }
}

/// Checks a request as far as its body, and returns that. What is found out on the way is left in `ctx`.
pub async fn admit(shared: &Shared, session: &mut Session, ctx: &mut Context) -> Result<Bytes, Stop> {
    let connection = connection_of(session).ok_or(Refusal::Internal)?;
    let snapshot = shared.snapshot();
    let started = shared.clock.now();
    let requests = overload::begin(shared, ctx);
    ctx.begun = Some(Begun {
        connection: connection.clone(),
        snapshot: snapshot.clone(),
        started,
        wall: shared.clock.wall(),
        proxied_https: false,
        _in_flight: shared.metrics.request_started(),
    });
    let Some(listener) = snapshot.listener(connection.listener.index) else {
        // A reload took the listener away.
        connection.begin_request();
        connection.retire();
        return Err(Refusal::ShuttingDown.into());
    };
    begin(shared, session, &connection, listener);
    let overload = overload::Asking { shared, connection: &connection, snapshot: &snapshot, listener };
    ctx.request_id = Some(request_id(&session.req_header().headers));
    trace::begin(session, ctx, &snapshot);
    if connection.takes_no_more() {
        return Err(Refusal::ShuttingDown.into());
    }
    if let Err(refusal) = overload.room(session, ctx, requests) {
        (ctx.shape, ctx.route_metrics) = published_named(session, &listener.routes)
            .map(|published| (published.route.clone(), published.metrics.clone()))
            .unzip();
        return Err(refusal.into());
    }

    let mut checked = check_header(session, ctx, &connection, listener);
    checked = checked.and_then(|()| filter::check_address(ctx, &connection, listener));
    if checked.is_ok() {
        checked = check_client(shared, &connection, &snapshot, listener).await;
    }
    let limits = Asking { shared, connection: &connection, listener, started };
    if let Err(refusal) = checked {
        ctx.shape = route_named(session, &listener.routes);
        // A flood of these is a flood too. What is told is what is wrong: such a refusal may have to end the connection.
        let counted = limits.listener(session, ctx).await;
        return Err(if refusal.closes_connection() { refusal } else { counted.err().unwrap_or(refusal) }.into());
    }
    let routed = check_route(session, ctx, &connection, &snapshot, &listener.routes);
    overload.share(ctx, started)?;
    limits.listener(session, ctx).await?;
    filter::check_rules(&listener.rules, session, ctx)?;
    routed?;

    let Some(route) = ctx.route.clone() else { return Err(Refusal::NotFound.into()) };
    let has_body = !session.as_downstream_mut().is_body_empty();
    check::no_body(&session.req_header().method, has_body)?;
    // Before the token is checked: a flood of bad tokens is a flood too, and each takes a signature's time.
    limits.route(session, ctx).await?;
    filter::check_rules(&route.rules, session, ctx)?;
    let peer = ctx.peer.as_deref();
    let (issuer, verdict) = check::federation(&snapshot, &route, &session.req_header().headers, peer, &shared.clock);
    ctx.federation_issuer = issuer;
    verdict?;
    limits.issuer(session, ctx).await?;
    if let Some(trace) = &mut ctx.trace {
        trace.admitted(shared.clock.now());
    }
    let in_maintenance = || shared.maintenance.check(&route, &snapshot.config.maintenance);
    if route.json_rpc.is_none() {
        in_maintenance()?;
    }
    let body = take_body(shared, session, ctx, &route, &limits).await?;
    // Of a call not before its body is read: the answer carries its id.
    in_maintenance()?;
    filter::check_waf(shared, session, ctx, &connection, listener, &body).await?;
    overload.upstream(ctx, &route)?;
    Ok(body)
}

/// Reads the body, and checks what the route's JSON-RPC policy says of it.
async fn take_body(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut Context,
    route: &Route,
    limits: &Asking<'_>,
) -> Result<Bytes, Stop> {
    if route.json_rpc.is_some() {
        // Before the body: there is no use in reading what is not taken.
        check_media_type(&session.req_header().headers)?;
    }
    if !session.is_body_empty() {
        check::coding(limits.listener, route, &session.req_header().headers)?;
    }
    let within = limits.listener.deadlines.request_body;
    let body_limit = check::body_limit(limits.listener, route);
    let every = limits.listener.revocation / 2;
    let body = tokio::select! {
        biased;
        body = body::read(shared, session, ctx, body_limit, within, limits.started) => body?,
        gone = gone_meanwhile(shared, limits.connection, every) => return Err(gone.into()),
    };
    if !body.is_empty() {
        check::coding_of_parts(limits.listener, route, &session.req_header().headers, &body)?;
        // It may have taken its time, and the client been revoked meanwhile.
        let snapshot = shared.snapshot();
        if let Some(listener) = snapshot.listener(limits.connection.listener.index) {
            check_client(shared, limits.connection, &snapshot, listener).await?;
        }
    }
    if let Some(json_rpc) = &route.json_rpc {
        let mut calls = Calls::default();
        check_json_rpc(json_rpc, &body, ctx, &mut calls)?;
        limits.calls(session, ctx, calls).await?;
    }
    Ok(body)
}

/// The connection that a request came on. [`super::downstream::Downstream`] put it there.
pub fn connection_of(session: &Session) -> Option<Arc<Connection>> {
    session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref::<Arc<Connection>>().cloned()
}

/// Sets what Pingora needs told on every request, and lets a connection end that has lived long enough.
fn begin(shared: &Shared, session: &mut Session, connection: &Connection, listener: &ListenerSnapshot) {
    let served = connection.begin_request();
    let old = shared.clock.now().saturating_duration_since(connection.accepted) >= listener.deadlines.connection_age;
    let ends = if old {
        Some(CloseReason::Age)
    } else if served >= listener.requests_per_connection {
        Some(CloseReason::RequestLimit)
    } else {
        shared.draining().then_some(CloseReason::ShuttingDown)
    };
    if connection.http2 {
        // HTTP/1.1's writes are limited in time below, in `Downstream`; here it is the client's window that may stay shut.
        session.set_write_timeout(Some(listener.deadlines.write));
        if ends.is_some() {
            connection.retire();
        }
        return;
    }
    // Requests that come early wait their turn; without this they would break the one that is being served.
    session.as_downstream_mut().set_pipelining_enabled(true);
    session.as_downstream_mut().set_total_drain_timeout(Some(super::refuse::LINGER));
    if let Some(reason) = ends {
        connection.ends_for(reason);
        session.set_keepalive(None);
    }
}

/// The client's own request id if it is a sane one, else a new UUIDv7 (RFC 9562): sorts by time.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(headers::X_REQUEST_ID) {
        Some(id) if headers::sane_request_id(id) => id.clone(),
        _ => {
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            let id = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text);
            HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
        }
    }
}

/// Size and strict form; then whose request it is and which host it is for.
fn check_header(
    session: &Session,
    ctx: &mut Context,
    connection: &Connection,
    listener: &ListenerSnapshot,
) -> Result<(), Refusal> {
    let header = session.req_header();
    let raw = session.as_downstream().as_http1().map(|h1| h1.get_headers_raw_bytes());
    let size = raw.as_ref().map_or_else(|| h2_header_size(&header.headers), |raw| raw.len());
    if connection.take_odd_request_line() {
        return Err(Refusal::AmbiguousRequest(
            "the request line is not method, target and version of ASCII characters",
        ));
    }
    if connection.line_unseen(size as u64) && header.raw_path().contains(&b'%') {
        // Nobody has seen how its target was written: Pingora may have encoded it.
        return Err(Refusal::AmbiguousRequest("a percent-encoded target in a pipelined request"));
    }
    let head = Head {
        method: &header.method,
        target: header.raw_path(),
        authority: header.uri.authority().filter(|_| header.version == Version::HTTP_2).map(|a| a.as_str()),
        scheme: header.uri.scheme_str().filter(|_| header.version == Version::HTTP_2),
        headers: &header.headers,
        version: header.version,
        raw: raw.as_deref(),
    };
    let form = check::form(&head, size, listener.deadlines.header_bytes)?;
    ctx.client = Some(request::client_address(connection.remote_ip(), &header.headers, &listener.trusted));
    if let Some(begun) = &mut ctx.begun {
        let mut said = header.headers.get_all(headers::X_FORWARDED_PROTO).iter();
        let https = said.next().is_some_and(|p| p.as_bytes().eq_ignore_ascii_case(b"https")) && said.next().is_none();
        begun.proxied_https = https && listener.trusted.contains(connection.remote_ip());
    }
    if let (Some(tls), Some(context)) = (&connection.tls, &listener.tls) {
        check::host(&form.host, tls.sni.as_deref(), context)?;
    }
    ctx.host = Some(form.host.into_owned());
    Ok(())
}

/// Uncompressed size as RFC 9113, section 6.5.2, counts it.
fn h2_header_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Whether the client may still come in: its certificate, the lists, and the OCSP responder where that is asked.
async fn check_client(
    shared: &Shared,
    connection: &Connection,
    snapshot: &Snapshot,
    listener: &ListenerSnapshot,
) -> Result<(), Refusal> {
    check_certificate(shared, connection, snapshot, listener).await?;
    let Some(ocsp) = listener.tls.as_ref().and_then(|tls| tls.ocsp()) else { return Ok(()) };
    let asked = connection.ask_responder(ocsp, &shared.metrics, shared.clock.unix_seconds()).await;
    may_stay(connection, asked)
}

/// A connection may outlive its certificate, its CA and what the lists say of it; its requests may not.
async fn check_certificate(
    shared: &Shared,
    connection: &Connection,
    snapshot: &Snapshot,
    listener: &ListenerSnapshot,
) -> Result<(), Refusal> {
    let mut gone = connection.gone(snapshot, shared.clock.unix_seconds());
    if gone == Some(Gone::StatusUnknown)
        && listener.tls.as_ref().and_then(|tls| tls.revocation()).is_some_and(|lists| lists.follows_points())
    {
        gone = connection.await_lists(shared, listener.handshake).await;
    }
    may_stay(connection, gone)
}

/// Lets a connection end whose client may not stay.
fn may_stay(connection: &Connection, gone: Option<Gone>) -> Result<(), Refusal> {
    match gone {
        Some(gone) => {
            // HTTP/2 is told by GOAWAY, HTTP/1.1 by closing.
            connection.retire();
            Err(refusal_of(gone))
        }
        None => Ok(()),
    }
}

/// Finds the route, and whether this peer may take it.
fn check_route(
    session: &Session,
    ctx: &mut Context,
    connection: &Connection,
    snapshot: &Snapshot,
    routes: &Table<Published>,
) -> Result<(), Refusal> {
    ctx.peer = connection.peer(snapshot);
    let header = session.req_header();
    let host = ctx.host.as_deref().unwrap_or_default();
    let path = check::path_of(header.raw_path());
    let (found, verdict) = check::route(routes, host, path, &header.method, ctx.peer.as_deref());
    if let Some(found) = found {
        ctx.route = Some(found.route.clone());
        ctx.route_metrics = Some(found.metrics.clone());
    }
    verdict
}

/// Whether a request seems to mean a critical route.
pub fn critical(session: &Session, routes: &Table<Published>) -> bool {
    published_named(session, routes).is_some_and(|published| published.route.critical)
}

/// The route that a refused request seems to have meant: its clients expect refusals in its form.
fn route_named(session: &Session, routes: &Table<Published>) -> Option<Arc<Route>> {
    published_named(session, routes).map(|published| published.route.clone())
}

fn published_named<'r>(session: &Session, routes: &'r Table<Published>) -> Option<&'r Published> {
    let header = session.req_header();
    check::route_named(routes, &header.headers, header.uri.host(), header.raw_path(), &header.method)
}

fn check_json_rpc<'a>(
    policy: &JsonRpcPolicy,
    body: &'a [u8],
    ctx: &mut Context,
    calls: &mut Calls<'a>,
) -> Result<(), Refusal> {
    let reads_params = ctx.route.as_ref().is_some_and(|r| affinity::reads_params(r.upstream.upstream.hash_keys()));
    let ids = &mut ctx.upstream.ids;
    let mut first = None;
    let checked = policy.check(body, |call| {
        if reads_params {
            ids.learn(call);
        }
        first.get_or_insert((call.method, call.id));
        calls.push(call.method);
    });
    let allowed = checked.is_ok();
    let rpc = |method: Option<Text<'_>>, id: Option<RawId<'_>>, calls, batch| Rpc {
        allowed,
        method: method.map(|m| shortened(&m.decode()).into_owned()).unwrap_or_default(),
        id: id.map(logged_id),
        calls,
        batch,
    };
    match checked {
        Ok(good) => {
            let (method, id) = first.unzip();
            ctx.rpc = Some(rpc(method, id.flatten(), good.calls, good.is_batch));
            Ok(())
        }
        // The answer names the call that was refused, wherever in a batch it stood.
        Err(denied) => {
            ctx.rpc = Some(rpc(denied.method, denied.id, denied.calls, denied.is_batch));
            Err(denied.refusal)
        }
    }
}

/// An id is given back whole or not at all: a shortened one would be another id.
fn logged_id(id: RawId<'_>) -> String {
    id.as_str().to_owned()
}

fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= LOGGED_MAX {
        return Cow::Borrowed(text);
    }
    let end = (0..=LOGGED_MAX).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_method_is_shortened_between_characters() {
        let long = "é".repeat(100);
        let short = shortened(&long);
        assert!(short.ends_with('…') && short.len() <= LOGGED_MAX + '…'.len_utf8());
        assert_eq!(shortened("message/send"), "message/send");
    }
}
