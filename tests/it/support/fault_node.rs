//! Nodes that fail in every way a node can, and that count how often each request reached them.
//!
//! What goes wrong with a request stands in its path (`/echo/FAULT/ID`), so that its client knows what to expect. What goes
//! wrong with a connection, before anybody can know which request it hits, is left to chance.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use openssl::ssl::{Ssl, SslContext};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::frame_node::{answer_with, go_away};

/// Chance that can be had again (xorshift64*).
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self((seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        (0..8).for_each(|_| _ = dice.of(2));
        dice
    }

    /// 0 to `sides` - 1.
    pub fn of(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a node does with a request that it has read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Fault { $($(#[$doc])* $name),* }

        impl Fault {
            fn parse(text: &str) -> Option<Self> {
                match text {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

faults! {
    /// Answers as it should.
    Good,
    /// Answers and closes shortly afterwards without having announced it: the next request is on its way.
    CloseAfter,
    /// Answers and closes without having announced it, both in one segment.
    CloseWith,
    /// Closes instead of an answer.
    Crash,
    /// Resets the connection, or with HTTP/2 the stream, instead of an answer.
    Reset,
    /// Breaks off within the header.
    MidHeader,
    /// Breaks off within the body.
    MidBody,
    /// Falls silent within the body.
    SilentBody,
    /// Never answers.
    Hang,
    /// Says what is no HTTP.
    Garbage,
    /// A header of 70 KiB.
    LargeHeader,
    /// 200 header fields.
    ManyFields,
    /// A body shorter than its length, then the end.
    ShortBody,
    /// More than the body's length.
    LongBody,
    /// Two lengths.
    TwoLengths,
    /// A chunk whose size is none.
    BrokenChunk,
    /// Some 1xx, then an answer.
    Interim,
    /// 1xx without end, as fast as they are taken.
    InterimFlood,
    /// 1xx without end, now and then.
    InterimDrip,
    /// 101.
    Switch,
    /// HTTP/2: refuses the stream the first time.
    Refuse,
    /// HTTP/2: refuses it each time.
    RefuseEach,
}

/// How often each request was read by a node.
#[derive(Default)]
pub struct Ledger {
    seen: Mutex<HashMap<u64, u32>>,
    refused: Mutex<HashMap<u64, u32>>,
}

impl Ledger {
    pub fn seen(&self, id: u64) -> u32 {
        self.seen.lock().unwrap().get(&id).copied().unwrap_or(0)
    }

    fn note(&self, id: u64) {
        *self.seen.lock().unwrap().entry(id).or_default() += 1;
    }

    fn first_refusal(&self, id: u64) -> bool {
        let mut refused = self.refused.lock().unwrap();
        let times = refused.entry(id).or_default();
        *times += 1;
        *times == 1
    }
}

/// Streams at once, where they are not what it is about.
const MANY: u32 = 1000;

/// What becomes of a connection after its request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Leaves,
    IsSilent,
}

/// Nodes that share a ledger and a seed.
pub struct FaultNodes {
    pub ledger: Arc<Ledger>,
    seed: u64,
    // Dropped with its tasks, sockets and all.
    runtime: Runtime,
}

/// What happens to connections by chance, in thousandths; 0 for none.
#[derive(Clone, Copy)]
pub struct Chances {
    /// Closed or reset when just accepted.
    pub at_accept: u64,
    /// Closed when the next request has come, unread.
    pub unread: u64,
    /// Closed at rest.
    pub at_rest: u64,
    /// The port is closed for a moment after so many connections.
    pub refuse_after: Option<u64>,
}

impl FaultNodes {
    pub fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { ledger: Arc::default(), seed, runtime }
    }

    /// A node that speaks HTTP/1.1.
    pub fn http1(&self, number: u64, chances: Chances) -> SocketAddr {
        let mut listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (ledger, seed) = (self.ledger.clone(), self.seed);
        self.runtime.spawn(async move {
            for accepted in 1u64.. {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                let dice = Dice::new(seed, number << 32 | accepted);
                tokio::spawn(Http1 { tcp, buffer: Vec::new(), dice, ledger: ledger.clone(), chances }.serve());
                if chances.refuse_after.is_some_and(|many| accepted % many == 0) {
                    drop(listener);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    listener = loop {
                        // Somebody may have the port for a moment.
                        match TcpListener::bind(address).await {
                            Ok(listener) => break listener,
                            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                        }
                    };
                }
            }
        });
        address
    }

    /// A node that speaks HTTP/2 with prior knowledge. Of 1000 requests `chance` end its connection, this way or that.
    pub fn http2(&self, number: u64, chance: u64) -> SocketAddr {
        self.http2_of(MANY, number, chance)
    }

    /// The same, of which a connection takes so many streams at once.
    pub fn http2_of(&self, streams: u32, number: u64, chance: u64) -> SocketAddr {
        self.serve_each(number, move |tcp, dice, ledger| serve_http2(tcp, streams, dice, ledger, chance))
    }

    /// A node that does so with each connection; the dice of each are its own.
    fn serve_each<F>(
        &self,
        number: u64,
        serve: impl Fn(TcpStream, Dice, Arc<Ledger>) -> F + Send + 'static,
    ) -> SocketAddr
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (ledger, seed) = (self.ledger.clone(), self.seed);
        self.runtime.spawn(async move {
            for accepted in 1u64.. {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(tcp, Dice::new(seed, number << 32 | accepted), ledger.clone()));
            }
        });
        address
    }

    /// An HTTP/2 node, over TLS or not, that ends each connection after a request: it says GOAWAY and closes, in the very
    /// moment in which another request may be on its way. It answers whatever it reads.
    pub fn http2_that_leaves(&self, number: u64, tls: Option<SslContext>) -> SocketAddr {
        self.http2_for_one_request(number, tls, Then::Leaves)
    }

    /// An HTTP/2 node of which each connection answers a request, and falls silent: it takes what comes, and that is all.
    pub fn http2_that_falls_silent(&self) -> SocketAddr {
        self.http2_for_one_request(1, None, Then::IsSilent)
    }

    fn http2_for_one_request(&self, number: u64, tls: Option<SslContext>, then: Then) -> SocketAddr {
        self.serve_each(number, move |tcp, dice, ledger| {
            let tls = tls.clone();
            async move {
                let Some(context) = tls else { return answer_and(then, tcp, dice, ledger).await };
                let mut stream = tokio_openssl::SslStream::new(Ssl::new(&context).unwrap(), tcp).unwrap();
                if Pin::new(&mut stream).accept().await.is_ok() {
                    answer_and(then, stream, dice, ledger).await;
                }
            }
        })
    }

    /// An HTTP/2 node of which each connection takes so many requests, as nginx's `keepalive_requests` has it, or none: with the
    /// last of them it says GOAWAY. Nothing is noted of them, and their answers have no body.
    pub fn http2_that_takes(&self, requests: u32) -> SocketAddr {
        self.serve_each(0, move |tcp, _, _| go_away(tcp, requests, h2::Reason::NO_ERROR))
    }

    /// An HTTP/2 node whose answers have a field of `length` bytes (less than 16,000), so often. All but the first are a byte each.
    pub fn http2_with_headers(&self, length: usize, fields: usize) -> SocketAddr {
        // `:status: 200`, then `x` as a literal that is kept (RFC 7541, section 6.2.1), which is number 62 from then on.
        let mut block = vec![0x88, 0x40, 1, b'x'];
        match length.checked_sub(127) {
            None => block.push(length as u8),
            Some(more) => block.extend([127, more as u8 | 0x80, (more >> 7) as u8]),
        }
        block.extend(std::iter::repeat_n(b'a', length));
        block.extend(std::iter::repeat_n(0x80 | 62, fields - 1));
        self.serve_each(0, move |tcp, _, _| answer_with(tcp, block.clone()))
    }

    /// An HTTP/2 node that answers the first request of every second connection with GOAWAY: it has not processed it.
    pub fn http2_that_goes_away(&self, reason: h2::Reason) -> SocketAddr {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (ledger, seed) = (self.ledger.clone(), self.seed);
        self.runtime.spawn(async move {
            for accepted in 0u64.. {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                if accepted % 2 == 0 {
                    tokio::spawn(go_away(tcp, 0, reason));
                } else {
                    tokio::spawn(serve_http2(tcp, MANY, Dice::new(seed, accepted), ledger.clone(), 0));
                }
            }
        });
        address
    }
}

/// `/echo/FAULT/ID`
fn told(path: &str) -> Option<(Fault, u64)> {
    let mut parts = path.trim_start_matches('/').split('/').skip(1);
    Some((Fault::parse(parts.next()?)?, parts.next()?.parse().ok()?))
}

/// What an answer to this request says.
pub fn good_body(id: u64) -> String {
    format!("{{\"id\":{id},\"from\":\"the node\"}}")
}

fn good_answer(id: u64) -> Vec<u8> {
    let body = good_body(id);
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
}

/// From nothing to a third of a millisecond, for which a sleep is too coarse.
fn wait_a_moment(dice: &mut Dice) {
    let until = Instant::now() + Duration::from_micros(dice.of(300));
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

struct Http1 {
    tcp: TcpStream,
    buffer: Vec<u8>,
    dice: Dice,
    ledger: Arc<Ledger>,
    chances: Chances,
}

impl Http1 {
    async fn serve(mut self) {
        let _ = self.tcp.set_nodelay(true);
        if self.dice.of(1000) < self.chances.at_accept {
            if self.dice.of(2) == 0 {
                self.reset();
            }
            return;
        }
        while let Ok(true) = self.one().await {
            if self.dice.of(1000) < self.chances.at_rest {
                wait_a_moment(&mut self.dice);
                return;
            }
        }
    }

    /// Whatever is closed now is reset.
    fn reset(&self) {
        let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
    }

    /// Serves a request; whether another may follow.
    async fn one(&mut self) -> std::io::Result<bool> {
        if self.dice.of(1000) < self.chances.unread {
            self.tcp.readable().await?;
            return Ok(false);
        }
        let Some(path) = self.read().await? else { return Ok(false) };
        let Some((fault, id)) = told(&path) else {
            self.tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await?;
            return Ok(true);
        };
        self.ledger.note(id);
        self.answer(fault, id).await
    }

    async fn answer(&mut self, fault: Fault, id: u64) -> std::io::Result<bool> {
        let good = good_answer(id);
        let head = |more: &str| format!("HTTP/1.1 200 OK\r\n{more}\r\n").into_bytes();
        match fault {
            Fault::Good => {
                self.tcp.write_all(&good).await?;
                return Ok(true);
            }
            Fault::CloseAfter => {
                self.tcp.write_all(&good).await?;
                wait_a_moment(&mut self.dice);
            }
            Fault::CloseWith => {
                SockRef::from(&self.tcp).set_tcp_cork(true)?;
                self.tcp.write_all(&good).await?;
            }
            Fault::Crash | Fault::Refuse | Fault::RefuseEach => {}
            Fault::Reset => self.reset(),
            Fault::MidHeader => self.tcp.write_all(&good[..30]).await?,
            Fault::MidBody => self.tcp.write_all(&head("Transfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"")).await?,
            Fault::SilentBody => {
                self.tcp.write_all(&head("Content-Length: 50\r\n\r\n{\"id\"")).await?;
                self.until_gone().await;
            }
            Fault::Hang => self.until_gone().await,
            Fault::Garbage => self.tcp.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await?,
            Fault::LargeHeader => {
                let field = format!("X-Large: {}\r\n", "x".repeat(70 << 10));
                self.tcp.write_all(&head(&(field + "Content-Length: 0\r\n"))).await?;
            }
            Fault::ManyFields => {
                let fields: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
                self.tcp.write_all(&head(&(fields + "Content-Length: 0\r\n"))).await?;
            }
            Fault::ShortBody => self.tcp.write_all(&head("Content-Length: 50\r\n\r\n{}")).await?,
            Fault::LongBody => {
                self.tcp.write_all(&[&good[..], b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat()).await?;
                // The next request must not get that; the node believes that another may come.
                return Ok(true);
            }
            Fault::TwoLengths => self.tcp.write_all(&head("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}")).await?,
            Fault::BrokenChunk => self.tcp.write_all(&head("Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")).await?,
            Fault::Interim => {
                let interim = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
                self.tcp.write_all(&[&interim[..], &good].concat()).await?;
                return Ok(true);
            }
            Fault::InterimFlood => loop {
                self.tcp.write_all(&b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50)).await?;
            },
            Fault::InterimDrip => loop {
                self.tcp.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            },
            Fault::Switch => self.tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").await?,
        }
        Ok(false)
    }

    async fn until_gone(&mut self) {
        while let Ok(1..) = self.tcp.read(&mut [0; 64]).await {}
    }

    /// Reads a request to its end; its path.
    async fn read(&mut self) -> std::io::Result<Option<String>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if self.tcp.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let length =
            head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
        let length: usize = length.map_or(0, |l| l.trim().parse().unwrap());
        while self.buffer.len() < end + length {
            if self.tcp.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
        self.buffer.drain(..end + length);
        Ok(head.split(' ').nth(1).map(str::to_owned))
    }
}

async fn serve_http2(tcp: TcpStream, streams: u32, mut dice: Dice, ledger: Arc<Ledger>, chance: u64) {
    let Ok(mut connection) = h2::server::Builder::new().max_concurrent_streams(streams).handshake(tcp).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer_http2(request, respond, ledger.clone()));
        if dice.of(1000) < chance {
            match dice.of(4) {
                0 => connection.graceful_shutdown(),
                1 => connection.abrupt_shutdown(h2::Reason::NO_ERROR),
                2 => connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM),
                _ => return,
            }
        }
    }
}

async fn answer_and(then: Then, io: impl AsyncRead + AsyncWrite + Unpin, mut dice: Dice, ledger: Arc<Ledger>) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    let Some(Ok(mut next)) = connection.accept().await else { return };
    let mut answers = JoinSet::new();
    loop {
        answers.spawn(answer_http2(next.0, next.1, ledger.clone()));
        // The bodies come, and the answers go, while the connection is driven.
        let another = poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = answers.poll_join_next(cx) {}
            match connection.poll_accept(cx) {
                Poll::Pending if answers.is_empty() => Poll::Ready(None),
                other => other,
            }
        });
        match another.await {
            Some(Ok(another)) => next = another,
            _ => break,
        }
    }
    if then == Then::IsSilent {
        return std::future::pending().await;
    }
    wait_a_moment(&mut dice);
    connection.abrupt_shutdown(h2::Reason::NO_ERROR);
    while connection.accept().await.is_some() {}
}

async fn answer_http2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    ledger: Arc<Ledger>,
) {
    let (parts, mut stream) = request.into_parts();
    let told = told(parts.uri.path());
    if let Some((fault @ (Fault::Refuse | Fault::RefuseEach), id)) = told
        && (ledger.first_refusal(id) || fault == Fault::RefuseEach)
    {
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
    if let Some((_, id)) = told {
        ledger.note(id);
    }
    while let Some(Ok(data)) = stream.data().await {
        let _ = stream.flow_control().release_capacity(data.len());
    }
    let head = || Response::builder().header("content-type", "application/json").body(()).unwrap();
    let (fault, id) = told.unwrap_or((Fault::Good, 0));
    match fault {
        Fault::Crash | Fault::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        // Resets that look as if they were harmless.
        Fault::MidHeader => respond.send_reset(h2::Reason::CANCEL),
        Fault::Hang => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
        Fault::MidBody => {
            let Ok(mut send) = respond.send_response(head(), false) else { return };
            let _ = send.send_data(Bytes::from_static(b"{\"id\""), false);
            send.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        Fault::ShortBody => {
            let short = Response::builder().header("content-length", "50").body(()).unwrap();
            let Ok(mut send) = respond.send_response(short, false) else { return };
            let _ = send.send_data(Bytes::from_static(b"{}"), true);
        }
        _ => {
            let Ok(mut send) = respond.send_response(head(), false) else { return };
            let _ = send.send_data(Bytes::from(good_body(id)), true);
        }
    }
}
