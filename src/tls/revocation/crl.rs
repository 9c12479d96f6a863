//! One certificate revocation list (RFC 5280, section 5): read in one pass, verified, and kept as a compact set.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, LazyLock, Weak};

use ahash::AHashMap;
use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{HasPublic, Id, PKeyRef};
use openssl::rsa::Padding;
use openssl::sha::sha256;
use openssl::sign::{RsaPssSaltlen, Verifier};
use openssl::x509::{X509, X509KeyUsage, X509Name, X509NameRef, X509Ref};
use parking_lot::Mutex;

use super::Link;
use super::der::{BIT_STRING, INTEGER, OBJECT, Reader, SEQUENCE, extension};
use super::points::{self, Names};
use super::serials::{Serial, Serials};
use crate::tls::certificate::name;

/// A CA as the signer of a CRL: a hash of its name and its public key, so that another CA of the same name, or the same
/// key under another name, is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IssuerId([u8; 32]);

impl IssuerId {
    /// Of a CA's certificate.
    ///
    /// # Errors
    /// OpenSSL's, for a key that it can't read.
    pub fn of(ca: &X509Ref) -> Result<Self, ErrorStack> {
        let mut bytes = ca.subject_name().to_der()?;
        bytes.extend(public_key_info(ca)?);
        Ok(Self(sha256(&bytes)))
    }
}

/// The SubjectPublicKeyInfo as the certificate has it. To have OpenSSL write the key anew costs a tenth of a handshake.
fn public_key_info(cert: &X509Ref) -> Result<Vec<u8>, ErrorStack> {
    // SAFETY: the certificate is alive, and so is its key, which belongs to it. OpenSSL writes as many bytes as it has said
    // before that it would, and moves `end`, which is not used again.
    unsafe {
        let key = X509_get_X509_PUBKEY(cert.as_ptr());
        let length = i2d_X509_PUBKEY(key, std::ptr::null_mut());
        let mut der = vec![0; usize::try_from(length).unwrap_or(0)];
        let mut end = der.as_mut_ptr();
        if length <= 0 || i2d_X509_PUBKEY(key, &mut end) != length {
            return Err(ErrorStack::get());
        }
        Ok(der)
    }
}

// What the `openssl` crate lacks; x509.h, the same from 3.0 to 3.6.
unsafe extern "C" {
    fn X509_get_X509_PUBKEY(cert: *const openssl_sys::X509) -> *mut c_void;
    fn i2d_X509_PUBKEY(key: *const c_void, out: *mut *mut u8) -> c_int;
}

/// A verified list.
#[derive(Debug)]
pub struct Crl {
    /// Who signed it, and for whose certificates it speaks.
    pub issuer: IssuerId,
    /// The same for people (RFC 4514).
    pub issuer_name: String,
    /// When it was made, seconds since 1970.
    pub this_update: i64,
    /// When a newer one is due, seconds since 1970; `i64::MAX` if it does not say.
    pub next_update: i64,
    /// Of whom it speaks.
    pub scope: Scope,
    number: Vec<u8>,
    serials: Serials,
}

/// Which of an issuer's certificates a list is about (RFC 5280, section 5.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Certificates that are not a CA's.
    pub users: bool,
    /// Certificates of CAs.
    pub authorities: bool,
    /// The names of its distribution point: it is one part of several, about the certificates that name the same one.
    /// Lists with the same names replace each other, others stand side by side.
    pub part: Option<Names>,
}

impl Scope {
    /// Whether it is about a certificate (RFC 5280, section 6.3.3, step b).
    pub(super) fn covers(&self, link: &Link) -> bool {
        let class = if link.authority { self.authorities } else { self.users };
        let part = self.part.as_ref().is_none_or(|names| names.iter().any(|name| link.points.contains(name)));
        class && part
    }
}

impl Crl {
    /// Tells it from its CA's other lists.
    pub(super) fn print(&self) -> String {
        let Self { issuer_name, this_update, next_update, scope, number, serials, .. } = self;
        format!("{issuer_name:?} {this_update} {next_update} {scope:?} {number:?} {}", serials.len())
    }

    /// Whether it revokes the serial.
    pub fn revokes(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// How many certificates it revokes.
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether it revokes none.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }

