//! Why a reload was tried, and what came of it.

use std::time::SystemTime;

use crate::config::ConfigError;
use crate::snapshot::Snapshot;

/// Why a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// `POST /v1/reload`.
    Admin,
    /// A file that the configuration names has changed.
    Files,
    /// The configuration file has, and `server.watch_config` is on.
    ConfigFile,
    /// The SPIFFE agent has issued something new.
    Spiffe,
}

impl Trigger {
    /// For logs and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Signal => "signal",
            Trigger::Admin => "admin",
            Trigger::Files => "files",
            Trigger::ConfigFile => "config_file",
            Trigger::Spiffe => "spiffe",
        }
    }
}

/// What came of a reload.
#[derive(Debug, Clone)]
pub struct Report {
    /// Why it was tried.
    pub trigger: Trigger,
    /// When.
    pub time: SystemTime,
    /// The generation in use afterwards: a new one, or with errors the old one.
    pub generation: u64,
    /// [`hash`](crate::config::Config::hash) of what is in use afterwards.
    pub hash: String,
    /// What needs a restart, then what is allowed but probably not meant, [folded](crate::config::folded).
    pub warnings: Vec<String>,
    /// Why the old one is kept, folded too; empty: the new one is in use.
    pub errors: Vec<ConfigError>,
}

impl Report {
    /// Whether the new configuration is in use.
    pub fn ok(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Of a reload after which this snapshot is in use.
pub(super) fn report(
    snapshot: &Snapshot,
    trigger: Trigger,
    time: SystemTime,
    warnings: Vec<String>,
    errors: Vec<ConfigError>,
) -> Report {
    Report { trigger, time, generation: snapshot.generation, hash: snapshot.config.hash.clone(), warnings, errors }
}
