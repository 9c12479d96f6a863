//! Opening the files that an operator names: regular ones only, and never waiting for somebody at the other end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file to read it, symbolic links followed. A FIFO or a device could block whoever reads it for ever.
///
/// # Errors
/// The system's, or that it is something else than a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(io::Error::other(if kind.is_dir() { "is a directory" } else { "is not a regular file" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        assert_eq!(open_regular(Path::new("/")).unwrap_err().to_string(), "is a directory");
        assert_eq!(open_regular(Path::new("/dev/zero")).unwrap_err().to_string(), "is not a regular file");
        assert!(open_regular(Path::new("/no/such/file")).is_err());
        assert!(open_regular(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).is_ok());
    }
}
