//! `http://host:port`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A node's URL, taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Url<'a> {
    pub tls: bool,
    /// Host and port as written.
    pub authority: &'a str,
    /// Without brackets.
    pub host: &'a str,
    /// As written, or 80 or 443.
    pub port: u16,
}

/// Takes a URL of scheme, host and port.
///
/// # Errors
/// Says what must be left out or written.
pub(super) fn parse(url: &str) -> Result<Url<'_>, String> {
    let example = "write one such as http://10.0.1.10:3000";
    let (scheme, authority) = url.split_once("://").ok_or_else(|| format!("{url:?} is not a URL; {example}"))?;
    let tls = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(format!("{scheme:?} is neither http nor https; {example}")),
    };
    if authority.contains('@') {
        // Not shown: what stands before the @ is a password.
        return Err(format!("the URL holds a user or password; {example}"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(format!("{url:?} goes on after the port; leave out the path, requests keep their own"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| format!("{url:?} lacks a ']'"))?;
            host.parse::<Ipv6Addr>().map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            if !is_host(host) || host.parse::<Ipv6Addr>().is_ok() {
                return Err(format!("{host:?} is not a host; {example}, an IPv6 address in brackets"));
            }
            (host, port)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => {
            if tls {
                443
            } else {
                80
            }
        }
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
            Ok(port @ 1..) => port,
            _ => return Err(format!("{digits:?} is not a port; write 1 to 65535")),
        },
        _ => return Err(format!("{port:?} is not a port; write ':' and 1 to 65535")),
    };
    Ok(Url { tls, authority, host, port })
}

/// A host name of letters, digits, '-' and '_', or an IP address.
pub(super) fn is_host(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    // All digits and dots, but no address: a typing error, and resolvers take strange addresses.
    let numeric = text.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    let is_address = text.parse::<Ipv4Addr>().is_ok();
    text.len() <= 253 && (is_address || !numeric) && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_host_and_port_are_taken() {
        let url = parse("http://10.0.1.10:3000").unwrap();
        assert_eq!(url, Url { tls: false, authority: "10.0.1.10:3000", host: "10.0.1.10", port: 3000 });
        let url = parse("https://hive.internal").unwrap();
        assert_eq!((url.tls, url.port, url.authority), (true, 443, "hive.internal"));
        let url = parse("http://[::1]:81").unwrap();
        assert_eq!((url.host, url.port), ("::1", 81));
        assert_eq!(parse("http://[::1]").unwrap().port, 80);
    }

    #[test]
    fn everything_else_is_refused() {
        for (url, why) in [
            ("10.0.1.10:3000", "not a URL"),
            ("ftp://h:1", "neither http nor https"),
            ("HTTP://h:1", "neither http nor https"),
            ("http://h:1/", "path"),
            ("http://h:1?x", "path"),
            ("http://h:0", "port"),
            ("http://h:65536", "port"),
            ("http://h:+1", "port"),
            ("http://h:", "port"),
            ("http://:80", "not a host"),
            ("http://::1:80", "not a host"),
            ("http://[::1]80", "not a port"),
            ("http://[::1", "]"),
            ("http://10.0.1:80", "not a host"),
            ("http://10.0.1.256:80", "not a host"),
            ("http://a b:80", "not a host"),
            ("http://-a:80", "not a host"),
        ] {
            let said = parse(url).unwrap_err();
            assert!(said.contains(why), "{url}: {said}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert!(!parse("http://me:hunter2@h:80").unwrap_err().contains("hunter2"));
    }
}
