//! Carries out what the admin API says of nodes, routes and the gateway, and keeps what is to be kept.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{fleet_orders, targets};
use crate::admin::{Command, Denied};
use crate::files;
use crate::policy::maintenance::{Known, Order, Orders, Scope, Target, from_json, to_json};
use crate::proxy::Shared;
use crate::proxy::maintenance::FleetOrders;
use crate::snapshot::Snapshot;

/// In `server.state_dir`.
const FILE: &str = "maintenance.json";
/// There too: the fleet's as they were known last, for a start without Redis.
pub(super) const FLEET_FILE: &str = "maintenance-fleet.json";
/// Longest file that is read back.
const FILE_MAX: u64 = 4 << 20;
/// Of the orders in one file that can't be read, so many are told one by one.
const SHOWN_MAX: usize = 3;

pub(super) fn file(snapshot: &Snapshot, name: &str) -> Option<PathBuf> {
    snapshot.config.server.state_dir.as_ref().map(|dir| dir.join(name))
}

/// Takes the orders into force that were kept before the last end of the process. While this one `takes_over`, the file is
/// still the other one's.
pub fn restore(shared: &Shared, takes_over: bool) {
    let snapshot = shared.snapshot();
    if let Some(path) = file(&snapshot, FILE) {
        // What can't be read is told when it is put aside.
        let kept = kept(&path).unwrap_or_default().orders;
        shared.change_orders(|orders| orders.own = kept);
        if !takes_over {
            settle(shared);
        }
        targets::idle(&snapshot, &snapshot, &shared.maintenance.orders()).iter().for_each(|why| log::warn!("{why}"));
    }
    if !snapshot.config.maintenance.fleet {
        shared.maintenance.fleet_orders.send_replace(FleetOrders::Known);
    } else if let Some(path) = file(&snapshot, FLEET_FILE) {
        match kept(&path) {
            Ok(Known { orders: mut known, unreadable }) => {
                unreadable.iter().for_each(|why| log::error!("{}: not in force without Redis: {why}", path.display()));
                targets::locate(&snapshot, &mut known, &Scope::new());
                shared.change_orders(|orders| orders.fleet = known);
            }
            // Redis has them.
            Err(why) => log::error!("{}: {why}; of the fleet's orders none is known without Redis", path.display()),
        }
    }
}

/// Without a file none were kept.
fn kept(path: &Path) -> Result<Known, String> {
    let mut text = Vec::new();
    match files::open_regular(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text)) {
        Ok(_) => from_json(&text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
        Err(e) => Err(e.to_string()),
    }
}

/// To be called once the file is this process's: makes it say what is in force. What can't be read of it is put aside, and
/// told of until somebody has looked at it: a gateway that does not start, or refuses all, for the sake of one route or node
/// would do more harm, and the next order must not overwrite what the file holds.
pub(super) fn settle(shared: &Shared) {
    let snapshot = shared.snapshot();
    let _turn = shared.maintenance.handed_over.lock();
    shared.change_orders(|all| targets::locate(&snapshot, &mut all.own, &Scope::new()));
    let Some(path) = file(&snapshot, FILE) else { return };
    write_down(&path, &shared.maintenance.orders().own);
    let unreadable = unreadable(&path);
    unreadable.iter().for_each(|why| log::warn!("{why}"));
    shared.change_unreadable(|all| all.own = unreadable);
}

/// Learns where a new snapshot has the nodes, and writes it down: the next start must find them as well.
pub(super) fn locate(shared: &Shared, snapshot: &Snapshot) {
    let handed_over = shared.maintenance.handed_over.lock();
    let before = to_json(&shared.maintenance.orders().own);
    shared.change_orders(|all| {
        targets::locate(snapshot, &mut all.own, &Scope::new());
        targets::locate(snapshot, &mut all.fleet, &Scope::new());
    });
    let own = &shared.maintenance.orders().own;
    if let Some(path) = file(snapshot, FILE).filter(|_| !*handed_over && to_json(own) != before) {
        write_down(&path, own);
    }
}

