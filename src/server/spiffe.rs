//! Listens to the SPIFFE agent for as long as the process runs: each update goes to the [`Reloader`]; when the agent goes
//! away, what it issued last stays in use, and it is asked again, ever less often, until it is back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::observe::Metrics;
use crate::proxy::Shared;
use crate::reload::Reloader;
use crate::tls::{self, AgentFailure, Endpoint, Issued, Update, Updates};

/// How long the start waits for an agent. After that the gateway runs without what it would have issued: its listeners
/// refuse clients, and it is not ready.
const START_WAIT: Duration = Duration::from_secs(3);
/// How long an agent may take over its first update.
const FIRST_UPDATE_WAIT: Duration = Duration::from_secs(30);
/// After the first failure; doubled by each further one.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// At most so long between two tries.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A refused update is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// A try of an agent that stays away is told of again only after this.
const TELL_AGAIN: Duration = Duration::from_secs(300);

/// How it stands with the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentState {
    /// Updates are listened to.
    pub connected: bool,
    /// What last went wrong and has not been made good by a later update.
    pub error: Option<String>,
}

/// The agent of this process.
pub struct Agent {
    /// Where it is.
    pub endpoint: Endpoint,
    metrics: Arc<Metrics>,
    clock: Clock,
    state: Mutex<AgentState>,
}

impl Agent {
    /// Nothing has been heard of it.
    pub fn new(endpoint: Endpoint, metrics: Arc<Metrics>, clock: Clock) -> Arc<Self> {
        metrics.set_spiffe_agent_up(false);
        Arc::new(Self { endpoint, metrics, clock, state: Mutex::default() })
    }

    /// How it stands.
    pub fn state(&self) -> AgentState {
        self.state.lock().clone()
    }

    fn set_connected(&self, connected: bool) {
        self.state.lock().connected = connected;
        self.metrics.set_spiffe_agent_up(connected);
    }

    fn set_error(&self, error: Option<String>) {
        self.state.lock().error = error;
    }

    /// What it has issued at the start, if it says so in time. What went wrong is logged, and tried again by
    /// [`SpiffeUpdates`].
    pub fn first(&self) -> Option<Issued> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.inspect_err(|e| log::error!("no runtime to ask the SPIFFE agent with: {e}")).ok()?;
        match runtime.block_on(fetch(&self.endpoint, START_WAIT)) {
            Ok(issued) => Some(issued),
            Err(why) => {
                log::warn!("{why}; the gateway starts all the same, and is not ready before the agent answers");
                self.set_error(Some(why));
                None
            }
        }
    }
}

/// Asks an agent once.
///
/// # Errors
/// Why it said nothing of use.
pub async fn fetch(endpoint: &Endpoint, within: Duration) -> Result<Issued, String> {
    let asked = async {
        let mut updates = tls::connect(endpoint).await?;
        updates.next().await
    };
    match timeout(within, asked).await {
        Ok(Ok(Update { issued, .. })) => {
            issued.map_err(|why| format!("the SPIFFE agent's answer makes no sense: {why}"))
        }
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(_) => Err(format!("the SPIFFE agent at {endpoint} does not answer within {within:?}")),
    }
}

/// Takes the agent's updates into use.
pub struct SpiffeUpdates {
    /// Whose updates.
    pub agent: Arc<Agent>,
    /// Takes them.
    pub reloader: Arc<Reloader>,
    /// Has the snapshot.
    pub shared: Arc<Shared>,
}

#[async_trait]
impl BackgroundService for SpiffeUpdates {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => {}
            () = self.listen() => {}
        }
    }
}

impl SpiffeUpdates {
    async fn listen(&self) {
        let mut failures = Failures::default();
        loop {
            let failure = match tls::connect(&self.agent.endpoint).await {
                Ok(updates) => self.follow(updates, &mut failures).await,
                Err(failure) => failure,
            };
            self.agent.set_connected(false);
            let why = failure.to_string();
            if failures.is_news(&why, self.agent.clock.now()) {
                let so = match self.shared.snapshot().issued {
                    Some(_) => "what it issued last stays in use",
                    None => "nothing has been issued yet",
                };
                match failure {
                    AgentFailure::Denied(_) => log::error!("{why}; {so}"),
                    _ => log::warn!("{why}; {so}"),
                }
            }
            self.agent.set_error(Some(why));
            tokio::time::sleep(jittered(wait_after(failures.count), share())).await;
        }
    }

