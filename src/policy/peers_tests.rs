use proptest::prelude::*;

use super::*;

fn matcher(index: usize, rule: Result<PeerRule, String>) -> PeerMatcher {
    PeerMatcher { name: PeerName::new(&format!("p{index}")).unwrap(), rule: rule.unwrap() }
}

fn uris(patterns: &[&str]) -> Result<Peers, Vec<PeerConflict>> {
    Peers::build(patterns.iter().enumerate().map(|(n, p)| matcher(n, PeerRule::parse_uri(p))).collect())
}

fn identity(uri: Option<&str>, dns: &[&str], fingerprint: u8) -> PeerIdentity {
    PeerIdentity {
        spiffe_id: uri.map(|uri| SpiffeId::parse(uri).unwrap()),
        uris: uri.map(str::to_owned).into_iter().collect(),
        dns: dns.iter().map(|name| (*name).to_owned()).collect(),
        subject: String::new(),
        issuer: String::new(),
        serial: "1".into(),
        fingerprint: [fingerprint; 32],
        not_before: 0,
        not_after: 0,
        xfcc: String::new(),
        client_cert: String::new(),
    }
}

fn found(peers: &Peers, id: &PeerIdentity) -> Option<u32> {
    peers.find(id).map(|peer| peer.index)
}

#[test]
fn the_most_specific_rule_wins() {
    let peers = Peers::build(vec![
        matcher(0, PeerRule::parse_dns("*.example")),
        matcher(1, PeerRule::parse_dns("paris.example")),
        matcher(2, PeerRule::parse_uri("spiffe://m/**")),
        matcher(3, PeerRule::parse_uri("spiffe://m/hive/*")),
        matcher(4, PeerRule::parse_uri("spiffe://m/hive/paris")),
        matcher(5, PeerRule::parse_fingerprint(&"07".repeat(32))),
    ])
    .unwrap();
    let paris = ["paris.example"];
    assert_eq!(found(&peers, &identity(Some("spiffe://m/hive/paris"), &paris, 7)), Some(5));
    assert_eq!(found(&peers, &identity(Some("spiffe://m/hive/paris"), &paris, 0)), Some(4));
    assert_eq!(found(&peers, &identity(Some("spiffe://m/hive/rome"), &paris, 0)), Some(3));
    assert_eq!(found(&peers, &identity(Some("spiffe://m/a"), &paris, 0)), Some(2));
    assert_eq!(found(&peers, &identity(Some("spiffe://other/a"), &paris, 0)), Some(1));
    assert_eq!(found(&peers, &identity(None, &["x.y", "rome.example"], 0)), Some(0));
    assert_eq!(found(&peers, &identity(None, &["a.b.example", "example", "*.example"], 0)), None);
    assert_eq!(found(&peers, &identity(None, &[], 0)), None);
    assert_eq!(peers.by_name(&PeerName::new("p3").unwrap()).unwrap().index, 3);
    assert_eq!(peers.iter().count(), peers.len());
}

#[test]
fn a_wildcard_takes_whole_segments_only() {
    let peers = uris(&["spiffe://m/a/*", "spiffe://m/b/**"]).unwrap();
    for (uri, peer) in [
        ("spiffe://m/a/x", Some(0)),
        ("spiffe://m/a", None),
        ("spiffe://m/a/x/y", None),
        ("spiffe://m/b", None),
        ("spiffe://m/b/x", Some(1)),
        ("spiffe://m/b/x/y/z", Some(1)),
        ("spiffe://n/b/x", None),
    ] {
        assert_eq!(found(&peers, &identity(Some(uri), &[], 0)), peer, "{uri}");
    }
}

