//! Every metric: its name, help and labels.

use super::buckets::{DURATION_BUCKETS, HANDSHAKE_BUCKETS, REDIS_BUCKETS, WAF_BUCKETS};
use super::process;

/// What a metric measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram(&'static [f64]),
}

/// A metric as an operator knows it.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// The whole name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What it measures.
    pub kind: Kind,
}

macro_rules! definitions {
    ($($const:ident: $kind:expr, $name:literal, [$($label:literal),*], $help:literal;)+) => {
        $(pub(super) const $const: Definition = Definition {
            name: concat!("hive_gateway_", $name),
            help: $help,
            labels: &[$($label),*],
            kind: $kind,
        };)+

        /// Every metric, in the order of the documentation.
        pub const DEFINITIONS: &[Definition] = &[$($const),+];
    };
}

definitions! {
    HTTP_REQUESTS: Kind::Counter, "http_requests_total", ["method", "path", "code"],
        "Requests by method, the route's configured path, and status.";
    HTTP_REQUEST_DURATION: Kind::Histogram(DURATION_BUCKETS), "http_request_duration_seconds", ["route"],
        "From a request's header to the end of its answer.";
    ROUTE_REQUESTS: Kind::Counter, "route_requests_total", ["route", "code"],
        "Requests by route and class of status (other: the client left before it had one).";
    PEER_REQUESTS: Kind::Counter, "peer_requests_total", ["peer", "code"],
        "Requests by peer (at most metrics.peers_max of them, then other; none without one) and class of status.";
    PEER_REQUEST_DURATION: Kind::Histogram(DURATION_BUCKETS), "peer_request_duration_seconds", ["peer"],
        "From a request's header to the end of its answer, by peer.";
    REQUESTS_IN_FLIGHT: Kind::Gauge, "requests_in_flight", [],
        "Requests being served.";
    MAINTENANCE: Kind::Gauge, "maintenance", ["route"],
        "1 while the route answers 503 because an operator said so, else 0; absent: the route is unknown.";
    ORDERS_UNREADABLE: Kind::Gauge, "maintenance_orders_unreadable", ["scope"],
        "Orders, or whole sets of them, that can't be read: of this gateway's own (own) or the fleet's; /v1/status says which.";
    REFUSALS: Kind::Counter, "refusals_total", ["reason"],
        "Requests that the gateway answered itself, by reason.";
    RATE_LIMIT_DECISIONS: Kind::Counter, "rate_limit_decisions_total", ["limit", "decision"],
        "Rate limits asked, by limit (where it stands and what it counts by) and decision.";
    RATE_LIMIT_UNCOUNTED: Kind::Counter, "rate_limit_uncounted_total", ["limit"],
        "Calls that a rate limit let pass uncounted, for far more keys were busy than server.rate_limit_keys: raise that.";
    REQUEST_RULES: Kind::Counter, "request_rules_total", ["rule", "action"],
        "Requests that met a request rule, by rule (where it stands and its name) and what it does with them.";
    WAF_REQUESTS: Kind::Counter, "waf_requests_total", ["verdict"],
        "Requests given to the web application firewall, by what it made of them.";
    WAF: Kind::Histogram(WAF_BUCKETS), "waf_seconds", [],
        "Time until the web application firewall had looked at a request, waiting for its turn included.";
    OVERLOAD: Kind::Counter, "overload_total", ["limit", "action"],
        "Connections and requests beyond a limit of overload protection, by limit and by what became of them.";
    EVENT_LOOP_LAG: Kind::Gauge, "event_loop_lag_seconds", [],
        "How late the threads that serve requests get to what is due; overload.event_loop_lag compares it.";
    REDIS_UP: Kind::Gauge, "redis_up", [],
        "1 while all shared rate limits are counted in Redis; 0 while a node that keeps some of them is down or answers with errors, or nothing is shared.";
    REDIS: Kind::Histogram(REDIS_BUCKETS), "redis_seconds", [],
        "Time until Redis answered a rate limit.";
    REDIS_FALLBACKS: Kind::Counter, "redis_fallbacks_total", ["reason"],
        "Shared rate limits that the gateway decided by itself, by reason.";
    CONNECTIONS: Kind::Gauge, "connections", ["listener", "state"],
        "Open client connections: in their handshake, active (a request is being served) or idle.";
    CONNECTIONS_ACCEPTED: Kind::Counter, "connections_accepted_total", ["listener"],
        "Client connections that were let in.";
    CONNECTIONS_REFUSED: Kind::Counter, "connections_refused_total", ["listener", "reason"],
        "Client connections turned away before a byte was read, by reason.";
    CONNECTIONS_CLOSED: Kind::Counter, "connections_closed_total", ["listener", "reason"],
        "Client connections that ended after their handshake, by reason.";
    TLS_HANDSHAKES: Kind::Counter, "tls_handshakes_total", ["listener", "result"],
        "TLS handshakes with clients, by result.";
    TLS_HANDSHAKE_DURATION: Kind::Histogram(HANDSHAKE_BUCKETS), "tls_handshake_duration_seconds", ["listener"],
        "Time of TLS handshakes with clients, failed ones too.";
    CERTIFICATE_NOT_AFTER: Kind::Gauge, "certificate_not_after_seconds", ["listener", "subject", "serial"],
        "When the gateway's own certificate expires, seconds since 1970.";
    CERTIFICATE_NOT_BEFORE: Kind::Gauge, "certificate_not_before_seconds", ["listener", "subject", "serial"],
        "Since when the gateway's own certificate is valid, seconds since 1970.";
    CRL_NEXT_UPDATE: Kind::Gauge, "crl_next_update_seconds", ["listener", "issuer"],
        "When a newer revocation list of the issuer is due, seconds since 1970.";
    CRL_THIS_UPDATE: Kind::Gauge, "crl_this_update_seconds", ["listener", "issuer"],
        "When the revocation list of the issuer was made, seconds since 1970.";
    CRL_ENTRIES: Kind::Gauge, "crl_entries", ["listener", "issuer"],
        "Revoked certificates of the issuer.";
    UPSTREAM_CRL_NEXT_UPDATE: Kind::Gauge, "upstream_crl_next_update_seconds", ["upstream", "issuer"],
        "When a newer revocation list of the issuer of nodes is due, seconds since 1970.";
    UPSTREAM_CRL_THIS_UPDATE: Kind::Gauge, "upstream_crl_this_update_seconds", ["upstream", "issuer"],
        "When the revocation list of the issuer of nodes was made, seconds since 1970.";
    UPSTREAM_CRL_ENTRIES: Kind::Gauge, "upstream_crl_entries", ["upstream", "issuer"],
        "Revoked certificates of the issuer of nodes.";
    CRL_FETCHES: Kind::Counter, "crl_fetches_total", ["listener", "result"],
        "Revocation lists asked for over HTTP, by result.";
    OCSP_ANSWERS: Kind::Counter, "ocsp_answers_total", ["listener", "result"],
        "Questions to OCSP responders about clients' certificates, by what came of them.";
    OCSP_STAPLE_NEXT_UPDATE: Kind::Gauge, "ocsp_staple_next_update_seconds", ["listener", "subject", "serial"],
        "When a newer OCSP answer about the gateway's own certificate is due, seconds since 1970; absent: none is stapled.";
    OCSP_STAPLE_FETCHES: Kind::Counter, "ocsp_staple_fetches_total", ["listener", "result"],
        "Questions to OCSP responders about the gateway's own certificates, by what came of them.";
    CA_NOT_AFTER: Kind::Gauge, "ca_not_after_seconds", ["listener", "subject", "serial"],
        "When a CA that clients are trusted by expires, seconds since 1970.";
    CA_NOT_BEFORE: Kind::Gauge, "ca_not_before_seconds", ["listener", "subject", "serial"],
        "Since when a CA that clients are trusted by is valid, seconds since 1970.";
    UPSTREAM_CERTIFICATE_NOT_AFTER: Kind::Gauge, "upstream_certificate_not_after_seconds", ["upstream", "subject", "serial"],
        "When the client certificate that nodes are shown expires, seconds since 1970.";
    UPSTREAM_CERTIFICATE_NOT_BEFORE: Kind::Gauge, "upstream_certificate_not_before_seconds", ["upstream", "subject", "serial"],
        "Since when the client certificate that nodes are shown is valid, seconds since 1970.";
    UPSTREAM_CA_NOT_AFTER: Kind::Gauge, "upstream_ca_not_after_seconds", ["upstream", "subject", "serial"],
        "When a CA that nodes are trusted by expires, seconds since 1970.";
    UPSTREAM_CA_NOT_BEFORE: Kind::Gauge, "upstream_ca_not_before_seconds", ["upstream", "subject", "serial"],
        "Since when a CA that nodes are trusted by is valid, seconds since 1970.";
    SPIFFE_AGENT_UP: Kind::Gauge, "spiffe_agent_up", [],
        "1 while the SPIFFE agent's updates are listened to, else 0; absent where none is asked.";
    UPSTREAM_FIRST_BYTE: Kind::Histogram(DURATION_BUCKETS), "upstream_first_byte_seconds", ["upstream"],
        "From a node's pick to the first byte of its answer.";
    UPSTREAM_RETRIES: Kind::Counter, "upstream_retries_total", ["upstream"],
        "Tries at another node after the first one failed.";
    BREAKER_OPEN: Kind::Gauge, "upstream_circuit_breaker_open", ["upstream", "limit"],
        "1 while a limit of the circuit breaker is reached, else 0.";
    BREAKER_REMAINING: Kind::Gauge, "upstream_circuit_breaker_remaining", ["upstream", "limit"],
        "How many more fit below a limit of the circuit breaker.";
    BREAKER_OVERFLOW: Kind::Counter, "upstream_circuit_breaker_overflow_total", ["upstream", "limit"],
        "Requests that met a limit of the circuit breaker: connections had to wait, retries were not tried again, others were refused.";
    UPSTREAM_PENDING: Kind::Gauge, "upstream_pending", ["upstream"],
        "Requests that wait for a connection.";
    UPSTREAM_PANIC: Kind::Gauge, "upstream_panic", ["upstream"],
        "1 while fewer nodes than panic_threshold are usable and requests go to all of them, else 0.";
    DISCOVERY: Kind::Counter, "upstream_discovery_total", ["upstream", "result"],
        "Answers about an upstream's nodes (of a file, its contents), by result; a failed one keeps the last nodes.";
    DISCOVERED_NODES: Kind::Gauge, "upstream_discovered_nodes", ["upstream"],
        "Nodes that the last good answer names.";
    DISCOVERY_LAST_SUCCESS: Kind::Gauge, "upstream_discovery_last_success_seconds", ["upstream"],
        "When the last good answer about an upstream's nodes came, seconds since 1970; 0: none has come.";
    DISCOVERY_UP: Kind::Gauge, "upstream_discovery_up", ["upstream"],
        "1 while the last answer about an upstream's nodes was a good one, else 0.";
    UPSTREAM_NODE_EJECTED: Kind::Gauge, "upstream_node_ejected", ["upstream", "node"],
        "1 while the node is left alone because its requests failed, else 0.";
    UPSTREAM_NODE_DRAINED: Kind::Gauge, "upstream_node_drained", ["upstream", "node"],
        "1 while an operator has taken the node out, else 0.";
    UPSTREAM_EJECTIONS: Kind::Counter, "upstream_ejections_total", ["upstream", "node"],
        "How often a node was ejected because its requests failed.";
    UPSTREAM_CONCURRENCY_LIMIT: Kind::Gauge, "upstream_concurrency_limit", ["upstream"],
        "Requests that may wait for a first byte at once, as adaptive_concurrency has found.";
    UPSTREAM_NODE_UP: Kind::Gauge, "upstream_node_up", ["upstream", "node"],
        "1 while the node is healthy, else 0.";
    UPSTREAM_REQUESTS: Kind::Counter, "upstream_requests_total", ["upstream", "node", "result"],
        "Tries at a node, by result.";
    UPSTREAM_TLS_FAILURES: Kind::Counter, "upstream_tls_failures_total", ["upstream", "reason"],
        "TLS handshakes with nodes that failed, probes' too, by reason.";
    UPSTREAM_IN_FLIGHT: Kind::Gauge, "upstream_in_flight", ["upstream", "node"],
        "Requests at the node.";
    BODY_MEMORY: Kind::Gauge, "body_memory_bytes", [],
        "Memory taken by request bodies that wait; server.body_memory is the limit.";
    ACCESS_LOG_LINES: Kind::Counter, "access_log_lines_total", [],
        "Access log lines written.";
    ACCESS_LOG_DROPPED: Kind::Counter, "access_log_dropped_total", [],
        "Access log lines lost: the queue was full, or writing failed.";
    ACCESS_LOG_WRITE_ERRORS: Kind::Counter, "access_log_write_errors_total", [],
        "Failed writes of the access log, such as to a full disk.";
    ACCESS_LOG_ROTATE_ERRORS: Kind::Counter, "access_log_rotate_errors_total", [],
        "Access log files that could not be moved away at access_log.rotate.size and grow on, by as much before each new try.";
    PROCESS_LOG_DROPPED: Kind::Counter, "process_log_dropped_total", [],
        "Lines of the process' own log lost: standard error was not read, or writing to it failed.";
    TRACE_SPANS: Kind::Counter, "trace_spans_total", ["result"],
        "Spans of traced requests, by what became of them.";
    CONFIG_GENERATION: Kind::Gauge, "config_generation", [],
        "Grows with every configuration taken into use.";
    CONFIG_RELOADS: Kind::Counter, "config_reload_total", ["result"],
        "Reloads of the configuration file, by result; a failed one keeps what was in use.";
    TLS_RELOADS: Kind::Counter, "tls_reload_total", ["result"],
        "Changes of certificates, keys, CA bundles and secrets, by result; a failed one keeps what was in use.";
    BUILD_INFO: Kind::Gauge, "build_info", ["version"],
        "Always 1; its label says what runs.";
}

/// Every metric of the documentation: the gateway's own, then those that every process has.
pub fn all_definitions() -> impl Iterator<Item = &'static Definition> {
    DEFINITIONS.iter().chain(process::DEFINITIONS)
}
