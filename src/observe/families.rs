//! The families of metrics that handles are resolved in.

use std::collections::HashMap;
use std::sync::Weak;

use parking_lot::Mutex;
use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::handles::NodeMetrics;

/// The families that routes resolve their handles in.
pub(super) struct RouteFamilies {
    pub(super) requests: IntCounterVec,
    pub(super) classes: IntCounterVec,
    pub(super) duration: HistogramVec,
}

/// The families that listeners resolve their handles in.
pub(super) struct ListenerFamilies {
    pub(super) connections: IntGaugeVec,
    pub(super) accepted: IntCounterVec,
    pub(super) refused: IntCounterVec,
    pub(super) closed: IntCounterVec,
    pub(super) handshakes: IntCounterVec,
    pub(super) handshake_duration: HistogramVec,
}

/// The families that nodes resolve their handles in, and the nodes that have handles now.
pub(super) struct NodeFamilies {
    pub(super) up: IntGaugeVec,
    pub(super) requests: IntCounterVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) tls_failures: IntCounterVec,
    pub(super) ejected: IntGaugeVec,
    pub(super) drained: IntGaugeVec,
    pub(super) ejections: IntCounterVec,
    pub(super) live: Mutex<HashMap<(String, String), Weak<NodeMetrics>>>,
}
