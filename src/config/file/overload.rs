//! Block `overload`: what the process as a whole takes on, and what it sheds when it is behind.

use std::time::Duration;

use serde::Deserialize;

use super::seconds;
use crate::units::{Percent, Span};

/// `overload`: beyond it new connections are closed and requests are answered 503, `Retry-After`; who has been let in
/// is served to the end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overload {
    /// False: what goes beyond is counted, and passes; the same of `limits.requests…` of every listener. Default true.
    pub enforce: bool,
    /// Connections at once, of all listeners, 1 to 10000000. Default 100000.
    pub connections: u32,
    /// Requests at once, of all listeners, running event streams included, 1 to 10000000. Default 50000.
    pub requests: u32,
    /// The part of `requests`, and of a listener's own limit, that only routes with `priority: critical` may use, below
    /// 100%. Default 10%.
    pub critical_reserve: Percent,
    /// When the threads that serve requests count as behind.
    pub event_loop_lag: EventLoopLag,
    /// `Retry-After` of the answers, 1s to 1h. Default 1s.
    pub retry_after: Span,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            enforce: true,
            connections: 100_000,
            requests: 50_000,
            critical_reserve: Percent(100),
            event_loop_lag: EventLoopLag::default(),
            retry_after: seconds(1),
        }
    }
}

/// `overload.event_loop_lag`: how late the threads get to what is due. From one to the other a growing share of the
/// requests is shed (a scaled trigger, as Envoy calls it); new connections before, critical routes after.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventLoopLag {
    /// From here on requests are shed; no new connection is taken any more. 1ms to 1m. Default 500ms.
    pub scaling_threshold: Span,
    /// From here on all are, and those of critical routes begin to be. Up to 1m. Default 2s.
    pub saturation_threshold: Span,
}

impl Default for EventLoopLag {
    fn default() -> Self {
        Self { scaling_threshold: Span(Duration::from_millis(500)), saturation_threshold: seconds(2) }
    }
}
