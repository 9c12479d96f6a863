//! The files of `conf/` load, each bad file fails as it says itself, and the reference leaves nothing out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use hive_gateway::cli::pki::{CertificateSpec, CrlSpec, Development, Validity};
use hive_gateway::config::{self, ConfigError, Loaded, Surroundings};

const NOW: i64 = 1_800_000_000;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).unwrap();
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    // Another program's.
    files.retain(|f| !f.ends_with("prometheus-rules.yaml"));
    files.sort();
    assert!(!files.is_empty(), "no file in {directory}");
    files
}

fn around(read_files: bool) -> Surroundings<'static> {
    Surroundings { env: &|_| None, addresses: &no_names, now_unix: NOW, read_files, issued: None }
}

fn no_names(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
    Err(io::Error::other("no names in tests"))
}

fn shown(errors: &[ConfigError]) -> String {
    errors.iter().map(|e| format!("  {e}\n")).collect()
}

/// `14:17: …`: an expectation that names a place.
fn has_place(expectation: &str) -> bool {
    let mut numbers = expectation.split(':').take(2);
    numbers.all(|n| n.parse::<u32>().is_ok()) && expectation.matches(':').count() >= 2
}

#[test]
fn each_bad_file_fails_as_it_says() {
    let mut wrong = String::new();
    // A program without the feature says another thing of `tracing`.
    let says_so = |file: &PathBuf| cfg!(feature = "otlp") || !file.to_string_lossy().contains("/tracing");
    for file in yaml_files("tests/fixtures/config/bad").into_iter().filter(says_so) {
        let text = fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        let expected: Vec<_> =
            first.strip_prefix("# expect: ").expect("a first line with what to expect").split(" | ").collect();
        let errors = config::load_text(&file, &text, &around(false)).err().unwrap_or_default();
        let said = shown(&errors);
        let places = expected.iter().filter(|e| has_place(e)).count();
        if places == 0 || places != errors.len() || !expected.iter().all(|e| said.contains(e)) {
            wrong.push_str(&format!("{}\n expected {expected:#?}\n said\n{said}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A directory that is gone after the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hive-gateway-conf-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A directory with certificates, secrets and directories as the files of `conf/` name them.
fn furnished() -> (Temporary, PathBuf) {
    let directory = Temporary::new();
    let at = directory.0.as_path();
    for name in ["tls", "secrets", "log", "schemas", "state"] {
        fs::create_dir(at.join(name)).unwrap();
    }
    fs::write(at.join("schemas/tasks-get.json"), r#"{ "required": ["id"] }"#).unwrap();
    let validity = Validity::hours_from(NOW, 24);
    let pki = Development::new("Test", validity).unwrap();
    fs::write(at.join("tls/mesh-ca.pem"), pki.bundle_pem().unwrap()).unwrap();
    fs::write(at.join("tls/hive-ca.pem"), pki.bundle_pem().unwrap()).unwrap();
    let crl = CrlSpec::new(NOW - 60, NOW + 3600).issue_pem(&pki.intermediate).unwrap();
    for name in ["mesh", "hive"] {
        fs::write(at.join(format!("tls/{name}.crl")), &crl).unwrap();
    }
    let server = CertificateSpec::server("federation", validity).dns("federation.example.com");
    let client = CertificateSpec::client("gateway", validity).uri("spiffe://mesh.example/gateway");
    for (name, spec) in [("server", server), ("gateway", client)] {
        let issued = spec.issue(&pki.intermediate).unwrap();
        fs::write(at.join(format!("tls/{name}.pem")), &issued.chain_pem).unwrap();
        write_private(&at.join(format!("tls/{name}.key")), &issued.key_pem);
    }
    write_private(&at.join("secrets/gateway"), b"0123456789abcdef0123456789abcdef\n");
    write_private(&at.join("secrets/redis"), b"geheim\n");
    write_private(&at.join("secrets/federation"), b"0123456789abcdef0123456789abcdef\n");
    write_private(&at.join("secrets/admin"), b"0123456789abcdef\r\n");
    fs::copy(root().join("conf/waf-a2a.conf"), at.join("waf-a2a.conf")).unwrap();
    fs::write(at.join("nodes.yaml"), "- targets: ['10.0.1.10:3000']\n").unwrap();
    fs::write(at.join("deny.txt"), "# a feed\n203.0.113.0/24\n").unwrap();
    let base = at.to_owned();
    (directory, base)
}

fn write_private(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn load_furnished(file: &Path, base: &Path, change: impl Fn(String) -> String) -> Result<Loaded, Vec<ConfigError>> {
    let mut text = change(fs::read_to_string(file).unwrap());
    if cfg!(not(feature = "otlp"))
        && let Some(at) = text.find("\ntracing:\n")
    {
        let end = text[at..].find("\n\n").map_or(text.len(), |length| at + length);
        text.replace_range(at..end, "\n");
    }
    if !cfg!(feature = "waf") {
        // This build has none, and says so; each stands in a line of its own.
        text = text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with("waf: ")).collect();
    }
    config::load_text(&base.join(file.file_name().unwrap()), &text, &around(true))
}

#[test]
fn every_file_of_conf_loads_without_a_warning() {
    let (_directory, base) = furnished();
    for file in yaml_files("conf") {
        match load_furnished(&file, &base, |text| text) {
            Ok(loaded) => assert!(loaded.warnings.is_empty(), "{}\n{}", file.display(), shown(&loaded.warnings)),
            Err(errors) => panic!("{}\n{}", file.display(), shown(&errors)),
        }
    }
}

#[test]
fn secrets_come_from_their_files_and_are_never_shown() {
    let (_directory, base) = furnished();
    let loaded = load_furnished(&root().join("conf/reference.yaml"), &base, |text| text).unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    assert_eq!(loaded.config.hive.gateway_auth.as_ref().unwrap().expose(), secret);
    assert_eq!(loaded.config.admin.bearer.as_ref().unwrap().expose(), "0123456789abcdef");
    assert!(!format!("{loaded:?}").contains("0123456789abcdef"));
}

#[test]
fn a_secret_that_everybody_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, base) = furnished();
    let secret = base.join("secrets/gateway");
    let warned = |mode| {
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        shown(&load_furnished(&root().join("conf/reference.yaml"), &base, |text| text).unwrap().warnings)
    };
    let said = warned(0o644);
    assert!(said.contains("hive.gateway_auth_secret_file: ") && said.contains("(mode 0644); use 0600"), "{said}");
    assert_eq!((warned(0o600), warned(0o640)), (String::new(), String::new()));
}

#[test]
fn wrong_files_are_found_where_they_are_named() {
    let (_directory, base) = furnished();
    let file = root().join("conf/gateway.yaml");
    fs::write(base.join("tls/empty"), "").unwrap();
    let wrong = |from: &str, to: &str| {
        let errors = load_furnished(&file, &base, |text| text.replace(from, to)).err().unwrap_or_default();
        assert_eq!(errors.len(), 1, "{from} {to}\n{}", shown(&errors));
        let place = errors[0].place.unwrap();
        format!("{place} {}: {}", errors[0].path, errors[0].message)
    };
    let other_key = wrong("key: tls/server.key", "key: tls/gateway.key");
    assert!(other_key.starts_with("7:51 listeners[0].tls.certificates[0].key: "), "{other_key}");
    let missing = wrong("cert: tls/server.pem", "cert: tls/none.pem");
    assert!(
        missing.starts_with("7:30 listeners[0].tls.certificates[0].cert: ") && missing.contains("tls/none.pem"),
        "{missing}"
    );
    let empty = wrong("tls/mesh-ca.pem", "tls/empty");
    assert!(empty.starts_with("8:26 listeners[0].tls.client_auth.ca: "), "{empty}");
}

#[test]
fn an_expired_certificate_is_found() {
    let (_directory, base) = furnished();
    let text = fs::read_to_string(root().join("conf/gateway.yaml")).unwrap();
    let later = Surroundings { now_unix: NOW + 10 * 24 * 3600, ..around(true) };
    let errors = config::load_text(&base.join("gateway.yaml"), &text, &later).err().unwrap();
    let said = shown(&errors);
    assert!(said.contains(":7:30: listeners[0].tls.certificates[0].cert: ") && said.contains("expired"), "{said}");
}

/// Every key that `config::file` knows, as `listeners[].tls.certificates[].cert`, read from its source.
fn keys_of_source() -> BTreeSet<String> {
    let mut source = fs::read_to_string(root().join("src/config/file.rs")).unwrap();
    for block in fs::read_dir(root().join("src/config/file")).unwrap() {
        source += &fs::read_to_string(block.unwrap().path()).unwrap();
    }
    let mut keys = BTreeSet::new();
    collect(&source, "File", "", &mut keys);
    keys
}

fn collect(source: &str, structure: &str, at: &str, keys: &mut BTreeSet<String>) {
    let Some((_, rest)) = source.split_once(&format!("pub struct {structure} {{")) else { return };
    let body = rest.split_once("\n}").unwrap().0;
    for field in body.lines().filter_map(|l| l.trim().strip_prefix("pub ")) {
        let (name, kind) = field.trim_end_matches(',').split_once(": ").unwrap();
        let bare = kind.trim_start_matches("Option<").trim_start_matches("Vec<").trim_end_matches('>');
        let dot = if at.is_empty() { "" } else { "." };
        keys.insert(format!("{at}{dot}{name}"));
        let list = if kind.contains("Vec<") { "[]" } else { "" };
        collect(source, bare, &format!("{at}{dot}{name}{list}"), keys);
    }
}

/// Every key of a YAML file, also those of one line that are commented out.
fn keys_of_reference() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("conf/reference.yaml")).unwrap();
    let mut keys = BTreeSet::new();
    // The blocks around a line, with their indentation; the commented keys stand in no list.
    let mut blocks: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if let Some((key, _)) = line.trim().strip_prefix("# ").and_then(|l| l.split_once(": ${")) {
            let around = blocks.iter().filter(|(i, _)| *i < indent).map(|(_, block)| *block);
            keys.insert(around.chain([key]).collect::<Vec<_>>().join("."));
        } else if let Some((key, _)) = line.trim().split_once(':').filter(|(key, _)| !key.starts_with('#')) {
            blocks.retain(|(i, _)| *i < indent);
            blocks.push((indent, key));
        }
    }
    walk(&serde_yaml::from_str(&text).unwrap(), "", &mut keys);
    keys
}

fn walk(value: &serde_yaml::Value, at: &str, keys: &mut BTreeSet<String>) {
    match value {
        serde_yaml::Value::Sequence(list) => list.iter().for_each(|v| walk(v, &format!("{at}[]"), keys)),
        serde_yaml::Value::Mapping(map) => {
            for (key, value) in map {
                let path = format!("{at}{}{}", if at.is_empty() { "" } else { "." }, key.as_str().unwrap());
                keys.insert(path.clone());
                walk(value, &path, keys);
            }
        }
        _ => {}
    }
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let (source, reference) = (keys_of_source(), keys_of_reference());
    assert!(source.len() > 70, "{source:?}");
    assert_eq!(source.difference(&reference).collect::<Vec<_>>(), Vec::<&String>::new(), "not in reference.yaml");
    assert_eq!(reference.difference(&source).collect::<Vec<_>>(), Vec::<&String>::new(), "not in file.rs");
}
