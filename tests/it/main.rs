//! The whole gateway on real sockets: the real binary, certificates made in the test, nodes that record what reaches them.
// Functions outside of #[test] ones fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod a2a;
mod admin;
mod admin_api;
mod answers;
mod balancing;
mod bodies;
mod breaker;
mod cli;
mod conf;
mod crl_points;
mod dashboards;
mod deadlines;
mod defense;
mod demo;
mod discovery;
mod discovery_dns;
mod documentation;
mod egress;
mod egress_tls;
mod explain;
mod faults;
mod faults_http2;
mod federation;
mod firewall;
mod gateway_v1;
mod headers;
mod limits;
mod log;
mod log_format;
mod maintenance;
mod metrics;
mod hostile;
mod node_identity;
mod node_revocation;
mod node_tls;
mod overload;
mod packaging;
mod rate_limits;
mod ocsp;
mod orders;
mod outlier;
mod reload;
mod reload_config;
mod revocation;
mod routes;
mod shared_limits;
mod shutdown;
mod spiffe;
mod spiffe_federation;
mod stapling;
mod status_page;
mod streams;
mod tls;
#[cfg(feature = "otlp")]
mod tracing;
mod trust;
mod upgrade;
mod upstream;
#[cfg(feature = "waf")]
mod waf;
#[cfg(feature = "waf")]
mod waf_rules;
#[cfg(feature = "waf")]
mod waf_xml;
