use http::{HeaderName, HeaderValue};

use super::*;

fn fields(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    headers
}

/// What Pingora makes of an HTTP/1 head: parses, drops the length beside a coding, drops fragments.
fn h1(raw: &str) -> Result<(String, String), FormFault> {
    let mut headers = HeaderMap::new();
    let mut lines = raw.trim_start_matches("\r\n").split('\n').map(|l| l.trim_end_matches('\r'));
    let mut line = lines.next().unwrap().split(' ');
    let method: Method = line.next().unwrap().parse().unwrap();
    let target = line.next().unwrap().split('#').next().unwrap();
    let version = if line.next() == Some("HTTP/1.0") { Version::HTTP_10 } else { Version::HTTP_11 };
    for (name, value) in lines.filter_map(|l| l.split_once(':')) {
        let name = HeaderName::from_bytes(name.trim().as_bytes()).unwrap();
        if let Ok(value) = HeaderValue::from_str(value.trim()) {
            headers.append(name, value);
        }
    }
    if headers.contains_key("transfer-encoding") {
        headers.remove("content-length");
    }
    let head = Head {
        method: &method,
        target: target.as_bytes(),
        authority: None,
        scheme: None,
        headers: &headers,
        version,
        raw: Some(raw.as_bytes()),
    };
    check_form(&head).map(|form| (String::from_utf8(form.path_and_query.to_vec()).unwrap(), form.host.into_owned()))
}

fn get(more: &str) -> Result<(String, String), FormFault> {
    h1(&format!("GET /a HTTP/1.1\r\nHost: a.example\r\n{more}\r\n"))
}

fn h2(authority: Option<&str>, path: &str, more: &[(&str, &str)]) -> Result<String, FormFault> {
    let headers = fields(more);
    let head = Head {
        method: &Method::GET,
        target: path.as_bytes(),
        authority,
        scheme: Some("https"),
        headers: &headers,
        version: Version::HTTP_2,
        raw: None,
    };
    check_form(&head).map(|form| form.host.into_owned())
}

#[test]
fn an_ordinary_request_passes() {
    let raw = "POST /api/a2a/jsonrpc?x=%2F HTTP/1.1\r\nHost: A.example:8443\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(h1(raw), Ok(("/api/a2a/jsonrpc?x=%2F".into(), "a.example".into())));
    assert_eq!(h1(&format!("\r\n{raw}")).unwrap().1, "a.example");
    assert_eq!(h1("GET / HTTP/1.0\r\nHost: a.example\r\n\r\n").unwrap().0, "/");
    assert_eq!(h2(Some("A.example"), "/a", &[("te", "trailers")]), Ok("a.example".into()));
    assert_eq!(h2(None, "/a", &[("host", "a.example")]), Ok("a.example".into()));
    assert_eq!(h2(Some("a.example"), "/a", &[("host", "A.EXAMPLE")]), Ok("a.example".into()));
}

#[test]
fn a_body_has_one_length() {
    assert_eq!(get("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), Err(FormFault::TwoLengths));
    assert_eq!(get("Transfer-Encoding: chunked\r\ncontent-length: 5\r\n"), Err(FormFault::TwoLengths));
    assert_eq!(get("Content-Length: 5\r\nContent-Length: 5\r\n"), Err(FormFault::ContentLength));
    for bad in ["5, 5", "+5", "-5", "0x5", "5 5", "", "5_0", "99999999999999999999"] {
        assert_eq!(get(&format!("Content-Length: {bad}\r\n")), Err(FormFault::ContentLength), "{bad:?}");
    }
    assert!(get("Transfer-Encoding: Chunked\r\n").is_ok());
    for bad in ["chunked, chunked", "gzip, chunked", "identity", "xchunked", "chunked;q=1", "", "\"chunked\""] {
        assert_eq!(get(&format!("Transfer-Encoding: {bad}\r\n")), Err(FormFault::TransferEncoding), "{bad:?}");
    }
    assert_eq!(get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), Err(FormFault::TransferEncoding));
    let old = "GET / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(h1(old), Err(FormFault::TransferEncoding));
    assert_eq!(h2(Some("a"), "/", &[("transfer-encoding", "chunked")]), Err(FormFault::TransferEncoding));
    assert_eq!(h2(Some("a"), "/", &[("content-length", "1"), ("content-length", "1")]), Err(FormFault::ContentLength));
}

#[test]
fn lines_end_with_cr_lf_and_hold_one_field() {
    for (raw, fault) in [
        ("GET / HTTP/1.1\nHost: a\n\n", FormFault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", FormFault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", FormFault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n", FormFault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\n", FormFault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", FormFault::Folded),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\tfolded: 2\r\n\r\n", FormFault::Folded),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", FormFault::Folded),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", FormFault::FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n", FormFault::FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", FormFault::ControlInField),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", FormFault::ControlInField),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", FormFault::RequestLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", FormFault::RequestLine),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", FormFault::RequestLine),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", FormFault::Target(PathFault::Fragment)),
    ] {
        assert_eq!(h1(raw), Err(fault), "{raw:?}");
    }
}

