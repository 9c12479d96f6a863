//! What a limit counts by.

use std::fmt;
use std::hash::Hasher;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::Ipv6Net;

use crate::identity::PeerIdentity;

/// One thing that a limit tells requests apart by: an item of `rate_limits[].per`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's address; IPv6 by its network of `server.rate_limit_ipv6_prefix`.
    Address,
    /// The peer that the certificate belongs to; see [`Caller`].
    Peer,
    /// The name that the TLS handshake asked for.
    Sni,
    /// The route.
    Route,
    /// The JSON-RPC method, call by call.
    Method,
    /// Issuer of the federation JWT, as far as it is believed; requests without one are counted together.
    Issuer,
    /// A request header's value; requests without it are counted together.
    Header(HeaderName),
}

impl KeyPart {
    /// From the configuration.
    ///
    /// # Errors
    /// Says what may stand there.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "address" => Self::Address,
            "peer" => Self::Peer,
            "sni" => Self::Sni,
            "route" => Self::Route,
            "method" => Self::Method,
            "issuer" => Self::Issuer,
            _ => {
                let Some(name) = text.strip_prefix("header:") else {
                    return Err(format!(
                        "{text:?} is nothing to count by; write address, peer, sni, route, method, issuer or header:NAME"
                    ));
                };
                let name = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
                Self::Header(name)
            }
        })
    }
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::Peer => "peer",
            Self::Sni => "sni",
            Self::Route => "route",
            Self::Method => "method",
            Self::Issuer => "issuer",
            Self::Header(name) => return write!(f, "header:{name}"),
        })
    }
}

/// Who calls, as far as `peer` is concerned.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'a> {
    /// A peer of the configuration, by its name.
    Peer(&'a str),
    /// A valid certificate of no peer: its SPIFFE ID, else its fingerprint. Each is counted by itself, so that strangers
    /// can't use up one another's quota.
    Stranger(&'a [u8]),
    /// No certificate, on a plain listener: counted by address.
    Nobody,
}

impl<'a> Caller<'a> {
    /// By the peer's name if the certificate has one, else by the certificate.
    pub fn of(peer: Option<&'a str>, identity: Option<&'a PeerIdentity>) -> Self {
        match (peer, identity) {
            (Some(name), _) => Caller::Peer(name),
            (None, Some(identity)) => Caller::Stranger(match &identity.spiffe_id {
                Some(id) => id.as_str().as_bytes(),
                None => &identity.fingerprint,
            }),
            (None, None) => Caller::Nobody,
        }
    }

    /// What tells its certificate from those of others, if it has one.
    pub fn certificate(&self) -> Option<&'a [u8]> {
        match *self {
            Caller::Peer(name) => Some(name.as_bytes()),
            Caller::Stranger(id) => Some(id),
            Caller::Nobody => None,
        }
    }
}

/// What a request is counted by.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The client's address.
    pub address: IpAddr,
    /// Whose certificate it is.
    pub caller: Caller<'a>,
    /// The name that the TLS handshake asked for, lower case.
    pub sni: Option<&'a str>,
    /// The route's name; none, if there is none.
    pub route: Option<&'a str>,
    /// The JSON-RPC method, decoded.
    pub method: Option<&'a str>,
    /// Issuer of the federation JWT.
    pub issuer: Option<&'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
}

impl Facts<'_> {
    /// What one part is for this request, for a reader.
    pub fn shown(&self, part: &KeyPart, ipv6_prefix: u8) -> String {
        let or = |text: Option<&str>, none: &str| text.map_or_else(|| none.to_owned(), str::to_owned);
        let value = match part {
            KeyPart::Address => shown_address(self.address, ipv6_prefix),
            KeyPart::Peer => match self.caller {
                Caller::Peer(name) => name.to_owned(),
                Caller::Stranger(id) => match std::str::from_utf8(id) {
                    Ok(id) => id.to_owned(),
                    Err(_) => "the certificate".to_owned(),
                },
                Caller::Nobody => shown_address(self.address, ipv6_prefix),
            },
            KeyPart::Sni => or(self.sni, "no name"),
            KeyPart::Route => or(self.route, "no route"),
            KeyPart::Method => or(self.method, "no method"),
            KeyPart::Issuer => or(self.issuer, "no issuer"),
            KeyPart::Header(name) => match self.headers.get_all(name).iter().count() {
                0 => "without it".to_owned(),
                // May be a key or a token.
                _ => "by its value".to_owned(),
            },
        };
        format!("{part}={value}")
    }

    /// Feeds one part into a hash. Each is followed by its length, so that no two different keys are fed alike.
    pub(super) fn feed(&self, part: &KeyPart, ipv6_prefix: u8, hash: &mut impl Hasher) {
        match part {
            KeyPart::Address => feed_address(self.address, ipv6_prefix, hash),
            KeyPart::Peer => match self.caller {
                Caller::Peer(name) => feed_text(1, name.as_bytes(), hash),
                Caller::Stranger(id) => feed_text(2, id, hash),
                Caller::Nobody => feed_address(self.address, ipv6_prefix, hash),
            },
            KeyPart::Sni => feed_text(3, self.sni.unwrap_or_default().as_bytes(), hash),
            KeyPart::Route => feed_text(4, self.route.unwrap_or_default().as_bytes(), hash),
            KeyPart::Method => feed_text(5, self.method.unwrap_or_default().as_bytes(), hash),
            KeyPart::Issuer => feed_text(9, self.issuer.unwrap_or_default().as_bytes(), hash),
            KeyPart::Header(name) => {
                let mut values = 0u32;
                for value in self.headers.get_all(name) {
                    values += 1;
                    feed_text(6, value.as_bytes(), hash);
                }
                hash.write(&values.to_le_bytes());
            }
        }
    }
}

