//! A listener's context: the gateway's certificates by server name, and the trust in clients.

use std::ffi::c_int;
use std::path::Path;
use std::sync::Arc;

use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::ssl::{
    AlpnError, ClientHelloResponse, NameType, Ssl, SslAlert, SslContext, SslContextBuilder, SslMethod, SslMode,
    SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode, SslVersion, select_next_proto,
};
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::{X509, X509NameRef};

use crate::config::file::{ListenerSpiffe, ListenerTls, OcspCheck, OcspStapling, TlsVersion};
use crate::identity::PeerIdentity;

use super::TlsFault;
use super::certificate::{CertificateFacts, SubjectAltNames};
use super::client_chain::verify_clients;
use super::files::{ChainAndKey, Files, Role, reason};
use super::handshake::{self, Checks, VerifyNotes};
use super::names::{Groups, Names};
use super::revocation::{Ocsp, Revocation};
use super::spiffe::{Issued, TrustDomains};
use super::standing::{Anchors, ClientChain, Judge, Standing, Trust};
use super::staple::Staple;

/// ALPN protocols in the order of the gateway's preference (RFC 7301, section 3.1).
const ALPN_WIRE: &[u8] = b"\x02h2\x08http/1.1";

/// TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325, section 4.2).
const TLS12_CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// 112 bits: no SHA-1 signatures, no RSA below 2048 bits, in the handshake and in the client's chain.
const SECURITY_LEVEL: u32 = 2;

/// Most intermediates between a client's certificate and the root. Real chains have one or two; each costs a signature
/// check before the client is known.
const VERIFY_DEPTH: u32 = 5;

/// Longest certificate message of a client, in bytes. OpenSSL's own limit is 100 KiB.
const CLIENT_CHAIN_BYTES_MAX: usize = 32 << 10;

/// CA names are told to clients, so that they can pick the right certificate; but not more than this, in bytes of DER,
/// because every handshake carries them. Beyond it none is told, and clients send what they have.
const CA_NAMES_BYTES_MAX: usize = 4 << 10;

/// Most certificates of one listener.
const CERTIFICATES_MAX: usize = 100;

/// A listener's TLS: immutable, shared by its connections.
pub struct ServerContext {
    default: SslContext,
    names: Arc<Names>,
    /// The certificate names no host, and need not: clients know the gateway by its SPIFFE ID.
    any_name: bool,
    waiting: bool,
    certificates: Vec<CertificateFacts>,
    authorities: Vec<CertificateFacts>,
    warnings: Vec<TlsFault>,
    /// In the order of the certificates.
    staples: Vec<Option<Arc<Staple>>>,
    trust: Trust,
    asks_clients: bool,
    revocation: Option<Arc<Revocation>>,
    ocsp: Option<Arc<Ocsp>>,
}

/// Builds a listener's context from its files, which are relative to `base_dir`, or from what a SPIFFE agent has issued.
/// `now` is Unix time in seconds. Without anything issued, where that is needed, the context refuses all clients.
///
/// # Errors
/// Everything that is wrong with the certificates, keys and CAs, not only the first.
pub fn build_listener(
    tls: &ListenerTls,
    base_dir: &Path,
    now: i64,
    issued: Option<&Issued>,
) -> Result<ServerContext, Vec<TlsFault>> {
    let mut files = Files::new(base_dir, now);
    let (pairs, anchors) = match (&tls.spiffe, issued) {
        (None, _) => from_files(&mut files, tls),
        (Some(spiffe), Some(issued)) => from_agent(&mut files, spiffe, issued),
        (Some(_), None) => return ServerContext::waiting(tls.min_version).map_err(refused),
    };
    // Where nobody is asked, nobody is judged either, with an SVID as with files.
    let anchors = if tls.client_auth.asks() { anchors } else { Anchors::Bundle(Vec::new()) };
    if !files.faults.is_empty() {
        return Err(files.faults);
    }
    let bundle = anchors.all();
    let revocation = Revocation::load(&tls.client_auth, base_dir, &bundle, now, &mut files.warnings)?;
    let (names, groups) = index_names(&pairs, &mut files, tls.spiffe.is_some());
    let wanted = tls.ocsp_stapling == OcspStapling::On;
    let staples = pairs.iter().enumerate().map(|(at, pair)| {
        let field = if tls.spiffe.is_some() { "spiffe".to_owned() } else { format!("certificates[{at}].cert") };
        Staple::of(&pair.chain, &bundle, SECURITY_LEVEL, wanted, &field, &mut files.warnings)
    });
    let staples = staples.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let common = Common {
        asks_clients: tls.client_auth.asks(),
        bundle: &bundle,
        anchors: &anchors,
        revocation: revocation.as_ref(),
        staples: &staples,
        min: tls.min_version,
    };
    let contexts = build_contexts(&pairs, &groups, &common, Arc::clone(&names)).map_err(refused)?;
    let certificates: Vec<_> =
        pairs.iter().filter_map(|pair| pair.chain.first()).map(|c| CertificateFacts::of(c)).collect();
    Ok(ServerContext {
        default: contexts,
        names,
        any_name: tls.spiffe.is_some() && certificates.iter().all(|c| c.names.is_empty()),
        waiting: false,
        certificates,
        authorities: bundle.iter().map(|cert| CertificateFacts::of(cert)).collect(),
        warnings: files.warnings,
        staples,
        trust: Trust::new(&anchors, SECURITY_LEVEL, VERIFY_DEPTH).map_err(refused)?,
        asks_clients: tls.client_auth.asks(),
        revocation,
        ocsp: match tls.client_auth.ocsp {
            OcspCheck::Off => None,
            OcspCheck::Leaf => Some(Arc::new(Ocsp::new(&tls.client_auth, &bundle, SECURITY_LEVEL).map_err(refused)?)),
        },
    })
}

