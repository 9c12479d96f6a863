//! What the gateway needs to call nodes over TLS.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use openssl::sha::Sha256;
use openssl::x509::X509;
use pingora::protocols::tls::CaType;
use pingora::utils::tls::CertKey;

use crate::config::file::{ClientAuth, TlsVersion, UpstreamSpiffe, UpstreamTls};
use crate::policy::peers::UriPattern;

use super::TlsFault;
use super::certificate::CertificateFacts;
use super::files::{ChainAndKey, Files, Role};
use super::revocation::Revocation;
use super::spiffe::Issued;

/// Trust in an upstream's nodes, and the gateway's own certificate for them.
#[derive(Clone)]
pub struct UpstreamTlsMaterial {
    /// Roots and intermediates that the nodes' certificates chain to.
    pub ca: Arc<CaType>,
    /// Sent as SNI. Never empty: Pingora would not verify then. Every node's certificate must carry it, unless there is a
    /// [`Self::spiffe_id`].
    pub server_name: String,
    /// The SPIFFE ID that every node's certificate must carry, in place of the name.
    pub spiffe_id: Option<Arc<UriPattern>>,
    /// What a node must speak at least.
    pub min_version: TlsVersion,
    /// The gateway's client certificate, for nodes that ask for one.
    pub client: Option<Arc<CertKey>>,
    /// A hash of all of it. Goes into the peer's group key: Pingora would else reuse connections across a change of
    /// trust (pingora-core, `upstreams/peer.rs`, `PeerOptions::ca`).
    pub generation: u64,
    /// Facts of the client certificate, for status and `check`.
    pub client_facts: Option<CertificateFacts>,
    /// Facts of the bundle.
    pub authorities: Vec<CertificateFacts>,
    /// Which nodes are revoked; none without `crl`.
    pub revocation: Option<Arc<Revocation>>,
    /// What is doubtful, but no reason to refuse the configuration.
    pub warnings: Vec<TlsFault>,
    /// There is nothing in it yet, because the SPIFFE agent has issued nothing.
    pub waiting: bool,
}

/// Reads and checks the material: from files, whose names are relative to `base_dir`, or what a SPIFFE agent has issued.
/// `now` is Unix time in seconds. Without anything issued, where that is needed, no node is trusted.
///
/// # Errors
/// Everything that is wrong with it, not only the first.
pub fn build_upstream(
    tls: &UpstreamTls,
    base_dir: &Path,
    now: i64,
    issued: Option<&Issued>,
) -> Result<UpstreamTlsMaterial, Vec<TlsFault>> {
    let mut files = Files::new(base_dir, now);
    let (server_name, spiffe_id) = node_identity(&mut files, tls);
    let (bundle, client) = match (&tls.spiffe, issued) {
        (None, _) => from_files(&mut files, tls),
        (Some(spiffe), Some(issued)) => from_agent(&mut files, spiffe, issued, spiffe_id.as_deref()),
        (Some(_), None) => (Some(Vec::new()), None),
    };
    let bundle = match bundle {
        Some(bundle) if files.faults.is_empty() => bundle,
        _ => return Err(files.faults),
    };
    let waiting = tls.spiffe.is_some() && issued.is_none();
    // Without a CA nobody has signed them.
    let revocation = if waiting { None } else { revocation(tls, base_dir, &bundle, now, &mut files)? };
    let mut hash = Sha256::new();
    // Neither holds a zero byte, so no pair looks like another.
    let id = spiffe_id.as_ref().map_or_else(String::new, |id| id.to_string());
    let least: &[u8] = match tls.min_version {
        TlsVersion::Tls12 => b"1.2",
        TlsVersion::Tls13 => b"1.3",
    };
    [server_name.as_bytes(), &[0], id.as_bytes(), &[0], least, &[0]].iter().for_each(|part| hash.update(part));
    // The certificates as they were parsed, not the files: those could have changed in between.
    let certificates = bundle.iter().chain(client.iter().flat_map(|client| &client.chain));
    certificates.filter_map(|cert| cert.to_der().ok()).for_each(|der| hash.update(&der));
    // A connection that stands was made when other certificates were revoked: it is not used again.
    revocation.iter().for_each(|lists| hash.update(lists.print().as_bytes()));
    let [a, b, c, d, e, f, g, h, ..] = hash.finish();
    let authorities = bundle.iter().map(|cert| CertificateFacts::of(cert)).collect();
    Ok(UpstreamTlsMaterial {
        authorities,
        ca: Arc::new(bundle.into_boxed_slice()),
        server_name,
        spiffe_id,
        min_version: tls.min_version,
        client_facts: client.as_ref().and_then(|client| client.chain.first()).map(|c| CertificateFacts::of(c)),
        client: client.map(|client| Arc::new(CertKey::new(client.chain, client.key))),
        generation: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        revocation,
        warnings: files.warnings,
        waiting,
    })
}

