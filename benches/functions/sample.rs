//! What a request brings with it, for benches.

use hive_gateway::identity::{PeerIdentity, SpiffeId};
use hive_gateway::request::Head;
use http::{HeaderMap, HeaderName, Method, Version};

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

/// A call over HTTP/1.1, of the fields that [`fields`] made of `raw`.
pub fn head<'a>(headers: &'a HeaderMap, raw: &'a str) -> Head<'a> {
    Head {
        method: &Method::POST,
        target: b"/api/a2a/jsonrpc",
        authority: None,
        scheme: None,
        headers,
        version: Version::HTTP_11,
        raw: Some(raw.as_bytes()),
    }
}
