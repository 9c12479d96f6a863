//! A small Redis client for one purpose: run one script, on many keys, from many requests at once, and never be waited
//! for longer than a deadline.
//!
//! Commands of all requests are pipelined over a few connections ([`link`]), each of which connects again by itself. While
//! none is up, [`Client::run`] says so at once and the caller goes on without. With a cluster, each key goes to the node that
//! has its slot ([`cluster`]).

mod client;
mod cluster;
mod link;
mod url;
mod wire;

pub use client::{Client, Settings, Unavailable};
pub use url::{Target, parse_url};
pub use wire::Reply;
