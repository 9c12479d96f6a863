//! `peers`: one rule each, and no certificate that two of them want.

use std::collections::HashSet;

use super::Resolver;
use super::federation;
use crate::config::{Peer, file};
use crate::policy::peers::{PeerMatcher, PeerRule, Peers};

/// A peer in the order of the file; `rule` is `None` if it is wrong.
struct Candidate {
    matcher: Option<PeerMatcher>,
    /// Where its rule stands.
    path: String,
}

pub(super) fn resolve(r: &mut Resolver<'_>, raw: Vec<file::Peer>) -> Vec<Peer> {
    r.unique("peers", raw.iter().map(|p| p.name.as_str()));
    let (mut peers, mut candidates) = (Vec::with_capacity(raw.len()), Vec::with_capacity(raw.len()));
    for (i, raw) in raw.into_iter().enumerate() {
        let at = format!("peers[{i}]");
        let found = rule(r, &at, &raw);
        let path = found.as_ref().map_or_else(|| at.clone(), |(key, _)| format!("{at}.{key}"));
        let matcher = found.map(|(_, rule)| PeerMatcher { name: raw.name.clone(), rule });
        // A peer whose rule is wrong keeps its name, so that routes find it. There is no configuration then.
        let rule = matcher.as_ref().map_or(PeerRule::Fingerprint([0; 32]), |m| m.rule.clone());
        candidates.push(Candidate { matcher, path });
        let issuer = federation::peer_issuer(r, i, &raw);
        peers.push(Peer { name: raw.name, rule, issuer });
    }
    conflicts(r, candidates);
    federation::check_keys(r, &peers);
    peers
}

/// The rule and the key that it stands at.
fn rule(r: &mut Resolver<'_>, at: &str, raw: &file::Peer) -> Option<(&'static str, PeerRule)> {
    let keys = ["uri", "dns", "fingerprint"];
    if keys.iter().any(|key| r.is_guessed(&format!("{at}.{key}"))) {
        return None;
    }
    let (key, parsed) = match (&raw.uri, &raw.dns, &raw.fingerprint) {
        (Some(text), None, None) => ("uri", PeerRule::parse_uri(text)),
        (None, Some(text), None) => ("dns", PeerRule::parse_dns(text)),
        (None, None, Some(text)) => ("fingerprint", PeerRule::parse_fingerprint(text)),
        (None, None, None) => {
            let remedy = "write one of uri, dns, fingerprint, such as uri: spiffe://mesh.example/hive/paris";
            r.error(at, format!("peer {} matches no certificate; {remedy}", raw.name));
            return None;
        }
        _ => {
            let remedy = "write exactly one, and another peer for another";
            r.error(at, format!("peer {} has several of uri, dns, fingerprint; {remedy}", raw.name));
            return None;
        }
    };
    match parsed {
        Ok(rule) => Some((key, rule)),
        Err(why) => {
            r.error(&format!("{at}.{key}"), why);
            None
        }
    }
}

/// Peers that would both be right for one certificate.
fn conflicts(r: &mut Resolver<'_>, candidates: Vec<Candidate>) {
    let mut names = HashSet::new();
    let (mut matchers, mut places) = (Vec::new(), Vec::new());
    for Candidate { matcher, path } in candidates {
        // Equal names are told already.
        if let Some(matcher) = matcher.filter(|m| names.insert(m.name.clone())) {
            places.push((path, matcher.name.clone()));
            matchers.push(matcher);
        }
    }
    for conflict in Peers::build(matchers).err().unwrap_or_default() {
        let (Some((path, _)), Some((other, name))) = (places.get(conflict.second), places.get(conflict.first)) else {
            continue;
        };
        let line = r.located.place(other).line;
        r.error(path, format!("{}; the other is {name} in line {line}", conflict.why));
    }
}
