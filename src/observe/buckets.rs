//! Upper bounds of the histograms' buckets, in seconds.

/// From a request answered by the gateway itself to Hive's longest run (300 s), seconds.
pub(super) const DURATION_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];

/// A handshake takes a millisecond of work and some round trips; `timeouts.handshake` ends it, seconds.
pub(super) const HANDSHAKE_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The core rules take some milliseconds of processor; `waf.timeout` ends the wait, seconds.
pub(super) const WAF_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Redis is near, and `redis.timeout` is short, seconds.
pub(super) const REDIS_BUCKETS: &[f64] =
    &[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
