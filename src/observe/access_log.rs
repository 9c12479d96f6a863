//! The access log: one JSON line per request and per failed handshake, written by a thread of its own.
//!
//! A request formats its line into its thread's buffer and copies it into the queue; that takes less than a microsecond and
//! never waits. A full queue, a full disk and a reader that does not read cost lines, which are counted
//! (`hive_gateway_access_log_dropped_total`), never a request's time.

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use super::log_queue::LogQueue;
use super::metrics::Metrics;
use super::record::{AccessRecord, HandshakeRecord, HandshakesOmitted};
use super::record_defense::{ConnectionDenied, WafMatch};
use crate::clock::Clock;

/// Mode of a log file that is made: it names clients, so others don't read it.
const FILE_MODE: u32 = 0o640;
/// Errors of the file are logged this far apart.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);
/// How long dropping an [`AccessLog`] waits for its last lines.
const DROP_WAIT: Duration = Duration::from_secs(1);
/// A thread's line buffer gives memory beyond this back.
const LINE_KEEP_BYTES: usize = 16 << 10;

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// Nowhere.
    Off,
    /// The end of this file, or a FIFO. It is made if it is not there (mode 0640).
    File(PathBuf),
}

impl fmt::Display for AccessLogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessLogTarget::Stdout => f.write_str("stdout"),
            AccessLogTarget::Off => f.write_str("off"),
            AccessLogTarget::File(path) => path.display().fmt(f),
        }
    }
}

/// Takes records from all threads.
pub struct AccessLog {
    /// `None`: switched off.
    queue: Option<Arc<LogQueue>>,
    dropped: IntCounter,
}

impl AccessLog {
    /// Opens the target and starts the writer.
    ///
    /// # Errors
    /// The file can't be opened (the error names it), or no thread can be started.
    pub fn open(target: &AccessLogTarget, clock: Clock, metrics: &Metrics) -> io::Result<Arc<Self>> {
        let dropped = metrics.access_log_dropped.clone();
        if *target == AccessLogTarget::Off {
            return Ok(Arc::new(Self { queue: None, dropped }));
        }
        let file = open(target).map_err(|e| io::Error::new(e.kind(), format!("access log {target}: {e}")))?;
        let writer = Writer {
            target: target.clone(),
            file: Some(file),
            torn: false,
            clock,
            complained_at: None,
            lines: metrics.access_log_lines.clone(),
            dropped: dropped.clone(),
            errors: metrics.access_log_write_errors.clone(),
        };
        let queue = Arc::new(LogQueue::default());
        let for_writer = queue.clone();
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&for_writer))?;
        Ok(Arc::new(Self { queue: Some(queue), dropped }))
    }

    /// Whether records go anywhere: if not, none need be put together.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Writes a request down, some time later. Never waits.
    pub fn record(&self, record: &AccessRecord<'_>) {
        self.push(|line| record.write_json(line));
    }

    /// Writes a failed handshake down, some time later. Never waits.
    pub fn record_handshake(&self, record: &HandshakeRecord<'_>) {
        self.push(|line| record.write_json(line));
    }

    /// Says how many failed handshakes were not written down. Never waits.
    pub fn record_handshakes_omitted(&self, record: &HandshakesOmitted<'_>) {
        self.push(|line| record.write_json(line));
    }

    /// Writes a connection down that was turned away by its address. Never waits.
    pub fn record_denied(&self, record: &ConnectionDenied<'_>) {
        self.push(|line| record.write_json(line));
    }

    /// Writes down what a rule of the web application firewall found. Never waits.
    pub fn record_waf(&self, record: &WafMatch<'_>) {
        self.push(|line| record.write_json(line));
    }

    fn push(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(queue) = &self.queue else { return };
        let pushed = LINE.try_with(|line| {
            let line = &mut *line.borrow_mut();
            line.clear();
            line.shrink_to(LINE_KEEP_BYTES);
            write(line);
            line.push(b'\n');
            queue.push(line)
        });
        // `Err`: the thread is ending and its buffer gone.
        if pushed != Ok(true) {
            self.dropped.inc();
        }
    }

    /// Opens the file again, for one that was moved away by log rotation. Lines taken before may go to either file.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.reopen();
        }
    }

    /// Writes what is waiting and ends; later records are dropped. Waits no longer than `wait`, for a reader may be stuck;
    /// says whether everything was written or given up by then.
    pub fn close(&self, wait: Duration) -> bool {
        match &self.queue {
            Some(queue) => {
                queue.stop();
                queue.wait_ended(wait)
            }
            None => true,
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.close(DROP_WAIT);
    }
}

fn open(target: &AccessLogTarget) -> io::Result<File> {
    match target {
        // Past Rust's own buffer: the writer makes whole batches.
        AccessLogTarget::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        AccessLogTarget::File(path) => open_file(path),
        AccessLogTarget::Off => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true);
    if fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo()) {
        // Opened for writing only, a FIFO would block until someone reads it (Linux, fifo(7)).
        options.read(true);
    } else {
        options.create(true).mode(FILE_MODE);
    }
    options.open(path)
}

/// The writer thread's own.
struct Writer {
    target: AccessLogTarget,
    /// `None`: it could not be opened again; each batch tries.
    file: Option<File>,
    /// The last write stopped within a line.
    torn: bool,
    clock: Clock,
    complained_at: Option<Instant>,
    lines: IntCounter,
    dropped: IntCounter,
    errors: IntCounter,
}

impl Writer {
    fn run(mut self, queue: &LogQueue) {
        let mut buffer = Vec::new();
        loop {
            let batch = queue.next(&mut buffer);
            if batch.reopen && self.target != AccessLogTarget::Stdout {
                self.file = None;
            }
            self.write(&buffer, batch.lines);
            if batch.last {
                break;
            }
        }
        queue.set_ended();
    }

    fn write(&mut self, bytes: &[u8], lines: usize) {
        let mut written = 0;
        if let Err(e) = self.try_write(bytes, &mut written) {
            self.errors.inc();
            self.dropped.inc_by((lines - written) as u64);
            self.complain(&e);
        }
        self.lines.inc_by(written as u64);
    }

    fn try_write(&mut self, bytes: &[u8], lines_written: &mut usize) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = open(&self.target)?;
                self.torn = false;
                file
            }
        };
        let result = write_lines(&mut file, bytes, &mut self.torn, lines_written);
        self.file = Some(file);
        result
    }

    fn complain(&mut self, error: &io::Error) {
        let now = self.clock.now();
        if self.complained_at.is_none_or(|at| now.duration_since(at) >= COMPLAINT_EVERY) {
            self.complained_at = Some(now);
            log::error!("access log {}: {error}; {} lines lost since the start", self.target, self.dropped.get());
        }
    }
}

/// Writes whole lines; on an error says how many got out. A line that was cut by an error (a full disk) is closed before the
/// next one begins, so that no two run together.
fn write_lines(out: &mut impl Write, bytes: &[u8], torn: &mut bool, lines_written: &mut usize) -> io::Result<()> {
    if *torn && !bytes.is_empty() {
        out.write_all(b"\n")?;
        *torn = false;
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let count = match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        *lines_written += memchr::memchr_iter(b'\n', &rest[..count]).count();
        *torn = rest[count - 1] != b'\n';
        rest = &rest[count..];
    }
    Ok(())
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
