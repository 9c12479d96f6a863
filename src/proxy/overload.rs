//! Requests that are more than the gateway, its listener, a client address or a peer takes at once, or that come while it
//! is behind.

use std::time::Instant;

use pingora::proxy::Session;

use super::connection::Connection;
use super::context::Context;
use super::{Shared, admit};
use crate::observe::OverloadLimit;
use crate::policy::load::Place;
use crate::policy::overload::Class;
use crate::refusal::Refusal;
use crate::snapshot::{ListenerSnapshot, Route, Snapshot};

/// The places that a request takes, given back when it ends or is refused.
#[derive(Default)]
pub struct Places {
    /// It is one of `overload.requests`.
    process: bool,
    listener: Option<Place>,
    address: Option<Place>,
    peer: Option<Place>,
}

/// Counts the request in, and says how many there are with it.
pub fn begin(shared: &Shared, ctx: &mut Context) -> u64 {
    ctx.places.process = true;
    shared.request_began()
}

/// Gives back all that others could have in the request's stead. Of a refused one that is before its answer is written:
/// a client may leave that unread for `timeouts.write`, and would hold the places of those who do read. What such answers
/// hold is their streams: no more than a connection has of them, on no more connections than `limits` lets in.
pub fn give_back(shared: &Shared, ctx: &mut Context) {
    if std::mem::take(&mut ctx.places).process {
        shared.request_ended();
    }
    let way = &mut ctx.upstream;
    way.node = way.picked.take().map(|picked| picked.node().clone()).or(way.node.take());
    way.retry = None;
    way.entry = None;
    way.permit = None;
}

/// What a request is measured by.
pub struct Asking<'a> {
    /// Where the counts are.
    pub shared: &'a Shared,
    /// On which connection it came.
    pub connection: &'a Connection,
    /// With which configuration.
    pub snapshot: &'a Snapshot,
    /// At which listener.
    pub listener: &'a ListenerSnapshot,
}

impl Asking<'_> {
    /// The first question, before anything is looked at that costs: whether there is room for one more of `requests`.
    pub fn room(&self, session: &Session, ctx: &mut Context, requests: u64) -> Result<(), Refusal> {
        let limits = &self.snapshot.overload;
        let retry_after_seconds = limits.retry_after_seconds;
        let critical = || self.listener.some_critical && admit::critical(session, &self.listener.routes);
        let (limit, refusal) = if requests > limits.requests && (requests > limits.requests_critical || !critical()) {
            (OverloadLimit::Requests, Refusal::RequestsExhausted { retry_after_seconds })
        } else if self.shared.lag.sheds(Class::Request, limits)
            && (!critical() || self.shared.lag.sheds(Class::Critical, limits))
        {
            (OverloadLimit::EventLoopLag, Refusal::Overloaded { retry_after_seconds })
        } else if self.listener.requests.total.is_some_and(|most| {
            let taken = self.take(ctx, |places| &mut places.listener, |c| c.listener.load.request());
            taken > most || (taken > self.listener.requests.total_uncritical && !critical())
        }) {
            (OverloadLimit::ListenerRequests, Refusal::RequestsExhausted { retry_after_seconds })
        } else {
            return Ok(());
        };
        self.refuse(limit, refusal)
    }

    /// Once it is known who asks: the client's own share.
    pub fn share(&self, ctx: &mut Context, now: Instant) -> Result<(), Refusal> {
        let limits = self.listener.requests;
        let json_rpc_code = self.snapshot.config.hive.rate_limited_code;
        if let Some(most) = limits.per_address {
            let client = ctx.client.as_ref().map(|c| c.address).filter(|a| *a != self.connection.remote_ip());
            let taken = self.take(
                ctx,
                |places| &mut places.address,
                |c| match client {
                    // Behind a trusted proxy: its connection is not the client's.
                    Some(address) => c.listener.admission.load_of(address, now).request(),
                    None => c.address_load.request(),
                },
            );
            if taken > most {
                self.refuse(OverloadLimit::AddressRequests, Refusal::AddressRequestsExhausted { json_rpc_code })?;
            }
        }
        if let Some(most) = limits.per_peer
            && let Some(load) = self.connection.peer_load()
            && self.take(ctx, |places| &mut places.peer, |_| load.request()) > most
        {
            self.refuse(OverloadLimit::PeerRequests, Refusal::PeerRequestsExhausted { json_rpc_code })?;
        }
        Ok(())
    }

    /// The last question, when the request could go to a node at once: whether one more may wait for an answer there.
    pub fn upstream(&self, ctx: &mut Context, route: &Route) -> Result<(), Refusal> {
        if let Some(concurrency) = &route.upstream.concurrency {
            let permit = concurrency.acquire(route.critical, self.shared.clock.now());
            ctx.upstream.permit = Some(permit.ok_or(Refusal::UpstreamBusy)?);
        }
        Ok(())
    }

    /// Counts the request in one place; how many there are with it.
    fn take(
        &self,
        ctx: &mut Context,
        slot: impl FnOnce(&mut Places) -> &mut Option<Place>,
        count: impl FnOnce(&Connection) -> (Place, u32),
    ) -> u32 {
        let (place, taken) = count(self.connection);
        *slot(&mut ctx.places) = Some(place);
        taken
    }

    fn refuse(&self, limit: OverloadLimit, refusal: Refusal) -> Result<(), Refusal> {
        if self.shared.exceeded(limit, self.snapshot) { Err(refusal) } else { Ok(()) }
    }
}
