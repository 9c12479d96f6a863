//! `listeners`: addresses, trust, limits.

use ipnet::IpNet;

use super::ranges::{DAY, HOUR, MILLISECOND, MINUTE, SECOND};
use super::{Resolver, defense};
use crate::config::file::{
    self, ClientAuth, ExpiredCrl, ListenerLimits, ListenerTimeouts, ListenerTls, OcspCheck, OcspFailure, Protocol,
};
use crate::config::{Listener, Route, RouteListeners, RoutePeers};
use crate::policy::deny::parse_network;
use crate::request::is_private;
use crate::tls::{CrlUrl, UrlPrefix};

pub(super) fn resolve(r: &mut Resolver<'_>, raw: Vec<file::Listener>) -> Vec<Listener> {
    if raw.is_empty() {
        r.error("listeners", "the list is empty; write at least one { name, address, tls }");
    }
    r.unique("listeners", raw.iter().map(|l| l.name.as_str()));
    raw.into_iter().enumerate().map(|(i, l)| listener(r, &format!("listeners[{i}]"), l)).collect()
}

fn listener(r: &mut Resolver<'_>, at: &str, raw: file::Listener) -> Listener {
    let tls_path = format!("{at}.tls");
    let protocol_known = !r.is_guessed(&format!("{at}.protocol"));
    match (raw.protocol, &raw.tls) {
        (Protocol::Https, None) if protocol_known => {
            let remedy = "write tls: { certificates, client_auth }, or protocol: http for plain text";
            r.error(&tls_path, format!("https needs certificates; {remedy}"));
        }
        (Protocol::Http, Some(_)) => r.error(&tls_path, "not used with protocol: http; leave out one of the two"),
        (Protocol::Http, None) if !raw.address.ip().is_loopback() => {
            let reach = format!("plain text on {}, which other machines can reach", raw.address);
            r.warn(&format!("{at}.protocol"), format!("{reach}: no client shows a certificate there"));
        }
        _ => {}
    }
    if let Some(tls) = &raw.tls
        && !tls.client_auth.asks()
        && !is_private(raw.address.ip())
    {
        let reach = format!("none on {}, which strangers can reach: they would call in our name", raw.address);
        let remedy = "write mode: required, or an address of this machine or a private network, such as 127.0.0.1";
        r.error(&format!("{tls_path}.client_auth.mode"), format!("{reach}; {remedy}"));
    }
    let trusted = raw.trusted_proxies.iter().enumerate();
    let trusted_proxies = trusted.filter_map(|(i, text)| network(r, &format!("{at}.trusted_proxies[{i}]"), text));
    let trusted_proxies = trusted_proxies.collect();
    let addresses = defense::addresses(r, at, &raw);
    limits(r, &format!("{at}.limits"), &raw.limits);
    timeouts(r, &format!("{at}.timeouts"), &raw.timeouts);
    Listener {
        tls: raw.tls.map(|tls| listener_tls(r, &tls_path, tls)),
        name: raw.name,
        address: raw.address,
        protocol: raw.protocol,
        trusted_proxies,
        limits: raw.limits,
        timeouts: raw.timeouts,
        rate_limits: raw.rate_limits,
        addresses,
        request_rules: defense::request_rules(r, &format!("{at}.request_rules"), &raw.request_rules),
        waf: raw.waf.as_ref().and_then(|waf| defense::firewall(r, &format!("{at}.waf"), waf)),
        local_reply: raw.local_reply,
    }
}

fn listener_tls(r: &mut Resolver<'_>, at: &str, mut tls: ListenerTls) -> ListenerTls {
    match &tls.spiffe {
        Some(spiffe) => super::spiffe::listener(r, at, &tls, spiffe),
        None => needs_files(r, at, &tls),
    }
    for files in &mut tls.certificates {
        files.cert = r.material(&files.cert);
        files.key = r.material(&files.key);
    }
    client_auth(r, &format!("{at}.client_auth"), &mut tls.client_auth);
    super::certificates::listener(r, at, &tls);
    tls
}

/// What a listener needs that no SPIFFE agent serves.
fn needs_files(r: &mut Resolver<'_>, at: &str, tls: &ListenerTls) {
    let (certificates, auth) = (format!("{at}.certificates"), format!("{at}.client_auth"));
    let missing = |key: &str, example: &str| format!("the key {key:?} is missing; write {example}");
    if tls.certificates.is_empty() && !r.has_guess(&certificates) && !r.has_guess(&format!("{at}.spiffe")) {
        match r.located.has(&certificates) {
            true => r.error(&certificates, "the list is empty; write at least one { cert, key }"),
            false => {
                let example = "certificates: [{ cert: server.pem, key: server.key }], or spiffe: {}";
                r.error(at, missing("certificates", example));
            }
        }
    }
    if tls.client_auth.asks()
        && tls.client_auth.ca.is_none()
        && !r.has_guess(&auth)
        && !r.has_guess(&format!("{at}.spiffe"))
    {
        match r.located.has(&auth) {
            true => r.error(&auth, missing("ca", "ca: mesh-ca.pem")),
            false => r.error(at, missing("client_auth", "client_auth: { mode: required, ca: mesh-ca.pem }")),
        }
    }
}

