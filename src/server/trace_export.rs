//! Sends the spans of traced requests to a collector: OTLP over HTTP, in batches, on a thread of its own. What it can't keep
//! up with is lost in the queue before it and counted; no request ever waits for it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::{Tracing, file};
use crate::observe::SpanResult;
use crate::observe::otlp;
use crate::observe::trace::Finished;
use crate::proxy::Shared;
use crate::tls;

/// Most traces of one request to the collector.
const BATCH_MAX: usize = 256;
/// The first trace of a batch waits so long for others.
const GATHER: Duration = Duration::from_secs(1);
/// A batch that the collector could not take is sent again so often, after pauses that begin so and double.
const TRIES_MAX: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// An idle connection to the collector is kept so long.
const IDLE: Duration = Duration::from_secs(30);
/// Longest answer that is read, bytes.
const ANSWER_MAX: usize = 64 << 10;

/// Sends what comes through the queue of [`Shared`].
pub struct TraceExport(pub Arc<Shared>);

#[async_trait]
impl BackgroundService for TraceExport {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(mut queue) = self.0.traces.take_receiver() else { return };
        let mut exporter = Exporter { shared: self.0.clone(), target: None, failing: false };
        let mut ending = self.0.traces.ending();
        let mut batch = Vec::new();
        let work = async {
            loop {
                gather(&mut queue, &mut ending, &mut batch).await;
                exporter.export(&batch).await;
                self.0.traces.done(batch.len());
                batch.clear();
            }
        };
        tokio::select! {
            _ = shutdown.changed() => {}
            () = work => {}
        }
    }
}

/// Waits for a trace, and a moment for more unless the process ends.
async fn gather(queue: &mut Receiver<Finished>, ending: &mut watch::Receiver<bool>, batch: &mut Vec<Finished>) {
    match queue.recv().await {
        Some(first) => batch.push(first),
        // The other end lives as long as the process.
        None => std::future::pending().await,
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH_MAX {
        tokio::select! {
            biased;
            more = queue.recv() => batch.extend(more),
            _ = ending.wait_for(|ending| *ending) => return,
            () = sleep_until(until) => return,
        }
    }
}

fn spans(batch: &[Finished]) -> usize {
    batch.iter().map(|trace| trace.spans.len()).sum()
}

/// Why a batch did not get through.
enum Failure {
    /// The same again may do.
    Passing(String),
    /// It never will.
    Final(String),
}

struct Exporter {
    shared: Arc<Shared>,
    target: Option<Target>,
    /// Said once, until it works again.
    failing: bool,
}

/// The connector, and the trust of one configuration.
struct Target {
    connector: Connector,
    generation: u64,
    tls: Option<tls::UpstreamTlsMaterial>,
}

impl Exporter {
    async fn export(&mut self, batch: &[Finished]) {
        let (shared, mut pause) = (self.shared.clone(), PAUSE);
        let metrics = shared.traces.metrics();
        for n in 1..=TRIES_MAX {
            let snapshot = shared.snapshot();
            // A reload took it away.
            let Some(tracing) = &snapshot.config.tracing else { break };
            let body = Bytes::from(otlp::encode(&tracing.service_name, batch));
            let sent = timeout(tracing.timeout, self.send(tracing, snapshot.generation, body)).await;
            let sent = sent.unwrap_or_else(|_| Err(Failure::Passing("no answer within tracing.timeout".into())));
            match sent {
                Ok(rejected) => {
                    if std::mem::take(&mut self.failing) {
                        log::info!("tracing: {} takes spans again", tracing.collector.authority);
                    }
                    let refused = rejected.as_ref().map_or(0, |(count, _)| (*count).min(spans(batch)));
                    if let Some((count, why)) = rejected {
                        log::warn!("tracing: the collector rejected {count} spans: {}", why.escape_debug());
                    }
                    metrics.count(SpanResult::Rejected, refused);
                    metrics.count(SpanResult::Exported, spans(batch) - refused);
                    return;
                }
                Err(failure) => {
                    let last = n == TRIES_MAX || matches!(failure, Failure::Final(_));
                    let (Failure::Passing(why) | Failure::Final(why)) = failure;
                    if !std::mem::replace(&mut self.failing, true) {
                        let to = &tracing.collector.authority;
                        log::warn!("tracing: spans can't be sent to {to}: {why}; said once until it works again");
                    }
                    if last {
                        break;
                    }
                }
            }
            drop(snapshot);
            sleep(pause).await;
            pause *= 2;
        }
        metrics.count(SpanResult::ExportFailed, spans(batch));
    }

    /// One request to the collector; says how many spans it would not have.
    async fn send(
        &mut self,
        tracing: &Tracing,
        generation: u64,
        body: Bytes,
    ) -> Result<Option<(usize, String)>, Failure> {
        let target = match &mut self.target {
            Some(target) => {
                if target.generation != generation {
                    (target.generation, target.tls) = (generation, trust(tracing)?);
                }
                target
            }
            None => {
                // Made late: it reads the system's certificates, which takes 30 ms and 2 MiB.
                let connector = Connector::new(None);
                self.target.insert(Target { connector, generation, tls: trust(tracing)? })
            }
        };
        let (mut session, peer) = connect(&target.connector, tracing, target.tls.as_ref()).await?;
        let request = request(tracing, body.len()).map_err(broken)?;
        session.write_request_header(Box::new(request)).await.map_err(broken)?;
        session.write_request_body(body, true).await.map_err(broken)?;
        session.finish_request_body().await.map_err(broken)?;
        session.read_response_header().await.map_err(broken)?;
        let status = session.response_header().map_or(0, |header| header.status.as_u16());
        let answer = read(&mut session).await.map_err(broken)?;
        target.connector.release_http_session(session, &peer, Some(IDLE)).await;
        match status {
            200..=299 => Ok(otlp::rejected(&answer)),
            // The protocol's own list of what passes (OTLP 1.9, "Retryable Response Codes").
            429 | 502..=504 => Err(Failure::Passing(format!("status {status}"))),
            _ => Err(Failure::Final(format!("status {status}"))),
        }
    }
}

fn broken(error: Box<pingora::Error>) -> Failure {
    Failure::Passing(error.to_string().trim().replace(['\n', '\r'], " "))
}

/// A connection to the first of the collector's addresses that takes one.
async fn connect(
    connector: &Connector,
    tracing: &Tracing,
    tls: Option<&tls::UpstreamTlsMaterial>,
) -> Result<(HttpSession, HttpPeer), Failure> {
    let collector = &tracing.collector;
    let found = tokio::net::lookup_host((collector.host.as_str(), collector.port)).await;
    let found = found.map_err(|e| Failure::Passing(format!("{} has no address: {e}", collector.host)))?;
    let mut failure = Failure::Passing(format!("{} has no address", collector.host));
    for address in found {
        let peer = peer(tracing, address, tls)?;
        match connector.get_http_session(&peer).await {
            Ok((session, _)) => return Ok((session, peer)),
            Err(e) => failure = broken(e),
        }
    }
    Err(failure)
}

async fn read(session: &mut HttpSession) -> pingora::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while let Some(chunk) = session.read_response_body().await? {
        answer.extend_from_slice(&chunk);
        if answer.len() > ANSWER_MAX {
            return pingora::Error::e_explain(pingora::ErrorType::InvalidHTTPHeader, "the answer is too long");
        }
    }
    Ok(answer)
}

