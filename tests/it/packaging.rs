//! What a package installs: the unit and what it asks of the program, completions and manual pages.

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use nix::unistd::Pid;

use crate::support::gateway::{Gateway, OWN_PID, Setup, runs};
use crate::support::node::Node;
use crate::support::{PATIENCE, TempDir, wait_until};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/packaging").join(name)
}

/// The unit as `systemd-analyze` can look at it here: with the program of this build.
fn unit(dir: &TempDir) -> PathBuf {
    let text = fs::read_to_string(packaging("hive-gateway.service")).unwrap();
    let file = dir.path().join("hive-gateway.service");
    fs::write(&file, text.replace("/usr/bin/hive-gateway", env!("CARGO_BIN_EXE_hive-gateway"))).unwrap();
    file
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .stdin(Stdio::null())
        .output()
        .expect("systemd-analyze; scripts/setup installs it");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

#[test]
fn systemd_reads_the_unit_without_a_complaint() {
    let dir = TempDir::new();
    let (ok, said) = analyze(&["verify", "--man=no"], &unit(&dir));
    assert!(ok && said.trim().is_empty(), "{said}");
}

/// systemd rates from 0, safe, to 10, exposed: 1.6 today. What is left is what a proxy does: the network, port 443.
#[test]
fn the_unit_is_as_closed_as_a_proxy_can_be() {
    let dir = TempDir::new();
    let (ok, said) = analyze(&["security", "--offline=yes", "--threshold=16", "--no-pager"], &unit(&dir));
    assert!(ok, "{said}");
}

/// A service manager: its socket, and what came there.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = TempDir::new();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        setsockopt(&socket, sockopt::PassCred, &true).unwrap();
        Self { socket, path, _dir: dir }
    }

    fn start(&self, watchdog: Option<Duration>) -> (Gateway, Node) {
        let node = Node::start();
        let mut setup = Setup::new(&[node.address]);
        setup.environment.push(("NOTIFY_SOCKET".into(), self.path.to_str().unwrap().into()));
        if let Some(period) = watchdog {
            setup.environment.push(("WATCHDOG_USEC".into(), period.as_micros().to_string()));
            setup.environment.push(("WATCHDOG_PID".into(), OWN_PID.into()));
        }
        (setup.start(), node)
    }

    /// The next message, as variables, and the process that sent it as `SENDER`; none within the time.
    fn next(&self, within: Duration) -> Option<BTreeMap<String, String>> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let (mut bytes, mut space) = ([0; 512], nix::cmsg_space!(UnixCredentials));
        let (length, sender) = {
            let mut into = [IoSliceMut::new(&mut bytes)];
            let message =
                recvmsg::<()>(self.socket.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty()).ok()?;
            let sender = message.cmsgs().unwrap().find_map(|control| match control {
                ControlMessageOwned::ScmCredentials(of) => Some(of.pid()),
                _ => None,
            });
            (message.bytes, sender.unwrap())
        };
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        let sender = ("SENDER".to_owned(), sender.to_string());
        let said = text.lines().map(|line| line.split_once('=').map(|(n, v)| (n.into(), v.into())).unwrap());
        Some(said.chain([sender]).collect())
    }

    /// Waits for a message that sets `name`, whatever comes before it.
    #[track_caller]
    fn wait(&self, name: &str) -> BTreeMap<String, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(message) = self.next(PATIENCE).filter(|message| message.contains_key(name)) {
                return message;
            }
        }
        panic!("no {name}");
    }

    /// Throws away what has come, and says whether a ping comes after that.
    fn pings_within(&self, within: Duration) -> bool {
        while self.next(Duration::from_millis(1)).is_some() {}
        self.next(within).is_some_and(|message| message.contains_key("WATCHDOG"))
    }
}

#[test]
fn the_service_manager_is_told_of_readiness_and_of_the_end() {
    let manager = Manager::new();
    let (mut gateway, _node) = manager.start(None);
    // The first message of all.
    let ready = manager.next(PATIENCE).unwrap();
    assert_eq!((ready["READY"].as_str(), ready["STATUS"].as_str()), ("1", "Serving on 1 listeners"));
    assert!(manager.next(Duration::from_millis(300)).is_none(), "no ping without WATCHDOG_USEC");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(manager.wait("STOPPING")["STOPPING"], "1");
    assert!(gateway.wait_exit().success());
}

#[test]
fn a_gateway_that_can_not_listen_is_never_ready() {
    let manager = Manager::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = TempDir::new();
    let file = dir.path().join("gateway.yaml");
    let config = format!(
        "admin: {{ address: \"{}\" }}\nlisteners: [{{ name: a, address: \"127.0.0.1:0\", protocol: http }}]\n\
         routes: [{{ name: r, paths: [/a], methods: [GET], peers: any, upstream: u }}]\n\
         upstreams: [{{ name: u, endpoints: [\"http://127.0.0.1:9\"] }}]\n",
        taken.local_addr().unwrap()
    );
    fs::write(&file, config).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
        .args(["run", "--config"])
        .arg(&file)
        .env("NOTIFY_SOCKET", &manager.path)
        .output()
        .unwrap();
    assert!(!run.status.success());
    assert!(manager.next(Duration::from_millis(1)).is_none());
}

