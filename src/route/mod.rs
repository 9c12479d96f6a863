//! The route table: host, path and method to a value, at a cost that does not grow with the number of routes.
//!
//! The most specific host decides first, then the most specific path, and what they name decides alone: a route for
//! `/x/secret` shadows `/x/*` there for every method, so that a method that it does not have is 405 and never falls
//! through to the wider route with its other peers.

mod pattern;
mod table;

pub use pattern::{HostPattern, MethodSet, PATH_SEGMENTS_MAX, PathPattern};
pub use table::{Lookup, Overlap, Table, TableBuilder};
