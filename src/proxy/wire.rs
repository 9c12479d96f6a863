//! The TCP connection below TLS: counts what comes in and carries no application data.
//!
//! OpenSSL answers KeyUpdate and its like by itself, as many as come (RFC 8446, section 4.6.3): each costs key
//! derivations, and none is seen above. A client that sends more of them than a connection can need is cut.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::tap::Tap;

/// Bytes without application data that may come at once: more than OpenSSL reads ahead, and 1200 KeyUpdates.
const OVERHEAD_MAX: usize = 64 << 10;
/// Bytes of overhead that are forgotten each second.
const FORGOTTEN_PER_SECOND: usize = 4 << 10;
/// Most that a record of application data has around it: header, nonce and tag of TLS 1.2, without padding.
const RECORD_AROUND: usize = 29;

/// A TCP connection with TLS above.
#[derive(Debug)]
pub struct Wire {
    tcp: Tap,
    /// Some once the handshake is over: bytes that came, less what they carried.
    overhead: Option<usize>,
    forgotten_at: Instant,
    flooded: bool,
}

impl Wire {
    /// Counts nothing before [`Wire::handshake_done`].
    pub fn new(tcp: TcpStream, now: Instant) -> Self {
        Self { tcp: Tap::new(tcp), overhead: None, forgotten_at: now, flooded: false }
    }

    /// From here on, what comes is to carry data.
    pub fn handshake_done(&mut self) {
        self.overhead = Some(0);
    }

    /// A read brought `bytes` of application data.
    pub fn carried(&mut self, bytes: usize) {
        if let Some(overhead) = &mut self.overhead {
            *overhead = overhead.saturating_sub(bytes + RECORD_AROUND);
        }
    }

    /// Whether the connection was given up for want of data.
    pub fn flooded(&self) -> bool {
        self.flooded
    }

    /// The connection itself.
    pub fn tap(&self) -> &Tap {
        &self.tcp
    }

    /// The connection itself, once nothing is read through TLS any more, or to wait for its end.
    pub fn tap_mut(&mut self) -> &mut Tap {
        &mut self.tcp
    }

    /// False: too much came that carried nothing. The clock is asked only when it looks like that.
    fn came(&mut self, bytes: usize, now: impl Fn() -> Instant) -> bool {
        let Some(overhead) = &mut self.overhead else { return true };
        *overhead += bytes;
        if *overhead > OVERHEAD_MAX {
            let now = now();
            let since = now.saturating_duration_since(self.forgotten_at).min(Duration::from_secs(60));
            let forgotten = (since.as_secs_f64() * FORGOTTEN_PER_SECOND as f64) as usize;
            *overhead = overhead.saturating_sub(forgotten);
            self.forgotten_at = now;
            self.flooded = *overhead > OVERHEAD_MAX;
        }
        !self.flooded
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        if self.came(buf.filled().len() - before, Instant::now) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::Error::other("too many TLS records without data")))
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
