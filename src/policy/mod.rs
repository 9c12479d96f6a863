//! Policies: one policy, one file, one type.

pub mod peers;
mod uri_trie;
