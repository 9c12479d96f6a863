//! The OCSP answer about a certificate of the gateway's own, sent along in the handshake to clients that ask for it
//! (RFC 6066, section 8; RFC 8446, section 4.4.2.1).
//!
//! It is fetched beside the handshakes, and no handshake waits for it or fails without it. A good answer is sent until its
//! nextUpdate. One that says "revoked" is not sent: it would do to every client what the operator must decide; it is
//! told in log, status and metrics, and those clients that care ask the responder themselves.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::x509::store::X509Store;
use openssl::x509::{X509, X509Ref};

use super::TlsFault;
use super::files::is_issued_by;
use super::revocation::ocsp_answer::{self, ANSWER_BYTES_MAX, Answered};
use super::revocation::{CrlUrl, StateDir, der};

/// Longest wait for the responder.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An answer without a nextUpdate is sent for so long, seconds.
const WITHOUT_END_SECONDS: i64 = 3600;
/// At the latest after this a newer answer is asked for, seconds.
const REFRESH_SECONDS_MAX: i64 = 12 * 3600;

/// A certificate of the gateway's that names a responder, and what that said last.
pub struct Staple {
    leaf: X509,
    issuer: X509,
    fingerprint: [u8; 32],
    responder: CrlUrl,
    trusted: X509Store,
    last: ArcSwapOption<Stapled>,
}

/// A verified answer.
#[derive(Debug)]
pub struct Stapled {
    answer: Box<[u8]>,
    revoked: bool,
    this_update: i64,
    /// Until when it is sent, seconds since 1970.
    until: i64,
}

impl Stapled {
    /// Whether the certificate is revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// Until when it holds, seconds since 1970.
    pub fn until(&self) -> i64 {
        self.until
    }

    /// When a newer one is to be asked for: half of its time before its end, for the responder may be away for a while.
    pub fn refresh_in(&self, now: i64) -> Duration {
        let half = self.until.saturating_sub(now) / 2;
        Duration::from_secs(u64::try_from(half.clamp(0, REFRESH_SECONDS_MAX)).unwrap_or(0))
    }
}

