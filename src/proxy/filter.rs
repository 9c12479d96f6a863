//! Asks who is kept out by address, the request rules, and the web application firewall.

use std::net::SocketAddr;

use bytes::Bytes;
use pingora::proxy::Session;

use super::Shared;
use super::check::{self, origin_form};
use super::connection::Connection;
use super::context::Context;
use crate::observe::{WafMatch, WafVerdict};
use crate::policy::rate_limit::Caller;
use crate::policy::rules::{Facts, Rules};
use crate::policy::waf::{Judgement, Request};
use crate::refusal::Refusal;
use crate::snapshot::{ListenerSnapshot, Route};

/// The client's address, and that of the proxy that speaks for it: lists may have grown since it was accepted.
pub fn check_address(ctx: &Context, connection: &Connection, listener: &ListenerSnapshot) -> Result<(), Refusal> {
    let client = ctx.client.as_ref().map(|client| client.address);
    let checked = check::address(listener.addresses.as_deref(), connection.remote_ip(), client);
    if checked == Err(Refusal::AddressDenied { of_connection: true }) {
        // HTTP/2 is told by GOAWAY, HTTP/1.1 by closing.
        connection.retire();
    }
    checked
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
        let caller = Caller::of(ctx.peer.as_ref().map(|peer| peer.name.as_str()), connection.identity.as_deref());
        let request = Request {
            client: SocketAddr::new(client, connection.remote.port()),
            certificate: caller.certificate().map(Into::into),
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
    check::waf(judgement.verdict, waf.mode())
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
