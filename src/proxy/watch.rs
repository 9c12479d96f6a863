//! Looks now and then, while an answer runs, whether its client may still have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::connection::Connection;
use crate::refusal::Refusal;
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

/// One request's watch over its client's certificate.
pub struct CertificateWatch {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    every: Duration,
    next: Instant,
}

impl CertificateWatch {
    /// A watch that looks every so often, first a whole period after `now`: the request has just been admitted.
    pub fn new(shared: Arc<Shared>, connection: Arc<Connection>, every: Duration, now: Instant) -> Self {
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
        let gone = self.connection.gone(&snapshot, self.shared.clock.unix_seconds());
        if gone.is_some() {
            // HTTP/2: no more streams either.
            self.connection.retire();
        }
        gone
    }
}
