//! The fleet's orders: told through Redis, and followed there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::Instant;

use super::maintenance::{self, FLEET_FILE, file};
use super::{fleet, targets};
use crate::admin::Denied;
use crate::files;
use crate::observe::AccessLog;
use crate::policy::maintenance::{Known, ORDERS_MAX, Order, Scope, Target, to_json};
use crate::policy::rate_limit::SharedRates;
use crate::proxy::Shared;
use crate::proxy::maintenance::FleetOrders;
use crate::redis::Reply;
use crate::reload::Running;
use crate::snapshot::Snapshot;

/// The hash in Redis, after `redis.key_prefix`.
const KEY: &str = "maintenance";
/// How often the fleet's orders are asked for, and how often until they were had once.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
const FOLLOW_FIRST: Duration = Duration::from_millis(50);
/// How long no connection is accepted for want of them: Redis must not be what keeps a gateway down.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// Writes orders of the fleet's down in Redis, or takes them out. Each is a field of its own, so that gateways that are told
/// different things at once don't undo each other's.
pub(super) fn tell(
    shared: &Shared,
    snapshot: &Snapshot,
    targets: &[Target],
    order: Option<&Order>,
) -> Result<(), Denied> {
    let client = shared.fleet_rates.load_full().filter(|_| snapshot.config.maintenance.fleet);
    let Some(redis) = client else {
        let message = "The fleet is told only with maintenance.fleet and a Redis.".to_owned();
        return Err(Denied { status: 409, code: "no_fleet", message });
    };
    let (key, fields): (_, Vec<_>) = (redis.own_key(KEY), targets.iter().map(Target::key).collect());
    let value = order.map(|order| serde_json::to_string(order).unwrap_or_default());
    let mut words: Vec<&[u8]> = vec![if value.is_some() { b"HSET" } else { b"HDEL" }, key.as_bytes()];
    for field in &fields {
        words.push(field.as_bytes());
        words.extend(value.as_deref().map(str::as_bytes));
    }
    // The admin listener gives a change a thread that may wait.
    let asked = tokio::runtime::Handle::current().block_on(redis.client.ask(key.as_bytes(), &words));
    asked.map(|_| ()).map_err(|message| Denied { status: 503, code: "redis_unavailable", message })
}

/// The gateway as reloads change it: one that turns `maintenance.fleet` on comes into use with the orders that stand there,
/// as a gateway accepts nobody at its start before it knows them.
pub struct KnowsFleet(pub Arc<Shared>);

impl Running for KnowsFleet {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot()
    }

    fn swap(&self, snapshot: Arc<Snapshot>, log: Option<Arc<AccessLog>>) -> Vec<String> {
        let (shared, before) = (&self.0, self.0.snapshot());
        let (was, is) = (before.config.maintenance.fleet, snapshot.config.maintenance.fleet);
        // Held until the snapshot is in use, or the follower would take the orders back. A reload has a thread that may wait.
        let _turn = (was != is).then(|| shared.maintenance.fleet.blocking_lock());
        let mut warnings = if is && !was { self.learn(&snapshot) } else { Vec::new() };
        warnings.extend(shared.swap(snapshot.clone(), log));
        maintenance::locate(shared, &snapshot);
        if was && !is {
            shared.change_orders(|all| all.fleet.clear());
            shared.change_unreadable(|all| all.fleet.clear());
        }
        warnings.extend(targets::idle(&snapshot, &before, &shared.maintenance.orders()));
        warnings
    }

    fn reopen_log(&self) {
        self.0.reopen_log();
    }
}

impl KnowsFleet {
    /// Waits for the fleet's orders, for [`FIRST_WAIT`] at most, and takes them into force. What was not to be read.
    fn learn(&self, snapshot: &Snapshot) -> Vec<String> {
        let shared = &self.0;
        let asked = match (tokio::runtime::Handle::try_current(), &snapshot.config.redis) {
            (Ok(runtime), Some(redis)) => fleet::rates(shared, redis).and_then(|rates| runtime.block_on(first(rates))),
            _ => Err("there is nobody to ask".to_owned()),
        };
        let unreadable = match asked {
            Ok(mut read) => {
                targets::locate(snapshot, &mut read.orders, &Scope::new());
                shared.change_orders(|all| all.fleet = read.orders);
                read.unreadable
            }
            Err(why) => vec![format!("the fleet's orders can't be read: {why}; this gateway joins it without any")],
        };
        shared.change_unreadable(|all| all.fleet.clone_from(&unreadable));
        unreadable
    }
}

/// The fleet's orders by a connection of its own: that of the next configuration is made when that is in use.
async fn first(rates: SharedRates) -> Result<Known, String> {
    let connected = tokio::spawn(rates.client.clone().run());
    let until = Instant::now() + FIRST_WAIT;
    let orders = loop {
        match read(&rates, &Scope::new()).await {
            Err(_) if Instant::now() < until => tokio::time::sleep(FOLLOW_FIRST).await,
            orders => break orders,
        }
    };
    connected.abort();
    orders
}

/// Follows the fleet's orders. What is not known for a while stays as it was known last.
pub struct FleetFollower {
    shared: Arc<Shared>,
}

