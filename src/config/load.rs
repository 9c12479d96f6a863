//! From a file's name to a [`Config`].

use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use super::decode::decode;
use super::error::in_order;
use super::expand::expand;
use super::locate::Tree;
use super::place::Fault;
use super::resolve::resolve;
use super::{Config, ConfigError, Located};
use crate::clock::Clock;
use crate::files::open_regular;
use crate::secret::Secret;
use crate::tls::Issued;

/// Longest file: 100,000 peers take about 12 MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A configuration that can run.
#[derive(Debug)]
pub struct Loaded {
    /// What was read.
    pub config: Config,
    /// What is allowed but probably not meant, by place.
    pub warnings: Vec<ConfigError>,
    /// Places, for errors that are found later.
    pub located: Located,
    /// The file's text, for loading it again when only what it names has changed. It may hold secrets.
    pub text: Secret,
}

/// What a configuration takes from the world around it.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The environment, for `${NAME}`.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The addresses of a host name and port; never an empty list.
    pub addresses: &'a dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    /// Seconds since 1970-01-01 UTC: certificates must be good then.
    pub now_unix: i64,
    /// Whether the files that it names (certificates, secrets) are read. Without them it can be checked, not run.
    pub read_files: bool,
    /// What the SPIFFE agent has issued, if that is known: it is judged with the files.
    pub issued: Option<&'a Issued>,
}

impl<'a> Surroundings<'a> {
    /// The system's names and time.
    pub fn of_system(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            env,
            addresses: &system_addresses,
            now_unix: Clock::System.unix_seconds(),
            read_files: true,
            issued: None,
        }
    }
}

/// The addresses of a host name by the system's resolver.
///
/// # Errors
/// The system's, and that there is none.
pub fn system_addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = (host, port).to_socket_addrs()?.collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no address"));
    }
    Ok(found)
}

/// Loads a file, with the system's name resolution and time.
///
/// # Errors
/// Everything that is wrong with it, by place.
pub fn load(file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Vec<ConfigError>> {
    load_in(file, &Surroundings::of_system(env))
}

/// Loads a file.
///
/// # Errors
/// Everything that is wrong with it, by place.
pub fn load_in(file: &Path, around: &Surroundings<'_>) -> Result<Loaded, Vec<ConfigError>> {
    match read(file) {
        Ok(text) => load_text(file, &text, around),
        Err(message) => Err(vec![ConfigError { file: file.into(), place: None, path: String::new(), message }]),
    }
}

fn read(file: &Path) -> Result<String, String> {
    let cannot = |e: io::Error| format!("can't be read: {e}");
    let mut bytes = Vec::new();
    let opened = open_regular(file).map_err(cannot)?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("longer than {} MiB", FILE_BYTES_MAX >> 20));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        format!("not UTF-8 in line {}", 1 + good.iter().filter(|b| **b == b'\n').count())
    })
}

/// Loads the text of a file that is named `file`; relative names in it are relative to that file's directory.
///
/// # Errors
/// Everything that is wrong with it, by place.
pub fn load_text(file: &Path, text: &str, around: &Surroundings<'_>) -> Result<Loaded, Vec<ConfigError>> {
    // Some editors put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let alone = |f: Fault| ConfigError { file: file.into(), place: Some(f.place), path: f.path, message: f.message };
    let (mut tree, mut faults) = Tree::parse(text).map_err(|f| vec![alone(f)])?;
    let expanded = expand(&mut tree, around.env);
    faults.extend(expanded.faults);
    let decoded = decode(&mut tree, expanded.unknown);
    faults.extend(decoded.faults);
    let located = Located::new(file, tree, expanded.secrets);
    let mut errors: Vec<_> = faults.into_iter().map(|f| located.at(f.place, &f.path, f.message)).collect();

    let resolved = decoded.file.map(|raw| resolve(raw, &located, &decoded.guessed, &base_of(file), around));
    match resolved {
        Some(Ok((mut config, warnings))) if errors.is_empty() => {
            config.source = file.into();
            config.hash = hex(&openssl::sha::sha256(text.as_bytes()));
            Ok(Loaded { config, warnings: in_order(warnings), located, text: Secret::new(text.into()) })
        }
        resolved => {
            errors.extend(resolved.and_then(Result::err).unwrap_or_default());
            Err(in_order(errors))
        }
    }
}

/// The absolute directory that the file's relative names start from.
fn base_of(file: &Path) -> PathBuf {
    let base = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::path::absolute(base).unwrap_or_else(|_| base.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
