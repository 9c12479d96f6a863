//! Deny lists, `request_rules` and `waf`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;

use super::Resolver;
use super::ranges::{MILLISECOND, SECOND};
use crate::config::RouteWaf;
use crate::config::file::{self, WafMode};
use crate::files::open_regular;
use crate::policy::deny::{AddressList, DENY_FILE_BYTES_MAX, parse_file, parse_network};
use crate::policy::rules::{Pattern, RULES_MAX, Rule, Test};
use crate::policy::waf::{self, Entry, Mode, Settings, Waf};

/// Who is kept out at a listener.
pub(super) fn addresses(r: &mut Resolver<'_>, at: &str, raw: &file::Listener) -> Option<Arc<AddressList>> {
    let mut denied = networks(r, &format!("{at}.deny"), &raw.deny);
    let allowed = networks(r, &format!("{at}.allow"), &raw.allow);
    if let Some(name) = &raw.deny_file {
        let file = r.material(name);
        if r.around.read_files {
            match read_list(Path::new(&file)) {
                Ok(more) if more.is_empty() => {
                    r.warn(&format!("{at}.deny_file"), format!("{file} lists nobody, so it keeps nobody out"));
                }
                Ok(mut more) => denied.append(&mut more),
                Err(why) => r.error(&format!("{at}.deny_file"), format!("{file}{why}")),
            }
        }
    }
    let nothing_denied = raw.deny.is_empty() && raw.deny_file.is_none();
    if nothing_denied && !raw.allow.is_empty() && !r.has_guess(&format!("{at}.deny")) {
        let remedy = "to let only these in, write deny: [0.0.0.0/0, \"::/0\"] too";
        r.error(
            &format!("{at}.allow"),
            format!("these are exceptions from deny and deny_file, which are not there; {remedy}"),
        );
    }
    let list = AddressList { deny: denied.into_iter().collect(), allow: allowed.into_iter().collect() };
    (!nothing_denied).then(|| Arc::new(list))
}

fn networks(r: &mut Resolver<'_>, at: &str, raw: &[String]) -> Vec<IpNet> {
    r.once(at, raw);
    let mut good = Vec::with_capacity(raw.len());
    for (i, text) in raw.iter().enumerate() {
        match parse_network(text) {
            Ok(network) => good.push(network),
            Err(why) => r.error(&format!("{at}[{i}]"), why),
        }
    }
    good
}

