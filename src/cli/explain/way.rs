//! How far the request has come that is asked about, and what is said of it.

use std::sync::Arc;

use super::Stop;
use super::asked::Asked;
use crate::clock::Clock;
use crate::config::Located;
use crate::json_rpc::RawId;
use crate::policy::peers::Peer;
use crate::policy::rate_limit::{Caller, Facts, Limit, Limits};
use crate::proxy::check;
use crate::refusal::Refusal;
use crate::request::{ClientAddress, Form};
use crate::snapshot::{ListenerSnapshot, Published, Route, Snapshot};

/// Calls that a limit counts.
#[derive(Clone, Copy)]
pub struct Counted {
    /// At this step.
    pub now: u32,
    /// Of the whole request.
    pub whole: u32,
}

impl Counted {
    pub const ONE: Self = Self { now: 1, whole: 1 };
}

/// How far a request has come.
pub struct Way<'a> {
    pub snapshot: &'a Snapshot,
    pub located: &'a Located,
    pub asked: &'a Asked,
    pub clock: Clock,
    /// What the present step has found, and the key of the configuration that decides it.
    pub said: Vec<(String, Option<String>)>,
    /// The call's id, for the answer.
    pub id: Option<RawId<'a>>,
    pub form: Option<Form<'a>>,
    pub client: Option<ClientAddress>,
    pub peer: Option<Arc<Peer>>,
    pub published: Option<&'a Published>,
    /// The route has been looked for.
    pub sought: bool,
    /// What the route says of the peer; told only after the listener's limits.
    pub routed: Result<(), Refusal>,
    pub issuer: Option<Arc<str>>,
    /// Each method that is called, and how often.
    pub calls: Vec<(String, u32)>,
}

impl<'a> Way<'a> {
    pub fn new(snapshot: &'a Snapshot, located: &'a Located, asked: &'a Asked, clock: Clock) -> Self {
        Self {
            snapshot,
            located,
            asked,
            clock,
            said: Vec::new(),
            id: None,
            form: None,
            client: None,
            peer: None,
            published: None,
            sought: false,
            routed: Ok(()),
            issuer: None,
            calls: Vec::new(),
        }
    }

    /// The route, once it is found.
    pub fn route(&self) -> Option<&'a Route> {
        self.published.map(|published| &*published.route)
    }

    /// The route whose form an answer of the gateway's own has: also of a request that was refused before its route was
    /// looked for.
    pub fn answers_as(&self) -> Option<&'a Route> {
        let head = self.asked.head();
        let named = || check::route_named(&self.listener().routes, head.headers, None, head.target, head.method);
        // What was looked for and not found has none.
        if self.sought { self.route() } else { named().map(|published| &*published.route) }
    }

    /// Whether a body belongs to the request that nobody has shown.
    pub fn body_unknown(&self) -> bool {
        let expected = || self.route().is_some_and(|route| route.json_rpc.is_some());
        self.asked.body.is_none() && (self.asked.has_body() || expected())
    }

    /// How long the body is, and what that comes to if it is not as long as announced.
    pub fn body_said(&self) -> (String, &'static str) {
        let length = self.asked.body.as_ref().map(|body| body.len() as u64);
        match (length, self.asked.announced) {
            (None, Some(announced)) => (format!("{announced} bytes announced"), ""),
            (None, None) if self.body_unknown() => ("not shown".to_owned(), ""),
            (Some(length), Some(announced)) if length < announced => {
                (format!("{length} of {announced} announced bytes"), "; the gateway waits for the rest")
            }
            (Some(length), _) if self.asked.overlong => {
                (format!("{length} bytes"), "; what is behind them is the next request")
            }
            _ => (format!("{} bytes", length.unwrap_or(0)), ""),
        }
    }

    pub fn listener(&self) -> &'a ListenerSnapshot {
        &self.snapshot.listeners[self.asked.listener]
    }

    pub fn say(&mut self, said: impl Into<String>, at: impl Into<String>) {
        self.said.push((said.into(), Some(at.into())));
    }

    /// Says what no line of the configuration decides.
    pub fn note(&mut self, said: impl Into<String>) {
        self.said.push((said.into(), None));
    }

    pub fn listener_key(&self, key: &str) -> String {
        format!("listeners[{}].{key}", self.asked.listener)
    }

    pub fn route_key(&self, key: &str) -> String {
        let name = self.route().map(|route| &route.name);
        let index = self.snapshot.config.routes.iter().position(|r| Some(&r.name) == name);
        index.map_or_else(|| "routes".to_owned(), |i| format!("routes[{i}].{key}"))
    }

    /// What limits count by. `method`: of one call.
    pub fn facts<'f>(&'f self, method: Option<&'f str>) -> Facts<'f> {
        let peer = self.peer.as_ref().map(|peer| peer.name.as_str());
        Facts {
            address: self.client.as_ref().map_or(self.asked.remote, |client| client.address),
            caller: Caller::of(peer, self.asked.identity.as_ref()),
            sni: self.asked.sni.as_deref(),
            route: self.route().map(|route| route.name.as_str()),
            method,
            issuer: self.issuer.as_deref(),
            headers: &self.asked.headers,
        }
    }

    /// Says what these limits would count, and refuses what they never let pass.
    pub fn limits(&mut self, limits: &[Arc<Limit>], method: Option<&str>, calls: Counted) -> Result<(), Stop> {
        for limit in limits {
            let prefix = self.snapshot.config.server.rate_limit_ipv6_prefix;
            let facts = self.facts(method);
            let keys: Vec<_> = limit.parts().iter().map(|part| facts.shown(part, prefix)).collect();
            let (rate, at) = self.limit_key(limit);
            let dry = if limit.enforce { "" } else { ", not enforced" };
            let shared = if limit.shared { ", shared" } else { "" };
            let burst = limit.quota.burst();
            let counted = match calls {
                Counted { now: 1, whole: 1 } => "counts 1".to_owned(),
                Counted { now, whole } if now < whole => format!("counts {now} more"),
                Counted { now, .. } => format!("counts {now} calls"),
            };
            self.say(format!("{counted} for {}: {rate}, {burst} at once{shared}{dry}", keys.join(" ")), at);
            if limit.never_admits(calls.whole) {
                return Err(Refusal::BatchBeyondRateLimit.into());
            }
        }
        Ok(())
    }

    /// A limit's rate as it was written, and its place.
    pub fn limit_key(&self, limit: &Limit) -> (String, String) {
        let config = &self.snapshot.config;
        let of_listener = config.listeners.iter().enumerate();
        let of_listener =
            of_listener.map(|(i, l)| (format!("listener/{}", l.name), format!("listeners[{i}]"), &l.rate_limits));
        let of_route = config.routes.iter().enumerate();
        let of_route = of_route.map(|(i, r)| (format!("route/{}", r.name), format!("routes[{i}]"), &r.rate_limits));
        for (owner, at, limits) in of_listener.chain(of_route) {
            let names = Limits::names(&owner, limits.iter().map(|l| &*l.per.0));
            if let Some(i) = names.iter().position(|name| **name == *limit.name) {
                return (limits[i].rate.to_string(), format!("{at}.rate_limits[{i}]"));
            }
        }
        (limit.name.to_string(), String::new())
    }
}
