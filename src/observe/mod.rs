//! What an operator sees of the gateway: metrics and the access log.
//!
//! [`metrics`] holds every metric's name, help and labels; [`handles`] the counters that a route, a listener or a node keeps,
//! resolved once when the configuration is built, so that the request path never looks a label up. [`access_log`] takes one
//! record per request ([`record`] lists the fields) and writes it off the request path.

pub mod handshake;
pub mod labels;
pub mod metrics;
pub mod handles;
mod expiry;
mod json_line;
pub mod record;
mod record_defense;
mod buckets;
mod families;
mod breaker;
mod crl;
mod refusals;
mod line_limit;
pub mod access_log;
mod log_queue;

pub use access_log::{AccessLog, AccessLogTarget};
pub use breaker::{AtScrape, BreakerMetrics};
pub use crl::CrlShown;
pub use expiry::{Expiring, Expiry};
pub use handles::{
    ConcurrencyMetrics, ListenerMetrics, NodeMetrics, OverloadMetrics, RateLimitMetrics, RedisMetrics, RequestInFlight,
    RouteMetrics, UpstreamMetrics, WafMetrics,
};
pub use handshake::HandshakeResult;
pub use labels::{
    BreakerLimit, CloseReason, ConnectionRefusal, CrlFetchResult, MethodLabel, OcspResult, OverloadAction,
    OverloadLimit, RateLimitDecision, RedisFallback, UpstreamResult, UpstreamTlsFailure, WafVerdict,
};
pub use line_limit::{Line, LineLimit};
pub use metrics::Metrics;
pub use record::{AccessRecord, HandshakeRecord, HandshakesOmitted};
pub use record_defense::{ConnectionDenied, WafMatch};
