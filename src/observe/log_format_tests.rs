use std::time::Duration;

use http::HeaderMap;

use super::*;

fn record(headers: &HeaderMap) -> AccessRecord<'_> {
    AccessRecord {
        peer: Some("hive-paris"),
        http_version: "HTTP/2",
        method: "POST",
        path: b"/api/a2a/jsonrpc",
        status: 200,
        bytes_out: 1893,
        user_agent: Some(b"a2a-python/1.3.0 (x)"),
        headers: Some(headers),
        ..AccessRecord::new(UNIX_EPOCH + Duration::from_secs(1_795_300_205), "front", [203, 0, 113, 9].into())
    }
}

fn names(all: &[&'static str]) -> Vec<HeaderName> {
    all.iter().map(|name| HeaderName::from_static(name)).collect()
}

fn headers(all: &[(&'static str, &[u8])]) -> HeaderMap {
    all.iter().map(|(n, v)| (HeaderName::from_static(n), http::HeaderValue::from_bytes(v).unwrap())).collect()
}

fn written(format: &LogFormat, record: &AccessRecord<'_>, extras: &Extras) -> String {
    let mut out = Vec::new();
    format.write(record, extras, &mut out);
    String::from_utf8(out).unwrap()
}

fn template(text: &str, names: &[HeaderName]) -> LogFormat {
    LogFormat::Template(Template::parse(text, names).unwrap())
}

#[test]
fn combined_is_what_every_reader_of_logs_takes() {
    let (map, none) = (headers(&[("referer", b"https://x.example/")]), Extras::default());
    let line = written(&LogFormat::Combined, &record(&map), &none);
    let expected = "203.0.113.9 - hive-paris [21/Nov/2026:22:30:05 +0000] \"POST /api/a2a/jsonrpc HTTP/2\" 200 1893";
    assert_eq!(line, format!("{expected} \"-\" \"a2a-python/1.3.0 (x)\""));
    let referer = Extras::new(&names(&["referer"]), &[]).unwrap();
    let line = written(&LogFormat::Combined, &record(&map), &referer);
    assert_eq!(line, format!("{expected} \"https://x.example/\" \"a2a-python/1.3.0 (x)\""));
}

#[test]
fn a_template_names_fields_and_headers() {
    let known = names(&["a2a-version"]);
    let extras = Extras::new(&known, &[]).unwrap();
    let format = template("{{{time}}} {status}\t{duration_us} v={header.A2A-Version} {route} \"{user_agent}\"", &known);
    let map = headers(&[("a2a-version", b"0.3")]);
    let line = written(&format, &record(&map), &extras);
    assert_eq!(line, "{2026-11-21T22:30:05.000000Z} 200\t0 v=0.3 - \"a2a-python/1.3.0 (x)\"");
}

#[test]
fn a_wrong_template_is_told_what_is_right() {
    let parse = |text: &str| Template::parse(text, &names(&["a"])).unwrap_err();
    assert!(parse("{stauts}").contains("known: time, event, request_id"));
    assert!(parse("{header.b}").contains("access_log.headers"));
    for text in ["{status", "status}", "", "a\nb", &"x".repeat(5000)] {
        parse(text);
    }
}

#[test]
fn no_client_text_forges_a_line_or_a_field_in_any_format() {
    let evil = b"x\" 200 0 \"-\"\r\n\t1.2.3.4 - admin \x1b[2J\x00\xff\\ \xe2\x80\xa8".as_slice();
    let known = names(&["referer", "x-a"]);
    let extras = Extras::new(&known, &[]).unwrap();
    // What hyper's parser would never let in, straight into the record.
    let map = headers(&[("referer", b"a\" \xff\t\\b"), ("x-a", b"a b\tc")]);
    let base = record(&map);
    let record = AccessRecord { path: evil, user_agent: Some(evil), host: Some(evil), peer: None, ..base };
    for format in [
        LogFormat::Combined,
        template("{host} {path} {header.x-a} {status}", &known),
        template("\"{host}\" \"{header.referer}\"", &known),
    ] {
        let line = written(&format, &record, &extras);
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
    }
    let line = written(&template("{host} {path} {header.x-a} {status}", &known), &record, &extras);
    assert_eq!(line.split(' ').count(), 4, "{line}");
    let line = written(&LogFormat::Combined, &record, &extras).replace("\\\\", "").replace("\\\"", "");
    assert_eq!(line.matches('"').count(), 6, "{line}");
}

#[test]
fn json_has_the_headers_that_are_asked_for_and_no_others() {
    let known = names(&["a2a-version", "x-missing"]);
    let extras = Extras::new(&known, &[]).unwrap();
    let map = headers(&[("a2a-version", b"\"0.3\""), ("authorization", b"Bearer s3cr3t")]);
    let line: serde_json::Value = serde_json::from_str(&written(&LogFormat::Json, &record(&map), &extras)).unwrap();
    assert_eq!(line["header.a2a-version"], "\"0.3\"");
    assert!(!line.to_string().contains("s3cr3t") && line.get("header.x-missing").is_none());
    // The long way and the short way write the same fields.
    let short: serde_json::Value =
        serde_json::from_str(&written(&LogFormat::Json, &record(&map), &Extras::default())).unwrap();
    for (key, value) in short.as_object().unwrap() {
        assert_eq!(line[key], *value);
    }
}

#[test]
fn what_is_redacted_is_only_seen_to_be_there() {
    let known = names(&["x-user"]);
    let redact = ["x-user", "client", "user_agent", "spiffe_id"].map(str::to_owned);
    let extras = Extras::new(&known, &redact).unwrap();
    let map = headers(&[("x-user", b"mallory")]);
    let record = record(&map);
    for format in [LogFormat::Json, LogFormat::Combined, template("{client} \"{user_agent}\" {header.x-user}", &known)]
    {
        let line = written(&format, &record, &extras);
        assert!(line.contains("[redacted]"), "{line}");
        assert!(!["203.0", "mallory", "a2a-python"].iter().any(|text| line.contains(text)), "{line}");
    }
    let line: serde_json::Value = serde_json::from_str(&written(&LogFormat::Json, &record, &extras)).unwrap();
    assert_eq!(line["header.x-user"], "[redacted]");
    assert!(line.get("spiffe_id").is_none(), "there was none");
    for (redact, why) in [("status", "always shown"), ("time", "always shown"), ("x-else", "neither a field")] {
        let (at, said) = Extras::new(&known, &["x-user".to_owned(), redact.to_owned()]).unwrap_err();
        assert!(at == 1 && said.contains(why), "{said}");
    }
}
