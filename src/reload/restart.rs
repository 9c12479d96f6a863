//! What a reload can't change: sockets and threads. It needs a new process, by an upgrade (SIGUSR2) or a restart. A new configuration is cut down to what this process can run, and
//! what was cut is said.

use std::collections::HashMap;

use crate::config::{Config, Listener, Route, RouteListeners, Server};
use crate::names::ListenerName;
use crate::units::Size;

/// The longest headers that listeners had when the process began: HTTP/2's codec is set up once, for twice as much.
pub type FirstHeaders = HashMap<ListenerName, Size>;

/// Changes `new` so that it can run on the sockets of `old`. Returns what needs an upgrade or a restart, a sentence each.
///
/// * A changed address: the listener goes on at its old one, all else is taken.
/// * A changed name: the listener goes on under its old one, all else is taken.
/// * A new listener: left out.
/// * A listener that is gone: left out; its socket closes what it accepts.
/// * `https` to `http` or back: the listener goes on as it was, so that none turns plain on a public address.
/// * Another SPIFFE agent: the old one is still asked.
/// * Another address, and clients are no longer asked for certificates: it goes on as it was, for the same reason.
/// * The admin address: as a listener's. Where the old one can be reached from other machines, its secret stays.
pub fn hold_back(new: &mut Config, old: &Config, first_headers: &FirstHeaders) -> Vec<String> {
    let mut said = Vec::new();
    let wanted: Vec<ListenerName> = new.listeners.iter().map(|l| l.name.clone()).collect();
    let mut gone: Vec<&Listener> = old.listeners.iter().filter(|l| !wanted.contains(&l.name)).collect();
    let mut places = Vec::new();
    for listener in std::mem::take(&mut new.listeners) {
        let (protocol, asks, private) = (listener.protocol, asks(&listener), listener.address.ip().is_loopback());
        let held = held_listener(listener, old, &mut gone, &mut said);
        let as_closed = |h: &Listener| {
            h.protocol == protocol && self::asks(h) == asks && (!private || h.address.ip().is_loopback())
        };
        places.push(held.as_ref().filter(|h| as_closed(h)).map(|_| new.listeners.len()));
        new.listeners.extend(held);
    }
    move_routes(&mut new.routes, &places);
    for Listener { name, address, .. } in gone {
        let closes = format!("its socket on {address} closes at an upgrade or a restart");
        said.push(format!("listener {name}: it is gone and takes no more requests; {closes}"));
    }
    for Listener { name, limits, .. } in &new.listeners {
        if first_headers.get(name).is_some_and(|first| limits.request_header.0 > first.0.saturating_mul(2)) {
            said.push(format!(
                "listener {name}: request_header {} needs an upgrade or a restart for HTTP/2",
                limits.request_header
            ));
        }
    }
    if new.admin.address != old.admin.address {
        said.push(format!("admin: address change needs an upgrade or a restart; it is still {}", old.admin.address));
        if new.admin.bearer.is_none() && !old.admin.address.ip().is_loopback() {
            new.admin.bearer.clone_from(&old.admin.bearer);
        }
        new.admin.address = old.admin.address;
    }
    if new.spiffe != old.spiffe {
        let still = old.spiffe.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        said.push(format!("spiffe: change of the agent needs an upgrade or a restart; still asked is {still}"));
        new.spiffe.clone_from(&old.spiffe);
    }
    if new.server.threads != old.server.threads {
        said.push(format!(
            "server: change of threads needs an upgrade or a restart; there are still {}",
            old.server.threads
        ));
        new.server.threads = old.server.threads;
    }
    let rates = |server: &Server| (server.rate_limit_keys, server.rate_limit_ipv6_prefix);
    if rates(&new.server) != rates(&old.server) {
        said.push(
            "server: change of rate_limit_keys or rate_limit_ipv6_prefix needs an upgrade or a restart".to_owned(),
        );
        new.server.rate_limit_keys = old.server.rate_limit_keys;
        new.server.rate_limit_ipv6_prefix = old.server.rate_limit_ipv6_prefix;
    }
    said
}

/// Routes that name their listeners follow those to where they stand now (`places`, by where they stood). What is meant
/// for a listener that can't run, or can run only more open than it is meant (on the old public address, or with the old
/// protocol), waits for the restart: an egress route must not be served to strangers in between.
fn move_routes(routes: &mut [Route], places: &[Option<usize>]) {
    for route in routes {
        if let RouteListeners::Of(indexes) = &mut route.listeners {
            *indexes = indexes.iter().filter_map(|i| places.get(*i).copied().flatten()).collect();
        }
    }
}

/// Whether clients have to show a certificate.
fn asks(listener: &Listener) -> bool {
    listener.tls.as_ref().is_some_and(|tls| tls.client_auth.asks())
}

