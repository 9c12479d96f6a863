//! The real binary with a configuration that a test writes.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, PipeWriter, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::certs::{self, Identity, Pki, server_leaf};
use super::client::{Client, Connection, Response};
use super::{PATIENCE, TempDir, wait_until};

/// A configuration in parts, so that a test says only what it is about. Each part is YAML as it stands in the file.
pub struct Setup {
    pub dir: TempDir,
    pub pki: Pki,
    /// Top-level blocks.
    pub top: String,
    /// Inside `limits: { … }` of the listener.
    pub limits: String,
    /// Inside `timeouts: { … }` of the listener.
    pub timeouts: String,
    /// More inside `client_auth: { ca: ca.pem … }`.
    pub client_auth: String,
    /// Inside `spiffe: { … }` of the listener's `tls`, in place of certificates and CA.
    pub spiffe: Option<String>,
    /// More lines of the listener's `tls`, six spaces deep.
    pub tls: String,
    /// More lines of the listener, four spaces deep.
    pub listener: String,
    /// After the address inside `admin: { … }`.
    pub admin: String,
    /// Inside `server: { … }`.
    pub server: String,
    /// A second listener `plain`, `protocol: http`; its further lines, four spaces deep.
    pub plain: Option<String>,
    pub peers: String,
    pub routes: String,
    pub upstreams: String,
    /// A whole file in place of all the parts; `LISTEN` and `ADMIN` stand for the addresses.
    pub whole: Option<String>,
    /// Where both outputs of the process go, in place of what the test can ask for.
    pub output: Option<PipeWriter>,
    /// More of the process' environment.
    pub environment: Vec<(String, String)>,
}

/// As the value of one variable of [`Setup::environment`]: the process' own id.
pub const OWN_PID: &str = "$$";

pub const ROUTES: &str = r#"
  - { name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: [alice], upstream: hive, json_rpc: {} }
  - { name: discovery, paths: ["/.well-known/*"], methods: [GET], peers: any, upstream: hive }
  - { name: echo, paths: [/echo, "/echo/*"], methods: [GET, POST, PUT], peers: any, upstream: hive, body: { limit: 16MiB } }
  - { name: bobs, paths: [/bob], methods: [GET], peers: [bob], upstream: hive }
"#;

