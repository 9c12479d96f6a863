//! `hive-gateway pki`: a certificate authority for development and tests, and what it issues.
//!
//! The command is thin; [`Authority`], [`CertificateSpec`] and [`Development`] do the work, for `demo` and tests too.

mod crl;
mod extensions;
mod files;
mod issue;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use openssl::x509::{X509, X509VerifyResult};

use crate::clock::Clock;
use crate::identity::SpiffeId;

pub use crl::CrlSpec;
pub use extensions::{RawExtension, issuing_distribution_point};
pub use files::{Development, PkiError, write_issued};
pub use issue::{Authority, CertificateSpec, Issued, KeyKind, Usage, Validity};

/// Days that a development CA lives by default.
pub const CA_DAYS_DEFAULT: u32 = 365;

/// Hours that a certificate lives by default: as short as in the mesh, so that rotation is no surprise later.
pub const CERTIFICATE_HOURS_DEFAULT: u32 = 24;

/// Options of `hive-gateway pki`.
#[derive(Debug, Args)]
pub struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Makes a CA: ca.pem and ca.key, intermediate.pem and intermediate.key, bundle.pem
    Init(InitArgs),
    /// Issues a server's certificate: NAME.pem (with the intermediate) and NAME.key
    Server(IssueArgs),
    /// Issues a client's certificate: NAME.pem (with the intermediate) and NAME.key
    Client(IssueArgs),
    /// Makes the intermediate's revocation list, which replaces the one before: intermediate.crl
    Crl(CrlArgs),
}

#[derive(Debug, Args)]
struct CrlArgs {
    /// Directory of the CA, as `pki init` made it
    dir: PathBuf,
    /// A certificate's file (PEM) to revoke, can be repeated. The list holds these and no others
    #[arg(long, value_name = "FILE")]
    revoke: Vec<PathBuf>,
    /// How long the list holds
    #[arg(long, default_value_t = CERTIFICATE_HOURS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=87600))]
    hours: u32,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Directory of the CA; made if missing
    dir: PathBuf,
    /// Name in the subjects of root and intermediate
    #[arg(long, default_value = "Hive Gateway development")]
    name: String,
    /// How long root and intermediate hold
    #[arg(long, default_value_t = CA_DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Replaces existing files
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// Directory of the CA, as `pki init` made it
    dir: PathBuf,
    /// Name of the files and in the subject
    name: String,
    /// SPIFFE ID, as spiffe://mesh.example/hive/paris
    #[arg(long, value_name = "URI")]
    spiffe: Option<String>,
    /// DNS name, can be repeated
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// IP address, can be repeated
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// How long it holds, in days
    #[arg(long, conflicts_with = "hours", value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// How long it holds, in hours
    #[arg(long, default_value_t = CERTIFICATE_HOURS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=87600))]
    hours: u32,
    /// Directory of the new files; default: the CA's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replaces existing files
    #[arg(long)]
    force: bool,
}

/// Runs the command, and prints the names of the files that it wrote.
///
/// # Errors
/// Says what is wrong; nothing is written then.
pub fn run(args: &PkiArgs) -> Result<(), String> {
    for path in execute(args, Clock::System.unix_seconds()).map_err(|e| e.to_string())? {
        println!("{}", path.display());
    }
    Ok(())
}

/// The command without its output; `now` is Unix time in seconds.
fn execute(args: &PkiArgs, now: i64) -> Result<Vec<PathBuf>, PkiError> {
    match &args.command {
        PkiCommand::Init(init) => {
            Development::new(&init.name, Validity::hours_from(now, init.days * 24))?.save(&init.dir, init.force)
        }
        PkiCommand::Server(issue) => {
            if issue.dns.is_empty() && issue.ip.is_empty() {
                return Err(PkiError::Wrong("a server needs --dns or --ip: clients look for its name".into()));
            }
            issue.run(CertificateSpec::server, now)
        }
        PkiCommand::Client(issue) => {
            if issue.spiffe.is_none() && issue.dns.is_empty() {
                return Err(PkiError::Wrong("a client needs --spiffe or --dns: peers are known by it".into()));
            }
            issue.run(CertificateSpec::client, now)
        }
        PkiCommand::Crl(crl) => crl.run(now),
    }
}

impl CrlArgs {
    fn run(&self, now: i64) -> Result<Vec<PathBuf>, PkiError> {
        let ca = Development::load(&self.dir)?;
        let mut list = CrlSpec::new(now, now + i64::from(self.hours) * 3600);
        for file in &self.revoke {
            let pem = std::fs::read(file).map_err(|e| PkiError::Io(file.clone(), e))?;
            let cert = X509::from_pem(&pem).map_err(|e| PkiError::Unreadable(file.clone(), e))?;
            if ca.intermediate.cert.issued(&cert) != X509VerifyResult::OK {
                return Err(PkiError::Wrong(format!("{} is not by this intermediate", file.display())));
            }
            list = list.revoke(&cert)?;
        }
        ca.save_crl(&self.dir, &list)
    }
}

impl IssueArgs {
    fn run(&self, spec: fn(&str, Validity) -> CertificateSpec, now: i64) -> Result<Vec<PathBuf>, PkiError> {
        if let Some(uri) = &self.spiffe {
            SpiffeId::parse(uri).map_err(|e| PkiError::Wrong(format!("--spiffe {uri:?}: {e}")))?;
        }
        let ca = Development::load(&self.dir)?;
        let hours = self.days.map_or(self.hours, |days| days * 24);
        let validity = Validity::hours_from(now, hours);
        let end = openssl::asn1::Asn1Time::from_unix(validity.not_after)?;
        if end > *ca.intermediate.cert.not_after() {
            let until = ca.intermediate.cert.not_after();
            return Err(PkiError::Wrong(format!("the certificate would outlive its CA, which ends {until}")));
        }
        let mut spec = spec(&self.name, validity);
        spec.uris.extend(self.spiffe.clone());
        spec.dns.extend(self.dns.iter().cloned());
        spec.ips.extend(self.ip.iter().copied());
        let out = self.out.as_deref().unwrap_or(&self.dir);
        write_issued(out, &self.name, &spec.issue(&ca.intermediate)?, self.force)
    }
}

#[cfg(test)]
#[path = "pki/tests.rs"]
mod tests;
