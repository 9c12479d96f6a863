//! What is between the gateway and our own Hive: who the client is, and the proof that the gateway says so. Nobody else is
//! told.

use http::header::InvalidHeaderValue;
use http::{HeaderName, HeaderValue};

use crate::headers;
use crate::identity::PeerIdentity;
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
    pub host: Option<&'a HeaderValue>,
}

/// A header that is set.
pub type Field = (HeaderName, HeaderValue);

impl Client<'_> {
    /// The headers that tell Hive.
    ///
    /// # Errors
    /// None that can happen: addresses and certificates are written in ASCII.
    pub fn told(&self, snapshot: &Snapshot) -> Result<[Option<Field>; 7], InvalidHeaderValue> {
        let shown = &snapshot.config.identity_headers;
        let identity = |wanted: bool| self.identity.filter(|_| wanted);
        let xfcc = identity(shown.xfcc).map(|i| HeaderValue::from_str(&i.xfcc)).transpose()?;
        let client_cert = identity(shown.client_cert).map(|i| HeaderValue::from_str(&i.client_cert)).transpose()?;
        let address = HeaderValue::try_from(self.address.address.to_string())?;
        // The usual client connects by itself, and then both say the same.
        let chain = match self.address.proxies.is_empty() {
            true => address.clone(),
            false => HeaderValue::try_from(self.address.forwarded_for())?,
        };
        let proto = HeaderValue::from_static(if self.https { "https" } else { "http" });
        Ok([
            Some((headers::X_REAL_IP, address)),
            Some((headers::X_FORWARDED_FOR, chain)),
            Some((headers::X_FORWARDED_PROTO, proto)),
            self.host.map(|host| (headers::X_FORWARDED_HOST, host.clone())),
            snapshot.gateway_auth.clone().map(|proof| (snapshot.product.gateway_auth.clone(), proof)),
            xfcc.map(|value| (headers::X_FORWARDED_CLIENT_CERT, value)),
            client_cert.map(|value| (headers::CLIENT_CERT, value)),
        ])
    }
}
