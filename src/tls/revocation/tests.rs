//! Lists made by the test, right and wrong in every way that matters.

use std::path::Path;

use openssl::x509::X509;

use super::*;
use crate::cli::pki::{Authority, CertificateSpec, CrlSpec, Issued, RawExtension, issuing_distribution_point};
use crate::tls::fixture_tests::{Dir, PKI, day, now};

fn bundle() -> Vec<X509> {
    vec![PKI.root.cert.clone(), PKI.intermediate.cert.clone()]
}

fn client() -> Issued {
    CertificateSpec::client("paris", day()).issue(&PKI.intermediate).unwrap()
}

fn link(client: &Issued) -> Link {
    Link::of(&client.cert, &PKI.intermediate.cert).unwrap()
}

fn fresh() -> CrlSpec {
    CrlSpec::new(now() - 60, now() + 3600)
}

fn read(der: &[u8]) -> Result<Arc<Crl>, String> {
    read_lists(der, &Bundle::of(&bundle()), now()).map(|lists| lists[0].clone())
}

fn set(der: &[u8]) -> RevocationSet {
    RevocationSet::of([read(der).unwrap()])
}

#[test]
fn a_revoked_certificate_is_told_from_the_others() {
    let (good, bad) = (client(), client());
    let set = set(&fresh().revoke(&bad.cert).unwrap().issue(&PKI.intermediate).unwrap());
    let ask = |client: &Issued| set.ask(&link(client), ExpiredCrl::Reject, now());
    assert_eq!(ask(&bad), Verdict::Revoked);
    assert!(matches!(ask(&good), Verdict::Good { until } if until > now()));
    // The same serial of another CA is another certificate.
    let other = Link::of(&bad.cert, &PKI.root.cert).unwrap();
    assert_eq!(set.ask(&other, ExpiredCrl::Reject, now()), Verdict::NoCrl);
}

#[test]
fn a_late_list_is_rejected_or_accepted_as_configured() {
    let (good, bad) = (client(), client());
    let late = CrlSpec::new(now() - 7200, now() - 3600).revoke(&bad.cert).unwrap();
    let set = set(&late.issue(&PKI.intermediate).unwrap());
    let ask = |client: &Issued, expired| set.ask(&link(client), expired, now());
    assert_eq!(ask(&good, ExpiredCrl::Reject), Verdict::CrlExpired);
    assert_eq!(ask(&good, ExpiredCrl::Accept), Verdict::Good { until: i64::MAX });
    for expired in [ExpiredCrl::Reject, ExpiredCrl::Accept] {
        assert_eq!(ask(&bad, expired), Verdict::Revoked);
    }
}

#[test]
fn what_openssl_makes_of_the_list_is_the_same() {
    let bad = client();
    let der = fresh().revoke(&bad.cert).unwrap().issue(&PKI.intermediate).unwrap();
    let theirs = openssl::x509::X509Crl::from_der(&der).unwrap();
    assert!(theirs.verify(&PKI.intermediate.key).unwrap());
    assert!(matches!(theirs.get_by_cert(&bad.cert), openssl::x509::CrlStatus::Revoked(_)));
    let ours = read(&der).unwrap();
    let seconds = |time: &openssl::asn1::Asn1TimeRef| crate::tls::certificate::unix_seconds(time);
    assert_eq!(ours.this_update, seconds(theirs.last_update()));
    assert_eq!(ours.next_update, seconds(theirs.next_update().unwrap()));
    assert_eq!(ours.issuer_name, "CN=mesh intermediate CA");
}

#[test]
fn a_list_by_somebody_else_is_refused() {
    let stranger = Authority::root("stranger", day()).unwrap();
    let why = read(&fresh().issue(&stranger).unwrap()).unwrap_err();
    assert!(why.contains("CN=stranger") && why.contains("is not in client_auth.ca"), "{why}");
    let twin = Authority { key: stranger.key, ..PKI.intermediate.clone() };
    let why = read(&fresh().issue(&twin).unwrap()).unwrap_err();
    assert!(why.contains("its signature is not by"), "{why}");
    let mut changed = fresh().revoke(&client().cert).unwrap().issue(&PKI.intermediate).unwrap();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    assert!(read(&changed).is_err());
}

