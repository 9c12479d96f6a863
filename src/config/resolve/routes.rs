//! `routes`: their peers, their upstream, and that no two of them want the same request.

use std::collections::{BTreeSet, HashMap};

use super::ranges::{DAY, HOUR, MILLISECOND};
use super::{Resolver, defense, json_rpc, patterns};
use crate::config::file::{self, Body, RateLimit};
use crate::config::nearest::known_ones;
use crate::config::{Listener, Peer, Route, RouteListeners, RoutePeers, Upstream};
use crate::names::ListenerName;
use crate::policy::federation;
use crate::policy::rate_limit::KeyPart;
use crate::route::MethodSet;

/// Longest body that Hive takes.
pub(super) const BODY_MAX: u64 = 16 << 20;

pub(super) fn resolve(
    r: &mut Resolver<'_>,
    raw: Vec<file::Route>,
    listeners: &[Listener],
    peers: &[Peer],
    upstreams: &[Upstream],
    federation: &federation::Settings,
) -> Vec<Route> {
    if raw.is_empty() {
        r.error("routes", "the list is empty, so every request would be a 404; write at least one");
    }
    r.unique("routes", raw.iter().map(|x| x.name.as_str()));
    // The first of two equal names counts; the second is an error already.
    let mut names = Names::default();
    for (i, l) in listeners.iter().enumerate() {
        names.listeners.entry(l.name.as_str()).or_insert(i);
    }
    for (i, p) in peers.iter().enumerate() {
        names.peers.entry(p.name.as_str()).or_insert(i);
    }
    for (i, u) in upstreams.iter().enumerate() {
        names.upstreams.entry(u.name.as_str()).or_insert(i);
    }
    // Where a name could not be read, any unknown name may be that one.
    names.listeners_whole = !r.has_guess_like("listeners[].name");
    names.peers_whole = !r.has_guess_like("peers[].name");
    names.upstreams_whole = !r.has_guess_like("upstreams[].name");

    let routes: Vec<_> =
        raw.into_iter().enumerate().map(|(i, x)| route(r, &format!("routes[{i}]"), x, &names)).collect();
    overlaps(r, &routes);
    unused_peers(r, &routes, listeners, peers, federation);
    unused_upstreams(r, &routes, upstreams);
    short_deadlines(r, &routes, upstreams);
    routes
}

#[derive(Default)]
struct Names<'a> {
    listeners: HashMap<&'a str, usize>,
    listeners_whole: bool,
    peers: HashMap<&'a str, usize>,
    upstreams: HashMap<&'a str, usize>,
    peers_whole: bool,
    upstreams_whole: bool,
}

fn route(r: &mut Resolver<'_>, at: &str, raw: file::Route, names: &Names<'_>) -> Route {
    let hosts = list(r, &format!("{at}.hosts"), &raw.hosts, patterns::host, None);
    let empty = "the list is empty; write at least one, such as";
    let paths = list(r, &format!("{at}.paths"), &raw.paths, patterns::path, Some(&format!("{empty} /api/a2a/jsonrpc")));
    let methods = list(r, &format!("{at}.methods"), &raw.methods, patterns::method, Some(&format!("{empty} POST")));
    let upstream = names.upstreams.get(raw.upstream.as_str()).copied();
    if upstream.is_none() && names.upstreams_whole {
        let name = raw.upstream.as_str();
        r.error(&format!("{at}.upstream"), format!("no upstream named {name:?}{}", known(name, &names.upstreams)));
    }
    if let Some(Err(why)) = raw.replace_full_path.as_deref().map(patterns::full_path) {
        r.error(&format!("{at}.replace_full_path"), why);
    }
    body(r, &format!("{at}.body"), &raw.body);
    let json_rpc = raw.json_rpc.map(|rpc| json_rpc::resolve(r, &format!("{at}.json_rpc"), rpc, raw.body.limit));
    r.span(&format!("{at}.timeouts.response"), raw.timeouts.response, MILLISECOND, HOUR);
    r.span(&format!("{at}.timeouts.stream_idle"), raw.timeouts.stream_idle, MILLISECOND, DAY);
    if let Some(longest) = raw.timeouts.max_stream_duration {
        r.span(&format!("{at}.timeouts.max_stream_duration"), longest, MILLISECOND, 7 * DAY);
    }
    Route {
        listeners: route_listeners(r, &format!("{at}.listeners"), &raw.listeners, names),
        hosts,
        paths,
        methods,
        peers: route_peers(r, &format!("{at}.peers"), &raw.peers, names),
        name: raw.name,
        upstream: upstream.unwrap_or(0),
        replace_full_path: raw.replace_full_path,
        body_limit: raw.body.limit.0,
        json_rpc,
        timeouts: raw.timeouts,
        priority: raw.priority,
        rate_limits: raw.rate_limits,
        request_rules: defense::request_rules(r, &format!("{at}.request_rules"), &raw.request_rules),
        waf: defense::route_waf(r, &format!("{at}.waf"), raw.waf.as_ref()),
    }
}

