//! The steps, in the gateway's order. Each says what it finds, with the key of the configuration that decides it.

use std::net::SocketAddr;

use http::header::HOST;

use super::Stop;
use super::way::{Counted, Way};
use crate::config::file::{Batch, Notifications};
use crate::config::{RoutePeers, RouteWaf};
use crate::headers;
use crate::policy::json_rpc::check_media_type;
use crate::policy::rules::{self, Rules};
use crate::policy::waf::{self, Mode};
use crate::proxy::{check, told};
use crate::refusal::Refusal;
use crate::request;
use crate::route::PathPattern;

/// One step: what it is called, and what it does. It ends the way by a refusal.
pub type Step = (&'static str, fn(&mut Way<'_>) -> Result<(), Stop>);

/// All steps, in the order of `proxy::admit`.
pub const STEPS: &[Step] = &[
    ("listener", listener),
    ("certificate", certificate),
    ("form", form),
    ("client address", address),
    ("host", host),
    ("address lists", address_lists),
    ("route", route),
    ("listener limits", listener_limits),
    ("listener rules", listener_rules),
    ("peer policy", peer_policy),
    ("method", method),
    ("route limits", route_limits),
    ("route rules", route_rules),
    ("federation", federation),
    ("issuer limits", issuer_limits),
    ("content type", content_type),
    ("body", body),
    ("JSON-RPC", json_rpc),
    ("call limits", call_limits),
    ("firewall", waf),
    ("upstream", upstream),
    ("removed", removed),
    ("set", set),
];

fn listener(way: &mut Way<'_>) -> Result<(), Stop> {
    let listener = &way.snapshot.config.listeners[way.asked.listener];
    let protocol = if listener.tls.is_some() { "https" } else { "http, plain text" };
    way.say(format!("{} on {}, {protocol}", listener.name, listener.address), way.listener_key("address"));
    if listener.tls.is_some() != way.asked.tls {
        return Err(Stop::NoConnection("the URL's scheme is not what the listener speaks"));
    }
    Ok(())
}

fn certificate(way: &mut Way<'_>) -> Result<(), Stop> {
    if !way.asked.tls {
        way.note("none: the listener is plain text");
        return Ok(());
    }
    let Some(identity) = &way.asked.identity else {
        way.say("none", way.listener_key("tls.client_auth"));
        return Err(Stop::NoConnection("the TLS handshake asks for a client certificate (--peer says whose)"));
    };
    way.peer = way.asked.named.clone().or_else(|| way.snapshot.peers.find(identity).cloned());
    let name = identity.uris.first().or(identity.dns.first()).map_or("its fingerprint", String::as_str);
    match way.peer.clone() {
        Some(peer) => {
            let at = format!("peers[{}]", peer.index);
            way.say(format!("peer {}, by {name}; taken to be valid", peer.name), at);
        }
        None => way.say(format!("of no peer: {name}; taken to be valid"), "peers"),
    }
    Ok(())
}

fn form(way: &mut Way<'_>) -> Result<(), Stop> {
    let head = way.asked.head();
    let size = head.raw.map_or(0, <[u8]>::len);
    let most = way.listener().deadlines.header_bytes;
    way.say(format!("a header of {size} bytes, {most} are allowed"), way.listener_key("limits.request_header"));
    way.form = Some(check::form(&head, size, most)?);
    Ok(())
}

fn address(way: &mut Way<'_>) -> Result<(), Stop> {
    let client = request::client_address(way.asked.remote, &way.asked.headers, &way.listener().trusted);
    let from = match client.proxies.is_empty() {
        true => "the connection's own".to_owned(),
        false => format!("from X-Forwarded-For, by trusted {}", way.asked.remote),
    };
    way.say(format!("{}, {from}", client.address), way.listener_key("trusted_proxies"));
    way.client = Some(client);
    Ok(())
}

fn host(way: &mut Way<'_>) -> Result<(), Stop> {
    let host = way.form.as_ref().map(|form| form.host.clone()).unwrap_or_default();
    let Some(context) = &way.listener().tls else {
        way.note(format!("{host}; there is no certificate to agree with"));
        return Ok(());
    };
    if context.is_waiting() {
        way.say(format!("{host}; the SPIFFE agent issues no certificate here to agree with"), way.listener_key("tls"));
        return Ok(());
    }
    let sni = way.asked.sni.as_deref();
    let asked = sni.map_or_else(|| "no name".to_owned(), |sni| format!("SNI {sni}"));
    way.say(format!("{host}; {asked}; must agree and be in a certificate"), way.listener_key("tls.certificates"));
    Ok(check::host(&host, sni, context)?)
}