    /// Memory that it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.serials.memory_bytes()
    }

    /// Whether it takes the place of `other`, or would if it were newer.
    pub fn is_about_the_same_as(&self, other: &Crl) -> bool {
        self.issuer == other.issuer && self.scope == other.scope
    }

    /// By date, then by CRL number: an older list, which is still signed, may come back from a backup, or be replayed by
    /// anyone on the way. A CA that was set up anew may count from one again, but no list from the future is taken.
    pub fn is_older_than(&self, other: &Crl) -> bool {
        let (one, two) = (&self.number, &other.number);
        if self.this_update != other.this_update || one.is_empty() || two.is_empty() {
            return self.this_update < other.this_update;
        }
        (one.len(), one) < (two.len(), two)
    }

    /// Reads and verifies one list in DER. The same bytes give the same list as long as anyone has it.
    ///
    /// # Errors
    /// Says why the list can't be used.
    pub fn read(der: &[u8], bundle: &Bundle) -> Result<Arc<Self>, String> {
        static LIVE: LazyLock<Mutex<AHashMap<[u8; 32], Weak<Crl>>>> = LazyLock::new(Mutex::default);
        let digest = sha256(der);
        let known = LIVE.lock().get(&digest).and_then(Weak::upgrade);
        if let Some(crl) = known.filter(|crl| bundle.0.iter().any(|ca| ca.id == crl.issuer)) {
            return Ok(crl);
        }
        let crl = Arc::new(Self::parse(der, bundle)?);
        let mut live = LIVE.lock();
        live.retain(|_, crl| crl.strong_count() > 0);
        live.insert(digest, Arc::downgrade(&crl));
        Ok(crl)
    }

    fn parse(der: &[u8], bundle: &Bundle) -> Result<Self, String> {
        let list = Parts::of(der).ok_or("it is no CRL, or cut off")?;
        let issuer = bundle.issuer_of(&list)?;
        let extensions = Extensions::of(list.extensions, list.issuer)?;
        let entries = Entries(Reader::new(list.revoked));
        entries.check()?;
        Ok(Self {
            issuer: issuer.id,
            issuer_name: name(issuer.cert.subject_name()),
            this_update: list.this_update,
            next_update: list.next_update.unwrap_or(i64::MAX),
            scope: extensions.scope,
            number: extensions.number,
            serials: Serials::build(entries),
        })
    }
}

/// The CAs that may sign, with what a list is recognised by.
pub struct Bundle(Vec<Authority>);

struct Authority {
    id: IssuerId,
    cert: X509,
}

impl Bundle {
    /// Of the certificates of `client_auth.ca`. One whose key can't be read is left out; it issues nothing that verifies.
    pub fn of(certs: &[X509]) -> Self {
        let authority = |cert: &X509| Some(Authority { id: IssuerId::of(cert).ok()?, cert: cert.clone() });
        Self(certs.iter().filter_map(authority).collect())
    }

    /// Names and ids of all.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&X509Ref, IssuerId)> {
        self.0.iter().map(|ca| (&*ca.cert, ca.id))
    }

    /// Whether the CA is one of them.
    pub(super) fn contains(&self, id: IssuerId) -> bool {
        self.0.iter().any(|ca| ca.id == id)
    }

    /// The CA whose name and signature the list has.
    fn issuer_of(&self, list: &Parts<'_>) -> Result<&Authority, String> {
        let issuer = X509Name::from_der(list.issuer).map_err(|_| "its issuer can't be read")?;
        let same = |ca: &&Authority| names_equal(ca.cert.subject_name(), &issuer);
        let mut candidates = self.0.iter().filter(same).peekable();
        if candidates.peek().is_none() {
            let who = name(&issuer);
            return Err(format!("its issuer {who:?} is not in client_auth.ca; add that CA's certificate there"));
        }
        let algorithm = Algorithm::of(list.algorithm)?;
        let mut forbidden = false;
        for ca in candidates {
            let may_sign = ca.cert.key_usage().is_none_or(|usage| usage.contains(X509KeyUsage::CRL_SIGN));
            if !may_sign {
                forbidden = true;
            } else if ca.cert.public_key().is_ok_and(|key| algorithm.verifies(&key, list)) {
                return Ok(ca);
            }
        }
        let who = name(&issuer);
        Err(match forbidden {
            true => format!("the key usage of its issuer {who:?} is without cRLSign"),
            false => format!("its signature is not by {who:?} of client_auth.ca"),
        })
    }
}

fn names_equal(one: &X509NameRef, other: &X509NameRef) -> bool {
    one.try_cmp(other).is_ok_and(std::cmp::Ordering::is_eq)
}

