//! What a route is written with: host patterns, path patterns, methods.

use std::fmt;
use std::sync::Arc;

use http::Method;

use crate::request::{check_path, host_of};

/// A host name, exact or `*.`-prefixed: `federation.example.com`, `*.example.com`. The latter takes every name below
/// (of any depth), not `example.com` itself. Kept in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern(Arc<str>);

impl HostPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Says what is wrong: no name, a port, a `*` elsewhere than at the beginning.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        if name.contains('*') {
            return Err(format!("host {text:?}: a * may only stand alone at the beginning, as in *.example.com"));
        }
        match host_of(name) {
            Some(host) if host.len() == name.len() => Ok(Self(text.to_ascii_lowercase().into())),
            Some(_) => Err(format!("host {text:?} has a port; a route's host is a name alone")),
            None => Err(format!("{text:?} is not a host name")),
        }
    }

    /// The pattern in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the `*` of a wildcard, with its dot.
    pub(super) fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }

    /// Whether a host (lower case, no port) matches.
    pub fn matches(&self, host: &str) -> bool {
        match self.suffix() {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => *self.0 == *host,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Most segments of a pattern that ends with `/*`; so many look-ups a request may cost.
pub const PATH_SEGMENTS_MAX: usize = 16;

/// A path, byte for byte, or one with a trailing `/*` that takes everything below: `/x/*` takes `/x/` and `/x/y/z`, not
/// `/x`; `/*` takes every path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPattern(Arc<str>);

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Says what is wrong: a query, a `*` elsewhere than as the last segment, a path that no request could have
    /// ([`check_path`]), or more than [`PATH_SEGMENTS_MAX`] segments before `/*`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fixed = text.strip_suffix('*').filter(|rest| rest.ends_with('/')).unwrap_or(text);
        if fixed.contains('*') {
            return Err(format!("path {text:?}: a * may only be the last segment, as in /.well-known/*"));
        }
        if fixed.contains('?') {
            return Err(format!("path {text:?}: a route's path has no query"));
        }
        check_path(fixed.as_bytes())
            .map_err(|fault| format!("path {text:?} can't be requested: {}", fault.message()))?;
        if fixed.len() < text.len() && slashes(fixed.as_bytes()) > PATH_SEGMENTS_MAX {
            return Err(format!("path {text:?} has more than {PATH_SEGMENTS_MAX} segments"));
        }
        Ok(Self(text.into()))
    }

    /// The pattern as configured: the label of the metrics.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// What stands before the `*`, with its slash.
    pub(super) fn prefix(&self) -> Option<&str> {
        self.0.strip_suffix('*')
    }

    /// Whether a path (no query) matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self.prefix() {
            Some(prefix) => path.starts_with(prefix.as_bytes()),
            None => self.0.as_bytes() == path,
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

pub(super) fn slashes(path: &[u8]) -> usize {
    path.iter().filter(|b| **b == b'/').count()
}

/// The methods that a route can have, in the order of `Allow`. CONNECT and TRACE are never served.
const METHODS: [(&str, Method); 7] = [
    ("DELETE", Method::DELETE),
    ("GET", Method::GET),
    ("HEAD", Method::HEAD),
    ("OPTIONS", Method::OPTIONS),
    ("PATCH", Method::PATCH),
    ("POST", Method::POST),
    ("PUT", Method::PUT),
];

/// A set of methods.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MethodSet(u8);

impl MethodSet {
    /// Reads names in upper case; `GET` brings `HEAD` along (RFC 9110, section 9.3.2).
    ///
    /// # Errors
    /// Names the unknown one, or says that there is none.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let mut set = Self::default();
        for name in names.iter().map(AsRef::as_ref) {
            let Some((_, method)) = METHODS.iter().find(|(known, _)| *known == name) else {
                let known = METHODS.map(|(known, _)| known).join(", ");
                return Err(format!("unknown method {name:?}; known: {known}"));
            };
            set = set.union(Self::of(method));
            if name == "GET" {
                set = set.union(Self::of(&Method::HEAD));
            }
        }
        if set.is_empty() { Err("a route needs a method".into()) } else { Ok(set) }
    }

    /// The set of one method; empty if no route can have it.
    pub(super) fn of(method: &Method) -> Self {
        Self(METHODS.iter().position(|(_, known)| known == method).map_or(0, |i| 1 << i))
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The methods of both.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a method is among them.
    pub fn contains(self, method: &Method) -> bool {
        !self.intersection(Self::of(method)).is_empty()
    }

    /// `GET, HEAD, POST`: the value of `Allow` (RFC 9110, section 10.2.1).
    pub fn allow(self) -> String {
        let names: Vec<&str> = METHODS.iter().filter(|(_, m)| self.contains(m)).map(|(name, _)| *name).collect();
        names.join(", ")
    }
}

impl fmt::Debug for MethodSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.allow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_pattern_is_a_name_or_everything_below_one() {
        let exact = HostPattern::parse("Federation.Example.com").unwrap();
        assert!(exact.matches("federation.example.com") && !exact.matches("a.federation.example.com"));
        let wild = HostPattern::parse("*.Example.com").unwrap();
        assert!(wild.matches("a.example.com") && wild.matches("a.b.example.com"));
        assert!(!wild.matches("example.com") && !wild.matches(".example.com") && !wild.matches("badexample.com"));
        for bad in ["", "*", "*.", "a.*.b", "*a.b", "a:80", "a b", "https://a", "a.", "**.a"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
        assert!(HostPattern::parse("a:80").unwrap_err().contains("port"));
    }

    #[test]
    fn a_path_pattern_is_exact_or_ends_with_a_star() {
        let below = PathPattern::parse("/x/*").unwrap();
        assert!(below.matches(b"/x/") && below.matches(b"/x/y/z") && !below.matches(b"/x") && !below.matches(b"/xy"));
        assert!(PathPattern::parse("/*").unwrap().matches(b"/"));
        assert!(!PathPattern::parse("/x").unwrap().matches(b"/x/"));
        for bad in ["", "x", "/x*", "/*/x", "/x/**", "/x?y", "/x//y", "/x/../y", "/x/%2e/*", "*", "/%61"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
        assert!(PathPattern::parse(&format!("{}/*", "/a".repeat(15))).is_ok());
        assert!(PathPattern::parse(&format!("{}/*", "/a".repeat(16))).is_err());
    }

    #[test]
    fn get_brings_head() {
        let set = MethodSet::parse(&["POST", "GET"]).unwrap();
        assert_eq!(set.allow(), "GET, HEAD, POST");
        assert!(set.contains(&Method::HEAD) && !set.contains(&Method::PUT));
        assert!(!set.contains(&Method::from_bytes(b"FOO").unwrap()));
        assert!(!MethodSet::parse(&["HEAD"]).unwrap().contains(&Method::GET));
        assert!(MethodSet::parse(&["get"]).unwrap_err().contains("known: DELETE, GET"));
        assert!(MethodSet::parse(&["TRACE"]).is_err() && MethodSet::parse::<&str>(&[]).is_err());
    }
}
