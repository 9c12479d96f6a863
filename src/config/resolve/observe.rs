//! `access_log`, `metrics`, `tracing`.

use std::path::Path;
use std::time::Duration;

use http::HeaderName;

use super::Resolver;
use super::ranges::MINUTE;
use super::secrets::secret;
use crate::config::file::{self, AccessLogFormat};
use crate::config::{Collector, Metrics, Tracing};
use crate::headers;
use crate::observe::{AccessLogTarget, Extras, LogFormat, LogSettings, Rotation, Template};

/// More would make lines that nobody reads.
const HEADERS_MAX: usize = 32;
const TIMEOUT_LEAST: Duration = Duration::from_millis(100);

/// `access_log`
pub(super) fn access_log(r: &mut Resolver<'_>, log: file::AccessLog) -> LogSettings {
    let target = match &log.path {
        _ if log.off => AccessLogTarget::Off,
        None => AccessLogTarget::Stdout,
        Some(name) => AccessLogTarget::File(log_file(r, name).into()),
    };
    let headers = logged_headers(r, &log.headers);
    let format = match &log.format {
        AccessLogFormat::Json => LogFormat::Json,
        AccessLogFormat::Combined => {
            for (i, _) in headers.iter().enumerate().filter(|(_, name)| **name != http::header::REFERER) {
                r.error(&format!("access_log.headers[{i}]"), "the combined format has a place for referer alone");
            }
            LogFormat::Combined
        }
        AccessLogFormat::Template(text) => match Template::parse(text, &headers) {
            Ok(template) => LogFormat::Template(template),
            Err(why) => {
                r.error("access_log.format.template", why);
                LogFormat::Json
            }
        },
    };
    let extras = Extras::new(&headers, &log.redact).unwrap_or_else(|(i, why)| {
        r.error(&format!("access_log.redact[{i}]"), why);
        Extras::default()
    });
    let rotation = log.rotate.as_ref().map(|rotate| {
        r.size("access_log.rotate.size", rotate.size, &(64 << 10..=1 << 40));
        r.range("access_log.rotate.keep", &rotate.keep, &(1..=1000));
        if log.path.is_none() {
            r.error("access_log.rotate", "only a file can be rotated; write path, or leave it out");
        }
        Rotation { bytes: rotate.size.0, keep: rotate.keep }
    });
    LogSettings { target, format, extras, sample: log.sample, rotation }
}

fn log_file(r: &mut Resolver<'_>, name: &str) -> String {
    let name = r.absolute(name);
    if r.around.read_files {
        let path = Path::new(&name);
        let directory = path.parent().unwrap_or(path);
        if !directory.is_dir() {
            r.error("access_log.path", format!("the directory {} does not exist", directory.display()));
        } else if path.is_dir() {
            r.error("access_log.path", format!("{name} is a directory; write a file's name"));
        }
    }
    name
}

fn logged_headers(r: &mut Resolver<'_>, names: &[String]) -> Vec<HeaderName> {
    if names.len() > HEADERS_MAX {
        r.error("access_log.headers", format!("{} headers; the most are {HEADERS_MAX}", names.len()));
    }
    let mut headers: Vec<HeaderName> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let path = format!("access_log.headers[{i}]");
        match HeaderName::from_bytes(name.as_bytes()) {
            Err(_) => r.error(&path, format!("{name:?} is not the name of a header")),
            Ok(name) if headers::is_secret(&name) => {
                r.error(&path, format!("{name} carries a secret by its name; secrets are never logged"));
            }
            Ok(name) if headers.contains(&name) => r.error(&path, format!("{name} is already in this list")),
            Ok(name) => headers.push(name),
        }
    }
    headers
}

/// `metrics`
pub(super) fn metrics(r: &mut Resolver<'_>, metrics: &file::Metrics) -> Metrics {
    r.range("metrics.peers_max", &metrics.peers_max, &(0..=10_000));
    Metrics { peers_max: usize::try_from(metrics.peers_max).unwrap_or(usize::MAX) }
}

/// `tracing`
pub(super) fn tracing(r: &mut Resolver<'_>, raw: Option<file::Tracing>) -> Option<Tracing> {
    let raw = raw?;
    if !cfg!(feature = "otlp") {
        r.error("tracing", "this program was built without it; build with the feature otlp");
    }
    r.span("tracing.timeout", raw.timeout, TIMEOUT_LEAST, MINUTE);
    if raw.service_name.is_empty() || raw.service_name.len() > 256 || raw.service_name.contains(char::is_control) {
        r.error("tracing.service_name", "write 1 to 256 bytes without control characters");
    }
    let bearer = secret(r, "tracing", "bearer_secret", raw.bearer_secret, raw.bearer_secret_file, 1);
    let ca = raw.ca.map(|name| r.material(&name));
    let collector = match Collector::parse(&raw.otlp) {
        Ok(collector) => collector,
        Err(why) => {
            r.error("tracing.otlp", why);
            return None;
        }
    };
    if collector.tls && collector.host.parse::<std::net::IpAddr>().is_ok() {
        r.error("tracing.otlp", "https:// needs the name in the collector's certificate, not an address");
    }
    match &ca {
        None if collector.tls => {
            r.error(
                "tracing.ca",
                "https:// needs what the collector's certificate chains to; write ca: collector-ca.pem",
            );
        }
        Some(_) if !collector.tls => r.error("tracing.ca", "not used without TLS; write https://, or leave it out"),
        Some(name) if r.around.read_files => {
            if let Err(e) = std::fs::File::open(name) {
                r.error("tracing.ca", format!("the file {name:?} can't be read: {e}"));
            }
        }
        _ => {}
    }
    if bearer.is_some() && !collector.tls && !is_local(&collector.host) {
        r.warn("tracing.otlp", "the bearer secret goes in plain text to another machine; write https://");
    }
    Some(Tracing {
        collector,
        sample: raw.sample,
        parent_based: raw.parent_based,
        service_name: raw.service_name,
        timeout: raw.timeout.0,
        bearer,
        ca,
    })
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
