//! Names become things, and what can't work is found: all of it, not only the first.

mod certificates;
mod defense;
mod discovery;
mod endpoint;
mod federation;
mod json_rpc;
mod listeners;
mod maintenance;
mod observe;
mod overload;
mod patterns;
mod peers;
mod process;
mod ranges;
mod rate_limits;
mod redis;
mod resilience;
mod routes;
mod secrets;
mod spiffe;
mod upstreams;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::file::File;
use super::place::Steps;
use super::{Config, ConfigError, Located, Surroundings};
use crate::tls::ServerContext;

/// Resolves the file. `guessed` are the places where something harmless stands in for what could not be decoded;
/// about them nothing more is said.
///
/// # Errors
/// Everything that can't work. The [`Config`]'s `source` and `hash` are left for the caller.
pub(super) fn resolve(
    file: File,
    located: &Located,
    guessed: &[Steps],
    base: &Path,
    around: &Surroundings<'_>,
) -> Result<(Config, Vec<ConfigError>), Vec<ConfigError>> {
    let guessed = guessed.iter().map(Steps::to_string).collect();
    let mut r = Resolver {
        located,
        guessed,
        base,
        around,
        errors: Vec::new(),
        warnings: Vec::new(),
        materials: BTreeSet::new(),
        contexts: Vec::new(),
    };
    process::addresses(&mut r, &file);
    let peers = peers::resolve(&mut r, file.peers);
    let hive = process::hive(&mut r, file.hive, &peers);
    let upstreams = upstreams::resolve(&mut r, file.upstreams);
    let listeners = listeners::resolve(&mut r, file.listeners);
    let spiffe = spiffe::resolve(&mut r, file.spiffe, &listeners, &upstreams);
    let routes = routes::resolve(&mut r, file.routes, &listeners, &peers, &upstreams, &hive.federation);
    resilience::check_hash_keys(&mut r, &upstreams, &routes);
    rate_limits::check(&mut r, &listeners, &routes, &hive.federation);
    let redis = redis::resolve(&mut r, file.redis);
    let maintenance = maintenance::resolve(&mut r, file.maintenance, redis.is_some());
    redis::check_shared(&mut r, redis.is_some(), &listeners, &routes, maintenance.fleet);
    let overload = overload::overload(&mut r, file.overload);
    let admin = process::admin(&mut r, file.admin);
    let access_log = observe::access_log(&mut r, file.access_log);
    let metrics = observe::metrics(&mut r, &file.metrics);
    let tracing = observe::tracing(&mut r, file.tracing);
    let server = process::server(&mut r, &file.server, &routes);
    listeners::check_peers_can_be_known(&mut r, &listeners, &routes);
    certificates::check_hosts(&mut r, &routes, &listeners);
    if !r.errors.is_empty() || !r.guessed.is_empty() {
        return Err(r.errors);
    }
    let config = Config {
        source: PathBuf::new(),
        hash: String::new(),
        materials: r.materials.into_iter().collect(),
        hive,
        listeners,
        peers,
        routes,
        upstreams,
        spiffe,
        redis,
        maintenance,
        overload,
        admin,
        access_log,
        metrics,
        tracing,
        identity_headers: file.identity_headers,
        server,
    };
    Ok((config, r.warnings))
}

/// What every part of resolving needs.
struct Resolver<'a> {
    located: &'a Located,
    guessed: Vec<String>,
    base: &'a Path,
    around: &'a Surroundings<'a>,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
    /// See [`Config::materials`].
    materials: BTreeSet<PathBuf>,
    /// Of the listeners whose files are good.
    contexts: Vec<ServerContext>,
}

impl Resolver<'_> {
    /// Notes what is wrong with the value at `path`, unless it is a guess.
    fn error(&mut self, path: &str, message: impl Into<String>) {
        if !self.is_guessed(path) {
            self.errors.push(self.located.error(path, message));
        }
    }

    /// Notes what is probably not meant. Where guesses stand, nobody knows what is meant.
    fn warn(&mut self, path: &str, message: impl Into<String>) {
        if self.guessed.is_empty() {
            self.warnings.push(self.located.error(path, message));
        }
    }

    /// Whether the value at `path`, or one around it, is a guess.
    fn is_guessed(&self, path: &str) -> bool {
        self.guessed.iter().any(|g| is_within(path, g))
    }

    /// Whether there is a guess at `path` or anywhere inside of it.
    fn has_guess(&self, path: &str) -> bool {
        self.guessed.iter().any(|g| is_within(path, g) || is_within(g, path))
    }

    /// Whether some guess looks like `pattern`, a path with `[]` for any index.
    fn has_guess_like(&self, pattern: &str) -> bool {
        self.guessed.iter().any(|g| is_within(pattern, &Steps::parse(g).pattern()))
    }

    /// A file name of the configuration, from the configuration's directory on.
    fn absolute(&self, name: &str) -> String {
        self.base.join(name).to_string_lossy().into_owned()
    }

    /// As [`Self::absolute`], of a file whose content is a part of the configuration: it will be watched.
    fn material(&mut self, name: &str) -> String {
        let absolute = self.absolute(name);
        self.materials.insert(absolute.clone().into());
        absolute
    }

    /// Names that are given twice.
    fn unique<'n>(&mut self, list: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = HashMap::new();
        for (i, name) in names.enumerate() {
            let path = format!("{list}[{i}].name");
            if self.is_guessed(&path) {
                continue;
            }
            if let Some(first) = seen.get(name) {
                let place = self.located.place(&format!("{list}[{first}].name"));
                self.error(
                    &path,
                    format!("the name {name:?} is already taken by {list}[{first}] in line {}", place.line),
                );
            } else {
                seen.insert(name, i);
            }
        }
    }

    /// Values of one list that are given twice.
    fn once(&mut self, list: &str, values: &[String]) {
        let mut seen = HashMap::new();
        for (i, value) in values.iter().enumerate() {
            if seen.insert(value, i).is_some() {
                self.error(&format!("{list}[{i}]"), format!("{value:?} is already in this list"));
            }
        }
    }
}

fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_within_its_blocks_only() {
        assert!(is_within("a.b[1].c", "a.b"));
        assert!(is_within("a.b", "a.b"));
        assert!(!is_within("a.bc", "a.b"));
        assert!(!is_within("a", "a.b"));
    }
}
