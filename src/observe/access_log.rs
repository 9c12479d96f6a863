//! The access log: one line per request and per failed handshake, written by a thread of its own.
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use super::log_format::{Extras, LogFormat};
use super::log_queue::LogQueue;
use super::metrics::Metrics;
use super::record::{AccessRecord, HandshakeRecord, HandshakesOmitted};
use super::record_defense::{ConnectionDenied, WafMatch};
use super::rotate::Rotation;
use crate::clock::Clock;
use crate::units::Percent;

/// Mode of a log file that is made: it names clients, so others don't read it.
const FILE_MODE: u32 = 0o640;
/// Errors of the file are logged this far apart.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);
/// How long dropping an [`AccessLog`] waits for its last lines.
const DROP_WAIT: Duration = Duration::from_secs(1);
/// A thread's line buffer gives memory beyond this back.
const LINE_KEEP_BYTES: usize = 16 << 10;

/// Begins a line that goes to the process' log. No other line holds such a byte.
const EVENT: u8 = 0;

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

/// What is logged, how, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Where lines go.
    pub target: AccessLogTarget,
    /// How a request's line looks. Those of failed handshakes are JSON; in the other formats the process' own log has them.
    pub format: LogFormat,
    /// What an operator adds and hides.
    pub extras: Extras,
    /// Share of good requests that get a line; the others always do.
    pub sample: Percent,
    /// When a file is moved away by the gateway itself.
    pub rotation: Option<Rotation>,
}

impl From<AccessLogTarget> for LogSettings {
    fn from(target: AccessLogTarget) -> Self {
        let (format, extras) = (LogFormat::default(), Extras::default());
        Self { target, format, extras, sample: Percent(1000), rotation: None }
    }
}

/// Takes records from all threads.
pub struct AccessLog {
    /// `None`: switched off.
    queue: Option<Arc<LogQueue>>,
    format: LogFormat,
    extras: Extras,
    sample: Sample,
    dropped: IntCounter,
}

/// Picks a share of what it is asked about, evenly: a sequence of golden steps falls into every part of the circle as often
/// as that part is long, whatever the rhythm of the requests.
struct Sample {
    /// Of 2³² steps.
    taken: u64,
    asked: AtomicU64,
}

impl Sample {
    fn new(share: Percent) -> Self {
        Self { taken: (u64::from(share.0) << 32) / 1000, asked: AtomicU64::new(0) }
    }

    fn takes(&self) -> bool {
        if self.taken == 1 << 32 {
            return true;
        }
        self.asked.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 < self.taken
    }
}

