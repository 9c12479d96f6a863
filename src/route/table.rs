//! The table: hash look-ups by host, then by path.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use http::Method;

use super::pattern::{HostPattern, MethodSet, PATH_SEGMENTS_MAX, PathPattern, slashes};

/// Two routes that would both answer a request: the same host pattern, the same path and a method in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The earlier route, counted from 0 in the order of [`TableBuilder::add`]; refused ones count.
    pub first: usize,
    /// The refused route; the same as [`Self::first`] if a route names one host and path twice.
    pub second: usize,
    /// The host in common; `None`: both have no hosts.
    pub host: Option<HostPattern>,
    /// The path in common.
    pub path: PathPattern,
    /// The methods in common.
    pub methods: MethodSet,
}

/// Collects routes.
#[derive(Debug)]
pub struct TableBuilder<T> {
    table: Table<T>,
    added: usize,
}

impl<T> Default for TableBuilder<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> TableBuilder<T> {
    /// No routes.
    pub fn new() -> Self {
        let table = Table {
            values: Vec::new(),
            exact_hosts: HashMap::default(),
            suffix_hosts: HashMap::default(),
            suffix_dots: Vec::new(),
            any_host: None,
        };
        Self { table, added: 0 }
    }

    /// Adds a route; without hosts it answers for any host. The first route added is number 0.
    ///
    /// # Errors
    /// The first overlap with an earlier route, or within this one; nothing is added then.
    pub fn add(
        &mut self,
        hosts: &[HostPattern],
        paths: &[PathPattern],
        methods: MethodSet,
        value: T,
    ) -> Result<(), Overlap> {
        let index = self.added;
        self.added += 1;
        let hosts: Vec<Option<&HostPattern>> =
            if hosts.is_empty() { vec![None] } else { hosts.iter().map(Some).collect() };
        for (at, host) in hosts.iter().enumerate() {
            for (n, path) in paths.iter().enumerate() {
                let earlier = self.table.overlap(*host, path, methods);
                let twice = || (hosts[..at].contains(host) || paths[..n].contains(path)).then_some((index, methods));
                if let Some((first, methods)) = earlier.or_else(twice) {
                    return Err(Overlap { first, second: index, host: host.cloned(), path: path.clone(), methods });
                }
            }
        }
        let slot = self.table.values.len();
        self.table.values.push((index, value));
        for host in hosts {
            let entries = self.table.paths_of(host);
            for path in paths {
                entries.insert(path, methods, slot);
            }
        }
        Ok(())
    }

    /// The finished table.
    pub fn build(self) -> Table<T> {
        self.table
    }
}

/// Routes by host, path and method.
///
/// A look-up costs at most one hash per distinct depth of the configured `*.` hosts and `/*` paths, each at most 16 for
/// paths, however many routes there are.
#[derive(Debug)]
pub struct Table<T> {
    /// Values with the number of the route.
    values: Vec<(usize, T)>,
    exact_hosts: HashMap<Arc<str>, Paths, RandomState>,
    /// By the part after the `*`: `.example.com`.
    suffix_hosts: HashMap<Arc<str>, Paths, RandomState>,
    /// How many dots those suffixes have, most first.
    suffix_dots: Vec<usize>,
    any_host: Option<Paths>,
}

/// What the table says of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a, T> {
    /// This route.
    Found {
        /// What was added for it.
        value: &'a T,
        /// The configured path, for the metric.
        path: &'a Arc<str>,
    },
    /// Routes have hosts, and none has this one: 421.
    HostUnknown,
    /// No route of this host has the path: 404.
    NotFound,
    /// A route has the path, with other methods: 405.
    MethodNotAllowed {
        /// The value of `Allow`: the methods of all routes of this host and path.
        allow: &'a str,
        /// The configured path, for the metric.
        path: &'a Arc<str>,
    },
}

