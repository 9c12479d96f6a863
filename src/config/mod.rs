//! The configuration: a file becomes a [`Config`] once, and everything else reads that.
//!
//! ```text
//! text ── locate (tree with places) ── decode (file::File) ── resolve (names become things) ── Config
//! ```
//!
//! Every step collects all of its errors, each with the line and column that it is about.

pub mod file;
mod collector;
mod decode;
mod error;
mod expand;
mod fold;
mod load;
mod locate;
mod nearest;
mod place;
mod required;
mod resolve;
mod wording;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::names::{ListenerName, PeerName, RouteName, UpstreamName};
use crate::observe::LogSettings;
use crate::policy::deny::AddressList;
use crate::policy::peers::PeerRule;
use crate::policy::waf::Waf;
use crate::policy::{federation, rules};
use crate::refusal::Notice;
use crate::secret::Secret;
use crate::units::Percent;
use crate::upstream::{BreakerLimits, Discovery};

pub use collector::Collector;
pub use error::{ConfigError, Located};
pub use fold::folded;
pub use load::{Loaded, Surroundings, load, load_in, load_text, system_addresses};
pub use place::Place;

/// The configuration as the program uses it: names are references, files are absolute, patterns are parsed.
#[derive(Debug)]
pub struct Config {
    /// The file that it was read from, as it was named.
    pub source: PathBuf,
    /// SHA-256 of the file's text, in hex.
    pub hash: String,
    /// The files that it names and that change while it runs: certificates, keys, bundles, secrets, rules, and the directories
    /// of rules; absolute, sorted, each once.
    pub materials: Vec<PathBuf>,
    /// What Hive expects of the gateway.
    pub hive: Hive,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Who the certificates belong to.
    pub peers: Vec<Peer>,
    /// What is published; at least one.
    pub routes: Vec<Route>,
    /// Hive nodes, in groups; at least one.
    pub upstreams: Vec<Upstream>,
    /// The SPIFFE agent. Some, if a listener or upstream takes its material from there.
    pub spiffe: Option<crate::tls::Endpoint>,
    /// What gateways of a fleet share. Some, if a limit is shared.
    pub redis: Option<Redis>,
    /// What clients are told while something is in maintenance.
    pub maintenance: Maintenance,
    /// What the process takes on, and what it sheds when it is behind.
    pub overload: file::Overload,
    /// The operator's own listener.
    pub admin: Admin,
    /// The access log; a file's path is absolute.
    pub access_log: LogSettings,
    /// What is counted.
    pub metrics: Metrics,
    /// Spans for a collector; `None`: none are made.
    pub tracing: Option<Tracing>,
    /// How the client's identity is told to Hive.
    pub identity_headers: file::IdentityHeaders,
    /// The process itself.
    pub server: Server,
}

/// What Hive expects of the gateway.
#[derive(Debug)]
pub struct Hive {
    /// Prefix of every product header, such as `X-Hive`.
    pub header_prefix: String,
    /// The secret of the gateway's proof, 32 characters at least. None: the header is only removed.
    pub gateway_auth: Option<Secret>,
    /// Code of the JSON-RPC error for too many requests.
    pub rate_limited_code: i32,
    /// What is done with federation JWTs.
    pub federation: federation::Settings,
}

/// Where clients connect.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Appears in logs and metrics.
    pub name: ListenerName,
    /// Address and port to listen on; no other listener has it.
    pub address: SocketAddr,
    /// Some `tls` if and only if `https`.
    pub protocol: file::Protocol,
    /// Certificates and trust; file names are absolute. Either certificates and a CA, or `spiffe`.
    pub tls: Option<file::ListenerTls>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What a client may take up.
    pub limits: file::ListenerLimits,
    /// How long a client may take.
    pub timeouts: file::ListenerTimeouts,
    /// How often clients may ask.
    pub rate_limits: Vec<file::RateLimit>,
    /// Who is kept out by address; none if nobody is.
    pub addresses: Option<Arc<AddressList>>,
    /// Which requests are not taken.
    pub request_rules: Vec<rules::Rule>,
    /// The web application firewall of routes that have no word of their own.
    pub waf: Option<Arc<Waf>>,
    /// The form of the gateway's own answers.
    pub local_reply: file::LocalReply,
}

