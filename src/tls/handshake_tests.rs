//! Real handshakes over a pipe in memory; what is asserted is what the server side makes of them.

use std::pin::Pin;

use foreign_types::ForeignTypeRef;
use openssl::hash::MessageDigest;
use openssl::ssl::{Ssl, SslContextBuilder, SslMethod, SslOptions, SslSession, SslVerifyMode, SslVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_openssl::SslStream;

use super::fixture_tests::{Dir, PKI, day, listener, now};
use super::*;
use crate::cli::pki::{Authority, CertificateSpec, Issued, KeyKind, Usage, Validity};
use crate::config::file::TlsVersion;
use crate::identity::PeerIdentity;
use crate::observe::handshake::HandshakeResult;

/// What the server learned of a client that came in.
struct Met {
    facts: ConnectionFacts,
    identity: PeerIdentity,
}

fn server() -> ServerContext {
    Dir::new().build(&listener(&["gw"])).unwrap()
}

fn client_spec() -> CertificateSpec {
    CertificateSpec::client("paris", day()).uri("spiffe://mesh.example/hive/paris").dns("Paris.Example")
}

fn issued() -> Issued {
    client_spec().issue(&PKI.intermediate).unwrap()
}

/// A client that takes any server and anything that OpenSSL can still do.
fn client(cert: Option<&Issued>) -> SslContextBuilder {
    let mut context = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
    context.set_security_level(0);
    context.set_verify(SslVerifyMode::NONE);
    if let Some(issued) = cert {
        context.set_certificate(&issued.cert).unwrap();
        context.set_private_key(&issued.key).unwrap();
        issued.chain.iter().for_each(|issuer| context.add_extra_chain_cert(issuer.clone()).unwrap());
    }
    context
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

async fn accept(server: &ServerContext, io: DuplexStream) -> Result<Met, HandshakeFailure> {
    let mut stream = SslStream::new(server.ssl(now()).unwrap(), io).unwrap();
    let accepted = Pin::new(&mut stream).accept().await;
    accepted.map_err(|e| classify(&e, stream.ssl()))?;
    let met = Met { facts: facts(stream.ssl()), identity: identity(stream.ssl()).unwrap() };
    let _ = stream.write_all(b"!").await;
    let _ = stream.shutdown().await;
    Ok(met)
}

async fn connect(ssl: Ssl, io: DuplexStream) -> Option<SslSession> {
    let mut stream = SslStream::new(ssl, io).unwrap();
    Pin::new(&mut stream).connect().await.ok()?;
    // With TLS 1.3 the server's refusal comes after the client thinks that it is in.
    let _ = stream.read_to_end(&mut Vec::new()).await;
    stream.ssl().session().map(ToOwned::to_owned)
}

fn meet_by_name(server: &ServerContext, client: SslContextBuilder, sni: Option<&str>) -> Result<Met, HandshakeFailure> {
    let mut ssl = Ssl::new(&client.build()).unwrap();
    sni.iter().for_each(|name| ssl.set_hostname(name).unwrap());
    let (near, far) = tokio::io::duplex(64 << 10);
    run(async { tokio::join!(accept(server, near), connect(ssl, far)).0 })
}

fn meet(server: &ServerContext, client: SslContextBuilder) -> Result<Met, HandshakeFailure> {
    meet_by_name(server, client, Some("gw.example"))
}

#[track_caller]
fn refused(met: Result<Met, HandshakeFailure>, result: HandshakeResult) -> HandshakeFailure {
    let failure = met.map(|met| met.identity).unwrap_err();
    assert_eq!(failure.result, result, "{failure}");
    assert!(!failure.detail.is_empty());
    failure
}

#[test]
fn a_good_client_comes_in_and_is_known() {
    let issued = issued();
    let mut client = client(Some(&issued));
    client.set_alpn_protos(b"\x08http/1.1\x02h2").unwrap();
    let met = meet_by_name(&server(), client, Some("GW.example")).unwrap();
    assert_eq!(met.facts.version, "TLSv1.3");
    assert_eq!(met.facts.cipher, "TLS_AES_256_GCM_SHA384");
    assert_eq!(met.facts.alpn, Alpn::Http2);
    assert_eq!(met.facts.sni.as_deref(), Some("gw.example"));
    let identity = met.identity;
    assert_eq!(identity.spiffe_id.unwrap().path(), "/hive/paris");
    assert_eq!(identity.dns, ["paris.example"]);
    assert_eq!(identity.subject, "CN=paris");
    assert_eq!(identity.issuer, "CN=mesh intermediate CA");
    assert_eq!(identity.not_after - identity.not_before, 24 * 3600 + 60);
    assert_eq!(identity.fingerprint, *issued.cert.digest(MessageDigest::sha256()).unwrap());
    let end = r#";Subject="CN=paris";URI=spiffe://mesh.example/hive/paris;DNS=paris.example"#;
    assert!(identity.xfcc.starts_with("Hash=") && identity.xfcc.ends_with(end), "{}", identity.xfcc);
    let base64 = openssl::base64::encode_block(&issued.cert.to_der().unwrap());
    assert_eq!(identity.client_cert, format!(":{base64}:"));
}

#[test]
fn the_chain_that_goes_out_is_that_of_the_file() {
    let sent = |dir: &Dir| {
        let server = dir.build(&listener(&["gw"])).unwrap();
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut stream = SslStream::new(Ssl::new(&client(Some(&issued())).build()).unwrap(), far).unwrap();
        run(async { tokio::join!(accept(&server, near), Pin::new(&mut stream).connect()).1 }).unwrap();
        stream.ssl().peer_cert_chain().unwrap().iter().map(|cert| cert.to_der().unwrap()).collect::<Vec<_>>()
    };
    let dir = Dir::new();
    let whole = sent(&dir);
    assert_eq!((whole.len(), &whole[1]), (2, &PKI.intermediate.cert.to_der().unwrap()));
    // The clients' CAs know the one that is missing now, but they are for clients.
    let leaf = openssl::x509::X509::from_der(&whole[0]).unwrap();
    dir.write("gw.pem", leaf.to_pem().unwrap());
    dir.write("ca.pem", [PKI.root.cert_pem().unwrap(), PKI.intermediate.cert_pem().unwrap()].concat());
    assert_eq!(sent(&dir), whole[..1]);
}

#[test]
fn tls_1_2_works_with_forward_secrecy_only() {
    let mut old = client(Some(&issued()));
    old.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    let facts = meet(&server(), old).unwrap().facts;
    assert_eq!(facts.version, "TLSv1.2");
    assert_eq!(facts.cipher, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
    assert!(facts.group.is_some());

    let mut cbc = client(Some(&issued()));
    cbc.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    cbc.set_cipher_list("ECDHE-ECDSA-AES128-SHA256:AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256").unwrap();
    refused(meet(&server(), cbc), HandshakeResult::NoSharedCipher);
}

#[test]
fn the_key_exchange_group_is_told() {
    for (offered, name) in [("X25519", "x25519"), ("P-256", "secp256r1"), ("P-384", "secp384r1")] {
        let mut client = client(Some(&issued()));
        client.set_groups_list(offered).unwrap();
        assert_eq!(meet(&server(), client).unwrap().facts.group, Some(name));
    }
    // OpenSSL 3.5 and later have the hybrid, and prefer it.
    if openssl::version::number() >= 0x3050_0000 {
        assert_eq!(meet(&server(), client(Some(&issued()))).unwrap().facts.group, Some("X25519MLKEM768"));
    }
}

#[test]
fn a_client_without_a_certificate_stays_out() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let mut client = client(None);
        client.set_max_proto_version(Some(version)).unwrap();
        let failure = refused(meet(&server(), client), HandshakeResult::NoCertificate);
        assert_eq!(failure.subject, None);
    }
}

#[test]
fn a_self_signed_client_stays_out() {
    let issued = client_spec().self_signed().unwrap();
    let failure = refused(meet(&server(), client(Some(&issued))), HandshakeResult::UnknownCa);
    assert_eq!(failure.subject.as_deref(), Some("CN=paris"));
    assert_eq!(failure.issuer.as_deref(), Some("CN=paris"));
}

#[test]
fn a_client_of_an_unknown_ca_stays_out() {
    let root = Authority::root("other", day()).unwrap();
    let below = root.intermediate("other intermediate", day()).unwrap();
    let issued = client_spec().issue(&below).unwrap();
    let failure = refused(meet(&server(), client(Some(&issued))), HandshakeResult::UnknownCa);
    assert_eq!(failure.issuer.as_deref(), Some("CN=other intermediate"));
}

#[test]
fn another_ca_of_the_same_name_does_not_help() {
    let twin = Authority::root("mesh root CA", day()).unwrap();
    assert_eq!(twin.cert.subject_name().to_der().unwrap(), PKI.root.cert.subject_name().to_der().unwrap());
    refused(meet(&server(), client(Some(&client_spec().issue(&twin).unwrap()))), HandshakeResult::BadSignature);
    let with_root = Authority { chain: vec![twin.cert.clone()], ..twin.clone() };
    refused(meet(&server(), client(Some(&client_spec().issue(&with_root).unwrap()))), HandshakeResult::BadSignature);
    // Even the key identifiers are right, only the key is not.
    let forged = Authority { cert: PKI.root.cert.clone(), ..twin };
    refused(meet(&server(), client(Some(&client_spec().issue(&forged).unwrap()))), HandshakeResult::BadSignature);
}

#[test]
fn a_certificate_counts_only_between_its_dates() {
    let past = Validity { not_before: now() - 7200, not_after: now() - 3600 };
    let future = Validity { not_before: now() + 3600, not_after: now() + 7200 };
    for (validity, result) in [(past, HandshakeResult::Expired), (future, HandshakeResult::NotYetValid)] {
        let issued = CertificateSpec { validity, ..client_spec() }.issue(&PKI.intermediate).unwrap();
        let failure = refused(meet(&server(), client(Some(&issued))), result);
        assert_eq!(failure.subject.as_deref(), Some("CN=paris"));
        // The same of the CA above it.
        let stale = PKI.root.intermediate("stale", validity).unwrap();
        let failure = refused(meet(&server(), client(Some(&client_spec().issue(&stale).unwrap()))), result);
        assert!(failure.detail.contains("CN=stale"), "{failure}");
        assert_eq!(failure.subject.as_deref(), Some("CN=paris"));
    }
}

#[test]
fn a_known_chain_is_verified_once_and_held_to_its_dates_every_time() {
    let server = server();
    let known = || super::client_chain::known_to(&server.ssl(now()).unwrap());
    let ends = now() + 3;
    let validity = Validity { not_before: now() - 60, not_after: ends };
    let issued = CertificateSpec { validity, ..client_spec() }.issue(&PKI.intermediate).unwrap();
    let mut met = 0;
    let failure = loop {
        match meet(&server, client(Some(&issued))) {
            Ok(_) => met += 1,
            Err(failure) => break failure,
        }
        assert_eq!(known(), 1);
        assert!(now() <= ends + 2, "it came in after its end");
    };
    assert!(met > 1, "it came in {met} times");
    assert_eq!(failure.result, HandshakeResult::Expired);
}

#[test]
fn a_known_chain_helps_no_other() {
    let server = server();
    let known = || super::client_chain::known_to(&server.ssl(now()).unwrap());
    let issued = issued();
    meet(&server, client(Some(&issued))).unwrap();
    // The last byte belongs to the CA's signature; all before it is as in the good one.
    let mut der = issued.cert.to_der().unwrap();
    *der.last_mut().unwrap() ^= 1;
    let forged = Issued { cert: openssl::x509::X509::from_der(&der).unwrap(), ..issued.clone() };
    refused(meet(&server, client(Some(&forged))), HandshakeResult::BadSignature);
    assert_eq!(known(), 1);
    // Another bundle is another context, which knows nobody.
    let dir = Dir::new();
    dir.write("ca.pem", Authority::root("elsewhere", day()).unwrap().cert_pem().unwrap());
    refused(meet(&dir.build(&listener(&["gw"])).unwrap(), client(Some(&issued))), HandshakeResult::UnknownCa);
}

#[test]
fn a_servers_certificate_is_not_a_clients() {
    let issued = CertificateSpec { usage: Usage::Server, ..client_spec() }.issue(&PKI.intermediate).unwrap();
    refused(meet(&server(), client(Some(&issued))), HandshakeResult::WrongPurpose);
    for usage in [Usage::ServerAndClient, Usage::Unrestricted] {
        let issued = CertificateSpec { usage, ..client_spec() }.issue(&PKI.intermediate).unwrap();
        assert!(meet(&server(), client(Some(&issued))).is_ok(), "{usage:?}");
    }
}

#[test]
fn a_client_is_not_a_ca() {
    let leaf = issued();
    let chain = std::iter::once(leaf.cert.clone()).chain(leaf.chain).collect();
    let pretended = Authority { cert: leaf.cert, key: leaf.key, chain };
    let issued = client_spec().issue(&pretended).unwrap();
    refused(meet(&server(), client(Some(&issued))), HandshakeResult::WrongPurpose);
}

#[test]
fn an_intermediate_may_come_from_the_client_or_from_the_bundle() {
    let alone = CertificateSpec { with_intermediates: false, ..client_spec() }.issue(&PKI.intermediate).unwrap();
    let failure = refused(meet(&server(), client(Some(&alone))), HandshakeResult::ChainIncomplete);
    assert_eq!(failure.issuer.as_deref(), Some("CN=mesh intermediate CA"));

    let dir = Dir::new();
    dir.write("ca.pem", PKI.bundle_pem().unwrap());
    let knows = dir.build(&listener(&["gw"])).unwrap();
    assert!(knows.warnings().is_empty(), "{:?}", knows.warnings());
    assert!(meet(&knows, client(Some(&alone))).is_ok());
    assert!(meet(&knows, client(Some(&issued()))).is_ok());
}

#[test]
fn weak_signatures_and_keys_stay_out() {
    let sha1 = CertificateSpec { digest: MessageDigest::sha1(), ..client_spec() };
    let small = CertificateSpec { key: KeyKind::Rsa(1024), ..client_spec() };
    for spec in [sha1, small] {
        let issued = spec.issue(&PKI.intermediate).unwrap();
        refused(meet(&server(), client(Some(&issued))), HandshakeResult::WeakSignature);
    }
    for key in [KeyKind::Rsa(2048), KeyKind::P384, KeyKind::Ed25519] {
        let issued = CertificateSpec { key, ..client_spec() }.issue(&PKI.intermediate).unwrap();
        assert!(meet(&server(), client(Some(&issued))).is_ok(), "{key:?}");
    }
}

#[test]
fn old_tls_stays_out() {
    let mut old = client(Some(&issued()));
    old.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
    old.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
    old.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    refused(meet(&server(), old), HandshakeResult::ProtocolVersion);

    let mut tls = listener(&["gw"]);
    tls.min_version = TlsVersion::Tls13;
    let strict = Dir::new().build(&tls).unwrap();
    let mut tls12 = client(Some(&issued()));
    tls12.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    refused(meet(&strict, tls12), HandshakeResult::ProtocolVersion);
    assert!(meet(&strict, client(Some(&issued()))).is_ok());
}

/// The names of the certificate that the server shows to a client that asks for `sni`.
fn shown(server: &ServerContext, sni: Option<&str>) -> String {
    let mut client = client(Some(&issued()));
    let (seen, sees) = std::sync::mpsc::channel();
    client.set_verify_callback(SslVerifyMode::PEER, move |_, context| {
        if let Some(leaf) = context.chain().and_then(|chain| chain.get(0)) {
            seen.send(identity_of(leaf).unwrap().subject).unwrap();
        }
        true
    });
    let met = meet_by_name(server, client, sni).unwrap();
    assert_eq!(met.facts.sni.as_deref(), sni);
    assert_eq!(met.facts.alpn, Alpn::Http1);
    sees.try_iter().last().unwrap()
}

#[test]
fn the_certificate_is_chosen_by_server_name() {
    let dir = Dir::new();
    let spec = |name: &str, san: &str| CertificateSpec::server(name, day()).dns(san).issue(&PKI.intermediate).unwrap();
    dir.pair("wild", &spec("wild", "*.hive.example"));
    dir.pair("one", &spec("one", "one.hive.example"));
    let server = dir.build(&listener(&["gw", "wild", "one"])).unwrap();
    for (sni, subject) in [
        (None, "CN=gw"),
        (Some("gw.example"), "CN=gw"),
        (Some("unknown.example"), "CN=gw"),
        (Some("two.hive.example"), "CN=wild"),
        (Some("one.hive.example"), "CN=one"),
        (Some("a.one.hive.example"), "CN=gw"),
    ] {
        assert_eq!(shown(&server, sni), subject, "{sni:?}");
    }
    assert!(server.covers("two.hive.example") && !server.covers("unknown.example"));
    assert_eq!(server.names().count(), 3);
    // Trust does not depend on the name.
    refused(meet_by_name(&server, client(None), Some("one.hive.example")), HandshakeResult::NoCertificate);
    let stranger = client_spec().self_signed().unwrap();
    let failure = meet_by_name(&server, client(Some(&stranger)), Some("one.hive.example"));
    refused(failure, HandshakeResult::UnknownCa);
}

#[test]
fn alpn_takes_what_is_known_and_nothing_else() {
    let server = server();
    for (offer, result) in
        [(&b"\x08http/1.1"[..], Alpn::Http1), (b"\x02h2", Alpn::Http2), (b"\x03foo\x02h2", Alpn::Http2)]
    {
        let mut client = client(Some(&issued()));
        client.set_alpn_protos(offer).unwrap();
        assert_eq!(meet(&server, client).unwrap().facts.alpn, result);
    }
    let mut odd = client(Some(&issued()));
    odd.set_alpn_protos(b"\x08http/1.0\x06spdy/3").unwrap();
    refused(meet(&server, odd), HandshakeResult::NoApplicationProtocol);
}

#[test]
fn a_client_is_given_nothing_to_resume() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let server = server();
        let mut context = client(Some(&issued()));
        context.set_max_proto_version(Some(version)).unwrap();
        context.clear_options(SslOptions::NO_TICKET);
        let (near, far) = tokio::io::duplex(64 << 10);
        let ssl = Ssl::new(&context.build()).unwrap();
        let (met, session) = run(async { tokio::join!(accept(&server, near), connect(ssl, far)) });
        assert!(met.is_ok());
        // An ID is there as soon as the server keeps the session or has sent a ticket.
        assert_eq!(session.unwrap().id(), b"", "{version:?}");
    }
}

