//! Requests, from accept to log line, on Pingora.
//!
//! [`listener`] accepts and authenticates connections; [`Gateway`] is the `ProxyHttp` that Pingora calls for each
//! request: [`admit`] decides, [`refuse`] says no, [`exchange`] forwards, with [`forward`] for what is rewritten and what follows from a failure, [`record`] writes down.

mod admit;
mod affinity;
pub mod answer;
mod body;
pub mod check;
pub mod connection;
mod context;
mod downstream;
mod exchange;
mod filter;
mod forward;
mod frames;
mod gateway;
pub mod listener;
pub mod maintenance;
mod node_request;
mod overload;
mod rate_limit;
mod record;
mod refuse;
mod shared;
pub mod sketch;
pub mod socket;
mod tap;
mod trace;
pub mod told;
mod transport;
mod watch;
mod wire;

pub use gateway::Gateway;
pub use shared::Shared;
