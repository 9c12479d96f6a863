//! The policies that a connection or a request passes: one file, one type each.

pub mod admission;
pub mod body_memory;
pub mod federation;
pub mod peers;
mod uri_trie;
