//! Questions to OCSP responders and what their answers are worth (RFC 6960).
//!
//! No nonce is asked for: responders that sign their answers ahead have none (RFC 5019, section 2.1.1), and one that comes
//! unasked says nothing. How old an answer may be is what its nextUpdate says.

use foreign_types::ForeignTypeRef;
use openssl::asn1::{Asn1GeneralizedTimeRef, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::ocsp::{OcspCertId, OcspCertStatus, OcspFlag, OcspRequest, OcspResponse, OcspResponseStatus};
use openssl::stack::Stack;
use openssl::x509::store::{X509Store, X509StoreBuilder, X509StoreRef};
use openssl::x509::verify::{X509VerifyFlags, X509VerifyParam};
use openssl::x509::{X509, X509Ref};

use super::crl::Algorithm;
use super::der::{OCTET_STRING, Reader, SEQUENCE};
use super::fetch::{CrlUrl, ask};
use crate::tls::certificate::unix_seconds;
use crate::tls::files::reason;

/// Largest answer of a responder, bytes.
pub(in crate::tls) const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Clocks differ by so much, seconds.
const CLOCK_SKEW_SECONDS: u32 = 300;

/// What a responder said of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tls) struct Answered {
    /// Revoked, or good: that it knows neither is an error.
    pub(in crate::tls) revoked: bool,
    /// When that was known to be so, seconds since 1970.
    pub(in crate::tls) this_update: i64,
    /// When more will be known.
    pub(in crate::tls) next_update: Option<i64>,
}

/// The first `http://` responder of a certificate's authority information access that is `allowed`.
pub(in crate::tls) fn responder_of(leaf: &X509Ref, allowed: impl Fn(&CrlUrl) -> bool) -> Option<CrlUrl> {
    let responders = leaf.ocsp_responders().ok()?;
    responders.iter().filter_map(|url| CrlUrl::parse(url).ok()).find(allowed)
}

/// Whom responders' certificates lead to. With `partial`, a CA in it that is no root is an end too.
///
/// # Errors
/// OpenSSL's.
pub(in crate::tls) fn trust(ca: &[X509], level: u32, partial: bool) -> Result<X509Store, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for cert in ca {
        store.add_cert(cert.clone())?;
    }
    let mut rules = X509VerifyParam::new()?;
    rules.set_auth_level(i32::try_from(level).unwrap_or(i32::MAX));
    if partial {
        rules.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    }
    store.set_param(&rules)?;
    Ok(store.build())
}

/// SHA-1 names the certificate only; it is what every responder understands (RFC 5019, section 2.1.1).
fn name_of(leaf: &X509Ref, issuer: &X509Ref) -> Result<OcspCertId, ErrorStack> {
    OcspCertId::from_cert(MessageDigest::sha1(), leaf, issuer)
}

/// Asks a responder. Its answer is unchecked: see [`read`]. The caller limits the time.
///
/// # Errors
/// Why there is none.
pub(in crate::tls) async fn question(responder: &CrlUrl, leaf: &X509Ref, issuer: &X509Ref) -> Result<Vec<u8>, String> {
    let request = name_of(leaf, issuer).and_then(|name| {
        let mut request = OcspRequest::new()?;
        request.add_id(name)?;
        request.to_der()
    });
    let request = request.map_err(|e| reason(&e))?;
    ask(responder, "application/ocsp-request", &request, ANSWER_BYTES_MAX).await
}

/// Reads and verifies an answer: by the issuer itself, or by whom it gave leave to answer (section 4.2.2.2), not over,
/// and about this certificate.
///
/// # Errors
/// Why it says nothing.
pub(in crate::tls) fn read(
    answer: &[u8],
    leaf: &X509Ref,
    issuer: &X509Ref,
    trusted: &X509StoreRef,
) -> Result<Answered, String> {
    let openssl = |e: ErrorStack| reason(&e);
    let response = OcspResponse::from_der(answer).map_err(|_| "no OCSP answer")?;
    if response.status() != OcspResponseStatus::SUCCESSFUL {
        return Err(format!("the responder says {}", response.status().as_raw()));
    }
    // OpenSSL verifies SHA-1 too.
    Algorithm::of(signed_with(answer).ok_or("no OCSP answer")?)?;
    let basic = response.basic().map_err(openssl)?;
    let mut signers = Stack::new().map_err(openssl)?;
    signers.push(issuer.to_owned()).map_err(openssl)?;
    basic.verify(&signers, trusted, OcspFlag::empty()).map_err(openssl)?;
    let name = name_of(leaf, issuer).map_err(openssl)?;
    let status = basic.find_status(&name).ok_or("the answer is about another certificate")?;
    status.check_validity(CLOCK_SKEW_SECONDS, None).map_err(openssl)?;
    let revoked = match status.status {
        OcspCertStatus::GOOD => false,
        OcspCertStatus::REVOKED => true,
        _ => return Err("the responder does not know the certificate".into()),
    };
    let this_update = generalized_seconds(status.this_update);
    Ok(Answered { revoked, this_update, next_update: status.next_update().map(generalized_seconds) })
}

/// The AlgorithmIdentifier of the signature (section 4.2.1).
fn signed_with(answer: &[u8]) -> Option<&[u8]> {
    let mut response = Reader::new(Reader::new(answer).expect(SEQUENCE)?.content);
    response.any()?;
    let mut bytes = Reader::new(Reader::new(response.any()?.content).expect(SEQUENCE)?.content);
    bytes.any()?;
    let mut basic = Reader::new(Reader::new(bytes.expect(OCTET_STRING)?.content).expect(SEQUENCE)?.content);
    basic.any()?;
    basic.expect(SEQUENCE).map(|algorithm| algorithm.whole)
}

fn generalized_seconds(time: &Asn1GeneralizedTimeRef) -> i64 {
    // SAFETY: an ASN1_GENERALIZEDTIME is an ASN1_TIME of one of its two kinds; both are the same structure (asn1.h).
    unix_seconds(unsafe { Asn1TimeRef::from_ptr(time.as_ptr().cast()) })
}
