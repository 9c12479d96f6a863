//! `upstreams[].discovery`

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Resolver;
use super::endpoint;
use super::ranges::{DAY, HOUR, MILLISECOND, SECOND};
use crate::config::file::{self, LookupFamily};
use crate::units::Span;
use crate::upstream::discovery::{self, Discovery, Dns, Kind};

const DNS_PORT: u16 = 53;
const SERVERS_MAX: usize = 8;
const LEAST: Duration = Duration::from_millis(100);

/// Where the nodes come from. None: from nowhere, which has been said.
pub(super) fn resolve(
    r: &mut Resolver<'_>,
    at: &str,
    raw: file::Discovery,
    tls: bool,
    trusted: bool,
) -> Option<Discovery> {
    let given = [raw.dns.is_some(), raw.srv.is_some(), raw.file.is_some()];
    let kinds = ["dns", "srv", "file"];
    let guessed = kinds.iter().any(|kind| r.has_guess(&format!("{at}.{kind}")));
    if given.iter().filter(|given| **given).count() != 1 && !guessed {
        r.error(at, "write exactly one of dns: { name, port }, srv: { name } and file: { path }");
    }
    let kind = match (raw.dns, raw.srv, raw.file) {
        (Some(raw), _, _) => of_dns(r, &format!("{at}.dns"), raw)?,
        (_, Some(raw), _) => of_srv(r, &format!("{at}.srv"), raw)?,
        (_, _, Some(raw)) => of_file(r, &format!("{at}.file"), raw, tls),
        (None, None, None) => return None,
    };
    Some(Discovery { kind, tls, trusted })
}

fn of_dns(r: &mut Resolver<'_>, at: &str, raw: file::DnsDiscovery) -> Option<Kind> {
    let port_path = format!("{at}.port");
    match raw.port {
        None if !r.has_guess(&port_path) => r.error(at, "the key \"port\" is missing; write port: 3000"),
        Some(0) => r.error(&port_path, "0 is out of range; write 1 to 65535"),
        _ => {}
    }
    let file::DnsDiscovery { name, lookup_family, servers, min_ttl, max_ttl, timeout, .. } = raw;
    let asked = questions(r, at, Asked { name: &name, lookup_family, servers, min_ttl, max_ttl, timeout });
    Some(Kind::Dns { name, port: raw.port?, dns: asked })
}

fn of_srv(r: &mut Resolver<'_>, at: &str, raw: file::SrvDiscovery) -> Option<Kind> {
    let file::SrvDiscovery { name, lookup_family, servers, min_ttl, max_ttl, timeout } = raw;
    let dns = questions(r, at, Asked { name: &name, lookup_family, servers, min_ttl, max_ttl, timeout });
    Some(Kind::Srv { name, dns })
}

struct Asked<'a> {
    name: &'a str,
    lookup_family: LookupFamily,
    servers: Vec<String>,
    min_ttl: Span,
    max_ttl: Span,
    timeout: Span,
}

fn questions(r: &mut Resolver<'_>, at: &str, asked: Asked<'_>) -> Dns {
    let Asked { name, lookup_family, servers, min_ttl, max_ttl, timeout } = asked;
    let name_path = format!("{at}.name");
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.parse::<IpAddr>().is_ok() {
        r.error(&name_path, format!("{name:?} is an address, and nobody has to be asked for it; write endpoints"));
    } else if !endpoint::is_host(bare) {
        r.error(&name_path, format!("{name:?} is not a name that DNS knows; write one such as hive.internal"));
    }
    r.span(&format!("{at}.min_ttl"), min_ttl, LEAST, HOUR);
    r.span(&format!("{at}.max_ttl"), max_ttl, min_ttl.0.min(DAY), DAY);
    r.span(&format!("{at}.timeout"), timeout, 10 * MILLISECOND, 30 * SECOND);
    let list = format!("{at}.servers");
    if servers.len() > SERVERS_MAX {
        r.error(&list, format!("{} servers; the most is {SERVERS_MAX}", servers.len()));
    }
    r.once(&list, &servers);
    let each = servers.iter().enumerate().filter_map(|(i, text)| {
        let parsed = server(text);
        if parsed.is_none() {
            let why =
                format!("{text:?} is not the address of a DNS server; write one such as 10.0.0.53 or 10.0.0.53:53");
            r.error(&format!("{list}[{i}]"), why);
        }
        parsed
    });
    Dns { servers: each.collect(), family: lookup_family, min_ttl: min_ttl.0, max_ttl: max_ttl.0, timeout: timeout.0 }
}

fn server(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    address.or_else(|_| text.parse()).ok().filter(|address| address.port() != 0)
}

fn of_file(r: &mut Resolver<'_>, at: &str, raw: file::FileDiscovery, tls: bool) -> Kind {
    r.span(&format!("{at}.interval"), raw.interval, LEAST, HOUR);
    let path = r.absolute(&raw.path);
    if r.around.read_files {
        // Who writes it may come later, and a bad one keeps the nodes that there are: no reason not to start.
        if let Err(why) = discovery::read_file(path.as_ref(), tls) {
            r.warn(&format!("{at}.path"), why);
        }
    }
    Kind::File { path: path.into(), interval: raw.interval.0 }
}
