//! The operator's own listener: health, readiness, metrics and status, on an address that clients don't reach.
//!
//! [`answer`](self::answer::answer) is the whole API as a function of a request; [`mod@service`] puts it on a socket.

use std::sync::Arc;

use crate::observe::Metrics;

pub mod status;
mod answer;
mod bearer;
mod service;

pub use service::{AdminApp, service};
pub use status::Status;

/// What the admin listener shows, and where it gets it from.
pub struct AdminState {
    /// For `/v1/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/v1/ready`: asked at each request, so it must be quick.
    pub ready: Box<dyn Fn() -> Readiness + Send + Sync>,
    /// For `/v1/status`; [`Status`] has its form.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

/// Whether requests should be sent here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The process is ending: it serves what it has and wants no more.
    pub draining: bool,
    /// Names of the upstreams of which no node is known to be up.
    pub upstreams_down: Vec<String>,
}

impl Readiness {
    /// Ready: not ending, and each upstream has a node up.
    pub fn is_ready(&self) -> bool {
        !self.draining && self.upstreams_down.is_empty()
    }
}
