//! A connection to a node that speaks HTTP/1.1, and one exchange after the other on it.
//!
//! The whole request is in hand when it is sent, so head and body go out in one write; Pingora's own client writes them
//! apart, which is a system call more for each request and a segment more on the wire.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::{Digest, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::http1::{self, Body, Head, Malformed};
use super::unread::{self, Unread};

/// What is read at once. Small answers come in one piece; long ones are read in pieces that grow up to the greatest.
const READ_MIN: usize = 4 << 10;
const READ_MAX: usize = 64 << 10;
/// Informational answers (1xx) to one request. They are dropped: the client gets its own 100 from the gateway.
const INFORMATIONAL_MAX: u32 = 100;

/// Why an exchange broke.
#[derive(Debug)]
pub enum Broken {
    /// The answer is not one.
    Malformed(Malformed),
    /// The connection ended before the answer began.
    Closed {
        /// What the system said, if more than "end".
        error: Option<io::Error>,
    },
    /// The connection broke inside the answer.
    Io(io::Error),
}

impl From<Malformed> for Broken {
    fn from(why: Malformed) -> Self {
        Broken::Malformed(why)
    }
}

/// The transport below.
pub(super) enum Io {
    /// `http://`
    Plain(TcpStream),
    /// `https://`, its handshake done by Pingora.
    Tls(Stream),
}

/// A connection to a node.
pub struct Link {
    io: Io,
    /// What it was made with ([`super::Node::generation`]).
    generation: u64,
    buf: BytesMut,
    read_next: usize,
    digest: Digest,
    reused: bool,
    /// What was acknowledged when it was new; none where the system does not say.
    acknowledged: Option<u64>,
    /// Bytes of all requests that the system has taken.
    taken: u64,
    /// The present exchange.
    request: Outgoing,
    /// What was acknowledged, or had been written, before it.
    before: Option<u64>,
    unread: Option<Unread>,
    scanned: usize,
    informational: u32,
    body: Body,
    keep_alive: bool,
}

/// A request on its way.
#[derive(Default)]
struct Outgoing {
    head: Bytes,
    body: Bytes,
    /// Bytes of both that the system has taken.
    written: usize,
    flushed: bool,
    /// Writing failed; the node may have answered before that.
    failed: Option<io::Error>,
    no_body: bool,
}

impl Outgoing {
    fn is_written(&self) -> bool {
        self.written == self.head.len() + self.body.len()
    }
}

impl Link {
    pub(super) fn new(io: Io, generation: u64) -> Self {
        let digest = match &io {
            Io::Plain(_) => Digest::default(),
            Io::Tls(stream) => Digest { ssl_digest: stream.get_ssl_digest(), ..Digest::default() },
        };
        Self {
            acknowledged: unread::acknowledged(io.socket()),
            io,
            generation,
            buf: BytesMut::new(),
            read_next: READ_MIN,
            digest,
            reused: false,
            taken: 0,
            request: Outgoing::default(),
            before: None,
            unread: None,
            scanned: 0,
            informational: 0,
            body: Body::Length(0),
            keep_alive: false,
        }
    }

    /// Whether it has carried an exchange before.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// What was found out about the node when the connection was made.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Begins an exchange. `head` ends with the empty line; `no_body` says that it is a HEAD request.
    pub fn begin(&mut self, head: Bytes, body: Bytes, no_body: bool) {
        self.before = match &self.io {
            Io::Plain(_) => self.acknowledged.map(|first| first + self.taken),
            // What is written is not what is sent.
            Io::Tls(_) => unread::acknowledged(self.io.socket()),
        };
        self.unread = None;
        self.request = Outgoing { head, body, no_body, ..Outgoing::default() };
        self.scanned = 0;
        self.informational = 0;
        self.body = Body::Length(0);
        self.keep_alive = false;
    }

    /// The TLS material and the revocation lists that it was made with, as a number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it is known that the node has read nothing of the request whose [`Link::header`] failed.
    pub fn unread(&self) -> Option<Unread> {
        self.unread
    }

    /// Sends the request and waits for the answer's header; a node may answer before it has read everything. May be
    /// dropped and called again.
    ///
    /// # Errors
    /// See [`Broken`]; [`Link::unread`] then says whether the node can have read anything.
    pub async fn header(&mut self) -> Result<ResponseHeader, Broken> {
        let header = std::future::poll_fn(|cx| self.poll_header(cx)).await;
        if let Err(Broken::Closed { error }) = &header
            && self.was_unread(error.as_ref()).await
        {
            self.unread = Some(if self.reused { Unread::Closed } else { Unread::Refused });
        }
        header
    }

