//! Whether files have changed: by content, so that a rename, a symbolic link that leads elsewhere (as Kubernetes does it)
//! and a write in place all count, and a mere touch does not.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use openssl::sha::Sha256;

use crate::files::open_regular;
use crate::policy::waf::rule_files;

/// Times of files are only as fine as the kernel's clock tick, on some file systems as a second: a file that was changed
/// so short a time before it was read may change again without its times showing it.
const TIMES_ARE_COARSE_NS: i128 = 2_000_000_000;

type Digest = [u8; 32];

/// What stood in files at some time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<PathBuf, Option<Digest>>);

impl Contents {
    /// The part about these files; what it does not know of them is taken from `other`.
    pub fn of(&self, files: &[PathBuf], other: &Contents) -> Self {
        let known = |file: &PathBuf| self.0.get(file).or_else(|| other.0.get(file)).copied().flatten();
        Self(files.iter().map(|file| (file.clone(), known(file))).collect())
    }

    /// Whether a file that both know stands different in them.
    pub fn differs_from(&self, other: &Contents) -> bool {
        self.differing(other).next().is_some()
    }

    /// The files that stand different in them, of those that both know.
    pub fn differing<'c>(&'c self, other: &'c Contents) -> impl Iterator<Item = &'c Path> {
        let known = self.0.iter().filter_map(|(file, ours)| Some((file.as_path(), ours, other.0.get(file)?)));
        known.filter(|(_, ours, theirs)| ours != theirs).map(|(file, ..)| file)
    }

    /// Whether this file stands different in them.
    pub fn differs_in(&self, file: &Path, other: &Contents) -> bool {
        self.0.get(file) != other.0.get(file)
    }
}

/// Reads contents, and reads a file again only if its times, size or place say that it may have changed.
#[derive(Debug, Default)]
pub struct Reader(HashMap<PathBuf, Seen>);

#[derive(Debug)]
struct Seen {
    stat: Stat,
    /// The times are old enough to show a later change.
    settled: bool,
    digest: Option<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stat {
    fn of(meta: &Metadata) -> Self {
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Reader {
    /// What stands in these files. One that can't be read is as good as any other that can't.
    pub fn contents<'f>(&mut self, files: impl Iterator<Item = &'f PathBuf>, now: SystemTime) -> Contents {
        let files: BTreeMap<_, _> = files.map(|file| (file.clone(), self.digest(file, now))).collect();
        self.0.retain(|file, _| files.contains_key(file));
        Contents(files)
    }

    fn digest(&mut self, file: &Path, now: SystemTime) -> Option<Digest> {
        // Follows symbolic links.
        let meta = fs::metadata(file).ok();
        if meta.as_ref().is_some_and(Metadata::is_dir) {
            self.0.remove(file);
            return listed(file).ok();
        }
        // Reading from a FIFO or a terminal would wait, and take away what others are to read.
        let meta = meta.filter(Metadata::is_file);
        let Some(stat) = meta.as_ref().map(Stat::of) else {
            self.0.remove(file);
            return None;
        };
        if let Some(seen) = self.0.get(file).filter(|seen| seen.settled && seen.stat == stat) {
            return seen.digest;
        }
        let digest = read(file).ok();
        let now_ns = now.duration_since(UNIX_EPOCH).map_or(0, |d| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX));
        let settled = stat.changed_ns.max(stat.modified_ns) + TIMES_ARE_COARSE_NS < now_ns;
        self.0.insert(file.to_owned(), Seen { stat, settled, digest });
        digest
    }
}

/// Which rule files a directory has: no other directory is named.
fn listed(directory: &Path) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    for file in rule_files(directory)? {
        // No path has a NUL in it.
        hash.update(file.as_os_str().as_bytes());
        hash.update(&[0]);
    }
    Ok(hash.finish())
}

fn read(file: &Path) -> io::Result<Digest> {
    let mut file = open_regular(file)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finish()),
            n => hash.update(&chunk[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("hive-gateway-material-{}", uuid::Uuid::now_v7()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn every_way_to_change_a_file_is_seen_and_a_touch_is_none() {
        let dir = Dir::new();
        let file = dir.file("a.pem", "one");
        let mut reader = Reader::default();
        let mut now = || reader.contents([&file].into_iter(), SystemTime::now());
        let one = now();
        // In place, of the same length and within one tick of the file system's clock.
        fs::write(&file, "two").unwrap();
        let two = now();
        assert_ne!(one, two);
        fs::rename(dir.file("new", "one"), &file).unwrap();
        assert_eq!(now(), one);
        fs::remove_file(&file).unwrap();
        let gone = now();
        assert!(gone != one && gone != two);
        dir.file("v1/a.pem", "one");
        dir.file("v2/a.pem", "two");
        symlink("v1", dir.0.join("..data")).unwrap();
        symlink("..data/a.pem", &file).unwrap();
        assert_eq!(now(), one);
        symlink("v2", dir.0.join("..new")).unwrap();
        fs::rename(dir.0.join("..new"), dir.0.join("..data")).unwrap();
        assert_eq!(now(), two);
        std::fs::File::open(dir.0.join("v2/a.pem")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(now(), two);
    }

    #[test]
    fn a_directory_changes_when_a_rule_file_comes_or_goes() {
        let dir = Dir::new();
        let file = dir.file("a.conf", "one");
        let mut reader = Reader::default();
        let mut now = || reader.contents([&dir.0].into_iter(), SystemTime::now());
        let one = now();
        dir.file(".a.conf.swp", "x");
        dir.file("words.data", "x");
        dir.file("a.conf", "two");
        assert_eq!(now(), one, "no rule file more or less");
        dir.file("b.conf", "x");
        let two = now();
        assert_ne!(two, one);
        fs::remove_file(&file).unwrap();
        let other = now();
        assert!(other != one && other != two);
        dir.file("a.conf", "one");
        assert_eq!(now(), two);
    }

    #[test]
    fn a_settled_file_is_not_read_again() {
        let dir = Dir::new();
        let file = dir.file("a.pem", "one");
        let mut reader = Reader::default();
        let later = SystemTime::now() + Duration::from_secs(10);
        reader.contents([&file].into_iter(), later);
        let other = [7; 32];
        reader.0.get_mut(&file).unwrap().digest = Some(other);
        assert_eq!(reader.contents([&file].into_iter(), later).0[&file], Some(other));
        assert!(reader.contents([].into_iter(), later).0.is_empty() && reader.0.is_empty());
    }
}
