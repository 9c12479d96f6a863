//! The connection to Redis beside the requests, and a new one when a reload changes where or how.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::task::JoinHandle;

use crate::config::Redis;
use crate::policy::rate_limit::{PROBE, SCRIPT, SharedRates};
use crate::proxy::Shared;
use crate::redis::{Client, Settings};

/// Keeps the client of the present configuration connected.
pub struct Fleet {
    shared: Arc<Shared>,
    /// What the client in use was made from.
    made_from: Mutex<Option<[u8; 32]>>,
}

impl Fleet {
    /// Makes the first client; it connects once the service runs.
    ///
    /// # Errors
    /// `redis.ca` can't be used.
    pub fn new(shared: Arc<Shared>) -> Result<Self, String> {
        let fleet = Self { shared, made_from: Mutex::new(None) };
        fleet.follow()?;
        Ok(fleet)
    }

    /// Makes a client if the configuration asks for another one. Whether it did.
    fn follow(&self) -> Result<bool, String> {
        let snapshot = self.shared.snapshot();
        let config = snapshot.config.redis.as_ref();
        let wanted = config.map(fingerprint);
        let mut made_from = self.made_from.lock();
        if *made_from == wanted {
            return Ok(false);
        }
        let rates = config.map(|config| rates(&self.shared, config)).transpose()?;
        self.shared.metrics.redis().set_up(false);
        self.shared.fleet_rates.store(rates.map(Arc::new));
        *made_from = wanted;
        Ok(true)
    }

    fn spawn(&self) -> Option<JoinHandle<()>> {
        let rates = self.shared.fleet_rates.load_full()?;
        Some(tokio::spawn(rates.client.clone().run()))
    }
}

/// A client, not connected yet.
///
/// # Errors
/// `redis.ca` can't be used.
pub(super) fn rates(shared: &Shared, config: &Redis) -> Result<SharedRates, String> {
    let settings = Settings {
        target: config.target.clone(),
        ca: config.ca.clone(),
        timeout: config.timeout,
        script: SCRIPT,
        probe_key: format!("{}probe", config.key_prefix),
        probe: PROBE,
    };
    let client = Client::new(settings, shared.clock.clone(), shared.metrics.redis())?;
    Ok(SharedRates::new(client, &config.key_prefix))
}

/// Tells configurations apart, with what their files hold.
fn fingerprint(config: &Redis) -> [u8; 32] {
    let Redis { target, ca, key_prefix, timeout } = config;
    let password = target.password.as_ref().map(|p| p.expose());
    // A file that can't be read is told of when the client is made.
    let ca = ca.as_ref().map(|name| (name, std::fs::read(name).unwrap_or_default()));
    openssl::sha::sha256(format!("{target:?} {password:?} {ca:?} {key_prefix} {timeout:?}").as_bytes())
}

#[async_trait]
impl BackgroundService for Fleet {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut swapped = self.shared.swapped();
        let mut running = self.spawn();
        loop {
            tokio::select! {
                // An error means that the sender is gone, which is an end too.
                _ = shutdown.wait_for(|stop| *stop) => return,
                changed = swapped.changed() => if changed.is_err() { return },
            }
            match self.follow() {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(running) = running.take() {
                        running.abort();
                    }
                    running = self.spawn();
                }
                Err(why) => log::error!("redis: {why}; the connection stays as it was"),
            }
        }
    }
}