/// Which OCSP responders are asked.
fn ocsp(r: &mut Resolver<'_>, at: &str, auth: &ClientAuth) {
    r.once(&format!("{at}.ocsp_responders"), &auth.ocsp_responders);
    for (i, prefix) in auth.ocsp_responders.iter().enumerate() {
        if let Err(why) = UrlPrefix::parse(prefix) {
            r.error(&format!("{at}.ocsp_responders[{i}]"), why);
        }
    }
    if let Some(timeout) = auth.ocsp_timeout {
        r.span(&format!("{at}.ocsp_timeout"), timeout, 100 * MILLISECOND, SECOND * 30);
    }
    if auth.ocsp == OcspCheck::Off {
        let keys = [
            ("ocsp_url", auth.ocsp_url.is_some()),
            ("ocsp_responders", !auth.ocsp_responders.is_empty()),
            ("ocsp_timeout", auth.ocsp_timeout.is_some()),
            ("ocsp_failure", auth.ocsp_failure.is_some()),
        ];
        for (key, _) in keys.into_iter().filter(|(_, given)| *given) {
            r.error(&format!("{at}.{key}"), "nobody is asked; write ocsp: leaf, or leave it out");
        }
    } else if auth.ocsp_url.is_none() && auth.ocsp_responders.is_empty() {
        let remedy =
            "write ocsp_url, or ocsp_responders: [\"http://ocsp.mesh.example/\"] for those that certificates name";
        r.error(&format!("{at}.ocsp"), format!("no responder may be asked; {remedy}"));
    }
}

/// Nobody is asked, so there is nothing to be said about who comes in.
fn no_client_auth(r: &mut Resolver<'_>, at: &str, auth: &ClientAuth) {
    let given = [
        ("ca", auth.ca.is_some()),
        ("crl", !auth.crl.is_empty()),
        ("crl_url", !auth.crl_url.is_empty()),
        ("crl_distribution_points", !auth.crl_distribution_points.is_empty()),
        ("crl_refresh", auth.crl_refresh.is_some()),
        ("crl_check", auth.crl_check.is_some()),
        ("expired_crl", auth.expired_crl.is_some()),
        ("ocsp", auth.ocsp != OcspCheck::Off),
        ("ocsp_url", auth.ocsp_url.is_some()),
        ("ocsp_responders", !auth.ocsp_responders.is_empty()),
        ("ocsp_timeout", auth.ocsp_timeout.is_some()),
        ("ocsp_failure", auth.ocsp_failure.is_some()),
    ];
    for (key, _) in given.into_iter().filter(|(_, given)| *given) {
        r.error(&format!("{at}.{key}"), "nobody is asked for a certificate; leave it out, or write mode: required");
    }
}

/// The CA and revocation lists: their files become absolute, their URLs are checked with the files.
fn client_auth(r: &mut Resolver<'_>, at: &str, auth: &mut ClientAuth) {
    if !auth.asks() {
        return no_client_auth(r, at, auth);
    }
    if let Some(ca) = &mut auth.ca {
        *ca = r.material(ca);
    }
    for file in &mut auth.crl {
        *file = r.material(file);
    }
    r.once(&format!("{at}.crl"), &auth.crl);
    r.once(&format!("{at}.crl_url"), &auth.crl_url);
    for (i, url) in auth.crl_url.iter().enumerate() {
        if let Err(why) = CrlUrl::parse(url) {
            r.error(&format!("{at}.crl_url[{i}]"), why);
        }
    }
    r.once(&format!("{at}.crl_distribution_points"), &auth.crl_distribution_points);
    for (i, prefix) in auth.crl_distribution_points.iter().enumerate() {
        if let Err(why) = UrlPrefix::parse(prefix) {
            r.error(&format!("{at}.crl_distribution_points[{i}]"), why);
        }
    }
    if let Some(refresh) = auth.crl_refresh {
        r.span(&format!("{at}.crl_refresh"), refresh, SECOND, DAY);
        if auth.crl_url.is_empty() && auth.crl_distribution_points.is_empty() {
            let remedy = "write crl_url or crl_distribution_points, or leave it out";
            r.error(&format!("{at}.crl_refresh"), format!("there is nothing to ask for; {remedy}"));
        }
    }
    if let Some(Err(why)) = auth.ocsp_url.as_deref().map(CrlUrl::parse) {
        r.error(&format!("{at}.ocsp_url"), why);
    }
    ocsp(r, at, auth);
    if auth.expired_crl == Some(ExpiredCrl::Accept) {
        let why = "who keeps a list from being renewed keeps revoked clients in";
        r.warn(&format!("{at}.expired_crl"), format!("a late list still counts: {why}"));
    }
    if auth.ocsp_failure == Some(OcspFailure::Accept) {
        let why = "who silences the responder keeps revoked clients in";
        r.warn(&format!("{at}.ocsp_failure"), format!("without an answer clients come in: {why}"));
    }
    if !auth.checks_crls() {
        // An empty list says that it is meant so.
        if auth.ocsp == OcspCheck::Off && !r.located.has(&format!("{at}.crl")) {
            let why = "no revocation: a client thrown out of the mesh comes in until its certificate expires";
            r.warn(
                at,
                format!(
                    "{why}; write crl, crl_url or crl_distribution_points, or crl: [] where certificates live for hours"
                ),
            );
        }
        for (key, given) in [("crl_check", auth.crl_check.is_some()), ("expired_crl", auth.expired_crl.is_some())] {
            if given {
                r.error(
                    &format!("{at}.{key}"),
                    "nothing is checked without crl, crl_url or crl_distribution_points; write one of them",
                );
            }
        }
    }
}