/// The error is what follows the file's name.
fn read_list(file: &Path) -> Result<Vec<IpNet>, String> {
    let cannot = |e: std::io::Error| format!(": {e}");
    let mut bytes = Vec::new();
    let opened = open_regular(file).map_err(cannot)?;
    opened.take(DENY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > DENY_FILE_BYTES_MAX {
        return Err(format!(": longer than {} MiB", DENY_FILE_BYTES_MAX >> 20));
    }
    if bytes.is_empty() {
        // As it is while somebody writes it, or after the disk was full: that lifts no bans.
        return Err(": the file is empty; write the line \"# nobody\" if nobody is to be kept out".into());
    }
    parse_file(&bytes).map_err(|(line, why)| format!(":{line}: {why}"))
}

/// The rules of a listener or a route.
pub(super) fn request_rules(r: &mut Resolver<'_>, at: &str, raw: &[file::RequestRule]) -> Vec<Rule> {
    if raw.len() > RULES_MAX {
        r.error(at, format!("{} rules; at most {RULES_MAX} in one list", raw.len()));
    }
    r.unique(at, raw.iter().map(|rule| rule.name.as_str()));
    let rules = raw.iter().enumerate().filter_map(|(i, rule)| {
        let test = test(r, &format!("{at}[{i}]"), rule)?;
        Some(Rule { name: rule.name.clone(), test, action: rule.action })
    });
    rules.collect()
}

const TESTS: &str = "user_agent, header, path, query, max_headers, max_header_bytes or max_uri_bytes";

/// None if it is wrong, and then that has been said.
fn test(r: &mut Resolver<'_>, at: &str, raw: &file::RequestRule) -> Option<Test> {
    let mut tests: Vec<Option<Test>> = Vec::new();
    if let Some(texts) = &raw.user_agent {
        let path = format!("{at}.user_agent");
        if texts.is_empty() {
            r.error(&path, "the list is empty, so the rule meets nobody; write texts such as sqlmap");
        }
        for (i, _) in texts.iter().enumerate().filter(|(_, text)| text.is_empty()) {
            r.error(&format!("{path}[{i}]"), "an empty text is a part of every User-Agent; leave it out");
        }
        tests.push(Some(Test::UserAgent(texts.clone())));
    }
    if let Some(header) = &raw.header {
        let name = header.name.parse::<HeaderName>();
        if name.is_err() {
            r.error(&format!("{at}.header.name"), format!("{:?} is not the name of a header", header.name));
        }
        let matches = pattern(r, &format!("{at}.header.matches"), &header.matches);
        tests.push(name.ok().zip(matches).map(|(name, pattern)| Test::Header(name, pattern)));
    }
    if let Some(text) = &raw.path {
        tests.push(pattern(r, &format!("{at}.path"), text).map(Test::Path));
    }
    if let Some(text) = &raw.query {
        tests.push(pattern(r, &format!("{at}.query"), text).map(Test::Query));
    }
    if let Some(most) = raw.max_headers {
        r.range(&format!("{at}.max_headers"), &most, &(1..=100));
        tests.push(Some(Test::MaxHeaders(most)));
    }
    let mut size = |key: &str, most: Option<crate::units::Size>, test: fn(usize) -> Test| {
        if let Some(most) = most {
            r.size(&format!("{at}.{key}"), most, &(16..=256 << 10));
            tests.push(Some(test(usize::try_from(most.0).unwrap_or(usize::MAX))));
        }
    };
    size("max_header_bytes", raw.max_header_bytes, Test::MaxHeaderBytes);
    size("max_uri_bytes", raw.max_uri_bytes, Test::MaxUriBytes);
    if tests.len() != 1 && !r.has_guess(at) {
        let why = if tests.is_empty() { "it looks at nothing" } else { "it looks at several things" };
        r.error(at, format!("{why}; write exactly one of {TESTS}"));
    }
    tests.pop().flatten()
}

fn pattern(r: &mut Resolver<'_>, at: &str, text: &str) -> Option<Pattern> {
    Pattern::parse(text).map_err(|why| r.error(at, why)).ok()
}

/// The firewall of a route.
pub(super) fn route_waf(r: &mut Resolver<'_>, at: &str, raw: Option<&file::Waf>) -> RouteWaf {
    match raw {
        None => RouteWaf::OfListener,
        Some(raw) => firewall(r, at, raw).map_or(RouteWaf::Off, RouteWaf::Own),
    }
}

/// A firewall; none if it is off or can't be had, and then that has been said.
pub(super) fn firewall(r: &mut Resolver<'_>, at: &str, raw: &file::Waf) -> Option<Arc<Waf>> {
    r.range(&format!("{at}.anomaly_threshold"), &raw.anomaly_threshold, &(1..=10_000));
    r.size(&format!("{at}.body_limit"), raw.body_limit, &(1 << 10..=1 << 20));
    r.span(&format!("{at}.timeout"), raw.timeout, 10 * MILLISECOND, 30 * SECOND);
    let mode = match raw.mode {
        WafMode::Off => return None,
        WafMode::DetectionOnly => Mode::DetectionOnly,
        WafMode::Blocking => Mode::Blocking,
    };
    let path = format!("{at}.rules");
    if raw.rules.is_empty() {
        let example = "[/etc/modsecurity/crs/crs-setup.conf, /usr/share/modsecurity-crs/rules]";
        r.error(&path, format!("no rules to look with; write files or directories such as {example}"));
    }
    if waf::BUILT_IN && !r.around.read_files {
        return None;
    }
    let errors = r.errors.len();
    let mut entries = Vec::with_capacity(raw.rules.len());
    for (i, name) in raw.rules.iter().enumerate().filter(|_| waf::BUILT_IN) {
        match Entry::of(Path::new(&r.absolute(name))) {
            Ok(entry) => entries.push(entry),
            Err(why) => r.error(&format!("{path}[{i}]"), why),
        }
    }
    let files: Vec<_> = entries.iter().flat_map(|e| &e.files).cloned().collect();
    r.materials.extend(waf::data_beside(files.iter()));
    r.materials.extend(files);
    // A directory changes when a file comes or goes.
    r.materials.extend(entries.iter().map(|e| e.path.clone()));
    if r.errors.len() > errors {
        return None;
    }
    let (anomaly_threshold, body_limit, timeout) = (raw.anomaly_threshold, raw.body_limit.0, raw.timeout.0);
    match Waf::load(Settings { entries, mode, anomaly_threshold, body_limit, timeout }) {
        Ok(waf) => Some(Arc::new(waf)),
        Err(fault) => {
            let place = fault.entry.map_or_else(|| at.to_owned(), |i| format!("{path}[{i}]"));
            r.error(&place, fault.message);
            None
        }
    }
}