/// A listener as it can run now, if it can.
fn held_listener(
    mut new: Listener,
    old: &Config,
    gone: &mut Vec<&Listener>,
    said: &mut Vec<String>,
) -> Option<Listener> {
    let name = new.name.clone();
    let running = match old.listeners.iter().find(|l| l.name == name) {
        Some(running) => running,
        // The socket is there, only under another name.
        None => match gone.iter().position(|l| l.address == new.address) {
            Some(at) => {
                let running = gone.remove(at);
                said.push(format!(
                    "listener {name}: change of name needs an upgrade or a restart; it is still {}",
                    running.name
                ));
                new.name = running.name.clone();
                running
            }
            None => {
                said.push(format!(
                    "listener {name}: a new listener needs an upgrade or a restart; nobody listens on {}",
                    new.address
                ));
                return None;
            }
        },
    };
    if new.protocol != running.protocol {
        said.push(format!(
            "listener {name}: change of protocol needs an upgrade or a restart; all of it stays as it was"
        ));
        return Some(running.clone());
    }
    if new.address != running.address && asks(running) && !asks(&new) {
        // Only the new address is known to be out of strangers' reach.
        let why = "without client certificates at another address it needs an upgrade or a restart";
        said.push(format!("listener {name}: {why}; all of it stays as it was"));
        return Some(running.clone());
    }
    if new.address != running.address {
        said.push(format!(
            "listener {name}: address change needs an upgrade or a restart; it still listens on {}",
            running.address
        ));
        new.address = running.address;
    }
    Some(new)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::Protocol;
    use crate::config::{Surroundings, load_text};

    fn config(listeners: &[(&str, &str, &str)], more: &str) -> Config {
        let routes = "routes: [{ name: r, paths: [/a], methods: [GET], peers: any, upstream: u }]\n";
        config_with(listeners, &(routes.to_owned() + more))
    }

    fn config_with(listeners: &[(&str, &str, &str)], more: &str) -> Config {
        let tls = "tls: { certificates: [{ cert: a, key: b }], client_auth: { ca: c } }";
        let mut text = "listeners:\n".to_owned();
        for (name, address, protocol) in listeners {
            let tls = if *protocol == "https" { tls } else { "trusted_proxies: []" };
            text += &format!("  - {{ name: {name}, address: \"{address}\", protocol: {protocol}, {tls} }}\n");
        }
        text += "upstreams: [{ name: u, endpoints: [\"http://127.0.0.1:3000\"] }]\n";
        text += more;
        let around = Surroundings { read_files: false, ..Surroundings::of_system(&|_| None) };
        load_text(Path::new("gateway.yaml"), &text, &around).unwrap().config
    }

    fn held(old: &Config, new: &mut Config) -> Vec<String> {
        let first = old.listeners.iter().map(|l| (l.name.clone(), l.limits.request_header)).collect();
        hold_back(new, old, &first)
    }

    #[test]
    fn routes_follow_their_listeners_and_are_never_served_elsewhere() {
        let only = |name: &str, path: &str| {
            let route = format!(
                "{{ name: {name}-only, listeners: [{name}], paths: [{path}], methods: [GET], peers: any, upstream: u }}"
            );
            format!("routes: [{route}]\n")
        };
        let old = config(SAME, "");
        let served = |listeners: &[(&str, &str, &str)], name: &str| {
            let text = only(name, "/b");
            let mut new = config_with(listeners, &text);
            hold_back(&mut new, &old, &FirstHeaders::new());
            let RouteListeners::Of(indexes) = &new.routes[0].listeners else { panic!() };
            indexes.iter().map(|i| new.listeners[*i].name.to_string()).collect::<Vec<_>>()
        };
        let (a, b) = (SAME[0], SAME[1]);
        assert_eq!(served(&[b, a], "b"), ["b"]);
        assert_eq!(
            served(&[("new", "127.0.0.1:9", "http"), a, b], "b"),
            ["b"],
            "the place of a listener that is left out"
        );
        assert_eq!(served(&[("new", "127.0.0.1:9", "http"), a, b], "new"), [""; 0]);
        assert_eq!(served(&[a, ("c", "127.0.0.1:2", "http")], "c"), ["b"], "another name, the same socket");
        assert_eq!(served(&[a, ("b", "127.0.0.1:2", "https")], "b"), [""; 0], "still plain");
        let old_public = config(&[("b", "0.0.0.0:2", "http")], "");
        let mut new = config_with(&[b], &only("b", "/b"));
        hold_back(&mut new, &old_public, &FirstHeaders::new());
        assert_eq!(new.routes[0].listeners, RouteListeners::Of(vec![]), "meant for loopback, still public");
    }

    const SAME: &[(&str, &str, &str)] = &[("a", "127.0.0.1:1", "https"), ("b", "127.0.0.1:2", "http")];

    #[test]
    fn nothing_is_said_of_what_can_be_done() {
        let old = config(SAME, "");
        let mut new = config(SAME, "server: { drain: 5s, body_memory: 64MiB }\n");
        new.server.threads = old.server.threads;
        assert_eq!(held(&old, &mut new), Vec::<String>::new());
        assert_eq!(new.listeners.len(), 2);
    }

    #[test]
    fn sockets_stay_where_they_are() {
        let old = config(SAME, "");
        let mut new = config(&[("a", "127.0.0.1:7", "https"), ("c", "127.0.0.1:9", "http")], "");
        let said = held(&old, &mut new);
        assert!(said[0].starts_with("listener a: address change needs an upgrade or a restart"), "{said:?}");
        assert!(said[1].starts_with("listener c: a new listener needs an upgrade or a restart"), "{said:?}");
        assert!(said[2].starts_with("listener b: it is gone"), "{said:?}");
        assert_eq!((said.len(), new.listeners.len()), (3, 1));
        assert_eq!(new.listeners[0].address, old.listeners[0].address);
    }

    #[test]
    fn a_renamed_listener_keeps_its_socket_and_name() {
        let old = config(SAME, "");
        let mut new = config(&[("front", "127.0.0.1:1", "https"), SAME[1]], "");
        let said = held(&old, &mut new);
        assert!(
            said.len() == 1 && said[0].contains("change of name needs an upgrade or a restart; it is still a"),
            "{said:?}"
        );
        assert_eq!(new.listeners[0].name.as_str(), "a");
    }

    #[test]
    fn no_listener_turns_plain() {
        let old = config(SAME, "");
        let mut new = config(&[("a", "127.0.0.1:1", "http"), SAME[1]], "");
        let said = held(&old, &mut new);
        assert!(said.len() == 1 && said[0].contains("change of protocol needs an upgrade or a restart"), "{said:?}");
        assert!(new.listeners[0].protocol == Protocol::Https && new.listeners[0].tls.is_some());
    }

    #[test]
    fn no_listener_on_a_public_address_stops_asking_for_certificates() {
        let text = |address: &str, auth: &str| {
            format!(
                "listeners:\n  - {{ name: a, address: \"{address}\", tls: {{ certificates: [{{ cert: a, key: b }}], \
                 client_auth: {auth} }} }}\nroutes: [{{ name: r, listeners: [a], paths: [/a], methods: [GET], peers: any, \
                 upstream: u }}]\nupstreams: [{{ name: u, endpoints: [\"http://127.0.0.1:3000\"] }}]\n"
            )
        };
        let load = |address: &str, auth: &str| {
            let around = Surroundings { read_files: false, ..Surroundings::of_system(&|_| None) };
            load_text(Path::new("gateway.yaml"), &text(address, auth), &around).unwrap().config
        };
        let (asked, open) = ("{ ca: c }", "{ mode: none }");
        let old = load("0.0.0.0:1", asked);
        let mut new = load("127.0.0.1:1", open);
        let said = held(&old, &mut new);
        assert!(said.len() == 1 && said[0].contains("without client certificates at another address"), "{said:?}");
        assert!(asks(&new.listeners[0]) && new.listeners[0].address == old.listeners[0].address);
        assert_eq!(new.routes[0].listeners, RouteListeners::Of(vec![]), "meant for the private address only");
        // On one address it goes both ways.
        for (from, to) in [(asked, open), (open, asked)] {
            let mut new = load("127.0.0.1:1", to);
            assert!(held(&load("127.0.0.1:1", from), &mut new).is_empty());
            assert_eq!(
                (asks(&new.listeners[0]), &new.routes[0].listeners),
                (to == asked, &RouteListeners::Of(vec![0]))
            );
        }
    }

    #[test]
    fn a_public_admin_listener_keeps_its_secret() {
        let secret = "admin: { address: \"0.0.0.0:9901\", bearer_secret: 0123456789abcdef }\nserver: { threads: 2 }\n";
        let old = config(SAME, secret);
        let mut new = config(SAME, "server: { threads: 3, rate_limit_keys: 5000 }\n");
        let said = held(&old, &mut new);
        assert_eq!((said.len(), new.admin.address, new.server.threads), (3, old.admin.address, 2), "{said:?}");
        assert_eq!(new.server.rate_limit_keys, 100_000);
        assert_eq!(new.admin.bearer.as_ref().unwrap().expose(), "0123456789abcdef");
    }

    #[test]
    fn much_longer_headers_are_refused_by_http_2_until_a_restart() {
        let old = config(SAME, "");
        let mut new = config(SAME, "");
        new.listeners[0].limits.request_header = Size(64 << 10);
        assert!(held(&old, &mut new).is_empty());
        new.listeners[0].limits.request_header = Size(65 << 10);
        assert!(held(&old, &mut new)[0].contains("request_header 65KiB needs an upgrade or a restart for HTTP/2"));
    }
}
