//! What a handshake came to: the reason of a failure, told apart as finely as OpenSSL can, and the facts of a success.

use std::ffi::c_int;
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

use foreign_types::ForeignTypeRef;
use openssl::ex_data::Index;
use openssl::ssl::{self, ErrorCode, NameType, Ssl, SslRef, SslVersion};
use openssl::x509::{X509Ref, X509StoreContext, X509StoreContextRef, X509VerifyResult};

use crate::observe::handshake::HandshakeResult;

use super::certificate::name;
use super::files::key_weakness;
use super::revocation::{Link, Revocation, Verdict};

/// Why a handshake failed. The client is told nothing of it beyond the TLS alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeFailure {
    /// For the metric.
    pub result: HandshakeResult,
    /// For the log: OpenSSL's reason, and the certificate above the client's if that one is at fault.
    pub detail: String,
    /// The subject of the client's certificate (RFC 4514), if one came.
    pub subject: Option<String>,
    /// Its issuer.
    pub issuer: Option<String>,
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.result.as_str(), self.detail)?;
        match &self.subject {
            Some(subject) => write!(f, " (certificate of {subject:?})"),
            None => Ok(()),
        }
    }
}

/// What is known of a connection before and while OpenSSL verifies its client.
#[derive(Debug)]
pub(super) struct VerifyNotes {
    /// When the handshake began, seconds since 1970: OpenSSL's callback takes no argument of ours.
    now: i64,
    /// The greatest TLS version that the client offered.
    offered: OnceLock<&'static str>,
    /// The first verification error, noted while OpenSSL still has the chain at hand.
    first: OnceLock<VerifyNote>,
}

impl VerifyNotes {
    pub(super) fn new(now: i64) -> Self {
        Self { now, offered: OnceLock::new(), first: OnceLock::new() }
    }
}

#[derive(Debug)]
struct VerifyNote {
    result: HandshakeResult,
    detail: String,
    subject: Option<String>,
    issuer: Option<String>,
}

/// Where a connection keeps its [`VerifyNotes`].
pub(super) fn notes_index() -> Option<Index<Ssl, VerifyNotes>> {
    static INDEX: LazyLock<Option<Index<Ssl, VerifyNotes>>> = LazyLock::new(|| Ssl::new_ex_index().ok());
    *INDEX
}

/// When a connection's handshake began, seconds since 1970.
pub(super) fn begun_at(ssl: &SslRef) -> Option<i64> {
    notes_index().and_then(|index| ssl.ex_data(index)).map(|notes| notes.now)
}

/// What a client's chain is checked for beyond OpenSSL's own rules.
pub(super) struct Checks {
    /// Subjects of the CA bundle, DER.
    pub(super) authorities: Vec<Vec<u8>>,
    /// Revocation, if the configuration asks for it.
    pub(super) revocation: Option<Arc<Revocation>>,
}

/// OpenSSL's verify callback. Notes an error; and once the whole chain is good, checks its keys and asks whether any of
/// it is revoked.
pub(super) fn verify(good: bool, context: &mut X509StoreContextRef, checks: &Checks) -> bool {
    let ssl = X509StoreContext::ssl_idx().ok().and_then(|index| context.ex_data(index));
    let notes = ssl.zip(notes_index()).and_then(|(ssl, index)| ssl.ex_data(index));
    let note = if !good {
        VerifyNote::of(context, &checks.authorities)
    } else if context.error_depth() > 0 {
        // OpenSSL goes from the root down and calls for each certificate; the client's own is the last.
        return true;
    } else {
        // Without notes there is no time, and without time no list holds.
        let now = notes.map_or(i64::MAX, |notes| notes.now);
        match own_checks(context, checks, now) {
            Ok(()) => return true,
            Err((error, note)) => {
                let _ = notes.map(|notes| notes.first.set(note));
                // SAFETY: any number is one; those that OpenSSL does not know have no text.
                context.set_error(unsafe { X509VerifyResult::from_raw(error) });
                return false;
            }
        }
    };
    // Only the first error counts: the handshake ends with it.
    let _ = notes.map(|notes| notes.first.set(note));
    false
}

