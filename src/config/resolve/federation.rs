//! `hive.federation`, and what `peers` say for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Resolver;
use super::secrets::secret;
use crate::config::Peer;
use crate::config::file::{self, FederationJwt};
use crate::policy::federation::{
    CLOCK_SKEW_MAX, ISSUER_LENGTH_MAX, PeerIssuer, SHARED_SECRET_LEAST, Settings, Verify, check_public_key,
};

/// `hive.federation`
pub(super) fn resolve(r: &mut Resolver<'_>, raw: file::Federation, prefix: &str, peers: &[Peer]) -> Settings {
    const AT: &str = "hive.federation";
    let (inline, file) = (raw.shared_secret, raw.shared_secret_file);
    let shared_secret = secret(r, AT, "shared_secret", inline, file, SHARED_SECRET_LEAST);
    r.span("hive.federation.clock_skew", raw.clock_skew, Duration::ZERO, CLOCK_SKEW_MAX);
    for (key, value) in [("audience", &raw.audience), ("issuer", &raw.issuer)] {
        if let Some(why) = value.as_deref().and_then(claim_fault) {
            r.error(&format!("{AT}.{key}"), why);
        }
    }
    let shared_issuer = raw.issuer.unwrap_or_else(|| default_issuer(prefix));
    if raw.bind_issuer && peers.iter().all(|p| p.issuer.is_none()) && !r.has_guess("peers") {
        let why = "no peer has an issuer, so every federation JWT would be refused; write peers[].issuer";
        r.error("hive.federation.bind_issuer", why);
    }
    if raw.jwt == FederationJwt::Pass {
        return Settings { verify: None, bind_issuer: raw.bind_issuer };
    }
    if raw.audience.is_none() && !r.has_guess("hive.federation.audience") {
        let why =
            "verify needs an audience; write audience: https://federation.example.com, the gateway's public origin";
        r.error("hive.federation.jwt", why);
    }
    let keys = peers.iter().filter_map(|p| p.issuer.as_ref()).filter(|i| i.ed25519.is_some());
    if let Some(signed) = keys.clone().find(|i| *i.issuer == *shared_issuer && shared_secret.is_some()) {
        let why = format!("{shared_issuer:?} is the issuer of the shared secret; a key's is the peer's own origin");
        r.error(&format!("peers[{}].issuer", signed.peer), why);
    }
    let secret_guessed =
        r.has_guess("hive.federation.shared_secret") || r.has_guess("hive.federation.shared_secret_file");
    if shared_secret.is_none() && keys.count() == 0 && !secret_guessed && !r.has_guess("peers") {
        let why = "verify has no key, so every federation JWT would be refused";
        r.error("hive.federation.jwt", format!("{why}; write shared_secret_file, or peers[].ed25519_public_key"));
    }
    let verify = Verify {
        audience: raw.audience.unwrap_or_default(),
        shared_secret,
        shared_issuer,
        clock_skew: raw.clock_skew.0,
    };
    Settings { verify: Some(verify), bind_issuer: raw.bind_issuer }
}

/// `hive-mesh-federation` of `X-Hive`, as Hive itself was renamed.
fn default_issuer(prefix: &str) -> String {
    let product = prefix.to_ascii_lowercase();
    format!("{}-mesh-federation", product.strip_prefix("x-").unwrap_or(&product))
}

/// `peers[].issuer` and `peers[].ed25519_public_key`
pub(super) fn peer_issuer(r: &mut Resolver<'_>, i: usize, raw: &file::Peer) -> Option<PeerIssuer> {
    let (issuer_path, key_path) = (format!("peers[{i}].issuer"), format!("peers[{i}].ed25519_public_key"));
    let ed25519 = raw.ed25519_public_key.as_deref().and_then(|text| match public_key(text) {
        Ok(key) => Some(key),
        Err(why) => {
            r.error(&key_path, why);
            None
        }
    });
    let Some(issuer) = &raw.issuer else {
        if raw.ed25519_public_key.is_some() && !r.has_guess(&issuer_path) {
            let remedy = "write issuer: https://hive-paris.example, the peer's public origin";
            r.error(&key_path, format!("tokens are matched to a key by their iss; {remedy}"));
        }
        return None;
    };
    if let Some(why) = claim_fault(issuer) {
        r.error(&issuer_path, why);
    }
    Some(PeerIssuer { peer: u32::try_from(i).unwrap_or(u32::MAX), issuer: Arc::from(issuer.as_str()), ed25519 })
}

/// One issuer, two keys: which one is right would be chance.
pub(super) fn check_keys(r: &mut Resolver<'_>, peers: &[Peer]) {
    let mut seen: HashMap<&str, (usize, [u8; 32])> = HashMap::new();
    for (i, peer) in peers.iter().enumerate() {
        let Some((issuer, key)) = peer.issuer.as_ref().and_then(|p| Some((&*p.issuer, p.ed25519?))) else { continue };
        match seen.get(issuer) {
            Some((_, theirs)) if *theirs == key => {}
            Some((first, _)) => {
                let line = r.located.place(&format!("peers[{first}]")).line;
                let why = format!("{issuer} has another key with the peer {} in line {line}", peers[*first].name);
                r.error(&format!("peers[{i}].ed25519_public_key"), why);
            }
            None => _ = seen.insert(issuer, (i, key)),
        }
    }
}

fn public_key(text: &str) -> Result<[u8; 32], String> {
    const REMEDY: &str = "write 64 hex digits";
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("{text:?} is not an Ed25519 public key; {REMEDY}"));
    }
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok()).unwrap_or(0);
        *byte = digit(digits[0]) << 4 | digit(digits[1]);
    }
    check_public_key(&key).map(|()| key).map_err(|e| e.to_string())
}

/// What is wrong with an `iss` or `aud`; they are compared byte for byte.
fn claim_fault(text: &str) -> Option<String> {
    let remedy = "write one such as https://hive-paris.example";
    if text.is_empty() || text.len() > ISSUER_LENGTH_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Some(format!("{text:?} is not 1 to {ISSUER_LENGTH_MAX} letters without a space; {remedy}"));
    }
    let path = text.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    path.then(|| format!("{text:?} is not an origin, which ends before the path; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_issuer_follows_the_prefix() {
        assert_eq!(default_issuer("X-Hive"), "hive-mesh-federation");
        assert_eq!(default_issuer("x-pilox"), "pilox-mesh-federation");
        assert_eq!(default_issuer("Acme"), "acme-mesh-federation");
    }

    #[test]
    fn a_key_is_64_digits_and_no_weak_point() {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(public_key(key).unwrap()[..2], [0xd7, 0x5a]);
        assert!(public_key(&key[1..]).unwrap_err().contains("64 hex digits"));
        assert!(public_key(&key.replace('d', "g")).is_err());
        assert!(public_key(&"0".repeat(64)).unwrap_err().contains("small order"));
    }

    #[test]
    fn a_claim_is_an_origin_or_a_word() {
        for good in ["https://hive-paris.example", "https://h.example:8443", "hive-mesh-federation"] {
            assert_eq!(claim_fault(good), None, "{good}");
        }
        assert!(claim_fault("https://hive-paris.example/").unwrap().contains("before the path"));
        assert!(claim_fault("").is_some() && claim_fault("a b").is_some());
    }
}
