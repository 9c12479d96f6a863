//! Why a handshake with a node failed: as finely as OpenSSL can tell.
//!
//! Pingora says of a node's certificate that it was not good, never why: it looks at OpenSSL's verdict and drops it
//! (pingora-core, `protocols/tls/boringssl_openssl/client.rs`), and its sessions take no verify callback. OpenSSL has one
//! place left where a callback can be given to verifications that others begin: when their context is made. The one
//! given here only listens. What it hears it leaves with its thread, and whoever handles the error takes it from there:
//! Pingora returns the error within the same poll. Were that to change, the log would say less; nothing is decided by it.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::sync::Once;

use foreign_types::ForeignTypeRef;
use openssl::ssl::NameType;
use openssl::x509::{X509StoreContext, X509StoreContextRef};
use pingora::{Error, ErrorType};

use super::certificate::{SubjectAltNames, name};
use crate::observe::UpstreamTlsFailure as Reason;

/// Why a node's connection can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFailure {
    /// For the metric.
    pub reason: Reason,
    /// For the log.
    pub why: String,
}

impl NodeFailure {
    pub(super) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }

    /// What this error says of a handshake; `None` if it says nothing of one. To be called where Pingora returns the
    /// error, before anything is waited for.
    pub fn of(error: &Error) -> Option<Self> {
        let text = error.to_string();
        match error.etype() {
            ErrorType::InvalidCert => Some(
                HEARD.take().unwrap_or_else(|| Self::new(Reason::Other, "the node's certificate was not verified")),
            ),
            ErrorType::TLSHandshakeFailure => Some(openssl_error(&text).unwrap_or_else(|| {
                let aborted = text.contains("unexpected EOF") || text.contains("reset by peer");
                Self::new(if aborted { Reason::Aborted } else { Reason::Other }, text.replace(['\n', '\r'], " "))
            })),
            // With TLS 1.3 the node sees the client's certificate, or that there is none, when the handshake is over for
            // the client.
            _ => openssl_error(&text).filter(|f| [Reason::Alert, Reason::ClientCertificate].contains(&f.reason)),
        }
    }
}

/// The first error of OpenSSL's in a text, as the `openssl` crate writes it: `error:0A000410:SSL routines:…:reason:…`.
fn openssl_error(text: &str) -> Option<NodeFailure> {
    const REASON_BITS: u32 = 0x7F_FFFF;
    let (code, rest) = text.split_once("error:")?.1.split_once(':')?;
    let code = u32::from_str_radix(code, 16).ok()? & REASON_BITS;
    let said = rest.split(':').nth(2).unwrap_or_default().trim();
    let reason = match code {
        // SSL_R_… (openssl/sslerr.h, the same from 3.0 to 3.6); an alert of the node's is 1000 and its number (RFC 8446,
        // section 6): protocol_version, no_application_protocol, certificate_required.
        1070 | 252 | 258 | 166 | 396 | 191 => Reason::ProtocolVersion,
        1120 => Reason::NoApplicationProtocol,
        1116 => Reason::ClientCertificate,
        1000..=1255 => Reason::Alert,
        155 | 156 | 267 => Reason::NotTls,
        294 => Reason::Aborted,
        397..=399 => Reason::WeakSignature,
        _ => Reason::Other,
    };
    let why = match (reason, code) {
        (Reason::ClientCertificate, _) => format!("the node wants a client certificate: {said}"),
        // What OpenSSL's servers up to TLS 1.2 say to a client without a certificate, among other things.
        (_, 1040) => format!("the node refused: {said}; it may want a client certificate, or have no cipher in common"),
        (_, 1000..=1255) => format!("the node refused: {said}"),
        _ => said.to_owned(),
    };
    Some(NodeFailure { reason, why })
}

/// `X509_V_ERR_…` (openssl/x509_vfy.h).
fn verify_reason(code: c_int) -> Reason {
    use openssl_sys as sys;
    const IP_ADDRESS_MISMATCH: c_int = 64;
    match code {
        sys::X509_V_ERR_CERT_HAS_EXPIRED => Reason::Expired,
        sys::X509_V_ERR_CERT_NOT_YET_VALID => Reason::NotYetValid,
        sys::X509_V_ERR_HOSTNAME_MISMATCH | IP_ADDRESS_MISMATCH => Reason::NameMismatch,
        sys::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        | sys::X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
        | sys::X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        | sys::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | sys::X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
        | sys::X509_V_ERR_CERT_SIGNATURE_FAILURE
        | sys::X509_V_ERR_CERT_UNTRUSTED => Reason::UnknownCa,
        sys::X509_V_ERR_INVALID_PURPOSE
        | sys::X509_V_ERR_INVALID_CA
        | sys::X509_V_ERR_KEYUSAGE_NO_CERTSIGN
        | sys::X509_V_ERR_PATH_LENGTH_EXCEEDED
        | sys::X509_V_ERR_CERT_REJECTED => Reason::WrongPurpose,
        sys::X509_V_ERR_EE_KEY_TOO_SMALL | sys::X509_V_ERR_CA_KEY_TOO_SMALL | sys::X509_V_ERR_CA_MD_TOO_WEAK => {
            Reason::WeakSignature
        }
        _ => Reason::Other,
    }
}

