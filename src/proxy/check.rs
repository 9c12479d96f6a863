//! What is asked of a request that needs no connection: the same code for one that is there and for one that
//! `hive-gateway explain` is asked about.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};

use crate::clock::Clock;
use crate::headers;
use crate::observe::WafVerdict;
use crate::policy::deny::AddressList;
use crate::policy::federation::Fault;
use crate::policy::peers::Peer;
use crate::policy::waf::{self, Mode};
use crate::refusal::Refusal;
use crate::request::{self, Form, FormFault, Head};
use crate::route::{Lookup, Table};
use crate::snapshot::{ListenerSnapshot, Published, Route, Snapshot};
use crate::tls::ServerContext;

/// Size and strict form of a head of `size` bytes, where `most` are allowed.
pub fn form<'a>(head: &Head<'a>, size: usize, most: usize) -> Result<Form<'a>, Refusal> {
    if size > most {
        // RFC 9112, section 3: the request line alone is.
        let line = head.method.as_str().len() + head.target.len() + "  HTTP/1.1".len();
        return Err(if line > most { Refusal::UriTooLong } else { Refusal::HeaderTooLarge });
    }
    request::check_form(head).map_err(|fault| match fault {
        FormFault::TwoFederationCredentials => Refusal::TwoFederationCredentials,
        FormFault::FederationTokenTooLong => Refusal::FederationTokenTooLong,
        FormFault::TooManyFields => Refusal::HeaderTooLarge,
        fault => Refusal::AmbiguousRequest(fault.message()),
    })
}

/// A client that got in under one name may not ask for another (design, decision 2).
pub fn host(host: &str, sni: Option<&str>, context: &ServerContext) -> Result<(), Refusal> {
    // Without SNI the default certificate was shown.
    let agrees = match sni {
        Some(sni) => sni.eq_ignore_ascii_case(host) && context.covers(host),
        None => context.default_covers(host),
    };
    if agrees { Ok(()) } else { Err(Refusal::MisdirectedRequest) }
}

/// The route that a refusal is shaped and counted as, if there is one, and whether `peer` may take it.
pub fn route<'t>(
    routes: &'t Table<Published>,
    host: &str,
    path: &[u8],
    method: &Method,
    peer: Option<&Peer>,
) -> (Option<&'t Published>, Result<(), Refusal>) {
    match routes.find(host, path, method) {
        Lookup::Found { value, .. } => {
            let allowed = value.route.peers.allow(peer);
            (Some(value), if allowed { Ok(()) } else { Err(Refusal::PeerNotAllowed) })
        }
        Lookup::MethodNotAllowed { allow, .. } => {
            let other = allow.split(", ").next().and_then(|m| Method::from_bytes(m.as_bytes()).ok());
            let named = other.and_then(|m| match routes.find(host, path, &m) {
                Lookup::Found { value, .. } => Some(value),
                _ => None,
            });
            (named, Err(Refusal::MethodNotAllowed { allow: allow.to_owned() }))
        }
        Lookup::HostUnknown => (None, Err(Refusal::MisdirectedRequest)),
        Lookup::NotFound => (None, Err(Refusal::NotFound)),
    }
}

/// The route that a request which is refused before seems to mean: its clients expect refusals in its form. `authority`:
/// HTTP/2's name for the host.
pub fn route_named<'t>(
    routes: &'t Table<Published>,
    headers: &HeaderMap,
    authority: Option<&str>,
    target: &[u8],
    method: &Method,
) -> Option<&'t Published> {
    let host = headers.get(headers::HOST).and_then(|h| h.to_str().ok()).and_then(request::host_of);
    let host = host.or_else(|| authority.map(Cow::Borrowed)).unwrap_or_default();
    match routes.find(&host, path_of(target), method) {
        Lookup::Found { value, .. } => Some(value),
        _ => None,
    }
}

/// GET and HEAD have no body: what one would mean is left open (RFC 9110, section 9.3.1).
pub fn no_body(method: &Method, has_body: bool) -> Result<(), Refusal> {
    if has_body && matches!(*method, Method::GET | Method::HEAD) {
        return Err(Refusal::AmbiguousRequest("a GET or HEAD request with a body"));
    }
    Ok(())
}

/// Whether a client with a body waits for `100 Continue` before it sends that.
pub fn expectation(headers: &HeaderMap) -> Result<bool, Refusal> {
    match headers.get(headers::EXPECT) {
        None => Ok(false),
        Some(expect) if expect.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(true),
        Some(_) => Err(Refusal::ExpectationFailed),
    }
}

/// Federation JWTs for our own Hive: the issuer as far as it is believed, and the verdict. Without one the request passes:
/// Hive knows whether the route needs it.
pub fn federation(
    snapshot: &Snapshot,
    route: &Route,
    headers: &HeaderMap,
    peer: Option<&Peer>,
    clock: &Clock,
) -> (Option<Arc<str>>, Result<(), Refusal>) {
    if !route.upstream.trusted || !snapshot.federation.is_active() {
        return (None, Ok(()));
    }
    let Some(token) = headers::federation_jwt(headers) else { return (None, Ok(())) };
    let checked = snapshot.federation.check(token.as_bytes(), peer.map(|p| p.index), clock.unix_seconds());
    let verdict = checked.verdict.map_err(|fault| match fault {
        Fault::Invalid(why) => Refusal::FederationTokenInvalid(why),
        Fault::NotNow(why) => Refusal::FederationTokenNotNow(why),
        Fault::IssuerMismatch => Refusal::FederationIssuerMismatch,
    });
    (checked.issuer, verdict)
}

