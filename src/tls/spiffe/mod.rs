//! What a SPIFFE agent issues, and what becomes of it: a certificate and key of the gateway's own (an X.509-SVID), and for
//! each trust domain the CAs that vouch for its members.
//!
//! An update is kept as it came and judged where it is used, by the rules for files: a listener or upstream that can't
//! live with it refuses the whole update, and the one before stays in use. What nobody uses (other SVIDs, bundles of trust
//! domains that no listener accepts) is not looked at, so that it can't hold up a rotation.

mod trust_domains;
#[cfg(feature = "spiffe-workload-api")]
mod workload_api;
#[cfg(not(feature = "spiffe-workload-api"))]
#[path = "left_out.rs"]
mod workload_api;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use openssl::pkey::PKey;
use openssl::sha::Sha256;
use openssl::x509::X509;

use super::certificate::spiffe_id_of;
use super::files::{ChainAndKey, Files, Role, reason};
use super::revocation::der;
use crate::config::file::{ListenerSpiffe, UpstreamSpiffe};
use crate::identity::{SPIFFE_SCHEME, SpiffeId, check_trust_domain};

pub(super) use trust_domains::TrustDomains;
pub use workload_api::{Updates, connect};

/// The environment's variable with the agent's address (SPIFFE Workload Endpoint, section 4).
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Most SVIDs of one update.
const SVIDS_MAX: usize = 100;
/// Most bundles of other trust domains in one update.
const FEDERATED_MAX: usize = 1000;

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    path: PathBuf,
}

impl Endpoint {
    /// Takes `unix:///run/spire/agent.sock` (SPIFFE Workload Endpoint, section 4).
    ///
    /// # Errors
    /// What is wrong with the address, and what to write.
    pub fn parse(address: &str) -> Result<Self, String> {
        let example = "write one such as unix:///run/spire/agent.sock";
        if address.starts_with("tcp:") {
            return Err(format!("{address:?}: over TCP the private key would travel in plain text; {example}"));
        }
        let rest = address.strip_prefix("unix:").ok_or_else(|| format!("{address:?} is no Unix socket; {example}"))?;
        let path = rest.strip_prefix("//").unwrap_or(rest);
        match path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#', '\0']) {
            true => Ok(Self { path: path.into() }),
            false => Err(format!("{address:?} has no absolute path of a socket; {example}")),
        }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

/// One identity of the gateway's own, as the agent gave it (SPIFFE Workload API, section 5.1).
#[derive(Clone)]
pub struct Svid {
    /// The SPIFFE ID.
    pub id: String,
    /// What the agent's operator means it for; may be empty.
    pub hint: String,
    /// Certificates, leaf first, DER one after the other.
    pub chain: Vec<u8>,
    /// PKCS #8, DER.
    pub key: Vec<u8>,
    /// The CAs of the ID's trust domain, DER one after the other.
    pub bundle: Vec<u8>,
}

/// One whole update of an agent.
#[derive(Clone)]
pub struct Issued {
    svids: Vec<Svid>,
    /// By trust domain.
    federated: BTreeMap<String, Vec<u8>>,
    digest: [u8; 32],
}

impl Issued {
    /// Takes an update; `federated` are the bundles of other trust domains by their SPIFFE IDs.
    ///
    /// # Errors
    /// Why the update as a whole makes no sense.
    pub fn new(svids: Vec<Svid>, federated: Vec<(String, Vec<u8>)>) -> Result<Self, String> {
        if svids.is_empty() {
            return Err("there is no SVID in it".into());
        }
        if svids.len() > SVIDS_MAX || federated.len() > FEDERATED_MAX {
            let most = format!("{SVIDS_MAX} SVIDs, {FEDERATED_MAX} bundles");
            return Err(format!("more in it than {most}: {} and {}", svids.len(), federated.len()));
        }
        let mut bundles = BTreeMap::new();
        for (id, bundle) in federated {
            let name = id.strip_prefix(SPIFFE_SCHEME).unwrap_or(&id);
            check_trust_domain(name).map_err(|why| format!("a bundle is for {id:?}: {why}"))?;
            bundles.insert(name.to_owned(), bundle);
        }
        let digest = digest(&svids, &bundles);
        Ok(Self { svids, federated: bundles, digest })
    }

