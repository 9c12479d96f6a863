//! The dashboard and the rules speak of the gateway's metrics as they are, and Prometheus' own tool reads all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hive_gateway::observe::definitions::{Definition, Kind, all_definitions};
use regex::Regex;
use serde_json::Value;

use crate::support::TempDir;

/// Labels that Prometheus adds.
const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> Vec<BTreeMap<String, serde_yaml::Value>> {
    let text = fs::read_to_string(root().join("conf/prometheus-rules.yaml")).unwrap();
    let file: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let groups = file["groups"].as_sequence().unwrap().clone();
    let rules = groups.iter().flat_map(|group| group["rules"].as_sequence().unwrap().clone());
    rules.map(|rule| serde_yaml::from_value(rule).unwrap()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join("conf/grafana-dashboard.json")).unwrap()).unwrap()
}

/// Every query of the dashboard by its panel's title, with Grafana's variables filled in.
fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((panel["title"].as_str().unwrap().to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        queries.push(("annotation".to_owned(), annotation["expr"].as_str().unwrap().to_owned()));
    }
    let variables = [("$__rate_interval", "5m"), ("$job", "hive-gateway"), ("$instance", ".*"), ("$upstream", ".*")];
    for (_, query) in &mut queries {
        *query = variables.iter().fold(query.clone(), |text, (name, value)| text.replace(name, value));
        assert!(!query.contains('$'), "an unknown variable in {query}");
    }
    queries
}

fn promtool(arguments: &[&str], directory: &Path) -> (bool, String) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("promtool; scripts/setup installs it");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

/// The series that a metric has in Prometheus.
fn series() -> BTreeMap<String, &'static Definition> {
    let mut series = BTreeMap::new();
    for definition in all_definitions() {
        match definition.kind {
            Kind::Counter | Kind::Gauge => {
                series.insert(definition.name.to_owned(), definition);
            }
            Kind::Histogram(_) => {
                for end in ["_bucket", "_sum", "_count"] {
                    series.insert(format!("{}{end}", definition.name), definition);
                }
            }
        }
    }
    series
}

