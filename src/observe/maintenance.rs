//! Which routes are in maintenance, as a gauge that follows the routes in use.

use parking_lot::Mutex;
use prometheus::IntGaugeVec;

use super::Metrics;

/// The family, and the routes that it shows.
pub(super) struct MaintenanceGauges {
    family: IntGaugeVec,
    shown: Mutex<Vec<String>>,
}

impl MaintenanceGauges {
    pub(super) fn new(family: IntGaugeVec) -> Self {
        Self { family, shown: Mutex::default() }
    }
}

impl Metrics {
    /// Shows these routes, and no others any more.
    pub fn set_maintenance(&self, routes: &[(&str, bool)]) {
        let MaintenanceGauges { family, shown } = &self.maintenance;
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
