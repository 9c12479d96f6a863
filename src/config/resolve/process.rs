//! The blocks of which there is one: `hive`, `admin`, `server`; and who listens where.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::Resolver;
use super::federation;
use super::ranges::HOUR;
use super::routes::BODY_MAX;
use super::secrets::secret;
use crate::config::file::{self, File};
use crate::config::{Admin, Hive, Peer, Route, Server};
use crate::headers::ProductHeaders;

/// Least length of the gateway's proof: Hive refuses shorter ones.
const GATEWAY_SECRET_LEAST: usize = 32;
/// Looking at files more often would cost more than it brings.
const WATCH_LEAST: Duration = Duration::from_millis(100);
/// Least length of the operator's secret.
const ADMIN_SECRET_LEAST: usize = 16;

/// Two that would listen in one place.
pub(super) fn addresses(r: &mut Resolver<'_>, file: &File) {
    let mut all = vec![("admin".to_owned(), file.admin.address)];
    all.extend(file.listeners.iter().enumerate().map(|(i, l)| (format!("listeners[{i}]"), l.address)));
    if r.located.has("admin.address") {
        // It is written, so it can be the one that is wrong.
        all.rotate_left(1);
    }
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    for (owner, address) in all {
        let path = format!("{owner}.address");
        if r.is_guessed(&path) {
            continue;
        }
        if let Some((other, theirs)) = taken.iter().find(|(_, theirs)| collide(*theirs, address)) {
            let theirs_at = format!("{other}.address");
            let whence = match r.located.has(&theirs_at) {
                true => format!("in line {}", r.located.place(&theirs_at).line),
                false => "by default".to_owned(),
            };
            r.error(&path, format!("{address} is already taken by {other} ({theirs}) {whence}"));
        }
        taken.push((owner, address));
    }
}

fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = |ip: IpAddr, other: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4());
    // Port 0 is a free port of the system's choice.
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || everywhere(a.ip(), b.ip()) || everywhere(b.ip(), a.ip()))
}

/// `hive`
pub(super) fn hive(r: &mut Resolver<'_>, hive: file::Hive, peers: &[Peer]) -> Hive {
    let prefix = hive.header_prefix;
    if let Err(why) = ProductHeaders::with_prefix(&prefix) {
        r.error("hive.header_prefix", why);
    }
    let (inline, file) = (hive.gateway_auth_secret, hive.gateway_auth_secret_file);
    let gateway_auth = secret(r, "hive", "gateway_auth_secret", inline, file, GATEWAY_SECRET_LEAST);
    let federation = federation::resolve(r, hive.federation, &prefix, peers);
    r.range("hive.rate_limited_code", &hive.rate_limited_code, &(-32099..=-32000));
    Hive { header_prefix: prefix, gateway_auth, federation, rate_limited_code: hive.rate_limited_code }
}

/// `admin`
pub(super) fn admin(r: &mut Resolver<'_>, admin: file::Admin) -> Admin {
    let given = admin.bearer_secret.is_some()
        || admin.bearer_secret_file.is_some()
        || r.has_guess("admin.bearer_secret")
        || r.has_guess("admin.bearer_secret_file");
    if !given && !admin.address.ip().is_loopback() {
        let remedy = "write bearer_secret or bearer_secret_file, or a loopback address such as 127.0.0.1:9901";
        r.error("admin.address", format!("{} can be reached from other machines: {remedy}", admin.address));
    }
    let bearer = secret(r, "admin", "bearer_secret", admin.bearer_secret, admin.bearer_secret_file, ADMIN_SECRET_LEAST);
    Admin { address: admin.address, bearer }
}

/// `server`
pub(super) fn server(r: &mut Resolver<'_>, server: &file::Server, routes: &[Route]) -> Server {
    if let Some(threads) = server.threads {
        r.range("server.threads", &threads, &(1..=256));
    }
    r.span("server.shutdown_delay", server.shutdown_delay, Duration::ZERO, HOUR);
    r.span("server.drain", server.drain, Duration::ZERO, HOUR);
    if !server.watch.0.is_zero() {
        r.span("server.watch", server.watch, WATCH_LEAST, HOUR);
    } else if server.watch_config {
        r.error("server.watch_config", "nothing is watched with watch: 0s; leave out one of the two");
    }
    r.size("server.body_memory", server.body_memory, &(1 << 20..=1 << 40));
    r.range("server.rate_limit_keys", &server.rate_limit_keys, &(1000..=10_000_000));
    r.range("server.rate_limit_ipv6_prefix", &server.rate_limit_ipv6_prefix, &(16..=128));
    let possible = routes.iter().enumerate().filter(|(_, route)| route.body_limit <= BODY_MAX);
    if let Some((i, route)) = possible.max_by_key(|(_, route)| route.body_limit)
        && route.body_limit > server.body_memory.0
        && !r.has_guess(&format!("routes[{i}].body"))
    {
        let limit = crate::units::Size(route.body_limit);
        let why = format!("{} is less than one body of route {} ({limit})", server.body_memory, route.name);
        r.error("server.body_memory", why);
    }
    let processors = || std::thread::available_parallelism().map_or(1, usize::from).min(256);
    Server {
        threads: server.threads.map_or_else(processors, usize::from),
        shutdown_delay: server.shutdown_delay.0,
        drain: server.drain.0,
        body_memory: server.body_memory.0,
        rate_limit_keys: usize::try_from(server.rate_limit_keys).unwrap_or(usize::MAX),
        rate_limit_ipv6_prefix: server.rate_limit_ipv6_prefix,
        watch: server.watch.0,
        watch_config: server.watch_config,
        state_dir: server.state_dir.as_deref().map(|name| state_dir(r, name)),
    }
}

/// Where what was fetched is kept. Whether it can be written to is seen when there is something to write: `check` may run as
/// somebody else.
fn state_dir(r: &mut Resolver<'_>, name: &str) -> PathBuf {
    let path = PathBuf::from(r.absolute(name));
    if name.is_empty() {
        r.error("server.state_dir", "is empty; write a directory's name, or leave it out");
    } else if r.around.read_files && !path.is_dir() {
        r.error("server.state_dir", format!("the directory {} does not exist", path.display()));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_takes_all_of_its_port() {
        let collide = |a: &str, b: &str| collide(a.parse().unwrap(), b.parse().unwrap());
        assert!(collide("0.0.0.0:1", "127.0.0.1:1"));
        assert!(collide("127.0.0.1:1", "[::]:1"));
        assert!(!collide("0.0.0.0:1", "[::1]:1"));
        assert!(!collide("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!collide("127.0.0.1:0", "127.0.0.1:0"));
    }
}
