//! A new configuration while requests run: load, build, swap, or keep the old one and say why.
//!
//! ```text
//! SIGHUP, POST /v1/reload ─ the configuration file and all that it names ─┐
//! watch ─ certificates, keys, CA bundles, secrets (settle, judge) ────────┴ load ─ hold_back ─ build ─ swap
//! ```
//!
//! What rotates (the files that the configuration names) is taken into use by itself, with the text of the configuration
//! that is in use and the addresses that its names had: a rotation neither takes an operator's half-done work into use nor
//! depends on a name server. The configuration file waits to be asked for, unless `server.watch_config` says otherwise.

mod expiry;
mod lists;
mod material;
mod report;
mod restart;
mod settle;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, Loaded, Surroundings};
use crate::observe::{AccessLog, Metrics};
use crate::secret::Secret;
use crate::snapshot::{Ground, Snapshot};
use crate::tls::Issued;

use expiry::{CHECK_EVERY_SECONDS, ExpiryWarnings};
use material::{Contents, Reader};
use report::report;
use restart::FirstHeaders;
use settle::{Look, SETTLE, Settle};

pub use expiry::overdue;
pub use report::{Report, Trigger};

/// With `server.watch: 0s` the configuration is asked so often whether that has changed.
const UNWATCHED: Duration = Duration::from_secs(1);
/// Files that change while they are read are read again, this often.
const ATTEMPTS_MAX: u32 = 3;

/// The running gateway, as a reload changes it.
pub trait Running: Send + Sync {
    /// What is in use.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Takes a snapshot into use, and another access log if its target changed. What is probably not meant in what runs then.
    fn swap(&self, snapshot: Arc<Snapshot>, log: Option<Arc<AccessLog>>) -> Vec<String>;

    /// Opens the access log's file again: it may have been moved away.
    fn reopen_log(&self);
}

/// Opens the access log of a configuration.
///
/// # Errors
/// See [`AccessLog::open`].
pub fn open_log(config: &Config, clock: &Clock, metrics: &Metrics) -> io::Result<Arc<AccessLog>> {
    AccessLog::open(&config.access_log, clock.clone(), metrics)
}

/// A configuration's text, the addresses that it named, and what stood in its files.
pub struct Origin {
    file: PathBuf,
    clock: Clock,
    metrics: Arc<Metrics>,
    text: Secret,
    addresses: Addresses,
    reader: Reader,
    settle: Settle,
}

type Addresses = HashMap<(String, u16), Vec<SocketAddr>>;

impl Origin {
    /// Loads the configuration with which the process begins.
    ///
    /// # Errors
    /// Everything that is wrong with it, by place.
    pub fn load(file: &Path, clock: &Clock, metrics: &Arc<Metrics>) -> Result<(Self, Loaded), Vec<ConfigError>> {
        let mut addresses = Addresses::new();
        let loaded = load(file, None, &mut addresses, clock, None)?;
        let mut reader = Reader::default();
        // Before the snapshot is built, which reads them: what changes from now on is seen as a change.
        let contents = reader.contents(watched(&loaded.config).iter(), clock.wall());
        let origin = Self {
            file: file.into(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            text: loaded.text.clone(),
            addresses,
            reader,
            settle: Settle::new(contents),
        };
        Ok((origin, loaded))
    }
}

/// Loads the file, or `text` in its place. With a text, known addresses are not asked for again.
fn load(
    file: &Path,
    text: Option<&str>,
    addresses: &mut Addresses,
    clock: &Clock,
    issued: Option<&Issued>,
) -> Result<Loaded, Vec<ConfigError>> {
    let asked = RefCell::new(Addresses::new());
    let resolve = |host: &str, port: u16| {
        let key = (host.to_owned(), port);
        let found = match addresses.get(&key).filter(|_| text.is_some()) {
            Some(known) => known.clone(),
            None => config::system_addresses(host, port)?,
        };
        asked.borrow_mut().insert(key, found.clone());
        Ok(found)
    };
    let env = |name: &str| std::env::var(name).ok();
    let now_unix = clock.unix_seconds();
    let around = Surroundings { addresses: &resolve, now_unix, issued, ..Surroundings::of_system(&env) };
    let loaded = match text {
        Some(text) => config::load_text(file, text, &around),
        None => config::load_in(file, &around),
    }?;
    *addresses = asked.into_inner();
    Ok(loaded)
}

/// The files whose change matters.
fn watched(config: &Config) -> Vec<PathBuf> {
    let own = config.server.watch_config.then(|| config.source.clone());
    config.materials.iter().cloned().chain(own).collect()
}

/// Reloads, one at a time.
pub struct Reloader {
    running: Arc<dyn Running>,
    first_headers: FirstHeaders,
    state: Mutex<State>,
    last: Mutex<Option<Report>>,
    needs_restart: Mutex<Vec<String>>,
}

struct State {
    origin: Origin,
    expiry: ExpiryWarnings,
    expiry_checked: Option<i64>,
}

/// A configuration that was tried.
struct Attempt {
    /// What stood in the files before they were read.
    before: Contents,
    /// They changed meanwhile: what was read may be half of one and half of the other.
    torn: bool,
    result: Result<Built, Vec<ConfigError>>,
}

/// A configuration that can be taken into use.
struct Built {
    snapshot: Snapshot,
    log: Option<Arc<AccessLog>>,
    text: Secret,
    addresses: Addresses,
    contents: Contents,
    warnings: Vec<ConfigError>,
    needs_restart: Vec<String>,
}

impl Reloader {
    /// For the gateway that began with `origin`. Shows the first snapshot in the metrics.
    pub fn new(origin: Origin, running: Arc<dyn Running>) -> Arc<Self> {
        let snapshot = running.snapshot();
        snapshot.publish(&origin.metrics);
        let listeners = &snapshot.config.listeners;
        let state = State { origin, expiry: ExpiryWarnings::default(), expiry_checked: None };
        let reloader = Self {
            first_headers: listeners.iter().map(|l| (l.name.clone(), l.limits.request_header)).collect(),
            running,
            state: Mutex::new(state),
            last: Mutex::new(None),
            needs_restart: Mutex::default(),
        };
        reloader.state.lock().warn_of_expiry(&snapshot);
        Arc::new(reloader)
    }

