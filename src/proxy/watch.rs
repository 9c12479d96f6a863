//! Looks now and then, while an answer runs, whether its client may still have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::connection::Connection;
use crate::refusal::Refusal;
use crate::snapshot::Snapshot;
use crate::tls::Gone;

/// The refusal that tells a client that it may not stay.
pub fn refusal_of(gone: Gone) -> Refusal {
    match gone {
        Gone::Expired => Refusal::CertificateExpired,
        Gone::Revoked => Refusal::CertificateRevoked,
        Gone::NotTrusted => Refusal::CertificateNotTrusted,
        Gone::StatusUnknown => Refusal::CertificateStatusUnknown,
    }
}

/// Looks `every` so often while a body comes in; returns when its client may no longer stay.
pub async fn gone_meanwhile(shared: &Shared, connection: &Connection, every: Duration) -> Refusal {
    loop {
        tokio::time::sleep(every).await;
        let gone = connection.gone(&shared.snapshot(), shared.clock.unix_seconds());
        if let Some(gone) = gone.or_else(|| connection.told_by_responder()) {
            connection.retire();
            return refusal_of(gone);
        }
    }
}

/// One request's watch over its client's certificate.
pub struct CertificateWatch {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    every: Duration,
    next: Instant,
}

impl CertificateWatch {
    /// A watch that finds out `within` so much time. It looks twice in that, so that an OCSP responder that was asked at
    /// the one look has answered by the next. The first comes later than `now`: the request has just been admitted.
    pub fn new(shared: Arc<Shared>, connection: Arc<Connection>, within: Duration, now: Instant) -> Self {
        let every = within / 2;
        Self { shared, connection, every, next: now + every }
    }

    /// When it looks next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time to: why the answer must end, if it must.
    pub fn look(&mut self, now: Instant) -> Option<Gone> {
        if now < self.next {
            return None;
        }
        self.next = now + self.every;
        let snapshot = self.shared.snapshot();
        let now_unix = self.shared.clock.unix_seconds();
        let gone = self.connection.gone(&snapshot, now_unix).or_else(|| self.ask_responder(&snapshot, now_unix));
        if gone.is_some() {
            // HTTP/2: no more streams either.
            self.connection.retire();
        }
        gone
    }

    /// What the OCSP responder has said. If it is time to ask it again, a task of its own does: this one may be dropped
    /// at any moment, whenever the node sends something.
    fn ask_responder(&self, snapshot: &Snapshot, now_unix: i64) -> Option<Gone> {
        let context = snapshot.listener(self.connection.listener.index)?.tls.as_ref()?;
        let ocsp = context.ocsp()?.clone();
        if let told @ Some(_) = self.connection.told_by_responder() {
            return told;
        }
        if self.connection.responder_is_due(now_unix) {
            let (shared, connection) = (self.shared.clone(), self.connection.clone());
            tokio::spawn(async move { connection.ask_responder(&ocsp, &shared.metrics, now_unix).await });
        }
        None
    }
}
