//! Accepts connections: admission, TLS handshake in a limited time, identity; then hands them to Pingora's HTTP.
//!
//! An accept loop of our own rather than Pingora's, so that the handshake uses the certificates of the moment, is
//! limited in time and tells why it failed, and so that no more is buffered per connection than needed.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::http::server::Session as HttpSession;
use pingora::proxy::HttpProxy;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora::tls::ssl::NameType;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{timeout, timeout_at};
use tokio_openssl::SslStream;

use super::connection::{self, Admitted, Connection, Handshaken, ListenerShared};
use super::downstream::Downstream;
use super::maintenance::FleetOrders;
use super::shared::OpenConnection;
use super::socket::Sockets;
use super::tap::Tap;
use super::transport::Transport;
use super::wire::Wire;
use super::{Gateway, Shared};
use crate::observe::{
    ConnectionDenied, ConnectionRefusal, HandshakeRecord, HandshakeResult, HandshakesOmitted, Line, LineLimit,
};
use crate::policy::admission::{Admission, Permit};
use crate::policy::load::PeerLoads;
use crate::policy::overload::{PROBE_SLEEP, PROBES};
use crate::snapshot::{ListenerSnapshot, Snapshot};
use crate::tls;

/// After running out of file descriptors, wait this long before the next accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of answers that wait in the kernel for a client's window.
const UNSENT_MAX: u32 = 128 << 10;

/// Failed handshakes, and as many denied addresses, of a listener that are written down one by one, each second.
const FAILURE_LINES_MAX: u32 = 50;
/// Clients of a listener that were cut and are written down one by one, each second.
const CLOSING_LINES_MAX: u32 = 10;

/// How long an HTTP/2 client may take to act on GOAWAY, and an HTTP/1.1 client to send the request that it may be about to
/// send on a resting connection, when the process ends; not longer than half of `server.drain`.
const GOAWAY_WAIT: Duration = Duration::from_secs(2);
/// How often a connection that takes no more requests is looked at.
const IDLE_POLL: Duration = Duration::from_millis(20);
/// How long a client whose handshake failed may take to read the alert.
const ALERT_WAIT: Duration = Duration::from_millis(500);

