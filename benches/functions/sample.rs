//! What a request brings with it, for benches.
// A bench that can't be set up has nothing to measure.
#![allow(clippy::unwrap_used)]

use hive_gateway::identity::{PeerIdentity, SpiffeId};
use http::{HeaderMap, HeaderName};

/// The certificate of a peer with this URI.
pub fn identity(uri: String) -> PeerIdentity {
    PeerIdentity {
        spiffe_id: SpiffeId::parse(&uri).ok(),
        xfcc: format!("Hash={};Subject=\"CN=paris\";URI={uri}", "07".repeat(32)),
        uris: vec![uri],
        dns: Vec::new(),
        subject: "CN=paris".into(),
        issuer: "CN=Mesh".into(),
        serial: "01".into(),
        fingerprint: [7; 32],
        not_before: 0,
        not_after: i64::MAX,
        client_cert: String::new(),
    }
}

/// The fields of a head, after its first line.
pub fn fields(head: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    headers
}
