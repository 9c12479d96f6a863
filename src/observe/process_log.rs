//! The process' own log, on standard error: what it says can be changed while it runs.

use std::sync::OnceLock;

use arc_swap::ArcSwap;
use env_filter::Filter;
use log::{Log, Metadata, Record};

/// Longest filter.
const LENGTH_MAX: usize = 1024;

struct ProcessLog {
    writer: env_logger::Logger,
    filter: ArcSwap<(String, Filter)>,
    /// What other filters are added to.
    default: &'static str,
}

static LOG: OnceLock<ProcessLog> = OnceLock::new();

impl Log for ProcessLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.load().1.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.load().1.matches(record) {
            self.writer.log(record);
        }
    }

    fn flush(&self) {
        self.writer.flush();
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

/// Begins to log, with `RUST_LOG` or this filter. To be called once; later calls change nothing.
pub fn init(default: &'static str) {
    let text = std::env::var("RUST_LOG").unwrap_or_else(|_| default.to_owned());
    let (text, filter) = match parse(&text) {
        Ok(filter) => (text, filter),
        Err(why) => {
            eprintln!("RUST_LOG: {why}; {default:?} is used");
            (default.to_owned(), env_filter::Builder::new().parse(default).build())
        }
    };
    let mut writer = env_logger::Builder::new();
    writer.filter_level(log::LevelFilter::Trace);
    if let Ok(style) = std::env::var("RUST_LOG_STYLE") {
        writer.parse_write_style(&style);
    }
    let most = filter.filter();
    let log = LOG.get_or_init(|| ProcessLog {
        writer: writer.build(),
        filter: ArcSwap::from_pointee((text, filter)),
        default,
    });
    if log::set_logger(log).is_ok() {
        log::set_max_level(most);
    }
}

/// A word alone is a level or a module's path to `env_logger`; here one that is neither is a level that was misspelt.
fn check_words(text: &str) -> Result<(), String> {
    if text.contains(char::is_control) {
        return Err("a filter is one line".to_owned());
    }
    let (directives, _) = text.split_once('/').unwrap_or((text, ""));
    let alone = directives.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains('='));
    for word in alone {
        let is_path = word.contains("::") || word == "hive_gateway";
        if !is_path && word.parse::<log::LevelFilter>().is_err() {
            return Err(format!("{word:?} is no level; write off, error, warn, info, debug or trace, or module=level"));
        }
    }
    Ok(())
}

/// Takes another filter into use, in the form of `RUST_LOG`, on top of the default one: what that silences stays silent
/// unless it is named.
///
/// # Errors
/// It can't be read.
pub fn set(text: &str) -> Result<(), String> {
    let Some(log) = LOG.get() else { return Err("nothing is logged".to_owned()) };
    check_words(text)?;
    let text = format!("{},{text}", log.default);
    let filter = parse(&text)?;
    let most = filter.filter();
    log.filter.store((text, filter).into());
    log::set_max_level(most);
    log::warn!("the log's filter is now {}", current());
    Ok(())
}

/// The filter in use.
pub fn current() -> String {
    LOG.get().map_or_else(String::new, |log| log.filter.load().0.clone())
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
        assert!(check_words("loud").is_err() && check_words("info,debgu").is_err());
        assert!(parse("hive_gateway=loud").is_err() && parse(&"x".repeat(2000)).is_err());
    }
}
