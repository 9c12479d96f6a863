//! The client's side of an admitted request, as Pingora's forwarding sees it: the body that was read whole is replayed
//! from here, and the wait for the node's answer has its deadlines here.
//!
//! Pingora replays only what fits its 64 KiB buffer, and its read timeout can't tell the wait for the first byte from
//! the silence inside a stream. Both are asked of the client's session, so it is wrapped for the time of forwarding.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use http::HeaderMap;
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use tokio::time::Sleep;

use super::watch::{CertificateWatch, refusal_of};
use crate::tls::Gone;

/// The client's certificate is gone while its answer ran.
pub const GONE: ErrorType = ErrorType::Custom("CertificateGone");

/// The node was waited for longer than the route allows.
pub const DEADLINE: ErrorType = ErrorType::Custom("Deadline");

/// What a request waits for, and until when. Shared by the session and the request's context.
pub struct Wait {
    start: Instant,
    times: Times,
    /// Nanoseconds from `start` to the last sign of life of the answer; 0 before the first.
    last_activity_ns: AtomicU64,
    expired: AtomicU8,
    gone: OnceLock<Gone>,
    /// The client's own session, once its wrapper is gone.
    returned: Mutex<Option<HttpSession>>,
}

/// How long a request may take once it is admitted.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// To the answer's first byte.
    pub response: Duration,
    /// Silence within the answer.
    pub stream_idle: Duration,
    /// To the answer's end.
    pub max_stream_duration: Option<Duration>,
}

/// Which deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Nothing came within `timeouts.response`.
    Response,
    /// The answer had begun and fell silent for `timeouts.stream_idle`.
    StreamIdle,
    /// The answer had begun and went on for `timeouts.max_stream_duration`.
    StreamDuration,
}

impl Wait {
    /// Starts to wait for an answer.
    pub fn new(start: Instant, times: Times) -> Arc<Self> {
        Arc::new(Self {
            start,
            times,
            last_activity_ns: AtomicU64::new(0),
            expired: AtomicU8::new(0),
            gone: OnceLock::new(),
            returned: Mutex::new(None),
        })
    }

    /// The answer goes on.
    pub fn activity(&self, now: Instant) {
        let ns = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        self.last_activity_ns.store(ns.max(1), Ordering::Relaxed);
    }

    /// Which deadline passed, if one has.
    pub fn expired(&self) -> Option<Expired> {
        match self.expired.load(Ordering::Relaxed) {
            1 => Some(Expired::Response),
            2 => Some(Expired::StreamIdle),
            3 => Some(Expired::StreamDuration),
            _ => None,
        }
    }

    /// Why the client may not have the rest, if so.
    pub fn gone(&self) -> Option<Gone> {
        self.gone.get().copied()
    }

    /// How much is left of the time to the first byte; none is left once it has passed.
    pub fn response_left(&self, now: Instant) -> Option<Duration> {
        let left = (self.start + self.times.response).saturating_duration_since(now);
        if left.is_zero() {
            self.expired.store(Expired::Response as u8 + 1, Ordering::Relaxed);
            return None;
        }
        Some(left)
    }

    /// When it ends, if nothing happens until then.
    fn deadline(&self) -> (Instant, Expired) {
        let next = match self.last_activity_ns.load(Ordering::Relaxed) {
            0 => (self.start + self.times.response, Expired::Response),
            ns => (self.start + Duration::from_nanos(ns) + self.times.stream_idle, Expired::StreamIdle),
        };
        match self.times.max_stream_duration.map(|longest| self.start + longest) {
            Some(last) if last < next.0 => (last, Expired::StreamDuration),
            _ => next,
        }
    }

    /// The error of a deadline that has passed by `now`; none if the answer went on meanwhile.
    fn check(&self, now: Instant) -> Option<Box<Error>> {
        let (deadline, kind) = self.deadline();
        if now < deadline {
            return None;
        }
        self.expired.store(kind as u8 + 1, Ordering::Relaxed);
        let what = match kind {
            Expired::Response => "no answer within timeouts.response",
            Expired::StreamIdle => "the answer fell silent for timeouts.stream_idle",
            Expired::StreamDuration => "the answer was not at its end within timeouts.max_stream_duration",
        };
        Some(Error::explain(DEADLINE, what))
    }
}

/// A client's session whose request body has been read already.
struct ForwardSession {
    inner: HttpSession,
    body: Bytes,
    wait: Arc<Wait>,
    /// None on a plain listener.
    watch: Option<CertificateWatch>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl ForwardSession {
    /// When something has to be looked at next.
    fn deadline(&self) -> tokio::time::Instant {
        let wait = self.wait.deadline().0;
        self.watch.as_ref().map_or(wait, |watch| watch.next().min(wait)).into()
    }

    /// The error of a deadline that has passed, or of a certificate that is gone.
    fn check(&mut self, now: Instant) -> Option<Box<Error>> {
        if let Some(gone) = self.watch.as_mut().and_then(|watch| watch.look(now)) {
            let _ = self.wait.gone.set(gone);
            return Some(Error::explain(GONE, refusal_of(gone).code()));
        }
        self.wait.check(now)
    }
}

/// Wraps a client's session for the time of forwarding.
pub fn wrap(session: &mut HttpSession, body: Bytes, wait: Arc<Wait>, watch: Option<CertificateWatch>) {
    let inner = std::mem::replace(&mut *session, nobody());
    *session = HttpSession::new_custom(Box::new(ForwardSession { inner, body, wait, watch, timer: None }));
}

impl Drop for ForwardSession {
    fn drop(&mut self) {
        let inner = std::mem::replace(&mut self.inner, nobody());
        *self.wait.returned.lock() = Some(inner);
    }
}

/// A stand-in that is never used.
fn nobody() -> HttpSession {
    HttpSession::new_custom(Box::new(()))
}

/// Brings the client's own session back, so that its connection can be kept. Does nothing to one that is not wrapped.
pub fn unwrap(session: &mut HttpSession, wait: &Wait) {
    if session.is_custom() {
        *session = nobody();
        if let Some(inner) = wait.returned.lock().take() {
            *session = inner;
        }
    }
}

#[async_trait]
impl CustomSession for ForwardSession {
    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner.write_response_header(resp).await
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner.write_response_header_ref(resp).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner.write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner.write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        // Informational answers are between node and gateway: the client gets its own 100, and nothing else waits for one.
        tasks.retain(|task| !matches!(task, HttpTask::Header(header, _) if header.status.is_informational()));
        if tasks.is_empty() {
            return Ok(false);
        }
        self.wait.activity(Instant::now());
        self.inner.response_duplex_vec(tasks).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.inner.shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    async fn finish(&mut self) -> Result<()> {
        self.inner.finish_body().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    /// Nothing more is read of the request. Ends with an error when the client goes away or the wait has been too long.
    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        // One timer per request: it is moved to an earlier time at once, to a later one only when it goes off.
        let mut deadline = self.deadline();
        loop {
            let Self { inner, timer, .. } = &mut *self;
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            tokio::select! {
                biased;
                read = inner.read_body_or_idle(true) => return read,
                () = timer.as_mut() => {}
            }
            if let Some(error) = self.check(Instant::now()) {
                return Err(error);
            }
            deadline = self.deadline();
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner.to_h1_raw()
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    /// The whole body, as often as it is asked for: a node that could not be reached has seen nothing of it.
    fn get_retry_buffer(&self) -> Option<Bytes> {
        (!self.body.is_empty()).then(|| self.body.clone())
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
