//! `redis.url`.

use crate::secret::Secret;

/// Redis' port.
const PORT: u16 = 6379;

/// What a URL says.
#[derive(Debug, Clone)]
pub struct Target {
    /// Hosts and ports; more than one only with a cluster, where each is asked for the others.
    pub hosts: Vec<(String, u16)>,
    /// `rediss`.
    pub tls: bool,
    /// `redis-cluster`.
    pub cluster: bool,
    /// User of an access control list.
    pub user: Option<String>,
    /// Password, with or without a user.
    pub password: Option<Secret>,
    /// Database, 0 if there is none in the URL.
    pub database: u32,
}

/// Takes `redis://`, `rediss://`, `redis-cluster://` or `rediss-cluster://`, then `[user[:password]@]host[:port][/database]`.
/// A cluster may have several hosts, with commas.
///
/// # Errors
/// Says what is wrong, but never what the URL holds: it may be a password.
pub fn parse_url(url: &str) -> Result<Target, String> {
    let schemes = [
        ("redis://", false, false),
        ("rediss://", true, false),
        ("redis-cluster://", false, true),
        ("rediss-cluster://", true, true),
    ];
    let found = schemes.iter().find_map(|(scheme, tls, cluster)| Some((url.strip_prefix(scheme)?, *tls, *cluster)));
    let (rest, tls, cluster) =
        found.ok_or("not a Redis URL; write redis://, rediss://, redis-cluster:// or rediss-cluster:// and a host")?;
    let (rest, database) = match rest.split_once('/') {
        None | Some((_, "")) => (rest.trim_end_matches('/'), 0),
        Some((rest, number)) => (rest, number.parse().map_err(|_| "the database after the host is not a number")?),
    };
    if cluster && database != 0 {
        return Err("a Redis cluster has database 0 only".into());
    }
    let (login, hosts) = rest.rsplit_once('@').map_or((None, rest), |(login, hosts)| (Some(login), hosts));
    let (user, password) = match login.map(|l| l.split_once(':').unwrap_or((l, ""))) {
        None => (None, None),
        Some((user, password)) => (decoded(user)?, decoded(password)?),
    };
    let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
    if hosts.len() > 1 && !cluster {
        return Err("several hosts; write redis-cluster:// if they are a cluster".into());
    }
    Ok(Target { hosts, tls, cluster, user, password: password.map(Secret::new), database })
}

fn host(text: &str) -> Result<(String, u16), String> {
    // An IPv6 address stands in brackets.
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Ok(PORT), str::parse).map_err(|_| "the port is not a number up to 65535")?;
    if host.is_empty() || port == 0 {
        return Err("the host is missing, or its port is 0".into());
    }
    Ok((host.to_owned(), port))
}

/// Percent-encoding undone (RFC 3986, section 2.1); none if nothing is there.
fn decoded(text: &str) -> Result<Option<String>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next(), rest.next()].map(|d| d.and_then(|d| char::from(d).to_digit(16)));
        let [Some(high), Some(low)] = digits else { return Err("a % without two hex digits before the @".into()) };
        bytes.push((high * 16 + low) as u8);
    }
    let text = String::from_utf8(bytes).map_err(|_| "user or password is not UTF-8")?;
    Ok((!text.is_empty()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_password_host_port_and_database_are_read() {
        let t = parse_url("rediss://gate:p%40ss@redis.internal:7000/2").unwrap();
        assert_eq!((t.hosts, t.tls, t.cluster), (vec![("redis.internal".to_owned(), 7000)], true, false));
        assert_eq!((t.user.as_deref(), t.password.unwrap().expose(), t.database), (Some("gate"), "p@ss", 2));
        let t = parse_url("redis://:secret@[::1]/").unwrap();
        assert_eq!((t.hosts, t.user, t.password.unwrap().expose()), (vec![("::1".to_owned(), 6379)], None, "secret"));
        let t = parse_url("redis-cluster://a,b:7001").unwrap();
        assert_eq!((t.hosts.len(), t.cluster, t.password.is_none()), (2, true, true));
    }

    #[test]
    fn what_is_no_redis_url_is_said_without_its_password() {
        for url in ["http://x", "redis://", "redis://a:0", "redis://u:geheim@a,b", "redis://a/x", "redis-cluster://a/1"]
        {
            let why = parse_url(url).unwrap_err();
            assert!(!why.contains("geheim"), "{why}");
        }
        assert!(parse_url("redis://u:%zz@a").is_err());
    }
}
