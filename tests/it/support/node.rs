//! A Hive node that records what reaches it, byte for byte, and behaves as a test says.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openssl::hash::{MessageDigest, hash};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;

use super::certs::{Identity, Pki};
use super::{PATIENCE, wait_until};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Request line and header fields, with the empty line.
    pub head: Vec<u8>,
    /// The body, without chunk sizes.
    pub body: Vec<u8>,
    /// Number of its connection.
    pub connection: u64,
    /// When its last byte was read.
    pub at: Instant,
}

impl Recorded {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.head).into_owned()
    }

    pub fn method(&self) -> String {
        self.text().split(' ').next().unwrap().to_owned()
    }

    /// The target as the node got it.
    pub fn target(&self) -> String {
        self.text().split(' ').nth(1).unwrap().to_owned()
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let fields = text.lines().skip(1).filter_map(|l| l.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).collect()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hash(MessageDigest::sha256(), bytes).unwrap().iter().map(|b| format!("{b:02x}")).collect()
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// The node's side of one request.
pub struct Exchange<'a> {
    wire: &'a mut dyn Wire,
    tcp: &'a TcpStream,
    close: bool,
}

impl Exchange<'_> {
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write_all(bytes)?;
        self.wire.flush()
    }

    /// An answer with a `Content-Length`; `headers` are whole lines.
    pub fn answer(&mut self, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
        let head = format!("HTTP/1.1 {status} Some\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat())
    }

    pub fn begin_stream(&mut self) -> io::Result<()> {
        self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n\
              Transfer-Encoding: chunked\r\n\r\n",
        )
    }

    pub fn event(&mut self, data: &str) -> io::Result<()> {
        let event = format!("data: {data}\n\n");
        self.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
    }

    pub fn end_stream(&mut self) -> io::Result<()> {
        self.send(b"0\r\n\r\n")
    }

    /// Waits for the gateway to let go of this connection; `None`: it did not.
    pub fn gone_after(&mut self) -> Option<Duration> {
        self.gone_within(PATIENCE)
    }

    /// The same, not longer than `limit`.
    pub fn gone_within(&mut self, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        self.tcp.set_read_timeout(Some(limit)).unwrap();
        match self.wire.read(&mut [0; 64]) {
            Ok(0) => Some(start.elapsed()),
            Ok(_) => None,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(_) => Some(start.elapsed()),
        }
    }

    /// The connection ends after this request.
    pub fn close(&mut self) {
        self.close = true;
    }
}

type Behaviour = Arc<dyn Fn(&Recorded, &mut Exchange) -> io::Result<()> + Send + Sync>;

struct State {
    requests: Mutex<Vec<Recorded>>,
    open: Mutex<HashMap<u64, TcpStream>>,
    accepted: AtomicU64,
    probes: Mutex<Vec<Recorded>>,
    health: AtomicU16,
    behaviour: Mutex<Behaviour>,
    stopped: AtomicBool,
    tls: Option<SslContext>,
    peers: Mutex<Vec<String>>,
    serials: Mutex<HashMap<u64, String>>,
}

/// A node on 127.0.0.1. Health probes are answered by themselves and kept apart.
pub struct Node {
    pub address: SocketAddr,
    state: Arc<State>,
}

/// Says what it got: method, target, length and hash of the body.
fn echo(request: &Recorded, exchange: &mut Exchange) -> io::Result<()> {
    let body = serde_json::json!({
        "method": request.method(), "target": request.target(),
        "length": request.body.len(), "sha256": sha256(&request.body),
    });
    exchange.answer(200, "Content-Type: application/json\r\n", body.to_string().as_bytes())
}

impl Node {
    pub fn start() -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), None)
    }

    /// On a port that an earlier node had.
    pub fn start_on(address: SocketAddr) -> Self {
        Self::listen(address, None)
    }

    /// Over mutual TLS: asks for a certificate of this mesh.
    pub fn start_tls(identity: &Identity, mesh: &Pki) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), Some(server_context(identity, mesh, b"\x08http/1.1")))
    }

    pub fn start_with(f: impl Fn(&Recorded, &mut Exchange) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let node = Self::start();
        node.behave(f);
        node
    }

    fn listen(address: SocketAddr, tls: Option<SslContext>) -> Self {
        // The port of a node that just died may still be held by its last connections.
        let mut listener = TcpListener::bind(address);
        let deadline = Instant::now() + PATIENCE;
        while listener.is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            listener = TcpListener::bind(address);
        }
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            requests: Mutex::default(),
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            probes: Mutex::default(),
            health: AtomicU16::new(200),
            behaviour: Mutex::new(Arc::new(echo)),
            stopped: AtomicBool::new(false),
            tls,
            peers: Mutex::default(),
            serials: Mutex::default(),
        });
        let shared = state.clone();
        std::thread::spawn(move || accept(&listener, &shared));
        Self { address, state }
    }

    /// What is asked for with `stream` in its path is answered by a stream that ends only when the gateway leaves.
    pub fn endless() -> Self {
        let node = Self::start();
        node.behave(|request, exchange| {
            if !request.target().contains("stream") {
                return exchange.answer(200, "", b"");
            }
            exchange.begin_stream()?;
            while exchange.gone_within(Duration::from_millis(50)).is_none() {
                exchange.event("tick")?;
            }
            Ok(())
        });
        node
    }

    pub fn behave(&self, f: impl Fn(&Recorded, &mut Exchange) -> io::Result<()> + Send + Sync + 'static) {
        *self.state.behaviour.lock().unwrap() = Arc::new(f);
    }

    /// Status of `/api/health` from now on.
    pub fn set_health(&self, status: u16) {
        self.state.health.store(status, Ordering::Relaxed);
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.state.requests.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.state.requests.lock().unwrap().len()
    }

    pub fn probes(&self) -> Vec<Recorded> {
        self.state.probes.lock().unwrap().clone()
    }

    /// Subjects of the client certificates it saw, one a connection.
    pub fn peers(&self) -> Vec<String> {
        self.state.peers.lock().unwrap().clone()
    }

    /// Serial number of the client certificate that a connection came with.
    pub fn serial(&self, connection: u64) -> String {
        self.state.serials.lock().unwrap()[&connection].clone()
    }

    /// The one request so far.
    #[track_caller]
    pub fn only(&self) -> Recorded {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at the node");
        requests.into_iter().next().unwrap()
    }

    #[track_caller]
    pub fn wait_count(&self, count: usize) {
        wait_until("requests arrive at the node", || self.count() >= count);
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.state.open.lock().unwrap().len()
    }

    /// Dies at once: no new connection, the live ones torn.
    pub fn kill(&self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then drops its listener.
        let _ = TcpStream::connect(self.address);
        wait_until("the node's port is closed", || TcpStream::connect(self.address).is_err());
        for stream in self.state.open.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.state.stopped.load(Ordering::SeqCst) {
            self.kill();
        }
    }
}

