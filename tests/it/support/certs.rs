//! A mesh's certificates, and every kind of wrong one, made in memory and written where a test wants them.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName, SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Name, X509NameBuilder};

const DAY: i64 = 86_400;

/// A certificate with its key and the intermediates that go along with it.
#[derive(Clone)]
pub struct Identity {
    pub cert: X509,
    pub key: PKey<Private>,
    pub chain: Vec<X509>,
}

impl Identity {
    /// Leaf and intermediates, PEM.
    pub fn chain_pem(&self) -> Vec<u8> {
        let mut pem = self.cert.to_pem().unwrap();
        for cert in &self.chain {
            pem.extend(cert.to_pem().unwrap());
        }
        pem
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert, self.chain_pem()).unwrap();
        std::fs::write(&key, self.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        (cert, key)
    }

    /// The same certificate, its intermediates left at home.
    pub fn without_chain(&self) -> Self {
        Self { chain: Vec::new(), ..self.clone() }
    }

    pub fn sha256_hex(&self) -> String {
        self.cert.digest(MessageDigest::sha256()).unwrap().iter().map(|b| format!("{b:02x}")).collect()
    }

    pub fn serial_hex(&self) -> String {
        self.cert.serial_number().to_bn().unwrap().to_hex_str().unwrap().to_string()
    }
}

/// What stands in a leaf certificate.
#[derive(Clone)]
pub struct Leaf {
    pub subject: String,
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub ips: Vec<String>,
    /// Seconds from now.
    pub not_before: i64,
    pub not_after: i64,
    pub server_auth: bool,
    pub client_auth: bool,
    pub digest: MessageDigest,
}

impl Leaf {
    pub fn client(subject: &str, uri: &str) -> Self {
        Self {
            subject: subject.into(),
            uris: vec![uri.into()],
            dns: Vec::new(),
            ips: Vec::new(),
            not_before: -3600,
            not_after: DAY,
            server_auth: false,
            client_auth: true,
            digest: MessageDigest::sha256(),
        }
    }

    pub fn server(names: &[&str]) -> Self {
        let dns = names.iter().map(|n| (*n).to_owned()).collect();
        Self { uris: Vec::new(), dns, server_auth: true, client_auth: false, ..Self::client(names[0], "") }
    }
}

/// A root, an intermediate below it, and leaves below that.
pub struct Pki {
    pub root: Identity,
    pub intermediate: Identity,
}

impl Default for Pki {
    fn default() -> Self {
        Self::new("Test Mesh")
    }
}

impl Pki {
    pub fn new(name: &str) -> Self {
        let root = authority(&format!("{name} Root"), None);
        let intermediate = authority(&format!("{name} Issuing"), Some(&root));
        Self { root, intermediate }
    }

    /// A leaf below the intermediate, which comes along in its chain.
    pub fn leaf(&self, leaf: &Leaf) -> Identity {
        let mut made = sign(leaf, Some(&self.intermediate));
        made.chain = vec![self.intermediate.cert.clone()];
        made
    }

    pub fn client(&self, name: &str) -> Identity {
        self.leaf(&Leaf::client(name, &format!("spiffe://mesh.test/hive/{name}")))
    }

    /// Writes the root alone; the gateway then needs the intermediate from the client.
    pub fn write_root(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(format!("{name}.pem"));
        std::fs::write(&path, self.root.cert.to_pem().unwrap()).unwrap();
        path
    }
}

/// A leaf that vouches for itself.
pub fn self_signed(leaf: &Leaf) -> Identity {
    sign(leaf, None)
}

pub fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn common_name(text: &str) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", text).unwrap();
    name.build()
}

fn builder(subject: &str, not_before: i64, not_after: i64, key: &PKey<Private>) -> openssl::x509::X509Builder {
    let mut b = X509::builder().unwrap();
    b.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(127, MsbOption::ONE, false).unwrap();
    b.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    b.set_subject_name(&common_name(subject)).unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    b.set_not_before(&Asn1Time::from_unix(now + not_before).unwrap()).unwrap();
    b.set_not_after(&Asn1Time::from_unix(now + not_after).unwrap()).unwrap();
    b.set_pubkey(key).unwrap();
    b
}

fn authority(subject: &str, issuer: Option<&Identity>) -> Identity {
    let key = new_key();
    let mut b = builder(subject, -DAY, 10 * DAY, &key);
    b.set_issuer_name(&common_name(&issuer.map_or(subject.to_owned(), cn))).unwrap();
    b.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    b.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build().unwrap()).unwrap();
    let id = SubjectKeyIdentifier::new().build(&b.x509v3_context(issuer.map(|i| &*i.cert), None)).unwrap();
    b.append_extension(id).unwrap();
    if let Some(issuer) = issuer {
        let id = AuthorityKeyIdentifier::new().keyid(true).build(&b.x509v3_context(Some(&issuer.cert), None)).unwrap();
        b.append_extension(id).unwrap();
    }
    b.sign(issuer.map_or(&key, |i| &i.key), MessageDigest::sha256()).unwrap();
    Identity { cert: b.build(), key, chain: Vec::new() }
}

fn cn(identity: &Identity) -> String {
    let entry = identity.cert.subject_name().entries_by_nid(Nid::COMMONNAME).next().unwrap();
    entry.data().as_utf8().unwrap().to_string()
}

fn sign(leaf: &Leaf, issuer: Option<&Identity>) -> Identity {
    let key = new_key();
    let mut b = builder(&leaf.subject, leaf.not_before, leaf.not_after, &key);
    b.set_issuer_name(&common_name(&issuer.map_or(leaf.subject.clone(), cn))).unwrap();
    b.append_extension(BasicConstraints::new().critical().build().unwrap()).unwrap();
    b.append_extension(KeyUsage::new().critical().digital_signature().build().unwrap()).unwrap();
    let mut purpose = ExtendedKeyUsage::new();
    if leaf.server_auth {
        purpose.server_auth();
    }
    if leaf.client_auth {
        purpose.client_auth();
    }
    b.append_extension(purpose.build().unwrap()).unwrap();
    if !(leaf.uris.is_empty() && leaf.dns.is_empty() && leaf.ips.is_empty()) {
        let mut names = SubjectAlternativeName::new();
        leaf.uris.iter().for_each(|uri| _ = names.uri(uri));
        leaf.dns.iter().for_each(|dns| _ = names.dns(dns));
        leaf.ips.iter().for_each(|ip| _ = names.ip(ip));
        let names = names.build(&b.x509v3_context(issuer.map(|i| &*i.cert), None)).unwrap();
        b.append_extension(names).unwrap();
    }
    b.sign(issuer.map_or(&key, |i| &i.key), leaf.digest).unwrap();
    Identity { cert: b.build(), key, chain: Vec::new() }
}
