//! Files in the shape of Prometheus' `file_sd`: a list of `{ targets, labels }`, in YAML or JSON. Addresses only: a name
//! would have to be asked for elsewhere. Of the labels `weight` and `priority` count; others may stand there for others.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::url;
use super::yaml_depth::is_deeper_than;
use crate::files::open_regular;
use crate::upstream::settings::NodeSettings;

/// Longest file: 4096 nodes with labels of their own take about a tenth.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A file that changes is left alone for this long: half of it may be a good file too.
const REST: Duration = Duration::from_millis(100);
/// One that does not come to rest is taken as it is after so many looks.
const LOOKS_MAX: u32 = 20;
/// Deepest nesting: what has a meaning is three deep.
const DEPTH_MAX: usize = 64;
const WEIGHT_MAX: u16 = 100;
const PRIORITY_MAX: u16 = 9;

/// What stood in a file, or why it could not be read.
pub(super) type Content = Result<Vec<u8>, String>;

/// Reads a file's nodes.
///
/// # Errors
/// The file, line and column, what is wrong there, and what to write.
pub fn read(path: &Path, tls: bool) -> Result<Vec<NodeSettings>, String> {
    judge(path, &content(path), tls)
}

fn content(path: &Path) -> Content {
    let mut bytes = Vec::new();
    let file = open_regular(path).map_err(|e| e.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("longer than {} MiB", FILE_BYTES_MAX >> 20));
    }
    Ok(bytes)
}

/// The file's content as soon as it rests; `seen` is what was judged last, if anything was.
pub(super) async fn at_rest(path: PathBuf, seen: Option<Content>) -> Content {
    let mut before = look(path.clone()).await;
    // Nothing is known yet, or nothing has changed.
    if seen.is_none_or(|seen| seen == before) {
        return before;
    }
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(REST).await;
        let now = look(path.clone()).await;
        if now == before {
            break;
        }
        before = now;
    }
    before
}

async fn look(path: PathBuf) -> Content {
    tokio::task::spawn_blocking(move || content(&path)).await.unwrap_or_else(|e| Err(e.to_string()))
}

/// What a content means, beside the thread's other tasks: a long file takes its time.
pub(super) async fn judged(path: PathBuf, content: Content, tls: bool) -> (Content, Result<Vec<NodeSettings>, String>) {
    let judge = move || {
        let found = judge(&path, &content, tls);
        (content, found)
    };
    tokio::task::spawn_blocking(judge).await.unwrap_or_else(|e| (Err(e.to_string()), Err(e.to_string())))
}

/// What a content means.
fn judge(path: &Path, content: &Content, tls: bool) -> Result<Vec<NodeSettings>, String> {
    let shown = path.display();
    let bytes = content.as_ref().map_err(|why| format!("{shown}: can't be read: {why}"))?;
    if is_deeper_than(DEPTH_MAX, bytes) {
        return Err(format!("{shown}: nested more than {DEPTH_MAX} deep; {EXAMPLE}"));
    }
    let groups: Vec<Group> = match serde_path_to_error::deserialize(serde_yaml::Deserializer::from_slice(bytes)) {
        Ok(groups) => groups,
        Err(error) => {
            let at = error.path().to_string();
            let inner = error.into_inner();
            let place = inner.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
            return Err(format!("{shown}{place}: {}", remedy(&at, &inner.to_string())));
        }
    };
    let mut nodes: Vec<NodeSettings> = Vec::new();
    let mut known: HashMap<SocketAddr, usize> = HashMap::new();
    for (i, group) in groups.iter().enumerate() {
        for Target(address) in &group.targets {
            if let Some(first) = known.insert(*address, i) {
                return Err(format!("{shown}: [{i}].targets: {address} stands in [{first}] already; leave one out"));
            }
            nodes.push(NodeSettings {
                url: url(*address, tls),
                address: *address,
                host: address.to_string(),
                tls,
                weight: group.labels.weight,
                priority: group.labels.priority,
            });
        }
    }
    if nodes.is_empty() {
        return Err(format!("{shown}: no target; write [{{ targets: [\"10.0.1.10:3000\"] }}]"));
    }
    Ok(nodes)
}

