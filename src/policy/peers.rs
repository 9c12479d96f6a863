//! Which peer a certificate belongs to: `peers` of the configuration.
//!
//! A certificate belongs to the peer whose rule is the most specific of all that match it: fingerprint, then exact URI,
//! then URI pattern, then exact DNS name, then wildcard DNS name. Of two URI patterns, the one that matches fewer URIs
//! wins; two that overlap without one lying inside the other are a [`PeerConflict`], so there is always one winner.
//! The cost of a look-up depends on the certificate, not on the number of peers.

use std::fmt;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use crate::identity::{self, PeerIdentity, SpiffeId};
use crate::names::PeerName;

use super::uri_trie::UriTrie;

/// Most conflicts that [`Peers::build`] reports; one mistake can make thousands.
pub const CONFLICTS_MAX: usize = 100;

/// A named peer.
#[derive(Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in the configuration.
    pub name: PeerName,
    /// Its place in the configuration, from 0: an index for tables beside [`Peers`].
    pub index: u32,
}

/// One segment of a [`UriPattern`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// This text.
    Literal(Box<str>),
    /// `*`: any one segment.
    Any,
    /// `**`, only at the end: one segment or more.
    Rest,
}

/// A SPIFFE ID in which `*` stands for one whole path segment and a last `**` for one or more.
///
/// Only the SPIFFE ID of an X.509-SVID can match: not the URIs of a certificate that has several.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UriPattern {
    trust_domain: Box<str>,
    segments: Vec<Segment>,
}

impl UriPattern {
    /// Takes `spiffe://trust-domain/segment/…`.
    ///
    /// # Errors
    /// Says what is not a SPIFFE ID, or which wildcard is misplaced.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &dyn fmt::Display| format!("{text:?} is not a SPIFFE ID or a pattern of one: {why}");
        if text.len() > identity::SPIFFE_ID_LENGTH_MAX {
            return Err(wrong(&identity::SpiffeError::TooLong));
        }
        let rest = text.strip_prefix(identity::SPIFFE_SCHEME).ok_or_else(|| wrong(&identity::SpiffeError::Scheme))?;
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        if trust_domain.contains('*') {
            return Err(wrong(&"the trust domain can't have a wildcard"));
        }
        identity::check_trust_domain(trust_domain).map_err(|e| wrong(&e))?;
        if !rest.contains('/') {
            return Err(wrong(&"without a path it names no workload"));
        }
        let mut segments = Vec::new();
        let mut pieces = path.split('/').peekable();
        while let Some(piece) = pieces.next() {
            segments.push(match piece {
                "*" => Segment::Any,
                "**" if pieces.peek().is_none() => Segment::Rest,
                "**" => return Err(wrong(&"'**' can only be the last segment")),
                _ if piece.contains('*') => {
                    return Err(wrong(&"'*' stands for a whole segment, not for a part of one"));
                }
                _ => {
                    identity::check_segment(piece).map_err(|e| wrong(&e))?;
                    Segment::Literal(piece.into())
                }
            });
        }
        Ok(Self { trust_domain: trust_domain.into(), segments })
    }

    /// Whether it has no wildcard.
    pub fn is_exact(&self) -> bool {
        self.segments.iter().all(|s| matches!(s, Segment::Literal(_)))
    }

    /// The trust domain, without wildcards.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The path's segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether `id` matches. [`Peers`] does not use it: it never looks at one pattern after the other.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if self.trust_domain() != id.trust_domain() {
            return false;
        }
        let mut given = id.segments();
        for segment in &self.segments {
            match (segment, given.next()) {
                (Segment::Rest, Some(_)) => return true,
                (Segment::Any, Some(_)) => {}
                (Segment::Literal(text), Some(piece)) if **text == *piece => {}
                _ => return false,
            }
        }
        given.next().is_none()
    }
}

impl fmt::Display for UriPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", identity::SPIFFE_SCHEME, self.trust_domain)?;
        self.segments.iter().try_for_each(|segment| match segment {
            Segment::Literal(text) => write!(f, "/{text}"),
            Segment::Any => f.write_str("/*"),
            Segment::Rest => f.write_str("/**"),
        })
    }
}

