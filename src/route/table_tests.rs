use proptest::prelude::*;

use super::*;

fn hosts(list: &[&str]) -> Vec<HostPattern> {
    list.iter().map(|h| HostPattern::parse(h).unwrap()).collect()
}

fn paths(list: &[&str]) -> Vec<PathPattern> {
    list.iter().map(|p| PathPattern::parse(p).unwrap()).collect()
}

fn methods(list: &[&str]) -> MethodSet {
    MethodSet::parse(list).unwrap()
}

type RouteText<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);

/// A table whose values are the routes' numbers.
fn table(routes: &[RouteText<'_>]) -> Table<usize> {
    let mut builder = TableBuilder::new();
    for (i, (h, p, m)) in routes.iter().enumerate() {
        builder.add(&hosts(h), &paths(p), methods(m), i).unwrap();
    }
    builder.build()
}

fn found(table: &Table<usize>, host: &str, path: &str, method: Method) -> Option<usize> {
    match table.find(host, path.as_bytes(), &method) {
        Lookup::Found { value, .. } => Some(*value),
        _ => None,
    }
}

#[test]
fn nothing_is_served_without_a_route() {
    let empty = table(&[]);
    assert_eq!(empty.find("a", b"/", &Method::GET), Lookup::NotFound);
    let one = table(&[(&[], &["/api/a2a/jsonrpc"], &["POST"])]);
    for path in ["/", "/api/a2a/jsonrpc/", "/api/a2a/JSONRPC", "/api/a2a", "/api/a2a/jsonrpcx"] {
        assert_eq!(one.find("a", path.as_bytes(), &Method::POST), Lookup::NotFound, "{path}");
    }
    assert_eq!(found(&one, "anything", "/api/a2a/jsonrpc", Method::POST), Some(0));
}

#[test]
fn the_metric_gets_the_configured_path() {
    let one = table(&[(&[], &["/.well-known/*"], &["GET"])]);
    let Lookup::Found { path, .. } = one.find("a", b"/.well-known/agent-card.json", &Method::HEAD) else { panic!() };
    assert_eq!(&**path, "/.well-known/*");
}

#[test]
fn the_most_specific_path_decides_alone() {
    let t = table(&[
        (&[], &["/x/*"], &["GET", "POST"]),
        (&[], &["/x/secret"], &["POST"]),
        (&[], &["/x/y/*"], &["GET"]),
        (&[], &["/x/secret"], &["PUT"]),
    ]);
    assert_eq!(found(&t, "a", "/x/a", Method::GET), Some(0));
    assert_eq!(found(&t, "a", "/x/secret", Method::POST), Some(1));
    assert_eq!(found(&t, "a", "/x/secret", Method::PUT), Some(3));
    assert_eq!(found(&t, "a", "/x/y/z", Method::GET), Some(2));
    assert_eq!(found(&t, "a", "/x/y", Method::POST), Some(0));
    let Lookup::MethodNotAllowed { allow, path } = t.find("a", b"/x/secret", &Method::GET) else { panic!() };
    assert_eq!((allow, &**path), ("POST, PUT", "/x/secret"));
    assert!(matches!(t.find("a", b"/x/y/z", &Method::POST), Lookup::MethodNotAllowed { allow: "GET, HEAD", .. }));
}

#[test]
fn the_most_specific_host_that_has_the_path_decides() {
    let t = table(&[
        (&["a.example.com"], &["/x", "/only"], &["GET"]),
        (&["*.example.com"], &["/x", "/wild"], &["GET"]),
        (&["*.b.example.com"], &["/x"], &["GET"]),
        (&[], &["/x", "/any"], &["GET"]),
    ]);
    assert_eq!(found(&t, "a.example.com", "/x", Method::GET), Some(0));
    assert_eq!(found(&t, "c.example.com", "/x", Method::GET), Some(1));
    assert_eq!(found(&t, "c.b.example.com", "/x", Method::GET), Some(2));
    assert_eq!(found(&t, "b.example.com", "/x", Method::GET), Some(1));
    assert_eq!(found(&t, "example.com", "/x", Method::GET), Some(3));
    assert_eq!(found(&t, "a.example.com", "/wild", Method::GET), Some(1));
    assert_eq!(found(&t, "a.example.com", "/any", Method::GET), Some(3));
    assert_eq!(found(&t, "c.example.com", "/only", Method::GET), None);
}

#[test]
fn an_unknown_host_is_told_apart_only_if_every_route_has_hosts() {
    let t = table(&[(&["a.example", "*.b.example"], &["/x"], &["GET"])]);
    assert_eq!(t.find("c.example", b"/x", &Method::GET), Lookup::HostUnknown);
    assert_eq!(t.find("b.example", b"/x", &Method::GET), Lookup::HostUnknown);
    assert_eq!(t.find(".b.example", b"/x", &Method::GET), Lookup::HostUnknown);
    assert_eq!(t.find("a.example", b"/y", &Method::GET), Lookup::NotFound);
    let t = table(&[(&["a.example"], &["/x"], &["GET"]), (&[], &["/y"], &["GET"])]);
    assert_eq!(t.find("c.example", b"/x", &Method::GET), Lookup::NotFound);
}

#[test]
fn an_overlap_names_both_routes() {
    let mut builder = TableBuilder::new();
    builder.add(&hosts(&["a.example"]), &paths(&["/x", "/y"]), methods(&["GET"]), ()).unwrap();
    builder.add(&hosts(&["a.example"]), &paths(&["/x"]), methods(&["POST"]), ()).unwrap();
    builder.add(&hosts(&["*.example"]), &paths(&["/x"]), methods(&["GET"]), ()).unwrap();
    builder.add(&[], &paths(&["/x"]), methods(&["GET"]), ()).unwrap();
    builder.add(&[], &paths(&["/x/*"]), methods(&["GET"]), ()).unwrap();
    let overlap =
        builder.add(&hosts(&["b.example", "A.example"]), &paths(&["/z", "/y"]), methods(&["PUT", "HEAD"]), ());
    let overlap = overlap.unwrap_err();
    assert_eq!((overlap.first, overlap.second), (0, 5));
    assert_eq!(
        (overlap.host.unwrap().as_str(), overlap.path.as_str(), overlap.methods.allow().as_str()),
        ("a.example", "/y", "HEAD")
    );
    // A refused route leaves nothing behind, but keeps its number.
    builder.add(&hosts(&["b.example"]), &paths(&["/z"]), methods(&["PUT"]), ()).unwrap();
    let overlap = builder.add(&hosts(&["b.example"]), &paths(&["/z"]), methods(&["PUT"]), ()).unwrap_err();
    assert_eq!((overlap.first, overlap.second), (6, 7));
    assert_eq!(builder.add(&[], &paths(&["/x"]), methods(&["GET"]), ()).unwrap_err().host, None);
    let twice = builder.add(&[], &paths(&["/q", "/q"]), methods(&["GET"]), ()).unwrap_err();
    assert_eq!((twice.first, twice.second), (9, 9));
    assert_eq!(builder.build().values().count(), 6);
}

#[test]
fn a_hostile_path_or_host_costs_a_bounded_number_of_look_ups() {
    let t = table(&[(&["*.a.b.c.example"], &["/a/b/*"], &["GET"]), (&[], &["/a/*"], &["GET"])]);
    assert_eq!(found(&t, "x", &format!("/a{}", "/b".repeat(10_000)), Method::GET), Some(1));
    assert_eq!(found(&t, &"a.".repeat(120), "/a/", Method::GET), Some(1));
}

/// The same rules without any cleverness.
fn naive(
    routes: &[(Vec<HostPattern>, Vec<PathPattern>, MethodSet)],
    host: &str,
    path: &[u8],
    method: &Method,
) -> (u8, Option<usize>) {
    let mut candidates = Vec::new();
    for (i, (hosts, paths, methods)) in routes.iter().enumerate() {
        // Exact hosts weigh most, then longer wildcards, then no host.
        let host_weight = if hosts.is_empty() {
            Some(0)
        } else {
            let weight = |h: &HostPattern| if h.as_str().starts_with('*') { h.as_str().len() } else { 1000 };
            hosts.iter().filter(|h| h.matches(host)).map(weight).max()
        };
        let weight = |p: &PathPattern| if p.as_str().ends_with('*') { p.as_str().len() } else { 1000 };
        let path_weight = paths.iter().filter(|p| p.matches(path)).map(weight).max();
        candidates.push((host_weight, path_weight, methods.contains(method), i));
    }
    let Some(_) = candidates.iter().filter_map(|c| c.0).max() else {
        return (if routes.is_empty() { 1 } else { 0 }, None);
    };
    candidates.retain(|c| c.0.is_some() && c.1.is_some());
    let Some(best) = candidates.iter().map(|c| (c.0, c.1)).max() else { return (1, None) };
    candidates.retain(|c| (c.0, c.1) == best);
    match candidates.iter().find(|c| c.2) {
        Some(c) => (3, Some(c.3)),
        None => (2, None),
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_naive_matcher(
        routes in prop::collection::vec((
            prop::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,2}", 0..3),
            prop::collection::vec("(/[ab]){1,3}(/\\*)?|/\\*|/", 1..3),
            prop::collection::vec(prop::sample::select(vec!["GET", "POST", "PUT"]), 1..3),
        ), 0..12),
        requests in prop::collection::vec(("[ab](\\.[ab]){0,3}", "(/[ab]){0,4}/?", 0..3usize), 20),
    ) {
        let mut builder = TableBuilder::new();
        let mut kept = Vec::new();
        for (h, p, m) in &routes {
            let h: Vec<_> = h.iter().map(|h| HostPattern::parse(h).unwrap()).collect();
            let p: Vec<_> = p.iter().map(|p| PathPattern::parse(p).unwrap()).collect();
            let m = MethodSet::parse(m).unwrap();
            if builder.add(&h, &p, m, kept.len()).is_ok() {
                kept.push((h, p, m));
            }
        }
        let table = builder.build();
        for (host, path, method) in &requests {
            let method = [Method::GET, Method::POST, Method::HEAD][*method].clone();
            let got = match table.find(host, path.as_bytes(), &method) {
                Lookup::Found { value, .. } => (3, Some(*value)),
                Lookup::MethodNotAllowed { .. } => (2, None),
                Lookup::NotFound => (1, None),
                Lookup::HostUnknown => (0, None),
            };
            prop_assert_eq!(got, naive(&kept, host, path.as_bytes(), &method), "{} {} {}", host, path, method);
        }
    }
}
