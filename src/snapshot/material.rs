//! Certificates and trust of a snapshot: from files, or from the SPIFFE agent, who may not have issued any yet.

use std::path::Path;
use std::sync::Arc;

use super::{Ground, ListenerSnapshot, Snapshot};
use crate::config;
use crate::tls::{self, ServerContext, StateDir, TlsFault};

/// Only at the start may someone begin to wait.
pub(super) const NOTHING_ISSUED: &str = "the SPIFFE agent has issued nothing that it could use; an agent that is new in the \
     configuration is asked from the next start on";

impl Snapshot {
    /// Who has to wait for the SPIFFE agent: `listener federation`.
    pub fn waiting(&self) -> Vec<String> {
        let listeners = self.config.listeners.iter().zip(&self.listeners);
        let listeners = listeners.filter(|(_, l)| l.tls.as_ref().is_some_and(|tls| tls.is_waiting()));
        let upstreams = self.upstreams.iter().filter(|u| u.tls.as_ref().is_some_and(|tls| tls.waiting));
        let listeners = listeners.map(|(config, _)| format!("listener {}", config.name));
        listeners.chain(upstreams.map(|u| format!("upstream {}", u.upstream.name()))).collect()
    }

    /// What is doubtful about the material of the SPIFFE agent. About files the loading of the configuration tells.
    pub fn doubts_of_issued(&self) -> Vec<String> {
        let told = |owner: String, faults: &[TlsFault]| {
            faults.iter().map(|fault| format!("{owner}: tls.{fault}")).collect::<Vec<_>>()
        };
        let listeners = self.config.listeners.iter().zip(&self.listeners).filter_map(|(config, built)| {
            config.tls.as_ref()?.spiffe.as_ref()?;
            Some(told(format!("listener {}", config.name), built.tls.as_ref()?.warnings()))
        });
        let upstreams = self.config.upstreams.iter().zip(&self.upstreams).filter_map(|(config, built)| {
            config.tls.as_ref()?.spiffe.as_ref()?;
            Some(told(format!("upstream {}", config.name), &built.tls.as_ref()?.warnings))
        });
        listeners.chain(upstreams).flatten().collect()
    }
}

/// A listener's certificates and trust.
pub(super) fn of_listener(
    config: &config::Listener,
    tls: &config::file::ListenerTls,
    ground: Ground<'_>,
    renews: bool,
) -> Result<Arc<ServerContext>, String> {
    let before = ground.previous.and_then(|p| p.listener_named(&config.name)).and_then(|l| l.tls.as_ref());
    if let Some(before) = before.filter(|_| renews && tls.spiffe.is_none()) {
        return Ok(before.clone());
    }
    let issued = ground.issued.map(|issued| &**issued);
    let built = tls::build_listener(tls, Path::new("/"), ground.now_unix, issued).map_err(|faults| {
        let all: Vec<_> = faults.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
        format!("listener {}: {}", config.name, all.join("; "))
    })?;
    if built.is_waiting() && ground.previous.is_some() && !before.is_some_and(|before| before.is_waiting()) {
        return Err(format!("listener {}: {NOTHING_ISSUED}", config.name));
    }
    Ok(Arc::new(built))
}

impl ListenerSnapshot {
    fn is_served_by(&self, context: &Arc<ServerContext>) -> bool {
        self.tls.as_ref().is_some_and(|own| Arc::ptr_eq(own, context))
    }
}

/// Lists that were fetched for the same listener before are in use from the first connection on.
pub(super) fn adopt_lists(listener: &ListenerSnapshot, config: &config::Listener, previous: Option<&Snapshot>) {
    let before = previous.and_then(|p| p.listener_named(&config.name)).and_then(|l| l.tls.as_ref());
    let (Some(now), Some(before)) = (&listener.tls, before.filter(|b| !listener.is_served_by(b))) else { return };
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