fn known(name: &str, names: &HashMap<&str, usize>) -> String {
    let mut known: Vec<_> = names.iter().collect();
    known.sort_by_key(|(_, i)| **i);
    known_ones(name, &known.into_iter().map(|(name, _)| *name).collect::<Vec<_>>())
}

/// The list's values in their normal form; the wrong ones as they are.
pub(super) fn list(
    r: &mut Resolver<'_>,
    at: &str,
    raw: &[String],
    parse: fn(&str) -> Result<String, String>,
    empty: Option<&str>,
) -> Vec<String> {
    if let (true, Some(why)) = (raw.is_empty(), empty) {
        r.error(at, why);
    }
    r.once(at, raw);
    let mut good = Vec::with_capacity(raw.len());
    for (i, text) in raw.iter().enumerate() {
        match parse(text) {
            Ok(text) => good.push(text),
            Err(why) => {
                r.error(&format!("{at}[{i}]"), why);
                // Kept, so that the others keep their indexes.
                good.push(text.clone());
            }
        }
    }
    good
}

/// The listeners that serve the route.
fn route_listeners(r: &mut Resolver<'_>, at: &str, raw: &[ListenerName], names: &Names<'_>) -> RouteListeners {
    if raw.is_empty() {
        if r.located.has(at) {
            r.error(at, "the list is empty, so nobody would be served; write listener names, or leave the key out");
        }
        return RouteListeners::All;
    }
    r.once(at, &raw.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut indexes = BTreeSet::new();
    for (i, name) in raw.iter().enumerate() {
        let name = name.as_str();
        match names.listeners.get(name) {
            Some(index) => _ = indexes.insert(*index),
            None if names.listeners_whole => {
                r.error(&format!("{at}[{i}]"), format!("no listener named {name:?}{}", known(name, &names.listeners)));
            }
            None => {}
        }
    }
    RouteListeners::Of(indexes.into_iter().collect())
}

fn route_peers(r: &mut Resolver<'_>, at: &str, raw: &file::RoutePeers, names: &Names<'_>) -> RoutePeers {
    let file::RoutePeers::Named(named) = raw else { return RoutePeers::Any };
    if named.is_empty() {
        r.error(at, "the list is empty, so nobody may call; write peer names, or any for every valid certificate");
    }
    r.once(at, &named.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut indexes = BTreeSet::new();
    for (i, name) in named.iter().enumerate() {
        let name = name.as_str();
        match names.peers.get(name) {
            Some(index) => _ = indexes.insert(*index),
            None if name == "any" && named.len() == 1 => {
                r.error(&format!("{at}[{i}]"), "for every valid certificate write peers: any, without a list");
            }
            None if names.peers_whole => {
                r.error(&format!("{at}[{i}]"), format!("no peer named {name:?}{}", known(name, &names.peers)));
            }
            None => {}
        }
    }
    RoutePeers::Of(indexes.into_iter().collect())
}

fn body(r: &mut Resolver<'_>, at: &str, body: &Body) {
    r.size(&format!("{at}.limit"), body.limit, &(1..=BODY_MAX));
}

/// Host and path, and the routes that have both.
type Taken<'a> = HashMap<(Option<&'a str>, &'a str), Vec<(usize, MethodSet)>>;

/// Two routes that a single request could both mean.
fn overlaps(r: &mut Resolver<'_>, routes: &[Route]) {
    let mut taken = Taken::new();
    for (i, route) in routes.iter().enumerate() {
        let guess =
            ["listeners", "hosts", "paths", "methods"].iter().any(|key| r.has_guess(&format!("routes[{i}].{key}")));
        let Some(methods) = MethodSet::parse(&route.methods).ok().filter(|_| !guess) else { continue };
        let mut hosts: Vec<_> = route.hosts.iter().map(|h| Some(h.as_str())).collect();
        if hosts.is_empty() {
            hosts.push(None);
        }
        for (j, path) in route.paths.iter().enumerate() {
            // One error for each path, however many hosts, methods and other routes share it.
            let mut told = false;
            for host in &hosts {
                let others = taken.entry((*host, path)).or_default();
                let shared = |(other, theirs): &(usize, MethodSet)| (*other, theirs.intersection(methods));
                let meet = |other: usize| route.listeners.meet(&routes[other].listeners);
                let found = others.iter().map(shared).find(|(o, common)| *o != i && !common.is_empty() && meet(*o));
                if let Some((other, common)) = found.filter(|_| !told) {
                    told = true;
                    overlap(r, &format!("routes[{i}].paths[{j}]"), other, &routes[other], common, *host);
                }
                if others.last().is_none_or(|(last, _)| *last != i) {
                    others.push((i, methods));
                }
            }
        }
    }
}

fn overlap(r: &mut Resolver<'_>, path: &str, i: usize, other: &Route, common: MethodSet, host: Option<&str>) {
    let line = r.located.place(&format!("routes[{i}]")).line;
    let host = host.map_or(String::new(), |h| format!(" of host {h}"));
    let why = format!("{}{host} here is already taken by route {} in line {line}", common.allow(), other.name);
    r.error(path, format!("{why}; give it to one of the two"));
}

/// Peers that make no difference to any request: in no route's list, nobody's issuer, counted by no limit. A route for any
/// peer is for each of them: there a name is what log and metrics call it by, and may be what it was written for.
fn unused_peers(
    r: &mut Resolver<'_>,
    routes: &[Route],
    listeners: &[Listener],
    peers: &[Peer],
    federation: &federation::Settings,
) {
    let by_peer = |limits: &[RateLimit]| limits.iter().any(|limit| limit.per.0.contains(&KeyPart::Peer));
    // The limits of a route for named peers count those only.
    let any = routes.iter().any(|route| route.peers == RoutePeers::Any);
    if any || listeners.iter().any(|l| by_peer(&l.rate_limits)) {
        return;
    }
    let mut named = vec![false; peers.len()];
    for route in routes {
        if let RoutePeers::Of(indexes) = &route.peers {
            indexes.iter().for_each(|i| named[*i] = true);
        }
    }
    let speaks = |peer: &Peer| {
        let key = peer.issuer.as_ref().map(|issuer| issuer.ed25519.is_some());
        key.is_some_and(|key| federation.bind_issuer || key && federation.verify.is_some())
    };
    for (i, peer) in peers.iter().enumerate().filter(|(i, peer)| !named[*i] && !speaks(peer)) {
        r.warn(&format!("peers[{i}]"), format!("no route names the peer {}", peer.name));
    }
}

fn unused_upstreams(r: &mut Resolver<'_>, routes: &[Route], upstreams: &[Upstream]) {
    let mut used = vec![false; upstreams.len()];
    for route in routes {
        if let Some(used) = used.get_mut(route.upstream) {
            *used = true;
        }
    }
    for (i, upstream) in upstreams.iter().enumerate().filter(|(i, _)| !used[*i]) {
        r.warn(&format!("upstreams[{i}]"), format!("no route goes to the upstream {}", upstream.name));
    }
}

/// A node that can't be reached must leave time for another.
fn short_deadlines(r: &mut Resolver<'_>, routes: &[Route], upstreams: &[Upstream]) {
    for (i, route) in routes.iter().enumerate() {
        let Some(upstream) = upstreams.get(route.upstream) else { continue };
        let (response, connect) = (route.timeouts.response, upstream.timeouts.connect);
        if response.0 > connect.0 {
            continue;
        }
        let why = format!("{response} is no longer than {connect}, timeouts.connect of the upstream {}", upstream.name);
        let path = format!("routes[{i}].timeouts.response");
        r.warn(&path, format!("{why}: after a node that can't be reached no other is tried; shorten that"));
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::warned;

    #[test]
    fn a_deadline_that_leaves_no_time_for_another_node_is_a_warning() {
        let line = "    upstream: hive\n";
        let with = |response: &str| warned(line, &format!("{line}    timeouts: {{ response: {response} }}\n"));
        let w = with("2s");
        assert!(
            w.contains("routes[0].timeouts.response: 2s is no longer than 2s, timeouts.connect of the upstream"),
            "{w}"
        );
        assert!(!with("2001ms").contains("timeouts.response"));
    }
}
