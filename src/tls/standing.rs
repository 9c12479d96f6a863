//! Whether a client that came in may stay: its certificates, its CA and the revocation lists are looked at again by every
//! request and, while an answer runs, every now and then. What was found is kept, so that a request compares three
//! numbers unless something has changed.

use std::sync::Arc;

use ahash::AHashMap;
use arc_swap::ArcSwap;
use openssl::error::ErrorStack;
use openssl::sha::Sha256;
use openssl::ssl::SslRef;
use openssl::stack::Stack;
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{X509, X509PurposeId, X509Ref, X509StoreContext};

use crate::config::file::CrlCheck;

use super::certificate::{spiffe_id_of, unix_seconds};
use super::revocation::{Link, Revocation, Verdict};

/// Why a client may not stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Its certificate, or one above it, has expired.
    Expired,
    /// Its certificate, or with `crl_check: chain` one above it, was revoked.
    Revoked,
    /// Its chain no longer leads to a CA of the listener.
    NotTrusted,
    /// There is no list of its issuer any more, or none that is not late.
    StatusUnknown,
}

/// The certificates of a client that came in. Handles on what OpenSSL keeps with the connection anyway.
pub struct ClientChain {
    leaf: X509,
    /// What the client sent along.
    sent: Stack<X509>,
    /// Who signed the client's certificate.
    issuer: X509,
}

impl ClientChain {
    /// The client's certificate and that of who signed it.
    pub fn leaf_and_issuer(&self) -> (&X509Ref, &X509Ref) {
        (&self.leaf, &self.issuer)
    }
}

// Stack has no Debug of its own.
impl std::fmt::Debug for ClientChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientChain").field("sent", &self.sent.len()).finish_non_exhaustive()
    }
}

/// What was found of a client, and what it was found with.
#[derive(Debug, Clone)]
pub struct Standing {
    trust: u64,
    revocation: u64,
    verified: Arc<Verified>,
    gone: Option<Gone>,
    /// Holds until then, seconds since 1970, if nothing else changes.
    until: i64,
}

impl Standing {
    /// The client's certificates, as revocation lists know them.
    pub fn links(&self) -> &[Link] {
        &self.verified.links
    }

    fn lost((trust, revocation): (u64, u64), verified: Arc<Verified>, gone: Gone) -> Self {
        Self { trust, revocation, verified, gone: Some(gone), until: i64::MAX }
    }

    /// Why the client may not stay, if so.
    pub fn gone(&self) -> Option<Gone> {
        self.gone
    }
}

/// A chain that led to a root.
#[derive(Debug)]
struct Verified {
    /// Of all but the root, leaf first.
    links: Vec<Link>,
    /// When the first of them expires, seconds since 1970.
    not_after: i64,
}

impl Verified {
    fn of(chain: &openssl::stack::StackRef<X509>) -> Result<Self, ErrorStack> {
        let not_after = chain.iter().map(|cert| unix_seconds(cert.not_after())).min();
        Ok(Self { links: Link::of_chain(chain, CrlCheck::Chain)?, not_after: not_after.unwrap_or(0) })
    }
}

/// Who vouches for a listener's clients.
pub(super) enum Anchors {
    /// One bundle of CAs, for all.
    Bundle(Vec<X509>),
    /// A bundle for each trust domain, for its members alone.
    TrustDomains(Vec<(String, Vec<X509>)>),
}

impl Anchors {
    /// All CAs.
    pub(super) fn all(&self) -> Vec<X509> {
        match self {
            Anchors::Bundle(bundle) => bundle.clone(),
            Anchors::TrustDomains(domains) => domains.iter().flat_map(|(_, bundle)| bundle).cloned().collect(),
        }
    }
}

/// The CAs of a listener, for verifying a chain again.
pub(super) struct Trust {
    /// Of the configuration; empty with trust domains, which come from no file.
    bundle: Vec<X509>,
    rules: Rules,
    /// The same, or without what has been withdrawn since.
    present: ArcSwap<Present>,
}

