//! The parts of `/v1/status` that are about requests and handshakes.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::observe::history::{History, STEP};
use crate::observe::recent::{FailedHandshake, RefusedRequest, Seen};

/// Peers that are shown.
const PEERS_SHOWN: usize = 200;

/// `traffic`: steps of the last five minutes, the oldest first; all lists are equally long.
#[derive(Debug, Clone, Serialize)]
pub struct TrafficStatus {
    /// Length of a step.
    pub step_seconds: u64,
    /// Requests that ended, each second.
    pub requests_per_second: Vec<f64>,
    /// Those with a status of 500 and above.
    pub server_errors_per_second: Vec<f64>,
    /// Those that the gateway refused.
    pub refusals_per_second: Vec<f64>,
    /// Half of them took no longer; null where there were none.
    pub median_seconds: Vec<Option<f64>>,
    /// 99 % of them took no longer.
    pub p99_seconds: Vec<Option<f64>>,
    /// Requests that ran at the end of the step.
    pub in_flight: Vec<i64>,
}

impl TrafficStatus {
    /// From what was looked at.
    pub fn of(history: &History) -> Self {
        // What is shown needs no more digits.
        let short = |n: f64| (n * 1e6).round() / 1e6;
        let steps = || history.steps.iter();
        Self {
            step_seconds: STEP.as_secs(),
            requests_per_second: steps().map(|s| short(s.requests)).collect(),
            server_errors_per_second: steps().map(|s| short(s.server_errors)).collect(),
            refusals_per_second: steps().map(|s| short(s.refusals)).collect(),
            median_seconds: steps().map(|s| s.median.map(short)).collect(),
            p99_seconds: steps().map(|s| s.p99.map(short)).collect(),
            in_flight: steps().map(|s| s.in_flight).collect(),
        }
    }
}

/// `peers[]`
#[derive(Debug, Clone, Serialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Requests since the process began.
    pub requests: u64,
    /// Over the last minute.
    pub requests_per_second: f64,
    /// Seconds since 1970, within two seconds.
    pub last_seen: i64,
}

impl PeerStatus {
    /// From what was looked at.
    pub fn of(history: &History) -> Vec<Self> {
        let seen = history.peers.iter().filter_map(|(name, track)| {
            let last_seen = unix(track.last?);
            let requests_per_second = (track.rate() * 1e3).round() / 1e3;
            Some(Self { name: name.clone(), requests: track.total, requests_per_second, last_seen })
        });
        let mut peers: Vec<_> = seen.collect();
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.last_seen), std::cmp::Reverse(peer.requests)));
        peers.truncate(PEERS_SHOWN);
        peers
    }
}

/// `refusals`
#[derive(Debug, Clone, Serialize)]
pub struct RefusalsStatus {
    /// Of each kind, the most frequent first.
    pub by_code: Vec<RefusalCountStatus>,
    /// The last ones, the newest first.
    pub last: Vec<RefusedRequestStatus>,
}

impl RefusalsStatus {
    /// From what was looked at, and from the ring.
    pub fn of(history: &History, last: Vec<Seen<RefusedRequest>>) -> Self {
        let counts = history.refusals.iter().map(|(code, track)| RefusalCountStatus {
            code: code.clone(),
            total: track.total,
            per_second: (track.rate() * 1e3).round() / 1e3,
        });
        let mut by_code: Vec<_> = counts.filter(|count| count.total > 0).collect();
        by_code.sort_by_key(|count| std::cmp::Reverse(count.total));
        let last = last.into_iter().map(|Seen { last, count, what }| RefusedRequestStatus {
            time: unix(last),
            count,
            code: what.code,
            status: what.status,
            listener: what.listener,
            client: what.client.to_string(),
            peer: what.peer,
            route: what.route,
            path: what.path,
            request_id: what.request_id,
        });
        Self { by_code, last: last.collect() }
    }
}

/// `refusals.by_code[]`
#[derive(Debug, Clone, Serialize)]
pub struct RefusalCountStatus {
    /// As in the access log.
    pub code: String,
    /// Since the process began.
    pub total: u64,
    /// Over the last minute.
    pub per_second: f64,
}

/// `refusals.last[]`: one that came again from the same client is counted, not repeated.
#[derive(Debug, Clone, Serialize)]
pub struct RefusedRequestStatus {
    /// Of the last one, seconds since 1970.
    pub time: i64,
    /// How often.
    pub count: u64,
    /// As in the access log.
    pub code: &'static str,
    /// The answer's.
    pub status: u16,
    /// Where it came.
    pub listener: String,
    /// The client's address.
    pub client: String,
    /// Whose certificate it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What it was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Without query, of the first one.
    pub path: String,
    /// Of the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `failed_handshakes[]`
#[derive(Debug, Clone, Serialize)]
pub struct FailedHandshakeStatus {
    /// Of the last one, seconds since 1970.
    pub time: i64,
    /// How often.
    pub count: u64,
    /// As in the metric.
    pub result: &'static str,
    /// More about it.
    pub detail: String,
    /// Where it came.
    pub listener: String,
    /// The client's address.
    pub client: String,
    /// The name that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// The certificate's, RFC 4514.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The certificate's, RFC 4514.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

impl FailedHandshakeStatus {
    /// From the ring.
    pub fn of(last: Vec<Seen<FailedHandshake>>) -> Vec<Self> {
        let each = last.into_iter().map(|Seen { last, count, what }| Self {
            time: unix(last),
            count,
            result: what.result.as_str(),
            detail: what.detail,
            listener: what.listener,
            client: what.client.to_string(),
            sni: what.sni,
            subject: what.subject,
            issuer: what.issuer,
        });
        each.collect()
    }
}

fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
