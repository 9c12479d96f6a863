//! Load on a whole gateway: what a request, a handshake, an idle connection and a stream cost its process.
//!
//! `cargo bench --bench load` starts two of the demo's nodes in this process and the gateway in one of its own, then runs
//! closed loops against it over mutual TLS. Processor time is the gateway's alone, from `/proc`. `-- --requests N`,
//! `--handshakes N`, `--idle N` and `--streams N` change the amounts; 0 leaves a phase out. `--gateway FILE` measures another
//! binary. `--route 'peers: any'` puts other policies on the route, `--listener 'rate_limits: […]'` some on the listener.
// A load test that can't go on ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hive_gateway::cli::node::Node;
use hive_gateway::cli::pki::{CertificateSpec, Development, Issued, Validity, write_issued};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_openssl::SslStream;

const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"kind":"message","role":"user","messageId":"m1","parts":[{"kind":"text","text":"hello"}]}}}"#;
const PATH: &str = "/api/a2a/jsonrpc";
/// Ticks of `/proc/PID/stat` in a second; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const H1_CONNECTIONS: usize = 64;
const H2_CONNECTIONS: usize = 8;
const H2_STREAMS: usize = 8;

/// The gateway's process and how to reach it.
struct Gateway {
    child: Child,
    address: SocketAddr,
    client: SslContext,
    directory: PathBuf,
}

impl Gateway {
    async fn start() -> Self {
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
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (front, admin) = (free(), free());
        let (address, admin_address) = (front.local_addr().unwrap(), admin.local_addr().unwrap());
        drop((front, admin));
        std::fs::write(directory.join("gateway.yaml"), config(address, admin_address, nodes)).unwrap();
        let built = env!("CARGO_BIN_EXE_hive-gateway").to_owned();
        let child = Command::new(argument("--gateway").unwrap_or(built))
            .args(["run", "--config"])
            .arg(directory.join("gateway.yaml"))
            .env("RUST_LOG", "error")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let gateway = Self { child, address, client: client_context(&ca, &client), directory };
        gateway.wait_ready(admin_address).await;
        gateway
    }

