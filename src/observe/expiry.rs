//! When certificates expire, as gauges that follow the certificates in use.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus::IntGaugeVec;

/// Most series of one owner and kind: a bundle may hold hundreds of CAs. Those that expire first are shown.
const SERIES_MAX: usize = 50;

/// What expires, and with it the metric that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Expiring {
    /// The certificate that a listener shows.
    Certificate,
    /// A CA of a listener's bundle.
    Authority,
    /// The certificate that an upstream's nodes are shown.
    UpstreamCertificate,
    /// A CA of an upstream's bundle.
    UpstreamAuthority,
    /// The OCSP answer that a listener sends along with its certificate.
    Staple,
}

impl Expiring {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Certificate, Self::Authority, Self::UpstreamCertificate, Self::UpstreamAuthority, Self::Staple];
}

/// One series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expiry<'a> {
    /// What it is.
    pub kind: Expiring,
    /// Name of the listener or upstream.
    pub owner: &'a str,
    /// End of the validity, seconds since 1970.
    pub not_after: i64,
    /// RFC 4514. Of two with one subject (an ECDSA and an RSA certificate) the earlier end is shown.
    pub subject: &'a str,
}

type Series = (Expiring, String, String);

/// The gauges, and which series they have.
pub(super) struct ExpiryGauges {
    families: [(Expiring, IntGaugeVec); 5],
    shown: Mutex<HashMap<Series, i64>>,
}

impl ExpiryGauges {
    pub(super) fn new(families: [(Expiring, IntGaugeVec); 5]) -> Self {
        Self { families, shown: Mutex::default() }
    }

    fn family(&self, kind: Expiring) -> Option<&IntGaugeVec> {
        self.families.iter().find(|(k, _)| *k == kind).map(|(_, family)| family)
    }

    /// These, and no others.
    pub(super) fn set(&self, all: &[Expiry<'_>]) {
        let mut sorted = all.to_vec();
        sorted.sort_unstable();
        let mut wanted = HashMap::with_capacity(sorted.len());
        let mut counts = HashMap::new();
        for e in sorted {
            let count: &mut usize = counts.entry((e.kind, e.owner)).or_default();
            *count += 1;
            if *count <= SERIES_MAX {
                let series = (e.kind, e.owner.to_owned(), e.subject.to_owned());
                wanted.entry(series).or_insert(e.not_after);
            }
        }
        let mut shown = self.shown.lock();
        for (kind, owner, subject) in shown.keys().filter(|series| !wanted.contains_key(*series)) {
            let _ = self.family(*kind).map(|family| family.remove_label_values(&[owner, subject]));
        }
        for ((kind, owner, subject), not_after) in &wanted {
            if let Some(family) = self.family(*kind) {
                family.with_label_values(&[owner, subject]).set(*not_after);
            }
        }
        *shown = wanted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn a_certificate_that_is_no_longer_used_is_no_longer_shown() {
        let metrics = Metrics::new();
        let own = |owner, subject, not_after| Expiry { kind: Expiring::Certificate, owner, subject, not_after };
        metrics.set_expiries(&[own("l", "CN=old", 1), own("l", "CN=both", 2), own("other", "CN=old", 5)]);
        metrics.set_expiries(&[
            own("l", "CN=both", 3),
            own("l", "CN=new", 9),
            own("l", "CN=new", 4),
            own("other", "CN=old", 5),
            Expiry { kind: Expiring::Authority, owner: "l", subject: "CN=ca", not_after: 7 },
        ]);
        let text = metrics.encode();
        let shown: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix("hive_gateway_")).filter(|l| l.contains("not_after")).collect();
        let line = |owner, subject, value| {
            format!("certificate_not_after_seconds{{listener=\"{owner}\",subject=\"{subject}\"}} {value}")
        };
        let ca = "ca_not_after_seconds{listener=\"l\",subject=\"CN=ca\"} 7".to_owned();
        let expected = [ca, line("l", "CN=both", 3), line("l", "CN=new", 4), line("other", "CN=old", 5)];
        assert_eq!(shown, expected);
    }

    #[test]
    fn of_a_huge_bundle_the_first_to_expire_are_shown() {
        let metrics = Metrics::new();
        let subjects: Vec<String> = (0..200).map(|n| format!("CN={n}")).collect();
        let all: Vec<_> = subjects
            .iter()
            .zip((0..).map(|n| 1_000 - n))
            .map(|(subject, not_after)| Expiry { kind: Expiring::Authority, owner: "l", subject, not_after })
            .collect();
        metrics.set_expiries(&all);
        let text = metrics.encode();
        assert_eq!(text.matches("hive_gateway_ca_not_after_seconds{").count(), SERIES_MAX);
        assert!(text.contains("subject=\"CN=199\"} 801\n"));
    }
}
