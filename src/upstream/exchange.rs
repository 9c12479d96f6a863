//! One request and its answer, on a connection to a node: HTTP/1.1 by our own [`Link`], HTTP/2 by [`Http2`].

use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use pingora::connectors::TransportConnector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::TcpKeepalive;
use pingora::{Error, ErrorType, OrErr, Result};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::breaker::Counted;
use super::http2::Http2;
use super::link::{Broken, Io, Link};
use super::unread::{self, Unread};
use super::{Node, Picked, Upstream};

/// For handshakes with HTTP/1.1 nodes. It keeps nothing.
static TLS: LazyLock<TransportConnector> = LazyLock::new(|| TransportConnector::new(None));

/// A request, ready to be sent, as often as a node has to be found for it.
pub struct Request {
    /// Its header, if the upstream speaks HTTP/2.
    pub http2: Option<RequestHeader>,
    /// Its header with the empty line after it, if the upstream speaks HTTP/1.1.
    pub http1: Bytes,
    /// All of its body.
    pub body: Bytes,
    /// Whether its answer has no body, whatever the header says: a HEAD.
    pub no_body: bool,
}

/// A request's connection to a node.
pub enum Exchange {
    /// A connection of its own.
    Http1(Box<Link>),
    /// A stream on a shared one.
    Http2(Box<Http2>),
}

impl Picked {
    /// A connection to the node: one that rests, or a new one, within the upstream's `timeouts.connect`.
    ///
    /// # Errors
    /// Nothing has been sent of the request; another node may have it.
    pub async fn connect(&self, upstream: &Upstream, now: Instant) -> Result<Exchange> {
        let node = self.node();
        let exchange = if node.speaks_http2() {
            Exchange::Http2(Box::new(Http2::connect(node).await?))
        } else if let Some(link) = node.take_idle(now) {
            Exchange::Http1(Box::new(link))
        } else {
            let counted = upstream.make_room(node);
            let mut link = connect_http1(node).await?;
            link.counts(counted);
            Exchange::Http1(Box::new(link))
        };
        // Also on a connection that rested: what is expected of the node may have changed meanwhile.
        node.check_proof(exchange.digest())?;
        Ok(exchange)
    }

    /// Takes a connection back after an answer that was read to its end.
    pub fn release(&self, exchange: Exchange, now: Instant) {
        let node = self.node();
        match exchange {
            Exchange::Http1(link) => node.keep_idle(*link, now),
            Exchange::Http2(mut stream) if node.is_retired() => stream.retire(),
            Exchange::Http2(_) => {}
        }
    }
}

/// How often a connection that rests is looked for, of which others take one after the other.
const ROOM_ATTEMPTS: u32 = 16;

impl Upstream {
    /// A place among `max_connections` for a connection to `node`; if all are taken, one that rests is closed. There is one,
    /// for the request has been let in, and of those there are no more than places: only if a reload has lowered the limit
    /// since may there be none, and then it is exceeded.
    fn make_room(&self, node: &Node) -> Counted {
        for _ in 0..ROOM_ATTEMPTS {
            if let Some(counted) = self.breaker.connection() {
                return counted;
            }
            let nodes = self.nodes();
            // The turn goes round, so that it is not always the same node's that is closed.
            let (before, after) = nodes.split_at(nodes.len().min(usize::from(node.index) + 1));
            if !after.iter().chain(before).any(|other| other.close_oldest_idle()) {
                break;
            }
        }
        self.breaker.connection_in_any_case()
    }
}

async fn connect_http1(node: &Node) -> Result<Link> {
    // Before the handshake: lists that come while it lasts are not known to have been asked.
    let generation = node.generation();
    if node.is_tls() {
        return Ok(Link::new(Io::Tls(TLS.new_stream(&node.peer_for_exchange()).await?), generation));
    }
    let address = node.address();
    let limit = node.connect_limit();
    let tcp = tokio::time::timeout(limit, TcpStream::connect(address)).await;
    let tcp = tcp.or_err_with(ErrorType::ConnectTimedout, || format!("connecting to {address}"))?;
    let tcp = tcp.map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
            std::io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, format!("connecting to {address}"), e)
    })?;
    tcp.set_nodelay(true).or_err(ErrorType::ConnectError, "TCP_NODELAY")?;
    watch_peer(&tcp, &super::peer::TCP_KEEPALIVE).or_err(ErrorType::ConnectError, "SO_KEEPALIVE")?;
    Ok(Link::new(Io::Plain(tcp), generation))
}

