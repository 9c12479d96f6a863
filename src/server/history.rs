//! Looks at the counters every two seconds, so that the status page has a past to show.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::{MissedTickBehavior, interval};

use crate::observe::history::STEP;
use crate::proxy::Shared;

/// On a thread of its own: with ten thousand peers a look takes some milliseconds.
pub struct Looks(pub Arc<Shared>);

#[async_trait]
impl BackgroundService for Looks {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let shared = &self.0;
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // An error means that the sender is gone, which is an end too.
                _ = shutdown.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => {}
            }
            let totals = shared.metrics.totals();
            shared.history.lock().look(totals, shared.clock.now(), shared.clock.wall());
        }
    }
}
