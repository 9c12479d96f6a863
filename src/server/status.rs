//! What the admin listener is told of the running gateway.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::maintenance;
use super::notify::Liveness;
use super::spiffe::Agent;
use super::targets;
use crate::admin::status::{
    AuthoritiesStatus, BreakerStatus, CertificateStatus, ConfigStatus, CrlSourceStatus, CrlStatus, DiscoveryStatus,
    ListenerStatus, NodeStatus, ReloadError, ReloadStatus, RouteStatus, SpiffeStatus, StapleStatus, Status,
    UpstreamStatus,
};
use crate::admin::status_traffic::{FailedHandshakeStatus, PeerStatus, RefusalsStatus, TrafficStatus};
use crate::admin::{AdminState, Readiness, Reloaded};
use crate::config::{self, Config, RoutePeers};
use crate::observe::process_log;
use crate::policy::maintenance::Orders;
use crate::proxy::Shared;
use crate::proxy::maintenance::Unreadable;
use crate::reload::{self, Reloader, Report, Trigger};
use crate::snapshot::{ListenerSnapshot, Snapshot, UpstreamSnapshot};
use crate::tls::{CertificateFacts, CrlFacts, Staple};

/// The closures through which the admin listener sees the gateway.
pub fn admin_state(shared: &Arc<Shared>, reloader: &Arc<Reloader>, agent: Option<Arc<Agent>>) -> AdminState {
    let started = shared.clock.now();
    let (for_ready, for_status, for_bearer) = (shared.clone(), shared.clone(), shared.clone());
    let (agent_for_ready, for_orders) = (agent.clone(), shared.clone());
    let (reloads, for_reload) = (reloader.clone(), reloader.clone());
    let (liveness, for_alive) = (Liveness::of_this_process(), shared.clone());
    AdminState {
        metrics: shared.metrics.clone(),
        alive: Box::new(move || liveness.get_on(&for_alive)),
        ready: Box::new(move || readiness(&for_ready, agent_for_ready.as_deref(), started)),
        status: Box::new(move || status(&for_status, &reloads, agent.as_deref(), started).to_json()),
        reload: Box::new(move || {
            let report = for_reload.reload(Trigger::Admin);
            reloaded(&report, &for_reload.needs_restart())
        }),
        carry_out: Box::new(move |command| maintenance::carry_out(&for_orders, command)),
        log_filter: Box::new(|wanted| {
            wanted.map_or(Ok(()), process_log::set)?;
            Ok(process_log::current())
        }),
        bearer: Box::new(move || for_bearer.snapshot().config.admin.bearer.clone()),
        loopback: shared.snapshot().config.admin.address.ip().is_loopback(),
    }
}

/// The answer to `POST /v1/reload`.
fn reloaded(report: &Report, needs_upgrade: &[String]) -> Reloaded {
    let mut body = json!({ "generation": report.generation, "hash": report.hash });
    if report.ok() {
        body["warnings"] = json!(report.warnings);
        body["needs_upgrade"] = json!(needs_upgrade);
    } else {
        body["error"] = json!("config_invalid");
        body["message"] = json!("The new configuration is wrong; the old one stays in use.");
        body["errors"] = json!(errors(report));
    }
    Reloaded { ok: report.ok(), body }
}

fn errors(report: &Report) -> Vec<ReloadError> {
    let each = report.errors.iter().map(|e| ReloadError {
        file: e.file.display().to_string(),
        line: e.place.map(|p| p.line),
        column: e.place.map(|p| p.column),
        path: e.path.clone(),
        message: e.message.clone(),
    });
    each.collect()
}

