//! What is known of whether a node can have read anything of a request whose exchange broke.
//!
//! Nobody may send a POST twice on a guess (RFC 9110, section 9.2.2). What counts as knowledge:
//!
//! * **Nothing was written.** A connection that had rested is looked at before its next request: by the kernel's own word
//!   ([`is_silent`]), for the runtime knows only what it was told in its last turn. If a FIN, a RST or anything else is
//!   there, the connection is not used.
//! * **The node had closed before a byte of the request reached it**, the two crossing on the wire. TCP tells:
//!   1. The node's FIN came before its RST. Every FIN carries the number of bytes that the node's kernel had by then
//!      (RFC 9293, section 3.10.7.4). Linux says `EPIPE` for a RST after a FIN, and `ECONNRESET` for any other.
//!   2. To this moment none of the request's bytes is acknowledged (`tcpi_bytes_acked`), so the FIN did not either: the node
//!      had said its last word when the first byte came, and had no answer left to give to it.
//!   3. The RST says that nobody will read what came after the FIN: the node did not only end its own half, it closed.
//! * **HTTP/2 says so**: a stream above the last one of GOAWAY, or `REFUSED_STREAM` (RFC 9113, section 8.7). That is read to
//!   its end, also when nothing can be written any more ([`super::last_words`]).
//!
//! What is no proof: a RST without a FIN (a process that has read the request and dies sends it before the kernel has
//! acknowledged anything, for acknowledgements are delayed, and those within a RST don't count), a FIN alone (whoever ends
//! only its own half may read on), an end without an answer.
//!
//! So one race is left, and costs a POST a 502: the request reaches the node's kernel in the moment before the node closes. Its
//! kernel then sends a RST without a FIN, as it does for a process that has read the first half of the request, has acted on
//! it, and dies; neither the bytes acknowledged, nor the window, nor the RST itself tells the two apart. A node that says for
//! how long it keeps connections (`Keep-Alive: timeout`), or keeps them longer than `timeouts.idle`, never gets there.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pingora::Error;
use socket2::SockRef;

/// After a FIN, so long is waited for the RST that the request's bytes are answered with, or their acknowledgement: longer
/// than Linux delays one.
const VERDICT_WAIT: Duration = Duration::from_millis(200);
/// How often it is looked for.
const VERDICT_POLL: Duration = Duration::from_millis(5);

/// Why it is known that a node has read nothing of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// Its connection was gone. Nothing is said of the node.
    Closed,
    /// The node closed a connection that was made for this request, or on which it has read none at all.
    Refused,
    /// `REFUSED_STREAM`: the node has no room for another stream now. Nothing is said against it.
    NoRoom,
}

/// Whether nothing has come that was not read: no byte, no FIN, no RST.
pub(super) fn is_silent(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    SockRef::from(&socket).peek(&mut byte).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// How many bytes the other side's kernel has acknowledged since there was a connection. `None`: the system does not say.
#[cfg(target_os = "linux")]
pub(super) fn acknowledged(socket: BorrowedFd<'_>) -> Option<u64> {
    use std::mem::offset_of;

    const END: usize = offset_of!(libc::tcp_info, tcpi_bytes_acked) + size_of::<u64>();
    tcp_info(socket).filter(|(_, length)| *length >= END).map(|(info, _)| info.tcpi_bytes_acked)
}

/// Whether the connection is over in both directions: what was received can still be read, and then the end. `false` also
/// where the system does not say.
#[cfg(target_os = "linux")]
pub(super) fn has_ended(socket: BorrowedFd<'_>) -> bool {
    /// `TCP_CLOSE` of the kernel's `tcp_states.h`.
    const CLOSED: u8 = 7;
    tcp_info(socket).is_some_and(|(info, length)| length > 0 && info.tcpi_state == CLOSED)
}

/// What the kernel says of a connection, and how many bytes of that it knows.
#[cfg(target_os = "linux")]
fn tcp_info(socket: BorrowedFd<'_>) -> Option<(libc::tcp_info, usize)> {
    use std::os::fd::AsRawFd;

    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is what `info` has.
    let told = unsafe {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        libc::getsockopt(socket.as_raw_fd(), level, name, info.as_mut_ptr().cast(), &raw mut length)
    };
    // SAFETY: integers, all of them zero or written by the kernel.
    let info = unsafe { info.assume_init() };
    (told == 0).then_some((info, length as usize))
}

/// Other systems don't say.
#[cfg(not(target_os = "linux"))]
pub(super) fn acknowledged(_socket: BorrowedFd<'_>) -> Option<u64> {
    None
}

/// Other systems don't say.
#[cfg(not(target_os = "linux"))]
pub(super) fn has_ended(_socket: BorrowedFd<'_>) -> bool {
    false
}

/// After an exchange that ended with `error` (`None`: with the node's FIN) and of which no byte of an answer was read:
/// whether the node had closed before any of the request's bytes reached it. `before` is what was acknowledged when all but
/// those had been written. Nothing else may have asked the socket for its error.
pub(super) async fn was_closed_before(socket: BorrowedFd<'_>, before: u64, error: Option<&io::Error>) -> bool {
    let is_reset_after_fin = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    let mut reset = match error {
        None => false,
        Some(e) if is_reset_after_fin(e) => true,
        // TLS: the FIN came without the alert that ought to be before it.
        Some(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
        Some(_) => return false,
    };
    let mut waited = Duration::ZERO;
    loop {
        if !reset {
            match SockRef::from(&socket).take_error() {
                Ok(None) => {}
                Ok(Some(e)) if is_reset_after_fin(&e) => reset = true,
                Ok(Some(_)) | Err(_) => return false,
            }
        }
        // Looked at after the RST, for nothing is acknowledged any more then.
        match acknowledged(socket) {
            Some(now) if now <= before => {}
            Some(_) | None => return false,
        }
        if reset || waited >= VERDICT_WAIT {
            return reset;
        }
        tokio::time::sleep(VERDICT_POLL).await;
        waited += VERDICT_POLL;
    }
}

/// What HTTP/2 says of it.
fn http2(error: &Error) -> Option<&h2::Error> {
    error.root_cause().downcast_ref()
}

/// Whether a connection of HTTP/2 ended in good order, or without a word.
pub(super) fn closed_http2(error: &Error) -> bool {
    http2(error).is_some_and(|e| e.is_io() || (e.is_go_away() && e.is_remote() && !left_in_error(error)))
}

/// Whether an HTTP/2 node gave up a connection because something is wrong: what it did not process may go elsewhere, but it
/// is no sign of its health.
pub fn left_in_error(error: &Error) -> bool {
    http2(error).is_some_and(|e| e.is_go_away() && e.is_remote() && e.reason() != Some(h2::Reason::NO_ERROR))
}

/// What an HTTP/2 node said of a request that it did not answer; `first`: of the first one on its connection.
pub(super) fn told_by_http2(error: &Error, first: bool) -> Option<Unread> {
    let error = http2(error).filter(|e| e.is_remote())?;
    if error.is_go_away() {
        // Only streams above the last one that GOAWAY names, and those that were never begun, end with it. A node that takes
        // so many requests on a connection, or is about to close one that rested, has taken its first.
        return Some(if first { Unread::Refused } else { Unread::Closed });
    }
    (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)).then_some(Unread::NoRoom)
}
