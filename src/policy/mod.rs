//! The policies that a connection or a request passes: one file, one type each.

pub mod adaptive_concurrency;
pub mod admission;

pub mod body_memory;
pub mod deny;
pub mod federation;
pub mod json_rpc;
pub mod load;
pub mod maintenance;
pub mod overload;
pub mod peers;
pub mod rate_limit;
pub mod rules;
mod uri_trie;
pub mod waf;