/// CertificateList, taken apart.
struct Parts<'a> {
    /// What is signed.
    signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    this_update: i64,
    next_update: Option<i64>,
    revoked: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(der: &'a [u8]) -> Option<Self> {
        const EXTENSIONS: u8 = 0xa0;
        let mut outer = Reader::new(der);
        let mut list = Reader::new(outer.expect(SEQUENCE)?.content);
        let tbs = list.expect(SEQUENCE)?;
        let algorithm = list.expect(SEQUENCE)?.whole;
        // A signature is whole octets: no unused bits.
        let (0, signature) = list.expect(BIT_STRING)?.content.split_first().map(|(n, s)| (*n, s))? else { return None };
        let mut inner = Reader::new(tbs.content);
        inner.optional(INTEGER)?;
        let same_algorithm = inner.expect(SEQUENCE)?.whole == algorithm;
        let issuer = inner.expect(SEQUENCE)?.whole;
        let this_update = inner.time()?;
        let has_next = inner.peek().is_some_and(|tag| tag != SEQUENCE && tag != EXTENSIONS);
        let next_update = if has_next { Some(inner.time()?) } else { None };
        let revoked = inner.optional(SEQUENCE)?.map_or(&[][..], |e| e.content);
        let extensions = match inner.optional(EXTENSIONS)? {
            Some(explicit) => Reader::new(explicit.content).expect(SEQUENCE)?.content,
            None => &[],
        };
        let whole = outer.is_empty() && list.is_empty() && inner.is_empty() && same_algorithm;
        let parts =
            Self { signed: tbs.whole, algorithm, signature, issuer, this_update, next_update, revoked, extensions };
        whole.then_some(parts)
    }
}

/// How a list is signed. SHA-1 and older are not among the ways.
pub(super) enum Algorithm {
    /// RSA (PKCS #1 v1.5) or ECDSA.
    Digest(Id, MessageDigest),
    RsaPss(MessageDigest),
    /// Ed25519 or Ed448.
    Edwards(Id),
}

impl Algorithm {
    /// From an AlgorithmIdentifier (RFC 4055, 5758, 8410).
    pub(super) fn of(identifier: &[u8]) -> Result<Self, String> {
        const UNKNOWN: &str = "its signature algorithm is unknown or weak; RSA, ECDSA with SHA-2 and Ed25519 are known";
        let mut reader = Reader::new(Reader::new(identifier).any().ok_or(UNKNOWN)?.content);
        let object = reader.expect(OBJECT).ok_or(UNKNOWN)?.content;
        let sha2 = |last: &u8, first: u8| match last.checked_sub(first) {
            Some(0) => Ok(MessageDigest::sha256()),
            Some(1) => Ok(MessageDigest::sha384()),
            Some(2) => Ok(MessageDigest::sha512()),
            _ => Err(UNKNOWN.to_owned()),
        };
        match object {
            // 1.2.840.113549.1.1: 10 is PSS, 11 to 13 are with SHA-256, SHA-384 and SHA-512.
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10] => {
                pss_digest(reader).map(Algorithm::RsaPss).ok_or(UNKNOWN.into())
            }
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last] => sha2(last, 11).map(|d| Algorithm::Digest(Id::RSA, d)),
            // 1.2.840.10045.4.3: 2 to 4.
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last] => sha2(last, 2).map(|d| Algorithm::Digest(Id::EC, d)),
            [0x2b, 0x65, 112] => Ok(Algorithm::Edwards(Id::ED25519)),
            [0x2b, 0x65, 113] => Ok(Algorithm::Edwards(Id::ED448)),
            _ => Err(UNKNOWN.into()),
        }
    }

    fn verifies<T: HasPublic>(&self, key: &PKeyRef<T>, list: &Parts<'_>) -> bool {
        let verify = || match *self {
            Algorithm::Digest(id, digest) if key.id() == id => {
                Verifier::new(digest, key)?.verify_oneshot(list.signature, list.signed)
            }
            Algorithm::Edwards(id) if key.id() == id => {
                Verifier::new_without_digest(key)?.verify_oneshot(list.signature, list.signed)
            }
            Algorithm::RsaPss(digest) if [Id::RSA, Id::RSA_PSS].contains(&key.id()) => {
                let mut verifier = Verifier::new(digest, key)?;
                verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
                verifier.set_rsa_mgf1_md(digest)?;
                // RSA_PSS_SALTLEN_AUTO: whatever the signature has.
                verifier.set_rsa_pss_saltlen(RsaPssSaltlen::custom(-2))?;
                verifier.verify_oneshot(list.signature, list.signed)
            }
            _ => Ok(false),
        };
        let verified: Result<bool, ErrorStack> = verify();
        verified.unwrap_or(false)
    }
}