#[test]
fn a_ca_that_may_not_sign_lists_does_not() {
    // A leaf has no cRLSign; as a CA of the bundle it would not get this far, but key usage is what is asked here.
    let leaf = client();
    let pretended = Authority { cert: leaf.cert.clone(), key: leaf.key, chain: Vec::new() };
    let der = fresh().issue(&pretended).unwrap();
    let why = read_lists(&der, &Bundle::of(&[leaf.cert]), now()).unwrap_err();
    assert!(why.contains("without cRLSign"), "{why}");
}

/// An extension whose value is `content`, in DER.
fn extension(last: u8, critical: bool, content: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    let body = [&[6, 3, 0x55, 0x1d, last], critical, &[4, content.len() as u8], content].concat();
    [&[0x30, body.len() as u8], &body[..]].concat()
}

#[test]
fn what_a_list_may_not_say_is_refused() {
    let with = |extension: Vec<u8>| {
        let spec = CrlSpec { extensions: vec![extension], ..fresh() };
        read(&spec.issue(&PKI.intermediate).unwrap()).map(|crl| crl.scope.clone())
    };
    for (bad, why) in [
        (extension(27, true, &[2, 1, 1]), "delta"),
        (extension(99, true, &[]), "unknown"),
        (extension(28, true, &[0x30, 3, 0x84, 1, 0xff]), "indirect"),
        (extension(28, true, &[0x30, 4, 0x83, 2, 1, 2]), "some reasons"),
        (extension(28, true, &[0x30, 3, 0x85, 1, 0xff]), "not about"),
    ] {
        let said = with(bad).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    let scope = with(extension(28, true, &[0x30, 3, 0x81, 1, 0xff])).unwrap();
    assert!(scope.users && !scope.authorities);
    assert!(with(extension(99, false, &[])).unwrap().authorities);
    let future = CrlSpec::new(now() + 3600, now() + 7200).issue(&PKI.intermediate).unwrap();
    assert!(read(&future).unwrap_err().contains("in the future"));
}

#[test]
fn a_list_about_cas_only_says_nothing_of_clients() {
    let spec = CrlSpec { extensions: vec![extension(28, true, &[0x30, 3, 0x82, 1, 0xff])], ..fresh() };
    let set = set(&spec.issue(&PKI.intermediate).unwrap());
    assert_eq!(set.ask(&link(&client()), ExpiredCrl::Reject, now()), Verdict::NoCrl);
}

/// A list about the certificates that name one of these URLs.
fn part(urls: &[&str], revoked: &[&Issued]) -> Arc<Crl> {
    let spec = CrlSpec { extensions: vec![issuing_distribution_point(urls)], ..fresh() };
    let spec = revoked.iter().fold(spec, |spec, client| spec.revoke(&client.cert).unwrap());
    read(&spec.issue(&PKI.intermediate).unwrap()).unwrap()
}

fn client_of(urls: &[&str]) -> Issued {
    let point = RawExtension::crl_distribution_point(urls);
    CertificateSpec::client("paris", day()).extension(point).issue(&PKI.intermediate).unwrap()
}

#[test]
fn a_partial_list_speaks_only_for_certificates_that_name_its_distribution_point() {
    let (of_a, of_b, of_none) = (client_of(&["http://ca/a"]), client_of(&["http://ca/b", "ldap:///b"]), client());
    let ask = |set: &RevocationSet, client: &Issued| set.ask(&link(client), ExpiredCrl::Reject, now());
    let good = |verdict| matches!(verdict, Verdict::Good { .. });
    let first = RevocationSet::of([part(&["http://ca/a"], &[])]);
    assert!(good(ask(&first, &of_a)));
    for other in [&of_b, &of_none] {
        assert_eq!(ask(&first, other), Verdict::NoCrl, "the first part to come answers for all");
    }
    let both = RevocationSet::of([part(&["http://ca/a"], &[&of_b]), part(&["http://x/", "http://ca/b"], &[])]);
    assert!(good(ask(&both, &of_a)));
    assert_eq!(ask(&both, &of_b), Verdict::Revoked, "a CA's serial is revoked wherever it stands");
    let second = RevocationSet::of([part(&["http://x/", "http://ca/b"], &[])]);
    assert!(good(ask(&second, &of_b)), "one name of several is enough");
    let whole = RevocationSet::of([read(&fresh().issue(&PKI.intermediate).unwrap()).unwrap()]);
    for client in [&of_a, &of_b, &of_none] {
        assert!(good(ask(&whole, client)), "a list without a distribution point is about all");
    }
}

#[test]
fn a_part_that_is_named_after_the_ca_is_about_all_of_its_certificates() {
    let issuer = PKI.intermediate.cert.subject_name().to_der().unwrap();
    let size = |extra: usize| (issuer.len() + extra) as u8;
    // IssuingDistributionPoint, distributionPoint, fullName, directoryName.
    let head = [0x30, size(6), 0xa0, size(4), 0xa0, size(2), 0xa4, size(0)];
    let spec = CrlSpec { extensions: vec![extension(28, true, &[&head[..], &issuer].concat())], ..fresh() };
    let set = set(&spec.issue(&PKI.intermediate).unwrap());
    assert!(matches!(set.ask(&link(&client()), ExpiredCrl::Reject, now()), Verdict::Good { .. }));
}

#[test]
fn distribution_points_for_some_reasons_or_of_another_ca_are_left_out() {
    let uri = |url: &str| [&[0x86, url.len() as u8], url.as_bytes()].concat();
    let point = |url: &str, more: &[u8]| {
        let name = uri(url);
        let length = name.len() as u8;
        let body = [&[0xa0, length + 2, 0xa0, length], &name[..], more].concat();
        [&[0x30, body.len() as u8], &body[..]].concat()
    };
    let reasons = point("http://ca/reasons", &[0x81, 2, 1, 2]);
    let indirect = point("http://ca/indirect", &[0xa2, 2, 0x30, 0]);
    let nameless = [0x30, 4, 0xa2, 2, 0x30, 0];
    let all = [&reasons[..], &point("http://ca/a", &[]), &indirect, &nameless].concat();
    let value = [&[0x30, 0x81, all.len() as u8], &all[..]].concat();
    let raw = RawExtension { object: "2.5.29.31", critical: false, value };
    let client = CertificateSpec::client("paris", day()).extension(raw).issue(&PKI.intermediate).unwrap();
    assert_eq!(*link(&client).points, [uri("http://ca/a").into()]);
    let raw = RawExtension { object: "2.5.29.31", critical: false, value: vec![0x30, 3, 0x30, 9] };
    let broken = CertificateSpec::client("paris", day()).extension(raw).issue(&PKI.intermediate).unwrap();
    assert!(link(&broken).points.is_empty());
}

#[test]
fn parts_stand_side_by_side_and_newer_lists_replace_older_ones() {
    let (one, two) = (client(), client());
    let both = RevocationSet::of([part(&["http://ca/a"], &[&one]), part(&["http://ca/b"], &[&two])]);
    for client in [&one, &two] {
        assert_eq!(both.ask(&link(client), ExpiredCrl::Reject, now()), Verdict::Revoked);
    }
    let with_number = |number, client: &Issued| {
        let spec = CrlSpec { number, ..fresh() };
        read(&spec.revoke(&client.cert).unwrap().issue(&PKI.intermediate).unwrap()).unwrap()
    };
    let (old, new) = (with_number(127, &one), with_number(128, &two));
    assert!(old.is_older_than(&new) && !new.is_older_than(&old));
    for order in [[old.clone(), new.clone()], [new, old]] {
        let set = RevocationSet::of(order);
        assert_eq!(set.crls().count(), 1);
        assert_eq!(set.ask(&link(&two), ExpiredCrl::Reject, now()), Verdict::Revoked);
        assert!(matches!(set.ask(&link(&one), ExpiredCrl::Reject, now()), Verdict::Good { .. }));
    }
}

#[test]
fn the_same_bytes_are_held_once() {
    let der = fresh().revoke(&client().cert).unwrap().issue(&PKI.intermediate).unwrap();
    let first = read(&der).unwrap();
    assert!(Arc::ptr_eq(&first, &read(&der).unwrap()));
    // Not for a bundle without the CA.
    assert!(read_lists(&der, &Bundle::of(std::slice::from_ref(&PKI.root.cert)), now()).is_err());
}

#[test]
fn files_may_be_pem_or_der_and_hold_several() {
    let dir = Dir::new();
    let bad = client();
    let below = fresh().revoke(&bad.cert).unwrap().issue_pem(&PKI.intermediate).unwrap();
    let top = fresh().issue(&PKI.root).unwrap();
    dir.write("both.pem", [b"of the mesh\n", &below[..], &fresh().issue_pem(&PKI.root).unwrap()].concat());
    dir.write("top.crl", &top);
    let load = |files: &[&str]| {
        let files: Vec<_> = files.iter().map(|f| (*f).to_owned()).collect();
        RevocationSet::load(&files, dir.path(), &bundle(), now())
    };
    assert_eq!(load(&["both.pem"]).unwrap().crls().count(), 2);
    assert_eq!(load(&["both.pem", "top.crl"]).unwrap().crls().count(), 2);
    dir.write("empty", "");
    dir.write("cut.pem", &below[..below.len() - 30]);
    let faults = load(&["both.pem", "empty", "none", "cut.pem"]).unwrap_err();
    let places: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(places, ["client_auth.crl[1]", "client_auth.crl[2]", "client_auth.crl[3]"]);
    assert!(faults[0].message.starts_with("empty: holds no CRL"), "{}", faults[0].message);
}

#[test]
fn broken_lists_are_refused_wherever_they_are_cut() {
    let der = fresh().revoke(&client().cert).unwrap().issue(&PKI.intermediate).unwrap();
    for length in 0..der.len() {
        assert!(read(&der[..length]).is_err(), "{length}");
    }
    let longer = [&der[..], &[0]].concat();
    assert!(read(&longer).is_err());
}

#[test]
fn rsa_and_edwards_signatures_are_known() {
    // The list is signed anew by OpenSSL with another kind of key.
    use openssl::hash::MessageDigest;
    use openssl::x509::extension::AuthorityKeyIdentifier;
    use openssl::x509::{CrlNumber, X509CrlBuilder, X509Revoked, X509RevokedBuilder};
    let bad = client();
    let revoked = || -> X509Revoked {
        let mut entry = X509RevokedBuilder::new().unwrap();
        entry.set_serial_number(bad.cert.serial_number()).unwrap();
        entry.set_revocation_date(&openssl::asn1::Asn1Time::from_unix(now()).unwrap()).unwrap();
        entry.build()
    };
    for (key, digest, good) in [
        (crate::cli::pki::KeyKind::Rsa(2048), MessageDigest::sha256(), true),
        (crate::cli::pki::KeyKind::Rsa(2048), MessageDigest::sha512(), true),
        (crate::cli::pki::KeyKind::P384, MessageDigest::sha384(), true),
        (crate::cli::pki::KeyKind::Ed25519, MessageDigest::null(), true),
        (crate::cli::pki::KeyKind::Rsa(2048), MessageDigest::sha1(), false),
    ] {
        let ca = CertificateSpec { key, ..CertificateSpec::client("signer", day()) }.self_signed_ca().unwrap();
        let mut list = X509CrlBuilder::new().unwrap();
        list.set_issuer_name(ca.cert.subject_name()).unwrap();
        list.set_last_update(&openssl::asn1::Asn1Time::from_unix(now()).unwrap()).unwrap();
        list.set_next_update(&openssl::asn1::Asn1Time::from_unix(now() + 60).unwrap()).unwrap();
        let dummy = X509::builder().unwrap();
        let aki = AuthorityKeyIdentifier::new().keyid(true).build(&dummy.x509v3_context(Some(&ca.cert), None)).unwrap();
        list.append_extension(aki).unwrap();
        let number = openssl::bn::BigNum::from_u32(7).unwrap();
        list.append_extension(CrlNumber::new(number).unwrap().build().unwrap()).unwrap();
        list.add_revoked(revoked()).unwrap();
        list.sign(&ca.key, digest).unwrap();
        let der = list.build().unwrap().to_der().unwrap();
        let read = read_lists(&der, &Bundle::of(std::slice::from_ref(&ca.cert)), now());
        assert_eq!(read.is_ok(), good, "{key:?}: {:?}", read.err());
    }
}

#[test]
fn fetched_lists_never_go_back() {
    let dir = Dir::new();
    dir.write("ca.pem", PKI.bundle_pem().unwrap());
    let mut auth = crate::config::file::ClientAuth::of("ca.pem");
    auth.crl_url = vec!["http://127.0.0.1/mesh.crl".into()];
    let load = || Revocation::load(&auth, Path::new("/"), &bundle(), now(), &mut Vec::new()).unwrap().unwrap();
    let live = load();
    let url = live.urls()[0].clone();
    let bad = client();
    let ask = |live: &Revocation| live.ask(&[link(&bad)], now()).1;
    assert_eq!(ask(&live), Verdict::NoCrl);
    let old = fresh().issue(&PKI.intermediate).unwrap();
    let new = CrlSpec::new(now() - 30, now() + 60).revoke(&bad.cert).unwrap().issue(&PKI.intermediate).unwrap();
    assert_eq!(live.install(&url, &old, None, now()), Ok(true));
    let generation = live.generation();
    assert_eq!(live.install(&url, &old, None, now()), Ok(false));
    assert_eq!(live.generation(), generation);
    assert!(matches!(ask(&live), Verdict::Good { .. }));
    assert_eq!(live.install(&url, &new, None, now()), Ok(true));
    assert!(live.install(&url, &old, None, now()).unwrap_err().contains("older"));
    assert!(live.install(&url, b"<html>", None, now()).is_err());
    // A sibling list of the same CA, about another part of its certificates, is no newer one.
    let point = [0x30, 7, 0xa0, 5, 0xa0, 3, 0x86, 1, b'b'];
    let part = CrlSpec { extensions: vec![extension(28, true, &point)], ..fresh() };
    let sibling = part.issue(&PKI.intermediate).unwrap();
    assert!(live.install(&url, &sibling, None, now()).unwrap_err().contains("not there any more"));
    assert_eq!(ask(&live), Verdict::Revoked);
    assert!(live.next_update(&url).is_some_and(|at| (now() + 58..=now() + 60).contains(&at)));
    // A CA that was set up anew counts from one, later.
    let renumbered = CrlSpec { number: 1, this_update: now() - 20, ..fresh() }.revoke(&bad.cert).unwrap();
    assert_eq!(live.install(&url, &renumbered.issue(&PKI.intermediate).unwrap(), None, now()), Ok(true));
    assert_eq!(live.install(&url, &new, None, now()).map_err(|why| why.contains("older")), Err(true));
    // A new snapshot begins with them.
    let next = load();
    next.adopt(&live);
    assert_eq!(ask(&next), Verdict::Revoked);
    assert!(next.has(&url));
}

#[test]
fn a_list_that_comes_while_a_new_generation_is_made_is_not_lost() {
    let dir = Dir::new();
    let url = CrlUrl::parse("http://ca.example/a.crl").unwrap();
    let mut settings = crate::config::file::ClientAuth::of("ca.pem");
    settings.crl_url = vec![url.as_str().into()];
    let load = |ca: &[X509]| Revocation::load(&settings, dir.path(), ca, now(), &mut Vec::new()).unwrap().unwrap();
    let (good, bad) = (client(), client());
    let make = |spec: CrlSpec| spec.issue(&PKI.intermediate).unwrap();
    let ask = |revocation: &Revocation, client: &Issued| revocation.ask(&[link(client)], now()).1;
    let first = load(&bundle());
    first.install(&url, &make(fresh()), Some("one".into()), now()).unwrap();
    let second = load(&bundle());
    second.adopt(&first);
    let (third, other_ca) = (load(&bundle()), load(&bundle()[..1]));
    third.adopt(&second);
    other_ca.adopt(&second);
    // Whoever fetched it had found the first one.
    let newer = make(CrlSpec::new(now() - 30, now() + 3600).revoke(&bad.cert).unwrap());
    assert_eq!(first.install(&url, &newer, Some("two".into()), now()), Ok(true));
    for heir in [&first, &second, &third] {
        assert_eq!(ask(heir, &bad), Verdict::Revoked);
        assert!(matches!(ask(heir, &good), Verdict::Good { .. }));
        assert_eq!(heir.tag(&url).as_deref(), Some("two"));
    }
    assert!(!other_ca.has(&url), "its CAs did not sign it");
    // Two reloads within one reading: the one in between is gone, and with it the way from the first to the last.
    let fourth = load(&bundle());
    fourth.adopt(&third);
    drop((second, third));
    let newest = make(CrlSpec::new(now() - 20, now() + 3600).revoke(&bad.cert).unwrap().revoke(&good.cert).unwrap());
    first.install(&url, &newest, Some("three".into()), now()).unwrap();
    fourth.take_from(&first, &url);
    assert_eq!(ask(&fourth, &good), Verdict::Revoked);
}

#[test]
fn a_file_that_goes_back_to_an_older_list_does_not_let_its_clients_in() {
    let dir = Dir::new();
    let bad = client();
    let mut auth = crate::config::file::ClientAuth::of("ca.pem");
    auth.crl = vec!["mesh.crl".into()];
    let load = || Revocation::load(&auth, dir.path(), &bundle(), now(), &mut Vec::new()).unwrap().unwrap();
    let ask = |live: &Revocation| live.ask(&[link(&bad)], now()).1;
    let put = |this_update, revoked: bool| {
        let spec = CrlSpec::new(this_update, now() + 3600);
        let spec = if revoked { spec.revoke(&bad.cert).unwrap() } else { spec };
        dir.write("mesh.crl", spec.issue(&PKI.intermediate).unwrap());
    };
    put(now() - 60, true);
    let first = load();
    assert_eq!(ask(&first), Verdict::Revoked);
    put(now() - 600, false);
    let mut before = first;
    // Also with the next reload, which sees the old file as before.
    for _ in 0..2 {
        let next = load();
        next.adopt(&before);
        assert_eq!(ask(&next), Verdict::Revoked);
        assert_eq!(next.rolled_back(), ["CN=mesh intermediate CA"]);
        assert!(next.facts()[0].file_is_older);
        before = next;
    }
    put(now() - 30, false);
    let next = load();
    next.adopt(&before);
    assert!(matches!(ask(&next), Verdict::Good { .. }) && next.rolled_back().is_empty());
}

#[test]
fn what_was_fetched_is_there_after_a_restart_and_verified_again() {
    let dir = Dir::new();
    let store = StateDir::new(dir.path());
    let bad = client();
    let mut auth = crate::config::file::ClientAuth::of("ca.pem");
    auth.crl_url = vec!["http://127.0.0.1/mesh.crl".into()];
    let load = || Revocation::load(&auth, dir.path(), &bundle(), now(), &mut Vec::new()).unwrap().unwrap();
    let restored = |bytes: &[u8]| {
        let live = load();
        store.write(b"http://127.0.0.1/mesh.crl", bytes).unwrap();
        let any = live.restore(&live.urls()[0], &store, now());
        (any, live.ask(&[link(&bad)], now()).1, live.ask(&[link(&client())], now()).1)
    };
    let good = fresh().revoke(&bad.cert).unwrap().issue(&PKI.intermediate).unwrap();
    assert!(matches!(restored(&good), (true, Verdict::Revoked, Verdict::Good { .. })));
    let late = CrlSpec::new(now() - 7200, now() - 60).revoke(&bad.cert).unwrap().issue(&PKI.intermediate).unwrap();
    assert_eq!(restored(&late), (true, Verdict::Revoked, Verdict::CrlExpired));
    let twin = Authority { key: crate::cli::pki::KeyKind::P256.generate().unwrap(), ..PKI.intermediate.clone() };
    let forged = fresh().issue(&twin).unwrap();
    for bytes in [&forged[..], b"", &good[..good.len() / 2]] {
        assert_eq!(restored(bytes), (false, Verdict::NoCrl, Verdict::NoCrl));
    }
    // What has been fetched meanwhile is newer in any case.
    let live = load();
    let newer = CrlSpec::new(now() - 5, now() + 3600).issue(&PKI.intermediate).unwrap();
    assert_eq!(live.install(&live.urls()[0], &newer, None, now()), Ok(true));
    assert!(!live.restore(&live.urls()[0], &store, now()));
}

#[test]
fn a_client_comes_in_while_its_own_list_is_being_fetched_and_not_without_one() {
    let mut auth = crate::config::file::ClientAuth::of("ca.pem");
    auth.crl_distribution_points = vec!["http://ca/".into()];
    let live = Revocation::load(&auth, Path::new("/"), &bundle(), now(), &mut Vec::new()).unwrap().unwrap();
    let (of_a, elsewhere, of_none) = (client_of(&["http://ca/a"]), client_of(&["http://other/a"]), client());
    let at_handshake = |client: &Issued| live.ask_at_handshake(&[link(client)], now()).1;
    for client in [&elsewhere, &of_none] {
        assert_eq!(at_handshake(client), Verdict::NoCrl);
    }
    assert!(live.sources().is_empty(), "nobody else is asked");
    assert!(matches!(at_handshake(&of_a), Verdict::Good { .. }));
    assert_eq!(live.ask(&[link(&of_a)], now()).1, Verdict::NoCrl, "its requests wait");
    assert!(live.awaits(&[link(&of_a)], now()));
    let [url] = &live.sources()[..] else { panic!("{:?}", live.sources()) };
    live.note_asked(url);
    assert!(!live.awaits(&[link(&of_a)], now()));
    assert_eq!(at_handshake(&of_a), Verdict::NoCrl, "asked in vain");
    let spec = CrlSpec { extensions: vec![issuing_distribution_point(&["http://ca/a"])], ..fresh() };
    assert_eq!(live.install(url, &spec.issue(&PKI.intermediate).unwrap(), None, now()), Ok(true));
    assert!(matches!(live.ask(&[link(&of_a)], now()).1, Verdict::Good { .. }));
    // A revoked certificate above the client's is refused whatever else is awaited.
    let other = client_of(&["http://ca/b"]);
    let revoked = spec.revoke(&of_a.cert).unwrap();
    let later = CrlSpec { this_update: now() - 1, ..revoked }.issue(&PKI.intermediate).unwrap();
    assert_eq!(live.install(url, &later, None, now()), Ok(true));
    assert!(matches!(at_handshake(&other), Verdict::Good { .. }));
    assert_eq!(at_handshake(&of_a), Verdict::Revoked);
    let next = Revocation::load(&auth, Path::new("/"), &bundle(), now(), &mut Vec::new()).unwrap().unwrap();
    next.adopt(&live);
    assert_eq!(next.ask(&[link(&of_a)], now()).1, Verdict::Revoked, "a reload keeps what certificates had fetched");
}
