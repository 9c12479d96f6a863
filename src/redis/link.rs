//! One connection: commands of many requests, pipelined, and answers in their order.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openssl::ssl::SslConnector;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_openssl::SslStream;

use crate::clock::Clock;

use super::wire::{ANSWER_MAX, Malformed, Reply, read_reply, write_command};

/// Commands that wait to be written; beyond, callers go on without.
const QUEUE: usize = 4096;
/// Commands that are written and not answered.
const IN_FLIGHT_MAX: usize = 16_384;
/// For TCP, TLS and the greeting, together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Between two tries to connect: at first, and at most. A connection that ended sooner was of no use.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Least time from one greeting to the next.
const GREET_LEAST: Duration = Duration::from_millis(100);

/// A connection's two kinds.
trait Wire: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}
type Stream = Pin<Box<dyn Wire>>;

/// How a node is reached and greeted.
pub struct Address {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS with this trust.
    pub tls: Option<SslConnector>,
    /// Commands that every connection begins with, and that are said again after an error; an error as answer to any ends it,
    /// but one that points elsewhere.
    pub greeting: Vec<Vec<u8>>,
    /// Longest wait for an answer. Then the connection is given up.
    pub timeout: Duration,
    /// The time.
    pub clock: Clock,
}

struct Command {
    bytes: Vec<u8>,
    answer: oneshot::Sender<Reply>,
}

/// The callers' end. Dropping the last one ends the connection.
pub struct Link {
    commands: mpsc::Sender<Command>,
    up: Arc<AtomicBool>,
}

