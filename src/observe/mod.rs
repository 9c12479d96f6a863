//! What an operator sees of the gateway: metrics and the access log.
//!
//! [`metrics`] holds every metric's name, help and labels; [`handles`] the counters that a route, a listener or a node keeps,
//! resolved once when the configuration is built, so that the request path never looks a label up. [`access_log`] takes one
//! record per request ([`fields`] lists the fields) and writes it off the request path. [`trace`] keeps
//! what is told of a share of the requests to a collector.

pub mod handshake;
pub mod labels;
pub mod metrics;
pub mod handles;
pub mod exposition;
mod peers;
mod register;
mod process;
mod expiry;
mod json_line;
pub mod fields;
mod log_format;
mod rotate;
pub mod record;
mod record_defense;
mod buckets;
mod families;
mod breaker;
mod crl;
pub mod definitions;
mod discovery;
mod refusals;
pub mod recent;
pub mod totals;
pub mod history;
mod maintenance;
mod line_limit;
pub mod access_log;
pub mod process_log;
mod log_queue;
pub mod trace;
#[cfg(feature = "otlp")]
pub mod otlp;

pub use access_log::{AccessLog, AccessLogTarget, LogSettings};
pub use breaker::{AtScrape, BreakerMetrics};
pub use crl::CrlShown;
pub use discovery::DiscoveryMetrics;
pub use expiry::{Expiring, Expiry};
pub use exposition::Exposition;
pub use handles::{
    ConcurrencyMetrics, ListenerMetrics, NodeMetrics, OverloadMetrics, RateLimitMetrics, RedisMetrics, RequestInFlight,
    RouteMetrics, SpanMetrics, UpstreamMetrics, WafMetrics,
};
pub use handshake::HandshakeResult;
pub use json_line::push_address;
pub use labels::{
    BreakerLimit, CloseReason, ConnectionRefusal, CrlFetchResult, MethodLabel, OcspResult, OverloadAction,
    OverloadLimit, RateLimitDecision, RedisFallback, SpanResult, UpstreamResult, UpstreamTlsFailure, WafVerdict,
};
pub use line_limit::{Line, LineLimit};
pub use log_format::{Extras, LogFormat, Template};
pub use metrics::Metrics;
pub use peers::{PeerHandles, PeerMetrics};
pub use record::{AccessRecord, HandshakeRecord, HandshakesOmitted};
pub use record_defense::{ConnectionDenied, WafMatch};
pub use rotate::Rotation;