/// A machine that is gone is noticed, however silent an answer may be.
fn watch_peer(tcp: &TcpStream, keepalive: &TcpKeepalive) -> std::io::Result<()> {
    let socket = SockRef::from(tcp);
    let times = socket2::TcpKeepalive::new().with_time(keepalive.idle).with_interval(keepalive.interval);
    socket.set_tcp_keepalive(&times.with_retries(u32::try_from(keepalive.count).unwrap_or(u32::MAX)))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(keepalive.user_timeout))?;
    Ok(())
}

impl Exchange {
    /// What was found out about the node when the connection was made.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Exchange::Http1(link) => Some(link.digest()),
            Exchange::Http2(stream) => stream.digest(),
        }
    }

    /// Whether the connection has carried a request before.
    pub fn reused(&self) -> bool {
        match self {
            Exchange::Http1(link) => link.reused(),
            Exchange::Http2(stream) => stream.reused(),
        }
    }

    /// After [`Exchange::send`] has failed with `error`: whether the node may only have closed a connection that had rested,
    /// or, with HTTP/2, that had carried others; not if it said something, be it that it resets this stream.
    pub fn was_closed(&self, error: &Error) -> bool {
        self.reused()
            && match self {
                Exchange::Http1(_) => *error.etype() == ErrorType::ConnectionClosed,
                Exchange::Http2(_) => unread::closed_http2(error),
            }
    }

    /// After [`Exchange::send`] has failed: whether it is known that the node has read nothing of the request.
    pub fn unread(&self) -> Option<Unread> {
        match self {
            Exchange::Http1(link) => link.unread(),
            Exchange::Http2(stream) => stream.unread(),
        }
    }

    /// Whether nothing at all has come since the request was sent. `false` if the connection is the request's own.
    pub fn is_silent(&self) -> bool {
        match self {
            Exchange::Http1(_) => false,
            Exchange::Http2(stream) => stream.is_silent(),
        }
    }

    /// To be called if the node was waited for in vain: its connection may be dead, and no request may go on it any more. Those
    /// that are on it go on.
    pub fn retire(&mut self) {
        // One of HTTP/1.1 is closed with the exchange.
        if let Exchange::Http2(stream) = self {
            stream.retire();
        }
    }

    /// Sends the request and waits for the answer's header. To be called once.
    ///
    /// # Errors
    /// The connection broke, or what came is no answer.
    pub async fn send(&mut self, request: &Request) -> Result<ResponseHeader> {
        match self {
            Exchange::Http1(link) => {
                link.begin(request.http1.clone(), request.body.clone(), request.no_body);
                link.header().await.map_err(into_error)
            }
            Exchange::Http2(stream) => stream.send(request).await,
        }
    }

    /// The next piece of the answer's body; `None` is its end.
    ///
    /// # Errors
    /// The connection broke, or what came is no answer.
    pub async fn body(&mut self) -> Result<Option<Bytes>> {
        match self {
            Exchange::Http1(link) => link.body().await.map_err(into_error),
            Exchange::Http2(stream) => stream.body().await,
        }
    }

    /// Whether the answer's end has been read.
    pub fn is_done(&self) -> bool {
        match self {
            Exchange::Http1(link) => link.is_done(),
            Exchange::Http2(stream) => stream.is_done(),
        }
    }
}

fn into_error(broken: Broken) -> Box<Error> {
    let error = match broken {
        Broken::Malformed(why) => Error::explain(ErrorType::InvalidHTTPHeader, why.0),
        Broken::Closed { error: None } => {
            Error::explain(ErrorType::ConnectionClosed, "the node closed the connection before it answered")
        }
        Broken::Closed { error: Some(e) } => Error::because(ErrorType::ConnectionClosed, "before an answer", e),
        Broken::Io(e) => Error::because(ErrorType::ReadError, "inside the answer", e),
    };
    error.into_up()
}
