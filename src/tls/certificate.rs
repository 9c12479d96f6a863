//! Reading certificates: OpenSSL's structures in, plain data out.

use std::net::IpAddr;
use std::sync::LazyLock;

use foreign_types::ForeignTypeRef;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::SslRef;
use openssl::x509::{GeneralNameRef, X509KeyUsage, X509NameRef, X509Ref};

use crate::identity::{self, PeerIdentity, SpiffeId};

/// What status and `check` show of one of the gateway's own certificates, or of a CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject (RFC 4514).
    pub subject: String,
    /// The issuer (RFC 4514).
    pub issuer: String,
    /// The serial number in upper-case hex.
    pub serial: String,
    /// DNS SANs in lower case, then IP SANs.
    pub names: Vec<String>,
    /// URI SANs.
    pub uris: Vec<String>,
    /// Begin of the validity, Unix time in seconds.
    pub not_before: i64,
    /// End of the validity, Unix time in seconds.
    pub not_after: i64,
}

impl CertificateFacts {
    pub(super) fn of(cert: &X509Ref) -> Self {
        let SubjectAltNames { uris, mut dns, ips } = SubjectAltNames::of(cert);
        dns.extend(ips.iter().map(IpAddr::to_string));
        Self {
            subject: name(cert.subject_name()),
            issuer: name(cert.issuer_name()),
            serial: serial(cert),
            names: dns,
            uris,
            not_before: unix_seconds(cert.not_before()),
            not_after: unix_seconds(cert.not_after()),
        }
    }
}

/// Who the client of a finished handshake is. `None` only if there is no certificate, which a listener's context does
/// not let happen. Parses: call it once per connection.
pub fn identity(ssl: &SslRef) -> Option<PeerIdentity> {
    ssl.peer_certificate().and_then(|cert| identity_of(&cert))
}

/// Who a certificate, verified before, is about. `None` if OpenSSL can't hash or encode it, which takes a want of
/// memory.
pub fn identity_of(cert: &X509Ref) -> Option<PeerIdentity> {
    let fingerprint: [u8; 32] = (*cert.digest(MessageDigest::sha256()).ok()?).try_into().ok()?;
    let der = cert.to_der().ok()?;
    let SubjectAltNames { uris, dns, .. } = SubjectAltNames::of(cert);
    let subject = name(cert.subject_name());
    Some(PeerIdentity {
        spiffe_id: spiffe_id(cert, &uris),
        xfcc: identity::xfcc(&fingerprint, &subject, &uris, &dns),
        client_cert: identity::client_cert(&der),
        issuer: name(cert.issuer_name()),
        serial: serial(cert),
        not_before: unix_seconds(cert.not_before()),
        not_after: unix_seconds(cert.not_after()),
        subject,
        uris,
        dns,
        fingerprint,
    })
}

/// As [`PeerIdentity::spiffe_id`], of any certificate.
pub(super) fn spiffe_id_of(cert: &X509Ref) -> Option<SpiffeId> {
    spiffe_id(cert, &SubjectAltNames::of(cert).uris)
}

/// The ID of an X.509-SVID (X509-SVID, sections 2 and 5.2): the one URI SAN, with a path, of a certificate that can't
/// sign others.
fn spiffe_id(cert: &X509Ref, uris: &[String]) -> Option<SpiffeId> {
    let [uri] = uris else { return None };
    let signs = X509KeyUsage::KEY_CERT_SIGN | X509KeyUsage::CRL_SIGN;
    if is_ca(cert) || cert.key_usage().is_some_and(|usage| usage.intersects(signs)) {
        return None;
    }
    SpiffeId::parse(uri).ok().filter(|id| !id.path().is_empty())
}

/// Whether basic constraints say CA.
pub(super) fn is_ca(cert: &X509Ref) -> bool {
    // SAFETY: the pointer belongs to a live certificate; OpenSSL fills its cached flags under its own lock.
    let flags = unsafe { openssl_sys::X509_get_extension_flags(cert.as_ptr()) };
    flags & openssl_sys::EXFLAG_CA != 0
}