/// The threads of the gateway that serve requests, held as a hang would hold them. The tracing thread must be one and the same.
struct Held(Vec<Pid>);

impl Held {
    fn of(process: u32) -> Self {
        let mut held = Vec::new();
        for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|entry| entry.unwrap()) {
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            if !name.starts_with("listeners") {
                continue;
            }
            let pid = Pid::from_raw(thread.file_name().to_str().unwrap().parse().unwrap());
            ptrace::seize(pid, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(pid).unwrap();
            nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL)).unwrap();
            held.push(pid);
        }
        assert!(held.len() >= 2, "{held:?}");
        Self(held)
    }

    fn let_go(self) {
        self.0.iter().for_each(|pid| ptrace::detach(*pid, None).unwrap());
    }
}

#[test]
fn the_watchdog_is_pinged_only_while_requests_are_served() {
    let manager = Manager::new();
    let period = Duration::from_millis(900);
    let (gateway, _node) = manager.start(Some(period));
    manager.wait("READY");
    for _ in 0..3 {
        assert!(manager.pings_within(PATIENCE));
    }
    let held = Held::of(gateway.pid());
    // One may have been due already.
    wait_until("the pings end", || !manager.pings_within(period * 2));
    // The process itself lives and answers: a watchdog that only it feeds would see nothing. Other supervisors ask.
    wait_until("it is not healthy", || gateway.admin_get("/v1/health").unwrap().status == 503);
    assert_eq!(gateway.admin_get("/v1/health").unwrap().json()["error"], "hangs");
    assert!(!manager.pings_within(period * 2));
    held.let_go();
    assert!(manager.pings_within(PATIENCE), "they come again");
    assert_eq!(gateway.admin_get("/v1/health").unwrap().status, 200);
    assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 200);
}

#[test]
fn after_each_upgrade_the_watchdog_is_pinged_by_the_process_that_took_over() {
    let manager = Manager::new();
    let period = Duration::from_millis(900);
    let (gateway, _node) = manager.start(Some(period));
    manager.wait("READY");
    let first = gateway.pid().to_string();
    assert_eq!(manager.wait("WATCHDOG")["SENDER"], first);
    for _ in 0..2 {
        let before = gateway.upgrade();
        let main = manager.wait("MAINPID");
        assert_eq!((&main["SENDER"], &main["MAINPID"]), (&before.to_string(), &gateway.pid().to_string()));
        wait_until("the process before has ended", || !runs(before));
        // Of what was sent by then.
        while manager.next(Duration::from_millis(1)).is_some() {}
        for _ in 0..3 {
            assert_eq!(manager.wait("WATCHDOG")["SENDER"], gateway.pid().to_string());
        }
    }
}

fn extras(dir: &TempDir) {
    let written = Command::new(env!("CARGO_BIN_EXE_hive-gateway")).arg("extras").arg(dir.path()).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
}

/// The commands, as `--help` lists them; also those below another one.
fn commands(of: &[&str]) -> Vec<Vec<String>> {
    let help = Command::new(env!("CARGO_BIN_EXE_hive-gateway")).args(of).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    let names = list.lines().take_while(|line| !line.is_empty());
    let names = names
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    let mut found = Vec::new();
    for name in names.filter(|name| *name != "help") {
        let path: Vec<&str> = of.iter().copied().chain([name]).collect();
        found.push(path.iter().map(|part| (*part).to_owned()).collect());
        found.extend(commands(&path));
    }
    found
}

#[test]
fn every_command_has_a_manual_page_and_is_completed() {
    let dir = TempDir::new();
    extras(&dir);
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let commands = commands(&[]);
    assert!(commands.len() > 8, "{commands:?}");
    let completions = ["completions/hive-gateway.bash", "completions/_hive-gateway", "completions/hive-gateway.fish"];
    let completions = completions.map(read);
    for command in &commands {
        let page = read(&format!("man/hive-gateway-{}.1", command.join("-")));
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{command:?}");
        for text in &completions {
            assert!(text.contains(command.last().unwrap()), "{command:?}");
        }
    }
    assert!(read("man/hive-gateway.1").contains("SUBCOMMANDS"));
    // And no page for what is no command, such as help of help.
    assert_eq!(fs::read_dir(dir.path().join("man")).unwrap().count(), commands.len() + 1);
}

