//! What the metrics show of revocation lists.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec, Registry};

use super::definitions::Definition;
use super::labels::{CrlFetchResult, OcspResult};
use super::metrics::Metrics;
use super::register::gauges;

/// The lists of one issuer on a listener or an upstream.
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
    pub(super) of_listeners: CrlGauges,
    pub(super) of_upstreams: CrlGauges,
    pub(super) fetches: IntCounterVec,
    pub(super) ocsp: IntCounterVec,
    pub(super) staples: IntCounterVec,
}

/// What is known of the lists of listeners, or of upstreams.
pub(super) struct CrlGauges {
    this_update: IntGaugeVec,
    next_update: IntGaugeVec,
    entries: IntGaugeVec,
    /// Issuers with series, by owner.
    shown: Mutex<HashMap<String, Vec<String>>>,
}

impl CrlGauges {
    /// Of when a list was made, when the next is due, and what is in it.
    pub(super) fn new(registry: &Registry, [this_update, next_update, entries]: [&Definition; 3]) -> Self {
        Self {
            this_update: gauges(registry, this_update),
            next_update: gauges(registry, next_update),
            entries: gauges(registry, entries),
            shown: Mutex::default(),
        }
    }

    /// Shows the lists of an owner, and no longer those of issuers that it had before.
    fn set(&self, owner: &str, crls: &[CrlShown<'_>]) {
        let issuers: Vec<_> = crls.iter().map(|crl| crl.issuer.to_owned()).collect();
        // Held to the end: a fetch and a reload may come together.
        let mut shown = self.shown.lock();
        let before = match issuers.is_empty() {
            true => shown.remove(owner),
            false => shown.insert(owner.to_owned(), issuers),
        };
        self.remove(owner, &before.unwrap_or_default());
        for crl in crls {
            let labels = [owner, crl.issuer];
            self.this_update.with_label_values(&labels).set(crl.this_update);
            self.entries.with_label_values(&labels).set(i64::try_from(crl.entries).unwrap_or(i64::MAX));
            if crl.next_update != i64::MAX {
                self.next_update.with_label_values(&labels).set(crl.next_update);
            }
        }
    }

    /// Shows only lists of these owners from now on.
    fn keep(&self, owners: &[&str]) {
        self.shown.lock().retain(|owner, issuers| {
            let kept = owners.contains(&owner.as_str());
            if !kept {
                self.remove(owner, issuers);
            }
            kept
        });
    }

    fn remove(&self, owner: &str, issuers: &[String]) {
        for issuer in issuers {
            for family in [&self.this_update, &self.next_update, &self.entries] {
                // One without a nextUpdate has no such series.
                let _ = family.remove_label_values(&[owner, issuer]);
            }
        }
    }
}

impl Metrics {
    /// Shows the lists of a listener, and no longer those of issuers that it had before.
    pub fn set_crls(&self, listener: &str, crls: &[CrlShown<'_>]) {
        self.crls.of_listeners.set(listener, crls);
    }

    /// The same of an upstream.
    pub fn set_upstream_crls(&self, upstream: &str, crls: &[CrlShown<'_>]) {
        self.crls.of_upstreams.set(upstream, crls);
    }

    /// Shows only lists of these upstreams from now on.
    pub fn keep_upstream_crls(&self, upstreams: &[&str]) {
        self.crls.of_upstreams.keep(upstreams);
    }

    /// Shows all that may come of asking for lists over HTTP, so that the first failure is an increase and not a new series.
    pub fn expect_crl_fetches(&self, listener: &str) {
        for result in CrlFetchResult::ALL {
            self.crls.fetches.with_label_values(&[listener, result.as_str()]);
        }
    }

    /// The same of the OCSP answers about the gateway's own certificates.
    pub fn expect_staples(&self, listener: &str) {
        for result in OcspResult::ALL {
            self.crls.staples.with_label_values(&[listener, result.as_str()]);
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
        for name in ["old", "new"] {
            metrics.set_upstream_crls(name, &[crl("CN=hive", 8)]);
        }
        metrics.keep_upstream_crls(&["new"]);
        let text = metrics.encode();
        assert!(text.contains(r#"upstream_crl_next_update_seconds{issuer="CN=hive",upstream="new"} 8"#), "{text}");
        assert!(!text.contains(r#"upstream="old""#), "{text}");
    }
}
