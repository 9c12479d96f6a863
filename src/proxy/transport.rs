//! What a client's connection runs over: TLS, or plain TCP.

use std::ffi::c_int;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use foreign_types::ForeignTypeRef;
use pingora::tls::ssl::SslRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::tap::Tap;
use super::wire::Wire;

/// TLS or not.
#[derive(Debug)]
pub enum Transport {
    /// HTTPS.
    Tls(SslStream<Wire>),
    /// Plain HTTP.
    Plain(Tap),
}

impl Transport {
    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Tls(tls) => tls.get_ref().tap().tcp(),
            Transport::Plain(tcp) => tcp.tcp(),
        }
    }

    /// Ready if it is worth trying to read. OpenSSL is not asked before something has come: to find nothing costs it as much
    /// as to read a record, and each request waits twice, for itself and for its answer.
    fn poll_something(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Transport::Tls(tls) if !has_pending(tls.ssl()) => tls.get_ref().tap().poll_something(cx),
            _ => Poll::Ready(()),
        }
    }

    /// As [`AsyncRead`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_something(cx));
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
        }
    }

    /// One byte, which stays unread.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>, byte: &mut [u8; 1]) -> Poll<io::Result<usize>> {
        ready!(self.poll_something(cx));
        match self {
            Transport::Tls(tls) => Pin::new(tls).poll_peek(cx, byte).map_err(io::Error::other),
            Transport::Plain(tcp) => tcp.poll_peek(cx, byte),
        }
    }

    /// Ready once the client is gone, or has said its last. What it sends meanwhile stays unread and holds it back: read, it
    /// would have to be kept somewhere; and unread, it hides from every read that nothing comes behind it. So from the first
    /// such byte on the socket is asked for its end alone: `behind`, false at first.
    ///
    /// Of a client that has filled the socket's receive buffer nobody can know: TCP sends its end behind all that it has
    /// written, and so not before there is room. It keeps its place until `pending_timeout`, or its answer's deadline.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, behind: &mut bool) -> Poll<io::Result<()>> {
        if !*behind {
            if ready!(self.poll_peek(cx, &mut [0]))? == 0 {
                return Poll::Ready(Ok(()));
            }
            *behind = true;
        }
        match self {
            Transport::Tls(tls) => tls.get_mut().tap_mut().poll_end(cx),
            Transport::Plain(tcp) => tcp.poll_end(cx),
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

/// Whether bytes have been read from the socket that have not been read from `ssl`, decrypted or not.
fn has_pending(ssl: &SslRef) -> bool {
    // SAFETY: the pointer belongs to a live connection; OpenSSL only looks at it (ssl.h, 1.1.0 to 3.6).
    unsafe { SSL_has_pending(ssl.as_ptr().cast()) == 1 }
}

// What the `openssl` crate lacks.
unsafe extern "C" {
    fn SSL_has_pending(ssl: *const std::ffi::c_void) -> c_int;
}
