//! One immutable, built gateway: everything that a request may ask, put together off the request path and swapped as
//! one (design, decision 7). A request uses one snapshot to its end.

mod limits;
mod material;
mod nodes;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::config::{self, Config};
use crate::headers::{ProductHeaders, Spoofable};
use crate::json_rpc::{self, MethodPolicy, ParamsSchema};
use crate::names::{ListenerName, RouteName};
use crate::observe::trace::Sampler;
use crate::observe::{CrlShown, Expiring, Expiry, Metrics, PeerHandles, RouteMetrics, UpstreamMetrics};
use crate::policy::adaptive_concurrency::AdaptiveConcurrency;
use crate::policy::admission;
use crate::policy::deny::AddressList;
use crate::policy::federation::Federation;
use crate::policy::json_rpc::JsonRpcPolicy;
use crate::policy::peers::{Peer, PeerMatcher, Peers};
use crate::policy::rate_limit::{Limit, Limits, Quota};
use crate::policy::rules::Rules;
use crate::policy::waf::Waf;
use crate::request::TrustedProxies;
use crate::route::{HostPattern, MethodSet, PathPattern, Table, TableBuilder};
use crate::tls::{CertificateFacts, CrlFacts, Issued, Revocation, ServerContext, Staple, StateDir, TlsFault};
use crate::upstream::Upstream;

pub use limits::RequestLimits;

/// A configuration, built.
pub struct Snapshot {
    /// Counts up with each one; 1 is the first.
    pub generation: u64,
    /// What it was built from.
    pub config: Arc<Config>,
    /// Certificate to peer.
    pub peers: Peers,
    /// Counters of each peer.
    pub peer_metrics: PeerHandles,
    /// Listeners, in the order of the configuration.
    pub listeners: Vec<ListenerSnapshot>,
    /// The listeners that this process has sockets for, in their order at its start.
    slots: Arc<[ListenerName]>,
    /// By slot: index into `listeners`; none if a reload took the listener away.
    by_slot: Vec<Option<usize>>,
    /// Upstreams, in the order of the configuration.
    pub upstreams: Vec<Arc<UpstreamSnapshot>>,
    /// Hive's own headers under the configured prefix.
    pub product: ProductHeaders,
    /// What a client may never say.
    pub spoofable: Spoofable,
    /// What is done with federation JWTs, on routes to trusted upstreams.
    pub federation: Federation,
    /// Which requests are traced; none without `tracing`.
    pub sampler: Option<Sampler>,
    /// From when on the process sheds.
    pub overload: crate::policy::overload::Limits,
    /// `Bearer …`, the proof that a request came through the gateway.
    pub gateway_auth: Option<HeaderValue>,
    /// What the SPIFFE agent has issued and is in use; none yet, or none is needed.
    pub issued: Option<Arc<Issued>>,
}

/// A listener's part that a reload may change.
pub struct ListenerSnapshot {
    /// Path to route, of the routes that this listener serves.
    pub routes: Table<Published>,
    /// Certificates and trust; none on a plain listener.
    pub tls: Option<Arc<ServerContext>>,
    /// Limits on connections.
    pub admission: admission::Limits,
    /// Connections at once of one peer.
    pub connections_per_peer: Option<u32>,
    /// Limits on requests at once.
    pub requests: RequestLimits,
    /// Whether some route is critical, so that one has to look before one sheds.
    pub some_critical: bool,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted: TrustedProxies,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Within what time a running answer finds out that its client may no longer have it.
    pub revocation: Duration,
    /// Limits of time and size while HTTP is spoken.
    pub deadlines: Deadlines,
    /// Requests after which a connection ends.
    pub requests_per_connection: u32,
    /// How often clients may ask.
    pub rate_limits: Limits,
    /// Who is kept out by address.
    pub addresses: Option<Arc<AddressList>>,
    /// Which requests are not taken, whatever the route.
    pub rules: Rules,
    /// The web application firewall of routes that have no word of their own.
    pub waf: Option<Arc<Waf>>,
    /// The form of the gateway's own answers.
    pub local_reply: config::file::LocalReply,
}

/// How long a connection may take over each step, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Between requests.
    pub idle: Duration,
    /// For a header, the HTTP/2 preface and a frame.
    pub request_header: Duration,
    /// For a whole body; on HTTP/2 for a DATA frame too.
    pub request_body: Duration,
    /// For an answer that the client does not read.
    pub write: Duration,
    /// Longest header, in bytes.
    pub header_bytes: usize,
    /// Longest life that takes new requests.
    pub connection_age: Duration,
}

