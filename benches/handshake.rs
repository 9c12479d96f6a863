//! What a full mutual TLS handshake and a first request cost the gateway's process, against a bare OpenSSL acceptor with the
//! same certificates and settings; and that neither revoked serials nor peers make it dearer.
//!
//! `cargo bench --bench handshake`. Every server is a process of its own and answers a request that it forwards to nobody;
//! all of them run at once, and take turns in being asked, round after round. Shown is the median of processor time (user
//! and system, `/proc/PID/stat`) per handshake, and its ratio to the bare acceptor's: the ratios hold on a busy machine,
//! the times don't. `-- --handshakes N` and `--rounds N` change the amounts, `--gateway FILE` measures another binary.
// A bench that can't go on ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hive_gateway::cli::pki::{CertificateSpec, CrlSpec, Development, Validity, write_issued};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use openssl::ssl::{
    AlpnError, Ssl, SslContext, SslFiletype, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVerifyMode,
    SslVersion, select_next_proto,
};

const HANDSHAKES: usize = 600;
const ROUNDS: usize = 5;
/// Clients at once.
const CLIENTS: usize = 4;
/// Ticks of `/proc/PID/stat` in a second; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const REQUEST: &[u8] = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// As long as the gateway's.
const ANSWER: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 62\r\nConnection: close\r\n\r\n\
                        {\"error\":\"not_found\",\"message\":\"No route serves this request.\"}";
const PATIENCE: Duration = Duration::from_secs(60);

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|a| a == name).and_then(|_| arguments.next())
}

fn number(name: &str, default: usize) -> usize {
    argument(name).map_or(default, |n| n.parse().expect("a number"))
}

/// Certificates, lists and configurations; the directory goes away with it.
struct Files(PathBuf);

