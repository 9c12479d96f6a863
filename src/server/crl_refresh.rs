//! Keeps the revocation lists that are fetched over HTTP fresh: each URL of each listener on its own time, on a thread of
//! their own, so that reading a list of a million entries holds up nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::task::JoinSet;

use super::turns::Turn;
use crate::observe::CrlFetchResult;
use crate::proxy::Shared;
use crate::snapshot;
use crate::tls::{self, Answer, CrlUrl, Fetched, Revocation, StateDir};

/// How soon a URL of a new configuration is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// At most so long between two tries while a list is wanting.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Fetches the lists of all listeners.
pub struct CrlRefresh(pub Arc<Shared>);

/// A listener's name, and a URL.
type Key = (String, String);

#[async_trait]
impl BackgroundService for CrlRefresh {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut turns: HashMap<Key, Turn> = HashMap::new();
        let mut running = JoinSet::new();
        if let Some(store) = self.store() {
            store.clean(self.0.clock.wall());
        }
        loop {
            let now = self.0.clock.now();
            self.begin_due(&mut turns, &mut running, now);
            let next = turns.values().filter_map(Turn::next).min();
            let look = next.map_or(now + LOOK_EVERY, |at| at.min(now + LOOK_EVERY));
            tokio::select! {
                _ = shutdown.changed() => return,
                () = tokio::time::sleep_until(look.into()) => {}
                () = tls::crl_wanted() => {}
                Some(Ok((key, fetched))) = running.join_next() => self.ended(&mut turns, key, fetched),
            }
        }
    }
}

impl CrlRefresh {
    fn store(&self) -> Option<StateDir> {
        self.0.snapshot().config.server.state_dir.as_deref().map(StateDir::new)
    }

    /// What the present snapshot's listener of this name knows, and its URL of this text.
    fn find(&self, (listener, url): &Key) -> Option<(Arc<Revocation>, CrlUrl)> {
        let snapshot = self.0.snapshot();
        let at = snapshot.config.listeners.iter().position(|l| l.name.as_str() == listener)?;
        let revocation = snapshot.listeners.get(at)?.tls.as_ref()?.revocation()?.clone();
        let url = revocation.sources().into_iter().find(|other| other.as_str() == url)?;
        Some((revocation, url))
    }

    fn begin_due(
        &self,
        turns: &mut HashMap<Key, Turn>,
        running: &mut JoinSet<(Key, Result<Fetched, String>)>,
        now: Instant,
    ) {
        let snapshot = self.0.snapshot();
        let mut wanted = HashMap::new();
        for (config, listener) in snapshot.config.listeners.iter().zip(&snapshot.listeners) {
            let Some(revocation) = listener.tls.as_ref().and_then(|tls| tls.revocation()) else { continue };
            let keyed = |url: CrlUrl| ((config.name.as_str().to_owned(), url.as_str().to_owned()), (url, revocation));
            wanted.extend(revocation.sources().into_iter().map(keyed));
        }
        turns.retain(|key, turn| turn.is_running() || wanted.contains_key(key));
        for (key, (url, revocation)) in wanted {
            if !turns.contains_key(&key) {
                self.restore(&key.0, revocation, &url);
            }
            let turn = turns.entry(key.clone()).or_insert_with(|| Turn::new(now));
            // A new CA bundle may have dropped a list that had come.
            if turn.is_due(now, !revocation.has(&url)) {
                turn.begin();
                let tag = revocation.tag(&url);
                running.spawn(async move {
                    let fetched = tls::fetch(&url, tag.as_deref()).await;
                    (key, fetched)
                });
            }
        }
    }

    /// What an earlier process had from a URL of a client's certificate. Those of the configuration were looked for when
    /// the snapshot was built.
    fn restore(&self, name: &str, revocation: &Revocation, url: &CrlUrl) {
        let Some(store) = self.store() else { return };
        if revocation.restore(url, &store, self.0.clock.unix_seconds()) {
            snapshot::show_lists(revocation, name, &self.0.metrics);
            revocation.note_asked(url);
        }
    }

