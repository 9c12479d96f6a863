//! Carries out what the admin API says of nodes, routes and the gateway; keeps what is to be kept; follows the fleet.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use serde_json::{Value, json};
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::fleet;
use crate::admin::status::OrderStatus;
use crate::admin::{Command, Denied};
use crate::files;
use crate::observe::AccessLog;
use crate::policy::maintenance::{ORDERS_MAX, Order, Orders, Scope, Target, from_json, to_json};
use crate::policy::rate_limit::SharedRates;
use crate::proxy::Shared;
use crate::proxy::maintenance::FleetOrders;
use crate::redis::Reply;
use crate::reload::Running;
use crate::snapshot::Snapshot;

/// In `server.state_dir`.
const FILE: &str = "maintenance.json";
/// There too: the fleet's as they were known last, for a start without Redis.
const FLEET_FILE: &str = "maintenance-fleet.json";
/// Longest file that is read back.
const FILE_MAX: u64 = 4 << 20;
/// The hash in Redis, after `redis.key_prefix`.
const KEY: &str = "maintenance";
/// How often the fleet's orders are asked for, and how often until they were had once.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
const FOLLOW_FIRST: Duration = Duration::from_millis(50);
/// How long no connection is accepted for want of them: Redis must not be what keeps a gateway down.
const FIRST_WAIT: Duration = Duration::from_secs(5);

fn file(snapshot: &Snapshot, name: &str) -> Option<PathBuf> {
    snapshot.config.server.state_dir.as_ref().map(|dir| dir.join(name))
}

/// Takes the orders into force that were kept before the last end of the process.
pub fn restore(shared: &Shared) {
    let snapshot = shared.snapshot();
    if let Some(kept) = file(&snapshot, FILE).and_then(|path| kept(&path)) {
        shared.change_orders(|orders| orders.own = kept);
    }
    if !snapshot.config.maintenance.fleet {
        shared.maintenance.fleet_orders.send_replace(FleetOrders::Known);
    } else if let Some(kept) = file(&snapshot, FLEET_FILE).and_then(|path| kept(&path)) {
        shared.change_orders(|orders| orders.fleet = kept);
    }
}

fn kept(path: &Path) -> Option<Scope> {
    let mut text = Vec::new();
    let read = files::open_regular(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text));
    match read.map_err(|e| (e.kind() == io::ErrorKind::NotFound, e.to_string())) {
        Ok(_) => match from_json(&text) {
            Ok(kept) => return Some(kept),
            Err(why) => log::error!("{}: {why}; what was drained or in maintenance is not any more", path.display()),
        },
        Err((true, _)) => {}
        Err((false, why)) => log::error!("{}: {why}; what was drained or in maintenance is not", path.display()),
    }
    None
}

/// Begins or ends an order, and says what is out of service then.
///
/// # Errors
/// It was not done, and why.
pub fn carry_out(shared: &Shared, command: &Command) -> Result<Value, Denied> {
    let snapshot = shared.snapshot();
    let Command { retry_after, persist: kept, fleet, .. } = *command;
    let order = (!command.ends).then(|| Order { since: shared.clock.unix_seconds(), retry_after, kept });
    let targets = |before: &Scope| match command.ends {
        true => named_alike(&snapshot, before, &command.target),
        false => check_target(&snapshot, &command.target).map(|()| vec![command.target.clone()]),
    };
    let mut ended = Orders::default();
    if fleet {
        let _turn = shared.maintenance.fleet.blocking_lock();
        let before = shared.maintenance.orders();
        let targets = targets(&before.fleet)?;
        tell_fleet(shared, &snapshot, &targets, order.as_ref())?;
        shared.change_orders(|orders| put(&mut orders.fleet, &targets, order.as_ref()));
        ended.fleet = among(&before.fleet, &targets);
    } else {
        let before = shared.maintenance.orders();
        let targets = targets(&before.own)?;
        change_own(shared, &snapshot, &targets, order.as_ref())?;
        ended.own = among(&before.own, &targets);
    }
    let mut answer = json!({ "orders": OrderStatus::of(&shared.maintenance.orders()) });
    if command.ends {
        answer["ended"] = json!(OrderStatus::of(&ended));
    }
    Ok(answer)
}

