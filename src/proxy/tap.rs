//! A client's TCP connection, whose end can be waited for while what it has sent stays unread.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The connection.
#[derive(Debug)]
pub struct Tap {
    tcp: TcpStream,
    /// The runtime was made to forget that there is something to read; the system has to be asked.
    forgotten: bool,
}

impl Tap {
    /// Nothing has been read yet.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, forgotten: false }
    }

    /// The connection itself; not to be read from.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// To be read from only as long as nobody has waited for its end.
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    /// Ready if it is worth trying to read.
    pub fn poll_something(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is for the read to tell.
        if self.forgotten { Poll::Ready(()) } else { self.tcp.poll_read_ready(cx).map(drop) }
    }

    /// One byte, which stays unread.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>, byte: &mut [u8; 1]) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit()];
        match self.at_once(|socket| socket.peek(&mut room)) {
            Some(peeked) => Poll::Ready(peeked),
            None => self.tcp.poll_peek(cx, &mut ReadBuf::new(byte)),
        }
    }

    /// Ready once the other side has said its last, or is gone. What it said before may stay unread: the runtime tells of
    /// what is new only, so it is told to forget each time what there is, and reads ask the system itself from then on.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            let socket = self.tcp.as_fd();
            // What comes while this looks is not forgotten: it is newer than what was known before.
            let look = || if has_ended(socket)? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) };
            match self.tcp.try_io(Interest::READABLE, look) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.forgotten = true,
                ended => return Poll::Ready(ended),
            }
        }
    }

    /// Asks the system, if the runtime may have forgotten something. None: there is nothing, and whatever comes is told.
    fn at_once<T>(&mut self, ask: impl FnOnce(&SockRef<'_>) -> io::Result<T>) -> Option<io::Result<T>> {
        if !self.forgotten {
            return None;
        }
        match ask(&SockRef::from(&self.tcp)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.forgotten = false;
                None
            }
            answer => Some(answer),
        }
    }
}

/// Whether nothing more will come, however much is unread.
fn has_ended(socket: BorrowedFd<'_>) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    const END: libc::c_short = libc::POLLRDHUP;
    // Elsewhere only an end of both directions shows.
    #[cfg(not(target_os = "linux"))]
    const END: libc::c_short = 0;
    let mut asked = libc::pollfd { fd: socket.as_raw_fd(), events: END, revents: 0 };
    // SAFETY: one entry, whose descriptor is open; it does not wait.
    if unsafe { libc::poll(&raw mut asked, 1, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(asked.revents != 0)
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.forgotten {
            let room = buf.initialize_unfilled();
            if let Some(read) = self.at_once(|socket| (&**socket).read(room)) {
                buf.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tap {
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Tap, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Tap::new(listener.accept().await.unwrap().0), client)
    }

    async fn end(tap: &mut Tap) {
        poll_fn(|cx| tap.poll_end(cx)).await.unwrap();
    }

    async fn first(tap: &mut Tap) -> usize {
        poll_fn(|cx| tap.poll_peek(cx, &mut [0])).await.unwrap()
    }

    /// The client writes, and its end is looked for in vain.
    async fn leave_unread(tap: &mut Tap, client: &mut TcpStream) {
        client.write_all(b"more").await.unwrap();
        assert_eq!(first(tap).await, 1);
        tokio::select! {
            biased;
            () = end(tap) => panic!("it is open"),
            () = tokio::task::yield_now() => {}
        }
    }

    #[tokio::test]
    async fn the_end_is_seen_behind_what_is_unread_and_nothing_is_lost() {
        for times in 1..=3 {
            let (mut tap, mut client) = pair().await;
            for _ in 0..times {
                leave_unread(&mut tap, &mut client).await;
            }
            client.shutdown().await.unwrap();
            end(&mut tap).await;
            assert_eq!(first(&mut tap).await, 1);
            let mut all = String::new();
            tap.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "more".repeat(times));
        }
    }

    #[tokio::test]
    async fn what_comes_after_a_look_is_read_as_ever() {
        let (mut tap, mut client) = pair().await;
        for round in 0..1000 {
            let mut text = [0; 4];
            if round % 3 != 0 {
                leave_unread(&mut tap, &mut client).await;
                tap.read_exact(&mut text).await.unwrap();
                assert_eq!(&text, b"more");
            }
            // Now there is nothing, and the reader waits for it.
            let writes = async {
                tokio::task::yield_now().await;
                client.write_all(b"next").await.unwrap();
            };
            let (read, ()) = tokio::join!(tap.read_exact(&mut text), writes);
            read.unwrap();
            assert_eq!(&text, b"next");
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_reset_has_ended() {
        let (mut tap, mut client) = pair().await;
        client.write_all(b"more").await.unwrap();
        assert_eq!(first(&mut tap).await, 1);
        SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        let (_, ()) = tokio::join!(async { drop(client) }, end(&mut tap));
    }
}
