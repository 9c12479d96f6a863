//! What a client can't say, what the gateway says instead, and what passes untouched.

use crate::support::certs::sha256_hex;
use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::{Node, Recorded};

/// In the value of every forged header; none of it may reach the node.
const FORGED: &str = "6.6.6.6";

/// Names that a client may never use; spelt as nobody expects.
const SPOOFABLE: &[&str] = &[
    "X-Real-IP",
    "x-REAL-ip",
    "X_Real_IP",
    "X-Real_IP",
    "X-Forwarded-For",
    "x-forwarded-FOR",
    "X_Forwarded_For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "X-Forwarded-Client-Cert",
    "X_Forwarded_Client_Cert",
    "Forwarded",
    "FORWARDED",
    "X-Client-IP",
    "X_Client_IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "CF_Connecting_IP",
    "X-Cluster-Client-IP",
    "Fastly-Client-IP",
    "X-Original-URL",
    "X-Original-Forwarded-For",
    "X-Rewrite-URL",
    "X-Envoy-External-Address",
    "Client-Cert",
    "Client-Cert-Chain",
    "X-SSL-Client-Cert",
    "X-SSL-Client-Verify",
    "X-Hive-Gateway-Auth",
    "x-hive-GATEWAY-auth",
    "X_Hive_Gateway_Auth",
    "X-Pilox-Gateway-Auth",
    "X_Pilox_Gateway_Auth",
    "any_name_with_underscores",
];

fn gateway() -> (Gateway, Node) {
    let node = Node::start();
    (Setup::new(&[node.address]).start(), node)
}

