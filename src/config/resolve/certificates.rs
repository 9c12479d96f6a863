//! Certificates, keys and bundles that the file names.

use std::fs;

use super::Resolver;
use crate::config::file::{ListenerTls, UpstreamTls};

/// The files of a listener; their names are absolute.
pub(super) fn listener(r: &mut Resolver<'_>, at: &str, tls: &ListenerTls) {
    for (i, files) in tls.certificates.iter().enumerate() {
        exists(r, &format!("{at}.certificates[{i}].cert"), &files.cert);
        exists(r, &format!("{at}.certificates[{i}].key"), &files.key);
    }
    exists(r, &format!("{at}.client_auth.ca"), &tls.client_auth.ca);
}

/// The files of an upstream; their names are absolute.
pub(super) fn upstream(r: &mut Resolver<'_>, at: &str, tls: &UpstreamTls) {
    exists(r, &format!("{at}.ca"), &tls.ca);
    for (key, name) in [("cert", &tls.cert), ("key", &tls.key)] {
        if let Some(name) = name {
            exists(r, &format!("{at}.{key}"), name);
        }
    }
}

fn exists(r: &mut Resolver<'_>, path: &str, name: &str) {
    if r.around.read_files
        && let Err(e) = fs::metadata(name)
    {
        r.error(path, format!("the file {name:?} can't be read: {e}"));
    }
}
