//! Traces: which requests have one, what is written down while they run, and the spans at their end.
//!
//! A request that is not sampled has no [`Trace`], and pays for one comparison. One that is leaves moments in it; the spans
//! are put together at its end, queued without waiting, and sent by a service of their own (`server::trace_export`).

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use tokio::sync::{mpsc, watch};

use super::handles::SpanMetrics;
use super::labels::SpanResult;
use crate::headers::TraceContext;
use crate::units::Percent;

/// Finished traces that wait for the export. At 4 KiB each that is 8 MiB.
pub const QUEUE_MAX: usize = 2048;

/// Flags of version 00: sampled, and that the trace id is random.
const KNOWN_FLAGS: u8 = 3;

/// Decides which requests are traced.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    /// Of 2⁵⁶ trace ids, how many; `None`: all.
    below: Option<u64>,
    parent_based: bool,
}

impl Sampler {
    /// See `tracing` in the configuration.
    pub fn new(share: Percent, parent_based: bool) -> Self {
        let below = (share.0 < 1000).then(|| (1 << 56) / 1000 * u64::from(share.0));
        Self { below, parent_based }
    }

    /// Decides about a request with this valid `traceparent`, or with a new one out of `random`. The second is what it is
    /// called in the log; the first is there if it is traced.
    pub fn begin(
        &self,
        theirs: Option<&HeaderValue>,
        random: impl Fn() -> [u8; 24],
    ) -> (Option<Box<Trace>>, HeaderValue) {
        let parent = theirs.and_then(|value| TraceContext::parse(value.as_bytes()));
        let context = parent.unwrap_or_else(|| TraceContext::new(random()));
        let sampled = match &parent {
            Some(parent) if self.parent_based => parent.sampled(),
            // By the id, so that all who know the trace and have the same share decide alike.
            _ => self.below.is_none_or(|below| context.tail() < below),
        };
        let trace = sampled.then(|| {
            Box::new(Trace {
                trace_id: context.trace_id,
                // What later versions define is theirs to pass on (section 3.2.2.3).
                flags: context.flags & KNOWN_FLAGS | TraceContext::SAMPLED,
                parent: parent.map(|parent| parent.span_id),
                span_id: span_id(&random()),
                next: u64::from_be_bytes(span_id(&random())),
                next_try: span_id(&random()),
                admitted: None,
                forwarded: None,
                tries: Vec::new(),
            })
        });
        let called = match (theirs, parent) {
            (Some(theirs), Some(_)) => theirs.clone(),
            _ => context.with_sampled(sampled).to_header(),
        };
        (trace, called)
    }
}

fn span_id(random: &[u8; 24]) -> [u8; 8] {
    let [.., a, b, c, d, e, f, g, h] = *random;
    let id = [a, b, c, d, e, f, g, h];
    // An id of zeros is invalid.
    if id == [0; 8] { [1; 8] } else { id }
}

/// A traced request while it runs.
#[derive(Debug)]
pub struct Trace {
    trace_id: [u8; 16],
    flags: u8,
    /// The client's span.
    parent: Option<[u8; 8]>,
    /// The request's own.
    span_id: [u8; 8],
    /// Counts up to the ids of the spans below.
    next: u64,
    /// The span of the try that comes next: the node is told before the try begins.
    next_try: [u8; 8],
    admitted: Option<Instant>,
    forwarded: Option<Instant>,
    tries: Vec<Try>,
}

/// A try at a node.
#[derive(Debug)]
struct Try {
    span_id: [u8; 8],
    node: Arc<str>,
    started: Instant,
    connected: Option<(Instant, bool)>,
    first_byte: Option<Instant>,
    status: Option<u16>,
    ended: Option<(Instant, &'static str)>,
}

impl Trace {
    fn new_id(&mut self) -> [u8; 8] {
        self.next = self.next.wrapping_add(1).max(1);
        self.next.to_be_bytes()
    }

    /// All is decided that the header can decide.
    pub fn admitted(&mut self, now: Instant) {
        self.admitted = Some(now);
    }

    /// It is let through: what follows is the upstream's.
    pub fn forwarded(&mut self, now: Instant) {
        self.forwarded = Some(now);
    }

    /// A node is picked.
    pub fn try_started(&mut self, node: &Arc<str>, now: Instant) {
        let span_id = self.next_try;
        self.next_try = self.new_id();
        self.tries.push(Try {
            span_id,
            node: node.clone(),
            started: now,
            connected: None,
            first_byte: None,
            status: None,
            ended: None,
        });
    }