fn refused(e: ErrorStack) -> Vec<TlsFault> {
    vec![TlsFault { field: "certificates".into(), message: format!("OpenSSL refuses the settings: {}", reason(&e)) }]
}

/// The gateway's certificates and the clients' CAs. What is missing is among the faults.
fn from_files(files: &mut Files<'_>, tls: &ListenerTls) -> (Vec<ChainAndKey>, Anchors) {
    let mut pairs = Vec::new();
    if tls.certificates.is_empty() || tls.certificates.len() > CERTIFICATES_MAX {
        files.fault("certificates", format!("1 to {CERTIFICATES_MAX} certificates are needed"));
    }
    for (at, certificate) in tls.certificates.iter().take(CERTIFICATES_MAX).enumerate() {
        let (cert_field, key_field) = (format!("certificates[{at}].cert"), format!("certificates[{at}].key"));
        pairs.extend(files.chain_and_key(
            [&cert_field, &key_field],
            [&certificate.cert, &certificate.key],
            Role::Server,
        ));
    }
    let ca = tls.client_auth.ca.as_deref();
    let bundle = match ca {
        Some(ca) => files.bundle("client_auth.ca", ca),
        None if tls.client_auth.asks() => {
            files.fault("client_auth", "without ca nobody can come in".into());
            None
        }
        None => None,
    };
    (pairs, Anchors::Bundle(bundle.unwrap_or_default()))
}

/// The same from a SPIFFE agent.
fn from_agent(files: &mut Files<'_>, spiffe: &ListenerSpiffe, issued: &Issued) -> (Vec<ChainAndKey>, Anchors) {
    let svid = files.svid(issued, spiffe.into(), Role::Server);
    let own: Vec<_> = svid.iter().map(|(_, trust_domain)| trust_domain.clone()).collect();
    let domains = spiffe.trust_domains.as_ref().unwrap_or(&own);
    let bundles = domains.iter().filter_map(|name| {
        let bundle = files.trust_bundle(issued, name, "spiffe.trust_domains")?;
        Some((name.clone(), bundle))
    });
    let anchors = Anchors::TrustDomains(bundles.collect());
    (svid.into_iter().map(|(pair, _)| pair).collect(), anchors)
}

/// What all contexts of a listener have in common: who comes in, and how.
struct Common<'a> {
    /// Whether anybody is asked who they are.
    asks_clients: bool,
    /// All CAs.
    bundle: &'a [X509],
    anchors: &'a Anchors,
    revocation: Option<&'a Arc<Revocation>>,
    staples: &'a [Option<Arc<Staple>>],
    min: TlsVersion,
}

