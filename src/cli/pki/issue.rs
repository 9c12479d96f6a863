//! Making certificates: an authority, and what it issues. Not for production: the CA's key lies in a file.

use std::net::IpAddr;

use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, PKeyRef, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName, SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509Extension, X509Name, X509NameRef};

use super::extensions::RawExtension;

/// Bits of a serial number: 159 keep it positive in the 20 bytes that RFC 5280, section 4.1.2.2, allows.
const SERIAL_BITS: i32 = 159;

/// From when to when a certificate holds, Unix time in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    /// From a minute before `now`, for clocks that are a little behind, until `seconds` after it.
    pub fn seconds_from(now: i64, seconds: i64) -> Self {
        Self { not_before: now - 60, not_after: now + seconds }
    }

    /// As [`Validity::seconds_from`], in hours.
    pub fn hours_from(now: i64, hours: u32) -> Self {
        Self::seconds_from(now, i64::from(hours) * 3600)
    }
}

/// The kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// Ed25519 (RFC 8410). The signing digest is ignored with it.
    Ed25519,
    /// RSA with so many bits.
    Rsa(u32),
}

impl KeyKind {
    /// Makes a key.
    ///
    /// # Errors
    /// OpenSSL's, such as for an RSA size below 512 bits.
    pub fn generate(self) -> Result<PKey<Private>, ErrorStack> {
        let on_curve =
            |nid| EcGroup::from_curve_name(nid).and_then(|g| EcKey::generate(&g)).and_then(PKey::from_ec_key);
        match self {
            KeyKind::P256 => on_curve(Nid::X9_62_PRIME256V1),
            KeyKind::P384 => on_curve(Nid::SECP384R1),
            KeyKind::Ed25519 => PKey::generate_ed25519(),
            KeyKind::Rsa(bits) => Rsa::generate(bits).and_then(PKey::from_rsa),
        }
    }
}

/// A certificate authority with its key.
#[derive(Clone)]
pub struct Authority {
    /// Its own certificate.
    pub cert: X509,
    /// Its key.
    pub key: PKey<Private>,
    /// What those it issues for must send along: its own certificate and those above, without the root. Empty for a
    /// root.
    pub chain: Vec<X509>,
}

impl Authority {
    /// A self-signed root with a P-256 key.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn root(name: &str, validity: Validity) -> Result<Self, ErrorStack> {
        let key = KeyKind::P256.generate()?;
        let subject = common_name(name)?;
        let mut builder = builder(&subject, &subject, &key, validity)?;
        // One more CA below it.
        add_ca_extensions(&mut builder, 1)?;
        sign(&mut builder, &key, MessageDigest::sha256())?;
        Ok(Self { cert: builder.build(), key, chain: Vec::new() })
    }

    /// An intermediate below this authority, with a P-256 key; it can issue for servers and clients, not for CAs.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn intermediate(&self, name: &str, validity: Validity) -> Result<Self, ErrorStack> {
        let key = KeyKind::P256.generate()?;
        let subject = common_name(name)?;
        let mut builder = builder(&subject, self.cert.subject_name(), &key, validity)?;
        add_ca_extensions(&mut builder, 0)?;
        add_authority_key_id(&mut builder, &self.cert)?;
        sign(&mut builder, &self.key, MessageDigest::sha256())?;
        let cert = builder.build();
        let chain = std::iter::once(cert.clone()).chain(self.chain.iter().cloned()).collect();
        Ok(Self { cert, key, chain })
    }

    /// The certificate in PEM.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn cert_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        self.cert.to_pem()
    }

    /// The key in PEM (PKCS #8, not encrypted).
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn key_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        self.key.private_key_to_pem_pkcs8()
    }
}

/// What a certificate may be used for (extended key usage).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// `serverAuth`.
    Server,
    /// `clientAuth`.
    Client,
    /// Both.
    ServerAndClient,
    /// `OCSPSigning`: to answer for the CA (RFC 6960, section 4.2.2.2).
    OcspSigning,
    /// No such extension: anything.
    Unrestricted,
}

