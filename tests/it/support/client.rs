//! A client that says exactly what a test tells it to: HTTP/1.1 as bytes, over TLS or plain TCP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::PATIENCE;
use super::certs::{Identity, Pki};

type Configure = Arc<dyn Fn(&mut SslContextBuilder) + Send + Sync>;

/// How to connect; cheap to clone and change.
#[derive(Clone)]
pub struct Client {
    ca: X509,
    pub identity: Option<Identity>,
    pub sni: Option<String>,
    configure: Option<Configure>,
}

impl Client {
    pub fn new(pki: &Pki, identity: Option<Identity>) -> Self {
        Self { ca: pki.0.root.cert.clone(), identity, sni: Some("gateway.test".into()), configure: None }
    }

    pub fn sni(mut self, name: Option<&str>) -> Self {
        self.sni = name.map(str::to_owned);
        self
    }

    pub fn configure(mut self, f: impl Fn(&mut SslContextBuilder) + Send + Sync + 'static) -> Self {
        self.configure = Some(Arc::new(f));
        self
    }

    /// An OpenSSL session that has not begun its handshake.
    pub fn ssl(&self, alpn: &[u8]) -> Ssl {
        let mut b = SslContext::builder(SslMethod::tls_client()).unwrap();
        b.set_min_proto_version(Some(SslVersion::TLS1_2)).unwrap();
        let mut store = X509StoreBuilder::new().unwrap();
        store.add_cert(self.ca.clone()).unwrap();
        b.set_cert_store(store.build());
        b.set_verify(SslVerifyMode::PEER);
        b.set_alpn_protos(alpn).unwrap();
        if let Some(configure) = &self.configure {
            configure(&mut b);
        }
        if let Some(identity) = &self.identity {
            b.set_certificate(&identity.cert).unwrap();
            b.set_private_key(&identity.key).unwrap();
            identity.chain.iter().for_each(|c| b.add_extra_chain_cert(c.clone()).unwrap());
        }
        let mut ssl = Ssl::new(&b.build()).unwrap();
        if let Some(name) = &self.sni {
            ssl.set_hostname(name).unwrap();
        }
        ssl
    }

    /// TCP and the TLS handshake as far as the client sees it: with TLS 1.3 a refusal shows at the first read.
    pub fn connect(&self, address: SocketAddr) -> io::Result<Connection> {
        self.connect_over(tcp(address)?)
    }

    /// The same over a TCP connection that is there.
    pub fn connect_over(&self, tcp: TcpStream) -> io::Result<Connection> {
        let stream = self.ssl(b"\x08http/1.1").connect(tcp).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Connection { stream: Stream::Tls(Box::new(stream)), buffer: Vec::new() })
    }

    /// One request on a connection of its own.
    pub fn get(&self, address: SocketAddr, path: &str) -> io::Result<Response> {
        let host = self.sni.as_deref().unwrap_or("gateway.test");
        let mut connection = self.connect(address)?;
        connection.exchange(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
    }
}

/// A TCP connection of which the kernel keeps little that is not read: by default it takes many MiB.
pub fn small_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_recv_buffer_size(64 << 10)?;
    socket.connect_timeout(&address.into(), PATIENCE)?;
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

/// An open connection and what was read too far.
pub struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first value, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| std::str::from_utf8(v).unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?} {}", self.status, self.text()))
    }
}

impl Connection {
    pub fn plain(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: Stream::Plain(tcp(address)?), buffer: Vec::new() })
    }

    pub fn ssl(&mut self) -> &mut SslStream<TcpStream> {
        match &mut self.stream {
            Stream::Tls(s) => s,
            Stream::Plain(_) => panic!("a plain connection"),
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tls(s) => s.get_ref(),
            Stream::Plain(s) => s,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(s) => s.write_all(bytes),
            Stream::Plain(s) => s.write_all(bytes),
        }
    }

    /// Sends a request and reads its whole answer; a `HEAD` is known by its first letters.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Response> {
        self.send(request)?;
        self.response(request.starts_with(b"HEAD "))
    }

    /// More bytes into the buffer; `Ok(0)` is the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        let n = match &mut self.stream {
            Stream::Tls(s) => s.read(&mut chunk)?,
            Stream::Plain(s) => s.read(&mut chunk)?,
        };
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n)
    }

    fn need(&mut self) -> io::Result<()> {
        match self.fill()? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer[..end].to_vec();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.need()?;
        }
    }

    /// Status and header fields of the next answer, interim ones too; the body stays unread.
    pub fn head(&mut self) -> io::Result<Response> {
        let status = self.line()?;
        let text = String::from_utf8_lossy(&status).into_owned();
        let code = text.split(' ').nth(1).and_then(|c| c.parse().ok());
        let status = code.ok_or_else(|| io::Error::other(format!("no status line: {text:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Response { status, headers, body: Vec::new() });
            }
            let colon = line.iter().position(|b| *b == b':').ok_or_else(|| io::Error::other("no colon"))?;
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }

    /// The next final answer with its body.
    pub fn response(&mut self, to_head: bool) -> io::Result<Response> {
        let mut response = self.head()?;
        while (100..200).contains(&response.status) {
            response = self.head()?;
        }
        if to_head || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            while let Some(chunk) = self.chunk()? {
                response.body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().map_err(io::Error::other)?;
            while self.buffer.len() < length {
                self.need()?;
            }
            response.body = self.buffer.drain(..length).collect();
        } else {
            while self.fill()? > 0 {}
            response.body = std::mem::take(&mut self.buffer);
        }
        Ok(response)
    }

    /// The next so many bytes of a body of known length, once they are there.
    pub fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.need()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// One chunk of a chunked body; `None` is its proper end. A torn body is `UnexpectedEof`.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).map_err(io::Error::other)?;
        while self.buffer.len() < size + 2 {
            self.need()?;
        }
        let chunk = self.buffer.drain(..size + 2).take(size).collect();
        Ok(if size == 0 { None } else { Some(chunk) })
    }

    /// Reads until the other side closes; says how long that took. An answer on the way is thrown away.
    pub fn closed_after(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        loop {
            match self.fill() {
                Ok(0) => return Ok(start.elapsed()),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Err(e),
                Err(_) => return Ok(start.elapsed()),
            }
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill().is_ok_and(|n| n > 0) {}
        std::mem::take(&mut self.buffer)
    }

    /// Goes away without a word.
    pub fn vanish(self) {
        let _ = self.tcp().shutdown(Shutdown::Both);
    }
}
