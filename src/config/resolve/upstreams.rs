//! `upstreams`: nodes, health checks, TLS to the nodes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::endpoint::{self, Url};
use super::overload;
use super::ranges::{HOUR, MILLISECOND, MINUTE};
use super::{Resolver, discovery, resilience};
use crate::config::file::{self, HealthCheck, UpstreamTimeouts, UpstreamTls};
use crate::config::{Endpoint, Upstream};
use crate::policy::peers::UriPattern;
use crate::request::is_private;

/// Hive allows 60 probes a minute from one address; with a gateway or two this stays below.
const HEALTH_INTERVAL_LEAST: Duration = Duration::from_secs(2);
/// Node.js closes an idle connection after this; a request on it would be lost.
const NODE_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Sites that stand in for one another are few.
const PRIORITY_MAX: u8 = 9;

pub(super) fn resolve(r: &mut Resolver<'_>, raw: Vec<file::Upstream>) -> Vec<Upstream> {
    if raw.is_empty() {
        r.error("upstreams", "the list is empty; write at least one { name, endpoints }");
    }
    r.unique("upstreams", raw.iter().map(|u| u.name.as_str()));
    raw.into_iter().enumerate().map(|(i, u)| upstream(r, &format!("upstreams[{i}]"), u)).collect()
}

fn upstream(r: &mut Resolver<'_>, at: &str, mut raw: file::Upstream) -> Upstream {
    let discovery_path = format!("{at}.discovery");
    let found = raw.discovery.take();
    let guessed = r.has_guess(&discovery_path) || r.has_guess(&format!("{at}.endpoints"));
    let endpoints = match (&raw.endpoints, &found) {
        (Some(_), Some(_)) => {
            r.error(&discovery_path, "not used with endpoints; leave one of the two out");
            Vec::new()
        }
        (Some(written), None) => endpoints(r, at, written),
        (None, None) if !guessed => {
            r.error(at, "the key \"endpoints\" is missing; write endpoints: [\"http://10.0.1.10:3000\"], or discovery");
            Vec::new()
        }
        (None, _) => Vec::new(),
    };
    let (tls, trusted) = (raw.tls.is_some(), raw.trusted);
    let discovery = found.and_then(|found| discovery::resolve(r, &discovery_path, found, tls, trusted));
    let tls_path = format!("{at}.tls");
    let tls_nodes = endpoints.first().map(|e| e.tls);
    match (tls_nodes, &raw.tls) {
        (Some(true), None) => {
            r.error(&tls_path, "https:// endpoints need tls; write tls: { ca, server_name }, or spiffe_id")
        }
        (Some(false), Some(_)) => {
            r.error(&tls_path, "not used with http:// endpoints; leave it out, or write https://")
        }
        _ => {}
    }
    plain_text(r, at, &endpoints, raw.trusted);
    health_check(r, &format!("{at}.health_check"), &raw.health_check);
    let hash_keys = resilience::balance(r, at, &raw);
    resilience::outlier(r, &format!("{at}.outlier"), &raw.outlier);
    r.span(&format!("{at}.slow_start"), raw.slow_start, Duration::ZERO, HOUR);
    let circuit_breaker =
        resilience::circuit_breaker(r, &format!("{at}.circuit_breaker"), &raw.circuit_breaker, raw.protocol);
    if let Some(adaptive) = &raw.adaptive_concurrency {
        overload::adaptive_concurrency(r, &format!("{at}.adaptive_concurrency"), adaptive);
    }
    timeouts(r, &format!("{at}.timeouts"), &raw.timeouts);
    Upstream {
        tls: raw.tls.map(|tls| upstream_tls(r, &tls_path, tls)),
        name: raw.name,
        endpoints,
        discovery,
        balance: raw.balance,
        hash_keys,
        hash_balance_factor: raw.hash_balance_factor,
        panic_threshold: raw.panic_threshold,
        slow_start: raw.slow_start.0,
        outlier: raw.outlier,
        circuit_breaker,
        protocol: raw.protocol,
        health_check: raw.health_check,
        adaptive_concurrency: raw.adaptive_concurrency,
        timeouts: raw.timeouts,
        trusted: raw.trusted,
    }
}

