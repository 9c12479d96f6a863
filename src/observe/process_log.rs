//! The process' own log, on standard error: what it says can be changed while it runs.
//!
//! Serving threads write it, too, so it must not make them wait: as with the access log, a thread of its own writes what has
//! gone into a bounded queue, and what finds no room there is counted (`hive_gateway_process_log_dropped_total`) and told of
//! later.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use env_filter::Filter;
use log::{LevelFilter, Log, Metadata, Record};
use prometheus::IntCounter;

use super::access_log::write_lines;
use super::definitions::PROCESS_LOG_DROPPED;
use super::log_queue::LogQueue;
use super::register::{opts, sound};

/// Longest filter.
const LENGTH_MAX: usize = 1024;
/// Bytes that may wait for the writer: of usual lines a few thousand.
const WAITING_BYTES_MAX: usize = 256 << 10;
/// Lines that may.
const WAITING_LINES_MAX: usize = 4096;
/// How long the last words of a thread that panics may take.
const PANIC_WAIT: Duration = Duration::from_millis(500);
/// The crate's own name: the targets of its lines begin with it.
const OWN: &str = "hive_gateway";
/// The most that the libraries say while an operator's filter is in use: beyond it are headers, with their tokens.
const OTHERS_MOST: LevelFilter = LevelFilter::Info;

struct ProcessLog {
    /// Makes lines of records.
    writer: env_logger::Logger,
    queue: Arc<LogQueue>,
    filter: ArcSwap<InUse>,
    /// What other filters are added to.
    default: &'static str,
}

struct InUse {
    text: String,
    filter: Filter,
    /// Beyond what the filter says: the most of what is not the gateway's own.
    others: LevelFilter,
}

impl InUse {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        (metadata.level() <= self.others || is_own(metadata.target())) && self.filter.enabled(metadata)
    }
}

static LOG: OnceLock<ProcessLog> = OnceLock::new();

static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| sound(IntCounter::with_opts(opts(&PROCESS_LOG_DROPPED))));

/// Lines lost so far. A metric of the process, as the log is.
pub(super) fn dropped() -> &'static IntCounter {
    &DROPPED
}

impl Log for ProcessLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let in_use = self.filter.load();
        if in_use.enabled(record.metadata()) && in_use.filter.matches(record) {
            self.writer.log(record);
        }
    }

    /// Nobody waits here: see [`flush`].
    fn flush(&self) {}
}

/// What `env_logger` writes to, a whole line each time.
struct Waiting(Arc<LogQueue>);

