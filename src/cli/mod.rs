//! The commands of `hive-gateway`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::observe::process_log;

pub mod check;
pub mod demo;
mod demo_files;
pub mod explain;
pub mod extras;
pub mod node;
pub mod pki;

/// How long the last lines of the process' own log may take.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(2);

/// Perimeter proxy for Hive: mutual TLS in, Hive nodes behind, default deny.
#[derive(Debug, Parser)]
#[command(name = "hive-gateway", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway; SIGTERM drains it, SIGHUP reloads, SIGUSR2 upgrades to a new process.
    Run(RunArgs),
    /// Makes a CA and certificates for development.
    Pki(pki::PkiArgs),
    /// Checks a configuration and all that it names, and shows what would run.
    Check(check::CheckArgs),
    /// Shows the way of one request through a configuration, and the line that decides each step.
    Explain(Box<explain::ExplainArgs>),
    /// Starts two small Hive nodes and a gateway in front, and prints what to try.
    Demo(demo::DemoArgs),
    /// Writes what a package installs beside the program: shell completions and manual pages.
    Extras(extras::ExtrasArgs),
    /// Prints the version of the gateway and of its TLS library.
    Version,
}

/// Options of `run`.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

/// What can't wait until the command line has been read; `command` is its first word.
pub fn prepare(command: Option<&OsStr>) {
    if command.is_some_and(|command| command == "run") {
        crate::server::ignore_early_signals();
    }
}

/// Runs the command and says how the process ends: 0 done, 1 failed, 2 (clap's) not understood.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Run(args) => run_gateway(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Pki(args) => ended(pki::run(&args)),
        Command::Extras(args) => ended(extras::run(&args)),
        Command::Demo(args) => ended(demo::run(&args)),
        Command::Version => {
            println!("hive-gateway {} ({})", env!("CARGO_PKG_VERSION"), openssl::version::version());
            ExitCode::SUCCESS
        }
    }
}

fn run_gateway(args: &RunArgs) -> ExitCode {
    if let Err(e) = process_log::init(crate::server::LOG_FILTER) {
        eprintln!("the log can't be written: {e}");
        return ExitCode::FAILURE;
    }
    let ended = crate::server::run(&args.config).inspect_err(|error| process_log::say(&error.to_string()));
    // A reader that is stuck doesn't keep the process.
    process_log::flush(LAST_WORDS_WAIT);
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ended<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
