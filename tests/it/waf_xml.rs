//! The web application firewall against XML, and against bodies in codings that hide what they say.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::TempDir;
use crate::support::gateway::Gateway;
use crate::waf::{AGENT, CRS, blocking, gateway};

/// Of the answer to a body with these lines of a header before it.
fn status(gateway: &Gateway, header: &str, body: &[u8]) -> u16 {
    let length = body.len();
    let head = format!("POST /echo HTTP/1.1\r\nHost: gateway.test\r\n{header}Content-Length: {length}\r\n\r\n");
    gateway.connect("alice").exchange(&[head.as_bytes(), body].concat()).unwrap().status
}

#[test]
fn an_xml_body_that_can_grow_while_it_is_read_is_refused_at_once() {
    let (gateway, node) = gateway(&blocking());
    let send = |kind: &str, body: &[u8]| status(&gateway, &format!("{AGENT}Content-Type: {kind}\r\n"), body);
    let grows = format!("<!DOCTYPE a [<!ENTITY e \"{}\">]><a>{}</a>", "a".repeat(12_000), "&e;".repeat(4_000));
    let outside = "<?xml version='1.0'?><!doctype a SYSTEM 'http://10.0.0.1/x'><a/>";
    let start = Instant::now();
    for body in [grows.as_bytes(), outside.as_bytes()] {
        for kind in ["text/xml", "application/soap+xml"] {
            assert_eq!(send(kind, body), 403, "{kind} {:?}", String::from_utf8_lossy(&body[..40]));
        }
    }
    assert_eq!(send("text/plain", grows.as_bytes()), 403);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert_eq!(node.count(), 0);
    gateway.wait_log(|l| l["event"] == "waf_match" && l["rule"] == 8_800_007);
    assert_eq!(send("text/xml", "<?xml version=\"1.0\" encoding=\"utf-8\"?><a>text</a>".as_bytes()), 200);
}

/// Code page 037 of EBCDIC, as far as it is used here.
fn ebcdic(text: &str) -> Vec<u8> {
    const LETTERS: [(&str, u8); 5] =
        [("abcdefghi", 0x81), ("jklmnopqr", 0x91), ("stuvwxyz", 0xA2), ("0123456789", 0xF0), ("ABCDEFGHI", 0xC1)];
    const MORE: [(&str, u8); 2] = [("JKLMNOPQR", 0xD1), ("STUVWXYZ", 0xE2)];
    const SIGNS: &str = " <>?!=\"'-./;[]&";
    const SIGNS_AS: [u8; 15] =
        [0x40, 0x4C, 0x6E, 0x6F, 0x5A, 0x7E, 0x7F, 0x7D, 0x60, 0x4B, 0x61, 0x5E, 0xBA, 0xBB, 0x50];
    let byte = |c: char| {
        let letter = LETTERS.iter().chain(&MORE).find_map(|(of, from)| of.find(c).map(|at| from + at as u8));
        letter.or_else(|| SIGNS.find(c).map(|at| SIGNS_AS[at])).unwrap_or_else(|| panic!("{c:?}"))
    };
    text.chars().map(byte).collect()
}

