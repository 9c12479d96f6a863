//! `request_rules` and `waf` of listeners and routes: which requests are not taken for what they hold.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::names::RuleName;
use crate::policy::rules::Action;
use crate::units::{Size, Span};

/// `listeners[].request_rules[]` and `routes[].request_rules[]`: exactly one of the tests, and what follows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRule {
    /// Appears in log and metric, behind where the rule stands.
    pub name: RuleName,
    /// `deny` (default) or `log`: what meets it is counted and logged, and passes.
    #[serde(default)]
    pub action: Action,
    /// Texts of which `User-Agent` holds one, in any case. Refusal `user_agent_blocked`, 403.
    pub user_agent: Option<Vec<String>>,
    /// A header, one of whose values matches. Refusal `request_denied`, 403.
    pub header: Option<HeaderPattern>,
    /// A regular expression that the path matches, as it was sent. Refusal `request_denied`, 403.
    pub path: Option<String>,
    /// A regular expression that the query matches, without its `?`. Refusal `request_denied`, 403.
    pub query: Option<String>,
    /// More header fields than this, 1 to 100. Refusal `header_too_large`, 431.
    pub max_headers: Option<usize>,
    /// A header's value longer than this, 16 B to 256 KiB. Refusal `header_too_large`, 431.
    pub max_header_bytes: Option<Size>,
    /// Path and query longer than this, 16 B to 256 KiB. Refusal `uri_too_long`, 414.
    pub max_uri_bytes: Option<Size>,
}

/// `request_rules[].header`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderPattern {
    /// Which header.
    pub name: String,
    /// A regular expression.
    pub matches: String,
}

/// `listeners[].waf` and `routes[].waf`: only in builds with the feature `waf`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waf {
    /// `blocking`, `detection_only`, or `off`, for a route without that of its listener.
    pub mode: WafMode,
    /// Files of ModSecurity rules in the order in which they are read, or directories, of which the `*.conf`. Required but
    /// with `off`.
    #[serde(default)]
    pub rules: Vec<String>,
    /// The score from which a request is not wanted, 1 to 10000. Default 5, one critical rule.
    #[serde(default = "Waf::threshold_default")]
    pub anomaly_threshold: u32,
    /// Longest body that is looked at, 1 KiB to 1 MiB. Default 32 KiB: the worst case grows with its square. Beyond: 413,
    /// and with `detection_only` it is not looked at.
    #[serde(default = "Waf::body_limit_default")]
    pub body_limit: Size,
    /// Longest wait for the engine, 10ms to 30s. Default 2s. Beyond: 503, and with `detection_only` it passes.
    #[serde(default = "Waf::timeout_default")]
    pub timeout: Span,
}

impl Waf {
    fn threshold_default() -> u32 {
        5
    }

    fn body_limit_default() -> Size {
        Size(32 << 10)
    }

    fn timeout_default() -> Span {
        Span(Duration::from_secs(2))
    }
}

/// `waf.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WafMode {
    /// Nothing is looked at.
    Off,
    /// Counted and logged.
    DetectionOnly,
    /// Refused.
    Blocking,
}

impl<'de> Deserialize<'de> for WafMode {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = WafMode;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("off, detection_only or blocking")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<WafMode, E> {
                // YAML 1.1 reads a bare off as false.
                if v { Err(E::invalid_value(de::Unexpected::Bool(v), &self)) } else { Ok(WafMode::Off) }
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<WafMode, E> {
                match v {
                    "off" => Ok(WafMode::Off),
                    "detection_only" => Ok(WafMode::DetectionOnly),
                    "blocking" => Ok(WafMode::Blocking),
                    _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
                }
            }
        }
        d.deserialize_any(V)
    }
}
