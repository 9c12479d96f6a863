//! `upstreams`: balancing, ejection and the circuit breaker.

use std::time::Duration;

use super::Resolver;
use super::ranges::{DAY, HOUR, MILLISECOND, SECOND};
use crate::config::file::{self, Balance, HashKey, Outlier, UpstreamProtocol};
use crate::config::{Route, Upstream};
use crate::upstream::{BreakerLimits, ConnectionLimits};

/// Defaults of `circuit_breaker`, Envoy's; a request that waits takes memory, so there are fewer of them.
const CONNECTIONS: u32 = 1024;
const PENDING: u32 = 256;
const PENDING_TIMEOUT: Duration = Duration::from_secs(1);

const COUNT_MAX: u32 = 1_000_000;

/// What requests are told apart by, and that nothing of it is said without need.
pub(super) fn balance(r: &mut Resolver<'_>, at: &str, raw: &file::Upstream) -> Vec<HashKey> {
    let (key_path, factor_path) = (format!("{at}.hash_key"), format!("{at}.hash_balance_factor"));
    if let Some(factor) = &raw.hash_balance_factor {
        r.range(&factor_path, factor, &(101..=10_000));
    }
    let guess = r.has_guess(&format!("{at}.balance")) || r.has_guess(&key_path);
    match (raw.balance, &raw.hash_key) {
        _ if guess => {}
        (Balance::ConsistentHash, None) => {
            let why = "consistent_hash needs to know what to hash; write hash_key: [task_id, context_id], or peer";
            r.error(&format!("{at}.balance"), why);
        }
        (Balance::ConsistentHash, Some(keys)) if keys.0.is_empty() => {
            r.error(&key_path, "the list is empty; write context_id, task_id, peer or header:NAME");
        }
        (Balance::ConsistentHash, Some(_)) => {}
        (_, key) => {
            let without = "not used without balance: consistent_hash; leave it out, or write that";
            if key.is_some() {
                r.error(&key_path, without);
            }
            if raw.hash_balance_factor.is_some() {
                r.error(&factor_path, without);
            }
        }
    }
    raw.hash_key.clone().unwrap_or_default().0
}

/// Keys that stand in JSON-RPC params need a route that reads them.
pub(super) fn check_hash_keys(r: &mut Resolver<'_>, upstreams: &[Upstream], routes: &[Route]) {
    for (i, upstream) in upstreams.iter().enumerate() {
        let mut of_params = upstream.hash_keys.iter().filter(|k| matches!(k, HashKey::ContextId | HashKey::TaskId));
        let mut its_routes = routes.iter().filter(|route| route.upstream == i).peekable();
        if of_params.next().is_some() && its_routes.peek().is_some() && its_routes.all(|route| route.json_rpc.is_none())
        {
            let why = "context_id and task_id stand in JSON-RPC params, and no route to this upstream reads them";
            r.error(&format!("upstreams[{i}].hash_key"), format!("{why}; write json_rpc: {{}} in one"));
        }
    }
}

pub(super) fn outlier(r: &mut Resolver<'_>, at: &str, outlier: &Outlier) {
    r.range(&format!("{at}.consecutive_failures"), &outlier.consecutive_failures, &(1..=1000));
    let (first, longest) = (format!("{at}.eject_for"), format!("{at}.eject_for_max"));
    r.span(&first, outlier.eject_for, SECOND, HOUR);
    r.span(&longest, outlier.eject_for_max, SECOND, DAY);
    if outlier.eject_for_max < outlier.eject_for && !r.has_guess(&first) && !r.has_guess(&longest) {
        // The one that was written.
        let path = if r.located.has(&longest) { &longest } else { &first };
        let (max, base) = (outlier.eject_for_max, outlier.eject_for);
        r.error(
            path,
            format!("the longest ejection, {max}, is shorter than the first, {base}; write eject_for_max too"),
        );
    }
}

pub(super) fn circuit_breaker(
    r: &mut Resolver<'_>,
    at: &str,
    raw: &file::CircuitBreaker,
    protocol: UpstreamProtocol,
) -> BreakerLimits {
    let written = [
        ("max_connections", raw.max_connections.is_some()),
        ("max_pending", raw.max_pending.is_some()),
        ("pending_timeout", raw.pending_timeout.is_some()),
    ];
    if protocol == UpstreamProtocol::Http2 {
        for (key, _) in written.iter().filter(|(_, written)| *written) {
            let why = "not used with protocol: http2, where a connection carries many requests; write max_requests";
            r.error(&format!("{at}.{key}"), why);
        }
    }
    let connections = ConnectionLimits {
        max: raw.max_connections.unwrap_or(CONNECTIONS),
        max_pending: raw.max_pending.unwrap_or(PENDING),
        pending_timeout: raw.pending_timeout.map_or(PENDING_TIMEOUT, |span| span.0),
    };
    r.range(&format!("{at}.max_connections"), &connections.max, &(1..=COUNT_MAX));
    r.range(&format!("{at}.max_pending"), &connections.max_pending, &(0..=COUNT_MAX));
    if let Some(timeout) = raw.pending_timeout {
        r.span(&format!("{at}.pending_timeout"), timeout, MILLISECOND, HOUR);
    }
    r.range(&format!("{at}.max_requests"), &raw.max_requests, &(1..=COUNT_MAX));
    r.range(&format!("{at}.min_retry_concurrency"), &raw.min_retry_concurrency, &(0..=1000));
    BreakerLimits {
        connections: (protocol == UpstreamProtocol::Http1).then_some(connections),
        max_requests: raw.max_requests,
        retry_budget: raw.retry_budget,
        min_retry_concurrency: raw.min_retry_concurrency,
    }
}
