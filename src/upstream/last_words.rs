//! A connection to an HTTP/2 node of which is read what the node said before it left.
//!
//! A node that says GOAWAY and closes, just as a request is written, resets the connection. The write fails; but GOAWAY
//! lies in the socket, and says whether the request was processed. The codec (`h2`) gives a connection up with the first
//! write that fails, and all its streams with it. So it is not told: what it writes from then on goes nowhere, and it reads on.
//! The system gives what lies there before it tells the end (on Linux a RST leaves the receive queue as it is), so nothing is
//! waited for, and the end that comes then is the streams' that GOAWAY did not speak of.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora::tls::ssl::SslRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::unread;

/// The connection.
#[derive(Debug)]
pub(super) struct LastWords {
    io: Stream,
    /// Nothing can be written any more.
    ended: bool,
    heard: Heard,
}

/// How often something was read on a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<AtomicU64>);

impl Heard {
    pub(super) fn times(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl LastWords {
    pub(super) fn new(io: Stream) -> Self {
        Self { io, ended: false, heard: Heard::default() }
    }

    /// Goes on counting.
    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// What came of writing `length` bytes.
    fn written(&mut self, result: io::Result<usize>, length: usize) -> io::Result<usize> {
        // SAFETY: that of the socket below the stream, which is open as long as the stream is, and so is `self`.
        let socket = unsafe { BorrowedFd::borrow_raw(self.io.id()) };
        // Else nobody knows whether reading comes to an end.
        self.ended = result.is_err() && unread::has_ended(socket);
        if self.ended { Ok(length) } else { result }
    }
}

impl AsyncRead for LastWords {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.0.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for LastWords {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf).map(|result| self.written(result, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|b| b.len()).sum();
        if self.ended {
            return Poll::Ready(Ok(length));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs).map(|result| self.written(result, length))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_flush(cx).map(|result| self.written(result.map(|()| 0), 0).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// What else Pingora asks of a stream is asked of the one below.

#[async_trait]
impl Shutdown for LastWords {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

impl UniqueID for LastWords {
    fn id(&self) -> UniqueIDType {
        self.io.id()
    }
}

impl Ssl for LastWords {
    fn get_ssl(&self) -> Option<&SslRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

impl GetTimingDigest for LastWords {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io.get_timing_digest()
    }
}

impl GetProxyDigest for LastWords {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io.get_proxy_digest()
    }
}

impl GetSocketDigest for LastWords {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io.get_socket_digest()
    }
}

impl Peek for LastWords {}