/// The hash of RSASSA-PSS-params, where the default would be SHA-1. The mask's hash is taken to be the same, as RFC 4055
/// recommends; a list for which it is not does not verify.
fn pss_digest(mut reader: Reader<'_>) -> Option<MessageDigest> {
    let mut parameters = Reader::new(reader.expect(SEQUENCE)?.content);
    let hash = Reader::new(parameters.expect(0xa0)?.content).expect(SEQUENCE)?.content;
    // 2.16.840.1.101.3.4.2: 1 to 3.
    match Reader::new(hash).expect(OBJECT)?.content {
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1] => Some(MessageDigest::sha256()),
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2] => Some(MessageDigest::sha384()),
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3] => Some(MessageDigest::sha512()),
        _ => None,
    }
}

/// What a list says about itself. An extension that is critical and unknown forbids to use it (RFC 5280, section 5.2).
struct Extensions {
    number: Vec<u8>,
    scope: Scope,
}

impl Extensions {
    fn of(content: &[u8], issuer: &[u8]) -> Result<Self, String> {
        let mut all = Self { number: Vec::new(), scope: Scope { users: true, authorities: true, part: None } };
        let mut reader = Reader::new(content);
        while !reader.is_empty() {
            let one = reader.expect(SEQUENCE).and_then(extension).ok_or("one of its extensions can't be read")?;
            match one {
                // 2.5.29: 20 is the CRL number, 27 the delta's base, 28 the issuing distribution point.
                ([0x55, 0x1d, 20], _, value) => {
                    let number = Reader::new(value).expect(INTEGER).ok_or("its number can't be read")?.content;
                    let zeros = number.iter().take_while(|b| **b == 0).count();
                    all.number = number[zeros..].to_vec();
                }
                ([0x55, 0x1d, 27], ..) => return Err("it is a delta; whole lists are needed".into()),
                ([0x55, 0x1d, 28], _, value) => all.scope = Scope::of(value, issuer)?,
                (object, true, _) => return Err(format!("its critical extension {} is unknown", dotted(object))),
                _ => {}
            }
        }
        Ok(all)
    }
}

impl Scope {
    /// From IssuingDistributionPoint, and the list's issuer, a Name in DER.
    fn of(value: &[u8], issuer: &[u8]) -> Result<Self, String> {
        let mut scope = Self { users: true, authorities: true, part: None };
        let mut reader = Reader::new(value);
        let mut fields = Reader::new(reader.expect(SEQUENCE).ok_or("its distribution point can't be read")?.content);
        while !fields.is_empty() {
            let field = fields.any().ok_or("its distribution point can't be read")?;
            let on = field.content != [0];
            match field.tag {
                0xa0 => {
                    let names = points::names_of(field.content).ok_or("its distribution point can't be read")?;
                    let whole = names.iter().any(|name| points::is_directory_name(name, issuer));
                    scope.part = (!whole).then(|| names.into());
                }
                0x81 if on => scope.authorities = false,
                0x82 if on => scope.users = false,
                0x81 | 0x82 | 0x84 | 0x85 if !on => {}
                0x83 => return Err("it is for some reasons of revocation only".into()),
                0x84 => return Err("it is an indirect one, by another than the certificates' issuer".into()),
                _ => return Err("it is not about certificates of clients or CAs".into()),
            }
        }
        Ok(scope)
    }
}

fn dotted(object: &[u8]) -> String {
    object.iter().map(|b| format!("{b:02x}")).collect()
}

/// The content octets of the revoked certificates' serials.
#[derive(Clone)]
struct Entries<'a>(Reader<'a>);

impl Entries<'_> {
    /// Whether all of them can be read and used.
    fn check(&self) -> Result<(), String> {
        let mut reader = self.0;
        let mut at = 0;
        while !reader.is_empty() {
            at += 1;
            let checked = reader.expect(SEQUENCE).and_then(|entry| {
                let mut fields = Reader::new(entry.content);
                fields.expect(INTEGER)?;
                fields.any()?;
                Some(fields)
            });
            let mut rest = checked.ok_or_else(|| format!("its entry {at} can't be read"))?;
            if rest.is_empty() {
                continue;
            }
            let mut extensions = rest.expect(SEQUENCE).map(|e| Reader::new(e.content)).unwrap_or(Reader::new(&[]));
            while !extensions.is_empty() {
                let one = extensions.expect(SEQUENCE).and_then(extension);
                let (object, critical, _) = one.ok_or_else(|| format!("its entry {at} can't be read"))?;
                // 2.5.29.21 is the reason.
                if critical && object != [0x55, 0x1d, 21] {
                    return Err(format!("the critical extension {} of its entry {at} is unknown", dotted(object)));
                }
            }
        }
        Ok(())
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let entry = self.0.expect(SEQUENCE)?;
        Reader::new(entry.content).expect(INTEGER).map(|serial| serial.content)
    }
}