/// What to write.
const EXAMPLE: &str = "the file is a list such as [{ targets: [\"10.0.1.10:3000\"], labels: { weight: \"2\" } }]";

/// The message without the place, which stands before it, and with the path.
fn remedy(at: &str, message: &str) -> String {
    let bare = message.rsplit_once(" at line ").map_or(message, |(bare, _)| bare);
    // The parser has a path of its own for some errors.
    let bare = bare.strip_prefix('.').unwrap_or(bare);
    let bare = bare.strip_prefix(at).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(bare);
    let place = if at == "." { String::new() } else { format!("{at}: ") };
    // What says itself what to write needs no example.
    if bare.contains("; write") { format!("{place}{bare}") } else { format!("{place}{bare}; {EXAMPLE}") }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    targets: Vec<Target>,
    #[serde(default)]
    labels: Labels,
}

/// `address:port`
struct Target(SocketAddr);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Target;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an address and a port in quotes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
                let wrong = || E::custom(format!("{text:?} is not an address with a port; {}", instead(text)));
                let address: SocketAddr = text.parse().map_err(|_| wrong())?;
                // Two ways to write one address make one node.
                let ip = address.ip().to_canonical();
                let address = SocketAddr::new(ip, address.port());
                if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
                    return Err(wrong());
                }
                Ok(Target(address))
            }
        }
        d.deserialize_str(V)
    }
}

fn instead(text: &str) -> &'static str {
    if text.contains("://") {
        "write it without a scheme, such as \"10.0.1.10:3000\": https:// follows from the upstream's tls"
    } else if text
        .rsplit_once(':')
        .is_some_and(|(host, _)| host.bytes().any(|b| b.is_ascii_alphabetic()) && !host.contains(':'))
    {
        "write one such as \"10.0.1.10:3000\": names are looked up by discovery.dns and discovery.srv only"
    } else {
        "write one such as \"10.0.1.10:3000\" or \"[fd00::10]:3000\""
    }
}

struct Labels {
    weight: u16,
    priority: u8,
}

impl Default for Labels {
    fn default() -> Self {
        Self { weight: 1, priority: 0 }
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Labels;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("labels")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = Labels::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "weight" => labels.weight = map.next_value::<Number<1, WEIGHT_MAX>>()?.0,
                        "priority" => {
                            let Number(priority) = map.next_value::<Number<0, PRIORITY_MAX>>()?;
                            labels.priority = u8::try_from(priority).unwrap_or(u8::MAX);
                        }
                        // Somebody else's.
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(labels)
            }
        }
        d.deserialize_map(V)
    }
}

/// A number, in quotes as Prometheus wants its labels, or without.
struct Number<const LEAST: u16, const MOST: u16>(u16);

