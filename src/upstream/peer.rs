//! The peer that Pingora connects to: everything that is the same for each request is set once per node.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{ALPN, HttpPeer, HttpUpstreamRequestPolicy};

use super::Node;
use super::settings::{NodeSettings, Settings};
use crate::config::file::UpstreamProtocol;
use crate::tls::{Findings, prove_node};

/// Streams of one HTTP/2 connection to a node; more open another connection. What RFC 9113 6.5.2 recommends as least.
const H2_STREAMS_MAX: usize = 100;

/// A node's machine that vanished is noticed within about a minute, however silent a stream may be.
pub(super) const TCP_KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    #[cfg(target_os = "linux")]
    user_timeout: Duration::from_secs(60),
};

/// The part of a node's peer that no request changes. `findings`: where handshakes leave what was wrong with the node.
pub(super) fn template(node: &NodeSettings, settings: &Settings, findings: &Arc<Findings>) -> HttpPeer {
    // check() has refused a TLS node without a server name; without one Pingora would verify nothing.
    let sni = settings.tls.as_ref().filter(|_| node.tls).map_or_else(String::new, |tls| tls.server_name.clone());
    let mut peer = HttpPeer::new(node.address, node.tls, sni);
    if let Some(tls) = settings.tls.as_ref().filter(|_| node.tls) {
        peer.options.ca = Some(tls.ca.clone());
        peer.client_cert_key = tls.client.clone();
    }
    peer.options.verify_cert = true;
    peer.options.verify_hostname = true;
    if let Some(tls) = settings.tls.as_ref().filter(|_| node.tls) {
        let http2 = settings.protocol == UpstreamProtocol::Http2;
        // With an ID the name is the SNI only; Node::check_proof refuses what the hook did not find right.
        peer.options.verify_hostname = tls.spiffe_id.is_none();
        peer.options.upstream_tls_handshake_complete_hook = Some(prove_node(tls, http2, findings.clone()));
    }
    // TCP and TLS together. `connection_timeout` would count for each of them anew, so it stays unset.
    peer.options.total_connection_timeout = Some(settings.timeouts.connect.0);
    peer.options.tcp_keepalive = Some(TCP_KEEPALIVE);
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    match settings.protocol {
        UpstreamProtocol::Http1 => peer.options.alpn = ALPN::H1,
        UpstreamProtocol::Http2 => {
            // On http:// this is prior knowledge: with H2 alone Pingora doesn't ask (`connectors/http/v2.rs`).
            peer.options.alpn = ALPN::H2;
            peer.options.max_h2_streams = H2_STREAMS_MAX;
        }
    }
    peer.group_key = pool_key(settings);
    peer
}

/// Pingora's pool looks a connection up by a hash that leaves out the authorities (`upstreams/peer.rs`, `impl Hash`):
/// connections of another upstream or of older TLS material are kept apart by this.
pub(super) fn pool_key(settings: &Settings) -> u64 {
    let mut hasher = fixed_hasher();
    settings.name.as_str().hash(&mut hasher);
    settings.tls.as_ref().map(|t| t.generation).hash(&mut hasher);
    hasher.finish()
}

/// Equal settings must meet again after a reload, so the seeds are fixed.
fn fixed_hasher() -> impl Hasher {
    ahash::RandomState::with_seeds(1, 2, 3, 4).build_hasher()
}

impl Node {
    /// The peer for a request.
    pub(super) fn peer_for_exchange(&self) -> HttpPeer {
        let mut peer = self.peer.clone();
        let idle = self.idle_limit();
        // A connection that was released under a longer limit must not be reused once the node has named a shorter one.
        peer.group_key ^= u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        peer.group_key ^= self.lists_key();
        peer
    }

    /// The peer for a probe. Its time limit is that of the probe as a whole, kept by the caller.
    pub(super) fn peer_for_probe(&self) -> HttpPeer {
        let mut peer = self.peer.clone();
        // With more, Pingora would keep the HTTP/2 connection for the next probe (`connectors/http/v2.rs`).
        peer.options.max_h2_streams = 1;
        peer
    }
}

#[cfg(test)]
mod tests;
