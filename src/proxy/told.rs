//! What is between the gateway and our own Hive: who the client is, and the proof that the gateway says so. Nobody else is
//! told.

use http::HeaderName;

use crate::headers;
use crate::identity::PeerIdentity;
use crate::observe::push_address;
use crate::request::ClientAddress;
use crate::snapshot::Snapshot;

/// What is known of a client.
pub struct Client<'a> {
    /// Its address.
    pub address: &'a ClientAddress,
    /// Its certificate; none on a plain listener.
    pub identity: Option<&'a PeerIdentity>,
    /// Whether it spoke HTTPS, with the gateway or with a trusted proxy before it.
    pub https: bool,
    /// `Host` as it asked.
    pub host: Option<&'a [u8]>,
}

impl Client<'_> {
    /// Says each header that tells Hive.
    pub fn tell(&self, snapshot: &Snapshot, put: &mut impl FnMut(&HeaderName, &[u8])) {
        let mut address = Vec::with_capacity(48);
        push_address(&mut address, self.address.address);
        put(&headers::X_REAL_IP, &address);
        // The usual client connects by itself, and then both say the same.
        match self.address.proxies.is_empty() {
            true => put(&headers::X_FORWARDED_FOR, &address),
            false => put(&headers::X_FORWARDED_FOR, self.address.forwarded_for().as_bytes()),
        }
        put(&headers::X_FORWARDED_PROTO, if self.https { b"https" } else { b"http" });
        if let Some(host) = self.host {
            put(&headers::X_FORWARDED_HOST, host);
        }
        if let Some(proof) = &snapshot.gateway_auth {
            put(&snapshot.product.gateway_auth, proof.as_bytes());
        }
        let shown = &snapshot.config.identity_headers;
        if let Some(identity) = self.identity.filter(|_| shown.xfcc) {
            put(&headers::X_FORWARDED_CLIENT_CERT, identity.xfcc.as_bytes());
        }
        if let Some(identity) = self.identity.filter(|_| shown.client_cert) {
            put(&headers::CLIENT_CERT, identity.client_cert.as_bytes());
        }
    }
}
