//! What the tests stand on: certificates, a gateway that really runs, raw clients and a programmable Hive node.

pub mod browser;
pub mod certs;
pub mod client;
#[cfg(feature = "otlp")]
pub mod collector;
pub mod crl_server;
pub mod dns;
pub mod fault_node;
pub mod frame_node;
pub mod gateway;
pub mod h2_client;
pub mod node;
pub mod ocsp_server;
pub mod node_h2;
pub mod redis;
pub mod raw_h2;
pub mod relay;
pub mod spiffe_agent;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The usual patience of a test; nothing that works takes as long.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `holds`; panics with `what` when patience runs out.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory of one test, gone afterwards.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hive-gateway-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes with no pattern that a mistake could keep, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
