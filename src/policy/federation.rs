//! Federation tokens at the edge: `hive.federation` (`hive-contract`, "Federation JWT").
//!
//! What Hive would refuse is refused here, before a node sees it, and with `bind_issuer` a token counts only on a
//! connection of the peer that it speaks for. Rules:
//!
//! - **The configuration chooses the algorithm, not the token.** HS256 is known only if there is a shared secret, EdDSA
//!   only for an `iss` whose peer has a public key; each key is used with its own algorithm and no other. A token that
//!   names a key of its own (`jwk`, `jku`, `kid`) is not listened to; one with extensions (`crit`, `b64`) is refused.
//! - **One spelling.** Strict base64url, strict JSON, no member of header or claims twice, claims of the right type.
//! - **`aud` is one string**, equal to `audience` byte for byte. A list, even of one, is refused: a token for two Hives is
//!   one that the first can use at the second.
//! - **Times** with the leeway `clock_skew`: `exp` (needed) ahead, `nbf` (if there) and `iat` (needed) not ahead.
//! - **`jti`** is looked at, not burned: Hive does that, once, in its own store. A replay is still Hive's 401.
//! - **A request without a token passes**: whether a route needs one, or takes the older secret, is Hive's to say.
//! - With `jwt: pass` and `bind_issuer` the token is read, not verified: what can't be read is refused, for Hive could not
//!   read it either; a forged `iss` gets as far as Hive, which verifies.

mod base64url;
mod keys;
mod token;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use crate::secret::Secret;

use keys::{PublicKey, SharedKey};
use token::{Audience, Claims, Token};

pub use keys::{KeyError, check_public_key};

/// Least length of the shared secret, in bytes: Hive refuses shorter ones.
pub const SHARED_SECRET_LEAST: usize = 32;
/// Longest leeway that Hive knows.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// Longest `iss` and `aud` that can be configured, in bytes.
pub const ISSUER_LENGTH_MAX: usize = 512;

/// `sub` of every token with a shared secret.
const SHARED_SUBJECT: &str = "federation-peer";
/// Longest `jti`, in characters.
const JTI_LENGTH_MAX: usize = 128;

/// `hive.federation`, resolved.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Some: tokens are verified.
    pub verify: Option<Verify>,
    /// The token's `iss` must be an issuer of the certificate's peer.
    pub bind_issuer: bool,
}

/// How tokens are verified.
#[derive(Debug, Clone)]
pub struct Verify {
    /// What `aud` must be.
    pub audience: String,
    /// Some: HS256 is known.
    pub shared_secret: Option<Secret>,
    /// `iss` of a token with the shared secret.
    pub shared_issuer: String,
    /// Leeway for the times, at most [`CLOCK_SKEW_MAX`].
    pub clock_skew: Duration,
}

/// `peers[].issuer` and `peers[].ed25519_public_key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIssuer {
    /// The peer's place in the configuration ([`super::peers::Peer::index`]).
    pub peer: u32,
    /// `iss` of its tokens.
    pub issuer: Arc<str>,
    /// With it they are verified.
    pub ed25519: Option<[u8; 32]>,
}

/// The policy, built once per configuration.
pub struct Federation {
    verifier: Option<Verifier>,
    /// Peer to issuer; some if they are bound.
    bound: Option<AHashMap<u32, Arc<str>>>,
}

struct Verifier {
    audience: String,
    skew_seconds: f64,
    shared: Option<(SharedKey, Arc<str>)>,
    by_issuer: AHashMap<Arc<str>, PublicKey>,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Malformed, forged or for somebody else; says what, for the log.
    Invalid(&'static str),
    /// Good, at another time.
    NotNow(&'static str),
    /// Not of the peer whose certificate it came with.
    IssuerMismatch,
}

/// What came of a token.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its `iss`: verified with `jwt: verify`, only claimed with `pass`. None where it was not believed or not read.
    pub issuer: Option<Arc<str>>,
    /// Whether it passes.
    pub verdict: Result<(), Fault>,
}

impl Federation {
    /// Builds the policy; keys are prepared here.
    ///
    /// # Errors
    /// A key that is none, or two different keys for one issuer. `check` finds these before.
    pub fn new(settings: &Settings, issuers: &[PeerIssuer]) -> Result<Self, KeyError> {
        let verifier = settings.verify.as_ref().map(|v| Verifier::new(v, issuers)).transpose()?;
        let bound = || issuers.iter().map(|i| (i.peer, i.issuer.clone())).collect();
        Ok(Self { verifier, bound: settings.bind_issuer.then(bound) })
    }

    /// Whether a token needs to be looked at.
    pub fn is_active(&self) -> bool {
        self.verifier.is_some() || self.bound.is_some()
    }