#[track_caller]
fn assert_nothing_forged(request: &Recorded) {
    let text = request.text();
    assert!(!text.contains(FORGED), "{text}");
    assert!(!text.lines().skip(1).any(|l| l.split(':').next().unwrap().contains('_')), "{text}");
    assert_eq!(request.all("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.all("x-forwarded-proto"), ["https"]);
    assert_eq!(request.all("x-forwarded-host"), ["gateway.test"]);
    assert_eq!(request.all("x-forwarded-client-cert").len(), 1, "{text}");
}

fn exchange(connection: &mut Connection, fields: &str) -> Response {
    connection.exchange(format!("GET /echo HTTP/1.1\r\nHost: gateway.test\r\n{fields}\r\n").as_bytes()).unwrap()
}

#[test]
fn no_spoofable_header_reaches_the_node_over_http_1() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    for name in SPOOFABLE {
        // Twice, and among headers that pass.
        let fields = format!("{name}: {FORGED}\r\nX-Fine: yes\r\n{name}: {FORGED}\r\n");
        let answer = exchange(&mut connection, &fields);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let request = node.requests().pop().unwrap();
        assert_nothing_forged(&request);
        assert_eq!(request.all("x-fine"), ["yes"]);
        assert!(request.header("x-hive-gateway-auth").is_none(), "there is no secret in this configuration");
    }
    let all: String = SPOOFABLE.iter().map(|name| format!("{name}: {FORGED}\r\n")).collect();
    assert_eq!(exchange(&mut connection, &all).status, 200);
    assert_nothing_forged(&node.requests().pop().unwrap());
}

#[test]
fn no_spoofable_header_reaches_the_node_over_http_2() {
    let (gateway, node) = gateway();
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let mut all = H2::request("GET", "/echo");
    for name in SPOOFABLE {
        let name = name.to_ascii_lowercase();
        let request = H2::request("GET", "/echo").header(&name, FORGED).header(&name, FORGED).header("x-fine", "yes");
        assert_eq!(h2.send(request.body(()).unwrap(), b"").unwrap().status, 200, "{name}");
        let request = node.requests().pop().unwrap();
        assert_nothing_forged(&request);
        assert_eq!(request.all("x-fine"), ["yes"]);
        all = all.header(&name, FORGED);
    }
    assert_eq!(h2.send(all.body(()).unwrap(), b"").unwrap().status, 200);
    assert_nothing_forged(&node.requests().pop().unwrap());
}

#[test]
fn connection_takes_away_the_clients_own_headers() {
    let (gateway, node) = gateway();
    let fields = format!(
        "Connection: keep-alive\r\nConnection: x-private\r\nX-Private: {FORGED}\r\nX-Real-IP: {FORGED}\r\n\
         Keep-Alive: timeout=99\r\nProxy-Connection: keep-alive\r\n"
    );
    let answer = exchange(&mut gateway.connect("alice"), &fields);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let request = node.only();
    assert_nothing_forged(&request);
    for name in ["x-private", "keep-alive", "proxy-connection"] {
        assert!(request.header(name).is_none(), "{name} is the client's matter with the gateway");
    }
}

/// Either the request is refused, or the gateway's header arrives and the client's does not.
#[test]
fn connection_can_t_take_away_the_gateways_headers() {
    let (gateway, node) = gateway();
    for name in ["X-Real-IP", "x-real-ip", "X-Forwarded-For", "X-Forwarded-Client-Cert", "X-Request-Id", "traceparent"]
    {
        let before = node.count();
        let answer = exchange(&mut gateway.connect("alice"), &format!("Connection: {name}\r\n{name}: {FORGED}\r\n"));
        match answer.status {
            400 if name.eq_ignore_ascii_case("x-request-id") || name == "traceparent" => {
                assert_eq!(node.count(), before, "{name}");
            }
            200 => assert_nothing_forged(&node.requests().pop().unwrap()),
            status => panic!("{name}: {status}"),
        }
    }
}

#[test]
fn the_gateways_proof_is_sent_and_the_clients_is_not() {
    for (prefix, name) in [("", "x-hive-gateway-auth"), ("header_prefix: X-Pilox, ", "x-pilox-gateway-auth")] {
        let node = Node::start();
        let mut setup = Setup::new(&[node.address]);
        let secret = "0123456789abcdef0123456789abcdef";
        setup.top = format!("hive: {{ {prefix}gateway_auth_secret: {secret} }}");
        let gateway = setup.start();
        let mut connection = gateway.connect("alice");
        let forged = "X-Hive-Gateway-Auth: Bearer 6.6.6.6\r\nX-Pilox-Gateway-Auth: Bearer 6.6.6.6\r\n";
        assert_eq!(exchange(&mut connection, forged).status, 200);
        let request = node.only();
        assert_nothing_forged(&request);
        assert_eq!(request.all(name), [format!("Bearer {secret}")]);
        assert_eq!(request.text().to_ascii_lowercase().matches("gateway-auth").count(), 1);
    }
}

#[test]
fn the_clients_identity_goes_along_in_envoys_format() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "identity_headers: { client_cert: true }".into();
    let gateway = setup.start();
    let identity = gateway.pki().client("alice");
    let client = gateway.client_with(Some(identity.clone()));
    assert_eq!(client.get(gateway.address, "/echo").unwrap().status, 200);
    let request = node.only();
    let xfcc = request.header("x-forwarded-client-cert").unwrap();
    assert!(xfcc.starts_with(&format!("Hash={};", sha256_hex(&identity))), "{xfcc}");
    assert!(xfcc.contains("Subject=\"CN=alice\""), "{xfcc}");
    assert!(xfcc.contains("URI=spiffe://mesh.test/hive/alice"), "{xfcc}");
    let der = openssl::base64::encode_block(&identity.cert.to_der().unwrap());
    assert_eq!(request.all("client-cert"), [format!(":{der}:")], "RFC 9440, a byte sequence");
}

#[test]
fn no_identity_header_is_sent_where_it_is_off() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.top = "identity_headers: { xfcc: false }".into();
    let gateway = setup.start();
    assert_eq!(exchange(&mut gateway.connect("alice"), "X-Forwarded-Client-Cert: 6.6.6.6\r\n").status, 200);
    assert!(node.only().header("x-forwarded-client-cert").is_none());
}

#[test]
fn a_sane_request_id_is_kept_and_any_other_replaced() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    exchange(&mut connection, "X-Request-Id: my-id_1.2:3\r\n");
    assert_eq!(node.requests()[0].all("x-request-id"), ["my-id_1.2:3"]);
    let long = "a".repeat(300);
    for bad in [
        "",
        "X-Request-Id: \r\n",
        "X-Request-Id: a b\r\n",
        "X-Request-Id: a\"b\r\n",
        &format!("X-Request-Id: {long}\r\n"),
    ] {
        exchange(&mut connection, bad);
        let ids = node.requests().pop().unwrap().all("x-request-id");
        assert_eq!(ids.len(), 1, "{bad:?}");
        let id = uuid::Uuid::parse_str(&ids[0]).unwrap_or_else(|e| panic!("{bad:?} -> {ids:?}: {e}"));
        assert_eq!(id.get_version_num(), 7);
    }
}