/// A certificate to be. Change the fields of [`CertificateSpec::server`] or [`CertificateSpec::client`] as needed.
#[derive(Clone)]
pub struct CertificateSpec {
    /// The subject's only attribute.
    pub common_name: String,
    /// URI SANs, unchecked: tests need bad ones.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub dns: Vec<String>,
    /// IP SANs.
    pub ips: Vec<IpAddr>,
    /// From when to when.
    pub validity: Validity,
    /// For what.
    pub usage: Usage,
    /// Default P-256.
    pub key: KeyKind,
    /// Digest of the authority's signature. Default SHA-256.
    pub digest: MessageDigest,
    /// Whether `chain_pem` has the intermediates. Default true.
    pub with_intermediates: bool,
    /// More extensions. Default none.
    pub extensions: Vec<RawExtension>,
}

impl CertificateSpec {
    /// A server's certificate.
    pub fn server(common_name: &str, validity: Validity) -> Self {
        Self {
            common_name: common_name.to_owned(),
            uris: Vec::new(),
            dns: Vec::new(),
            ips: Vec::new(),
            validity,
            usage: Usage::Server,
            key: KeyKind::P256,
            digest: MessageDigest::sha256(),
            with_intermediates: true,
            extensions: Vec::new(),
        }
    }

    /// A client's certificate.
    pub fn client(common_name: &str, validity: Validity) -> Self {
        Self { usage: Usage::Client, ..Self::server(common_name, validity) }
    }

    /// Adds a URI SAN.
    #[must_use]
    pub fn uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// Adds a DNS SAN.
    #[must_use]
    pub fn dns(mut self, name: &str) -> Self {
        self.dns.push(name.to_owned());
        self
    }

    /// Adds an IP SAN.
    #[must_use]
    pub fn ip(mut self, address: IpAddr) -> Self {
        self.ips.push(address);
        self
    }

    /// Adds another extension.
    #[must_use]
    pub fn extension(mut self, extension: RawExtension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Makes a key and has `authority` sign the certificate.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn issue(&self, authority: &Authority) -> Result<Issued, ErrorStack> {
        let key = self.key.generate()?;
        let subject = common_name(&self.common_name)?;
        let mut builder = builder(&subject, authority.cert.subject_name(), &key, self.validity)?;
        self.add_extensions(&mut builder, &authority.cert)?;
        sign(&mut builder, &authority.key, self.digest)?;
        let chain = if self.with_intermediates { authority.chain.clone() } else { Vec::new() };
        Issued::new(builder.build(), key, chain)
    }

    /// As [`CertificateSpec::issue`], signed by its own key.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn self_signed(&self) -> Result<Issued, ErrorStack> {
        let key = self.key.generate()?;
        let subject = common_name(&self.common_name)?;
        let mut builder = builder(&subject, &subject, &key, self.validity)?;
        self.add_usage_and_names(&mut builder)?;
        sign(&mut builder, &key, self.digest)?;
        Issued::new(builder.build(), key, Vec::new())
    }

