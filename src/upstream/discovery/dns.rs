//! Questions to DNS. The gateway keeps what it was told for as long as it holds, so nothing is cached below; a resolver is
//! made for each round, which then sees what stands in `/etc/resolv.conf` and `/etc/hosts` by now.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::srv::{Rank, ranks};
use super::{Dns, Found, host, url};
use crate::config::file::LookupFamily;
use crate::upstream::settings::{NODES_MAX, NodeSettings};

/// How often a server is asked before it counts as silent.
const ATTEMPTS: usize = 2;
/// Targets of an SRV answer that are asked for at once.
const AT_ONCE: usize = 8;

/// Why there is no answer of use.
enum NoAnswer {
    /// DNS says that there is nothing.
    Nothing(String),
    /// Nobody said anything that can be believed.
    Failed(String),
}

impl NoAnswer {
    fn into_reason(self) -> String {
        match self {
            NoAnswer::Nothing(why) | NoAnswer::Failed(why) => why,
        }
    }
}

/// Addresses, and for how long they hold.
struct Addresses {
    found: Vec<IpAddr>,
    ttl: Duration,
}

/// The nodes at a name's addresses.
pub(super) async fn addresses(name: &str, port: u16, tls: bool, dns: &Dns) -> Result<Found, String> {
    let resolver = resolver(dns)?;
    let Addresses { found, ttl } = lookup(&resolver, name, dns).await.map_err(NoAnswer::into_reason)?;
    let nodes = found.into_iter().map(|ip| node(SocketAddr::new(ip, port), name, tls, (0, 1)));
    Ok(Found { nodes: distinct(nodes.collect()), holds: holds(ttl, dns) })
}

/// The nodes that a name's SRV records stand for.
pub(super) async fn services(name: &str, tls: bool, dns: &Dns) -> Result<Found, String> {
    let resolver = resolver(dns)?;
    let answer = resolver.lookup(absolute(name, dns), RecordType::SRV).await;
    let answer = answer.map_err(|e| no_answer(name, RecordType::SRV, &e).into_reason())?;
    let mut ttl = shortest(answer.answers().iter().map(|record| record.ttl));
    let records = answer.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    });
    // The root as a target: the service is decidedly not to be had here (RFC 2782).
    let records: Vec<_> = records.filter(|srv| !srv.target.is_root() && srv.port != 0).take(NODES_MAX + 1).collect();
    if records.is_empty() {
        return Err(format!("the SRV records of {name} name no service"));
    }
    let mut targets: HashMap<String, Result<Addresses, NoAnswer>> = HashMap::new();
    let mut names: Vec<_> = records.iter().map(|srv| srv.target.to_ascii()).collect();
    names.sort_unstable();
    names.dedup();
    for some in names.chunks(AT_ONCE) {
        let answers = join_all(some.iter().map(|target| lookup(&resolver, target, dns))).await;
        // One that is silent may be back at once; without it all others would lose what they know of it. And whoever does
        // not answer this one need not be waited for a thousand times.
        if let Some(Err(NoAnswer::Failed(why))) =
            answers.iter().find(|answer| matches!(answer, Err(NoAnswer::Failed(_))))
        {
            return Err(why.clone());
        }
        targets.extend(some.iter().cloned().zip(answers));
    }
    let mut nodes = Vec::new();
    let mut without = None;
    let numbers: Vec<_> = records.iter().map(|srv| Rank { priority: srv.priority, weight: srv.weight }).collect();
    for (srv, rank) in records.iter().zip(ranks(&numbers)) {
        let target = srv.target.to_ascii();
        match targets.get(&target) {
            Some(Ok(addresses)) => {
                ttl = ttl.min(addresses.ttl);
                let each = addresses.found.iter().map(|ip| SocketAddr::new(*ip, srv.port));
                nodes.extend(each.map(|address| node(address, &target, tls, rank)));
            }
            Some(Err(NoAnswer::Nothing(why) | NoAnswer::Failed(why))) => without = Some(why.clone()),
            None => {}
        }
    }
    match without {
        Some(why) if nodes.is_empty() => Err(why),
        _ => Ok(Found { nodes: distinct(nodes), holds: holds(ttl, dns) }),
    }
}

fn node(address: SocketAddr, name: &str, tls: bool, (priority, weight): (u8, u16)) -> NodeSettings {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    NodeSettings { url: url(address, tls), address, host: host(name, address.port(), tls), tls, weight, priority }
}

