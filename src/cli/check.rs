//! `hive-gateway check`: everything that is wrong with a configuration, or what it would run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::config::{self, Config, ConfigError, Loaded, RoutePeers, Surroundings, file};
use crate::policy::rate_limit::Limits;
use crate::server::spiffe;
use crate::tls::{self, CertificateFacts, Endpoint, Issued};
use crate::upstream::discovery;

const DAY_SECONDS: i64 = 24 * 3600;

/// Reads a configuration and everything that it names, and says what is wrong or what would run.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration.
    #[arg(short, long, value_name = "FILE", default_value = "conf/gateway.yaml")]
    pub config: PathBuf,
    /// Fail on warnings too.
    #[arg(long)]
    pub strict: bool,
    /// Ask DNS for the nodes of upstreams with discovery, and fail if there are none.
    #[arg(long)]
    pub discover: bool,
}

/// Errors and warnings go to standard error, one a line; the summary to standard output. Fails if there is an error, or
/// a warning with `--strict`.
pub fn run(args: &CheckArgs) -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let around = Surroundings::of_system(&env);
    let agent = config::load_in(&args.config, &around).ok().and_then(|loaded| loaded.config.spiffe).map(ask_agent);
    let issued = agent.as_ref().and_then(|(_, issued)| issued.as_ref().ok());
    let around = Surroundings { issued, ..around };
    let report = check(&args.config, args.strict, &around);
    eprint!("{}", report.problems);
    print!("{}", report.summary);
    if let Some((endpoint, issued)) = agent.as_ref().filter(|_| report.good) {
        print!("{}", agent_summary(endpoint, issued));
    }
    let discovered = !args.discover || !report.good || discover(&args.config, &around);
    if report.good && discovered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Shows what upstreams with discovery would have for nodes now. Whether each has some.
fn discover(file: &Path, around: &Surroundings<'_>) -> bool {
    let Ok(Loaded { config, .. }) = config::load_in(file, around) else { return false };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("no runtime to ask with: {e}");
            return false;
        }
    };
    let mut good = true;
    for upstream in &config.upstreams {
        let Some(discovery) = &upstream.discovery else { continue };
        match runtime.block_on(discovery::ask(discovery)) {
            Ok(found) => {
                println!("{}: {} names {}", upstream.name, discovery.kind, many(found.nodes.len(), "node"));
                for node in found.nodes {
                    println!("  {} weight {} priority {}", node.url, node.weight, node.priority);
                }
            }
            Err(why) => {
                eprintln!("{}: {}", upstream.name, discovery.kind.failure(&why));
                good = false;
            }
        }
    }
    good
}

/// How long the SPIFFE agent may take over its answer.
const AGENT_WAIT: Duration = Duration::from_secs(2);

pub(super) type Asked = (Endpoint, Result<Issued, String>);

/// What the agent issues to this process, which may be another than the gateway will be.
pub(super) fn ask_agent(endpoint: Endpoint) -> Asked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let issued = match runtime {
        Ok(runtime) => runtime.block_on(spiffe::fetch(&endpoint, AGENT_WAIT)),
        Err(e) => Err(e.to_string()),
    };
    (endpoint, issued)
}

fn agent_summary(endpoint: &Endpoint, issued: &Result<Issued, String>) -> String {
    let mut text = String::new();
    line(&mut text, format_args!("spiffe: {endpoint}"));
    match issued {
        Ok(issued) => {
            issued.ids().for_each(|id| line(&mut text, format_args!("  issues {id} to this process")));
            issued.federated().for_each(|name| line(&mut text, format_args!("  has the bundle of {name}")));
        }
        Err(why) => line(&mut text, format_args!("  nothing is known of what it issues: {why}")),
    }
    text
}

/// What `check` says.
#[derive(Debug)]
struct Report {
    problems: String,
    summary: String,
    good: bool,
}