impl ServerContext {
    /// A context that has no certificate yet and refuses every handshake, saying so.
    fn waiting(min_version: TlsVersion) -> Result<Self, ErrorStack> {
        let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
        set_protocol(&mut context, min_version)?;
        context.set_client_hello_callback(|ssl, _| {
            handshake::note_client_hello(ssl);
            handshake::note_no_svid(ssl);
            // The client is told internal_error.
            Err(ErrorStack::get())
        });
        let message = "the SPIFFE agent has not issued an SVID yet; until then every client is refused".to_owned();
        Ok(Self {
            default: context.build(),
            names: Arc::default(),
            any_name: false,
            waiting: true,
            certificates: Vec::new(),
            authorities: Vec::new(),
            warnings: vec![TlsFault { field: "spiffe".into(), message }],
            staples: Vec::new(),
            trust: Trust::new(&Anchors::TrustDomains(Vec::new()), SECURITY_LEVEL, VERIFY_DEPTH)?,
            asks_clients: true,
            revocation: None,
            ocsp: None,
        })
    }

    /// Whether there is no certificate yet, because the SPIFFE agent has issued none.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// A new server side of one connection; `now` is Unix time in seconds.
    ///
    /// # Errors
    /// Only when OpenSSL gets no memory.
    pub fn ssl(&self, now: i64) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.default)?;
        if let Some(index) = handshake::notes_index() {
            ssl.set_ex_data(index, VerifyNotes::new(now));
        }
        Ok(ssl)
    }

    /// Whether every client has shown a certificate; if not, none has.
    pub fn asks_clients(&self) -> bool {
        self.asks_clients
    }

    /// The client of a finished handshake of this context, and how it stands. `now` is Unix time in seconds.
    pub fn client(&self, ssl: &SslRef, now: i64) -> Option<(ClientChain, Standing)> {
        self.judge().first(ssl, now)
    }

    /// Who the client of a finished handshake of this context is, as [`super::identity`] says. Where a trust domain vouches
    /// for it, that is for the SPIFFE ID alone: a partner's CA may write any DNS name, and no peer is known by it.
    pub fn identity(&self, ssl: &SslRef) -> Option<PeerIdentity> {
        let mut identity = super::identity(ssl)?;
        if self.trust.is_by_trust_domain() {
            identity.dns.clear();
        }
        Some(identity)
    }

    /// How a client stands now that came in with this context or an earlier one of the same listener; `None`: as
    /// `before`. A change of the CA bundle has its chain verified once more; a change of the lists has them asked again.
    pub fn standing(&self, client: &ClientChain, before: &Standing, now: i64) -> Option<Standing> {
        self.judge().again(client, before, now)
    }

    fn judge(&self) -> Judge<'_> {
        Judge { trust: &self.trust, revocation: self.revocation.as_deref() }
    }

    /// Who is asked about clients' certificates, if the configuration asks for it.
    pub fn ocsp(&self) -> Option<&Arc<Ocsp>> {
        self.ocsp.as_ref()
    }

    /// Whether both trust the same CAs.
    pub fn trusts_as(&self, other: &ServerContext) -> bool {
        self.trust.generation() == other.trust.generation()
    }

    /// What is known of revoked certificates, if the configuration asks for it.
    pub fn revocation(&self) -> Option<&Arc<Revocation>> {
        self.revocation.as_ref()
    }

    /// Whether a host (lower or upper case, without port) is a SAN of one of the certificates. An SVID without such names
    /// is for any host: it names a workload.
    pub fn covers(&self, host: &str) -> bool {
        self.any_name || self.names.covers(host)
    }

    /// Whether a host is a SAN of the certificate that a client without SNI is shown.
    pub fn default_covers(&self, host: &str) -> bool {
        self.any_name || self.names.default_covers(host)
    }

    /// The gateway's own certificates, in the order of the configuration.
    pub fn certificates(&self) -> &[CertificateFacts] {
        &self.certificates
    }

    /// What is known of each of [`Self::certificates`] by its OCSP responder; none for one that has no responder.
    pub fn staples(&self) -> &[Option<Arc<Staple>>] {
        &self.staples
    }

    /// Takes over what an earlier snapshot of any listener knows of the same certificates.
    pub fn adopt_staples(&self, before: &ServerContext) {
        for staple in self.staples.iter().flatten() {
            before.staples.iter().flatten().for_each(|other| staple.adopt(other));
        }
    }

    /// The CA bundle.
    pub fn authorities(&self) -> &[CertificateFacts] {
        &self.authorities
    }

    /// Every DNS and IP SAN, with the end of its certificate in Unix seconds.
    pub fn names(&self) -> impl Iterator<Item = (&str, i64)> {
        self.certificates.iter().flat_map(|c| c.names.iter().map(|name| (name.as_str(), c.not_after)))
    }

    /// What is doubtful, but no reason to refuse the configuration.
    pub fn warnings(&self) -> &[TlsFault] {
        &self.warnings
    }
}

