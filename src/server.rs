//! Puts the Pingora server together: listeners, health checks, admin, and an orderly end.

mod crl_refresh;
mod fleet;
mod fleet_orders;
mod history;
mod maintenance;
pub mod notify;
mod reload_service;
pub mod spiffe;
mod staple_refresh;
mod status;
mod targets;
#[cfg(feature = "otlp")]
mod trace_export;
mod turns;
mod upgrade;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::signal::{SigHandler, Signal};
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::background::background_service;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use fleet::Fleet;
use spiffe::{Agent, SpiffeUpdates};
use upgrade::{Inherited, TakeOver};

use crate::admin::AdminService;
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, Loaded};
use crate::observe::Metrics;
use crate::proxy::listener::ListenerService;
use crate::proxy::socket::Sockets;
use crate::proxy::{Gateway, Shared};
use crate::reload::{self, Origin, Reloader};
use crate::snapshot::{Ground, Snapshot};

/// What is logged unless `RUST_LOG` or an operator says otherwise (see the documentation of `env_logger`). What Pingora would
/// say of a request or a connection is in the access log.
pub const LOG_FILTER: &str = "info,pingora_proxy=off,pingora_core=off";

/// How often an ending process looks whether its last request is done.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Idle connections to nodes that are kept, for all threads together.
const POOL_SIZE: usize = 1024;
/// How long the spans of the last requests may take to a collector.
const LAST_SPANS_WAIT: Duration = Duration::from_secs(1);
/// How long the last log lines may take.
const LOG_WAIT: Duration = Duration::from_secs(2);
/// HTTP/2 streams of one client connection at once.
const H2_STREAMS_MAX: u32 = 128;
/// Requests of one connection that the codec resets, for they are malformed or beyond [`H2_STREAMS_MAX`], before it gives the
/// connection up. A client that has not read that number yet may send as many again.
const H2_MALFORMED_MAX: usize = 2 * H2_STREAMS_MAX as usize;
/// What a client may send on an HTTP/2 stream before it is read: the window is what a waiting body may take.
const H2_WINDOW: u32 = 64 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// What is kept of an answer for a client that does not read, for each stream; the codec's own 400 KiB are much for 128.
const H2_SEND_BUFFER: usize = 64 << 10;

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong; each error has its place.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigError>),
    /// The machine does not give what the configuration asks for.
    #[error("{0}")]
    Start(String),
}

/// Ignores the signals that ask a running gateway for something: one that comes before whoever waits for it would end the
/// process. To be called first of all.
pub fn ignore_early_signals() {
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        // SAFETY: no handler of this program's is replaced, and ignoring a signal runs no code.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) };
    }
}

/// Runs the gateway until it is told to end: SIGTERM lets running requests finish, SIGINT does not. SIGHUP reads the
/// configuration again ([`crate::reload`]) and opens the access log's file again. SIGUSR2 has a new process of the program
/// take over.
///
/// # Errors
/// Before anything is served: a wrong configuration, an address that can't be listened on.
pub fn run(file: &Path) -> Result<(), RunError> {
    let inherited =
        Inherited::receive().map_err(|e| RunError::Start(format!("the process before hands nothing over: {e}")))?;
    let clock = Clock::System;
    let metrics = Metrics::new();
    let (origin, Loaded { config, warnings, .. }) = Origin::load(file, &clock, &metrics).map_err(RunError::Config)?;
    for warning in config::folded(&warnings) {
        log::warn!("{warning}");
    }
    let log = reload::open_log(&config, &clock, &metrics).map_err(|e| RunError::Start(e.to_string()))?;
    let (sockets, inherited) = open_sockets(&config, inherited)?;
    let agent = config.spiffe.clone().map(|endpoint| Agent::new(endpoint, metrics.clone(), clock.clone()));
    let snapshot = first_snapshot(Arc::new(config), agent.as_deref(), &metrics, &clock).map_err(RunError::Start)?;
    let shared = Shared::new(snapshot, clock, metrics, log);
    maintenance::restore(&shared, inherited.is_some());
    let fleet = Fleet::new(shared.clone()).map_err(RunError::Start)?;
    let reloader = Reloader::new(origin, Arc::new(fleet_orders::KnowsFleet(shared.clone())));
    notify::start(&shared);
    serve(&shared, &reloader, agent, fleet, (sockets, inherited));
    shared.log().close(LOG_WAIT);
    match shared.failure() {
        Some(why) => Err(RunError::Start(why)),
        None => Ok(()),
    }
}

/// Opens what the configuration names, or takes it from the process before, of which the rest is handed back.
fn open_sockets(config: &Config, mut inherited: Option<Inherited>) -> Result<(Sockets, Option<Inherited>), RunError> {
    let listeners = config.listeners.iter().map(|l| (format!("listener {}", l.name), l.address));
    let named: Vec<_> = listeners.chain([("admin".to_owned(), config.admin.address)]).collect();
    let addresses: Vec<_> = named.iter().map(|(_, address)| *address).collect();
    let before = inherited.as_mut().map(|i| std::mem::take(&mut i.listeners)).unwrap_or_default();
    let sockets = Sockets::open(&addresses, before).map_err(|(address, e)| {
        let what = named.iter().find(|(_, at)| *at == address).map_or("a listener", |(what, _)| what);
        RunError::Start(format!("{what}: cannot listen on {address}: {e}"))
    })?;
    Ok((sockets, inherited))
}

