//! The web application firewall: requests under ModSecurity's rules, such as the OWASP Core Rule Set.
//!
//! Only in builds with the feature `waf`, which link libmodsecurity 3; without it, configuring one is an error. A request is
//! looked at in two phases, header and body; answers are not looked at. The engine takes milliseconds of processor for a
//! request and can't be interrupted, so it runs in threads of its own, below the priority of those that serve requests,
//! and what is asked of it has limits: bytes, values in the body, steps of an expression, requests that wait, time.

mod coding;
#[cfg(feature = "waf")]
mod engine;
mod files;
#[cfg(feature = "waf")]
mod queue;
#[cfg(feature = "waf")]
mod skips;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::observe::WafVerdict;

pub use coding::{check_fields, check_parts};
pub use files::{Entry, data_beside, rule_files};

/// Whether this build has the engine.
pub const BUILT_IN: bool = cfg!(feature = "waf");

/// What becomes of a request that the rules don't want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It is counted and logged, and passes.
    DetectionOnly,
    /// It is refused.
    Blocking,
}

/// A firewall as it is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Rule files in the order in which they are read, by item of the list that names them.
    pub entries: Vec<Entry>,
    /// What follows.
    pub mode: Mode,
    /// The score from which a request is not wanted.
    pub anomaly_threshold: u32,
    /// Longest body that is looked at, in bytes.
    pub body_limit: u64,
    /// Longest wait for the engine.
    pub timeout: Duration,
}

/// Why rules can't be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which item of the list, if one.
    pub entry: Option<usize>,
    /// What is wrong: the engine's own words, with file and line.
    pub message: String,
}

/// A rule that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Its number.
    pub rule: i64,
    /// From 0, emergency, to 7, debug.
    pub severity: u32,
    /// Its text; bytes, for macros in it may bring in what a client sent.
    pub message: Vec<u8>,
}

/// What came of a request.
#[derive(Debug)]
pub struct Judgement {
    /// What follows.
    pub verdict: WafVerdict,
    /// The sum of what matched.
    pub score: u32,
    /// The first of the rules that matched.
    pub matches: Vec<Match>,
}

impl Judgement {
    #[cfg_attr(not(feature = "waf"), expect(dead_code, reason = "nobody judges without an engine"))]
    fn unavailable() -> Self {
        Self { verdict: WafVerdict::Unavailable, score: 0, matches: Vec::new() }
    }
}

/// A request as the engine is told it. It has its own copy: the engine may outlive the request.
#[derive(Debug)]
pub struct Request {
    /// The client's address, and its port or that of the proxy that speaks for it.
    pub client: SocketAddr,
    /// What tells its certificate from those of others, if it has one: requests of one wait for one another.
    pub certificate: Option<Box<[u8]>>,
    /// The method.
    pub method: Method,
    /// Path and query as they were sent.
    pub target: Vec<u8>,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// For HTTP/2, whose requests have no `Host`.
    pub host: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// A firewall: rules that are read, and what to do with what they say.
pub struct Waf {
    settings: Settings,
    #[cfg(feature = "waf")]
    rules: std::sync::Arc<engine::Rules>,
    #[cfg(not(feature = "waf"))]
    rules: std::convert::Infallible,
}

impl fmt::Debug for Waf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl Waf {
    /// Reads the rules, or takes those that are in use if nothing of them changed. Blocks: for files and for the engine, a
    /// quarter of a second with the core rules.
    ///
    /// # Errors
    /// What the engine says is wrong with them, or that this build has none.
    pub fn load(settings: Settings) -> Result<Self, Fault> {
        #[cfg(feature = "waf")]
        {
            let rules = engine::Rules::load(&settings)?;
            Ok(Self { settings, rules })
        }
        #[cfg(not(feature = "waf"))]
        {
            let _ = settings;
            let message = "this build has no web application firewall; leave the key out, or build with \
                           cargo build --release --features waf";
            Err(Fault { entry: None, message: message.into() })
        }
    }

    /// What becomes of requests that the rules don't want.
    pub fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// Its rule files, by item of the list that names them.
    pub fn entries(&self) -> &[Entry] {
        &self.settings.entries
    }

