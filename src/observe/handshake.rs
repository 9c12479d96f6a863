//! How a TLS handshake can end: a fixed set, so that it can be a metric label.

/// The end of one TLS handshake, seen from the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeResult {
    /// The client is in.
    Ok,
    /// Not done within `timeouts.handshake`.
    Timeout,
    /// The client sent no certificate.
    NoCertificate,
    /// The client's chain leads to a CA that is not in the bundle, or the certificate is self-signed.
    UnknownCa,
    /// The client sent its certificate alone, and the issuer is not in the bundle: an intermediate is missing (or the CA
    /// is unknown here and issues directly; the two look alike).
    ChainIncomplete,
    /// The client's certificate, or one above it, is past its end.
    Expired,
    /// The client's certificate, or one above it, is before its begin.
    NotYetValid,
    /// The certificate is not for TLS clients, or was issued by one that is not a CA's.
    WrongPurpose,
    /// SHA-1, or a key that is too small, in the client's certificate or above it.
    WeakSignature,
    /// A signature does not fit: another CA of the same name, or a client without the certificate's key.
    BadSignature,
    /// The client's certificate, or with `crl_check: chain` one above it, is revoked.
    Revoked,
    /// Revocation is checked, and there is no list of the certificate's issuer.
    NoCrl,
    /// The list of the certificate's issuer is past its nextUpdate (`expired_crl: reject`).
    CrlExpired,
    /// The client speaks only TLS versions that the listener does not.
    ProtocolVersion,
    /// No cipher suite, group or signature algorithm in common.
    NoSharedCipher,
    /// ALPN offered neither `h2` nor `http/1.1`.
    NoApplicationProtocol,
    /// The gateway has no certificate of its own yet: the SPIFFE agent has not issued one.
    NoSvid,
    /// The client broke off with a TLS alert: usually it does not trust the gateway's certificate.
    ClientAlert,
    /// The connection ended in the middle.
    Aborted,
    /// Not TLS at all, such as plain HTTP.
    NotTls,
    /// Anything else; the log says what.
    Other,
}

impl HandshakeResult {
    /// Every result, in the order of declaration.
    pub const ALL: [HandshakeResult; 21] = [
        HandshakeResult::Ok,
        HandshakeResult::Timeout,
        HandshakeResult::NoCertificate,
        HandshakeResult::UnknownCa,
        HandshakeResult::ChainIncomplete,
        HandshakeResult::Expired,
        HandshakeResult::NotYetValid,
        HandshakeResult::WrongPurpose,
        HandshakeResult::WeakSignature,
        HandshakeResult::BadSignature,
        HandshakeResult::Revoked,
        HandshakeResult::NoCrl,
        HandshakeResult::CrlExpired,
        HandshakeResult::ProtocolVersion,
        HandshakeResult::NoSharedCipher,
        HandshakeResult::NoApplicationProtocol,
        HandshakeResult::NoSvid,
        HandshakeResult::ClientAlert,
        HandshakeResult::Aborted,
        HandshakeResult::NotTls,
        HandshakeResult::Other,
    ];

    /// The label: stable, snake_case.
    pub fn as_str(self) -> &'static str {
        match self {
            HandshakeResult::Ok => "ok",
            HandshakeResult::Timeout => "timeout",
            HandshakeResult::NoCertificate => "no_certificate",
            HandshakeResult::UnknownCa => "unknown_ca",
            HandshakeResult::ChainIncomplete => "chain_incomplete",
            HandshakeResult::Expired => "expired",
            HandshakeResult::NotYetValid => "not_yet_valid",
            HandshakeResult::WrongPurpose => "wrong_purpose",
            HandshakeResult::WeakSignature => "weak_signature",
            HandshakeResult::BadSignature => "bad_signature",
            HandshakeResult::Revoked => "revoked",
            HandshakeResult::NoCrl => "no_crl",
            HandshakeResult::CrlExpired => "crl_expired",
            HandshakeResult::ProtocolVersion => "protocol_version",
            HandshakeResult::NoSharedCipher => "no_shared_cipher",
            HandshakeResult::NoApplicationProtocol => "no_application_protocol",
            HandshakeResult::NoSvid => "no_svid",
            HandshakeResult::ClientAlert => "client_alert",
            HandshakeResult::Aborted => "aborted",
            HandshakeResult::NotTls => "not_tls",
            HandshakeResult::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_result_once_in_order() {
        for (at, result) in HandshakeResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, at);
        }
        let mut labels: Vec<_> = HandshakeResult::ALL.into_iter().map(HandshakeResult::as_str).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), HandshakeResult::ALL.len());
    }
}
