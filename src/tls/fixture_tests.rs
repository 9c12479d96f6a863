//! A PKI and a directory with its files, for this module's tests.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::cli::pki::{CertificateSpec, Development, Issued, Validity};
use crate::clock::Clock;
use crate::config::file::{CertificateFiles, ClientAuth, ListenerTls, TlsVersion};

use super::{ServerContext, TlsFault, build_listener};

/// The CA that the gateway trusts.
pub(super) static PKI: LazyLock<Development> = LazyLock::new(|| Development::new("mesh", day()).unwrap());

pub(super) fn now() -> i64 {
    Clock::System.unix_seconds()
}

pub(super) fn day() -> Validity {
    Validity::hours_from(now(), 24)
}

/// A directory with files that goes away with the test.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hive-gateway-tls-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).unwrap();
        let dir = Self(path);
        dir.write("ca.pem", PKI.root.cert_pem().unwrap());
        dir.pair("gw", &CertificateSpec::server("gw", day()).dns("gw.example").issue(&PKI.intermediate).unwrap());
        dir
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), bytes).unwrap();
        #[cfg(unix)]
        if name.ends_with(".key") {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(self.0.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    pub(super) fn pair(&self, name: &str, issued: &Issued) {
        self.write(&format!("{name}.pem"), &issued.chain_pem);
        self.write(&format!("{name}.key"), &issued.key_pem);
    }

    pub(super) fn build(&self, tls: &ListenerTls) -> Result<ServerContext, Vec<TlsFault>> {
        build_listener(tls, &self.0, now(), None)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The `tls` block of a listener with these certificates.
pub(super) fn listener(names: &[&str]) -> ListenerTls {
    let files = |name: &&str| CertificateFiles { cert: format!("{name}.pem"), key: format!("{name}.key") };
    ListenerTls {
        certificates: names.iter().map(files).collect(),
        spiffe: None,
        min_version: TlsVersion::Tls12,
        ocsp_stapling: Default::default(),
        client_auth: ClientAuth::of("ca.pem"),
    }
}
