//! Names become things, and what can't work is found: all of it, not only the first.

use std::path::{Path, PathBuf};

use super::file::File;
use super::locate::Steps;
use super::{Admin, Config, ConfigError, Hive, Located, Server, Surroundings};

/// Resolves the file. `guessed` are the places where something harmless stands in for what could not be decoded;
/// about them nothing more is said.
///
/// # Errors
/// Everything that can't work.
pub(super) fn resolve(
    file: File,
    located: &Located,
    guessed: &[Steps],
    base: &Path,
    around: &Surroundings<'_>,
) -> Result<(Config, Vec<ConfigError>), Vec<ConfigError>> {
    let _ = (file, located, guessed, base, around);
    Err(Vec::new())
}