/// The orders of these targets.
fn among(scope: &Scope, targets: &[Target]) -> Scope {
    targets.iter().filter_map(|target| Some((target.clone(), scope.get(target)?.clone()))).collect()
}

/// An order that is given again is as old as it was.
fn put(scope: &mut Scope, targets: &[Target], order: Option<&Order>) {
    for target in targets {
        match order {
            None => _ = scope.remove(target),
            Some(order) => {
                let since = scope.get(target).map_or(order.since, |before| before.since);
                scope.insert(target.clone(), Order { since, ..order.clone() });
            }
        }
    }
}

/// What ends with an order for this target: also one in which its node has the other of its names. Nothing is unknown that
/// an order names, though a reload may have taken it away.
fn named_alike(snapshot: &Snapshot, before: &Scope, target: &Target) -> Result<Vec<Target>, Denied> {
    if !before.contains_key(target) {
        check_target(snapshot, target)?;
    }
    let others = before.keys().filter(|other| *other != target && is_same_node(snapshot, other, target));
    Ok(std::iter::once(target).chain(others).cloned().collect())
}

fn is_same_node(snapshot: &Snapshot, one: &Target, other: &Target) -> bool {
    match (one, other) {
        (Target::Node { upstream, node }, Target::Node { upstream: of, node: name }) if upstream == of => {
            let built = snapshot.upstreams.iter().find(|u| u.upstream.name().as_str() == upstream);
            built.is_some_and(|u| u.upstream.nodes().iter().any(|n| n.is_named(node) && n.is_named(name)))
        }
        _ => false,
    }
}

fn check_target(snapshot: &Snapshot, target: &Target) -> Result<(), Denied> {
    let unknown = |code, message| Err(Denied { status: 404, code, message });
    match target {
        Target::Gateway => Ok(()),
        Target::Route(name) if snapshot.config.routes.iter().any(|r| r.name.as_str() == name) => Ok(()),
        Target::Route(name) => unknown("unknown_route", format!("No route is named {name:?}.")),
        Target::Node { upstream, node } => {
            let Some(built) = snapshot.upstreams.iter().find(|u| u.upstream.name().as_str() == upstream) else {
                return unknown("unknown_upstream", format!("No upstream is named {upstream:?}."));
            };
            match built.upstream.nodes().iter().any(|n| n.is_named(node)) {
                true => Ok(()),
                false => unknown("unknown_node", format!("Upstream {upstream} has no node {node:?}.")),
            }
        }
    }
}

fn change_own(shared: &Shared, snapshot: &Snapshot, targets: &[Target], order: Option<&Order>) -> Result<(), Denied> {
    let handed_over = shared.maintenance.handed_over.lock();
    if *handed_over {
        let message = "Another process takes over. Ask again, it answers soon.".to_owned();
        return Err(Denied { status: 503, code: "upgrading", message });
    }
    let (path, before) = (file(snapshot, FILE), shared.maintenance.orders());
    let keeps = order.is_some_and(|order| order.kept);
    if keeps && path.is_none() {
        let message = "Nothing can be kept without server.state_dir.".to_owned();
        return Err(Denied { status: 409, code: "no_state_dir", message });
    }
    let ends = order.is_none();
    let mut own = before.own.clone();
    put(&mut own, targets, order);
    if let Some(path) = path.filter(|_| to_json(&own) != to_json(&before.own))
        && let Err(e) = files::replace(&path, to_json(&own).as_bytes())
    {
        let message = format!("{}: {e}", path.display());
        log::error!("{message}");
        // What is to end must end, also on a full disk.
        if !ends {
            return Err(Denied { status: 500, code: "not_kept", message });
        }
    }
    shared.change_orders(|orders| put(&mut orders.own, targets, order));
    Ok(())
}

/// Writes orders of the fleet's down in Redis, or takes them out. Each is a field of its own, so that gateways that are told
/// different things at once don't undo each other's.
fn tell_fleet(shared: &Shared, snapshot: &Snapshot, targets: &[Target], order: Option<&Order>) -> Result<(), Denied> {
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

    fn swap(&self, snapshot: Arc<Snapshot>, log: Option<Arc<AccessLog>>) {
        let joins = snapshot.config.maintenance.fleet && !self.0.snapshot().config.maintenance.fleet;
        // Held until the snapshot is in use, or the follower would take the orders back.
        let _turn = joins.then(|| self.learn(&snapshot));
        self.0.swap(snapshot, log);
    }

    fn reopen_log(&self) {
        self.0.reopen_log();
    }
}