/// Writes the orders down that are to be kept, if the file says something else.
fn write_down(path: &Path, own: &Scope) {
    let new = to_json(own);
    let written = put_aside(path).and_then(|()| match std::fs::read(path) {
        Ok(before) if before == new.as_bytes() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !own.values().any(|order| order.kept) => Ok(()),
        _ => files::replace(path, new.as_bytes()),
    });
    if let Err(e) = written {
        log::error!("{}: what is out of service can't be written down: {e}", path.display());
    }
}

/// What can be read stays as well, until it is written anew.
fn put_aside(path: &Path) -> io::Result<()> {
    let shown = path.display();
    match kept(path) {
        Ok(Known { unreadable, .. }) if unreadable.is_empty() => Ok(()),
        Ok(Known { unreadable, .. }) => {
            log::error!("{shown}: {}; the other orders are in force", few(&unreadable));
            std::fs::read(path).and_then(|text| files::replace(&free_aside(path), &text))
        }
        Err(why) => {
            log::error!("{shown}: {why}; what was drained or in maintenance is not any more");
            std::fs::rename(path, free_aside(path))
        }
    }
}

/// What there is to say of orders that could not be read, or can't even be put aside.
fn unreadable(path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for aside in asides(path) {
        let why = match kept(&aside) {
            Ok(Known { unreadable, .. }) if unreadable.is_empty() => String::new(),
            Ok(Known { unreadable, .. }) => format!(" ({})", few(&unreadable)),
            Err(why) => format!(" ({why})"),
        };
        let after = "what they took out of service may serve; give them again, then delete it";
        all.push(format!("{} holds orders that could not be read{why}: {after}", aside.display()));
    }
    let why = match kept(path) {
        Ok(Known { unreadable, .. }) => few(&unreadable),
        Err(why) => why,
    };
    if !why.is_empty() {
        all.push(format!("{}: {why}; it can't be put aside", path.display()));
    }
    all
}

/// Enough of them to look for.
fn few(unreadable: &[String]) -> String {
    let more = unreadable.len().saturating_sub(SHOWN_MAX);
    let shown = unreadable[..unreadable.len() - more].join("; ");
    if more == 0 { shown } else { format!("{shown}; {more} more") }
}

fn aside(path: &Path, number: usize) -> PathBuf {
    path.with_extension(if number == 1 { "json.damaged".to_owned() } else { format!("json.damaged.{number}") })
}

/// What was put aside before may be the only trace of other orders.
fn free_aside(path: &Path) -> PathBuf {
    let mut number = 1;
    while aside(path, number).symlink_metadata().is_ok() {
        number += 1;
    }
    aside(path, number)
}

/// The files that were put aside, the oldest first.
fn asides(path: &Path) -> Vec<PathBuf> {
    let Some(dir) = path.parent().and_then(|dir| std::fs::read_dir(dir).ok()) else { return Vec::new() };
    let first = aside(path, 1).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let number = |name: &str| match name.strip_prefix(&first)? {
        "" => Some(1),
        rest => rest.strip_prefix('.')?.parse().ok(),
    };
    let numbered = |entry: std::fs::DirEntry| Some((number(entry.file_name().to_str()?)?, entry.path()));
    let all: BTreeMap<usize, PathBuf> = dir.flatten().filter_map(numbered).collect();
    all.into_values().collect()
}

/// Whether the files that could not be read are gone, and with them what there is to say.
pub(super) fn look_aside(shared: &Shared) {
    let told = shared.maintenance.unreadable().own;
    if told.is_empty() {
        return;
    }
    let now = file(&shared.snapshot(), FILE).map(|path| unreadable(&path)).unwrap_or_default();
    if now.is_empty() {
        log::info!("the orders that could not be read are gone");
    }
    if now != told {
        shared.change_unreadable(|all| all.own = now);
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