/// Told to clients as the alert certificate_unknown: that our lists are missing or late is nothing of theirs, and the
/// alerts that OpenSSL has for it (unknown_ca, certificate_expired) would send them looking at their own certificate.
const LIST_AT_FAULT: c_int = openssl_sys::X509_V_ERR_DIFFERENT_CRL_SCOPE;

fn own_checks(context: &X509StoreContextRef, checks: &Checks, now: i64) -> Result<(), (c_int, VerifyNote)> {
    let Some(chain) = context.chain() else { return Ok(()) };
    let refuse = |at: usize, error: c_int, result: HandshakeResult, why: &str| {
        let at_fault = chain.get(at).filter(|_| at > 0).map(|cert| name(cert.subject_name()));
        let above = at_fault.map(|who| format!("; {at} above the client's certificate: {who:?}")).unwrap_or_default();
        let leaf = chain.get(0);
        let subject = leaf.map(|cert| name(cert.subject_name()));
        let issuer = leaf.map(|cert| name(cert.issuer_name()));
        Err((error, VerifyNote { result, detail: format!("{why}{above}"), subject, issuer }))
    };
    // The root is the operator's own, and `check` has told.
    for (at, cert) in chain.iter().enumerate().take(chain.len().saturating_sub(1)) {
        if let Some(why) = key_weakness(cert) {
            return refuse(at, openssl_sys::X509_V_ERR_EE_KEY_TOO_SMALL, HandshakeResult::WeakSignature, &why);
        }
    }
    let Some(revocation) = &checks.revocation else { return Ok(()) };
    let Ok(links) = Link::of_chain(chain, revocation.crl_check()) else {
        return refuse(0, LIST_AT_FAULT, HandshakeResult::NoCrl, "the certificate's issuer can't be read");
    };
    match revocation.ask_at_handshake(&links, now) {
        (_, Verdict::Good { .. }) => Ok(()),
        (at, Verdict::Revoked) => {
            refuse(at, openssl_sys::X509_V_ERR_CERT_REVOKED, HandshakeResult::Revoked, "certificate revoked")
        }
        (at, Verdict::NoCrl) => {
            refuse(at, LIST_AT_FAULT, HandshakeResult::NoCrl, "no CRL of the certificate's issuer is about it")
        }
        (at, Verdict::CrlExpired) => refuse(
            at,
            LIST_AT_FAULT,
            HandshakeResult::CrlExpired,
            "the CRL of the certificate's issuer is past its nextUpdate",
        ),
    }
}

/// Notes that a client's certificate is of a trust domain that nobody vouches for here.
pub(super) fn note_untrusted(ssl: &SslRef, client: &X509Ref, detail: String) {
    let (subject, issuer) = (Some(name(client.subject_name())), Some(name(client.issuer_name())));
    note(ssl, VerifyNote { result: HandshakeResult::UnknownCa, detail, subject, issuer });
}

/// Notes that there is no certificate to show.
pub(super) fn note_no_svid(ssl: &SslRef) {
    let detail = "the SPIFFE agent has not issued an SVID yet".to_owned();
    note(ssl, VerifyNote { result: HandshakeResult::NoSvid, detail, subject: None, issuer: None });
}

fn note(ssl: &SslRef, note: VerifyNote) {
    let notes = notes_index().and_then(|index| ssl.ex_data(index));
    let _ = notes.map(|notes| notes.first.set(note));
}

/// Notes which TLS versions the client offers, for the log of a handshake that fails.
pub(super) fn note_client_hello(ssl: &SslRef) {
    let notes = notes_index().and_then(|index| ssl.ex_data(index));
    let _ = notes.map(|notes| notes.offered.set(offered_version(ssl)));
}