#[test]
fn two_request_ids_become_one() {
    let (gateway, node) = gateway();
    exchange(&mut gateway.connect("alice"), "X-Request-Id: a\r\nX-Request-Id: b\r\n");
    assert_eq!(node.only().all("x-request-id").len(), 1);
}

#[test]
fn traceparent_is_passed_or_made() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    exchange(&mut connection, &format!("traceparent: {theirs}\r\ntracestate: a=b\r\n"));
    exchange(&mut connection, "");
    exchange(&mut connection, "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01\r\n");
    let requests = node.requests();
    let kept = requests[0].header("traceparent").unwrap();
    assert_eq!(kept[..36], theirs[..36], "the same trace");
    assert_eq!(requests[0].all("tracestate"), ["a=b"]);
    for request in &requests[1..] {
        let made = request.all("traceparent");
        assert_eq!(made.len(), 1);
        let parts: Vec<_> = made[0].split('-').collect();
        assert_eq!((parts.len(), parts[0], parts[1].len(), parts[2].len(), parts[3].len()), (4, "00", 32, 16, 2));
        assert!(parts[1] != "0".repeat(32) && parts[2] != "0".repeat(16), "{made:?}");
    }
}

/// Name and value, odd but legal.
const PASSING: &[(&str, &str)] = &[
    ("authorization", "Bearer  two  spaces,and;signs=\"q\""),
    ("cookie", "a=1; b=\"2\"; c=%20"),
    ("x-hive-federation-jwt", "eyJhbGciOiJIUzI1NiJ9.eyJqdGkiOiIxIn0.AAAA-_"),
    ("x-hive-federation-proxy-operator-token", "op-token"),
    ("x-hive-public-a2a-key", "key"),
    ("a2a-version", "0.3"),
    ("a2a-extensions", "https://a.example/ext, https://b.example/ext"),
    ("x-a2a-extensions", "https://a.example/ext"),
    ("x-a2a-notification-token", "t"),
    ("origin", "https://elsewhere.example"),
    ("referer", "https://elsewhere.example/x?y"),
    ("baggage", "k=v;p=1,k2=v2"),
    ("x-correlation-id", "c-1"),
    ("accept", "text/event-stream, application/json"),
    ("accept-encoding", "gzip, br"),
    ("user-agent", "Mozilla/5.0 (odd; [agent])"),
    ("if-none-match", "\"etag\", W/\"weak\""),
    ("x-custom", "\u{e9}"),
];

#[test]
fn what_is_hives_passes_byte_for_byte() {
    let (gateway, node) = gateway();
    let mut connection = gateway.connect("alice");
    let fields: String = PASSING.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    assert_eq!(exchange(&mut connection, &fields).status, 200);
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let request = PASSING.iter().fold(H2::request("GET", "/echo"), |r, (n, v)| r.header(*n, v.as_bytes()));
    assert_eq!(h2.send(request.body(()).unwrap(), b"").unwrap().status, 200);
    for request in node.requests() {
        for (name, value) in PASSING {
            assert_eq!(request.all(name), [*value], "{name}");
        }
    }
}

#[test]
fn repeated_headers_keep_their_order() {
    let (gateway, node) = gateway();
    exchange(&mut gateway.connect("alice"), "X-List: b\r\nX-Other: 1\r\nX-List: a\r\nX-List: b\r\n");
    assert_eq!(node.only().all("x-list"), ["b", "a", "b"]);
}

