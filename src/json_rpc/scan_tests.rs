use proptest::prelude::*;

use super::super::agreement::agrees_with_serde_json;
use super::super::lexer::DEPTH_MAX;
use super::*;

const LIMITS: Limits = Limits { max_depth: 64, batch: Some(3), any_version: false };

type Seen = (String, Option<String>);

fn calls_of(body: &[u8], limits: &Limits) -> Result<Vec<Seen>, (EnvelopeError, Option<String>)> {
    let mut calls = Vec::new();
    let scanned = scan(body, limits, |call| {
        calls.push((call.method.decode().into_owned(), call.id.map(|id| id.as_str().to_owned())));
        ControlFlow::<()>::Continue(())
    });
    match scanned {
        Ok(envelope) => {
            assert_eq!(envelope.calls as usize, calls.len());
            Ok(calls)
        }
        Err(fault) => Err((fault.error, fault.id.map(|id| id.as_str().to_owned()))),
    }
}

fn one(body: &str) -> Seen {
    calls_of(body.as_bytes(), &LIMITS).unwrap().remove(0)
}

fn refused(body: impl AsRef<[u8]>) -> (EnvelopeError, Option<String>) {
    calls_of(body.as_ref(), &LIMITS).unwrap_err()
}

/// The parse fault of a body.
fn malformed(body: impl AsRef<[u8]>) -> (ParseFaultKind, usize) {
    let (error, _) = refused(body);
    assert_eq!(error.json_rpc_code(), -32700);
    let EnvelopeError::Parse(fault) = error else { panic!("{error:?}") };
    (fault.kind, fault.offset)
}

/// A good call with this value as a member that nobody looks at.
fn with(value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","x":{value}}}"#)
}

