//! PEM files, read and judged: everything that is wrong with one is said at once.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::pkey::{HasPublic, Id, PKey, PKeyRef, Private};
use openssl::x509::{X509, X509ExtendedKeyUsage, X509Ref, X509VerifyResult};

use super::TlsFault;
use super::certificate::{is_ca, name, unix_seconds};
use crate::files::open_regular;

/// Larger files are refused: certificates are small, and a wrong file name should not fill the memory.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// Most certificates in a chain.
const CHAIN_LENGTH_MAX: usize = 10;

/// Smallest RSA key, in bits: 112 bits of security (NIST SP 800-57, part 1, table 2).
const RSA_BITS_MIN: u32 = 2048;

/// Smallest elliptic curve key, in bits: P-256.
const EC_BITS_MIN: u32 = 256;

/// RSA keys below this are told of: 128 bits of security from then on (NIST SP 800-57, part 1, table 4).
const RSA_BITS_GOOD: u32 = 3072;

/// Longest life of a certificate that is not told of (CA/Browser Forum, SC-22).
const LIFE_DAYS_MAX: i64 = 398;

const DAY_SECONDS: i64 = 24 * 3600;

/// Files of a `tls` block, and what was found wrong with them so far.
pub(super) struct Files<'a> {
    pub(super) base_dir: &'a Path,
    /// Unix time in seconds.
    pub(super) now: i64,
    pub(super) faults: Vec<TlsFault>,
    pub(super) warnings: Vec<TlsFault>,
}

