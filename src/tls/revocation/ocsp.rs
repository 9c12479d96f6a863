//! OCSP for clients' certificates (RFC 6960): the responder is asked before the first request of a connection and again
//! when its answer has run out, never in the handshake and never by blocking a thread.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::x509::store::X509Store;
use openssl::x509::{X509, X509Ref};
use parking_lot::Mutex;

use super::fetch::CrlUrl;
use super::ocsp_answer::{self, question, responder_of};
use crate::config::file::{ClientAuth, OcspFailure};

/// An answer without a nextUpdate is asked for again after this, seconds.
const WITHOUT_END_SECONDS: i64 = 300;
/// No answer is believed for longer than this, seconds.
const BELIEVED_SECONDS_MAX: i64 = 24 * 3600;
/// After a failure the responder is left alone for so long, seconds: it may be down, and clients are many.
const FAILURE_SECONDS: i64 = 5;
/// Most certificates whose answers are kept.
const CACHE_MAX: usize = 100_000;

/// What a responder said of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OcspVerdict {
    /// Not revoked.
    Good,
    /// Revoked.
    Revoked,
    /// It does not know, did not answer in time, or its answer can't be believed.
    Unknown,
}

/// An answer, and until when it holds, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OcspAnswer {
    /// What it says.
    pub verdict: OcspVerdict,
    /// Until when it is not asked for again.
    pub until: i64,
    /// Whether it was asked for just now.
    pub fresh: bool,
}

/// A listener's OCSP.
pub struct Ocsp {
    responder: Option<CrlUrl>,
    timeout: Duration,
    failure: OcspFailure,
    store: X509Store,
    /// By SHA-256 of the certificate. Shared by the snapshots of one listener.
    cache: Mutex<Arc<Cache>>,
}

type Cache = Mutex<AHashMap<[u8; 32], OcspAnswer>>;

impl Ocsp {
    /// From the configuration, which has been checked; `ca` is the bundle that responders' certificates lead to too.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn new(settings: &ClientAuth, ca: &[X509], level: u32) -> Result<Self, ErrorStack> {
        Ok(Self {
            responder: settings.ocsp_url.as_deref().and_then(|url| CrlUrl::parse(url).ok()),
            timeout: settings.ocsp_timeout.map_or(ClientAuth::OCSP_TIMEOUT_DEFAULT, |span| span.0),
            failure: settings.ocsp_failure.unwrap_or_default(),
            store: ocsp_answer::trust(ca, level, false)?,
            cache: Mutex::default(),
        })
    }

    /// Takes over the answers that an earlier snapshot of the listener has, if its CAs are the same.
    pub fn adopt(&self, before: &Ocsp) {
        let cache = before.cache.lock().clone();
        *self.cache.lock() = cache;
    }

    /// Whether a client of whom nothing can be learned comes in.
    pub fn accepts_unknown(&self) -> bool {
        self.failure == OcspFailure::Accept
    }

    /// What is known of a certificate; the responder is asked if nothing is. `now` is Unix time in seconds. An error text
    /// says why nothing could be learned.
    pub async fn check(&self, leaf: &X509Ref, issuer: &X509Ref, now: i64) -> (OcspAnswer, Option<String>) {
        let unknown = |until| OcspAnswer { verdict: OcspVerdict::Unknown, until, fresh: true };
        let key: Option<[u8; 32]> =
            leaf.digest(MessageDigest::sha256()).ok().and_then(|digest| (*digest).try_into().ok());
        let Some(key) = key else { return (unknown(now), Some("the certificate can't be hashed".into())) };
        let cache = self.cache.lock().clone();
        if let Some(known) = cache.lock().get(&key).filter(|known| now < known.until) {
            return (OcspAnswer { fresh: false, ..*known }, None);
        }
        let learned = self.learn(leaf, issuer, now).await;
        let (answer, why) = match learned {
            Ok(answer) => (answer, None),
            Err(why) => (unknown(now + FAILURE_SECONDS), Some(why)),
        };
        let mut known = cache.lock();
        if known.len() >= CACHE_MAX {
            known.retain(|_, old| now < old.until);
        }
        if known.len() < CACHE_MAX {
            known.insert(key, answer);
        }
        (answer, why)
    }

    async fn learn(&self, leaf: &X509Ref, issuer: &X509Ref, now: i64) -> Result<OcspAnswer, String> {
        let responder = match &self.responder {
            Some(url) => url.clone(),
            None => responder_of(leaf).ok_or("the certificate names no http:// responder")?,
        };
        let told = |why| format!("{}: {why}", responder.as_str());
        let answer = match tokio::time::timeout(self.timeout, question(&responder, leaf, issuer)).await {
            Ok(answer) => answer.map_err(told)?,
            Err(_) => return Err(told("no answer within ocsp_timeout".into())),
        };
        let answered = ocsp_answer::read(&answer, leaf, issuer, &self.store).map_err(told)?;
        let until = answered.next_update.unwrap_or(now + WITHOUT_END_SECONDS);
        let until = until.min(now + BELIEVED_SECONDS_MAX).max(now + 1);
        let verdict = if answered.revoked { OcspVerdict::Revoked } else { OcspVerdict::Good };
        Ok(OcspAnswer { verdict, until, fresh: true })
    }
}
