//! A limit as the configuration has it, ready to be asked.

use std::fmt::Write;
use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use super::buckets::Buckets;
use super::gcra::Quota;
use super::key::{Facts, KeyPart};
use crate::observe::{Metrics, RateLimitMetrics};

/// One limit of a route or a listener.
pub struct Limit {
    /// Where it stands and what it counts by, such as `route/a2a/peer+method`: its label in logs and metrics. Buckets go
    /// on across a reload under the same name.
    pub name: Box<str>,
    parts: Box<[KeyPart]>,
    /// What is allowed.
    pub quota: Quota,
    /// False: what goes beyond is counted and logged, and passes.
    pub enforce: bool,
    /// All gateways count together, through Redis.
    pub shared: bool,
    /// Its counters.
    pub metrics: RateLimitMetrics,
    /// Its buckets, found by the name when it is first asked.
    pub(super) table: OnceLock<Arc<Buckets>>,
}

impl Limit {
    /// A limit of `owner`, such as `route/a2a`.
    pub fn new(name: String, parts: &[KeyPart], quota: Quota, enforce: bool, shared: bool, metrics: &Metrics) -> Self {
        let metrics = metrics.rate_limit(&name);
        Self { name: name.into(), parts: parts.into(), quota, enforce, shared, metrics, table: OnceLock::new() }
    }

    /// What it counts by.
    pub fn parts(&self) -> &[KeyPart] {
        &self.parts
    }

    /// Whether so many calls at once are refused however long the client waits.
    pub fn never_admits(&self, calls: u32) -> bool {
        self.enforce && calls > self.quota.burst()
    }

    /// Whether it counts JSON-RPC calls by their method, so that it can be asked only when the body is known.
    fn is_by_method(&self) -> bool {
        self.parts.contains(&KeyPart::Method)
    }

    /// Whether it counts by the federation JWT's issuer, so that it can be asked only when the token is checked.
    fn is_by_issuer(&self) -> bool {
        self.parts.contains(&KeyPart::Issuer)
    }

    /// Feeds the key of a request into a hash.
    pub(super) fn feed(&self, facts: &Facts<'_>, ipv6_prefix: u8, hash: &mut impl Hasher) {
        hash.write(self.name.as_bytes());
        hash.write(&[0]);
        self.parts.iter().for_each(|part| facts.feed(part, ipv6_prefix, hash));
    }
}

/// The limits of one route or listener, in the order of the configuration.
#[derive(Default)]
pub struct Limits {
    /// Asked first: a flood of bad tokens is a flood too.
    pub by_request: Box<[Arc<Limit>]>,
    /// Asked after the federation JWT is checked and before the body is read.
    pub by_issuer: Box<[Arc<Limit>]>,
    /// Asked for each JSON-RPC call.
    pub by_call: Box<[Arc<Limit>]>,
}

impl Limits {
    /// Sorts limits by when they can be asked.
    pub fn new(limits: Vec<Limit>) -> Self {
        let (by_call, others): (Vec<_>, Vec<_>) = limits.into_iter().map(Arc::new).partition(|l| l.is_by_method());
        let (by_issuer, by_request): (Vec<_>, Vec<_>) = others.into_iter().partition(|l| l.is_by_issuer());
        Self { by_request: by_request.into(), by_issuer: by_issuer.into(), by_call: by_call.into() }
    }

    /// Those that are asked before the body is known, and of a batch have counted one call by then.
    pub fn by_body(&self) -> [&[Arc<Limit>]; 2] {
        [&self.by_request, &self.by_issuer]
    }

    /// Names for the limits of `owner`, by what they count by. A second limit of the same parts gets a number.
    pub fn names<'a>(owner: &str, parts: impl Iterator<Item = &'a [KeyPart]>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for parts in parts {
            let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
            let mut name = format!("{owner}/{}", parts.join("+"));
            let same = names.iter().filter(|n| n.split('#').next() == Some(&name)).count();
            if same > 0 {
                // Writing to a String can't fail.
                let _ = write!(name, "#{}", same + 1);
            }
            names.push(name);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_counted_by_and_is_the_limits_own() {
        let parts = [vec![KeyPart::Peer, KeyPart::Method], vec![KeyPart::Peer], vec![KeyPart::Peer]];
        let names = Limits::names("route/a2a", parts.iter().map(Vec::as_slice));
        assert_eq!(names, ["route/a2a/peer+method", "route/a2a/peer", "route/a2a/peer#2"]);
    }
}
