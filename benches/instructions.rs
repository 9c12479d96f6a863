//! Instructions that the gateway executes for a request: what tells a regression on a machine whose times can't be trusted.
//!
//! `cargo bench --bench instructions` runs a whole gateway under `valgrind --tool=callgrind` (Debian: `valgrind`), sends it a
//! fixed number of requests of each kind, and compares with `benches/instructions.txt`: more than 5 % beyond what stands
//! there fails. `UPDATE=1` writes it anew; do that on the commit before yours if your compiler or processor is not the one
//! that the file names. It counts what runs outside the kernel, in all threads.
// A bench that can't go on ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod gateway;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gateway::{CALL, Gateway, H1, Policies, h1_request, h2_call};

/// A route and a listener without policies that can be left out.
const NO_POLICIES: [&str; 2] = ["peers: any", ""];
/// And with all of them but the firewall: who calls what, how often and in which form.
const ALL_POLICIES: [&str; 2] = [
    "peers: [load], json_rpc: { methods: [message/send, \"tasks/*\"], notifications: reject, params_limit: 64KiB }, rate_limits: \
     [{ per: peer, rate: 1000000/s, burst: 1000000 }, { per: [peer, method], rate: 1000000/s, burst: 1000000 }]",
    "rate_limits: [{ per: address, rate: 1000000/s, burst: 1000000 }]
    deny: [198.51.100.0/24, \"2001:db8:bad::/48\"]
    request_rules:
      - { name: scanners, user_agent: [sqlmap, nikto, masscan, nmap, zgrab] }
      - { name: dotfiles, path: '/\\.(?:git|env|svn)' }
      - { name: debug, query: '(?:^|&)debug=' }
      - { name: many-headers, max_headers: 50 }
      - { name: large-header, max_header_bytes: 8KiB }
      - { name: long-uri, max_uri_bytes: 2KiB }",
];

/// Beyond it a count is a regression, percent.
const MORE_MAX: f64 = 5.0;
const CONNECTIONS: usize = 4;
const REQUESTS: usize = 400;
const HANDSHAKES: usize = 40;

/// The work that is counted, and for how many requests.
type Counted = Vec<(&'static str, f64)>;

fn callgrind_control(gateway: &Gateway, what: &str) {
    let done = Command::new("callgrind_control").args([what, &gateway.child.id().to_string()]).output().unwrap();
    assert!(done.status.success(), "callgrind_control {what}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The total of the newest dump.
fn newest_total(directory: &Path) -> f64 {
    let number = |path: &PathBuf| path.extension()?.to_str()?.parse::<u32>().ok();
    let dumps = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let newest = dumps.filter(|p| p.to_string_lossy().contains("callgrind.out")).max_by_key(number).expect("no dump");
    let text = std::fs::read_to_string(newest).unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: "))).unwrap();
    total.trim().parse().unwrap()
}

/// Counts what `work` costs, for each of `times`.
async fn count(gateway: &Gateway, times: usize, work: impl Future<Output = ()>) -> f64 {
    callgrind_control(gateway, "--zero");
    work.await;
    callgrind_control(gateway, "--dump");
    newest_total(&gateway.directory) / times as f64
}

async fn h1(connections: &mut [H1], request: &str, times: usize) {
    for at in 0..times {
        let one = at % connections.len();
        connections[one].call(request).await;
    }
}

/// What a call of 300 bytes costs.
async fn measure_call(gateway: &Gateway, name: &'static str) -> (&'static str, f64) {
    let call = h1_request(&CALL.replace("hello", &"x".repeat(300 - (CALL.len() - "hello".len()))));
    let mut connections = [gateway.h1().await];
    h1(&mut connections, &call, 16).await;
    (name, count(gateway, REQUESTS, h1(&mut connections, &call, REQUESTS)).await)
}

async fn measure(gateway: &Gateway) -> Counted {
    let large = CALL.replace("hello", &"a line of text, ".repeat(1024));
    let (small, large) = (h1_request(CALL), h1_request(&large));
    let mut counted = Counted::new();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(gateway.h1().await);
    }
    h1(&mut connections, &small, CONNECTIONS * 4).await;
    counted.push(("http1", count(gateway, REQUESTS, h1(&mut connections, &small, REQUESTS)).await));
    h1(&mut connections, &large, CONNECTIONS * 2).await;
    counted.push(("http1_16KiB", count(gateway, REQUESTS, h1(&mut connections, &large, REQUESTS)).await));

    let send = gateway.h2().await;
    let many = |times| {
        let send = send.clone();
        async move {
            for _ in 0..times {
                h2_call(&send, CALL).await;
            }
        }
    };
    many(16).await;
    counted.push(("http2", count(gateway, REQUESTS, many(REQUESTS)).await));
    let handshakes = async {
        for _ in 0..HANDSHAKES {
            gateway.h1().await.call(&small).await;
        }
    };
    counted.push(("handshake_and_request", count(gateway, HANDSHAKES, handshakes).await));
    counted
}

fn main() {
    // `cargo test --benches` runs it too, with no intention to measure.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let found = Command::new("valgrind").arg("--version").output();
    let Ok(valgrind) = found else { panic!("valgrind is missing: apt-get install valgrind") };
    let program = ["valgrind", "--tool=callgrind", "--callgrind-out-file={directory}/callgrind.out"];
    let program: Vec<_> = program.map(str::to_owned).into_iter().chain([gateway::built()]).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let counted = runtime.block_on(async {
        let start = async |policies| Gateway::start_as(&program, &policies, Duration::from_secs(180)).await;
        // Under valgrind it is always late.
        let with = |policies| Policies { top: "overload: { enforce: false }".into(), ..policies };
        let mut counted = measure(&start(with(Policies::asked())).await).await;
        for (name, [route, listener]) in
            [("call_300_no_policies", NO_POLICIES), ("call_300_all_policies", ALL_POLICIES)]
        {
            let policies = Policies { route: route.into(), listener: listener.into(), ..Policies::asked() };
            counted.push(measure_call(&start(with(policies)).await, name).await);
        }
        counted
    });

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let before = |name: &str| {
        let line = before.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|count| count.trim().parse::<f64>().unwrap())
    };
    let mut text = format!(
        "# Instructions for each request, outside the kernel: cargo bench --bench instructions.\n# {}, {}\n",
        String::from_utf8_lossy(&valgrind.stdout).trim(),
        openssl::version::version(),
    );
    let mut worse = Vec::new();
    println!("| | before | now | |\n|---|---|---|---|");
    for (name, now) in counted {
        writeln!(text, "{name} {now:.0}").unwrap();
        let Some(before) = before(name) else {
            println!("| {name} | – | {now:.0} | |");
            continue;
        };
        let more = (now / before - 1.0) * 100.0;
        println!("| {name} | {before:.0} | {now:.0} | {more:+.1} % |");
        if more > MORE_MAX {
            worse.push(name);
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    assert!(worse.is_empty(), "more than {MORE_MAX} % beyond benches/instructions.txt: {}", worse.join(", "));
}
