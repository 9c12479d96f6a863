//! A mesh's certificates and every kind of wrong one, by the library behind `hive-gateway pki`.

use std::path::{Path, PathBuf};

pub use hive_gateway::cli::pki::{CertificateSpec as Leaf, Issued as Identity, Usage, Validity};
use hive_gateway::cli::pki::{Development, write_issued};
use openssl::hash::MessageDigest;
use openssl::x509::X509Ref;

/// From and to, seconds from now.
pub fn from_now(not_before: i64, not_after: i64) -> Validity {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    Validity { not_before: now + not_before, not_after: now + not_after }
}

pub fn client_leaf(name: &str, uri: &str) -> Leaf {
    Leaf::client(name, from_now(-3600, 86_400)).uri(uri)
}

pub fn server_leaf(names: &[&str]) -> Leaf {
    names.iter().fold(Leaf::server(names[0], from_now(-3600, 86_400)), |leaf, name| leaf.dns(name))
}

/// A root, an intermediate below it, and leaves below that.
pub struct Pki(pub Development);

impl Pki {
    pub fn new(name: &str) -> Self {
        Self(Development::new(name, from_now(-86_400, 10 * 86_400)).unwrap())
    }

    /// A leaf below the intermediate, which comes along in its chain.
    pub fn leaf(&self, leaf: &Leaf) -> Identity {
        leaf.issue(&self.0.intermediate).unwrap()
    }

    pub fn client(&self, name: &str) -> Identity {
        self.leaf(&client_leaf(name, &format!("spiffe://mesh.test/hive/{name}")))
    }

    /// Writes the root alone; the gateway then needs the intermediate from the client.
    pub fn write_root(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(format!("{name}.pem"));
        std::fs::write(&path, self.0.root.cert_pem().unwrap()).unwrap();
        path
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new("Test Mesh")
    }
}

/// Writes `NAME.pem` and `NAME.key`; their paths.
pub fn write(identity: &Identity, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    write_issued(dir, name, identity, true).unwrap();
    (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")))
}

/// In upper-case hex.
pub fn serial(cert: &X509Ref) -> String {
    cert.serial_number().to_bn().unwrap().to_hex_str().unwrap().to_string()
}

pub fn sha256_hex(identity: &Identity) -> String {
    identity.cert.digest(MessageDigest::sha256()).unwrap().iter().map(|b| format!("{b:02x}")).collect()
}
