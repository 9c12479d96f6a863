//! Whether a node is who it should be: a SPIFFE ID (`upstreams[].tls.spiffe_id`), or a name among the certificate's SANs.
//!
//! Pingora can compare DNS names only, and where a certificate has none, OpenSSL takes the subject's common name for one,
//! which nobody should any more (RFC 9525, section 2). So a name is compared by OpenSSL, and here it is asked that there
//! be one. For a SPIFFE ID the chain is verified by OpenSSL during the handshake, as ever, without a name;
//! right after it, before any byte is written, Pingora calls the hook that is made here. It leaves its finding with the
//! connection, and the caller asks for it before each request ([`NodeProof::of`]); nothing found counts as wrong. A
//! connection to the wrong node is also made useless on the spot, whoever may hold it: HTTP/2 would else send its preface
//! before anybody asks, and keep the connection for others.

use std::sync::Arc;

use foreign_types::ForeignTypeRef;
use openssl::ssl::SslRef;
use openssl::x509::X509VerifyResult;
use pingora::protocols::Digest;
use pingora::protocols::tls::HandshakeCompleteHook;

use super::certificate::identity_of;
use crate::policy::peers::UriPattern;

/// What was found of a node's certificate.
#[derive(Debug, PartialEq, Eq)]
pub enum NodeProof {
    /// Its chain was verified and its SPIFFE ID is the expected one.
    Right,
    /// Not so; says what it is instead.
    Wrong(String),
}

impl NodeProof {
    /// What was found when this connection was made. None: nobody looked, so nothing is proven.
    pub fn of(digest: Option<&Digest>) -> Option<&Self> {
        digest?.ssl_digest.as_ref()?.extension.get::<Self>()
    }

    fn find(ssl: &SslRef, expected: Option<&UriPattern>) -> Self {
        let Some(certificate) = ssl.peer_certificate() else { return Self::Wrong("no certificate".into()) };
        let verified = ssl.verify_result();
        if verified != X509VerifyResult::OK {
            return Self::Wrong(format!("not verified: {}", verified.error_string()));
        }
        let identity = identity_of(&certificate);
        let Some(expected) = expected else {
            return match identity {
                Some(identity) if !identity.dns.is_empty() => Self::Right,
                _ => Self::Wrong("the node's certificate has no DNS name among its SANs".into()),
            };
        };
        match identity.and_then(|identity| identity.spiffe_id) {
            Some(id) if expected.matches(&id) => Self::Right,
            Some(id) => Self::Wrong(format!("the node is {id}, not {expected}")),
            None => Self::Wrong(format!("the node's certificate has no SPIFFE ID, expected {expected}")),
        }
    }
}

/// What Pingora calls after each handshake with a node that must be `expected`; without that, one whose name OpenSSL has
/// found right.
pub fn prove_node(expected: Option<Arc<UriPattern>>) -> HandshakeCompleteHook {
    Arc::new(move |ssl| {
        let proof = NodeProof::find(ssl, expected.as_deref());
        if proof != NodeProof::Right {
            let both = openssl_sys::SSL_SENT_SHUTDOWN | openssl_sys::SSL_RECEIVED_SHUTDOWN;
            // SAFETY: the pointer is of a live session that nobody else uses during the hook. OpenSSL then believes that
            // both sides have closed: writing is an error, and reading is the end.
            unsafe { openssl_sys::SSL_set_shutdown(ssl.as_ptr(), both) };
        }
        Some(Arc::new(proof))
    })
}
