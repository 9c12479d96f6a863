//! A SPIFFE agent: the Workload API of the published protobuf on a Unix socket, over real gRPC.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::certs::{Identity, Leaf, Pki, Usage, from_now};

/// `X509SVIDRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Asked {}

/// `X509SVIDResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Issue {
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Svid {
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub hint: String,
}

/// The roots of a trust domain, as a bundle.
pub fn bundle(pki: &Pki) -> Vec<u8> {
    pki.0.root.cert.to_der().unwrap()
}

/// A certificate for `id` and nothing else.
pub fn leaf(id: &str) -> Leaf {
    let mut leaf = Leaf::client("", from_now(-60, 3600)).uri(id);
    leaf.common_name = id.rsplit('/').next().unwrap().to_owned();
    leaf.usage = Usage::ServerAndClient;
    leaf
}

impl Svid {
    /// `identity` as the agent hands it out; `pki` is its trust domain's.
    pub fn of(id: &str, identity: &Identity, pki: &Pki) -> Self {
        let chain = std::iter::once(&identity.cert).chain(&identity.chain);
        Self {
            spiffe_id: id.into(),
            x509_svid: chain.flat_map(|cert| cert.to_der().unwrap()).collect(),
            x509_svid_key: identity.key.private_key_to_pkcs8().unwrap(),
            bundle: bundle(pki),
            hint: String::new(),
        }
    }
}

impl Issue {
    pub fn of(svids: &[Svid]) -> Self {
        Self { svids: svids.to_vec(), ..Self::default() }
    }

    /// One new SVID for `id`, and who it is.
    pub fn new(id: &str, pki: &Pki) -> (Self, Identity) {
        let identity = pki.leaf(&leaf(id));
        (Self::of(&[Svid::of(id, &identity, pki)]), identity)
    }

    pub fn federate(mut self, trust_domain: &str, bundle: Vec<u8>) -> Self {
        self.federated_bundles.insert(format!("spiffe://{trust_domain}"), bundle);
        self
    }
}

/// What whoever asks is told.
#[derive(Clone)]
enum Answer {
    Issue(Box<Issue>),
    Denied(&'static str),
}

pub struct SpiffeAgent {
    socket: PathBuf,
    answer: watch::Sender<Answer>,
    streams: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl SpiffeAgent {
    /// An agent that is not there yet.
    pub fn away(dir: &Path, issue: Issue) -> Self {
        let (answer, _) = watch::channel(Answer::Issue(Box::new(issue)));
        Self { socket: dir.join("agent.sock"), answer, streams: Arc::default(), runtime: None }
    }

    pub fn start(dir: &Path, issue: Issue) -> Self {
        let mut agent = Self::away(dir, issue);
        agent.come();
        agent
    }

    /// A line for the top of the configuration.
    pub fn config(&self) -> String {
        format!("spiffe: {{ workload_api: \"unix://{}\" }}", self.socket.display())
    }

    /// Streams that were opened so far.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    /// Issues something else from now on, to those who listen too.
    pub fn issue(&self, issue: Issue) {
        self.answer.send_replace(Answer::Issue(Box::new(issue)));
    }

    pub fn deny(&self, why: &'static str) {
        self.answer.send_replace(Answer::Denied(why));
    }

    /// Goes away: connections end, the socket is gone.
    pub fn go(&mut self) {
        self.runtime = None;
        let _ = std::fs::remove_file(&self.socket);
    }

    pub fn come(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _guard = runtime.enter();
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (answer, streams) = (self.answer.clone(), self.streams.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, streams) = (answer.clone(), streams.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let (answer, streams) = (answer.clone(), streams.clone());
                        async move { Ok::<_, std::convert::Infallible>(serve(request, &answer, &streams).await) }
                    });
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = http2.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        drop(_guard);
        self.runtime = Some(runtime);
    }
}

impl Drop for SpiffeAgent {
    fn drop(&mut self) {
        self.go();
    }
}

async fn serve(
    request: http::Request<hyper::body::Incoming>,
    answer: &watch::Sender<Answer>,
    streams: &AtomicUsize,
) -> http::Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let fetch = tower::service_fn(|asked: Request<Asked>| {
        let answers = answer.subscribe();
        let path = path.clone();
        async move {
            if path != "/SpiffeWorkloadAPI/FetchX509SVID" {
                return Err(Status::unimplemented(path));
            }
            // As an agent must (SPIFFE Workload Endpoint, section 6).
            if asked.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
                return Err(Status::invalid_argument("security header missing from request"));
            }
            streams.fetch_add(1, Ordering::SeqCst);
            if let Answer::Denied(why) = &*answers.borrow() {
                return Err(Status::permission_denied(*why));
            }
            Ok(Response::new(updates(answers)))
        }
    });
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Issue, Asked>::default());
    grpc.server_streaming(fetch, request).await
}

/// The present answer and each one after it; a denial is the last.
fn updates(mut answers: watch::Receiver<Answer>) -> ReceiverStream<Result<Issue, Status>> {
    let (to_stream, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let answer = answers.borrow_and_update().clone();
            let (message, last) = match answer {
                Answer::Issue(issue) => (Ok(*issue), false),
                Answer::Denied(why) => (Err(Status::permission_denied(why)), true),
            };
            if to_stream.send(message).await.is_err() || last || answers.changed().await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}
