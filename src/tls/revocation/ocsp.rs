//! OCSP for clients' certificates (RFC 6960): the responder is asked before the first request of a connection and again
//! when its answer has run out, never in the handshake and never by blocking a thread.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use foreign_types::ForeignTypeRef;
use openssl::asn1::{Asn1GeneralizedTimeRef, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::ocsp::{OcspCertId, OcspCertStatus, OcspFlag, OcspRequest, OcspResponse, OcspResponseStatus};
use openssl::stack::Stack;
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{X509, X509Ref};
use parking_lot::Mutex;

use super::fetch::{CrlUrl, ask};
use crate::config::file::{ClientAuth, OcspFailure};
use crate::tls::certificate::unix_seconds;

/// Largest answer of a responder, bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// An answer without a nextUpdate is asked for again after this, seconds.
const WITHOUT_END_SECONDS: i64 = 300;
/// No answer is believed for longer than this, seconds.
const BELIEVED_SECONDS_MAX: i64 = 24 * 3600;
/// After a failure the responder is left alone for so long, seconds: it may be down, and clients are many.
const FAILURE_SECONDS: i64 = 5;
/// Most certificates whose answers are kept.
const CACHE_MAX: usize = 100_000;
/// Clocks differ by so much, seconds.
const CLOCK_SKEW_SECONDS: u32 = 300;

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
        let mut store = X509StoreBuilder::new()?;
        for cert in ca {
            store.add_cert(cert.clone())?;
        }
        let mut rules = X509VerifyParam::new()?;
        rules.set_auth_level(i32::try_from(level).unwrap_or(i32::MAX));
        store.set_param(&rules)?;
        Ok(Self {
            responder: settings.ocsp_url.as_deref().and_then(|url| CrlUrl::parse(url).ok()),
            timeout: settings.ocsp_timeout.map_or(ClientAuth::OCSP_TIMEOUT_DEFAULT, |span| span.0),
            failure: settings.ocsp_failure.unwrap_or_default(),
            store: store.build(),
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
        // SHA-1 names the certificate only; it is what every responder understands (RFC 5019, section 2.1.1).
        let id = || OcspCertId::from_cert(MessageDigest::sha1(), leaf, issuer);
        let openssl = |e: ErrorStack| e.to_string();
        let request = id().and_then(|id| {
            let mut request = OcspRequest::new()?;
            request.add_id(id)?;
            request.to_der()
        });
        let request = request.map_err(openssl)?;
        let asked = ask(&responder, "application/ocsp-request", &request, ANSWER_BYTES_MAX);
        let answer = match tokio::time::timeout(self.timeout, asked).await {
            Ok(answer) => answer?,
            Err(_) => return Err(format!("{}: no answer within ocsp_timeout", responder.as_str())),
        };
        self.read(&answer, &id().map_err(openssl)?, issuer, now).map_err(|why| format!("{}: {why}", responder.as_str()))
    }

    fn read(&self, answer: &[u8], id: &OcspCertId, issuer: &X509Ref, now: i64) -> Result<OcspAnswer, String> {
        let openssl = |e: ErrorStack| super::super::files::reason(&e);
        let answer = OcspResponse::from_der(answer).map_err(|_| "no OCSP answer")?;
        if answer.status() != OcspResponseStatus::SUCCESSFUL {
            return Err(format!("the responder says {}", answer.status().as_raw()));
        }
        let basic = answer.basic().map_err(openssl)?;
        let mut signers = Stack::new().map_err(openssl)?;
        signers.push(issuer.to_owned()).map_err(openssl)?;
        // The signer must be the issuer itself, or hold its leave to sign OCSP (RFC 6960, section 4.2.2.2).
        basic.verify(&signers, &self.store, OcspFlag::empty()).map_err(openssl)?;
        let status = basic.find_status(id).ok_or("the answer is about another certificate")?;
        status.check_validity(CLOCK_SKEW_SECONDS, None).map_err(openssl)?;
        let until = status.next_update().map_or(now + WITHOUT_END_SECONDS, generalized_seconds);
        let until = until.min(now + BELIEVED_SECONDS_MAX).max(now + 1);
        let verdict = match status.status {
            OcspCertStatus::GOOD => OcspVerdict::Good,
            OcspCertStatus::REVOKED => OcspVerdict::Revoked,
            _ => return Err("the responder does not know the certificate".into()),
        };
        Ok(OcspAnswer { verdict, until, fresh: true })
    }
}

/// The first `http://` responder of a certificate's authority information access.
fn responder_of(leaf: &X509Ref) -> Option<CrlUrl> {
    let responders = leaf.ocsp_responders().ok()?;
    responders.iter().find_map(|url| CrlUrl::parse(url).ok())
}

fn generalized_seconds(time: &Asn1GeneralizedTimeRef) -> i64 {
    // SAFETY: an ASN1_GENERALIZEDTIME is an ASN1_TIME of one of its two kinds; both are the same structure (asn1.h).
    unix_seconds(unsafe { Asn1TimeRef::from_ptr(time.as_ptr().cast()) })
}