#[test]
fn bash_completes_with_what_was_written() {
    let dir = TempDir::new();
    extras(&dir);
    let script = format!(
        "source {}; COMP_WORDS=(hive-gateway ex); COMP_CWORD=1; \
         $(complete -p hive-gateway | sed 's/.*-F \\([^ ]*\\) .*/\\1/') hive-gateway ex hive-gateway; echo \"${{COMPREPLY[@]}}\"",
        dir.path().join("completions/hive-gateway.bash").display()
    );
    let bash = Command::new("bash").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&bash.stdout);
    assert!(said.contains("explain") && said.contains("extras") && !said.contains("check"), "{said}");
}

/// The image is built of what its lines name, so that nothing else gets to the builder: no key, no `target`, no history.
#[test]
fn the_image_copies_what_the_build_reads_and_no_more() {
    let (root, dir) = (Path::new(env!("CARGO_MANIFEST_DIR")), TempDir::new());
    let text = fs::read_to_string(packaging("Dockerfile")).unwrap();
    let copied = text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    for line in copied {
        let (sources, to) = line.rsplit_once(' ').unwrap();
        for source in sources.split(' ') {
            assert!(!source.contains(['.', '*']) || root.join(source).is_file(), "{line}");
            let mut copy = Command::new("cp");
            assert!(
                copy.arg("-r").arg(root.join(source)).arg(dir.path().join(to)).status().unwrap().success(),
                "{line}"
            );
        }
    }
    // Cargo looks for every target that the manifest names.
    let mut cargo = Command::new(env!("CARGO"));
    let read = cargo.args(["metadata", "--format-version=1", "--no-deps", "--offline"]).current_dir(dir.path());
    let output = read.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in source_files(&dir.path().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let built = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for name in built.split("include_str!(\"").skip(1) {
            let name = name.split('"').next().unwrap();
            let tests = file.file_stem().unwrap().to_str().unwrap().ends_with("tests");
            assert!(tests || file.parent().unwrap().join(name).exists(), "{}: {name}", file.display());
        }
    }
}

fn source_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let each = entries.map(|path| if path.is_dir() { source_files(&path) } else { vec![path] });
    each.flatten().filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// An operator may keep the configuration elsewhere; an upgrade of the package must not fail over it.
#[test]
fn the_package_is_set_up_with_and_without_its_configuration() {
    let dir = TempDir::new();
    let (etc, tools) = (dir.path().join("etc"), dir.path().join("tools"));
    for made in [&etc, &tools] {
        fs::create_dir(made).unwrap();
    }
    let script = fs::read_to_string(packaging("debian/postinst")).unwrap();
    let here = etc.join("hive-gateway");
    let script = script.replace("/etc/hive-gateway", here.to_str().unwrap());
    // What needs root is only told.
    for tool in ["getent", "groupadd", "chgrp"] {
        let file = tools.join(tool);
        let told = dir.path().join("told");
        fs::write(
            &file,
            format!(
                "#!/bin/sh\n[ \"$0\" = {0}/chgrp ] && ! [ -e \"$2\" ] && exit 1\necho \"$@\" >>{1}\n",
                tools.display(),
                told.display()
            ),
        )
        .unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let configure = || {
        let output =
            Command::new("sh").args(["-c", &script, "postinst", "configure"]).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    configure();
    let file = here.join("gateway.yaml");
    assert!(here.join("secrets").is_dir() && !file.exists());
    fs::write(&file, "").unwrap();
    configure();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let told = fs::read_to_string(dir.path().join("told")).unwrap();
    assert!(told.contains(&format!("hive-gateway-conf {}", file.display())), "{told}");
}

/// The package names files that are there, and the unit names what the package makes.
#[test]
fn the_package_holds_what_it_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let block = manifest.split_once("[package.metadata.deb]").unwrap().1;
    let assets: Vec<_> = block.lines().filter_map(|line| line.trim().strip_prefix("[\"")).collect();
    assert!(assets.len() > 5, "{assets:?}");
    for asset in assets {
        let source = asset.split('"').next().unwrap();
        let built = source.starts_with("target/");
        assert!(built || root.join(source).exists(), "{source}");
    }
    // Whoever reads of a file has it at hand.
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let named = |file: &str| readme.contains(&format!("(conf/{file})"));
    for entry in fs::read_dir(root.join("conf")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let example = name.ends_with(".yaml") || name.ends_with(".conf");
        assert!(!example || !named(&name) || block.contains(&format!("\"conf/{name}\"")), "{name}");
    }
    let unit = fs::read_to_string(packaging("hive-gateway.service")).unwrap();
    let made = fs::read_to_string(packaging("debian/postinst")).unwrap();
    let group = unit.lines().find_map(|line| line.strip_prefix("SupplementaryGroups=")).unwrap();
    assert!(made.contains(&format!("groupadd --system {group}")));
}
