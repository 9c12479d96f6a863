//! What was fetched, kept on disk (`server.state_dir`), so that a restart while the CA's server is away lets clients in as
//! before. Nothing there is believed: what is read back is verified as if it had been fetched just now.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use openssl::sha::sha256;

use crate::files::{open_regular, replace};

/// What nobody has used for so long is removed at the start.
const UNUSED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Every file's name begins with it: others in the directory are left alone.
const PREFIX: &str = "fetched-";

/// A directory of fetched lists and answers, each under the hash of what it is known by.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// In a directory that is there.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    fn path(&self, key: &[u8]) -> PathBuf {
        let hex: String = sha256(key).iter().map(|b| format!("{b:02x}")).collect();
        self.0.join(format!("{PREFIX}{hex}"))
    }

    /// What was kept under a key, if it is not longer than this.
    pub fn read(&self, key: &[u8], bytes_max: u64) -> Option<Vec<u8>> {
        let file = open_regular(&self.path(key)).ok()?;
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes).ok()?;
        self.touch(key);
        (bytes.len() as u64 <= bytes_max).then_some(bytes)
    }

    /// Keeps bytes under a key, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, key: &[u8], bytes: &[u8]) -> io::Result<()> {
        replace(&self.path(key), bytes)
    }

    /// Whether something of this length is kept under a key.
    pub fn holds(&self, key: &[u8], length: usize) -> bool {
        fs::metadata(self.path(key)).is_ok_and(|meta| meta.len() == length as u64)
    }

    /// What is kept under a key is still in use.
    pub fn touch(&self, key: &[u8]) {
        // A file that is not there, or not ours, needs no new date.
        let _ = open_regular(&self.path(key)).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Removes what has not been used for a month: lists of places that nobody names any more.
    pub fn clean(&self, now: SystemTime) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
            let modified = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(now);
            if ours && now.duration_since(modified).is_ok_and(|unused| unused > UNUSED_MAX) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::fixture_tests::Dir;

    #[test]
    fn what_was_kept_comes_back_whole_and_old_things_go() {
        let dir = Dir::new();
        let store = StateDir::new(dir.path());
        assert_eq!(store.read(b"http://a/", 10), None);
        store.write(b"http://a/", b"first").unwrap();
        store.write(b"http://a/", b"second").unwrap();
        assert_eq!(store.read(b"http://a/", 10).unwrap(), b"second");
        assert_eq!(store.read(b"http://a/", 5), None, "too long");
        assert_eq!(store.read(b"http://b/", 10), None);
        let mode = fs::metadata(store.path(b"http://a/")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let later = SystemTime::now() + UNUSED_MAX + Duration::from_secs(60);
        store.clean(SystemTime::now());
        assert!(store.read(b"http://a/", 10).is_some());
        store.clean(later);
        assert!(store.read(b"http://a/", 10).is_none());
        assert!(dir.path().join("ca.pem").exists(), "what is not ours stays");
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(store.write(b"http://a/", b"x").is_err());
    }
}
