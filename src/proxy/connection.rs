//! A client's connection: what is known about it from accept to close, and the phase that it is in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::Shared;
use crate::identity::PeerIdentity;
use crate::names::ListenerName;
use crate::observe::{CloseReason, Line, LineLimit, ListenerMetrics, Metrics, OcspResult};
use crate::policy::admission::{Admission, Permit};
use crate::policy::load::{Load, PeerLoads, Place};
use crate::policy::peers::Peer;
use crate::snapshot::Snapshot;
use crate::tls::{self, Alpn, ClientChain, ConnectionFacts, Gone, Ocsp, OcspVerdict, Standing};

/// Malformed or misdirected requests after which a connection of HTTP/2 is told to end.
const REFUSED_MAX: u32 = 32;
/// After so many it is cut: who goes on after the first is answered no more.
const REFUSED_CUT: u32 = 64;

/// What every connection of one listener shares, for as long as the process lives.
pub struct ListenerShared {
    /// From the configuration.
    pub name: ListenerName,
    /// Its slot, for [`Snapshot::listener`]: the same for as long as the process lives.
    pub index: usize,
    /// Counters with this listener's label.
    pub metrics: Arc<ListenerMetrics>,
    /// Who is connected.
    pub admission: Arc<Admission>,
    /// What the listener has under way.
    pub load: Arc<Load>,
    /// What each peer has.
    pub peer_loads: PeerLoads,
    /// Lines about clients that were cut.
    pub closings: LineLimit,
}

impl ListenerShared {
    /// Writes down that a client was cut for what it did; in a flood some of them and a count.
    fn tell_closed(&self, remote: SocketAddr, reason: CloseReason) {
        if self.closings.admit(Instant::now()) != Line::Write {
            return;
        }
        let more = match self.closings.take_omitted() {
            0 => String::new(),
            more => format!("; {more} more before it were not written down"),
        };
        let address = remote.ip().to_canonical();
        log::warn!("listener {}: connection of {address} cut: {}{more}", self.name, reason.as_str());
    }
}

/// A connection that got in, from the end of its handshake to its close: its place, and the reason of its end.
pub struct Admitted {
    listener: Arc<ListenerShared>,
    remote: SocketAddr,
    reason: CloseReason,
    _permit: Permit,
}

impl Admitted {
    /// Counts the connection as open.
    pub fn new(listener: Arc<ListenerShared>, remote: SocketAddr, permit: Permit) -> Self {
        listener.metrics.opened();
        Self { listener, remote, reason: CloseReason::Normal, _permit: permit }
    }

    /// Why it will be said to have ended; the first reason counts.
    pub fn ends_for(&mut self, reason: CloseReason) {
        if self.reason == CloseReason::Normal {
            self.reason = reason;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.listener.metrics.closed(self.reason);
        if self.reason.is_hostile() {
            self.listener.tell_closed(self.remote, self.reason);
        }
    }
}

/// Where an HTTP/1.1 connection is between two requests. HTTP/2 connections stay `Busy`; frames tell there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Waiting for a request's first byte.
    Idle = 0,
    /// A request has begun to arrive, its header is not whole.
    Head = 1,
    /// A request is being served.
    Busy = 2,
    /// It has been read whole, and its answer is waited for or passed on. What the client sends now stays unread.
    Waiting = 3,
    /// The request is done; what is still written belongs to it.
    Ending = 4,
}