/// The SANs that the gateway uses.
#[derive(Debug, Default)]
pub(super) struct SubjectAltNames {
    pub(super) uris: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
}

impl SubjectAltNames {
    pub(super) fn of(cert: &X509Ref) -> Self {
        let mut all = Self::default();
        for san in cert.subject_alt_names().into_iter().flatten() {
            if let Some(uri) = san.uri() {
                all.uris.push(printable(uri.as_bytes()));
            } else if let Some(dns) = san.dnsname() {
                all.dns.push(printable(dns.as_bytes()).to_ascii_lowercase());
            } else if let Some(ip) = san.ipaddress() {
                all.ips.extend(ip_address(ip));
            } else if is_uri(&san) {
                // Not UTF-8, so not a URI; but it must count, or a second URI could hide behind it.
                all.uris.push("%FF".into());
            }
        }
        all
    }
}

fn is_uri(san: &GeneralNameRef) -> bool {
    // SAFETY: the pointer belongs to a live GENERAL_NAME, whose first field is its type.
    unsafe { (*san.as_ptr()).type_ == openssl_sys::GEN_URI }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A SAN as it may stand in a header: whatever is not visible ASCII is percent-encoded.
fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            0x21..=0x7e => out.push(char::from(*byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A name as RFC 4514 writes it: the last RDN first, `CN=paris,O=Hive`. Bytes that are not printable ASCII are
/// escaped as `\C3`. RDNs of several values read as several RDNs.
pub(super) fn name(name: &X509NameRef) -> String {
    let entries: Vec<_> = name.entries().collect();
    let mut out = String::with_capacity(entries.len() * 24);
    for entry in entries.iter().rev() {
        if !out.is_empty() {
            out.push(',');
        }
        let object = entry.object();
        match object.nid() {
            Nid::UNDEF => out.push_str(&object.to_string()),
            nid => out.push_str(nid.short_name().unwrap_or("?")),
        }
        out.push('=');
        escape_value(&mut out, entry.data().as_slice());
    }
    out
}

/// RFC 4514, section 2.4. The raw bytes are taken, never a C string: an embedded NUL must not hide what follows it.
fn escape_value(out: &mut String, value: &[u8]) {
    for (at, byte) in value.iter().enumerate() {
        let edge_space = *byte == b' ' && (at == 0 || at + 1 == value.len());
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=' => out.extend(['\\', char::from(*byte)]),
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if edge_space => out.push_str("\\ "),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\{byte:02X}")),
        }
    }
}

fn serial(cert: &X509Ref) -> String {
    let hex = cert.serial_number().to_bn().and_then(|number| number.to_hex_str());
    hex.map(|hex| hex.to_string()).unwrap_or_default()
}

/// The time in Unix seconds; 0 for a time that can't be read, which counts as long expired.
pub(super) fn unix_seconds(time: &Asn1TimeRef) -> i64 {
    static EPOCH: LazyLock<Option<Asn1Time>> = LazyLock::new(|| Asn1Time::from_unix(0).ok());
    let since = EPOCH.as_ref().and_then(|epoch| epoch.diff(time).ok());
    since.map_or(0, |diff| i64::from(diff.days) * 86_400 + i64::from(diff.secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_escaped_so_that_it_reads_back_one_way() {
        let mut builder = openssl::x509::X509Name::builder().unwrap();
        builder.append_entry_by_text("O", "a,b+c").unwrap();
        builder.append_entry_by_text("CN", " #é\u{1}\"=x ").unwrap();
        assert_eq!(name(&builder.build()), r#"CN=\ #\C3\A9\01\"\=x\ ,O=a\,b\+c"#);
    }

    #[test]
    fn times_are_unix_seconds() {
        for seconds in [0, 1, 86_399, 1_800_000_000, 4_000_000_000] {
            assert_eq!(unix_seconds(&Asn1Time::from_unix(seconds).unwrap()), seconds);
        }
    }

    #[test]
    fn what_is_not_visible_in_a_san_is_encoded() {
        assert_eq!(printable(b"a\r\nX: y\0"), "a%0D%0AX:%20y%00");
    }
}
