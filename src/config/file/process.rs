//! Blocks of the gateway as a whole: `redis`, `maintenance`, `admin`, `identity_headers`, `server`.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::{SecretText, seconds};
use crate::units::{Size, Span};

/// `redis`: where limits with `shared: true` are counted. While it can't be reached, each gateway counts by itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// `redis://[user[:password]@]host[:port][/database]`; `rediss://` with TLS; `redis-cluster://` and `rediss-cluster://` with
    /// one or more hosts of a cluster.
    pub url: SecretText,
    /// File that holds the password, if the URL does not.
    pub password_file: Option<String>,
    /// PEM bundle that Redis' certificate chains to. Needed with TLS, refused without.
    pub ca: Option<String>,
    /// Every key begins with it. Default `hive:gw:rl:`.
    #[serde(default = "redis_key_prefix")]
    pub key_prefix: String,
    /// Longest wait for an answer, 1ms to 1s. Default 20ms: a request waits no longer for Redis.
    #[serde(default = "redis_timeout")]
    pub timeout: Span,
}

fn redis_key_prefix() -> String {
    "hive:gw:rl:".into()
}

fn redis_timeout() -> Span {
    Span(Duration::from_millis(20))
}

/// `maintenance`: what clients are told while the admin API has a route or the whole gateway in maintenance (503).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Maintenance {
    /// `Retry-After`, 1s to 1d. Default 60s.
    pub retry_after: Span,
    /// `message` of the JSON answers. Default `Under maintenance. Try again later.`
    pub message: String,
    /// The body on routes without `json_rpc`, as it stands; at most 64 KiB. Default: the small JSON body.
    pub body: Option<String>,
    /// Media type of [`Self::body`]. Default `text/html; charset=utf-8`.
    pub content_type: Option<String>,
    /// Whether orders of the whole fleet, kept in Redis, are followed and may be given. Default false.
    pub fleet: bool,
}

impl Default for Maintenance {
    fn default() -> Self {
        let message = "Under maintenance. Try again later.".into();
        Self { retry_after: seconds(60), message, body: None, content_type: None, fleet: false }
    }
}

/// `admin`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Default `127.0.0.1:9901`. Another than a loopback address needs a secret.
    pub address: SocketAddr,
    /// `Authorization: Bearer …` asked of every admin request but health and readiness. Default: none.
    pub bearer_secret: Option<SecretText>,
    /// File that holds [`Self::bearer_secret`]; one of the two.
    pub bearer_secret_file: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9901)), bearer_secret: None, bearer_secret_file: None }
    }
}

/// `identity_headers`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityHeaders {
    /// `X-Forwarded-Client-Cert` in Envoy's format. Default true.
    pub xfcc: bool,
    /// `Client-Cert` (RFC 9440). Default false: it is long.
    pub client_cert: bool,
}

impl Default for IdentityHeaders {
    fn default() -> Self {
        Self { xfcc: true, client_cert: false }
    }
}

/// `server`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Threads that serve requests, 1 to 256. Default: one per processor.
    pub threads: Option<u16>,
    /// How long after SIGTERM connections are still taken, while `/v1/ready` is 503 already, so that whoever sends requests
    /// here has learnt of it before any is refused. Up to 1h. Default 0s.
    pub shutdown_delay: Span,
    /// How long running requests may go on after SIGTERM (and `shutdown_delay`), and in the old process after an upgrade. Default 30s.
    pub drain: Span,
    /// Memory that waiting request bodies may take together. Default 256 MiB. Beyond it: 503.
    pub body_memory: Size,
    /// Keys (addresses, peers …) that each rate limit counts well at once, 1000 to 10000000; up to 96 bytes of memory
    /// each, taken when the limit is first asked. Default 100000. A change needs a restart.
    pub rate_limit_keys: u32,
    /// Bits of an IPv6 address that rate limits count by, 16 to 128. Default 64: one host owns at least that. A change
    /// needs a restart.
    pub rate_limit_ipv6_prefix: u8,
    /// How often the files that the configuration names (certificates, keys, CA bundles, secrets) are looked at; changed
    /// ones are taken into use by themselves. 100ms to 1h, or 0s: never. Default 1s.
    pub watch: Span,
    /// Whether the configuration's own file is watched too. Default false: a change of it waits for SIGHUP or
    /// `POST /v1/reload`, so that an editor's half-done work is never taken into use.
    pub watch_config: bool,
    /// Directory of the gateway's own, which exists: what was fetched (revocation lists, OCSP answers) is kept there for
    /// the next start, and what the admin API is told to keep (`persist=true`). Two processes may share it. Default: none, what was fetched is gone with the process.
    pub state_dir: Option<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: None,
            shutdown_delay: seconds(0),
            drain: seconds(30),
            body_memory: Size(256 << 20),
            rate_limit_keys: 100_000,
            rate_limit_ipv6_prefix: 64,
            watch: seconds(1),
            watch_config: false,
            state_dir: None,
        }
    }
}
