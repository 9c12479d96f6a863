//! A real `redis-server` on a port of the system's choice.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, TempDir, wait_until};

pub struct Redis {
    pub address: SocketAddr,
    config: String,
    dir: TempDir,
    child: Child,
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with("", TempDir::new())
    }

    /// With these lines of configuration; `PORT` and `BUS` stand for free ports. Relative files are in `dir`.
    pub fn start_with(config: &str, mut dir: TempDir) -> Self {
        for _ in 0..10 {
            let (address, bus) = (free_port(), free_port());
            let port = if config.contains("PORT") { String::new() } else { "port PORT\n".into() };
            let text = format!("bind 127.0.0.1\nsave \"\"\nappendonly no\n{port}{config}\n")
                .replace("PORT", &address.port().to_string())
                .replace("BUS", &bus.port().to_string());
            let child = spawn(&dir, &text);
            let mut redis = Self { address, config: text, dir, child };
            if redis.comes_up() {
                return redis;
            }
            // Another test may have taken the port in between.
            dir = std::mem::replace(&mut redis.dir, TempDir::new());
        }
        panic!("redis-server does not start");
    }

    fn comes_up(&mut self) -> bool {
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        false
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Again after [`Self::kill`], in the same place and empty.
    pub fn restart(&mut self) {
        self.child = spawn(&self.dir, &self.config);
        assert!(self.comes_up(), "redis-server does not start again");
    }

    /// An inline command and its answer, of which only texts and single lines are understood.
    pub fn command(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first).unwrap();
        match first.strip_prefix('$').map(|n| n.trim().parse::<usize>().unwrap()) {
            None => first.trim().to_owned(),
            Some(length) => {
                let mut text = vec![0; length];
                reader.read_exact(&mut text).unwrap();
                String::from_utf8(text).unwrap()
            }
        }
    }

    /// How often the script was run for a request: not by a greeting, of which each begins with loading it.
    pub fn decisions(&self) -> i64 {
        let stats = self.command("INFO commandstats");
        let calls = |command: &str| -> i64 {
            let line = stats.lines().find_map(|l| l.strip_prefix("cmdstat_")?.strip_prefix(command));
            line.map_or(0, |l| l.strip_prefix(":calls=").unwrap().split(',').next().unwrap().parse().unwrap())
        };
        calls("evalsha") - calls("script|load")
    }

    /// Two nodes that share the slots.
    pub fn start_cluster() -> [Self; 2] {
        let lines = "cluster-enabled yes\ncluster-config-file nodes.conf\ncluster-port BUS\n";
        let nodes = [(); 2].map(|()| Self::start_with(lines, TempDir::new()));
        for (node, slots) in nodes.iter().zip(["0 8191", "8192 16383"]) {
            assert_eq!(node.command(&format!("CLUSTER ADDSLOTSRANGE {slots}")), "+OK");
        }
        let bus = nodes[1].config.lines().find_map(|l| l.strip_prefix("cluster-port ")).unwrap().to_owned();
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", nodes[1].address.port());
        assert_eq!(nodes[0].command(&meet), "+OK");
        for node in &nodes {
            wait_until("the cluster knows all slots", || node.command("CLUSTER INFO").contains("cluster_state:ok"));
        }
        nodes
    }
}

fn spawn(dir: &TempDir, config: &str) -> Child {
    let file = dir.path().join("redis.conf");
    std::fs::write(&file, config).unwrap();
    let command = Command::new("redis-server").arg(&file).current_dir(dir.path()).stdout(Stdio::null()).spawn();
    command.expect("redis-server can't be run: scripts/setup installs it")
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