#[test]
fn a_body_whose_letters_the_rules_would_not_know_is_refused_unseen() {
    // A rule that sees everything that it can read.
    let dir = TempDir::new();
    let rules = dir.path().join("none.conf");
    fs::write(&rules, "SecRule ARGS|XML:/* \"@contains evil\" \"id:1,phase:2,deny,status:403,t:none\"\n").unwrap();
    let (gateway, node) = gateway(&format!("mode: blocking, rules: [{}], timeout: 30s", rules.display()));
    let send = |kind: &str, body: &[u8]| status(&gateway, kind, body);
    let (xml, json) = ("<a>evil</a>", "{\"a\":\"evil\"}");
    let wide = |text: &str, mark: bool, unit: fn(char) -> Vec<u8>| -> Vec<u8> {
        mark.then_some('\u{feff}').into_iter().chain(text.chars()).flat_map(unit).collect()
    };
    let utf16: [fn(char) -> Vec<u8>; 2] =
        [|c| (c as u16).to_le_bytes().to_vec(), |c| (c as u16).to_be_bytes().to_vec()];
    let utf32: [fn(char) -> Vec<u8>; 2] =
        [|c| (c as u32).to_le_bytes().to_vec(), |c| (c as u32).to_be_bytes().to_vec()];
    for kind in ["", "Content-Type: application/octet-stream\r\n", "Content-Type: text/xml\r\n"] {
        for text in [xml, json] {
            for (units, marks) in [(utf16, &[true, false][..]), (utf32, &[true])] {
                for (unit, mark) in units.iter().flat_map(|unit| marks.iter().map(move |mark| (unit, mark))) {
                    let body = wide(text, *mark, *unit);
                    assert_eq!(send(kind, &body), 403, "{kind:?} {body:x?}");
                }
            }
        }
        assert_eq!(send(kind, b"<a>hello</a>"), 200, "{kind:?}");
    }
    let kind = "Content-Type: text/xml\r\n";
    for declared in [
        "<?xml version='1.0' encoding='UTF-7'?><a>+AGUAdgBpAGw-</a>",
        "<?xml version='1.0' encoding='UTF-7' standalone='UTF-8'?><a>+AGUAdgBpAGw-</a>",
        "<?xml version='1.0' encoding='x-UTF-8'?><a/>",
        "<?xml version='1.0' encoding = \"UTF-16\"?><a/>",
        "\n<?xml version='1.0' encoding='UTF-7'?><a>+AGUAdgBpAGw-</a>",
        "<!----><?xml version='1.0' encoding='UTF-7'?><a>+AGUAdgBpAGw-</a>",
    ] {
        assert_eq!(send(kind, declared.as_bytes()), 403, "{declared}");
    }
    for text in ["<a>evil</a>", "<!DOCTYPE a []><a/>", "<?xml version='1.0' encoding='IBM037'?><a>evil</a>"] {
        assert_eq!(send(kind, &ebcdic(text)), 403, "{text}");
    }
    gateway.wait_log(|l| l["event"] == "waf_match" && l["rule"] == 8_800_008);
    for honest in [
        "\u{feff}<?xml version=\"1.0\" encoding = 'utf-8' standalone='yes'?>\n<a>caf\u{e9}</a>",
        "<?xml version='1.0'?><a><![CDATA[<?xml version=\"1.0\" encoding=\"utf-16\"?><b/>]]></a>",
    ] {
        assert_eq!(send(kind, honest.as_bytes()), 200, "{honest}");
    }
    assert_eq!(send(kind, b"<?xml version='1.0' encoding='ISO-8859-1'?><a>caf\xe9</a>"), 200);
    assert_eq!(node.count(), 6);
}

#[test]
fn xml_can_not_keep_the_engine_busy_and_nothing_of_it_is_fetched() {
    let (gateway, node) = gateway(&format!("mode: blocking, rules: [ {CRS} ], timeout: 30s, body_limit: 1MiB"));
    let send = |body: &str| status(&gateway, &format!("Content-Type: text/xml\r\n{AGENT}"), body.as_bytes());
    let attributes = |n: usize| (0..n).map(|i| format!("a{i}='1' ")).collect::<String>();
    let spread = (0..80_000).map(|i| format!("a{i}\t=\n'' ")).collect::<String>();
    let namespaces = (0..10_000).map(|i| format!("<n{i}:a xmlns:n{i}='u'>")).collect::<String>();
    let start = Instant::now();
    for body in [
        format!("<a {}/>", attributes(90_000)),
        format!("<a {spread}/>"),
        format!("<a>{}</a>", "<b c=\"\"/>".repeat(90_000)),
        format!("<a>{}</a>", "x<b/>".repeat(180_000)),
        format!("<a>{}</a>", "<!---->".repeat(140_000)),
        format!("<a>{}</a>", "<?b c?>".repeat(140_000)),
        format!("{}{}", "<a>".repeat(10_000), "</a>".repeat(10_000)),
        namespaces,
    ] {
        let begun = Instant::now();
        assert_eq!(send(&body), 403, "{}", &body[..40]);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for {}", begun.elapsed(), &body[..40]);
    }
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    gateway.wait_log(|l| l["event"] == "waf_match" && l["rule"] == 8_800_002);
    for hidden in [
        "<a>x<!-- <script>alert(document.cookie)</script> --></a>",
        "<?x <script>alert(document.cookie)</script> ?><a/>",
        "<a><![CDATA[<scr]]><![CDATA[ipt>alert(document.cookie)</script>]]></a>",
    ] {
        assert_eq!(send(hidden), 403, "{hidden}");
    }
    assert_eq!(node.count(), 0);
    let address = node.address;
    let outside = format!(
        "<?xml-stylesheet type='text/xsl' href='http://{address}/s'?><a xmlns:xi='http://www.w3.org/2001/XInclude' \
         xmlns:s='http://www.w3.org/2001/XMLSchema-instance' s:schemaLocation='http://{address}/d http://{address}/e'>\
         <xi:include href='http://{address}/i'/></a>"
    );
    send(&outside);
    assert_eq!(send(&format!("<a {}/>", attributes(900))), 200);
    assert!(node.requests().iter().all(|r| r.target() == "/echo"), "something was fetched");
}