impl<'de, const LEAST: u16, const MOST: u16> Deserialize<'de> for Number<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<const LEAST: u16, const MOST: u16>;
        impl<const LEAST: u16, const MOST: u16> V<LEAST, MOST> {
            fn take<E: de::Error>(number: Option<u64>, shown: impl fmt::Display) -> Result<Number<LEAST, MOST>, E> {
                let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| (LEAST..=MOST).contains(n));
                let wrong = || E::custom(format!("{shown} is out of range; write {LEAST} to {MOST}"));
                number.map(Number).ok_or_else(wrong)
            }
        }
        impl<const LEAST: u16, const MOST: u16> Visitor<'_> for V<LEAST, MOST> {
            type Value = Number<LEAST, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "{LEAST} to {MOST}")
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Self::Value, E> {
                Self::take(Some(n), n)
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Self::Value, E> {
                Self::take(u64::try_from(n).ok(), n)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Self::take(text.parse().ok(), format_args!("{text:?}"))
            }
        }
        d.deserialize_any(V::<LEAST, MOST>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<(String, u16, u8)>, String> {
        let nodes = judge(Path::new("n.yaml"), &Ok(text.as_bytes().to_vec()), false)?;
        Ok(nodes.into_iter().map(|n| (n.url, n.weight, n.priority)).collect())
    }

    #[test]
    fn what_prometheus_reads_is_read() {
        let two = [("http://10.0.1.10:3000".to_owned(), 2, 0), ("http://[fd00::1]:3000".to_owned(), 1, 3)];
        let yaml = "- targets: ['10.0.1.10:3000']\n  labels:\n    weight: '2'\n    zone: a\n- targets: ['[fd00::1]:3000']\n  \
                    labels: { priority: 3, __meta: true }\n";
        assert_eq!(of(yaml).unwrap(), two);
        let json = r#"[{"targets":["10.0.1.10:3000"],"labels":{"weight":"2","zone":"a"}},
                       {"labels":{"priority":"3"},"targets":["[fd00::1]:3000"]}]"#;
        assert_eq!(of(json).unwrap(), two);
        assert_eq!(of("[{ targets: [] }, { targets: ['10.0.1.10:1', '10.0.1.11:1'] }]").unwrap().len(), 2);
    }

    #[test]
    fn what_is_nested_deep_costs_no_time() {
        for unit in ["{\"a\":", "[", "[{a: ", "{\"a]\":", "[{a: it's\n, b: ", "[{it's: ", "[{a: b'c, 'd': ", "- "] {
            let begun = std::time::Instant::now();
            let why = of(&unit.repeat(500_000 / unit.len())).unwrap_err();
            assert!(why.starts_with("n.yaml:") && why.contains("the file is a list such as"), "{unit}: {why}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{unit}: {:?}", begun.elapsed());
        }
        let full = "[{targets: ['10.0.1.10:1'], labels: {a: 'it[[[[', b: \"[{{{\\\"[[[\"}}";
        let many: String = (2..2000).map(|port| format!(", {{targets: ['10.0.1.10:{port}']}}")).collect();
        assert_eq!(of(&format!("{full}{many}]")).unwrap().len(), 1999);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_what_to_write() {
        for (text, said) in [
            (
                "- targets: ['10.0.1.10:3000']\n- targets: ['10.0.1.11']\n",
                "n.yaml:2:13: [1].targets[0]: \"10.0.1.11\" is not",
            ),
            ("- targets: ['http://10.0.1.10:3000']", "without a scheme"),
            ("- targets: ['hive-0:3000']", "names are looked up by discovery.dns"),
            ("- targets: ['0.0.0.0:3000']", "write one such as \"10.0.1.10:3000\" or"),
            (
                "- targets: ['10.0.1.10:3000']\n  labels: { weight: '101' }",
                ":2:21: [0].labels.weight: \"101\" is out of range; write 1 to 100",
            ),
            ("- targets: ['10.0.1.10:3000']\n  labels: { priority: 10 }", "10 is out of range; write 0 to 9"),
            ("- targets: ['10.0.1.10:3000']\n  lables: {}", "unknown field `lables`"),
            ("- labels: {}", "missing field `targets`"),
            ("targets: ['10.0.1.10:3000']", "the file is a list such as [{ targets:"),
            ("- targets: ['10.0.1.10:3000'", "n.yaml:"),
            ("- targets: ['10.0.1.10:1', '10.0.1.10:1']", "10.0.1.10:1 stands in [0] already; leave one out"),
            ("- targets: ['10.0.1.10:1', '[::ffff:10.0.1.10]:1']", "10.0.1.10:1 stands in [0] already; leave one out"),
            ("", "no target; write ["),
            ("[]", "no target; write ["),
        ] {
            let why = of(text).unwrap_err();
            assert!(why.starts_with("n.yaml:") && why.contains(said), "{text}: {why}");
        }
        let missing = read(Path::new("/no/such/file"), false).unwrap_err();
        assert!(missing.starts_with("/no/such/file: can't be read: "), "{missing}");
    }
}
