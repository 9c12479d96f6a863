//! One request and its answer as a stream of HTTP/2, on a connection that others share: Pingora's client and its pool.

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use pingora::connectors::http::v2::{ConnectionRef, Connector};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v2::client::{Http2Session, drive_connection};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{Digest, GetSocketDigest, GetTimingDigest, Ssl, UniqueID};
use pingora::upstreams::peer::{ALPN, HttpPeer, Peer};
use pingora::{Error, ErrorType, OkOrErr, OrErr, Result};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Node;
use super::exchange::Request;
use super::http1::{FIELDS_MAX, HEAD_MAX};
use super::last_words::{Heard, LastWords};
use super::unread::{self, Unread, told_by_http2};

/// It keeps the connections. One for the process, as each reads the system's certificates.
static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| Connector::new(None));

/// Most that may be under way of all answers of a connection, and of one: 80 MB/s at a distance of 100 ms. As Pingora has it.
const WINDOW: u32 = 8 << 20;
/// Longest frame. As Pingora has it.
const FRAME_MAX: u32 = 64 << 10;
/// How many connections that rest are tried before a new one is made.
const REUSE_ATTEMPTS: u32 = 4;
/// The number of a connection's first stream (RFC 9113, section 5.1.1).
const FIRST_STREAM: u32 = 1;
/// How often it is waited until what lies on one has been read.
const LOOKS: u32 = 3;

/// The stream.
pub struct Http2 {
    /// Some, until it is dropped.
    session: Option<Http2Session>,
    /// What its connection is kept under, and for how long.
    peer: HttpPeer,
    idle: Duration,
    reused: bool,
    unread: Option<Unread>,
    /// How often something had been read on its connection when it began.
    heard: Option<u64>,
}

impl Http2 {
    pub(super) async fn connect(node: &Node) -> Result<Self> {
        let peer = node.peer_for_exchange();
        // A connection that is found to be broken says nothing of the next one.
        for _ in 0..REUSE_ATTEMPTS {
            let Ok(Some(session)) = CONNECTOR.reused_http_session(&peer).await else { break };
            if stays(&session).await {
                return Ok(Self::new(session, peer, node, true));
            }
            CONNECTOR.release_http_session(session, &peer, None);
        }
        let session = new_connection(&peer).await?;
        Ok(Self::new(session, peer, node, false))
    }

    fn new(session: Http2Session, peer: HttpPeer, node: &Node, reused: bool) -> Self {
        Self { session: Some(session), peer, idle: node.idle_limit(), reused, unread: None, heard: None }
    }

    pub(super) fn digest(&self) -> Option<&Digest> {
        self.session.as_ref()?.digest()
    }

    /// Whether the connection has carried others.
    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    /// What the node said of a request that it did not answer.
    pub(super) fn unread(&self) -> Option<Unread> {
        self.unread
    }

    /// No other request may go on the connection; it is closed when it carries none any more.
    pub(super) fn retire(&mut self) {
        if let Some(session) = &self.session {
            session.conn.mark_shutdown();
        }
    }

    /// Whether nothing has come on the whole connection since the request was sent.
    pub(super) fn is_silent(&self) -> bool {
        self.heard.is_some() && self.heard == self.times_heard()
    }

    fn times_heard(&self) -> Option<u64> {
        let told = self.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?;
        told.downcast_ref::<Heard>().map(Heard::times)
    }

    pub(super) async fn send(&mut self, request: &Request) -> Result<ResponseHeader> {
        let header = request.http2.clone().ok_or_else(|| Error::new_in(ErrorType::InternalError))?;
        self.heard = self.times_heard();
        let reused = self.reused;
        let session = self.session()?;
        let sent = send(session, header, &request.body).await;
        if let Err(error) = &sent {
            // In a burst the stream that a connection was made for may not be its first.
            let stream = session.take_request_body_writer().map(|writer| writer.stream_id());
            let first = stream.map_or(!reused, |id| u32::from(id) == FIRST_STREAM);
            self.unread = told_by_http2(error, first);
        }
        sent
    }

    pub(super) async fn body(&mut self) -> Result<Option<Bytes>> {
        self.session()?.read_response_body().await.map_err(|e| e.into_up())
    }

    pub(super) fn is_done(&self) -> bool {
        self.session.as_ref().is_none_or(Http2Session::response_finished)
    }

    fn session(&mut self) -> Result<&mut Http2Session> {
        self.session.as_mut().ok_or_else(|| Error::new_in(ErrorType::InternalError))
    }
}

