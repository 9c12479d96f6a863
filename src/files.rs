//! Opening the files that an operator names: regular ones only, and never waiting for somebody at the other end; and
//! writing the gateway's own.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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

/// Puts these bytes in the place of a file that only the owner may read: the old ones or the new ones are there, never a
/// part, also after a crash.
///
/// # Errors
/// The system's.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // It may be there from a process that was stopped in the midst of it.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().inspect_err(|_| _ = fs::remove_file(&new))
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