/// The greatest of supported_versions (RFC 8446, section 4.2.1), else the version of the message.
fn offered_version(ssl: &SslRef) -> &'static str {
    const SUPPORTED_VERSIONS: std::ffi::c_uint = 43;
    let (mut bytes, mut length) = (std::ptr::null(), 0);
    // SAFETY: called within the client hello callback; what it points to belongs to the connection, and is copied here.
    let list = unsafe {
        match openssl_sys::SSL_client_hello_get0_ext(ssl.as_ptr(), SUPPORTED_VERSIONS, &mut bytes, &mut length) {
            1 if !bytes.is_null() => std::slice::from_raw_parts(bytes, length).to_vec(),
            _ => Vec::new(),
        }
    };
    let versions = list.get(1..).unwrap_or_default().chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    match versions.filter(|version| (0x0300..=0x0304).contains(version)).max() {
        Some(0x0304) => "TLSv1.3",
        Some(0x0303) => "TLSv1.2",
        Some(0x0302) => "TLSv1.1",
        Some(_) => "TLSv1",
        None => match ssl.client_hello_legacy_version() {
            Some(SslVersion::TLS1_2) => "TLSv1.2",
            Some(SslVersion::TLS1_1) => "TLSv1.1",
            Some(SslVersion::TLS1) => "TLSv1",
            _ => "other",
        },
    }
}

/// The greatest TLS version that the client offered, if its first message came.
pub fn offered(ssl: &SslRef) -> Option<&'static str> {
    notes_index().and_then(|index| ssl.ex_data(index)).and_then(|notes| notes.offered.get().copied())
}

impl VerifyNote {
    fn of(context: &X509StoreContextRef, authorities: &[Vec<u8>]) -> Self {
        let error = context.error();
        let leaf = context.chain().and_then(|chain| chain.get(0)).or(context.current_cert());
        let mut detail = error.error_string().to_owned();
        match context.error_depth() {
            0 => {}
            depth => {
                let at_fault = context.current_cert().map(|cert| name(cert.subject_name())).unwrap_or_default();
                detail.push_str(&format!("; {depth} above the client's certificate: {at_fault:?}"));
            }
        }
        Self {
            result: verify_result(error, context, authorities),
            detail,
            subject: leaf.map(|cert| name(cert.subject_name())),
            issuer: leaf.map(|cert| name(cert.issuer_name())),
        }
    }
}

/// `X509_V_ERR_…` (openssl/x509_vfy.h) as a result.
fn verify_result(error: X509VerifyResult, context: &X509StoreContextRef, authorities: &[Vec<u8>]) -> HandshakeResult {
    use openssl_sys as sys;
    match error.as_raw() {
        sys::X509_V_ERR_CERT_HAS_EXPIRED => HandshakeResult::Expired,
        sys::X509_V_ERR_CERT_NOT_YET_VALID => HandshakeResult::NotYetValid,
        sys::X509_V_ERR_INVALID_PURPOSE
        | sys::X509_V_ERR_INVALID_CA
        | sys::X509_V_ERR_KEYUSAGE_NO_CERTSIGN
        | sys::X509_V_ERR_PATH_LENGTH_EXCEEDED
        | sys::X509_V_ERR_CERT_REJECTED => HandshakeResult::WrongPurpose,
        sys::X509_V_ERR_EE_KEY_TOO_SMALL | sys::X509_V_ERR_CA_KEY_TOO_SMALL | sys::X509_V_ERR_CA_MD_TOO_WEAK => {
            HandshakeResult::WeakSignature
        }
        sys::X509_V_ERR_CERT_SIGNATURE_FAILURE => HandshakeResult::BadSignature,
        sys::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        | sys::X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
        | sys::X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        | sys::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | sys::X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
        | sys::X509_V_ERR_CERT_UNTRUSTED => untrusted_result(context, authorities),
        _ => HandshakeResult::Other,
    }
}