    /// The SPIFFE IDs of all SVIDs, in the agent's order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.svids.iter().map(|svid| svid.id.as_str())
    }

    /// The trust domains of which there is a bundle besides the SVIDs' own.
    pub fn federated(&self) -> impl Iterator<Item = &str> {
        self.federated.keys().map(String::as_str)
    }

    /// Whether both say the same: an agent repeats itself to whoever connects anew.
    pub fn is_same_as(&self, other: &Issued) -> bool {
        self.digest == other.digest
    }

    fn choose(&self, choice: &Choice<'_>) -> Result<&Svid, String> {
        let fits =
            |svid: &&Svid| choice.id.is_none_or(|id| svid.id == id) && choice.hint.is_none_or(|hint| svid.hint == hint);
        // The first one: it is the default identity (SPIFFE Workload API, section 5.3), and of two with the same hint the
        // one that counts (section 5.2.1).
        self.svids.iter().find(fits).ok_or_else(|| {
            let all: Vec<_> = self.ids().collect();
            format!("the SPIFFE agent issues no such SVID; it issues {}", all.join(", "))
        })
    }

    /// The bundle of a trust domain. An SVID's own stands before one that is federated under the same name.
    fn bundle(&self, trust_domain: &str) -> Option<&[u8]> {
        let own = self.svids.iter().find(|svid| trust_domain_of(&svid.id) == Some(trust_domain));
        own.map(|svid| &svid.bundle).or_else(|| self.federated.get(trust_domain)).map(Vec::as_slice)
    }

    fn is_own(&self, trust_domain: &str) -> bool {
        self.ids().any(|id| trust_domain_of(id) == Some(trust_domain))
    }
}

/// Keys are not shown.
impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.ids().collect();
        f.debug_struct("Issued").field("svids", &ids).field("federated", &self.federated.keys()).finish_non_exhaustive()
    }
}

fn trust_domain_of(id: &str) -> Option<&str> {
    id.strip_prefix(SPIFFE_SCHEME).and_then(|rest| rest.split('/').next())
}

fn digest(svids: &[Svid], federated: &BTreeMap<String, Vec<u8>>) -> [u8; 32] {
    let mut hash = Sha256::new();
    // With its length before it, no part runs into the next.
    let mut add = |part: &[u8]| {
        hash.update(&part.len().to_be_bytes());
        hash.update(part);
    };
    add(&svids.len().to_be_bytes());
    for svid in svids {
        [svid.id.as_bytes(), svid.hint.as_bytes(), &svid.chain, &svid.key, &svid.bundle].into_iter().for_each(&mut add);
    }
    for (name, bundle) in federated {
        add(name.as_bytes());
        add(bundle);
    }
    hash.finish()
}

/// Why an agent gives nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentFailure {
    /// There is nobody at the socket, or nobody who answers.
    #[error("the SPIFFE agent can't be reached: {0}")]
    Unreachable(String),
    /// It knows no identity for this process.
    #[error(
        "the SPIFFE agent issues no identity to this process ({0}); register the workload, or compare its selectors with \
         the gateway's user and container"
    )]
    Denied(String),
    /// It answered with another error.
    #[error("the SPIFFE agent failed: {0}")]
    Failed(String),
    /// It closed the stream.
    #[error("the SPIFFE agent ended the stream")]
    Ended,
}

/// One message of an agent.
#[derive(Debug)]
pub struct Update {
    /// What was issued, or why the message makes no sense.
    pub issued: Result<Issued, String>,
    /// Revocation lists that came along. They are not used: the lists to use are named in the configuration.
    pub lists: usize,
}

/// Which of several SVIDs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice<'a> {
    id: Option<&'a str>,
    hint: Option<&'a str>,
}

impl<'a> From<&'a ListenerSpiffe> for Choice<'a> {
    fn from(settings: &'a ListenerSpiffe) -> Self {
        Self { id: settings.id.as_deref(), hint: settings.hint.as_deref() }
    }
}

impl<'a> From<&'a UpstreamSpiffe> for Choice<'a> {
    fn from(settings: &'a UpstreamSpiffe) -> Self {
        Self { id: settings.id.as_deref(), hint: settings.hint.as_deref() }
    }
}

