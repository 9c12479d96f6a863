//! Asks who is kept out by address, the request rules, and the web application firewall.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use pingora::proxy::Session;

use super::Shared;
use super::check::origin_form;
use super::connection::Connection;
use super::context::Context;
use crate::observe::{WafMatch, WafVerdict};
use crate::policy::rules::{Facts, Rules};
use crate::policy::waf::{Judgement, Mode, Request};
use crate::refusal::Refusal;
use crate::snapshot::{ListenerSnapshot, Route};

/// The client's address, and that of the proxy that speaks for it: lists may have grown since it was accepted.
pub fn check_address(ctx: &Context, connection: &Connection, listener: &ListenerSnapshot) -> Result<(), Refusal> {
    let Some(list) = &listener.addresses else { return Ok(()) };
    let denied = |address: IpAddr| list.denies(address);
    if denied(connection.remote_ip()) {
        // HTTP/2 is told by GOAWAY, HTTP/1.1 by closing.
        connection.retire();
        return Err(Refusal::AddressDenied { of_connection: true });
    }
    let other = ctx.client.as_ref().map(|c| c.address).filter(|a| *a != connection.remote_ip());
    match other {
        Some(address) if denied(address) => Err(Refusal::AddressDenied { of_connection: false }),
        _ => Ok(()),
    }
}

/// A list of request rules.
pub fn check_rules(rules: &Rules, session: &Session, ctx: &mut Context) -> Result<(), Refusal> {
    if rules.is_empty() {
        return Ok(());
    }
    let header = session.req_header();
    let facts = Facts { target: origin_form(header.raw_path()), headers: &header.headers };
    let met = &mut ctx.rules_met;
    rules.check(&facts, |name| match met {
        Some(names) => {
            names.push(',');
            names.push_str(name);
        }
        None => *met = Some(name.to_owned()),
    })
}

/// Longest body of a request on this route: a firewall that blocks lets none pass that it can't look at.
pub fn body_limit(listener: &ListenerSnapshot, route: &Route) -> u64 {
    match route.waf.or(listener.waf.as_ref()).filter(|waf| waf.mode() == Mode::Blocking) {
        Some(waf) => route.body_limit.min(waf.body_limit()),
        None => route.body_limit,
    }
}

/// The web application firewall, last of all: it costs the most.
pub async fn check_waf(
    shared: &Shared,
    session: &Session,
    ctx: &mut Context,
    connection: &Connection,
    listener: &ListenerSnapshot,
    body: &Bytes,
) -> Result<(), Refusal> {
    let Some(route) = ctx.route.clone() else { return Ok(()) };
    let Some(waf) = route.waf.or(listener.waf.as_ref()) else { return Ok(()) };
    let begun = shared.clock.now();
    let judgement = if body.len() as u64 > waf.body_limit() {
        Judgement { verdict: WafVerdict::Skipped, score: 0, matches: Vec::new() }
    } else {
        let header = session.req_header();
        let client = ctx.client.as_ref().map_or_else(|| connection.remote_ip(), |c| c.address);
        let request = Request {
            client: SocketAddr::new(client, connection.remote.port()),
            method: header.method.clone(),
            target: origin_form(header.raw_path()).to_vec(),
            http2: connection.http2,
            host: ctx.host.clone().unwrap_or_default(),
            headers: header.headers.clone(),
            body: body.clone(),
        };
        waf.judge(request).await
    };
    let now = shared.clock.now();
    shared.metrics.waf().judged(judgement.verdict, now.saturating_duration_since(begun));
    if judgement.score > 0 {
        ctx.waf_score = Some(judgement.score);
    }
    write_down(shared, ctx, connection, &route, &judgement);
    match judgement.verdict {
        WafVerdict::Blocked => Err(Refusal::WafBlocked),
        WafVerdict::Unavailable if waf.mode() == Mode::Blocking => Err(Refusal::WafUnavailable),
        WafVerdict::Passed | WafVerdict::Detected | WafVerdict::Skipped | WafVerdict::Unavailable => Ok(()),
    }
}

fn write_down(shared: &Shared, ctx: &Context, connection: &Connection, route: &Route, judgement: &Judgement) {
    for found in &judgement.matches {
        shared.log().record_waf(&WafMatch {
            time: shared.clock.wall(),
            request_id: ctx.request_id.as_ref().and_then(|id| id.to_str().ok()),
            listener: connection.listener.name.as_str(),
            client: ctx.client.as_ref().map_or_else(|| connection.remote_ip(), |c| c.address),
            route: route.name.as_str(),
            rule: found.rule,
            message: &found.message,
            severity: found.severity,
            score: judgement.score,
            verdict: judgement.verdict.as_str(),
        });
    }
}
