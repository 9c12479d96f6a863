//! Whose request it is: the client's address (`hive-contract`, "Client address").

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::{IpNet, Ipv4Net};

use crate::headers::X_FORWARDED_FOR;

/// Whether only this machine or a private network has the address: RFC 1918, RFC 4193, link-local and loopback.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Most hops of `X-Forwarded-For` that are looked at, from the right. No real chain is so long.
pub const HOPS_MAX: usize = 32;

/// Networks whose `X-Forwarded-For` is believed: `listeners[].trusted_proxies`. A look-up costs a binary search.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    /// First and last address of each network, sorted and disjoint.
    v4: Vec<(Ipv4Addr, Ipv4Addr)>,
    v6: Vec<(Ipv6Addr, Ipv6Addr)>,
}

impl TrustedProxies {
    /// Networks in any order, overlapping or not. IPv4-mapped IPv6 networks (`::ffff:10.0.0.0/104`) count as IPv4.
    pub fn new(networks: Vec<IpNet>) -> Self {
        let networks: Vec<IpNet> = networks.into_iter().map(unmapped_network).collect();
        let mut proxies = Self::default();
        for network in IpNet::aggregate(&networks) {
            match network {
                IpNet::V4(net) => proxies.v4.push((net.network(), net.broadcast())),
                IpNet::V6(net) => proxies.v6.push((net.network(), net.broadcast())),
            }
        }
        proxies.v4.sort_unstable();
        proxies.v6.sort_unstable();
        proxies
    }

    /// Whether an address, IPv4-mapped or not, belongs to one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn within<A: Ord + Copy>(ranges: &[(A, A)], address: A) -> bool {
            let after = ranges.partition_point(|(first, _)| *first <= address);
            after.checked_sub(1).is_some_and(|i| address <= ranges[i].1)
        }
        match address.to_canonical() {
            IpAddr::V4(address) => within(&self.v4, address),
            IpAddr::V6(address) => within(&self.v6, address),
        }
    }
}

/// An IPv4-mapped IPv6 network as the IPv4 network that it is; any other as it is.
pub fn unmapped_network(network: IpNet) -> IpNet {
    if let IpNet::V6(net) = network
        && let Some(address) = net.addr().to_ipv4_mapped()
        && let Some(length) = net.prefix_len().checked_sub(96)
        && let Ok(net) = Ipv4Net::new(address, length)
    {
        return IpNet::V4(net);
    }
    network
}

/// The client's address, and the trusted proxies that its request came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAddress {
    /// The client: the value of `X-Real-IP`. Never an IPv4-mapped IPv6 address.
    pub address: IpAddr,
    /// The trusted proxies between client and gateway, the client's side first. Empty (and not allocated) for a client
    /// that connects by itself.
    pub proxies: Vec<IpAddr>,
}

impl ClientAddress {
    /// The value of `X-Forwarded-For` towards Hive: the client, then the trusted proxies. What the client wrote to the
    /// left of its own address is not in it, so the first hop is the client, as Hive reads it.
    pub fn forwarded_for(&self) -> String {
        let mut value = self.address.to_string();
        for proxy in &self.proxies {
            // Writing to a string can't fail.
            let _ = write!(value, ", {proxy}");
        }
        value
    }
}

