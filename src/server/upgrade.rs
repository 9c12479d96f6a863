//! Another process takes the place of this one, and no connection is refused meanwhile.
//!
//! ```text
//! SIGUSR2 ─ old: starts its own program anew ─ the sockets, over a pair of Unix sockets (the new one's standard input)
//!                 │                              new: reads the configuration, builds, probes nodes
//!                 │ ◄──────── "orders" ───────── new: is ready, and asks what is out of service
//!                 │ ───────── orders ──────────► new: accepts
//!                 │ ◄──────── "ready" ──────────
//!                 └ stops to accept, drains, ends
//! ```
//!
//! The old process serves until the new one has said that it does. If that ends, or is not ready in time, the old one goes
//! on as if nothing had been. The pair has no name in any file system: nobody else can come by the sockets.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{maintenance, notify};
use crate::admin::Readiness;
use crate::policy::maintenance::Orders;
use crate::proxy::Shared;
use crate::proxy::maintenance::FleetOrders;
use crate::proxy::socket::{Sockets, inherited};

/// Set for a process that is to take over: its standard input is the channel.
const UPGRADE: &str = "HIVE_GATEWAY_UPGRADE";
/// How long a new process may take to be ready, if the old one was: probes of nodes, first revocation lists.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long the old process waits for it, the start included.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(60);
/// How long the end of a process that has closed its channel is waited for.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How often the new process looks whether it is ready.
const READY_POLL: Duration = Duration::from_millis(20);
/// Most listeners that a process hands on.
const SOCKETS_MAX: usize = 250;
/// How long the process before may take to say what is out of service.
const ORDERS_WAIT: Duration = Duration::from_secs(10);
/// Longest line that says it: the most orders of both scopes, with long names.
const ORDERS_LINE_MAX: u64 = 64 << 20;
/// What the new process says.
const ORDERS: &str = "orders\n";
const READY: &str = "ready\n";

/// A process that was started to take over; it is ended unless it does.
struct Successor(Option<Child>);

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.start_kill();
        }
    }
}

/// Starts this program anew, with the same arguments, and hands the sockets and what is out of service to it. `ready` says
/// whether this process is: then the new one must be, too. Returns the new one's process id once it serves.
///
/// # Errors
/// Why there is none.
pub async fn hand_over(sockets: &Sockets, shared: &Shared, ready: bool) -> Result<u32, String> {
    let done = try_hand_over(sockets, shared, ready).await;
    if done.is_err() {
        *shared.maintenance.handed_over.lock() = false;
    }
    done
}

async fn try_hand_over(sockets: &Sockets, shared: &Shared, ready: bool) -> Result<u32, String> {
    let (own, theirs) = UnixStream::pair().map_err(|e| format!("a pair of sockets: {e}"))?;
    // As it was called, not as it was found: a link may lead to another version by now.
    let called: Vec<_> = std::env::args_os().collect();
    let (program, arguments) = called.split_first().ok_or("the program's own name is not known")?;
    let child = start(program, arguments, theirs)
        .map_err(|e| format!("{} can't be started: {e}", program.to_string_lossy()))?;
    let pid = child.id().unwrap_or_default();
    let mut successor = Successor(Some(child));
    sockets.all(|all| send(&own, all, ready)).map_err(|e| format!("the sockets can't be sent: {e}"))?;
    let answer = timeout(SUCCESSOR_WAIT, answer(own, shared)).await;
    match answer {
        Ok(Ok(true)) => {
            // It is nobody's any more: it goes on when this process has ended.
            successor.0 = None;
            Ok(pid)
        }
        Ok(Ok(false)) => {
            let ended = match &mut successor.0 {
                Some(child) => timeout(EXIT_WAIT, child.wait()).await,
                None => return Err("it ended".to_owned()),
            };
            Err(match ended {
                Ok(Ok(status)) => format!("it ended with {status}; what was wrong stands above"),
                Ok(Err(_)) | Err(_) => "it did not take over".to_owned(),
            })
        }
        Ok(Err(e)) => Err(format!("it can't be heard: {e}")),
        Err(_) => Err(format!("it was not ready within {SUCCESSOR_WAIT:?}")),
    }
}

/// The other end of the channel is the new process' alone, or its end would not be noticed.
fn start(program: &OsStr, arguments: &[OsString], channel: UnixStream) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).env(UPGRADE, "stdin").stdin(Stdio::from(OwnedFd::from(channel)));
    for name in notify::not_inherited() {
        command.env_remove(name);
    }
    command.spawn()
}