/// With what the SPIFFE agent has issued, if one is asked, answers, and gives what the configuration needs. If not, the
/// process must not end over it: that would only be repeated, and nobody could ask it why.
fn first_snapshot(
    config: Arc<Config>,
    agent: Option<&Agent>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Result<Snapshot, String> {
    let issued = agent.and_then(Agent::first).map(Arc::new);
    let ground = Ground { metrics, previous: None, issued: issued.as_ref(), now_unix: clock.unix_seconds() };
    let built = Snapshot::build(config.clone(), 1, ground).or_else(|why| match issued {
        None => Err(why),
        Some(_) => {
            let built = Snapshot::build(config, 1, Ground { issued: None, ..ground })?;
            log::error!("what the SPIFFE agent has issued can't be used: {why}");
            Ok(built)
        }
    })?;
    built.doubts_of_issued().iter().for_each(|doubt| log::warn!("{doubt}"));
    Ok(built)
}

fn serve(
    shared: &Arc<Shared>,
    reloader: &Arc<Reloader>,
    agent: Option<Arc<Agent>>,
    fleet: Fleet,
    (sockets, inherited): (Sockets, Option<Inherited>),
) {
    let snapshot = shared.snapshot();
    let sockets = Arc::new(sockets);
    let conf = ServerConf {
        threads: snapshot.config.server.threads,
        work_stealing: true,
        upstream_keepalive_pool_size: POOL_SIZE,
        // The drain is ours (see `Signals`); Pingora's own grace period would be slept in full.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        max_retries: 16,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let conf = server.configuration.clone();
    let (stop, stopped) = watch::channel(false);
    let (stop_admin, admin_stopped) = watch::channel(false);
    let (begin, begun) = watch::channel(inherited.is_none());

    let header = |listener: usize| snapshot.listener(listener).map_or(32 << 10, |l| l.deadlines.header_bytes);
    let proxy = |listener: &Arc<crate::proxy::connection::ListenerShared>| {
        let mut proxy = HttpProxy::new(Gateway::new(shared.clone()), conf.clone());
        let mut options = HttpServerOptions::default();
        // CONNECT is refused like any other ambiguous request, in the gateway's own words.
        options.allow_connect_method_proxying = true;
        proxy.server_options = Some(options);
        proxy.h2_options = Some(http2_options(header(listener.index)));
        proxy.handle_init_modules();
        Arc::new(proxy)
    };
    server.add_service(ListenerService::new(shared.clone(), proxy, sockets.clone(), (begun.clone(), stopped)));
    server.add_service(background_service("crl refresh", crl_refresh::CrlRefresh(shared.clone())));
    server.add_service(background_service("ocsp stapling", staple_refresh::StapleRefresh(shared.clone())));
    server.add_service(background_service("health", reload_service::HealthChecks(shared.clone())));
    // On a thread of its own: commands of all requests meet there and go out together.
    server.add_service(background_service("redis", fleet));
    let mut looks = background_service("history", history::Looks(shared.clone()));
    looks.threads = Some(1);
    server.add_service(looks);
    server.add_service(background_service("maintenance", fleet_orders::FleetFollower::new(shared.clone())));
    #[cfg(feature = "otlp")]
    {
        let mut export = background_service("trace export", trace_export::TraceExport(shared.clone()));
        export.threads = Some(1);
        server.add_service(export);
    }
    let mut reloads =
        background_service("reload", reload_service::Reloads { reloader: reloader.clone(), shared: shared.clone() });
    reloads.threads = Some(1);
    server.add_service(reloads);
    if let Some(agent) = agent.clone() {
        let updates = SpiffeUpdates { agent, reloader: reloader.clone(), shared: shared.clone() };
        let mut updates = background_service("spiffe", updates);
        updates.threads = Some(1);
        server.add_service(updates);
    }
    let address = snapshot.config.admin.address;
    let state = Arc::new(status::admin_state(shared, reloader, agent));
    if let Some(inherited) = inherited {
        let ready = state.clone();
        let take_over = TakeOver::new(shared.clone(), Box::new(move || (ready.ready)()), inherited, begin);
        server.add_service(background_service("take over", take_over));
    }
    let ready = state.clone();
    server.add_service(AdminService::new(state, address, sockets.clone(), (begun, admin_stopped)));
    drop(snapshot);
    let ready = Box::new(move || (ready.ready)().is_ready());
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals { shared: shared.clone(), sockets, ready, stop, stop_admin }),
    });
}