    /// A connection to it is there.
    pub fn connected(&mut self, reused: bool, now: Instant) {
        if let Some(last) = self.tries.last_mut() {
            last.connected = Some((now, reused));
        }
    }

    /// Its answer begins.
    pub fn answered(&mut self, status: u16, now: Instant) {
        if let Some(last) = self.tries.last_mut() {
            (last.first_byte, last.status) = (Some(now), Some(status));
        }
    }

    /// The try failed.
    pub fn try_failed(&mut self, why: &'static str, now: Instant) {
        if let Some(last) = self.tries.last_mut() {
            last.ended = Some((now, why));
        }
    }

    /// `traceparent` for the node of the next try: its parent is the gateway's span of it.
    pub fn traceparent(&self) -> HeaderValue {
        TraceContext { trace_id: self.trace_id, span_id: self.next_try, flags: self.flags }.to_header()
    }

    /// The spans of a request that is done: its own first.
    pub fn finish(mut self, request: RequestSpan, moments: &Moments) -> Finished {
        let start = moments.started;
        let mut spans = vec![Span {
            id: self.span_id,
            parent: self.parent,
            name: request.name,
            kind: Kind::Server,
            start: Duration::ZERO,
            end: moments.ended.saturating_duration_since(start),
            attributes: request.attributes,
            error: request.error,
        }];
        let after = |at: Instant| at.saturating_duration_since(start);
        let admitted = self.admitted.unwrap_or(moments.ended);
        let mut stages = vec![("admit", start, admitted)];
        if let Some(body_read) = moments.body_read {
            stages.push(("read body", admitted, body_read));
        }
        if let (Some(_), Some(forwarded)) = (self.admitted, self.forwarded) {
            stages.push(("check JSON-RPC and limits", moments.body_read.unwrap_or(admitted), forwarded));
            stages.extend(moments.queued.map(|queued| ("queue", forwarded, forwarded + queued)));
        }
        for (name, from, to) in stages {
            let id = self.new_id();
            spans.push(Span::internal(id, self.span_id, name, after(from), after(to)));
        }
        for (n, one) in std::mem::take(&mut self.tries).into_iter().enumerate() {
            self.add_try(&mut spans, n, one, request.method, moments);
        }
        Finished { trace_id: self.trace_id, flags: self.flags, state: request.state, start: moments.wall, spans }
    }

    fn add_try(&mut self, spans: &mut Vec<Span>, n: usize, one: Try, method: &'static str, moments: &Moments) {
        let after = |at: Instant| at.saturating_duration_since(moments.started);
        let end = one.ended.map_or(moments.ended, |(at, _)| at);
        let mut attributes = vec![("http.request.method", method.into())];
        let authority = one.node.split_once("://").map_or(&*one.node, |(_, rest)| rest);
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
        attributes.push(("server.address", host.trim_matches(['[', ']']).to_owned().into()));
        attributes.extend(port.parse().ok().map(|port: i64| ("server.port", Attribute::Number(port))));
        attributes.extend(one.status.map(|s| ("http.response.status_code", Attribute::Number(s.into()))));
        if n > 0 {
            attributes.push(("http.request.resend_count", Attribute::Number(i64::try_from(n).unwrap_or(i64::MAX))));
        }
        // A client's span is in error from 400 on, a server's from 500 on (HTTP conventions, "Status").
        let error = match (one.ended, one.status) {
            (Some((_, why)), _) => Some(Cow::Borrowed(why)),
            (None, Some(status)) if status >= 400 => Some(status.to_string().into()),
            (None, None) => Some("no answer".into()),
            (None, Some(_)) => None,
        };
        spans.push(Span {
            id: one.span_id,
            parent: Some(self.span_id),
            name: method.into(),
            kind: Kind::Client,
            start: after(one.started),
            end: after(end),
            attributes,
            error,
        });
        if let Some((at, false)) = one.connected {
            spans.push(Span::internal(self.new_id(), one.span_id, "connect", after(one.started), after(at)));
        }
        if let Some(first) = one.first_byte {
            spans.push(Span::internal(self.new_id(), one.span_id, "stream", after(first), after(end)));
        }
    }
}

/// When a request did what.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Its header was whole.
    pub started: Instant,
    /// The same by the wall.
    pub wall: SystemTime,
    /// Its body was.
    pub body_read: Option<Instant>,
    /// How long it waited for a place at the upstream, if it did.
    pub queued: Option<Duration>,
    /// It was done.
    pub ended: Instant,
}

