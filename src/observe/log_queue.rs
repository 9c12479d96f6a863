//! Lines on their way to the writer thread: two buffers, one filled by all threads under a short lock, one being written.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Bytes that may wait for the access log's writer. At 500 bytes a line and 10,000 requests a second this bridges 1.6 s.
pub(super) const BYTES_MAX: usize = 8 << 20;
/// Lines that may wait for it.
pub(super) const LINES_MAX: usize = 64 << 10;
/// So many bytes wake a writer before it has gathered.
const WAKE_BYTES: usize = 256 << 10;
/// The access log's writer lets lines gather so long: under load it wakes ten times a second, not once a line.
const GATHER: Duration = Duration::from_millis(100);
/// After a burst the buffers give memory beyond this back.
const KEEP_BYTES: usize = 1 << 20;

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    lines: usize,
    /// The writer sleeps until it is called.
    parked: bool,
    /// It was called, and has not come yet: calling again would only cost.
    called: bool,
    reopen: bool,
    stop: bool,
    ended: bool,
}

impl State {
    fn is_urgent(&self) -> bool {
        self.called || self.reopen || self.stop
    }
}

/// What the writer has to do next; the lines are in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    /// Whole lines in the buffer.
    pub(super) lines: usize,
    /// Open the file again first.
    pub(super) reopen: bool,
    /// Nothing comes after this.
    pub(super) last: bool,
}

/// See the module.
pub(super) struct LogQueue {
    state: Mutex<State>,
    writer: Condvar,
    /// The writer has ended, or has nothing to do.
    done: Condvar,
    bytes_max: usize,
    lines_max: usize,
    gather: Duration,
}

impl Default for LogQueue {
    /// The access log's.
    fn default() -> Self {
        Self::new(BYTES_MAX, LINES_MAX, GATHER)
    }
}

impl LogQueue {
    /// So much may wait; the writer lets lines gather for so long.
    pub(super) fn new(bytes_max: usize, lines_max: usize, gather: Duration) -> Self {
        let (state, writer, done) = Default::default();
        Self { state, writer, done, bytes_max, lines_max, gather }
    }

    /// Takes a line with its line end; `false`: there is no room, and the line is lost. Never waits for the writer.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let mut state = self.state.lock();
        if state.lines >= self.lines_max || state.bytes.len() + line.len() > self.bytes_max || state.stop {
            return false;
        }
        state.bytes.extend_from_slice(line);
        state.lines += 1;
        let call = (state.parked || state.bytes.len() >= WAKE_BYTES) && !state.called;
        state.called |= call;
        drop(state);
        if call {
            self.writer.notify_one();
        }
        true
    }

    /// For the writer: waits for lines, and swaps them into `buffer`.
    pub(super) fn next(&self, buffer: &mut Vec<u8>) -> Batch {
        buffer.clear();
        buffer.shrink_to(KEEP_BYTES);
        let mut state = self.state.lock();
        if !state.is_urgent() && !self.gather.is_zero() {
            self.writer.wait_while_for(&mut state, |s| !s.is_urgent(), self.gather);
        }
        state.parked = true;
        if state.lines == 0 {
            self.done.notify_all();
        }
        self.writer.wait_while(&mut state, |s| s.lines == 0 && !s.reopen && !s.stop);
        state.parked = false;
        state.called = false;
        std::mem::swap(buffer, &mut state.bytes);
        let batch = Batch { lines: state.lines, reopen: state.reopen, last: state.stop };
        state.lines = 0;
        state.reopen = false;
        batch
    }

    /// Makes the writer open its file again.
    pub(super) fn reopen(&self) {
        self.state.lock().reopen = true;
        self.writer.notify_one();
    }

    /// Makes the writer end after what is waiting now.
    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.writer.notify_one();
    }

    /// For the writer: it has written its last.
    pub(super) fn set_ended(&self) {
        self.state.lock().ended = true;
        self.done.notify_all();
    }

    /// Waits for the writer's end, not longer than `wait`; says whether it came.
    pub(super) fn wait_ended(&self, wait: Duration) -> bool {
        let mut state = self.state.lock();
        self.done.wait_while_for(&mut state, |s| !s.ended, wait);
        state.ended
    }

    /// Waits until the writer has nothing to do, not longer than `wait`; says whether that came.
    pub(super) fn wait_written(&self, wait: Duration) -> bool {
        let mut state = self.state.lock();
        !self.done.wait_while_for(&mut state, |s| !(s.ended || s.parked && s.lines == 0), wait).timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_order_and_the_last_batch_says_so() {
        let queue = LogQueue::default();
        assert!(queue.push(b"a\n"));
        assert!(queue.push(b"b\n"));
        let mut buffer = Vec::new();
        assert_eq!(queue.next(&mut buffer), Batch { lines: 2, reopen: false, last: false });
        assert_eq!(buffer, b"a\nb\n");
        assert!(queue.push(b"c\n"));
        queue.reopen();
        queue.stop();
        assert_eq!(queue.next(&mut buffer), Batch { lines: 1, reopen: true, last: true });
        assert_eq!(buffer, b"c\n");
        assert!(!queue.push(b"d\n"));
    }

    #[test]
    fn what_is_written_is_told_from_what_only_was_taken() {
        let queue = std::sync::Arc::new(LogQueue::new(100, 10, Duration::ZERO));
        assert!(queue.push(b"a\n") && !queue.wait_written(Duration::ZERO));
        let mut buffer = Vec::new();
        queue.next(&mut buffer);
        assert!(!queue.wait_written(Duration::ZERO), "it is still being written");
        let for_writer = queue.clone();
        let writer = std::thread::spawn(move || for_writer.next(&mut buffer));
        assert!(queue.wait_written(Duration::from_secs(30)));
        assert!(queue.push(b"b\n"));
        assert_eq!(writer.join().unwrap().lines, 1);
    }

    #[test]
    fn the_queue_is_bounded_by_lines_and_by_bytes() {
        let queue = LogQueue::default();
        assert_eq!((0..LINES_MAX + 10).filter(|_| queue.push(b"\n")).count(), LINES_MAX);
        let queue = LogQueue::default();
        let line = vec![b'x'; BYTES_MAX / 4];
        assert_eq!((0..10).filter(|_| queue.push(&line)).count(), 4);
        assert!(!queue.push(b"x"));
    }
}
