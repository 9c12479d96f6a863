//! The two texts in which metrics are read: Prometheus' own, and OpenMetrics, whichever the reader prefers.

use std::fmt::Write;

use prometheus::TextEncoder;
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// Of the formats that `Accept` names the one it likes best; the text format for a tie and for want of better
    /// (RFC 9110, section 12.5.1).
    pub fn preferred(accept: &[u8]) -> Self {
        let accept = String::from_utf8_lossy(accept);
        let (mut text, mut open) = (None, None);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<_> = parts.filter_map(|p| p.split_once('=')).collect();
            let parameter = |name: &str| parameters.iter().find(|(n, _)| n.trim().eq_ignore_ascii_case(name));
            let quality = parameter("q").map_or(1000, |(_, q)| thousandths(q));
            let version = parameter("version").map(|(_, v)| v.trim().trim_matches('"'));
            match kind.as_str() {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0" | "0.0.1")) => {
                    open = open.max(Some(quality));
                }
                "text/plain" | "text/*" | "*/*" => text = text.max(Some(quality)),
                // Media types are an open set.
                _ => {}
            }
        }
        match open {
            Some(open) if open > text.unwrap_or(0) => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A `q` of `Accept` in thousandths (RFC 9110, section 12.4.2); what is none counts for nothing.
fn thousandths(q: &str) -> u16 {
    let q = q.trim().parse::<f32>().unwrap_or(0.0);
    (q.clamp(0.0, 1.0) * 1000.0) as u16
}

/// Writes the families down.
pub(super) fn encode(families: &[MetricFamily], format: Exposition) -> String {
    let mut text = String::with_capacity(32 << 10);
    match format {
        Exposition::Text => {
            if let Err(e) = TextEncoder::new().encode_utf8(families, &mut text) {
                log::error!("metrics can't be written: {e}");
            }
        }
        Exposition::OpenMetrics => {
            families.iter().for_each(|family| open_metrics(&mut text, family));
            text.push_str("# EOF\n");
        }
    }
    text
}

/// One family: a counter's is named without `_total`, which belongs to its sample (OpenMetrics 1.0, "Counter").
fn open_metrics(out: &mut String, family: &MetricFamily) {
    let kind = family.get_field_type();
    let (name, kind_name) = match kind {
        MetricType::COUNTER => (family.name().trim_end_matches("_total"), "counter"),
        MetricType::HISTOGRAM => (family.name(), "histogram"),
        MetricType::GAUGE => (family.name(), "gauge"),
        // None of these is made here.
        MetricType::SUMMARY | MetricType::UNTYPED => return,
    };
    // Writing to a `String` can't fail, here and below.
    let _ = writeln!(out, "# TYPE {name} {kind_name}");
    if let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| ends_in_unit(name, unit)) {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
    let _ = write!(out, "# HELP {name} ");
    push_escaped(out, family.help());
    out.push('\n');
    for metric in family.get_metric() {
        match kind {
            MetricType::COUNTER => sample(out, name, "_total", metric, None, metric.get_counter().get_value()),
            MetricType::HISTOGRAM => histogram(out, name, metric),
            _ => sample(out, name, "", metric, None, metric.get_gauge().get_value()),
        }
    }
}

fn ends_in_unit(name: &str, unit: &str) -> bool {
    name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'))
}

fn histogram(out: &mut String, name: &str, metric: &Metric) {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count() as f64;
    let mut last = 0.0;
    for bucket in histogram.get_bucket() {
        last = bucket.upper_bound();
        sample(out, name, "_bucket", metric, Some(last), bucket.cumulative_count() as f64);
    }
    if last != f64::INFINITY {
        sample(out, name, "_bucket", metric, Some(f64::INFINITY), count);
    }
    sample(out, name, "_sum", metric, None, histogram.get_sample_sum());
    sample(out, name, "_count", metric, None, count);
}

fn sample(out: &mut String, name: &str, ending: &str, metric: &Metric, bound: Option<f64>, value: f64) {
    out.push_str(name);
    out.push_str(ending);
    let mut separator = '{';
    for label in metric.get_label() {
        push_label(out, separator, label);
        separator = ',';
    }
    match bound {
        // The canonical form has a point: 1.0, not 1.
        Some(f64::INFINITY) => drop(write!(out, "{separator}le=\"+Inf\"}}")),
        Some(bound) => drop(write!(out, "{separator}le=\"{bound:?}\"}}")),
        None if separator == ',' => out.push('}'),
        None => {}
    }
    let _ = writeln!(out, " {value}");
}

fn push_label(out: &mut String, separator: char, label: &LabelPair) {
    let _ = write!(out, "{separator}{}=\"", label.name());
    push_escaped(out, label.value());
    out.push('"');
}

fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{MethodLabel, Metrics};
    use std::time::Duration;

    #[test]
    fn the_reader_gets_what_it_likes_best() {
        for (accept, format) in [
            ("", Exposition::Text),
            ("*/*", Exposition::Text),
            ("text/html, application/xml;q=0.9, */*;q=0.8", Exposition::Text),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0, text/plain;q=0.5", Exposition::OpenMetrics),
            ("application/openmetrics-text;version=\"1.0.0\";q=0.4, text/plain;version=0.0.4;q=0.5", Exposition::Text),
            ("application/openmetrics-text;version=2.0.0", Exposition::Text),
            ("application/openmetrics-text;q=0", Exposition::Text),
            ("application/openmetrics-text;q=x, */*;q=0.1", Exposition::Text),
            // Prometheus 2.42 as it asks.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Exposition::OpenMetrics,
            ),
        ] {
            assert_eq!(Exposition::preferred(accept.as_bytes()), format, "{accept}");
        }
    }

    #[test]
    fn open_metrics_names_counters_without_total_and_ends_with_eof() {
        let metrics = Metrics::new();
        metrics.route("r", "/\"\\\n").record(MethodLabel::Post, 200, Duration::from_millis(700));
        let text = metrics.encode_as(Exposition::OpenMetrics);
        for line in [
            "# TYPE hive_gateway_http_requests counter",
            "hive_gateway_http_requests_total{code=\"200\",method=\"POST\",path=\"/\\\"\\\\\\n\"} 1",
            "# TYPE hive_gateway_http_request_duration_seconds histogram",
            "# UNIT hive_gateway_http_request_duration_seconds seconds",
            "hive_gateway_http_request_duration_seconds_bucket{route=\"r\",le=\"0.5\"} 0",
            "hive_gateway_http_request_duration_seconds_bucket{route=\"r\",le=\"1.0\"} 1",
            "hive_gateway_http_request_duration_seconds_bucket{route=\"r\",le=\"+Inf\"} 1",
            "hive_gateway_http_request_duration_seconds_count{route=\"r\"} 1",
            "hive_gateway_requests_in_flight 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
    }
}
