//! Which of several certificates is for a name.

use std::net::IpAddr;

use ahash::AHashMap;

use super::certificate::SubjectAltNames;

/// The SANs of a listener's certificates: exact names before wildcards, the certificate that stands first before
/// others.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: AHashMap<Box<str>, usize>,
    /// By what follows `*.`.
    wildcard: AHashMap<Box<str>, usize>,
    addresses: AHashMap<IpAddr, usize>,
}

impl Names {
    /// Adds a certificate's SANs. Returns the names that an earlier certificate already has.
    pub(super) fn add(&mut self, certificate: usize, sans: &SubjectAltNames) -> Vec<String> {
        let mut taken = Vec::new();
        for name in &sans.dns {
            let (map, key) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            if *map.entry(key.into()).or_insert(certificate) != certificate {
                taken.push(name.clone());
            }
        }
        for address in &sans.ips {
            self.addresses.entry(*address).or_insert(certificate);
        }
        taken
    }

    /// The certificate for a server name. A wildcard stands for one label (RFC 6125, section 6.4.3).
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
        let mut names = Names::default();
        assert!(names.add(0, &sans(&["*.hive.example"])).is_empty());
        assert_eq!(names.add(1, &sans(&["a.hive.example", "*.hive.example"])), ["*.hive.example"]);
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
}