/// A chain that leads to no root of the bundle: by another CA of a known name, cut off, or of a CA that is unknown.
fn untrusted_result(context: &X509StoreContextRef, authorities: &[Vec<u8>]) -> HandshakeResult {
    let Some(chain) = context.chain() else { return HandshakeResult::UnknownCa };
    let Some(top) = chain.len().checked_sub(1).and_then(|at| chain.get(at)) else { return HandshakeResult::UnknownCa };
    let (subject, issuer) = (top.subject_name().to_der(), top.issuer_name().to_der());
    match (subject, issuer) {
        // OpenSSL found a CA of this name, and passed it over because its key is another.
        (_, Ok(issuer)) if authorities.contains(&issuer) => HandshakeResult::BadSignature,
        (Ok(subject), Ok(issuer)) if subject != issuer && chain.len() == 1 => HandshakeResult::ChainIncomplete,
        _ => HandshakeResult::UnknownCa,
    }
}

/// Why the handshake on `ssl` failed with `error`.
pub fn classify(error: &ssl::Error, ssl: &SslRef) -> HandshakeFailure {
    let notes = notes_index().and_then(|index| ssl.ex_data(index));
    if let Some(note) = notes.and_then(|notes| notes.first.get()) {
        return HandshakeFailure {
            result: note.result,
            detail: note.detail.clone(),
            subject: note.subject.clone(),
            issuer: note.issuer.clone(),
        };
    }
    let (result, detail) = match error.code() {
        ErrorCode::SSL => library_error(error),
        // No error of OpenSSL's: the connection itself ended.
        ErrorCode::SYSCALL | ErrorCode::ZERO_RETURN => {
            let detail = error.io_error().map_or_else(|| "connection closed".to_owned(), ToString::to_string);
            (HandshakeResult::Aborted, detail)
        }
        _ => (HandshakeResult::Other, error.to_string()),
    };
    with_certificate(result, detail, ssl)
}

/// The failure of a handshake that took longer than `timeouts.handshake`.
pub fn timed_out(ssl: &SslRef) -> HandshakeFailure {
    with_certificate(HandshakeResult::Timeout, format!("no end in time; {}", ssl.state_string_long()), ssl)
}

fn with_certificate(result: HandshakeResult, detail: String, ssl: &SslRef) -> HandshakeFailure {
    let cert = ssl.peer_certificate();
    HandshakeFailure {
        result,
        detail,
        subject: cert.as_ref().map(|cert| name(cert.subject_name())),
        issuer: cert.as_ref().map(|cert| name(cert.issuer_name())),
    }
}

/// The first of OpenSSL's errors that says something.
fn library_error(error: &ssl::Error) -> (HandshakeResult, String) {
    let errors = error.ssl_error().map(|stack| stack.errors()).unwrap_or_default();
    let told = errors.iter().find_map(|e| Some((reason_result(e.reason_code())?, e)));
    let (result, chosen) = match told {
        Some((result, e)) => (result, Some(e)),
        None => (HandshakeResult::Other, errors.first()),
    };
    let detail = chosen.and_then(|e| e.reason()).map_or_else(|| error.to_string(), str::to_owned);
    (result, detail)
}