/// An upstream with its counters.
pub struct UpstreamSnapshot {
    /// Its nodes.
    pub upstream: Arc<Upstream>,
    /// Counters of the upstream as a whole.
    pub metrics: Arc<UpstreamMetrics>,
    /// How many requests may wait for an answer; none: as many as come.
    pub concurrency: Option<Arc<AdaptiveConcurrency>>,
    /// Whether block `hive` of the configuration is about these nodes.
    pub trusted: bool,
    /// What it proves and believes over TLS; none on plain upstreams.
    pub tls: Option<UpstreamTlsFacts>,
}

/// An upstream's TLS material, as an operator sees it.
pub struct UpstreamTlsFacts {
    /// Changes with the material.
    pub generation: u64,
    /// The certificate that nodes are shown.
    pub certificate: Option<CertificateFacts>,
    /// Who vouches for nodes.
    pub authorities: Vec<CertificateFacts>,
    /// Which nodes are revoked; none without `crl`.
    pub revocation: Option<Arc<Revocation>>,
    /// There is nothing in it yet, because the SPIFFE agent has issued nothing.
    pub waiting: bool,
    /// What is doubtful about it.
    pub warnings: Vec<TlsFault>,
}

/// A route under one of its paths.
pub struct Published {
    /// The route.
    pub route: Arc<Route>,
    /// Counters with this route's and this path's labels.
    pub metrics: Arc<RouteMetrics>,
}

/// What is done with a request that matched.
pub struct Route {
    /// From the configuration.
    pub name: RouteName,
    /// Who may call.
    pub peers: AllowedPeers,
    /// Where it goes.
    pub upstream: Arc<UpstreamSnapshot>,
    /// What nodes are asked for in place of the request's path.
    pub replace_full_path: Option<Box<[u8]>>,
    /// Longest body, in bytes.
    pub body_limit: u64,
    /// Present on JSON-RPC routes.
    pub json_rpc: Option<JsonRpcPolicy>,
    /// Longest wait for the first byte of the answer, from admission on.
    pub response: Duration,
    /// Longest silence inside the answer.
    pub stream_idle: Duration,
    /// Longest time to the answer's end.
    pub max_stream_duration: Option<Duration>,
    /// Whether it is shed last.
    pub critical: bool,
    /// How often clients may ask.
    pub rate_limits: Limits,
    /// Which requests are not taken.
    pub rules: Rules,
    /// Which web application firewall looks at its requests.
    pub waf: config::RouteWaf,
}

/// Who may call a route.
pub enum AllowedPeers {
    /// Every valid certificate.
    Any,
    /// Those of [`Peer::index`].
    Of(HashSet<u32, ahash::RandomState>),
}

impl AllowedPeers {
    /// Whether a client may call; `peer` is whom its certificate belongs to, if anyone.
    pub fn allow(&self, peer: Option<&Peer>) -> bool {
        match self {
            AllowedPeers::Any => true,
            AllowedPeers::Of(indexes) => peer.is_some_and(|p| indexes.contains(&p.index)),
        }
    }
}

/// What a snapshot is built from, besides the configuration.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Where to count.
    pub metrics: &'a Arc<Metrics>,
    /// What is in use now.
    pub previous: Option<&'a Snapshot>,
    /// What the SPIFFE agent has issued.
    pub issued: Option<&'a Arc<Issued>>,
    /// Seconds since 1970.
    pub now_unix: i64,
}

