//! A JSON Web Token in compact form, taken apart (RFC 7515, section 7.1; RFC 7519). Nothing is believed yet.

use std::fmt;

use serde::Deserializer;
use serde::de::{self, Deserialize, IgnoredAny, MapAccess, Visitor};

use super::base64url;

/// Longest token, in bytes (`hive-contract`, "Federation JWT").
const TOKEN_LENGTH_MAX: usize = 8192;

/// Most members of a header or a claims set: each is compared with those before it.
const MEMBERS_MAX: usize = 64;

/// A token's parts.
pub(super) struct Token<'a> {
    /// What the signature is over: header, dot and claims as they came.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: Vec<u8>,
    /// The header's `alg`.
    pub alg: String,
    /// The claims.
    pub claims: Claims,
}

/// What of the claims is of interest. A claim that is there has the right type.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub iss: Option<String>,
    pub sub: Option<String>,
    pub aud: Option<Audience>,
    pub jti: Option<String>,
    pub exp: Option<f64>,
    pub nbf: Option<f64>,
    pub iat: Option<f64>,
}

/// `aud`
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// A string.
    One(String),
    /// Anything else, such as a list.
    Other,
}

/// Takes a token apart.
///
/// # Errors
/// What is malformed, never what was sent.
pub(super) fn parse(text: &[u8]) -> Result<Token<'_>, &'static str> {
    if text.len() > TOKEN_LENGTH_MAX {
        return Err("token too long");
    }
    let last = memchr::memrchr(b'.', text).ok_or("not three parts")?;
    let signed = &text[..last];
    let first = memchr::memchr(b'.', signed).ok_or("not three parts")?;
    // A further dot is no letter of base64url.
    let header = base64url::decode(&signed[..first]).ok_or("the header is not base64url")?;
    let claims = base64url::decode(&signed[first + 1..]).ok_or("the claims are not base64url")?;
    let signature = base64url::decode(&text[last + 1..]).ok_or("the signature is not base64url")?;
    let Header { alg } = json(&header).ok_or("the header is not a JSON object with alg and without crit")?;
    let claims = json(&claims).ok_or("the claims are not a JSON object, or one is of a wrong type or there twice")?;
    Ok(Token { signed, signature, alg, claims })
}

/// The whole text must be valid UTF-8: serde_json does not look at strings that nobody asks for.
fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

/// Notes each member's name once.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    /// The next member's name; an error if it was there before, in whatever spelling.
    fn next<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<&str>, A::Error> {
        let Some(name) = map.next_key::<String>()? else { return Ok(None) };
        if self.0.len() == MEMBERS_MAX || self.0.contains(&name) {
            return Err(de::Error::custom("a member twice, or too many"));
        }
        self.0.push(name);
        Ok(self.0.last().map(String::as_str))
    }
}

/// The JOSE header. Keys that a header names or brings along (`jku`, `jwk`, `x5u`, `kid`, …) are not looked at: the
/// configuration has the keys.
struct Header {
    alg: String,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JOSE header")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut names, mut alg) = (Names::default(), None);
                while let Some(name) = names.next(&mut map)? {
                    match name {
                        "alg" => alg = Some(map.next_value()?),
                        // Extensions that must be understood (RFC 7515, section 4.1.11), and none is. `b64` is one
                        // that changes what is signed (RFC 7797), so it is not overlooked without `crit` either.
                        "crit" | "b64" => return Err(de::Error::custom("an extension")),
                        _ => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                alg.map(|alg| Header { alg }).ok_or_else(|| de::Error::missing_field("alg"))
            }
        }
        d.deserialize_map(V)
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Claims;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a claims set")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let (mut names, mut claims) = (Names::default(), Claims::default());
                while let Some(name) = names.next(&mut map)? {
                    match name {
                        "iss" => claims.iss = Some(map.next_value()?),
                        "sub" => claims.sub = Some(map.next_value()?),
                        "aud" => claims.aud = Some(map.next_value()?),
                        "jti" => claims.jti = Some(map.next_value()?),
                        "exp" => claims.exp = Some(map.next_value()?),
                        "nbf" => claims.nbf = Some(map.next_value()?),
                        "iat" => claims.iat = Some(map.next_value()?),
                        _ => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(claims)
            }
        }
        d.deserialize_map(V)
    }
}

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(d)? {
            serde_json::Value::String(one) => Audience::One(one),
            _ => Audience::Other,
        })
    }
}
