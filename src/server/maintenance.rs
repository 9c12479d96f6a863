//! Carries out what the admin API says of nodes, routes and the gateway, and keeps what is to be kept.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{fleet_orders, targets};
use crate::admin::{Command, Denied};
use crate::files;
use crate::policy::maintenance::{Order, Orders, Scope, Target, from_json, to_json};
use crate::proxy::Shared;
use crate::proxy::maintenance::FleetOrders;
use crate::snapshot::Snapshot;

/// In `server.state_dir`.
const FILE: &str = "maintenance.json";
/// There too: the fleet's as they were known last, for a start without Redis.
pub(super) const FLEET_FILE: &str = "maintenance-fleet.json";
/// Longest file that is read back.
const FILE_MAX: u64 = 4 << 20;

pub(super) fn file(snapshot: &Snapshot, name: &str) -> Option<PathBuf> {
    snapshot.config.server.state_dir.as_ref().map(|dir| dir.join(name))
}

/// Takes the orders into force that were kept before the last end of the process.
pub fn restore(shared: &Shared) {
    let snapshot = shared.snapshot();
    if let Some(mut kept) = file(&snapshot, FILE).and_then(|path| kept_own(shared, &path)) {
        targets::locate(&snapshot, &mut kept);
        shared.change_orders(|orders| orders.own = kept);
        targets::idle(&snapshot, &snapshot, &shared.maintenance.orders()).iter().for_each(|why| log::warn!("{why}"));
    }
    if !snapshot.config.maintenance.fleet {
        shared.maintenance.fleet_orders.send_replace(FleetOrders::Known);
    } else if let Some(path) = file(&snapshot, FLEET_FILE) {
        match kept(&path) {
            Ok(Some(kept)) => shared.change_orders(|orders| orders.fleet = kept),
            Ok(None) => {}
            // Redis has them.
            Err(why) => log::error!("{}: {why}; of the fleet's orders none is known without Redis", path.display()),
        }
    }
}

/// None: none were kept.
fn kept(path: &Path) -> Result<Option<Scope>, String> {
    let mut text = Vec::new();
    match files::open_regular(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text)) {
        Ok(_) => from_json(&text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// A file that can't be read is put aside, and told of until somebody has looked at it: a gateway that does not start, or
/// refuses all, for the sake of one route or node would do more harm, and the next order must not overwrite what it holds.
fn kept_own(shared: &Shared, path: &Path) -> Option<Scope> {
    let kept = kept(path);
    let aside = aside(path);
    let mut unreadable = Vec::new();
    if let Err(why) = &kept {
        log::error!("{}: {why}; what was drained or in maintenance is not any more", path.display());
        if let Err(e) = std::fs::rename(path, &aside) {
            unreadable.push(format!("{}: {why}; it can't be put aside: {e}", path.display()));
        }
    }
    if aside.exists() {
        let after = "what it took out of service may serve; give its orders again, then delete it";
        unreadable.push(format!("{} holds orders that could not be read: {after}", aside.display()));
    }
    unreadable.iter().for_each(|why| log::warn!("{why}"));
    shared.change_unreadable(|all| all.own = unreadable);
    kept.ok().flatten()
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("json.damaged")
}

/// Whether the file that could not be read is gone, and with it what there is to say.
pub(super) fn look_aside(shared: &Shared) {
    if shared.maintenance.unreadable().own.is_empty() {
        return;
    }
    let path = file(&shared.snapshot(), FILE);
    if !path.is_some_and(|path| aside(&path).exists() || kept(&path).is_err()) {
        log::info!("the orders that could not be read are gone");
        shared.change_unreadable(|all| all.own.clear());
    }
}

/// Begins or ends an order, and says what is out of service then.
///
/// # Errors
/// It was not done, and why.
pub fn carry_out(shared: &Shared, command: &Command) -> Result<Value, Denied> {
    let snapshot = shared.snapshot();
    let Command { retry_after, persist: kept, fleet, .. } = *command;
    let (since, addresses) = (shared.clock.unix_seconds(), targets::addresses(&snapshot, &command.target));
    let order = (!command.ends).then_some(Order { since, retry_after, addresses, kept });
    let targets = |before: &Scope| match command.ends {
        true => targets::named_alike(&snapshot, before, &command.target),
        false => targets::check(&snapshot, &command.target).map(|()| vec![command.target.clone()]),
    };
    let mut ended = Orders::default();
    if fleet {
        let _turn = shared.maintenance.fleet.blocking_lock();
        let before = shared.maintenance.orders();
        let targets = targets(&before.fleet)?;
        fleet_orders::tell(shared, &snapshot, &targets, order.as_ref())?;
        shared.change_orders(|orders| put(&mut orders.fleet, &targets, order.as_ref()));
        ended.fleet = among(&before.fleet, &targets);
    } else {
        let before = shared.maintenance.orders();
        let targets = targets(&before.own)?;
        change_own(shared, &snapshot, &targets, order.as_ref())?;
        ended.own = among(&before.own, &targets);
    }
    let mut answer = json!({ "orders": targets::shown(&snapshot, &shared.maintenance.orders()) });
    if command.ends {
        answer["ended"] = json!(targets::shown(&snapshot, &ended));
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