impl Link {
    /// Whether answers are to be had.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Sends a command. None at once if the connection is down or full, or if it breaks.
    pub fn send(&self, bytes: Vec<u8>) -> Option<oneshot::Receiver<Reply>> {
        if !self.is_up() {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        self.commands.try_send(Command { bytes, answer }).ok()?;
        Some(answered)
    }
}

/// Connects, and again whenever the connection is lost, until the last [`Link`] is dropped. `changed` is told of each
/// change: up, or down and why. Must be called on a runtime.
pub fn open(address: Address, changed: impl Fn(Result<(), String>) + Send + 'static) -> Link {
    let (commands, queue) = mpsc::channel(QUEUE);
    let up = Arc::new(AtomicBool::new(false));
    let link = Link { commands, up: up.clone() };
    tokio::spawn(keep(address, queue, up, changed));
    link
}

async fn keep(
    address: Address,
    mut queue: mpsc::Receiver<Command>,
    up: Arc<AtomicBool>,
    changed: impl Fn(Result<(), String>),
) {
    let mut pause = PAUSE_FIRST;
    loop {
        let connected = timeout(CONNECT_WITHIN, connect(&address)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        let why = match connected {
            Err(e) => e,
            Ok(stream) => {
                let began = address.clock.now();
                up.store(true, Ordering::Relaxed);
                changed(Ok(()));
                let ended = Running::new(stream, &address).run(&mut queue).await;
                up.store(false, Ordering::Relaxed);
                if address.clock.now().saturating_duration_since(began) >= PAUSE_MAX {
                    pause = PAUSE_FIRST;
                }
                match ended {
                    Ok(()) => return,
                    Err(e) => e,
                }
            }
        };
        changed(Err(format!("{}:{}: {why}", address.host, address.port)));
        // Whoever waits goes on without.
        while queue.try_recv().is_ok() {}
        if queue.is_closed() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn connect(address: &Address) -> io::Result<Stream> {
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await?;
    tcp.set_nodelay(true)?;
    let mut stream: Stream = match &address.tls {
        None => Box::pin(tcp),
        Some(connector) => {
            let ssl = connector.configure()?.into_ssl(&address.host)?;
            let mut tls = SslStream::new(ssl, tcp)?;
            Pin::new(&mut tls).connect().await.map_err(io::Error::other)?;
            Box::pin(tls)
        }
    };
    let mut read = Vec::new();
    for command in &address.greeting {
        match exchange(&mut stream, command, &mut read).await {
            // A key of another node's, in a cluster.
            Err(e) if leads_elsewhere(&e.to_string()) => {}
            answered => drop(answered?),
        }
    }
    Ok(stream)
}

/// One command and its answer; Redis' own errors are errors.
async fn exchange(stream: &mut Stream, command: &[u8], read: &mut Vec<u8>) -> io::Result<Reply> {
    stream.write_all(command).await?;
    stream.flush().await?;
    loop {
        if let Some((reply, length)) = read_reply(read).map_err(malformed)? {
            read.drain(..length);
            return match reply {
                Reply::Error(why) => Err(io::Error::other(why)),
                reply => Ok(reply),
            };
        }
        if stream.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn malformed(_: Malformed) -> io::Error {
    io::Error::other("the answer is not Redis'")
}

/// Whose answer comes next.
enum Asker {
    Caller(oneshot::Sender<Reply>),
    Greeting,
}

/// An open connection at work.
struct Running<'a> {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    timeout: Duration,
    clock: Clock,
    greeting: &'a [Vec<u8>],
    /// When it was last said again.
    greeted: Option<Instant>,
    in_flight: VecDeque<(Asker, Instant)>,
    read: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> Running<'a> {
    fn new(stream: Stream, address: &'a Address) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            timeout: address.timeout,
            clock: address.clock.clone(),
            greeting: &address.greeting,
            greeted: None,
            in_flight: VecDeque::new(),
            read: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Until the connection breaks; `Ok` when nobody wants it any more.
    async fn run(mut self, queue: &mut mpsc::Receiver<Command>) -> io::Result<()> {
        loop {
            let oldest = self.in_flight.front().map(|(_, written)| *written + self.timeout);
            tokio::select! {
                read = self.reader.read_buf(&mut self.read) => {
                    if read? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by Redis"));
                    }
                    if self.answer()? {
                        self.greet_again().await?;
                    }
                }
                command = queue.recv(), if self.in_flight.len() < IN_FLIGHT_MAX => {
                    let Some(command) = command else { return Ok(()) };
                    self.write(command, queue).await?;
                }
                () = until(oldest) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
                }
            }
        }
    }

    /// Writes the command and all that wait behind it, at once.
    async fn write(&mut self, first: Command, queue: &mut mpsc::Receiver<Command>) -> io::Result<()> {
        let now = self.clock.now();
        let mut next = Some(first);
        while let Some(command) = next {
            self.out.extend_from_slice(&command.bytes);
            self.in_flight.push_back((Asker::Caller(command.answer), now));
            next = if self.in_flight.len() < IN_FLIGHT_MAX { queue.try_recv().ok() } else { None };
        }
        self.send().await
    }

    /// An error may be one key's affair, or nothing is decided here any more: the node is full, or has become a replica, or
    /// trusts us no more, or has lost the script. The greeting mends that, or ends the connection as it would at the beginning;
    /// connecting again finds the node that the name leads to now.
    async fn greet_again(&mut self) -> io::Result<()> {
        let now = self.clock.now();
        if self.greeted.is_some_and(|last| now.saturating_duration_since(last) < GREET_LEAST) {
            return Ok(());
        }
        self.greeted = Some(now);
        for command in self.greeting {
            self.out.extend_from_slice(command);
            self.in_flight.push_back((Asker::Greeting, now));
        }
        self.send().await
    }

    async fn send(&mut self) -> io::Result<()> {
        let written = async {
            self.writer.write_all(&self.out).await?;
            self.writer.flush().await
        };
        timeout(self.timeout, written).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "not read"))??;
        self.out.clear();
        Ok(())
    }

    /// Hands out the answers that are there. Whether an error is among them.
    fn answer(&mut self) -> io::Result<bool> {
        let (mut done, mut failed) = (0, false);
        while let Some((reply, length)) = read_reply(&self.read[done..]).map_err(malformed)? {
            done += length;
            let (asker, _) = self.in_flight.pop_front().ok_or_else(|| malformed(Malformed))?;
            let error = matches!(&reply, Reply::Error(why) if !leads_elsewhere(why));
            match (asker, reply) {
                (Asker::Caller(answer), reply) => {
                    failed |= error;
                    // The caller may have gone on without.
                    let _ = answer.send(reply);
                }
                (Asker::Greeting, Reply::Error(why)) if error => return Err(io::Error::other(why)),
                (Asker::Greeting, _) => {}
            }
        }
        self.read.drain(..done);
        if self.read.len() > ANSWER_MAX { Err(malformed(Malformed)) } else { Ok(failed) }
    }
}

/// Whether an error says that another node of a cluster has the key.
pub fn leads_elsewhere(why: &str) -> bool {
    why.starts_with("MOVED ") || why.starts_with("ASK ")
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Connects for one command only.
pub async fn ask(address: &Address, words: &[&[u8]]) -> io::Result<Reply> {
    let asked = async {
        let mut stream = connect(address).await?;
        exchange(&mut stream, &command(words), &mut Vec::new()).await
    };
    timeout(CONNECT_WITHIN, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A command in its encoding.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    write_command(&mut bytes, words);
    bytes
}