fn send(channel: &UnixStream, sockets: &[(SocketAddr, std::os::fd::BorrowedFd<'_>)], ready: bool) -> io::Result<()> {
    if sockets.len() > SOCKETS_MAX {
        return Err(io::Error::other(format!("more than {SOCKETS_MAX} listeners")));
    }
    let fds: Vec<RawFd> = sockets.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    let word = [u8::from(ready)];
    sendmsg::<()>(
        channel.as_raw_fd(),
        &[IoSlice::new(&word)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Whether the new process says that it serves, or ends without a word. Before that it asks for the orders, so late that
/// none is given any more that it would not know of.
async fn answer(channel: UnixStream, shared: &Shared) -> io::Result<bool> {
    let mut channel = lines(channel)?;
    loop {
        let mut said = String::new();
        (&mut channel).take(ORDERS.len() as u64).read_line(&mut said).await?;
        match said.as_str() {
            READY => return Ok(true),
            ORDERS => {
                let mut orders = {
                    let mut handed_over = shared.maintenance.handed_over.lock();
                    *handed_over = true;
                    shared.maintenance.orders().to_line()
                };
                orders.push('\n');
                channel.write_all(orders.as_bytes()).await?;
            }
            _ => return Ok(false),
        }
    }
}

fn lines(channel: UnixStream) -> io::Result<BufReader<tokio::net::UnixStream>> {
    channel.set_nonblocking(true)?;
    Ok(BufReader::new(tokio::net::UnixStream::from_std(channel)?))
}

/// What a process that takes over has got from the one before.
pub struct Inherited {
    /// Its sockets.
    pub listeners: Vec<TcpListener>,
    /// Whether it was ready, and this one must be.
    must_be_ready: bool,
    channel: UnixStream,
}

impl Inherited {
    /// `None`: nobody hands anything over.
    ///
    /// # Errors
    /// What was to be handed over did not come.
    pub fn receive() -> io::Result<Option<Self>> {
        if std::env::var_os(UPGRADE).is_none() {
            return Ok(None);
        }
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut word = [0];
        let mut space = nix::cmsg_space!([RawFd; SOCKETS_MAX]);
        let mut into = [IoSliceMut::new(&mut word)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(channel.as_raw_fd(), &mut into, Some(&mut space), flags)?;
        let mut listeners = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows of them.
                let fds: Vec<_> = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
                for fd in fds {
                    listeners.push(inherited(fd)?);
                }
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(Self { listeners, must_be_ready: word == [1], channel }))
    }
}

/// Begins to accept, in the place of the process before, when this one is ready.
pub struct TakeOver {
    shared: Arc<Shared>,
    ready: Box<dyn Fn() -> Readiness + Send + Sync>,
    must_be_ready: bool,
    channel: UnixStream,
    begin: watch::Sender<bool>,
}

impl TakeOver {
    /// `begin` turns true when connections are to be accepted.
    pub fn new(
        shared: Arc<Shared>,
        ready: Box<dyn Fn() -> Readiness + Send + Sync>,
        inherited: Inherited,
        begin: watch::Sender<bool>,
    ) -> Self {
        let Inherited { must_be_ready, channel, .. } = inherited;
        Self { shared, ready, must_be_ready, channel, begin }
    }
}

#[async_trait]
impl BackgroundService for TakeOver {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let deadline = Instant::now() + READY_WAIT;
        loop {
            let readiness = (self.ready)();
            if readiness.is_ready() || !(self.must_be_ready || readiness.fleet_orders_awaited) {
                break;
            }
            if self.is_alone() {
                return self.shared.fail("the process before has given the upgrade up".to_owned());
            }
            if Instant::now() >= deadline {
                return self.shared.fail(format!("not ready within {READY_WAIT:?}: {}", missing(&readiness)));
            }
            sleep(READY_POLL).await;
        }
        match self.finish().await {
            Ok(()) => log::info!("this process takes over"),
            Err(e) => self.shared.fail(format!("the process before does not hand over: {e}")),
        }
    }
}

impl TakeOver {
    /// Takes the orders into force and accepts.
    async fn finish(&self) -> io::Result<()> {
        let mut channel = lines(self.channel.try_clone()?)?;
        channel.write_all(ORDERS.as_bytes()).await?;
        let mut line = String::new();
        timeout(ORDERS_WAIT, (&mut channel).take(ORDERS_LINE_MAX).read_line(&mut line)).await??;
        let before = Orders::from_line(&line).map_err(io::Error::other)?;
        {
            let _turn = self.shared.maintenance.fleet.lock().await;
            let known = *self.shared.maintenance.fleet_orders.borrow() == FleetOrders::Known;
            self.shared.change_orders(|orders| {
                // It may have changed what is kept since this one has read it.
                orders.own = before.own;
                if !known {
                    orders.fleet = before.fleet;
                }
            });
        }
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || maintenance::settle(&shared)).await.map_err(io::Error::other)?;
        let _ = self.begin.send_replace(true);
        // Both accept for a moment; in between nobody would.
        channel.write_all(READY.as_bytes()).await
    }

    /// Whether the other end of the channel is closed.
    fn is_alone(&self) -> bool {
        let _ = self.channel.set_nonblocking(true);
        let ended = matches!((&self.channel).read(&mut [0]), Ok(0));
        let _ = self.channel.set_nonblocking(false);
        ended
    }
}

fn missing(readiness: &Readiness) -> String {
    let Readiness { upstreams_down, upstreams_drained, crls_awaited, waiting_for_svid, .. } = readiness;
    let each = [
        ("no node is up of upstream", upstreams_down),
        ("drained is every node of upstream", upstreams_drained),
        ("no revocation list yet from", crls_awaited),
        ("no certificate yet for", waiting_for_svid),
    ];
    let each = each.into_iter().filter(|(_, names)| !names.is_empty());
    each.map(|(what, names)| format!("{what} {}", names.join(", "))).collect::<Vec<_>>().join("; ")
}
