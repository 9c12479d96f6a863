//! The configuration file as it is written: plain structures, one per block, no meaning yet.
//!
//! Every structure refuses unknown keys. What is optional has its default here, with the reason. [`super::resolve`]
//! turns a [`File`] into a [`super::Config`].

mod defense;
mod discovery;
mod hive;
mod listeners;
mod observe;
mod overload;
mod process;
mod resilience;
mod routes;
mod spiffe;
mod upstreams;

use std::time::Duration;

use serde::Deserialize;

pub use defense::*;
pub use discovery::*;
pub use hive::*;
pub use listeners::*;
pub use observe::*;
pub use overload::*;
pub use process::*;
pub use resilience::*;
pub use routes::*;
pub use spiffe::*;
pub use upstreams::*;

use crate::units::Span;

fn seconds(s: u64) -> Span {
    Span(Duration::from_secs(s))
}

fn yes() -> bool {
    true
}

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What Hive expects of the gateway.
    #[serde(default)]
    pub hive: Hive,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Who the certificates belong to.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// What is published; everything else is 404.
    pub routes: Vec<Route>,
    /// Hive nodes, in groups.
    pub upstreams: Vec<Upstream>,
    /// Who issues the gateway's certificates, where `tls.spiffe` asks for it.
    pub spiffe: Option<Spiffe>,
    /// What gateways of a fleet share. Default: nothing.
    pub redis: Option<Redis>,
    /// What clients are told while something is in maintenance.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// What the process takes on, and what it sheds when it is behind.
    #[serde(default)]
    pub overload: Overload,
    /// The operator's own listener. Default: `127.0.0.1:9901`, no secret.
    #[serde(default)]
    pub admin: Admin,
    /// Default: standard output.
    #[serde(default)]
    pub access_log: AccessLog,
    /// What is counted.
    #[serde(default)]
    pub metrics: Metrics,
    /// Spans for a collector. Default: none are made.
    pub tracing: Option<Tracing>,
    /// How the client's identity is told to Hive.
    #[serde(default)]
    pub identity_headers: IdentityHeaders,
    /// The process itself.
    #[serde(default)]
    pub server: Server,
}
