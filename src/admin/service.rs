//! The admin API on a socket: HTTP/1.1 in plain text, with time limits.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::Method;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::net::TcpStream as Socket;
use tokio::sync::watch;
use tokio::time::timeout;

use super::AdminState;
use super::answer::{Answer, Asked, answer};
use super::places::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX, Places};
use crate::observe::{Line, LineLimit};
use crate::proxy::socket::Sockets;

/// Lines a second about connections for which there is no place.
const CLOSED_LINES_MAX: u32 = 1;
/// From a connection's begin to the end of its first request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// From an answer to the end of the next request's header: longer than the minute between two scrapes.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Until the client has taken an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// After a failed accept, wait this long before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin listener as a service for Pingora's server.
pub struct AdminService {
    app: Arc<AdminApp>,
    address: SocketAddr,
    sockets: Arc<Sockets>,
    begin: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
}

impl AdminService {
    /// On the socket of `address`. `begin` turns true when connections are wanted, `stop` when no more are: then another
    /// process has the socket.
    pub fn new(
        state: Arc<AdminState>,
        address: SocketAddr,
        sockets: Arc<Sockets>,
        (begin, stop): (watch::Receiver<bool>, watch::Receiver<bool>),
    ) -> Self {
        Self { app: Arc::new(AdminApp::new(state)), address, sockets, begin, stop }
    }

    async fn accept_loop(&mut self) -> std::io::Result<()> {
        let _ = self.begin.wait_for(|begin| *begin).await;
        let socket = self.sockets.listener(self.address)?;
        log::info!("admin: listening on {}", self.address);
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = self.stop.wait_for(|stop| *stop) => return Ok(()),
            };
            match accepted {
                Ok((tcp, remote)) => {
                    let _ = tcp.set_nodelay(true);
                    let (app, stop) = (self.app.clone(), self.stop.clone());
                    tokio::spawn(async move { app.talk(tcp, remote.ip(), &stop).await });
                }
                Err(e) => {
                    log::error!("admin: accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[async_trait]
impl Service for AdminService {
    async fn start_service(&mut self, _fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        tokio::select! {
            ended = self.accept_loop() => if let Err(e) = ended {
                log::error!("admin: cannot listen on {}: {e}", self.address);
            },
            _ = shutdown.wait_for(|shutdown| *shutdown) => return,
        }
        // What was accepted is answered to the end.
        let _ = shutdown.wait_for(|shutdown| *shutdown).await;
    }

    fn name(&self) -> &str {
        "admin"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Speaks HTTP/1.1 on each connection of the admin listener.
pub struct AdminApp {
    state: Arc<AdminState>,
    places: Arc<Places>,
    closed_lines: LineLimit,
}

impl AdminApp {
    /// See [`AdminService`].
    pub fn new(state: Arc<AdminState>) -> Self {
        let closed_lines = LineLimit::new(CLOSED_LINES_MAX);
        Self { state, places: Arc::default(), closed_lines }
    }

    /// Answers all requests of a connection, if there is a place for it.
    pub async fn talk(self: &Arc<Self>, tcp: Socket, remote: IpAddr, shutdown: &ShutdownWatch) {
        let Some(_place) = self.places.take(remote) else { return self.tell_closed() };
        let mut next = self.serve(Box::new(TcpStream::from(tcp)), HEADER_TIMEOUT, shutdown).await;
        while let Some(stream) = next {
            next = self.serve(stream, KEEP_ALIVE, shutdown).await;
        }
    }

    /// Writes down that a connection was one too many; of a flood a line and a count each second.
    fn tell_closed(self: &Arc<Self>) {
        let tell = |closed: &str| {
            let places = format!("{CONNECTIONS_MAX} connections, or {CONNECTIONS_PER_ADDRESS_MAX} of one address");
            log::warn!("admin: more than {places}: {closed}");
        };
        match self.closed_lines.admit(Instant::now()) {
            Line::Write => tell("one is closed"),
            Line::Omit { tell_at: None } => {}
            Line::Omit { tell_at: Some(at) } => {
                let this = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(at.into()).await;
                    tell(&format!("{} more are closed", this.closed_lines.take_omitted()));
                });
            }
        }
    }

    /// Reads one request and answers it. Returns the connection if it can be used again.
    async fn serve(&self, stream: Stream, wait: Duration, shutdown: &ShutdownWatch) -> Option<Stream> {
        let mut session = ServerSession::new_http1(stream);
        match timeout(wait, session.read_request()).await {
            Ok(Ok(true)) => {}
            // Too slow, or gone.
            Err(_) | Ok(Ok(false)) => return None,
            Ok(Err(e)) => {
                // The error's text holds the request, and with it perhaps the secret.
                log::debug!("admin: a request can't be read: {:?}", e.etype());
                session.set_keepalive(None);
                let _ = timeout(WRITE_TIMEOUT, send(&mut session, Answer::bad_request(), true)).await;
                return None;
            }
        }
        // A body is not read; what follows on the connection then can't be told from it.
        if *shutdown.borrow() || !session.is_body_empty() {
            session.set_keepalive(None);
        }
        let head = session.req_header();
        let with_body = head.method != Method::HEAD;
        let answer = if head.method == Method::POST || head.method == Method::DELETE {
            // It may take its time, and probes of an orchestrator don't wait for it.
            let (state, head) = (self.state.clone(), head.clone());
            let doing = tokio::task::spawn_blocking(move || answer(&state, &asked(&head)));
            doing.await.unwrap_or_else(|_| Answer::internal())
        } else {
            answer(&self.state, &asked(head))
        };
        let sent = async {
            send(&mut session, answer, with_body).await?;
            session.finish().await
        };
        match timeout(WRITE_TIMEOUT, sent).await {
            Ok(Ok(reusable)) => reusable.map(|r| r.into_parts().0),
            // Gone, or doesn't read.
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

fn asked(head: &RequestHeader) -> Asked<'_> {
    let query = head.uri.query().unwrap_or_default();
    Asked { method: &head.method, path: head.uri.path(), query, headers: &head.headers }
}

async fn send(session: &mut ServerSession, answer: Answer, with_body: bool) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(8))?;
    for (name, value) in answer.headers() {
        head.insert_header(name, value)?;
    }
    session.write_response_header(Box::new(head)).await?;
    if with_body {
        session.write_response_body(answer.body.into(), true).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
