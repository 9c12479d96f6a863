//! Which clients' certificates are revoked: an immutable set, built off the request path and asked in constant time.
//!
//! OpenSSL's own CRL machinery is not used: it keeps some hundred bytes for each entry, parses within its store, and can
//! be asked only during a handshake. Here a list of a million entries takes about 20 MB, is held once however many
//! listeners and snapshots use it, and is asked by running connections too.
//!
//! **What a list must be**: whole (no delta), direct (signed by the issuer of the certificates), signed with SHA-2 or
//! Ed25519 by a CA of `client_auth.ca` that may sign CRLs. A list with a distribution point
//! is about the certificates that name the same one, and says nothing of others; of two for the same certificates the
//! newer one counts, and a replayed older one is refused.

mod crl;
pub(in crate::tls) mod der;
mod fetch;
mod followed;
mod live;
mod ocsp;
pub(in crate::tls) mod ocsp_answer;
mod points;
mod serials;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use openssl::error::ErrorStack;
use openssl::stack::StackRef;
use openssl::x509::{X509, X509Ref};
use parking_lot::Mutex;

use crate::config::file::{CrlCheck, ExpiredCrl};

use super::TlsFault;
use super::certificate::is_ca;

pub use crl::{Bundle, Crl, IssuerId, Scope};
pub use fetch::{Answer, CrlUrl, Fetched, fetch};
pub use followed::{crl_asked, crl_wanted};
pub use live::{CrlFacts, Revocation, two_thirds};
pub use ocsp::{Ocsp, OcspAnswer, OcspVerdict};
pub use points::{Names, UrlPrefix};
pub use serials::{Serial, Serials};
pub use store::StateDir;

/// Largest CRL file or answer, in bytes: about three million entries.
pub const CRL_BYTES_MAX: u64 = 128 << 20;

/// A list from the near future is taken: clocks differ.
const CLOCK_SKEW_SECONDS: i64 = 300;

/// Held while lists are read: one at a time, for each may take a few hundred megabytes until it is packed.
static READING: Mutex<()> = Mutex::new(());

/// A certificate of a client's chain, as it is asked for.
#[derive(Debug, Clone)]
pub struct Link {
    issuer: IssuerId,
    serial: Serial,
    authority: bool,
    /// The names of its distribution points.
    points: Names,
}

impl Link {
    /// Of a certificate and the one that signed it.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn of(cert: &X509Ref, issuer: &X509Ref) -> Result<Self, ErrorStack> {
        let number = cert.serial_number().to_bn()?;
        let magnitude = number.to_vec();
        let serial = if number.is_negative() { twos_complement(magnitude) } else { [&[0], &magnitude[..]].concat() };
        let points = points::of_certificate(cert);
        Ok(Self { issuer: IssuerId::of(issuer)?, serial: Serial::of_der(&serial), authority: is_ca(cert), points })
    }

    /// Of a verified chain, leaf first: all but the root, which nobody can revoke.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn of_chain(chain: &StackRef<X509>, check: CrlCheck) -> Result<Vec<Self>, ErrorStack> {
        let most = match check {
            CrlCheck::Leaf => 1,
            CrlCheck::Chain => usize::MAX,
        };
        let pairs = chain.iter().zip(chain.iter().skip(1));
        pairs.take(most).map(|(cert, issuer)| Self::of(cert, issuer)).collect()
    }
}

/// The content octets of a negative INTEGER.
fn twos_complement(mut magnitude: Vec<u8>) -> Vec<u8> {
    let mut carry = true;
    for byte in magnitude.iter_mut().rev() {
        let (negated, next) = (!*byte).overflowing_add(u8::from(carry));
        (*byte, carry) = (negated, next);
    }
    if magnitude.first().is_none_or(|first| first & 0x80 == 0) {
        magnitude.insert(0, 0xff);
    }
    magnitude
}

/// What is known of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not revoked, as far as is known until then (seconds since 1970).
    Good {
        /// When the last list that says so is due to be replaced.
        until: i64,
    },
    /// Revoked.
    Revoked,
    /// No list of its issuer is about it.
    NoCrl,
    /// The list that is about it is past its nextUpdate, and that is not accepted.
    CrlExpired,
}

/// All lists of one listener, by issuer.
#[derive(Debug, Default)]
pub struct RevocationSet {
    generation: u64,
    by_issuer: AHashMap<IssuerId, Vec<Arc<Crl>>>,
}

impl RevocationSet {
    /// Reads files of one or more lists, PEM or DER. `ca` is the bundle whose CAs may sign, `now` Unix time in seconds.
    ///
    /// # Errors
    /// Everything that is wrong with any of them, with `client_auth.crl[…]` as its place.
    pub fn load(files: &[String], base_dir: &Path, ca: &[X509], now: i64) -> Result<Arc<Self>, Vec<TlsFault>> {
        let bundle = Bundle::of(ca);
        let mut faults = Vec::new();
        let mut all = Vec::new();
        for (at, file) in files.iter().enumerate() {
            match read_from(&base_dir.join(file), &bundle, now) {
                Ok(lists) => all.extend(lists),
                Err(why) => {
                    faults
                        .push(TlsFault { field: format!("client_auth.crl[{at}]"), message: format!("{file}: {why}") });
                }
            }
        }
        if faults.is_empty() { Ok(Arc::new(Self::of(all))) } else { Err(faults) }
    }

