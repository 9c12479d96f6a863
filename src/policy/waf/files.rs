//! Which files an item of `waf.rules` means.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// An item of `waf.rules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it is named.
    pub path: PathBuf,
    /// One file, or those of a directory that end in `.conf`, by name.
    pub files: Vec<PathBuf>,
}

impl Entry {
    /// Looks what stands at `path`.
    ///
    /// # Errors
    /// The system's, or that a directory has no rules.
    pub fn of(path: &Path) -> Result<Self, String> {
        let cannot = |e: io::Error| format!("{}: {e}", path.display());
        if !fs::metadata(path).map_err(cannot)?.is_dir() {
            return Ok(Self { path: path.into(), files: vec![path.into()] });
        }
        let files = rule_files(path).map_err(cannot)?;
        if files.is_empty() {
            return Err(format!("{}: no file of this directory ends in .conf", path.display()));
        }
        Ok(Self { path: path.into(), files })
    }
}

/// The rule files of a directory, by name.
///
/// # Errors
/// The system's.
pub fn rule_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    with_ending(directory, "conf")
}

fn with_ending(directory: &Path, ending: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == ending) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files of words (`*.data`) beside rule files: rules read them by themselves (`@pmFromFile`).
pub fn data_beside<'f>(files: impl Iterator<Item = &'f PathBuf>) -> Vec<PathBuf> {
    let directories: BTreeSet<_> = files.filter_map(|file| file.parent()).collect();
    directories.into_iter().flat_map(|d| with_ending(d, "data").unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_its_rule_files_by_name() {
        let dir = std::env::temp_dir().join(format!("hive-gateway-waf-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(dir.join("sub.conf")).unwrap();
        assert!(Entry::of(&dir).unwrap_err().contains("ends in .conf"));
        for name in ["b.conf", "a.conf", "c.txt", "words.data"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let entry = Entry::of(&dir).unwrap();
        assert_eq!(entry.files, [dir.join("a.conf"), dir.join("b.conf")]);
        assert_eq!(data_beside(entry.files.iter()), [dir.join("words.data")]);
        assert_eq!(Entry::of(&dir.join("c.txt")).unwrap().files, [dir.join("c.txt")]);
        assert!(Entry::of(&dir.join("none")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
