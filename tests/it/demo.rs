//! `demo`, as somebody who tries it for the first time uses it: every printed line is run.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{PATIENCE, TempDir, wait_until};

struct Demo {
    child: Child,
    said: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Demo {
    /// Starts it and reads up to its last line.
    fn start(args: &[&str], temp: &TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
            .args(["demo", "--port", "0", "--admin-port", "0"])
            .args(args)
            .env("TMPDIR", temp.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("Ctrl-C") {
            if stdout.read_line(&mut said).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("the demo ended:\n{said}\n{error}");
            }
        }
        // Its log may be long; nobody must be held up by a full pipe.
        let mut stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { child, said, stdout }
    }

    /// Runs the command below the line `# TITLE…`.
    #[track_caller]
    fn try_line(&self, title: &str) -> Output {
        let mut lines = self.said.lines().skip_while(|l| !l.starts_with(&format!("# {title}")));
        let command = lines.nth(1).unwrap_or_else(|| panic!("no {title:?} in {}", self.said));
        assert!(command.starts_with("curl "), "{command}");
        Command::new("sh").args(["-c", &format!("{command} --max-time 20")]).output().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    #[track_caller]
    fn assert_ends(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the demo does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Processes whose parent is the demo.
    fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let listed = std::fs::read_to_string(path).unwrap_or_default();
        listed.split_whitespace().map(|p| p.parse().unwrap()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

fn is_gone(pid: u32) -> bool {
    !PathBuf::from(format!("/proc/{pid}")).exists()
}

#[test]
fn every_printed_line_does_what_it_says() {
    let temp = TempDir::new();
    let mut demo = Demo::start(&[], &temp);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();

    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let call = demo.try_line("A call");
        assert!(call.status.success(), "{call:?}");
        let answer: serde_json::Value = serde_json::from_slice(&call.stdout).unwrap();
        let heard = answer["result"]["parts"][0]["text"].as_str().unwrap().to_owned();
        assert!(heard.contains("\"hello\" from 127.0.0.1"), "{heard}");
        assert!(heard.contains("URI=spiffe://mesh.example/hive/paris"), "{heard}");
        answered.insert(answer["result"]["metadata"]["node"].to_string());
    }
    assert_eq!(answered.len(), 2, "both nodes answer: {answered:?}");

    let stream = demo.try_line("A stream");
    assert_eq!(text(&stream).matches("data: ").count(), 5, "{stream:?}");
    let card: serde_json::Value = serde_json::from_slice(&demo.try_line("The agent card").stdout).unwrap();
    assert_eq!(card["name"], "Hive demo node");
    let refused = demo.try_line("No client certificate");
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    let unpublished = text(&demo.try_line("A path that is not published"));
    assert!(unpublished.lines().next().unwrap().contains(" 404"), "{unpublished}");
    assert!(unpublished.contains("not_found"), "{unpublished}");
    assert!(text(&demo.try_line("The operator's side: health")).contains("\"ok\":true"));
    let metrics = text(&demo.try_line("The operator's side: metrics"));
    assert!(metrics.contains(r#"result="no_certificate"} 1"#), "{metrics}");

    let children = demo.children();
    assert_eq!(children.len(), 1);
    demo.signal(Signal::SIGTERM);
    assert!(demo.assert_ends().success());
    wait_until("the gateway is gone", || children.iter().all(|pid| is_gone(*pid)));
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "the temporary directory is removed");
    let mut rest = String::new();
    demo.stdout.read_to_string(&mut rest).unwrap();
}

#[test]
fn ctrl_c_ends_it_and_an_own_directory_stays() {
    let temp = TempDir::new();
    let dir = temp.path().join("my demo");
    let mut demo = Demo::start(&["--dir", dir.to_str().unwrap()], &temp);
    assert!(demo.try_line("A call").status.success(), "a path with a space is quoted");
    demo.signal(Signal::SIGINT);
    assert!(demo.assert_ends().success());
    assert!(dir.join("gateway.yaml").exists() && dir.join("access.log").exists());
    let log = std::fs::read_to_string(dir.join("access.log")).unwrap();
    assert!(log.contains("\"message/send\""), "{log}");
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".key") || name.ends_with(".secret") {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
    // And again in the same directory.
    let mut demo = Demo::start(&["--dir", dir.to_str().unwrap()], &temp);
    assert!(demo.try_line("A call").status.success());
    demo.signal(Signal::SIGTERM);
    demo.assert_ends();
}

#[test]
fn it_ends_with_an_error_when_its_gateway_dies() {
    let temp = TempDir::new();
    let mut demo = Demo::start(&[], &temp);
    let gateway = demo.children()[0];
    kill(Pid::from_raw(gateway as i32), Signal::SIGKILL).unwrap();
    assert!(!demo.assert_ends().success());
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn a_taken_port_is_said_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (option, other) in [("--port", "--admin-port"), ("--admin-port", "--port")] {
        let output = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
            .args(["demo", option, &port, other, "0"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&port) && said.contains(&format!("{option} 0")), "{said}");
    }
}
