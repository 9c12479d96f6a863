//! What is known about one request, from its header to its log line.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;

use super::affinity::Ids;
use super::connection::Connection;
use super::overload::Places;
use crate::observe::trace::Trace;
use crate::observe::{RequestInFlight, RouteMetrics};
use crate::policy::adaptive_concurrency::Permit;
use crate::policy::body_memory::Share;
use crate::policy::peers::Peer;
use crate::policy::rate_limit::Limit;
use crate::refusal::Refusal;
use crate::request::ClientAddress;
use crate::snapshot::{Route, Snapshot};
use crate::tls::Gone;
use crate::upstream::{self, Node, NodeId, Picked, RetryPermit};

/// How often one request is offered, to other nodes or on other connections.
pub const TRIES_MAX: usize = 8;

/// A request's way so far. Filled in as it goes; what is `None` has not been reached.
#[derive(Default)]
pub struct Context {
    /// Set first; without it there was no request.
    pub begun: Option<Begun>,
    /// Who asks.
    pub client: Option<ClientAddress>,
    /// Whose certificate it is.
    pub peer: Option<Arc<Peer>>,
    /// `iss` of the federation JWT, as far as it was believed.
    pub federation_issuer: Option<Arc<str>>,
    /// Where the request goes.
    pub route: Option<Arc<Route>>,
    /// The route whose form a refusal takes that comes before the route is found.
    pub shape: Option<Arc<Route>>,
    /// Its counters.
    pub route_metrics: Option<Arc<RouteMetrics>>,
    /// The name of the request in every log.
    pub request_id: Option<HeaderValue>,
    /// `traceparent`: the client's or a new one. A traced request's differs for each node in the span.
    pub traceparent: Option<HeaderValue>,
    /// What is told to a collector, if anything is.
    pub trace: Option<Box<Trace>>,
    /// Host as compared: lower case, without port.
    pub host: Option<String>,
    /// The body, read whole.
    pub body: Body,
    /// The first call's method and id.
    pub rpc: Option<Rpc>,
    /// What it counts as, as far as that is limited.
    pub places: Places,
    /// The rate limit that the request is beyond, whether it is enforced or not.
    pub rate_limit: Option<Arc<Limit>>,
    /// Names of the request rules that the request meets, with commas between them.
    pub rules_met: Option<String>,
    /// The web application firewall's score, if there is one.
    pub waf_score: Option<u32>,
    /// How long limits shared with other gateways have been waited for.
    pub fleet_wait: Duration,
    /// When the gateway's own answer was written.
    pub answered: Option<Instant>,
    /// Why the gateway answered itself.
    pub refusal: Option<Refusal>,
    /// What broke on the way to or from the node, for the log.
    pub error: Option<String>,
    /// Nodes and times of forwarding.
    pub upstream: UpstreamWay,
}

/// A request's beginning.
pub struct Begun {
    /// On which connection.
    pub connection: Arc<Connection>,
    /// With which configuration.
    pub snapshot: Arc<Snapshot>,
    /// When its header was whole.
    pub started: Instant,
    /// The same by the wall.
    pub wall: SystemTime,
    /// A trusted proxy says that the client came to it by HTTPS.
    pub proxied_https: bool,
    /// Counts it while it lasts.
    pub _in_flight: RequestInFlight,
}

impl Begun {
    /// The client's address before any header is believed.
    pub fn remote_ip(&self) -> IpAddr {
        self.connection.remote_ip()
    }
}

/// A request's body.
#[derive(Default)]
pub struct Body {
    /// Bytes read.
    pub length: u64,
    /// How long that took.
    pub took: Option<Duration>,
    /// The memory it takes, given back at the end.
    pub memory: Option<Share>,
}

/// The JSON-RPC call, for the log.
#[derive(Debug, Clone)]
pub struct Rpc {
    /// Method of the first call.
    pub method: String,
    /// Its id, as JSON text.
    pub id: Option<String>,
    /// Calls in the body.
    pub calls: u32,
    /// Whether they came as a batch.
    pub batch: bool,
    /// Whether the route takes each of them.
    pub allowed: bool,
}

/// The way to a node.
#[derive(Default)]
pub struct UpstreamWay {
    /// Its place among those that wait for an answer, until that begins.
    pub permit: Option<Permit>,
    /// The node that has the request.
    pub picked: Option<Picked>,
    /// That node, once the request is off it, for the log.
    pub node: Option<Arc<Node>>,
    /// Counts it while it is at the nodes.
    pub entry: Option<upstream::Permit>,
    /// Counts it while it is tried again and not answered yet.
    pub retry: Option<RetryPermit>,
    /// How long it waited for a connection.
    pub queued: Option<Duration>,
    /// What its params say that it is about; only where a node is looked up by it.
    pub ids: Ids,
    /// What its node is looked up by.
    pub key: Option<u64>,
    /// Nodes that could not be reached.
    pub tried: Vec<NodeId>,
    /// Those among them that said with HTTP/2 that they did not take it then: they are asked again if there is no other.
    pub again: Vec<NodeId>,
    /// How often one had no room for it at that moment.
    pub no_room: u32,
    /// Why the last of them could not.
    pub unreachable: Option<Refusal>,
    /// Whether the last try met no more than a connection that the node had left, or a node without room: nobody has worked
    /// for it, so the next one is none of those that the retry budget limits.
    pub stale: bool,
    /// Whether a node that did not answer may have read it.
    pub reached: bool,
    /// How often a node was picked.
    pub tries: u32,
    /// When the present try began.
    pub try_started: Option<Instant>,
    /// How long connecting took, over all tries; none if the only connection had rested.
    pub connect: Option<Duration>,
    /// How long the first byte took.
    pub first_byte: Option<Duration>,
    /// Whether something may have been sent.
    pub connected: bool,
    /// The answer's status.
    pub status: Option<u16>,
    /// Why the gateway gave it up.
    pub over: Option<Over>,
}

/// Why the gateway gives an exchange up that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Nothing came within `timeouts.response`.
    Response,
    /// The answer had begun and fell silent for `timeouts.stream_idle`.
    StreamIdle,
    /// The answer was not at its end within `timeouts.max_stream_duration`.
    StreamDuration,
    /// The client may have no answer any more.
    Gone(Gone),
}

impl UpstreamWay {
    /// What is told when no other node may be tried: why the nodes that were tried have failed, if any was.
    pub fn failed(&self) -> Option<Refusal> {
        if self.reached { Some(Refusal::UpstreamFailed) } else { self.unreachable.clone() }
    }

    /// Connecting took from the try's beginning to now, whatever came of it.
    pub fn add_connect(&mut self, now: Instant) {
        let took = self.try_started.map(|started| now.saturating_duration_since(started));
        self.connect = Some(self.connect.unwrap_or_default() + took.unwrap_or_default());
    }
}