    /// Longest body that is looked at, in bytes.
    pub fn body_limit(&self) -> u64 {
        self.settings.body_limit
    }

    /// Looks at a request, in a thread of the engine's. Waits for it no longer than `timeout`.
    #[cfg(feature = "waf")]
    pub async fn judge(&self, request: Request) -> Judgement {
        let deadline = tokio::time::Instant::now() + self.settings.timeout;
        let told = engine::ask(self.rules.clone(), request, deadline.into_std());
        let Some(told) = told else { return Judgement::unavailable() };
        let Ok(Ok(Some(found))) = tokio::time::timeout_at(deadline, told).await else {
            return Judgement::unavailable();
        };
        let unwanted = found.unknown || found.score >= self.settings.anomaly_threshold;
        let verdict = match self.settings.mode {
            _ if found.refused => WafVerdict::Blocked,
            // The core rules refuse by themselves what reaches the threshold; others only count.
            Mode::Blocking if unwanted => WafVerdict::Blocked,
            Mode::DetectionOnly if unwanted => WafVerdict::Detected,
            Mode::Blocking | Mode::DetectionOnly => WafVerdict::Passed,
        };
        Judgement { verdict, score: found.score, matches: found.matches }
    }

    /// Never called: there is no such value.
    #[cfg(not(feature = "waf"))]
    #[expect(clippy::unused_async, reason = "the other build's signature")]
    pub async fn judge(&self, _request: Request) -> Judgement {
        match self.rules {}
    }
}

/// Where the operator's files name no other: for all rules, before them.
#[cfg(feature = "waf")]
fn prelude() -> String {
    // JSON values become arguments, so that the rules see what a parser sees. More than the limit are not looked at, so
    // they are refused; a body that the engine can't read is too. Of a type that is not here the engine reads the body as
    // what it looks like (shim.cc).
    r#"SecRequestBodyAccess On
SecRequestBodyJsonDepthLimit 512
SecArgumentsLimit 1000
SecRule REQUEST_HEADERS:Content-Type "@rx ^(?:application|text)/(?:[a-z0-9.+-]+[+])?json" "id:8800001,phase:1,pass,nolog,t:none,t:lowercase,ctl:requestBodyProcessor=JSON"
SecRule REQUEST_HEADERS:Content-Type "@rx ^(?:application|text)/(?:[a-z0-9.+-]+[+])?xml" "id:8800006,phase:1,pass,nolog,t:none,t:lowercase,ctl:requestBodyProcessor=XML"
SecRule &ARGS "@ge 1000" "id:8800002,phase:2,deny,status:400,log,t:none,msg:'Too many values in the request body',severity:2"
SecRule REQBODY_ERROR "!@eq 0" "id:8800003,phase:2,deny,status:400,log,t:none,msg:'The request body can not be read',severity:2"
"#
    .into()
}

/// What the gateway's own configuration says, whatever the files say.
#[cfg(feature = "waf")]
fn epilogue(settings: &Settings) -> String {
    let engine = match settings.mode {
        Mode::DetectionOnly => "DetectionOnly",
        Mode::Blocking => "On",
    };
    let (limit, threshold) = (settings.body_limit, settings.anomaly_threshold);
    format!(
        "SecRuleEngine {engine}
SecAuditEngine Off
SecResponseBodyAccess Off
SecRequestBodyLimit {limit}
SecRequestBodyNoFilesLimit {limit}
SecRequestBodyLimitAction Reject
SecAction \"id:8800004,phase:1,pass,nolog,t:none,setvar:tx.inbound_anomaly_score_threshold={threshold}\"
"
    )
}

/// Nobody in particular: where the request arrived is no business of the rules.
#[cfg(feature = "waf")]
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// The paths of all files.
#[cfg(feature = "waf")]
fn all_files(settings: &Settings) -> impl Iterator<Item = (usize, &std::path::PathBuf)> {
    settings.entries.iter().enumerate().flat_map(|(i, entry)| entry.files.iter().map(move |file| (i, file)))
}