impl FleetFollower {
    /// For the gateway that serves.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Says which orders can't be read, once for each change.
    fn tell_unreadable(&self, now: Vec<String>) {
        let told = self.shared.change_unreadable(|all| std::mem::replace(&mut all.fleet, now.clone()));
        now.iter().filter(|why| !told.contains(why)).for_each(|why| log::warn!("{why}"));
    }

    /// Whether there is a fleet to follow.
    fn follows(&self) -> bool {
        self.shared.snapshot().config.maintenance.fleet
    }

    async fn look(&self) -> Result<(), String> {
        let shared = &self.shared;
        let _turn = shared.maintenance.fleet.lock().await;
        // Not before it is this one's turn: a reload may have joined the fleet meanwhile.
        let fleet = self.follows();
        let known = shared.maintenance.orders();
        let orders = match shared.fleet_rates.load_full().filter(|_| fleet) {
            Some(redis) => {
                let mut read = read(&redis, &known.fleet).await?;
                // Each for itself: what stands in Redis may be of a version that writes no addresses.
                targets::locate(&shared.snapshot(), &mut read.orders, &known.fleet);
                self.tell_unreadable(read.unreadable);
                if read.orders.is_empty() && known.fleet.len() > 1 {
                    let (ended, key) = (known.fleet.len(), redis.own_key(KEY));
                    log::warn!("all {ended} orders of the fleet's end at once: Redis has no {key} any more");
                }
                read.orders
            }
            None if fleet => return Err("there is no Redis yet".to_owned()),
            None => {
                self.tell_unreadable(Vec::new());
                Scope::new()
            }
        };
        shared.change_orders(|all| all.fleet = orders);
        shared.maintenance.fleet_orders.send_replace(FleetOrders::Known);
        Ok(())
    }

    /// Keeps the orders for a start without Redis, if they are others than those `saved`.
    async fn save(&self, saved: &mut Scope) {
        let orders = self.shared.maintenance.orders();
        let Some(path) = file(&self.shared.snapshot(), FLEET_FILE).filter(|_| orders.fleet != *saved) else { return };
        saved.clone_from(&orders.fleet);
        let all = saved.iter().map(|(target, order)| (target.clone(), Order { kept: true, ..order.clone() })).collect();
        let written = tokio::task::spawn_blocking(move || {
            files::replace(&path, to_json(&all).as_bytes()).map_err(|e| format!("{}: {e}", path.display()))
        });
        if let Ok(Err(why)) = written.await {
            log::error!("the fleet's orders can't be kept: {why}");
        }
    }

    fn is_without(&self, why: &str) {
        let awaited = self.shared.maintenance.awaits_fleet();
        let comes = match (awaited, self.shared.maintenance.orders().fleet.len()) {
            (true, known) => format!("this gateway begins with {known} that it knew last"),
            (false, 0) => "none is known".to_owned(),
            (false, _) => "those known last stay in force".to_owned(),
        };
        self.tell_unreadable(vec![format!("the fleet's orders can't be read: {why}; {comes}")]);
        if awaited {
            self.shared.maintenance.fleet_orders.send_replace(FleetOrders::Unknown);
        }
    }
}

/// The fleet's orders as Redis has them. One that is not understood keeps no other back. It stays what it was among those
/// `known`: to leave it out would end it.
async fn read(redis: &SharedRates, known: &Scope) -> Result<Known, String> {
    let key = redis.own_key(KEY);
    let reply = redis.client.ask(key.as_bytes(), &[b"HGETALL", key.as_bytes()]).await?;
    let mut read = Known::default();
    for pair in reply.array().chunks_exact(2).take(ORDERS_MAX) {
        let [Reply::Bulk(Some(field)), Reply::Bulk(Some(value))] = pair else {
            return Err(format!("{key} is not understood"));
        };
        let Some(target) = std::str::from_utf8(field).ok().and_then(Target::parse) else {
            let field = String::from_utf8_lossy(field);
            read.unreadable
                .push(format!("an order of the fleet's is nothing that this version knows, {key}, field {field:?}"));
            continue;
        };
        let order = serde_json::from_slice(value).map(Some).unwrap_or_else(|e| {
            let known = known.get(&target);
            let comes = if known.is_some() { "it stays in force as it was known" } else { "it is not in force here" };
            read.unreadable
                .push(format!("an order of the fleet's can't be read, {key}, field {}: {e}; {comes}", target.key()));
            known.cloned()
        });
        read.orders.extend(order.map(|order| (target, order)));
    }
    Ok(read)
}

#[async_trait]
impl BackgroundService for FleetFollower {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let (first_until, mut silent) = (Instant::now() + FIRST_WAIT, false);
        let mut saved = self.shared.maintenance.orders().fleet.clone();
        loop {
            maintenance::look_aside(&self.shared);
            match self.look().await {
                Ok(()) => {
                    if std::mem::take(&mut silent) && self.follows() {
                        log::info!("the fleet's orders are known again");
                    }
                    self.save(&mut saved).await;
                }
                // A reload has taken it out of the fleet in this moment.
                Err(_) if !self.follows() => {}
                Err(_) if silent || (self.shared.maintenance.awaits_fleet() && Instant::now() < first_until) => {}
                Err(why) => {
                    self.is_without(&why);
                    silent = true;
                }
            }
            let wait = if self.shared.maintenance.awaits_fleet() { FOLLOW_FIRST } else { FOLLOW_EVERY };
            tokio::select! {
                // An error means that the sender is gone, which is an end too.
                _ = shutdown.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