/// The lists of revoked nodes, as listeners have them of clients.
fn revocation(
    tls: &UpstreamTls,
    base_dir: &Path,
    bundle: &[X509],
    now: i64,
    files: &mut Files<'_>,
) -> Result<Option<Arc<Revocation>>, Vec<TlsFault>> {
    let settings = ClientAuth { crl: tls.crl.clone(), ..ClientAuth::default() };
    let here = |fault: TlsFault| TlsFault { field: fault.field.trim_start_matches("client_auth.").to_owned(), ..fault };
    let mut warnings = Vec::new();
    let loaded = Revocation::load(&settings, base_dir, bundle, now, &mut warnings);
    files.warnings.extend(warnings.into_iter().map(here));
    loaded.map_err(|faults| faults.into_iter().map(here).collect())
}

/// The nodes' CAs and the gateway's own certificate. What is missing is among the faults.
fn from_files(files: &mut Files<'_>, tls: &UpstreamTls) -> (Option<Vec<X509>>, Option<ChainAndKey>) {
    let bundle = match &tls.ca {
        Some(ca) => files.bundle("ca", ca),
        None => {
            files.fault("ca", "without it no node can be verified".into());
            None
        }
    };
    let client = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => files.chain_and_key(["cert", "key"], [cert, key], Role::Client),
        (Some(_), None) => {
            files.fault("key", "cert is given without its key".into());
            None
        }
        (None, Some(_)) => {
            files.fault("cert", "key is given without its cert".into());
            None
        }
        (None, None) => None,
    };
    (bundle, client)
}

/// The same from a SPIFFE agent: the nodes are verified by the bundle of their own trust domain.
fn from_agent(
    files: &mut Files<'_>,
    spiffe: &UpstreamSpiffe,
    issued: &Issued,
    node: Option<&UriPattern>,
) -> (Option<Vec<X509>>, Option<ChainAndKey>) {
    let svid = files.svid(issued, spiffe.into(), Role::Client).map(|(pair, _)| pair);
    let Some(node) = node else {
        files.fault("spiffe_id", "with spiffe it says who the nodes are; without it any member would do".into());
        return (None, svid);
    };
    (files.trust_bundle(issued, node.trust_domain(), "spiffe_id"), svid)
}

/// The SNI, and the SPIFFE ID that counts in its place. Faults are left with the files'.
fn node_identity(files: &mut Files<'_>, tls: &UpstreamTls) -> (String, Option<Arc<UriPattern>>) {
    let parsed = tls.spiffe_id.as_deref().map(UriPattern::parse).transpose();
    let id = parsed.unwrap_or_else(|why| {
        files.fault("spiffe_id", why);
        None
    });
    let name = match (&tls.server_name, &id) {
        (Some(name), _) => name.clone(),
        // SPIFFE names no SNI, and with none Pingora would verify nothing.
        (None, Some(id)) => id.trust_domain().to_owned(),
        (None, None) => String::new(),
    };
    if (tls.server_name.is_some() || tls.spiffe_id.is_none())
        && let Err(why) = check_server_name(&name)
    {
        files.fault("server_name", why);
    }
    (name, id.map(Arc::new))
}

/// Pingora verifies the name as a DNS name only, so an address would never match.
fn check_server_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("can't be empty: without it no certificate would be verified".into());
    }
    if name.parse::<IpAddr>().is_ok() {
        return Err(format!("{name:?} is an address; write the DNS name that the nodes' certificates carry"));
    }
    let good = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(good) {
        return Err(format!("{name:?} is not a DNS name"));
    }
    Ok(())
}

impl std::fmt::Debug for UpstreamTlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTlsMaterial")
            .field("server_name", &self.server_name)
            .field("spiffe_id", &self.spiffe_id)
            .field("client", &self.client_facts)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