fn check(file: &Path, strict: bool, around: &Surroundings<'_>) -> Report {
    match config::load_in(file, around) {
        Err(errors) => Report { problems: failure(file, &errors), summary: String::new(), good: false },
        Ok(Loaded { config, warnings, .. }) => {
            let mut problems = String::new();
            for warning in &warnings {
                line(&mut problems, format_args!("warning: {warning}"));
            }
            let good = !strict || warnings.is_empty();
            if !good {
                line(
                    &mut problems,
                    format_args!("{}: {} with --strict", file.display(), many(warnings.len(), "warning")),
                );
            }
            let summary = if good { summary(&config, around) } else { String::new() };
            Report { problems, summary, good }
        }
    }
}

fn failure(file: &Path, errors: &[ConfigError]) -> String {
    let mut text = String::new();
    for error in errors {
        line(&mut text, format_args!("{error}"));
    }
    line(&mut text, format_args!("{}: {}", file.display(), many(errors.len(), "error")));
    text
}

fn many(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String never fails.
    let _ = writeln!(text, "{what}");
}

/// What would run.
fn summary(config: &Config, around: &Surroundings<'_>) -> String {
    let (now_unix, issued) = (around.now_unix, around.issued);
    let mut text = String::new();
    line(&mut text, format_args!("{} is good (SHA-256 {})", config.source.display(), &config.hash[..16]));
    listeners(&mut text, config, now_unix, issued);
    peers(&mut text, config);
    routes(&mut text, config);
    upstreams(&mut text, config, now_unix, issued);
    let secret = if config.admin.bearer.is_some() { "with a secret" } else { "without a secret" };
    line(&mut text, format_args!("admin\n  {}, {secret}", config.admin.address));
    text
}

fn listeners(text: &mut String, config: &Config, now_unix: i64, issued: Option<&Issued>) {
    line(text, format_args!("listeners"));
    for listener in &config.listeners {
        let kind = match listener.protocol {
            file::Protocol::Https => "https",
            file::Protocol::Http => "http, plain text",
        };
        line(text, format_args!("  {}: {} ({kind})", listener.name, listener.address));
        rate_limits(text, &format!("listener/{}", listener.name), &listener.rate_limits);
        // The files were good a moment ago, so an error here is a file that has just been changed.
        let Some(settings) = &listener.tls else { continue };
        if let Some(spiffe) = &settings.spiffe {
            let domains = spiffe.trust_domains.as_ref().map_or("its own trust domain".to_owned(), |all| all.join(", "));
            line(text, format_args!("    an SVID of the SPIFFE agent; clients of {domains}"));
        }
        let Ok(context) = tls::build_listener(settings, Path::new(""), now_unix, issued) else { continue };
        for (certificate, staple) in context.certificates().iter().zip(context.staples()) {
            line(text, format_args!("    certificate {}", facts(certificate, now_unix)));
            if let Some(staple) = staple {
                line(text, format_args!("      OCSP answers to staple from {}", staple.responder()));
            }
        }
        if !context.asks_clients() {
            line(text, format_args!("    asks for no client certificate: whoever reaches it may call"));
        }
        for authority in context.authorities() {
            line(text, format_args!("    clients of {}", facts(authority, now_unix)));
        }
        let versions = match listener.tls.as_ref().map(|tls| tls.min_version) {
            Some(file::TlsVersion::Tls13) => "TLS 1.3",
            _ => "TLS 1.2 and 1.3 (min_version: \"1.3\" if every client can)",
        };
        line(text, format_args!("    {versions}"));
        if context.asks_clients() {
            lists(text, &context, now_unix);
            responders(text, &settings.client_auth);
        }
    }
}

/// What is known of revoked clients. Nothing is fetched here: what a URL holds is seen when the gateway runs.
fn lists(text: &mut String, context: &tls::ServerContext, now_unix: i64) {
    let Some(revocation) = context.revocation() else {
        line(text, format_args!("    no revocation lists"));
        return;
    };
    held(text, revocation, now_unix);
    for url in revocation.urls() {
        line(text, format_args!("    CRL from {}", url.as_str()));
    }
    if revocation.follows_points() {
        line(text, format_args!("    CRLs from clients' distribution points"));
    }
}