fn http2_options(header_bytes: usize) -> H2Options {
    let mut h2 = default_h2_options();
    // The proxy refuses what is over the limit with 431; the codec's own limit is only the last line.
    h2.max_header_list_size(u32::try_from(header_bytes * 2).unwrap_or(u32::MAX));
    h2.max_concurrent_streams(H2_STREAMS_MAX);
    h2.initial_window_size(H2_WINDOW);
    h2.initial_connection_window_size(H2_CONNECTION_WINDOW);
    h2.max_send_buffer_size(H2_SEND_BUFFER);
    h2.max_local_error_reset_streams(Some(H2_MALFORMED_MAX));
    // A client that takes all back that it has begun is none that floods.
    h2.max_pending_accept_reset_streams(H2_STREAMS_MAX as usize);
    h2
}

/// Waits for the signal to end. On SIGTERM, and after `server.shutdown_delay`, no connection is accepted any more, idle ones
/// are closed, and the process goes as soon as the last request is answered, or after `server.drain`. On SIGUSR2 it does so
/// when another process serves in its place.
struct Signals {
    shared: Arc<Shared>,
    sockets: Arc<Sockets>,
    /// Whether this process is.
    ready: Box<dyn Fn() -> bool + Send + Sync>,
    stop: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
}

/// The signals that an end begins with.
struct Ends {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    upgrade: tokio::signal::unix::Signal,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(terminate), Ok(interrupt), Ok(upgrade)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::user_defined2()))
        else {
            self.shared.fail("cannot listen for signals".to_owned());
            return ShutdownSignal::FastShutdown;
        };
        let mut ends = Ends { terminate, interrupt, upgrade };
        let Some(why) = self.wait_for_end(&mut ends).await else { return ShutdownSignal::FastShutdown };
        if why == TERMINATED && !self.withdraw(&mut ends).await {
            return ShutdownSignal::FastShutdown;
        }
        let drain = self.shared.snapshot().config.server.drain;
        log::info!("{why}: {} requests may finish within {drain:?}", self.shared.requests());
        self.shared.drain();
        let _ = self.stop.send_replace(true);
        let deadline = Instant::now() + drain;
        // An answer may still be on its way when its request is done, so the connections are waited for: idle ones are
        // closed soon, HTTP/2 ones when their last stream has been taken.
        while self.shared.requests() + self.shared.connections() > 0 && Instant::now() < deadline {
            tokio::select! {
                () = tokio::time::sleep(DRAIN_POLL) => {}
                _ = ends.interrupt.recv() => break,
            }
        }
        match (self.shared.requests(), self.shared.connections()) {
            (0, 0) => log::info!("all requests are done"),
            (requests, connections) => log::warn!("{requests} requests and {connections} connections are cut off"),
        }
        self.send_last_spans().await;
        ShutdownSignal::FastShutdown
    }
}

/// Why a process drains that another has taken the place of. To the service manager the service goes on.
const UPGRADED: &str = "upgraded";
/// Why one does that nobody takes the place of.
const TERMINATED: &str = "SIGTERM";

impl Signals {
    /// Waits until the process is to drain, and says why; `None`: it is to end at once.
    async fn wait_for_end(&self, ends: &mut Ends) -> Option<&'static str> {
        loop {
            tokio::select! {
                _ = ends.terminate.recv() => return Some(TERMINATED),
                _ = ends.interrupt.recv() => return None,
                () = self.failed() => return None,
                _ = ends.upgrade.recv() => {}
            }
            log::info!("SIGUSR2: another process is started to take over");
            let handed_over = tokio::select! {
                handed_over = upgrade::hand_over(&self.sockets, &self.shared, (self.ready)()) => handed_over,
                _ = ends.terminate.recv() => return Some(TERMINATED),
                _ = ends.interrupt.recv() => return None,
            };
            match handed_over {
                Ok(pid) => {
                    notify::tell(&format!("MAINPID={pid}"));
                    log::info!("process {pid} serves in the place of this one");
                    let _ = self.stop_admin.send_replace(true);
                    self.sockets.close_but(&[]);
                    return Some(UPGRADED);
                }
                Err(why) => log::error!("no upgrade, this process goes on: {why}"),
            }
        }
    }

    /// Says that no more connections are wanted, takes those of `server.shutdown_delay` all the same, and then none. `false`:
    /// the process is to end at once. The admin listener says until the end that the process drains.
    async fn withdraw(&self, ends: &mut Ends) -> bool {
        notify::tell("STOPPING=1\nSTATUS=Finishing running requests");
        // No other process takes over any more, if one was about to.
        *self.shared.maintenance.handed_over.lock() = false;
        self.shared.withdraw();
        let delay = self.shared.snapshot().config.server.shutdown_delay;
        if !delay.is_zero() {
            log::info!("SIGTERM: not ready any more; connections are still taken for {delay:?}");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Whoever asks twice does not want to wait.
                _ = ends.terminate.recv() => {}
                _ = ends.interrupt.recv() => return false,
                () = self.failed() => return false,
            }
        }
        self.sockets.close_but(&[self.shared.snapshot().config.admin.address]);
        true
    }
}

impl Signals {
    /// Pingora leaves no service the time for it.
    async fn send_last_spans(&self) {
        self.shared.traces.end();
        let deadline = Instant::now() + LAST_SPANS_WAIT;
        while !self.shared.traces.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    async fn failed(&self) {
        while self.shared.failure().is_none() {
            tokio::time::sleep(DRAIN_POLL * 10).await;
        }
    }
}
