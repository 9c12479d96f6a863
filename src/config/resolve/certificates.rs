//! Certificates, keys and bundles that the file names: read, judged, and forgotten.

use super::Resolver;
use crate::config::file::{ListenerTls, Protocol, UpstreamTls};
use crate::config::{Listener, Route};
use crate::tls::{self, TlsFault};

/// The files of a listener. What its certificates cover is kept for [`check_hosts`].
pub(super) fn listener(r: &mut Resolver<'_>, at: &str, settings: &ListenerTls) {
    let complete = match settings.spiffe {
        // What the agent has not issued yet is judged when it comes.
        Some(_) => r.around.issued.is_some(),
        None => !settings.certificates.is_empty() && settings.client_auth.ca.is_some(),
    };
    if !r.around.read_files || !complete {
        return;
    }
    match tls::build_listener(settings, r.base, r.around.now_unix, r.around.issued) {
        Ok(context) => {
            warn(r, at, context.warnings());
            r.contexts.push(context);
        }
        Err(faults) => error(r, at, faults),
    }
}

/// The files of an upstream.
pub(super) fn upstream(r: &mut Resolver<'_>, at: &str, settings: &UpstreamTls) {
    if !r.around.read_files || (settings.spiffe.is_some() && r.around.issued.is_none()) {
        return;
    }
    match tls::build_upstream(settings, r.base, r.around.now_unix, r.around.issued) {
        Ok(material) => warn(r, at, &material.warnings),
        Err(faults) => error(r, at, faults),
    }
}

fn error(r: &mut Resolver<'_>, at: &str, faults: Vec<TlsFault>) {
    for TlsFault { field, message } in faults {
        r.error(&format!("{at}.{field}"), message);
    }
}

fn warn(r: &mut Resolver<'_>, at: &str, faults: &[TlsFault]) {
    for TlsFault { field, message } in faults {
        r.warn(&format!("{at}.{field}"), message.clone());
    }
}

/// Hosts of routes that no certificate covers: the gateway answers 421 to all their requests.
pub(super) fn check_hosts(r: &mut Resolver<'_>, routes: &[Route], listeners: &[Listener]) {
    let contexts = std::mem::take(&mut r.contexts);
    if contexts.is_empty() {
        return;
    }
    for (i, route) in routes.iter().enumerate() {
        // Where nobody shows a certificate, every host is served; what an agent will issue is not known.
        let unknown = |l: &Listener| l.protocol == Protocol::Http || l.tls.as_ref().is_some_and(|t| t.spiffe.is_some());
        if super::listeners::serving(route, listeners).any(unknown) {
            continue;
        }
        for (j, host) in route.hosts.iter().enumerate() {
            if !host.starts_with("*.") && !contexts.iter().any(|c| c.covers(host)) {
                let path = format!("routes[{i}].hosts[{j}]");
                r.warn(&path, format!("no certificate of a listener is for {host}: its requests are refused with 421"));
            }
        }
    }
}