fn endpoints(r: &mut Resolver<'_>, at: &str, raw: &[file::Endpoint]) -> Vec<Endpoint> {
    let mut first_kind: Option<bool> = None;
    let mut seen = HashMap::new();
    let mut all = Vec::with_capacity(raw.len());
    if raw.is_empty() {
        let example = "write at least one, such as \"http://10.0.1.10:3000\"";
        r.error(&format!("{at}.endpoints"), format!("the list is empty; {example}"));
    }
    for (i, file::Endpoint { url, weight, priority }) in raw.iter().enumerate() {
        let path = format!("{at}.endpoints[{i}]");
        if r.has_guess(&path) {
            continue;
        }
        r.range(&format!("{path}.weight"), weight, &(1..=100));
        r.range(&format!("{path}.priority"), priority, &(0..=PRIORITY_MAX));
        let parsed = match endpoint::parse(url) {
            Ok(parsed) => parsed,
            Err(why) => {
                r.error(&url_path(r, &path), why);
                continue;
            }
        };
        if *first_kind.get_or_insert(parsed.tls) != parsed.tls {
            r.error(&url_path(r, &path), "http:// and https:// can't be mixed in one upstream");
        }
        let Some(address) = address(r, &path, &parsed) else { continue };
        if let Some(first) = seen.insert(address, i) {
            let why = format!("{address} is already the node of {at}.endpoints[{first}]; write a weight instead");
            r.error(&url_path(r, &path), why);
        }
        let host = parsed.authority.to_owned();
        all.push(Endpoint { url: url.clone(), tls: parsed.tls, host, address, weight: *weight, priority: *priority });
    }
    all
}

/// Nodes that are called in plain text over networks where others may listen: for our own Hive the operator's own
/// network is good enough, for a partner's gateway none but this machine's.
fn plain_text(r: &mut Resolver<'_>, at: &str, endpoints: &[Endpoint], trusted: bool) {
    let safe = |ip: IpAddr| if trusted { is_private(ip) } else { ip.to_canonical().is_loopback() };
    if let Some(node) = endpoints.iter().find(|e| !e.tls && !safe(e.address.ip())) {
        let what = if trusted { "the gateway's secret, who calls" } else { "federation tokens" };
        let why = format!("{} is called in plain text: {what} and all else can be read on the way", node.url);
        r.warn(&format!("{at}.endpoints"), format!("{why}; write https:// and tls"));
    }
}

/// The URL itself, where it stands in a block with a weight.
fn url_path(r: &Resolver<'_>, path: &str) -> String {
    let inner = format!("{path}.url");
    if r.located.has(&inner) { inner } else { path.to_owned() }
}

fn address(r: &mut Resolver<'_>, path: &str, url: &Url<'_>) -> Option<std::net::SocketAddr> {
    if let Ok(ip) = url.host.parse::<IpAddr>() {
        return Some((ip.to_canonical(), url.port).into());
    }
    let found = match (r.around.addresses)(url.host, url.port) {
        Ok(found) => found,
        Err(e) => {
            r.error(&url_path(r, path), format!("the name {:?} has no address: {e}", url.host));
            return None;
        }
    };
    // `localhost` is ::1 first on many machines where nodes listen on 127.0.0.1 only.
    let chosen = found.iter().find(|a| a.is_ipv4()).or(found.first()).copied();
    let same_kind = found.iter().filter(|a| Some(a.is_ipv4()) == chosen.map(|c| c.is_ipv4()));
    let distinct = same_kind.collect::<std::collections::HashSet<_>>().len();
    if let Some(chosen) = chosen
        && distinct > 1
    {
        let why = format!("{} stands for {distinct} addresses; only {} is used", url.host, chosen.ip());
        r.warn(&url_path(r, path), format!("{why}; write each as an endpoint"));
    }
    chosen
}