#[test]
fn a_call_is_found_in_any_order_and_spelling() {
    assert_eq!(
        one(r#"{"jsonrpc":"2.0","method":"message/send","id":1,"params":{"a":[1]}}"#),
        ("message/send".into(), Some("1".into()))
    );
    assert_eq!(one(r#"{"params":[],"id":"x","method":"m","jsonrpc":"2.0"}"#), ("m".into(), Some("\"x\"".into())));
    assert_eq!(
        one(" \t\r\n{ \"jsonrpc\" : \"2.0\" ,\n\"method\" : \"m\" , \"id\" : null } \n"),
        ("m".into(), Some("null".into()))
    );
    let spelled =
        r#"{"\u006asonrpc":"2\u002e0","meth\u006fd":"tasks\/\u0067et","\u0069\u0064":"\ud83d\udc1d","p\u0061rams":{}}"#;
    assert_eq!(one(spelled), ("tasks/get".into(), Some(r#""\ud83d\udc1d""#.into())));
}

#[test]
fn other_spellings_are_other_members() {
    let body = r#"{"jsonrpc":"2.0","method":"m","Method":"x","method ":"y","METHOD":1,"idd":[],"i":1,"id\u0000":2}"#;
    assert_eq!(one(body), ("m".into(), None));
    assert_eq!(
        one(r#"{"jsonrpc":"2.0","method":"m","x":{"method":"n","id":2},"params":{"id":3}}"#),
        ("m".into(), None)
    );
}

#[test]
fn ids_are_shown_as_they_were_written() {
    let huge = "9".repeat(5000);
    for id in ["0", "-0", "1e400", "-1.5E+3", "1.0", "null", r#""""#, r#""\u0061""#, huge.as_str(), "\"é\""] {
        let body = format!(r#"{{"jsonrpc":"2.0","method":"m","id": {id} }}"#);
        assert_eq!(one(&body).1.as_deref(), Some(id));
    }
    for id in ["true", "false", "{}", "[1]"] {
        let (error, id) = refused(format!(r#"{{"jsonrpc":"2.0","method":"m","id":{id}}}"#));
        assert_eq!((error.json_rpc_code(), error.code(), id), (-32600, "rpc_id_type", None));
    }
}

#[test]
fn a_call_without_an_id_is_a_notification() {
    let mut seen = Vec::new();
    for body in [r#"{"jsonrpc":"2.0","method":"m"}"#, r#"{"jsonrpc":"2.0","method":"m","id":null}"#] {
        let visit = |call: Call<'_>| {
            seen.push(call.is_notification);
            ControlFlow::<()>::Continue(())
        };
        scan(body.as_bytes(), &LIMITS, visit).unwrap();
    }
    assert_eq!(seen, [true, false]);
}

#[test]
fn params_are_shown_unread() {
    for (raw, kind) in [(r#"{ "a":[{}] }"#, ParamsKind::Object), ("[1, 2]", ParamsKind::Array)] {
        let body = format!(r#"{{"jsonrpc":"2.0","method":"m","params": {raw} }}"#);
        let mut params = None;
        scan(body.as_bytes(), &LIMITS, |call| {
            params = call.params;
            ControlFlow::<()>::Continue(())
        })
        .unwrap();
        assert_eq!(params, Some(Params { kind, raw }));
    }
}

#[test]
fn what_is_no_request_says_why_and_keeps_its_id() {
    for (body, why) in [
        (r#"{"id":7,"method":"m"}"#, "jsonrpc"),
        (r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#, "jsonrpc"),
        (r#"{"jsonrpc":2.0,"id":7,"method":"m"}"#, "jsonrpc"),
        (r#"{"jsonrpc":"2.0","id":7}"#, "missing"),
        (r#"{"jsonrpc":"2.0","method":5,"id":7}"#, "not a string"),
        (r#"{"jsonrpc":"2.0","method":null,"id":7}"#, "not a string"),
        (r#"{"jsonrpc":"2.0","method":["m"],"id":7}"#, "not a string"),
        (r#"{"params":null,"jsonrpc":"2.0","method":"m","id":7}"#, "params"),
        (r#"{"params":"x","jsonrpc":"2.0","method":"m","id":7}"#, "params"),
    ] {
        let (error, id) = refused(body);
        assert!(error.message().contains(why), "{body}: {error}");
        assert!(matches!(error, EnvelopeError::InvalidRequest(_)));
        assert_eq!((error.json_rpc_code(), id.as_deref()), (-32600, Some("7")), "{body}");
    }
    for body in ["{}", "1", "null", "\"x\"", "true"] {
        assert!(matches!(refused(body), (EnvelopeError::InvalidRequest(_), None)), "{body}");
    }
    let long = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{}"}}"#, "m".repeat(METHOD_LENGTH_MAX + 1));
    assert!(matches!(refused(long).0, EnvelopeError::InvalidRequest(RequestFault::MethodTooLong)));
}

#[test]
fn a_member_that_counts_comes_once_in_whatever_spelling() {
    for (more, name) in [
        (r#""method":"n""#, "method"),
        (r#""meth\u006fd":"n""#, "method"),
        (r#""\u006d\u0065\u0074\u0068\u006F\u0064":1"#, "method"),
        (r#""jsonrpc":"2.0""#, "jsonrpc"),
        (r#""params":[]"#, "params"),
    ] {
        let (error, id) = refused(format!(r#"{{"id":7,"jsonrpc":"2.0","method":"m","params":{{}},{more}}}"#));
        assert_eq!((error, id.as_deref()), (EnvelopeError::DuplicateKey(name), Some("7")), "{more}");
        assert_eq!((error.json_rpc_code(), error.code()), (-32600, &*format!("rpc_duplicate_{name}")));
        assert!(error.message().contains(name));
    }
    // Which of two ids would be the right one?
    for more in [r#""id":8"#, r#""\u0069d":7"#, r#""id":{}"#] {
        let (error, id) = refused(format!(r#"{{"id":7,"jsonrpc":"2.0","method":"m",{more}}}"#));
        assert_eq!((error, id), (EnvelopeError::DuplicateKey("id"), None), "{more}");
    }
    assert_eq!(one(r#"{"jsonrpc":"2.0","method":"m","x":1,"x":2}"#).0, "m");
}

#[test]
fn each_way_to_be_no_json_has_its_name() {
    use ParseFaultKind::*;
    for (body, kind, offset) in [
        ("", UnexpectedEnd, 0),
        ("  ", UnexpectedEnd, 2),
        ("{", UnexpectedEnd, 1),
        (r#"{"a""#, UnexpectedEnd, 4),
        (r#"{"a":"#, UnexpectedEnd, 5),
        (r#"{"a":1,"#, UnexpectedEnd, 7),
        (r#"{"a":"x"#, UnexpectedEnd, 7),
        (r#"{"a":"\"#, UnexpectedEnd, 7),
        (r#"{"a":"\ud83d"#, UnexpectedEnd, 12),
        (r#"{"a":"\ud83d\"#, UnexpectedEnd, 13),
        (r#"{"a":tr"#, UnexpectedEnd, 7),
        ("-", UnexpectedEnd, 1),
        ("\u{feff}{}", ByteOrderMark, 0),
        ("{}\u{feff}", TrailingText, 2),
        ("\0", Nul, 0),
        ("{}\0", Nul, 2),
        ("{\0}", Nul, 1),
        ("[1,\0]", Nul, 3),
        ("\"a\0\"", Nul, 2),
        ("{}{}", TrailingText, 2),
        ("{} x", TrailingText, 3),
        ("1 2", TrailingText, 2),
        ("[] ,", TrailingText, 3),
        ("{'a':1}", UnexpectedByte, 1),
        ("{a:1}", UnexpectedByte, 1),
        (r#"{"a" 1}"#, UnexpectedByte, 5),
        (r#"{"a":1,}"#, UnexpectedByte, 7),
        (r#"{,"a":1}"#, UnexpectedByte, 1),
        (r#"{"a":1 "b":2}"#, UnexpectedByte, 7),
        (r#"{"a":1]"#, UnexpectedByte, 6),
        ("[1,]", UnexpectedByte, 3),
        ("[1 2]", UnexpectedByte, 3),
        ("[1}", UnexpectedByte, 2),
        ("x", UnexpectedByte, 0),
        ("/*c*/{}", UnexpectedByte, 0),
        ("True", UnexpectedByte, 0),
        ("nulL", UnexpectedByte, 3),
        ("+1", UnexpectedByte, 0),
        (".5", UnexpectedByte, 0),
        ("NaN", UnexpectedByte, 0),
        ("\u{a0}1", UnexpectedByte, 0),
        ("01", BadNumber, 1),
        ("-01", BadNumber, 2),
        ("-x", BadNumber, 1),
        ("1.x", BadNumber, 2),
        ("1e+x", BadNumber, 3),
        ("0x1", TrailingText, 1),
        ("\"a\tb\"", ControlCharacter, 2),
        ("\"a\nb\"", ControlCharacter, 2),
        (r#""\x41""#, BadEscape, 2),
        (r#""\u12g4""#, BadEscape, 5),
        (r#""\U0041""#, BadEscape, 2),
        (r#""\u+123""#, BadEscape, 3),
        (r#""\ud800""#, LoneSurrogate, 1),
        (r#""\udc00""#, LoneSurrogate, 1),
        (r#""\ud800\u0041""#, LoneSurrogate, 1),
        (r#""\ud800\ud800""#, LoneSurrogate, 1),
        (r#""\uD83Dx""#, LoneSurrogate, 1),
        (r#""\ud83d\n""#, LoneSurrogate, 1),
    ] {
        assert_eq!(malformed(body), (kind, offset), "{body:?}");
    }
    assert_eq!(malformed(b"\"a\xff\""), (NotUtf8, 2));
    assert_eq!(malformed(b"\xef\xbb{}"), (NotUtf8, 0));
    assert_eq!(malformed(b"{}\xc0\xaf"), (NotUtf8, 2));
    assert_eq!(malformed(b"\"\xed\xa0\x80\""), (NotUtf8, 1));
    // What came before the bad byte was wrong already.
    assert_eq!(malformed(b"[01,\"\xff\"]"), (BadNumber, 2));
    assert_eq!(malformed(b"{}x\xff"), (TrailingText, 2));
    assert_eq!(malformed("{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()), (Nul, 1));
}

#[test]
fn json_that_only_looks_odd_passes() {
    for value in [
        "-0",
        "0",
        "1e400",
        "-1E-400",
        "0.0e+0",
        "123456789012345678901234567890",
        "\"\"",
        r#""\u0000""#,
        r#""\ud83d\udc1d""#,
        "\"\u{7f}\"",
        "\"\u{2028}\u{feff}\"",
        "[]",
        "{}",
        "[ ]",
        "{ }",
        "[[],{},[{}]]",
        "{\"\":1}",
        "{\"a\":1,\"a\":2}",
        "true",
        "false",
        "null",
        r#""\"\\\/\b\f\n\r\t""#,
    ] {
        assert_eq!(one(&with(value)).0, "m", "{value}");
    }
}

#[test]
fn the_id_is_known_if_it_stood_before_the_fault() {
    for body in [
        r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":01}}"#.as_bytes(),
        br#"{"id":7,"method":"m""#,
        br#"{"id":7,"#,
        br#"{"id":7} x"#,
        b"{\"id\":7,\"a\":\"\xff\"}",
        b"{\"id\":7}\xff",
        br#"{"id":7,"a":"\ud800"}"#,
        br#"{"\u0069d":7,x}"#,
    ] {
        let (error, id) = refused(body);
        assert_eq!((error.json_rpc_code(), id.as_deref()), (-32700, Some("7")), "{}", String::from_utf8_lossy(body));
    }
    for body in [&br#"{"a":01,"id":7}"#[..], br#"{"id":7"#, br#"{"id":7 x"#, b"{\"id\":7\xff}", br#"{"x":{"id":7},"#] {
        assert_eq!(refused(body).1, None, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn nesting_ends_at_the_limit() {
    let nested = |depth: usize, open: &str, close: &str| {
        format!(r#"{{"id":7,"jsonrpc":"2.0","method":"m","params":{}{}}}"#, open.repeat(depth), close.repeat(depth))
    };
    for max_depth in [1, 2, 5, 63, 64, 65, 128, 511, 512] {
        let limits = Limits { max_depth, batch: None, any_version: false };
        let inside = usize::from(max_depth) - 1;
        if inside > 0 {
            assert!(calls_of(nested(inside, "[", "]").as_bytes(), &limits).is_ok(), "{max_depth}");
            assert!(
                calls_of(nested(inside, "{\"a\":", "}").replace(":}", ":1}").as_bytes(), &limits).is_ok(),
                "{max_depth}"
            );
        }
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deeper = nested(inside + 1, open, close);
            assert_eq!(
                calls_of(deeper.as_bytes(), &limits),
                Err((EnvelopeError::TooDeep, Some("7".into()))),
                "{max_depth}"
            );
        }
    }
    let mut limits = Limits { max_depth: u16::MAX, batch: Some(1), any_version: false };
    assert_eq!(calls_of("[".repeat(1 << 20).as_bytes(), &limits).unwrap_err().0, EnvelopeError::TooDeep);
    assert!(calls_of(nested(usize::from(DEPTH_MAX), "[", "]").as_bytes(), &limits).is_err());
    limits.max_depth = 1;
    assert_eq!(calls_of(b"[{}]", &limits).unwrap_err().0, EnvelopeError::TooDeep);
    limits.max_depth = 0;
    assert_eq!(calls_of(b"{}", &limits).unwrap_err().0, EnvelopeError::TooDeep);
    assert_eq!((EnvelopeError::TooDeep.json_rpc_code(), EnvelopeError::TooDeep.code()), (-32600, "json_too_deep"));
}

#[test]
fn brackets_of_both_kinds_close_in_order() {
    assert_eq!(one(&with(r#"[{"a":[{"b":[[],{}]},1]},[2]]"#)).0, "m");
    let mixed = format!("{}1{}", "[{\"a\":".repeat(31), "}]".repeat(31));
    assert_eq!(one(&with(&mixed)).0, "m");
    assert_eq!(malformed(with(&mixed.replacen("}]", "]}", 1))).0, ParseFaultKind::UnexpectedByte);
}

#[test]
fn a_batch_is_each_of_its_calls() {
    let call = |id: u32| format!(r#"{{"jsonrpc":"2.0","method":"m{id}","id":{id}}}"#);
    let two = format!(" [ {} , {} ] ", call(1), call(2));
    assert_eq!(
        calls_of(two.as_bytes(), &LIMITS).unwrap(),
        [("m1".into(), Some("1".into())), ("m2".into(), Some("2".into()))]
    );
    assert_eq!(
        calls_of(two.as_bytes(), &Limits { max_depth: 64, batch: None, any_version: false }),
        Err((EnvelopeError::BatchRefused, None))
    );
    let four = format!("[{},{},{},{}]", call(1), call(2), call(3), call(4));
    assert_eq!(refused(four), (EnvelopeError::BatchTooLong, None));
    assert_eq!(calls_of(format!("[{},{},{}]", call(1), call(2), call(3)).as_bytes(), &LIMITS).unwrap().len(), 3);
    for empty in ["[]", " [ ] "] {
        assert!(matches!(refused(empty), (EnvelopeError::InvalidRequest(_), None)), "{empty}");
    }
    for element in ["1", "[]", "null", "{}"] {
        let (error, id) = refused(format!("[{},{element}]", call(1)));
        assert!(matches!(error, EnvelopeError::InvalidRequest(_)) && id.is_none(), "{element}");
    }
    let (error, id) = refused(format!(r#"[{},{{"jsonrpc":"2.0","id":5}},{}]"#, call(1), call(2)));
    assert_eq!((error.code(), id.as_deref()), ("rpc_method_missing", Some("5")));
    assert_eq!(malformed(format!("[{},]", call(1))).0, ParseFaultKind::UnexpectedByte);
    assert_eq!(malformed(format!("[{} {}]", call(1), call(2))).0, ParseFaultKind::UnexpectedByte);
    assert_eq!(malformed(format!("[{}}}", call(1))).0, ParseFaultKind::UnexpectedByte);
    assert_eq!(malformed("[{}").0, ParseFaultKind::UnexpectedEnd);
    // Malformed JSON wins over a wrong envelope.
    assert_eq!(malformed("[{},1,x]").0, ParseFaultKind::UnexpectedByte);
}

#[test]
fn the_visitor_can_break_off() {
    let batch = r#"[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","method":"b"},broken"#;
    let envelope = scan(batch.as_bytes(), &LIMITS, |call| {
        if call.method == "b" { ControlFlow::Break(5) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(envelope, Ok(Envelope { calls: 2, is_batch: true, stopped: Some(5) }));
    let single = scan(br#"{"jsonrpc":"2.0","method":"a"}"#, &LIMITS, |_| ControlFlow::Break(6));
    assert_eq!(single, Ok(Envelope { calls: 1, is_batch: false, stopped: Some(6) }));
}

#[test]
fn a_single_call_is_not_shown_before_the_body_is_known_to_be_good() {
    let body = br#"{"jsonrpc":"2.0","method":"a"} x"#;
    assert!(scan(body, &LIMITS, |_| -> ControlFlow<()> { panic!("shown") }).is_err());
}

/// JSON text with white space and escapes as people and machines write them.
fn json_text() -> impl Strategy<Value = String> {
    let space = || prop::sample::select(vec!["", "", "", " ", "\n  ", "\t", "\r\n"]);
    let piece = prop::sample::select(vec![
        "a",
        "message/send",
        "é",
        "🐝",
        "日本語",
        r#"\""#,
        r"\\",
        r"\/",
        r"\n",
        r"\u0061",
        r"\u00e9",
        r"\ud83d\udc1d",
        r"\ud83d",
        r"\udc1d",
        r"\u0000",
        "\u{7f}",
        "plain ascii text that is longer than a few words, so that blocks are taken, and then some more of it",
    ]);
    let string = prop::collection::vec(piece, 0..6).prop_map(|pieces| format!("\"{}\"", pieces.concat()));
    let scalar = prop_oneof![
        string.clone(),
        prop::sample::select(vec!["0", "-0", "1", "-12.5e+10", "1e400", "9007199254740993", "true", "false", "null"])
            .prop_map(String::from),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| serde_json::to_string(&f).unwrap()),
    ];
    let name = prop_oneof![
        string,
        prop::sample::select(vec!["jsonrpc", "method", "id", "params", r"meth\u006fd", r"\u0069d"])
            .prop_map(|n| format!("\"{n}\"")),
    ];
    let value = scalar.prop_recursive(6, 40, 6, move |inner| {
        prop_oneof![
            (prop::collection::vec((space(), inner.clone(), space()), 0..6)).prop_map(|items| {
                let items: Vec<String> = items.into_iter().map(|(a, v, b)| format!("{a}{v}{b}")).collect();
                format!("[{}]", items.join(","))
            }),
            prop::collection::vec((space(), name.clone(), space(), inner, space()), 0..6).prop_map(|members| {
                let members: Vec<String> =
                    members.into_iter().map(|(a, n, b, v, c)| format!("{a}{n}{b}:{b}{v}{c}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    });
    (space(), value, space()).prop_map(|(a, v, b)| format!("{a}{v}{b}"))
}

/// Requests, good ones and almost good ones, single or in batches.
fn request_text() -> impl Strategy<Value = String> {
    let member = prop_oneof![
        4 => Just(r#""jsonrpc":"2.0""#.to_owned()),
        1 => Just(r#""jsonrpc":"2\u002e0""#.to_owned()),
        1 => Just(r#""jsonrpc":2"#.to_owned()),
        4 => prop::sample::select(vec![r#""method":"m""#, r#""m\u0065thod":"tasks\/get""#, r#""method":1"#]).prop_map(String::from),
        2 => json_text().prop_map(|v| format!("\"params\":{v}")),
        2 => json_text().prop_map(|v| format!("\"id\":{v}")),
        1 => json_text().prop_map(|v| format!("\"other\":{v}")),
    ];
    let request = prop::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(",")));
    prop_oneof![
        3 => request.clone(),
        1 => prop::collection::vec(request, 0..4).prop_map(|requests| format!("[{}]", requests.join(","))),
    ]
}

fn mutated(text: String, changes: &[(usize, u8, u8)]) -> Vec<u8> {
    const SPICE: &[u8] = b"\"\\{}[]:,0123456789-+.eEtfnu \t\n\0\x1f\x80\xc3\xed\xa0\xffdD8";
    let mut bytes = text.into_bytes();
    for (at, kind, byte) in changes {
        let at = at % (bytes.len() + 1);
        let byte = SPICE[usize::from(*byte) % SPICE.len()];
        match kind % 4 {
            0 => bytes.insert(at, byte),
            1 if at < bytes.len() => bytes[at] = byte,
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_scanner_agrees_with_serde_json_on_json(text in json_text()) {
        agrees_with_serde_json(text.as_bytes());
    }

    #[test]
    fn the_scanner_agrees_with_serde_json_on_requests(text in request_text()) {
        agrees_with_serde_json(text.as_bytes());
    }

    #[test]
    fn the_scanner_agrees_with_serde_json_on_damaged_json(
        text in prop_oneof![json_text(), request_text()],
        changes in prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..4),
    ) {
        agrees_with_serde_json(&mutated(text, &changes));
    }

    #[test]
    fn any_bytes_are_scanned_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        agrees_with_serde_json(&bytes);
    }

    #[test]
    fn any_text_is_scanned_without_a_panic(text in "[\\[\\]{}:,\"\\\\ut0-9eE.\\- a-f]{0,60}") {
        agrees_with_serde_json(text.as_bytes());
    }
}
