//! Both directions: Hive A → gateway A (egress) → gateway B (ingress) → Hive B, and back, each with a CA of its own.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use openssl::pkey::{PKey, Private};
use serde_json::json;

use crate::support::certs::{self, Pki, client_leaf, server_leaf};
use crate::support::client::{Connection, Response};
use crate::support::gateway::{Gateway, Setup, upstream};
use crate::support::node::{Node, Recorded};
use crate::support::relay::Relay;
use crate::support::tokens::{self, INVALID, hex, now, with_ed25519};

const CALL: &str = "{ \"jsonrpc\":\"2.0\", \"id\":\"é\",\"method\":\"message/send\",\"params\":{} }";

/// An operator: a CA, a public name, a Hive with its key.
struct Operator {
    name: &'static str,
    pki: Pki,
    key: PKey<Private>,
    node: Node,
    /// Where its gateway will be.
    door: Relay,
}

impl Operator {
    fn new(name: &'static str) -> Self {
        let key = PKey::generate_ed25519().unwrap();
        Self { name, pki: Pki::new(name), key, node: Node::start(), door: Relay::start() }
    }

    fn host(&self) -> String {
        format!("hive-{}.test", self.name)
    }

    fn origin(&self) -> String {
        format!("https://{}", self.host())
    }

    fn spiffe_id(&self) -> String {
        format!("spiffe://{}.test/gateway", self.name)
    }

    /// Never to be seen by anyone but its own Hive.
    fn secret(&self) -> String {
        format!("the-secret-between-gateway-and-hive-of-{}", self.name)
    }

    fn token(&self, to: &Operator, jti: &str) -> String {
        let now = now();
        let claims = json!({ "iss": self.origin(), "aud": to.origin(), "jti": jti, "iat": now, "exp": now + 60 });
        with_ed25519(&claims, &self.key)
    }

    /// Certificates of its gateway and trust in the other's. What a rotation writes anew.
    fn write_material(&self, other: &Operator, dir: &Path) {
        let server = server_leaf(&[&self.host()]).uri(&self.spiffe_id());
        certs::write(&self.pki.leaf(&server), dir, "server");
        certs::write(&self.pki.leaf(&client_leaf("gateway", &self.spiffe_id())), dir, "gateway");
        other.pki.write_root(dir, "ca");
    }

