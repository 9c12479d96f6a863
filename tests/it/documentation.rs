//! `conf/observability.md` says what the code does: its tables are made of the code's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use hive_gateway::observe::definitions::{Kind, all_definitions};
use hive_gateway::observe::fields::Field;
use hive_gateway::observe::{ConnectionDenied, Extras, HandshakeRecord, HandshakeResult, HandshakesOmitted, WafMatch};

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conf/observability.md")
}

/// First cells of the rows of the table whose head begins so, without their backquotes.
#[cfg(feature = "otlp")]
pub fn first_column(head: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(file()).unwrap();
    let rows = text.lines().skip_while(|l| !l.starts_with(head)).skip(2).take_while(|l| l.starts_with('|'));
    rows.map(|row| row.split('|').nth(1).unwrap().trim().trim_matches('`').to_owned()).collect()
}

/// Compares what stands between the marks of `name` with `table`, or with UPDATE_DOCS writes it there.
fn compare(name: &str, table: &str) {
    let text = fs::read_to_string(file()).unwrap();
    let (before, rest) = text.split_once(&format!("<!-- begin: {name} -->\n")).unwrap();
    let (now, after) = rest.split_once("<!-- end -->").unwrap();
    if now == table {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "the table of {name} is not that of the code; run UPDATE_DOCS=1 cargo test --test it -- documentation:: --test-threads 1"
    );
    fs::write(file(), format!("{before}<!-- begin: {name} -->\n{table}<!-- end -->{after}")).unwrap();
}

#[test]
fn the_table_of_log_fields_is_that_of_the_code() {
    let rows = Field::ALL.iter().map(|field| format!("| `{}` | {} |\n", field.name(), field.help()));
    compare("fields", &format!("| field | says |\n|---|---|\n{}", rows.collect::<String>()));
}

#[test]
fn the_table_of_metrics_is_that_of_the_code() {
    let rows = all_definitions().map(|d| {
        let kind = match d.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels: Vec<_> = d.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {kind} | {} | {} |\n", d.name, labels.join(", "), d.help)
    });
    compare("metrics", &format!("| metric | kind | labels | says |\n|---|---|---|---|\n{}", rows.collect::<String>()));
}

#[test]
fn the_table_of_what_is_no_request_has_the_fields_that_are_written() {
    let (mut failed, mut omitted) = (Vec::new(), Vec::new());
    HandshakeRecord {
        time: UNIX_EPOCH,
        listener: "l",
        client: [127, 0, 0, 1].into(),
        result: HandshakeResult::Expired,
        detail: Some("d"),
        sni: Some("s"),
        tls_version: Some("v"),
        subject: Some("s"),
        issuer: Some("i"),
        duration: Duration::ZERO,
    }
    .write_json(&Extras::default(), &mut failed);
    HandshakesOmitted { time: UNIX_EPOCH, listener: "l", count: 1 }.write_json(&mut omitted);
    let (mut denied, mut matched, client) = (Vec::new(), Vec::new(), [127, 0, 0, 1].into());
    ConnectionDenied { time: UNIX_EPOCH, listener: "l", client }.write_json(&Extras::default(), &mut denied);
    WafMatch {
        time: UNIX_EPOCH,
        request_id: Some("r"),
        listener: "l",
        client,
        route: "r",
        rule: 1,
        message: b"m",
        severity: 1,
        score: 1,
        verdict: "blocked",
    }
    .write_json(&Extras::default(), &mut matched);
    let keys = |line: &[u8]| {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).unwrap();
        line.keys().cloned().collect::<BTreeSet<_>>()
    };
    let text = fs::read_to_string(file()).unwrap();
    let table = text.split_once("What is no request has lines of its own").unwrap().1;
    let rows = table.lines().skip_while(|l| !l.starts_with("| field")).skip(2).take_while(|l| l.starts_with('|'));
    let documented: BTreeSet<_> = rows.map(|r| r.split('`').nth(1).unwrap().to_owned()).collect();
    let written: BTreeSet<_> = [failed, omitted, denied, matched].iter().flat_map(|line| keys(line)).collect();
    assert_eq!(documented, written);
}

const PAGES: [&str; 4] = ["README.md", "conf/operators.md", "conf/contributors.md", "conf/observability.md"];

fn page(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let named = regex::Regex::new(r"`((?:src|tests|conf|benches|scripts)/[A-Za-z0-9_./-]+)`").unwrap();
    let linked = regex::Regex::new(r"\]\(([^)#:]+)\)").unwrap();
    let mut missing = Vec::new();
    for name in PAGES {
        let text = page(name);
        let at = root.join(name).parent().unwrap().to_owned();
        let files = named.captures_iter(&text).map(|found| root.join(found[1].replace("NAME.rs", "mod.rs")));
        let links = linked.captures_iter(&text).map(|found| at.join(&found[1]));
        missing
            .extend(files.chain(links).filter(|file| !file.exists()).map(|file| format!("{name}: {}", file.display())));
    }
    assert!(missing.is_empty(), "{missing:#?}");
    // The modules of the integration tests, which the table of threats names by their file alone.
    let text = page("conf/operators.md");
    let threats = text.split_once("## Threats").unwrap().1.split_once("\n## ").unwrap().0;
    for found in regex::Regex::new(r"`([a-z_0-9]+\.rs)`").unwrap().captures_iter(threats) {
        assert!(root.join("tests/it").join(&found[1]).exists(), "{}", &found[1]);
    }
}

#[test]
fn what_a_page_calls_a_metric_or_an_alert_is_one() {
    let series: BTreeSet<_> = all_definitions().map(|d| d.name).collect();
    let rules = page("conf/prometheus-rules.yaml");
    let metric = regex::Regex::new(r"`(hive_gateway_[a-z_]*[a-z])[`{]").unwrap();
    let alert = regex::Regex::new(r"\bHiveGateway[A-Z][A-Za-z]+").unwrap();
    for name in PAGES {
        for found in metric.captures_iter(&page(name)) {
            assert!(series.contains(&found[1]), "{name}: {}", &found[1]);
        }
        for found in alert.find_iter(&page(name)) {
            assert!(rules.contains(&format!("alert: {}\n", found.as_str())), "{name}: {}", found.as_str());
        }
    }
}

#[test]
fn the_picture_of_the_tree_has_every_module_in_its_order() {
    let lib = page("src/lib.rs");
    let modules: Vec<_> = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let text = page("conf/contributors.md");
    let tree = text.split_once("src/\n").unwrap().1.split_once("tests/\n").unwrap().0;
    let mut rest = tree;
    for module in modules {
        let at = [format!(" {module}.rs"), format!(" {module}/")].into_iter().filter_map(|name| rest.find(&name)).min();
        rest = &rest[at.unwrap_or_else(|| panic!("{module} is not in the picture, or not at its place"))..];
    }
}
