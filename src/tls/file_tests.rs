//! What `check` finds in files.

use super::fixture_tests::{Dir, PKI, day, listener, now};
use super::*;
use crate::cli::pki::{Authority, CertificateSpec, KeyKind, Usage, Validity};
use crate::config::file::{ListenerTls, TlsVersion, UpstreamTls};

fn server_spec() -> CertificateSpec {
    CertificateSpec::server("gw", day()).dns("gw.example")
}

#[track_caller]
fn faults(dir: &Dir, tls: &ListenerTls) -> Vec<String> {
    dir.build(tls).unwrap_err().iter().map(ToString::to_string).collect()
}

/// Builds a listener with this one certificate and expects one fault that says `why`.
#[track_caller]
fn one_fault(dir: &Dir, field: &str, why: &str) {
    let faults = faults(dir, &listener(&["gw"]));
    assert!(faults.len() == 1 && faults[0].starts_with(field) && faults[0].contains(why), "{faults:?}");
}

#[track_caller]
fn one_warning(dir: &Dir, tls: &ListenerTls, field: &str, why: &str) {
    let context = dir.build(tls).unwrap();
    let warnings: Vec<String> = context.warnings().iter().map(ToString::to_string).collect();
    assert!(warnings.len() == 1 && warnings[0].starts_with(field) && warnings[0].contains(why), "{warnings:?}");
}

#[test]
fn every_fault_is_told_at_once() {
    let dir = Dir::new();
    dir.pair("other", &server_spec().issue(&PKI.intermediate).unwrap());
    dir.write("gw.key", std::fs::read(dir.path().join("other.key")).unwrap());
    let mut tls = listener(&["gw", "missing", "other"]);
    tls.client_auth.ca = Some("gw.key".into());
    let faults = faults(&dir, &tls);
    let expected = [
        ("certificates[0].key", "gw.key is not the key of the certificate in gw.pem"),
        ("certificates[1].cert", "missing.pem: No such file"),
        ("certificates[1].key", "missing.key: No such file"),
        ("client_auth.ca", "gw.key holds no PEM certificate"),
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:?}");
    for (fault, (field, why)) in faults.iter().zip(expected) {
        assert!(fault.starts_with(field) && fault.contains(why), "{fault}");
    }
}

#[test]
fn a_certificate_that_does_not_hold_now_is_refused() {
    let dir = Dir::new();
    let hour = |from: i64| Validity { not_before: now() + from, not_after: now() + from + 3600 };
    for (validity, why) in [(hour(-7200), "expired at"), (hour(3000), "not valid before")] {
        dir.pair("gw", &CertificateSpec { validity, ..server_spec() }.issue(&PKI.intermediate).unwrap());
        one_fault(&dir, "certificates[0].cert", why);
        let stale = PKI.root.intermediate("stale", validity).unwrap();
        dir.pair("gw", &server_spec().issue(&stale).unwrap());
        one_fault(&dir, "certificates[0].cert", "certificate 2");
    }
    // Time is an argument.
    dir.pair("gw", &server_spec().issue(&PKI.intermediate).unwrap());
    assert!(build_listener(&listener(&["gw"]), dir.path(), now() + 20 * 3600, None).is_ok());
    assert!(build_listener(&listener(&["gw"]), dir.path(), now() + 30 * 3600, None).is_err());
}

#[test]
fn a_chain_in_the_wrong_order_is_refused() {
    let dir = Dir::new();
    let issued = server_spec().issue(&PKI.intermediate).unwrap();
    let pem = |cert: &openssl::x509::X509| cert.to_pem().unwrap();
    dir.pair("gw", &issued);
    dir.write("gw.pem", [pem(&issued.cert), pem(&PKI.root.cert)].concat());
    one_fault(&dir, "certificates[0].cert", "certificate 2 did not issue certificate 1");
    dir.write("gw.pem", [pem(&issued.cert), pem(&PKI.intermediate.cert), pem(&PKI.root.cert)].concat());
    assert!(dir.build(&listener(&["gw"])).is_ok());
    dir.write("gw.pem", [pem(&PKI.intermediate.cert), pem(&issued.cert)].concat());
    let faults = faults(&dir, &listener(&["gw"]));
    assert!(faults.iter().any(|f| f.contains("the leaf must be the first certificate")), "{faults:?}");
}