thread_local! {
    /// The last node's certificate that was not good.
    static HEARD: Cell<Option<NodeFailure>> = const { Cell::new(None) };
}

/// Listens from now on to every verification of a node's certificate in this process. Does so once.
pub(super) fn listen() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        const CRYPTO_EX_INDEX_X509_STORE_CTX: c_int = 5;
        // SAFETY: `made` is called with each context that is made, and lives as long as the process.
        let slot = unsafe {
            openssl_sys::CRYPTO_get_ex_new_index(
                CRYPTO_EX_INDEX_X509_STORE_CTX,
                0,
                std::ptr::null_mut(),
                Some(made),
                None,
                None,
            )
        };
        if slot < 0 {
            log::warn!("OpenSSL has no memory: failed handshakes with nodes will be told without their reason");
        }
    });
}

type Callback = unsafe extern "C" fn(c_int, *mut openssl_sys::X509_STORE_CTX) -> c_int;

unsafe extern "C" {
    /// Which the `openssl` crate lacks.
    fn X509_STORE_CTX_set_verify_cb(context: *mut openssl_sys::X509_STORE_CTX, callback: Callback);
}

/// OpenSSL has made a context for a verification. A session with a callback of its own sets that afterwards, so this one
/// stays on the nodes' only.
unsafe extern "C" fn made(
    context: *mut c_void,
    _value: *mut c_void,
    _values: *mut openssl_sys::CRYPTO_EX_DATA,
    _slot: c_int,
    _number: c_long,
    _argument: *mut c_void,
) {
    if !context.is_null() {
        // SAFETY: OpenSSL calls this at the end of `X509_STORE_CTX_init`, with that context.
        unsafe { X509_STORE_CTX_set_verify_cb(context.cast(), hear) };
    }
}

/// Changes nothing of the verdict.
unsafe extern "C" fn hear(good: c_int, context: *mut openssl_sys::X509_STORE_CTX) -> c_int {
    if good == 0 && !context.is_null() {
        // SAFETY: the context lives while its callback runs, and nobody else uses it meanwhile.
        let context = unsafe { X509StoreContextRef::from_ptr(context) };
        if let Some(failure) = judged(context) {
            HEARD.set(Some(failure));
        }
    }
    good
}

/// `None`: it is not about a node.
fn judged(context: &X509StoreContextRef) -> Option<NodeFailure> {
    let ssl = X509StoreContext::ssl_idx().ok().and_then(|index| context.ex_data(index))?;
    if ssl.is_server() {
        return None;
    }
    let reason = verify_reason(context.error().as_raw());
    let mut why = context.error().error_string().to_owned();
    let at_fault = context.current_cert();
    match (reason, context.error_depth()) {
        (Reason::NameMismatch, _) => {
            let names = at_fault.map(|cert| SubjectAltNames::of(cert).dns.join(", ")).unwrap_or_default();
            let wanted = ssl.servername(NameType::HOST_NAME).unwrap_or_default();
            why.push_str(&format!(": the certificate is for [{names}], not for {wanted}"));
        }
        (_, depth) => {
            let subject = at_fault.map(|cert| name(cert.subject_name())).unwrap_or_default();
            let issuer = at_fault.map(|cert| name(cert.issuer_name())).unwrap_or_default();
            let above = if depth > 0 { format!("{depth} above the node's certificate, ") } else { String::new() };
            why.push_str(&format!(": {above}{subject:?} issued by {issuer:?}"));
        }
    }
    Some(NodeFailure { reason, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ErrorType, text: &str) -> Option<NodeFailure> {
        NodeFailure::of(&Error::explain(kind, text.to_owned()))
    }

    #[test]
    fn an_alert_of_the_node_is_told_in_its_words() {
        let text = "TLS connect() failed: error:0A000410:SSL routines:ssl3_read_bytes:ssl/tls alert handshake failure:\
                    ssl/record/rec_layer_s3.c:918:SSL alert number 40, SNI: hive.internal";
        let failure = of(ErrorType::TLSHandshakeFailure, text).unwrap();
        assert_eq!(failure.reason, Reason::Alert);
        assert!(failure.why.starts_with("the node refused: ssl/tls alert handshake failure; it may want a client"));
        let late = "reading: error:0A00045C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required:x.c:1:y";
        let failure = of(ErrorType::ReadError, late).unwrap();
        assert_eq!(failure.reason, Reason::ClientCertificate);
        assert_eq!(failure.why, "the node wants a client certificate: tlsv13 alert certificate required");
    }

    #[test]
    fn what_is_no_handshake_s_is_left_alone() {
        assert_eq!(of(ErrorType::ReadError, "error:0A000126:SSL routines::unexpected eof while reading:x:1:"), None);
        assert_eq!(of(ErrorType::ConnectRefused, "Connection refused"), None);
        assert_eq!(of(ErrorType::TLSHandshakeFailure, "connection reset by peer").unwrap().reason, Reason::Aborted);
        assert_eq!(of(ErrorType::InvalidCert, "nobody listened").unwrap().reason, Reason::Other);
    }
}
