//! Who is kept out by address: `listeners[].deny`, `deny_file` and, as exceptions from them, `allow`.
//!
//! A look-up is one hash look-up per prefix length that the list has, at most 33 for IPv4 and 129 for IPv6: it does not
//! grow with the number of networks.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::request::unmapped_network;

/// Longest `deny_file`, in bytes: about eight million lines.
pub const DENY_FILE_BYTES_MAX: u64 = 128 << 20;

/// Networks by prefix length, the longest first.
#[derive(Clone)]
struct ByLength<A> {
    sets: Vec<(u8, HashSet<A, ahash::RandomState>)>,
}

impl<A> Default for ByLength<A> {
    fn default() -> Self {
        Self { sets: Vec::new() }
    }
}

impl<A: std::hash::Hash + Eq> ByLength<A> {
    fn insert(&mut self, length: u8, first: A) {
        let at = match self.sets.binary_search_by(|(other, _)| length.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                self.sets.insert(at, (length, HashSet::default()));
                at
            }
        };
        self.sets[at].1.insert(first);
    }

    fn any(&self, first: impl Fn(u8) -> A) -> bool {
        self.sets.iter().any(|(length, set)| set.contains(&first(*length)))
    }

    fn len(&self) -> usize {
        self.sets.iter().map(|(_, set)| set.len()).sum()
    }
}

/// A set of networks.
#[derive(Clone, Default)]
pub struct Networks {
    v4: ByLength<u32>,
    v6: ByLength<u128>,
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let mut all = Self::default();
        for network in networks {
            match unmapped_network(network).trunc() {
                IpNet::V4(net) => all.v4.insert(net.prefix_len(), net.network().to_bits()),
                IpNet::V6(net) => all.v6.insert(net.prefix_len(), net.network().to_bits()),
            }
        }
        all
    }
}

impl Networks {
    /// Whether an address, IPv4-mapped or not, belongs to one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(a) => self.v4.any(|n| a.to_bits() & u32::MAX.checked_shl(32 - u32::from(n)).unwrap_or(0)),
            IpAddr::V6(a) => self.v6.any(|n| a.to_bits() & u128::MAX.checked_shl(128 - u32::from(n)).unwrap_or(0)),
        }
    }

    /// How many there are, each once.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The lists of one listener.
#[derive(Clone, Default)]
pub struct AddressList {
    /// Kept out.
    pub deny: Networks,
    /// Never kept out, whatever `deny` says.
    pub allow: Networks,
}

impl AddressList {
    /// Whether an address is kept out.
    pub fn denies(&self, address: IpAddr) -> bool {
        self.deny.contains(address) && !self.allow.contains(address)
    }
}

impl fmt::Debug for AddressList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not a million lines.
        f.debug_struct("AddressList").field("deny", &self.deny.len()).field("allow", &self.allow.len()).finish()
    }
}

/// A network, or one address.
///
/// # Errors
/// What is wrong, and what to write.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = parsed.map_err(|_| {
        format!("{text:?} is not a network; write one such as 10.0.0.0/8 or 2001:db8::/32, or an address")
    })?;
    if network != network.trunc() {
        return Err(format!("{text} has address bits beyond its length; write {}", network.trunc()));
    }
    Ok(network)
}

