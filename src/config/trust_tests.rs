//! What a file says of trust: who is asked for a certificate, who is named for nothing, what is weaker than it could be.

use super::tests::{GOOD, errors, good, shown, warned};

#[test]
fn a_peer_that_makes_a_difference_is_not_unused() {
    let names_nobody = |text: &str| shown(&good(text).warnings).contains("no route names the peer oslo");
    let with =
        |more: &str| GOOD.replace("peers:\n", &format!("peers:\n  - {{ name: oslo, {more}dns: oslo.example }}\n"));
    let unused = with("");
    assert!(names_nobody(&unused));
    assert!(!names_nobody(&unused.replace("peers: [paris]", "peers: any")), "that is a route for it");
    // What a peer is good for besides: a listener's limits count by it, tokens are bound to it or verified with its key.
    let limit =
        |text: &str, at: &str| text.replace(at, &format!("{at}    rate_limits: [{{ per: peer, rate: 1/s }}]\n"));
    assert!(names_nobody(&limit(&unused, "    upstream: hive\n")), "oslo never gets to the limit");
    let issuer = with("issuer: \"https://oslo.example\", ");
    assert!(names_nobody(&issuer));
    assert!(!names_nobody(&format!("hive: {{ federation: {{ bind_issuer: true }} }}\n{issuer}")));
    let key = "ed25519_public_key: d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a, ";
    let verify = "hive: { federation: { jwt: verify, audience: \"https://a.example\" } }\n";
    assert!(!names_nobody(&format!("{verify}{}", with(&format!("issuer: \"https://oslo.example\", {key}")))));
}

#[test]
fn what_weakens_trust_is_told() {
    let auth = |inside: &str| warned("{ ca: ca.pem }", &format!("{{ ca: ca.pem, {inside} }}"));
    assert!(shown(&good(GOOD).warnings).contains("6:20: listeners[0].tls.client_auth: no revocation"));
    for meant in [
        "crl: []",
        "crl: [a.crl]",
        "crl_url: [\"http://ca.example/a.crl\"]",
        "ocsp: leaf, ocsp_url: \"http://ca.example/\"",
    ] {
        assert_eq!(auth(meant), "", "{meant}");
    }
    assert!(auth("crl: [a.crl], expired_crl: accept").contains("client_auth.expired_crl: a late list still counts"));
    assert!(
        auth("ocsp: leaf, ocsp_responders: [\"http://ca.example\"], ocsp_failure: accept")
            .contains("client_auth.ocsp_failure: without an answer clients")
    );
    let node = |url: &str, more: &str| {
        warned("    endpoints: [\"http://10.0.1.10:3000\"]", &format!("    endpoints: [\"{url}\"]{more}"))
    };
    let told = |w: String| w.contains("upstreams[0].endpoints: ") && w.contains("in plain text");
    let partner = "\n    trusted: false";
    for near in ["http://127.0.0.1:1", "http://[::1]:1", "http://192.168.7.1:1", "http://[fd00::1]:1"] {
        assert!(!told(node(near, "")), "{near}");
        let this_machine = ["127.", "[::1]"].iter().any(|own| near.contains(own));
        assert_eq!(told(node(near, partner)), !this_machine, "{near}");
    }
    for far in ["http://203.0.113.7:1", "http://[2001:db8::1]:1", "http://100.64.0.1:1"] {
        assert!(told(node(far, "")) && told(node(far, partner)), "{far}");
    }
}

#[test]
fn a_listener_without_client_certificates_is_private() {
    let listener = |address: &str| {
        let text = GOOD.replace("0.0.0.0:8443", address).replace("{ ca: ca.pem }", "{ mode: none }");
        errors(&text.replace("peers: [paris]", "peers: any"))
    };
    for private in
        ["127.0.0.1:1", "\"[::1]:1\"", "10.1.2.3:1", "172.31.0.1:1", "\"[fd00::1]:1\"", "\"[::ffff:10.0.0.1]:1\""]
    {
        assert_eq!(listener(private), Vec::<String>::new(), "{private}");
    }
    for public in
        ["0.0.0.0:1", "\"[::]:1\"", "203.0.113.1:1", "172.32.0.1:1", "\"[2001:db8::1]:1\"", "\"[::ffff:8.8.8.8]:1\""]
    {
        let e = listener(public);
        assert!(e.len() == 1 && e[0].contains("client_auth.mode: none on "), "{public} {e:?}");
    }
    // A named peer is never known there; a route for all listeners may well be for the others.
    let none = GOOD.replace("0.0.0.0:8443", "127.0.0.1:1").replace("{ ca: ca.pem }", "{ mode: none }");
    assert!(shown(&good(&none).warnings).contains("no listener of this route asks for a certificate"));
    let named = none.replace("    peers: [paris]", "    listeners: [main]\n    peers: [paris]");
    assert!(errors(&named)[0].contains("routes[0].peers: the listener main asks for no certificate"));
    assert!(errors(&none.replace("{ mode: none }", "{ mode: nobody }"))[0].contains("known: required, none"));
}
