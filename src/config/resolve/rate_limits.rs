//! `rate_limits` of routes and listeners.

use super::Resolver;
use crate::config::file::{Batch, RateLimit};
use crate::config::{Listener, Route};
use crate::policy::federation;
use crate::policy::rate_limit::KeyPart;

/// What counts by something that its requests don't have, and everything else that can't work.
pub(super) fn check(r: &mut Resolver<'_>, listeners: &[Listener], routes: &[Route], federation: &federation::Settings) {
    let tokens = federation.verify.is_some() || federation.bind_issuer || r.has_guess("hive.federation");
    let no_tokens = "no token's issuer is believed; write hive.federation.jwt: verify";
    for (i, listener) in listeners.iter().enumerate() {
        let at = format!("listeners[{i}].rate_limits");
        each(r, &at, &listener.rate_limits, |part| match part {
            KeyPart::Issuer if !tokens => Some(no_tokens),
            _ => None,
        });
    }
    for (i, route) in routes.iter().enumerate() {
        let at = format!("routes[{i}]");
        let calls = route.json_rpc.is_some() || r.has_guess(&format!("{at}.json_rpc"));
        each(r, &format!("{at}.rate_limits"), &route.rate_limits, |part| match part {
            KeyPart::Method if !calls => {
                Some("method is JSON-RPC's, which this route does not speak; write json_rpc: {}")
            }
            KeyPart::Issuer if !tokens => Some(no_tokens),
            _ => None,
        });
        batches(r, &at, route, listeners);
    }
}

/// A batch that a limit never lets pass at once.
fn batches(r: &mut Resolver<'_>, at: &str, route: &Route, listeners: &[Listener]) {
    let Some(Batch::UpTo(calls)) = route.json_rpc.as_ref().map(|rpc| rpc.batch) else { return };
    let of_listeners = listeners.iter().enumerate().filter(|(i, _)| route.listeners.include(*i));
    let of_listeners = of_listeners.map(|(i, l)| (format!("listeners[{i}]"), &l.rate_limits));
    for (owner, limits) in of_listeners.chain([(at.to_owned(), &route.rate_limits)]) {
        for (i, limit) in limits.iter().enumerate().filter(|(_, l)| l.enforce) {
            let burst = limit.burst.unwrap_or(limit.rate.count);
            if burst < calls {
                let path = format!("{at}.json_rpc.batch");
                let why =
                    format!("{owner}.rate_limits[{i}] lets {burst} calls pass at once, so larger batches never pass");
                r.warn(&path, format!("{why}; write at most {burst}, or a larger burst"));
            }
        }
    }
}

fn each(r: &mut Resolver<'_>, at: &str, limits: &[RateLimit], wrong: impl Fn(&KeyPart) -> Option<&'static str>) {
    for (i, limit) in limits.iter().enumerate() {
        let per = format!("{at}[{i}].per");
        if let Some(burst) = &limit.burst {
            r.range(&format!("{at}[{i}].burst"), burst, &(1..=1_000_000));
        }
        let parts = &limit.per.0;
        if parts.is_empty() {
            r.error(&per, "the list is empty; write what is counted by, such as address, or route for all together");
        }
        if !r.has_guess(&per) {
            r.once(&per, &parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        if let Some(why) = parts.iter().find_map(&wrong) {
            r.error(&per, why);
        }
    }
}
