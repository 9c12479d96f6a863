use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_800_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const AUDIENCE: &str = "https://federation.example.com";
const PARIS: &str = "https://hive-paris.example";

/// base64url by the alphabet of the other base64.
fn encode(bytes: &[u8]) -> String {
    let text = openssl::base64::encode_block(bytes);
    text.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

enum Key<'a> {
    Secret(&'a [u8]),
    Private(&'a PKey<Private>),
}

fn sign(key: &Key<'_>, text: &str) -> Vec<u8> {
    match key {
        Key::Secret(secret) => {
            let key = PKey::hmac(secret).unwrap();
            Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(text.as_bytes()).unwrap()
        }
        Key::Private(key) => Signer::new_without_digest(key).unwrap().sign_oneshot_to_vec(text.as_bytes()).unwrap(),
    }
}

/// A token of these texts, whatever they are.
fn raw(header: &str, claims: &str, key: &Key<'_>) -> String {
    let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
    format!("{signed}.{}", encode(&sign(key, &signed)))
}

fn shared_claims() -> Value {
    json!({ "iss": "hive-mesh-federation", "sub": "federation-peer", "aud": AUDIENCE, "jti": "one",
            "iat": NOW, "exp": NOW + 60 })
}

fn paris_claims() -> Value {
    json!({ "iss": PARIS, "aud": AUDIENCE, "jti": "one", "iat": NOW, "exp": NOW + 60 })
}

fn hs256(claims: &Value) -> String {
    raw(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string(), &Key::Secret(SECRET.as_bytes()))
}

fn public(key: &PKey<Private>) -> [u8; 32] {
    key.raw_public_key().unwrap().try_into().unwrap()
}

struct Fixture {
    paris: PKey<Private>,
    settings: Settings,
    issuers: Vec<PeerIssuer>,
}

impl Fixture {
    fn new() -> Self {
        let paris = PKey::generate_ed25519().unwrap();
        let verify = Verify {
            audience: AUDIENCE.into(),
            shared_secret: Some(Secret::new(SECRET.into())),
            shared_issuer: "hive-mesh-federation".into(),
            clock_skew: Duration::from_secs(60),
        };
        let issuers = vec![
            PeerIssuer { peer: 3, issuer: PARIS.into(), ed25519: Some(public(&paris)) },
            PeerIssuer { peer: 4, issuer: "hive-mesh-federation".into(), ed25519: None },
        ];
        Self { paris, settings: Settings { verify: Some(verify), bind_issuer: false }, issuers }
    }

    fn build(&self) -> Federation {
        Federation::new(&self.settings, &self.issuers).unwrap()
    }

    fn eddsa(&self, claims: &Value) -> String {
        raw(r#"{"alg":"EdDSA"}"#, &claims.to_string(), &Key::Private(&self.paris))
    }

    #[track_caller]
    fn assert_invalid(&self, token: &str, why: &str) {
        match self.build().check(token.as_bytes(), Some(3), NOW).verdict {
            Err(Fault::Invalid(said)) => assert!(said.contains(why), "{said}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn good_tokens_pass_and_say_who_they_are_of() {
    let fixture = Fixture::new();
    let federation = fixture.build();
    let checked = federation.check(hs256(&shared_claims()).as_bytes(), None, NOW);
    assert_eq!(checked, Checked { issuer: Some("hive-mesh-federation".into()), verdict: Ok(()) });
    for alg in ["EdDSA", "Ed25519"] {
        let header = json!({ "alg": alg, "kid": "other", "jwk": { "kty": "oct" } }).to_string();
        let token = raw(&header, &paris_claims().to_string(), &Key::Private(&fixture.paris));
        assert_eq!(federation.check(token.as_bytes(), None, NOW).issuer.as_deref(), Some(PARIS), "{alg}");
    }
}

#[test]
fn the_configuration_chooses_the_algorithm() {
    let fixture = Fixture::new();
    let claims = paris_claims().to_string();
    let public = public(&fixture.paris);
    fixture.assert_invalid(&raw(r#"{"alg":"none"}"#, &claims, &Key::Secret(b"x")), "alg is neither");
    let unsigned = format!("{}.{}.", encode(br#"{"alg":"none"}"#), encode(claims.as_bytes()));
    fixture.assert_invalid(&unsigned, "alg is neither");
    for alg in ["RS256", "ES256", "HS384", "HS512", "hs256", "eddsa", "NONE", ""] {
        let header = json!({ "alg": alg }).to_string();
        fixture.assert_invalid(&raw(&header, &claims, &Key::Secret(SECRET.as_bytes())), "alg is neither");
    }
    // The public key, which is public, as the secret of an HMAC.
    fixture.assert_invalid(&raw(r#"{"alg":"HS256"}"#, &claims, &Key::Secret(&public)), "iss is not");
    let as_shared = raw(r#"{"alg":"HS256"}"#, &shared_claims().to_string(), &Key::Secret(&public));
    fixture.assert_invalid(&as_shared, "wrong signature");
    // The shared secret does not speak for a peer, nor a peer's key for the shared issuer.
    fixture.assert_invalid(&hs256(&paris_claims()), "iss is not");
    fixture.assert_invalid(&fixture.eddsa(&shared_claims()), "no peer");
    let mac_as_signature = raw(r#"{"alg":"EdDSA"}"#, &claims, &Key::Secret(SECRET.as_bytes()));
    fixture.assert_invalid(&mac_as_signature, "wrong signature");

    let mut keys_only = Fixture::new();
    keys_only.settings.verify.as_mut().unwrap().shared_secret = None;
    keys_only.assert_invalid(&hs256(&shared_claims()), "HS256 without");
    let header = r#"{"alg":"HS256"}"#;
    keys_only.assert_invalid(&raw(header, &claims, &Key::Secret(&self::public(&keys_only.paris))), "HS256 without");
}

#[test]
fn other_keys_do_not_sign() {
    let fixture = Fixture::new();
    let other = PKey::generate_ed25519().unwrap();
    let claims = paris_claims().to_string();
    fixture.assert_invalid(&raw(r#"{"alg":"EdDSA"}"#, &claims, &Key::Private(&other)), "wrong signature");
    let token = raw(r#"{"alg":"HS256"}"#, &shared_claims().to_string(), &Key::Secret(&[b'x'; 32]));
    fixture.assert_invalid(&token, "wrong signature");
    let good = fixture.eddsa(&paris_claims());
    let (signed, _) = good.rsplit_once('.').unwrap();
    for signature in ["", "AA", &encode(&[0; 63]), &encode(&[0; 64]), &encode(&[0; 65]), &encode(&[0; 32])] {
        fixture.assert_invalid(&format!("{signed}.{signature}"), "wrong signature");
    }
}

#[test]
fn claims_are_what_the_contract_says() {
    let fixture = Fixture::new();
    let with = |name: &str, value: Value| {
        let mut claims = shared_claims();
        claims[name] = value;
        hs256(&claims)
    };
    let without = |name: &str| {
        let mut claims = shared_claims();
        claims.as_object_mut().unwrap().remove(name);
        hs256(&claims)
    };
    for name in ["iss", "aud", "jti", "exp", "iat"] {
        fixture.assert_invalid(&without(name), &format!("no {name}"));
    }
    fixture.assert_invalid(&without("sub"), "sub is not");
    fixture.assert_invalid(&with("sub", "federation".into()), "sub is not");
    fixture.assert_invalid(&with("iss", "pilox-mesh-federation".into()), "iss is not");
    fixture.assert_invalid(&with("aud", "https://federation.example.com/".into()), "aud is not the");
    fixture.assert_invalid(&with("aud", json!([AUDIENCE])), "aud is not a string");
    fixture.assert_invalid(&with("aud", json!(["https://other.example", AUDIENCE])), "aud is not a string");
    fixture.assert_invalid(&with("jti", "".into()), "jti has not");
    fixture.assert_invalid(&with("jti", "é".repeat(129).into()), "jti has not");
    for (name, value) in [("exp", json!("1800000060")), ("iat", json!(null)), ("jti", json!(7)), ("nbf", json!("0"))] {
        fixture.assert_invalid(&with(name, value), "wrong type");
    }
    let good = |token: &str| fixture.build().check(token.as_bytes(), None, NOW).verdict;
    assert_eq!(good(&with("jti", "é".repeat(128).into())), Ok(()));
    assert_eq!(good(&with("nbf", json!(NOW))), Ok(()));
    assert_eq!(good(&with("exp", json!(1_800_000_000.5))), Ok(()));
    assert_eq!(good(&with("more", json!({ "iss": [1, { "iss": 2 }] }))), Ok(()));
}

#[test]
fn times_have_their_leeway_and_their_own_answer() {
    let fixture = Fixture::new();
    let federation = fixture.build();
    let at = |name: &str, time: i64| {
        let mut claims = shared_claims();
        claims[name] = time.into();
        federation.check(hs256(&claims).as_bytes(), None, NOW).verdict
    };
    assert_eq!(at("exp", NOW - 59), Ok(()));
    assert_eq!(at("exp", NOW - 60), Err(Fault::NotNow("expired")));
    assert_eq!(at("nbf", NOW + 60), Ok(()));
    assert_eq!(at("nbf", NOW + 61), Err(Fault::NotNow("not yet valid")));
    assert_eq!(at("iat", NOW + 60), Ok(()));
    assert_eq!(at("iat", NOW + 61), Err(Fault::NotNow("issued in the future")));
    // Who holds no key is not told about times.
    let mut claims = shared_claims();
    claims["exp"] = 0.into();
    let forged = raw(r#"{"alg":"HS256"}"#, &claims.to_string(), &Key::Secret(&[b'x'; 32]));
    fixture.assert_invalid(&forged, "wrong signature");
}

#[test]
fn there_is_one_spelling() {
    let fixture = Fixture::new();
    let secret = Key::Secret(SECRET.as_bytes());
    let claims = shared_claims().to_string();
    for header in [
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"HS256","a\u006cg":"none"}"#,
        r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":["HS256"]}"#,
        r#"["HS256"]"#,
        r#"{"typ":"JWT"}"#,
        "{\"alg\":\"HS256\"} x",
        "",
    ] {
        fixture.assert_invalid(&raw(header, &claims, &secret), "the header is not");
    }
    let twice = claims.replacen('{', r#"{"iss":"evil","#, 1);
    let escaped = claims.replacen('{', r#"{"\u0069ss":"evil","#, 1);
    let unknown = claims.replacen('{', r#"{"x":1,"x":2,"#, 1);
    let many = (0..70).map(|n| format!("\"m{n}\":0,")).collect::<String>();
    let many = claims.replacen('{', &format!("{{{many}"), 1);
    for claims in [&twice, &escaped, &unknown, &many, "[]", "null", "{", "{}{}", "{\"a\":\"\u{0}\"}"] {
        fixture.assert_invalid(&raw(r#"{"alg":"HS256"}"#, claims, &secret), "the claims are not");
    }
    let good = hs256(&shared_claims());
    for bad in [
        format!("{good}."),
        format!(".{good}"),
        format!("{good},{good}"),
        format!("{good} {good}"),
        format!("Bearer {good}"),
        format!("{good}="),
        format!("{good}\n"),
        good.replacen('.', "", 1),
        String::new(),
        ".".into(),
        "..".into(),
    ] {
        assert!(matches!(fixture.build().check(bad.as_bytes(), None, NOW).verdict, Err(Fault::Invalid(_))), "{bad}");
    }
    let mut claims = shared_claims();
    claims["more"] = "x".repeat(6000).into();
    fixture.assert_invalid(&hs256(&claims), "too long");
}

#[test]
fn a_bound_token_counts_on_its_own_peer_s_connection_only() {
    let mut fixture = Fixture::new();
    fixture.settings.bind_issuer = true;
    let federation = fixture.build();
    let paris = fixture.eddsa(&paris_claims());
    let verdict = |token: &str, peer| federation.check(token.as_bytes(), peer, NOW).verdict;
    assert_eq!(verdict(&paris, Some(3)), Ok(()));
    let stolen = federation.check(paris.as_bytes(), Some(4), NOW);
    assert_eq!(stolen, Checked { issuer: Some(PARIS.into()), verdict: Err(Fault::IssuerMismatch) });
    assert_eq!(verdict(&paris, Some(5)), Err(Fault::IssuerMismatch), "a peer without an issuer");
    assert_eq!(verdict(&paris, None), Err(Fault::IssuerMismatch), "no peer at all");
    assert_eq!(verdict(&hs256(&shared_claims()), Some(4)), Ok(()));
    assert_eq!(verdict(&hs256(&shared_claims()), Some(3)), Err(Fault::IssuerMismatch));
}

#[test]
fn with_pass_a_bound_token_is_read_and_not_verified() {
    let fixture = Fixture::new();
    let federation = Federation::new(&Settings { verify: None, bind_issuer: true }, &fixture.issuers).unwrap();
    let verdict = |token: &str, peer| federation.check(token.as_bytes(), peer, NOW).verdict;
    let mut claims = paris_claims();
    claims["aud"] = json!(["elsewhere"]);
    claims["exp"] = json!(0);
    let forged = raw(r#"{"alg":"RS256"}"#, &claims.to_string(), &Key::Secret(b"x"));
    assert_eq!(verdict(&forged, Some(3)), Ok(()), "Hive verifies");
    assert_eq!(verdict(&forged, Some(4)), Err(Fault::IssuerMismatch));
    assert!(matches!(verdict("a.b.c", Some(3)), Err(Fault::Invalid(_))));
    let off = Federation::new(&Settings::default(), &fixture.issuers).unwrap();
    assert!(!off.is_active());
    assert_eq!(off.check(b"anything", None, NOW), Checked { issuer: None, verdict: Ok(()) });
}

#[test]
fn one_issuer_has_one_key() {
    let mut fixture = Fixture::new();
    let same = PeerIssuer { peer: 9, ..fixture.issuers[0].clone() };
    fixture.issuers.push(same);
    assert!(Federation::new(&fixture.settings, &fixture.issuers).is_ok(), "two certificates of one node");
    let other = public(&PKey::generate_ed25519().unwrap());
    fixture.issuers.push(PeerIssuer { peer: 10, issuer: PARIS.into(), ed25519: Some(other) });
    assert!(matches!(Federation::new(&fixture.settings, &fixture.issuers), Err(KeyError::TwoKeys(_))));
    let weak = PeerIssuer { peer: 1, issuer: "x".into(), ed25519: Some([0; 32]) };
    assert!(matches!(Federation::new(&fixture.settings, &[weak]), Err(KeyError::SmallOrder)));
}

proptest! {
    #[test]
    fn no_bytes_verify_by_chance(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let federation = Fixture::new().build();
        prop_assert!(federation.check(&bytes, Some(3), NOW).verdict.is_err());
    }

    #[test]
    fn no_letters_and_dots_verify_by_chance(text in "[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,90}") {
        let federation = Fixture::new().build();
        prop_assert!(federation.check(text.as_bytes(), Some(3), NOW).verdict.is_err());
    }

    #[test]
    fn no_changed_token_verifies(
        shared in any::<bool>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), kind in 0..3u8,
    ) {
        let fixture = Fixture::new();
        let good = if shared { hs256(&shared_claims()) } else { fixture.eddsa(&paris_claims()) };
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        match kind {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            _ => _ = bytes.remove(at),
        }
        prop_assume!(bytes != good.as_bytes());
        prop_assert!(fixture.build().check(&bytes, Some(3), NOW).verdict.is_err());
    }
}

/// `cargo test --release --lib federation::tests::what_a_check_costs -- --nocapture`
#[test]
fn what_a_check_costs() {
    let fixture = Fixture::new();
    let federation = fixture.build();
    for (name, token) in [("HS256", hs256(&shared_claims())), ("Ed25519", fixture.eddsa(&paris_claims()))] {
        let rounds = if cfg!(debug_assertions) { 20 } else { 20_000 };
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            assert!(federation.check(std::hint::black_box(token.as_bytes()), Some(3), NOW).verdict.is_ok());
        }
        println!("{name}: {:?} a token of {} bytes", start.elapsed() / rounds, token.len());
    }
}
