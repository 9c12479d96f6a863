//! Revocation lists of a listener, from one configuration to the next and from the disk.

use super::{ListenerSnapshot, Snapshot};
use crate::config;
use crate::observe::{CrlShown, Metrics};
use crate::tls::{Revocation, StateDir};

/// Lists that were fetched for the same listener before are in use from the first connection on.
pub(super) fn adopt_lists(listener: &ListenerSnapshot, config: &config::Listener, previous: Option<&Snapshot>) {
    let before = previous.and_then(|previous| {
        let at = previous.config.listeners.iter().position(|other| other.name == config.name)?;
        previous.listeners.get(at)?.tls.as_ref()
    });
    let (Some(now), Some(before)) = (&listener.tls, before) else { return };
    if let (Some(now), Some(before)) = (now.revocation(), before.revocation()) {
        now.adopt(before);
    }
    now.adopt_staples(before);
    if let (Some(ocsp), Some(before_ocsp)) = (now.ocsp(), before.ocsp())
        && now.trusts_as(before)
    {
        ocsp.adopt(before_ocsp);
    }
}

/// Lists and OCSP answers that an earlier process fetched, where nothing is there.
pub(super) fn restore_lists(listener: &ListenerSnapshot, store: Option<&StateDir>, now_unix: i64) {
    let (Some(tls), Some(store)) = (&listener.tls, store) else { return };
    if let Some(revocation) = tls.revocation() {
        revocation.urls().iter().for_each(|url| _ = revocation.restore(url, store, now_unix));
    }
    tls.staples().iter().flatten().for_each(|staple| staple.restore(store, now_unix));
}

/// Shows what a listener knows of revoked certificates.
pub fn show_lists(revocation: &Revocation, name: &str, metrics: &Metrics) {
    let facts = revocation.facts();
    let shown = facts.iter().map(|f| CrlShown {
        issuer: &f.issuer,
        this_update: f.this_update,
        next_update: f.next_update,
        entries: f.entries,
    });
    metrics.set_crls(name, &shown.collect::<Vec<_>>());
}