    fn ended(&self, turns: &mut HashMap<Key, Turn>, key: Key, fetched: Result<Fetched, String>) {
        // The configuration may have changed meanwhile; then the list is no longer wanted.
        let (Some(turn), Some((revocation, url))) = (turns.get_mut(&key), self.find(&key)) else {
            turns.remove(&key);
            return;
        };
        let now_unix = self.0.clock.unix_seconds();
        let outcome = match fetched {
            Ok(Fetched::NotModified) => {
                let _ = self.store().map(|store| store.touch(url.as_str().as_bytes()));
                Ok(false)
            }
            Ok(Fetched::List(answer)) => self.install(&revocation, &url, answer, now_unix),
            Err(why) => Err(why),
        };
        let name = key.0.as_str();
        let now = self.0.clock.now();
        let result = match outcome {
            Ok(changed) => {
                if changed {
                    log::info!("listener {name}: a new CRL from {}", url.as_str());
                    let present = self.hand_on(&key, revocation.clone(), &url);
                    snapshot::show_lists(&present, name, &self.0.metrics);
                }
                let wait = wait_after_success(revocation.refresh(), revocation.next_update(&url), now_unix);
                turn.succeeded(now, wait);
                if changed { CrlFetchResult::New } else { CrlFetchResult::Unchanged }
            }
            Err(why) => {
                let kept = if revocation.has(&url) { "the one at hand stays" } else { "its clients are refused" };
                log::warn!("listener {name}: no CRL from {}: {why}; {kept}", url.as_str());
                // A certificate may name a place that is long gone.
                let configured = revocation.urls().contains(&url) || revocation.has(&url);
                let most = if configured { RETRY_MAX.min(revocation.refresh()) } else { revocation.refresh() };
                turn.failed(now, most);
                CrlFetchResult::Failed
            }
        };
        self.0.metrics.crl_fetched(name, result);
        revocation.note_asked(&url);
    }

    /// Reloads may have come while a list was read: what is in use now must have it too.
    fn hand_on(&self, key: &Key, mut holder: Arc<Revocation>, url: &CrlUrl) -> Arc<Revocation> {
        while let Some((present, _)) = self.find(key).filter(|(present, _)| !Arc::ptr_eq(present, &holder)) {
            present.take_from(&holder, url);
            present.note_asked(url);
            holder = present;
        }
        holder
    }

    fn install(&self, revocation: &Revocation, url: &CrlUrl, answer: Answer, now_unix: i64) -> Result<bool, String> {
        let Answer { bytes, tag, .. } = &answer;
        let changed = revocation.install(url, bytes, tag.clone(), now_unix)?;
        if let Some(store) = self.store() {
            let key = url.as_str().as_bytes();
            // Also when it is the one at hand: that may have come before there was a directory.
            match store.holds(key, bytes.len()) && !changed {
                true => store.touch(key),
                false => _ = store.write(key, bytes).inspect_err(|e| log::error!("server.state_dir: {e}")),
            }
        }
        Ok(changed)
    }
}

/// At the configured pace, but early enough before a list is due that there is time for retries: at four fifths of what
/// is left, and, when it is late already, as after a failure.
fn wait_after_success(refresh: Duration, next_update: Option<i64>, now_unix: i64) -> Duration {
    let left = next_update.unwrap_or(i64::MAX).saturating_sub(now_unix);
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)) / 5 * 4;
    refresh.min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_list_is_asked_for_before_it_is_due() {
        assert_eq!(wait_after_success(10 * MINUTE, Some(86_400), 0), 10 * MINUTE);
        assert_eq!(wait_after_success(10 * MINUTE, Some(300), 0), 4 * MINUTE);
        assert_eq!(wait_after_success(10 * MINUTE, Some(300), 300), Duration::ZERO);
        assert_eq!(wait_after_success(10 * MINUTE, Some(i64::MAX), 0), 10 * MINUTE);
        assert_eq!(wait_after_success(10 * MINUTE, None, 0), 10 * MINUTE);
    }
}
