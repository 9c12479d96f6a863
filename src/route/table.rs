//! The table itself.
use std::sync::Arc;

use http::Method;

use super::pattern::{HostPattern, MethodSet, PathPattern};

/// Two routes that would both answer a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Index of the earlier route (in the order of [`TableBuilder::add`]; refused ones count).
    pub first: usize,
    /// Index of the refused route; equal to `first` if a route names the same thing twice.
    pub second: usize,
    /// The host pattern in common; `None`: routes without hosts.
    pub host: Option<HostPattern>,
    /// The path in common.
    pub path: PathPattern,
    /// The methods in common.
    pub methods: MethodSet,
}

/// Collects routes.
#[derive(Debug)]
pub struct TableBuilder<T> {
    values: Vec<T>,
}

impl<T> TableBuilder<T> {
    /// Empty.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { values: Vec::new() }
    }
    /// Adds a route; without hosts it answers for any host. On an overlap nothing is added.
    pub fn add(&mut self, hosts: &[HostPattern], paths: &[PathPattern], methods: MethodSet, value: T) -> Result<(), Overlap> {
        let _ = (hosts, paths, methods, value);
        unimplemented!()
    }
    /// The finished table.
    pub fn build(self) -> Table<T> {
        Table { values: self.values }
    }
}

/// The finished table.
#[derive(Debug)]
pub struct Table<T> {
    values: Vec<T>,
}

/// What the table says of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a, T> {
    /// This route.
    Found {
        /// The route's value.
        value: &'a T,
        /// The configured path, for the metric.
        path: &'a Arc<str>,
    },
    /// No route serves the host: 421.
    HostUnknown,
    /// No route has the path: 404.
    NotFound,
    /// A route has the path, with other methods: 405.
    MethodNotAllowed {
        /// The value of `Allow`.
        allow: &'a str,
        /// The configured path, for the metric.
        path: &'a Arc<str>,
    },
}

impl<T> Table<T> {
    /// The route of a request. `host` in lower case without port, `path` without query.
    pub fn find(&self, host: &str, path: &[u8], method: &Method) -> Lookup<'_, T> {
        let _ = (&self.values, host, path, method);
        unimplemented!()
    }
    /// Every value, in the order of [`TableBuilder::add`].
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }
}