impl Choice<'_> {
    fn field(&self) -> &'static str {
        match (self.id, self.hint) {
            (Some(_), _) => "spiffe.id",
            (None, Some(_)) => "spiffe.hint",
            (None, None) => "spiffe",
        }
    }
}

impl Files<'_> {
    /// The chosen SVID, fit for `role`, and its trust domain. `None` only together with a fault.
    pub(super) fn svid(&mut self, issued: &Issued, choice: Choice<'_>, role: Role) -> Option<(ChainAndKey, String)> {
        let field = choice.field();
        match issued.choose(&choice).and_then(|svid| Ok((svid, open_svid(svid)?))) {
            Ok((svid, pair)) => {
                let before = self.faults.len();
                self.check_chain(field, &format!("the SVID {}", svid.id), &pair.chain, role);
                let trust_domain = trust_domain_of(&svid.id).unwrap_or_default().to_owned();
                (self.faults.len() == before).then_some((pair, trust_domain))
            }
            Err(why) => {
                self.fault(field, why);
                None
            }
        }
    }

    /// The CAs of a trust domain; none, with a warning, if the agent has no bundle of it (any more): then its members are
    /// not trusted (SPIFFE Workload API, section 4.6). `None` only together with a fault.
    pub(super) fn trust_bundle(&mut self, issued: &Issued, trust_domain: &str, field: &str) -> Option<Vec<X509>> {
        let what = format!("the bundle of {trust_domain}");
        match issued.bundle(trust_domain).unwrap_or_default() {
            // A mandatory field without a value spoils the message (section 4.5); else it is a withdrawal (section 4.4).
            [] if issued.is_own(trust_domain) => {
                self.fault(field, format!("{what} is empty"));
                None
            }
            [] => {
                let so = "its members are not trusted";
                self.warn(field, format!("the SPIFFE agent has no bundle of {trust_domain}; {so}"));
                Some(Vec::new())
            }
            bytes => match certificates(bytes) {
                Ok(certs) => self.check_bundle(field, &what, certs),
                Err(why) => {
                    self.fault(field, format!("{what}: {why}"));
                    None
                }
            },
        }
    }
}

/// An SVID that is what it says: its key is the leaf's, and the leaf carries its ID.
fn open_svid(svid: &Svid) -> Result<ChainAndKey, String> {
    let what = format!("the SVID {:?}", svid.id);
    match SpiffeId::parse(&svid.id) {
        Ok(id) if id.path().is_empty() => return Err(format!("{what} names a trust domain and nobody in it")),
        Ok(_) => {}
        Err(why) => return Err(format!("{what}: its SPIFFE ID is malformed: {why}")),
    }
    let chain = certificates(&svid.chain).map_err(|why| format!("{what}: {why}"))?;
    let leaf = chain.first().ok_or_else(|| format!("{what} has no certificate"))?;
    let key = PKey::private_key_from_pkcs8(&svid.key)
        .map_err(|e| format!("{what}: its key can't be read: {}", reason(&e)))?;
    if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
        return Err(format!("{what}: its key is not the certificate's"));
    }
    match spiffe_id_of(leaf) {
        Some(id) if id.as_str() == svid.id => Ok(ChainAndKey { chain, key }),
        Some(id) => Err(format!("{what}: its certificate is for {id}")),
        None => Err(format!("{what}: its certificate carries no SPIFFE ID")),
    }
}

/// Certificates that stand one after the other.
fn certificates(bytes: &[u8]) -> Result<Vec<X509>, String> {
    let mut reader = der::Reader::new(bytes);
    let mut all = Vec::new();
    while !reader.is_empty() {
        let element = reader.expect(der::SEQUENCE).ok_or("a certificate is cut off, or is no DER")?;
        let cert = X509::from_der(element.whole);
        all.push(cert.map_err(|e| format!("a certificate can't be read: {}", reason(&e)))?);
    }
    Ok(all)
}

/// The trust domain of a certificate that is an X.509-SVID.
fn trust_domain_of_cert(cert: &openssl::x509::X509Ref) -> Option<String> {
    spiffe_id_of(cert).map(|id| id.trust_domain().to_owned())
}