fn health_check(r: &mut Resolver<'_>, at: &str, check: &HealthCheck) {
    let path = &check.path;
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        let rule = "write one that begins with '/' and has no space, such as /api/health";
        r.error(&format!("{at}.path"), format!("{path:?} is not a path; {rule}"));
    }
    let interval_path = format!("{at}.interval");
    if check.interval.0 < HEALTH_INTERVAL_LEAST {
        let why = "Hive answers 60 probes a minute; write 2s or more";
        r.error(&interval_path, format!("{} is too often: {why}", check.interval));
    }
    r.span(&interval_path, check.interval, check.interval.0.min(HEALTH_INTERVAL_LEAST), HOUR);
    let timeout_path = format!("{at}.timeout");
    if check.timeout > check.interval && !r.has_guess(&interval_path) && !r.has_guess(&timeout_path) {
        let interval = check.interval;
        r.error(&timeout_path, format!("{} is longer than the interval of {interval}", check.timeout));
    }
    r.span(&timeout_path, check.timeout, MILLISECOND, HOUR);
    r.range(&format!("{at}.healthy_after"), &check.healthy_after, &(1..=100));
    r.range(&format!("{at}.unhealthy_after"), &check.unhealthy_after, &(1..=100));
}

fn timeouts(r: &mut Resolver<'_>, at: &str, t: &UpstreamTimeouts) {
    r.span(&format!("{at}.connect"), t.connect, MILLISECOND, MINUTE);
    r.span(&format!("{at}.idle"), t.idle, MILLISECOND, HOUR);
    if t.idle.0 >= NODE_KEEP_ALIVE {
        let why = "Node.js closes idle connections after 5s unless it is told otherwise, and a request on one is lost";
        r.warn(&format!("{at}.idle"), format!("{} is long: {why}", t.idle));
    }
}

fn upstream_tls(r: &mut Resolver<'_>, at: &str, mut tls: UpstreamTls) -> UpstreamTls {
    let before = r.errors.len();
    node_identity(r, at, &tls);
    match &tls.spiffe {
        Some(spiffe) => super::spiffe::upstream(r, at, &tls, spiffe),
        None if tls.ca.is_none() && !r.has_guess(&format!("{at}.ca")) && !r.has_guess(&format!("{at}.spiffe")) => {
            r.error(at, "the key \"ca\" is missing; write ca: hive-ca.pem");
        }
        None => {}
    }
    match (&tls.cert, &tls.key) {
        (Some(_), None) if !r.has_guess(&format!("{at}.key")) => {
            r.error(&format!("{at}.cert"), "a certificate needs its key; write key too");
        }
        (None, Some(_)) if !r.has_guess(&format!("{at}.cert")) => {
            r.error(&format!("{at}.key"), "a key needs its certificate; write cert too");
        }
        _ => {}
    }
    let whole = r.errors.len() == before;
    tls.ca = tls.ca.map(|name| r.material(&name));
    r.once(&format!("{at}.crl"), &tls.crl);
    for file in &mut tls.crl {
        *file = r.material(file);
    }
    tls.cert = tls.cert.map(|name| r.material(&name));
    tls.key = tls.key.map(|name| r.material(&name));
    // With an error of the block's own the files would be judged by half of it.
    if whole {
        super::certificates::upstream(r, at, &tls);
    }
    tls
}

/// What the nodes' certificates must show: a name or a SPIFFE ID.
fn node_identity(r: &mut Resolver<'_>, at: &str, tls: &UpstreamTls) {
    let (name_path, id_path) = (format!("{at}.server_name"), format!("{at}.spiffe_id"));
    match &tls.server_name {
        Some(name) if name.is_empty() => {
            let why = "empty: any certificate of the CA would do; write the name in the nodes' certificates";
            r.error(&name_path, why);
        }
        Some(name) if !endpoint::is_host(name) || name.parse::<IpAddr>().is_ok() => {
            // Pingora verifies names only, no addresses.
            r.error(&name_path, format!("{name:?} is not a host name; write one such as hive.internal"));
        }
        None if tls.spiffe_id.is_none()
            && tls.spiffe.is_none()
            && !r.has_guess(&name_path)
            && !r.has_guess(&id_path) =>
        {
            let why = "nothing says whose certificate is right, so any of the CA would do";
            r.error(at, format!("{why}; write server_name: hive.internal, or spiffe_id: spiffe://mesh.example/hive"));
        }
        _ => {}
    }
    if let Some(Err(why)) = tls.spiffe_id.as_deref().map(UriPattern::parse) {
        r.error(&id_path, why);
    }
}