/// In one order, whatever that of the answer, and of each address the one with the best priority: a server that turns its
/// answers around changes nothing.
fn distinct(mut nodes: Vec<NodeSettings>) -> Vec<NodeSettings> {
    nodes.sort_by_key(|n| (n.address, n.priority, std::cmp::Reverse(n.weight)));
    nodes.dedup_by_key(|n| n.address);
    nodes
}

fn holds(ttl: Duration, dns: &Dns) -> Duration {
    ttl.min(dns.max_ttl).max(dns.min_ttl)
}

fn shortest(ttls: impl Iterator<Item = u32>) -> Duration {
    Duration::from_secs(ttls.min().unwrap_or(0).into())
}

/// With servers of its own a name is whole.
fn absolute(name: &str, dns: &Dns) -> String {
    if dns.servers.is_empty() || name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

fn resolver(dns: &Dns) -> Result<TokioResolver, String> {
    let mut builder = if dns.servers.is_empty() {
        TokioResolver::builder_tokio().map_err(|e| format!("/etc/resolv.conf: {e}"))?
    } else {
        let servers = dns.servers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.to_vec())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = dns.timeout;
    options.attempts = ATTEMPTS;
    options.cache_size = 0;
    options.use_hosts_file = if dns.servers.is_empty() { ResolveHosts::Always } else { ResolveHosts::Never };
    builder.build().map_err(|e| e.to_string())
}

async fn lookup(resolver: &TokioResolver, name: &str, dns: &Dns) -> Result<Addresses, NoAnswer> {
    let name = &*absolute(name, dns);
    match dns.family {
        LookupFamily::V4Only => of_kind(resolver, name, RecordType::A).await,
        LookupFamily::V6Only => of_kind(resolver, name, RecordType::AAAA).await,
        LookupFamily::V4Preferred => match of_kind(resolver, name, RecordType::A).await {
            Err(none @ NoAnswer::Nothing(_)) => match of_kind(resolver, name, RecordType::AAAA).await {
                // Neither: the first reason says more, that the name does not exist.
                Err(NoAnswer::Nothing(_)) => Err(none),
                answer => answer,
            },
            answer => answer,
        },
        LookupFamily::All => {
            let (v4, v6) =
                tokio::join!(of_kind(resolver, name, RecordType::A), of_kind(resolver, name, RecordType::AAAA));
            match (v4, v6) {
                (Ok(v4), Ok(v6)) => Ok(Addresses { found: [v4.found, v6.found].concat(), ttl: v4.ttl.min(v6.ttl) }),
                // Half of an answer would take the other half's nodes away.
                (Err(failed @ NoAnswer::Failed(_)), _) | (_, Err(failed @ NoAnswer::Failed(_))) => Err(failed),
                (Err(NoAnswer::Nothing(_)), other) | (other, Err(NoAnswer::Nothing(_))) => other,
            }
        }
    }
}

async fn of_kind(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Addresses, NoAnswer> {
    let answer = resolver.lookup(name, kind).await.map_err(|e| no_answer(name, kind, &e))?;
    let ttl = shortest(answer.answers().iter().map(|record| record.ttl));
    let addresses = answer.answers().iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    // What nobody can be at: a filter's way to say no, and 0.0.0.0 would be this machine.
    let found: Vec<_> = addresses.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).collect();
    if found.is_empty() {
        return Err(NoAnswer::Nothing(format!("{name} has no {kind} record of use")));
    }
    Ok(Addresses { found, ttl })
}

fn no_answer(name: &str, kind: RecordType, error: &NetError) -> NoAnswer {
    if error.is_nx_domain() {
        return NoAnswer::Nothing(format!("{name} does not exist (NXDOMAIN)"));
    }
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NoError => {
            NoAnswer::Nothing(format!("{name} has no {kind} record"))
        }
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            NoAnswer::Failed(format!("{kind} of {name}: the server says {}", none.response_code))
        }
        NetError::Dns(DnsError::ResponseCode(code)) => {
            NoAnswer::Failed(format!("{kind} of {name}: the server says {code}"))
        }
        NetError::Timeout => NoAnswer::Failed(format!("{kind} of {name}: no server answers")),
        other => NoAnswer::Failed(format!("{kind} of {name}: {other}")),
    }
}
