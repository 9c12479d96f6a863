//! `demo`: two small Hive nodes, a PKI and a gateway in front, on this machine and for as long as it is looked at.
//!
//! The gateway is the same binary in a process of its own, so what is shown is what `run` does.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::demo_files::{self, Layout};
use super::node::Node;

/// From the start of the gateway to its first `/v1/ready`: two good probes of each node.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL; the demo's gateway drains for [`demo_files::DRAIN_SECONDS`].
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Port of the gateway on 127.0.0.1; 0 takes any free one.
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Port of its admin listener; 0 takes any free one.
    #[arg(long, default_value_t = 9901)]
    admin_port: u16,
    /// Directory for certificates, configuration and log, kept afterwards. Default: a temporary one that is removed.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Why the demo did not come up, or did not stay up.
#[derive(Debug, Error)]
pub enum DemoError {
    /// Another process listens there, or the port needs privileges.
    #[error(
        "can't listen on 127.0.0.1:{port}: {why}\nchoose another port with {option} PORT, or any free one with {option} 0"
    )]
    Port {
        /// As asked for.
        port: u16,
        /// How to ask for another.
        option: &'static str,
        /// What the system says.
        why: std::io::Error,
    },
    /// A file or directory of the demo can't be made.
    #[error("can't make {}: {why}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// The certificates can't be made.
    #[error("can't make the demo's certificates: {0}")]
    Pki(String),
    /// The gateway's process ended though nobody asked it to.
    #[error("the gateway ended by itself ({0}); what it said stands above")]
    GatewayEnded(std::process::ExitStatus),
    /// The gateway runs but never became ready.
    #[error("the gateway was not ready within {} s", READY_WITHIN.as_secs())]
    NotReady,
    /// Something of the operating system.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs the demo until Ctrl-C or SIGTERM.
///
/// # Errors
/// See [`DemoError`]; everything that was started has ended by then.
pub fn run(args: &DemoArgs) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(demo(args))
}

async fn demo(args: &DemoArgs) -> Result<(), DemoError> {
    // Before anything is started, so that a signal can't end the demo without its clean-up.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let directory = Directory::new(args.dir.as_deref())?;
    let mut gateway = tokio::select! {
        started = start(args, &directory.path) => started?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let ended = tokio::select! {
        status = gateway.wait() => Some(status?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if let Some(status) = ended {
        return Err(DemoError::GatewayEnded(status));
    }
    stop(&mut gateway).await;
    Ok(())
}

/// Brings everything up and prints what to try. When it is dropped half-way the child is killed with it.
async fn start(args: &DemoArgs, directory: &Path) -> Result<Child, DemoError> {
    // Both are held together, so that 0 and 0 can't be the same port.
    let (port, admin_port) = {
        let front = free_port(args.port, "--port")?;
        let admin = free_port(args.admin_port, "--admin-port")?;
        (front.local_addr()?.port(), admin.local_addr()?.port())
    };
    let (a, b) = (Node::bind("hive-a").await?, Node::bind("hive-b").await?);
    let layout = Layout { directory, port, admin_port, nodes: [a.address()?, b.address()?] };
    demo_files::write(&layout)?;
    tokio::spawn(a.serve());
    tokio::spawn(b.serve());

    let mut gateway = Command::new(std::env::current_exe()?)
        .args(["run", "--config"])
        .arg(layout.config())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    println!("Two Hive nodes and the gateway are starting …");
    let ready = tokio::select! {
        ready = wait_ready(admin_port) => ready,
        status = gateway.wait() => return Err(DemoError::GatewayEnded(status?)),
    };
    if !ready {
        stop(&mut gateway).await;
        return Err(DemoError::NotReady);
    }
    print!("{}", layout.instructions());
    std::io::stdout().flush()?;
    Ok(gateway)
}

fn free_port(port: u16, option: &'static str) -> Result<TcpListener, DemoError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|why| DemoError::Port { port, option, why })
}

/// Asks `/v1/ready` until the answer is 200.
async fn wait_ready(admin_port: u16) -> bool {
    let deadline = Instant::now() + READY_WITHIN;
    while Instant::now() < deadline {
        if matches!(timeout_at(deadline, ask_ready(admin_port)).await, Ok(Ok(true))) {
            return true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    false
}

async fn ask_ready(admin_port: u16) -> std::io::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, admin_port));
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /v1/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(1 << 10).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// Lets the gateway drain, then ends it. Ctrl-C in a terminal reaches the gateway by itself as well.
async fn stop(gateway: &mut Child) {
    println!("Ending …");
    // No id: it has ended already.
    if let Some(id) = gateway.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    }
    if timeout(STOP_WITHIN, gateway.wait()).await.is_err() {
        let _ = gateway.kill().await;
    }
}

/// Where the demo's files live.
struct Directory {
    path: PathBuf,
    remove: bool,
}

impl Directory {
    fn new(wanted: Option<&Path>) -> Result<Self, DemoError> {
        let (path, remove) = match wanted {
            Some(dir) => (dir.to_owned(), false),
            None => (std::env::temp_dir().join(format!("hive-gateway-demo-{}", std::process::id())), true),
        };
        let failed = |why| DemoError::File { path: path.clone(), why };
        let mut builder = std::fs::DirBuilder::new();
        // Keys lie in it. A temporary one must be new: somebody else's directory of that name is refused.
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(!remove).create(&path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        Ok(Self { path, remove })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.remove {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
