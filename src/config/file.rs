//! The configuration file as it is written: plain structures, one per block, no meaning yet.
//!
//! Every structure refuses unknown keys. What is optional has its default here, with the reason. [`super::resolve`]
//! turns a [`File`] into a [`super::Config`].

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::names::{ListenerName, PeerName, RouteName, UpstreamName};
use crate::policy::rate_limit::KeyPart;
use crate::units::{Rate, Size, Span};

fn seconds(s: u64) -> Span {
    Span(Duration::from_secs(s))
}

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What Hive expects of the gateway.
    #[serde(default)]
    pub hive: Hive,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Who the certificates belong to.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// What is published; everything else is 404.
    pub routes: Vec<Route>,
    /// Hive nodes, in groups.
    pub upstreams: Vec<Upstream>,
    /// What gateways of a fleet share. Default: nothing.
    pub redis: Option<Redis>,
    /// The operator's own listener. Default: `127.0.0.1:9901`, no secret.
    #[serde(default)]
    pub admin: Admin,
    /// Default: standard output.
    #[serde(default)]
    pub access_log: AccessLog,
    /// How the client's identity is told to Hive.
    #[serde(default)]
    pub identity_headers: IdentityHeaders,
    /// The process itself.
    #[serde(default)]
    pub server: Server,
}

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

/// `listeners[]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Appears in logs and metrics.
    pub name: ListenerName,
    /// Address and port to listen on.
    pub address: SocketAddr,
    /// `https` (default) or `http`: plain text, for loopback or behind a load balancer, never by accident.
    #[serde(default)]
    pub protocol: Protocol,
    /// Needed with `https`, refused with `http`.
    pub tls: Option<ListenerTls>,
    /// Networks whose `X-Forwarded-For` is believed. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// What a client may take up.
    #[serde(default)]
    pub limits: ListenerLimits,
    /// How long a client may take.
    #[serde(default)]
    pub timeouts: ListenerTimeouts,
    /// How often clients may ask, whatever the route. Default: as often as they like.
    #[serde(default)]
    pub rate_limits: Vec<RateLimit>,
}

/// What a listener speaks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2 over mutual TLS.
    #[default]
    Https,
    /// HTTP/1.1 in plain text.
    Http,
}

/// `listeners[].tls`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The gateway's own certificates, chosen by SNI among their SANs; the first is the default.
    pub certificates: Vec<CertificateFiles>,
    /// `"1.2"` (default) or `"1.3"`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Which clients come in.
    pub client_auth: ClientAuth,
}

/// A certificate chain (leaf first) and its key, PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// File of the chain.
    pub cert: String,
    /// File of the key.
    pub key: String,
}

/// Least TLS version.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246), ECDHE and AEAD only.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    Tls13,
}

/// `listeners[].tls.client_auth`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientAuth {
    /// Only `required` exists.
    #[serde(default)]
    pub mode: ClientAuthMode,
    /// PEM bundle of the internal CA: roots, and intermediates that clients don't send or whose CRLs are given.
    pub ca: String,
    /// Files of certificate revocation lists, PEM or DER, up to 128 MiB each. Default: none; then, unless
    /// [`Self::crl_url`] has some, nothing is checked.
    #[serde(default)]
    pub crl: Vec<String>,
    /// `http://` URLs of such lists. Default: none.
    #[serde(default)]
    pub crl_url: Vec<String>,
    /// How often the URLs are asked at least, 1s to 1d; a list that ends earlier is asked for earlier. Default 10m.
    pub crl_refresh: Option<Span>,
    /// `leaf` (default) or `chain`.
    pub crl_check: Option<CrlCheck>,
    /// `reject` (default) or `accept`.
    pub expired_crl: Option<ExpiredCrl>,
    /// `off` (default) or `leaf`: the client's certificate is asked about before a connection's first request.
    #[serde(default)]
    pub ocsp: OcspCheck,
    /// The `http://` responder. Default: what the certificate names.
    pub ocsp_url: Option<String>,
    /// Longest wait for the responder, 100ms to 30s. Default 2s.
    pub ocsp_timeout: Option<Span>,
    /// `reject` (default) or `accept`.
    pub ocsp_failure: Option<OcspFailure>,
}

impl ClientAuth {
    /// Default of [`Self::crl_refresh`].
    pub const CRL_REFRESH_DEFAULT: Duration = Duration::from_secs(600);