impl Drop for Http2 {
    /// A stream that is not at its end is reset. Its place on the connection is free again in any case; and a connection
    /// without streams rests, and then ends by itself.
    fn drop(&mut self) {
        // Without a runtime, which the process ends with, there is nothing to rest in.
        if let Some(session) = self.session.take().filter(|_| Handle::try_current().is_ok()) {
            CONNECTOR.release_http_session(session, &self.peer, Some(self.idle));
        }
    }
}

/// As Pingora's `new_http_session`, but for [`LastWords`].
async fn new_connection(peer: &HttpPeer) -> Result<Http2Session> {
    let stream = CONNECTOR.transport().new_stream(peer).await?;
    if peer.is_tls() && !matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        return Error::e_explain(ErrorType::TLSHandshakeFailure, "the node does not speak HTTP/2");
    }
    let connection = handshake(LastWords::new(stream), peer.options.max_h2_streams).await?;
    let session = connection.spawn_stream().await?;
    let session = session.or_err(ErrorType::H2Error, "the node's new connection takes no stream")?;
    if connection.more_streams_allowed() {
        CONNECTOR.in_use_pool().insert(peer.reuse_hash(), connection);
    }
    Ok(session)
}

/// As Pingora's `handshake`, but that it limits the answers' headers: HPACK makes 16 MiB, `h2`'s limit, of a few KiB.
async fn handshake(stream: LastWords, streams_max: usize) -> Result<ConnectionRef> {
    let id = stream.id();
    // The one place where something can be left with a connection. There is no proxy.
    let told = Box::new(ResponseHeader::build_no_case(http::StatusCode::OK, Some(0))?);
    let told = ProxyDigest::new(told, Some(Box::new(stream.heard())));
    let digest = Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: Some(Arc::new(told)),
        socket_digest: stream.get_socket_digest(),
    };
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(streams_max)
        // Of the node's own, of which there are none.
        .max_concurrent_streams(1)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEAD_MAX as u32)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await;
    let (requests, connection) = handshake.or_err(ErrorType::HandshakeError, "during the handshake of HTTP/2")?;
    let (closed, is_closed) = watch::channel(false);
    let timed_out = Arc::new(AtomicBool::new(false));
    let streams_max = streams_max.min(connection.max_concurrent_send_streams());
    tokio::spawn(drive_connection(connection, id, closed, None, timed_out.clone()));
    Ok(ConnectionRef::new(requests, is_closed, timed_out, id, streams_max, digest))
}

/// Whether the connection is still there once what the node has said on it has been read, so far as it is read at once: the
/// end may have come unseen, and GOAWAY before it.
async fn stays(session: &Http2Session) -> bool {
    for _ in 0..LOOKS {
        // SAFETY: the number is that of the connection's socket. Once it is closed the number may be another's, of which it is
        // only asked whether something lies there unread; it is not kept.
        let socket = unsafe { BorrowedFd::borrow_raw(session.conn.id()) };
        if session.conn.is_closed() || unread::is_silent(socket) {
            break;
        }
        // Another task reads.
        tokio::task::yield_now().await;
    }
    !session.conn.is_closed()
}

async fn send(session: &mut Http2Session, header: RequestHeader, body: &Bytes) -> Result<ResponseHeader> {
    session.write_request_header(Box::new(header), body.is_empty()).map_err(|e| e.into_up())?;
    if !body.is_empty() {
        // A node may answer and close the stream before it has read everything: that answer counts.
        let _ = session.write_request_body(body.clone(), true).await;
    }
    session.read_response_header().await.map_err(|e| e.into_up())?;
    let header = session.response_header().cloned();
    let mut header = header.ok_or_else(|| Error::new_up(ErrorType::InvalidHTTPHeader))?;
    // Their size is limited where they are read.
    if header.headers.len() > FIELDS_MAX {
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "more than 128 header fields").into_up());
    }
    header.set_version(http::Version::HTTP_11);
    Ok(header)
}

impl Node {
    /// No request may go on one of its HTTP/2 connections any more: each is closed as soon as it carries none.
    pub(super) fn close_http2(&self) {
        let key = Peer::reuse_hash(&self.peer_for_exchange());
        let in_use = std::iter::from_fn(|| CONNECTOR.in_use_pool().get(key));
        let idle = std::iter::from_fn(|| CONNECTOR.idle_pool().get(&key));
        in_use.chain(idle).for_each(|connection| connection.mark_shutdown());
    }
}