fn held(text: &mut String, revocation: &tls::Revocation, now_unix: i64) {
    for crl in revocation.facts() {
        let left = match crl.next_update {
            i64::MAX => "no end".to_owned(),
            next if next < now_unix => "late".to_owned(),
            next => format!("{} hours left", (next - now_unix) / 3600),
        };
        line(text, format_args!("    CRL of {}: {} revoked, {left}", crl.issuer, crl.entries));
    }
}

/// Who is asked about clients.
fn responders(text: &mut String, auth: &file::ClientAuth) {
    if auth.ocsp == file::OcspCheck::Off {
        return;
    }
    for prefix in &auth.ocsp_responders {
        line(text, format_args!("    OCSP about clients by responders that they name below {prefix}"));
    }
    if let Some(url) = &auth.ocsp_url {
        line(text, format_args!("    OCSP about clients by {url}"));
    }
    let without = match auth.ocsp_failure.unwrap_or_default() {
        file::OcspFailure::Reject => "refused",
        file::OcspFailure::Accept => "let in",
    };
    line(text, format_args!("    clients without an OCSP answer are {without}"));
}

fn facts(certificate: &CertificateFacts, now_unix: i64) -> String {
    let days = (certificate.not_after - now_unix).div_euclid(DAY_SECONDS);
    let left = match days {
        0 => "less than a day".to_owned(),
        _ => many(usize::try_from(days).unwrap_or(0), "day"),
    };
    let names = match certificate.names.as_slice() {
        [] => String::new(),
        names => format!(" for {}", names.join(", ")),
    };
    format!("{}{names}: {left} left", certificate.subject)
}

/// Most peers that are listed one by one; there may be 100,000.
const PEERS_SHOWN: usize = 20;

fn peers(text: &mut String, config: &Config) {
    line(text, format_args!("peers: {}", config.peers.len()));
    for peer in config.peers.iter().take(PEERS_SHOWN) {
        line(text, format_args!("  {}: {}", peer.name, peer.rule));
    }
    if config.peers.len() > PEERS_SHOWN {
        line(text, format_args!("  and {} more", config.peers.len() - PEERS_SHOWN));
    }
}

fn routes(text: &mut String, config: &Config) {
    line(text, format_args!("routes"));
    for route in &config.routes {
        let hosts = if route.hosts.is_empty() { "any host".to_owned() } else { route.hosts.join(", ") };
        let peers = match &route.peers {
            RoutePeers::Any => "any peer".to_owned(),
            RoutePeers::Of(indexes) => {
                let names = indexes.iter().take(PEERS_SHOWN).map(|i| config.peers[*i].name.as_str());
                let more = indexes.len().saturating_sub(PEERS_SHOWN);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                names.collect::<Vec<_>>().join(", ") + &more
            }
        };
        let methods = route.methods.join(" ");
        let kind = if route.json_rpc.is_some() { " (JSON-RPC)" } else { "" };
        let to = &config.upstreams[route.upstream].name;
        let asked = route.replace_full_path.as_ref().map(|path| format!(" {path}")).unwrap_or_default();
        line(
            text,
            format_args!(
                "  {}: {methods} {} of {hosts}, {peers} -> {to}{asked}{kind}",
                route.name,
                route.paths.join(" ")
            ),
        );
        rate_limits(text, &format!("route/{}", route.name), &route.rate_limits);
    }
}

/// The limits of a route or listener, under the names that logs and metrics give them.
fn rate_limits(text: &mut String, owner: &str, limits: &[file::RateLimit]) {
    let names = Limits::names(owner, limits.iter().map(|l| &*l.per.0));
    for (name, limit) in names.iter().zip(limits) {
        let burst = limit.burst.unwrap_or(limit.rate.count);
        let shared = if limit.shared { ", shared" } else { "" };
        let dry = if limit.enforce { "" } else { ", not enforced" };
        line(text, format_args!("    limit {name}: {}, {burst} at once{shared}{dry}", limit.rate));
    }
}