    /// What came of the last reload.
    pub fn last(&self) -> Option<Report> {
        self.last.lock().clone()
    }

    /// What the configuration in use asks for in vain until a restart.
    pub fn needs_restart(&self) -> Vec<String> {
        self.needs_restart.lock().clone()
    }

    /// Reads the configuration and all that it names again. Blocks: for files, for names, for the building.
    pub fn reload(&self, trigger: Trigger) -> Report {
        let mut state = self.state.lock();
        let mut attempt = self.attempt(&mut state.origin, trigger);
        for _ in 1..ATTEMPTS_MAX {
            if !attempt.torn {
                break;
            }
            attempt = self.attempt(&mut state.origin, trigger);
        }
        let changed = attempt.before.differs_from(state.origin.settle.running());
        self.running.reopen_log();
        let report = match attempt.result {
            Ok(built) => self.take(&mut state, built, trigger),
            Err(errors) => {
                let waits = self.take_lists(&state.origin, &attempt.before);
                let now = state.origin.clock.now();
                lists::withdraw(&self.running.snapshot(), state.origin.clock.unix_seconds());
                state.origin.settle.refused(attempt.before, now);
                self.refuse(&state, errors, waits, trigger)
            }
        };
        let metrics = &state.origin.metrics;
        metrics.config_reloaded(report.ok());
        if changed {
            metrics.tls_reloaded(report.ok());
        }
        report
    }

    /// Takes what the SPIFFE agent has issued into use, with the configuration that is. `None`: it has said the same again.
    /// Blocks for the building.
    pub fn renew(&self, issued: Result<Issued, String>) -> Option<Report> {
        let mut state = self.state.lock();
        let running = self.running.snapshot();
        let built = issued.and_then(|issued| {
            if running.issued.as_ref().is_some_and(|before| before.is_same_as(&issued)) {
                return Ok(None);
            }
            let Origin { metrics, clock, .. } = &state.origin;
            let (issued, now_unix) = (Arc::new(issued), clock.unix_seconds());
            let ground = Ground { metrics, previous: Some(&running), issued: Some(&issued), now_unix };
            Snapshot::build(running.config.clone(), running.generation + 1, ground).map(Some)
        });
        let report = match built {
            Ok(None) => return None,
            Ok(Some(snapshot)) => {
                let doubts = snapshot.doubts_of_issued();
                self.swap(&mut state, snapshot, None, doubts, Trigger::Spiffe)
            }
            Err(why) => {
                let error = ConfigError { path: "spiffe".into(), ..ConfigError::of_file(&state.origin.file, why) };
                self.refuse(&state, vec![error], None, Trigger::Spiffe)
            }
        };
        state.origin.metrics.tls_reloaded(report.ok());
        Some(report)
    }