/// Ends the sending half and reads what the client still sends: closing at once would reset the connection, and the
/// client would see that instead of the alert.
async fn let_alert_arrive(tcp: &mut TcpStream) {
    let mut rest = [0; 4096];
    if tcp.shutdown().await.is_ok() {
        let mut left: usize = 64 << 10;
        while let Ok(read @ 1..) = tcp.read(&mut rest).await {
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
    }
}

/// Sleeps on the threads that serve requests and notes how late it is woken, which is how late they get to any other
/// event too.
async fn watch_lag(shared: Arc<Shared>, first: Duration, mut stop: watch::Receiver<bool>) {
    let mut due = shared.clock.now() + first;
    while timeout_at(due.into(), stop.wait_for(|stop| *stop)).await.is_err() {
        let now = shared.clock.now();
        shared.lag.note(now.saturating_duration_since(due));
        shared.metrics.overload().set_lag(shared.lag.now());
        due = now + PROBE_SLEEP;
    }
    // Nobody looks any more: what is left to do is done.
    shared.lag.note(Duration::ZERO);
}

/// All public listeners of the gateway, on one runtime.
pub struct ListenerService {
    shared: Arc<Shared>,
    listeners: Vec<(Arc<Listener>, SocketAddr)>,
    threads: usize,
    sockets: Arc<Sockets>,
    begin: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
}

/// One public listener: what lives as long as the process does.
struct Listener {
    shared: Arc<Shared>,
    listener: Arc<ListenerShared>,
    proxy: Arc<HttpProxy<Gateway>>,
    failure_lines: LineLimit,
    /// The metric counts those that get no line.
    denied_lines: LineLimit,
}

impl ListenerService {
    /// A service for every listener of the present snapshot. `begin` turns true when connections are wanted, `stop` when no
    /// more are.
    pub fn new(
        shared: Arc<Shared>,
        proxy: impl Fn(&Arc<ListenerShared>) -> Arc<HttpProxy<Gateway>>,
        sockets: Arc<Sockets>,
        (begin, stop): (watch::Receiver<bool>, watch::Receiver<bool>),
    ) -> Self {
        let snapshot = shared.snapshot();
        let listeners = snapshot
            .config
            .listeners
            .iter()
            .enumerate()
            .map(|(index, config)| {
                let listener = Arc::new(ListenerShared {
                    name: config.name.clone(),
                    index,
                    metrics: shared.metrics.listener(config.name.as_str()),
                    admission: Admission::new(),
                    load: Arc::default(),
                    peer_loads: PeerLoads::default(),
                    closings: LineLimit::new(CLOSING_LINES_MAX),
                });
                let listener = Listener {
                    shared: shared.clone(),
                    proxy: proxy(&listener),
                    listener,
                    failure_lines: LineLimit::new(FAILURE_LINES_MAX),
                    denied_lines: LineLimit::new(FAILURE_LINES_MAX),
                };
                (Arc::new(listener), config.address)
            })
            .collect();
        Self { threads: snapshot.config.server.threads, shared, listeners, sockets, begin, stop }
    }
}

#[async_trait]
impl Service for ListenerService {
    async fn start_service(&mut self, _fds: Option<ListenFds>, _shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let mut loops = Vec::new();
        for probe in 0..PROBES {
            tokio::spawn(watch_lag(
                self.shared.clone(),
                PROBE_SLEEP * u32::try_from(probe).unwrap_or(0) / 4,
                self.stop.clone(),
            ));
        }
        // An error means that the sender is gone, and the process with it.
        let _ = self.begin.wait_for(|begin| *begin).await;
        let mut fleet = self.shared.maintenance.fleet_orders.subscribe();
        let _ = fleet.wait_for(|orders| *orders != FleetOrders::Awaited).await;
        for (listener, address) in self.listeners.drain(..) {
            match self.sockets.listener(address) {
                Ok(socket) => {
                    log::info!("listener {}: listening on {address}", listener.listener.name);
                    loops.push(tokio::spawn(listener.accept_loop(socket, self.stop.clone())));
                }
                Err(e) => {
                    log::error!("listener {}: cannot listen on {address}: {e}", listener.listener.name);
                    self.shared.fail(format!("cannot listen on {address}: {e}"));
                }
            }
        }
        if self.shared.failure().is_none() {
            self.shared.set_listening();
        }
        for accept_loop in loops {
            let _ = accept_loop.await;
        }
    }

    fn name(&self) -> &str {
        "listeners"
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

impl Listener {
    async fn accept_loop(self: Arc<Self>, socket: TcpListener, mut stop: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((tcp, remote)) => self.accepted(tcp, remote, &stop),
                Err(e) => {
                    log::error!("listener {}: accept: {e}", self.listener.name);
                    if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(socket);
        // Connections that wait for a next request are closed now; running requests go on.
        self.proxy.http_cleanup().await;
    }

    fn accepted(self: &Arc<Self>, tcp: TcpStream, remote: SocketAddr, stop: &watch::Receiver<bool>) {
        let snapshot = self.shared.snapshot();
        let Some(settings) = snapshot.listener(self.listener.index) else { return };
        self.listener.metrics.accepted();
        if settings.addresses.as_ref().is_some_and(|list| list.denies(remote.ip())) {
            return self.deny(remote);
        }
        if let Some(refusal) = self.shared.refuses_connection(&snapshot) {
            self.listener.metrics.refused(refusal);
            return;
        }
        let limits = settings.connection_limits(remote.ip());
        match self.listener.admission.admit(remote.ip(), &limits, self.shared.clock.now()) {
            Ok(permit) => {
                let open = self.shared.connection_opened();
                tokio::spawn(self.clone().serve(tcp, remote, (permit, open), snapshot.clone(), stop.clone()));
            }
            Err(refusal) => self.listener.metrics.refused(refusal),
        }
    }

    /// Turns a connection away by its address.
    fn deny(&self, remote: SocketAddr) {
        self.listener.metrics.refused(ConnectionRefusal::Denied);
        if self.denied_lines.admit(self.shared.clock.now()) == Line::Write {
            let (time, listener) = (self.shared.clock.wall(), self.listener.name.as_str());
            self.shared.log().record_denied(&ConnectionDenied { time, listener, client: remote.ip().to_canonical() });
        }
    }

    async fn serve(
        self: Arc<Self>,
        tcp: TcpStream,
        remote: SocketAddr,
        (mut permit, _open): (Permit, OpenConnection),
        snapshot: Arc<Snapshot>,
        stop: watch::Receiver<bool>,
    ) {
        let accepted = self.shared.clock.now();
        // Answers are gathered before they are sent; the kernel has nothing to wait for.
        let _ = tcp.set_nodelay(true);
        // Beyond what the client's window takes, little waits in the kernel: a client that does not read takes no memory
        // there either.
        let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT_MAX);
        let Some(settings) = snapshot.listener(self.listener.index) else { return };
        let deadlines = settings.deadlines;
        let age = settings.deadlines.connection_age;
        let Some(mut transport) = self.handshake(tcp, remote, settings).await else { return };
        permit.handshake_done();
        let mut handshaken = match (&transport, &settings.tls) {
            (Transport::Tls(stream), Some(context)) => {
                let client = context.client(stream.ssl(), self.shared.clock.unix_seconds());
                if client.is_none() && context.asks_clients() {
                    // A want of memory. Who can't be looked at again can't stay.
                    log::error!("listener {}: the client's chain can't be kept", self.listener.name);
                    return;
                }
                let identity = context.identity(stream.ssl()).map(Arc::new);
                Handshaken { tls: Some(tls::facts(stream.ssl())), identity, client, peer_load: None }
            }
            _ => Handshaken::default(),
        };
        if let Some(identity) = &handshaken.identity {
            let load = connection::peer_load(&self.listener, &snapshot, identity);
            let (place, connections) = load.connection();
            if settings.connections_per_peer.is_some_and(|most| connections > most) {
                self.listener.metrics.refused(ConnectionRefusal::PerPeer);
                // Whether the client hears of it is its own affair.
                let _ = timeout(ALERT_WAIT, poll_fn(|cx| transport.poll_shutdown(cx))).await;
                return;
            }
            handshaken.peer_load = Some((load, place));
        }
        let address_load = permit.load().clone();
        let admitted = Admitted::new(self.listener.clone(), remote, permit);
        // A connection holds no configuration while it rests.
        drop(snapshot);
        let (retire, retired) = watch::channel(false);
        let connection =
            Arc::new(Connection::new(self.listener.clone(), remote, handshaken, accepted, address_load, retire));
        let now = self.shared.clock.now();
        let unparsed = self.shared.clone();
        match Downstream::new(transport, connection.clone(), deadlines, unparsed, admitted, now) {
            Ok(downstream) if connection.http2 => self.speak_http2(downstream, connection, retired, stop, age).await,
            Ok(downstream) => self.speak_http1(downstream, connection, retired, stop).await,
            Err(e) => log::error!("listener {}: {e}", self.listener.name),
        }
    }

    /// Runs the TLS handshake. None: it failed, and has been counted and logged.
    async fn handshake(
        self: &Arc<Self>,
        tcp: TcpStream,
        remote: SocketAddr,
        settings: &ListenerSnapshot,
    ) -> Option<Transport> {
        let Some(context) = &settings.tls else { return Some(Transport::Plain(Tap::new(tcp))) };
        let _handshaking = self.listener.metrics.handshaking();
        let started = self.shared.clock.now();
        let stream =
            context.ssl(self.shared.clock.unix_seconds()).and_then(|ssl| SslStream::new(ssl, Wire::new(tcp, started)));
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                log::error!("listener {}: cannot begin a handshake: {e}", self.listener.name);
                return None;
            }
        };
        let outcome = timeout(settings.handshake, Pin::new(&mut stream).accept()).await;
        let took = self.shared.clock.now().saturating_duration_since(started);
        let failure = match outcome {
            Ok(Ok(())) => {
                self.listener.metrics.handshake(HandshakeResult::Ok, took);
                stream.get_mut().handshake_done();
                return Some(Transport::Tls(stream));
            }
            Ok(Err(error)) => {
                let failure = tls::classify(&error, stream.ssl());
                let tcp = stream.get_mut().tap_mut().tcp_mut();
                let _ = timeout(ALERT_WAIT, let_alert_arrive(tcp)).await;
                failure
            }
            Err(_) => tls::timed_out(stream.ssl()),
        };
        self.listener.metrics.handshake(failure.result, took);
        if !self.may_write_failure() {
            return None;
        }
        let record = HandshakeRecord {
            time: self.shared.clock.wall(),
            listener: self.listener.name.as_str(),
            client: remote.ip().to_canonical(),
            result: failure.result,
            detail: Some(&failure.detail),
            sni: stream.ssl().servername(NameType::HOST_NAME),
            tls_version: tls::offered(stream.ssl()),
            subject: failure.subject.as_deref(),
            issuer: failure.issuer.as_deref(),
            duration: took,
        };
        self.shared.recent.handshake_failed(&record);
        self.shared.log().record_handshake(&record);
        None
    }

    /// Whether one more failed handshake gets a line. For the first of a second that gets none, someone is set to tell
    /// how many there were, even if the attack ends then.
    fn may_write_failure(self: &Arc<Self>) -> bool {
        match self.failure_lines.admit(self.shared.clock.now()) {
            Line::Write => true,
            Line::Omit { tell_at } => {
                if let Some(at) = tell_at {
                    let this = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep_until(at.into()).await;
                        this.shared.log().record_handshakes_omitted(&HandshakesOmitted {
                            time: this.shared.clock.wall(),
                            listener: this.listener.name.as_str(),
                            count: this.failure_lines.take_omitted(),
                        });
                    });
                }
                false
            }
        }
    }

    async fn speak_http2(
        &self,
        downstream: Downstream,
        connection: Arc<Connection>,
        retired: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
        age: Duration,
    ) {
        // HTTP/2 is told to end by GOAWAY; HTTP/1.1 by `Connection: close` on the next answer.
        let http = self.proxy.process_new(Box::new(downstream), &retired);
        tokio::pin!(http);
        let old = tokio::time::sleep(age);
        tokio::pin!(old);
        let mut retiring = retired.clone();
        tokio::select! {
            biased;
            _ = &mut http => return,
            _ = &mut old => {}
            _ = stop.wait_for(|stop| *stop) => {}
            _ = retiring.wait_for(|retired| *retired) => {}
        }
        connection.retire();
        // A client in good order closes now, after its running streams. Another is not waited for: what it begins from
        // here on is refused, and the connection ends as soon as nothing runs on it.
        if timeout(GOAWAY_WAIT, &mut http).await.is_ok() {
            return;
        }
        connection.take_no_more();
        loop {
            tokio::select! {
                biased;
                _ = &mut http => return,
                () = tokio::time::sleep(IDLE_POLL) => if connection.is_idle() { return },
            }
        }
    }

    /// Waits until the process ends, and then for a request that may be on its way: closing the connection would cost it.
    async fn lets_go(&self, stop: &mut watch::Receiver<bool>) {
        let _ = stop.wait_for(|stop| *stop).await;
        tokio::time::sleep(GOAWAY_WAIT.min(self.shared.snapshot().config.server.drain / 2)).await;
    }

    /// One request after the other. Between two of them the connection holds neither session nor buffers: what Pingora
    /// allots to a request is allotted when the request has begun to arrive.
    async fn speak_http1(
        &self,
        downstream: Downstream,
        connection: Arc<Connection>,
        retired: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut downstream = Box::new(downstream);
        let mut settings: Option<HttpPersistentSettings> = None;
        loop {
            if !connection.read_ahead() {
                let comes = tokio::select! {
                    biased;
                    comes = downstream.next_request() => comes,
                    () = self.lets_go(&mut stop) => false,
                };
                if !comes {
                    // The client may be gone; then there is nobody to say good-bye to.
                    let _ = downstream.shutdown().await;
                    return;
                }
            }
            let mut session = HttpSession::new_http1(downstream);
            match settings.take() {
                Some(settings) => settings.apply_to_session(&mut session),
                // What the client asks for decides; this is only Pingora's default.
                None => session.set_keepalive(Some(60)),
            }
            let Some(reusable) = self.proxy.process_new_http(session, &retired).await else { return };
            let (stream, kept) = reusable.consume();
            let Ok(own) = stream.into_any().downcast::<Downstream>() else { return };
            downstream = own;
            settings = kept;
        }
    }
}