impl<T> Table<T> {
    /// The route of a request: `host` in lower case without port, `path` without query.
    ///
    /// Of the hosts that match (exact, then `*.` from the longest, then routes without hosts) the first that has a
    /// matching path decides; of its paths the exact one, then the longest `/*`.
    pub fn find(&self, host: &str, path: &[u8], method: &Method) -> Lookup<'_, T> {
        let mut host_known = false;
        let exact = self.exact_hosts.get(host).into_iter();
        for paths in exact.chain(self.suffix_matches(host)).chain(&self.any_host) {
            host_known = true;
            if let Some(entry) = paths.find(path) {
                return self.answer(entry, method);
            }
        }
        if host_known || self.values.is_empty() { Lookup::NotFound } else { Lookup::HostUnknown }
    }

    /// Every value, in the order of [`TableBuilder::add`].
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|(_, value)| value)
    }

    fn answer<'a>(&'a self, entry: &'a Entry, method: &Method) -> Lookup<'a, T> {
        let wanted = MethodSet::of(method);
        match entry.routes.iter().find(|(methods, _)| !methods.intersection(wanted).is_empty()) {
            Some((_, slot)) => Lookup::Found { value: &self.values[*slot].1, path: &entry.path },
            None => Lookup::MethodNotAllowed { allow: &entry.allow, path: &entry.path },
        }
    }

    /// The `*.` hosts that match, from the longest.
    fn suffix_matches<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Paths> {
        self.suffix_dots.iter().filter_map(move |dots| {
            let (at, _) = host.bytes().enumerate().filter(|(_, b)| *b == b'.').nth_back(dots - 1)?;
            if at == 0 { None } else { self.suffix_hosts.get(&host[at..]) }
        })
    }

    fn overlap(
        &self,
        host: Option<&HostPattern>,
        path: &PathPattern,
        methods: MethodSet,
    ) -> Option<(usize, MethodSet)> {
        let paths = match host {
            None => self.any_host.as_ref(),
            Some(host) => match host.suffix() {
                Some(suffix) => self.suffix_hosts.get(suffix),
                None => self.exact_hosts.get(host.as_str()),
            },
        };
        let entry = paths?.entry(path)?;
        entry.routes.iter().find_map(|(other, slot)| {
            let common = other.intersection(methods);
            (!common.is_empty()).then(|| (self.values[*slot].0, common))
        })
    }

    fn paths_of(&mut self, host: Option<&HostPattern>) -> &mut Paths {
        let Some(host) = host else { return self.any_host.get_or_insert_default() };
        let Some(suffix) = host.suffix() else { return self.exact_hosts.entry(host.as_str().into()).or_default() };
        let dots = suffix.matches('.').count();
        if let Err(at) = self.suffix_dots.binary_search_by(|d| dots.cmp(d)) {
            self.suffix_dots.insert(at, dots);
        }
        self.suffix_hosts.entry(suffix.into()).or_default()
    }
}

/// The paths of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<[u8]>, Entry, RandomState>,
    /// By the part before the `*`: `/.well-known/`.
    prefixes: HashMap<Box<[u8]>, Entry, RandomState>,
    /// How many slashes those prefixes have, one bit each.
    prefix_slashes: u32,
}

/// One path of one host: its routes, no two of which share a method.
#[derive(Debug)]
struct Entry {
    path: Arc<str>,
    routes: Vec<(MethodSet, usize)>,
    allow: String,
}

impl Paths {
    fn entry(&self, path: &PathPattern) -> Option<&Entry> {
        match path.prefix() {
            Some(prefix) => self.prefixes.get(prefix.as_bytes()),
            None => self.exact.get(path.as_str().as_bytes()),
        }
    }

    fn insert(&mut self, path: &PathPattern, methods: MethodSet, slot: usize) {
        let (map, key) = match path.prefix() {
            Some(prefix) => {
                // A pattern has at most 16 segments before its star.
                self.prefix_slashes |= 1 << slashes(prefix.as_bytes());
                (&mut self.prefixes, prefix)
            }
            None => (&mut self.exact, path.as_str()),
        };
        let entry = map.entry(key.as_bytes().into()).or_insert_with(|| Entry {
            path: path.shared(),
            routes: Vec::new(),
            allow: String::new(),
        });
        entry.routes.push((methods, slot));
        let all = entry.routes.iter().fold(MethodSet::default(), |all, (methods, _)| all.union(*methods));
        entry.allow = all.allow();
    }

    fn find(&self, path: &[u8]) -> Option<&Entry> {
        if let Some(entry) = self.exact.get(path) {
            return Some(entry);
        }
        if self.prefix_slashes == 0 {
            return None;
        }
        // Where the prefixes of one, two, … slashes end. Deeper ones can't be configured.
        let mut ends = [0; PATH_SEGMENTS_MAX + 1];
        let mut depth = 0;
        for slash in memchr::memchr_iter(b'/', path).take(PATH_SEGMENTS_MAX) {
            depth += 1;
            ends[depth] = slash + 1;
        }
        (1..=depth)
            .rev()
            .filter(|depth| self.prefix_slashes & (1 << depth) != 0)
            .find_map(|depth| self.prefixes.get(&path[..ends[depth]]))
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