/// The lists of addresses: the connection's own, and the client's for whom a trusted proxy speaks.
pub fn address(list: Option<&AddressList>, remote: IpAddr, client: Option<IpAddr>) -> Result<(), Refusal> {
    let denied = |address: IpAddr| list.is_some_and(|list| list.denies(address));
    if denied(remote) {
        return Err(Refusal::AddressDenied { of_connection: true });
    }
    match client.filter(|address| *address != remote) {
        Some(address) if denied(address) => Err(Refusal::AddressDenied { of_connection: false }),
        _ => Ok(()),
    }
}

/// Longest body of a request on this route: a firewall that blocks lets none pass that it can't look at.
pub fn body_limit(listener: &ListenerSnapshot, route: &Route) -> u64 {
    match route.waf.or(listener.waf.as_ref()).filter(|waf| waf.mode() == Mode::Blocking) {
        Some(waf) => route.body_limit.min(waf.body_limit()),
        None => route.body_limit,
    }
}

/// Whether the firewall, if one blocks here, can read a body under these header fields.
pub fn coding(listener: &ListenerSnapshot, route: &Route, headers: &HeaderMap) -> Result<(), Refusal> {
    if firewall_blocks(listener, route) { waf::check_fields(headers) } else { Ok(()) }
}

/// The same of the body's parts, now that it is there.
pub fn coding_of_parts(
    listener: &ListenerSnapshot,
    route: &Route,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), Refusal> {
    if firewall_blocks(listener, route) { waf::check_parts(headers, body) } else { Ok(()) }
}

fn firewall_blocks(listener: &ListenerSnapshot, route: &Route) -> bool {
    route.waf.or(listener.waf.as_ref()).is_some_and(|waf| waf.mode() == Mode::Blocking)
}

/// What the web application firewall's word means.
pub fn waf(verdict: WafVerdict, mode: Mode) -> Result<(), Refusal> {
    match verdict {
        WafVerdict::Blocked => Err(Refusal::WafBlocked),
        WafVerdict::Unavailable if mode == Mode::Blocking => Err(Refusal::WafUnavailable),
        WafVerdict::Passed | WafVerdict::Detected | WafVerdict::Skipped | WafVerdict::Unavailable => Ok(()),
    }
}

/// The path of a request target of strict form.
pub fn path_of(target: &[u8]) -> &[u8] {
    let path = origin_form(target);
    memchr::memchr(b'?', path).map_or(path, |query| &path[..query])
}

/// What logs and spans show of a request target: the path, up to where something may begin that holds secrets. That is the
/// query, and in a target that is refused also what clients write in its place: a parameter (`/a;token=…`), a fragment,
/// and each of them with its sign encoded.
pub fn shown_path(target: &[u8]) -> &[u8] {
    let path = path_of(target);
    let cut = memchr::memchr3_iter(b';', b'#', b'%', path).find(|at| match path[*at] {
        b'%' => matches!(path.get(at + 1..at + 3), Some(b"3f" | b"3F" | b"3b" | b"3B" | b"23")),
        _ => true,
    });
    cut.map_or(path, |at| &path[..at])
}

/// A request target without scheme and host, which have been compared with `Host` (RFC 9112, section 3.2.2).
pub fn origin_form(target: &[u8]) -> &[u8] {
    if target.first() == Some(&b'/') {
        return target;
    }
    let query = memchr::memchr(b'?', target).unwrap_or(target.len());
    memchr::memmem::find(&target[..query], b"://")
        .and_then(|scheme| memchr::memchr(b'/', &target[scheme + 3..query]).map(|slash| &target[scheme + 3 + slash..]))
        .unwrap_or(b"/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_secrets_is_not_shown() {
        for (target, shown) in [
            ("/a/b?c=/d", "/a/b"),
            ("/a;token=s/b?c", "/a"),
            ("/a%3Ftoken=s", "/a"),
            ("/a%3ftoken=s", "/a"),
            ("/a%3Btoken=s", "/a"),
            ("/a%23token=s", "/a"),
            ("/a#token=s", "/a"),
            ("/a%2Fb%3", "/a%2Fb%3"),
            ("https://host/a;b", "/a"),
        ] {
            assert_eq!(shown_path(target.as_bytes()), shown.as_bytes(), "{target}");
        }
    }

    #[test]
    fn a_path_is_what_stands_before_the_query() {
        for (target, path) in [
            ("/a/b?c=/d", "/a/b"),
            ("/a", "/a"),
            ("/?x", "/"),
            ("http://host:1/a/b?c", "/a/b"),
            ("https://host", "/"),
            ("http://host?x=/y", "/"),
        ] {
            assert_eq!(path_of(target.as_bytes()), path.as_bytes(), "{target}");
        }
    }
}
