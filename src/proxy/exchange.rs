//! From an admitted request to the end of its answer: sends it to one node after another until one takes it, and passes
//! the answer on piece by piece, with the deadlines and the client's certificate watched all the while.
//!
//! Pingora's own forwarding is not used. It sends header and body of a request apart, hands each piece of an answer
//! through two queues, replays bodies of up to 64 KiB only, and has one time limit where the first byte and the silence
//! inside a stream need one each.

use std::future::{poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tokio::time::Sleep;

use super::connection::Phase;
use super::context::{Context, Over};
use super::watch::{CertificateWatch, refusal_of};
use super::{Shared, forward};
use crate::headers;
use crate::upstream::{Exchange, Request};

/// The node was waited for longer than the route allows.
pub const DEADLINE: ErrorType = ErrorType::Custom("Deadline");

/// The client's certificate is gone while its answer ran.
pub const GONE: ErrorType = ErrorType::Custom("CertificateGone");

/// A client that leaves after so long without an answer says that its node's connection may be dead, as a deadline does: with
/// HTTP/2 nothing else may ever say so.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// So does a shorter wait if nothing at all has come on the connection, else clients of little patience would hold on to a
/// dead one. A connection too many is cheap.
const SILENT_WAIT: Duration = Duration::from_millis(100);

/// Forwards a request whose body has been read whole, and its answer.
///
/// # Errors
/// The client has got no answer, or not all of it; `ctx` says why.
pub async fn run(shared: &Arc<Shared>, session: &mut Session, ctx: &mut Context, body: Bytes) -> Result<()> {
    let mut request = forward::prepare(session, ctx, body)?;
    let now = shared.clock.now();
    if let Some(trace) = &mut ctx.trace {
        trace.forwarded(now);
    }
    let (Some(route), Some(begun)) = (&ctx.route, &ctx.begun) else { return Err(Error::new(ErrorType::InternalError)) };
    begun.connection.set_phase(Phase::Waiting);
    let settings = begun.snapshot.listener(begun.connection.listener.index);
    let watch = settings
        .filter(|_| begun.connection.identity.is_some())
        .map(|settings| CertificateWatch::new(shared.clone(), begun.connection.clone(), settings.revocation, now));
    let deadline = now + route.response;
    let timer = pin!(tokio::time::sleep_until(deadline.into()));
    let last = route.max_stream_duration.map(|longest| now + longest);
    let mut guard = Guard { shared, watch, deadline, last, stream_idle: route.stream_idle, answering: false, timer };
    enter(session, ctx, &mut guard).await?;
    loop {
        let error = match attempt(session, ctx, &request, &mut guard).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.retry() {
            return Err(error);
        }
        if let Some(pause) = forward::pause(ctx) {
            tokio::select! {
                biased;
                over = guard.over(session) => return Err(forward::ended(shared, ctx, over)),
                () = tokio::time::sleep(pause) => {}
            }
        }
        forward::prepare_again(session, ctx, &mut request)?;
    }
}

/// Waits until the upstream's circuit breaker lets the request on.
async fn enter(session: &mut Session, ctx: &mut Context, guard: &mut Guard<'_>) -> Result<()> {
    let route = ctx.route.clone().ok_or_else(|| Error::new(ErrorType::InternalError))?;
    let upstream = &route.upstream.upstream;
    let mut entered = upstream.enter();
    if let Ok(None) = entered {
        let since = guard.shared.clock.now();
        let waited = tokio::select! {
            biased;
            waited = upstream.wait() => Ok(waited),
            over = guard.over(session) => Err(over),
        };
        ctx.upstream.queued = Some(guard.shared.clock.now().saturating_duration_since(since));
        entered = match waited {
            Ok(waited) => waited.map(Some),
            Err(over) => return Err(forward::ended(guard.shared, ctx, over)),
        };
    }
    ctx.upstream.entry = entered.map_err(|overflow| forward::refused(ctx, overflow))?;
    if ctx.upstream.queued.is_some() {
        forward::still_in_service(guard.shared, ctx)?;
    }
    Ok(())
}

/// Offers the request to one node. An error says by [`Error::retry`] whether another may have it.
async fn attempt(session: &mut Session, ctx: &mut Context, request: &Request, guard: &mut Guard<'_>) -> Result<()> {
    after_others().await;
    let now = guard.shared.clock.now();
    let (upstream, picked) = forward::pick(guard.shared, ctx)?;
    let connected = tokio::select! {
        biased;
        connected = picked.connect(upstream, now) => connected,
        over = guard.over(session) => return Err(forward::ended(guard.shared, ctx, over)),
    };
    let mut exchange = match connected {
        Ok(exchange) => exchange,
        Err(error) => return Err(forward::connect_failed(guard.shared, ctx, error)),
    };
    forward::connected(guard.shared, ctx, exchange.reused());
    let sent = guard.shared.clock.now();
    let header = tokio::select! {
        biased;
        header = exchange.send(request) => header,
        over = guard.over(session) => {
            let waited = guard.shared.clock.now().saturating_duration_since(sent);
            let long = if exchange.is_silent() { SILENT_WAIT } else { LONG_WAIT };
            if waited >= long || over.over == Some(Over::Response) {
                exchange.retire();
            }
            return Err(forward::ended(guard.shared, ctx, over));
        }
    };
    let mut header = match header {
        Ok(header) => header,
        Err(error) => return Err(forward::broke(guard.shared, session, ctx, error, &exchange)),
    };
    guard.activity();
    forward::rewrite_response(guard.shared, &mut header, ctx)?;
    match pass_on(session, &mut exchange, header, guard).await {
        Ok(()) => {}
        Err(Stopped::Over(over)) => {
            if over.over == Some(Over::StreamIdle) {
                exchange.retire();
            }
            return Err(forward::ended(guard.shared, ctx, over));
        }
        Err(Stopped::Broke(error)) => return Err(forward::broke(guard.shared, session, ctx, error, &exchange)),
    }
    if let Some(picked) = &ctx.upstream.picked {
        picked.release(exchange, guard.shared.clock.now());
    }
    Ok(())
}

/// Why an answer was not passed on to its end.
enum Stopped {
    /// It took too long, or nobody may have it.
    Over(Ended),
    /// The node or the client broke it off.
    Broke(Box<Error>),
}

impl From<Box<Error>> for Stopped {
    fn from(error: Box<Error>) -> Self {
        Stopped::Broke(error)
    }
}

/// Writes the answer. Header and the first of the body go out together if both are there.
async fn pass_on(
    session: &mut Session,
    exchange: &mut Exchange,
    mut header: ResponseHeader,
    guard: &mut Guard<'_>,
) -> Result<(), Stopped> {
    let bodiless = exchange.is_done();
    frame(session, &mut header, bodiless)?;
    let first = if bodiless {
        None
    } else {
        tokio::select! {
            biased;
            piece = exchange.body() => piece?,
            () = ready(()) => None,
        }
    };
    let mut tasks = vec![HttpTask::Header(Box::new(header), bodiless)];
    let mut done = exchange.is_done();
    if first.is_some() || (done && !bodiless) {
        tasks.push(HttpTask::Body(first, done));
    }
    write(session, tasks, guard).await?;
    while !done {
        let piece = tokio::select! {
            biased;
            piece = exchange.body() => piece?,
            over = guard.over(session) => return Err(Stopped::Over(over)),
        };
        guard.activity();
        done = piece.is_none() || exchange.is_done();
        write(session, vec![HttpTask::Body(piece, done)], guard).await?;
    }
    Ok(())
}

/// A body whose end only the node's closing shows is sent in chunks, so that the client's connection can stay. Of an empty one
/// (`empty`) HTTP/2 need not say how long it is, and HTTP/1.1 must.
fn frame(session: &Session, header: &mut ResponseHeader, empty: bool) -> Result<()> {
    let bodiless = session.req_header().method == http::Method::HEAD
        || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framed = [headers::CONTENT_LENGTH, headers::TRANSFER_ENCODING].iter().any(|n| header.headers.contains_key(n));
    if !bodiless && !framed && empty {
        header.insert_header(headers::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
    } else if !bodiless && !framed {
        header.insert_header(headers::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    Ok(())
}

/// Lets the thread's other tasks that are ready go first, so that what they all have to send goes out together: a node or
/// client that sleeps is woken once for many requests instead of for each, and to wake somebody is the dearest part of
/// sending. Without other tasks it takes no time.
async fn after_others() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn write(session: &mut Session, tasks: Vec<HttpTask>, guard: &mut Guard<'_>) -> Result<(), Stopped> {
    // Of an HTTP/2 connection what all its streams have is gathered where it is flushed.
    if !session.is_http2() {
        after_others().await;
    }
    tokio::select! {
        biased;
        written = session.downstream_session.response_duplex_vec(tasks) => {
            written.map_err(|e| Stopped::Broke(e.into_down()))?;
            Ok(())
        }
        // How long a client may take to read is limited below, by the listener's `timeouts.write`.
        over = guard.passes(false) => Err(Stopped::Over(over)),
    }
}

/// Why an exchange is given up.
pub struct Ended {
    /// What is told to Pingora.
    pub error: Box<Error>,
    /// What is remembered of it; none if the client went away by itself.
    pub over: Option<Over>,
}

/// What is watched while an exchange goes on.
struct Guard<'a> {
    shared: &'a Arc<Shared>,
    /// None on a plain listener.
    watch: Option<CertificateWatch>,
    /// Until when the node must give a sign of life.
    deadline: Instant,
    /// Until when the answer must be at its end.
    last: Option<Instant>,
    /// How long it may be silent once it answers.
    stream_idle: Duration,
    /// Whether it does.
    answering: bool,
    timer: Pin<&'a mut Sleep>,
}

impl Guard<'_> {
    /// The answer goes on.
    fn activity(&mut self) {
        self.answering = true;
        self.deadline = self.shared.clock.now() + self.stream_idle;
    }

    /// Waits until the exchange must end: the client goes away, a deadline passes, or the certificate is gone.
    async fn over(&mut self, session: &mut Session) -> Ended {
        loop {
            tokio::select! {
                biased;
                read = session.downstream_session.read_body_or_idle(true) => match read {
                    // Never in practice: what follows a request stays unread as long as its answer is waited for.
                    Ok(_) => {}
                    Err(error) => return Ended { error: error.into_down(), over: None },
                },
                ended = self.passes(true) => return ended,
            }
        }
    }

    /// Waits until a deadline passes or the certificate is gone; `waiting` says whether it is the node that is waited for.
    async fn passes(&mut self, waiting: bool) -> Ended {
        loop {
            let watched = self.watch.as_ref().map(CertificateWatch::next);
            let times = [waiting.then_some(self.deadline), self.last, watched];
            let Some(next) = times.into_iter().flatten().min() else { return std::future::pending().await };
            // The timer is moved to an earlier time at once, to a later one only when it goes off.
            if self.timer.deadline() > next.into() || self.timer.is_elapsed() {
                self.timer.as_mut().reset(next.into());
            }
            self.timer.as_mut().await;
            let now = self.shared.clock.now();
            if let Some(gone) = self.watch.as_mut().and_then(|watch| watch.look(now)) {
                return Ended { error: Error::explain(GONE, refusal_of(gone).code()), over: Some(Over::Gone(gone)) };
            }
            if self.last.is_some_and(|last| now >= last) {
                let why = "the answer was not at its end within timeouts.max_stream_duration";
                return Ended { error: Error::explain(DEADLINE, why), over: Some(Over::StreamDuration) };
            }
            if waiting && now >= self.deadline {
                let (over, why) = if self.answering {
                    (Over::StreamIdle, "the answer fell silent for timeouts.stream_idle")
                } else {
                    (Over::Response, "no answer within timeouts.response")
                };
                return Ended { error: Error::explain(DEADLINE, why), over: Some(over) };
            }
        }
    }
}
