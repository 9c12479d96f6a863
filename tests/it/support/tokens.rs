//! Federation tokens, good and bad, and a Hive that verifies them and burns their `jti`.

use std::collections::HashSet;
use std::io;
use std::sync::Mutex;

use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::{Signer, Verifier};
use serde_json::{Value, json};

use super::node::{Exchange, Recorded};

pub const SECRET: &str = "0123456789abcdef-shared-secret-0123456789";
pub const INVALID: &str = r#"{"error":"Unauthorized","message":"Invalid federation JWT."}"#;
pub const NOT_NOW: &str = r#"{"error":"Unauthorized","message":"Federation JWT is not valid at this time."}"#;

pub fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}

pub fn base64url(bytes: &[u8]) -> String {
    openssl::base64::encode_block(bytes).trim_end_matches('=').replace('+', "-").replace('/', "_")
}

fn from_base64url(text: &str) -> Option<Vec<u8>> {
    let padding = ["", "", "==", "="][text.len() % 4];
    openssl::base64::decode_block(&(text.replace('-', "+").replace('_', "/") + padding)).ok()
}

/// Ed25519 as the configuration wants it.
pub fn hex(key: &PKey<Private>) -> String {
    key.raw_public_key().unwrap().iter().map(|b| format!("{b:02x}")).collect()
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()))
}

/// Signed with HMAC, whatever the header says.
pub fn with_hmac(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let text = unsigned(header, claims);
    let key = PKey::hmac(secret).unwrap();
    let mac = Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(text.as_bytes()).unwrap();
    format!("{text}.{}", base64url(&mac))
}

pub fn with_ed25519(claims: &Value, key: &PKey<Private>) -> String {
    let text = unsigned(&json!({ "alg": "EdDSA", "typ": "JWT" }), claims);
    let signature = Signer::new_without_digest(key).unwrap().sign_oneshot_to_vec(text.as_bytes()).unwrap();
    format!("{text}.{}", base64url(&signature))
}

/// Claims of a token with the shared secret, good for a minute.
pub fn shared_claims(audience: &str, jti: &str) -> Value {
    let now = now();
    json!({ "iss": "hive-mesh-federation", "sub": "federation-peer", "aud": audience, "jti": jti, "iat": now, "exp": now + 60 })
}

pub fn hs256(claims: &Value) -> String {
    with_hmac(&json!({ "alg": "HS256", "typ": "JWT" }), claims, SECRET.as_bytes())
}

/// `claims` with one of them changed.
pub fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

/// What a Hive does with a token: verifies it by the shared secret or this key, and takes each `jti` once.
pub fn hive(key: Option<PKey<Private>>) -> impl Fn(&Recorded, &mut Exchange) -> io::Result<()> + Send + Sync + 'static {
    let burned = Mutex::new(HashSet::new());
    move |request, exchange| {
        let token = request.header("x-hive-federation-jwt").unwrap_or_default();
        let jti = jti_of(&token, key.as_ref()).filter(|jti| burned.lock().unwrap().insert(jti.clone()));
        match jti {
            Some(jti) => {
                exchange.answer(200, "Content-Type: application/json\r\n", json!({ "jti": jti }).to_string().as_bytes())
            }
            None => exchange.answer(401, "Content-Type: application/json\r\n", INVALID.as_bytes()),
        }
    }
}

fn jti_of(token: &str, key: Option<&PKey<Private>>) -> Option<String> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let read = |part: &str| serde_json::from_slice::<Value>(&from_base64url(part)?).ok();
    let signature = from_base64url(signature)?;
    let good = match read(header)?["alg"].as_str()? {
        "HS256" => with_hmac(&read(header)?, &read(claims)?, SECRET.as_bytes()) == token,
        "EdDSA" => Verifier::new_without_digest(key?).unwrap().verify_oneshot(&signature, signed.as_bytes()).ok()?,
        _ => false,
    };
    good.then(|| read(claims)?["jti"].as_str().map(str::to_owned)).flatten()
}