    /// Clients of this CA, and no lists.
    pub fn of(ca: &str) -> Self {
        Self {
            mode: ClientAuthMode::Required,
            ca: ca.into(),
            crl: Vec::new(),
            crl_url: Vec::new(),
            crl_refresh: None,
            crl_check: None,
            expired_crl: None,
            ocsp: OcspCheck::Off,
            ocsp_url: None,
            ocsp_timeout: None,
            ocsp_failure: None,
        }
    }

    /// Default of [`Self::ocsp_timeout`].
    pub const OCSP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
}

/// `listeners[].tls.client_auth.ocsp`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OcspCheck {
    /// Nobody is asked.
    #[default]
    Off,
    /// The client's own certificate.
    Leaf,
}

impl<'de> Deserialize<'de> for OcspCheck {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = OcspCheck;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("off or leaf")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<OcspCheck, E> {
                // YAML 1.1 reads a bare off as false.
                if v { Err(E::invalid_value(de::Unexpected::Bool(v), &self)) } else { Ok(OcspCheck::Off) }
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<OcspCheck, E> {
                match v {
                    "off" => Ok(OcspCheck::Off),
                    "leaf" => Ok(OcspCheck::Leaf),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
        }
        d.deserialize_any(V)
    }
}

/// `listeners[].tls.client_auth.ocsp_failure`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OcspFailure {
    /// A client of whom the responder says nothing is refused: who silences the responder must not win.
    #[default]
    Reject,
    /// It comes in.
    Accept,
}

/// `listeners[].tls.client_auth.crl_check`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CrlCheck {
    /// The client's own certificate. The default: intermediates are the operator's own and in the bundle.
    #[default]
    Leaf,
    /// Every certificate of the chain but its root; each issuer must then have a list.
    Chain,
}

/// `listeners[].tls.client_auth.expired_crl`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpiredCrl {
    /// A list past its nextUpdate lets nobody in: who keeps it from being renewed must not win.
    #[default]
    Reject,
    /// It still counts for what it revokes.
    Accept,
}

/// Whether a client certificate is asked for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuthMode {
    /// No certificate, no connection.
    #[default]
    Required,
}

/// `listeners[].limits`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Connections at once. Default 20000.
    pub connections: u32,
    /// Connections at once from one address (IPv6: from one /64). Default 200.
    pub connections_per_address: u32,
    /// New connections from one address. Default 50/s.
    pub new_connections_per_address: Rate,
    /// Request line and header fields together, 1 KiB to 256 KiB. Default 32 KiB.
    pub request_header: Size,
    /// After so many requests a connection is closed. Default 10000.
    pub requests_per_connection: u32,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_address: 200,
            new_connections_per_address: Rate { count: 50, per: Duration::from_secs(1) },
            request_header: Size(32 << 10),
            requests_per_connection: 10_000,
        }
    }
}

/// `listeners[].timeouts`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTimeouts {
    /// From accept to the end of the TLS handshake. Default 5s.
    pub handshake: Span,
    /// From a request's first byte to the end of its header; on HTTP/2 also preface and any one frame. Default 10s.
    pub request_header: Span,
    /// The whole request body. Default 30s.
    pub request_body: Span,
    /// Between two requests. Default 75s.
    pub idle: Span,
    /// How long a client may leave an answer unread. Default 30s.
    pub write: Span,
    /// After this a connection takes no new request. Default 1h.
    pub connection_age: Span,
    /// How long a running answer may go on once its client's certificate has expired, been revoked or lost its CA.
    /// Default 30s.
    pub revocation: Span,
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        Self {
            handshake: seconds(5),
            request_header: seconds(10),
            request_body: seconds(30),
            idle: seconds(75),
            write: seconds(30),
            connection_age: seconds(3600),
            revocation: seconds(30),
        }
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

/// `routes[]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Appears in logs and metrics.
    pub name: RouteName,
    /// Names of the listeners that serve it. Default: all of them.
    #[serde(default)]
    pub listeners: Vec<ListenerName>,
    /// Host names, exact or `*.`-prefixed. Default: any host that the listener's certificate covers.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Paths, byte for byte; a trailing `/*` takes everything below.
    pub paths: Vec<String>,
    /// Methods; `GET` brings `HEAD` along.
    pub methods: Vec<String>,
    /// Who may call: names, or `any` for every valid certificate.
    pub peers: RoutePeers,
    /// Where it goes.
    pub upstream: UpstreamName,
    /// The request body.
    #[serde(default)]
    pub body: Body,
    /// Present: the route speaks JSON-RPC 2.0, and so do its refusals.
    pub json_rpc: Option<JsonRpc>,
    /// How long Hive may take.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// How often clients may ask; all limits count. Default: as often as they like.
    #[serde(default)]
    pub rate_limits: Vec<RateLimit>,
}

