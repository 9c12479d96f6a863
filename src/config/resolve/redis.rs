//! `redis`, and what needs it.

use super::Resolver;
use super::ranges::MILLISECOND;
use super::secrets::secret;
use crate::config::{Listener, Redis, Route, file};
use crate::redis::parse_url;

/// Longest `key_prefix`.
const PREFIX_LENGTH_MAX: usize = 64;

pub(super) fn resolve(r: &mut Resolver<'_>, raw: Option<file::Redis>) -> Option<Redis> {
    let raw = raw?;
    r.span("redis.timeout", raw.timeout, MILLISECOND, 1000 * MILLISECOND);
    let prefix = &raw.key_prefix;
    if !(1..=PREFIX_LENGTH_MAX).contains(&prefix.len()) || !prefix.bytes().all(|b| b.is_ascii_graphic()) {
        r.error("redis.key_prefix", format!("write 1 to {PREFIX_LENGTH_MAX} printable ASCII characters"));
    }
    let password = secret(r, "redis", "password", None, raw.password_file, 1);
    let mut target = match parse_url(&raw.url.0) {
        Ok(target) => target,
        Err(why) => {
            r.error("redis.url", why);
            return None;
        }
    };
    match (&target.password, password) {
        (Some(_), Some(_)) => r.error("redis.password_file", "the URL has a password too; write one of the two"),
        (None, Some(password)) => target.password = Some(password),
        (_, None) => {}
    }
    if target.user.is_some() && target.password.is_none() && !r.has_guess("redis.password_file") {
        r.error("redis.url", "a user without a password; write user:password@, or password_file");
    }
    let ca = raw.ca.map(|name| r.material(&name));
    match &ca {
        None if target.tls => {
            r.error("redis.ca", "rediss:// needs what Redis' certificate chains to; write ca: redis-ca.pem")
        }
        Some(_) if !target.tls => r.error("redis.ca", "not used without TLS; write rediss://, or leave it out"),
        Some(name) if r.around.read_files => {
            if let Err(e) = std::fs::File::open(name) {
                r.error("redis.ca", format!("the file {name:?} can't be read: {e}"));
            }
        }
        _ => {}
    }
    Some(Redis { target, ca, key_prefix: raw.key_prefix, timeout: raw.timeout.0 })
}

/// Shared limits without Redis, and Redis that nothing is shared in.
pub(super) fn check_shared(r: &mut Resolver<'_>, redis: bool, listeners: &[Listener], routes: &[Route], fleet: bool) {
    let of_listeners = listeners.iter().enumerate().map(|(i, l)| (format!("listeners[{i}]"), &l.rate_limits));
    let of_routes = routes.iter().enumerate().map(|(i, x)| (format!("routes[{i}]"), &x.rate_limits));
    let mut any = false;
    for (at, limits) in of_listeners.chain(of_routes) {
        for (i, _) in limits.iter().enumerate().filter(|(_, l)| l.shared) {
            any = true;
            if !redis && !r.has_guess("redis") && !r.located.has("redis") {
                r.error(&format!("{at}.rate_limits[{i}].shared"), "needs a Redis; write redis: { url: … }");
            }
        }
    }
    if redis && !any && !fleet {
        r.warn("redis", "no limit is shared, so nothing is counted there; write shared: true on one, or maintenance: { fleet: true }");
    }
}
