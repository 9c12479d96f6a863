//! Blocks of what an operator sees: `access_log`, `metrics`, `tracing`.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::{SecretText, seconds, yes};
use crate::units::{Percent, Size, Span};

/// `access_log`: `stdout`, `off`, or a block.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct AccessLog {
    /// To the end of this file, whose directory must exist. Default: standard output.
    pub path: Option<String>,
    /// `json`, `combined` (Apache's and nginx's) or `{ template: "…" }`. Default json.
    pub format: AccessLogFormat,
    /// Request headers that are logged too, at most 32: `header.NAME`. Names of credentials are refused. Default none.
    pub headers: Vec<String>,
    /// Names of fields and of `headers` whose value is written as `[redacted]`. Default none.
    pub redact: Vec<String>,
    /// Share of the requests without a fault that get a line, 0% to 100%. Default 100%. Refusals, statuses from 400 on, broken
    /// answers and requests beyond a rate limit always get one.
    pub sample: Percent,
    /// When the file is moved away. Default never: `logrotate` and SIGUSR1 do it.
    pub rotate: Option<Rotate>,
    /// `access_log: off`; no key of the block.
    #[serde(skip)]
    pub(crate) off: bool,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            path: None,
            format: AccessLogFormat::Json,
            headers: Vec::new(),
            redact: Vec::new(),
            sample: Percent(1000),
            rotate: None,
            off: false,
        }
    }
}

impl<'de> Deserialize<'de> for AccessLog {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = AccessLog;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("stdout, off, or { path }")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<AccessLog, E> {
                // YAML 1.1 reads a bare off as false.
                if v { Err(E::invalid_value(de::Unexpected::Bool(v), &self)) } else { self.visit_str("off") }
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<AccessLog, E> {
                match v {
                    "stdout" => Ok(AccessLog::default()),
                    "off" => Ok(AccessLog { off: true, ..AccessLog::default() }),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AccessLog, A::Error> {
                AccessLog::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        d.deserialize_any(V)
    }
}

/// How a line looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object.
    Json,
    /// The combined format.
    Combined,
    /// An operator's own.
    Template(String),
}

impl<'de> Deserialize<'de> for AccessLogFormat {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            template: String,
        }
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = AccessLogFormat;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("json, combined, or { template }")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<AccessLogFormat, E> {
                match v {
                    "json" => Ok(AccessLogFormat::Json),
                    "combined" => Ok(AccessLogFormat::Combined),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AccessLogFormat, A::Error> {
                let Fields { template } = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(AccessLogFormat::Template(template))
            }
        }
        d.deserialize_any(V)
    }
}

/// `access_log.rotate`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// A file that would grow beyond this becomes `access.log.1`, 64 KiB to 1 TiB.
    pub size: Size,
    /// How many of those are kept, 1 to 1000. Default 5.
    #[serde(default = "keep")]
    pub keep: u32,
}

fn keep() -> u32 {
    5
}

/// `metrics`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Peers that have series of their own, 0 to 10000: the first that call. The others are counted as `other`. Default 100:
    /// each takes some thirty series.
    pub peers_max: u32,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { peers_max: 100 }
    }
}

/// `tracing`: spans for a share of the requests, sent to an OpenTelemetry collector.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// `http://` or `https://` URL of the collector's OTLP receiver over HTTP; `/v1/traces` is added to it.
    pub otlp: String,
    /// Share of the requests that are traced where the client says nothing, 0% to 100%. Default 1%.
    #[serde(default = "trace_sample")]
    pub sample: Percent,
    /// Whether a client that says of a request that it is traced, or is not, decides. Default true, as OpenTelemetry's
    /// `parentbased_traceidratio`; false: `sample` alone decides.
    #[serde(default = "yes")]
    pub parent_based: bool,
    /// `service.name` of the spans. Default `hive-gateway`.
    #[serde(default = "service_name")]
    pub service_name: String,
    /// Longest time of one export, 100ms to 1m. Default 10s, as OpenTelemetry's.
    #[serde(default = "export_timeout")]
    pub timeout: Span,
    /// `Authorization: Bearer …` for the collector. Default none.
    pub bearer_secret: Option<SecretText>,
    /// File that holds [`Self::bearer_secret`]; one of the two.
    pub bearer_secret_file: Option<String>,
    /// PEM bundle that the collector's certificate chains to. Needed with https, refused without.
    pub ca: Option<String>,
}

fn trace_sample() -> Percent {
    Percent(10)
}

fn service_name() -> String {
    "hive-gateway".into()
}

fn export_timeout() -> Span {
    seconds(10)
}