    /// Until the stream ends; says why it did.
    async fn follow(&self, mut updates: Updates, failures: &mut Failures) -> AgentFailure {
        let mut swapped = self.shared.swapped();
        let mut next = match timeout(FIRST_UPDATE_WAIT, updates.next()).await {
            Ok(next) => next,
            Err(_) => return AgentFailure::Unreachable("it opened the stream and said nothing".into()),
        };
        loop {
            let Update { issued, lists } = match next {
                Ok(update) => update,
                Err(failure) => return failure,
            };
            if !self.agent.state().connected {
                log::info!("listening to the SPIFFE agent at {}", self.agent.endpoint);
            }
            *failures = Failures::default();
            self.agent.set_connected(true);
            if lists > 0 {
                log::warn!("the SPIFFE agent sends {lists} CRLs, which are not used; name them in client_auth.crl");
            }
            let mut good = self.take(issued.clone()).await;
            next = loop {
                let _ = swapped.borrow_and_update();
                // The agent says it once. What is refused today may be right with another configuration, or in a minute,
                // if it is not valid yet.
                tokio::select! {
                    next = updates.next() => break next,
                    _ = swapped.changed(), if !good => {}
                    () = tokio::time::sleep(TRY_AGAIN), if !good => {}
                }
                good = self.take(issued.clone()).await;
            };
        }
    }

    /// Takes an update into use, if it is good. Whether it is.
    async fn take(&self, issued: Result<Issued, String>) -> bool {
        let reloader = self.reloader.clone();
        let report = tokio::task::spawn_blocking(move || reloader.renew(issued)).await;
        let error = match report {
            Ok(Some(report)) => report.errors.first().map(|e| format!("its update is refused: {}", e.message)),
            // What it says is in use already.
            Ok(None) => None,
            Err(e) => Some(format!("its update could not be taken: {e}")),
        };
        let good = error.is_none();
        self.agent.set_error(error);
        good
    }
}

/// Failures since the last update, and which of them have been told.
#[derive(Default)]
struct Failures {
    count: u32,
    told: Option<(String, std::time::Instant)>,
}

impl Failures {
    /// Counts one more. Whether to tell of it: it is another than before, or has gone on for long.
    fn is_news(&mut self, why: &str, now: std::time::Instant) -> bool {
        self.count = self.count.saturating_add(1);
        let old = self
            .told
            .as_ref()
            .is_some_and(|(before, at)| before == why && now.saturating_duration_since(*at) < TELL_AGAIN);
        if !old {
            self.told = Some((why.to_owned(), now));
        }
        !old
    }
}

fn wait_after(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RETRY_MAX)
}

/// Up to half less, so that the gateways of a machine don't come together. `share` is 0 to 1.
fn jittered(wait: Duration, share: f64) -> Duration {
    wait.mul_f64(1.0 - 0.5 * share.clamp(0.0, 1.0))
}

fn share() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_away_is_asked_ever_less_often() {
        let waits = [1, 2, 3, 7, 8, 9, u32::MAX].map(|n| wait_after(n).as_millis());
        assert_eq!(waits, [250, 500, 1000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(jittered(RETRY_MAX, 0.0), RETRY_MAX);
        assert_eq!(jittered(RETRY_MAX, 1.0), RETRY_MAX / 2);
        assert!((0.0..=1.0).contains(&share()));
    }

    #[test]
    fn one_failure_is_told_once_in_a_while() {
        let t = std::time::Instant::now();
        let mut failures = Failures::default();
        assert!(failures.is_news("away", t));
        assert!(!failures.is_news("away", t + RETRY_MAX));
        assert!(failures.is_news("denied", t + RETRY_MAX));
        assert!(failures.is_news("denied", t + RETRY_MAX + TELL_AGAIN));
        assert_eq!(failures.count, 4);
    }
}
