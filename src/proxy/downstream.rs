//! The I/O of a client's connection: TLS or plain TCP below, Pingora's HTTP above, and the limits in time that Pingora
//! has not: header, idle, unread answer, HTTP/2 preface and frames.
//!
//! Writes are gathered until they are flushed, so that an answer's header and body leave in one TLS record and one
//! system call. Nothing is buffered for reading below TLS but what OpenSSL itself needs, and that is released when idle.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::protocols::SocketDigest;
use pingora::protocols::raw_connect::ProxyDigest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::connection::{Admitted, Connection, Phase};
use super::frames::{Frames, GOAWAY_CALM, given_up};
use super::transport::Transport;
use crate::observe::CloseReason;
use crate::snapshot::Deadlines;

mod request_line;
mod stream;

pub use request_line::RequestLine;

/// Writes are gathered up to this size: one TLS record.
const GATHER_MAX: usize = 16 << 10;
/// So much is kept of a request line.
const LINE_KEPT_MAX: usize = 512;

/// What the client is told when the HTTP parser gives up before there is a request to refuse.
pub const MALFORMED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 74\r\n\
cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n\
{\"error\":\"bad_request\",\"message\":\"The request is malformed or ambiguous.\"}";

/// What the client is told when its header is longer than the limit and still not whole.
pub const HEADER_TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
content-type: application/json\r\ncontent-length: 73\r\ncache-control: no-store\r\n\
x-content-type-options: nosniff\r\nconnection: close\r\n\r\n\
{\"error\":\"header_too_large\",\"message\":\"The request header is too large.\"}";

/// The same when already its request line is (RFC 9112, section 3).
pub const URI_TOO_LONG: &[u8] =
    b"HTTP/1.1 414 URI Too Long\r\ncontent-type: application/json\r\ncontent-length: 68\r\n\
cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n\
{\"error\":\"uri_too_long\",\"message\":\"The request target is too long.\"}";

/// Told of requests that end before they are one.
pub trait Unparsed: Send + Sync {
    /// The client was answered on `connection`.
    fn refused(&self, connection: &Connection, answer: &UnparsedAnswer<'_>);
}

/// What the client of such a request is told.
pub struct UnparsedAnswer<'a> {
    /// Of the answer.
    pub status: u16,
    /// As [`crate::refusal::Refusal::code`].
    pub code: &'static str,
    /// Made here, for whatever the client sent as one was not read.
    pub request_id: &'a str,
    /// Of the answer.
    pub body_bytes: usize,
    /// Of the request, as far as it came.
    pub line: RequestLine<'a>,
    /// Since the first byte of what was to be one.
    pub took: Duration,
}

/// A client's connection as Pingora sees it.
pub struct Downstream {
    transport: Transport,
    connection: Arc<Connection>,
    deadlines: Deadlines,
    unparsed: Arc<dyn Unparsed>,
    /// Carries the connection to the requests: the only place of a session's digest that takes a value of ours.
    digest: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
    timer: Option<Pin<Box<Sleep>>>,
    gathered: Vec<u8>,
    gathered_sent: usize,
    /// The thread's other tasks have been let go first: what is gathered is sent by the next flush.
    others_went: bool,
    /// When the request's first byte came, and how many have come, while its header is not whole.
    head_since: Instant,
    head_bytes: usize,
    request_line_done: bool,
    request_line_spaces: usize,
    request_line_bytes: usize,
    /// Its beginning, for the log if the parser refuses it.
    request_line: Vec<u8>,
    /// Since when the client has taken less than it was given.
    stuck_since: Option<Instant>,
    /// And how much since then.
    stuck_took: usize,
    frames: Option<Frames>,
    /// There is something unread of the client, behind which its end is looked for.
    unread: bool,
    /// The parser's own answer was replaced; what else it writes is dropped.
    replaced: bool,
    admitted: Admitted,
}

impl fmt::Debug for Downstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downstream").field("remote", &self.connection.remote).finish_non_exhaustive()
    }
}

