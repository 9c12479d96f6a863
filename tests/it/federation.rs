//! Federation tokens at the edge: what Hive would refuse gets no further, with Hive's own words, and a stolen token is
//! useless on another peer's certificate.

use openssl::pkey::{PKey, Private};
use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::gateway::{Gateway, Setup};
use crate::support::h2_client::H2;
use crate::support::node::Node;
use crate::support::tokens::{
    self, INVALID, NOT_NOW, SECRET, base64url, hex, hs256, now, shared_claims, with, with_ed25519, with_hmac,
};

const AUDIENCE: &str = "https://gateway.test";
const ALICE: &str = "https://alice.example";
const CALL: &str = r#"{"jsonrpc":"2.0","id":7,"method":"message/send","params":{}}"#;
const HEADER: &str = "X-Hive-Federation-JWT";

/// A gateway with a Hive that verifies, and the keys of its peers `alice` and `bob`.
struct Mesh {
    gateway: Gateway,
    node: Node,
    alice: PKey<Private>,
    bob: PKey<Private>,
}

impl Mesh {
    /// `federation` is the inside of `hive.federation`.
    fn start(federation: &str) -> Self {
        let (alice, bob) = (PKey::generate_ed25519().unwrap(), PKey::generate_ed25519().unwrap());
        let node = Node::start_with(tokens::hive(Some(alice.clone())));
        let mut setup = Setup::new(&[node.address]);
        std::fs::write(setup.dir.path().join("secret"), format!("{SECRET}\n")).unwrap();
        setup.top = format!("hive: {{ federation: {{ {federation} }} }}");
        let peer = |name: &str, key: &PKey<Private>| {
            format!(
                "  - {{ name: {name}, uri: \"spiffe://mesh.test/hive/{name}\", issuer: \"https://{name}.example\", \
                 ed25519_public_key: \"{}\" }}\n",
                hex(key)
            )
        };
        setup.peers = format!("\n{}{}", peer("alice", &alice), peer("bob", &bob));
        setup.routes = setup.routes.replace("peers: [alice]", "peers: [alice, bob]");
        Self { gateway: setup.start(), node, alice, bob }
    }

    /// `verify` with both kinds of keys.
    fn verifying(more: &str) -> Self {
        Self::start(&format!("jwt: verify, audience: \"{AUDIENCE}\", shared_secret_file: secret{more}"))
    }

    fn send(&self, who: &str, headers: &str) -> Response {
        self.gateway.connect(who).exchange(&request(headers, CALL)).unwrap()
    }

    fn send_token(&self, who: &str, token: &str) -> Response {
        self.send(who, &format!("{HEADER}: {token}\r\n"))
    }