/// A name for certificates.
#[derive(Debug)]
pub struct Peer {
    /// Routes speak of this name.
    pub name: PeerName,
    /// What the certificate must show. No two peers' rules conflict: [`crate::policy::peers::Peers::build`] takes them.
    pub rule: PeerRule,
    /// `iss` of its federation JWTs, and the key that verifies them. No two peers give one issuer different keys.
    pub issuer: Option<federation::PeerIssuer>,
}

/// What is published.
#[derive(Debug)]
pub struct Route {
    /// Appears in logs and metrics.
    pub name: RouteName,
    /// Where it is served.
    pub listeners: RouteListeners,
    /// Host patterns; empty: any host that the listener's certificates cover.
    pub hosts: Vec<String>,
    /// Path patterns; at least one.
    pub paths: Vec<String>,
    /// Methods; at least one.
    pub methods: Vec<String>,
    /// Who may call.
    pub peers: RoutePeers,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
    /// What nodes are asked for in place of the request's path; of strict form.
    pub replace_full_path: Option<String>,
    /// Longest request body in bytes, 1 B to 16 MiB.
    pub body_limit: u64,
    /// Some: the route speaks JSON-RPC 2.0.
    pub json_rpc: Option<file::JsonRpc>,
    /// How long Hive may take.
    pub timeouts: file::RouteTimeouts,
    /// When it is shed.
    pub priority: file::Priority,
    /// How often clients may ask.
    pub rate_limits: Vec<file::RateLimit>,
    /// Which requests are not taken.
    pub request_rules: Vec<rules::Rule>,
    /// Which web application firewall looks at its requests.
    pub waf: RouteWaf,
}

/// The web application firewall of a route.
#[derive(Debug, Clone)]
pub enum RouteWaf {
    /// The listener's.
    OfListener,
    /// None.
    Off,
    /// Its own.
    Own(Arc<Waf>),
}

impl RouteWaf {
    /// The one that counts, where the listener has this one.
    pub fn or<'a>(&'a self, listener: Option<&'a Arc<Waf>>) -> Option<&'a Arc<Waf>> {
        match self {
            RouteWaf::OfListener => listener,
            RouteWaf::Off => None,
            RouteWaf::Own(own) => Some(own),
        }
    }
}

/// Where a route is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteListeners {
    /// On every listener.
    All,
    /// On these: indexes into [`Config::listeners`], ascending.
    Of(Vec<usize>),
}

impl RouteListeners {
    /// Whether the listener at `index` serves the route.
    pub fn include(&self, index: usize) -> bool {
        match self {
            RouteListeners::All => true,
            RouteListeners::Of(indexes) => indexes.binary_search(&index).is_ok(),
        }
    }

    /// Whether some listener serves both routes.
    fn meet(&self, other: &RouteListeners) -> bool {
        match (self, other) {
            (RouteListeners::Of(these), RouteListeners::Of(_)) => these.iter().any(|i| other.include(*i)),
            _ => true,
        }
    }
}

/// Who may call a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePeers {
    /// Every client with a valid certificate.
    Any,
    /// These: indexes into [`Config::peers`], ascending.
    Of(Vec<usize>),
}