impl io::Write for Waiting {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.0.push(line) {
            DROPPED.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writer thread.
fn write_out(queue: &LogQueue, mut out: File) {
    let (mut buffer, mut torn, mut told) = (Vec::new(), false, 0);
    loop {
        let batch = queue.next(&mut buffer);
        let mut written = 0;
        if write_lines(&mut out, &buffer, &mut torn, &mut written).is_err() {
            // A full disk, or a pipe without a reader. There is nowhere to say so but in the metric.
            DROPPED.inc_by(batch.lines.saturating_sub(written).max(1) as u64);
            continue;
        }
        let lost = DROPPED.get();
        if lost > told {
            log::warn!("lines of this log could not be written; {lost} are lost since the start");
            // If there is no room for that either, it is told after the next batch.
            if DROPPED.get() == lost {
                told = lost;
            }
        }
    }
}

fn parse(text: &str) -> Result<Filter, String> {
    if text.len() > LENGTH_MAX {
        return Err(format!("a filter of more than {LENGTH_MAX} bytes"));
    }
    let mut builder = env_filter::Builder::new();
    builder.try_parse(text).map_err(|e| e.to_string())?;
    Ok(builder.build())
}

/// Begins to log, with this filter, and `RUST_LOG` on top of it: what the filter silences stays silent, and the libraries stay
/// at `info`, unless `RUST_LOG` names them. To be called once; later calls change nothing.
///
/// # Errors
/// There is no thread to be had.
pub fn init(default: &'static str) -> io::Result<()> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let (in_use, revealing) = at_start(default, &wanted);
    let queue = Arc::new(LogQueue::new(WAITING_BYTES_MAX, WAITING_LINES_MAX, Duration::ZERO));
    // Past Rust's own lock: whoever says something there when the process ends must not wait for a writer that is stuck.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let for_writer = queue.clone();
    thread::Builder::new().name("log".into()).spawn(move || write_out(&for_writer, out))?;
    let mut writer = env_logger::Builder::new();
    writer.filter_level(LevelFilter::Trace).target(env_logger::Target::Pipe(Box::new(Waiting(queue.clone()))));
    if let Ok(style) = std::env::var("RUST_LOG_STYLE") {
        writer.parse_write_style(&style);
    }
    let most = in_use.filter.filter();
    let log = LOG.get_or_init(|| ProcessLog {
        writer: writer.build(),
        queue,
        filter: ArcSwap::from_pointee(in_use),
        default,
    });
    if log::set_logger(log).is_ok() {
        log::set_max_level(most);
        if let Some(word) = revealing {
            log::warn!(
                "RUST_LOG says {word:?}: requests are logged with their queries and tokens; never where they are real"
            );
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let backtrace = Backtrace::capture();
        let shown = backtrace.status() == BacktraceStatus::Captured;
        let backtrace = if shown { format!("\n{backtrace}") } else { String::new() };
        say(&format!("thread '{}' {info}{backtrace}", thread.name().unwrap_or("?")));
        flush(PANIC_WAIT);
    }));
    Ok(())
}

/// What `RUST_LOG` makes of the default, and its word for which requests are logged with their tokens, if there is one.
fn at_start<'w>(default: &str, wanted: &'w str) -> (InUse, Option<&'w str>) {
    let text = if wanted.trim().is_empty() { default.to_owned() } else { format!("{default},{wanted}") };
    match parse(&text) {
        Ok(filter) => {
            let word = words(wanted).find(|word| is_revealing(word));
            // Whoever starts the process may see what its libraries say.
            let others = if word.is_some() { LevelFilter::Trace } else { OTHERS_MOST };
            (InUse { text, filter, others }, word)
        }
        Err(why) => {
            eprintln!("RUST_LOG: {why}; {default:?} is used");
            let filter = env_filter::Builder::new().parse(default).build();
            (InUse { text: default.to_owned(), filter, others: OTHERS_MOST }, None)
        }
    }
}

/// What a filter says, without the text to be looked for.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let (directives, _) = text.split_once('/').unwrap_or((text, ""));
    directives.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// The module and the level of a word; none for a level alone.
fn parts(word: &str) -> Option<(&str, &str)> {
    match word.split_once('=') {
        Some((module, level)) => Some((module.trim(), level.trim())),
        None if word.parse::<LevelFilter>().is_ok() => None,
        None => Some((word, "trace")),
    }
}

/// The most that a module says without tokens. Pingora names whole requests even in its errors, with their queries.
fn most_of(module: &str) -> LevelFilter {
    match module {
        own if is_own(own) => LevelFilter::Trace,
        pingora if pingora.starts_with("pingora") => LevelFilter::Off,
        _ => OTHERS_MOST,
    }
}

/// Whether a word has a library say what has tokens in it.
fn is_revealing(word: &str) -> bool {
    parts(word).is_some_and(|(module, level)| level.parse::<LevelFilter>().is_ok_and(|level| level > most_of(module)))
}

/// Writes words as they are, without time and level; like a line, they may be lost if nobody reads.
pub fn say(words: &str) {
    match LOG.get() {
        Some(log) if log.queue.push(format!("{words}\n").as_bytes()) => {}
        Some(_) => DROPPED.inc(),
        None => eprintln!("{words}"),
    }
}

/// Waits until all is written, not longer than `wait`; says whether it is.
pub fn flush(wait: Duration) -> bool {
    LOG.get().is_none_or(|log| log.queue.wait_written(wait))
}

