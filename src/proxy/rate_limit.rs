//! Asks the rate limits of a request's listener and route.

use std::sync::Arc;
use std::time::Instant;

use pingora::proxy::Session;

use super::Shared;
use super::connection::Connection;
use super::context::Context;
use crate::json_rpc::Text;
use crate::observe::RateLimitDecision;
use crate::policy::rate_limit::{Caller, Exceeded, Facts, Limit, SharedRates};
use crate::refusal::Refusal;
use crate::snapshot::{ListenerSnapshot, Route};

/// The JSON-RPC calls of a body, as far as limits go.
#[derive(Default)]
pub struct Calls<'a> {
    first: Option<Text<'a>>,
    /// Only a batch has more, and takes memory here.
    more: Vec<Text<'a>>,
}

impl<'a> Calls<'a> {
    /// Counts a call.
    pub fn push(&mut self, method: Text<'a>) {
        match self.first {
            None => self.first = Some(method),
            Some(_) => self.more.push(method),
        }
    }

    /// Each method once, and how often it is called.
    fn by_method(self) -> Vec<(String, u32)> {
        let mut methods: Vec<_> = self.first.iter().chain(&self.more).map(|m| m.decode()).collect();
        methods.sort_unstable();
        let mut counted: Vec<(String, u32)> = Vec::new();
        for method in methods {
            match counted.last_mut() {
                Some((same, calls)) if *same == *method => *calls += 1,
                _ => counted.push((method.into_owned(), 1)),
            }
        }
        counted
    }
}

/// What a limit is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// The JSON-RPC method, where that counts.
    method: Option<&'a str>,
    /// Calls to take now.
    calls: u32,
    /// Calls of the whole body that the limit counts under this key.
    whole: u32,
}

impl Wanted<'_> {
    const ONE: Self = Self { method: None, calls: 1, whole: 1 };
}

/// A request's limits.
pub struct Asking<'a> {
    /// Where the counts are.
    pub shared: &'a Shared,
    /// On which connection it came.
    pub connection: &'a Connection,
    /// At which listener.
    pub listener: &'a ListenerSnapshot,
    /// When its header was whole.
    pub started: Instant,
}