impl Snapshot {
    /// Builds a configuration. Nodes and counters of the previous snapshot live on under the same names, and an upstream of
    /// which nothing changed is the same one. Nothing is shown of it before [`Snapshot::publish`].
    ///
    /// With the very configuration of the previous snapshot no file is read that the agent's material has nothing to do
    /// with: a broken file must not keep new SVIDs out.
    ///
    /// # Errors
    /// What [`config::load`] finds too, and what changed on disk since.
    pub fn build(config: Arc<Config>, generation: u64, ground: Ground<'_>) -> Result<Self, String> {
        let Ground { previous, .. } = ground;
        let product = ProductHeaders::with_prefix(&config.hive.header_prefix)?;
        let renews = previous.is_some_and(|p| Arc::ptr_eq(&p.config, &config));
        let upstreams: Vec<_> =
            config.upstreams.iter().map(|u| nodes::upstream(u, ground, renews)).collect::<Result<_, _>>()?;
        let gateway_auth = config.hive.gateway_auth.as_ref().map(|secret| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose()))
                .map_err(|_| "hive.gateway_auth_secret holds characters that no header can carry".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        let slots =
            previous.map_or_else(|| config.listeners.iter().map(|l| l.name.clone()).collect(), |p| p.slots.clone());
        let by_slot = slots.iter().map(|name| config.listeners.iter().position(|l| l.name == *name)).collect();
        let snapshot = Self {
            generation,
            slots,
            by_slot,
            peers: peers(&config)?,
            peer_metrics: ground.metrics.peers(config.peers.iter().map(|p| p.name.clone()), config.metrics.peers_max),
            federation: federation(&config)?,
            listeners: listeners(&config, &upstreams, ground, renews)?,
            upstreams,
            spoofable: Spoofable::new(&product),
            product,
            sampler: config.tracing.as_ref().map(|t| Sampler::new(t.sample, t.parent_based)),
            gateway_auth: gateway_auth.transpose()?,
            overload: limits::of_process(&config.overload),
            issued: ground.issued.cloned(),
            config,
        };
        let store = snapshot.config.server.state_dir.as_deref().map(StateDir::new);
        for (listener, config) in snapshot.listeners.iter().zip(&snapshot.config.listeners) {
            material::adopt_lists(listener, config, previous);
            material::restore_lists(listener, store.as_ref(), ground.now_unix);
        }
        Ok(snapshot)
    }

    /// The listener behind a socket of this process; none if a reload took it away.
    pub fn listener(&self, slot: usize) -> Option<&ListenerSnapshot> {
        self.listeners.get((*self.by_slot.get(slot)?)?)
    }

    fn listener_named(&self, name: &ListenerName) -> Option<&ListenerSnapshot> {
        self.listeners.get(self.config.listeners.iter().position(|l| l.name == *name)?)
    }

    /// Every certificate that expires, with what it is for.
    pub fn certificates(&self) -> impl Iterator<Item = (Expiring, &str, &CertificateFacts)> {
        let listeners = self.config.listeners.iter().zip(&self.listeners).flat_map(|(config, built)| {
            let own = built.tls.iter().flat_map(|tls| tls.certificates()).map(|c| (Expiring::Certificate, c));
            let trusted = built.tls.iter().flat_map(|tls| tls.authorities()).map(|c| (Expiring::Authority, c));
            own.chain(trusted).map(|(kind, facts)| (kind, config.name.as_str(), facts))
        });
        let upstreams = self.upstreams.iter().flat_map(|u| {
            let own = u.tls.iter().flat_map(|tls| &tls.certificate).map(|c| (Expiring::UpstreamCertificate, c));
            let trusted = u.tls.iter().flat_map(|tls| &tls.authorities).map(|c| (Expiring::UpstreamAuthority, c));
            own.chain(trusted).map(|(kind, facts)| (kind, u.upstream.name().as_str(), facts))
        });
        listeners.chain(upstreams)
    }

    /// The gateway's own certificates whose OCSP responders are asked, with their listeners' names.
    pub fn staples(&self) -> impl Iterator<Item = (&str, &CertificateFacts, &Arc<Staple>)> {
        self.config.listeners.iter().zip(&self.listeners).flat_map(|(config, built)| {
            let each = built.tls.iter().flat_map(|tls| tls.certificates().iter().zip(tls.staples()));
            each.filter_map(|(facts, staple)| Some((config.name.as_str(), facts, staple.as_ref()?)))
        })
    }

    /// Shows in the metrics when what is in use now expires.
    pub fn publish_expiries(&self, metrics: &Metrics) {
        let expiries: Vec<_> = self
            .certificates()
            .map(|(kind, owner, c)| Expiry {
                kind,
                owner,
                not_before: c.not_before,
                not_after: c.not_after,
                subject: &c.subject,
                serial: &c.serial,
            })
            .collect();
        let staples = self.staples().filter_map(|(owner, c, staple)| {
            let not_after = staple.last().filter(|last| !last.is_revoked())?.until();
            let (subject, serial) = (c.subject.as_str(), c.serial.as_str());
            Some(Expiry { kind: Expiring::Staple, owner, not_before: c.not_before, not_after, subject, serial })
        });
        metrics.set_expiries(&expiries.into_iter().chain(staples).collect::<Vec<_>>());
    }