    /// Checks the token that came on a connection of `peer` (its index, if the certificate belongs to one).
    pub fn check(&self, token: &[u8], peer: Option<u32>, now_unix: i64) -> Checked {
        if !self.is_active() {
            return Checked { issuer: None, verdict: Ok(()) };
        }
        let refused = |fault| Checked { issuer: None, verdict: Err(fault) };
        let token = match token::parse(token) {
            Ok(token) => token,
            Err(why) => return refused(Fault::Invalid(why)),
        };
        let issuer = match &self.verifier {
            Some(verifier) => match verifier.verify(&token, now_unix) {
                Ok(issuer) => issuer,
                Err(fault) => return refused(fault),
            },
            None => match &token.claims.iss {
                Some(issuer) => issuer.as_str().into(),
                None => return refused(Fault::Invalid("no iss")),
            },
        };
        let verdict = match &self.bound {
            Some(bound) if peer.and_then(|p| bound.get(&p)) != Some(&issuer) => Err(Fault::IssuerMismatch),
            _ => Ok(()),
        };
        Checked { issuer: Some(issuer), verdict }
    }
}

impl Verifier {
    fn new(settings: &Verify, issuers: &[PeerIssuer]) -> Result<Self, KeyError> {
        let shared = settings.shared_secret.as_ref().map(|secret| {
            SharedKey::new(secret.expose().as_bytes()).map(|key| (key, settings.shared_issuer.as_str().into()))
        });
        let mut by_issuer: AHashMap<Arc<str>, PublicKey> = AHashMap::new();
        for (issuer, raw) in issuers.iter().filter_map(|i| Some((&i.issuer, i.ed25519?))) {
            match by_issuer.get(issuer) {
                Some(key) if *key.raw() == raw => {}
                Some(_) => return Err(KeyError::TwoKeys(issuer.to_string())),
                None => _ = by_issuer.insert(issuer.clone(), PublicKey::new(raw)?),
            }
        }
        let audience = settings.audience.clone();
        Ok(Self { audience, skew_seconds: settings.clock_skew.as_secs_f64(), shared: shared.transpose()?, by_issuer })
    }

    /// The issuer of a token that is good. The times come last: only who holds a key learns that they were wrong.
    fn verify(&self, token: &Token<'_>, now_unix: i64) -> Result<Arc<str>, Fault> {
        let iss = token.claims.iss.as_deref().ok_or(Fault::Invalid("no iss"))?;
        let (issuer, signed) = match (token.alg.as_str(), &self.shared) {
            ("HS256", Some((key, issuer))) => {
                if iss != &**issuer {
                    return Err(Fault::Invalid("iss is not that of the shared secret"));
                }
                if token.claims.sub.as_deref() != Some(SHARED_SUBJECT) {
                    return Err(Fault::Invalid("sub is not federation-peer"));
                }
                (issuer, key.signed(token.signed, &token.signature))
            }
            ("HS256", None) => return Err(Fault::Invalid("alg HS256 without a shared secret")),
            ("EdDSA" | "Ed25519", _) => {
                let found = self.by_issuer.get_key_value(iss);
                let (issuer, key) = found.ok_or(Fault::Invalid("no peer with a public key has this iss"))?;
                (issuer, key.signed(token.signed, &token.signature))
            }
            _ => return Err(Fault::Invalid("alg is neither HS256 nor EdDSA")),
        };
        if !signed {
            return Err(Fault::Invalid("wrong signature"));
        }
        self.check_claims(&token.claims, now_unix).map(|()| issuer.clone())
    }

    fn check_claims(&self, claims: &Claims, now_unix: i64) -> Result<(), Fault> {
        match &claims.aud {
            Some(Audience::One(one)) if *one == self.audience => {}
            Some(Audience::One(_)) => return Err(Fault::Invalid("aud is not the audience")),
            Some(Audience::Other) => return Err(Fault::Invalid("aud is not a string")),
            None => return Err(Fault::Invalid("no aud")),
        }
        let jti = claims.jti.as_deref().ok_or(Fault::Invalid("no jti"))?;
        if jti.is_empty() || jti.chars().count() > JTI_LENGTH_MAX {
            return Err(Fault::Invalid("jti has not 1 to 128 characters"));
        }
        let exp = claims.exp.ok_or(Fault::Invalid("no exp"))?;
        let iat = claims.iat.ok_or(Fault::Invalid("no iat"))?;
        // Exact up to 2^53, far beyond any clock.
        let now = now_unix as f64;
        if exp + self.skew_seconds <= now {
            return Err(Fault::NotNow("expired"));
        }
        if claims.nbf.is_some_and(|nbf| nbf > now + self.skew_seconds) {
            return Err(Fault::NotNow("not yet valid"));
        }
        if iat > now + self.skew_seconds {
            return Err(Fault::NotNow("issued in the future"));
        }
        Ok(())
    }
}
