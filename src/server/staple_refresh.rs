//! Keeps the OCSP answers about the gateway's own certificates fresh, beside the handshakes that send them along.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::task::JoinSet;

use super::turns::Turn;
use crate::observe::OcspResult;
use crate::proxy::Shared;
use crate::tls::{Staple, Stapled, StateDir};

/// How soon a certificate of a new configuration is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// At most so long between two tries.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// A revoked certificate is asked about again so soon: it may only be on hold.
const REVOKED_AGAIN: Duration = Duration::from_secs(600);

/// Asks the responders of all listeners' certificates.
pub struct StapleRefresh(pub Arc<Shared>);

/// SHA-256 of a certificate: one that several listeners have is asked about once.
type Key = [u8; 32];

#[async_trait]
impl BackgroundService for StapleRefresh {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut turns: HashMap<Key, Turn> = HashMap::new();
        let mut running = JoinSet::new();
        loop {
            self.begin_due(&mut turns, &mut running);
            let now = self.0.clock.now();
            let next = turns.values().filter_map(Turn::next).min();
            let look = next.map_or(now + LOOK_EVERY, |at| at.min(now + LOOK_EVERY));
            tokio::select! {
                _ = shutdown.changed() => return,
                () = tokio::time::sleep_until(look.into()) => {}
                Some(Ok((key, answer))) = running.join_next() => self.ended(&mut turns, key, answer),
            }
        }
    }
}

impl StapleRefresh {
    fn begin_due(&self, turns: &mut HashMap<Key, Turn>, running: &mut JoinSet<(Key, Result<Vec<u8>, String>)>) {
        let now = self.0.clock.now();
        let snapshot = self.0.snapshot();
        let wanted: HashMap<Key, &Arc<Staple>> =
            snapshot.staples().map(|(_, _, staple)| (staple.fingerprint(), staple)).collect();
        turns.retain(|key, turn| turn.is_running() || wanted.contains_key(key));
        for (key, staple) in wanted {
            let first = || match staple.last() {
                // An earlier process had it.
                Some(last) if !last.is_revoked() => Turn::after(now, last.refresh_in(self.0.clock.unix_seconds())),
                _ => Turn::new(now),
            };
            let turn = turns.entry(key).or_insert_with(first);
            // A reload may have come between an answer and its use.
            if turn.is_due(now, staple.last().is_none()) {
                turn.begin();
                let staple = staple.clone();
                running.spawn(async move { (key, staple.ask().await) });
            }
        }
    }

    fn ended(&self, turns: &mut HashMap<Key, Turn>, key: Key, answer: Result<Vec<u8>, String>) {
        let snapshot = self.0.snapshot();
        let owners: Vec<_> = snapshot.staples().filter(|(_, _, staple)| staple.fingerprint() == key).collect();
        let (Some(turn), Some((_, certificate, staple))) = (turns.get_mut(&key), owners.first()) else {
            turns.remove(&key);
            return;
        };
        let (now, now_unix) = (self.0.clock.now(), self.0.clock.unix_seconds());
        let outcome = answer.and_then(|answer| {
            let each = owners.iter().map(|(_, _, staple)| staple.install(&answer, now_unix));
            each.collect::<Result<Vec<Arc<Stapled>>, _>>()
        });
        let (who, responder) = (&certificate.subject, staple.responder());
        let result = match outcome.map(|all| all.into_iter().next()) {
            Ok(Some(last)) if last.is_revoked() => {
                log::error!("the gateway's own certificate {who:?} is REVOKED, says {responder}: replace it");
                turn.succeeded(now, REVOKED_AGAIN);
                OcspResult::Revoked
            }
            Ok(last) => {
                let wait = last.map_or(RETRY_MAX, |last| last.refresh_in(now_unix));
                log::debug!("an OCSP answer about {who:?} from {responder}; the next one in {wait:?}");
                turn.succeeded(now, wait);
                OcspResult::Good
            }
            Err(why) => {
                let failures = turn.failed(now, RETRY_MAX);
                // The 1st, 2nd, 4th …: a responder that is gone for long fills no log.
                if failures.is_power_of_two() {
                    let held = staple.last().is_some_and(|last| !last.is_revoked() && now_unix < last.until());
                    let so = if held { "the one at hand is stapled until it ends" } else { "nothing is stapled" };
                    log::warn!("no OCSP answer about {who:?} from {responder}: {why}; {so}");
                }
                OcspResult::Unknown
            }
        };
        for (listener, _, _) in &owners {
            self.0.metrics.staple_fetched(listener, result);
        }
        if result != OcspResult::Unknown {
            snapshot.publish_expiries(&self.0.metrics);
            let store = snapshot.config.server.state_dir.as_deref().map(StateDir::new);
            let kept = store.map(|store| staple.keep(&store));
            let _ = kept.map(|kept| kept.inspect_err(|e| log::error!("server.state_dir: {e}")));
        }
    }
}
