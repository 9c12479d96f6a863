//! Active health checks.

use std::sync::Arc;

use pingora::server::ShutdownWatch;

use super::Upstream;
use crate::clock::Clock;

/// Probes every node of an upstream until `shutdown` turns true.
pub async fn run_health_checks(upstream: Arc<Upstream>, clock: Clock, shutdown: ShutdownWatch) {
    let _ = (upstream, clock, shutdown);
}
