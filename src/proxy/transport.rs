//! What a client's connection runs over: TLS, or plain TCP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::wire::Wire;

/// TLS or not.
#[derive(Debug)]
pub enum Transport {
    /// HTTPS.
    Tls(SslStream<Wire>),
    /// Plain HTTP.
    Plain(TcpStream),
}

impl Transport {
    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Tls(tls) => tls.get_ref().tcp(),
            Transport::Plain(tcp) => tcp,
        }
    }

    /// As [`AsyncRead`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
        }
    }

    /// One byte, which stays unread.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>, byte: &mut [u8; 1]) -> Poll<io::Result<usize>> {
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_peek(cx, byte).map_err(io::Error::other),
            Transport::Plain(tcp) => tcp.poll_peek(cx, &mut ReadBuf::new(byte)),
        }
    }

    /// As [`AsyncWrite`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
        }
    }

    /// As [`AsyncWrite`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
        }
    }

    /// A read brought so much.
    pub fn carried(&mut self, bytes: usize) {
        if let Transport::Tls(tls) = self {
            tls.get_mut().carried(bytes);
        }
    }

    /// Whether TLS was given up for records without data.
    pub fn flooded(&self) -> bool {
        matches!(self, Transport::Tls(tls) if tls.get_ref().flooded())
    }

    /// Says good-bye.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
        }
    }
}
