//! Which routes are in maintenance, as a gauge that follows the routes in use; and what can't be read of the orders.

use parking_lot::Mutex;
use prometheus::{IntGauge, IntGaugeVec};

use super::Metrics;

/// The family, and the routes that it shows.
pub(super) struct MaintenanceGauges {
    family: IntGaugeVec,
    shown: Mutex<Vec<String>>,
    unreadable_own: IntGauge,
    unreadable_fleet: IntGauge,
}

impl MaintenanceGauges {
    pub(super) fn new(family: IntGaugeVec, unreadable: &IntGaugeVec) -> Self {
        let [unreadable_own, unreadable_fleet] = ["own", "fleet"].map(|scope| unreadable.with_label_values(&[scope]));
        Self { family, shown: Mutex::default(), unreadable_own, unreadable_fleet }
    }
}

impl Metrics {
    /// Shows these routes, and no others any more.
    pub fn set_maintenance(&self, routes: &[(&str, bool)]) {
        let MaintenanceGauges { family, shown, .. } = &self.maintenance;
        let mut shown = shown.lock();
        for gone in shown.iter().filter(|name| !routes.iter().any(|(route, _)| route == name)) {
            // A missing series is what is wanted.
            let _ = family.remove_label_values(&[gone.as_str()]);
        }
        for (route, stopped) in routes {
            family.with_label_values(&[route]).set(i64::from(*stopped));
        }
        *shown = routes.iter().map(|(route, _)| (*route).to_owned()).collect();
    }

    /// So many orders of this gateway's own, and of the fleet's, can't be read.
    pub fn set_unreadable_orders(&self, own: usize, fleet: usize) {
        let MaintenanceGauges { unreadable_own, unreadable_fleet, .. } = &self.maintenance;
        for (gauge, count) in [(unreadable_own, own), (unreadable_fleet, fleet)] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_that_are_gone_are_shown_no_more() {
        let metrics = Metrics::new();
        metrics.set_maintenance(&[("a", true), ("b", false)]);
        metrics.set_maintenance(&[("b", true)]);
        let text = metrics.encode();
        assert!(text.contains("hive_gateway_maintenance{route=\"b\"} 1\n"), "{text}");
        assert!(!text.contains("route=\"a\""), "{text}");
    }
}
