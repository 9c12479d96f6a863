//! Limits that all gateways of a fleet share, through Redis.
//!
//! Redis keeps one number for each busy key: when its bucket has drained, by Redis' own clock. The script below is the
//! algorithm of [`super::Quota`] there, so a decision is one round trip and atomic. The local bucket is asked first, and what
//! Redis answers goes into it: a key whose bucket is full is refused here until something in it has drained, so of an attack
//! hardly more reaches Redis than the limit, and if Redis goes, the gateway goes on from what it knew.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use super::key::Facts;
use super::limit::Limit;
use crate::redis::{Client, Unavailable};

/// Takes from a bucket, times in microseconds. `KEYS[1]`; what one call takes, what all of a burst take, and how many calls
/// these are. Answers whether they pass, and how long the bucket has yet to drain after it.
///
/// A time beyond a full bucket is cut, and the cut is kept also where the calls are refused: the clock that it was of may have
/// been another Redis', and would be waited for. What is no time is none.
pub const SCRIPT: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at = now + tonumber(ARGV[2])
local kept = tonumber(redis.call('GET', KEYS[1]) or 0) or 0
local drained_at = now
if kept > now then drained_at = math.min(kept, full_at) end
local function keep(time)
  redis.call('SET', KEYS[1], string.format('%.2f', time), 'PX', math.ceil((time - now) / 1000))
end
local next = drained_at + tonumber(ARGV[1]) * tonumber(ARGV[3])
if next > full_at then
  if kept > full_at then keep(full_at) end
  return {0, math.floor(drained_at - now)}
end
keep(next)
return {1, math.floor(next - now)}
";

/// Arguments with which the script writes, and its key is gone at once.
pub const PROBE: [&str; 3] = ["1", "1000", "1"];

/// What Redis said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether the calls pass.
    pub admitted: bool,
    /// How long the bucket takes to drain now.
    pub drains_in: Duration,
}

/// The fleet's counts.
pub struct SharedRates {
    /// Where they are.
    pub client: Arc<Client>,
    key_prefix: Box<str>,
}

impl SharedRates {
    /// Counts under keys that begin with this.
    pub fn new(client: Arc<Client>, key_prefix: &str) -> Self {
        Self { client, key_prefix: key_prefix.into() }
    }

    /// A key of the fleet's that is no limit's.
    pub fn own_key(&self, name: &str) -> String {
        format!("{}{name}", self.key_prefix)
    }

    /// Longest wait for an answer.
    pub fn timeout(&self) -> std::time::Duration {
        self.client.timeout()
    }

    /// The key of a request, the same on every gateway. No text of the client is in it.
    pub fn key(&self, limit: &Limit, facts: &Facts<'_>, ipv6_prefix: u8) -> Vec<u8> {
        let mut hash = Sha256(openssl::sha::Sha256::new());
        limit.feed(facts, ipv6_prefix, &mut hash);
        let digest = hash.0.finish();
        let mut key = Vec::with_capacity(self.key_prefix.len() + limit.name.len() + 33);
        key.extend_from_slice(self.key_prefix.as_bytes());
        key.extend_from_slice(limit.name.as_bytes());
        key.push(b':');
        for byte in &digest[..16] {
            key.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        key
    }

    /// Takes `calls` from the key's bucket.
    ///
    /// # Errors
    /// Redis does not say.
    pub async fn take(&self, key: &[u8], limit: &Limit, calls: u32) -> Result<Answer, Unavailable> {
        let microseconds = |ns: u64| format!("{}.{:03}", ns / 1000, ns % 1000);
        let (each, full) = (microseconds(limit.quota.interval_ns()), microseconds(limit.quota.full_ns()));
        let reply = self.client.eval(key, [each.as_bytes(), full.as_bytes(), calls.to_string().as_bytes()]).await?;
        let numbers: Vec<_> = reply.array().iter().filter_map(|r| r.integer()).collect();
        match *numbers {
            [admitted, drains_in] => {
                let drains_in = Duration::from_micros(u64::try_from(drains_in).unwrap_or(0));
                Ok(Answer { admitted: admitted == 1, drains_in })
            }
            _ => Err(self.client.not_understood()),
        }
    }
}

/// Feeds a key into SHA-256: unlike the local hash it is the same everywhere, and nobody can find two keys of one hash.
struct Sha256(openssl::sha::Sha256);

impl Hasher for Sha256 {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Not used: the digest is longer.
    fn finish(&self) -> u64 {
        0
    }
}
