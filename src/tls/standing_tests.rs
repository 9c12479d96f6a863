//! A client that came in, seen by later contexts of the same listener.

use std::pin::Pin;

use openssl::ssl::{Ssl, SslContextBuilder, SslMethod, SslVerifyMode};
use tokio_openssl::SslStream;

use super::fixture_tests::{Dir, PKI, day, listener, now};
use super::*;
use crate::cli::pki::{CertificateSpec, CrlSpec, Development, Issued, Validity};
use crate::config::file::{CrlCheck, ListenerTls};

fn issued() -> Issued {
    CertificateSpec::client("paris", day()).uri("spiffe://mesh.example/hive/paris").issue(&PKI.intermediate).unwrap()
}

/// The handshake of a client that must come in.
fn come_in(server: &ServerContext, issued: &Issued) -> (ClientChain, Standing) {
    let mut context = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
    context.set_verify(SslVerifyMode::NONE);
    context.set_certificate(&issued.cert).unwrap();
    context.set_private_key(&issued.key).unwrap();
    issued.chain.iter().for_each(|issuer| context.add_extra_chain_cert(issuer.clone()).unwrap());
    let client = Ssl::new(&context.build()).unwrap();
    let (near, far) = tokio::io::duplex(64 << 10);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut near = SslStream::new(server.ssl(now()).unwrap(), near).unwrap();
        let mut far = SslStream::new(client, far).unwrap();
        let (accepted, connected) = tokio::join!(Pin::new(&mut near).accept(), Pin::new(&mut far).connect());
        accepted.unwrap();
        connected.unwrap();
        server.client(near.ssl(), now()).unwrap()
    })
}

/// The directory's bundle is the whole PKI; `crl` is what this makes.
fn revoking(dir: &Dir, check: CrlCheck, lists: &[Vec<u8>]) -> ListenerTls {
    dir.write("ca.pem", PKI.bundle_pem().unwrap());
    dir.write("mesh.crl", lists.concat());
    let mut tls = listener(&["gw"]);
    tls.client_auth.crl = vec!["mesh.crl".into()];
    tls.client_auth.crl_check = Some(check);
    tls
}

fn list() -> CrlSpec {
    CrlSpec::new(now() - 60, now() + 600)
}

#[test]
fn a_reload_that_changes_nothing_asks_nothing() {
    let dir = Dir::new();
    let server = dir.build(&listener(&["gw"])).unwrap();
    let (client, standing) = come_in(&server, &issued());
    assert_eq!(standing.gone(), None);
    let again = dir.build(&listener(&["gw"])).unwrap();
    for server in [&server, &again] {
        assert!(server.standing(&client, &standing, now()).is_none());
    }
}

#[test]
fn a_client_whose_ca_is_taken_out_is_gone_until_it_is_back() {
    let dir = Dir::new();
    let before = dir.build(&listener(&["gw"])).unwrap();
    let (client, standing) = come_in(&before, &issued());
    // The gateway's own certificate may be of whatever CA.
    let other = Development::new("other", day()).unwrap();
    dir.write("ca.pem", other.root.cert_pem().unwrap());
    let without = dir.build(&listener(&["gw"])).unwrap();
    let lost = without.standing(&client, &standing, now()).unwrap();
    assert_eq!(lost.gone(), Some(Gone::NotTrusted));
    // Verified once for this bundle.
    assert!(without.standing(&client, &lost, now()).is_none());
    dir.write("ca.pem", [other.root.cert_pem().unwrap(), PKI.root.cert_pem().unwrap()].concat());
    let both = dir.build(&listener(&["gw"])).unwrap();
    assert_eq!(both.standing(&client, &lost, now()).unwrap().gone(), None);
    let kept = both.standing(&client, &standing, now()).unwrap();
    assert_eq!(kept.gone(), None);
    assert!(both.standing(&client, &kept, now()).is_none());
}

#[test]
fn a_ca_of_the_same_name_does_not_keep_a_client() {
    let dir = Dir::new();
    let before = dir.build(&listener(&["gw"])).unwrap();
    let (client, standing) = come_in(&before, &issued());
    dir.write("ca.pem", Development::new("mesh", day()).unwrap().root.cert_pem().unwrap());
    let twin = dir.build(&listener(&["gw"])).unwrap();
    assert_eq!(twin.standing(&client, &standing, now()).unwrap().gone(), Some(Gone::NotTrusted));
}

#[test]
fn the_end_of_a_certificate_or_of_its_ca_ends_its_client() {
    let dir = Dir::new();
    let server = dir.build(&listener(&["gw"])).unwrap();
    let (client, standing) = come_in(&server, &issued());
    assert!(server.standing(&client, &standing, now() + 3600).is_none());
    let later = server.standing(&client, &standing, now() + 2 * 86_400).unwrap();
    assert_eq!(later.gone(), Some(Gone::Expired));
    let short = PKI.root.intermediate("short", Validity::seconds_from(now(), 600)).unwrap();
    let below = CertificateSpec::client("paris", day()).issue(&short).unwrap();
    let (client, standing) = come_in(&server, &below);
    assert_eq!(server.standing(&client, &standing, now() + 601).unwrap().gone(), Some(Gone::Expired));
}

#[test]
fn lists_that_come_later_count_for_who_is_in_already() {
    let dir = Dir::new();
    let before = dir.build(&listener(&["gw"])).unwrap();
    let paris = issued();
    let (client, standing) = come_in(&before, &paris);
    let judged = |check, lists: &[Vec<u8>]| {
        let server = dir.build(&revoking(&dir, check, lists)).unwrap();
        server.standing(&client, &standing, now()).unwrap().gone()
    };
    let pem = |spec: CrlSpec, ca| spec.issue_pem(ca).unwrap();
    let (below, top) = (&PKI.intermediate, &PKI.root);
    let revoked = || pem(list().revoke(&paris.cert).unwrap(), below);
    let above = || pem(list().revoke(&PKI.intermediate.cert).unwrap(), top);
    assert_eq!(judged(CrlCheck::Leaf, &[revoked()]), Some(Gone::Revoked));
    assert_eq!(judged(CrlCheck::Leaf, &[pem(list(), below)]), None);
    assert_eq!(judged(CrlCheck::Leaf, &[pem(list(), top)]), Some(Gone::StatusUnknown));
    assert_eq!(judged(CrlCheck::Leaf, &[pem(list(), below), above()]), None);
    assert_eq!(judged(CrlCheck::Chain, &[pem(list(), below), above()]), Some(Gone::Revoked));
    assert_eq!(judged(CrlCheck::Chain, &[pem(list(), below)]), Some(Gone::StatusUnknown));
}

#[test]
fn a_list_that_gets_late_ends_what_it_let_in() {
    let dir = Dir::new();
    let server = dir.build(&revoking(&dir, CrlCheck::Leaf, &[list().issue_pem(&PKI.intermediate).unwrap()])).unwrap();
    let (client, standing) = come_in(&server, &issued());
    assert!(server.standing(&client, &standing, now() + 590).is_none());
    let late = server.standing(&client, &standing, now() + 610).unwrap();
    assert_eq!(late.gone(), Some(Gone::StatusUnknown));
}