/// A DNS name, or `*.` and a DNS name: exactly one label more (RFC 6125, section 6.4.3). Matches a certificate that has
/// the name as a DNS SAN; a SAN that is itself a wildcard matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DnsPattern {
    /// Without the `*.`.
    name: Box<str>,
    wildcard: bool,
}

impl DnsPattern {
    /// Takes a name in any case.
    ///
    /// # Errors
    /// Says what is not a DNS name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let (name, wildcard) = lower.strip_prefix("*.").map_or((lower.as_str(), false), |name| (name, true));
        let good_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.is_empty() || name.len() > 253 || !name.split('.').all(good_label) {
            return Err(format!("{text:?} is not a DNS name, nor '*.' and a DNS name"));
        }
        Ok(Self { name: name.into(), wildcard })
    }

    /// Whether `name`, in lower case, matches.
    pub fn matches(&self, name: &str) -> bool {
        match (self.wildcard, name.split_once('.')) {
            (false, _) => *self.name == *name,
            (true, Some((label, parent))) => !label.is_empty() && label != "*" && *self.name == *parent,
            (true, None) => false,
        }
    }
}

impl fmt::Display for DnsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.name)
    }
}

/// What a certificate must have to belong to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerRule {
    /// This SPIFFE ID.
    Uri(UriPattern),
    /// This DNS SAN.
    Dns(DnsPattern),
    /// This SHA-256 of its DER.
    Fingerprint([u8; 32]),
}

impl PeerRule {
    /// Takes `peers[].uri`.
    ///
    /// # Errors
    /// As [`UriPattern::parse`].
    pub fn parse_uri(text: &str) -> Result<Self, String> {
        UriPattern::parse(text).map(Self::Uri)
    }

    /// Takes `peers[].dns`.
    ///
    /// # Errors
    /// As [`DnsPattern::parse`].
    pub fn parse_dns(text: &str) -> Result<Self, String> {
        DnsPattern::parse(text).map(Self::Dns)
    }

    /// Takes `peers[].fingerprint`: 64 hex digits in any case, colons between bytes allowed.
    ///
    /// # Errors
    /// Says that it is not a SHA-256.
    pub fn parse_fingerprint(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a SHA-256 fingerprint; write 64 hex digits, with or without colons");
        let bare: String = match text.contains(':') {
            true if text.split(':').all(|pair| pair.len() == 2) => text.split(':').collect(),
            true => return Err(wrong()),
            false => text.to_owned(),
        };
        if bare.len() != 64 || !bare.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut fingerprint = [0; 32];
        for (byte, at) in fingerprint.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&bare[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self::Fingerprint(fingerprint))
    }
}

impl fmt::Display for PeerRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerRule::Uri(pattern) => pattern.fmt(f),
            PeerRule::Dns(pattern) => pattern.fmt(f),
            PeerRule::Fingerprint(bytes) => bytes.iter().try_for_each(|b| write!(f, "{b:02x}")),
        }
    }
}

/// A peer as the configuration has it.
#[derive(Debug, Clone)]
pub struct PeerMatcher {
    /// Its name.
    pub name: PeerName,
    /// Which certificates are its own.
    pub rule: PeerRule,
}

/// Two peers that would both be right for one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConflict {
    /// Index of the one.
    pub first: usize,
    /// Index of the other, greater than `first`.
    pub second: usize,
    /// Why they can't both stand.
    pub why: String,
}

/// Every peer, ready to be looked up.
#[derive(Debug, Default)]
pub struct Peers {
    all: Vec<Arc<Peer>>,
    by_name: AHashMap<PeerName, u32>,
    fingerprints: AHashMap<[u8; 32], u32>,
    exact_uris: AHashMap<Box<str>, u32>,
    uri_patterns: UriTrie,
    exact_dns: AHashMap<Box<str>, u32>,
    wildcard_dns: AHashMap<Box<str>, u32>,
}