impl Asking<'_> {
    /// The listener's limits, whether or not a route was found: a flood of unknown paths is a flood too.
    pub async fn listener(&self, session: &mut Session, ctx: &mut Context) -> Result<(), Refusal> {
        self.ask(&self.listener.rate_limits.by_request, session, ctx, &Wanted::ONE, self.started).await
    }

    /// The limits by issuer, once the token is checked: the listener's too, for only a route says whether it is.
    pub async fn issuer(&self, session: &mut Session, ctx: &mut Context) -> Result<(), Refusal> {
        let Some(route) = ctx.route.clone() else { return Ok(()) };
        self.ask(&self.listener.rate_limits.by_issuer, session, ctx, &Wanted::ONE, self.started).await?;
        self.ask(&route.rate_limits.by_issuer, session, ctx, &Wanted::ONE, self.started).await
    }

    /// The route's limits that need neither token nor body.
    pub async fn route(&self, session: &mut Session, ctx: &mut Context) -> Result<(), Refusal> {
        let Some(route) = ctx.route.clone() else { return Ok(()) };
        self.ask(&route.rate_limits.by_request, session, ctx, &Wanted::ONE, self.started).await
    }

    /// The limits by method, and for a batch the rest of the others: a batch counts as its calls.
    pub async fn calls(&self, session: &mut Session, ctx: &mut Context, calls: Calls<'_>) -> Result<(), Refusal> {
        let Some(route) = ctx.route.clone() else { return Ok(()) };
        // The body may have taken its time.
        let now = self.shared.clock.now();
        if !calls.more.is_empty() {
            return self.batch(session, ctx, &route, calls, now).await;
        }
        let by_call = [&self.listener.rate_limits.by_call, &route.rate_limits.by_call];
        if by_call.iter().all(|limits| limits.is_empty()) {
            return Ok(());
        }
        let Some(method) = calls.first else { return Ok(()) };
        let method = method.decode();
        for limits in by_call {
            self.ask(limits, session, ctx, &Wanted { method: Some(&method), ..Wanted::ONE }, now).await?;
        }
        Ok(())
    }

    /// The calls of a batch take from all limits, or where one refuses them from none; but for what is known in Redis alone.
    async fn batch(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        route: &Route,
        calls: Calls<'_>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let (of_listener, of_route) = (&self.listener.rate_limits, &route.rate_limits);
        let more = u32::try_from(calls.more.len()).unwrap_or(u32::MAX);
        // The first was counted before the body was read.
        let rest = Wanted { method: None, calls: more, whole: more.saturating_add(1) };
        let by_body = of_listener.by_body().into_iter().chain(of_route.by_body());
        let mut wanted: Vec<(&[Arc<Limit>], Wanted<'_>)> = by_body.map(|limits| (limits, rest)).collect();
        let by_call = [&*of_listener.by_call, &*of_route.by_call];
        let methods = if by_call.concat().is_empty() { Vec::new() } else { calls.by_method() };
        for (method, count) in &methods {
            let same = Wanted { method: Some(method), calls: *count, whole: *count };
            wanted.extend(by_call.map(|limits| (limits, same)));
        }
        for (limits, wanted) in &wanted {
            self.foresee(limits, session, ctx, wanted, now)?;
        }
        for (limits, wanted) in &wanted {
            self.ask(limits, session, ctx, wanted, now).await?;
        }
        Ok(())
    }

    /// Refuses what these limits would refuse. Nothing is taken.
    fn foresee(
        &self,
        limits: &[Arc<Limit>],
        session: &Session,
        ctx: &mut Context,
        wanted: &Wanted<'_>,
        now: Instant,
    ) -> Result<(), Refusal> {
        for limit in limits.iter().filter(|limit| limit.enforce) {
            let refused = if limit.never_admits(wanted.whole) {
                // However long the client waits: so nobody is told to come back.
                Some(Refusal::BatchBeyondRateLimit)
            } else {
                let key = self.shared.rates.key(limit, &self.facts(session, ctx, wanted.method));
                let foreseen = self.shared.rates.foresee(limit, key, wanted.calls, now);
                foreseen.err().map(|exceeded| refusal(ctx, limit, &exceeded))
            };
            if let Some(refusal) = refused {
                limit.metrics.decided(RateLimitDecision::Refused);
                ctx.rate_limit = Some(limit.clone());
                return Err(refusal);
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        limits: &[Arc<Limit>],
        session: &mut Session,
        ctx: &mut Context,
        wanted: &Wanted<'_>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let calls = wanted.calls;
        for limit in limits {
            let facts = self.facts(session, ctx, wanted.method);
            let key = self.shared.rates.key(limit, &facts);
            let fleet = if limit.shared { self.shared.fleet_rates.load_full() } else { None };
            let decided = match fleet {
                // All of a request's waits for Redis together are as long as one may be: then it is as if Redis were gone.
                Some(fleet) if ctx.fleet_wait < fleet.timeout() => {
                    let fleet_key = fleet.key(limit, &facts, self.shared.rates.ipv6_prefix());
                    let asked = self.shared.clock.now();
                    let decided = self.decide_together(&fleet, &fleet_key, key, limit, calls).await;
                    ctx.fleet_wait += self.shared.clock.now().saturating_duration_since(asked);
                    decided
                }
                _ => self.shared.rates.decide(limit, key, calls, now),
            };
            let Err(exceeded) = decided else {
                limit.metrics.decided(RateLimitDecision::Admitted);
                continue;
            };
            if limit.enforce {
                limit.metrics.decided(RateLimitDecision::Refused);
                ctx.rate_limit = Some(limit.clone());
                return Err(refusal(ctx, limit, &exceeded));
            }
            limit.metrics.decided(RateLimitDecision::WouldRefuse);
            ctx.rate_limit.get_or_insert_with(|| limit.clone());
        }
        Ok(())
    }

    /// A shared limit: refused here if that is known, else as Redis says; if it doesn't say, as for this gateway alone.
    async fn decide_together(
        &self,
        fleet: &SharedRates,
        fleet_key: &[u8],
        key: u64,
        limit: &Limit,
        calls: u32,
    ) -> Result<(), Exceeded> {
        let rates = &self.shared.rates;
        let asked = self.shared.clock.now();
        // Whatever is refused to this gateway alone is refused to all together: an attack does not reach Redis.
        rates.decide(limit, key, calls, asked)?;
        match fleet.take(fleet_key, limit, calls).await {
            Ok(answer) => rates.learn(limit, key, calls, answer, asked),
            // Counted and logged; until Redis is back, the gateway's own decision stands.
            Err(_) => Ok(()),
        }
    }

    fn facts<'f>(&'f self, session: &'f Session, ctx: &'f Context, method: Option<&'f str>) -> Facts<'f> {
        let peer = ctx.peer.as_ref().map(|peer| peer.name.as_str());
        Facts {
            address: ctx.client.as_ref().map_or_else(|| self.connection.remote_ip(), |c| c.address),
            caller: Caller::of(peer, self.connection.identity.as_deref()),
            sni: self.connection.tls.as_ref().and_then(|tls| tls.sni.as_deref()),
            route: ctx.route.as_ref().map(|r| r.name.as_str()),
            method,
            issuer: ctx.federation_issuer.as_deref(),
            headers: &session.req_header().headers,
        }
    }
}

fn refusal(ctx: &Context, limit: &Limit, exceeded: &Exceeded) -> Refusal {
    Refusal::RateLimited {
        limit: limit.quota.limit(),
        remaining: exceeded.remaining,
        retry_after_seconds: exceeded.retry_after_seconds(),
        json_rpc_code: ctx.begun.as_ref().map_or(-32005, |b| b.snapshot.config.hive.rate_limited_code),
    }
}