/// The client's address: the remote end of the connection, or, if that is a trusted proxy, the rightmost hop of all
/// `X-Forwarded-For` fields that is not. A hop that is no address ends the walk at the last good one; if every hop is
/// trusted, it is the leftmost. Looks at [`HOPS_MAX`] hops at most.
///
/// A hop is `ip`, `ip:port`, `[v6]` or `[v6]:port`.
pub fn client_address(remote: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> ClientAddress {
    let mut client = ClientAddress { address: remote.to_canonical(), proxies: Vec::new() };
    if !trusted.contains(client.address) {
        return client;
    }
    let values = headers.get_all(X_FORWARDED_FOR);
    let hops = values.iter().rev().flat_map(|value| value.as_bytes().rsplit(|b| *b == b','));
    for hop in hops.take(HOPS_MAX) {
        let Some(address) = hop_address(hop) else { break };
        client.proxies.push(client.address);
        client.address = address;
        if !trusted.contains(address) {
            break;
        }
    }
    client.proxies.reverse();
    client
}

fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let address = hop.parse().ok().or_else(bracketed).or_else(|| {
        // A zone (fe80::1%eth0) has no meaning on this machine, and SocketAddr takes numeric ones.
        let socket: SocketAddr = hop.parse().ok()?;
        (!hop.contains('%')).then(|| socket.ip())
    })?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(networks: &[&str]) -> TrustedProxies {
        TrustedProxies::new(networks.iter().map(|n| n.parse().unwrap()).collect())
    }

    fn client(remote: &str, chain: &[&str], networks: &[&str]) -> (String, String) {
        let mut headers = HeaderMap::new();
        for value in chain {
            headers.append(X_FORWARDED_FOR, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let found = client_address(remote.parse().unwrap(), &headers, &trusted(networks));
        (found.address.to_string(), found.forwarded_for())
    }

    #[test]
    fn a_client_that_connects_by_itself_is_its_own_address() {
        assert_eq!(client("203.0.113.9", &["1.2.3.4"], &["10.0.0.0/8"]), ("203.0.113.9".into(), "203.0.113.9".into()));
        assert_eq!(client("::ffff:203.0.113.9", &[], &[]).1, "203.0.113.9");
        assert_eq!(client("2001:db8::1", &["1.2.3.4"], &[]).1, "2001:db8::1");
    }

    #[test]
    fn behind_a_trusted_proxy_the_rightmost_untrusted_hop_is_the_client() {
        let nets = ["10.0.0.0/8", "2001:db8:1::/48"];
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 203.0.113.9, 10.0.0.2"], &nets).1, "203.0.113.9, 10.0.0.2, 10.0.0.1");
        assert_eq!(client("10.0.0.1", &["6.6.6.6", "203.0.113.9", "10.0.0.2"], &nets).0, "203.0.113.9");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:203.0.113.9"], &nets).1, "203.0.113.9, 10.0.0.1");
        assert_eq!(client("2001:db8:1::5", &["203.0.113.9"], &nets).1, "203.0.113.9, 2001:db8:1::5");
    }

    #[test]
    fn hops_come_with_ports_and_brackets() {
        let nets = ["10.0.0.0/8"];
        for (hop, address) in [
            ("203.0.113.9:4711", "203.0.113.9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("[2001:db8::9]:443", "2001:db8::9"),
            ("2001:db8::9", "2001:db8::9"),
            ("[::ffff:203.0.113.9]:1", "203.0.113.9"),
            (" \t203.0.113.9\t ", "203.0.113.9"),
        ] {
            assert_eq!(client("10.0.0.1", &[hop], &nets).0, address, "{hop}");
        }
    }

    #[test]
    fn a_hop_that_is_no_address_ends_the_walk() {
        let nets = ["10.0.0.0/8"];
        for bad in [
            "unknown",
            "",
            "_hidden",
            "1.2.3",
            "01.2.3.4",
            "1.2.3.4:99999",
            "[1.2.3.4]",
            "é",
            "fe80::1%eth0",
            "[fe80::1%1]:1",
        ] {
            assert_eq!(
                client("10.0.0.1", &[&format!("203.0.113.9, {bad}, 10.0.0.2")], &nets).1,
                "10.0.0.2, 10.0.0.1",
                "{bad}"
            );
        }
        assert_eq!(client("10.0.0.1", &["203.0.113.9,"], &nets).1, "10.0.0.1");
    }

    #[test]
    fn when_every_hop_is_trusted_the_leftmost_is_the_client() {
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"], &["10.0.0.0/8"]).1, "10.0.0.3, 10.0.0.2, 10.0.0.1");
        let endless = vec!["10.0.0.2"; 500].join(",");
        assert_eq!(client("10.0.0.1", &[&endless], &["10.0.0.0/8"]).1.split(", ").count(), HOPS_MAX + 1);
    }

    #[test]
    fn networks_overlap_and_map() {
        let proxies = trusted(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "::ffff:192.168.0.0/112",
            "192.0.2.7/32",
            "2001:db8::/32",
            "fd00::1/128",
        ]);
        for inside in
            ["10.255.255.255", "10.1.2.3", "192.168.4.4", "::ffff:10.0.0.0", "192.0.2.7", "2001:db8:ffff::1", "fd00::1"]
        {
            assert!(proxies.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in
            ["11.0.0.0", "9.255.255.255", "192.169.0.0", "192.0.2.8", "2001:db9::", "fd00::2", "::1", "0.0.0.0"]
        {
            assert!(!proxies.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(!trusted(&[]).contains("127.0.0.1".parse().unwrap()));
        assert!(trusted(&["::/0"]).contains("::1".parse().unwrap()));
        assert!(!trusted(&["::/0"]).contains("1.2.3.4".parse().unwrap()));
    }
}