/// The networks of a `deny_file`: one a line; what follows `#` or `;` is a comment.
///
/// A list that was cut off must lift no bans: a full disk, or a writer that is not done, leaves a file without its end. So
/// the last line has one, and a list of nobody says that it is. Where it was cut at the end of a line only its writer can tell:
/// a comment `networks: 1234`, a line of its own anywhere, says how many there are. What can't be read as that would protect from
/// nothing in silence, so it is an error.
///
/// # Errors
/// The first line that is wrong, counted from 1, with what is wrong.
pub fn parse_file(bytes: &[u8]) -> Result<Vec<IpNet>, (usize, String)> {
    let mut networks = Vec::new();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let Some(lines) = bytes.strip_suffix(b"\n") else {
        // Of 192.0.2.17, the 192.0.2.1 that may be left is an address too.
        let last = bytes.split(|b| *b == b'\n').count();
        return Err((last, "the last line has no end, as if the file were cut off; end it with a newline".into()));
    };
    let (mut nobody, mut said) = (false, Vec::new());
    for (i, line) in lines.split(|b| *b == b'\n').enumerate() {
        let end = memchr::memchr2(b'#', b';', line).unwrap_or(line.len());
        let entry = line[..end].trim_ascii();
        if entry.is_empty() {
            let comment = line[end..].get(1..).unwrap_or_default().trim_ascii();
            nobody |= comment.eq_ignore_ascii_case(b"nobody");
            if let Some(count) = announced(comment) {
                said.push((i + 1, count.map_err(|why| (i + 1, why))?));
            }
            continue;
        }
        let text = std::str::from_utf8(entry).map_err(|_| (i + 1, "is not text".to_owned()))?;
        networks.push(parse_network(text).map_err(|why| (i + 1, why))?);
    }
    if let Some((line, count)) = said.into_iter().find(|(_, count)| *count != networks.len() as u64) {
        return Err((
            line,
            format!("{count} networks are announced, and there are {}, as if the file were cut off", networks.len()),
        ));
    }
    if networks.is_empty() && !nobody {
        let why = "nobody is listed; write the line \"# nobody\" if nobody is to be kept out";
        return Err((lines.split(|b| *b == b'\n').count(), why.into()));
    }
    Ok(networks)
}