impl Peers {
    /// Takes the peers in the order of the configuration.
    ///
    /// # Errors
    /// Every two peers of the same name, or that match the same certificate and are equally specific; at most
    /// [`CONFLICTS_MAX`].
    pub fn build(matchers: Vec<PeerMatcher>) -> Result<Self, Vec<PeerConflict>> {
        let mut peers = Peers::default();
        let mut conflicts = Vec::new();
        let mut conflict = |first: u32, second: u32, why: String| {
            if conflicts.len() < CONFLICTS_MAX {
                let (first, second) = (first.min(second) as usize, first.max(second) as usize);
                conflicts.push(PeerConflict { first, second, why });
            }
        };
        for (index, matcher) in (0u32..).zip(&matchers) {
            peers.all.push(Arc::new(Peer { name: matcher.name.clone(), index }));
            if let Some(first) = peers.by_name.insert(matcher.name.clone(), index) {
                conflict(first, index, format!("two peers are named {}", matcher.name));
            }
            if let Some(first) = peers.insert(&matcher.rule, index) {
                conflict(first, index, format!("two peers have {}", matcher.rule));
            }
        }
        let mut seen = AHashSet::new();
        peers.uri_patterns.overlaps(CONFLICTS_MAX, &mut |a, b| {
            let (first, second) = (a.min(b), a.max(b));
            if seen.insert((first, second)) {
                let (one, other) = (&matchers[first as usize].rule, &matchers[second as usize].rule);
                conflict(first, second, format!("{one} and {other} match the same URIs and neither is narrower"));
            }
        });
        if conflicts.is_empty() { Ok(peers) } else { Err(conflicts) }
    }

    /// Puts a rule into its table. Returns the peer that had the same rule before.
    fn insert(&mut self, rule: &PeerRule, index: u32) -> Option<u32> {
        match rule {
            PeerRule::Fingerprint(bytes) => self.fingerprints.insert(*bytes, index),
            PeerRule::Uri(pattern) if pattern.is_exact() => {
                self.exact_uris.insert(pattern.to_string().into_boxed_str(), index)
            }
            PeerRule::Uri(pattern) => self.uri_patterns.insert(pattern, index),
            PeerRule::Dns(pattern) if pattern.wildcard => self.wildcard_dns.insert(pattern.name.clone(), index),
            PeerRule::Dns(pattern) => self.exact_dns.insert(pattern.name.clone(), index),
        }
    }

    /// The peer that a certificate belongs to. Of several DNS SANs that match equally well, the peer that stands
    /// first in the configuration.
    pub fn find(&self, id: &PeerIdentity) -> Option<&Arc<Peer>> {
        let index = self
            .find_fingerprint(&id.fingerprint)
            .or_else(|| id.spiffe_id.as_ref().and_then(|uri| self.find_uri(uri)))
            .or_else(|| self.find_dns(&id.dns))?;
        self.all.get(index as usize)
    }

    fn find_fingerprint(&self, fingerprint: &[u8; 32]) -> Option<u32> {
        self.fingerprints.get(fingerprint).copied()
    }

    fn find_uri(&self, id: &SpiffeId) -> Option<u32> {
        self.exact_uris.get(id.as_str()).copied().or_else(|| self.uri_patterns.find(id))
    }

    fn find_dns(&self, names: &[String]) -> Option<u32> {
        let exact = names.iter().filter_map(|name| self.exact_dns.get(name.as_str()));
        exact.min().copied().or_else(|| {
            let parents = names.iter().filter_map(|name| name.split_once('.'));
            let real = parents.filter(|(label, _)| !label.is_empty() && *label != "*");
            real.filter_map(|(_, parent)| self.wildcard_dns.get(parent)).min().copied()
        })
    }

    /// The peer of this name.
    pub fn by_name(&self, name: &PeerName) -> Option<&Arc<Peer>> {
        self.by_name.get(name).and_then(|index| self.all.get(*index as usize))
    }

    /// Every peer, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.all.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
