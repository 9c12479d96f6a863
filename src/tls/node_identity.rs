//! Whether a node is who it should be: a SPIFFE ID (`upstreams[].tls.spiffe_id`), or a name among the certificate's SANs.
//!
//! Pingora can compare DNS names only, and where a certificate has none, OpenSSL takes the subject's common name for one,
//! which nobody should any more (RFC 9525, section 2). So a name is compared by OpenSSL, and here it is asked that there
//! be one. For a SPIFFE ID the chain is verified by OpenSSL during the handshake, as ever, without a name;
//! right after it, before any byte is written, Pingora calls the hook that is made here. It leaves its finding with the
//! connection, and the caller asks for it before each request ([`NodeProof::of`]); nothing found counts as wrong. A
//! connection to the wrong node is also made useless on the spot, whoever may hold it: HTTP/2 would else send its preface
//! before anybody asks, and keep the connection for others. What the hook found is kept with the node too ([`Findings`]):
//! of such an HTTP/2 connection Pingora only says that it broke.
//!
//! The hook also sees to what Pingora's connector leaves open: the least TLS version (its own is 1.0, and no option of a
//! peer changes that; OpenSSL's security level keeps anything below 1.2 out of the handshake as it is), and HTTP/2, for
//! which Pingora falls back to HTTP/1.1 in silence.

use std::sync::Arc;

use foreign_types::ForeignTypeRef;
use openssl::ssl::{SslRef, SslVersion};
use openssl::x509::X509VerifyResult;
use parking_lot::Mutex;
use pingora::protocols::Digest;
use pingora::protocols::tls::HandshakeCompleteHook;

use super::certificate::identity_of;
use super::node_handshake::{NodeFailure, listen};
use super::revocation::{Link, Revocation, Verdict};
use super::upstream::UpstreamTlsMaterial;
use crate::clock::Clock;
use crate::config::file::TlsVersion;
use crate::observe::UpstreamTlsFailure as Reason;
use crate::policy::peers::UriPattern;

/// What was found of a node's connection.
#[derive(Debug, PartialEq, Eq)]
pub enum NodeProof {
    /// Its chain was verified, and it is the node that was meant and speaks what it should.
    Right,
    /// Not so; says what it is instead.
    Wrong(NodeFailure),
}

/// What handshakes with a node found wrong with it, until somebody was told.
#[derive(Debug, Default)]
pub struct Findings(Mutex<Option<(NodeFailure, u32)>>);

impl Findings {
    fn add(&self, failure: NodeFailure) {
        let mut found = self.0.lock();
        let untold = found.as_ref().map_or(0, |(_, untold)| *untold);
        *found = Some((failure, untold + 1));
    }

    /// The last thing found, for each time that something was.
    pub fn take(&self) -> Option<NodeFailure> {
        let mut found = self.0.lock();
        let (failure, untold) = found.take()?;
        if untold > 1 {
            *found = Some((failure.clone(), untold - 1));
        }
        Some(failure)
    }
}

/// What a node must show.
struct Expected {
    /// None: OpenSSL has found its name right.
    spiffe_id: Option<Arc<UriPattern>>,
    revocation: Option<Arc<Revocation>>,
    versions: &'static [SslVersion],
    http2: bool,
}

impl NodeProof {
    /// What was found when this connection was made. None: nobody looked, so nothing is proven.
    pub fn of(digest: Option<&Digest>) -> Option<&Self> {
        digest?.ssl_digest.as_ref()?.extension.get::<Self>()
    }
}

impl Expected {
    fn check(&self, ssl: &SslRef) -> Result<(), NodeFailure> {
        self.check_certificate(ssl)?;
        self.check_lists(ssl)?;
        if ssl.version2().is_none_or(|version| !self.versions.contains(&version)) {
            let why = format!("the node speaks {}, less than tls.min_version allows", ssl.version_str());
            return Err(NodeFailure::new(Reason::ProtocolVersion, why));
        }
        if self.http2 && ssl.selected_alpn_protocol() != Some(b"h2") {
            let why = "the node offers no HTTP/2 (ALPN h2), which protocol: http2 asks for; write protocol: http1";
            return Err(NodeFailure::new(Reason::NoApplicationProtocol, why));
        }
        Ok(())
    }