/// How many networks a comment says that there are.
fn announced(comment: &[u8]) -> Option<Result<u64, String>> {
    let (name, count) = comment.split_at_checked(b"networks:".len())?;
    name.eq_ignore_ascii_case(b"networks:").then(|| {
        let count = String::from_utf8_lossy(count.trim_ascii());
        let wrong = |_| {
            format!("{count:?} is not how many networks there are; write digits alone, such as \"# networks: 1234\"")
        };
        count.parse().map_err(wrong)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(all: &[&str]) -> Networks {
        all.iter().map(|text| parse_network(text).unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_its_first_and_last_address_and_no_other() {
        let set = networks(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]);
        for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "::ffff:10.1.2.3", "2001:db8:ffff::1"] {
            assert!(set.contains(ip(inside)), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.0.2.6", "192.0.2.8", "2001:db9::", "::10.0.0.1"] {
            assert!(!set.contains(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn everyone_can_be_meant_and_mapped_networks_are_ipv4() {
        assert!(networks(&["0.0.0.0/0"]).contains(ip("203.0.113.1")));
        assert!(!networks(&["0.0.0.0/0"]).contains(ip("::1")));
        assert!(networks(&["::/0"]).contains(ip("2001:db8::1")));
        assert!(networks(&["::ffff:10.0.0.0/104"]).contains(ip("10.1.2.3")));
    }

    #[test]
    fn an_exception_counts_whatever_is_denied() {
        let list = AddressList { deny: networks(&["10.0.0.0/8", "10.1.2.3"]), allow: networks(&["10.1.0.0/16"]) };
        assert!(list.denies(ip("10.2.0.1")));
        assert!(!list.denies(ip("10.1.2.3")) && !list.denies(ip("192.0.2.1")));
    }

    #[test]
    fn a_file_has_comments_and_its_errors_have_lines() {
        let text = b"\xef\xbb\xbf# feed of today\r\n10.0.0.0/8\r\n\r\n 192.0.2.7 ; SBL1\n2001:db8::/32# v6\n";
        assert_eq!(parse_file(text).unwrap().len(), 3);
        let (line, why) = parse_file(b"10.0.0.0/8\n# x\n10.0.0.1/8\n").unwrap_err();
        assert_eq!((line, why.as_str()), (3, "10.0.0.1/8 has address bits beyond its length; write 10.0.0.0/8"));
        let (line, why) = parse_file(b"example.com\n").unwrap_err();
        assert!(line == 1 && why.contains("is not a network; write"), "{why}");
        assert_eq!(parse_file(b"\xff\n").unwrap_err().0, 1);
    }

    #[test]
    fn a_file_that_was_cut_off_anywhere_is_none() {
        let whole = b"# a feed\n192.0.2.17\n";
        for cut in 0..whole.len() {
            assert!(parse_file(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(parse_file(b"10.0.0.0/8\n192.0.2.1").unwrap_err().0, 2);
        for nobody in ["\n", "# a feed\n\n", "# nobody is here\n"] {
            assert!(parse_file(nobody.as_bytes()).unwrap_err().1.contains("# nobody"), "{nobody:?}");
        }
        for nobody in ["# nobody\n", "\u{feff}# a feed\r\n;Nobody\r\n"] {
            assert!(parse_file(nobody.as_bytes()).unwrap().is_empty(), "{nobody:?}");
        }
    }

    #[test]
    fn a_list_that_says_how_long_it_is_is_that_long() {
        let list = "# a feed of today\n# Networks: 2\n192.0.2.1\n198.51.100.0/24 # x\n";
        assert_eq!(parse_file(list.as_bytes()).unwrap().len(), 2);
        let cut = parse_file(b"; networks:  3 \n192.0.2.1\n198.51.100.0/24\n").unwrap_err();
        assert_eq!(cut, (1, "3 networks are announced, and there are 2, as if the file were cut off".to_owned()));
        assert_eq!(parse_file(b"# nobody\n# networks: 0\n"), Ok(vec![]));
        for other in ["# networks", "# networks 7", "# the networks: 7"] {
            assert_eq!(parse_file(format!("{other}\n192.0.2.1\n").as_bytes()).unwrap().len(), 1, "{other}");
        }
        for unread in
            ["# networks: two", "# networks:", "# networks: 1,234", "# networks: 1 as of today", "# networks: -1"]
        {
            let (line, why) = parse_file(format!("192.0.2.1\n{unread}\n").as_bytes()).unwrap_err();
            assert!(line == 2 && why.contains("write digits alone"), "{unread}: {why}");
        }
        let twice = |second: u8| parse_file(format!("# networks: 1\n192.0.2.1\n# networks: {second}\n").as_bytes());
        assert_eq!((twice(1).unwrap().len(), twice(2).unwrap_err().0), (1, 3));
    }

    /// A different address for each number.
    fn scattered(n: u32) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1))
    }

    #[test]
    fn a_million_entries_are_looked_up_as_fast_as_ten() {
        let list = |count: u32| {
            let mut text = String::new();
            for n in 0..count {
                text += &format!("{}\n", scattered(n));
            }
            text += "198.18.0.0/15\n2001:db8::/32\n";
            parse_file(text.as_bytes()).unwrap().into_iter().collect::<Networks>()
        };
        let (small, large) = (list(10), list(1_000_000));
        assert_eq!(large.len(), 1_000_002);
        assert!((0..1_000_000).step_by(997).all(|n| large.contains(scattered(n).into())));
        assert!((1_000_000..1_001_000).all(|n| !large.contains(scattered(n).into())));
        // The same number of look-ups in hash tables: no time is measured that a busy machine could spoil.
        assert_eq!(small.v4.sets.len(), large.v4.sets.len());
        assert_eq!(large.v4.sets.len(), 2);
    }

    proptest! {
        #[test]
        fn it_agrees_with_looking_at_each_network(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            addresses in prop::collection::vec(any::<u32>(), 0..20),
        ) {
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(bits, length)| IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), length).unwrap().trunc())
                .collect();
            let set: Networks = nets.iter().copied().collect();
            let edges = nets.iter().flat_map(|n| [n.network(), n.broadcast()]);
            let addresses = addresses.into_iter().map(|a| IpAddr::from(std::net::Ipv4Addr::from_bits(a)));
            for address in addresses.chain(edges) {
                prop_assert_eq!(set.contains(address), nets.iter().any(|n| n.contains(&address)));
            }
        }
    }
}
