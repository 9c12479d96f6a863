//! How a TLS handshake ended.

/// How a TLS handshake on a listener ended: the `result` label, and the log's word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeResult {
    /// The connection is up.
    Ok,
    /// `timeouts.handshake` passed.
    Timeout,
    /// The client sent no certificate.
    NoCertificate,
    /// The certificate does not chain to the internal CA.
    UnknownCa,
    /// The certificate, or one above it, has expired.
    Expired,
    /// The client is gone.
    Aborted,
    /// Anything else.
    Other,
}

impl HandshakeResult {
    /// Stable snake_case name.
    pub fn as_str(self) -> &'static str {
        match self {
            HandshakeResult::Ok => "ok",
            HandshakeResult::Timeout => "timeout",
            HandshakeResult::NoCertificate => "no_certificate",
            HandshakeResult::UnknownCa => "unknown_ca",
            HandshakeResult::Expired => "expired",
            HandshakeResult::Aborted => "aborted",
            HandshakeResult::Other => "other",
        }
    }
}