/// What a request's own span says.
#[derive(Debug)]
pub struct RequestSpan {
    /// Method and route.
    pub name: Cow<'static, str>,
    /// The method, as an attribute has it.
    pub method: &'static str,
    /// `tracestate` as it came.
    pub state: Option<String>,
    /// After the conventions of OpenTelemetry for HTTP and RPC, and Hive's names.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it counts as failed.
    pub error: Option<Cow<'static, str>>,
}

/// A value of a span's attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&'static str> for Attribute {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

/// Who did what a span tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The gateway, asked by a client.
    Server,
    /// The gateway, asking a node.
    Client,
    /// The gateway by itself.
    Internal,
}

/// A span. Times count from the beginning of its trace.
#[derive(Debug)]
pub struct Span {
    /// Its id.
    pub id: [u8; 8],
    /// The span around it.
    pub parent: Option<[u8; 8]>,
    /// What it is called.
    pub name: Cow<'static, str>,
    /// Who.
    pub kind: Kind,
    /// From when.
    pub start: Duration,
    /// Until when.
    pub end: Duration,
    /// What is known.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it counts as failed.
    pub error: Option<Cow<'static, str>>,
}

impl Span {
    fn internal(id: [u8; 8], parent: [u8; 8], name: &'static str, start: Duration, end: Duration) -> Self {
        let (name, kind) = (name.into(), Kind::Internal);
        Self { id, parent: Some(parent), name, kind, start, end: end.max(start), attributes: Vec::new(), error: None }
    }
}

/// The spans of one request.
#[derive(Debug)]
pub struct Finished {
    /// Of all of them.
    pub trace_id: [u8; 16],
    /// The flags of W3C Trace Context.
    pub flags: u8,
    /// `tracestate`.
    pub state: Option<String>,
    /// When the request began.
    pub start: SystemTime,
    /// At least the request's own.
    pub spans: Vec<Span>,
}

impl Finished {
    /// Nanoseconds since 1970 of a time of its spans.
    pub fn unix_nanos(&self, after: Duration) -> u64 {
        let since = self.start.duration_since(UNIX_EPOCH).unwrap_or_default() + after;
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Where finished traces wait.
pub struct TraceQueue {
    sender: mpsc::Sender<Finished>,
    /// The end of whoever sends them; taken once.
    receiver: parking_lot::Mutex<Option<mpsc::Receiver<Finished>>>,
    metrics: SpanMetrics,
    /// Taken in, and neither sent nor given up.
    pending: AtomicUsize,
    /// The process ends: nothing is gathered any more.
    ending: watch::Sender<bool>,
}

impl TraceQueue {
    /// An empty one of [`QUEUE_MAX`] places.
    pub fn new(metrics: SpanMetrics) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let (pending, ending) = (AtomicUsize::new(0), watch::Sender::new(false));
        Self { sender, receiver: Some(receiver).into(), metrics, pending, ending }
    }

    /// Puts a trace in, or counts its spans as lost. Never waits.
    pub fn push(&self, trace: Finished) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        if let Err(mpsc::error::TrySendError::Full(lost) | mpsc::error::TrySendError::Closed(lost)) =
            self.sender.try_send(trace)
        {
            self.done(1);
            self.metrics.count(SpanResult::QueueFull, lost.spans.len());
        }
    }

    /// What comes in, for the one that sends it.
    pub fn take_receiver(&self) -> Option<mpsc::Receiver<Finished>> {
        self.receiver.lock().take()
    }

    /// So many traces were sent, or given up.
    pub fn done(&self, traces: usize) {
        self.pending.fetch_sub(traces, Ordering::Relaxed);
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.pending.load(Ordering::Relaxed) == 0
    }

    /// The process ends: what waits is to be sent at once.
    pub fn end(&self) {
        let _ = self.ending.send_replace(true);
    }

    /// Turns true when the process ends.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// What became of spans.
    pub fn metrics(&self) -> &SpanMetrics {
        &self.metrics
    }
}

/// Client text as an attribute: cut at 512 bytes, and always valid.
pub fn client_text(bytes: &[u8]) -> Attribute {
    String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).into_owned().into()
}

/// The method for an attribute: those that the conventions know, else `_OTHER`.
pub fn method_attribute(method: super::MethodLabel) -> &'static str {
    match method {
        super::MethodLabel::Other => "_OTHER",
        known => known.as_str(),
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
