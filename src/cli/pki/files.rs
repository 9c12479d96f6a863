//! A development PKI as files in one directory.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use openssl::pkey::PKey;
use openssl::x509::X509;

use super::crl::CrlSpec;
use super::issue::{Authority, Issued, Validity};

/// File names that belong to the CA itself; no certificate can be called so.
const RESERVED_NAMES: [&str; 3] = ["ca", "intermediate", "bundle"];

/// Why the PKI's files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file is in the way.
    #[error("{0} exists; --force replaces it")]
    Exists(PathBuf),
    /// The file system's error.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// A file of the CA is not what it should be.
    #[error("{0} can't be read: {1}")]
    Unreadable(PathBuf, #[source] openssl::error::ErrorStack),
    /// OpenSSL failed to make something.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] openssl::error::ErrorStack),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Wrong(String),
}

/// A root and the intermediate that issues everything.
#[derive(Clone)]
pub struct Development {
    /// The root.
    pub root: Authority,
    /// The intermediate.
    pub intermediate: Authority,
}

impl Development {
    /// Makes both, `name` in their subjects.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn new(name: &str, validity: Validity) -> Result<Self, PkiError> {
        let root = Authority::root(&format!("{name} root CA"), validity)?;
        let intermediate = root.intermediate(&format!("{name} intermediate CA"), validity)?;
        Ok(Self { root, intermediate })
    }

    /// Root and intermediate in one PEM file: for `client_auth.ca` where clients don't send the intermediate.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn bundle_pem(&self) -> Result<Vec<u8>, PkiError> {
        let mut pem = self.root.cert_pem()?;
        pem.extend(self.intermediate.cert_pem()?);
        Ok(pem)
    }

    /// Writes `ca.pem`, `intermediate.pem`, `bundle.pem` and the keys `ca.key` and `intermediate.key` (mode 0600) into
    /// `dir`, which is made (mode 0700) if it is missing. Returns the files.
    ///
    /// # Errors
    /// [`PkiError::Exists`] unless `force`; nothing is written then.
    pub fn save(&self, dir: &Path, force: bool) -> Result<Vec<PathBuf>, PkiError> {
        make_dir(dir)?;
        write_all(
            &[
                (dir.join("ca.pem"), self.root.cert_pem()?, Mode::Public),
                (dir.join("ca.key"), self.root.key_pem()?, Mode::Secret),
                (dir.join("intermediate.pem"), self.intermediate.cert_pem()?, Mode::Public),
                (dir.join("intermediate.key"), self.intermediate.key_pem()?, Mode::Secret),
                (dir.join("bundle.pem"), self.bundle_pem()?, Mode::Public),
            ],
            force,
        )
    }

    /// Writes `intermediate.crl` into `dir`, in the place of one that is there. Returns the file.
    ///
    /// # Errors
    /// OpenSSL's, and the file system's.
    pub fn save_crl(&self, dir: &Path, list: &CrlSpec) -> Result<Vec<PathBuf>, PkiError> {
        write_all(&[(dir.join("intermediate.crl"), list.issue_pem(&self.intermediate)?, Mode::Public)], true)
    }

    /// Reads what [`Development::save`] wrote.
    ///
    /// # Errors
    /// Names the file that is missing or can't be read.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let root = load_authority(dir, "ca")?;
        let mut intermediate = load_authority(dir, "intermediate")?;
        intermediate.chain = vec![intermediate.cert.clone()];
        Ok(Self { root, intermediate })
    }
}

/// Writes `NAME.pem` (the chain) and `NAME.key` (mode 0600) into `dir`. Returns the two files.
///
/// # Errors
/// [`PkiError::Exists`] unless `force`, [`PkiError::Wrong`] for a name that is no file name or one of the CA's own.
pub fn write_issued(dir: &Path, name: &str, issued: &Issued, force: bool) -> Result<Vec<PathBuf>, PkiError> {
    check_name(name)?;
    make_dir(dir)?;
    write_all(
        &[
            (dir.join(format!("{name}.pem")), issued.chain_pem.clone(), Mode::Public),
            (dir.join(format!("{name}.key")), issued.key_pem.clone(), Mode::Secret),
        ],
        force,
    )
}

fn check_name(name: &str) -> Result<(), PkiError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(good) {
        return Err(PkiError::Wrong(format!("{name:?} is no file name; use letters, digits, '-', '_' and '.'")));
    }
    // On a file system that ignores case, CA.key is ca.key.
    if RESERVED_NAMES.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(PkiError::Wrong(format!("{name:?} names a file of the CA itself")));
    }
    Ok(())
}

fn load_authority(dir: &Path, name: &str) -> Result<Authority, PkiError> {
    let read = |path: &Path| fs::read(path).map_err(|e| PkiError::Io(path.to_owned(), e));
    let (cert_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let cert = X509::from_pem(&read(&cert_path)?).map_err(|e| PkiError::Unreadable(cert_path, e))?;
    let key = PKey::private_key_from_pem_callback(&read(&key_path)?, |_| Ok(0))
        .map_err(|e| PkiError::Unreadable(key_path.clone(), e))?;
    if !cert.public_key()?.public_eq(&key) {
        return Err(PkiError::Wrong(format!("{} is not the key of {name}.pem", key_path.display())));
    }
    Ok(Authority { cert, key, chain: Vec::new() })
}

/// Who may read a file.
#[derive(Clone, Copy)]
enum Mode {
    Public = 0o644,
    Secret = 0o600,
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|e| PkiError::Io(dir.to_owned(), e))
}

/// Writes all files or, if one is in the way, none.
fn write_all(files: &[(PathBuf, Vec<u8>, Mode)], force: bool) -> Result<Vec<PathBuf>, PkiError> {
    if let Some((path, ..)) = files.iter().find(|(path, ..)| !force && fs::symlink_metadata(path).is_ok()) {
        return Err(PkiError::Exists(path.clone()));
    }
    for (path, bytes, mode) in files {
        write(path, bytes, *mode, force).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => PkiError::Exists(path.clone()),
            _ => PkiError::Io(path.clone(), e),
        })?;
    }
    Ok(files.iter().map(|(path, ..)| path.clone()).collect())
}

/// The mode is set as the file is made: a key is never readable, not even for a moment. A file that is replaced is
/// replaced as a whole, because writing into it would keep its mode.
fn write(path: &Path, bytes: &[u8], mode: Mode, force: bool) -> io::Result<()> {
    if !force {
        return write_new(path, bytes, mode);
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = write_new(&beside, bytes, mode).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_new(path: &Path, bytes: &[u8], mode: Mode) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode as u32);
    #[cfg(not(unix))]
    let _ = mode;
    options.open(path)?.write_all(bytes)
}