/// What is wrong with the names in a query.
fn strangers(query: &str, records: &BTreeMap<String, String>) -> Vec<String> {
    let series = series();
    let selector = Regex::new(r"\b((?:hive_gateway|process)[a-z0-9_:]*|up)\b(?:\{([^}]*)\})?").unwrap();
    let label = Regex::new(r#"([a-z_]+)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*""#).unwrap();
    let mut wrong = Vec::new();
    for found in selector.captures_iter(query) {
        let name = &found[1];
        let known: Vec<&str> = match series.get(name) {
            Some(definition) => definition.labels.iter().copied().chain(OF_PROMETHEUS).collect(),
            None if name == "up" || records.contains_key(name) => OF_PROMETHEUS.to_vec(),
            None => {
                wrong.push(format!("no metric {name} in {query}"));
                continue;
            }
        };
        for used in label.captures_iter(found.get(2).map_or("", |m| m.as_str())) {
            if !known.contains(&&used[1]) {
                wrong.push(format!("{name} has no label {} in {query}", &used[1]));
            }
        }
    }
    // Labels that are grouped by belong to one of the query's metrics.
    let grouped = Regex::new(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)").unwrap();
    let recorded = records.iter().filter(|(name, _)| query.contains(name.as_str())).map(|(_, of)| of.as_str());
    let whole: Vec<&str> = recorded.chain([query]).collect();
    let is_named = |name: &String| whole.iter().any(|part| part.contains(name.as_str()));
    let named: Vec<_> = series.iter().filter(|(name, _)| is_named(name)).map(|(_, d)| *d).collect();
    for found in grouped.captures_iter(query) {
        for label in found[1].split(',').map(str::trim).filter(|l| !l.is_empty() && !OF_PROMETHEUS.contains(l)) {
            if !named.iter().any(|d| d.labels.contains(&label)) {
                wrong.push(format!("nothing has a label {label} in {query}"));
            }
        }
    }
    wrong
}

fn text(rule: &BTreeMap<String, serde_yaml::Value>, key: &str) -> Option<String> {
    rule.get(key).and_then(|value| value.as_str()).map(str::to_owned)
}

#[test]
fn every_metric_and_label_that_they_name_exists() {
    let records = rules().into_iter().filter_map(|rule| text(&rule, "record").zip(text(&rule, "expr")));
    let records: BTreeMap<_, _> = records.collect();
    let of_rules = rules().into_iter().map(|rule| text(&rule, "expr").unwrap());
    let mut wrong: Vec<_> = of_rules.flat_map(|query| strangers(&query, &records)).collect();
    wrong.extend(queries().iter().flat_map(|(_, query)| strangers(query, &records)));
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The check itself finds what it is there for.
    let none = BTreeMap::new();
    for bad in [
        "rate(hive_gateway_http_request_total[5m])",
        "hive_gateway_http_requests_total{route=\"a\"}",
        "sum by (node) (hive_gateway_connections)",
        "hive_gateway_waf_seconds",
    ] {
        assert_eq!(strangers(bad, &none).len(), 1, "{bad}");
    }
}

#[test]
fn promtool_reads_the_rules_and_their_unit_tests_pass() {
    let (ok, said) = promtool(&["check", "rules", "conf/prometheus-rules.yaml"], &root());
    assert!(ok, "{said}");
    let (ok, said) = promtool(&["test", "rules", "rules_test.yaml"], &root().join("tests/fixtures/prometheus"));
    assert!(ok, "{said}");
}

#[test]
fn every_alert_says_what_to_do_and_has_a_unit_test() {
    let tests = fs::read_to_string(root().join("tests/fixtures/prometheus/rules_test.yaml")).unwrap();
    let mut alerts = BTreeSet::new();
    for rule in rules() {
        let Some(name) = text(&rule, "alert") else { continue };
        assert!(alerts.insert(name.clone()), "{name} twice");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            assert!(
                rule["annotations"][annotation].as_str().is_some_and(|text| text.len() > 10),
                "{name}: {annotation}"
            );
        }
        let tested = format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\",severity=\"{severity}\"");
        assert!(tests.contains(&tested), "{name} has no unit test");
    }
    assert!(alerts.len() > 20, "{alerts:?}");
}

#[test]
fn promtool_reads_every_query_of_the_dashboard() {
    let dir = TempDir::new();
    let rules = queries()
        .into_iter()
        .enumerate()
        .map(|(i, (_, query))| serde_json::json!({ "record": format!("panel:{i}"), "expr": query }));
    let file = serde_json::json!({ "groups": [{ "name": "panels", "rules": rules.collect::<Vec<_>>() }] });
    // JSON is YAML.
    fs::write(dir.path().join("panels.yaml"), file.to_string()).unwrap();
    let (ok, said) = promtool(&["check", "rules", "panels.yaml"], dir.path());
    assert!(ok, "{said}");
    assert!(queries().len() > 50, "{}", queries().len());
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panels share an id");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let named: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["datasource", "job", "instance", "upstream"]);
    let series = series();
    let asked = Regex::new(r"label_values\(([a-z_]+)").unwrap();
    for variable in variables.iter().skip(1) {
        let query = variable["query"]["query"].as_str().unwrap();
        assert!(series.contains_key(&asked.captures(query).unwrap()[1]), "{query}");
    }
    for (i, panel) in panels.iter().enumerate() {
        let place = |panel: &Value| ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        let [x, y, w, h] = place(panel);
        assert!(x + w <= 24 && w > 0 && h > 0, "{}", panel["title"]);
        for other in &panels[..i] {
            let [ox, oy, ow, oh] = place(other);
            let apart = x >= ox + ow || ox >= x + w || y >= oy + oh || oy >= y + h;
            assert!(apart, "{} lies on {}", panel["title"], other["title"]);
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}
