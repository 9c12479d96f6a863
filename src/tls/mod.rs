//! TLS: the listeners' contexts with their trust in clients, what a handshake came to, and who the client is; and the
//! material with which the gateway itself calls nodes.
//!
//! **Trust.** A client's chain is built from what the client sent and from the CA bundle, and must end in a self-signed
//! root of the bundle. An intermediate in the bundle helps to build the chain (a client need not send it), it is not an
//! anchor by itself: `X509_V_FLAG_PARTIAL_CHAIN` stays off, so that taking a root out of the bundle takes away all that
//! stands below it.
//!
//! **Strength.** Security level 2 of OpenSSL: 112 bits, so no SHA-1 and no RSA key below 2048 bits in a client's chain,
//! whatever its CA signed.
//!
//! **Revocation.** Lists (CRLs) of the clients' issuers, held in a set of our own (`revocation`): asked in the handshake,
//! by every request on a running connection, and by running answers (`standing`), as are the certificate's end and
//! the CA bundle, which may all have changed since. OCSP, where configured, is asked before a connection's first request
//! and whenever its answer has run out: a handshake can't wait for somebody else without holding up its thread.
//!
//! **Stapling.** The OCSP answer about the gateway's own certificate goes along to clients that ask for it (`staple`).
//!
//! **No resumption.** No session cache, no tickets. OpenSSL takes over a resumed client's certificate without verifying
//! it: neither the chain, nor the dates, nor the verify callback with its lists, so a revoked client would get back in
//! for as long as its ticket holds. Made safe, each resumption would have to verify the chain and ask the lists as a
//! full handshake does; what is saved then is one signature and one key agreement in a handshake that partners' nodes
//! make once in an hour (`timeouts.connection_age`), and every ticket key would be one more secret to rotate.

mod certificate;
mod client_chain;
mod files;
mod handshake;
mod listener;
mod names;
mod node_handshake;
mod node_identity;
mod revocation;
mod spiffe;
mod standing;
mod staple;
mod upstream;

use std::fmt;

pub use certificate::{CertificateFacts, identity, identity_of};
pub use handshake::{Alpn, ConnectionFacts, HandshakeFailure, classify, facts, offered, timed_out};
pub use listener::{ServerContext, build_listener};
pub use node_handshake::NodeFailure;
pub use node_identity::{Findings, NodeProof, prove_node};
pub use revocation::{
    Answer, Bundle, CRL_BYTES_MAX, Crl, CrlFacts, CrlUrl, Fetched, IssuerId, Link, Names, Ocsp, OcspAnswer,
    OcspVerdict, Revocation, RevocationSet, Scope, Serial, Serials, StateDir, UrlPrefix, Verdict, crl_asked,
    crl_wanted, fetch, two_thirds,
};
pub use spiffe::{AgentFailure, ENDPOINT_VARIABLE, Endpoint, Issued, Svid, Update, Updates, connect};
pub use standing::{ClientChain, Gone, Standing};
pub use staple::{Staple, Stapled};
pub use upstream::{UpstreamTlsMaterial, build_upstream};

/// What is wrong, or only doubtful, with a certificate, key or bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFault {
    /// Which key of the `tls` block it is about, such as `certificates[0].key` or `client_auth.ca`.
    pub field: String,
    /// What is wrong, with the file's name.
    pub message: String,
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod standing_tests;
