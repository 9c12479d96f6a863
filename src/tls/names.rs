//! Which of several certificates are for a name.

use std::net::IpAddr;

use ahash::AHashMap;
use openssl::pkey::Id;

use super::certificate::SubjectAltNames;

/// The SANs of a listener's certificates: exact names before wildcards. A name leads to a group of certificates that
/// have it, one for each type of key, so that OpenSSL can choose by what the client is able to verify.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: AHashMap<Box<str>, usize>,
    /// By what follows `*.`.
    wildcard: AHashMap<Box<str>, usize>,
    addresses: AHashMap<IpAddr, usize>,
}

/// What [`Names`] lead to.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Which certificates stand together; the first group is for clients that name nothing known, and has the first
    /// certificate.
    pub(super) groups: Vec<Vec<usize>>,
    /// Certificates, and names of theirs that an earlier one of the same key type has.
    pub(super) taken: Vec<(usize, String)>,
}

/// A name's certificates while they are gathered.
#[derive(PartialEq, Eq, Hash)]
enum Name {
    Exact(Box<str>),
    Wildcard(Box<str>),
    Address(IpAddr),
}

impl Name {
    /// Each SAN, with its text.
    fn all(sans: &SubjectAltNames) -> impl Iterator<Item = (Self, String)> {
        let dns = sans.dns.iter().map(|name| match name.strip_prefix("*.") {
            Some(parent) => (Name::Wildcard(parent.into()), name.clone()),
            None => (Name::Exact(name.as_str().into()), name.clone()),
        });
        dns.chain(sans.ips.iter().map(|ip| (Name::Address(*ip), ip.to_string())))
    }
}

impl Names {
    /// Takes each certificate's type of key and SANs, in the order of the configuration.
    pub(super) fn build(certificates: &[(Id, SubjectAltNames)]) -> (Self, Groups) {
        let mut by_name: AHashMap<Name, Vec<usize>> = AHashMap::new();
        let mut out = Groups::default();
        for (at, (key, sans)) in certificates.iter().enumerate() {
            for (name, text) in Name::all(sans) {
                let members = by_name.entry(name).or_default();
                if members.contains(&at) {
                    continue;
                }
                if members.iter().any(|m| certificates[*m].0 == *key) {
                    out.taken.push((at, text));
                } else {
                    members.push(at);
                }
            }
        }
        // The certificates that share the most with the first one stand in for unknown names.
        let of_first = certificates.first().into_iter().flat_map(|(_, sans)| Name::all(sans));
        let with_first: Vec<_> = of_first.filter_map(|(name, _)| by_name.get(&name)).collect();
        let most = with_first.into_iter().rev().max_by_key(|members| members.len());
        out.groups.push(most.cloned().unwrap_or_else(|| vec![0]));
        let mut names = Self::default();
        for (name, members) in by_name {
            let group = out.groups.iter().position(|g| *g == members).unwrap_or_else(|| {
                out.groups.push(members);
                out.groups.len() - 1
            });
            match name {
                Name::Exact(name) => names.exact.insert(name, group),
                Name::Wildcard(parent) => names.wildcard.insert(parent, group),
                Name::Address(address) => names.addresses.insert(address, group),
            };
        }
        (names, out)
    }

    /// The group for a server name. A wildcard stands for one label (RFC 6125, section 6.4.3).
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        // SNI is almost always lower case already.
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.find(&name.to_ascii_lowercase());
        }
        self.exact.get(name).copied().or_else(|| {
            let (label, parent) = name.split_once('.')?;
            if label.is_empty() { None } else { self.wildcard.get(parent).copied() }
        })
    }

    /// Whether a `Host` without its port is a DNS or IP SAN.
    pub(super) fn covers(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains_key(&address),
            Err(_) => self.find(host).is_some(),
        }
    }

    /// Whether the certificates shown without SNI, the first group, have the host.
    pub(super) fn default_covers(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(address) => self.addresses.get(&address) == Some(&0),
            Err(_) => self.find(host) == Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_name_goes_before_a_wildcard_and_a_wildcard_is_one_label() {
        let sans = |dns: &[&str]| SubjectAltNames {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            ips: vec![[127, 0, 0, 1].into(), "::1".parse().unwrap()],
            ..Default::default()
        };
        let certificates = [(Id::EC, sans(&["*.hive.example"])), (Id::EC, sans(&["a.hive.example", "*.hive.example"]))];
        let (names, groups) = Names::build(&certificates);
        let addresses = ["127.0.0.1", "::1"].map(|ip| (1, ip.to_owned()));
        assert_eq!(groups.taken, [vec![(1, "*.hive.example".to_owned())], addresses.to_vec()].concat());
        assert_eq!(groups.groups, [[0], [1]]);
        assert_eq!(names.find("A.hive.Example"), Some(1));
        assert_eq!(names.find("b.hive.example"), Some(0));
        for other in ["hive.example", "a.b.hive.example", ".hive.example", ""] {
            assert_eq!(names.find(other), None, "{other}");
        }
        for host in ["b.hive.example", "127.0.0.1", "[::1]", "::1"] {
            assert!(names.covers(host), "{host}");
        }
        assert!(!names.covers("127.0.0.2"));
    }
    #[test]
    fn certificates_of_one_name_stand_together_if_their_keys_are_of_different_types() {
        let sans = |dns: &[&str]| SubjectAltNames {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let certificates = [
            (Id::EC, sans(&["a.example", "b.example"])),
            (Id::RSA, sans(&["a.example", "a.example"])),
            (Id::RSA, sans(&["a.example", "c.example"])),
            (Id::ED25519, sans(&[])),
        ];
        let (names, groups) = Names::build(&certificates);
        let found = |name| names.find(name).map(|group| groups.groups[group].clone());
        assert_eq!(found("a.example"), Some(vec![0, 1]));
        assert_eq!(found("b.example"), Some(vec![0]));
        assert_eq!(found("c.example"), Some(vec![2]));
        assert_eq!(groups.groups[0], [0, 1]);
        assert_eq!(groups.taken, [(2, "a.example".to_owned())]);
    }
}