impl KnowsFleet {
    /// Waits for the fleet's orders, for [`FIRST_WAIT`] at most, and takes them into force. A reload has a thread that may
    /// wait.
    fn learn(&self, snapshot: &Snapshot) -> MutexGuard<'_, ()> {
        let shared = &self.0;
        let turn = shared.maintenance.fleet.blocking_lock();
        let asked = match (tokio::runtime::Handle::try_current(), &snapshot.config.redis) {
            (Ok(runtime), Some(redis)) => fleet::rates(shared, redis).and_then(|rates| runtime.block_on(first(rates))),
            _ => Err("there is nobody to ask".to_owned()),
        };
        match asked {
            Ok(read) => {
                read.unreadable.iter().for_each(|why| log::warn!("an order of the fleet's can't be read: {why}"));
                shared.change_orders(|all| all.fleet = read.orders);
            }
            Err(why) => log::warn!("the fleet's orders can't be read: {why}; this gateway joins it without any"),
        }
        turn
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
    /// The orders that can't be read, as they were told last.
    unreadable: Mutex<Vec<String>>,
}

impl FleetFollower {
    /// For the gateway that serves.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, unreadable: Mutex::default() }
    }

    /// Says which orders can't be read, once for each change.
    fn tell_unreadable(&self, now: Vec<String>) {
        let mut told = self.unreadable.lock();
        for why in now.iter().filter(|why| !told.contains(why)) {
            log::warn!("an order of the fleet's can't be read, what is known of it stays in force: {why}");
        }
        *told = now;
    }

    async fn look(&self) -> Result<(), String> {
        let shared = &self.shared;
        let _turn = shared.maintenance.fleet.lock().await;
        // Not before it is this one's turn: a reload may have joined the fleet meanwhile.
        let fleet = shared.snapshot().config.maintenance.fleet;
        let known = shared.maintenance.orders();
        let orders = match shared.fleet_rates.load_full().filter(|_| fleet) {
            Some(redis) => {
                let read = read(&redis, &known.fleet).await?;
                self.tell_unreadable(read.unreadable);
                if read.orders.is_empty() && known.fleet.len() > 1 {
                    let (ended, key) = (known.fleet.len(), redis.own_key(KEY));
                    log::warn!("all {ended} orders of the fleet's end at once: Redis has no {key} any more");
                }
                read.orders
            }
            None if fleet => return Err("there is no Redis yet".to_owned()),
            None => Scope::new(),
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
        if !self.shared.maintenance.awaits_fleet() {
            return log::warn!("the fleet's orders can't be read: {why}; those known last stay in force");
        }
        let known = self.shared.maintenance.orders().fleet.len();
        log::warn!("the fleet's orders can't be read: {why}; this gateway begins with {known} that it knew last");
        self.shared.maintenance.fleet_orders.send_replace(FleetOrders::Unknown);
    }
}

/// The fleet's orders as Redis has them.
#[derive(Default)]
struct Known {
    orders: Scope,
    /// Which ones are not understood, and why.
    unreadable: Vec<String>,
}

/// One that is not understood keeps no other back. It stays what it was among those `known`: to leave it out would end it.
async fn read(redis: &SharedRates, known: &Scope) -> Result<Known, String> {
    let key = redis.own_key(KEY);
    let reply = redis.client.ask(key.as_bytes(), &[b"HGETALL", key.as_bytes()]).await?;
    let mut read = Known::default();
    for pair in reply.array().chunks_exact(2).take(ORDERS_MAX) {
        let [Reply::Bulk(Some(field)), Reply::Bulk(Some(value))] = pair else {
            return Err(format!("{key} is not understood"));
        };
        // One that a later version has set does not concern this one.
        let Some(target) = std::str::from_utf8(field).ok().and_then(Target::parse) else { continue };
        let order = serde_json::from_slice(value).map(Some).unwrap_or_else(|e| {
            read.unreadable.push(format!("{key}, field {}: {e}", target.key()));
            known.get(&target).cloned()
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
            match self.look().await {
                Ok(()) => {
                    if std::mem::take(&mut silent) {
                        log::info!("the fleet's orders are known again");
                    }
                    self.save(&mut saved).await;
                }
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
