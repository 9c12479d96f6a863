//! Request rules: User-Agent substrings, regular expressions on path, query and headers, sizes; each denies or only logs.
//!
//! All expressions on one subject are one automaton (`RegexSet`), built with the snapshot. The engine's time is linear in
//! the subject's length whatever the expression; a request that meets no rule allocates nothing.

use std::sync::Arc;

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName};
use prometheus::IntCounter;
use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::names::RuleName;
use crate::observe::Metrics;
use crate::refusal::Refusal;

/// Most rules of one list.
pub const RULES_MAX: usize = 200;
/// Most memory that one expression may take once compiled, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// The same of all expressions on one subject.
const SET_BYTES_MAX: usize = 32 << 20;

/// A regular expression that compiles: the syntax of the `regex` crate on bytes. It matches anywhere unless it is anchored
/// with `^` and `$`; classes such as `\d` and `(?i)` are ASCII's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

fn builder(patterns: &[&str], bytes_max: usize) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(patterns).unicode(false).size_limit(bytes_max).build()
}

impl Pattern {
    /// Takes an expression.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty expression matches everything; leave the rule out, or write what it is about".into());
        }
        match builder(&[text], PATTERN_BYTES_MAX) {
            Ok(_) => Ok(Self(text.into())),
            Err(regex::Error::CompiledTooBig(_)) => Err(format!(
                "{text:?} takes more than {} KiB once compiled; write smaller repetitions",
                PATTERN_BYTES_MAX >> 10
            )),
            Err(e) => Err(wording(text, &e.to_string())),
        }
    }

    /// An expression for any of these texts, in any case of ASCII letters.
    fn any_of(texts: &[String]) -> Self {
        let all: Vec<_> = texts.iter().map(|t| regex::escape(t)).collect();
        Self(format!("(?i:{})", all.join("|")))
    }
}

/// One line of the several that the regex crate writes, with the column within the expression.
fn wording(text: &str, said: &str) -> String {
    let why = said.lines().rev().find_map(|l| l.strip_prefix("error: ")).unwrap_or(said);
    // The second line marks the place below the expression, four spaces in.
    let mark = said.lines().find(|l| l.trim_start().starts_with('^'));
    let at = mark.map(|l| l.len() - l.trim_start().len()).and_then(|n| n.checked_sub(4));
    let at = at.map_or_else(String::new, |n| format!(" at its character {}", n + 1));
    let remedy = match why {
        w if w.contains("look-around") || w.contains("backreferences") => {
            "; write it without: expressions here take linear time"
        }
        w if w.contains("Unicode") => "; write the bytes of such characters one by one, outside of [ ]",
        _ => "; put a backslash before a character that is meant as itself",
    };
    format!("{text:?} is not a regular expression: {why}{at}{remedy}")
}

/// What a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// `User-Agent` holds one of these, in any case of ASCII letters.
    UserAgent(Vec<String>),
    /// A value of this header matches.
    Header(HeaderName, Pattern),
    /// The path, without its query, matches as it was sent.
    Path(Pattern),
    /// The query, without its `?`, matches as it was sent. A request without one has an empty query.
    Query(Pattern),
    /// There are more header fields.
    MaxHeaders(usize),
    /// A header's value is longer, in bytes.
    MaxHeaderBytes(usize),
    /// Path and query together are longer, in bytes.
    MaxUriBytes(usize),
}

/// What is done with a request that meets a rule.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is refused.
    #[default]
    Deny,
    /// It is counted and logged, and passes: to try a rule.
    Log,
}

impl Action {
    /// For the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Deny => "deny",
            Action::Log => "log",
        }
    }
}

/// A rule as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// For log and metric.
    pub name: RuleName,
    /// What it looks at.
    pub test: Test,
    /// What follows.
    pub action: Action,
}

impl Rule {
    fn refusal(&self) -> Refusal {
        match self.test {
            Test::UserAgent(_) => Refusal::UserAgentBlocked,
            Test::Header(..) | Test::Path(_) | Test::Query(_) => Refusal::RequestDenied,
            Test::MaxHeaders(_) | Test::MaxHeaderBytes(_) => Refusal::HeaderTooLarge,
            Test::MaxUriBytes(_) => Refusal::UriTooLong,
        }
    }
}

/// What expressions are compared with.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Path,
    Query,
    Header(HeaderName),
}

/// All expressions on one subject.
struct Group {
    subject: Subject,
    set: RegexSet,
    /// By index in the set: the rule.
    rules: Vec<usize>,
}

