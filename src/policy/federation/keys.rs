//! Keys that tokens are verified with, prepared once.

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::sign::{Signer, Verifier};

/// Bytes of an HMAC-SHA256.
const MAC_LENGTH: usize = 32;
/// Bytes of an Ed25519 signature (RFC 8032, section 5.1.6).
const SIGNATURE_LENGTH: usize = 64;

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// OpenSSL does not take it.
    #[error("a federation key can't be used: {0}")]
    Unusable(#[from] ErrorStack),
    /// A public key under which anyone can sign.
    #[error("a point of small order: anyone could sign for it")]
    SmallOrder,
    /// One issuer, two keys.
    #[error("issuer {0:?} has two different public keys")]
    TwoKeys(String),
}

/// The secret of HS256.
pub(super) struct SharedKey(PKey<Private>);

impl SharedKey {
    pub(super) fn new(secret: &[u8]) -> Result<Self, KeyError> {
        Ok(Self(PKey::hmac(secret)?))
    }

    pub(super) fn signed(&self, text: &[u8], mac: &[u8]) -> bool {
        let mut ours = [0; MAC_LENGTH];
        let made = Signer::new(MessageDigest::sha256(), &self.0).and_then(|mut s| s.sign_oneshot(&mut ours, text));
        // The time of the comparison depends on the length alone, which is no secret.
        matches!(made, Ok(MAC_LENGTH)) && mac.len() == MAC_LENGTH && memcmp::eq(&ours, mac)
    }
}

/// A peer's Ed25519 key.
pub(super) struct PublicKey {
    raw: [u8; 32],
    key: PKey<Public>,
}

impl PublicKey {
    pub(super) fn new(raw: [u8; 32]) -> Result<Self, KeyError> {
        check_public_key(&raw)?;
        Ok(Self { raw, key: PKey::public_key_from_raw_bytes(&raw, Id::ED25519)? })
    }

    pub(super) fn raw(&self) -> &[u8; 32] {
        &self.raw
    }

    pub(super) fn signed(&self, text: &[u8], signature: &[u8]) -> bool {
        signature.len() == SIGNATURE_LENGTH
            && Verifier::new_without_digest(&self.key)
                .and_then(|mut v| v.verify_oneshot(signature, text))
                .unwrap_or(false)
    }
}

/// y coordinates of the points whose order divides 8, in every encoding that OpenSSL takes, without the sign bit.
/// All zeros, which someone may write until the real key is known, is one of them.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    first_and_rest(1, 0, 0),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    first_and_rest(0xec, 0xff, 0x7f),
    first_and_rest(0xed, 0xff, 0x7f),
    first_and_rest(0xee, 0xff, 0x7f),
];

const fn first_and_rest(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// Whether signatures under this key mean anything. With a point of small order a signature can be made without any
/// secret, and OpenSSL would accept it.
///
/// # Errors
/// [`KeyError::SmallOrder`].
pub fn check_public_key(raw: &[u8; 32]) -> Result<(), KeyError> {
    let mut without_sign = *raw;
    without_sign[31] &= 0x7f;
    if SMALL_ORDER.contains(&without_sign) { Err(KeyError::SmallOrder) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S = 0 and R = the neutral element: right for every text whose hash times the key is the neutral element.
    #[test]
    fn a_signature_without_a_secret_is_good_under_a_key_of_small_order() {
        let mut forged = [0; SIGNATURE_LENGTH];
        forged[0] = 1;
        for raw in SMALL_ORDER {
            assert!(matches!(PublicKey::new(raw), Err(KeyError::SmallOrder)));
            let key = PublicKey { raw, key: PKey::public_key_from_raw_bytes(&raw, Id::ED25519).unwrap() };
            let passed = (0..1000u32).filter(|n| key.signed(&n.to_be_bytes(), &forged)).count();
            assert!(passed >= 60, "{raw:02x?} {passed}");
        }
        let honest = PKey::generate_ed25519().unwrap().raw_public_key().unwrap();
        let honest = PublicKey::new(honest.try_into().unwrap()).unwrap();
        assert!(!(0..1000u32).any(|n| honest.signed(&n.to_be_bytes(), &forged)));
    }
}
