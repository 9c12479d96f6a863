//! What the metrics show of revocation lists.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec};

use super::labels::{CrlFetchResult, OcspResult};
use super::metrics::Metrics;

/// The lists of one issuer on a listener.
#[derive(Debug, Clone, Copy)]
pub struct CrlShown<'a> {
    /// The issuer (RFC 4514): a CA of the configuration.
    pub issuer: &'a str,
    /// When the oldest was made, seconds since 1970.
    pub this_update: i64,
    /// When the first is due to be replaced, seconds since 1970; `i64::MAX`: never.
    pub next_update: i64,
    /// Revoked certificates.
    pub entries: usize,
}

pub(super) struct CrlFamilies {
    pub(super) this_update: IntGaugeVec,
    pub(super) next_update: IntGaugeVec,
    pub(super) entries: IntGaugeVec,
    pub(super) fetches: IntCounterVec,
    pub(super) ocsp: IntCounterVec,
    pub(super) staples: IntCounterVec,
    /// Issuers with series, by listener.
    pub(super) shown: Mutex<HashMap<String, Vec<String>>>,
}

impl Metrics {
    /// Shows the lists of a listener, and no longer those of issuers that it had before.
    pub fn set_crls(&self, listener: &str, crls: &[CrlShown<'_>]) {
        let families = &self.crls;
        let issuers = crls.iter().map(|crl| crl.issuer.to_owned()).collect();
        // Held to the end: a fetch and a reload may come together.
        let mut shown = families.shown.lock();
        for issuer in shown.insert(listener.to_owned(), issuers).unwrap_or_default() {
            for family in [&families.this_update, &families.next_update, &families.entries] {
                // One without a nextUpdate has no such series.
                let _ = family.remove_label_values(&[listener, &issuer]);
            }
        }
        for crl in crls {
            let labels = [listener, crl.issuer];
            families.this_update.with_label_values(&labels).set(crl.this_update);
            families.entries.with_label_values(&labels).set(i64::try_from(crl.entries).unwrap_or(i64::MAX));
            if crl.next_update != i64::MAX {
                families.next_update.with_label_values(&labels).set(crl.next_update);
            }
        }
    }

    /// Counts a list that was asked for over HTTP.
    pub fn crl_fetched(&self, listener: &str, result: CrlFetchResult) {
        self.crls.fetches.with_label_values(&[listener, result.as_str()]).inc();
    }

    /// Counts an answer of an OCSP responder about the gateway's own certificate, or the want of one.
    pub fn staple_fetched(&self, listener: &str, result: OcspResult) {
        self.crls.staples.with_label_values(&[listener, result.as_str()]).inc();
    }

    /// Counts an answer of an OCSP responder about a client's certificate, or the want of one.
    pub fn ocsp_answered(&self, listener: &str, result: OcspResult) {
        self.crls.ocsp.with_label_values(&[listener, result.as_str()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_that_is_gone_has_no_series() {
        let metrics = Metrics::new();
        let crl = |issuer, next_update| CrlShown { issuer, this_update: 5, next_update, entries: 3 };
        metrics.set_crls("front", &[crl("CN=a", 7), crl("CN=b", i64::MAX)]);
        let text = metrics.encode();
        assert!(text.contains(r#"crl_next_update_seconds{issuer="CN=a",listener="front"} 7"#), "{text}");
        assert!(!text.contains(r#"crl_next_update_seconds{issuer="CN=b""#), "{text}");
        metrics.set_crls("front", &[crl("CN=b", 9)]);
        let text = metrics.encode();
        assert!(!text.contains("CN=a") && text.contains(r#"crl_entries{issuer="CN=b",listener="front"} 3"#), "{text}");
    }
}