    async fn was_unread(&self, error: Option<&io::Error>) -> bool {
        if self.request.written == 0 {
            return true;
        }
        // Who has said anything may have read something.
        match self.before.filter(|_| self.buf.is_empty() && self.informational == 0) {
            Some(before) => unread::was_closed_before(self.io.socket(), before, error).await,
            None => false,
        }
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHeader, Broken>> {
        let sent = self.poll_send(cx);
        loop {
            if let Some(Head { header, body, keep_alive }) =
                http1::take_head(&mut self.buf, &mut self.scanned, self.request.no_body)?
            {
                if header.status == http::StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Err(Malformed("101, which nobody asked for").into()));
                }
                if header.status.is_informational() {
                    self.informational += 1;
                    if self.informational > INFORMATIONAL_MAX {
                        return Poll::Ready(Err(Malformed("too many informational answers").into()));
                    }
                    continue;
                }
                self.body = body;
                // Half a request leaves the connection where nobody knows where the next begins.
                self.keep_alive = keep_alive && sent.is_ready() && self.request.failed.is_none();
                return Poll::Ready(Ok(header));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Err(Broken::Closed { error: self.request.failed.take() })),
                Ok(_) => {}
                Err(e) => {
                    let error = self.request.failed.take().unwrap_or(e);
                    return Poll::Ready(Err(Broken::Closed { error: Some(error) }));
                }
            }
        }
    }

    /// Ready: nothing is left to be sent, or nothing more can be.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { io, request, taken, .. } = self;
        while !request.is_written() && request.failed.is_none() {
            let head = request.head.get(request.written..).unwrap_or_default();
            let body = &request.body[request.written.saturating_sub(request.head.len())..];
            match ready!(io.poll_write_both(cx, head, body)) {
                Ok(0) => request.failed = Some(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    request.written += n;
                    *taken += n as u64;
                }
                Err(e) => request.failed = Some(e),
            }
        }
        if !request.flushed && request.failed.is_none() {
            match ready!(Pin::new(io).poll_flush(cx)) {
                Ok(()) => request.flushed = true,
                Err(e) => request.failed = Some(e),
            }
        }
        Poll::Ready(())
    }

    /// The next piece of the answer's body; `None` is its end. May be dropped and called again.
    ///
    /// # Errors
    /// See [`Broken`]; what has been passed on is not the whole.
    pub async fn body(&mut self) -> Result<Option<Bytes>, Broken> {
        std::future::poll_fn(|cx| self.poll_body(cx)).await
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        loop {
            if self.body.is_done() {
                return Poll::Ready(Ok(None));
            }
            if let Some(piece) = self.body.take(&mut self.buf)? {
                return Poll::Ready(Ok(Some(piece)));
            }
            if self.body.is_done() {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => self.body.closed()?,
                Ok(_) => {}
                Err(e) => return Poll::Ready(Err(Broken::Io(e))),
            }
        }
    }

    /// Whether the answer's end has been read, without reading on.
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// Reads more. A rest of the request is sent meanwhile: the node may be reading on while it answers.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.request.is_written() {
            let _ = self.poll_send(cx);
        }
        let before = self.buf.len();
        if self.buf.is_empty() && !self.buf.try_reclaim(self.read_next) {
            // To grow it would copy what nobody needs any more.
            self.buf = BytesMut::with_capacity(self.read_next);
        }
        self.buf.reserve(self.read_next);
        let read = {
            let mut room = ReadBuf::uninit(self.buf.spare_capacity_mut());
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut room))?;
            room.filled().len()
        };
        // SAFETY: `poll_read` has filled, and so initialised, the first `read` bytes of the spare capacity.
        unsafe { self.buf.set_len(before + read) };
        if read >= self.read_next {
            self.read_next = (self.read_next * 2).min(READ_MAX);
        }
        Poll::Ready(Ok(read))
    }

    /// Whether the next request may go this way: the answer is whole, nothing came after it, and the node stays.
    pub(super) fn may_rest(&self) -> bool {
        self.keep_alive && self.body.is_done() && self.buf.is_empty()
    }

    /// To be called before it rests: lets go of everything of the exchange that ended.
    pub(super) fn rest(&mut self) {
        self.request = Outgoing::default();
        self.buf = BytesMut::new();
        self.read_next = READ_MIN;
        self.reused = true;
    }

    /// Whether a resting connection is still open. A node that says something unasked is as good as gone.
    pub(super) fn is_alive(&mut self) -> bool {
        if !unread::is_silent(self.io.socket()) {
            return false;
        }
        if let Io::Plain(_) = self.io {
            return true;
        }
        // TLS may have read more than it has given.
        let mut room = [0; 1];
        let mut room = ReadBuf::new(&mut room);
        // Who is going to wait for it will tell its own waker.
        Pin::new(&mut self.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut room).is_pending()
    }
}

impl Io {
    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Io::Plain(tcp) => tcp.as_fd(),
            // SAFETY: that of the socket below the stream, which is open as long as the stream is, and so is `self`.
            Io::Tls(stream) => unsafe { BorrowedFd::borrow_raw(stream.id()) },
        }
    }

    fn poll_write_both(&mut self, cx: &mut Context<'_>, head: &[u8], body: &[u8]) -> Poll<io::Result<usize>> {
        let io = Pin::new(self);
        match (head.is_empty(), body.is_empty()) {
            (true, _) => io.poll_write(cx, body),
            (false, true) => io.poll_write(cx, head),
            (false, false) => io.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