#[test]
fn a_line_that_the_parser_dropped_is_seen() {
    let raw = b"GET / HTTP/1.1\r\nHost: a\r\nBad@Name: 1\r\n\r\n";
    let headers = fields(&[("host", "a")]);
    let head = Head {
        method: &Method::GET,
        target: b"/",
        authority: None,
        scheme: None,
        headers: &headers,
        version: Version::HTTP_11,
        raw: Some(raw),
    };
    assert_eq!(check_form(&head), Err(FormFault::FieldsDisagree));
}

#[test]
fn there_is_one_host_and_every_place_agrees_on_it() {
    assert_eq!(h1("GET / HTTP/1.1\r\nX: 1\r\n\r\n"), Err(FormFault::HostMissing));
    assert_eq!(h1("GET / HTTP/1.0\r\n\r\n"), Err(FormFault::HostMissing));
    assert_eq!(h1("GET http://a/ HTTP/1.1\r\nX: 1\r\n\r\n"), Err(FormFault::HostMissing));
    assert_eq!(get("Host: a.example\r\n"), Err(FormFault::HostTwice));
    assert_eq!(h2(None, "/", &[]), Err(FormFault::HostMissing));
    assert_eq!(h2(Some("a"), "/", &[("host", "b")]), Err(FormFault::HostsDisagree));
    assert_eq!(h2(Some("a"), "/", &[("host", "a:443")]), Err(FormFault::HostsDisagree));
    for bad in [
        "",
        "a b",
        "user@a",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:http",
        "a.",
        ".a",
        "a..b",
        "a,b",
        "a/b",
        "a\\b",
        "%61",
        "é",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]:",
        "[1.2.3.4]",
        "[::1%25eth0]",
        "a?b",
        "a#b",
        &"a".repeat(64),
        &"a.".repeat(127),
    ] {
        assert_eq!(h2(Some(bad), "/", &[]), Err(FormFault::HostSyntax), "{bad:?}");
    }
    for (good, host) in
        [("a_b.c-d:1", "a_b.c-d"), ("[::1]:8443", "[::1]"), ("[::FFFF]", "[::ffff]"), ("127.0.0.1:65535", "127.0.0.1")]
    {
        assert_eq!(h2(Some(good), "/", &[]).as_deref(), Ok(host));
    }
}