#[test]
fn a_client_that_does_not_trust_the_gateway_says_so() {
    let mut client = client(Some(&issued()));
    client.set_verify(SslVerifyMode::PEER);
    let failure = refused(meet(&server(), client), HandshakeResult::ClientAlert);
    assert!(failure.detail.contains("unknown ca"), "{failure}");
}

#[test]
fn a_chain_that_is_too_long_to_be_true_stays_out() {
    let many = (0..3000).fold(client_spec(), |spec, n| spec.dns(&format!("name-{n}.example")));
    refused(meet(&server(), client(Some(&many.issue(&PKI.intermediate).unwrap()))), HandshakeResult::Other);
}

/// The end of a handshake with a client that writes these bytes and goes away.
fn meet_bytes(bytes: &[u8]) -> Result<Met, HandshakeFailure> {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let server = server();
    run(async {
        far.write_all(bytes).await.unwrap();
        drop(far);
        accept(&server, near).await
    })
}

#[test]
fn what_is_not_tls_is_told_apart_from_what_breaks_off() {
    let requests: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n",
        b"POST /api/a2a/jsonrpc HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ];
    for bytes in requests {
        refused(meet_bytes(bytes), HandshakeResult::NotTls);
    }
    let broken: [&[u8]; 3] = [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"];
    for bytes in broken {
        refused(meet_bytes(bytes), HandshakeResult::Aborted);
    }
}

#[test]
fn a_handshake_without_end_is_a_timeout() {
    let server = server();
    let ssl = server.ssl(now()).unwrap();
    let failure = timed_out(&ssl);
    assert_eq!((failure.result, failure.subject), (HandshakeResult::Timeout, None));
}

#[test]
fn only_an_svid_has_a_spiffe_id() {
    let id = |spec: CertificateSpec| identity_of(&spec.issue(&PKI.intermediate).unwrap().cert).unwrap().spiffe_id;
    let bare = || CertificateSpec::client("x", day());
    assert!(id(bare().uri("spiffe://m/a").dns("x")).is_some());
    assert!(id(bare()).is_none());
    assert!(id(bare().uri("spiffe://m/a").uri("spiffe://m/b")).is_none());
    assert!(id(bare().uri("spiffe://m/a").uri("https://x/")).is_none());
    assert!(id(bare().uri("spiffe://m")).is_none());
    assert!(id(bare().uri("spiffe://m/a?q")).is_none());
    assert!(id(bare().uri("spiffe://m/a\0")).is_none());
    let odd = bare().uri("https://x/\r\nX-Real-IP: 1.2.3.4").issue(&PKI.intermediate).unwrap();
    assert!(!identity_of(&odd.cert).unwrap().xfcc.contains(['\r', '\n']));
}

#[test]
fn a_client_can_not_renegotiate() {
    unsafe extern "C" {
        fn SSL_renegotiate(ssl: *mut openssl_sys::SSL) -> std::ffi::c_int;
    }
    let mut context = client(Some(&issued()));
    context.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    let context = context.build();
    let server = server();
    let (near, far) = tokio::io::duplex(64 << 10);
    let serve = async {
        let mut stream = SslStream::new(server.ssl(now()).unwrap(), near).unwrap();
        Pin::new(&mut stream).accept().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let ask_again = async {
        let mut stream = SslStream::new(Ssl::new(&context).unwrap(), far).unwrap();
        Pin::new(&mut stream).connect().await.unwrap();
        // SAFETY: the pointer belongs to the live connection.
        assert_eq!(unsafe { SSL_renegotiate(stream.ssl().as_ptr()) }, 1);
        Pin::new(&mut stream).do_handshake().await.unwrap_err().to_string()
    };
    let error = run(async { tokio::join!(serve, ask_again).1 });
    assert!(error.contains("no renegotiation"), "{error}");
}