fn is_own(target: &str) -> bool {
    target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A word alone is a level or a module's path to `env_logger`; here one that is neither is a level that was misspelt.
fn check_words(text: &str) -> Result<(), String> {
    if text.contains(char::is_control) {
        return Err("a filter is one line".to_owned());
    }
    for word in words(text) {
        let Some((module, _)) = parts(word) else { continue };
        if !word.contains(['=', ':']) && word != OWN {
            return Err(format!("{word:?} is no level; write off, error, warn, info, debug or trace, or module=level"));
        }
        if is_revealing(word) {
            let most = most_of(module);
            return Err(format!(
                "{word:?} is refused, for the tokens of clients would be logged: {module:?} is not one of the gateway's own \
                 modules (hive_gateway::…), and goes up to {most} here; RUST_LOG at the start may say more"
            ));
        }
    }
    Ok(())
}

/// Takes another filter into use, in the form of `RUST_LOG`, on top of the default one: what that silences stays silent.
/// Beyond `info` only the gateway's own modules speak, whatever it says: libraries would log headers and their tokens.
///
/// # Errors
/// It can't be read, or asks for what would show tokens.
pub fn set(text: &str) -> Result<(), String> {
    let Some(log) = LOG.get() else { return Err("nothing is logged".to_owned()) };
    check_words(text)?;
    let text = format!("{},{text}", log.default);
    let filter = parse(&text)?;
    let most = filter.filter();
    log.filter.store(InUse { text, filter, others: OTHERS_MOST }.into());
    log::set_max_level(most);
    log::warn!("the log's filter is now {}", current());
    Ok(())
}

/// The filter in use.
pub fn current() -> String {
    LOG.get().map_or_else(String::new, |log| log.filter.load().text.clone())
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    #[test]
    fn a_later_level_leaves_what_is_silenced_by_name() {
        let filter = parse("info,other_crate=off,debug").unwrap();
        let enabled = |target, level| filter.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(enabled("hive_gateway::upstream", Level::Debug) && !enabled("hive_gateway::upstream", Level::Trace));
        assert!(!enabled("other_crate::apps", Level::Error));
        for good in ["debug", "hive_gateway::upstream=trace,warn", "hive_gateway::redis", "WARN", "info/needle"] {
            assert!(check_words(good).is_ok(), "{good}");
        }
        assert!(check_words("a::b=info\nforged").is_err());
    }

    #[test]
    fn an_operator_s_filter_brings_out_no_library_s_details() {
        for bad in [
            "pingora_core=trace,pingora_proxy=trace",
            "info, pingora_proxy = warn",
            "pingora_proxy::proxy_h1",
            "h2=debug",
            "h=trace",
            "=trace",
            "hive_gateway_of_others=debug",
        ] {
            assert!(check_words(bad).is_err(), "{bad}");
        }
        assert!(check_words("pingora_core=off,h2=warn,hive_gateway=trace,hive_gateway::proxy").is_ok());
        let in_use = InUse { text: String::new(), filter: parse("trace").unwrap(), others: OTHERS_MOST };
        let enabled = |target, level| in_use.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(enabled("hive_gateway::proxy", Level::Trace) && enabled("hive_gateway", Level::Trace));
        assert!(enabled("h2::codec", Level::Info) && !enabled("h2::codec", Level::Debug));
        assert!(!enabled("hive_gateway_of_others", Level::Debug));
    }

    #[test]
    fn at_the_start_libraries_are_silent_too_unless_they_are_named() {
        const DEFAULT: &str = "info,pingora_proxy=off";
        let says = |wanted: &str, target: &str, level| {
            at_start(DEFAULT, wanted).0.enabled(&Metadata::builder().target(target).level(level).build())
        };
        for wanted in ["", "debug", "trace,h2=info", "hive_gateway=trace"] {
            assert!(says(wanted, "hive_gateway", Level::Info) && says(wanted, "h2", Level::Info), "{wanted}");
            assert!(!says(wanted, "h2", Level::Debug) && !says(wanted, "pingora_proxy", Level::Error), "{wanted}");
            assert_eq!(at_start(DEFAULT, wanted).1, None, "{wanted}");
        }
        assert!(says("debug", "hive_gateway::proxy", Level::Debug));
        for (wanted, word) in
            [("warn, h2=debug", "h2=debug"), ("pingora_proxy=error", "pingora_proxy=error"), ("h2", "h2")]
        {
            assert_eq!(at_start(DEFAULT, wanted).1, Some(word));
        }
        assert!(says("pingora_proxy=error", "pingora_proxy", Level::Error) && says("h2=trace", "h2", Level::Trace));
        assert!(says("hive_gateway=loud", "hive_gateway", Level::Info), "what can't be read changes nothing");
    }

    #[test]
    fn what_can_t_be_read_is_no_filter() {
        assert!(check_words("loud").is_err() && check_words("info,debgu").is_err());
        assert!(parse("hive_gateway=loud").is_err() && parse(&"x".repeat(2000)).is_err());
    }
}