/// A group of Hive nodes.
#[derive(Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Appears in logs and metrics.
    pub name: UpstreamName,
    /// The nodes, all with TLS or all without; at least one, or with `discovery` none.
    pub endpoints: Vec<Endpoint>,
    /// Where the nodes come from, if not from the configuration.
    pub discovery: Option<Discovery>,
    /// How a node is picked.
    pub balance: file::Balance,
    /// What requests are told apart by; empty unless `balance` is `consistent_hash`.
    pub hash_keys: Vec<file::HashKey>,
    /// The most requests of a node in percent of the mean, 101 to 10000; with `hash_keys` only.
    pub hash_balance_factor: Option<u16>,
    /// When fewer nodes are usable, all are used.
    pub panic_threshold: Percent,
    /// How long a node that comes back takes to get its full share again.
    pub slow_start: Duration,
    /// Which nodes are left alone because they fail.
    pub outlier: file::Outlier,
    /// How much goes to the nodes at once.
    pub circuit_breaker: BreakerLimits,
    /// What is spoken to the nodes.
    pub protocol: file::UpstreamProtocol,
    /// How a node is known to be alive.
    pub health_check: file::HealthCheck,
    /// How many requests may wait for an answer.
    pub adaptive_concurrency: Option<file::AdaptiveConcurrency>,
    /// Waiting for nodes.
    pub timeouts: file::UpstreamTimeouts,
    /// Some if and only if the endpoints are `https://`; file names are absolute.
    pub tls: Option<file::UpstreamTls>,
    /// Whether block `hive` is about these nodes; if not, they are told nothing that is between gateway and Hive.
    pub trusted: bool,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The URL as written: the node's name in logs and metrics.
    pub url: String,
    /// `https://`.
    pub tls: bool,
    /// Host and port as the `Host` header of a probe would carry them; the port only if it was written.
    pub host: String,
    /// What the host's name stood for when the file was loaded.
    pub address: SocketAddr,
    /// Share of the requests, 1 to 100.
    pub weight: u16,
    /// 0 to 9; higher ones get requests when lower ones fail.
    pub priority: u8,
}

/// Where shared limits are counted.
#[derive(Debug)]
pub struct Redis {
    /// Where it is, and who is let in.
    pub target: crate::redis::Target,
    /// PEM bundle; its name is absolute. Some if and only if the target is `tls`.
    pub ca: Option<String>,
    /// Every key begins with it.
    pub key_prefix: String,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// What clients are told while something is in maintenance.
#[derive(Debug)]
pub struct Maintenance {
    /// `Retry-After`, seconds.
    pub retry_after: u32,
    /// The rest.
    pub notice: Arc<Notice>,
    /// Whether the fleet's orders are followed; then there is a Redis.
    pub fleet: bool,
}

/// The operator's own listener.
#[derive(Debug)]
pub struct Admin {
    /// Address and port; no listener has it.
    pub address: SocketAddr,
    /// Asked of every admin request but health and readiness. Some if the address is not a loopback one.
    pub bearer: Option<Secret>,
}

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Peers that have series of their own.
    pub peers_max: usize,
}

/// Spans for a collector.
#[derive(Debug)]
pub struct Tracing {
    /// Where they go.
    pub collector: Collector,
    /// Share of the requests that are traced where the client does not decide.
    pub sample: Percent,
    /// Whether a client that knows a trace decides.
    pub parent_based: bool,
    /// `service.name`.
    pub service_name: String,
    /// Longest time of one export.
    pub timeout: Duration,
    /// `Authorization: Bearer …` for the collector.
    pub bearer: Option<Secret>,
    /// PEM bundle; its name is absolute. Some if and only if the collector is `tls`.
    pub ca: Option<String>,
}

/// The process itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Threads that serve requests, 1 to 256.
    pub threads: usize,
    /// How long after SIGTERM connections are still taken.
    pub shutdown_delay: Duration,
    /// How long running requests may go on then.
    pub drain: Duration,
    /// Bytes that waiting request bodies may take together.
    pub body_memory: u64,
    /// Keys that rate limits count well at once.
    pub rate_limit_keys: usize,
    /// Bits of an IPv6 address that rate limits count by.
    pub rate_limit_ipv6_prefix: u8,
    /// How often [`Config::materials`] are looked at; zero: never.
    pub watch: Duration,
    /// Whether [`Config::source`] is looked at too.
    pub watch_config: bool,
    /// Where what was fetched is kept; absolute.
    pub state_dir: Option<PathBuf>,
}