    /// A root with this name and kind of key, signed by itself with `digest`.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn self_signed_ca(&self) -> Result<Authority, ErrorStack> {
        let key = self.key.generate()?;
        let subject = common_name(&self.common_name)?;
        let mut builder = builder(&subject, &subject, &key, self.validity)?;
        add_ca_extensions(&mut builder, 1)?;
        sign(&mut builder, &key, self.digest)?;
        Ok(Authority { cert: builder.build(), key, chain: Vec::new() })
    }

    fn add_extensions(&self, builder: &mut X509Builder, issuer: &X509) -> Result<(), ErrorStack> {
        self.add_usage_and_names(builder)?;
        add_authority_key_id(builder, issuer)
    }

    fn add_usage_and_names(&self, builder: &mut X509Builder) -> Result<(), ErrorStack> {
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        let mut key_usage = KeyUsage::new();
        key_usage.critical().digital_signature();
        if matches!(self.key, KeyKind::Rsa(_)) {
            key_usage.key_encipherment();
        }
        builder.append_extension(key_usage.build()?)?;
        let mut extended = ExtendedKeyUsage::new();
        match self.usage {
            Usage::Server => builder.append_extension(extended.server_auth().build()?)?,
            Usage::Client => builder.append_extension(extended.client_auth().build()?)?,
            Usage::ServerAndClient => builder.append_extension(extended.server_auth().client_auth().build()?)?,
            Usage::OcspSigning => builder.append_extension(extended.other("OCSPSigning").build()?)?,
            Usage::Unrestricted => {}
        }
        add_subject_key_id(builder)?;
        for extension in &self.extensions {
            builder.append_extension(extension.build()?)?;
        }
        if self.uris.is_empty() && self.dns.is_empty() && self.ips.is_empty() {
            return Ok(());
        }
        let mut names = SubjectAlternativeName::new();
        self.uris.iter().for_each(|uri| _ = names.uri(uri));
        self.dns.iter().for_each(|name| _ = names.dns(name));
        self.ips.iter().for_each(|address| _ = names.ip(&address.to_string()));
        let extension = names.build(&builder.x509v3_context(None, None))?;
        builder.append_extension(extension)
    }
}

/// A certificate that was made, with its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: X509,
    /// Its key.
    pub key: PKey<Private>,
    /// What to send along: the intermediates, without the root.
    pub chain: Vec<X509>,
    /// The certificate alone, PEM.
    pub cert_pem: Vec<u8>,
    /// The certificate and the intermediates, PEM: what a server or client sends.
    pub chain_pem: Vec<u8>,
    /// The key, PEM (PKCS #8, not encrypted).
    pub key_pem: Vec<u8>,
}

impl Issued {
    fn new(cert: X509, key: PKey<Private>, chain: Vec<X509>) -> Result<Self, ErrorStack> {
        let cert_pem = cert.to_pem()?;
        let mut chain_pem = cert_pem.clone();
        for issuer in &chain {
            chain_pem.extend(issuer.to_pem()?);
        }
        let key_pem = key.private_key_to_pem_pkcs8()?;
        Ok(Self { cert, key, chain, cert_pem, chain_pem, key_pem })
    }
}

fn common_name(name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_nid(Nid::COMMONNAME, name)?;
    Ok(builder.build())
}

fn builder(
    subject: &X509NameRef,
    issuer: &X509NameRef,
    key: &PKeyRef<Private>,
    validity: Validity,
) -> Result<X509Builder, ErrorStack> {
    let mut builder = X509::builder()?;
    // 2 means version 3, the one with extensions.
    builder.set_version(2)?;
    let mut serial = BigNum::new()?;
    serial.rand(SERIAL_BITS, MsbOption::ONE, false)?;
    let serial: Asn1Integer = serial.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    builder.set_subject_name(subject)?;
    builder.set_issuer_name(issuer)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::from_unix(validity.not_before)?)?;
    builder.set_not_after(&*Asn1Time::from_unix(validity.not_after)?)?;
    Ok(builder)
}

fn sign(builder: &mut X509Builder, key: &PKeyRef<Private>, digest: MessageDigest) -> Result<(), ErrorStack> {
    let digest = if key.id() == Id::ED25519 { MessageDigest::null() } else { digest };
    builder.sign(key, digest)
}

fn add_ca_extensions(builder: &mut X509Builder, cas_below: u32) -> Result<(), ErrorStack> {
    builder.append_extension(BasicConstraints::new().critical().ca().pathlen(cas_below).build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    add_subject_key_id(builder)
}

fn add_subject_key_id(builder: &mut X509Builder) -> Result<(), ErrorStack> {
    let extension: X509Extension = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    builder.append_extension(extension)
}

fn add_authority_key_id(builder: &mut X509Builder, issuer: &X509) -> Result<(), ErrorStack> {
    let extension = AuthorityKeyIdentifier::new().keyid(true).build(&builder.x509v3_context(Some(issuer), None))?;
    builder.append_extension(extension)
}
