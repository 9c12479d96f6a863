//! Listening sockets: opened, taken over from the process before, or only tried.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};

use pingora::server::ListenFds;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens a listening socket, or takes over the one that an earlier process handed on.
///
/// # Errors
/// The system's, as [`try_listen`].
pub fn listen(address: SocketAddr, inherited: Option<&ListenFds>) -> io::Result<TcpListener> {
    let key = address.to_string();
    if let Some(fds) = inherited
        && let Some(fd) = fds.lock().get(&key)
    {
        // SAFETY: the descriptor was sent by the process before this one under this very address and is taken once.
        let listener = unsafe { std::net::TcpListener::from_raw_fd(*fd) };
        listener.set_nonblocking(true)?;
        return TcpListener::from_std(listener);
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener: std::net::TcpListener = socket.into();
    if let Some(fds) = inherited {
        fds.lock().add(key, listener.as_raw_fd());
    }
    TcpListener::from_std(listener)
}

/// Whether `address` can be listened on; the socket is closed again. For a clear error before anything starts.
///
/// # Errors
/// The system's: in use, no permission, not an address of this machine.
pub fn try_listen(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}
