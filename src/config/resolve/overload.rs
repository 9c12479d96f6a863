//! `overload`, and `upstreams[].adaptive_concurrency`.

use super::Resolver;
use super::ranges::{DAY, HOUR, MILLISECOND, MINUTE, SECOND};
use crate::config::file::{AdaptiveConcurrency, Overload};

pub(super) fn overload(r: &mut Resolver<'_>, raw: Overload) -> Overload {
    r.range("overload.connections", &raw.connections, &(1..=10_000_000));
    r.range("overload.requests", &raw.requests, &(1..=10_000_000));
    let reserve = "overload.critical_reserve";
    if raw.critical_reserve.0 >= 1000 && !r.has_guess(reserve) {
        r.error(reserve, "100% leaves nothing for other routes; write less, such as 10%");
    }
    let lag = &raw.event_loop_lag;
    let (scaling, saturation) =
        ("overload.event_loop_lag.scaling_threshold", "overload.event_loop_lag.saturation_threshold");
    r.span(scaling, lag.scaling_threshold, MILLISECOND, MINUTE);
    r.span(saturation, lag.saturation_threshold, MILLISECOND, MINUTE);
    if lag.saturation_threshold < lag.scaling_threshold && !r.has_guess(scaling) && !r.has_guess(saturation) {
        let why = format!("{} is before scaling_threshold", lag.saturation_threshold);
        // One of the two may be the default.
        let at = if r.located.has(saturation) { saturation } else { scaling };
        r.error(at, format!("{why} ({}); write a longer saturation_threshold", lag.scaling_threshold));
    }
    r.span("overload.retry_after", raw.retry_after, SECOND, HOUR);
    raw
}

pub(super) fn adaptive_concurrency(r: &mut Resolver<'_>, at: &str, raw: &AdaptiveConcurrency) {
    let (least, most) = (format!("{at}.min_concurrency"), format!("{at}.max_concurrency"));
    r.range(&least, &raw.min_concurrency, &(1..=100_000));
    r.range(&most, &raw.max_concurrency, &(1..=100_000));
    if raw.min_concurrency > raw.max_concurrency && !r.has_guess(&least) && !r.has_guess(&most) {
        let at = if r.located.has(&least) { least } else { most };
        r.error(
            &at,
            format!("min_concurrency {} is more than max_concurrency {}", raw.min_concurrency, raw.max_concurrency),
        );
    }
    r.span(&format!("{at}.sample_window"), raw.sample_window, 10 * MILLISECOND, MINUTE);
    r.span(&format!("{at}.min_rtt_interval"), raw.min_rtt_interval, SECOND, DAY);
    r.range(&format!("{at}.min_rtt_request_count"), &raw.min_rtt_request_count, &(1..=10_000));
}