fn address_lists(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(list) = &way.listener().addresses else { return Ok(()) };
    let remote = way.asked.remote.to_canonical();
    let inline = way.listener_key("deny");
    let at = if way.located.has(&inline) { inline } else { way.listener_key("deny_file") };
    way.say(format!("{} kept out, {} excepted", list.deny.len(), list.allow.len()), at);
    let client = way.client.as_ref().map(|client| client.address);
    match check::address(Some(list), remote, client) {
        Err(Refusal::AddressDenied { of_connection: true }) => {
            Err(Stop::NoConnection("the address is on the listener's list (403 on a connection that is there already)"))
        }
        checked => Ok(checked?),
    }
}

fn route(way: &mut Way<'_>) -> Result<(), Stop> {
    let head = way.asked.head();
    let host = way.form.as_ref().map(|form| form.host.clone()).unwrap_or_default();
    let routes = &way.listener().routes;
    let path = check::path_of(head.target);
    let (published, routed) = check::route(routes, &host, path, head.method, way.peer.as_deref());
    (way.published, way.routed, way.sought) = (published, routed, true);
    let name = way.route().map(|route| &route.name);
    match way.snapshot.config.routes.iter().find(|route| Some(&route.name) == name) {
        Some(route) => {
            let fits = |text: &String| PathPattern::parse(text).is_ok_and(|pattern| pattern.matches(path));
            let longest = route.paths.iter().enumerate().filter(|(_, p)| fits(p)).max_by_key(|(_, p)| p.len());
            let hosts = if route.hosts.is_empty() { "any host".to_owned() } else { route.hosts.join(", ") };
            if let Some((i, pattern)) = longest {
                way.say(format!("{}: {pattern} of {hosts}", route.name), way.route_key(&format!("paths[{i}]")));
            }
            if way.route().is_some_and(|route| route.critical) {
                way.say("critical: shed after all others when the gateway is behind", way.route_key("priority"));
            }
        }
        None => way.say("none: no route of this listener has this host and path", "routes"),
    }
    Ok(())
}

fn listener_limits(way: &mut Way<'_>) -> Result<(), Stop> {
    let limits = &way.listener().rate_limits.by_request;
    way.limits(limits, None, Counted::ONE)
}

fn listener_rules(way: &mut Way<'_>) -> Result<(), Stop> {
    let (rules, at) = (&way.listener().rules, way.listener_key("request_rules"));
    request_rules(way, rules, at)
}

fn route_rules(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    let at = way.route_key("request_rules");
    request_rules(way, &route.rules, at)
}

fn request_rules(way: &mut Way<'_>, rules: &Rules, at: String) -> Result<(), Stop> {
    if rules.is_empty() {
        return Ok(());
    }
    let head = way.asked.head();
    let facts = rules::Facts { target: check::origin_form(head.target), headers: head.headers };
    let mut met = Vec::new();
    let checked = rules.check(&facts, |name| met.push(name.to_owned()));
    let said = if met.is_empty() { "none is met".to_owned() } else { format!("met: {}", met.join(", ")) };
    way.say(said, at);
    Ok(checked?)
}

fn peer_policy(way: &mut Way<'_>) -> Result<(), Stop> {
    let name = way.route().map(|route| &route.name);
    let config = way.snapshot.config.routes.iter().find(|r| Some(&r.name) == name);
    match config.map(|route| &route.peers) {
        Some(RoutePeers::Any) => way.say("any valid certificate may call", way.route_key("peers")),
        Some(RoutePeers::Of(indexes)) => {
            let names: Vec<_> = indexes.iter().map(|i| way.snapshot.config.peers[*i].name.as_str()).take(10).collect();
            let more = if indexes.len() > 10 { format!(" and {} more", indexes.len() - 10) } else { String::new() };
            way.say(format!("{}{more} may call", names.join(", ")), way.route_key("peers"));
        }
        None => {}
    }
    if let Err(Refusal::MethodNotAllowed { allow }) = &way.routed {
        let said = format!("the path has other methods: {allow}");
        way.say(said, way.route_key("methods"));
    }
    Ok(std::mem::replace(&mut way.routed, Ok(()))?)
}

fn method(way: &mut Way<'_>) -> Result<(), Stop> {
    let head = way.asked.head();
    way.say(head.method.as_str(), way.route_key("methods"));
    Ok(check::no_body(head.method, way.asked.has_body())?)
}

fn route_limits(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    way.limits(&route.rate_limits.by_request, None, Counted::ONE)
}