/// A list of rules, ready to ask.
#[derive(Default)]
pub struct Rules {
    rules: Vec<Ready>,
    groups: Vec<Group>,
    /// Rules on sizes.
    sizes: Vec<usize>,
}

struct Ready {
    rule: Rule,
    /// Such as `route/a2a/scanners`.
    name: Arc<str>,
    met: IntCounter,
}

/// A request, as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Path and query as they were sent.
    pub target: &'a [u8],
    /// The header fields.
    pub headers: &'a HeaderMap,
}

impl Rules {
    /// Puts a list together. `owner` is where it stands, such as `route/a2a`.
    ///
    /// # Errors
    /// All expressions on one subject are too much together.
    pub fn build(owner: &str, rules: &[Rule], metrics: &Metrics) -> Result<Self, String> {
        let mut built = Self::default();
        let mut patterns: Vec<(Subject, Vec<(Pattern, usize)>)> = Vec::new();
        for (i, rule) in rules.iter().enumerate() {
            let (subject, pattern) = match &rule.test {
                Test::UserAgent(texts) => (Subject::Header(USER_AGENT), Pattern::any_of(texts)),
                Test::Header(name, pattern) => (Subject::Header(name.clone()), pattern.clone()),
                Test::Path(pattern) => (Subject::Path, pattern.clone()),
                Test::Query(pattern) => (Subject::Query, pattern.clone()),
                Test::MaxHeaders(_) | Test::MaxHeaderBytes(_) | Test::MaxUriBytes(_) => {
                    built.sizes.push(i);
                    continue;
                }
            };
            match patterns.iter_mut().find(|(s, _)| *s == subject) {
                Some((_, all)) => all.push((pattern, i)),
                None => patterns.push((subject, vec![(pattern, i)])),
            }
        }
        for (subject, all) in patterns {
            let texts: Vec<_> = all.iter().map(|(p, _)| p.0.as_str()).collect();
            let set = builder(&texts, SET_BYTES_MAX).map_err(|e| format!("{owner}: request_rules together: {e}"))?;
            built.groups.push(Group { subject, set, rules: all.into_iter().map(|(_, i)| i).collect() });
        }
        built.rules = rules
            .iter()
            .map(|rule| {
                let name: Arc<str> = format!("{owner}/{}", rule.name).into();
                let met = metrics.request_rule(&name, rule.action.as_str());
                Ready { rule: rule.clone(), name, met }
            })
            .collect();
        Ok(built)
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Asks all rules; `met` is told the name of each that the request meets, and each is counted.
    ///
    /// # Errors
    /// The refusal of the first rule, in the order of the list, that denies.
    pub fn check(&self, facts: &Facts<'_>, mut met: impl FnMut(&str)) -> Result<(), Refusal> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let mut hits = Vec::new();
        for group in &self.groups {
            let subject = |value: &[u8], hits: &mut Vec<usize>| {
                // The first look allocates nothing; only what matches is looked at again.
                if group.set.is_match(value) {
                    hits.extend(group.set.matches(value).iter().map(|i| group.rules[i]));
                }
            };
            let (path, query) = split(facts.target);
            match &group.subject {
                Subject::Path => subject(path, &mut hits),
                Subject::Query => subject(query, &mut hits),
                Subject::Header(name) => {
                    facts.headers.get_all(name).iter().for_each(|v| subject(v.as_bytes(), &mut hits));
                }
            }
        }
        hits.extend(self.sizes.iter().filter(|i| self.rules[**i].exceeded(facts)));
        hits.sort_unstable();
        hits.dedup();
        let mut refusal = None;
        for ready in hits.into_iter().map(|i| &self.rules[i]) {
            ready.met.inc();
            met(&ready.name);
            if ready.rule.action == Action::Deny {
                refusal = refusal.or_else(|| Some(ready.rule.refusal()));
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}

impl Ready {
    fn exceeded(&self, facts: &Facts<'_>) -> bool {
        match self.rule.test {
            Test::MaxHeaders(most) => facts.headers.len() > most,
            Test::MaxHeaderBytes(most) => facts.headers.values().any(|v| v.len() > most),
            Test::MaxUriBytes(most) => facts.target.len() > most,
            Test::UserAgent(_) | Test::Header(..) | Test::Path(_) | Test::Query(_) => false,
        }
    }
}

/// Path and query.
fn split(target: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, b""),
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
