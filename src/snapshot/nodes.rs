//! An upstream, built; of one that a reload leaves as it is, the same.

use std::sync::Arc;

use super::{Ground, UpstreamSnapshot, UpstreamTlsFacts, limits, material};
use crate::config;
use crate::tls;
use crate::upstream::{NodeSettings, Settings, Upstream};

pub(super) fn upstream(
    config: &config::Upstream,
    ground: Ground<'_>,
    renews: bool,
) -> Result<Arc<UpstreamSnapshot>, String> {
    let Ground { metrics, previous, now_unix, .. } = ground;
    let before = previous.and_then(|p| p.upstreams.iter().find(|u| *u.upstream.name() == config.name));
    if let Some(before) = before.filter(|_| renews && config.tls.as_ref().is_none_or(|tls| tls.spiffe.is_none())) {
        return Ok(before.clone());
    }
    let tls = config.tls.as_ref().map(|t| {
        let issued = ground.issued.map(|issued| &**issued);
        tls::build_upstream(t, std::path::Path::new("/"), now_unix, issued).map_err(|faults| {
            let all: Vec<_> = faults.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
            format!("upstream {}: {}", config.name, all.join("; "))
        })
    });
    let mut tls = tls.transpose()?;
    let facts = tls.as_mut().map(|tls| UpstreamTlsFacts {
        generation: tls.generation,
        certificate: tls.client_facts.clone(),
        authorities: std::mem::take(&mut tls.authorities),
        revocation: tls.revocation.clone(),
        waiting: tls.waiting,
        warnings: std::mem::take(&mut tls.warnings),
    });
    let is_waiting = |facts: &Option<UpstreamTlsFacts>| facts.as_ref().is_some_and(|tls| tls.waiting);
    if is_waiting(&facts) && previous.is_some() && !before.is_some_and(|before| is_waiting(&before.tls)) {
        return Err(format!("upstream {}: {}", config.name, material::NOTHING_ISSUED));
    }
    let config_before = previous.and_then(|p| p.config.upstreams.iter().find(|u| u.name == config.name));
    if let Some(before) = before
        && config_before == Some(config)
        && before.tls.as_ref().map(|t| t.generation) == facts.as_ref().map(|t| t.generation)
    {
        return Ok(before.clone());
    }
    let lists = |facts: Option<&UpstreamTlsFacts>| facts.and_then(|tls| tls.revocation.clone());
    if let (Some(now), Some(before)) = (lists(facts.as_ref()), before.and_then(|b| lists(b.tls.as_ref()))) {
        now.adopt(&before);
    }
    let nodes = config.endpoints.iter().map(|e| NodeSettings {
        url: e.url.clone(),
        address: e.address,
        host: e.host.clone(),
        tls: e.tls,
        weight: e.weight,
        priority: e.priority,
    });
    let settings = Settings {
        name: config.name.clone(),
        nodes: nodes.collect(),
        discovery: config.discovery.clone(),
        balance: config.balance,
        hash_keys: config.hash_keys.clone(),
        hash_balance_factor: config.hash_balance_factor,
        panic_threshold: config.panic_threshold,
        slow_start: config.slow_start,
        outlier: config.outlier.clone(),
        circuit_breaker: config.circuit_breaker,
        protocol: config.protocol,
        health_check: config.health_check.clone(),
        timeouts: config.timeouts.clone(),
        tls,
    };
    let name = config.name.as_str();
    let upstream = Upstream::new(settings, metrics, before.map(|b| &*b.upstream), None)
        .map_err(|e| format!("upstream {name}: {e}"))?;
    if previous.is_some() {
        upstream.joins_running();
    }
    let concurrency = limits::concurrency(config, before.map(|b| &**b), metrics);
    let metrics = metrics.upstream(name);
    Ok(Arc::new(UpstreamSnapshot { upstream, metrics, concurrency, trusted: config.trusted, tls: facts }))
}