fn last_reload(report: &Report) -> ReloadStatus {
    ReloadStatus {
        time: unix_seconds(report.time),
        trigger: report.trigger.as_str(),
        result: if report.ok() { "ok" } else { "failed" },
        errors: errors(report),
        warnings: report.warnings.clone(),
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// So long after the start the gateway waits to be ready for the first revocation lists, whose clients it would refuse;
/// then it goes without them, for there may be other clients.
const FIRST_LISTS_WAIT: Duration = Duration::from_secs(30);

fn readiness(shared: &Shared, agent: Option<&Agent>, started: Instant) -> Readiness {
    let snapshot = shared.snapshot();
    let waits = shared.clock.now().saturating_duration_since(started) < FIRST_LISTS_WAIT;
    let lists = snapshot.listeners.iter().filter_map(|l| l.tls.as_ref()?.revocation()).filter(|_| waits);
    let awaited = lists.flat_map(|r| r.urls().iter().filter(|url| !r.has(url)).map(|url| url.as_str().to_owned()));
    let waiting_for_svid = snapshot.waiting();
    let why = || agent.and_then(|agent| agent.state().error).unwrap_or_else(|| "it has not answered yet".to_owned());
    let spiffe = (!waiting_for_svid.is_empty()).then(why);
    let (drained, down): (Vec<_>, Vec<_>) =
        snapshot.upstreams.iter().filter(|u| !u.upstream.is_ready()).partition(|u| u.upstream.is_drained());
    let name = |u: &&Arc<UpstreamSnapshot>| u.upstream.name().as_str().to_owned();
    let without_nodes = down.iter().filter_map(|u| {
        let name = u.upstream.name();
        u.upstream.why_empty().map(|why| format!("{name}: {why}"))
    });
    // Who reaches a process that has handed over asked in the moment when it did; the gateway is as ready as before.
    let handed_over = || *shared.maintenance.handed_over.lock();
    Readiness {
        draining: shared.leaving() && !handed_over(),
        crls_awaited: awaited.collect(),
        without_nodes: without_nodes.collect(),
        upstreams_down: down.iter().map(name).collect(),
        upstreams_drained: drained.iter().map(name).collect(),
        waiting_for_svid,
        spiffe,
        fleet_orders_awaited: shared.maintenance.awaits_fleet(),
    }
}

fn status(shared: &Shared, reloader: &Reloader, agent: Option<&Agent>, started: Instant) -> Status {
    let snapshot = shared.snapshot();
    let (config, orders) = (&snapshot.config, shared.maintenance.orders());
    let now = shared.clock.unix_seconds();
    let history = shared.history.lock();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: shared.clock.now().saturating_duration_since(started).as_secs(),
        time: now,
        ready: readiness(shared, agent, started).is_ready(),
        draining: shared.leaving(),
        overdue: reload::overdue(&snapshot, now),
        config: ConfigStatus {
            path: config.source.display().to_string(),
            hash: config.hash.clone(),
            generation: snapshot.generation,
        },
        last_reload: reloader.last().as_ref().map(last_reload),
        needs_upgrade: reloader.needs_restart(),
        needs_restart: reloader.needs_restart(),
        spiffe: agent.map(|agent| spiffe(agent, &snapshot)),
        listeners: config.listeners.iter().zip(&snapshot.listeners).map(|(c, l)| listener(shared, c, l)).collect(),
        routes: config.routes.iter().map(|r| route(config, r, &orders)).collect(),
        upstreams: config.upstreams.iter().zip(&snapshot.upstreams).map(|(c, u)| upstream(c, u, now)).collect(),
        orders: targets::shown(&snapshot, &orders),
        orders_unreadable: {
            let Unreadable { own, fleet } = shared.maintenance.unreadable();
            [own, fleet].concat()
        },
        orders_can_persist: config.server.state_dir.is_some(),
        orders_reach_fleet: config.maintenance.fleet,
        traffic: TrafficStatus::of(&history),
        peers: PeerStatus::of(&history),
        refusals: RefusalsStatus::of(&history, shared.recent.refusals.all()),
        failed_handshakes: FailedHandshakeStatus::of(shared.recent.handshakes.all()),
    }
}

fn spiffe(agent: &Agent, snapshot: &Snapshot) -> SpiffeStatus {
    let state = agent.state();
    let issued = snapshot.issued.iter();
    SpiffeStatus {
        workload_api: agent.endpoint.to_string(),
        connected: state.connected,
        error: state.error,
        svids: issued.clone().flat_map(|issued| issued.ids()).map(str::to_owned).collect(),
        federated_trust_domains: issued.flat_map(|issued| issued.federated()).map(str::to_owned).collect(),
        waiting: snapshot.waiting(),
    }
}

fn listener(shared: &Shared, config: &config::Listener, built: &ListenerSnapshot) -> ListenerStatus {
    let now = shared.clock.unix_seconds();
    let certificates = built.tls.iter().flat_map(|tls| {
        let each = tls.certificates().iter().zip(tls.staples());
        each.map(|(facts, own)| CertificateStatus {
            ocsp: own.as_ref().map(|s| staple(s, now)),
            ..certificate(facts, now)
        })
    });
    let crls = built.tls.iter().filter_map(|tls| tls.revocation()).flat_map(|r| r.facts());
    let sources = built.tls.iter().filter_map(|tls| tls.revocation()).flat_map(|r| r.source_facts());
    ListenerStatus {
        name: config.name.as_str().to_owned(),
        address: config.address.to_string(),
        protocol: match config.protocol {
            config::file::Protocol::Https => "https",
            config::file::Protocol::Http => "http",
        },
        connections: shared.metrics.listener(config.name.as_str()).open_connections(),
        certificates: certificates.collect(),
        client_ca: config
            .tls
            .as_ref()
            .zip(built.tls.as_ref())
            .filter(|(tls, _)| tls.client_auth.asks())
            .map(|(tls, built)| authorities(tls.client_auth.ca.as_deref(), built.authorities(), now)),
        crls: crls.map(|f| crl(&f, now)).collect(),
        crl_sources: sources.map(|(url, fetched)| CrlSourceStatus { url, fetched }).collect(),
    }
}

fn crl(facts: &CrlFacts, now: i64) -> CrlStatus {
    CrlStatus {
        issuer: facts.issuer.clone(),
        this_update: facts.this_update,
        next_update: Some(facts.next_update).filter(|at| *at != i64::MAX),
        expired: now > facts.next_update,
        entries: facts.entries,
        memory_bytes: facts.memory_bytes,
        file_is_older: facts.file_is_older,
    }
}

/// CAs of one listener or upstream that are told of.
const AUTHORITIES_MAX: usize = 50;

fn authorities(file: Option<&str>, all: &[CertificateFacts], now: i64) -> AuthoritiesStatus {
    let mut first: Vec<_> = all.iter().collect();
    first.sort_by_key(|facts| facts.not_after);
    AuthoritiesStatus {
        source: file.unwrap_or("spiffe").to_owned(),
        certificates: first.into_iter().take(AUTHORITIES_MAX).map(|facts| certificate(facts, now)).collect(),
        omitted: all.len().saturating_sub(AUTHORITIES_MAX),
    }
}

fn certificate(facts: &CertificateFacts, now: i64) -> CertificateStatus {
    CertificateStatus {
        subject: facts.subject.clone(),
        serial: facts.serial.clone(),
        names: facts.names.clone(),
        not_after: facts.not_after,
        days_left: facts.not_after.saturating_sub(now).div_euclid(24 * 3600),
        not_before: facts.not_before,
        ocsp: None,
    }
}

fn staple(staple: &Staple, now: i64) -> StapleStatus {
    let last = staple.last().filter(|last| now < last.until());
    let status = last.as_ref().map_or("unknown", |last| if last.is_revoked() { "revoked" } else { "good" });
    StapleStatus { responder: staple.responder().to_owned(), status, next_update: last.map(|last| last.until()) }
}

fn route(config: &Config, route: &config::Route, orders: &Orders) -> RouteStatus {
    let upstream = config.upstreams.get(route.upstream);
    RouteStatus {
        name: route.name.as_str().to_owned(),
        hosts: route.hosts.clone(),
        paths: route.paths.clone(),
        methods: route.methods.clone(),
        peers: match &route.peers {
            RoutePeers::Any => vec!["any".to_owned()],
            RoutePeers::Of(indexes) => {
                let names = indexes.iter().filter_map(|i| config.peers.get(*i));
                names.map(|p| p.name.as_str().to_owned()).collect()
            }
        },
        upstream: upstream.map(|u| u.name.as_str().to_owned()).unwrap_or_default(),
        maintenance: orders.of_route(route.name.as_str()).is_some(),
    }
}

fn upstream(config: &config::Upstream, built: &UpstreamSnapshot, now: i64) -> UpstreamStatus {
    let nodes = built.upstream.status().into_iter().map(|n| NodeStatus {
        url: n.url.to_string(),
        address: n.address.to_string(),
        health: n.health.as_str(),
        outlier: n.standing.as_str(),
        drained: n.drained,
        weight: n.weight,
        priority: n.priority,
        in_flight: n.in_flight,
        requests: n.requests,
        connect_failures: n.connect_failures,
        last_change: n.last_change.map(unix_seconds),
        last_error: n.last_error,
    });
    let breaker = built.upstream.breaker();
    let lists = built.tls.as_ref().and_then(|tls| tls.revocation.as_ref());
    UpstreamStatus {
        name: built.upstream.name().as_str().to_owned(),
        ready: built.upstream.is_ready(),
        panic: built.upstream.is_in_panic(),
        circuit_breaker: BreakerStatus {
            requests: breaker.requests,
            max_requests: breaker.limits.max_requests,
            max_connections: breaker.limits.connections.map(|c| c.max),
            pending: breaker.pending,
            max_pending: breaker.limits.connections.map(|c| c.max_pending),
            retries: breaker.retries,
        },
        discovery: built.upstream.discovery().map(|d| DiscoveryStatus {
            kind: d.kind,
            subject: d.subject,
            last_success: d.last_success.map(unix_seconds),
            error: d.error,
        }),
        certificate: built.tls.as_ref().and_then(|tls| tls.certificate.as_ref()).map(|c| certificate(c, now)),
        ca: config
            .tls
            .as_ref()
            .zip(built.tls.as_ref())
            .map(|(c, tls)| authorities(c.ca.as_deref(), &tls.authorities, now)),
        crls: lists.iter().flat_map(|lists| lists.facts()).map(|f| crl(&f, now)).collect(),
        nodes: nodes.collect(),
    }
}