fn shown_address(address: IpAddr, ipv6_prefix: u8) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => match Ipv6Net::new(v6, ipv6_prefix.min(128)) {
            Ok(network) => network.trunc().to_string(),
            Err(_) => v6.to_string(),
        },
    }
}

fn feed_text(tag: u8, text: &[u8], hash: &mut impl Hasher) {
    hash.write(&[tag]);
    hash.write(text);
    hash.write(&(text.len() as u64).to_le_bytes());
}

fn feed_address(address: IpAddr, ipv6_prefix: u8, hash: &mut impl Hasher) {
    match address.to_canonical() {
        IpAddr::V4(v4) => feed_text(7, &v4.octets(), hash),
        IpAddr::V6(v6) => {
            let host_bits = 128 - u32::from(ipv6_prefix.min(128));
            let network = u128::from(v6).checked_shr(host_bits).unwrap_or(0);
            feed_text(8, &network.to_le_bytes(), hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use super::*;

    fn hashed(parts: &[KeyPart], change: impl Fn(&mut Facts<'_>), prefix: u8) -> u64 {
        let headers = HeaderMap::new();
        let mut facts = Facts {
            address: "192.0.2.1".parse().unwrap(),
            caller: Caller::Peer("alice"),
            sni: None,
            route: Some("a2a"),
            method: None,
            issuer: None,
            headers: &headers,
        };
        change(&mut facts);
        let mut hash = BuildHasherDefault::<DefaultHasher>::default().build_hasher();
        parts.iter().for_each(|p| facts.feed(p, prefix, &mut hash));
        hash.finish()
    }

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["address", "peer", "sni", "route", "method", "issuer", "header:x-api-key"] {
            assert_eq!(KeyPart::parse(text).unwrap().to_string(), text);
        }
        assert!(KeyPart::parse("ip").unwrap_err().contains("address, peer"));
        assert!(KeyPart::parse("header:a b").is_err());
        assert_eq!(KeyPart::parse("header:X-Api-Key"), KeyPart::parse("header:x-api-key"));
    }

    #[test]
    fn one_ipv6_network_is_one_key_and_its_size_is_configured() {
        let of = |address: &str, prefix| {
            let address = address.parse().unwrap();
            hashed(&[KeyPart::Address], |f| f.address = address, prefix)
        };
        assert_eq!(of("2001:db8:0:1::1", 64), of("2001:db8:0:1:ffff::9", 64));
        assert_ne!(of("2001:db8:0:1::1", 64), of("2001:db8:0:2::1", 64));
        assert_eq!(of("2001:db8:0:1::1", 48), of("2001:db8:0:2::1", 48));
        assert_ne!(of("2001:db8:0:1::1", 128), of("2001:db8:0:1::2", 128));
        assert_eq!(of("::ffff:192.0.2.1", 64), of("192.0.2.1", 64));
        assert_ne!(of("192.0.2.1", 32), of("192.0.2.2", 32));
    }

    #[test]
    fn peers_strangers_and_plain_clients_are_told_apart() {
        let of = |caller| hashed(&[KeyPart::Peer], |f| f.caller = caller, 64);
        let all = [of(Caller::Peer("x")), of(Caller::Stranger(b"x")), of(Caller::Stranger(b"y")), of(Caller::Nobody)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn all_values_of_a_header_count() {
        let part = [KeyPart::parse("header:x-key").unwrap()];
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|v| _ = headers.append("x-key", http::HeaderValue::from_static(v)));
            let facts = Facts {
                address: "192.0.2.1".parse().unwrap(),
                caller: Caller::Nobody,
                sni: None,
                route: None,
                method: None,
                issuer: None,
                headers: &headers,
            };
            let mut hash = BuildHasherDefault::<DefaultHasher>::default().build_hasher();
            facts.feed(&part[0], 64, &mut hash);
            hash.finish()
        };
        let all = [of(&[]), of(&[""]), of(&["a"]), of(&["a", "b"]), of(&["ab"])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
