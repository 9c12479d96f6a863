//! Whether a request that changes something comes from an operator, and not from a web page that an operator's browser
//! shows: such a page can send a POST to a loopback address too.

use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName};

/// Says for what a browser sends a request (Fetch Metadata Request Headers, section 2.3).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Checks `Host`, `Origin` and `Sec-Fetch-Site`. `reads`: nothing is changed, so only `Host` matters; what another site
/// asks for it can't read. `loopback`: the listener's address is one, so that another name in `Host`
/// is one that someone has pointed there (DNS rebinding).
///
/// # Errors
/// Says why not.
pub(super) fn check(headers: &HeaderMap, loopback: bool, reads: bool) -> Result<(), &'static str> {
    let host = only(headers, &HOST)?.ok_or("A Host is needed.")?;
    if loopback && !names_loopback(host) {
        return Err("The Host is not a loopback address or localhost.");
    }
    if reads {
        return Ok(());
    }
    if let Some(origin) = only(headers, &ORIGIN)? {
        let theirs = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        if !theirs.is_some_and(|theirs| theirs.eq_ignore_ascii_case(host)) {
            return Err("The request comes from another site.");
        }
    }
    match only(headers, &SEC_FETCH_SITE)? {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err("The request comes from another site."),
    }
}

/// The one value of a field.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| "A header can't be read."),
        (Some(_), Some(_)) => Err("A header is given twice."),
    }
}

fn names_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(loopback: bool, fields: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        check(&headers, loopback, false).is_ok()
    }

    #[test]
    fn what_only_reads_needs_a_good_host_alone() {
        let mut headers = HeaderMap::new();
        headers.insert("sec-fetch-site", "cross-site".parse().unwrap());
        headers.insert("host", "localhost:9901".parse().unwrap());
        assert!(check(&headers, true, true).is_ok() && check(&headers, true, false).is_err());
        headers.insert("host", "evil.example".parse().unwrap());
        assert!(check(&headers, true, true).is_err());
    }

    #[test]
    fn a_loopback_listener_is_called_by_a_loopback_name() {
        for host in ["localhost", "LOCALHOST:9901", "127.0.0.1:9901", "127.8.0.1", "[::1]:9901", "[::ffff:127.0.0.1]"] {
            assert!(checked(true, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9901",
            "localhost.evil.example",
            "10.0.0.1",
            "127.0.0.1.evil",
            "a@localhost",
            "",
        ] {
            assert!(!checked(true, &[("host", host)]), "{host}");
        }
        assert!(checked(false, &[("host", "gateway.internal:9901")]));
        assert!(!checked(true, &[]) && !checked(false, &[]));
        assert!(!checked(true, &[("host", "localhost"), ("host", "localhost")]));
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let host = ("host", "localhost:9901");
        for origin in ["http://localhost:9901", "https://LOCALHOST:9901"] {
            assert!(checked(true, &[host, ("origin", origin)]), "{origin}");
        }
        for origin in
            ["http://localhost", "http://localhost:3000", "https://evil.example", "null", "localhost:9901", ""]
        {
            assert!(!checked(true, &[host, ("origin", origin)]), "{origin}");
        }
        for (site, good) in [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)] {
            assert_eq!(checked(true, &[host, ("sec-fetch-site", site)]), good, "{site}");
        }
    }
}