    /// Shows in the metrics what is in use now.
    pub fn publish(&self, metrics: &Metrics) {
        self.publish_expiries(metrics);
        self.staples().for_each(|(listener, ..)| metrics.expect_staples(listener));
        for (listener, config) in self.listeners.iter().zip(&self.config.listeners) {
            match listener.tls.as_ref().and_then(|tls| tls.revocation()) {
                Some(revocation) => {
                    metrics.expect_crl_fetches(config.name.as_str());
                    show_lists(revocation, config.name.as_str(), metrics);
                    for issuer in revocation.rolled_back() {
                        log::warn!(
                            "listener {}: the file with the CRL of {issuer:?} holds an older one than before; the newer \
                             one stays in use until the file has a newer one still, or the gateway is started anew",
                            config.name
                        );
                    }
                }
                None => metrics.set_crls(config.name.as_str(), &[]),
            }
        }
        for upstream in &self.upstreams {
            upstream.show_lists(metrics);
        }
        let names = self.upstreams.iter().map(|u| u.upstream.name().as_str());
        metrics.keep_upstream_crls(&names.collect::<Vec<_>>());
        self.upstreams.iter().for_each(|u| u.upstream.take_effect());
        let adaptive = self.upstreams.iter().filter(|u| u.concurrency.is_some());
        metrics.keep_upstream_concurrency(&adaptive.map(|u| u.upstream.name().as_str()).collect::<Vec<_>>());
        metrics.set_config_generation(self.generation);
    }
}

/// Shows what a listener knows of revoked certificates.
pub fn show_lists(revocation: &Revocation, name: &str, metrics: &Metrics) {
    metrics.set_crls(name, &shown(&revocation.facts()));
}

fn shown(facts: &[CrlFacts]) -> Vec<CrlShown<'_>> {
    let each = facts.iter().map(|f| CrlShown {
        issuer: &f.issuer,
        this_update: f.this_update,
        next_update: f.next_update,
        entries: f.entries,
    });
    each.collect()
}

impl UpstreamSnapshot {
    /// Shows in the metrics what is known of its revoked nodes.
    pub fn show_lists(&self, metrics: &Metrics) {
        let facts = self.tls.as_ref().and_then(|tls| tls.revocation.as_ref()).map(|lists| lists.facts());
        metrics.set_upstream_crls(self.upstream.name().as_str(), &shown(&facts.unwrap_or_default()));
    }
}

fn peers(config: &Config) -> Result<Peers, String> {
    let matchers = config.peers.iter().map(|p| PeerMatcher { name: p.name.clone(), rule: p.rule.clone() }).collect();
    Peers::build(matchers).map_err(|conflicts| conflicts.into_iter().map(|c| c.why).collect::<Vec<_>>().join("; "))
}

fn federation(config: &Config) -> Result<Federation, String> {
    let issuers: Vec<_> = config.peers.iter().filter_map(|p| p.issuer.clone()).collect();
    Federation::new(&config.hive.federation, &issuers).map_err(|e| format!("hive.federation: {e}"))
}

fn listeners(
    config: &Config,
    upstreams: &[Arc<UpstreamSnapshot>],
    ground: Ground<'_>,
    renews: bool,
) -> Result<Vec<ListenerSnapshot>, String> {
    let tables = routes(config, upstreams, ground.metrics)?;
    let critical = |i: usize| {
        let critical = config.routes.iter().filter(|r| r.priority == config::file::Priority::Critical);
        critical.clone().any(|r| r.listeners.include(i))
    };
    let all = config.listeners.iter().zip(tables).enumerate();
    all.map(|(i, (l, table))| {
        let tls = l.tls.as_ref().map(|tls| material::of_listener(l, tls, ground, renews)).transpose()?;
        listener(l, table, tls, &config.overload, critical(i), ground.metrics)
    })
    .collect()
}

