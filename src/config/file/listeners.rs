//! Block `listeners`: where clients connect, what they have to prove, what they may use up.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::{ListenerSpiffe, RateLimit, RequestRule, Waf, seconds};
use crate::names::ListenerName;
use crate::units::{Rate, Size, Span};

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
    /// Networks whose `X-Forwarded-For` is believed, and whose connections are not counted by address. Default: none.
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
    /// Networks and addresses that are kept out: of the connection, before TLS, and of the client behind a trusted proxy,
    /// with 403. Default: none.
    #[serde(default)]
    pub deny: Vec<String>,
    /// A file with more of them, one a line, `#` for comments; watched, up to 128 MiB. A file whose last line has no end, or
    /// that lists nobody without the line `# nobody`, is an error: the list before it stays. Default: none.
    pub deny_file: Option<String>,
    /// Exceptions from both. Default: none.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Requests that are not taken, whatever the route. Default: none.
    #[serde(default)]
    pub request_rules: Vec<RequestRule>,
    /// The web application firewall of all routes that have no `waf` of their own. Default: none.
    pub waf: Option<Waf>,
    /// The form of the gateway's own answers: `hive` (default) or `gateway_v1`.
    #[serde(default)]
    pub local_reply: LocalReply,
}

/// `listeners[].local_reply`: Envoy's word for what a proxy answers by itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalReply {
    /// JSON-RPC errors on JSON-RPC routes, else `{"error":"…","message":"…"}`.
    #[default]
    Hive,
    /// Statuses and bodies of the older gateway's `gateway-v1` API, for its clients.
    GatewayV1,
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
    /// The gateway's own certificates, chosen by SNI among their SANs; the first is the default. At least one, or
    /// [`Self::spiffe`].
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// Certificate and CAs from a SPIFFE agent, in place of `certificates` and `client_auth.ca`.
    pub spiffe: Option<ListenerSpiffe>,
    /// `"1.2"` (default) or `"1.3"`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// `on` (default) or `off`: the answer of the OCSP responder that a certificate of [`Self::certificates`] names is
    /// fetched and sent along to clients that ask for it.
    #[serde(default)]
    pub ocsp_stapling: OcspStapling,
    /// Which clients come in.
    #[serde(default)]
    pub client_auth: ClientAuth,
}

/// `listeners[].tls.ocsp_stapling`
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OcspStapling {
    /// Where the certificate names a responder. The default: it costs one question in hours, and the operator chose the
    /// responder with the CA.
    #[default]
    On,
    /// Nobody is asked.
    Off,
}

impl<'de> Deserialize<'de> for OcspStapling {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = OcspStapling;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("on or off")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<OcspStapling, E> {
                // YAML 1.1 reads them so.
                Ok(if v { OcspStapling::On } else { OcspStapling::Off })
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<OcspStapling, E> {
                match v {
                    "on" => Ok(OcspStapling::On),
                    "off" => Ok(OcspStapling::Off),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
        }
        d.deserialize_any(V)
    }
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
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientAuth {
    /// `required` (default) or `none`.
    #[serde(default)]
    pub mode: ClientAuthMode,
    /// PEM bundle of the internal CA: roots, and intermediates that clients don't send or whose CRLs are given. Needed
    /// with `required`, unless `spiffe` is there; this and all the rest is refused with `none`.
    pub ca: Option<String>,
    /// Files of certificate revocation lists, PEM or DER, up to 128 MiB each. Default: none; then, unless
    /// [`Self::crl_url`] or [`Self::crl_distribution_points`] has some, nothing is checked.
    #[serde(default)]
    pub crl: Vec<String>,
    /// `http://` URLs of such lists. Default: none.
    #[serde(default)]
    pub crl_url: Vec<String>,
    /// `http://host[:port][/path]`: a client's certificate that names a distribution point which begins like this has its
    /// list fetched from there, once its chain is verified; at most 256 URLs. Default: none, distribution points are
    /// not asked.
    #[serde(default)]
    pub crl_distribution_points: Vec<String>,
    /// How often the URLs are asked at least, 1s to 1d; a list that ends earlier is asked for earlier. Default 10m.
    pub crl_refresh: Option<Span>,
    /// `leaf` (default) or `chain`.
    pub crl_check: Option<CrlCheck>,
    /// `reject` (default) or `accept`.
    pub expired_crl: Option<ExpiredCrl>,
    /// `off` (default) or `leaf`: the client's certificate is asked about before a connection's first request.
    #[serde(default)]
    pub ocsp: OcspCheck,
    /// The `http://` responder that is asked about certificates that name none of [`Self::ocsp_responders`]. Default: none;
    /// one of the two is needed.
    pub ocsp_url: Option<String>,
    /// `http://host[:port][/path]`: a responder that a client's certificate names is asked if it begins like one of these.
    /// Default: none, what certificates name is not asked: their CA would choose where the gateway sends requests.
    #[serde(default)]
    pub ocsp_responders: Vec<String>,
    /// Longest wait for the responder, 100ms to 30s. Default 2s.
    pub ocsp_timeout: Option<Span>,
    /// `reject` (default) or `accept`.
    pub ocsp_failure: Option<OcspFailure>,
}

impl ClientAuth {
    /// Default of [`Self::crl_refresh`].
    pub const CRL_REFRESH_DEFAULT: Duration = Duration::from_secs(600);

    /// Whether clients are looked for in revocation lists.
    pub fn checks_crls(&self) -> bool {
        !self.crl.is_empty() || !self.crl_url.is_empty() || !self.crl_distribution_points.is_empty()
    }

    /// Clients of this CA, and no lists.
    pub fn of(ca: &str) -> Self {
        Self { ca: Some(ca.into()), ..Self::default() }
    }

    /// Whether clients are asked for a certificate.
    pub fn asks(&self) -> bool {
        self.mode == ClientAuthMode::Required
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
    /// Nobody is asked, and no client is anybody. Only on addresses of private networks: for the calls that our own Hive
    /// makes to its peers.
    None,
}

/// `listeners[].limits`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Connections at once. Default 20000.
    pub connections: u32,
    /// Connections at once from one address (IPv6: from one /64). Default 200. Like the next two not of `trusted_proxies`,
    /// whose connections are those of many.
    pub connections_per_address: u32,
    /// New connections from one address. Default 50/s.
    pub new_connections_per_address: Rate,
    /// Connections at once of one peer, whatever their addresses; of a certificate of no peer. Default: no limit but
    /// that of all connections.
    pub connections_per_peer: Option<u32>,
    /// TLS handshakes at once. Default: a quarter of `connections`, at least 16.
    pub handshakes: Option<u32>,
    /// TLS handshakes at once of one address. Default: a quarter of `connections_per_address`, at least 16.
    pub handshakes_per_address: Option<u32>,
    /// Requests at once. Default: no limit but that of the process (`overload.requests`). Beyond: 503.
    pub requests: Option<u32>,
    /// Requests at once of one client address. Default: no limit of its own. Beyond: 429.
    pub requests_per_address: Option<u32>,
    /// Requests at once of one peer. Default: no limit of its own. Beyond: 429.
    pub requests_per_peer: Option<u32>,
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
            connections_per_peer: None,
            handshakes: None,
            handshakes_per_address: None,
            requests: None,
            requests_per_address: None,
            requests_per_peer: None,
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
    /// How long a client may leave an answer unread, or take over each 16 KiB of it. Default 30s.
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