impl Staple {
    /// Of a certificate and the rest of its chain; `ca` may have its issuer too. `None`: it names no responder, or nobody
    /// can be found who issued it. What is doubtful goes to `warnings`, about `field`; `wanted` is the configuration's.
    ///
    /// # Errors
    /// OpenSSL's.
    pub(super) fn of(
        chain: &[X509],
        ca: &[X509],
        level: u32,
        wanted: bool,
        field: &str,
        warnings: &mut Vec<TlsFault>,
    ) -> Result<Option<Arc<Self>>, ErrorStack> {
        let Some((leaf, rest)) = chain.split_first() else { return Ok(None) };
        let responder = ocsp_answer::responder_of(leaf, |_| true);
        let issuer = rest.iter().chain(ca).find(|issuer| is_issued_by(leaf, issuer));
        let must = must_staple(leaf);
        let refused = "clients that honour this refuse the certificate";
        let doubt = match (wanted, &responder, issuer) {
            (false, ..) if must => Some(format!("it is must-staple, and ocsp_stapling is off: {refused}")),
            (true, None, _) if must => Some(format!("it is must-staple, but names no http:// responder: {refused}")),
            (true, Some(_), None) => {
                let so = if must { format!("{refused}, since it is must-staple") } else { "nothing is stapled".into() };
                Some(format!("it names an OCSP responder, but its issuer is not in the chain: {so}"))
            }
            (true, Some(_), Some(_)) if must => Some(format!(
                "it is must-staple: until its responder has answered once, {refused}; server.state_dir keeps the answer \
                 over a restart"
            )),
            _ => None,
        };
        warnings.extend(doubt.map(|message| TlsFault { field: field.to_owned(), message }));
        let (true, Some(responder), Some(issuer)) = (wanted, responder, issuer) else { return Ok(None) };
        let fingerprint = leaf.digest(MessageDigest::sha256())?;
        Ok(Some(Arc::new(Self {
            fingerprint: (*fingerprint).try_into().unwrap_or_default(),
            trusted: ocsp_answer::trust(std::slice::from_ref(issuer), level, true)?,
            leaf: leaf.clone(),
            issuer: issuer.clone(),
            responder,
            last: ArcSwapOption::empty(),
        })))
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Who is asked.
    pub fn responder(&self) -> &str {
        self.responder.as_str()
    }

    /// The last answer, whatever it says.
    pub fn last(&self) -> Option<Arc<Stapled>> {
        self.last.load_full()
    }

    /// Whether it is about this very certificate, which OpenSSL has a handle on.
    pub(super) fn is_of(&self, cert: &X509Ref) -> bool {
        cert.as_ptr() == self.leaf.as_ptr()
    }

    /// Gives the answer to send at `now`, in DER.
    pub(super) fn with_answer<T>(&self, now: i64, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let last = self.last.load();
        last.as_ref().filter(|last| !last.revoked && now < last.until).map(|last| take(&last.answer))
    }

    /// Asks the responder; nothing changes before [`Self::install`].
    ///
    /// # Errors
    /// Why nothing was learned.
    pub async fn ask(&self) -> Result<Vec<u8>, String> {
        match tokio::time::timeout(TIMEOUT, ocsp_answer::question(&self.responder, &self.leaf, &self.issuer)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer in time".into()),
        }
    }

    /// Takes an answer into use.
    ///
    /// # Errors
    /// Why it can't be; the last one stays.
    pub fn install(&self, answer: &[u8], now: i64) -> Result<Arc<Stapled>, String> {
        let Answered { revoked, this_update, next_update } =
            ocsp_answer::read(answer, &self.leaf, &self.issuer, &self.trusted)?;
        let until = next_update.unwrap_or(this_update.max(now) + WITHOUT_END_SECONDS);
        if until <= now {
            return Err("the answer is over".into());
        }
        if self.last.load().as_ref().is_some_and(|last| this_update < last.this_update) {
            return Err("the answer is older than the one at hand".into());
        }
        let stapled = Arc::new(Stapled { answer: answer.into(), revoked, this_update, until });
        self.last.store(Some(stapled.clone()));
        Ok(stapled)
    }

    /// Takes over what an earlier snapshot knows of the same certificate.
    pub(super) fn adopt(&self, before: &Self) {
        if self.fingerprint == before.fingerprint && self.last.load().is_none() {
            self.last.store(before.last.load_full());
        }
    }

    fn key(&self) -> Vec<u8> {
        [b"ocsp ", &self.fingerprint[..]].concat()
    }

    /// Keeps the answer for the next start.
    ///
    /// # Errors
    /// The system's.
    pub fn keep(&self, store: &StateDir) -> std::io::Result<()> {
        match &*self.last.load() {
            Some(last) => store.write(&self.key(), &last.answer),
            None => Ok(()),
        }
    }

    /// Takes the answer into use that an earlier process kept, if there is none yet.
    pub fn restore(&self, store: &StateDir, now: i64) {
        if self.last.load().is_none() {
            // One that is over or forged is as good as none.
            let _ = store.read(&self.key(), ANSWER_BYTES_MAX).map(|answer| self.install(&answer, now));
        }
    }
}

/// Whether a certificate asks clients to insist on a stapled answer: TLS feature status_request (RFC 7633).
fn must_staple(leaf: &X509Ref) -> bool {
    const STATUS_REQUEST: &[u8] = &[5];
    // 1.3.6.1.5.5.7.1.24
    const TLS_FEATURE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 24];
    let asks = leaf.to_der().ok().and_then(|der| {
        let value = der::certificate_extension(&der, TLS_FEATURE)?;
        let mut features = der::Reader::new(der::Reader::new(value).expect(der::SEQUENCE)?.content);
        while let Some(feature) = features.expect(der::INTEGER) {
            if feature.content == STATUS_REQUEST {
                return Some(());
            }
        }
        None
    });
    asks.is_some()
}
