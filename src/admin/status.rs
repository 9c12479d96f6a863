//! The form of `/v1/status`: one object, whose members only ever grow in number.

use serde::Serialize;

use super::status_traffic::{FailedHandshakeStatus, PeerStatus, RefusalsStatus, TrafficStatus};
pub use super::status_trust::{AuthoritiesStatus, CertificateStatus, CrlSourceStatus, CrlStatus, StapleStatus};
use crate::policy::maintenance::{Order, Orders, Target};

/// What runs here and how it is.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The gateway's version.
    pub version: &'static str,
    /// Since the process began, seconds.
    pub uptime_seconds: u64,
    /// Seconds since 1970, of this answer.
    pub time: i64,
    /// What `/v1/ready` says.
    pub ready: bool,
    /// The process is ending.
    pub draining: bool,
    /// Certificates, CAs and revocation lists that are in use past their end, a sentence each with what comes of it. The
    /// gateway stays ready: others may still come in.
    pub overdue: Vec<String>,
    /// The configuration in use.
    pub config: ConfigStatus,
    /// What came of the last reload; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<ReloadStatus>,
    /// What the configuration asks for in vain until an upgrade (SIGUSR2) or a restart, a sentence each: sockets, threads.
    pub needs_upgrade: Vec<String>,
    /// The same.
    pub needs_restart: Vec<String>,
    /// The SPIFFE agent; absent where none is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe: Option<SpiffeStatus>,
    /// In the order of the configuration, as the lists below.
    pub listeners: Vec<ListenerStatus>,
    /// The published routes.
    pub routes: Vec<RouteStatus>,
    /// The upstreams and their nodes.
    pub upstreams: Vec<UpstreamStatus>,
    /// What operators have taken out of service.
    pub orders: Vec<OrderStatus>,
    /// What can't be read of them, a sentence each: more may be meant to be out of service than is.
    pub orders_unreadable: Vec<String>,
    /// Whether orders can outlive a restart (`server.state_dir`).
    pub orders_can_persist: bool,
    /// Whether the fleet can be told (`maintenance.fleet`).
    pub orders_reach_fleet: bool,
    /// The last five minutes.
    pub traffic: TrafficStatus,
    /// Peers that have called, those that called last first; at most 200. `other` are all beyond `metrics.peers_max`, `none`
    /// the clients that are no peer.
    pub peers: Vec<PeerStatus>,
    /// What was refused.
    pub refusals: RefusalsStatus,
    /// The last handshakes with clients that failed, the newest first.
    pub failed_handshakes: Vec<FailedHandshakeStatus>,
}

