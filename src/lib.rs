//! Hive Gateway: a perimeter proxy between partners' nodes and the Hive nodes of an operator.
//!
//! A request's path reads as a straight line, and the modules below stand in its order. A module may use only what
//! stands above it in this list (`tests/architecture.rs` keeps it so):
//!
//! ```text
//! accept ─ admission ─ TLS (client certificate) ─ identity      tls, proxy::listener
//!   └ request: strict form ─ client address ─ route ─ peer ─ federation headers
//!        ─ body (limit, deadline, memory) ─ JSON-RPC envelope    proxy::admit, route, policy, json_rpc
//!          └ pick a node ─ rewrite headers ─ forward             upstream, proxy::forward
//!              └ record: log, metrics, traces                    proxy::record, observe
//! ```
//!
//! Beside it, [`reload`] takes changed certificates and configurations into use while requests run.
//!
//! Every refusal on that way is one variant of [`refusal::Refusal`].

pub mod names;
pub mod units;
pub mod clock;
pub mod secret;
pub mod files;
pub mod headers;
pub mod identity;
pub mod request;
pub mod json_rpc;
pub mod refusal;
pub mod observe;
pub mod redis;
pub mod policy;
pub mod route;
pub mod tls;
pub mod upstream;
pub mod config;
pub mod snapshot;
pub mod reload;
pub mod proxy;
pub mod admin;
pub mod server;
pub mod cli;
