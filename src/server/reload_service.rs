//! What goes on beside the requests: reloads, and the health checks that follow them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::proxy::Shared;
use crate::reload::{Reloader, Trigger};
use crate::snapshot::UpstreamSnapshot;
use crate::upstream;

/// After a look that came to nothing, wait this long before the next.
const AFTER_PANIC: Duration = Duration::from_secs(10);

/// Reloads on SIGHUP and when files change; opens the access log anew on SIGUSR1, for log rotation.
pub struct Reloads {
    /// Does the reloads.
    pub reloader: Arc<Reloader>,
    /// Has the log.
    pub shared: Arc<Shared>,
}

#[async_trait]
impl BackgroundService for Reloads {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = listen(SignalKind::hangup(), "SIGHUP");
        let mut rotated = listen(SignalKind::user_defined1(), "SIGUSR1");
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = ended(&mut shutdown) => return,
                () = received(&mut hangup) => {
                    let reloader = self.reloader.clone();
                    let _ = tokio::task::spawn_blocking(move || reloader.reload(Trigger::Signal)).await;
                    wait = Duration::ZERO;
                }
                () = received(&mut rotated) => self.shared.log().reopen(),
                () = tokio::time::sleep(wait) => {
                    let reloader = self.reloader.clone();
                    wait = tokio::task::spawn_blocking(move || reloader.look()).await.unwrap_or(AFTER_PANIC);
                }
            }
        }
    }
}

fn listen(kind: SignalKind, name: &str) -> Option<Signal> {
    signal(kind).inspect_err(|e| log::error!("cannot listen for {name}: {e}")).ok()
}

async fn ended(shutdown: &mut ShutdownWatch) {
    // An error means that the sender is gone, which is an end too.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Probes the nodes of all upstreams; after a reload those of the new ones, while unchanged upstreams go on.
pub struct HealthChecks(pub Arc<Shared>);

/// An upstream that is being probed, until the sender is dropped.
type Probed = (Arc<UpstreamSnapshot>, watch::Sender<bool>);

#[async_trait]
impl BackgroundService for HealthChecks {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut swapped = self.0.swapped();
        let mut probed: Vec<Probed> = Vec::new();
        loop {
            let _ = swapped.borrow_and_update();
            probed = self.follow(probed);
            tokio::select! {
                () = ended(&mut shutdown) => return,
                changed = swapped.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl HealthChecks {
    fn follow(&self, mut before: Vec<Probed>) -> Vec<Probed> {
        let snapshot = self.0.snapshot();
        let each = snapshot.upstreams.iter().map(|u| {
            if let Some(at) = before.iter().position(|(probed, _)| Arc::ptr_eq(probed, u)) {
                return before.swap_remove(at);
            }
            let (stop, stopped) = watch::channel(false);
            tokio::spawn(upstream::look_after(u.upstream.clone(), self.0.clock.clone(), stopped));
            (u.clone(), stop)
        });
        let probed: Vec<_> = each.collect();
        for (gone, _) in before {
            let next = snapshot.upstreams.iter().find(|u| u.upstream.name() == gone.upstream.name());
            gone.upstream.succeeded_by(next.map(|next| &*next.upstream));
        }
        probed
    }
}
