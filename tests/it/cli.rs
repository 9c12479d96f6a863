//! The commands, as an operator types them.

use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::gateway::Setup;
use crate::support::node::Node;
use crate::support::{TempDir, wait_until};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hive-gateway")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn version_names_the_gateway_and_its_tls_library() {
    let output = run(&["version"]);
    assert!(output.status.success());
    let said = text(&output.stdout);
    assert!(said.starts_with(&format!("hive-gateway {}", env!("CARGO_PKG_VERSION"))), "{said}");
    assert!(said.contains("OpenSSL 3."), "{said}");
}

#[test]
fn help_lists_the_commands() {
    let output = run(&["--help"]);
    let said = text(&output.stdout);
    for command in ["run", "check", "explain", "demo", "pki", "version"] {
        assert!(said.lines().any(|l| l.trim_start().starts_with(command)), "{command} in {said}");
    }
}

#[test]
fn an_unknown_command_is_2_and_no_command_shows_the_help() {
    assert_eq!(run(&["fly"]).status.code(), Some(2));
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Usage"));
}

#[test]
fn run_with_a_missing_file_says_which() {
    let output = run(&["run", "--config", "/nowhere/gateway.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere/gateway.yaml"), "{}", text(&output.stderr));
}

#[test]
fn run_and_check_say_every_error_with_its_place() {
    let dir = TempDir::new();
    let file = dir.path().join("gateway.yaml");
    let yaml = "\
listeners:
  - name: front
    address: 127.0.0.1:0
    protocol: http
routes:
  - name: a
    paths: [/a]
    methods: [GET]
    peers: any
    upstream: hvie
    surprise: 1
  - name: b
    paths: [b]
    methods: [GET]
    peers: [nobody]
    upstream: hive
upstreams:
  - name: hive
    endpoints: [\"http://127.0.0.1:1\"]
";
    std::fs::write(&file, yaml).unwrap();
    let path = file.display().to_string();
    for command in ["run", "check"] {
        let output = run(&[command, "--config", &path]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(said.contains(&format!("{path}:11:5: routes[0].surprise")), "{command}: {said}");
    }
    // Without the unknown key, everything else is found at once.
    std::fs::write(&file, yaml.replace("    surprise: 1\n", "")).unwrap();
    let output = run(&["check", "--config", &path]);
    let said = text(&output.stderr) + &text(&output.stdout);
    let expected =
        format!("{path}:10:15: routes[0].upstream: no upstream named \"hvie\"; known: hive (did you mean \"hive\"?)");
    assert!(said.contains(&expected), "{said}\nlacks\n{expected}");
    assert!(said.contains("routes[1].paths[0]") && said.contains("routes[1].peers"), "{said}");
}

#[test]
fn check_accepts_what_run_runs() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    let path = gateway.dir().join("gateway.yaml").display().to_string();
    let output = run(&["check", "--config", &path]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_taken_port_is_said_and_ends_the_process() {
    let node = Node::start();
    let gateway = Setup::new(&[node.address]).start();
    // The same file again: both ports are taken.
    let path = gateway.dir().join("gateway.yaml").display().to_string();
    let output = run(&["run", "--config", &path]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("in use"), "{said}");
    assert!(said.contains(&gateway.address.to_string()) || said.contains(&gateway.admin.to_string()), "{said}");
}

#[test]
fn signals_to_a_process_that_has_just_begun_do_not_end_it() {
    // SIGHUP, SIGUSR1 and SIGUSR2 in the masks of proc_pid_status(5).
    let asked = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];
    let bits = asked.iter().fold(0u64, |bits, signal| bits | 1 << (*signal as i32 - 1));
    for _ in 0..20 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
            .args(["run", "--config", "/nowhere/gateway.yaml"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        // Until the system has loaded the program it can't do anything about it.
        wait_until("the program begins", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0");
            let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap_or(0);
            ignored & bits == bits || child.try_wait().unwrap().is_some()
        });
        for signal in asked {
            let _ = kill(pid, signal);
        }
        assert_eq!(child.wait().unwrap().code(), Some(1), "it ends for its configuration, not for a signal");
    }
}
