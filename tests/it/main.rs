//! The whole gateway on real sockets: the real binary, certificates made in the test, nodes that record what reaches them.
// Functions outside of #[test] ones fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod a2a;
mod admin;
mod answers;
mod balancing;
mod bodies;
mod breaker;
mod cli;
mod conf;
mod crl_points;
mod deadlines;
mod defense;
mod demo;
mod documentation;
mod egress;
mod egress_tls;
mod explain;
mod federation;
mod firewall;
mod headers;
mod limits;
mod log;
mod log_format;
mod metrics;
mod hostile;
mod node_identity;
mod node_revocation;
mod node_tls;
mod overload;
mod rate_limits;
mod ocsp;
mod outlier;
mod reload;
mod reload_config;
mod revocation;
mod routes;
mod shared_limits;
mod spiffe;
mod spiffe_federation;
mod stapling;
mod streams;
mod tls;
#[cfg(feature = "otlp")]
mod tracing;
mod trust;
mod upstream;
#[cfg(feature = "waf")]
mod waf;