impl Downstream {
    /// Wraps a connection whose handshake is done.
    ///
    /// # Errors
    /// Never in practice: only if a constant status were not one.
    pub fn new(
        transport: Transport,
        connection: Arc<Connection>,
        deadlines: Deadlines,
        unparsed: Arc<dyn Unparsed>,
        admitted: Admitted,
        now: Instant,
    ) -> pingora::Result<Self> {
        let header = Box::new(ResponseHeader::build(StatusCode::OK, Some(0))?);
        let digest = Arc::new(ProxyDigest::new(header, Some(Box::new(connection.clone()))));
        let socket = Arc::new(SocketDigest::from_raw_fd(transport.tcp().as_raw_fd()));
        let frames = connection.http2.then(|| Frames::new(now));
        Ok(Self {
            transport,
            connection,
            deadlines,
            unparsed,
            digest,
            socket,
            timer: None,
            gathered: Vec::new(),
            gathered_sent: 0,
            others_went: false,
            head_since: now,
            head_bytes: 0,
            request_line_done: false,
            request_line_spaces: 0,
            request_line_bytes: 0,
            request_line: Vec::new(),
            stuck_since: None,
            stuck_took: 0,
            frames,
            unread: false,
            replaced: false,
            admitted,
        })
    }

    /// Waits for a request's first byte and leaves it unread. False: the client is gone, or rested too long.
    pub async fn next_request(&mut self) -> bool {
        poll_fn(|cx| {
            let mut byte = [0];
            match self.transport.poll_peek(cx, &mut byte) {
                Poll::Ready(peeked) => {
                    if self.transport.flooded() {
                        self.admitted.ends_for(CloseReason::TlsFlood);
                    }
                    Poll::Ready(peeked.is_ok_and(|n| n > 0))
                }
                Poll::Pending => {
                    self.gathered = Vec::new();
                    self.poll_deadline(cx).map(|_| false)
                }
            }
        })
        .await
    }

    /// When this connection has to have read something, if it has to.
    fn read_deadline(&self) -> Option<(Instant, CloseReason)> {
        if let Some(frames) = &self.frames {
            let unfinished = frames.deadline(self.deadlines.request_header, self.deadlines.request_body);
            let idle = || (self.connection.idle_since() + self.deadlines.idle, CloseReason::Idle);
            return unfinished.or_else(|| self.connection.is_idle().then(idle));
        }
        match self.connection.phase() {
            Phase::Idle | Phase::Ending => {
                let idle = (self.connection.idle_since() + self.deadlines.idle, CloseReason::Idle);
                let old = (self.connection.accepted + self.deadlines.connection_age, CloseReason::Age);
                Some(if old.0 < idle.0 { old } else { idle })
            }
            Phase::Head => Some((self.head_since + self.deadlines.request_header, CloseReason::HeaderTimeout)),
            Phase::Busy | Phase::Waiting => None,
        }
    }

    fn write_deadline(&self) -> Option<(Instant, CloseReason)> {
        self.stuck_since.map(|since| (since + self.deadlines.write, CloseReason::WriteTimeout))
    }

