//! Revocation: asking a set of 1, 1,000 and 1,000,000 serials, reading a list of a million, and what a whole handshake
//! costs with none, 1,000 and 1,000,000 revoked.
//!
//! `cargo bench --bench functions -- revocation`. The handshakes run over a pipe in memory on one thread, client and server together,
//! so their time is both sides' CPU time; memory and reading times are printed before the benches begin.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use hive_gateway::cli::pki::{CertificateSpec, CrlSpec, Development, Issued, Validity, write_issued};
use hive_gateway::clock::Clock;
use hive_gateway::config::file::{CertificateFiles, ClientAuth, ExpiredCrl, ListenerTls, TlsVersion};
use hive_gateway::tls::{Link, RevocationSet, ServerContext, build_listener};
use openssl::ssl::{ErrorCode, Ssl, SslContext, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::X509;

/// A PKI and its files; the directory goes away with it.
struct Files {
    dir: PathBuf,
    pki: Development,
    client: Issued,
    now: i64,
}

impl Files {
    fn new() -> Self {
        let now = Clock::System.unix_seconds();
        let day = Validity::hours_from(now, 24);
        let dir = std::env::temp_dir().join(format!("hive-gateway-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let pki = Development::new("bench", day).unwrap();
        std::fs::write(dir.join("ca.pem"), pki.bundle_pem().unwrap()).unwrap();
        let server = CertificateSpec::server("gw", day).dns("gw.example").issue(&pki.intermediate).unwrap();
        write_issued(&dir, "gw", &server, true).unwrap();
        let client = CertificateSpec::client("paris", day).uri("spiffe://mesh.example/hive/paris");
        let client = client.issue(&pki.intermediate).unwrap();
        Self { dir, pki, client, now }
    }

    /// Writes a list of so many random serials of 16 octets; its size.
    fn list(&self, serials: u32) -> usize {
        let serial = |n: u32| {
            let mut serial = openssl::sha::sha256(&n.to_be_bytes())[..16].to_vec();
            serial[0] = serial[0] & 0x7f | 1;
            serial
        };
        let spec =
            CrlSpec { serials: (0..serials).map(serial).collect(), ..CrlSpec::new(self.now - 60, self.now + 3600) };
        let der = spec.issue(&self.pki.intermediate).unwrap();
        std::fs::write(self.dir.join(format!("{serials}.crl")), &der).unwrap();
        der.len()
    }

    fn load(&self, serials: u32) -> Arc<RevocationSet> {
        let bundle = [self.pki.root.cert.clone(), self.pki.intermediate.cert.clone()];
        RevocationSet::load(&[format!("{serials}.crl")], &self.dir, &bundle, self.now).unwrap()
    }

    fn server(&self, serials: Option<u32>) -> ServerContext {
        let mut client_auth = ClientAuth::of("ca.pem");
        client_auth.crl.extend(serials.map(|n| format!("{n}.crl")));
        let tls = ListenerTls {
            certificates: vec![CertificateFiles { cert: "gw.pem".into(), key: "gw.key".into() }],
            min_version: TlsVersion::Tls12,
            ocsp_stapling: Default::default(),
            client_auth,
            spiffe: None,
        };
        build_listener(&tls, &self.dir, self.now, None).unwrap()
    }

    fn client_context(&self) -> SslContext {
        let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
        context.set_verify(SslVerifyMode::NONE);
        context.set_certificate(&self.client.cert).unwrap();
        context.set_private_key(&self.client.key).unwrap();
        self.client.chain.iter().for_each(|c: &X509| context.add_extra_chain_cert(c.clone()).unwrap());
        context.build()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// One end of a pipe in memory that never waits.
#[derive(Debug, Clone, Default)]
struct End {
    incoming: Arc<parking_lot::Mutex<Vec<u8>>>,
    outgoing: Arc<parking_lot::Mutex<Vec<u8>>>,
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = self.incoming.lock();
        if incoming.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = buffer.len().min(incoming.len());
        buffer[..n].copy_from_slice(&incoming[..n]);
        incoming.drain(..n);
        Ok(n)
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole handshake. Returns the time that the server's side took.
fn handshake(server: &ServerContext, client: &SslContext, now: i64) -> Duration {
    let near = End::default();
    let far = End { incoming: near.outgoing.clone(), outgoing: near.incoming.clone() };
    let mut accepting = SslStream::new(server.ssl(now).unwrap(), near).unwrap();
    let mut connecting = SslStream::new(Ssl::new(client).unwrap(), far).unwrap();
    let mut took = Duration::ZERO;
    let (mut accepted, mut connected) = (false, false);
    while !accepted || !connected {
        if !connected {
            match connecting.connect() {
                Ok(()) => connected = true,
                Err(e) => assert_eq!(e.code(), ErrorCode::WANT_READ, "{e}"),
            }
        }
        if !accepted {
            let begun = Instant::now();
            match accepting.accept() {
                Ok(()) => accepted = true,
                Err(e) => assert_eq!(e.code(), ErrorCode::WANT_READ, "{e}"),
            }
            took += begun.elapsed();
        }
    }
    let begun = Instant::now();
    black_box(server.client(accepting.ssl(), now).unwrap());
    took + begun.elapsed()
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string(Path::new("/proc/self/statm")).unwrap_or_default();
    pages.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) * 4096
}

const SIZES: [u32; 3] = [1, 1_000, 1_000_000];

fn revocation(c: &mut Criterion) {
    let files = Files::new();
    let link = Link::of(&files.client.cert, &files.pki.intermediate.cert).unwrap();
    let mut group = c.benchmark_group("revocation");
    let mut held = Vec::new();
    for serials in SIZES {
        let bytes = files.list(serials);
        let (before, begun) = (resident(), Instant::now());
        let set = files.load(serials);
        let took = begun.elapsed();
        let memory: usize = set.crls().map(|crl| crl.memory_bytes()).sum();
        println!(
            "{serials} serials: a file of {bytes} bytes read and verified in {took:?}; {memory} bytes held ({:.1} each), \
             resident memory +{} KiB",
            memory as f64 / f64::from(serials),
            resident().saturating_sub(before) / 1024
        );
        group.bench_function(BenchmarkId::new("look_up", serials), |b| {
            b.iter(|| set.ask(black_box(&link), ExpiredCrl::Reject, files.now));
        });
        held.push(set);
    }
    let client = files.client_context();
    for serials in [None, Some(1_000), Some(1_000_000)] {
        let server = files.server(serials);
        group.bench_function(BenchmarkId::new("handshake_server_side", serials.unwrap_or(0)), |b| {
            b.iter_custom(|times| (0..times).map(|_| handshake(&server, &client, files.now)).sum());
        });
    }
    let server = files.server(Some(1_000_000));
    let bundle_of = |server: &ServerContext| server.revocation().map(|r| r.generation());
    black_box(bundle_of(&server));
    group.finish();
    // What a new list of a million costs, when none of its bytes is known.
    drop(held);
    drop(server);
    c.bench_function("revocation/read_1000000", |b| b.iter_with_large_drop(|| files.load(1_000_000)));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = revocation
}