fn request(tracing: &Tracing, length: usize) -> pingora::Result<RequestHeader> {
    let mut request = RequestHeader::build("POST", tracing.collector.path.as_bytes(), Some(6))?;
    request.insert_header(HOST, tracing.collector.authority.as_str())?;
    request.insert_header(CONTENT_TYPE, otlp::CONTENT_TYPE)?;
    request.insert_header(ACCEPT, otlp::CONTENT_TYPE)?;
    request.insert_header(CONTENT_LENGTH, length)?;
    request.insert_header(USER_AGENT, concat!("hive-gateway/", env!("CARGO_PKG_VERSION")))?;
    if let Some(secret) = &tracing.bearer {
        request.insert_header(AUTHORIZATION, format!("Bearer {}", secret.expose()))?;
    }
    Ok(request)
}

/// What the collector's certificate is held against.
fn trust(tracing: &Tracing) -> Result<Option<tls::UpstreamTlsMaterial>, Failure> {
    let Some(ca) = &tracing.ca else { return Ok(None) };
    let settings = file::UpstreamTls {
        ca: Some(ca.clone()),
        crl: Vec::new(),
        spiffe: None,
        server_name: Some(tracing.collector.host.clone()),
        spiffe_id: None,
        min_version: file::TlsVersion::default(),
        cert: None,
        key: None,
    };
    let now = crate::clock::Clock::System.unix_seconds();
    tls::build_upstream(&settings, Path::new("/"), now, None).map(Some).map_err(|faults| {
        Failure::Passing(faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("; "))
    })
}

fn peer(tracing: &Tracing, address: SocketAddr, tls: Option<&tls::UpstreamTlsMaterial>) -> Result<HttpPeer, Failure> {
    let collector = &tracing.collector;
    let mut peer = HttpPeer::new(address, collector.tls, tls.map_or_else(String::new, |tls| tls.server_name.clone()));
    if let Some(tls) = tls {
        peer.options.ca = Some(tls.ca.clone());
        // The authorities are not part of the key by which the pool knows connections.
        peer.group_key = tls.generation;
    } else if collector.tls {
        return Err(Failure::Final("https without a CA".into()));
    }
    peer.options.verify_cert = true;
    peer.options.verify_hostname = true;
    peer.options.total_connection_timeout = Some(tracing.timeout);
    peer.options.read_timeout = Some(tracing.timeout);
    peer.options.write_timeout = Some(tracing.timeout);
    Ok(peer)
}