    /// Puts lists together; of those about the same certificates the newest stays.
    pub fn of(lists: impl IntoIterator<Item = Arc<Crl>>) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let mut by_issuer: AHashMap<IssuerId, Vec<Arc<Crl>>> = AHashMap::new();
        for crl in lists {
            let of_issuer = by_issuer.entry(crl.issuer).or_default();
            match of_issuer.iter_mut().find(|other| crl.is_about_the_same_as(other)) {
                Some(other) if other.is_older_than(&crl) => *other = crl,
                Some(_) => {}
                None => of_issuer.push(crl),
            }
        }
        Self { generation: GENERATION.fetch_add(1, Ordering::Relaxed), by_issuer }
    }

    /// Tells one set from another: what was found out with one holds as long as it is the one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every list.
    pub fn crls(&self) -> impl Iterator<Item = &Arc<Crl>> {
        self.by_issuer.values().flatten()
    }

    /// Asks about one certificate. One hash look-up for the issuer, one for the serial in each of its lists, of which
    /// there is one unless the CA splits them. A serial that any of them has is revoked; that it is not is said by each
    /// list that is about it, and the one that lasts longest counts.
    pub fn ask(&self, link: &Link, expired: ExpiredCrl, now: i64) -> Verdict {
        let lists = self.by_issuer.get(&link.issuer).map_or(&[][..], Vec::as_slice);
        let mut until = None;
        for crl in lists {
            if crl.revokes(&link.serial) {
                return Verdict::Revoked;
            }
            if crl.scope.covers(link) {
                until = until.max(Some(crl.next_update));
            }
        }
        match (until, expired) {
            (None, _) => Verdict::NoCrl,
            (Some(until), ExpiredCrl::Reject) if until < now => Verdict::CrlExpired,
            (Some(until), ExpiredCrl::Reject) => Verdict::Good { until },
            (Some(_), ExpiredCrl::Accept) => Verdict::Good { until: i64::MAX },
        }
    }
}

/// The lists in a file. Waits its turn.
fn read_from(path: &Path, bundle: &Bundle, now: i64) -> Result<Vec<Arc<Crl>>, String> {
    let _turn = READING.lock();
    read_lists(&read_file(path)?, bundle, now)
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let file = crate::files::open_regular(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(CRL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > CRL_BYTES_MAX { Err("larger than 128 MiB".into()) } else { Ok(bytes) }
}

/// The lists in a text of PEM, or the one in DER.
pub(super) fn read_lists(bytes: &[u8], bundle: &Bundle, now: i64) -> Result<Vec<Arc<Crl>>, String> {
    const BEGIN: &[u8] = b"-----BEGIN X509 CRL-----";
    const END: &[u8] = b"-----END X509 CRL-----";
    let read = |der: &[u8]| {
        let crl = Crl::read(der, bundle)?;
        if crl.this_update > now + CLOCK_SKEW_SECONDS {
            return Err(format!("its thisUpdate is {} seconds in the future", crl.this_update - now));
        }
        Ok(crl)
    };
    if bytes.first() == Some(&der::SEQUENCE) {
        return read(bytes).map(|crl| vec![crl]);
    }
    let mut lists = Vec::new();
    let mut rest = bytes;
    while let Some(begin) = memchr::memmem::find(rest, BEGIN) {
        rest = &rest[begin + BEGIN.len()..];
        let end = memchr::memmem::find(rest, END).ok_or("a PEM block without its end")?;
        lists.push(read(&decode_base64(&rest[..end])?)?);
        rest = &rest[end + END.len()..];
    }
    if lists.is_empty() { Err("holds no CRL, in PEM or DER".into()) } else { Ok(lists) }
}

/// Piece by piece: a second copy of a large list would be too many.
fn decode_base64(text: &[u8]) -> Result<Vec<u8>, String> {
    const PIECE: usize = 64 << 10;
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut piece = String::with_capacity(PIECE);
    let mut decode = |piece: &mut String| {
        let decoded = openssl::base64::decode_block(piece).map_err(|_| "a PEM block that is not base64".to_owned())?;
        out.extend_from_slice(&decoded);
        piece.clear();
        Ok::<_, String>(())
    };
    for byte in text.iter().filter(|b| !b.is_ascii_whitespace()) {
        // What is no ASCII is no base64 either.
        piece.push(char::from(*byte));
        if piece.len() == PIECE {
            decode(&mut piece)?;
        }
    }
    if !piece.is_empty() {
        decode(&mut piece)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
