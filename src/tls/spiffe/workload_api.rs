//! The agent's side of it: gRPC on a Unix socket (SPIFFE Workload API, section 5; workloadapi.proto).

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{AgentFailure, Endpoint, Issued, Svid, Update};

/// Largest update, in bytes: gRPC's usual limit.
const UPDATE_BYTES_MAX: usize = 4 << 20;
/// Longest wait for the connection and for the stream to open. The agent answers at once (section 4.3).
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Asks for the gateway's SVIDs.
#[derive(Clone, PartialEq, prost::Message)]
struct X509SvidRequest {}

/// All SVIDs, and the bundles of other trust domains.
#[derive(Clone, PartialEq, prost::Message)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

/// An agent's updates, from now on.
pub struct Updates {
    stream: Streaming<X509SvidResponse>,
    /// Keeps the connection open.
    _client: Grpc<Channel>,
}

/// Connects and asks. The first update is the present state.
///
/// # Errors
/// Why there will be no updates.
pub async fn connect(endpoint: &Endpoint) -> Result<Updates, AgentFailure> {
    let late = |_| AgentFailure::Unreachable("no answer in time".into());
    timeout(ANSWER_WAIT, open(endpoint)).await.map_err(late)?
}

async fn open(endpoint: &Endpoint) -> Result<Updates, AgentFailure> {
    let path = endpoint.path().to_owned();
    let to_socket = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The name goes nowhere but into a header.
    let channel = tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector(to_socket).await;
    let channel = channel.map_err(|e| AgentFailure::Unreachable(format!("{endpoint}: {}", root_cause(&e))))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(UPDATE_BYTES_MAX);
    client.ready().await.map_err(|e| AgentFailure::Unreachable(format!("{endpoint}: {}", root_cause(&e))))?;
    let mut request = tonic::Request::new(X509SvidRequest {});
    // Without it the agent must refuse: a request forged through someone else's server can't carry it (SPIFFE Workload
    // Endpoint, section 6).
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let method = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509SVID");
    let codec = ProstCodec::<X509SvidRequest, X509SvidResponse>::default();
    let answer = client.server_streaming(request, method, codec).await.map_err(|status| failure(&status))?;
    Ok(Updates { stream: answer.into_inner(), _client: client })
}

impl Updates {
    /// Waits for the next update.
    ///
    /// # Errors
    /// Why there are no more.
    pub async fn next(&mut self) -> Result<Update, AgentFailure> {
        match self.stream.message().await {
            Ok(Some(message)) => Ok(update(message)),
            Ok(None) => Err(AgentFailure::Ended),
            Err(status) => Err(failure(&status)),
        }
    }
}

fn update(message: X509SvidResponse) -> Update {
    let svids = message.svids.into_iter().map(|svid| Svid {
        id: svid.spiffe_id,
        hint: svid.hint,
        chain: svid.x509_svid,
        key: svid.x509_svid_key,
        bundle: svid.bundle,
    });
    let issued = Issued::new(svids.collect(), message.federated_bundles.into_iter().collect());
    Update { issued, lists: message.crl.len() }
}

fn failure(status: &Status) -> AgentFailure {
    // Where the connection broke, tonic's own words are "transport error".
    let said = || match (status.source(), status.message()) {
        (Some(source), _) => root_cause(source),
        (None, "") => format!("{:?}", status.code()),
        (None, message) => format!("{:?}: {}", status.code(), message.escape_debug()),
    };
    match status.code() {
        Code::PermissionDenied => AgentFailure::Denied(said()),
        Code::Unavailable => AgentFailure::Unreachable(said()),
        _ if status.source().is_some() => AgentFailure::Unreachable(said()),
        _ => AgentFailure::Failed(said()),
    }
}

/// What tonic wraps says more than its own words.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