impl Setup {
    /// Two peers, `alice` and `bob`; routes [`ROUTES`] to one upstream `hive` of these plain nodes.
    pub fn new(nodes: &[SocketAddr]) -> Self {
        let setup = Self {
            dir: TempDir::new(),
            pki: Pki::default(),
            top: String::new(),
            limits: String::new(),
            timeouts: String::new(),
            client_auth: String::new(),
            spiffe: None,
            tls: String::new(),
            listener: String::new(),
            admin: String::new(),
            server: String::new(),
            plain: None,
            peers: "
  - { name: alice, uri: \"spiffe://mesh.test/hive/alice\" }
  - { name: bob, uri: \"spiffe://mesh.test/hive/bob\" }
"
            .into(),
            routes: ROUTES.into(),
            upstreams: upstream("hive", "http", nodes, "health_check: { interval: 2s }"),
            whole: None,
            output: None,
            environment: Vec::new(),
        };
        certs::write(&setup.pki.leaf(&server_leaf(&["gateway.test", "other.test"])), setup.dir.path(), "server");
        setup.pki.write_root(setup.dir.path(), "ca");
        setup
    }

    /// Adds a line to the listener's `tls`.
    pub fn tls(mut self, line: &str) -> Self {
        writeln!(self.tls, "      {line}").unwrap();
        self
    }

    fn text(&self, listen: SocketAddr, plain: SocketAddr, admin: SocketAddr) -> String {
        if let Some(whole) = &self.whole {
            return whole.replace("LISTEN", &listen.to_string()).replace("ADMIN", &admin.to_string());
        }
        let mut text = format!(
            "{top}
admin: {{ address: {admin}{more_admin} }}
server: {{ {server} }}
listeners:
  - name: front
    address: {listen}
    tls:
{material}
{tls}
    limits: {{ {limits} }}
    timeouts: {{ {timeouts} }}
{listener}",
            top = self.top,
            more_admin = self.admin,
            material = match &self.spiffe {
                Some(spiffe) => format!(
                    "      spiffe: {{ {spiffe} }}\n      client_auth: {{ {} }}",
                    with(&self.client_auth, &[("crl", "[]")])
                ),
                None => format!(
                    "      certificates: [ {{ cert: server.pem, key: server.key }} ]\n      client_auth: {{ {} }}",
                    match self.client_auth.contains("mode: none") {
                        true => self.client_auth.clone(),
                        false => with(&self.client_auth, &[("ca", "ca.pem"), ("crl", "[]")]),
                    }
                ),
            },
            tls = self.tls,
            server = with(&self.server, &[("drain", "1s"), ("threads", "2")]),
            limits = with(
                &self.limits,
                &[("connections_per_address", "15000"), ("new_connections_per_address", "100000/s")]
            ),
            timeouts = self.timeouts,
            listener = self.listener,
        );
        if let Some(more) = &self.plain {
            write!(text, "\n  - name: plain\n    address: {plain}\n    protocol: http\n{more}").unwrap();
        }
        if !self.top.contains("overload:") {
            // Tests share a machine that may well be behind, and then nothing is to be shed that a test waits for.
            text += "\noverload: { event_loop_lag: { scaling_threshold: 30s, saturation_threshold: 60s } }\n";
        }
        write!(text, "\npeers: {}\nroutes: {}\nupstreams: {}\n", self.peers, self.routes, self.upstreams).unwrap();
        text
    }

    /// What `hive-gateway check` says, to standard error and to standard output.
    pub fn check(&self) -> (String, String) {
        let [listen, plain, admin] = free_ports();
        let config = self.dir.path().join("gateway.yaml");
        std::fs::write(&config, self.text(listen, plain, admin)).unwrap();
        let check = Command::new(env!("CARGO_BIN_EXE_hive-gateway")).args(["check", "--config"]).arg(config).output();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        check.map(|output| (text(&output.stderr), text(&output.stdout))).unwrap()
    }

    /// Starts the gateway and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let gateway = self.start_unready();
        wait_until("the gateway is ready", || {
            gateway.assert_running();
            gateway.admin_get("/v1/ready").is_ok_and(|r| r.status == 200)
        });
        gateway
    }

    /// Starts the gateway and waits until its admin listener answers.
    #[track_caller]
    pub fn start_unready(self) -> Gateway {
        let mut setup = self;
        // The configuration needs fixed ports, and another test may take one between its choice and its use.
        for _ in 0..10 {
            let [listen, plain, admin] = free_ports();
            let config = setup.dir.path().join("gateway.yaml");
            std::fs::write(&config, setup.text(listen, plain, admin)).unwrap();
            let mut gateway = Gateway::spawn(setup, &config, [listen, plain, admin]);
            let deadline = Instant::now() + PATIENCE;
            loop {
                if gateway.child.try_wait().unwrap().is_some() {
                    break;
                }
                if gateway.admin_get("/v1/health").is_ok_and(|r| r.status == 200) && gateway.listens() {
                    return gateway;
                }
                assert!(Instant::now() < deadline, "the gateway does not come up:\n{}", gateway.stderr());
                std::thread::sleep(Duration::from_millis(5));
            }
            wait_until("the pipes are read to their end", || Arc::strong_count(&gateway.stderr) == 1);
            let said = gateway.stderr();
            assert!(said.contains("in use"), "the gateway ended at once:\n{said}\n{}", gateway.config());
            setup = gateway.setup.take().unwrap();
        }
        panic!("no free ports");
    }
}

/// Adds defaults to the inside of a flow mapping.
fn with(own: &str, defaults: &[(&str, &str)]) -> String {
    let mut text = own.to_owned();
    for (key, value) in defaults {
        if !own.split(',').any(|pair| pair.trim().starts_with(&format!("{key}:"))) {
            let comma = if text.trim().is_empty() { "" } else { ", " };
            write!(text, "{comma}{key}: {value}").unwrap();
        }
    }
    text
}

/// An item of `upstreams`; `more` is the inside of its flow mapping.
pub fn upstream(name: &str, scheme: &str, nodes: &[SocketAddr], more: &str) -> String {
    let urls: Vec<_> = nodes.iter().map(|n| format!("\"{scheme}://{n}\"")).collect();
    let comma = if more.is_empty() { "" } else { ", " };
    format!("\n  - {{ name: {name}, endpoints: [{}]{comma}{more} }}\n", urls.join(", "))
}

/// Three different ports that were free a moment ago.
fn free_ports() -> [SocketAddr; 3] {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|l| l.local_addr().unwrap())
}

