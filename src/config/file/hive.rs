//! Blocks `hive` and `peers`: what Hive expects, and who the certificates belong to.

use std::fmt;

use serde::Deserialize;

use super::seconds;
use crate::names::PeerName;
use crate::units::Span;

/// `hive`: names and secrets that the Hive behind expects (`hive-contract`, "Identity and trust").
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hive {
    /// Prefix of every product header. Default `X-Hive`; newer Hives read `X-Pilox`.
    pub header_prefix: String,
    /// The secret of `X-Hive-Gateway-Auth`, 32 characters at least. Default: none, the header is then only removed.
    pub gateway_auth_secret: Option<SecretText>,
    /// File that holds [`Self::gateway_auth_secret`]; one of the two.
    pub gateway_auth_secret_file: Option<String>,
    /// Code of the JSON-RPC error for too many requests, -32099 to -32000. Default -32005, Hive's; A2A gives that another
    /// meaning.
    pub rate_limited_code: i32,
    /// What is done with federation JWTs.
    pub federation: Federation,
}

impl Default for Hive {
    fn default() -> Self {
        Self {
            header_prefix: "X-Hive".into(),
            gateway_auth_secret: None,
            gateway_auth_secret_file: None,
            rate_limited_code: -32005,
            federation: Federation::default(),
        }
    }
}

/// `hive.federation` (`hive-contract`, "Federation JWT"). It is for routes to upstreams with `trusted: true`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Federation {
    /// `pass` (default): Hive alone verifies. `verify`: so does the gateway, before a node sees the request.
    pub jwt: FederationJwt,
    /// `aud` of every token: Hive's public origin, which is the gateway's. Needed with `verify`.
    pub audience: Option<String>,
    /// `iss` of tokens with the shared secret. Default: `hive-mesh-federation`, or as `header_prefix` has it.
    pub issuer: Option<String>,
    /// The secret of HS256, 32 characters at least. Default: none, HS256 is refused.
    pub shared_secret: Option<SecretText>,
    /// File that holds [`Self::shared_secret`]; one of the two.
    pub shared_secret_file: Option<String>,
    /// Leeway for `exp`, `nbf` and `iat`, 0s to 5m. Default 60s, as Hive's.
    pub clock_skew: Span,
    /// The token's `iss` must be the `issuer` of the peer that the certificate names, else 403. Default false.
    pub bind_issuer: bool,
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            jwt: FederationJwt::Pass,
            audience: None,
            issuer: None,
            shared_secret: None,
            shared_secret_file: None,
            clock_skew: seconds(60),
            bind_issuer: false,
        }
    }
}

/// `hive.federation.jwt`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FederationJwt {
    /// Hive alone verifies.
    #[default]
    Pass,
    /// The gateway verifies too.
    Verify,
}

/// A secret written in the file itself, usually as `${NAME}`.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// `peers[]`: exactly one of `uri`, `dns` and `fingerprint`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Routes, limits, logs and metrics speak of this name.
    pub name: PeerName,
    /// SPIFFE ID; `*` stands for one path segment, `**` at the end for any number of them.
    pub uri: Option<String>,
    /// A DNS SAN, exact or `*.`-prefixed.
    pub dns: Option<String>,
    /// SHA-256 of the certificate in DER, 64 hex digits, colons allowed.
    pub fingerprint: Option<String>,
    /// `iss` of its federation JWTs: its public origin, or that of the shared secret. Default: none.
    pub issuer: Option<String>,
    /// Ed25519 key of its federation JWTs, 32 bytes as 64 hex digits, with `issuer`. Default: none.
    pub ed25519_public_key: Option<String>,
}