    #[track_caller]
    fn assert_refused(&self, token: &str, body: &str) {
        let before = self.node.count();
        let answer = self.send_token("alice", token);
        assert_eq!((answer.status, answer.text().as_str()), (401, body), "{token}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(self.node.count(), before, "the node saw it");
    }

    fn alice_claims(&self, jti: &str) -> Value {
        let now = now();
        json!({ "iss": ALICE, "aud": AUDIENCE, "jti": jti, "iat": now, "exp": now + 60 })
    }
}

fn request(headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /api/a2a/jsonrpc HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\n\
         {headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn good_tokens_pass_as_they_are_and_a_replay_is_hive_s_to_refuse() {
    let mesh = Mesh::verifying("");
    for (jti, token) in
        [("h1", hs256(&shared_claims(AUDIENCE, "h1"))), ("e1", with_ed25519(&mesh.alice_claims("e1"), &mesh.alice))]
    {
        let answer = mesh.send_token("alice", &token);
        assert_eq!((answer.status, answer.json()["jti"].as_str()), (200, Some(jti)));
        assert_eq!(mesh.node.requests().last().unwrap().all(HEADER), [token.as_str()]);
        let seen = mesh.node.count();
        let again = mesh.send_token("alice", &token);
        assert_eq!((again.status, again.text().as_str()), (401, INVALID));
        assert_eq!(mesh.node.count(), seen + 1, "the jti is Hive's to burn: the node must have refused it");
    }
    let line = mesh.gateway.wait_log(|l| l["federation_issuer"] == ALICE);
    assert_eq!((&line["peer"], &line["status"]), (&json!("alice"), &json!(200)));
    mesh.gateway.wait_log(|l| l["federation_issuer"] == "hive-mesh-federation");
}

#[test]
fn forged_and_foreign_tokens_get_hive_s_refusal_before_a_node_sees_them() {
    let mesh = Mesh::verifying("");
    let shared = || shared_claims(AUDIENCE, "x");
    let alice = || mesh.alice_claims("x");
    let public = mesh.alice.raw_public_key().unwrap();
    let hs = json!({ "alg": "HS256" });
    let unsigned = |header: Value| {
        format!("{}.{}.", base64url(header.to_string().as_bytes()), base64url(alice().to_string().as_bytes()))
    };
    for token in [
        unsigned(json!({ "alg": "none" })),
        with_hmac(&json!({ "alg": "none" }), &shared(), SECRET.as_bytes()),
        with_hmac(&json!({ "alg": "RS256" }), &shared(), SECRET.as_bytes()),
        with_hmac(&json!({ "alg": "EdDSA" }), &alice(), SECRET.as_bytes()),
        with_hmac(&hs, &alice(), &public),
        with_hmac(&hs, &alice(), hex(&mesh.alice).as_bytes()),
        with_hmac(&hs, &shared(), &public),
        with_hmac(&hs, &shared(), b"another-secret-of-thirty-two-letters"),
        with_hmac(&json!({ "alg": "HS256", "crit": ["exp"] }), &shared(), SECRET.as_bytes()),
        with_ed25519(&alice(), &mesh.bob),
        hs256(&with(shared(), "aud", "https://other.test")),
        hs256(&with(shared(), "aud", json!([AUDIENCE]))),
        hs256(&with(shared(), "iss", ALICE)),
        hs256(&with(shared(), "sub", "admin")),
        with_ed25519(&with(alice(), "iss", "https://carol.example"), &mesh.alice),
        with_ed25519(&with(alice(), "iss", "https://bob.example"), &mesh.alice),
        hs256(&with(shared(), "jti", "x".repeat(129))),
        hs256(&with(shared(), "exp", "soon")),
        format!("{0}, {0}", hs256(&shared())),
        "x".into(),
    ] {
        mesh.assert_refused(&token, INVALID);
    }
    mesh.gateway.wait_metric("hive_gateway_refusals_total", &[("reason", "federation_token_invalid")], 20.0);
    assert_eq!(mesh.node.count(), 0);
    let log = mesh.gateway.stdout() + &mesh.gateway.stderr();
    assert!(!log.contains(&base64url(br#"{"alg":"#)[..8]), "a token stands in the log");
}

#[test]
fn a_token_at_another_time_gets_its_own_refusal() {
    let mesh = Mesh::verifying(", clock_skew: 30s");
    let shared = || shared_claims(AUDIENCE, "x");
    mesh.assert_refused(&hs256(&with(shared(), "exp", now() - 40)), NOT_NOW);
    mesh.assert_refused(&hs256(&with(shared(), "nbf", now() + 3600)), NOT_NOW);
    mesh.assert_refused(&with_ed25519(&with(mesh.alice_claims("x"), "exp", 0), &mesh.alice), NOT_NOW);
    assert_eq!(mesh.send_token("alice", &hs256(&with(shared(), "exp", now() - 10))).status, 200, "within the leeway");
    mesh.gateway.wait_log(|l| l["refusal"] == "federation_token_not_now" && l["refusal_detail"] == "expired");
}

#[test]
fn hs256_is_unknown_where_only_public_keys_are_configured() {
    let mesh = Mesh::start(&format!("jwt: verify, audience: \"{AUDIENCE}\""));
    mesh.assert_refused(&hs256(&shared_claims(AUDIENCE, "x")), INVALID);
    let public = mesh.alice.raw_public_key().unwrap();
    mesh.assert_refused(&with_hmac(&json!({ "alg": "HS256" }), &mesh.alice_claims("x"), &public), INVALID);
    assert_eq!(mesh.send_token("alice", &with_ed25519(&mesh.alice_claims("y"), &mesh.alice)).status, 200);
}

#[test]
fn too_long_and_too_many_are_400() {
    let mesh = Mesh::verifying("");
    let long = hs256(&with(shared_claims(AUDIENCE, "x"), "more", "x".repeat(6200)));
    assert!(long.len() > 8192);
    let answer = mesh.send_token("alice", &long);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (400, Some(-32600)));
    let token = hs256(&shared_claims(AUDIENCE, "x"));
    for second in [format!("X-Hive-Federation-Secret: {SECRET}"), format!("{HEADER}: {token}")] {
        assert_eq!(mesh.send("alice", &format!("{HEADER}: {token}\r\n{second}\r\n")).status, 400);
    }
    assert_eq!(mesh.node.count(), 0);
}

#[test]
fn under_another_product_s_prefix_no_token_gets_past_the_check() {
    let mesh = Mesh::verifying("");
    let answer = mesh.send("alice", "X-Pilox-Federation-JWT: x.y.z\r\n");
    assert_eq!((answer.status, mesh.node.count()), (401, 0));
}

#[test]
fn without_a_token_hive_decides() {
    let mesh = Mesh::verifying(", bind_issuer: true");
    let answer = mesh.send("alice", &format!("X-Hive-Federation-Secret: {SECRET}\r\n"));
    assert_eq!((answer.status, mesh.node.count()), (401, 1), "the node's own answer");
    assert_eq!(mesh.gateway.client("alice").get(mesh.gateway.address, "/.well-known/x").unwrap().status, 401);
    assert_eq!(mesh.node.count(), 2);
}

#[test]
fn a_stolen_token_is_useless_on_another_peer_s_certificate() {
    let mesh = Mesh::verifying(", bind_issuer: true");
    let token = with_ed25519(&mesh.alice_claims("one"), &mesh.alice);
    let answer = mesh.send_token("bob", &token);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_i64()), (403, Some(-32600)));
    let line = mesh.gateway.wait_log(|l| l["refusal"] == "federation_issuer_mismatch");
    assert_eq!((&line["peer"], &line["federation_issuer"]), (&json!("bob"), &json!(ALICE)));
    // A certificate that belongs to no peer is nobody's either; off the JSON-RPC routes the answer has the small form.
    let carol =
        mesh.gateway.client("carol").connect(mesh.gateway.address).unwrap().exchange(
            format!("GET /.well-known/x HTTP/1.1\r\nHost: gateway.test\r\n{HEADER}: {token}\r\n\r\n").as_bytes(),
        );
    assert_eq!(carol.unwrap().json()["error"], "federation_issuer_mismatch");
    assert_eq!(mesh.node.count(), 0);
    assert_eq!(mesh.send_token("alice", &token).status, 200, "nothing was burned on the way");
    mesh.assert_refused(&with_ed25519(&mesh.alice_claims("two"), &mesh.bob), INVALID);
}

#[test]
fn a_shared_token_names_no_peer_so_bound_it_is_nobody_s() {
    let mesh = Mesh::verifying(", bind_issuer: true");
    assert_eq!(mesh.send_token("alice", &hs256(&shared_claims(AUDIENCE, "x"))).status, 403);
    assert_eq!(mesh.node.count(), 0);
}

#[test]
fn pass_binds_what_the_token_claims_and_leaves_its_proof_to_hive() {
    let mesh = Mesh::start("jwt: pass, bind_issuer: true");
    let token = with_ed25519(&mesh.alice_claims("one"), &mesh.alice);
    assert_eq!((mesh.send_token("bob", &token).status, mesh.node.count()), (403, 0));
    assert_eq!(mesh.send_token("alice", &token).status, 200);
    let forged = with_ed25519(&mesh.alice_claims("two"), &mesh.bob);
    assert_eq!((mesh.send_token("alice", &forged).status, mesh.node.count()), (401, 2), "Hive saw and refused it");
    mesh.assert_refused("not.a.token", INVALID);
}

#[test]
fn pass_changes_nothing_and_hive_still_refuses_an_invalid_token() {
    let mesh = Mesh::start("jwt: pass");
    let good = hs256(&shared_claims(AUDIENCE, "one"));
    assert_eq!(mesh.send_token("bob", &good).status, 200);
    for (n, bad) in ["not a token", "a.b.c", "\u{e9}\u{e9}"].iter().enumerate() {
        let answer = mesh.send_token("alice", bad);
        assert_eq!((answer.status, answer.text().as_str()), (401, INVALID), "mutual TLS alone is not enough");
        let seen = mesh.node.requests()[n + 1].clone();
        let field = format!("{HEADER}: {bad}\r\n").to_ascii_lowercase();
        let head = seen.head.to_ascii_lowercase();
        assert!(head.windows(field.len()).any(|w| w == field.as_bytes()), "{}", seen.text());
        assert_eq!(seen.body, CALL.as_bytes());
    }
    assert!(mesh.gateway.access_log().iter().all(|l| l.get("federation_issuer").is_none()));
}

#[test]
fn the_unread_body_of_a_refused_token_is_no_next_request() {
    let mesh = Mesh::verifying("");
    let inner = String::from_utf8(request("", CALL)).unwrap();
    let mut connection = mesh.gateway.connect("alice");
    let refused = connection.exchange(&request(&format!("{HEADER}: a.b.c\r\n"), &inner)).unwrap();
    assert_eq!((refused.status, refused.header("connection")), (401, Some("close")));
    assert_eq!((connection.rest().len(), mesh.node.count()), (0, 0));
}

#[test]
fn over_http_2_the_answer_is_the_same_and_the_connection_goes_on() {
    let mesh = Mesh::verifying("");
    let h2 = H2::connect(&mesh.gateway.client("alice"), mesh.gateway.address).unwrap();
    let send = |token: &str| {
        let request = H2::request("POST", "/api/a2a/jsonrpc").header("content-type", "application/json");
        h2.send(request.header("x-hive-federation-jwt", token).body(()).unwrap(), CALL.as_bytes()).unwrap()
    };
    let refused = send("a.b.c");
    assert_eq!((refused.status, String::from_utf8(refused.body).unwrap().as_str()), (401, INVALID));
    assert_eq!((send(&hs256(&shared_claims(AUDIENCE, "one"))).status, mesh.node.count()), (200, 1));
}
