//! A Hive node that speaks HTTP/2, with prior knowledge or over mutual TLS: it says what it got. Like nginx it refuses a
//! request with a `host` beside `:authority`; also one whose `:scheme` is not its connection's.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use openssl::ssl::{Ssl, SslContext};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::node::sha256;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

pub struct NodeH2 {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    // Dropped with its tasks, sockets and all.
    _runtime: Runtime,
}

impl NodeH2 {
    /// `tls`: over TLS with ALPN; else with prior knowledge.
    pub fn start(tls: Option<SslContext>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let sink = seen.clone();
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, sink) = (tls.clone(), sink.clone());
                tokio::spawn(async move {
                    let Some(context) = tls else { return serve(tcp, "http", sink).await };
                    let mut stream = tokio_openssl::SslStream::new(Ssl::new(&context).unwrap(), tcp).unwrap();
                    if Pin::new(&mut stream).accept().await.is_ok() {
                        serve(stream, "https", sink).await;
                    }
                });
            }
        });
        Self { address, seen, _runtime: runtime }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|s| s.path != "/api/health").cloned().collect()
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, scheme: &'static str, seen: Arc<Mutex<Vec<Seen>>>) {
    let Ok(mut connection) = h2::server::Builder::new().initial_window_size(1 << 20).handshake::<_, Bytes>(io).await
    else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let seen = seen.clone();
        tokio::spawn(async move {
            let (parts, mut stream) = request.into_parts();
            let mut body = Vec::new();
            while let Some(Ok(data)) = stream.data().await {
                body.extend_from_slice(&data);
                let _ = stream.flow_control().release_capacity(data.len());
            }
            let authority = parts.uri.authority().is_some();
            if !authority || parts.headers.contains_key("host") || parts.uri.scheme_str() != Some(scheme) {
                let refused = Response::builder().status(400).body(()).unwrap();
                _ = respond.send_response(refused, true);
                return;
            }
            let path = parts.uri.path().to_owned();
            let answer = serde_json::json!({ "length": body.len(), "sha256": sha256(&body) }).to_string();
            seen.lock().unwrap().push(Seen {
                method: parts.method.to_string(),
                path: path.clone(),
                headers: parts.headers,
                body,
            });
            if path.ends_with("/stream") {
                let head = Response::builder().header("content-type", "text/event-stream").body(()).unwrap();
                let Ok(mut send) = respond.send_response(head, false) else { return };
                for n in 0..5 {
                    if send.send_data(Bytes::from(format!("data: {n}\n\n")), n == 4).is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                return;
            }
            let head = Response::builder().header("content-type", "application/json").body(()).unwrap();
            if let Ok(mut send) = respond.send_response(head, false) {
                let _ = send.send_data(Bytes::from(answer), true);
            }
        });
    }
}