impl Status {
    /// As [`super::AdminState::status`] gives it.
    pub fn to_json(&self) -> serde_json::Value {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// `config`
#[derive(Debug, Clone, Serialize)]
pub struct ConfigStatus {
    /// The file.
    pub path: String,
    /// Hash of all that it was built from, hex.
    pub hash: String,
    /// Grows with every configuration taken into use.
    pub generation: u64,
}

/// `spiffe`
#[derive(Debug, Clone, Serialize)]
pub struct SpiffeStatus {
    /// Its address.
    pub workload_api: String,
    /// Whether its updates are listened to.
    pub connected: bool,
    /// What last went wrong, unless a good update has come since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The SPIFFE IDs that it has issued and that are in use.
    pub svids: Vec<String>,
    /// The other trust domains of which it has a bundle; whether clients of theirs come in is the configuration's.
    pub federated_trust_domains: Vec<String>,
    /// The listeners and upstreams that wait for it.
    pub waiting: Vec<String>,
}

/// `last_reload`
#[derive(Debug, Clone, Serialize)]
pub struct ReloadStatus {
    /// Seconds since 1970.
    pub time: i64,
    /// `signal`, `admin`, `files`, `config_file` or `spiffe`.
    pub trigger: &'static str,
    /// `ok` or `failed`.
    pub result: &'static str,
    /// Why the old configuration stays in use.
    pub errors: Vec<ReloadError>,
    /// What needs a restart, and what is probably not meant.
    pub warnings: Vec<String>,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadError {
    /// The file, as it was named.
    pub file: String,
    /// From 1; null if it is about the whole file.
    pub line: Option<usize>,
    /// From 1, in characters.
    pub column: Option<usize>,
    /// The key, such as `routes[1].upstream`; empty if it is about the whole file.
    pub path: String,
    /// What is wrong and what to write.
    pub message: String,
}

/// `listeners[]`
#[derive(Debug, Clone, Serialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// `https` or `http`.
    pub protocol: &'static str,
    /// Open connections.
    pub connections: i64,
    /// Its own certificates.
    pub certificates: Vec<CertificateStatus>,
    /// By whom clients are trusted; absent where nobody is asked for a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<AuthoritiesStatus>,
    /// Its revocation lists, by issuer.
    pub crls: Vec<CrlStatus>,
    /// Where they are fetched from.
    pub crl_sources: Vec<CrlSourceStatus>,
}

/// `routes[]`
#[derive(Debug, Clone, Serialize)]
pub struct RouteStatus {
    /// Its name.
    pub name: String,
    /// Empty: any that the listener's certificate covers.
    pub hosts: Vec<String>,
    /// As configured.
    pub paths: Vec<String>,
    /// As configured.
    pub methods: Vec<String>,
    /// Names, or `any` alone.
    pub peers: Vec<String>,
    /// Where it goes.
    pub upstream: String,
    /// Whether it answers 503 because an operator said so.
    pub maintenance: bool,
}

/// `orders[]`
#[derive(Debug, Clone, Serialize)]
pub struct OrderStatus {
    /// `gateway`, `route` or `node`.
    pub kind: &'static str,
    /// The route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The node's upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The node, as it was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// URLs of the nodes that it takes out; empty: there is no such node any more. Of nodes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
    /// Seconds since 1970.
    pub since: i64,
    /// Whether it is the fleet's, and not this gateway's own.
    pub fleet: bool,
    /// Whether it outlives a restart.
    pub persistent: bool,
    /// `Retry-After` of the answers; absent: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

impl OrderStatus {
    /// What is shown of orders, with the nodes that one takes out.
    pub fn of(orders: &Orders, nodes: impl Fn(&Target, &Order) -> Vec<String>) -> Vec<Self> {
        let each = orders.all().map(|(target, order, fleet)| {
            let (kind, route, upstream, node) = match target {
                Target::Gateway => ("gateway", None, None, None),
                Target::Route(route) => ("route", Some(route.clone()), None, None),
                Target::Node { upstream, node } => ("node", None, Some(upstream.clone()), Some(node.clone())),
            };
            let persistent = order.kept || fleet;
            let Order { since, retry_after: retry_after_seconds, .. } = *order;
            let nodes = node.is_some().then(|| nodes(target, order));
            Self { kind, route, upstream, node, nodes, since, fleet, persistent, retry_after_seconds }
        });
        each.collect()
    }
}

/// `upstreams[]`
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Whether a node is known to be up.
    pub ready: bool,
    /// Whether requests go to all nodes, because fewer than `panic_threshold` are usable.
    pub panic: bool,
    /// What its circuit breaker counts.
    pub circuit_breaker: BreakerStatus,
    /// Where its nodes come from; absent if from the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<DiscoveryStatus>,
    /// The certificate that its nodes are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// By whom nodes are trusted; absent without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<AuthoritiesStatus>,
    /// The lists of its revoked nodes, by issuer.
    pub crls: Vec<CrlStatus>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
}

/// `upstreams[].discovery`
#[derive(Debug, Clone, Serialize)]
pub struct DiscoveryStatus {
    /// `dns`, `srv` or `file`.
    pub kind: &'static str,
    /// The name that is asked for, or the file.
    pub subject: String,
    /// When the last good answer came, seconds since 1970; null: none has come.
    pub last_success: Option<i64>,
    /// What has gone wrong since; the last nodes stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `upstreams[].circuit_breaker`
#[derive(Debug, Clone, Serialize)]
pub struct BreakerStatus {
    /// Requests at the nodes.
    pub requests: u32,
    /// As configured.
    pub max_requests: u32,
    /// As configured; absent with HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// As configured; absent with HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Tries at a second or further node that are under way.
    pub retries: u32,
}

/// `upstreams[].nodes[]`
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// As configured.
    pub url: String,
    /// The address it stands for.
    pub address: String,
    /// `up`, `down`, or `unknown` before the first probe's answer.
    pub health: &'static str,
    /// What its requests say: `in`, `ejected`, `half_open` or `probing`.
    pub outlier: &'static str,
    /// Whether an operator has taken it out.
    pub drained: bool,
    /// Its share.
    pub weight: u16,
    /// Its group.
    pub priority: u8,
    /// Requests there now.
    pub in_flight: u32,
    /// Requests since the start.
    pub requests: u64,
    /// Connections that failed since the start.
    pub connect_failures: u64,
    /// When its health last changed, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_change: Option<i64>,
    /// What its last failed probe said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
