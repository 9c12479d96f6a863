//! What is out of service, as requests and nodes find it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config;
use crate::observe::Metrics;
use crate::policy::maintenance::{Orders, Target};
use crate::refusal::Refusal;
use crate::snapshot::{Route, Snapshot};
use crate::upstream::Drained;

/// What is known of the fleet's orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FleetOrders {
    /// Nothing yet since the start: no connection is accepted, for its request might be one that is to be stopped.
    #[default]
    Awaited,
    /// Nothing, and they are not waited for any more.
    Unknown,
    /// They were read, or there is no fleet.
    Known,
}

/// What can't be read of the orders, a sentence each: more may be meant to be out of service than is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Of this gateway's own.
    pub own: Vec<String>,
    /// Of the fleet's.
    pub fleet: Vec<String>,
}

/// The orders in force.
#[derive(Default)]
pub struct Maintenance {
    orders: ArcSwap<Orders>,
    pub(super) unreadable: Mutex<Unreadable>,
    /// Whether some route is out of service. While none is, this is all that a request looks at.
    stops: AtomicBool,
    /// Held while orders or the snapshot change, so that neither misses the other.
    pub(super) changing: Mutex<()>,
    /// Held while an order of this gateway's own is carried out. True: another process has been told of all that there are,
    /// and would not know of a later one.
    pub handed_over: Mutex<bool>,
    /// What is known of the fleet's.
    pub fleet_orders: watch::Sender<FleetOrders>,
    /// Held from a word with Redis until it is in force here: what was read before a change must not undo it.
    pub fleet: tokio::sync::Mutex<()>,
}

impl Maintenance {
    /// The orders of the moment.
    pub fn orders(&self) -> Arc<Orders> {
        self.orders.load_full()
    }

    /// What can't be read of them.
    pub fn unreadable(&self) -> Unreadable {
        self.unreadable.lock().clone()
    }

    /// Whether the fleet's orders are still to be read for the first time.
    pub fn awaits_fleet(&self) -> bool {
        *self.fleet_orders.borrow() == FleetOrders::Awaited
    }

    /// Refuses a request whose route is out of service.
    pub(super) fn check(&self, route: &Route, config: &config::Maintenance) -> Result<(), Refusal> {
        if !self.stops.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.orders.load().of_route(route.name.as_str()) {
            None => Ok(()),
            Some(order) => Err(Refusal::Maintenance {
                notice: config.notice.clone(),
                retry_after_seconds: order.retry_after.unwrap_or(config.retry_after),
            }),
        }
    }

    /// Takes other orders into force; [`Self::apply`] has to follow.
    pub(super) fn set(&self, orders: Orders) {
        let before = self.orders();
        for (target, _, fleet) in orders.all() {
            let known = if fleet { before.fleet.get(target) } else { before.own.get(target) };
            if known.is_none() {
                tell(target, fleet, "begins");
            }
        }
        for (target, _, fleet) in before.all() {
            let stays = if fleet { orders.fleet.get(target) } else { orders.own.get(target) };
            if stays.is_none() {
                tell(target, fleet, "ends");
            }
        }
        self.stops.store(orders.stop_requests(), Ordering::Relaxed);
        self.orders.store(Arc::new(orders));
    }

    /// Lets a snapshot's nodes and metrics follow the orders.
    pub(super) fn apply(&self, snapshot: &Snapshot, metrics: &Metrics, now: Instant) {
        let orders = self.orders.load();
        for built in &snapshot.upstreams {
            let drained = orders.drained(built.upstream.name().as_str());
            let drained = drained.map(|(name, at)| Drained { name: name.into(), addresses: at.into() });
            built.upstream.drain_only(drained.collect(), now);
        }
        let routes = snapshot.config.routes.iter().map(|r| r.name.as_str());
        metrics.set_maintenance(&routes.map(|name| (name, orders.of_route(name).is_some())).collect::<Vec<_>>());
    }
}

fn tell(target: &Target, fleet: bool, what: &str) {
    let whose = if fleet { "an order of the fleet's" } else { "an order of this gateway's" };
    // Of a node its upstream tells too, if it has it.
    let matter = if matches!(target, Target::Node { .. }) { "drain" } else { "maintenance" };
    log::warn!("{target}: {matter} {what} ({whose})");
}