/// `routes[].rate_limits[]` and `listeners[].rate_limits[]`: beyond it 429, with `Retry-After`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What is counted by: one of `address`, `peer`, `sni`, `route`, `method`, `issuer` (on routes),
    /// `header:NAME`, or a list of them.
    pub per: KeyParts,
    /// How many requests in how much time; with `method`, JSON-RPC calls. A batch counts as its calls.
    pub rate: Rate,
    /// How many at once, 1 to 1000000. Default: as many as the rate's number.
    pub burst: Option<u32>,
    /// All gateways count together, through `redis`; the limit's owner has the same name on each. Default false.
    #[serde(default)]
    pub shared: bool,
    /// False: what goes beyond is counted and logged, and passes. Default true.
    #[serde(default = "yes")]
    pub enforce: bool,
}

/// `rate_limits[].per`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyParts(pub Vec<KeyPart>);

impl<'de> Deserialize<'de> for KeyParts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = KeyParts;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("address, peer, sni, route, method, issuer, header:NAME, or a list of them")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<KeyParts, E> {
                KeyPart::parse(v).map(|part| KeyParts(vec![part])).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<KeyParts, A::Error> {
                let mut parts = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    parts.push(KeyPart::parse(&text).map_err(de::Error::custom)?);
                }
                Ok(KeyParts(parts))
            }
        }
        d.deserialize_any(V)
    }
}

/// `routes[].peers`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePeers {
    /// Every client with a valid certificate.
    Any,
    /// These.
    Named(Vec<PeerName>),
}

impl<'de> Deserialize<'de> for RoutePeers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = RoutePeers;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of peer names, or the word any")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<RoutePeers, E> {
                if v == "any" {
                    Ok(RoutePeers::Any)
                } else {
                    Err(E::custom(format!("{v:?} is not a list of peer names; write [{v}], or any")))
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RoutePeers, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(RoutePeers::Named(names))
            }
        }
        d.deserialize_any(V)
    }
}

/// `routes[].body`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Body {
    /// Longest request body, up to 16 MiB. Default 1 MiB, as Hive's `A2A_JSONRPC_MAX_BODY_BYTES`.
    pub limit: Size,
}

impl Default for Body {
    fn default() -> Self {
        Self { limit: Size(1 << 20) }
    }
}

/// `routes[].json_rpc`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JsonRpc {
    /// Methods let through: exact, or with a trailing `*`. Default: every method.
    pub methods: Option<Vec<String>>,
    /// `reject` (default), or the most calls that a batch may hold.
    pub batch: Batch,
    /// Deepest nesting. Default 64, at most 512.
    pub max_depth: u16,
}

impl Default for JsonRpc {
    fn default() -> Self {
        Self { methods: None, batch: Batch::Reject, max_depth: 64 }
    }
}

/// `routes[].json_rpc.batch`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// A batch is refused.
    Reject,
    /// A batch of up to so many calls passes; each is checked.
    UpTo(u32),
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Batch;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the word reject, or a number of calls from 1 to 1000")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Batch, E> {
                if v == "reject" { Ok(Batch::Reject) } else { Err(E::invalid_value(de::Unexpected::Str(v), &self)) }
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Batch, E> {
                match u32::try_from(v) {
                    Ok(n @ 1..=1000) => Ok(Batch::UpTo(n)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(v), &self)),
                }
            }
        }
        d.deserialize_any(V)
    }
}

/// `routes[].timeouts`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// From the request's end to the first byte of the answer. Default 300s, as long as Hive's JSON-RPC runs.
    pub response: Span,
    /// Longest silence inside an answer. Default 5m: an event stream may be silent for minutes.
    pub stream_idle: Span,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self { response: seconds(300), stream_idle: seconds(300) }
    }
}

/// `upstreams[]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Routes speak of this name.
    pub name: UpstreamName,
    /// The nodes, `http://` or `https://`, all of one kind.
    pub endpoints: Vec<Endpoint>,
    /// How a node is picked.
    #[serde(default)]
    pub balance: Balance,
    /// What is spoken to the nodes. Default `http1`.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// How a node is known to be alive. Default: on, with Hive's `/api/health`.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// Waiting for nodes.
    #[serde(default)]
    pub timeouts: UpstreamTimeouts,
    /// Needed with `https://` endpoints.
    pub tls: Option<UpstreamTls>,
    /// Whether the nodes are our own Hive's (default true). False, for a partner's gateway: they are told neither the
    /// gateway's secret nor who the client is, and federation JWTs, which are the partner's to check, only pass.
    #[serde(default = "yes")]
    pub trusted: bool,
}