impl AccessLog {
    /// Opens the target and starts the writer.
    ///
    /// # Errors
    /// The file can't be opened (the error names it), or no thread can be started.
    pub fn open(settings: &LogSettings, clock: Clock, metrics: &Metrics) -> io::Result<Arc<Self>> {
        let LogSettings { target, format, extras, sample, rotation } = settings;
        let mut log = Self {
            queue: None,
            format: format.clone(),
            extras: extras.clone(),
            sample: Sample::new(*sample),
            dropped: metrics.access_log_dropped.clone(),
        };
        if *target == AccessLogTarget::Off {
            return Ok(Arc::new(log));
        }
        let file = open(target).map_err(|e| io::Error::new(e.kind(), format!("access log {target}: {e}")))?;
        let writer = Writer {
            target: target.clone(),
            rotation: rotation.filter(|_| file.is_regular),
            file: Some(file),
            must_reopen: false,
            reopen_fails: false,
            torn: false,
            clock,
            complained_at: None,
            lines: metrics.access_log_lines.clone(),
            dropped: log.dropped.clone(),
            errors: metrics.access_log_write_errors.clone(),
            rotation_fails: false,
            rotate_errors: metrics.access_log_rotate_errors.clone(),
        };
        let queue = Arc::new(LogQueue::default());
        let for_writer = queue.clone();
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&for_writer))?;
        log.queue = Some(queue);
        Ok(Arc::new(log))
    }

    /// Whether records go anywhere: if not, none need be put together.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Writes a request down, some time later, unless it is a good one that is not sampled. Never waits.
    pub fn record(&self, record: &AccessRecord<'_>) {
        if !record.went_well() || self.sample.takes() {
            self.push(|line| self.format.write(record, &self.extras, line));
        }
    }

    /// Writes a failed handshake down, some time later. Never waits.
    pub fn record_handshake(&self, record: &HandshakeRecord<'_>) {
        self.push_event(|line| record.write_json(&self.extras, line));
    }

    /// Says how many failed handshakes were not written down. Never waits.
    pub fn record_handshakes_omitted(&self, record: &HandshakesOmitted<'_>) {
        self.push_event(|line| record.write_json(line));
    }

    /// What is no request has no place in the lines of the other formats: the writer tells the process' log of it, so that
    /// nobody waits for that either.
    fn push_event(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let apart = self.format != LogFormat::Json;
        self.push(|line| {
            line.extend(apart.then_some(EVENT));
            write(line);
        });
    }

    /// Writes a connection down that was turned away by its address. Never waits.
    pub fn record_denied(&self, record: &ConnectionDenied<'_>) {
        self.push_event(|line| record.write_json(&self.extras, line));
    }

    /// Writes down what a rule of the web application firewall found. Never waits.
    pub fn record_waf(&self, record: &WafMatch<'_>) {
        self.push_event(|line| record.write_json(&self.extras, line));
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

/// What is written to, and how much of it there is.
struct Output {
    file: File,
    is_regular: bool,
    /// Bytes, as far as this process knows.
    size: u64,
}

fn open(target: &AccessLogTarget) -> io::Result<Output> {
    let file = match target {
        // Past Rust's own buffer: the writer makes whole batches.
        AccessLogTarget::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        AccessLogTarget::File(path) => open_file(path)?,
        AccessLogTarget::Off => return Err(io::ErrorKind::Unsupported.into()),
    };
    let metadata = file.metadata()?;
    Ok(Output { file, is_regular: metadata.is_file(), size: metadata.len() })
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
    file: Option<Output>,
    rotation: Option<Rotation>,
    /// The file of that name is to be opened anew.
    must_reopen: bool,
    /// That failed last, which has been told.
    reopen_fails: bool,
    /// The last write stopped within a line.
    torn: bool,
    clock: Clock,
    complained_at: Option<Instant>,
    lines: IntCounter,
    dropped: IntCounter,
    errors: IntCounter,
    /// The last rotation failed, which has been told.
    rotation_fails: bool,
    rotate_errors: IntCounter,
}

impl Writer {
    fn run(mut self, queue: &LogQueue) {
        let mut buffer = Vec::new();
        loop {
            let batch = queue.next(&mut buffer);
            self.must_reopen |= batch.reopen && self.target != AccessLogTarget::Stdout;
            if self.must_reopen && self.file.is_some() {
                self.reopen();
            }
            let events = tell_events(&mut buffer);
            self.write(&buffer, batch.lines - events);
            if batch.last {
                break;
            }
        }
        queue.set_ended();
    }

    /// Goes on with the file of that name. While it can't be opened, lines go where they went, and each batch tries again.
    fn reopen(&mut self) {
        match open(&self.target) {
            Ok(output) => {
                (self.file, self.torn, self.must_reopen) = (Some(output), false, false);
                if std::mem::take(&mut self.reopen_fails) {
                    log::warn!("access log {}: it is open again", self.target);
                }
            }
            Err(e) => {
                self.errors.inc();
                if !std::mem::replace(&mut self.reopen_fails, true) {
                    let meanwhile = "lines go on to the file that was open";
                    log::error!("access log {}: it can't be opened again: {e}; {meanwhile}", self.target);
                }
            }
        }
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

    fn try_write(&mut self, mut bytes: &[u8], lines_written: &mut usize) -> io::Result<()> {
        loop {
            let mut output = match self.file.take() {
                Some(output) => output,
                None => {
                    self.torn = false;
                    open(&self.target)?
                }
            };
            let now = match self.rotation {
                Some(rotation) => rotation.room(output.size, bytes),
                None => bytes.len(),
            };
            if now == 0 && !bytes.is_empty() {
                // The file stays closed: the next round opens a new one, or the old one again if it could not be moved.
                if !self.rotate() {
                    output.size = 0;
                    self.file = Some(output);
                }
                continue;
            }
            let (part, rest) = bytes.split_at(now);
            let result = write_lines(&mut output.file, part, &mut self.torn, lines_written);
            output.size += now as u64;
            self.file = Some(output);
            result?;
            bytes = rest;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// Moves the file away; says whether it could. If not, it grows by as much again before the next attempt.
    fn rotate(&mut self) -> bool {
        let (Some(rotation), AccessLogTarget::File(path)) = (self.rotation, &self.target) else { return false };
        match rotation.shift(path) {
            Ok(()) => {
                if std::mem::take(&mut self.rotation_fails) {
                    log::warn!("access log {}: it is rotated again", self.target);
                }
                true
            }
            Err(e) => {
                self.rotate_errors.inc();
                if !std::mem::replace(&mut self.rotation_fails, true) {
                    let grows = "it grows beyond rotate.size until that is mended";
                    log::error!("access log {}: it can't be rotated: {e}; {grows}", self.target);
                }
                false
            }
        }
    }

    fn complain(&mut self, error: &io::Error) {
        let now = self.clock.now();
        if self.complained_at.is_none_or(|at| now.duration_since(at) >= COMPLAINT_EVERY) {
            self.complained_at = Some(now);
            log::error!("access log {}: {error}; {} lines lost since the start", self.target, self.dropped.get());
        }
    }
}

/// Takes out the lines that belong into the process' log, and writes them there; says how many.
fn tell_events(buffer: &mut Vec<u8>) -> usize {
    if memchr::memchr(EVENT, buffer).is_none() {
        return 0;
    }
    let (mut rest, mut events) = (Vec::with_capacity(buffer.len()), 0);
    for line in buffer.split_inclusive(|b| *b == b'\n') {
        match line.strip_prefix(&[EVENT]) {
            Some(event) => {
                log::info!("{}", String::from_utf8_lossy(event).trim_end());
                events += 1;
            }
            None => rest.extend_from_slice(line),
        }
    }
    *buffer = rest;
    events
}

/// Writes whole lines; on an error says how many got out. A line that was cut by an error (a full disk) is closed before the
/// next one begins, so that no two run together.
pub(super) fn write_lines(
    out: &mut impl Write,
    bytes: &[u8],
    torn: &mut bool,
    lines_written: &mut usize,
) -> io::Result<()> {
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
