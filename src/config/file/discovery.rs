//! Block `upstreams[].discovery`: where an upstream's nodes come from, if not from `endpoints`.

use serde::Deserialize;

use super::seconds;
use crate::units::Span;

/// `upstreams[].discovery`: exactly one of its keys. The nodes are `https://` if the upstream has `tls`, else `http://`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discovery {
    /// The addresses of a name, all of one port.
    pub dns: Option<DnsDiscovery>,
    /// What the SRV records of a name say (RFC 2782): hosts, ports, priorities, weights.
    pub srv: Option<SrvDiscovery>,
    /// A file that somebody else writes.
    pub file: Option<FileDiscovery>,
}

/// `upstreams[].discovery.dns`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsDiscovery {
    /// The name whose A and AAAA records are asked for. Without a dot at its end the search list of `/etc/resolv.conf`
    /// counts, unless `servers` is given.
    pub name: String,
    /// The nodes' port, 1 to 65535. Needed.
    pub port: Option<u16>,
    /// Which addresses are taken. Default `v4_preferred`.
    #[serde(default)]
    pub lookup_family: LookupFamily,
    /// Who is asked: `address` or `address:port`, at most 8. Default: as `/etc/resolv.conf` and `/etc/hosts` say.
    #[serde(default)]
    pub servers: Vec<String>,
    /// The least time between two questions, 100ms to 1h; a shorter TTL counts as this. Default 5s.
    #[serde(default = "five_seconds")]
    pub min_ttl: Span,
    /// The most, `min_ttl` to 1d; a longer TTL counts as this. Default 5m.
    #[serde(default = "five_minutes")]
    pub max_ttl: Span,
    /// How long a server may take over an answer, 10ms to 30s; each is asked twice. Default 2s.
    #[serde(default = "two_seconds")]
    pub timeout: Span,
}

/// `upstreams[].discovery.srv`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SrvDiscovery {
    /// The name whose SRV records are asked for, such as `_http._tcp.hive.example`.
    pub name: String,
    /// As in `dns`, of the hosts that the records name.
    #[serde(default)]
    pub lookup_family: LookupFamily,
    /// As in `dns`.
    #[serde(default)]
    pub servers: Vec<String>,
    /// As in `dns`.
    #[serde(default = "five_seconds")]
    pub min_ttl: Span,
    /// As in `dns`.
    #[serde(default = "five_minutes")]
    pub max_ttl: Span,
    /// As in `dns`.
    #[serde(default = "two_seconds")]
    pub timeout: Span,
}

/// `upstreams[].discovery.file`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDiscovery {
    /// YAML or JSON in the shape of Prometheus' `file_sd`: `[{ targets: ["10.0.1.10:3000"], labels: { weight: "2" } }]`.
    pub path: String,
    /// How often its content is looked at, 100ms to 1h. Default 1s.
    #[serde(default = "one_second")]
    pub interval: Span,
}

/// `lookup_family`, with Envoy's meaning.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LookupFamily {
    /// IPv4; IPv6 if there is none.
    #[default]
    V4Preferred,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
    /// Both: each address is a node.
    All,
}

fn one_second() -> Span {
    seconds(1)
}

fn two_seconds() -> Span {
    seconds(2)
}

fn five_seconds() -> Span {
    seconds(5)
}

fn five_minutes() -> Span {
    seconds(300)
}