/// One client connection. Shared by its I/O and its requests.
pub struct Connection {
    /// Which listener accepted it.
    pub listener: Arc<ListenerShared>,
    /// Who is at the other end of the socket.
    pub remote: SocketAddr,
    /// What the handshake agreed on; none on a plain listener.
    pub tls: Option<ConnectionFacts>,
    /// The client's certificate; none where nobody is asked for one.
    pub identity: Option<Arc<PeerIdentity>>,
    /// HTTP/2 by ALPN.
    pub http2: bool,
    /// When it was accepted.
    pub accepted: Instant,
    requests: AtomicU32,
    /// HTTP/2 streams that are being served.
    streams: AtomicU32,
    phase: AtomicU8,
    /// Nanoseconds from `accepted` to the end of the last request.
    idle_since_ns: AtomicU64,
    /// Bytes of the present request that have been read, as far as its connection knows where it began.
    read: AtomicU64,
    /// More than the last request may have been read: the next one's beginning is then in Pingora's hands.
    read_ahead: AtomicBool,
    /// The request line had bytes that the HTTP parser would have rewritten.
    odd_request_line: AtomicU8,
    /// The peer that this certificate belongs to, as one generation of the configuration sees it.
    peer: ArcSwapOption<(u64, Option<Arc<Peer>>)>,
    /// What its address has under way.
    pub address_load: Arc<Load>,
    /// What its peer has, and its own part of that. None where nobody shows a certificate.
    peer_load: Option<(Arc<Load>, Place)>,
    /// The client's certificates, to look at again. None where nobody is asked for one.
    client: Option<ClientChain>,
    /// How they stood when they were last looked at.
    standing: ArcSwapOption<Standing>,
    /// Until when the OCSP responder's answer holds, seconds since 1970, and a turn for each who would ask.
    ocsp_until: AtomicI64,
    ocsp_turn: tokio::sync::Mutex<()>,
    /// Why the last answer sends the client away, if it does.
    ocsp_gone: ArcSwapOption<Gone>,
    retire: watch::Sender<bool>,
    /// No new request is taken.
    full: AtomicBool,
    /// Why the connection will have ended, as an index of [`CloseReason::ALL`] and one; 0: nothing special.
    ends_for: AtomicU8,
    /// Requests whose refusal would have ended a connection of HTTP/1.1.
    refused: AtomicU32,
}

/// What a handshake brought.
#[derive(Default)]
pub struct Handshaken {
    /// What was agreed on.
    pub tls: Option<ConnectionFacts>,
    /// Who the client is.
    pub identity: Option<Arc<PeerIdentity>>,
    /// The client's certificates, and how they stand.
    pub client: Option<(ClientChain, Standing)>,
    /// What its peer has under way, and its own part of that.
    pub peer_load: Option<(Arc<Load>, Place)>,
}

/// What the peer of a certificate has under way at a listener; of a certificate of no peer, what that one has.
pub fn peer_load(listener: &ListenerShared, snapshot: &Snapshot, identity: &PeerIdentity) -> Arc<Load> {
    let key = match (snapshot.peers.find(identity), &identity.spiffe_id) {
        (Some(peer), _) => peer.name.as_str().as_bytes(),
        (None, Some(id)) => id.as_str().as_bytes(),
        (None, None) => &identity.fingerprint,
    };
    listener.peer_loads.of(key)
}

impl Connection {
    /// A connection whose handshake is done. Turning `retire` true lets it end after its running requests.
    pub fn new(
        listener: Arc<ListenerShared>,
        remote: SocketAddr,
        handshake: Handshaken,
        accepted: Instant,
        address_load: Arc<Load>,
        retire: watch::Sender<bool>,
    ) -> Self {
        let Handshaken { tls, identity, client, peer_load } = handshake;
        let (client, standing) = client.unzip();
        let http2 = tls.as_ref().is_some_and(|t| t.alpn == Alpn::Http2);
        Self {
            listener,
            remote,
            tls,
            identity,
            http2,
            accepted,
            requests: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            phase: AtomicU8::new(if http2 { Phase::Busy } else { Phase::Idle } as u8),
            idle_since_ns: AtomicU64::new(0),
            read: AtomicU64::new(0),
            read_ahead: AtomicBool::new(false),
            odd_request_line: AtomicU8::new(0),
            peer: ArcSwapOption::empty(),
            address_load,
            peer_load,
            client,
            standing: ArcSwapOption::from_pointee(standing),
            ocsp_until: AtomicI64::new(i64::MIN),
            ocsp_turn: tokio::sync::Mutex::new(()),
            ocsp_gone: ArcSwapOption::empty(),
            retire,
            full: AtomicBool::new(false),
            ends_for: AtomicU8::new(0),
            refused: AtomicU32::new(0),
        }
    }

    /// The socket's other end, IPv4 in IPv6 unwrapped.
    pub fn remote_ip(&self) -> IpAddr {
        self.remote.ip().to_canonical()
    }