    /// Looks whether files have changed, and takes them into use if so. Returns when to look again. Blocks as
    /// [`Self::reload`] does.
    pub fn look(&self) -> Duration {
        let mut state = self.state.lock();
        let snapshot = self.running.snapshot();
        state.warn_of_expiry(&snapshot);
        let server = &snapshot.config.server;
        if server.watch.is_zero() {
            return UNWATCHED;
        }
        let origin = &mut state.origin;
        let contents = origin.reader.contents(watched(&snapshot.config).iter(), origin.clock.wall());
        let trigger = match contents.differs_in(&snapshot.config.source, origin.settle.running()) {
            true => Trigger::ConfigFile,
            false => Trigger::Files,
        };
        match origin.settle.look(contents, origin.clock.now()) {
            Look::Nothing => {}
            Look::Judge => self.judge(&mut state, trigger),
            Look::Restored => self.restored(&mut state, trigger),
        }
        match state.origin.settle.is_waiting() {
            true => server.watch.min(SETTLE),
            false => server.watch,
        }
    }

    /// Tries what has come to rest in the files.
    fn judge(&self, state: &mut State, trigger: Trigger) {
        let attempt = self.attempt(&mut state.origin, trigger);
        let metrics = state.origin.metrics.clone();
        let count = |ok| match trigger {
            Trigger::ConfigFile => metrics.config_reloaded(ok),
            Trigger::Files | Trigger::Signal | Trigger::Admin | Trigger::Spiffe => metrics.tls_reloaded(ok),
        };
        match attempt.result {
            // The next look sees what they have changed to.
            Ok(_) if attempt.torn && !state.origin.settle.never_rests(state.origin.clock.now()) => {}
            Ok(built) => {
                if attempt.torn {
                    log::warn!("files change more often than they can be read: what was read is taken into use");
                }
                self.take(state, built, trigger);
                count(true);
            }
            Err(errors) => {
                let waits = self.take_lists(&state.origin, &attempt.before);
                let now = state.origin.clock.now();
                if state.origin.settle.failed(now) {
                    // Not before: a bundle that is half written lacks CAs, too.
                    lists::withdraw(&self.running.snapshot(), state.origin.clock.unix_seconds());
                    self.refuse(state, errors, waits, trigger);
                    count(false);
                } else {
                    let why = errors.first().map(ToString::to_string).unwrap_or_default();
                    log::debug!("changed files are not taken into use yet: {why}");
                }
            }
        }
    }

    /// Loads and builds, and changes nothing.
    fn attempt(&self, origin: &mut Origin, trigger: Trigger) -> Attempt {
        let snapshot = self.running.snapshot();
        let before = origin.reader.contents(watched(&snapshot.config).iter(), origin.clock.wall());
        let mut addresses = origin.addresses.clone();
        let text = (trigger == Trigger::Files).then_some(origin.text.expose());
        let mut result = load(&origin.file, text, &mut addresses, &origin.clock, snapshot.issued.as_deref())
            .and_then(|loaded| self.build(loaded, addresses, &snapshot, origin));
        let files = match &result {
            Ok(built) => watched(&built.snapshot.config),
            Err(_) => watched(&snapshot.config),
        };
        let after = origin.reader.contents(files.iter(), origin.clock.wall());
        if let Ok(built) = &mut result {
            // Of a file that was read before `before` knew it nothing better is known than what it holds now.
            built.contents = before.of(&files, &after);
        }
        Attempt { torn: before.differs_from(&after), before, result }
    }

    fn build(
        &self,
        loaded: Loaded,
        addresses: Addresses,
        running: &Snapshot,
        origin: &Origin,
    ) -> Result<Built, Vec<ConfigError>> {
        let Loaded { mut config, warnings, located, text } = loaded;
        let needs_restart = restart::hold_back(&mut config, &running.config, &self.first_headers);
        let log = match config.access_log == running.config.access_log {
            true => None,
            false => Some(
                open_log(&config, &origin.clock, &origin.metrics)
                    .map_err(|e| vec![located.error("access_log", e.to_string())])?,
            ),
        };
        let (generation, now) = (running.generation + 1, origin.clock.unix_seconds());
        let issued = running.issued.as_ref();
        let ground = Ground { metrics: &origin.metrics, previous: Some(running), issued, now_unix: now };
        let snapshot = Snapshot::build(Arc::new(config), generation, ground)
            .map_err(|why| vec![ConfigError::of_file(&origin.file, why)])?;
        Ok(Built { snapshot, log, text, addresses, contents: Contents::default(), warnings, needs_restart })
    }

    fn take(&self, state: &mut State, built: Built, trigger: Trigger) -> Report {
        let origin = &mut state.origin;
        origin.text = built.text;
        origin.addresses = built.addresses;
        origin.settle.taken(built.contents);
        let warnings = built.needs_restart.iter().cloned();
        let (new, old) = (&built.snapshot.config, &self.running.snapshot().config);
        let warnings = warnings.chain(lists::shrunk(new, old)).chain(lists::lost_rules(new, old));
        let warnings = warnings.chain(config::folded(&built.warnings).iter().map(ToString::to_string)).collect();
        *self.needs_restart.lock() = built.needs_restart;
        self.swap(state, built.snapshot, built.log, warnings, trigger)
    }