impl Files {
    fn write() -> Self {
        let dir = std::env::temp_dir().join(format!("hive-gateway-handshake-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let day = Validity::hours_from(now, 24);
        let pki = Development::new("bench", day).unwrap();
        std::fs::write(dir.join("ca.pem"), pki.bundle_pem().unwrap()).unwrap();
        let server = CertificateSpec::server("localhost", day).dns("localhost").issue(&pki.intermediate).unwrap();
        write_issued(&dir, "server", &server, true).unwrap();
        let client = CertificateSpec::client("load", day).uri("spiffe://mesh.example/load");
        write_issued(&dir, "client", &client.issue(&pki.intermediate).unwrap(), true).unwrap();
        for serials in [1_000u32, 1_000_000] {
            let serial = |n: u32| {
                let mut serial = openssl::sha::sha256(&n.to_be_bytes())[..16].to_vec();
                serial[0] = serial[0] & 0x7f | 1;
                serial
            };
            let spec = CrlSpec { serials: (0..serials).map(serial).collect(), ..CrlSpec::new(now - 60, now + 86_400) };
            std::fs::write(dir.join(format!("{serials}.crl")), spec.issue(&pki.intermediate).unwrap()).unwrap();
        }
        Self(dir)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server in a process of its own.
struct Server {
    name: String,
    child: Child,
    address: SocketAddr,
    /// Seconds of processor time per handshake, one for each round.
    costs: Vec<f64>,
}

impl Server {
    /// This program, as a bare acceptor.
    fn bare(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--acceptor")
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let address = first_line(child.stdout.take().unwrap()).parse().unwrap();
        Self { name: "bare OpenSSL acceptor".into(), child, address, costs: Vec::new() }
    }

    fn gateway(dir: &Path, crl: &str, peers: usize) -> Self {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (front, admin) = (free(), free());
        let (address, admin_address) = (front.local_addr().unwrap(), admin.local_addr().unwrap());
        drop((front, admin));
        let serials = crl.trim_end_matches(".crl");
        let file = dir.join(format!("gateway-{serials}-{peers}.yaml"));
        std::fs::write(&file, config(address, admin_address, crl, peers)).unwrap();
        let binary = argument("--gateway").unwrap_or_else(|| env!("CARGO_BIN_EXE_hive-gateway").into());
        let run = Command::new(binary).args(["run", "--config"]).arg(&file).env("RUST_LOG", "error").spawn();
        let revoked = if serials.is_empty() { "0" } else { serials };
        let s = if peers == 1 { "" } else { "s" };
        let name = format!("gateway, {revoked} revoked, {peers} peer{s}");
        Self { name, child: run.unwrap(), address, costs: Vec::new() }
    }

    /// Waits until handshakes succeed.
    fn wait(&self, client: &SslContext) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "{} does not listen", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        handshake(self.address, client);
    }

    /// Processor time so far, user and system, seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the command in parentheses; utime and stime are the 14th and 15th field of all.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_SECOND
    }

    fn measure(&mut self, client: &SslContext, handshakes: usize) {
        let before = self.cpu();
        let each = handshakes / CLIENTS;
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| (0..each).for_each(|_| handshake(self.address, client)));
            }
        });
        self.costs.push((self.cpu() - before) / (each * CLIENTS) as f64);
    }

    fn median(&self) -> f64 {
        let mut costs = self.costs.clone();
        costs.sort_by(f64::total_cmp);
        costs[costs.len() / 2]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn first_line(stdout: ChildStdout) -> String {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn config(front: SocketAddr, admin: SocketAddr, crl: &str, peers: usize) -> String {
    let mut text = format!(
        "
listeners:
  - name: bench
    address: {front}
    tls:
      certificates: [ {{ cert: server.pem, key: server.key }} ]
      client_auth: {{ ca: ca.pem, crl: [ {crl} ] }}
    limits: {{ connections_per_address: 20000, new_connections_per_address: 1000000/s }}
routes:
  - {{ name: a2a, paths: [/a2a], methods: [POST], peers: [load], upstream: hive }}
upstreams:
  - {{ name: hive, endpoints: [\"http://127.0.0.1:9\"], health_check: {{ enabled: false }} }}
admin: {{ address: {admin} }}
access_log: {{ path: access.log }}
server: {{ threads: 1, drain: 1s, watch: 0s }}
peers:
  - {{ name: load, uri: \"spiffe://mesh.example/load\" }}
"
    );
    for n in 1..peers {
        writeln!(text, "  - {{ name: p{n}, uri: \"spiffe://mesh.example/hive/{n}\" }}").unwrap();
    }
    text
}

fn client_context(dir: &Path) -> SslContext {
    let mut b = SslContext::builder(SslMethod::tls_client()).unwrap();
    b.set_ca_file(dir.join("ca.pem")).unwrap();
    b.set_verify(SslVerifyMode::PEER);
    b.set_certificate_chain_file(dir.join("client.pem")).unwrap();
    b.set_private_key_file(dir.join("client.key"), SslFiletype::PEM).unwrap();
    b.set_alpn_protos(b"\x08http/1.1").unwrap();
    b.build()
}

/// One connection: a full handshake, a request, its answer.
fn handshake(address: SocketAddr, client: &SslContext) {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut ssl = Ssl::new(client).unwrap();
    ssl.set_hostname("localhost").unwrap();
    let mut stream = ssl.connect(tcp).expect("handshake");
    assert!(!stream.ssl().session_reused());
    stream.write_all(REQUEST).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{:?}", String::from_utf8_lossy(&answer));
}

/// The bare acceptor: OpenSSL as the gateway sets it (`tls/listener.rs`), one thread, one connection after the other.
fn accept(dir: &Path) {
    let mut b = SslContext::builder(SslMethod::tls_server()).unwrap();
    b.set_security_level(2);
    b.set_min_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    b.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_COMPRESSION | SslOptions::NO_TICKET);
    b.set_mode(SslMode::RELEASE_BUFFERS);
    b.set_read_ahead(true);
    b.set_session_cache_mode(SslSessionCacheMode::OFF);
    b.set_num_tickets(0).unwrap();
    b.set_session_id_context(b"bench").unwrap();
    b.set_certificate_chain_file(dir.join("server.pem")).unwrap();
    b.set_private_key_file(dir.join("server.key"), SslFiletype::PEM).unwrap();
    b.set_ca_file(dir.join("ca.pem")).unwrap();
    openssl::x509::X509::stack_from_pem(&std::fs::read(dir.join("ca.pem")).unwrap())
        .unwrap()
        .iter()
        .for_each(|ca| b.add_client_ca(ca).unwrap());
    b.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    b.set_alpn_select_callback(|_, offered| select_next_proto(b"\x08http/1.1", offered).ok_or(AlpnError::ALERT_FATAL));
    let context = b.build();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("{}", listener.local_addr().unwrap());
    for tcp in listener.incoming().map_while(Result::ok) {
        let _ = tcp.set_nodelay(true);
        let Ok(mut stream) = Ssl::new(&context).unwrap().accept(tcp) else { continue };
        let mut request = [0; 4096];
        if stream.read(&mut request).is_ok_and(|n| n == REQUEST.len()) {
            let _ = stream.write_all(ANSWER);
        }
        let _ = stream.shutdown();
    }
}

fn main() {
    if let Some(dir) = argument("--acceptor") {
        return accept(Path::new(&dir));
    }
    let (handshakes, rounds) = (number("--handshakes", HANDSHAKES), number("--rounds", ROUNDS));
    let files = Files::write();
    let dir = files.0.as_path();
    let client = client_context(dir);
    let mut servers = vec![Server::bare(dir)];
    for (crl, peers) in [("", 1), ("1000.crl", 1), ("1000000.crl", 1), ("", 100_000), ("1000000.crl", 100_000)] {
        servers.push(Server::gateway(dir, crl, peers));
    }
    for server in &mut servers {
        server.wait(&client);
        // What is done once: pages, keys, tables.
        server.measure(&client, 100);
        server.costs.clear();
    }
    for _ in 0..rounds {
        servers.iter_mut().for_each(|server| server.measure(&client, handshakes));
    }
    let (bare, first) = (servers[0].median(), servers[1].median());
    println!(
        "{rounds} rounds of {handshakes} full mutual handshakes, each with one request; medians of processor time"
    );
    println!("{:<42} {:>9} {:>12} {:>9} {:>10}", "", "each", "/s per core", "x bare", "x gateway");
    for server in &servers {
        let cost = server.median();
        let (each, rate) = (cost * 1e6, 1.0 / cost);
        println!("{:<42} {each:>6.0} µs {rate:>12.0} {:>9.2} {:>10.2}", server.name, cost / bare, cost / first);
    }
}