/// `SSL_R_…` (openssl/sslerr.h, the same from 3.0 to 3.6) as a result. What the client said in an alert is 1000 and the
/// alert's number.
fn reason_result(code: c_int) -> Option<HandshakeResult> {
    Some(match code {
        199 => HandshakeResult::NoCertificate, // PEER_DID_NOT_RETURN_A_CERTIFICATE
        // UNKNOWN_PROTOCOL, UNSUPPORTED_PROTOCOL, VERSION_TOO_HIGH, VERSION_TOO_LOW, NO_PROTOCOLS_AVAILABLE,
        // INAPPROPRIATE_FALLBACK
        252 | 258 | 166 | 396 | 191 | 373 => HandshakeResult::ProtocolVersion,
        // NO_SHARED_CIPHER, NO_SHARED_GROUPS, NO_SHARED_SIGNATURE_ALGORITHMS, NO_SUITABLE_GROUPS,
        // NO_SUITABLE_KEY_SHARE, NO_SUITABLE_SIGNATURE_ALGORITHM, NO_SUITABLE_DIGEST_ALGORITHM
        193 | 410 | 376 | 295 | 101 | 118 | 297 => HandshakeResult::NoSharedCipher,
        235 => HandshakeResult::NoApplicationProtocol, // NO_APPLICATION_PROTOCOL
        // HTTPS_PROXY_REQUEST, HTTP_REQUEST, and WRONG_VERSION_NUMBER: the first bytes are no TLS record.
        155 | 156 | 267 => HandshakeResult::NotTls,
        // BAD_SIGNATURE, WRONG_SIGNATURE_SIZE, WRONG_SIGNATURE_TYPE: of the client's CertificateVerify.
        123 | 265 | 370 => HandshakeResult::BadSignature,
        // CA_KEY_TOO_SMALL, CA_MD_TOO_WEAK, EE_KEY_TOO_SMALL
        397..=399 => HandshakeResult::WeakSignature,
        294 => HandshakeResult::Aborted, // UNEXPECTED_EOF_WHILE_READING
        1000..=1255 => HandshakeResult::ClientAlert,
        _ => return None,
    })
}

/// What is spoken after the handshake (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`, also when the client offered nothing.
    Http1,
    /// `h2`.
    Http2,
}

impl Alpn {
    /// The protocol's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Alpn::Http1 => "http/1.1",
            Alpn::Http2 => "h2",
        }
    }
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite in IANA's spelling; empty before the end of the handshake.
    pub cipher: &'static str,
    /// The key exchange group in IANA's spelling, if it is one of the usual ones.
    pub group: Option<&'static str>,
    /// The server name that the client asked for, in lower case.
    pub sni: Option<String>,
    /// What is spoken.
    pub alpn: Alpn,
}

/// Reads the facts of a connection; the server name is known from the client's first message on.
pub fn facts(ssl: &SslRef) -> ConnectionFacts {
    let cipher = ssl.current_cipher();
    ConnectionFacts {
        version: ssl.version_str(),
        cipher: cipher.map_or("", |cipher| cipher.standard_name().unwrap_or_else(|| cipher.name())),
        group: group(ssl),
        sni: ssl.servername(NameType::HOST_NAME).map(str::to_ascii_lowercase),
        alpn: if ssl.selected_alpn_protocol() == Some(b"h2") { Alpn::Http2 } else { Alpn::Http1 },
    }
}

/// `SSL_get_negotiated_group`, which the `openssl` crate lacks. It gives a NID, or for groups without one the TLS
/// number with a bit set (ssl.h, 3.0 to 3.6); `SSL_get0_group_name` would need 3.2.
fn group(ssl: &SslRef) -> Option<&'static str> {
    const GET_NEGOTIATED_GROUP: c_int = 134;
    const TLS_NUMBER: c_int = 0x100_0000;
    // SAFETY: the pointer belongs to a live connection; this control only reads, and takes no pointer.
    let id = unsafe { openssl_sys::SSL_ctrl(ssl.as_ptr(), GET_NEGOTIATED_GROUP, 0, std::ptr::null_mut()) };
    let id = c_int::try_from(id).ok()?;
    Some(match id & !TLS_NUMBER {
        number if id & TLS_NUMBER != 0 => match number {
            0x11eb => "SecP256r1MLKEM768",
            0x11ec => "X25519MLKEM768",
            0x11ed => "SecP384r1MLKEM1024",
            _ => return None,
        },
        openssl_sys::NID_X25519 => "x25519",
        openssl_sys::NID_X448 => "x448",
        openssl_sys::NID_X9_62_prime256v1 => "secp256r1",
        openssl_sys::NID_secp384r1 => "secp384r1",
        openssl_sys::NID_secp521r1 => "secp521r1",
        _ => return None,
    })
}
