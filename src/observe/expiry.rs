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
    /// RFC 4514.
    pub subject: &'a str,
    /// Hexadecimal. Tells certificates of one subject apart (an ECDSA and an RSA one, a CA and its successor); of two with
    /// one serial, which are of different CAs, the earlier end is shown.
    pub serial: &'a str,
    /// Begin of the validity, seconds since 1970: whether little is left depends on how long it was. Not shown of
    /// [`Expiring::Staple`].
    pub not_before: i64,
}

type Series = (Expiring, String, String, String);

/// Of when one kind ends, and of when it began.
type Family = (Expiring, IntGaugeVec, Option<IntGaugeVec>);

/// The gauges, and which series they have.
pub(super) struct ExpiryGauges {
    families: [Family; 5],
    shown: Mutex<HashMap<Series, (i64, i64)>>,
}

impl ExpiryGauges {
    pub(super) fn new(families: [Family; 5]) -> Self {
        Self { families, shown: Mutex::default() }
    }

    fn family(&self, kind: Expiring) -> Option<&Family> {
        self.families.iter().find(|(k, ..)| *k == kind)
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
                let series = (e.kind, e.owner.to_owned(), e.subject.to_owned(), e.serial.to_owned());
                wanted.entry(series).or_insert((e.not_before, e.not_after));
            }
        }
        let mut shown = self.shown.lock();
        for (kind, owner, subject, serial) in shown.keys().filter(|series| !wanted.contains_key(*series)) {
            if let Some((_, ends, begins)) = self.family(*kind) {
                // A missing series is what is wanted.
                let _ = ends.remove_label_values(&[owner, subject, serial]);
                let _ = begins.as_ref().map(|family| family.remove_label_values(&[owner, subject, serial]));
            }
        }
        for ((kind, owner, subject, serial), (not_before, not_after)) in &wanted {
            if let Some((_, ends, begins)) = self.family(*kind) {
                ends.with_label_values(&[owner, subject, serial]).set(*not_after);
                if let Some(family) = begins {
                    family.with_label_values(&[owner, subject, serial]).set(*not_before);
                }
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
        let own = |owner, subject, serial, not_after| Expiry {
            kind: Expiring::Certificate,
            owner,
            subject,
            serial,
            not_before: -1,
            not_after,
        };
        metrics.set_expiries(&[
            own("l", "CN=old", "01", 1),
            own("l", "CN=both", "02", 2),
            own("other", "CN=old", "01", 5),
        ]);
        metrics.set_expiries(&[
            own("l", "CN=both", "02", 3),
            own("l", "CN=new", "03", 9),
            own("l", "CN=new", "04", 4),
            own("l", "CN=new", "04", 5),
            own("other", "CN=old", "01", 5),
            Expiry {
                kind: Expiring::Authority,
                owner: "l",
                subject: "CN=ca",
                serial: "aa",
                not_before: 3,
                not_after: 7,
            },
        ]);
        let text = metrics.encode();
        let shown: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix("hive_gateway_")).filter(|l| l.contains("not_after")).collect();
        let line = |owner, serial, subject, value| {
            let labels = format!("listener=\"{owner}\",serial=\"{serial}\",subject=\"{subject}\"");
            format!("certificate_not_after_seconds{{{labels}}} {value}")
        };
        let ca = "ca_not_after_seconds{listener=\"l\",serial=\"aa\",subject=\"CN=ca\"} 7".to_owned();
        let mut expected = [
            ca,
            line("l", "02", "CN=both", 3),
            line("l", "03", "CN=new", 9),
            line("l", "04", "CN=new", 4),
            line("other", "01", "CN=old", 5),
        ];
        let mut shown = shown;
        shown.sort_unstable();
        expected.sort_unstable();
        assert_eq!(shown, expected);
        // The begin comes and goes with the end.
        let begins: Vec<&str> = text.lines().filter(|l| l.contains("not_before_seconds{")).collect();
        assert_eq!(begins.len(), expected.len(), "{begins:#?}");
        let ca = "hive_gateway_ca_not_before_seconds{listener=\"l\",serial=\"aa\",subject=\"CN=ca\"} 3";
        assert!(begins.contains(&ca), "{begins:#?}");
    }

    #[test]
    fn of_a_huge_bundle_the_first_to_expire_are_shown() {
        let metrics = Metrics::new();
        let subjects: Vec<String> = (0..200).map(|n| format!("CN={n}")).collect();
        let all: Vec<_> = subjects
            .iter()
            .zip((0..).map(|n| 1_000 - n))
            .map(|(subject, not_after)| Expiry {
                kind: Expiring::Authority,
                owner: "l",
                subject,
                serial: "01",
                not_before: 0,
                not_after,
            })
            .collect();
        metrics.set_expiries(&all);
        let text = metrics.encode();
        assert_eq!(text.matches("hive_gateway_ca_not_after_seconds{").count(), SERIES_MAX);
        assert!(text.contains("subject=\"CN=199\"} 801\n"));
    }
}