    /// Its gateway: peers in on `front`, its own Hive out on `plain`.
    fn gateway(&self, other: &Operator, protocol: &str) -> Gateway {
        let mut setup = Setup::new(&[]);
        self.write_material(other, setup.dir.path());
        let (name, host) = (other.name, other.host());
        // Reloads happen when a test asks for them.
        // One thread, so that the connection that rests is the one that is taken.
        setup.server = "watch: 0s, threads: 1".into();
        setup.timeouts = "revocation: 1s".into();
        setup.plain = Some(String::new());
        setup.top = format!(
            "hive: {{ gateway_auth_secret: {}, federation: {{ jwt: verify, audience: \"{}\", bind_issuer: true }} }}",
            self.secret(),
            self.origin()
        );
        setup.peers = format!(
            "[{{ name: {name}, uri: \"{}\", issuer: \"{}\", ed25519_public_key: \"{}\" }}]",
            other.spiffe_id(),
            other.origin(),
            hex(&other.key)
        );
        setup.routes = format!(
            "
  - {{ name: a2a, listeners: [front], paths: [/api/a2a/jsonrpc], methods: [POST], peers: [{name}], upstream: hive, json_rpc: {{}} }}
  - {{ name: card, listeners: [front], paths: [\"/.well-known/*\"], methods: [GET], peers: any, upstream: hive }}
  - {{ name: out, listeners: [plain], hosts: [{host}], paths: [/api/a2a/jsonrpc, \"/.well-known/*\"], methods: [GET, POST], peers: any, upstream: {name} }}
"
        );
        let tls = format!(
            "ca: ca.pem, server_name: {host}, spiffe_id: \"{}\", cert: gateway.pem, key: gateway.key",
            other.spiffe_id()
        );
        let more =
            format!("tls: {{ {tls} }}, trusted: false, health_check: {{ enabled: false }}, protocol: {protocol}");
        setup.upstreams = upstream("hive", "http", &[self.node.address], "health_check: { interval: 2s }")
            + &upstream(name, "https", &[other.door.address], &more);
        let gateway = setup.start();
        self.door.lead_to(gateway.address);
        gateway
    }
}

/// Two operators with their gateways.
struct Federation {
    oslo: (Operator, Gateway),
    paris: (Operator, Gateway),
}

impl Federation {
    fn start() -> Self {
        let (oslo, paris) = (Operator::new("oslo"), Operator::new("paris"));
        oslo.node.behave(tokens::hive(Some(paris.key.clone())));
        paris.node.behave(tokens::hive(Some(oslo.key.clone())));
        // One way over HTTP/1.1, the other over HTTP/2.
        let gateways = (oslo.gateway(&paris, "http1"), paris.gateway(&oslo, "http2"));
        Self { oslo: (oslo, gateways.0), paris: (paris, gateways.1) }
    }

    /// Caller, its gateway, called, its gateway: both ways.
    fn ways(&self) -> [[&(Operator, Gateway); 2]; 2] {
        [[&self.oslo, &self.paris], [&self.paris, &self.oslo]]
    }
}

fn request(target: &str, host: &str, token: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nX-Hive-Federation-JWT: {token}\r\n\
         X-Real-IP: 192.0.2.1\r\nX-Hive-Gateway-Auth: Bearer forged\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// As a Hive calls a peer: by the peer's name, through its own gateway.
fn call(gateway: &Gateway, to: &Operator, token: &str, body: &str) -> Response {
    let mut connection = Connection::plain(gateway.plain).unwrap();
    connection.exchange(&request("/api/a2a/jsonrpc", &to.host(), token, body)).unwrap()
}

#[track_caller]
fn assert_arrived(seen: &Recorded, from: &Operator, to: &Operator, token: &str) {
    assert_eq!(seen.all("host"), [to.host()]);
    assert_eq!(seen.all("x-hive-federation-jwt"), [token]);
    assert_eq!(seen.body, CALL.as_bytes(), "byte for byte");
    assert_eq!(seen.all("x-hive-gateway-auth"), [format!("Bearer {}", to.secret())]);
    assert_eq!(seen.all("x-real-ip"), ["127.0.0.1"]);
    assert!(seen.header("x-forwarded-client-cert").unwrap().contains(&from.spiffe_id()));
    assert!(!seen.text().contains(&from.secret()), "the caller's secret went to a partner");
}

#[test]
fn a_call_goes_from_hive_to_hive_both_ways() {
    let federation = Federation::start();
    for [(from, out), (to, into)] in federation.ways() {
        let token = from.token(to, "one");
        let answer = call(out, to, &token, CALL);
        assert_eq!((answer.status, answer.json()["jti"].as_str()), (200, Some("one")), "{}", answer.text());
        assert_arrived(&to.node.only(), from, to, &token);
        let sent = out.wait_log(|l| l["route"] == "out");
        assert_eq!((&sent["upstream"], &sent["listener"]), (&json!(to.name), &json!("plain")));
        let got = into.wait_log(|l| l["route"] == "a2a");
        assert_eq!((&got["peer"], &got["federation_issuer"]), (&json!(from.name), &json!(from.origin())));
        assert_eq!(sent["trace_id"], got["trace_id"], "one trace through both");
        // Burned there: the far Hive's refusal comes back as it is.
        let replay = call(out, to, &token, CALL);
        assert_eq!((replay.status, replay.text().as_str(), to.node.count()), (401, INVALID, 2));
    }
}

#[test]
fn the_far_gateway_refuses_what_its_own_gateway_let_pass() {
    let federation = Federation::start();
    for [(from, out), (to, _)] in federation.ways() {
        let refused = call(out, to, &to.token(to, "x"), CALL);
        assert_eq!((refused.status, refused.text().as_str()), (401, INVALID), "the audience's own key is no peer's");
        assert_eq!(call(out, to, &from.token(from, "x"), CALL).text(), INVALID, "for another audience");
        assert_eq!(call(out, to, &from.token(to, "x"), "{}").status, 400, "not JSON-RPC");
        assert_eq!((from.node.count(), to.node.count()), (0, 0));
    }
}

#[test]
fn streams_go_through_event_by_event_both_ways() {
    let federation = Federation::start();
    for [(from, out), (to, _)] in federation.ways() {
        let (next, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        to.node.behave(move |_, exchange| {
            exchange.begin_stream()?;
            for n in 0..4 {
                exchange.event(&format!("event {n}"))?;
                let _ = gate.lock().unwrap().recv();
            }
            exchange.end_stream()
        });
        let mut connection = Connection::plain(out.plain).unwrap();
        connection.send(&request("/api/a2a/jsonrpc", &to.host(), &from.token(to, "s"), CALL)).unwrap();
        let head = connection.head().unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
        for n in 0..4 {
            // The node goes on only when this event is here.
            assert_eq!(
                String::from_utf8(connection.chunk().unwrap().unwrap()).unwrap(),
                format!("data: event {n}\n\n")
            );
            next.send(()).unwrap();
        }
        assert_eq!(connection.chunk().unwrap(), None);
    }
}

#[test]
fn a_client_that_takes_the_gateway_for_its_http_proxy_gets_through() {
    let federation = Federation::start();
    for [(from, out), (to, _)] in federation.ways() {
        let target = format!("http://{}/api/a2a/jsonrpc", to.host());
        let token = from.token(to, "p");
        let mut connection = Connection::plain(out.plain).unwrap();
        assert_eq!(connection.exchange(&request(&target, &to.host(), &token, CALL)).unwrap().status, 200);
        assert_arrived(&to.node.only(), from, to, &token);
        assert_eq!(to.node.only().target(), "/api/a2a/jsonrpc");
    }
}

#[test]
fn egress_serves_its_peers_alone_and_its_own_hive_alone() {
    let federation = Federation::start();
    let [(from, out), (to, _)] = federation.ways()[0];
    let get = |connection: &mut Connection, host: &str, path: &str| {
        connection.exchange(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap().status
    };
    let local = || Connection::plain(out.plain).unwrap();
    assert_eq!(get(&mut local(), "hive-rome.test", "/.well-known/x"), 421);
    assert_eq!(get(&mut local(), &from.host(), "/.well-known/x"), 421, "ingress routes are not on this listener");
    assert_eq!(get(&mut local(), &to.host(), "/api/health"), 404);
    assert_eq!(get(&mut local(), &to.host(), "/.well-known/x"), 401, "the far Hive's word");
    assert_eq!(to.node.count(), 1);
    // A partner can't call others, or us, in our name.
    let identity = to.pki.leaf(&client_leaf("gateway", &to.spiffe_id()));
    let client = crate::support::client::Client::new(&from.pki, Some(identity));
    let mut partner = client.clone().sni(Some(&from.host())).connect(out.address).unwrap();
    assert_eq!(get(&mut partner, &to.host(), "/.well-known/x"), 421);
    let mut partner = client.sni(None).connect(out.address).unwrap();
    assert_eq!(get(&mut partner, &to.host(), "/.well-known/x"), 421);
    assert_eq!((from.node.count(), to.node.count()), (0, 1));
}

#[test]
fn without_trust_in_the_caller_nothing_arrives() {
    let (oslo, paris, mut stranger) = (Operator::new("oslo"), Operator::new("paris"), Operator::new("oslo"));
    // Paris knows the ID, from another CA.
    stranger.pki = Pki::new("elsewhere");
    let into = paris.gateway(&stranger, "http1");
    let out = oslo.gateway(&paris, "http1");
    let answer = call(&out, &paris, &oslo.token(&paris, "x"), CALL);
    assert_eq!((answer.status, paris.node.count()), (502, 0), "{}", answer.text());
    into.wait_metric("hive_gateway_tls_handshakes_total", &[("listener", "front"), ("result", "unknown_ca")], 1.0);
}

/// The caller's certificate, as the called Hive is told of it.
fn shown(seen: &Recorded) -> String {
    let xfcc = seen.header("x-forwarded-client-cert").unwrap();
    xfcc.split(';').find(|part| part.starts_with("Hash=")).unwrap().to_owned()
}

#[test]
fn both_sides_rotate_while_calls_and_streams_go_on_and_withdrawn_trust_ends_them() {
    let federation = Federation::start();
    for [(from, out), (to, into)] in federation.ways() {
        assert_eq!(call(out, to, &from.token(to, "before"), CALL).status, 200);
        let before = shown(&to.node.only());
        let (next, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let hive = tokens::hive(Some(from.key.clone()));
        to.node.behave(move |request, exchange| {
            if !request.text().contains("/.well-known/stream") {
                return hive(request, exchange);
            }
            exchange.begin_stream()?;
            exchange.event("first")?;
            let _ = gate.lock().unwrap().recv();
            exchange.event("last")?;
            exchange.end_stream()
        });
        let mut stream = Connection::plain(out.plain).unwrap();
        stream.send(format!("GET /.well-known/stream HTTP/1.1\r\nHost: {}\r\n\r\n", to.host()).as_bytes()).unwrap();
        assert_eq!((stream.head().unwrap().status, stream.chunk().unwrap().is_some()), (200, true));

        from.write_material(to, out.dir());
        to.write_material(from, into.dir());
        out.reload_ok();
        into.reload_ok();
        assert_eq!(call(out, to, &from.token(to, "after"), CALL).status, 200);
        let after = shown(to.node.requests().last().unwrap());
        assert_ne!(after, before, "a connection under the old certificate was used again");
        next.send(()).unwrap();
        assert!(String::from_utf8(stream.chunk().unwrap().unwrap()).unwrap().contains("last"));
        assert_eq!(stream.chunk().unwrap(), None);

        // The called side trusts others only: a stream that runs ends, what has not come is not waited for, the connection
        // that stands is told so, another does not come about.
        let mut running = Connection::plain(out.plain).unwrap();
        running.send(format!("GET /.well-known/stream HTTP/1.1\r\nHost: {}\r\n\r\n", to.host()).as_bytes()).unwrap();
        assert_eq!((running.head().unwrap().status, running.chunk().unwrap().is_some()), (200, true));
        assert_eq!(call(out, to, &from.token(to, "beside"), CALL).status, 200);
        Pki::new("elsewhere").write_root(into.dir(), "ca");
        into.reload_ok();
        let seen = to.node.count();
        assert_eq!(call(out, to, &from.token(to, "withdrawn"), CALL).status, 401);
        while let Ok(chunk) = running.chunk() {
            assert!(chunk.is_some(), "the stream pretends to be whole");
        }
        into.wait_log(|l| l["refusal"] == "certificate_not_trusted" && l["status"] == 200);
        // Its node would have gone on.
        next.send(()).unwrap();
        assert_eq!(call(out, to, &from.token(to, "withdrawn"), CALL).status, 502);
        assert_eq!(to.node.count(), seen);
        // As it was, for the other way.
        to.write_material(from, into.dir());
        into.reload_ok();
        assert_eq!(call(out, to, &from.token(to, "again"), CALL).status, 200);
    }
}

#[test]
fn a_partner_is_told_no_secret_and_nothing_of_the_caller() {
    let (oslo, paris) = (Operator::new("oslo"), Operator::new("paris"));
    let server = server_leaf(&[&paris.host()]).uri(&paris.spiffe_id());
    let listening = Node::start_tls(&paris.pki.leaf(&server), &oslo.pki);
    paris.door.lead_to(listening.address);
    let out = oslo.gateway(&paris, "http1");
    let token = oslo.token(&paris, "one");
    assert_eq!(call(&out, &paris, &token, CALL).status, 200);
    let seen = listening.only();
    assert_eq!((seen.all("host"), seen.all("x-hive-federation-jwt")), (vec![paris.host()], vec![token]));
    let names: Vec<_> =
        seen.text().lines().skip(1).filter_map(|l| Some(l.split_once(':')?.0.to_ascii_lowercase())).collect();
    for name in &names {
        let fine = [
            "host",
            "content-type",
            "content-length",
            "x-hive-federation-jwt",
            "x-request-id",
            "traceparent",
            "connection",
        ];
        assert!(fine.contains(&name.as_str()), "{name} in\n{}", seen.text());
    }
}

#[test]
fn a_listener_serves_its_own_routes() {
    let (inner, outer) = (Node::start(), Node::start());
    let mut setup = Setup::new(&[inner.address]);
    setup.plain = Some(String::new());
    setup.upstreams += &upstream("outer", "http", &[outer.address], "");
    setup.routes = "
  - { name: out, listeners: [plain], paths: [/both, /out], methods: [GET], peers: any, upstream: outer }
  - { name: in, listeners: [front], paths: [/both, /in], methods: [GET], peers: any, upstream: hive }
  - { name: all, paths: [/all], methods: [GET], peers: any, upstream: hive }
"
    .into();
    let gateway = setup.start();
    let front = |path: &str| gateway.client("alice").get(gateway.address, path).unwrap().status;
    let plain = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n");
        Connection::plain(gateway.plain).unwrap().exchange(request.as_bytes()).unwrap().status
    };
    assert_eq!(["/both", "/in", "/out", "/all"].map(front), [200, 200, 404, 200]);
    assert_eq!(["/both", "/in", "/out", "/all"].map(plain), [200, 404, 200, 200]);
    let targets = |node: &Node| node.requests().iter().map(Recorded::target).collect::<Vec<_>>();
    assert_eq!(targets(&inner), ["/both", "/in", "/all", "/all"]);
    assert_eq!(targets(&outer), ["/both", "/out"]);
}