    /// The peer of this connection's certificate, looked up once per configuration.
    pub fn peer(&self, snapshot: &Snapshot) -> Option<Arc<Peer>> {
        let identity = self.identity.as_ref()?;
        if let Some(known) = self.peer.load().as_ref()
            && known.0 == snapshot.generation
        {
            return known.1.clone();
        }
        let found = snapshot.peers.find(identity).cloned();
        self.peer.store(Some(Arc::new((snapshot.generation, found.clone()))));
        found
    }

    /// What its peer has under way.
    pub fn peer_load(&self) -> Option<&Arc<Load>> {
        self.peer_load.as_ref().map(|(load, _)| load)
    }

    /// Why the client may not stay, if so, by what the snapshot trusts and `now_unix`. Three comparisons unless something
    /// has changed since it was last asked.
    pub fn gone(&self, snapshot: &Snapshot, now_unix: i64) -> Option<Gone> {
        let context = snapshot.listener(self.listener.index)?.tls.as_ref()?;
        let Some(client) = &self.client else {
            // A reload has begun to ask for certificates, and this connection is older.
            return context.asks_clients().then_some(Gone::NotTrusted);
        };
        let before = self.standing.load();
        let before = before.as_ref()?;
        match context.standing(client, before, now_unix) {
            None => before.gone(),
            Some(after) => {
                let gone = after.gone();
                self.standing.store(Some(Arc::new(after)));
                gone
            }
        }
    }