/// TLS for a node that wants its client's certificate.
pub fn server_context(identity: &Identity, mesh: &Pki, alpn: &'static [u8]) -> SslContext {
    let mut b = SslContext::builder(SslMethod::tls_server()).unwrap();
    b.set_certificate(&identity.cert).unwrap();
    b.set_private_key(&identity.key).unwrap();
    identity.chain.iter().for_each(|c| b.add_extra_chain_cert(c.clone()).unwrap());
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(mesh.0.root.cert.clone()).unwrap();
    b.set_cert_store(store.build());
    b.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    b.set_session_id_context(b"node").unwrap();
    b.set_alpn_select_callback(move |_, client| {
        openssl::ssl::select_next_proto(alpn, client).ok_or(openssl::ssl::AlpnError::NOACK)
    });
    b.build()
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let number = state.accepted.fetch_add(1, Ordering::Relaxed);
        state.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
        let state = state.clone();
        std::thread::spawn(move || {
            let _ = serve(stream, number, &state);
            if let Some(stream) = state.open.lock().unwrap().remove(&number) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }
}

fn serve(tcp: TcpStream, number: u64, state: &State) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut wire: Box<dyn Wire> = match &state.tls {
        None => Box::new(tcp.try_clone()?),
        Some(context) => {
            let ssl = Ssl::new(context)?;
            let stream = ssl.accept(tcp.try_clone()?).map_err(|e| io::Error::other(e.to_string()))?;
            if let Some(cert) = stream.ssl().peer_certificate() {
                state.serials.lock().unwrap().insert(number, super::certs::serial(&cert));
            }
            let subject = stream.ssl().peer_certificate().map(|c| format!("{:?}", c.subject_name()));
            state.peers.lock().unwrap().extend(subject);
            Box::new(stream)
        }
    };
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut *wire, &mut buffer, number)? {
        let mut exchange = Exchange { wire: &mut *wire, tcp: &tcp, close: false };
        if request.target() == "/api/health" {
            let status = state.health.load(Ordering::Relaxed);
            state.probes.lock().unwrap().push(request);
            exchange.answer(status, "Content-Type: application/json\r\n", b"{}")?;
            continue;
        }
        state.requests.lock().unwrap().push(request.clone());
        let behaviour = state.behaviour.lock().unwrap().clone();
        behaviour(&request, &mut exchange)?;
        if exchange.close {
            return Ok(());
        }
    }
    Ok(())
}

fn fill(wire: &mut dyn Wire, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 64 << 10];
    let n = wire.read(&mut chunk)?;
    buffer.extend_from_slice(&chunk[..n]);
    Ok(n)
}

fn need(wire: &mut dyn Wire, buffer: &mut Vec<u8>) -> io::Result<()> {
    if fill(wire, buffer)? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn read_request(wire: &mut dyn Wire, buffer: &mut Vec<u8>, connection: u64) -> io::Result<Option<Recorded>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if fill(wire, buffer)? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = buffer.drain(..end).collect();
    let mut request = Recorded { head, body: Vec::new(), connection, at: Instant::now() };
    if let Some(length) = request.header("content-length") {
        let length: usize = length.parse().map_err(io::Error::other)?;
        while buffer.len() < length {
            need(wire, buffer)?;
        }
        request.body = buffer.drain(..length).collect();
    } else if request.header("transfer-encoding").is_some() {
        read_chunks(wire, buffer, &mut request.body)?;
    }
    request.at = Instant::now();
    Ok(Some(request))
}

fn read_chunks(wire: &mut dyn Wire, buffer: &mut Vec<u8>, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = loop {
            if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
                break String::from_utf8_lossy(&buffer.drain(..at + 2).collect::<Vec<_>>()).trim().to_owned();
            }
            need(wire, buffer)?;
        };
        let size = usize::from_str_radix(&line, 16).map_err(io::Error::other)?;
        while buffer.len() < size + 2 {
            need(wire, buffer)?;
        }
        body.extend(buffer.drain(..size + 2).take(size));
        if size == 0 {
            return Ok(());
        }
    }
}
