//! Keeps the revocation lists that are fetched over HTTP fresh: each URL of each listener on its own time, on a thread of
//! their own, so that reading a list of a million entries holds up nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::task::JoinSet;

use crate::observe::CrlFetchResult;
use crate::proxy::Shared;
use crate::snapshot;
use crate::tls::{self, CrlUrl, Fetched, Revocation};

/// How soon a URL of a new configuration is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After the first failure; doubled by each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// At most so long between two tries while a list is wanting.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Fetches the lists of all listeners.
pub struct CrlRefresh(pub Arc<Shared>);

/// A listener's name, and a URL.
type Key = (String, String);

/// A URL's next turn.
struct Turn {
    at: Instant,
    running: bool,
    failures: u32,
}

#[async_trait]
impl BackgroundService for CrlRefresh {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut turns: HashMap<Key, Turn> = HashMap::new();
        let mut running = JoinSet::new();
        loop {
            let now = self.0.clock.now();
            self.begin_due(&mut turns, &mut running, now);
            let next = turns.values().filter(|turn| !turn.running).map(|turn| turn.at).min();
            let look = next.map_or(now + LOOK_EVERY, |at| at.min(now + LOOK_EVERY));
            tokio::select! {
                _ = shutdown.changed() => return,
                () = tokio::time::sleep_until(look.into()) => {}
                Some(Ok((key, fetched))) = running.join_next() => self.ended(&mut turns, key, fetched),
            }
        }
    }
}

impl CrlRefresh {
    /// What the present snapshot's listener of this name knows, and its URL of this text.
    fn find(&self, (listener, url): &Key) -> Option<(Arc<Revocation>, CrlUrl)> {
        let snapshot = self.0.snapshot();
        let at = snapshot.config.listeners.iter().position(|l| l.name.as_str() == listener)?;
        let revocation = snapshot.listeners.get(at)?.tls.as_ref()?.revocation()?.clone();
        let url = revocation.urls().iter().find(|other| other.as_str() == url)?.clone();
        Some((revocation, url))
    }

    fn begin_due(
        &self,
        turns: &mut HashMap<Key, Turn>,
        running: &mut JoinSet<(Key, Result<Fetched, String>)>,
        now: Instant,
    ) {
        let snapshot = self.0.snapshot();
        let mut wanted = Vec::new();
        for (config, listener) in snapshot.config.listeners.iter().zip(&snapshot.listeners) {
            let urls = listener.tls.as_ref().and_then(|tls| tls.revocation()).map(|r| r.urls()).unwrap_or_default();
            wanted.extend(urls.iter().map(|url| ((config.name.as_str().to_owned(), url.as_str().to_owned()), url)));
        }
        turns.retain(|key, turn| turn.running || wanted.iter().any(|(other, _)| other == key));
        for (key, url) in wanted {
            let first = || Turn { at: now, running: false, failures: 0 };
            let turn = turns.entry(key.clone()).or_insert_with(first);
            // A new CA bundle may have dropped a list that had come; then its time does not count.
            let found = self.find(&key);
            let lost = turn.failures == 0 && !found.as_ref().is_some_and(|(revocation, url)| revocation.has(url));
            if turn.running || (turn.at > now && !lost) {
                continue;
            }
            turn.running = true;
            let tag = found.and_then(|(revocation, url)| revocation.tag(&url));
            let url = url.clone();
            running.spawn(async move {
                let fetched = tls::fetch(&url, tag.as_deref()).await;
                (key, fetched)
            });
        }
    }

    fn ended(&self, turns: &mut HashMap<Key, Turn>, key: Key, fetched: Result<Fetched, String>) {
        // The configuration may have changed meanwhile; then the list is no longer wanted.
        let (Some(turn), Some((revocation, url))) = (turns.get_mut(&key), self.find(&key)) else {
            turns.remove(&key);
            return;
        };
        turn.running = false;
        let now_unix = self.0.clock.unix_seconds();
        let outcome = match fetched {
            Ok(Fetched::NotModified) => Ok(false),
            Ok(Fetched::List(bytes, tag)) => revocation.install(&url, &bytes, tag, now_unix),
            Err(why) => Err(why),
        };
        let name = key.0.as_str();
        let (result, wait) = match outcome {
            Ok(changed) => {
                turn.failures = 0;
                if changed {
                    log::info!("listener {name}: a new CRL from {}", url.as_str());
                    snapshot::show_lists(&revocation, name, &self.0.metrics);
                }
                let result = if changed { CrlFetchResult::New } else { CrlFetchResult::Unchanged };
                (result, wait_after_success(revocation.refresh(), revocation.next_update(&url), now_unix))
            }
            Err(why) => {
                turn.failures += 1;
                let kept = if revocation.has(&url) { "the one at hand stays" } else { "its clients are refused" };
                log::warn!("listener {name}: no CRL from {}: {why}; {kept}", url.as_str());
                (CrlFetchResult::Failed, wait_after_failure(turn.failures, revocation.refresh()))
            }
        };
        self.0.metrics.crl_fetched(name, result);
        turn.at = self.0.clock.now() + jittered(wait, rand_share());
    }
}

/// At the configured pace, but early enough before a list is due that there is time for retries: at four fifths of what
/// is left, and, when it is late already, as after a failure.
fn wait_after_success(refresh: Duration, next_update: Option<i64>, now_unix: i64) -> Duration {
    let left = next_update.unwrap_or(i64::MAX).saturating_sub(now_unix);
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)) / 5 * 4;
    refresh.min(left.max(RETRY_FIRST))
}

fn wait_after_failure(failures: u32, refresh: Duration) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(RETRY_MAX).min(refresh.max(RETRY_FIRST))
}

/// Up to a tenth less, so that gateways that started together don't ask together. `share` is 0 to 1.
fn jittered(wait: Duration, share: f64) -> Duration {
    wait.mul_f64(1.0 - 0.1 * share.clamp(0.0, 1.0))
}

fn rand_share() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_list_is_asked_for_before_it_is_due() {
        assert_eq!(wait_after_success(10 * MINUTE, Some(86_400), 0), 10 * MINUTE);
        assert_eq!(wait_after_success(10 * MINUTE, Some(300), 0), 4 * MINUTE);
        assert_eq!(wait_after_success(10 * MINUTE, Some(300), 300), RETRY_FIRST);
        assert_eq!(wait_after_success(10 * MINUTE, Some(i64::MAX), 0), 10 * MINUTE);
        assert_eq!(wait_after_success(10 * MINUTE, None, 0), 10 * MINUTE);
    }

    #[test]
    fn failures_are_tried_again_ever_less_often() {
        let waits = [1, 2, 3, 6, 7, 40, u32::MAX].map(|n| wait_after_failure(n, 10 * MINUTE).as_secs());
        assert_eq!(waits, [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(wait_after_failure(9, Duration::from_secs(5)).as_secs(), 5);
    }

    #[test]
    fn jitter_takes_a_tenth_at_most() {
        assert_eq!(jittered(10 * MINUTE, 0.0), 10 * MINUTE);
        assert_eq!(jittered(10 * MINUTE, 1.0), 9 * MINUTE);
        assert!((0.0..=1.0).contains(&rand_share()));
    }
}