    /// Waits for the revocation lists that the client's certificates name, if it came in before they were there: at most
    /// `within`, and not for a list that was asked for in vain. Why the client may not stay afterwards, if so.
    pub async fn await_lists(&self, shared: &Shared, within: Duration) -> Option<Gone> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            // Before the lists are looked at: one that comes meanwhile must not be missed.
            let asked = tls::crl_asked();
            let (snapshot, now_unix) = (shared.snapshot(), shared.clock.unix_seconds());
            let gone = self.gone(&snapshot, now_unix);
            if gone != Some(Gone::StatusUnknown) {
                return gone;
            }
            let revocation = snapshot.listener(self.listener.index)?.tls.as_ref()?.revocation()?;
            let standing = self.standing.load_full()?;
            if !revocation.awaits(standing.links(), now_unix) || tokio::time::timeout_at(deadline, asked).await.is_err()
            {
                return gone;
            }
        }
    }

    /// Asks the OCSP responder about the client where that is due; many requests at once ask once. Why the client may not
    /// stay, if so.
    pub async fn ask_responder(&self, ocsp: &Ocsp, metrics: &Metrics, now_unix: i64) -> Option<Gone> {
        let client = self.client.as_ref()?;
        if !self.responder_is_due(now_unix) {
            return None;
        }
        let _turn = self.ocsp_turn.lock().await;
        if !self.responder_is_due(now_unix) {
            return None;
        }
        let (leaf, issuer) = client.leaf_and_issuer();
        let (answer, why) = ocsp.check(leaf, issuer, now_unix).await;
        let listener = self.listener.name.as_str();
        if let Some(why) = why {
            log::warn!("listener {listener}: OCSP: {why}");
        }
        if answer.fresh {
            metrics.ocsp_answered(
                listener,
                match answer.verdict {
                    OcspVerdict::Good => OcspResult::Good,
                    OcspVerdict::Revoked => OcspResult::Revoked,
                    OcspVerdict::Unknown => OcspResult::Unknown,
                },
            );
        }
        let gone = match answer.verdict {
            OcspVerdict::Good => None,
            OcspVerdict::Revoked => Some(Gone::Revoked),
            OcspVerdict::Unknown if ocsp.accepts_unknown() => None,
            OcspVerdict::Unknown => Some(Gone::StatusUnknown),
        };
        self.ocsp_gone.store(gone.map(Arc::new));
        if gone.is_none() {
            self.ocsp_until.store(answer.until, Ordering::Relaxed);
        }
        gone
    }

    /// Whether the OCSP responder's last good answer has run out, or there was none.
    pub fn responder_is_due(&self, now_unix: i64) -> bool {
        now_unix >= self.ocsp_until.load(Ordering::Relaxed)
    }

    /// Why the OCSP responder's last answer sends the client away, if it does.
    pub fn told_by_responder(&self) -> Option<Gone> {
        self.ocsp_gone.load().as_deref().copied()
    }

    /// A request's header is whole. Returns how many there have been, this one included.
    pub fn begin_request(&self) -> u32 {
        self.set_phase(Phase::Busy);
        if self.streams.fetch_add(1, Ordering::Relaxed) == 0 {
            self.listener.metrics.works();
        }
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The request is answered; the next one may come.
    pub fn end_request(&self, now: Instant) {
        if self.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.listener.metrics.rests();
        }
        let ns = now.saturating_duration_since(self.accepted).as_nanos();
        self.idle_since_ns.store(u64::try_from(ns).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.set_phase(Phase::Ending);
    }

    /// Whether nothing is being served.
    pub fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
    }

    /// Since when nothing has been asked.
    pub fn idle_since(&self) -> Instant {
        self.accepted + Duration::from_nanos(self.idle_since_ns.load(Ordering::Relaxed))
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Busy,
            3 => Phase::Waiting,
            _ => Phase::Ending,
        }
    }

    /// Changes the phase. On HTTP/2 nothing changes.
    pub fn set_phase(&self, phase: Phase) {
        if !self.http2 {
            self.phase.store(phase as u8, Ordering::Release);
        }
    }

    /// A request's first bytes have been read.
    pub fn begin_reading(&self, bytes: usize) {
        self.set_phase(Phase::Head);
        self.read.store(bytes as u64, Ordering::Relaxed);
    }

    /// More of it has.
    pub fn go_on_reading(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The request's header of `header` bytes has `body` bytes behind it; `None`: nobody knows (chunked).
    pub fn request_was(&self, header: u64, body: Option<u64>) {
        // What is kept of a request that came early may be followed by another one.
        let early = self.came_early(header);
        let read = self.read.swap(0, Ordering::Relaxed);
        let ahead = early || body.is_none_or(|body| read > header + body);
        self.read_ahead.store(ahead, Ordering::Relaxed);
    }

    /// Whether the present request, or its beginning, was read together with the one before.
    fn came_early(&self, header: u64) -> bool {
        !self.http2 && self.read.load(Ordering::Relaxed) < header
    }

    /// Whether the present request's line went by unseen, or may have.
    pub fn line_unseen(&self, header: u64) -> bool {
        !self.http2 && (self.read_ahead() || self.came_early(header))
    }

    /// Whether a part of the next request may have been read already.
    pub fn read_ahead(&self) -> bool {
        self.read_ahead.load(Ordering::Relaxed)
    }

    /// Remembers that the request line held bytes which no request line may hold.
    pub fn mark_odd_request_line(&self) {
        self.odd_request_line.store(1, Ordering::Relaxed);
    }

    /// Whether it did, for the request that begins now; forgets it.
    pub fn take_odd_request_line(&self) -> bool {
        self.odd_request_line.load(Ordering::Relaxed) != 0 && self.odd_request_line.swap(0, Ordering::Relaxed) != 0
    }

    /// Refuses what is begun from here on.
    pub fn take_no_more(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// Whether new requests are refused.
    pub fn takes_no_more(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// The connection will end with the present request, for this reason. HTTP/2 connections outlive their requests.
    pub fn ends_for(&self, reason: CloseReason) {
        if !self.http2 {
            let index = u8::try_from(reason.index() + 1).unwrap_or(0);
            let _ = self.ends_for.compare_exchange(0, index, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Why it will have ended, if anybody said.
    pub fn end(&self) -> Option<CloseReason> {
        let index = usize::from(self.ends_for.load(Ordering::Relaxed)).checked_sub(1)?;
        CloseReason::ALL.get(index).copied()
    }

    /// A request was refused in such a way that HTTP/1.1's connection ends. Others may be under way on one of HTTP/2, so that
    /// ends only after some of them: each costs the client less than us.
    pub fn refused(&self) {
        if self.http2 && self.refused.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSED_MAX {
            self.retire();
        }
    }

    /// Whether it has gone on with such requests, so that it is to be cut.
    pub fn is_hopeless(&self) -> bool {
        self.refused.load(Ordering::Relaxed) >= REFUSED_CUT
    }

    /// Lets the connection end after its running requests: HTTP/2 sends GOAWAY.
    pub fn retire(&self) {
        let _ = self.retire.send_replace(true);
    }
}
