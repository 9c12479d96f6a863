//! Whose request it is.
use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

/// Networks whose `X-Forwarded-For` is believed: `listeners[].trusted_proxies`.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {}

impl TrustedProxies {
    /// IPv4-mapped IPv6 networks count as IPv4.
    pub fn new(networks: Vec<IpNet>) -> Self {
        let _ = networks;
        Self {}
    }
    /// Whether an address belongs to one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        let _ = address;
        unimplemented!()
    }
}

/// The client's address, and the trusted proxies that it came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAddress {
    /// The client; never an IPv4-mapped IPv6 address.
    pub address: IpAddr,
    /// The trusted proxies between the client and the gateway, nearest to the client first; empty without one.
    pub proxies: Vec<IpAddr>,
}

impl ClientAddress {
    /// The value of `X-Forwarded-For` towards Hive: the client, then the trusted proxies.
    pub fn forwarded_for(&self) -> String {
        unimplemented!()
    }
}

/// The client's address.
pub fn client_address(remote: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> ClientAddress {
    let _ = (remote, headers, trusted);
    unimplemented!()
}