fn federation(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    if !way.snapshot.federation.is_active() {
        way.say("tokens pass unread", "hive.federation");
        return Ok(());
    }
    let has = headers::federation_jwt(&way.asked.headers).is_some();
    let said = match (route.upstream.trusted, has) {
        (false, _) => "not for this upstream: tokens are its own to check",
        (true, true) => "a token, which is checked",
        (true, false) => "no token: Hive knows whether it needs one",
    };
    way.say(said, "hive.federation");
    let (issuer, verdict) = check::federation(way.snapshot, route, &way.asked.headers, way.peer.as_deref(), &way.clock);
    if let Some(issuer) = &issuer {
        way.note(format!("issuer {issuer}"));
    }
    way.issuer = issuer;
    Ok(verdict?)
}

fn issuer_limits(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    let listener = way.listener();
    way.limits(&listener.rate_limits.by_issuer, None, Counted::ONE)?;
    way.limits(&route.rate_limits.by_issuer, None, Counted::ONE)
}

fn content_type(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(_) = way.route().filter(|route| route.json_rpc.is_some()) else { return Ok(()) };
    if way.asked.body.is_none() && !way.asked.headers.contains_key(headers::CONTENT_TYPE) {
        way.say("must be application/json, without a content coding", way.route_key("json_rpc"));
        return Ok(());
    }
    let said =
        way.asked.headers.get(headers::CONTENT_TYPE).map_or("none".into(), |v| String::from_utf8_lossy(v.as_bytes()));
    way.say(said, way.route_key("json_rpc"));
    Ok(check_media_type(&way.asked.headers)?)
}

fn body(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    let limit = check::body_limit(way.listener(), route);
    let own = matches!(route.waf, RouteWaf::Own(_));
    let at = match limit < route.body_limit {
        false => way.route_key("body.limit"),
        true if own => way.route_key("waf"),
        true => way.listener_key("waf"),
    };
    let asked = way.asked;
    let (shown, then) = way.body_said();
    way.say(format!("{shown}, {limit} are allowed{then}"), at);
    let (listener, headers) = (way.listener(), asked.head().headers);
    if asked.has_body() {
        check::coding(listener, route, headers)?;
    }
    if asked.announced.is_some_and(|length| length > limit) {
        return Err(Refusal::BodyTooLarge.into());
    }
    if asked.has_body() || way.body_unknown() {
        check::expectation(headers)?;
    }
    let Some(body) = &asked.body else { return Ok(()) };
    if body.len() as u64 > limit {
        return Err(Refusal::BodyTooLarge.into());
    }
    if asked.announced.is_some_and(|length| length > body.len() as u64) {
        return Err(Refusal::BodyTimeout.into());
    }
    if body.is_empty() { Ok(()) } else { Ok(check::coding_of_parts(listener, route, headers, body)?) }
}

fn json_rpc(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(policy) = way.route().and_then(|route| route.json_rpc.as_ref()) else { return Ok(()) };
    let name = way.route().map(|route| &route.name);
    let config = way.snapshot.config.routes.iter().find(|r| Some(&r.name) == name).and_then(|r| r.json_rpc.as_ref());
    if let Some(config) = config {
        let methods = config.methods.as_ref().map_or("every method".into(), |methods| methods.join(" "));
        way.say(format!("methods: {methods}"), way.route_key("json_rpc.methods"));
        if let Batch::UpTo(calls) = config.batch {
            way.say(format!("batches of up to {calls} calls"), way.route_key("json_rpc.batch"));
        }
        if config.notifications == Notifications::Reject {
            way.say("no notifications", way.route_key("json_rpc.notifications"));
        }
        for (i, schema) in config.schemas.iter().enumerate() {
            let at = way.route_key(&format!("json_rpc.schemas[{i}]"));
            way.say(format!("schema for {}: {}", schema.method, schema.file), at);
        }
    }
    let Some(body) = &way.asked.body else { return Ok(()) };
    let mut methods: Vec<String> = Vec::new();
    let mut first = None;
    match policy.check(body, |call| {
        first.get_or_insert(call.id);
        methods.push(call.method.decode().into_owned());
    }) {
        Ok(checked) => {
            // What is refused of a batch whose calls are each allowed is the batch, and that has no id.
            way.id = first.flatten().filter(|_| !checked.is_batch);
            let kind = if checked.is_batch { "a batch of " } else { "" };
            methods.sort_unstable();
            way.note(format!("{kind}{} passes: {}", many(checked.calls), methods.join(" ")));
            for same in methods.chunk_by(|a, b| a == b) {
                way.calls.push((same[0].clone(), u32::try_from(same.len()).unwrap_or(u32::MAX)));
            }
            Ok(())
        }
        Err(denied) => {
            way.id = denied.id;
            if let Some(method) = denied.method {
                way.note(format!("refused is the call of {:?}", &*method.decode()));
            }
            Err(denied.refusal.into())
        }
    }
}

