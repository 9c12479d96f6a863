//! The operator's own listener: health, readiness, metrics, status, drain, maintenance and a page that shows it all, on an
//! address that clients don't reach.
//!
//! [`answer`](self::answer::answer) is the whole API as a function of a request, [`endpoint`] its paths and [`openapi`] their
//! description; [`mod@service`] puts it on a socket.

use std::sync::Arc;

use serde_json::Value;

use crate::observe::Metrics;
use crate::policy::maintenance::Target;
use crate::secret::Secret;

pub mod status;
pub mod status_traffic;
pub mod status_trust;
mod answer;
mod bearer;
mod endpoint;
mod openapi;
mod origin;
mod page;
mod places;
mod query;
mod service;

pub use service::{AdminApp, AdminService};
pub use status::Status;

/// What the admin listener shows, and where it gets it from.
pub struct AdminState {
    /// For `/v1/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/v1/health`: whether the threads that serve requests get on.
    pub alive: Box<dyn Fn() -> bool + Send + Sync>,
    /// For `/v1/ready`: asked at each request, so it must be quick.
    pub ready: Box<dyn Fn() -> Readiness + Send + Sync>,
    /// For `/v1/status`; [`Status`] has its form.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// For `/v1/reload`: blocks until it is done.
    pub reload: Box<dyn Fn() -> Reloaded + Send + Sync>,
    /// Begins or ends a drain or maintenance; what is out of service then. May block.
    pub carry_out: CarryOut,
    /// Takes another filter of the process' log into use, if one is given, and says which is.
    pub log_filter: LogFilter,
    /// The secret to ask for: that of the moment, for it rotates too. Where there is one, health and readiness alone are
    /// open.
    pub bearer: Box<dyn Fn() -> Option<Secret> + Send + Sync>,
    /// The listener's address is a loopback one: a request that changes something must then call it by such a name.
    pub loopback: bool,
}

/// See [`AdminState::carry_out`].
pub type CarryOut = Box<dyn Fn(&Command) -> Result<Value, Denied> + Send + Sync>;
/// See [`AdminState::log_filter`].
pub type LogFilter = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// What an operator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// With what.
    pub target: Target,
    /// It is back in service.
    pub ends: bool,
    /// `Retry-After` of the answers, seconds; none: as configured.
    pub retry_after: Option<u32>,
    /// For the whole fleet, and not for this gateway alone.
    pub fleet: bool,
    /// Across a restart.
    pub persist: bool,
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The answer's.
    pub status: u16,
    /// Stable snake_case name.
    pub code: &'static str,
    /// For the operator.
    pub message: String,
}

/// What came of a reload.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// Whether the new configuration is in use: 200, else 422.
    pub ok: bool,
    /// The answer's body.
    pub body: serde_json::Value,
}

/// Whether requests should be sent here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The process is ending, and no other has taken its place: it serves what it has and wants no more.
    pub draining: bool,
    /// Names of the upstreams of which no node is known to be up.
    pub upstreams_down: Vec<String>,
    /// Names of the upstreams whose nodes that are up are all drained: their requests are refused.
    pub upstreams_drained: Vec<String>,
    /// Why those among them have no nodes whose nodes are still to be discovered: `hive: no server answers`.
    pub without_nodes: Vec<String>,
    /// URLs of the configuration that no revocation list has come from yet, shortly after the start.
    pub crls_awaited: Vec<String>,
    /// The listeners and upstreams that have no certificate yet: `listener federation`.
    pub waiting_for_svid: Vec<String>,
    /// Why they wait for the SPIFFE agent.
    pub spiffe: Option<String>,
    /// The fleet's orders of maintenance are still to be read for the first time.
    pub fleet_orders_awaited: bool,
}

impl Readiness {
    /// Ready: not ending, each upstream has a node up that is not drained, the first revocation lists and the fleet's orders
    /// are there, and nobody waits for a certificate.
    pub fn is_ready(&self) -> bool {
        let waits = !self.crls_awaited.is_empty() || !self.waiting_for_svid.is_empty() || self.fleet_orders_awaited;
        !self.draining && self.upstreams_down.is_empty() && self.upstreams_drained.is_empty() && !waits
    }
}
