//! Limits of the configuration in the form in which they are asked.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ListenerSnapshot, UpstreamSnapshot};
use crate::config::{self, file};
use crate::observe::Metrics;
use crate::policy::adaptive_concurrency::{self, AdaptiveConcurrency};
use crate::policy::{admission, overload};

/// How many requests a listener serves at once; none: no limit of this kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestLimits {
    /// In total.
    pub total: Option<u32>,
    /// In total, of routes that are not critical: a listener that has critical ones keeps `overload.critical_reserve` for
    /// them.
    pub total_uncritical: u32,
    /// Of one client address.
    pub per_address: Option<u32>,
    /// Of one peer.
    pub per_peer: Option<u32>,
}

impl RequestLimits {
    pub(super) fn new(limits: &file::ListenerLimits, overload: &file::Overload, some_critical: bool) -> Self {
        let all = limits.requests.unwrap_or(u32::MAX);
        let unreserved = u32::try_from(without_reserve(all.into(), overload)).unwrap_or(all);
        Self {
            total: limits.requests,
            total_uncritical: if some_critical { unreserved } else { all },
            per_address: limits.requests_per_address,
            per_peer: limits.requests_per_peer,
        }
    }
}

/// Of small numbers more: few handshakes harm nobody.
fn a_quarter(connections: u32) -> u32 {
    connections.div_ceil(4).max(16).min(connections)
}

pub(super) fn of_connections(limits: &file::ListenerLimits) -> admission::Limits {
    let per_address = limits.connections_per_address;
    admission::Limits {
        connections: limits.connections,
        per_address,
        new_per_address: limits.new_connections_per_address,
        handshakes: limits.handshakes.unwrap_or(a_quarter(limits.connections)),
        handshakes_per_address: limits.handshakes_per_address.unwrap_or(a_quarter(per_address)),
    }
}

impl ListenerSnapshot {
    /// The limits that hold for a connection from `remote`.
    pub fn connection_limits(&self, remote: IpAddr) -> admission::Limits {
        if self.trusted.contains(remote) { self.admission.of_trusted() } else { self.admission }
    }
}

/// What is left of `all` requests for routes that are not critical: of few, one less; but the last one is for all.
fn without_reserve(all: u64, config: &file::Overload) -> u64 {
    let reserve = (all * u64::from(config.critical_reserve.0)).div_ceil(1000);
    all - reserve.min(all.saturating_sub(1))
}

pub(super) fn of_process(config: &file::Overload) -> overload::Limits {
    let all = u64::from(config.requests);
    overload::Limits {
        enforce: config.enforce,
        connections: config.connections,
        requests: without_reserve(all, config),
        requests_critical: all,
        scaling: config.event_loop_lag.scaling_threshold.0,
        saturation: config.event_loop_lag.saturation_threshold.0,
        retry_after_seconds: config.retry_after.whole_seconds(),
    }
}

/// An adaptive limit goes on with what it has found, unless its settings have changed.
pub(super) fn concurrency(
    config: &config::Upstream,
    before: Option<&UpstreamSnapshot>,
    metrics: &Metrics,
) -> Option<Arc<AdaptiveConcurrency>> {
    let c = config.adaptive_concurrency.as_ref()?;
    let settings = adaptive_concurrency::Settings {
        min: c.min_concurrency,
        max: c.max_concurrency,
        window: c.sample_window.0,
        min_rtt_interval: c.min_rtt_interval.0,
        min_rtt_requests: usize::try_from(c.min_rtt_request_count).unwrap_or(usize::MAX),
        buffer: f64::from(c.buffer.0) / 1000.0,
    };
    let before = before.and_then(|b| b.concurrency.as_ref()).filter(|b| *b.settings() == settings);
    let new = || AdaptiveConcurrency::new(settings, metrics.upstream_concurrency(config.name.as_str()));
    Some(before.cloned().unwrap_or_else(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Percent;

    #[test]
    fn of_few_requests_one_is_kept_for_critical_routes_and_of_one_none() {
        for (all, reserve, left) in [(100, 100, 90), (9, 100, 8), (2, 1, 1), (1, 100, 1), (9, 0, 9)] {
            let config = file::Overload { critical_reserve: Percent(reserve), ..file::Overload::default() };
            assert_eq!(without_reserve(all, &config), left, "{reserve} of 1000 of {all}");
        }
    }
}