#[test]
fn a_bad_rule_says_what_is_wrong() {
    for (text, why) in [
        ("https://m/a", "spiffe://"),
        ("spiffe://m", "no workload"),
        ("spiffe://m/", "empty"),
        ("spiffe://*/a", "trust domain"),
        ("spiffe://m/a*", "whole segment"),
        ("spiffe://m/**/a", "last segment"),
        ("spiffe://m/a?b", "letters"),
        ("spiffe://m/..", "'..'"),
    ] {
        let error = UriPattern::parse(text).unwrap_err();
        assert!(error.contains(why) && error.contains(text), "{error}");
    }
    for text in ["", "*", "*.", "a..b", "a b", "-a.b", "a.*.b", &"x".repeat(64)] {
        assert!(DnsPattern::parse(text).is_err(), "{text}");
    }
    assert_eq!(DnsPattern::parse("*.Example.COM").unwrap().to_string(), "*.example.com");
    for text in ["", "zz", &"g".repeat(64), &"ab".repeat(31), &"a:b".repeat(22), &format!("{}é", "a".repeat(62))] {
        assert!(PeerRule::parse_fingerprint(text).is_err(), "{text}");
    }
    let colons = ["AB"; 32].join(":");
    assert_eq!(PeerRule::parse_fingerprint(&colons), Ok(PeerRule::Fingerprint([0xab; 32])));
}

#[test]
fn rules_that_could_both_match_are_conflicts() {
    for (a, b) in [
        ("spiffe://m/a", "spiffe://m/a"),
        ("spiffe://m/a/*", "spiffe://m/a/*"),
        ("spiffe://m/a/**", "spiffe://m/a/**"),
        ("spiffe://m/*/b", "spiffe://m/a/*"),
        ("spiffe://m/*/b/**", "spiffe://m/a/*/c"),
        ("spiffe://m/a/**", "spiffe://m/*/b"),
        ("spiffe://m/*/b/**", "spiffe://m/a/**"),
    ] {
        let conflicts = uris(&[a, b]).map(|_| ()).unwrap_err();
        assert_eq!((conflicts[0].first, conflicts[0].second, conflicts.len()), (0, 1, 1), "{a} {b}");
        assert!(conflicts[0].why.contains(a), "{}", conflicts[0].why);
    }
    for (a, b) in [
        ("spiffe://m/a", "spiffe://m/*"),
        ("spiffe://m/a/*", "spiffe://m/*/*"),
        ("spiffe://m/a/**", "spiffe://m/**"),
        ("spiffe://m/a/*", "spiffe://m/a/**"),
        ("spiffe://m/*/b", "spiffe://m/a/*/c"),
    ] {
        assert!(uris(&[a, b]).is_ok(), "{a} {b}");
    }
    let name = PeerName::new("same").unwrap();
    let rule = |text| PeerRule::parse_dns(text).unwrap();
    let twice = ["a.b", "c.d"].map(|text| PeerMatcher { name: name.clone(), rule: rule(text) });
    assert!(Peers::build(twice.to_vec()).unwrap_err()[0].why.contains("same"));
}

#[test]
fn one_mistake_does_not_make_a_million_conflicts() {
    let all: Vec<String> =
        (0..2000).flat_map(|n| [format!("spiffe://m/*/x{n}"), format!("spiffe://m/y{n}/*")]).collect();
    let conflicts = uris(&all.iter().map(String::as_str).collect::<Vec<_>>()).map(|_| ()).unwrap_err();
    assert_eq!(conflicts.len(), CONFLICTS_MAX);
}

#[test]
fn a_hundred_thousand_peers_are_found() {
    let rules = (0..100_000).map(|n| match n % 4 {
        0 => PeerRule::parse_uri(&format!("spiffe://m/hive/{n}")),
        1 => PeerRule::parse_uri(&format!("spiffe://m/{n}/*/x")),
        2 => PeerRule::parse_uri(&format!("spiffe://m/t/{n}/**")),
        _ => PeerRule::parse_dns(&format!("*.n{n}.example")),
    });
    let peers = Peers::build(rules.enumerate().map(|(n, rule)| matcher(n, rule)).collect()).unwrap();
    assert_eq!(found(&peers, &identity(Some("spiffe://m/hive/40000"), &[], 0)), Some(40_000));
    assert_eq!(found(&peers, &identity(Some("spiffe://m/40001/q/x"), &[], 0)), Some(40_001));
    assert_eq!(found(&peers, &identity(Some("spiffe://m/t/40002/q/x"), &[], 0)), Some(40_002));
    assert_eq!(found(&peers, &identity(None, &["a.n40003.example"], 0)), Some(40_003));
}

