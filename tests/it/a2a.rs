//! The official A2A SDK for Python on both sides of the gateway: its server as the Hive node, its client as the partner.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::certs;
use crate::support::gateway::{Gateway, Setup, upstream};

/// Python of the environment that scripts/setup makes.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let python = target.join("venv/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/setup once, it installs a2a-sdk there", python.display());
    python
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/a2a").join(name)
}

/// The SDK's server; it ends with the test.
struct SdkServer {
    child: Child,
    address: SocketAddr,
}

impl SdkServer {
    fn start() -> Self {
        let mut child = Command::new(python())
            .arg(script("server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap_or_else(|e| panic!("the A2A server did not start: {e}: {line:?}"));
        Self { child, address }
    }
}

impl Drop for SdkServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gateway(node: SocketAddr) -> Gateway {
    let mut setup = Setup::new(&[]);
    setup.upstreams = upstream("hive", "http", &[node], "");
    let gateway = setup.start();
    certs::write(&gateway.pki().client("alice"), gateway.dir(), "alice");
    certs::write(&gateway.pki().client("carol"), gateway.dir(), "carol");
    gateway
}

/// Runs the SDK's client; its last line is what it found, as JSON.
#[track_caller]
fn client(gateway: &Gateway, who: &str, what: &str) -> Value {
    let dir = gateway.dir();
    let output = Command::new(python())
        .arg(script("client.py"))
        .args([what, &gateway.address.to_string()])
        .args([dir.join("ca.pem"), dir.join(format!("{who}.pem")), dir.join(format!("{who}.key"))])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(said.lines().last().unwrap_or("")).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn the_sdk_finds_the_card() {
    let server = SdkServer::start();
    let gateway = gateway(server.address);
    assert_eq!(client(&gateway, "alice", "card")["name"], "SDK agent");
}

#[test]
fn the_sdk_sends_a_message_and_gets_its_task() {
    let server = SdkServer::start();
    let gateway = gateway(server.address);
    // Version 1.0 of the protocol, and 0.3 with its other method names.
    for what in ["send", "send_v03"] {
        let found = client(&gateway, "alice", what);
        assert_eq!(found["text"], "echo: Grüße, 世界 🐝", "{what}");
        assert_eq!(found["state"], "TASK_STATE_COMPLETED", "{what}");
        assert_eq!(found["got"], found["task"], "{what}: tasks/get finds it again");
    }
}

#[test]
fn the_sdk_streams_events_in_time() {
    let server = SdkServer::start();
    let gateway = gateway(server.address);
    for what in ["stream", "stream_v03"] {
        // A busy machine is late now and then, a gateway that holds events back is late each time.
        let late: Vec<_> = (0..3).map_while(|_| late(&client(&gateway, "alice", what))).collect();
        assert!(late.len() < 3, "{what}: {late:?}");
    }
}

/// The first gap that differs by more than 50 ms between server and client, if there is one.
fn late(found: &Value) -> Option<String> {
    let gaps = |side: &str| -> Vec<f64> {
        let times: Vec<f64> = found[side].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        times.windows(2).map(|w| w[1] - w[0]).collect()
    };
    let (sent, seen) = (gaps("sent"), gaps("seen"));
    assert!(sent.len() >= 4 && sent.len() == seen.len(), "{found}");
    let (sent, seen) = sent.iter().zip(&seen).find(|(sent, seen)| (*sent - *seen).abs() > 0.05)?;
    Some(format!("{sent} s at the server, {seen} s at the client"))
}

#[test]
fn the_sdk_gets_the_node_s_errors_as_they_are() {
    let server = SdkServer::start();
    let gateway = gateway(server.address);
    let found = client(&gateway, "alice", "missing_task");
    assert!(found["error"].as_str().unwrap().contains("TaskNotFound"), "{found}");
}

#[test]
fn the_sdk_cancels_a_running_task() {
    let server = SdkServer::start();
    let gateway = gateway(server.address);
    let found = client(&gateway, "alice", "cancel");
    assert_eq!(found["state"], "TASK_STATE_CANCELED", "{found}");
}

#[test]
fn the_sdk_is_told_that_its_certificate_may_not() {
    let server = SdkServer::start();
    let gateway = gateway(server.address);
    let found = client(&gateway, "carol", "send_refused");
    assert!(found["error"].as_str().unwrap().contains("403"), "{found}");
}