/// A table for each listener: which routes there are is decided before a request is there.
fn routes(
    config: &Config,
    upstreams: &[Arc<UpstreamSnapshot>],
    metrics: &Metrics,
) -> Result<Vec<Table<Published>>, String> {
    let mut tables: Vec<_> = config.listeners.iter().map(|_| TableBuilder::new()).collect();
    for r in &config.routes {
        let json_rpc = r.json_rpc.as_ref().map(json_rpc).transpose()?;
        let route = Arc::new(Route {
            name: r.name.clone(),
            peers: match &r.peers {
                config::RoutePeers::Any => AllowedPeers::Any,
                config::RoutePeers::Of(indexes) => {
                    AllowedPeers::Of(indexes.iter().filter_map(|i| u32::try_from(*i).ok()).collect())
                }
            },
            upstream: upstreams.get(r.upstream).ok_or("a route without an upstream")?.clone(),
            replace_full_path: r.replace_full_path.as_ref().map(|path| path.as_bytes().into()),
            body_limit: r.body_limit,
            json_rpc,
            response: r.timeouts.response.0,
            stream_idle: r.timeouts.stream_idle.0,
            max_stream_duration: r.timeouts.max_stream_duration.map(|span| span.0),
            critical: r.priority == config::file::Priority::Critical,
            rate_limits: rate_limits(&format!("route/{}", r.name), &r.rate_limits, metrics),
            rules: Rules::build(&format!("route/{}", r.name), &r.request_rules, metrics)?,
            waf: r.waf.clone(),
        });
        let hosts = r.hosts.iter().map(|h| HostPattern::parse(h)).collect::<Result<Vec<_>, _>>()?;
        let methods = MethodSet::parse(&r.methods)?;
        for path in &r.paths {
            let metrics = metrics.route(r.name.as_str(), path);
            for (_, table) in tables.iter_mut().enumerate().filter(|(i, _)| r.listeners.include(*i)) {
                let published = Published { route: route.clone(), metrics: metrics.clone() };
                table
                    .add(&hosts, &[PathPattern::parse(path)?], methods, published)
                    .map_err(|overlap| format!("route {}: {} is another route's too", r.name, overlap.path.as_str()))?;
            }
        }
    }
    Ok(tables.into_iter().map(TableBuilder::build).collect())
}

fn json_rpc(config: &config::file::JsonRpc) -> Result<JsonRpcPolicy, String> {
    let batch = match config.batch {
        config::file::Batch::Reject => None,
        config::file::Batch::UpTo(calls) => Some(calls),
    };
    let any_version = config.version == config::file::JsonRpcVersion::Any;
    let schemas = config.schemas.iter().map(|schema| {
        let compiled = ParamsSchema::load(Path::new(&schema.file)).map_err(|why| format!("{}: {why}", schema.file))?;
        Ok((schema.method.as_str().into(), compiled))
    });
    Ok(JsonRpcPolicy {
        limits: json_rpc::Limits { max_depth: config.max_depth, batch, any_version },
        methods: MethodPolicy::new(config.methods.as_deref())?,
        notifications: config.notifications == config::file::Notifications::Allow,
        params_max: config.params_limit.map_or(usize::MAX, |l| usize::try_from(l.0).unwrap_or(usize::MAX)),
        schemas: schemas.collect::<Result<_, String>>()?,
    })
}

fn rate_limits(owner: &str, config: &[config::file::RateLimit], metrics: &Metrics) -> Limits {
    let names = Limits::names(owner, config.iter().map(|l| &*l.per.0));
    let limit = |(name, l): (String, &config::file::RateLimit)| {
        let quota = Quota::new(l.rate, l.burst.unwrap_or(l.rate.count));
        Limit::new(name, &l.per.0, quota, l.enforce, l.shared, metrics)
    };
    Limits::new(names.into_iter().zip(config).map(limit).collect())
}

fn listener(
    config: &config::Listener,
    routes: Table<Published>,
    tls: Option<Arc<ServerContext>>,
    overload: &config::file::Overload,
    some_critical: bool,
    metrics: &Metrics,
) -> Result<ListenerSnapshot, String> {
    let (client, timeouts) = (&config.limits, &config.timeouts);
    Ok(ListenerSnapshot {
        routes,
        tls,
        admission: limits::of_connections(client),
        connections_per_peer: client.connections_per_peer,
        requests: RequestLimits::new(client, overload, some_critical),
        some_critical,
        trusted: TrustedProxies::new(config.trusted_proxies.clone()),
        handshake: timeouts.handshake.0,
        revocation: timeouts.revocation.0,
        deadlines: Deadlines {
            connection_age: timeouts.connection_age.0,
            idle: timeouts.idle.0,
            request_header: timeouts.request_header.0,
            request_body: timeouts.request_body.0,
            write: timeouts.write.0,
            header_bytes: usize::try_from(client.request_header.0).unwrap_or(usize::MAX),
        },
        requests_per_connection: client.requests_per_connection,
        rate_limits: rate_limits(&format!("listener/{}", config.name), &config.rate_limits, metrics),
        addresses: config.addresses.clone(),
        rules: Rules::build(&format!("listener/{}", config.name), &config.request_rules, metrics)?,
        waf: config.waf.clone(),
        local_reply: config.local_reply,
    })
}