/// A network, or one address.
fn network(r: &mut Resolver<'_>, path: &str, text: &str) -> Option<IpNet> {
    let network = match parse_network(text) {
        Ok(network) => network,
        Err(why) => {
            r.error(path, why);
            return None;
        }
    };
    if network.prefix_len() == 0 {
        r.warn(path, format!("{text} is everyone: any client can choose the address that Hive sees"));
    }
    Some(network)
}

fn limits(r: &mut Resolver<'_>, at: &str, limits: &ListenerLimits) {
    r.range(&format!("{at}.connections"), &limits.connections, &(1..=1_000_000));
    r.range(&format!("{at}.connections_per_address"), &limits.connections_per_address, &(1..=1_000_000));
    for (key, limit) in [
        ("connections_per_peer", limits.connections_per_peer),
        ("handshakes", limits.handshakes),
        ("handshakes_per_address", limits.handshakes_per_address),
        ("requests", limits.requests),
        ("requests_per_address", limits.requests_per_address),
        ("requests_per_peer", limits.requests_per_peer),
    ] {
        if let Some(limit) = limit {
            r.range(&format!("{at}.{key}"), &limit, &(1..=1_000_000));
        }
    }
    r.size(&format!("{at}.request_header"), limits.request_header, &(1 << 10..=256 << 10));
    r.range(&format!("{at}.requests_per_connection"), &limits.requests_per_connection, &(1..=u32::MAX));
}

fn timeouts(r: &mut Resolver<'_>, at: &str, t: &ListenerTimeouts) {
    let each = [
        ("handshake", t.handshake, MINUTE),
        ("request_header", t.request_header, 5 * MINUTE),
        ("request_body", t.request_body, HOUR),
        ("idle", t.idle, HOUR),
        ("write", t.write, HOUR),
        ("connection_age", t.connection_age, 7 * DAY),
        ("revocation", t.revocation, HOUR),
    ];
    for (key, value, most) in each {
        r.span(&format!("{at}.{key}"), value, MILLISECOND, most);
    }
}

/// The listeners that serve a route.
pub(super) fn serving<'l>(route: &Route, listeners: &'l [Listener]) -> impl Iterator<Item = &'l Listener> {
    listeners.iter().enumerate().filter(|(i, _)| route.listeners.include(*i)).map(|(_, listener)| listener)
}

/// Routes for named peers are dead where no listener asks for a certificate.
pub(super) fn check_peers_can_be_known(r: &mut Resolver<'_>, listeners: &[Listener], routes: &[Route]) {
    for (i, route) in routes.iter().enumerate().filter(|(_, route)| matches!(route.peers, RoutePeers::Of(_))) {
        let path = format!("routes[{i}].peers");
        let asks = |l: &Listener| l.tls.as_ref().is_some_and(|tls| tls.client_auth.asks());
        let nobody = serving(route, listeners).find(|l| l.protocol == Protocol::Https && !asks(l));
        match nobody.filter(|_| matches!(route.listeners, RouteListeners::Of(_))) {
            Some(listener) => {
                let why = format!("the listener {} asks for no certificate", listener.name);
                r.error(&path, format!("{why}, so no client there is one of these peers; write peers: any"));
            }
            None if !serving(route, listeners).any(|l| l.protocol == Protocol::Https && asks(l)) => {
                r.warn(
                    &path,
                    "no listener of this route asks for a certificate, so no client ever is one of these peers",
                );
            }
            None => {}
        }
    }
}
