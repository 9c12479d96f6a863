//! What all connections share: the snapshot of the moment, the clock, the counters, the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::check;
use super::connection::Connection;
use super::downstream::{Unparsed, UnparsedAnswer};
use super::maintenance::{Maintenance, Unreadable};
use super::sketch::CountMin;
use crate::clock::Clock;
use crate::observe::history::History;
use crate::observe::recent::{Recent, RefusedRequest, readable};
use crate::observe::trace::TraceQueue;
use crate::observe::{AccessLog, AccessRecord, ConnectionRefusal, MethodLabel, Metrics, OverloadAction, OverloadLimit};
use crate::policy::body_memory::BodyMemory;
use crate::policy::maintenance::Orders;
use crate::policy::overload::{Class, Lag};
use crate::policy::rate_limit::{RateLimiter, SharedRates};
use crate::reload::Running;
use crate::snapshot::Snapshot;

/// How long requests may go on writing to the access log of an older configuration, and its writer after them.
const OLD_LOG_WAIT: Duration = Duration::from_secs(2);

/// One per process.
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// The time.
    pub clock: Clock,
    /// The counters.
    pub metrics: Arc<Metrics>,
    log: ArcSwap<AccessLog>,
    /// Traced requests that are done.
    pub traces: TraceQueue,
    /// Tells the generation of each new snapshot.
    swapped: watch::Sender<u64>,
    /// What waiting bodies may take.
    pub bodies: Arc<BodyMemory>,
    /// Whether the threads that serve requests are behind.
    pub lag: Lag,
    /// What rate limits have counted.
    pub rates: RateLimiter<CountMin>,
    /// What those of them count that are shared; none without `redis`.
    pub fleet_rates: ArcSwapOption<SharedRates>,
    /// What was refused last.
    pub recent: Recent,
    /// The last minutes, in steps.
    pub history: Mutex<History>,
    /// What operators have taken out of service.
    pub maintenance: Maintenance,
    /// Requests between their header and their log line.
    requests: AtomicU64,
    /// Connections from accept to close.
    connections: AtomicU64,
    listening: AtomicBool,
    withdrawn: AtomicBool,
    draining: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Shared {
    /// The process' shared part, with its first snapshot.
    pub fn new(snapshot: Snapshot, clock: Clock, metrics: Arc<Metrics>, log: Arc<AccessLog>) -> Arc<Self> {
        let server = &snapshot.config.server;
        let bodies = BodyMemory::new(server.body_memory);
        let rates = RateLimiter::new(server.rate_limit_keys, server.rate_limit_ipv6_prefix, clock.now());
        let maintenance = Maintenance::default();
        maintenance.apply(&snapshot, &metrics, clock.now());
        Arc::new(Self {
            maintenance,
            recent: Recent::default(),
            history: Mutex::default(),
            snapshot: ArcSwap::from_pointee(snapshot),
            clock,
            traces: TraceQueue::new(metrics.spans()),
            metrics,
            log: ArcSwap::new(log),
            swapped: watch::Sender::new(0),
            bodies,
            lag: Lag::default(),
            rates,
            fleet_rates: ArcSwapOption::empty(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            listening: AtomicBool::new(false),
            withdrawn: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    /// The snapshot of the moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The access log of the moment; to be used at once and not kept.
    pub fn log(&self) -> Guard<Arc<AccessLog>> {
        self.log.load()
    }

    /// Changes with each new snapshot.
    pub fn swapped(&self) -> watch::Receiver<u64> {
        self.swapped.subscribe()
    }

    /// Whether every listener takes connections.
    pub fn listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// Every listener takes connections now.
    pub(super) fn set_listening(&self) {
        self.listening.store(true, Ordering::Relaxed);
    }

    /// Whether the process is to end, and wants no more connections: [`Self::draining`], or soon.
    pub fn leaving(&self) -> bool {
        self.withdrawn.load(Ordering::Relaxed) || self.draining()
    }

    /// The process is to end, but still serves whoever has not learnt of it.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Relaxed);
    }

    /// Whether the process is ending: no request is kept waiting for a next one.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The process ends after the running requests.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Brings the gauge of waiting bodies up to date.
    pub(super) fn show_body_memory(&self) {
        self.metrics.body_memory().set(i64::try_from(self.bodies.used()).unwrap_or(i64::MAX));
    }

    /// Changes what is out of service, if that is a change.
    pub fn change_orders(&self, change: impl FnOnce(&mut Orders)) {
        let _changing = self.maintenance.changing.lock();
        let before = self.maintenance.orders();
        let mut orders = (*before).clone();
        change(&mut orders);
        if orders != *before {
            self.maintenance.set(orders);
            self.maintenance.apply(&self.snapshot(), &self.metrics, self.clock.now());
        }
    }

    /// Changes what is said of orders that can't be read.
    pub fn change_unreadable<R>(&self, change: impl FnOnce(&mut Unreadable) -> R) -> R {
        let mut unreadable = self.maintenance.unreadable.lock();
        let changed = change(&mut unreadable);
        self.metrics.set_unreadable_orders(unreadable.own.len(), unreadable.fleet.len());
        changed
    }

    /// Counts a request in, and says how many there are with it.
    pub(super) fn request_began(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts it out.
    pub(super) fn request_ended(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that are being served.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Connections that are open, those in their handshake included.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as the result lives.
    pub(super) fn connection_opened(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.clone())
    }

    /// Why the process takes no more connections now, if so. `snapshot` is that of the moment.
    pub(super) fn refuses_connection(&self, snapshot: &Snapshot) -> Option<ConnectionRefusal> {
        let limits = &snapshot.overload;
        let beyond = if self.connections() >= u64::from(limits.connections) {
            (OverloadLimit::Connections, ConnectionRefusal::Process)
        } else if self.lag.sheds(Class::Connection, limits) {
            (OverloadLimit::EventLoopLag, ConnectionRefusal::Overloaded)
        } else {
            return None;
        };
        self.exceeded(beyond.0, snapshot).then_some(beyond.1)
    }

    /// Counts what is beyond a limit. Whether it is to be refused.
    pub(super) fn exceeded(&self, limit: OverloadLimit, snapshot: &Snapshot) -> bool {
        let enforce = snapshot.overload.enforce;
        let action = if enforce { OverloadAction::Shed } else { OverloadAction::WouldShed };
        self.metrics.overload().exceeded(limit, action);
        enforce
    }

    /// Something without which the gateway can't serve. The process ends with this text.
    pub fn fail(&self, why: String) {
        self.failure.lock().get_or_insert(why);
    }

    /// Why the process must end, if it must.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }
}

impl Running for Shared {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot()
    }

    fn swap(&self, snapshot: Arc<Snapshot>, log: Option<Arc<AccessLog>>) -> Vec<String> {
        self.bodies.set_limit(snapshot.config.server.body_memory);
        let generation = snapshot.generation;
        let changing = self.maintenance.changing.lock();
        self.maintenance.apply(&snapshot, &self.metrics, self.clock.now());
        self.snapshot.store(snapshot);
        drop(changing);
        let _ = self.swapped.send_replace(generation);
        if let Some(log) = log {
            let old = self.log.swap(log);
            // Whoever holds it is about to write one line.
            let deadline = Instant::now() + OLD_LOG_WAIT;
            while Arc::strong_count(&old) > 1 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            old.close(OLD_LOG_WAIT);
        }
        Vec::new()
    }

    fn reopen_log(&self) {
        self.log().reopen();
    }
}

/// Counts as a connection until it is dropped.
pub(super) struct OpenConnection(Arc<Shared>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Unparsed for Shared {
    fn refused(&self, connection: &Connection, answer: &UnparsedAnswer<'_>) {
        let UnparsedAnswer { status, code, request_id, body_bytes, line, took } = answer;
        // Of an absolute form without a path that is the root; of no target at all it is nothing.
        let path = if line.target.is_empty() { line.target } else { check::shown_path(line.target) };
        let (status, code, took) = (*status, *code, *took);
        self.metrics.refusal(code);
        self.metrics.unmatched().record(MethodLabel::Other, status, took);
        let identity = connection.identity.as_deref();
        let tls = connection.tls.as_ref();
        let snapshot = self.snapshot();
        let peer = connection.peer(&snapshot);
        snapshot.peer_metrics.of(peer.as_ref().map(|p| p.index)).record(status, took);
        let (listener, client) = (connection.listener.name.as_str(), connection.remote_ip());
        self.recent.refusals.note(
            self.clock.wall(),
            client,
            |seen| std::ptr::eq(seen.code, code) && seen.client == client && seen.listener == listener,
            || RefusedRequest {
                code,
                status,
                listener: listener.to_owned(),
                client,
                peer: peer.as_ref().map(|p| p.name.as_str().to_owned()),
                route: None,
                path: readable(path),
                request_id: Some((*request_id).to_owned()),
            },
        );
        self.log().record(&AccessRecord {
            request_id: Some(request_id),
            peer: peer.as_ref().map(|p| p.name.as_str()),
            spiffe_id: identity.and_then(|i| i.spiffe_id.as_ref()).map(|id| id.as_str()),
            tls_version: tls.map(|t| t.version),
            tls_cipher: tls.map(|t| t.cipher),
            sni: tls.and_then(|t| t.sni.as_deref()),
            http_version: line.version,
            method: line.method,
            path,
            status,
            refusal: Some(code),
            bytes_out: *body_bytes as u64,
            ..AccessRecord::new(self.clock.wall(), connection.listener.name.as_str(), connection.remote_ip())
        });
    }
}