    fn check_lists(&self, ssl: &SslRef) -> Result<(), NodeFailure> {
        let Some(revocation) = &self.revocation else { return Ok(()) };
        let links = ssl.verified_chain().map(|chain| Link::of_chain(chain, revocation.crl_check()));
        let Some(links) = links.and_then(Result::ok).filter(|links| !links.is_empty()) else {
            return Err(NodeFailure::new(Reason::NoCrl, "the node's certificate has no issuer to be revoked by"));
        };
        // By the clock that OpenSSL has just verified the chain with.
        let (reason, why) = match revocation.ask(&links, Clock::System.unix_seconds()).1 {
            Verdict::Good { .. } => return Ok(()),
            Verdict::Revoked => (Reason::Revoked, "the node's certificate is revoked"),
            Verdict::NoCrl => (Reason::NoCrl, "no list of tls.crl is about the node's certificate"),
            Verdict::CrlExpired => (Reason::CrlExpired, "the list about the node's certificate is past its nextUpdate"),
        };
        Err(NodeFailure::new(reason, why))
    }

    fn check_certificate(&self, ssl: &SslRef) -> Result<(), NodeFailure> {
        let wrong = |reason, why: String| Err(NodeFailure::new(reason, why));
        let Some(certificate) = ssl.peer_certificate() else { return wrong(Reason::Other, "no certificate".into()) };
        let verified = ssl.verify_result();
        if verified != X509VerifyResult::OK {
            return wrong(Reason::Other, format!("not verified: {}", verified.error_string()));
        }
        let identity = identity_of(&certificate);
        let Some(expected) = &self.spiffe_id else {
            return match identity {
                Some(identity) if !identity.dns.is_empty() => Ok(()),
                _ => wrong(Reason::NameMismatch, "the node's certificate has no DNS name among its SANs".into()),
            };
        };
        match identity.and_then(|identity| identity.spiffe_id) {
            Some(id) if expected.matches(&id) => Ok(()),
            Some(id) => wrong(Reason::WrongSpiffeId, format!("the node is {id}, not {expected}")),
            None => {
                wrong(Reason::WrongSpiffeId, format!("the node's certificate has no SPIFFE ID, expected {expected}"))
            }
        }
    }
}

/// What Pingora calls after each handshake with a node that must be as `material` says and, if so, speak HTTP/2.
pub fn prove_node(material: &UpstreamTlsMaterial, http2: bool, findings: Arc<Findings>) -> HandshakeCompleteHook {
    // Before the first handshake with a node: those that fail are heard of there.
    listen();
    let versions: &[_] = match material.min_version {
        TlsVersion::Tls12 => &[SslVersion::TLS1_2, SslVersion::TLS1_3],
        TlsVersion::Tls13 => &[SslVersion::TLS1_3],
    };
    let (spiffe_id, revocation) = (material.spiffe_id.clone(), material.revocation.clone());
    let expected = Expected { spiffe_id, revocation, versions, http2 };
    Arc::new(move |ssl| {
        let Err(failure) = expected.check(ssl) else { return Some(Arc::new(NodeProof::Right)) };
        let both = openssl_sys::SSL_SENT_SHUTDOWN | openssl_sys::SSL_RECEIVED_SHUTDOWN;
        // SAFETY: the pointer is of a live session that nobody else uses during the hook. OpenSSL then believes that both
        // sides have closed: writing is an error, and reading is the end.
        unsafe { openssl_sys::SSL_set_shutdown(ssl.as_ptr(), both) };
        findings.add(failure.clone());
        Some(Arc::new(NodeProof::Wrong(failure)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_told_once() {
        let findings = Findings::default();
        assert_eq!(findings.take(), None);
        let failure = |why: &str| NodeFailure::new(Reason::NoApplicationProtocol, why);
        findings.add(failure("a"));
        findings.add(failure("b"));
        assert_eq!([findings.take(), findings.take(), findings.take()], [Some(failure("b")), Some(failure("b")), None]);
    }
}