/// A certificate chain, leaf first, and the leaf's key.
pub(super) struct ChainAndKey {
    pub(super) chain: Vec<X509>,
    pub(super) key: PKey<Private>,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

impl<'a> Files<'a> {
    pub(super) fn new(base_dir: &'a Path, now: i64) -> Self {
        Self { base_dir, now, faults: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn fault(&mut self, field: &str, message: String) {
        self.faults.push(TlsFault { field: field.to_owned(), message });
    }

    pub(super) fn warn(&mut self, field: &str, message: String) {
        self.warnings.push(TlsFault { field: field.to_owned(), message });
    }

    fn path(&self, file: &str) -> PathBuf {
        self.base_dir.join(file)
    }

    /// The file's bytes, or `None` and a fault.
    pub(super) fn read(&mut self, field: &str, file: &str) -> Option<Vec<u8>> {
        let path = self.path(file);
        match read_small(&path) {
            Ok(bytes) => Some(bytes),
            Err(why) => {
                self.fault(field, format!("{}: {why}", path.display()));
                None
            }
        }
    }

    /// Certificates of a PEM file, at least one.
    fn certificates(&mut self, field: &str, file: &str) -> Option<Vec<X509>> {
        let bytes = self.read(field, file)?;
        match X509::stack_from_pem(&bytes) {
            Ok(certs) if !certs.is_empty() => Some(certs),
            Ok(_) => {
                self.fault(field, format!("{file} holds no PEM certificate"));
                None
            }
            Err(e) => {
                self.fault(field, format!("{file} holds a certificate that can't be read: {}", reason(&e)));
                None
            }
        }
    }

    /// A chain and its key, both fit for `role`. `None` only together with a fault.
    pub(super) fn chain_and_key(&mut self, fields: [&str; 2], files: [&str; 2], role: Role) -> Option<ChainAndKey> {
        let chain = self.certificates(fields[0], files[0]);
        let key = self.key(fields[1], files[1]);
        if let Some(chain) = &chain {
            self.check_chain(fields[0], files[0], chain, role);
        }
        let (chain, key) = (chain?, key?);
        match chain.first().map(|leaf| leaf.public_key()) {
            Some(Ok(public)) if public.public_eq(&key) => Some(ChainAndKey { chain, key }),
            Some(Ok(_)) => {
                let better = chain.iter().skip(1).any(|cert| cert.public_key().is_ok_and(|k| k.public_eq(&key)));
                let hint = if better { "; the leaf must be the first certificate of the file" } else { "" };
                self.fault(fields[1], format!("{} is not the key of the certificate in {}{hint}", files[1], files[0]));
                None
            }
            Some(Err(e)) => {
                self.fault(fields[0], format!("{}: the public key can't be read: {}", files[0], reason(&e)));
                None
            }
            None => None,
        }
    }

    fn key(&mut self, field: &str, file: &str) -> Option<PKey<Private>> {
        let bytes = self.read(field, file)?;
        self.check_key_mode(field, file);
        // Without the callback OpenSSL would ask for a pass phrase on the terminal.
        match PKey::private_key_from_pem_callback(&bytes, |_| Ok(0)) {
            Ok(key) => Some(key),
            Err(_) if bytes.windows(9).any(|w| w == b"ENCRYPTED") => {
                self.fault(field, format!("{file} is encrypted; keys are read without a pass phrase"));
                None
            }
            Err(_) => {
                self.fault(field, format!("{file} holds no PEM private key"));
                None
            }
        }
    }

    #[cfg(unix)]
    fn check_key_mode(&mut self, field: &str, file: &str) {
        use std::os::unix::fs::MetadataExt;
        let mode = fs::metadata(self.path(file)).map_or(0, |meta| meta.mode());
        if mode & 0o007 != 0 {
            self.warn(field, format!("{file} can be read by every user (mode {:04o}); use 0600", mode & 0o7777));
        }
    }

    #[cfg(not(unix))]
    fn check_key_mode(&mut self, _field: &str, _file: &str) {}

    /// Whether a chain, called `file`, is whole, holds now and is fit for `role`.
    pub(super) fn check_chain(&mut self, field: &str, file: &str, chain: &[X509], role: Role) {
        if chain.len() > CHAIN_LENGTH_MAX {
            self.fault(field, format!("{file} holds {} certificates; at most {CHAIN_LENGTH_MAX}", chain.len()));
            return;
        }
        for (at, cert) in chain.iter().enumerate() {
            let which = if at == 0 { file.to_owned() } else { format!("{file}, certificate {}", at + 1) };
            self.check_dates(field, &which, cert);
            if let Some(why) = weakness(cert) {
                self.fault(field, format!("{which}: {why}"));
            }
        }
        for (at, pair) in chain.windows(2).enumerate() {
            if !is_issued_by(&pair[0], &pair[1]) {
                let (this, next) = (at + 1, at + 2);
                let issuer = name(pair[0].issuer_name());
                let why = format!("certificate {next} did not issue certificate {this}, whose issuer is {issuer:?}");
                self.fault(field, format!("{file}: {why}; write the leaf first, then each issuer"));
            }
        }
        if let Some(leaf) = chain.first() {
            self.check_leaf(field, file, leaf, role);
            self.doubt_leaf(field, file, leaf);
            self.doubt_rest(field, file, leaf);
        }
    }

    /// Whoever rotates a certificate does so before two thirds of its life are over; one that is older was forgotten.
    fn doubt_rest(&mut self, field: &str, which: &str, cert: &X509Ref) {
        let (from, to) = (unix_seconds(cert.not_before()), unix_seconds(cert.not_after()));
        if self.now <= to && self.now >= from.saturating_add(to.saturating_sub(from) / 3 * 2) {
            let end = cert.not_after();
            self.warn(field, format!("{which}: two thirds of its life are over, it expires at {end}; renew it"));
        }
    }

    /// What holds today but is weaker than it should be: told, not refused.
    fn doubt_leaf(&mut self, field: &str, file: &str, leaf: &X509Ref) {
        let rsa_bits =
            leaf.public_key().ok().filter(|key| [Id::RSA, Id::RSA_PSS].contains(&key.id())).map(|k| k.bits());
        if let Some(bits) = rsa_bits.filter(|bits| (RSA_BITS_MIN..RSA_BITS_GOOD).contains(bits)) {
            let better = "ECDSA P-256 is stronger and faster";
            self.warn(field, format!("{file}: its RSA key has {bits} bits; {RSA_BITS_GOOD} are good today, {better}"));
        }
        let days = (unix_seconds(leaf.not_after()) - unix_seconds(leaf.not_before())) / DAY_SECONDS;
        if days > LIFE_DAYS_MAX {
            let limit = format!("more than {LIFE_DAYS_MAX} days are refused by browsers and hard to revoke");
            self.warn(field, format!("{file}: it lives {days} days; {limit}"));
        }
    }

    fn check_leaf(&mut self, field: &str, file: &str, leaf: &X509Ref, role: Role) {
        if is_ca(leaf) {
            self.fault(field, format!("{file}: the first certificate is a CA's, not one of a {}", role.noun()));
        }
        let (needed, purpose) = match role {
            Role::Server => (X509ExtendedKeyUsage::SSL_SERVER, "serverAuth"),
            Role::Client => (X509ExtendedKeyUsage::SSL_CLIENT, "clientAuth"),
        };
        let usage = leaf.extended_key_usage();
        if usage.is_some_and(|usage| !usage.intersects(needed | X509ExtendedKeyUsage::ANYEKU)) {
            self.fault(field, format!("{file}: extended key usage is without {purpose}"));
        }
    }

    /// A certificate must hold now.
    fn check_dates(&mut self, field: &str, which: &str, cert: &X509Ref) {
        if let Some(why) = self.date_fault(cert) {
            self.fault(field, format!("{which}: {why}"));
        }
    }

    fn date_fault(&self, cert: &X509Ref) -> Option<String> {
        if unix_seconds(cert.not_after()) < self.now {
            Some(format!("expired at {}", cert.not_after()))
        } else if unix_seconds(cert.not_before()) > self.now {
            Some(format!("not valid before {}", cert.not_before()))
        } else {
            None
        }
    }

    /// A file's bundle of CA certificates: at least one root that holds now.
    pub(super) fn bundle(&mut self, field: &str, file: &str) -> Option<Vec<X509>> {
        let certs = self.certificates(field, file)?;
        self.check_bundle(field, file, certs)
    }

    /// A bundle of CA certificates, if it is one. `file` is what to call it.
    pub(super) fn check_bundle(&mut self, field: &str, file: &str, certs: Vec<X509>) -> Option<Vec<X509>> {
        let faults_before = self.faults.len();
        for (at, cert) in certs.iter().enumerate() {
            let which = || format!("{file}, certificate {} ({:?})", at + 1, name(cert.subject_name()));
            if !is_ca(cert) {
                self.fault(field, format!("{} is not a CA certificate", which()));
            }
            if let Some(why) = self.date_fault(cert) {
                self.warn(field, format!("{}: {why}", which()));
            }
            self.doubt_rest(field, &which(), cert);
            if let Some(why) = weakness(cert) {
                self.warn(field, format!("{}: {why}; certificates below it are refused", which()));
            }
            if !is_root(cert) && !certs.iter().any(|issuer| is_issued_by(cert, issuer)) {
                let issuer = name(cert.issuer_name());
                self.warn(
                    field,
                    format!("{}: its issuer {issuer:?} is not in the bundle, so it leads nowhere", which()),
                );
            }
        }
        let roots: Vec<&X509> = certs.iter().filter(|cert| is_root(cert)).collect();
        if roots.is_empty() {
            self.fault(field, format!("{file} holds no self-signed root; chains must end in one"));
        } else if roots.iter().all(|root| self.date_fault(root).is_some()) {
            self.fault(field, format!("{file}: none of its roots is valid now"));
        }
        (self.faults.len() == faults_before).then_some(certs)
    }
}

impl Role {
    fn noun(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Client => "client",
        }
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>, String> {
    let file = open_regular(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_SIZE_MAX { Err("larger than 1 MiB".into()) } else { Ok(bytes) }
}

/// OpenSSL's reasons, without its file names and codes.
pub(super) fn reason(errors: &ErrorStack) -> String {
    let reasons: Vec<&str> = errors.errors().iter().filter_map(|e| e.reason()).collect();
    if reasons.is_empty() { "no reason given".into() } else { reasons.join(", ") }
}

pub(super) fn is_issued_by(cert: &X509Ref, issuer: &X509Ref) -> bool {
    issuer.issued(cert) == X509VerifyResult::OK
        && issuer.public_key().is_ok_and(|key| cert.verify(&key).unwrap_or(false))
}

fn is_root(cert: &X509Ref) -> bool {
    is_issued_by(cert, cert)
}

/// What clients with common settings would refuse in a certificate that the gateway presents.
fn weakness(cert: &X509Ref) -> Option<String> {
    key_weakness(cert).or_else(|| {
        // Nobody looks at a root's own signature.
        let digest = cert.signature_algorithm().object().nid().signature_algorithms()?.digest;
        let weak = [openssl::nid::Nid::SHA1, openssl::nid::Nid::MD5].contains(&digest);
        (weak && !is_root(cert)).then(|| "signed with SHA-1 or MD5".to_owned())
    })
}

/// Why a certificate's key is too weak, if it is.
pub(super) fn key_weakness(cert: &X509Ref) -> Option<String> {
    match cert.public_key() {
        Ok(key) => small_key(&key),
        Err(_) => Some("its public key can't be read".to_owned()),
    }
}

fn small_key<T: HasPublic>(key: &PKeyRef<T>) -> Option<String> {
    let (kind, least) = match key.id() {
        Id::RSA | Id::RSA_PSS => ("RSA", RSA_BITS_MIN),
        Id::EC => ("elliptic curve", EC_BITS_MIN),
        Id::ED25519 | Id::ED448 => return None,
        _ => return (key.security_bits() < 112).then(|| "its key is too weak".to_owned()),
    };
    let bits = key.bits();
    (bits < least).then(|| format!("its {kind} key has {bits} bits; at least {least}"))
}