fn yes() -> bool {
    true
}

/// `upstreams[].endpoints[]`: a URL, or `{ url, weight }`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// Share of the requests, 1 to 100. Default 1.
    pub weight: u16,
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            url: String,
            #[serde(default = "one")]
            weight: u16,
        }
        fn one() -> u16 {
            1
        }
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Endpoint;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a URL, or { url, weight }")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Endpoint, E> {
                Ok(Endpoint { url: v.into(), weight: 1 })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
                let Fields { url, weight } = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Endpoint { url, weight })
            }
        }
        d.deserialize_any(V)
    }
}

/// `upstreams[].balance`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The less busy of two nodes taken at random, by weight. The default: a slow node gets less.
    #[default]
    LeastRequests,
}

/// `upstreams[].protocol`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1, what Hive's Node.js speaks.
    #[default]
    Http1,
    /// HTTP/2: by ALPN on `https://`, by prior knowledge on `http://`.
    Http2,
}

/// `upstreams[].health_check`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Off: every node counts as healthy. Default on.
    pub enabled: bool,
    /// Default `/api/health`.
    pub path: String,
    /// Between two probes of a node, at least 2s: Hive allows 60 a minute. Default 10s. A tenth of it is jitter.
    pub interval: Span,
    /// A probe's whole time. Default 2s.
    pub timeout: Span,
    /// Good probes in a row that bring a node back. Default 2.
    pub healthy_after: u32,
    /// Bad probes in a row that take a node out. Default 3.
    pub unhealthy_after: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/api/health".into(),
            interval: seconds(10),
            timeout: seconds(2),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

/// `upstreams[].timeouts`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTimeouts {
    /// TCP and TLS handshake together. Default 2s. Exceeded on every node: 504.
    pub connect: Span,
    /// How long an idle connection is kept for reuse. Default 4s: Node.js closes after 5.
    pub idle: Span,
}

impl Default for UpstreamTimeouts {
    fn default() -> Self {
        Self { connect: seconds(2), idle: seconds(4) }
    }
}

/// `upstreams[].tls`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM bundle that the nodes' certificates chain to.
    pub ca: String,
    /// The name that every node's certificate must carry; sent as SNI. Never empty. Needed without `spiffe_id`; with it
    /// only the SNI, by default the ID's trust domain.
    pub server_name: Option<String>,
    /// The SPIFFE ID that every node's certificate must carry, as in `peers[].uri`, in place of the name.
    pub spiffe_id: Option<String>,
    /// The gateway's client certificate (chain, leaf first), with `key`.
    pub cert: Option<String>,
    /// Its key.
    pub key: Option<String>,
}

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

/// `access_log`: `stdout`, `off` or `{ path }`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// To standard output.
    #[default]
    Stdout,
    /// Nowhere.
    Off,
    /// To the end of this file.
    File(String),
}

impl<'de> Deserialize<'de> for AccessLog {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            path: String,
        }
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = AccessLog;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("stdout, off, or { path }")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<AccessLog, E> {
                // YAML 1.1 reads a bare off as false.
                if v { Err(E::invalid_value(de::Unexpected::Bool(v), &self)) } else { Ok(AccessLog::Off) }
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<AccessLog, E> {
                match v {
                    "stdout" => Ok(AccessLog::Stdout),
                    "off" => Ok(AccessLog::Off),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AccessLog, A::Error> {
                let Fields { path } = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(AccessLog::File(path))
            }
        }
        d.deserialize_any(V)
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
    /// How long running requests may go on after SIGTERM. Default 30s.
    pub drain: Span,
    /// Memory that waiting request bodies may take together. Default 256 MiB. Beyond it: 503.
    pub body_memory: Size,
    /// Keys (addresses, peers …) that all rate limits together count well at once, 1000 to 10000000; at least 64 bytes of
    /// memory each, taken at the start. Default 100000. A change needs a restart.
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
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: None,
            drain: seconds(30),
            body_memory: Size(256 << 20),
            rate_limit_keys: 100_000,
            rate_limit_ipv6_prefix: 64,
            watch: seconds(1),
            watch_config: false,
        }
    }
}