    fn swap(
        &self,
        state: &mut State,
        snapshot: Snapshot,
        log: Option<Arc<AccessLog>>,
        mut warnings: Vec<String>,
        trigger: Trigger,
    ) -> Report {
        let snapshot = Arc::new(snapshot);
        warnings.extend(self.running.swap(snapshot.clone(), log));
        snapshot.publish(&state.origin.metrics);
        log::info!("reloaded ({}): generation {} is in use", trigger.as_str(), snapshot.generation);
        for warning in &warnings {
            log::warn!("{warning}");
        }
        let time = state.origin.clock.wall();
        state.warn_again_of_expiry(&snapshot);
        self.keep(report(&snapshot, trigger, time, warnings, Vec::new()))
    }

    /// What can be taken into use although a reload failed. Returns what is to be said of the rest.
    fn take_lists(&self, origin: &Origin, contents: &Contents) -> Option<String> {
        let snapshot = self.running.snapshot();
        lists::renew(&snapshot, origin.clock.unix_seconds(), &origin.metrics);
        lists::waiting(&snapshot.config, contents.differing(origin.settle.running()))
    }

    fn refuse(&self, state: &State, errors: Vec<ConfigError>, waits: Option<String>, trigger: Trigger) -> Report {
        let snapshot = self.running.snapshot();
        let (why, generation) = (trigger.as_str(), snapshot.generation);
        log::error!("reload failed ({why}): generation {generation} stays in use; {} errors:", errors.len());
        let errors = config::folded(&errors);
        for error in &errors {
            log::error!("{error}");
        }
        if let Some(waits) = &waits {
            log::error!("{waits}");
        }
        self.keep(report(&snapshot, trigger, state.origin.clock.wall(), waits.into_iter().collect(), errors))
    }

    /// The files that failed stand again as they are in use: the failure is over, and nothing has changed.
    fn restored(&self, state: &mut State, trigger: Trigger) {
        let snapshot = self.running.snapshot();
        lists::withdraw(&snapshot, state.origin.clock.unix_seconds());
        // Who asked may have been refused for the configuration file too, which nobody watches.
        if let Some(asked @ (Trigger::Signal | Trigger::Admin)) = self.last().map(|report| report.trigger) {
            let again = self.attempt(&mut state.origin, asked).result;
            if !again.is_ok_and(|built| built.snapshot.config.hash == snapshot.config.hash) {
                return;
            }
        }
        log::info!("the files are again those of generation {}, which is in use", snapshot.generation);
        let time = state.origin.clock.wall();
        self.keep(report(&snapshot, trigger, time, self.needs_restart(), Vec::new()));
    }

    fn keep(&self, report: Report) -> Report {
        *self.last.lock() = Some(report.clone());
        report
    }
}

impl State {
    /// Once a minute.
    fn warn_of_expiry(&mut self, snapshot: &Snapshot) {
        let now = self.origin.clock.unix_seconds();
        if self.expiry_checked.is_none_or(|at| now >= at + CHECK_EVERY_SECONDS) {
            self.warn_again_of_expiry(snapshot);
        }
    }

    fn warn_again_of_expiry(&mut self, snapshot: &Snapshot) {
        let now = self.origin.clock.unix_seconds();
        self.expiry_checked = Some(now);
        for warning in self.expiry.due(expiry::endings(snapshot), now) {
            log::warn!("{warning}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_asks_no_name_server() {
        let text = "\
listeners: [{ name: l, address: \"127.0.0.1:1\", protocol: http }]
routes: [{ name: r, paths: [/a], methods: [GET], peers: any, upstream: u }]
upstreams: [{ name: u, endpoints: [\"http://hive.invalid:3000\"] }]
";
        let address: SocketAddr = "10.0.0.1:3000".parse().unwrap();
        let mut addresses = Addresses::from([(("hive.invalid".to_owned(), 3000), vec![address])]);
        let file = Path::new("gateway.yaml");
        let loaded = load(file, Some(text), &mut addresses, &Clock::System, None).unwrap();
        assert_eq!(loaded.config.upstreams[0].endpoints[0].address, address);
        assert_eq!(addresses.len(), 1);
        // Nothing is known of this name, and nobody knows it.
        let errors = load(file, Some(text), &mut Addresses::new(), &Clock::System, None).unwrap_err();
        assert!(errors[0].message.contains("has no address"), "{errors:?}");
    }
}