    async fn wait_ready(&self, admin: SocketAddr) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let asked = async {
                let mut stream = TcpStream::connect(admin).await?;
                stream.write_all(b"GET /v1/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await?;
                std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
            };
            if asked.await.unwrap_or(false) {
                return;
            }
            assert!(Instant::now() < deadline, "the gateway does not become ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Processor time so far, user and system, seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the command in parentheses; utime and stime are the 14th and 15th field of all.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_SECOND
    }

    /// Resident memory, KiB.
    fn memory(&self) -> f64 {
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

    async fn h1(&self) -> H1 {
        H1 { stream: self.tls(b"\x08http/1.1").await, buffer: Vec::new() }
    }

    async fn h2(&self) -> h2::client::SendRequest<Bytes> {
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

/// How many gateways were started before.
fn started() -> usize {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    STARTED.fetch_add(1, Ordering::Relaxed)
}

/// As the demo's, with limits that let one machine be many clients, and the access log written as in production.
fn config(front: SocketAddr, admin: SocketAddr, [a, b]: [SocketAddr; 2]) -> String {
    let policies = argument("--route").unwrap_or_else(|| "peers: [load], json_rpc: {}".to_owned());
    let limits = argument("--listener").unwrap_or_default();
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
routes:
  - {{ name: a2a, paths: [{PATH}], methods: [POST], upstream: hive, {policies} }}
upstreams:
  - {{ name: hive, endpoints: [\"http://{a}\", \"http://{b}\"] }}
admin: {{ address: {admin} }}
access_log: {{ path: access.log }}
server: {{ drain: 1s }}
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
struct H1 {
    stream: SslStream<TcpStream>,
    buffer: Vec<u8>,
}

fn h1_request(body: &str) -> String {
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl H1 {
    async fn call(&mut self, request: &str) {
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
    async fn events(&mut self, request: &str) -> usize {
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

fn count_events(bytes: &[u8]) -> usize {
    bytes.windows(6).filter(|w| w == b"data: ").count()
}

async fn h2_call(send: &h2::client::SendRequest<Bytes>, body: &str) -> Vec<u8> {
    let mut send = send.clone().ready().await.unwrap();
    let request = http::Request::post(format!("https://localhost{PATH}")).header("content-type", "application/json");
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

/// Hands out a fixed number of turns to many workers.
#[derive(Clone)]
struct Turns(Arc<AtomicUsize>);

impl Turns {
    fn new(count: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(count)))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// Runs the workers and prints what their turns took.
async fn measure<W>(gateway: &Gateway, title: &str, unit: &str, workers: Vec<W>)
where
    W: Future<Output = Vec<u32>> + Send + 'static,
{
    let (cpu, start) = (gateway.cpu(), Instant::now());
    let running: JoinSet<_> = workers.into_iter().collect();
    let mut micros: Vec<u32> = running.join_all().await.concat();
    let (cpu, took) = (gateway.cpu() - cpu, start.elapsed().as_secs_f64());
    micros.sort_unstable();
    let at = |share: usize| f64::from(micros[(micros.len() * share / 1000).min(micros.len() - 1)]) / 1000.0;
    println!(
        "{title}: {} {unit}s, {:.0}/s, gateway's CPU {:.1} µs/{unit}, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        micros.len(),
        micros.len() as f64 / took,
        cpu * 1e6 / micros.len() as f64,
        at(500),
        at(990),
        at(999),
    );
}

fn micros(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX)
}

async fn h1_phase(gateway: &Gateway, connections: usize, requests: usize) {
    let turns = Turns::new(requests);
    let mut workers = Vec::new();
    for _ in 0..connections {
        let (mut connection, turns) = (gateway.h1().await, turns.clone());
        workers.push(async move {
            let (request, mut times) = (h1_request(CALL), Vec::new());
            while turns.take() {
                let start = Instant::now();
                connection.call(&request).await;
                times.push(micros(start));
            }
            times
        });
    }
    measure(gateway, &format!("HTTP/1.1, {connections} connections"), "request", workers).await;
}

async fn h2_phase(gateway: &Gateway, requests: usize) {
    let turns = Turns::new(requests);
    let mut workers = Vec::new();
    for _ in 0..H2_CONNECTIONS {
        let send = gateway.h2().await;
        for _ in 0..H2_STREAMS {
            let (send, turns) = (send.clone(), turns.clone());
            workers.push(async move {
                let mut times = Vec::new();
                while turns.take() {
                    let start = Instant::now();
                    h2_call(&send, CALL).await;
                    times.push(micros(start));
                }
                times
            });
        }
    }
    let title = format!("HTTP/2, {H2_CONNECTIONS} connections of {H2_STREAMS} streams");
    measure(gateway, &title, "request", workers).await;
}

async fn handshake_phase(gateway: &Arc<Gateway>, count: usize) {
    let turns = Turns::new(count);
    let workers = (0..8).map(|_| {
        let (gateway, turns) = (gateway.clone(), turns.clone());
        async move {
            let mut times = Vec::new();
            while turns.take() {
                let start = Instant::now();
                // With TLS 1.3 the server is done only when it has read the client's last flight: a request shows it.
                gateway.h1().await.call(&h1_request(CALL)).await;
                times.push(micros(start));
            }
            times
        }
    });
    let workers: Vec<_> = workers.collect();
    measure(gateway, "New connections, full handshake and one request each", "connection", workers).await;
}

/// On a gateway of its own: memory that an earlier phase gave back would be used again, and not be seen.
async fn idle_phase(gateway: &Gateway, count: usize) {
    let mut first = gateway.h1().await;
    for _ in 0..200 {
        first.call(&h1_request(CALL)).await;
    }
    let before = gateway.memory();
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = gateway.h1().await;
        connection.call(&h1_request(CALL)).await;
        held.push(connection);
    }
    // Long enough for what a request left behind to be given back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, cpu) = (gateway.memory(), gateway.cpu());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let share = (gateway.cpu() - cpu) / 5.0 * 100.0;
    for connection in held.iter_mut().step_by(100) {
        connection.call(&h1_request(CALL)).await;
    }
    println!(
        "{count} idle connections, each after one request: {:.1} KiB resident memory each (process {:.0} -> {:.0} MiB), \
         {share:.1} % of a processor; every hundredth answers",
        (after - before) / count as f64,
        before / 1024.0,
        after / 1024.0,
    );
}

async fn stream_phase(gateway: &Gateway, count: usize) {
    let body = CALL.replace("message/send", "message/stream");
    let (memory, cpu, start) = (gateway.memory(), gateway.cpu(), Instant::now());
    let mut running = JoinSet::new();
    for _ in 0..count / 2 {
        let (mut connection, request) = (gateway.h1().await, h1_request(&body));
        running.spawn(async move { connection.events(&request).await });
    }
    for _ in 0..count / 2 / 50 {
        let send = gateway.h2().await;
        for _ in 0..50 {
            let (send, body) = (send.clone(), body.clone());
            running.spawn(async move { count_events(&h2_call(&send, &body).await) });
        }
    }
    let streams = running.len();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let during = gateway.memory();
    let events: usize = running.join_all().await.into_iter().sum();
    println!(
        "{streams} streams at once, half HTTP/1.1 and half HTTP/2: {events} of {} events, {:.1} s, {:.1} KiB each, \
         gateway's CPU {:.0} µs/event with connections made",
        streams * 5,
        start.elapsed().as_secs_f64(),
        (during - memory) / streams as f64,
        (gateway.cpu() - cpu) * 1e6 / events as f64,
    );
    assert_eq!(events, streams * 5);
}

/// What follows `--name` on the command line.
fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn amount(name: &str, default: usize) -> usize {
    argument(name).map_or(default, |n| n.parse().unwrap_or_else(|e| panic!("{name} {n}: {e}")))
}

fn main() {
    // `cargo test --benches` runs it too, with no intention to measure.
    if std::env::args().any(|a| a == "--test") || !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The gateway inherits it.
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let gateway = Arc::new(Gateway::start().await);
        let requests = amount("--requests", 100_000);
        println!("{} {}, {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), openssl::version::version());
        if requests > 0 {
            h1_phase(&gateway, 8, (requests / 20).max(1)).await;
            println!("(that was the warm-up)");
            h1_phase(&gateway, 1, (requests / 10).max(1)).await;
            h1_phase(&gateway, H1_CONNECTIONS, requests).await;
            h2_phase(&gateway, requests).await;
        }
        match amount("--handshakes", 3_000) {
            0 => {}
            count => handshake_phase(&gateway, count).await,
        }
        drop(gateway);
        match amount("--streams", 1_000) {
            0 => {}
            count => stream_phase(&Gateway::start().await, count).await,
        }
        match amount("--idle", 10_000) {
            0 => {}
            count => idle_phase(&Gateway::start().await, count).await,
        }
    });
}