impl std::fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerContext").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

fn index_names(pairs: &[ChainAndKey], files: &mut Files<'_>, nameless: bool) -> (Arc<Names>, Groups) {
    let sans = |pair: &ChainAndKey| pair.chain.first().map(|leaf| SubjectAltNames::of(leaf)).unwrap_or_default();
    let certificates: Vec<_> = pairs.iter().map(|pair| (pair.key.id(), sans(pair))).collect();
    let field = |at: usize| format!("certificates[{at}].cert");
    for (at, (_, sans)) in certificates.iter().enumerate() {
        if sans.dns.is_empty() && sans.ips.is_empty() && !nameless {
            files.warn(&field(at), "no DNS or IP name among its SANs: no client will accept it".into());
        }
    }
    let (names, groups) = Names::build(&certificates);
    for (at, name) in &groups.taken {
        let why = "an earlier certificate with the same type of key has the name";
        files.warn(&field(*at), format!("{why} {name} too and is the one served"));
    }
    (Arc::new(names), groups)
}

/// The first group's context, which hands over to the others by server name.
fn build_contexts(
    pairs: &[ChainAndKey],
    groups: &Groups,
    common: &Common<'_>,
    names: Arc<Names>,
) -> Result<SslContext, ErrorStack> {
    let mut builders = groups.groups.iter().map(|members| {
        let pairs: Vec<_> = members.iter().filter_map(|at| pairs.get(*at)).collect();
        builder(&pairs, common)
    });
    // There always is a first group.
    let mut first = builders.next().unwrap_or_else(|| Err(ErrorStack::get()))?;
    let others: Vec<SslContext> = builders.map(|b| b.map(SslContextBuilder::build)).collect::<Result<_, _>>()?;
    if !others.is_empty() {
        first.set_servername_callback(move |ssl: &mut SslRef, _: &mut SslAlert| {
            let group = ssl.servername(NameType::HOST_NAME).and_then(|name| names.find(name)).unwrap_or(0);
            // An unknown name gets the first group: the request's Host decides later whether it is served (421).
            if let Some(context) = group.checked_sub(1).and_then(|at| others.get(at)) {
                ssl.set_ssl_context(context).map_err(|_| openssl::ssl::SniError::ALERT_FATAL)?;
            }
            Ok(())
        });
    }
    Ok(first.build())
}

/// One context for certificates of different key types; OpenSSL takes the one that the client can verify. All of a
/// listener's contexts are alike but for the certificates: OpenSSL takes trust, ALPN and CA names from the one that the
/// connection was handed over to.
fn builder(pairs: &[&ChainAndKey], common: &Common<'_>) -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
    set_protocol(&mut context, common.min)?;
    for pair in pairs {
        let mut chain = pair.chain.iter();
        if let Some(leaf) = chain.next() {
            context.set_certificate(leaf)?;
        }
        context.set_private_key(&pair.key)?;
        for issuer in chain {
            add_to_chain(&mut context, issuer)?;
        }
    }
    if common.asks_clients {
        ask_for_certificate(&mut context, common)?;
    }
    staple(&mut context, common.staples)?;
    context.set_client_hello_callback(|ssl, _| {
        handshake::note_client_hello(ssl);
        Ok(ClientHelloResponse::SUCCESS)
    });
    Ok(context)
}

fn ask_for_certificate(context: &mut SslContextBuilder, common: &Common<'_>) -> Result<(), ErrorStack> {
    let bundle = common.bundle;
    let domains = match common.anchors {
        Anchors::Bundle(bundle) => {
            context.set_cert_store(store(bundle)?);
            None
        }
        // The context's own store stays empty.
        Anchors::TrustDomains(bundles) => Some(TrustDomains::new(bundles)?),
    };
    if ca_names_bytes(bundle) <= CA_NAMES_BYTES_MAX {
        for cert in bundle {
            context.add_client_ca(cert)?;
        }
    }
    context.set_verify_depth(VERIFY_DEPTH);
    limit_client_chain(context);
    let mode = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
    let authorities = bundle.iter().filter_map(|cert| cert.subject_name().to_der().ok()).collect::<Vec<_>>();
    let checks = Arc::new(Checks { authorities, revocation: common.revocation.cloned() });
    verify_clients(context, domains, checks.clone())?;
    context.set_verify_callback(mode, move |good, store| handshake::verify(good, store, &checks));
    Ok(())
}

