//! Secrets, written in the file or read from one of their own.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Resolver;
use crate::config::file::SecretText;
use crate::files::open_regular;
use crate::secret::Secret;

/// A secret is a line; a longer file is another file.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// The secret `{block}.{key}`, or the one in the file `{block}.{key}_file`; `least` characters at least.
pub(super) fn secret(
    r: &mut Resolver<'_>,
    block: &str,
    key: &str,
    inline: Option<SecretText>,
    file: Option<String>,
    least: usize,
) -> Option<Secret> {
    let (inline_path, file_path) = (format!("{block}.{key}"), format!("{block}.{key}_file"));
    let (path, text) = match (inline, file) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            r.error(&file_path, format!("{key} is given too; write one of the two"));
            return None;
        }
        (Some(SecretText(text)), None) => (inline_path, text),
        (None, Some(_)) if !r.around.read_files => return Some(Secret::new("*".repeat(least))),
        (None, Some(name)) => {
            let name = r.material(&name);
            match read(&name) {
                Ok((text, mode)) => {
                    if mode & 0o007 != 0 {
                        let why = format!("{name} can be read by every user (mode {:04o}); use 0600", mode & 0o7777);
                        r.warn(&file_path, why);
                    }
                    (file_path, text)
                }
                Err(why) => {
                    r.error(&file_path, format!("the file {name:?} {why}"));
                    return None;
                }
            }
        }
    };
    if let Some(why) = fault(&text, least) {
        r.error(&path, why);
    }
    Some(Secret::new(text))
}

/// The secret, and the file's mode.
fn read(name: &str) -> Result<(String, u32), String> {
    let mut bytes = Vec::new();
    let opened = open_regular(Path::new(name)).map_err(|e| format!("can't be read: {e}"))?;
    let mode = opened.metadata().map_or(0, |meta| meta.mode());
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("can't be read: {e}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("is too long for a secret".into());
    }
    // An editor and `echo` end the line; that end is no part of the secret.
    let text = String::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
    let text = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t)).unwrap_or(&text);
    Ok((text.to_owned(), mode))
}

/// What is wrong with a secret; never the secret itself.
fn fault(text: &str, least: usize) -> Option<String> {
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("holds a space, a control character or a letter that a header can't carry".into());
    }
    let length = text.len();
    (length < least).then(|| format!("{length} characters are too few for a secret; write at least {least}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_fits_a_header() {
        assert_eq!(fault("0123456789abcdef", 16), None);
        assert!(fault("0123456789abcde", 16).unwrap().contains("15 characters"));
        assert!(fault("0123456789abcdef\nx", 16).is_some());
        assert!(!fault("geheim geheim", 16).unwrap().contains("geheim"));
    }
}
