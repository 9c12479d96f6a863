//! Orders that outlive the process, in files of `server.state_dir`.
//!
//! A file that can't be read neither keeps a gateway down nor takes it out of service: a gateway never writes half of one, so
//! a hand or the disk broke it, and most gateways have no order at all. But it may have named a node that must get nothing.
//! So it is set aside, where no later order overwrites it, and told of until an operator has removed it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::files;
use crate::policy::maintenance::{Scope, from_json};
use crate::proxy::Shared;
use crate::proxy::maintenance::FleetOrders;
use crate::snapshot::Snapshot;

/// This gateway's own.
pub const FILE: &str = "maintenance.json";
/// Where that goes if it can't be read.
const SET_ASIDE: &str = "maintenance.json.unreadable";
/// The fleet's as they were known last, for a start without Redis.
pub const FLEET_FILE: &str = "maintenance-fleet.json";
/// Longest file that is read back.
const FILE_MAX: u64 = 4 << 20;

/// The path of such a file; none without a `server.state_dir`.
pub fn file(snapshot: &Snapshot, name: &str) -> Option<PathBuf> {
    snapshot.config.server.state_dir.as_ref().map(|dir| dir.join(name))
}

/// Takes the orders into force that were kept before the last end of the process.
pub fn restore(shared: &Shared) {
    let snapshot = shared.snapshot();
    if let (Some(path), Some(aside)) = (file(&snapshot, FILE), file(&snapshot, SET_ASIDE)) {
        restore_own(shared, &path, aside);
    }
    if !snapshot.config.maintenance.fleet {
        shared.maintenance.fleet_orders.send_replace(FleetOrders::Known);
    } else if let Some(path) = file(&snapshot, FLEET_FILE) {
        match kept(&path) {
            Ok(kept) => shared.change_orders(|orders| orders.fleet = kept),
            Err(why) => {
                let why = format!("{}: {why}", path.display());
                shared.maintenance.note_unreadable(&shared.metrics, |noted| noted.fleet = vec![why]);
            }
        }
    }
}

fn restore_own(shared: &Shared, path: &Path, aside: PathBuf) {
    let unreadable = match kept(path) {
        Ok(kept) => {
            shared.change_orders(|orders| orders.own = kept);
            aside.exists().then(|| (aside, "it could not be read at an earlier start".to_owned()))
        }
        Err(why) => Some(match std::fs::rename(path, &aside) {
            Ok(()) => (aside, why),
            Err(e) => (path.to_owned(), format!("{why}; it can't be set aside: {e}")),
        }),
    };
    let advice = "what it drained or had in maintenance is not any more: order it again, then remove the file";
    let unreadable = unreadable.map(|(file, why)| (file, format!("{why}; {advice}")));
    shared.maintenance.note_unreadable(&shared.metrics, |noted| noted.own = unreadable);
}

/// Whether an operator has removed what was set aside.
pub fn look(shared: &Shared) {
    let Some((path, _)) = shared.maintenance.unreadable().own else { return };
    if !path.exists() {
        log::info!("{} is gone, and told of no more", path.display());
        shared.maintenance.note_unreadable(&shared.metrics, |noted| noted.own = None);
    }
}

fn kept(path: &Path) -> Result<Scope, String> {
    let mut text = Vec::new();
    match files::open_regular(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text)) {
        Ok(_) => from_json(&text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Scope::new()),
        Err(e) => Err(e.to_string()),
    }
}
