//! A log file that is moved away when it has grown: `access.log` becomes `access.log.1`, that `access.log.2`, and so on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// When a file is moved away, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes that a file may have; one line may go beyond.
    pub bytes: u64,
    /// Files that are kept beside the present one, at least 1.
    pub keep: u32,
}

impl Rotation {
    /// How much of `bytes` (whole lines) may be written to a file of `size` bytes; 0: it must be moved away first.
    pub(super) fn room(&self, size: u64, bytes: &[u8]) -> usize {
        let room = usize::try_from(self.bytes.saturating_sub(size)).unwrap_or(usize::MAX);
        if bytes.len() <= room {
            return bytes.len();
        }
        match memchr::memrchr(b'\n', &bytes[..room]) {
            Some(end) => end + 1,
            // A line that is longer than a whole file.
            None if size == 0 => memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1),
            None => 0,
        }
    }

    /// Moves the files on by one; the oldest goes.
    pub(super) fn shift(&self, path: &Path) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            // There may not be so many yet.
            rename_if_there(&numbered(path, number), &numbered(path, number + 1))?;
        }
        // Somebody else may have moved it away meanwhile.
        rename_if_there(path, &numbered(path, 1))
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_whole_lines_and_at_least_one() {
        let rotation = Rotation { bytes: 10, keep: 1 };
        for (size, lines, room) in [
            (0, "one\ntwo\n", 8),
            (4, "one\ntwo\n", 4),
            (8, "one\n", 0),
            (0, "a line beyond all bounds\nb\n", 25),
            (1, "a line beyond all bounds\nb\n", 0),
            (20, "x\n", 0),
        ] {
            assert_eq!(rotation.room(size, lines.as_bytes()), room, "{lines:?} to {size}");
        }
    }
}