#[test]
fn both_federation_headers_at_once_are_400() {
    let (gateway, node) = gateway();
    let fields = "X-Hive-Federation-JWT: a.b.c\r\nX-Hive-Federation-Secret: s\r\n";
    let answer = exchange(&mut gateway.connect("alice"), fields);
    assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("two_federation_credentials")));
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let request = H2::request("POST", "/api/a2a/jsonrpc")
        .header("x-hive-federation-jwt", "a.b.c")
        .header("x-hive-federation-secret", "s")
        .header("content-type", "application/json");
    let answer = h2.send(request.body(()).unwrap(), br#"{"jsonrpc":"2.0","id":1,"method":"a"}"#).unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["jsonrpc"], "2.0");
    assert_eq!(node.count(), 0);
    assert_eq!(exchange(&mut gateway.connect("alice"), "X-Hive-Federation-Secret: s\r\n").status, 200);
    assert_eq!(node.only().all("x-hive-federation-secret"), ["s"]);
}

#[test]
fn a_federation_jwt_has_at_most_8192_bytes() {
    let (gateway, node) = gateway();
    let fits = "a".repeat(8192);
    assert_eq!(exchange(&mut gateway.connect("alice"), &format!("X-Hive-Federation-JWT: {fits}\r\n")).status, 200);
    assert_eq!(node.only().all("x-hive-federation-jwt"), *std::slice::from_ref(&fits));
    let answer = exchange(&mut gateway.connect("alice"), &format!("X-Hive-Federation-JWT: {fits}a\r\n"));
    assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("federation_token_too_long")));
    assert_eq!(node.count(), 1);
}

#[test]
fn a_trusted_proxy_s_chain_gives_the_rightmost_untrusted_hop() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.plain = Some("    trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]\n".into());
    let gateway = setup.start();
    for (chain, client) in [
        ("6.6.6.6, 9.9.9.9, 10.0.0.1", "9.9.9.9"),
        ("9.9.9.9", "9.9.9.9"),
        ("6.6.6.6, ::ffff:9.9.9.9", "9.9.9.9"),
        ("6.6.6.6, 2001:db8::1, 10.1.2.3", "2001:db8::1"),
        ("6.6.6.6, not-an-address, 10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3"),
    ] {
        let mut connection = Connection::plain(gateway.plain).unwrap();
        let answer = exchange(&mut connection, &format!("X-Forwarded-For: {chain}\r\nX-Real-IP: 6.6.6.6\r\n"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let request = node.requests().pop().unwrap();
        assert_eq!(request.all("x-real-ip"), [client], "{chain}");
        let forwarded = request.all("x-forwarded-for");
        assert_eq!(forwarded.len(), 1);
        assert!(forwarded[0].starts_with(client), "Hive takes the first hop: {forwarded:?}");
        assert_eq!(request.all("x-forwarded-proto").len(), 1);
    }
}

#[test]
fn an_untrusted_client_s_chain_is_ignored_on_a_plain_listener() {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    setup.plain = Some(String::new());
    let gateway = setup.start();
    let mut connection = Connection::plain(gateway.plain).unwrap();
    assert_eq!(exchange(&mut connection, "X-Forwarded-For: 6.6.6.6\r\n").status, 200);
    let request = node.only();
    assert_eq!(request.all("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.all("x-forwarded-proto"), ["http"]);
    assert!(request.header("x-forwarded-client-cert").is_none());
}

#[test]
fn the_answer_passes_byte_for_byte_but_for_hop_by_hop_headers() {
    let body = br#"{"signed":"card",  "odd":"spacing"}"#;
    let node = Node::start_with(move |_, exchange| {
        exchange.answer(
            200,
            "ETag: \"abc\"\r\nContent-Type: application/json\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
             Keep-Alive: timeout=5\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-End: 2\r\n",
            body,
        )
    });
    let gateway = Setup::new(&[node.address]).start();
    let answer = gateway.client("alice").get(gateway.address, "/.well-known/agent-card.json").unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, body.as_slice()));
    assert_eq!(answer.header("etag"), Some("\"abc\""));
    let cookies = answer.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("set-cookie")).count();
    assert_eq!(cookies, 2);
    assert_eq!(answer.header("x-end"), Some("2"));
    let h2 = H2::connect(&gateway.client("alice"), gateway.address).unwrap();
    let answer = h2.get("/.well-known/agent-card.json").unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, body.as_slice()));
    assert!(answer.header("keep-alive").is_none() && answer.header("connection").is_none());
}