/// The rules of a handshake, beside those for TLS clients.
#[derive(Clone, Copy)]
struct Rules {
    level: u32,
    depth: u32,
}

struct Present {
    /// A hash of the CAs: the same one after a reload that did not change them.
    generation: u64,
    stores: Stores,
    /// CAs are withdrawn that the handshake still takes.
    narrowed: bool,
}

enum Stores {
    One(X509Store),
    ByTrustDomain(AHashMap<String, X509Store>),
}

impl Present {
    fn new(anchors: &Anchors, rules: Rules, narrowed: bool) -> Result<Self, ErrorStack> {
        let mut hash = Sha256::new();
        let mut store = |bundle: &[X509]| {
            let mut builder = X509StoreBuilder::new()?;
            for cert in bundle {
                hash.update(&cert.to_der()?);
                builder.add_cert(cert.clone())?;
            }
            let mut param = X509VerifyParam::new()?;
            param.set_auth_level(i32::try_from(rules.level).unwrap_or(i32::MAX));
            param.set_depth(i32::try_from(rules.depth).unwrap_or(i32::MAX));
            param.set_purpose(X509PurposeId::SSL_CLIENT)?;
            builder.set_param(&param)?;
            Ok::<_, ErrorStack>(builder.build())
        };
        let stores = match anchors {
            Anchors::Bundle(bundle) => Stores::One(store(bundle)?),
            Anchors::TrustDomains(domains) => {
                let each = domains.iter().map(|(name, bundle)| Ok((name.clone(), store(bundle)?)));
                Stores::ByTrustDomain(each.collect::<Result<_, ErrorStack>>()?)
            }
        };
        // A CA that passes from one trust domain to another is another trust. No name holds a zero byte.
        if let Anchors::TrustDomains(domains) = anchors {
            domains.iter().for_each(|(name, bundle)| hash.update(format!("{name}\0{}\0", bundle.len()).as_bytes()));
        }
        let [a, b, c, d, e, f, g, h, ..] = hash.finish();
        Ok(Self { generation: u64::from_be_bytes([a, b, c, d, e, f, g, h]), stores, narrowed })
    }

    /// The CAs that may vouch for a client.
    fn store(&self, client: &X509Ref) -> Option<&X509Store> {
        match &self.stores {
            Stores::One(store) => Some(store),
            Stores::ByTrustDomain(stores) => stores.get(spiffe_id_of(client)?.trust_domain()),
        }
    }

    fn verify(&self, client: &ClientChain) -> Result<Verified, Gone> {
        let store = self.store(&client.leaf).ok_or(Gone::NotTrusted)?;
        let verified = X509StoreContext::new().and_then(|mut context| {
            context.init(store, &client.leaf, &client.sent, |context| {
                if context.verify_cert()? {
                    return context.chain().map(Verified::of).transpose().map(|v| v.ok_or(Gone::NotTrusted));
                }
                let expired = context.error().as_raw() == openssl_sys::X509_V_ERR_CERT_HAS_EXPIRED;
                Ok(Err(if expired { Gone::Expired } else { Gone::NotTrusted }))
            })
        });
        // An error of OpenSSL's own is a want of memory; nobody is let in by that.
        verified.unwrap_or(Err(Gone::NotTrusted))
    }
}

impl Trust {
    /// With the rules of a handshake: for TLS clients, security `level`, at most `depth` intermediates.
    pub(super) fn new(anchors: &Anchors, level: u32, depth: u32) -> Result<Self, ErrorStack> {
        let rules = Rules { level, depth };
        let bundle = match anchors {
            Anchors::Bundle(bundle) => bundle.clone(),
            Anchors::TrustDomains(_) => Vec::new(),
        };
        Ok(Self { bundle, rules, present: ArcSwap::from_pointee(Present::new(anchors, rules, false)?) })
    }

    /// Whether each trust domain has CAs of its own.
    pub(super) fn is_by_trust_domain(&self) -> bool {
        matches!(self.present.load().stores, Stores::ByTrustDomain(_))
    }

