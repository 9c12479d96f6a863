//! Listening sockets: opened before anything else starts, or taken over from the process before.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// All sockets that this process listens on, by their address.
pub struct Sockets(Mutex<Vec<(SocketAddr, StdListener)>>);

impl Sockets {
    /// Opens a socket for each address, or takes it from `inherited`, what is left of which is closed.
    ///
    /// # Errors
    /// The address and the system's word: in use, no permission, not an address of this machine.
    pub fn open(addresses: &[SocketAddr], inherited: Vec<StdListener>) -> Result<Self, (SocketAddr, io::Error)> {
        let mut inherited: Vec<_> = inherited.into_iter().filter_map(|l| Some((l.local_addr().ok()?, l))).collect();
        let each = addresses.iter().map(|address| {
            let socket = match inherited.iter().position(|(at, _)| at == address) {
                Some(at) => inherited.swap_remove(at).1,
                None => listen(*address).map_err(|e| (*address, e))?,
            };
            Ok((*address, socket))
        });
        Ok(Self(Mutex::new(each.collect::<Result<_, _>>()?)))
    }

    /// The socket of an address, for the runtime that this is called in.
    ///
    /// # Errors
    /// It is not there, or no file descriptor is left.
    pub fn listener(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let sockets = self.0.lock();
        let (_, socket) = sockets.iter().find(|(at, _)| *at == address).ok_or(io::ErrorKind::NotFound)?;
        TcpListener::from_std(socket.try_clone()?)
    }

    /// Has `give` send all of them away.
    pub fn all<T>(&self, give: impl FnOnce(&[(SocketAddr, BorrowedFd<'_>)]) -> T) -> T {
        let sockets = self.0.lock();
        give(&sockets.iter().map(|(address, socket)| (*address, socket.as_fd())).collect::<Vec<_>>())
    }

    /// Closes all but those of `keep`, as soon as those who accept have let go of theirs.
    pub fn close_but(&self, keep: &[SocketAddr]) {
        self.0.lock().retain(|(address, _)| keep.contains(address));
    }
}

fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A descriptor that an earlier process has handed on, if it is a listening TCP socket.
///
/// # Errors
/// It is something else.
pub fn inherited(fd: std::os::fd::OwnedFd) -> io::Result<StdListener> {
    let listener = StdListener::from(fd);
    if !SockRef::from(&listener).is_listener()? {
        return Err(io::Error::other("not a listening socket"));
    }
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