#[test]
fn a_body_is_looked_at_whatever_its_type() {
    // Every method may have the core rules' own say on types; here it is about bodies of types that they let pass.
    let (gateway, node) = gateway(&format!("mode: blocking, rules: [ {CRS} ], timeout: 30s"));
    let send = |kind: Option<&str>, body: &str| {
        let kind = kind.map_or_else(String::new, |k| format!("Content-Type: {k}\r\n"));
        status(&gateway, &format!("{AGENT}{kind}"), body.as_bytes())
    };
    let attacks = [
        ";cat /etc/passwd",
        "1' or 1=1 union select a from b-- -",
        "<script>alert(document.cookie)</script>",
        "../../../../etc/passwd",
    ];
    let mut passed = Vec::new();
    for attack in attacks {
        let json = json!({ "a": attack }).to_string();
        let escaped = attack.replace('&', "&amp;").replace('<', "&lt;");
        let xml = format!("<a><b>{escaped}</b></a>");
        let attribute = format!("<?xml version=\"1.0\"?>\n<a b=\"{escaped}\"/>");
        let form = format!("a={}", attack.replace(' ', "+").replace(';', "%3b"));
        for body in [&json, &xml, &attribute, &form] {
            if send(None, body) != 403 {
                passed.push((None, body.clone()));
            }
        }
        for kind in ["text/xml", "application/xml", "application/soap+xml; charset=utf-8", "Application/XML"] {
            for body in [&xml, &attribute, &json] {
                if send(Some(kind), body) != 403 {
                    passed.push((Some(kind), body.clone()));
                }
            }
        }
        for kind in ["multipart/related; boundary=x", "application/cloudevents+json", "application/csp-report"] {
            if send(Some(kind), &json) != 403 {
                passed.push((Some(kind), json.clone()));
            }
        }
    }
    assert_eq!((passed, node.count()), (vec![], 0));
    for (kind, body) in [
        (None, r#"{"a":"hello","b":[1,2]}"#),
        (None, "a=hello&b=2"),
        (Some("text/xml"), "<order id=\"7\"><item>Tea</item></order>"),
        (Some("application/soap+xml"), "<?xml version=\"1.0\"?><a>text</a>"),
    ] {
        assert_eq!(send(kind, body), 200, "{kind:?} {body}: {}", gateway.stdout());
    }
}

#[test]
fn markup_of_which_nobody_said_that_it_is_xml_is_looked_at_as_text_too() {
    let (gateway, node) = gateway(&format!("mode: blocking, rules: [ {CRS} ], timeout: 30s"));
    let send = |body: &str| status(&gateway, AGENT, body.as_bytes());
    for attack in [
        "<script>alert(1)</script>",
        "<a><?php system(\"id\"); ?></a>",
        "<a xmlns:b=\"1' UNION SELECT username, password FROM users--\"/>",
        "\"1' \\u0055NION \\u0053ELECT username, password FROM users--\"",
    ] {
        assert_eq!(send(attack), 403, "{attack}");
    }
    assert_eq!(node.count(), 0);
    for honest in ["<order id=\"7\"><item>Tea</item></order>", "\"hello\"", "\"hello\" is what he said"] {
        assert_eq!(send(honest), 200, "{honest}: {}", gateway.stdout());
    }
}