    pub(super) fn generation(&self) -> u64 {
        self.present.load().generation
    }

    /// Trusts from now on those of its CAs that stand in `bundle` too, and no others: clients of the others are let in by
    /// the handshake, and their first request is refused. A bundle that has nothing of it is another one, and waits for
    /// the rest of a reload. Says whether that changed anything.
    pub(super) fn narrow(&self, bundle: &[X509]) -> Result<bool, ErrorStack> {
        let kept: Vec<_> = self.bundle.iter().filter(|cert| bundle.contains(cert)).cloned().collect();
        if kept.is_empty() {
            return Ok(false);
        }
        let narrowed = kept.len() < self.bundle.len();
        let present = Present::new(&Anchors::Bundle(kept), self.rules, narrowed)?;
        let changed = present.generation != self.generation();
        if changed {
            self.present.store(Arc::new(present));
        }
        Ok(changed)
    }
}

/// What a listener judges its clients by.
pub(super) struct Judge<'a> {
    pub(super) trust: &'a Trust,
    pub(super) revocation: Option<&'a Revocation>,
}

impl Judge<'_> {
    /// Of a client whose handshake has just succeeded with this very trust.
    pub(super) fn first(&self, ssl: &SslRef, now: i64) -> Option<(ClientChain, Standing)> {
        let chain = ssl.verified_chain()?;
        let verified = Verified::of(chain).ok()?;
        // A root that is a client itself signed itself.
        let issuer = chain.get(1).or(chain.get(0))?.to_owned();
        let mut sent = Stack::new().ok()?;
        for cert in ssl.peer_cert_chain().into_iter().flatten() {
            sent.push(cert.to_owned()).ok()?;
        }
        let client = ClientChain { leaf: ssl.peer_certificate()?, sent, issuer };
        let (verified, present) = (Arc::new(verified), self.trust.present.load());
        let generations = self.generations(&present);
        if present.narrowed
            && let Err(gone) = present.verify(&client)
        {
            return Some((client, Standing::lost(generations, verified, gone)));
        }
        let standing = self.weigh(generations, verified, now);
        Some((client, standing))
    }

    /// What has become of it; `None`: `before` still holds.
    pub(super) fn again(&self, client: &ClientChain, before: &Standing, now: i64) -> Option<Standing> {
        let present = self.trust.present.load();
        let generations = self.generations(&present);
        let same_trust = before.trust == generations.0;
        if same_trust && before.revocation == generations.1 && (before.gone.is_some() || now <= before.until) {
            return None;
        }
        let lost = |gone| Standing::lost(generations, before.verified.clone(), gone);
        if same_trust {
            return Some(match before.gone {
                Some(Gone::NotTrusted) => lost(Gone::NotTrusted),
                _ => self.weigh(generations, before.verified.clone(), now),
            });
        }
        Some(match present.verify(client) {
            Ok(verified) => self.weigh(generations, Arc::new(verified), now),
            Err(gone) => lost(gone),
        })
    }

    /// Read before the set is asked: if it is swapped meanwhile, the next request asks again.
    fn generations(&self, present: &Present) -> (u64, u64) {
        (present.generation, self.revocation.map_or(0, Revocation::generation))
    }

    fn weigh(&self, (trust, revocation): (u64, u64), verified: Arc<Verified>, now: i64) -> Standing {
        let verdict = self.revocation.map_or(Verdict::Good { until: i64::MAX }, |r| r.ask(&verified.links, now).1);
        let (gone, until) = match verdict {
            _ if verified.not_after < now => (Some(Gone::Expired), i64::MAX),
            Verdict::Good { until } => (None, until.min(verified.not_after)),
            Verdict::Revoked => (Some(Gone::Revoked), i64::MAX),
            Verdict::NoCrl | Verdict::CrlExpired => (Some(Gone::StatusUnknown), i64::MAX),
        };
        Standing { trust, revocation, verified, gone, until }
    }
}