fn upstreams(text: &mut String, config: &Config, now_unix: i64, issued: Option<&Issued>) {
    line(text, format_args!("upstreams"));
    for upstream in &config.upstreams {
        let health = match &upstream.health_check {
            check if check.enabled => format!("{} every {}", check.path, check.interval),
            _ => "no health check".to_owned(),
        };
        line(text, format_args!("  {}: {health}", upstream.name));
        for node in &upstream.endpoints {
            let address = node.address.to_string();
            let resolved = if node.host == address { String::new() } else { format!(" ({address})") };
            let priority = if node.priority > 0 { format!(" priority {}", node.priority) } else { String::new() };
            line(text, format_args!("    {}{resolved} weight {}{priority}", node.url, node.weight));
        }
        if let Some(discovery) = &upstream.discovery {
            line(text, format_args!("    nodes from {}", discovery.kind));
        }
        let Some(settings) = &upstream.tls else { continue };
        // One of the two is there; the ID counts if both are.
        let proof = settings.spiffe_id.as_ref().or(settings.server_name.as_ref());
        line(text, format_args!("    as {}", proof.map_or("", String::as_str)));
        let material = tls::build_upstream(settings, Path::new(""), now_unix, issued).ok();
        if settings.spiffe.is_some() {
            line(text, format_args!("    with an SVID of the SPIFFE agent"));
        }
        if let Some(lists) = material.as_ref().and_then(|m| m.revocation.as_ref()) {
            held(text, lists, now_unix);
        }
        if let Some(client) = material.and_then(|m| m.client_facts) {
            line(text, format_args!("    with certificate {}", facts(&client, now_unix)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    const NOW: i64 = 1_800_000_000;

    fn around() -> Surroundings<'static> {
        Surroundings {
            env: &|_| None,
            addresses: &|_, _| Err(std::io::Error::other("no names in tests")),
            now_unix: NOW,
            read_files: false,
            issued: None,
        }
    }

    #[test]
    fn the_summary_says_what_would_run() {
        let text = r#"listeners: [{ name: main, address: "127.0.0.1:8080", protocol: http }]
routes: [{ name: a2a, paths: [/a, /b], methods: [POST], peers: any, upstream: hive, json_rpc: {},
  rate_limits: [{ per: [peer, method], rate: 10/s, enforce: false }] }]
upstreams: [{ name: hive, endpoints: ["http://10.0.1.10:3000", { url: "http://10.0.1.11:3000", weight: 2, priority: 1 }] }]
"#;
        let config = load_text(Path::new("g.yaml"), text, &around()).unwrap().config;
        let said = summary(&config, &around());
        for part in [
            "main: 127.0.0.1:8080 (http, plain text)",
            "a2a: POST /a /b of any host, any peer -> hive (JSON-RPC)",
            "limit route/a2a/peer+method: 10/s, 10 at once, not enforced",
            "hive: /api/health every 10s",
            "http://10.0.1.11:3000 weight 2 priority 1",
            "127.0.0.1:9901, without a secret",
        ] {
            assert!(said.contains(part), "{part} not in\n{said}");
        }
    }

    #[test]
    fn days_left_are_counted() {
        let mut of = CertificateFacts {
            subject: "CN=gw".into(),
            issuer: String::new(),
            serial: String::new(),
            names: vec!["a.example".into()],
            uris: Vec::new(),
            not_before: NOW,
            not_after: NOW + 3 * DAY_SECONDS + 5,
        };
        assert_eq!(facts(&of, NOW), "CN=gw for a.example: 3 days left");
        of.not_after = NOW + 5;
        assert!(facts(&of, NOW).ends_with("less than a day left"));
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error() {
        let report = check(Path::new("no/such/file.yaml"), false, &around());
        assert!(!report.good && report.summary.is_empty());
        assert!(report.problems.starts_with("no/such/file.yaml: can't be read: "), "{}", report.problems);
        assert!(report.problems.ends_with("no/such/file.yaml: 1 error\n"), "{}", report.problems);
    }
}
