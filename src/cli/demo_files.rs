//! What the demo writes and prints: certificates, a configuration to learn from, and commands to try.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;

use super::demo::DemoError;
use super::pki::{CERTIFICATE_HOURS_DEFAULT, CertificateSpec, Development, PkiError, Validity, write_issued};
use crate::clock::Clock;

/// How long the demo's gateway lets running requests go on after Ctrl-C, in seconds.
pub const DRAIN_SECONDS: u32 = 2;

/// Places and addresses of one demo.
pub struct Layout<'a> {
    /// Where its files go.
    pub directory: &'a Path,
    /// The gateway's port.
    pub port: u16,
    /// The admin listener's port.
    pub admin_port: u16,
    /// The nodes.
    pub nodes: [SocketAddr; 2],
}

impl Layout<'_> {
    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("gateway.yaml")
    }

    fn yaml(&self) -> String {
        let Self { port, admin_port, nodes: [a, b], .. } = self;
        format!(
            "\
# Written by `hive-gateway demo`. Relative file names start from this file's directory.

hive:
  # Goes to the nodes as X-Hive-Gateway-Auth: Bearer …; clients can't forge it, the gateway removes theirs.
  gateway_auth_secret_file: gateway.secret

listeners:
  - name: federation
    address: 127.0.0.1:{port}
    tls:
      # Chosen by SNI among the names in the certificates; here there is one, for localhost.
      certificates:
        - {{ cert: server.pem, key: server.key }}
      # No client certificate of this CA, no connection. No revocation lists: the demo's certificates live a day.
      client_auth: {{ mode: required, ca: ca.pem, crl: [] }}

# Who the certificates belong to. Any other valid certificate reaches only `peers: any` routes.
peers:
  - {{ name: hive-paris, uri: \"spiffe://mesh.example/hive/paris\" }}

# What is published. Everything else is 404.
routes:
  - name: a2a
    paths: [/api/a2a/jsonrpc, /api/a2a/federated/jsonrpc]
    methods: [POST]
    peers: [hive-paris]
    upstream: hive
    body: {{ limit: 1MiB }}
    # JSON-RPC 2.0 is checked before a node sees it; refusals have its form.
    json_rpc: {{ batch: reject }}
    timeouts: {{ response: 300s, stream_idle: 5m }}
  - name: discovery
    paths: [\"/.well-known/*\"]
    methods: [GET]
    peers: any
    upstream: hive

upstreams:
  - name: hive
    endpoints: [\"http://{a}\", \"http://{b}\"]
    balance: round_robin
    health_check: {{ path: /api/health, interval: 2s }}

# The operator's own listener: health, readiness, metrics.
admin: {{ address: 127.0.0.1:{admin_port} }}

# One JSON line per request.
access_log: {{ path: access.log }}

server: {{ drain: {DRAIN_SECONDS}s }}
"
        )
    }

    /// What to try, as lines to copy. Every command stands on a line of its own that begins with `curl`.
    pub fn instructions(&self) -> String {
        let Self { port, admin_port, directory, .. } = self;
        let file = |name: &str| quote(&directory.join(name).display().to_string());
        let trust = format!("--cacert {}", file("ca.pem"));
        let who = format!("{trust} --cert {} --key {}", file("client.pem"), file("client.key"));
        let front = format!("https://localhost:{port}");
        let call = |method: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"message":{{"kind":"message","role":"user","messageId":"m1","parts":[{{"kind":"text","text":"hello"}}]}}}}}}"#
            )
        };
        let post =
            |method: &str| format!("-H 'Content-Type: application/json' -d '{}' {front}/api/a2a/jsonrpc", call(method));
        let mut text = String::new();
        let mut line = |title: &str, command: String| {
            // Writing to a String does not fail.
            let _ = write!(text, "\n# {title}\n{command}\n");
        };
        line("A call; each time another node answers.", format!("curl -sS {who} {}", post("message/send")));
        line("A stream: five events, 300 ms apart.", format!("curl -sSN {who} {}", post("message/stream")));
        line("The agent card.", format!("curl -sS {who} {front}/.well-known/agent-card.json"));
        line(
            "No client certificate: no connection (curl fails).",
            format!("curl -sS {trust} {front}/.well-known/agent-card.json"),
        );
        line("A path that is not published: 404.", format!("curl -sS -i {who} {front}/api/users"));
        line("The operator's side: health.", format!("curl -sS http://127.0.0.1:{admin_port}/v1/health"));
        line("The operator's side: metrics.", format!("curl -sS http://127.0.0.1:{admin_port}/v1/metrics"));
        format!(
            "Hive Gateway is ready on {front}\nconfiguration: {}\naccess log: {}\n{text}\nCtrl-C ends all of it.\n",
            self.config().display(),
            directory.join("access.log").display(),
        )
    }
}

/// Writes everything that the gateway needs.
///
/// # Errors
/// A file can't be written, or OpenSSL can't make a certificate.
pub fn write(layout: &Layout<'_>) -> Result<(), DemoError> {
    let put = |name: &str, text: &str| {
        let path = layout.directory.join(name);
        std::fs::write(&path, text).map_err(|why| DemoError::File { path, why })
    };
    certificates(layout.directory).map_err(|e| DemoError::Pki(e.to_string()))?;
    put("gateway.yaml", &layout.yaml())
}

/// A CA (its keys are thrown away), the gateway's certificate and the client's, and the gateway's secret.
fn certificates(directory: &Path) -> Result<(), PkiError> {
    let validity = Validity::hours_from(Clock::System.unix_seconds(), CERTIFICATE_HOURS_DEFAULT);
    let ca = Development::new("Hive Gateway demo", validity)?;
    let server = CertificateSpec::server("localhost", validity).dns("localhost").ip(Ipv4Addr::LOCALHOST.into());
    let client = CertificateSpec::client("hive-paris", validity).uri("spiffe://mesh.example/hive/paris");
    write_issued(directory, "server", &server.issue(&ca.intermediate)?, true)?;
    write_issued(directory, "client", &client.issue(&ca.intermediate)?, true)?;
    write_private(&directory.join("gateway.secret"), &secret()?)?;
    let path = directory.join("ca.pem");
    std::fs::write(&path, ca.root.cert_pem()?).map_err(|e| PkiError::Io(path, e))
}

/// For the owner's eyes only, from its first byte on.
fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| PkiError::Io(path.into(), e))
}

/// 64 hex digits.
fn secret() -> Result<String, ErrorStack> {
    let mut bytes = [0; 32];
    openssl::rand::rand_bytes(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// For a POSIX shell, with quotes only where they are needed.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_quote_survives_the_shell() {
        assert_eq!(quote("/tmp/a-b"), "/tmp/a-b");
        assert_eq!(quote("/tmp/it's"), r"'/tmp/it'\''s'");
    }
}