fn pattern() -> impl Strategy<Value = String> {
    let segment = prop_oneof![3 => Just("a"), 3 => Just("b"), 2 => Just("*")];
    (prop_oneof![9 => Just("m"), 1 => Just("n")], proptest::collection::vec(segment, 1..4), any::<bool>()).prop_map(
        |(domain, segments, rest)| format!("spiffe://{domain}/{}{}", segments.join("/"), if rest { "/**" } else { "" }),
    )
}

fn id() -> impl Strategy<Value = String> {
    let segment = prop_oneof![Just("a"), Just("b"), Just("c")];
    (prop_oneof![9 => Just("m"), 1 => Just("n")], proptest::collection::vec(segment, 1..5))
        .prop_map(|(domain, segments)| format!("spiffe://{domain}/{}", segments.join("/")))
}

/// Every ID of up to five segments over the letters of [`pattern`] and one more.
fn every_id() -> Vec<SpiffeId> {
    let mut paths = vec![String::new()];
    let mut all = Vec::new();
    for _ in 0..5 {
        paths = paths.iter().flat_map(|path| ["a", "b", "c"].map(|s| format!("{path}/{s}"))).collect();
        all.extend(paths.iter().map(|path| SpiffeId::parse(&format!("spiffe://m{path}")).unwrap()));
    }
    all
}

proptest! {
    #[test]
    fn the_trie_finds_what_a_scan_of_all_patterns_finds(
        patterns in proptest::collection::hash_set(pattern(), 1..12), ids in proptest::collection::vec(id(), 20),
    ) {
        // Keep those that don't conflict: the scan needs one narrowest match.
        let mut kept: Vec<String> = Vec::new();
        for pattern in patterns {
            kept.push(pattern);
            if uris(&kept.iter().map(String::as_str).collect::<Vec<_>>()).is_err() {
                kept.pop();
            }
        }
        let peers = uris(&kept.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let parsed: Vec<UriPattern> = kept.iter().map(|text| UriPattern::parse(text).unwrap()).collect();
        for text in ids {
            let id = SpiffeId::parse(&text).unwrap();
            let matching: Vec<usize> = (0..parsed.len()).filter(|n| parsed[*n].matches(&id)).collect();
            match found(&peers, &identity(Some(&text), &[], 0)) {
                None => prop_assert!(matching.is_empty(), "{text} matches {matching:?} of {kept:?}"),
                Some(peer) => {
                    prop_assert!(matching.contains(&(peer as usize)), "{text} is not {peer} of {kept:?}");
                    let winner = &parsed[peer as usize];
                    for other in matching {
                        let narrower = every_id().iter().all(|id| !winner.matches(id) || parsed[other].matches(id));
                        prop_assert!(narrower, "{text}: {winner} is not inside {}", parsed[other]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_conflict_is_an_overlap_where_neither_is_inside_the_other(a in pattern(), b in pattern()) {
        let (one, other) = (UriPattern::parse(&a).unwrap(), UriPattern::parse(&b).unwrap());
        prop_assume!(one.trust_domain() == "m" || other.trust_domain() == "m");
        let all = every_id();
        let both = all.iter().any(|id| one.matches(id) && other.matches(id));
        let inside = |x: &UriPattern, y: &UriPattern| all.iter().all(|id| !x.matches(id) || y.matches(id));
        // Over three letters and five segments, sets that are equal belong to patterns that are equal.
        let expected = a == b || (both && !inside(&one, &other) && !inside(&other, &one));
        prop_assert_eq!(uris(&[&a, &b]).is_err(), expected);
    }
}
