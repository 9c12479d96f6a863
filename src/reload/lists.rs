//! Revocation lists in files and CAs that are withdrawn, while a reload fails for something else: whatever is broken, it must
//! not keep a revocation out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{Config, Listener, RouteWaf};
use crate::observe::Metrics;
use crate::policy::waf::Entry;
use crate::snapshot::{self, Snapshot};

/// Takes newer lists that can be read into use by themselves.
pub fn renew(snapshot: &Snapshot, now_unix: i64, metrics: &Metrics) {
    const SAID: &str = "a newer CRL from a file is in use, although other files are broken";
    for (config, listener) in snapshot.config.listeners.iter().zip(&snapshot.listeners) {
        let Some(revocation) = listener.tls.as_ref().and_then(|tls| tls.revocation()) else { continue };
        if revocation.renew_from_files(now_unix) {
            log::warn!("listener {}: {SAID}", config.name);
            snapshot::show_lists(revocation, config.name.as_str(), metrics);
        }
    }
    for upstream in &snapshot.upstreams {
        let revocation = upstream.tls.as_ref().and_then(|tls| tls.revocation.as_ref());
        if revocation.is_some_and(|lists| lists.renew_from_files(now_unix)) {
            log::warn!("upstream {}: {SAID}", upstream.upstream.name());
            upstream.show_lists(metrics);
        }
    }
}

/// Takes the withdrawal of clients' CAs into use by itself, where their file can be read.
pub fn withdraw(snapshot: &Snapshot, now_unix: i64) {
    for (config, listener) in snapshot.config.listeners.iter().zip(&snapshot.listeners) {
        let file = config.tls.as_ref().and_then(|tls| tls.client_auth.ca.as_deref());
        let built = listener.tls.as_ref().filter(|tls| tls.asks_clients());
        if built.zip(file).is_some_and(|(tls, file)| tls.renew_trust(file, now_unix)) {
            let said =
                "clients are trusted by those CAs of its bundle that stand in the file now; what is new there waits";
            log::warn!("listener {}: {said}", config.name);
        }
    }
}

/// Which deny lists have lost more than half of what they had: perhaps nobody meant that, and it can't be seen in the file.
pub fn shrunk(new: &Config, old: &Config) -> Vec<String> {
    let denied = |l: &Listener| l.addresses.as_ref().map_or(0, |list| list.deny.len());
    let both = new.listeners.iter().filter_map(|l| Some((l, old.listeners.iter().find(|o| o.name == l.name)?)));
    both.map(|(l, o)| (&l.name, denied(l), denied(o)))
        .filter(|(_, now, before)| *now < before.div_ceil(2))
        .map(|(name, now, before)| {
            format!("listener {name}: {now} networks are denied now, and {before} were before; is the list whole?")
        })
        .collect()
}

/// Which directories have lost rule files: perhaps they are being replaced, and who did it did not get to the end.
pub fn lost_rules(new: &Config, old: &Config) -> Vec<String> {
    let new = rule_entries(new);
    let both = rule_entries(old).into_iter().filter_map(|(path, was)| Some((path, was, new.get(path)?)));
    both.filter_map(|(path, was, is)| {
        let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lost: Vec<_> = was.files.iter().filter(|file| !is.files.contains(file)).map(name).collect();
        let said = "are gone, and their rules are no longer in force; was that meant?";
        (!lost.is_empty()).then(|| format!("rule files of {} {said} {}", path.display(), lost.join(", ")))
    })
    .collect()
}

/// What the firewalls read, by the name under which they do.
fn rule_entries(config: &Config) -> BTreeMap<&Path, &Entry> {
    let of_listeners = config.listeners.iter().filter_map(|l| l.waf.as_ref());
    let of_routes = config.routes.iter().filter_map(|r| match &r.waf {
        RouteWaf::Own(waf) => Some(waf),
        RouteWaf::OfListener | RouteWaf::Off => None,
    });
    of_listeners.chain(of_routes).flat_map(|waf| waf.entries()).map(|entry| (entry.path.as_path(), entry)).collect()
}

/// What is to be said of the other files that have `changed`, if any have.
pub fn waiting<'f>(config: &Config, changed: impl Iterator<Item = &'f Path>) -> Option<String> {
    let of_listeners = config.listeners.iter().filter_map(|l| Some(&l.tls.as_ref()?.client_auth.crl));
    let of_upstreams = config.upstreams.iter().filter_map(|u| Some(&u.tls.as_ref()?.crl));
    let lists: Vec<_> = of_listeners.chain(of_upstreams).flatten().map(Path::new).collect();
    let waiting: Vec<_> = changed.filter(|file| !lists.contains(file)).map(|file| file.display().to_string()).collect();
    let said = "have changed and wait until that is mended; CRL files do not wait, nor does a client CA's withdrawal if another stays";
    (!waiting.is_empty()).then(|| format!("{} {said}", waiting.join(", ")))
}
