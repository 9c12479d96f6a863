//! `routes`: their peers, their upstream, and that no two of them want the same request.

use std::collections::{BTreeSet, HashMap};

use super::ranges::{DAY, HOUR, MILLISECOND};
use super::{Resolver, patterns};
use crate::config::file::{self, Body};
use crate::config::nearest::known_ones;
use crate::config::{Peer, Route, RoutePeers, Upstream};

/// Longest body that Hive takes.
pub(super) const BODY_MAX: u64 = 16 << 20;

pub(super) fn resolve(
    r: &mut Resolver<'_>,
    raw: Vec<file::Route>,
    peers: &[Peer],
    upstreams: &[Upstream],
) -> Vec<Route> {
    if raw.is_empty() {
        r.error("routes", "the list is empty, so every request would be a 404; write at least one");
    }
    r.unique("routes", raw.iter().map(|x| x.name.as_str()));
    // The first of two equal names counts; the second is an error already.
    let mut names =
        Names { peers: HashMap::new(), upstreams: HashMap::new(), peers_whole: true, upstreams_whole: true };
    for (i, p) in peers.iter().enumerate() {
        names.peers.entry(p.name.as_str()).or_insert(i);
    }
    for (i, u) in upstreams.iter().enumerate() {
        names.upstreams.entry(u.name.as_str()).or_insert(i);
    }
    // Where a name could not be read, any unknown name may be that one.
    names.peers_whole = !r.has_guess_like("peers[].name");
    names.upstreams_whole = !r.has_guess_like("upstreams[].name");

    let routes: Vec<_> =
        raw.into_iter().enumerate().map(|(i, x)| route(r, &format!("routes[{i}]"), x, &names)).collect();
    overlaps(r, &routes);
    unused(r, &routes, peers, upstreams);
    routes
}

struct Names<'a> {
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
    body(r, &format!("{at}.body"), &raw.body);
    if let Some(rpc) = &raw.json_rpc {
        json_rpc(r, &format!("{at}.json_rpc"), rpc);
    }
    r.span(&format!("{at}.timeouts.response"), raw.timeouts.response, MILLISECOND, HOUR);
    r.span(&format!("{at}.timeouts.stream_idle"), raw.timeouts.stream_idle, MILLISECOND, DAY);
    Route {
        hosts,
        paths,
        methods,
        peers: route_peers(r, &format!("{at}.peers"), &raw.peers, names),
        name: raw.name,
        upstream: upstream.unwrap_or(0),
        body_limit: raw.body.limit.0,
        json_rpc: raw.json_rpc,
        timeouts: raw.timeouts,
    }
}

fn known(name: &str, names: &HashMap<&str, usize>) -> String {
    let mut known: Vec<_> = names.iter().collect();
    known.sort_by_key(|(_, i)| **i);
    known_ones(name, &known.into_iter().map(|(name, _)| *name).collect::<Vec<_>>())
}

/// The list's values in their normal form; the wrong ones as they are.
fn list(
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

fn json_rpc(r: &mut Resolver<'_>, at: &str, rpc: &file::JsonRpc) {
    r.range(&format!("{at}.max_depth"), &rpc.max_depth, &(1..=512));
    let Some(methods) = &rpc.methods else { return };
    let path = format!("{at}.methods");
    let empty = "the list is empty, so no call would pass; write methods such as message/send, or leave the key out";
    list(r, &path, methods, patterns::rpc_method, Some(empty));
}

/// Two routes that a single request could both mean.
fn overlaps(r: &mut Resolver<'_>, routes: &[Route]) {
    let mut taken: HashMap<(Option<&str>, &str), Vec<usize>> = HashMap::new();
    for (i, route) in routes.iter().enumerate() {
        if ["hosts", "paths", "methods"].iter().any(|key| r.has_guess(&format!("routes[{i}].{key}"))) {
            continue;
        }
        let mut hosts: Vec<_> = route.hosts.iter().map(|h| Some(h.as_str())).collect();
        if hosts.is_empty() {
            hosts.push(None);
        }
        // One error for each path, however many hosts, methods and other routes share it.
        let mut told = BTreeSet::new();
        for (j, path) in route.paths.iter().enumerate() {
            for host in &hosts {
                let others = taken.entry((*host, path)).or_default();
                let common = |o: &usize| common_method(&routes[*o].methods, &route.methods).map(|method| (*o, method));
                let found = others.iter().filter(|o| **o != i).find_map(common);
                if let Some((other, method)) = found.filter(|_| told.insert(j)) {
                    overlap(r, (i, j), other, &routes[other], method, *host);
                }
                if others.last() != Some(&i) {
                    others.push(i);
                }
            }
        }
    }
}

fn overlap(
    r: &mut Resolver<'_>,
    (i, j): (usize, usize),
    other: usize,
    first: &Route,
    method: &str,
    host: Option<&str>,
) {
    let line = r.located.place(&format!("routes[{other}]")).line;
    let path = format!("routes[{i}].paths[{j}]");
    let host = host.map_or(String::new(), |h| format!(" of host {h}"));
    let why = format!("{method}{host} here is already taken by route {} in line {line}", first.name);
    r.error(&path, format!("{why}; give it to one of the two"));
}

fn common_method<'a>(first: &[String], second: &'a [String]) -> Option<&'a str> {
    // GET brings HEAD along.
    let takes = |all: &[String], m: &str| all.iter().any(|x| x == m || (m == "HEAD" && x == "GET"));
    let head = takes(first, "HEAD") && takes(second, "HEAD");
    second.iter().map(String::as_str).find(|m| takes(first, m)).or(head.then_some("HEAD"))
}

fn unused(r: &mut Resolver<'_>, routes: &[Route], peers: &[Peer], upstreams: &[Upstream]) {
    let mut used_peers = vec![false; peers.len()];
    let mut used_upstreams = vec![false; upstreams.len()];
    for route in routes {
        if let Some(used) = used_upstreams.get_mut(route.upstream) {
            *used = true;
        }
        if let RoutePeers::Of(indexes) = &route.peers {
            indexes.iter().for_each(|i| used_peers[*i] = true);
        }
    }
    for (i, peer) in peers.iter().enumerate().filter(|(i, _)| !used_peers[*i]) {
        r.warn(&format!("peers[{i}]"), format!("no route names the peer {}", peer.name));
    }
    for (i, upstream) in upstreams.iter().enumerate().filter(|(i, _)| !used_upstreams[*i]) {
        r.warn(&format!("upstreams[{i}]"), format!("no route goes to the upstream {}", upstream.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_and_head_meet() {
        let common = |a: &[&str], b: &[&str]| {
            let own = |l: &[&str]| l.iter().map(ToString::to_string).collect::<Vec<_>>();
            common_method(&own(a), &own(b)).map(ToOwned::to_owned)
        };
        assert_eq!(common(&["GET"], &["POST", "HEAD"]).unwrap(), "HEAD");
        assert_eq!(common(&["HEAD"], &["GET"]).unwrap(), "HEAD");
        assert_eq!(common(&["POST", "GET"], &["GET"]).unwrap(), "GET");
        assert_eq!(common(&["POST"], &["GET"]), None);
    }
}