#[test]
fn an_absolute_target_is_for_this_host_only() {
    let absolute = |target: &str| h1(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
    assert_eq!(absolute("https://A.example/b?c").unwrap().0, "/b?c");
    assert_eq!(absolute("HTTP://a.example").unwrap().0, "/");
    for (target, fault) in [
        ("http://b.example/", FormFault::HostsDisagree),
        ("http://a.example:80/", FormFault::HostsDisagree),
        ("http://a.example@b.example/", FormFault::HostsDisagree),
        ("http:///a", FormFault::HostsDisagree),
        ("http://a.example?x", FormFault::Target(PathFault::NotAbsolute)),
        ("http://a.example\\x", FormFault::Target(PathFault::NotAbsolute)),
        ("ftp://a.example/", FormFault::Scheme),
        ("file:http://a.example/", FormFault::Scheme),
        ("a.example:443", FormFault::Target(PathFault::NotAbsolute)),
        ("a", FormFault::Target(PathFault::NotAbsolute)),
        ("?x", FormFault::Target(PathFault::NotAbsolute)),
        ("http://a.example//b", FormFault::Target(PathFault::EmptySegment)),
    ] {
        assert_eq!(absolute(target), Err(fault), "{target}");
    }
    assert_eq!(h2(Some("a"), "https://a/", &[]), Err(FormFault::Target(PathFault::NotAbsolute)));
}

#[test]
fn tunnels_and_upgrades_are_refused() {
    assert_eq!(h1("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), Err(FormFault::AsteriskForm));
    assert_eq!(h2(Some("a"), "*", &[]), Err(FormFault::AsteriskForm));
    assert_eq!(h1("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"), Err(FormFault::Connect));
    assert_eq!(get("Upgrade: websocket\r\nConnection: upgrade\r\n"), Err(FormFault::Upgrade));
    assert_eq!(get("Upgrade: h2c\r\n"), Err(FormFault::Upgrade));
    assert_eq!(get("Connection: keep-alive, Upgrade\r\n"), Err(FormFault::Upgrade));
}

#[test]
fn connection_nominates_nothing_that_hive_reads() {
    for name in ["Host", "content-length", "X-Hive-Federation-JWT", "authorization", "Transfer-Encoding", "A2A-Version"]
    {
        assert_eq!(
            get(&format!("Connection: close, {name}\r\n")),
            Err(FormFault::ConnectionNominatesEndToEnd),
            "{name}"
        );
    }
    assert_eq!(get("Connection: a b\r\n"), Err(FormFault::ConnectionSyntax));
    assert_eq!(get(&format!("Connection: {}\r\n", "a,".repeat(11))), Err(FormFault::ConnectionSyntax));
    assert!(get("Connection: close, X-Real-IP, ,x-foo, TE\r\nTE: trailers\r\n").is_ok());
    for name in ["connection", "keep-alive", "proxy-connection"] {
        assert_eq!(h2(Some("a"), "/", &[(name, "close")]), Err(FormFault::ConnectionFieldOnHttp2));
    }
    assert_eq!(h2(Some("a"), "/", &[("te", "gzip")]), Err(FormFault::ConnectionFieldOnHttp2));
}

#[test]
fn there_is_one_federation_credential() {
    assert!(get("X-Hive-Federation-JWT: a\r\n").is_ok());
    for more in [
        "X-Hive-Federation-JWT: a\r\nX-Hive-Federation-Secret: b\r\n",
        "X-Hive-Federation-JWT: a\r\nX-Pilox-Federation-Secret: b\r\n",
        "X-Hive-Federation-JWT: a\r\nx-hive-federation-jwt: a\r\n",
        "X-Hive-Federation-Secret: a\r\nX-Hive-Federation-Secret: a\r\n",
    ] {
        assert_eq!(get(more), Err(FormFault::TwoFederationCredentials), "{more:?}");
    }
    assert!(get(&format!("X-Hive-Federation-JWT: {}\r\n", "a".repeat(8192))).is_ok());
    let long = format!("X-Hive-Federation-JWT: {}\r\n", "a".repeat(8193));
    assert_eq!(get(&long), Err(FormFault::FederationTokenTooLong));
}

#[test]
fn fields_are_few_and_single_ones_single() {
    let many = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    assert!(get(&many(FIELDS_MAX - 1)).is_ok());
    assert_eq!(get(&many(FIELDS_MAX)), Err(FormFault::TooManyFields));
    for name in ["Authorization", "Content-Type", "Content-Encoding", "Expect"] {
        assert_eq!(get(&format!("{name}: a\r\n{name}: b\r\n")), Err(FormFault::FieldTwice), "{name}");
    }
    assert!(get("Cookie: a=1\r\nCookie: b=2\r\n").is_ok());
}

#[test]
fn every_fault_says_something() {
    assert!(!FormFault::Target(PathFault::Semicolon).message().is_empty());
    assert!(FormFault::TwoLengths.message().contains("Content-Length"));
}
