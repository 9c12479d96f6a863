//! An error in the configuration, and the place it is about.

use std::cmp::Ordering;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::locate::Tree;
use super::place::Place;

/// One thing that is wrong with the configuration.
///
/// Shown as `conf/gateway.yaml:14:17: routes[1].upstream: no upstream named "hvie"; …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Line and column; none if the file could not be read at all.
    pub place: Option<Place>,
    /// The key, such as `routes[1].upstream`; empty if it is about the whole file.
    pub path: String,
    /// What is wrong and what to write. Holds no secret.
    pub message: String,
}

impl ConfigError {
    /// An error about a whole file, or about what the configuration asks of the machine.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.into(), place: None, path: String::new(), message: message.into() }
    }

    /// By line, column, key and text.
    pub fn order(&self, other: &Self) -> Ordering {
        let key = |e: &Self| (e.place.map(|p| (p.line, p.column)), e.path.clone(), e.message.clone());
        key(self).cmp(&key(other))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Turns a key and a message into a [`ConfigError`] with its place, also after the file has been loaded.
#[derive(Clone)]
pub struct Located {
    file: PathBuf,
    tree: Arc<Tree>,
    secrets: Arc<[(String, String)]>,
}

impl Located {
    pub(super) fn new(file: &Path, tree: Tree, mut secrets: Vec<(String, String)>) -> Self {
        // The longest first, so that a secret that contains another one is hidden whole.
        secrets.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { file: file.into(), tree: Arc::new(tree), secrets: secrets.into() }
    }

    /// An error about the value at `path`, such as `listeners[0].tls.certificates[0].key`. A path that isn't in the
    /// file, because a default stands there, has the place of the nearest block around it.
    pub fn error(&self, path: &str, message: impl Into<String>) -> ConfigError {
        self.at(self.tree.place(path), path, message)
    }

    /// An error about the key itself, not its value.
    pub fn key_error(&self, path: &str, message: impl Into<String>) -> ConfigError {
        self.at(self.tree.key_place(path), path, message)
    }

    /// Where the value at `path` stands, or the nearest block around it.
    pub fn place(&self, path: &str) -> Place {
        self.tree.place(path)
    }

    /// Whether a value is written at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.tree.has(path)
    }

    pub(super) fn at(&self, place: Place, path: &str, message: impl Into<String>) -> ConfigError {
        let mut message = message.into();
        for (secret, stands_for) in &*self.secrets {
            if message.contains(secret.as_str()) {
                message = message.replace(secret.as_str(), stands_for);
            }
        }
        ConfigError { file: self.file.clone(), place: Some(place), path: path.into(), message }
    }
}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the tree nor the list of secrets: both hold secrets.
        f.debug_struct("Located").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Sorts by place, and drops what is said twice.
pub(super) fn in_order(mut errors: Vec<ConfigError>) -> Vec<ConfigError> {
    errors.sort_by(ConfigError::order);
    errors.dedup();
    errors
}