    /// Ready when the nearer of both deadlines has passed; otherwise leaves a wake-up for it. The timer is moved only
    /// to an earlier time: on a busy connection it is touched once per time limit, not once per request.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let nearest = match (self.read_deadline(), self.write_deadline()) {
                (Some(r), Some(w)) => Some(if r.0 <= w.0 { r } else { w }),
                (one, other) => one.or(other),
            };
            let Some((deadline, reason)) = nearest else { return Poll::Pending };
            let deadline = tokio::time::Instant::from_std(deadline);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                self.admitted.ends_for(reason);
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, reason.as_str()));
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Keeps the phase and the counts of an HTTP/1.1 header, or of HTTP/2's frames.
    ///
    /// # Errors
    /// A flood of frames: the connection ends.
    fn after_read(&mut self, bytes: &[u8]) -> Result<(), CloseReason> {
        self.transport.carried(bytes.len());
        if let Some(frames) = &mut self.frames {
            return frames.read(bytes, Instant::now);
        }
        match self.connection.phase() {
            Phase::Busy | Phase::Waiting => {
                self.connection.go_on_reading(bytes.len());
                return Ok(());
            }
            Phase::Idle | Phase::Ending => {
                self.connection.begin_reading(bytes.len());
                self.head_since = Instant::now();
                self.head_bytes = 0;
                // Behind bytes that Pingora may hold already these are not a request's first.
                self.request_line_done = self.connection.read_ahead();
                self.request_line_spaces = 0;
                self.request_line_bytes = 0;
                self.request_line.clear();
            }
            Phase::Head => self.connection.go_on_reading(bytes.len()),
        }
        self.head_bytes += bytes.len();
        if !self.request_line_done {
            let end = memchr::memchr(b'\n', bytes);
            self.request_line_done = end.is_some();
            let line = &bytes[..end.unwrap_or(bytes.len())];
            self.request_line_bytes += line.len();
            let room = LINE_KEPT_MAX.saturating_sub(self.request_line.len());
            self.request_line.extend_from_slice(&line[..line.len().min(room)]);
            // Pingora percent-encodes such bytes; then Hive would get another target than the client sent.
            let odd = line.iter().any(|b| !matches!(b, b' '..=b'~' | b'\r'));
            self.request_line_spaces += memchr::memchr_iter(b' ', line).count();
            if odd || (self.request_line_done && self.request_line_spaces != 2) {
                self.connection.mark_odd_request_line();
            }
        }
        Ok(())
    }

    /// Ends the connection for a flood, and says so if the client still reads.
    fn cut(&mut self, cx: &mut Context<'_>, reason: CloseReason) -> io::Error {
        self.admitted.ends_for(reason);
        self.gathered.extend_from_slice(GOAWAY_CALM);
        if let Poll::Ready(Ok(())) = self.poll_send_gathered(cx) {
            let _ = self.transport.poll_flush(cx);
        }
        io::Error::other(reason.as_str())
    }

    /// The client has taken so much: it has its time again for each [`GATHER_MAX`].
    fn took(&mut self, bytes: usize) {
        if self.stuck_since.is_some() {
            self.stuck_took += bytes;
            if self.stuck_took >= GATHER_MAX {
                self.stuck_since = None;
            }
        }
        if let Some(frames) = &mut self.frames {
            frames.wrote(bytes);
        }
    }

    fn poll_send_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.gathered_sent < self.gathered.len() {
            let sent = ready!(self.transport.poll_write(cx, &self.gathered[self.gathered_sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered_sent += sent;
            self.took(sent);
        }
        self.gathered.clear();
        self.gathered_sent = 0;
        self.others_went = false;
        self.stuck_since = None;
        Poll::Ready(Ok(()))
    }

    /// Turns a pending write into an error once the client has taken nothing for too long.
    fn stuck<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.stuck_since.is_none() {
            (self.stuck_since, self.stuck_took) = (Some(Instant::now()), 0);
        }
        match self.poll_deadline(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Answers in the parser's place: there is no request yet that the proxy could refuse.
    fn replace_answer(&mut self, answer: &'static [u8], status: u16, code: &'static str) {
        if !self.replaced {
            self.replaced = true;
            self.admitted.ends_for(CloseReason::ProtocolError);
            let mut text = uuid::Uuid::encode_buffer();
            let request_id = &*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text);
            let head = memchr::memmem::find(answer, b"\r\n\r\n").map_or(answer.len(), |end| end + 2);
            let body_bytes = answer.len().saturating_sub(head + 2);
            let id = ["x-request-id: ", request_id, "\r\n"].concat();
            let took = self.head_since.elapsed();
            self.gathered.extend([&answer[..head], id.as_bytes(), &answer[head..]].concat());
            let line = RequestLine::of(&self.request_line);
            self.unparsed
                .refused(&self.connection, &UnparsedAnswer { status, code, request_id, body_bytes, line, took });
        }
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let phase = this.connection.phase();
        if phase == Phase::Head && this.head_bytes > this.deadlines.header_bytes {
            this.admitted.ends_for(CloseReason::HeaderTooLarge);
            match this.request_line_bytes > this.deadlines.header_bytes {
                true => this.replace_answer(URI_TOO_LONG, 414, "uri_too_long"),
                false => this.replace_answer(HEADER_TOO_LARGE, 431, "header_too_large"),
            }
            ready!(this.poll_send_gathered(cx))?;
            ready!(this.transport.poll_flush(cx))?;
            return Poll::Ready(Ok(()));
        }
        if this.connection.is_hopeless() {
            return Poll::Ready(Err(this.cut(cx, CloseReason::MalformedRequests)));
        }
        let before = buf.filled().len();
        let read = if phase == Phase::Waiting {
            this.transport.poll_gone(cx, &mut this.unread)
        } else {
            this.unread = false;
            this.transport.poll_read(cx, buf)
        };
        match read {
            Poll::Ready(Ok(())) => {
                if buf.filled().len() > before
                    && let Err(flood) = this.after_read(&buf.filled()[before..])
                {
                    return Poll::Ready(Err(this.cut(cx, flood)));
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => {
                if this.transport.flooded() {
                    this.admitted.ends_for(CloseReason::TlsFlood);
                }
                Poll::Ready(Err(e))
            }
            Poll::Pending => {
                let busy = matches!(phase, Phase::Busy | Phase::Waiting);
                if this.gathered.is_empty() && this.gathered.capacity() > 0 && !busy {
                    this.gathered = Vec::new();
                }
                // Whoever waits for the client now has written all there is so far: it must not wait here for more.
                if busy && !this.gathered.is_empty() && !this.connection.http2 {
                    match this.poll_send_gathered(cx) {
                        Poll::Ready(sent) => sent?,
                        Poll::Pending => return this.stuck(cx),
                    }
                }
                match this.poll_deadline(cx) {
                    Poll::Ready(error) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let parser_gave_up = match this.connection.phase() {
            Phase::Head => true,
            Phase::Busy | Phase::Waiting => false,
            // A pipelined request may have come with the one before, unseen here.
            Phase::Idle | Phase::Ending => buf.starts_with(b"HTTP/1.1 400"),
        };
        if parser_gave_up {
            this.replace_answer(MALFORMED, 400, "bad_request");
        }
        if this.replaced {
            return Poll::Ready(Ok(buf.len()));
        }
        if this.connection.http2
            && let Some(reason) = given_up(buf)
        {
            this.admitted.ends_for(reason);
        }
        if this.gathered.len() + buf.len() > GATHER_MAX {
            match this.poll_send_gathered(cx) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => return this.stuck(cx),
            }
            if buf.len() >= GATHER_MAX {
                return match this.transport.poll_write(cx, buf) {
                    Poll::Ready(Ok(sent)) => {
                        this.took(sent);
                        Poll::Ready(Ok(sent))
                    }
                    Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                    Poll::Pending => this.stuck(cx),
                };
            }
        }
        this.gathered.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Every answer wakes the task that flushes an HTTP/2 connection. It runs last, so that all answers that are ready
        // leave in one record and one system call.
        let more_may_come = this.connection.http2 && !this.gathered.is_empty();
        if more_may_come && !std::mem::replace(&mut this.others_went, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match this.poll_send_gathered(cx) {
            Poll::Ready(sent) => sent?,
            Poll::Pending => return this.stuck(cx),
        }
        match this.transport.poll_flush(cx) {
            Poll::Pending => this.stuck(cx),
            done => done,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.transport.poll_shutdown(cx)
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        // Of an answer that broke off its client gets what there was: without any of it, it might think that nobody had
        // read its request, and send it again.
        let _ = self.poll_send_gathered(&mut Context::from_waker(Waker::noop()));
        if let Some(reason) = self.connection.end() {
            self.admitted.ends_for(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::LocalReply;
    use crate::proxy::answer::Form;
    use crate::refusal::Refusal;

    #[test]
    fn what_the_parser_refuses_is_answered_as_what_the_proxy_refuses() {
        let form = Form { reply: LocalReply::Hive, on_json_rpc: false };
        for (answer, refusal) in [
            (MALFORMED, Refusal::AmbiguousRequest("")),
            (HEADER_TOO_LARGE, Refusal::HeaderTooLarge),
            (URI_TOO_LONG, Refusal::UriTooLong),
        ] {
            let answer = std::str::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.as_bytes(), form.body(&refusal, None));
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", refusal.status())), "{head}");
            assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
        }
    }
}