fn many(calls: u32) -> String {
    format!("{calls} call{}", if calls == 1 { "" } else { "s" })
}

fn call_limits(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    let listener = &way.listener().rate_limits;
    let all = way.calls.iter().map(|(_, calls)| *calls).sum::<u32>();
    if all > 1 {
        // The first was counted before the body was read.
        for limits in listener.by_body().into_iter().chain(route.rate_limits.by_body()) {
            way.limits(limits, None, Counted { now: all - 1, whole: all })?;
        }
    }
    for (method, calls) in way.calls.clone() {
        for limits in [&listener.by_call, &route.rate_limits.by_call] {
            way.limits(limits, Some(&method), Counted { now: calls, whole: calls })?;
        }
    }
    Ok(())
}

/// The web application firewall runs here as it does in the gateway.
fn waf(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    let Some(waf) = route.waf.or(way.listener().waf.as_ref()) else { return Ok(()) };
    let own = matches!(route.waf, RouteWaf::Own(_));
    let at = if own { way.route_key("waf") } else { way.listener_key("waf") };
    let mode = if waf.mode() == Mode::Blocking { "blocking" } else { "detection only" };
    let head = way.asked.head();
    let client = way.client.as_ref().map_or(way.asked.remote, |client| client.address);
    let request = waf::Request {
        client: SocketAddr::new(client, 0),
        certificate: None,
        method: head.method.clone(),
        target: check::origin_form(head.target).to_vec(),
        http2: false,
        host: String::new(),
        headers: head.headers.clone(),
        body: way.asked.body.clone().unwrap_or_default().into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Err(Refusal::Internal.into()) };
    let judgement = runtime.block_on(waf.judge(request));
    way.say(format!("{}, score {}, {mode}", judgement.verdict.as_str(), judgement.score), at);
    for found in &judgement.matches {
        way.note(format!("rule {}: {}", found.rule, String::from_utf8_lossy(&found.message).escape_debug()));
    }
    Ok(check::waf(judgement.verdict, waf.mode())?)
}

fn upstream(way: &mut Way<'_>) -> Result<(), Stop> {
    let Some(route) = way.route() else { return Ok(()) };
    let upstream = &route.upstream.upstream;
    way.say(format!("{}, one of", upstream.name()), way.route_key("upstream"));
    if let Some(path) = &route.replace_full_path {
        way.say(format!("asked for {}", String::from_utf8_lossy(path)), way.route_key("replace_full_path"));
    }
    let index = way.snapshot.config.upstreams.iter().position(|u| u.name == *upstream.name()).unwrap_or(0);
    if let Some(discovery) = upstream.discovery() {
        let said = format!("  the nodes that {} {} names, which is not asked here", discovery.kind, discovery.subject);
        way.say(said, format!("upstreams[{index}].discovery.{}", discovery.kind));
    }
    for (i, node) in upstream.nodes().iter().enumerate() {
        way.say(format!("  {} ({})", node.url(), node.address()), format!("upstreams[{index}].endpoints[{i}]"));
    }
    Ok(())
}

fn removed(way: &mut Way<'_>) -> Result<(), Stop> {
    let names = way.snapshot.spoofable.to_remove(&way.asked.headers);
    let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
    if !names.is_empty() {
        way.note(names.join(", "));
    }
    Ok(())
}

fn set(way: &mut Way<'_>) -> Result<(), Stop> {
    let (Some(route), Some(client)) = (way.route(), way.client.clone()) else { return Ok(()) };
    if !route.upstream.trusted {
        way.note("nothing of the client: the upstream is not trusted");
        return Ok(());
    }
    let client = told::Client {
        address: &client,
        identity: way.asked.identity.as_ref(),
        https: way.asked.tls,
        host: way.asked.headers.get(HOST).map(|host| host.as_bytes()),
    };
    let mut said = Vec::new();
    client.tell(way.snapshot, &mut |name, value| {
        let proof = *name == way.snapshot.product.gateway_auth;
        let shown = if proof { "Bearer ...".into() } else { String::from_utf8_lossy(value) };
        let identity = [headers::X_FORWARDED_CLIENT_CERT, headers::CLIENT_CERT].contains(name);
        let at = proof.then_some("hive").or(identity.then_some("identity_headers"));
        said.push((format!("{name}: {shown}"), at.filter(|key| way.located.has(key)).map(str::to_owned)));
    });
    way.said.extend(said);
    Ok(())
}
