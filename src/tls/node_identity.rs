//! Whether a node is who it should be, where that is a SPIFFE ID (`upstreams[].tls.spiffe_id`).
//!
//! Pingora can compare DNS names only. So the chain is verified by OpenSSL during the handshake, as ever, without a name;
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

    fn find(ssl: &SslRef, expected: &UriPattern) -> Self {
        let Some(certificate) = ssl.peer_certificate() else { return Self::Wrong("no certificate".into()) };
        let verified = ssl.verify_result();
        if verified != X509VerifyResult::OK {
            return Self::Wrong(format!("not verified: {}", verified.error_string()));
        }
        match identity_of(&certificate).and_then(|identity| identity.spiffe_id) {
            Some(id) if expected.matches(&id) => Self::Right,
            Some(id) => Self::Wrong(format!("the node is {id}, not {expected}")),
            None => Self::Wrong(format!("the node's certificate has no SPIFFE ID, expected {expected}")),
        }
    }
}

/// What Pingora calls after each handshake with a node that must be `expected`.
pub fn prove_node(expected: Arc<UriPattern>) -> HandshakeCompleteHook {
    Arc::new(move |ssl| {
        let proof = NodeProof::find(ssl, &expected);
        if proof != NodeProof::Right {
            let both = openssl_sys::SSL_SENT_SHUTDOWN | openssl_sys::SSL_RECEIVED_SHUTDOWN;
            // SAFETY: the pointer is of a live session that nobody else uses during the hook. OpenSSL then believes that
            // both sides have closed: writing is an error, and reading is the end.
            unsafe { openssl_sys::SSL_set_shutdown(ssl.as_ptr(), both) };
        }
        Some(Arc::new(proof))
    })
}
