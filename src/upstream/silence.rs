//! How long a node may be silent: one limit until its answer begins, another one inside it.
//!
//! Pingora has one `read_timeout` for both, and it can't be changed once the request runs (pingora-proxy,
//! `proxy_h1.rs`, `proxy_1to1`). The peer carries the longer of the two; where they differ, this keeps the exact ones.

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Ends a node's connection when the node has been silent for too long. Ends with its drop.
///
/// For HTTP/1.1 only: an HTTP/2 connection carries the answers to other requests, too.
///
/// How the proxy uses it, when a route's `response` and `stream_idle` differ: [`Self::start`] in `connected_to_upstream`,
/// [`Self::heard`] in `upstream_response_filter` and `upstream_response_body_filter`, and [`Self::expired`] where an
/// upstream error becomes a refusal, which then is a timeout.
pub struct SilenceWatch {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    start: Instant,
    /// Milliseconds after `start`.
    deadline_ms: AtomicU64,
    /// Told when the deadline moves to an earlier time; a later one is seen when the old one has come.
    shortened: Notify,
    expired: AtomicBool,
}

impl SilenceWatch {
    /// Watches the connection `fd`, from `now` on for `limit`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The process has no file descriptor left: one more is needed while the watch lives, so that it can't ever hit
    /// another connection that has got the same number.
    pub fn start(fd: RawFd, limit: Duration, now: Instant) -> io::Result<Self> {
        // SAFETY: Pingora lends the descriptor of the connection that the request runs on; it is open during this call.
        #[allow(unsafe_code)]
        let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        let shared = Arc::new(Shared {
            start: now,
            deadline_ms: AtomicU64::new(ms(limit)),
            shortened: Notify::new(),
            expired: AtomicBool::new(false),
        });
        let task = tokio::spawn(watch(shared.clone(), Socket::from(own)));
        Ok(Self { shared, task })
    }

    /// The node has sent something; from `now` on it may be silent for `limit`.
    pub fn heard(&self, limit: Duration, now: Instant) {
        let deadline = ms(now.saturating_duration_since(self.shared.start) + limit);
        if deadline < self.shared.deadline_ms.swap(deadline, Ordering::AcqRel) {
            self.shared.shortened.notify_one();
        }
    }

    /// Whether the watch has ended the connection.
    pub fn expired(&self) -> bool {
        self.shared.expired.load(Ordering::Acquire)
    }
}

impl Drop for SilenceWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(shared: Arc<Shared>, connection: Socket) {
    loop {
        let deadline_ms = shared.deadline_ms.load(Ordering::Acquire);
        let deadline = tokio::time::Instant::from_std(shared.start + Duration::from_millis(deadline_ms));
        tokio::select! {
            () = shared.shortened.notified() => {}
            () = tokio::time::sleep_until(deadline) => {
                if shared.deadline_ms.load(Ordering::Acquire) == deadline_ms {
                    break;
                }
            }
        }
    }
    // First the flag: whoever sees the connection's end finds the reason.
    shared.expired.store(true, Ordering::Release);
    // An error means that the node was quicker.
    let _ = connection.shutdown(Shutdown::Both);
}

fn ms(limit: Duration) -> u64 {
    // A month is as good as for ever, and can be added to any instant.
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).min(30 * 24 * 3600 * 1000)
}

#[cfg(test)]
mod tests {
    use pingora::connectors::http::Connector;
    use pingora::http::RequestHeader;
    use pingora::protocols::http::client::HttpSession;

    use super::super::fakes::{Does, FakeNode, OK, build, node, settings, until};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_millis(50);

    /// A request to a node that does so, and the watch over its answer.
    async fn ask(does: Does, limit: Duration) -> (HttpSession, SilenceWatch, FakeNode) {
        let fake = FakeNode::start(does).await;
        let picked = build(settings(vec![node(fake.address, 1)])).pick(&[]).unwrap();
        let (mut session, _) = Connector::new(None).get_http_session(&*picked.peer(MINUTE, MINUTE)).await.unwrap();
        let HttpSession::H1(h1) = &session else { panic!("not HTTP/1.1") };
        let fd = h1.stream().id();
        let watch = SilenceWatch::start(fd, limit, Instant::now()).unwrap();
        let head = RequestHeader::build("GET", b"/", None).unwrap();
        session.write_request_header(Box::new(head)).await.unwrap();
        (session, watch, fake)
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_cut_off() {
        let (mut session, watch, _fake) = ask(Does::Hang, SOON).await;
        assert!(session.read_response_header().await.is_err());
        assert!(watch.expired());
    }

    #[tokio::test]
    async fn a_shorter_limit_for_the_stream_counts_from_the_header_on() {
        let half = Does::Answer("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{");
        let (mut session, watch, _fake) = ask(half, MINUTE).await;
        session.read_response_header().await.unwrap();
        watch.heard(SOON, Instant::now());
        while let Ok(Some(_)) = session.read_response_body().await {}
        assert!(watch.expired());
    }

    #[tokio::test]
    async fn a_longer_limit_for_the_stream_counts_from_the_header_on() {
        let half = Does::Answer("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{");
        let (mut session, watch, _fake) = ask(half, Duration::from_secs(1)).await;
        session.read_response_header().await.unwrap();
        let heard = Instant::now();
        watch.heard(Duration::from_secs(2), heard);
        while let Ok(Some(_)) = session.read_response_body().await {}
        assert!(watch.expired());
        assert!(heard.elapsed() >= Duration::from_millis(1900), "{:?}", heard.elapsed());
    }

    #[tokio::test]
    async fn a_finished_watch_touches_nothing() {
        let (mut session, watch, fake) = ask(OK, MINUTE).await;
        let shared = Arc::downgrade(&watch.shared);
        drop(watch);
        until("the watch's own descriptor is closed", || shared.strong_count() == 0).await;
        session.read_response_header().await.unwrap();
        assert!(session.read_response_body().await.unwrap().is_some());
        assert_eq!(fake.open.load(Ordering::SeqCst), 1);
    }
}
