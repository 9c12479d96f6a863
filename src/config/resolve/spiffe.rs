//! `spiffe`: which agent is asked, and that what is taken from it fits together.

use super::Resolver;
use crate::config::file::{self, ListenerSpiffe, ListenerTls, UpstreamSpiffe, UpstreamTls};
use crate::config::{Listener, Upstream};
use crate::identity::{SPIFFE_SCHEME, SpiffeId, check_trust_domain};
use crate::tls::{ENDPOINT_VARIABLE, Endpoint};

/// `listeners[].tls.spiffe`
pub(super) fn listener(r: &mut Resolver<'_>, at: &str, tls: &ListenerTls, spiffe: &ListenerSpiffe) {
    if !tls.certificates.is_empty() {
        let why = "not used with spiffe, which brings the certificate; leave out one of the two";
        r.error(&format!("{at}.certificates"), why);
    }
    if tls.client_auth.ca.is_some() {
        let why = "not used with spiffe, which brings the CAs; leave out one of the two";
        r.error(&format!("{at}.client_auth.ca"), why);
    }
    svid(r, &format!("{at}.spiffe"), spiffe.id.as_deref(), spiffe.hint.as_deref());
    let domains_at = format!("{at}.spiffe.trust_domains");
    let domains = spiffe.trust_domains.as_deref().unwrap_or_default();
    if spiffe.trust_domains.is_some() && domains.is_empty() {
        r.error(
            &domains_at,
            "the list is empty, so nobody could come in; leave it out for the SVID's own trust domain",
        );
    }
    r.once(&domains_at, domains);
    for (i, name) in domains.iter().enumerate() {
        if let Err(why) = check_trust_domain(name) {
            let hint = if name.starts_with(SPIFFE_SCHEME) { "; write it without spiffe://" } else { "" };
            r.error(&format!("{domains_at}[{i}]"), format!("{name:?}: {why}{hint}"));
        }
    }
}

/// `upstreams[].tls.spiffe`
pub(super) fn upstream(r: &mut Resolver<'_>, at: &str, tls: &UpstreamTls, spiffe: &UpstreamSpiffe) {
    for (key, given) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
        if given.is_some() {
            let why = "not used with spiffe, which brings CAs, certificate and key; leave out one of the two";
            r.error(&format!("{at}.{key}"), why);
        }
    }
    if tls.spiffe_id.is_none() && !r.has_guess(&format!("{at}.spiffe_id")) {
        let why = "with spiffe it says who the nodes are, and whose CAs vouch for them";
        r.error(&format!("{at}.spiffe"), format!("spiffe_id is missing: {why}; write it beside spiffe"));
    }
    svid(r, &format!("{at}.spiffe"), spiffe.id.as_deref(), spiffe.hint.as_deref());
}

fn svid(r: &mut Resolver<'_>, at: &str, id: Option<&str>, hint: Option<&str>) {
    if !cfg!(feature = "spiffe-workload-api") {
        r.error(at, "this build leaves SPIFFE agents out; build it with --features spiffe-workload-api");
    }
    match id.map(SpiffeId::parse) {
        Some(Err(why)) => r.error(&format!("{at}.id"), format!("{:?}: {why}", id.unwrap_or_default())),
        Some(Ok(id)) if id.path().is_empty() => {
            r.error(&format!("{at}.id"), format!("{id} names a trust domain and nobody in it"));
        }
        _ => {}
    }
    if hint == Some("") {
        r.error(&format!("{at}.hint"), "empty; leave it out for the agent's first SVID");
    }
}

/// The agent, if anybody takes something from one.
pub(super) fn resolve(
    r: &mut Resolver<'_>,
    raw: Option<file::Spiffe>,
    listeners: &[Listener],
    upstreams: &[Upstream],
) -> Option<Endpoint> {
    let of_listener = listeners.iter().position(|l| l.tls.as_ref().is_some_and(|t| t.spiffe.is_some()));
    let of_upstream = upstreams.iter().position(|u| u.tls.as_ref().is_some_and(|t| t.spiffe.is_some()));
    let first = of_listener.map(|i| format!("listeners[{i}].tls.spiffe"));
    let first = first.or_else(|| of_upstream.map(|i| format!("upstreams[{i}].tls.spiffe")));
    let written = raw.as_ref().and_then(|s| s.workload_api.as_deref());
    if let Some(address) = written
        && let Err(why) = Endpoint::parse(address)
    {
        r.error("spiffe.workload_api", why);
    }
    let Some(first) = first else {
        if raw.is_some() && !r.has_guess("listeners") && !r.has_guess("upstreams") {
            r.warn(
                "spiffe",
                "nothing is taken from the agent; write spiffe: {} into the tls of a listener or upstream",
            );
        }
        return None;
    };
    if let Some(address) = written {
        return Endpoint::parse(address).ok();
    }
    if r.has_guess("spiffe") {
        return None;
    }
    match (r.around.env)(ENDPOINT_VARIABLE).map(|address| Endpoint::parse(&address)) {
        Some(Ok(endpoint)) => Some(endpoint),
        Some(Err(why)) => {
            r.error(&first, format!("{ENDPOINT_VARIABLE} of the environment: {why}"));
            None
        }
        None => {
            let remedy = "write spiffe: { workload_api: unix:///run/spire/agent.sock } at the top of the file";
            r.error(&first, format!("no SPIFFE agent is named; {remedy}, or set {ENDPOINT_VARIABLE}"));
            None
        }
    }
}