pub struct Gateway {
    pub address: SocketAddr,
    pub plain: SocketAddr,
    pub admin: SocketAddr,
    setup: Option<Setup>,
    child: Child,
    /// The process that has taken over from `child`, and so on.
    successor: AtomicU32,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
}

fn output(setup: &Setup) -> Stdio {
    setup.output.as_ref().map_or_else(Stdio::piped, |pipe| Stdio::from(pipe.try_clone().unwrap()))
}

fn collect(pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            sink.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
        }
    });
    lines
}

impl Gateway {
    fn spawn(setup: Setup, config: &Path, [address, plain, admin]: [SocketAddr; 3]) -> Self {
        const PROGRAM: &str = env!("CARGO_BIN_EXE_hive-gateway");
        let own_pid = setup.environment.iter().find(|(_, value)| value == OWN_PID);
        let mut command = match own_pid {
            // Known only to the process itself, so a shell that becomes it sets it.
            Some((name, _)) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{name}=$$ exec \"$@\""), "sh", PROGRAM]);
                shell
            }
            None => Command::new(PROGRAM),
        };
        let mut child = command
            .args(["run", "--config"])
            .arg(config)
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output(&setup))
            .stderr(output(&setup))
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().map_or_else(Default::default, collect);
        let stderr = child.stderr.take().map_or_else(Default::default, collect);
        Self { address, plain, admin, setup: Some(setup), child, successor: AtomicU32::new(0), stdout, stderr }
    }

    /// Whether the public listeners take connections. No TLS is spoken, so nothing is counted but an aborted handshake.
    fn listens(&self) -> bool {
        let plain = self.setup().plain.is_none() || std::net::TcpStream::connect(self.plain).is_ok();
        plain && std::net::TcpStream::connect(self.address).is_ok()
    }

    #[track_caller]
    pub fn assert_running(&self) {
        assert!(runs(self.pid()), "the gateway ended:\n{}", self.stderr());
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        match self.successor.load(Ordering::Relaxed) {
            0 => self.child.id(),
            successor => successor,
        }
    }

    /// Has another process take over, and waits until it does. Returns the process that is to end.
    #[track_caller]
    pub fn upgrade(&self) -> u32 {
        self.upgrade_while(|| ())
    }

    /// As [`Self::upgrade`], with something that is done when the old process has been told.
    #[track_caller]
    pub fn upgrade_while(&self, meanwhile: impl FnOnce()) -> u32 {
        const SAID: &str = "serves in the place of this one";
        let before = self.pid();
        let upgrades = self.stderr().matches(SAID).count();
        self.signal(Signal::SIGUSR2);
        meanwhile();
        wait_until("another process takes over", || {
            assert!(!self.stderr().contains("no upgrade"), "{}", self.stderr());
            self.stderr().matches(SAID).count() > upgrades
        });
        let text = self.stderr();
        let said = text.lines().rfind(|line| line.contains(SAID)).unwrap();
        let pid = said.split("process ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        self.successor.store(pid.parse().unwrap(), Ordering::Relaxed);
        before
    }

    pub fn setup(&self) -> &Setup {
        self.setup.as_ref().unwrap()
    }

    pub fn pki(&self) -> &Pki {
        &self.setup().pki
    }

    pub fn dir(&self) -> &Path {
        self.setup().dir.path()
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.dir().join("gateway.yaml")).unwrap_or_default()
    }

    /// A client with the certificate `spiffe://mesh.test/hive/NAME`.
    pub fn client(&self, name: &str) -> Client {
        Client::new(self.pki(), Some(self.pki().client(name)))
    }

    pub fn client_with(&self, identity: Option<Identity>) -> Client {
        Client::new(self.pki(), identity)
    }

    #[track_caller]
    pub fn connect(&self, name: &str) -> Connection {
        self.client(name).connect(self.address).unwrap()
    }

    pub fn admin_get(&self, path: &str) -> std::io::Result<Response> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        Connection::plain(self.admin)?.exchange(request.as_bytes())
    }

    /// A POST without a body; `headers` are whole lines.
    pub fn admin_post(&self, path: &str, headers: &str) -> Response {
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.admin);
        Connection::plain(self.admin).unwrap().exchange(head.as_bytes()).unwrap()
    }

    /// Another request without a body that changes something.
    pub fn admin_ask(&self, method: &str, target: &str) -> Response {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        Connection::plain(self.admin).unwrap().exchange(head.as_bytes()).unwrap()
    }

    /// `POST /v1/reload`.
    pub fn reload(&self) -> Response {
        self.admin_post("/v1/reload", "")
    }

    /// A reload that must succeed.
    #[track_caller]
    pub fn reload_ok(&self) -> Value {
        let answer = self.reload();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Edits the configuration file.
    #[track_caller]
    pub fn edit(&self, from: &str, to: &str) {
        let before = self.config();
        assert!(before.contains(from), "{from:?} is not in\n{before}");
        std::fs::write(self.dir().join("gateway.yaml"), before.replace(from, to)).unwrap();
    }

    pub fn status(&self) -> Value {
        self.admin_get("/v1/status").unwrap().json()
    }

    pub fn metrics(&self) -> String {
        self.admin_get("/v1/metrics").unwrap().text()
    }

    /// Sum of the series of `name` that have all `labels`.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.metrics(), name, labels)
    }

    /// Waits until the metric has the value; answers are written before they are counted.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name, labels) != value {
            if Instant::now() > deadline {
                let all = self.metrics();
                let shown: Vec<_> = all.lines().filter(|l| l.starts_with(name)).collect();
                panic!("{name}{labels:?} is not {value}:\n{}", shown.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().join("\n")
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().join("\n")
    }

    /// The access log so far; it goes to standard output by default.
    pub fn access_log(&self) -> Vec<Value> {
        self.stdout.lock().unwrap().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first line of the access log that fits.
    #[track_caller]
    pub fn wait_log(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.access_log().into_iter().find(|l| fits(l)) {
                return line;
            }
            assert!(Instant::now() < deadline, "no such line in the access log:\n{}", self.stdout());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Memory that the process has in RAM, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The most memory that the process has had at once.
    pub fn peak_memory_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Ends the process and gives back what it ran with, to be started again in the same directory.
    pub fn stop(mut self) -> Setup {
        self.signal(Signal::SIGTERM);
        self.wait_exit();
        self.setup.take().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid() as i32), signal);
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway does not end:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sum of the series of `name` in a Prometheus text that have all `labels`.
pub fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |line: &&str| {
        let rest = line.strip_prefix(name).filter(|r| r.starts_with(['{', ' ']));
        rest.is_some_and(|r| labels.iter().all(|(k, v)| r.contains(&format!("{k}=\"{v}\""))))
    };
    text.lines().filter(fits).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Whether a process is there. A zombie is gone too: its state stands after the command's closing parenthesis.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(stat.rsplit(") ").next().and_then(|s| s.chars().next()), None | Some('Z'))
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        while runs(self.pid()) {
            if Instant::now() > deadline {
                self.signal(Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if std::thread::panicking() {
            eprintln!("--- gateway's stderr\n{}\n--- its stdout\n{}", self.stderr(), self.stdout());
        }
    }
}
