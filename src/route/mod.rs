//! The route table: host, path and method to a value, at a cost that does not grow with the number of routes.

mod pattern;
mod table;

pub use pattern::{HostPattern, MethodSet, PathPattern};
pub use table::{Lookup, Overlap, Table, TableBuilder};
