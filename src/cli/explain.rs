//! `hive-gateway explain`: the way of one request through a configuration, with the line that decides each step.
//!
//! Nothing is sent and nobody is asked. The steps are the gateway's own code (`proxy::check`, the policies, the route
//! table), so what is said here is what would happen; but for what only a real client brings: its handshake, how much it
//! has asked before, and which nodes are alive.

mod asked;
mod steps;
mod way;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use crate::clock::Clock;
use crate::config::{self, Loaded, Surroundings};
use crate::observe::Metrics;
use crate::proxy::answer::Form;
use crate::refusal::Refusal;
use crate::snapshot::{Ground, Snapshot};

use super::check::ask_agent;
use asked::Asked;
use steps::STEPS;
use way::Way;

/// Shows the way of one request through a configuration, and which of its lines decides each step. Exit code 0: the
/// request would be forwarded; 1: refused; 2: the question or the configuration is wrong.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The configuration.
    #[arg(short, long, value_name = "FILE", default_value = "conf/gateway.yaml")]
    pub config: PathBuf,
    /// Who asks: the name of a peer, or the URI or DNS name in its certificate. Without it: no certificate.
    #[arg(long, value_name = "URI|NAME")]
    pub peer: Option<String>,
    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "192.0.2.1")]
    pub address: IpAddr,
    /// A header of the request, such as "Accept: text/event-stream". As often as needed.
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// A file with the request's body. It brings "Content-Type: application/json" unless a header says otherwise.
    #[arg(long, value_name = "FILE")]
    pub body: Option<PathBuf>,
    /// The listener. Default: the one with the URL's port, else the first that speaks its scheme.
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// Method and URL.
    #[arg(
        value_name = "REQUEST",
        help = "Method and URL, such as \"POST https://federation.example.com/api/a2a/jsonrpc\""
    )]
    pub request: String,
}

/// Why a request ends at the gateway.
enum Stop {
    /// It is answered.
    Refused(Refusal),
    /// There is no request: its connection is not let in.
    NoConnection(&'static str),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

/// Prints the way and the verdict.
pub fn run(args: &ExplainArgs) -> ExitCode {
    match explain(args) {
        Ok((text, admitted)) => {
            print!("{text}");
            if admitted { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

fn explain(args: &ExplainArgs) -> Result<(String, bool), String> {
    let env = |name: &str| std::env::var(name).ok();
    let around = Surroundings::of_system(&env);
    let agent = config::load_in(&args.config, &around).ok().and_then(|loaded| loaded.config.spiffe).map(ask_agent);
    let issued = agent.and_then(|(_, issued)| issued.ok()).map(Arc::new);
    let around = Surroundings { issued: issued.as_deref(), ..around };
    let loaded = config::load_in(&args.config, &around)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let Loaded { config, located, .. } = loaded;
    let metrics = Metrics::new();
    let ground = Ground { metrics: &metrics, previous: None, issued: issued.as_ref(), now_unix: around.now_unix };
    let snapshot = Snapshot::build(Arc::new(config), 1, ground)?;
    let asked = Asked::new(args, &snapshot)?;
    let mut text = format!("{}\n", args.request);
    let mut way = Way::new(&snapshot, &located, &asked, Clock::System);
    let mut end = Ok(());
    for (name, step) in STEPS {
        end = step(&mut way);
        let refused = end.is_err();
        for (i, (said, at)) in way.said.drain(..).enumerate() {
            let name = if i == 0 { name } else { "" };
            let place = at.map(|key| match located.has(&key) {
                true => format!("  [{}:{}]", args.config.display(), located.place(&key)),
                // Nothing is written there, or only the block around it.
                false => format!("  [{}:{}, by default]", args.config.display(), located.place(&key)),
            });
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {name:<16}{said}{}", place.unwrap_or_default());
        }
        if refused {
            break;
        }
    }
    let admitted = end.is_ok();
    text.push_str(&verdict(&way, end));
    Ok((text, admitted))
}

fn verdict(way: &Way<'_>, end: Result<(), Stop>) -> String {
    match end {
        Ok(()) => {
            let to = way.route().map_or("", |route| route.upstream.upstream.name().as_str());
            let if_body = if way.body_unknown() { ", if its body passes (--body FILE)" } else { "" };
            format!("verdict: forwarded to upstream {to}{if_body}\n")
        }
        Err(Stop::NoConnection(why)) => format!("verdict: no connection: {why}\n"),
        Err(Stop::Refused(refusal)) => {
            let on_json_rpc = way.answers_as().is_some_and(|route| route.json_rpc.is_some());
            let form = Form { reply: way.listener().local_reply, on_json_rpc };
            let mut text = format!("verdict: refused with {} {}", form.status(&refusal), refusal.code());
            if let Some(detail) = refusal.detail() {
                let _ = write!(text, " ({detail})");
            }
            text.push('\n');
            for (name, value) in form.fields(&refusal) {
                let _ = writeln!(text, "  {name}: {}", String::from_utf8_lossy(value.as_bytes()));
            }
            if way.asked.head().method != http::Method::HEAD {
                let body = form.body(&refusal, way.id);
                let _ = writeln!(text, "  {}", String::from_utf8_lossy(&body));
            }
            text
        }
    }
}
