//! The parts of `/v1/status` that are about certificates, and about whom they are trusted by.

use serde::Serialize;

/// `listeners[].client_ca` and `upstreams[].ca`
#[derive(Debug, Clone, Serialize)]
pub struct AuthoritiesStatus {
    /// The file, or `spiffe` for bundles of the SPIFFE agent.
    pub source: String,
    /// Those that expire first, the first of them first.
    pub certificates: Vec<CertificateStatus>,
    /// How many more there are.
    pub omitted: usize,
}

/// `listeners[].crls[]` and `upstreams[].crls[]`
#[derive(Debug, Clone, Serialize)]
pub struct CrlStatus {
    /// RFC 4514.
    pub issuer: String,
    /// When it was made, seconds since 1970.
    pub this_update: i64,
    /// When a newer one is due, seconds since 1970.
    pub next_update: Option<i64>,
    /// That time is over: unless `expired_crl: accept` stands there, whoever the issuer vouches for is refused.
    pub expired: bool,
    /// Revoked certificates.
    pub entries: usize,
    /// Memory that they take.
    pub memory_bytes: usize,
    /// A file was put back to an older list than the one in use, which stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub file_is_older: bool,
}

/// `listeners[].crl_sources[]`
#[derive(Debug, Clone, Serialize)]
pub struct CrlSourceStatus {
    /// A URL of the configuration, or one that clients' certificates name.
    pub url: String,
    /// Whether a list from there is in use.
    pub fetched: bool,
}

/// `listeners[].certificates[]`, `upstreams[].certificate`, and the CAs of both
#[derive(Debug, Clone, Serialize)]
pub struct CertificateStatus {
    /// RFC 4514.
    pub subject: String,
    /// In upper-case hex.
    pub serial: String,
    /// Names it is good for.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Until then, whole days; negative afterwards.
    pub days_left: i64,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Present if it names an OCSP responder that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<StapleStatus>,
}

/// `listeners[].certificates[].ocsp`
#[derive(Debug, Clone, Serialize)]
pub struct StapleStatus {
    /// Who is asked.
    pub responder: String,
    /// What it said last: `good` (clients that ask are sent it), `revoked` (they are not), or `unknown` before its first
    /// answer, or when that is over.
    pub status: &'static str,
    /// Until when the answer holds, seconds since 1970.
    pub next_update: Option<i64>,
}