#[test]
fn a_certificate_that_clients_would_refuse_is_refused() {
    let dir = Dir::new();
    let spec = || server_spec();
    for (spec, why) in [
        (CertificateSpec { key: KeyKind::Rsa(1024), ..spec() }, "RSA key has 1024 bits"),
        (CertificateSpec { usage: Usage::Client, ..spec() }, "without serverAuth"),
        (CertificateSpec { digest: openssl::hash::MessageDigest::sha1(), ..spec() }, "SHA-1"),
    ] {
        dir.pair("gw", &spec.issue(&PKI.intermediate).unwrap());
        one_fault(&dir, "certificates[0].cert", why);
    }
    let root = &PKI.root;
    dir.write("gw.pem", root.cert_pem().unwrap());
    dir.write("gw.key", root.key_pem().unwrap());
    one_fault(&dir, "certificates[0].cert", "a CA's");
    for key in [KeyKind::Rsa(2048), KeyKind::P384, KeyKind::Ed25519] {
        dir.pair("gw", &CertificateSpec { key, ..spec() }.issue(&PKI.intermediate).unwrap());
        assert!(dir.build(&listener(&["gw"])).is_ok(), "{key:?}");
    }
}

#[test]
fn a_file_that_is_no_key_or_certificate_is_refused() {
    let dir = Dir::new();
    dir.write("gw.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    one_fault(&dir, "certificates[0].key", "no PEM private key");
    let key = KeyKind::P256.generate().unwrap();
    let cipher = openssl::symm::Cipher::aes_128_cbc();
    dir.write("gw.key", key.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").unwrap());
    one_fault(&dir, "certificates[0].key", "encrypted");
    let dir = Dir::new();
    dir.write("gw.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    one_fault(&dir, "certificates[0].cert", "can't be read");
    dir.write("gw.pem", vec![b' '; (1 << 20) + 1]);
    one_fault(&dir, "certificates[0].cert", "larger than 1 MiB");
    std::fs::remove_file(dir.path().join("gw.pem")).unwrap();
    std::fs::create_dir(dir.path().join("gw.pem")).unwrap();
    one_fault(&dir, "certificates[0].cert", "directory");
}

#[test]
fn a_bundle_must_have_a_root_that_holds() {
    let dir = Dir::new();
    dir.write("ca.pem", PKI.intermediate.cert_pem().unwrap());
    one_fault(&dir, "client_auth.ca", "no self-signed root");
    let leaf = server_spec().issue(&PKI.intermediate).unwrap();
    dir.write("ca.pem", [PKI.root.cert_pem().unwrap(), leaf.cert_pem].concat());
    let told = faults(&dir, &listener(&["gw"]));
    assert!(told.len() == 1 && told[0].contains("certificate 2 (\"CN=gw\") is not a CA certificate"), "{told:?}");
    let past = Validity { not_before: now() - 7200, not_after: now() - 3600 };
    let old = Authority::root("old", past).unwrap();
    dir.write("ca.pem", old.cert_pem().unwrap());
    one_fault(&dir, "client_auth.ca", "none of its roots");
}

#[test]
fn what_is_doubtful_is_a_warning() {
    let dir = Dir::new();
    assert!(dir.build(&listener(&["gw"])).unwrap().warnings().is_empty());
    dir.pair("bare", &CertificateSpec::server("bare", day()).issue(&PKI.intermediate).unwrap());
    one_warning(&dir, &listener(&["bare"]), "certificates[0].cert", "no DNS or IP name");
    one_warning(&dir, &listener(&["gw", "gw"]), "certificates[1].cert", "earlier certificate");
    let past = Validity { not_before: now() - 7200, not_after: now() - 3600 };
    let old = Authority::root("old", past).unwrap();
    dir.write("ca.pem", [PKI.root.cert_pem().unwrap(), old.cert_pem().unwrap()].concat());
    one_warning(&dir, &listener(&["gw"]), "client_auth.ca", "certificate 2 (\"CN=old\"): expired");
    let lost = Authority::root("lost", day()).unwrap().intermediate("lost below", day()).unwrap();
    dir.write("ca.pem", [PKI.root.cert_pem().unwrap(), lost.cert_pem().unwrap()].concat());
    one_warning(&dir, &listener(&["gw"]), "client_auth.ca", "leads nowhere");
}

#[cfg(unix)]
#[test]
fn a_key_that_everybody_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let path = dir.path().join("gw.key");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    one_warning(&dir, &listener(&["gw"]), "certificates[0].key", "mode 0644");
}

#[test]
fn the_facts_are_those_of_the_files() {
    let dir = Dir::new();
    let context = dir.build(&listener(&["gw"])).unwrap();
    let [gateway] = context.certificates() else { panic!("{context:?}") };
    assert_eq!((&*gateway.subject, &*gateway.issuer), ("CN=gw", "CN=mesh intermediate CA"));
    assert_eq!(gateway.names, ["gw.example"]);
    assert_eq!(gateway.not_after - gateway.not_before, 24 * 3600 + 60);
    assert_eq!(context.names().next(), Some(("gw.example", gateway.not_after)));
    assert_eq!(context.authorities()[0].subject, "CN=mesh root CA");
}

fn upstream() -> UpstreamTls {
    UpstreamTls {
        ca: Some("ca.pem".into()),
        crl: Vec::new(),
        server_name: Some("hive.internal".into()),
        spiffe_id: None,
        spiffe: None,
        min_version: TlsVersion::Tls12,
        cert: None,
        key: None,
    }
}

#[test]
fn an_upstream_needs_a_name_that_can_be_verified() {
    let dir = Dir::new();
    let told = |tls: &UpstreamTls| build_upstream(tls, dir.path(), now(), None).unwrap_err()[0].to_string();
    for (name, why) in [("", "can't be empty"), ("10.0.0.1", "is an address"), ("a b", "not a DNS name")] {
        let fault = told(&UpstreamTls { server_name: Some(name.into()), ..upstream() });
        assert!(fault.starts_with("server_name") && fault.contains(why), "{fault}");
    }
    let nameless = told(&UpstreamTls { server_name: None, ..upstream() });
    assert!(nameless.contains("can't be empty"), "{nameless}");
    let odd = UpstreamTls { spiffe_id: Some("spiffe://mesh.example".into()), server_name: None, ..upstream() };
    assert!(told(&odd).starts_with("spiffe_id: "), "{}", told(&odd));
    let half = told(&UpstreamTls { cert: Some("gw.pem".into()), ..upstream() });
    assert!(half.starts_with("key:"), "{half}");
    let servers = UpstreamTls { cert: Some("gw.pem".into()), key: Some("gw.key".into()), ..upstream() };
    assert!(told(&servers).contains("without clientAuth"), "{}", told(&servers));
}

#[test]
fn with_a_spiffe_id_the_name_is_the_sni_and_never_empty() {
    let dir = Dir::new();
    let by_id = UpstreamTls { spiffe_id: Some("spiffe://mesh.example/hive/*".into()), ..upstream() };
    assert_eq!(build_upstream(&by_id, dir.path(), now(), None).unwrap().server_name, "hive.internal");
    let nameless = UpstreamTls { server_name: None, ..by_id };
    let material = build_upstream(&nameless, dir.path(), now(), None).unwrap();
    assert_eq!(material.server_name, "mesh.example");
    assert_eq!(material.spiffe_id.unwrap().to_string(), "spiffe://mesh.example/hive/*");
}

#[test]
fn another_trust_or_certificate_is_another_generation() {
    let dir = Dir::new();
    let generation = |tls: &UpstreamTls| build_upstream(tls, dir.path(), now(), None).unwrap().generation;
    let first = generation(&upstream());
    assert_eq!(generation(&upstream()), first);
    let client = || CertificateSpec::client("gw", day()).issue(&PKI.intermediate).unwrap();
    dir.pair("out", &client());
    let with_client = UpstreamTls { cert: Some("out.pem".into()), key: Some("out.key".into()), ..upstream() };
    let second = generation(&with_client);
    assert_ne!(second, first);
    dir.pair("out", &client());
    let material = build_upstream(&with_client, dir.path(), now(), None).unwrap();
    assert_ne!(material.generation, second);
    assert_eq!(material.client.as_ref().map(|pair| pair.intermediates().len()), Some(1));
    assert_eq!(material.client_facts.as_ref().map(|facts| facts.subject.as_str()), Some("CN=gw"));
    assert!(!format!("{material:?}").contains("PRIVATE"));
    let ids = ["spiffe://mesh.example/a", "spiffe://mesh.example/b"];
    let [a, b] = ids.map(|id| generation(&UpstreamTls { spiffe_id: Some(id.into()), ..upstream() }));
    assert!(a != b && a != first && b != first, "another node");
    dir.write("ca.pem", PKI.bundle_pem().unwrap());
    assert_ne!(generation(&upstream()), first);
}

#[test]
fn what_is_weaker_than_it_should_be_is_told() {
    let dir = Dir::new();
    let tls = listener(&["gw"]);
    let spec = |key| CertificateSpec { key, ..server_spec() };
    dir.pair("gw", &spec(KeyKind::Rsa(2048)).issue(&PKI.intermediate).unwrap());
    one_warning(&dir, &tls, "certificates[0].cert", "its RSA key has 2048 bits");
    for key in [KeyKind::Rsa(3072), KeyKind::P256, KeyKind::Ed25519] {
        dir.pair("gw", &spec(key).issue(&PKI.intermediate).unwrap());
        assert!(dir.build(&tls).unwrap().warnings().is_empty(), "{key:?}");
    }
    let long = Validity { not_before: now() - 60, not_after: now() + 400 * 86_400 };
    dir.pair("gw", &CertificateSpec { validity: long, ..server_spec() }.issue(&PKI.intermediate).unwrap());
    one_warning(&dir, &tls, "certificates[0].cert", "it lives 400 days");
    let old = Validity { not_before: now() - 2 * 3600, not_after: now() + 3500 };
    dir.pair("gw", &CertificateSpec { validity: old, ..server_spec() }.issue(&PKI.intermediate).unwrap());
    one_warning(&dir, &tls, "certificates[0].cert", "two thirds of its life are over, it expires at");
    dir.pair("gw", &server_spec().issue(&PKI.intermediate).unwrap());
    let root = Authority::root("old", old).unwrap();
    dir.write("ca.pem", root.cert_pem().unwrap());
    one_warning(&dir, &tls, "client_auth.ca", "certificate 1 (\"CN=old\"): two thirds of its life are over");
    // A root signs itself with whatever; nobody looks at that.
    let sha1 =
        CertificateSpec { digest: openssl::hash::MessageDigest::sha1(), ..CertificateSpec::client("old", day()) };
    dir.write("ca.pem", [PKI.root.cert_pem().unwrap(), sha1.self_signed_ca().unwrap().cert_pem().unwrap()].concat());
    assert!(dir.build(&tls).unwrap().warnings().is_empty());
}

#[test]
fn crls_that_leave_something_open_are_told() {
    use crate::cli::pki::CrlSpec;
    use crate::config::file::CrlCheck;
    let dir = Dir::new();
    dir.write("ca.pem", PKI.bundle_pem().unwrap());
    let mut tls = listener(&["gw"]);
    tls.client_auth.crl = vec!["mesh.crl".into()];
    dir.write("mesh.crl", CrlSpec::new(now() - 7200, now() - 60).issue(&PKI.intermediate).unwrap());
    one_warning(&dir, &tls, "client_auth.crl", "past its nextUpdate; whoever it is to vouch for is refused");
    dir.write("mesh.crl", CrlSpec::new(now() - 60, now() + 60).issue(&PKI.intermediate).unwrap());
    assert!(dir.build(&tls).unwrap().warnings().is_empty());
    tls.client_auth.crl_check = Some(CrlCheck::Chain);
    one_warning(&dir, &tls, "client_auth.crl", "no CRL of \"CN=mesh root CA\"");
}
