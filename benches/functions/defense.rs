//! What keeping requests out costs: deny lists, request rules and, with the feature `waf`, the core rules.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group};
use hive_gateway::names::RuleName;
use hive_gateway::observe::Metrics;
use hive_gateway::policy::deny::{AddressList, Networks};
use hive_gateway::policy::rules::{Action, Facts, Pattern, Rule, Rules, Test};
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

fn deny(c: &mut Criterion) {
    for count in [10, 1_000_000_u32] {
        let networks = (0..count).map(|n| IpNet::from(IpAddr::from(Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1)))));
        let wide = ["198.18.0.0/15", "203.0.113.0/24"].map(|n| n.parse::<IpNet>().unwrap());
        let list = AddressList { deny: networks.chain(wide).collect::<Networks>(), allow: Networks::default() };
        let address: IpAddr = "192.0.2.77".parse().unwrap();
        c.bench_function(&format!("deny/{count} entries"), |b| b.iter(|| list.denies(black_box(address))));
    }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "federation.example.com"),
        ("user-agent", "a2a-sdk/1.3.0 python-httpx/0.27.0"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("a2a-version", "0.3"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    headers
}

fn rules(c: &mut Criterion) {
    let rule = |name: &str, test| Rule { name: RuleName::new(name).unwrap(), test, action: Action::Deny };
    let agents = ["sqlmap", "nikto", "masscan", "nmap", "zgrab"].map(String::from).to_vec();
    let all = [
        rule("scanners", Test::UserAgent(agents)),
        rule("dotfiles", Test::Path(Pattern::parse(r"/\.(?:git|env|svn)").unwrap())),
        rule("debug", Test::Query(Pattern::parse("(?:^|&)debug=").unwrap())),
        rule("many", Test::MaxHeaders(50)),
        rule("large", Test::MaxHeaderBytes(8192)),
        rule("long", Test::MaxUriBytes(2048)),
    ];
    let (rules, headers) = (Rules::build("route/a2a", &all, &Metrics::new()).unwrap(), headers());
    let facts = Facts { target: b"/api/a2a/jsonrpc", headers: &headers };
    c.bench_function("request rules/six, none met", |b| b.iter(|| rules.check(black_box(&facts), |_| {})));
}

/// What all threads of this process have used.
#[cfg(feature = "waf")]
fn processor() -> std::time::Duration {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let micros = [used.user_time(), used.system_time()].map(|t| t.tv_sec() * 1_000_000 + t.tv_usec());
    std::time::Duration::from_micros(u64::try_from(micros.iter().sum::<i64>()).unwrap())
}

#[cfg(feature = "waf")]
fn waf(c: &mut Criterion) {
    use std::path::Path;
    use std::time::Duration;

    use hive_gateway::observe::WafVerdict;
    use hive_gateway::policy::waf::{Entry, Mode, Request, Settings, Waf};

    let files = [
        "/etc/modsecurity/crs/crs-setup.conf",
        "/usr/share/modsecurity-crs/rules",
        concat!(env!("CARGO_MANIFEST_DIR"), "/conf/waf-a2a.conf"),
    ];
    let settings = Settings {
        entries: files.iter().map(|f| Entry::of(Path::new(f)).unwrap()).collect(),
        mode: Mode::Blocking,
        anomaly_threshold: 5,
        body_limit: 1 << 20,
        timeout: Duration::from_secs(60),
    };
    let waf = Waf::load(settings).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (name, words) in [("300 bytes", 8), ("16 KiB", 3_200)] {
        let text = "word ".repeat(words);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":"7f3c","method":"message/send","params":{{"message":{{"kind":"message","role":"user","messageId":"0192f3a1-9f52-7aa0-8e8e-2f1c9a4b7d10","parts":[{{"kind":"text","text":"{text}"}}]}},"configuration":{{"acceptedOutputModes":["text/plain"]}}}}}}"#
        );
        let body = bytes::Bytes::from(body);
        c.bench_function(&format!("waf/core rules, {name}"), |b| {
            // The processor's time of all threads: the engine's are not this one, and a busy machine lets them wait.
            b.iter_custom(|times| {
                let begun = processor();
                for _ in 0..times {
                    let judgement = runtime.block_on(waf.judge(Request {
                        client: "192.0.2.77:4444".parse().unwrap(),
                        certificate: None,
                        method: http::Method::POST,
                        target: b"/api/a2a/jsonrpc".to_vec(),
                        http2: false,
                        host: "federation.example.com".into(),
                        headers: headers(),
                        body: body.clone(),
                    }));
                    assert_eq!(judgement.verdict, WafVerdict::Passed);
                }
                processor() - begun
            });
        });
    }
}

#[cfg(not(feature = "waf"))]
fn waf(_: &mut Criterion) {}

criterion_group!(benches, deny, rules, waf);
