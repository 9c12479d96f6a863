//! `peers`: one rule each.

use super::Resolver;
use crate::config::{Peer, PeerRule, file};

pub(super) fn resolve(r: &mut Resolver<'_>, raw: Vec<file::Peer>) -> Vec<Peer> {
    r.unique("peers", raw.iter().map(|p| p.name.as_str()));
    let all = raw.len();
    let mut peers = Vec::with_capacity(all);
    for (i, raw) in raw.into_iter().enumerate() {
        let rule = rule(r, &format!("peers[{i}]"), &raw);
        // A peer whose rule is wrong still has its name, so that routes find it.
        peers.push(Peer { name: raw.name, rule: rule.unwrap_or(PeerRule::Uri(String::new())) });
    }
    peers
}

fn rule(r: &mut Resolver<'_>, at: &str, raw: &file::Peer) -> Option<PeerRule> {
    let keys = ["uri", "dns", "fingerprint"];
    if keys.iter().any(|key| r.is_guessed(&format!("{at}.{key}"))) {
        return None;
    }
    match (&raw.uri, &raw.dns, &raw.fingerprint) {
        (Some(text), None, None) => Some(PeerRule::Uri(text.clone())),
        (None, Some(text), None) => Some(PeerRule::Dns(text.clone())),
        (None, None, Some(text)) => Some(PeerRule::Fingerprint(text.clone())),
        (None, None, None) => {
            let example = "uri: spiffe://mesh.example/hive/paris";
            r.error(
                at,
                format!(
                    "peer {} matches no certificate; write one of uri, dns, fingerprint, such as {example}",
                    raw.name
                ),
            );
            None
        }
        _ => {
            r.error(
                at,
                format!(
                    "peer {} has several of uri, dns, fingerprint; write exactly one, and another peer for another",
                    raw.name
                ),
            );
            None
        }
    }
}
