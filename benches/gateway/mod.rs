//! A whole gateway in front of two of the demo's nodes, and clients for it, for benches.
// Each bench uses a part of it.
#![allow(dead_code)]

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hive_gateway::cli::node::Node;
use hive_gateway::cli::pki::{CertificateSpec, Development, Issued, Validity, write_issued};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// A small call.
pub const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"kind":"message","role":"user","messageId":"m1","parts":[{"kind":"text","text":"hello"}]}}}"#;
/// Where it goes.
pub const PATH: &str = "/api/a2a/jsonrpc";
/// Ticks of `/proc/PID/stat` in a second; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The gateway's process and how to reach it.
pub struct Gateway {
    pub child: Child,
    pub address: SocketAddr,
    /// Of another proxy: none.
    admin: Option<SocketAddr>,
    client: SslContext,
    pub directory: PathBuf,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::start_as(&[built()], &Policies::asked(), Duration::from_secs(20)).await
    }

    /// `program` with its first arguments: a wrapper may stand before the gateway. `{directory}` in them is its own.
    pub async fn start_as(program: &[String], policies: &Policies, patience: Duration) -> Self {
        let stage = Stage::set().await;
        let nodes = stage.nodes;
        let (address, admin) = (free_address(), free_address());
        std::fs::write(stage.directory.join("gateway.yaml"), config(policies, address, admin, nodes)).unwrap();
        let words: Vec<_> =
            program.iter().map(|word| word.replace("{directory}", &stage.directory.to_string_lossy())).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["run", "--config"]).arg(stage.directory.join("gateway.yaml"));
        let mut gateway = stage.start(command.env("RUST_LOG", "error"), address);
        gateway.admin = Some(admin);
        gateway.wait_ready(patience).await;
        gateway
    }

    /// Another proxy in the gateway's place: `command` gets to know where the certificates lie, where to listen, and where
    /// the nodes are.
    pub async fn start_other(command: impl FnOnce(&Path, SocketAddr, [SocketAddr; 2]) -> Command) -> Self {
        let stage = Stage::set().await;
        let address = free_address();
        let mut command = command(&stage.directory, address, stage.nodes);
        let other = stage.start(&mut command, address);
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        other
    }

    async fn wait_ready(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.ask_admin("GET /v1/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(Instant::now() < deadline, "the gateway does not become ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the admin listener answers.
    async fn ask_admin(&self, method_and_path: &str) -> std::io::Result<String> {
        let admin = self.admin.unwrap();
        let mut stream = TcpStream::connect(admin).await?;
        stream
            .write_all(format!("{method_and_path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Takes the configuration into use once more, as one that has changed.
    pub async fn reload(&self) {
        let file = self.directory.join("gateway.yaml");
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + "#\n").unwrap();
        let answer = self.ask_admin("POST /v1/reload").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Processor time so far, user and system, seconds.
    pub fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the command in parentheses; utime and stime are the 14th and 15th field of all.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_SECOND
    }

    /// Resident memory, KiB.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn tls(&self, alpn: &[u8]) -> SslStream<TcpStream> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut ssl = Ssl::new(&self.client).unwrap();
        ssl.set_hostname("localhost").unwrap();
        ssl.set_alpn_protos(alpn).unwrap();
        let mut stream = SslStream::new(ssl, tcp).unwrap();
        Pin::new(&mut stream).connect().await.expect("handshake");
        stream
    }

    pub async fn h1(&self) -> H1 {
        H1 { stream: self.tls(b"\x08http/1.1").await, buffer: Vec::new() }
    }

    pub async fn h2(&self) -> h2::client::SendRequest<Bytes> {
        let (send, connection) = h2::client::handshake(self.tls(b"\x02h2").await).await.unwrap();
        tokio::spawn(connection);
        send
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What a gateway is to do.
pub struct Policies {
    /// More keys of the route.
    pub route: String,
    /// More keys of the listener.
    pub listener: String,
    /// More blocks of the configuration.
    pub top: String,
    /// `server.threads`; none: one for each processor.
    pub threads: Option<usize>,
    /// How many others the configuration knows beside the one who calls.
    pub other_peers: usize,
}

impl Policies {
    /// By the command line: `--route`, `--listener`.
    pub fn asked() -> Self {
        Self {
            route: argument("--route").unwrap_or_else(|| "peers: [load], json_rpc: {}".to_owned()),
            listener: argument("--listener").unwrap_or_default(),
            top: String::new(),
            threads: None,
            other_peers: 0,
        }
    }
}

/// What a proxy needs around it.
struct Stage {
    directory: PathBuf,
    nodes: [SocketAddr; 2],
    ca: Development,
    client: Issued,
}

impl Stage {
    async fn set() -> Self {
        let directory = std::env::temp_dir().join(format!("hive-gateway-load-{}-{}", std::process::id(), started()));
        std::fs::create_dir(&directory).unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let validity = Validity::hours_from(i64::try_from(now).unwrap(), 24);
        let ca = Development::new("Load", validity).unwrap();
        let server = CertificateSpec::server("localhost", validity).dns("localhost").issue(&ca.intermediate).unwrap();
        let client = CertificateSpec::client("load", validity).uri("spiffe://mesh.example/load");
        let client = client.issue(&ca.intermediate).unwrap();
        write_issued(&directory, "server", &server, true).unwrap();
        std::fs::write(directory.join("ca.pem"), ca.root.cert_pem().unwrap()).unwrap();

        let (a, b) = (Node::bind("a").await.unwrap(), Node::bind("b").await.unwrap());
        let nodes = [a.address().unwrap(), b.address().unwrap()];
        tokio::spawn(a.serve());
        tokio::spawn(b.serve());
        Self { directory, nodes, ca, client }
    }

    fn start(self, command: &mut Command, address: SocketAddr) -> Gateway {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Gateway {
            child,
            address,
            admin: None,
            client: client_context(&self.ca, &self.client),
            directory: self.directory,
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// The gateway that is measured: `--gateway FILE`, or the one that was built with the bench.
pub fn built() -> String {
    argument("--gateway").unwrap_or_else(|| env!("CARGO_BIN_EXE_hive-gateway").to_owned())
}

/// How many gateways were started before.
fn started() -> usize {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    STARTED.fetch_add(1, Ordering::Relaxed)
}

/// As the demo's, with limits that let one machine be many clients, and the access log written as in production.
fn config(policies: &Policies, front: SocketAddr, admin: SocketAddr, [a, b]: [SocketAddr; 2]) -> String {
    let Policies { route: policies, listener: limits, top, threads, other_peers } = policies;
    let others: String = (0..*other_peers)
        .map(|n| format!("  - {{ name: other-{n}, uri: \"spiffe://mesh.example/other/{n}\" }}\n"))
        .collect();
    let threads = threads.map(|n| format!(", threads: {n}")).unwrap_or_default();
    format!(
        "
listeners:
  - name: load
    address: {front}
    tls:
      certificates: [ {{ cert: server.pem, key: server.key }} ]
      client_auth: {{ ca: ca.pem }}
    limits: {{ connections: 20000, connections_per_address: 20000, new_connections_per_address: 100000/s, requests_per_connection: 1000000 }}
    timeouts: {{ idle: 10m }}
    {limits}
peers:
  - {{ name: load, uri: \"spiffe://mesh.example/load\" }}
{others}routes:
  - {{ name: a2a, paths: [{PATH}], methods: [POST], upstream: hive, {policies} }}
upstreams:
  - {{ name: hive, endpoints: [\"http://{a}\", \"http://{b}\"] }}
admin: {{ address: {admin} }}
access_log: {{ path: access.log }}
server: {{ drain: 1s{threads} }}
{top}
"
    )
}

fn client_context(ca: &Development, client: &Issued) -> SslContext {
    let mut b = SslContext::builder(SslMethod::tls_client()).unwrap();
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(ca.root.cert.clone()).unwrap();
    b.set_cert_store(store.build());
    b.set_verify(SslVerifyMode::PEER);
    b.set_certificate(&client.cert).unwrap();
    b.set_private_key(&client.key).unwrap();
    client.chain.iter().for_each(|c| b.add_extra_chain_cert(c.clone()).unwrap());
    b.build()
}

/// One HTTP/1.1 connection.
pub struct H1 {
    stream: SslStream<TcpStream>,
    buffer: Vec<u8>,
}

/// It as HTTP/1.1.
pub fn h1_request(body: &str) -> String {
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl H1 {
    /// One call and its answer.
    pub async fn call(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).await.unwrap();
        loop {
            if let Some(end) = whole(&self.buffer) {
                self.buffer.drain(..end);
                return;
            }
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the gateway closed");
        }
    }

    /// Reads an event stream to its end; how many events it had.
    pub async fn events(&mut self, request: &str) -> usize {
        self.stream.write_all(request.as_bytes()).await.unwrap();
        while !self.buffer.ends_with(b"0\r\n\r\n") {
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the gateway closed");
        }
        count_events(&self.buffer)
    }
}

/// Length of the answer at the front of the buffer, if all of it is there.
fn whole(buffer: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(buffer).unwrap() else { return None };
    assert_eq!(head.code, Some(200), "{}", String::from_utf8_lossy(buffer));
    let body = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length")).unwrap();
    let end = length + std::str::from_utf8(body.value).unwrap().parse::<usize>().unwrap();
    (buffer.len() >= end).then_some(end)
}

/// How many events there are.
pub fn count_events(bytes: &[u8]) -> usize {
    bytes.windows(6).filter(|w| w == b"data: ").count()
}

/// One call and its answer.
pub async fn h2_call(send: &h2::client::SendRequest<Bytes>, body: &str) -> Vec<u8> {
    let mut send = send.clone().ready().await.unwrap();
    let request = http::Request::post(format!("https://localhost{PATH}")).header("content-type", "application/json");
    // Without it another proxy may send the body on in chunks, which the nodes don't read.
    let request = request.header("content-length", body.len());
    let (future, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
    let answer = future.await.unwrap();
    assert_eq!(answer.status(), 200);
    let (mut body, mut whole) = (answer.into_body(), Vec::new());
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data.unwrap();
        whole.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    whole
}

/// What follows `--name` on the command line.
pub fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}
