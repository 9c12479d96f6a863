//! Extensions that lead to a CA's lists and responders.

use openssl::asn1::{Asn1Object, Asn1OctetString};
use openssl::error::ErrorStack;
use openssl::x509::X509Extension;

use super::crl::element;

/// An extension as it stands in a certificate.
#[derive(Debug, Clone)]
pub struct RawExtension {
    /// Its object identifier, dotted.
    pub object: &'static str,
    /// Whether who does not know it must refuse the certificate.
    pub critical: bool,
    /// Its value, DER.
    pub value: Vec<u8>,
}

impl RawExtension {
    fn new(object: &'static str, value: Vec<u8>) -> Self {
        Self { object, critical: false, value }
    }

    /// cRLDistributionPoints (RFC 5280, section 4.2.1.13): one point with these URLs.
    pub fn crl_distribution_point(urls: &[&str]) -> Self {
        let name = element(0xa0, &element(0xa0, &uris(urls)));
        Self::new("2.5.29.31", element(0x30, &element(0x30, &name)))
    }

    /// authorityInfoAccess (section 4.2.2.1) with an OCSP responder.
    pub fn ocsp_responder(url: &str) -> Self {
        const OCSP: &[u8] = &[6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
        let access = element(0x30, &[OCSP, &uris(&[url])].concat());
        Self::new("1.3.6.1.5.5.7.1.1", element(0x30, &access))
    }

    /// TLS feature status_request, must-staple (RFC 7633).
    pub fn must_staple() -> Self {
        Self::new("1.3.6.1.5.5.7.1.24", vec![0x30, 3, 2, 1, 5])
    }

    pub(super) fn build(&self) -> Result<X509Extension, ErrorStack> {
        let (object, value) = (Asn1Object::from_str(self.object)?, Asn1OctetString::new_from_bytes(&self.value)?);
        X509Extension::new_from_der(&object, self.critical, &value)
    }
}

/// issuingDistributionPoint (section 5.2.5) of a list, whole in DER: a part of the CA's certificates.
pub fn issuing_distribution_point(urls: &[&str]) -> Vec<u8> {
    let point = element(0x30, &element(0xa0, &element(0xa0, &uris(urls))));
    element(0x30, &[&[6, 3, 0x55, 0x1d, 28, 1, 1, 0xff][..], &element(4, &point)].concat())
}

/// GeneralNames.
fn uris(urls: &[&str]) -> Vec<u8> {
    urls.iter().flat_map(|url| element(0x86, url.as_bytes())).collect()
}
