//! What the admin listener is told of the running gateway.

use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use crate::admin::status::{
    CertificateStatus, ConfigStatus, CrlStatus, ListenerStatus, NodeStatus, RouteStatus, Status, UpstreamStatus,
};
use crate::admin::{AdminState, Readiness};
use crate::config::{self, Config, RoutePeers};
use crate::proxy::Shared;
use crate::snapshot::{ListenerSnapshot, UpstreamSnapshot};
use crate::tls::CrlFacts;

/// The closures through which the admin listener sees the gateway.
pub fn admin_state(shared: &Arc<Shared>) -> AdminState {
    let started = shared.clock.now();
    let (for_ready, for_status) = (shared.clone(), shared.clone());
    AdminState {
        metrics: shared.metrics.clone(),
        ready: Box::new(move || readiness(&for_ready)),
        status: Box::new(move || status(&for_status, started).to_json()),
    }
}

fn readiness(shared: &Shared) -> Readiness {
    let snapshot = shared.snapshot();
    let down = snapshot.upstreams.iter().filter(|u| !u.upstream.is_ready());
    Readiness {
        draining: shared.draining(),
        upstreams_down: down.map(|u| u.upstream.name().as_str().to_owned()).collect(),
    }
}

fn status(shared: &Shared, started: Instant) -> Status {
    let snapshot = shared.snapshot();
    let config = &snapshot.config;
    Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: shared.clock.now().saturating_duration_since(started).as_secs(),
        draining: shared.draining(),
        config: ConfigStatus {
            path: config.source.display().to_string(),
            hash: config.hash.clone(),
            generation: snapshot.generation,
        },
        listeners: config.listeners.iter().zip(&snapshot.listeners).map(|(c, l)| listener(shared, c, l)).collect(),
        routes: config.routes.iter().map(|r| route(config, r)).collect(),
        upstreams: snapshot.upstreams.iter().map(|u| upstream(u)).collect(),
    }
}

fn listener(shared: &Shared, config: &config::Listener, built: &ListenerSnapshot) -> ListenerStatus {
    let certificates = built.tls.iter().flat_map(|tls| tls.certificates());
    let crls = built.tls.iter().filter_map(|tls| tls.revocation()).flat_map(|r| r.facts());
    ListenerStatus {
        name: config.name.as_str().to_owned(),
        address: config.address.to_string(),
        protocol: match config.protocol {
            config::file::Protocol::Https => "https",
            config::file::Protocol::Http => "http",
        },
        connections: shared.metrics.listener(config.name.as_str()).open_connections(),
        certificates: certificates
            .map(|c| CertificateStatus { subject: c.subject.clone(), names: c.names.clone(), not_after: c.not_after })
            .collect(),
        crls: crls.map(|f| crl(&f)).collect(),
    }
}

fn crl(facts: &CrlFacts) -> CrlStatus {
    CrlStatus {
        issuer: facts.issuer.clone(),
        this_update: facts.this_update,
        next_update: Some(facts.next_update).filter(|at| *at != i64::MAX),
        entries: facts.entries,
        memory_bytes: facts.memory_bytes,
    }
}

fn route(config: &Config, route: &config::Route) -> RouteStatus {
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
    }
}

fn upstream(built: &UpstreamSnapshot) -> UpstreamStatus {
    let nodes = built.upstream.status().into_iter().map(|n| NodeStatus {
        url: n.url.to_string(),
        address: n.address.to_string(),
        health: n.health.as_str(),
        weight: n.weight,
        in_flight: n.in_flight,
        requests: n.requests,
        connect_failures: n.connect_failures,
        last_change: n
            .last_change
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
        last_error: n.last_error,
    });
    UpstreamStatus {
        name: built.upstream.name().as_str().to_owned(),
        ready: built.upstream.is_ready(),
        nodes: nodes.collect(),
    }
}
