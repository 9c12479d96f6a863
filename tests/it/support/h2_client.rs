//! An HTTP/2 client over mutual TLS, driven from blocking tests.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_openssl::SslStream;

use super::client::{Client, Response};
use super::{PATIENCE, wait_until};

/// One connection.
pub struct H2 {
    runtime: Runtime,
    send: SendRequest<Bytes>,
    ended: Arc<Mutex<Option<Duration>>>,
}

/// An answer whose body still comes.
pub struct Streaming<'a> {
    h2: &'a H2,
    pub status: u16,
    body: RecvStream,
}

/// TCP and TLS with ALPN `h2`, and nothing said yet.
pub async fn tls(client: &Client, address: SocketAddr) -> Result<SslStream<TcpStream>, String> {
    let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    tcp.set_nodelay(true).unwrap();
    let mut stream = SslStream::new(client.ssl(b"\x02h2"), tcp).map_err(|e| e.to_string())?;
    Pin::new(&mut stream).connect().await.map_err(|e| e.to_string())?;
    match stream.ssl().selected_alpn_protocol() {
        Some(b"h2") => Ok(stream),
        other => Err(format!("ALPN chose {other:?}")),
    }
}

impl H2 {
    pub fn connect(client: &Client, address: SocketAddr) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let opened = runtime.block_on(async {
            let stream = tls(client, address).await?;
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(1 << 20).max_header_list_size(1 << 20);
            builder.handshake::<_, Bytes>(stream).await.map_err(|e| e.to_string())
        });
        let (send, connection) = opened?;
        let ended = Arc::new(Mutex::new(None));
        let sink = ended.clone();
        runtime.spawn(async move {
            let start = Instant::now();
            let _ = connection.await;
            *sink.lock().unwrap() = Some(start.elapsed());
        });
        Ok(Self { runtime, send, ended })
    }

    /// A request line and its host; header fields are added by the test.
    pub fn request(method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("https://gateway.test{path}"))
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, h2::Error>>) -> Result<T, String> {
        let done = self.runtime.block_on(async { timeout(PATIENCE, future).await });
        done.map_err(|_| format!("nothing for {PATIENCE:?}"))?.map_err(|e| e.to_string())
    }

    /// Begins a request; its body is up to the test.
    pub fn begin(&self, request: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>), String> {
        let mut send = self.wait(self.send.clone().ready())?;
        // Needs the runtime's context for nothing but its timers.
        let _guard = self.runtime.enter();
        send.send_request(request, end).map_err(|e| e.to_string())
    }

    /// Sends the body in pieces of 16 KiB as the windows allow.
    pub fn send_body(&self, stream: &mut SendStream<Bytes>, body: &[u8]) -> Result<(), String> {
        self.wait(async {
            let mut rest = Bytes::copy_from_slice(body);
            while !rest.is_empty() {
                stream.reserve_capacity(rest.len().min(16 << 10));
                match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(n)) => stream.send_data(rest.split_to(n.min(rest.len())), false)?,
                    Some(Err(e)) => return Err(e),
                    None => return Ok(()),
                }
            }
            stream.send_data(Bytes::new(), true)
        })
    }

    pub fn head(&self, future: ResponseFuture) -> Result<http::Response<RecvStream>, String> {
        self.wait(future)
    }

    /// The whole answer.
    pub fn finish(&self, future: ResponseFuture) -> Result<Response, String> {
        let (parts, mut stream) = self.head(future)?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = self.next(&mut stream)? {
            body.extend_from_slice(&data);
        }
        let headers = parts.headers.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect();
        Ok(Response { status: parts.status.as_u16(), headers, body })
    }

    fn next(&self, stream: &mut RecvStream) -> Result<Option<Bytes>, String> {
        self.wait(async {
            match stream.data().await {
                None => Ok(None),
                Some(Err(e)) => Err(e),
                Some(Ok(data)) => {
                    stream.flow_control().release_capacity(data.len())?;
                    Ok(Some(data))
                }
            }
        })
    }

    /// A request with a whole body, and its whole answer.
    pub fn send(&self, request: Request<()>, body: &[u8]) -> Result<Response, String> {
        let (future, mut stream) = self.begin(request, body.is_empty())?;
        if !body.is_empty() {
            // The gateway may refuse before it has read all; its answer counts then.
            let _ = self.send_body(&mut stream, body);
        }
        self.finish(future)
    }

    pub fn get(&self, path: &str) -> Result<Response, String> {
        self.send(Self::request("GET", path).body(()).unwrap(), b"")
    }

    /// The same request so many times at once; the bodies, each read as it comes.
    pub fn get_all(&self, path: &str, times: usize) -> Result<Vec<Vec<u8>>, String> {
        self.wait(async {
            let mut running = tokio::task::JoinSet::new();
            for _ in 0..times {
                let mut send = self.send.clone().ready().await?;
                let (future, _) = send.send_request(Self::request("GET", path).body(()).unwrap(), true)?;
                running.spawn(async move {
                    let mut stream = future.await?.into_body();
                    let mut body = Vec::new();
                    while let Some(data) = stream.data().await.transpose()? {
                        stream.flow_control().release_capacity(data.len())?;
                        body.extend_from_slice(&data);
                    }
                    Ok::<_, h2::Error>(body)
                });
            }
            running.join_all().await.into_iter().collect()
        })
    }

    pub fn stream(&self, request: Request<()>, body: &[u8]) -> Result<Streaming<'_>, String> {
        let (future, mut stream) = self.begin(request, body.is_empty())?;
        if !body.is_empty() {
            self.send_body(&mut stream, body)?;
        }
        let (parts, body) = self.head(future)?.into_parts();
        Ok(Streaming { h2: self, status: parts.status.as_u16(), body })
    }

    /// How long the connection lived, once it has ended.
    #[track_caller]
    pub fn wait_ended(&self) -> Duration {
        wait_until("the HTTP/2 connection ends", || self.ended.lock().unwrap().is_some());
        self.ended.lock().unwrap().unwrap()
    }
}

impl Streaming<'_> {
    /// The next piece; `None` is the clean end of the stream, a reset is an error.
    pub fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.h2.next(&mut self.body)
    }
}