/// Sends OCSP answers to clients that ask for them (status_request). Whatever is wrong, the handshake goes on without.
fn staple(context: &mut SslContextBuilder, staples: &[Option<Arc<Staple>>]) -> Result<(), ErrorStack> {
    let staples: Vec<_> = staples.iter().flatten().cloned().collect();
    if staples.is_empty() {
        return Ok(());
    }
    context.set_status_callback(move |ssl| {
        // OpenSSL has chosen by now which certificate it will send.
        let staple = ssl.certificate().and_then(|cert| staples.iter().find(|staple| staple.is_of(cert)));
        let Some((staple, now)) = staple.zip(handshake::begun_at(ssl)) else { return Ok(false) };
        Ok(staple.with_answer(now, |answer| ssl.set_ocsp_status(answer).is_ok()).unwrap_or(false))
    })
}

/// `SSL_CTX_add1_chain_cert`, which the `openssl` crate lacks: an issuer of the certificate that was set last. Its
/// `add_extra_chain_cert` would give all certificates of a context the same issuers.
fn add_to_chain(context: &mut SslContextBuilder, issuer: &X509) -> Result<(), ErrorStack> {
    const TAKE_A_REFERENCE: std::ffi::c_long = 1;
    // SAFETY: both pointers belong to live objects; OpenSSL takes a reference of its own to the certificate.
    let done = unsafe {
        openssl_sys::SSL_CTX_ctrl(
            context.as_ptr(),
            openssl_sys::SSL_CTRL_CHAIN_CERT,
            TAKE_A_REFERENCE,
            issuer.as_ptr().cast(),
        )
    };
    if done > 0 { Ok(()) } else { Err(ErrorStack::get()) }
}

fn set_protocol(context: &mut SslContextBuilder, min: TlsVersion) -> Result<(), ErrorStack> {
    context.set_security_level(SECURITY_LEVEL);
    context.set_min_proto_version(Some(match min {
        TlsVersion::Tls12 => SslVersion::TLS1_2,
        TlsVersion::Tls13 => SslVersion::TLS1_3,
    }))?;
    context.set_cipher_list(TLS12_CIPHERS)?;
    context.set_options(
        SslOptions::CIPHER_SERVER_PREFERENCE
            | SslOptions::NO_COMPRESSION
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_TICKET,
    );
    // The chain is what the certificate's file has. To have OpenSSL look in each handshake for what it might lack, among the
    // clients' CAs, costs a signature's verification.
    context.set_mode(SslMode::RELEASE_BUFFERS | SslMode::NO_AUTO_CHAIN);
    context.set_read_ahead(true);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_num_tickets(0)?;
    context.set_session_id_context(b"hive-gateway")?;
    context.set_alpn_select_callback(|_, offered| select_next_proto(ALPN_WIRE, offered).ok_or(AlpnError::ALERT_FATAL));
    Ok(())
}

fn store(bundle: &[X509]) -> Result<X509Store, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for cert in bundle {
        store.add_cert(cert.clone())?;
    }
    Ok(store.build())
}

fn ca_names_bytes(bundle: &[X509]) -> usize {
    let length = |name: &X509NameRef| name.to_der().map_or(0, |der| der.len() + 2);
    bundle.iter().map(|cert| length(cert.subject_name())).sum()
}

/// `SSL_CTX_set_max_cert_list`, which the `openssl` crate lacks.
fn limit_client_chain(context: &mut SslContextBuilder) {
    const SET_MAX_CERT_LIST: c_int = 51;
    // SAFETY: the pointer belongs to a live context; this control takes a number and no pointer (ssl.h, 3.0 to 3.6).
    unsafe {
        openssl_sys::SSL_CTX_ctrl(
            context.as_ptr(),
            SET_MAX_CERT_LIST,
            CLIENT_CHAIN_BYTES_MAX as _,
            std::ptr::null_mut(),
        );
    }
}
