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
use super::points::UrlPrefix;
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
    /// Whom certificates may name.
    allowed: Vec<UrlPrefix>,
    timeout: Duration,
    failure: OcspFailure,
    store: X509Store,
    /// By SHA-256 of the certificate. Shared by the snapshots of one listener.
    cache: Mutex<Arc<Cache>>,
}

/// SHA-256 of a certificate.
type Key = [u8; 32];

#[derive(Default)]
struct Cache {
    answers: Mutex<AHashMap<Key, OcspAnswer>>,
    /// A turn for each certificate that is being asked about: its other connections wait for the one question.
    turns: Mutex<AHashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

impl Cache {
    fn known(&self, key: &Key, now: i64) -> Option<OcspAnswer> {
        let answers = self.answers.lock();
        answers.get(key).filter(|known| now < known.until).map(|known| OcspAnswer { fresh: false, ..*known })
    }

    fn keep(&self, key: Key, answer: OcspAnswer, now: i64) {
        let mut known = self.answers.lock();
        if known.len() >= CACHE_MAX {
            known.retain(|_, old| now < old.until);
        }
        if known.len() < CACHE_MAX {
            known.insert(key, answer);
        }
    }

    fn turn(self: &Arc<Self>, key: Key) -> Turn {
        Turn { cache: self.clone(), key, lock: self.turns.lock().entry(key).or_default().clone() }
    }
}

/// Somebody who asks about a certificate, or waits for who does. The last one clears up, also when it gives up.
struct Turn {
    cache: Arc<Cache>,
    key: Key,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.cache.turns.lock();
        // The map's and ours.
        if Arc::strong_count(&self.lock) <= 2 {
            turns.remove(&self.key);
        }
    }
}

impl Ocsp {
    /// From the configuration, which has been checked; `ca` is the bundle that responders' certificates lead to too.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn new(settings: &ClientAuth, ca: &[X509], level: u32) -> Result<Self, ErrorStack> {
        Ok(Self {
            responder: settings.ocsp_url.as_deref().and_then(|url| CrlUrl::parse(url).ok()),
            allowed: settings.ocsp_responders.iter().filter_map(|prefix| UrlPrefix::parse(prefix).ok()).collect(),
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

    /// What is known of a certificate; the responder is asked if nothing is, once for all who want to know. `now` is Unix time in seconds. An error text
    /// says why nothing could be learned.
    pub async fn check(&self, leaf: &X509Ref, issuer: &X509Ref, now: i64) -> (OcspAnswer, Option<String>) {
        let unknown = |until| OcspAnswer { verdict: OcspVerdict::Unknown, until, fresh: true };
        let key: Option<Key> = leaf.digest(MessageDigest::sha256()).ok().and_then(|digest| (*digest).try_into().ok());
        let Some(key) = key else { return (unknown(now), Some("the certificate can't be hashed".into())) };
        let cache = self.cache.lock().clone();
        if let Some(known) = cache.known(&key, now) {
            return (known, None);
        }
        let turn = cache.turn(key);
        let _mine = turn.lock.lock().await;
        if let Some(known) = cache.known(&key, now) {
            return (known, None);
        }
        let learned = self.learn(leaf, issuer, now).await;
        let (answer, why) = match learned {
            Ok(answer) => (answer, None),
            Err(why) => (unknown(now + FAILURE_SECONDS), Some(why)),
        };
        cache.keep(key, answer, now);
        (answer, why)
    }

    async fn learn(&self, leaf: &X509Ref, issuer: &X509Ref, now: i64) -> Result<OcspAnswer, String> {
        let named = responder_of(leaf, |url| self.allowed.iter().any(|prefix| prefix.allows(url)));
        let responder = named.or_else(|| self.responder.clone());
        let responder = responder.ok_or("the certificate names no http:// responder that ocsp_responders allow")?;
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
