//! Whole files, from text to [`Config`] or errors.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use super::*;

/// Good but for what a test changes.
pub(super) const GOOD: &str = r#"listeners:
  - name: main
    address: 0.0.0.0:8443
    tls:
      certificates: [{ cert: s.pem, key: s.key }]
      client_auth: { ca: ca.pem }
peers:
  - { name: paris, uri: "spiffe://mesh.example/hive/paris" }
routes:
  - name: a2a
    paths: [/api/a2a/jsonrpc]
    methods: [POST]
    peers: [paris]
    upstream: hive
upstreams:
  - name: hive
    endpoints: ["http://10.0.1.10:3000"]
"#;

fn env(name: &str) -> Option<String> {
    match name {
        "NODE" => Some("node.example".into()),
        "THREADS" => Some("3".into()),
        "GATEWAY_SECRET" => Some("0123456789abcdef0123456789abcdef".into()),
        "SHORT_SECRET" => Some("hunter2hunter2".into()),
        _ => None,
    }
}

fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match host {
        "node.example" => Ok(vec![([192, 0, 2, 1], port).into()]),
        "both.example" => Ok(vec!["[2001:db8::1]:80".parse().unwrap(), ([192, 0, 2, 2], port).into()]),
        "many.example" => Ok(vec![([192, 0, 2, 3], port).into(), ([192, 0, 2, 4], port).into()]),
        _ => Err(io::Error::other("no such host")),
    }
}

fn loaded(text: &str) -> Result<Loaded, Vec<ConfigError>> {
    let around =
        Surroundings { env: &env, addresses: &addresses, now_unix: 1_800_000_000, read_files: false, issued: None };
    load_text(Path::new("conf/g.yaml"), text, &around)
}

pub(super) fn good(text: &str) -> Loaded {
    loaded(text).unwrap_or_else(|e| panic!("{}", shown(&e)))
}

pub(super) fn shown(errors: &[ConfigError]) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

/// The errors of [`GOOD`] after a change, without the file's name.
fn wrong(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "{from}");
    errors(&GOOD.replacen(from, to, 1))
}

pub(super) fn errors(text: &str) -> Vec<String> {
    match loaded(text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(|e| e.to_string().replacen("conf/g.yaml:", "", 1)).collect(),
    }
}

/// The warnings of [`GOOD`] after a change.
pub(super) fn warned(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    shown(&good(&GOOD.replacen(from, to, 1)).warnings)
}

#[test]
fn a_small_file_is_enough() {
    let loaded = good(GOOD);
    let warnings = shown(&loaded.warnings);
    assert!(loaded.warnings.len() == 1 && warnings.contains("no revocation"), "{warnings}");
    let c = loaded.config;
    assert_eq!(c.listeners[0].limits.connections, 20_000);
    assert_eq!(c.routes[0].peers, RoutePeers::Of(vec![0]));
    assert_eq!(c.upstreams[c.routes[0].upstream].endpoints[0].address.to_string(), "10.0.1.10:3000");
    assert_eq!(c.admin.address.to_string(), "127.0.0.1:9901");
    assert_eq!(c.hash.len(), 64);
    let ca = c.listeners[0].tls.as_ref().unwrap().client_auth.ca.as_deref().unwrap();
    assert!(Path::new(ca).is_absolute() && ca.ends_with("conf/ca.pem"), "{ca}");
}

#[test]
fn the_issue_s_own_example() {
    assert_eq!(
        wrong("upstream: hive", "upstream: hvie"),
        ["14:15: routes[0].upstream: no upstream named \"hvie\"; known: hive (did you mean \"hive\"?)"]
    );
}

#[test]
fn every_error_is_told_at_once_and_in_order() {
    let text = GOOD
        .replace("0.0.0.0:8443", "0.0.0.0")
        .replace("peers: [paris]", "peers: [pari, london]\n    timeouts: { response: 300 }")
        .replace("methods: [POST]", "metods: [POST]")
        .replace("name: hive", "nme: hive")
        .replace("endpoints:", "weight: 3\n    endpoints:")
        .replace("http://10.0.1.10:3000", "http://10.0.1.10:3000/api");
    let errors = errors(&text);
    let places: Vec<_> = errors.iter().map(|e| e.split(": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    let should = [
        "3:14 listeners[0].address",
        "12:5 routes[0].metods",
        "13:13 routes[0].peers[0]",
        "13:19 routes[0].peers[1]",
        "14:27 routes[0].timeouts.response",
        "17:5 upstreams[0].nme",
        "18:5 upstreams[0].weight",
        "19:17 upstreams[0].endpoints[0]",
    ];
    assert_eq!(places, should, "{errors:#?}");
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let e = wrong("upstream: hive", "upsteam: hive");
    assert_eq!(e.len(), 1, "{e:?}");
    assert!(e[0].starts_with("14:5: routes[0].upsteam: unknown key \"upsteam\"; known: "), "{e:?}");
    assert!(e[0].ends_with("(did you mean \"upstream\"?)"), "{e:?}");
    assert!(wrong("routes:", "rutes:")[0].contains("did you mean \"routes\"?"));
    assert!(
        wrong("{ ca: ca.pem }", "{ ca: ca.pem, crls: [x] }")[0].starts_with("6:34: listeners[0].tls.client_auth.crls")
    );
    assert!(
        wrong("listeners:", "profiling: {}\nlisteners:")[0].starts_with("1:1: profiling: unknown key \"profiling\"")
    );
}

#[test]
fn a_missing_key_says_where_and_what_to_write() {
    let e = wrong("    upstream: hive\n", "");
    assert_eq!(
        e,
        ["10:5: routes[0]: the key \"upstream\" is missing; write upstream: hive, the name of one of upstreams"]
    );
    assert!(wrong("{ ca: ca.pem }", "{}")[0].starts_with("6:20: listeners[0].tls.client_auth: the key \"ca\""));
    assert!(wrong("cert: s.pem, ", "")[0].contains("\"cert\" is missing; write cert: server.pem"));
    let e = errors("");
    assert_eq!(e.len(), 3, "{e:?}");
    assert!(e.iter().all(|e| e.contains("is missing; write ")), "{e:?}");
    assert_eq!(errors("# nothing\n").len(), 3);
    let e = errors("listeners: [{}]\nroutes: [{}, {}]\nupstreams: [{}]\n");
    assert_eq!(e.len(), 3 + 5 * 2 + 2, "{e:#?}");
}

#[test]
fn a_wrong_unit_says_the_right_ones() {
    for (timeouts, why) in [
        ("30", "\"30\" is not a duration; write a whole number and ms, s, m, h or d, such as 30s"),
        ("30sec", "\"30sec\" is not a duration"),
        ("1.5s", "\"1.5s\" is not a duration"),
        ("true", "\"true\" is not a duration"),
        ("", "nothing is written here; write a duration with its unit, such as 30s"),
        ("[1s]", "this is a list; write a duration"),
        ("0s", "0ms is out of range; write 1ms to 1h"),
        ("2h", "2h is out of range; write 1ms to 1h"),
    ] {
        let e = wrong("    tls:\n", &format!("    timeouts: {{ idle: {timeouts} }}\n    tls:\n"));
        assert_eq!(e.len(), 1, "{timeouts}: {e:?}");
        assert!(e[0].contains("listeners[0].timeouts.idle: ") && e[0].contains(why), "{timeouts}: {e:?}");
    }
    let e = wrong("    tls:\n", "    limits: { request_header: 64KB, new_connections_per_address: 50 }\n    tls:\n");
    assert!(e[0].contains("KiB") && e[1].contains("100/s"), "{e:?}");
}

#[test]
fn a_bare_number_is_text_where_text_is_meant() {
    let text =
        GOOD.replace("{ ca: ca.pem }", "{ ca: 1.20 }\n      min_version: 1.2").replace("name: main", "name: 0x10");
    let c = good(&text).config;
    assert_eq!(c.listeners[0].name.as_str(), "0x10");
    let tls = c.listeners[0].tls.as_ref().unwrap();
    assert!(tls.client_auth.ca.as_deref().unwrap().ends_with("/1.20"));
    assert_eq!(tls.min_version, file::TlsVersion::Tls12);
    let e = wrong("{ ca: ca.pem }", "{ ca: ca.pem }\n      min_version: 1.1");
    assert!(e[0].contains("7:20: listeners[0].tls.min_version: \"1.1\" is unknown; known: 1.2, 1.3"), "{e:?}");
}

#[test]
fn a_number_in_quotes_says_so() {
    let e = errors(&(GOOD.to_owned() + "server: { threads: \"4\" }\n"));
    assert!(e[0].contains("server.threads: \"4\" is text; write a whole number"), "{e:?}");
    let e = errors(&(GOOD.to_owned() + "server: { threads: 70000 }\n"));
    assert!(e[0].contains("server.threads: 70000 can't stand here; write a whole number"), "{e:?}");
    let e = errors(&(GOOD.to_owned() + "server: { threads: 0 }\n"));
    assert!(e[0].contains("server.threads: 0 is out of range; write 1 to 256"), "{e:?}");
}

#[test]
fn duplicate_keys_are_errors_and_the_rest_is_still_checked() {
    let e = wrong("    methods: [POST]\n", "    methods: [POST]\n    methods: [GET]\n    peers: any\n");
    assert_eq!(e.len(), 2, "{e:?}");
    assert_eq!(e[0], "13:5: routes[0].methods: the key \"methods\" is already given at 12:5");
    assert!(e[1].starts_with("15:5: routes[0].peers: the key \"peers\" is already given at 14:5"), "{e:?}");
}

#[test]
fn wrong_yaml_has_line_and_column() {
    let e = wrong("    methods: [POST]\n", "    methods: [POST\n");
    assert!(e.len() == 1 && e[0].contains("not YAML"), "{e:?}");
    assert!(e[0].starts_with("14:5: "), "{e:?}");
    assert!(errors("a: b: c\n")[0].starts_with("1:"));
    assert!(errors("\tlisteners: 1\n")[0].starts_with("1:"));
    assert!(errors("- 1\n")[0].starts_with("1:1: this is a list; write a block of keys"), "{:?}", errors("- 1\n"));
}

#[test]
fn the_environment_is_taken_and_what_is_missing_is_named() {
    let text = GOOD.replace("http://10.0.1.10:3000", "http://${NODE}:3000") + "server: { threads: \"x\" }\n";
    assert_eq!(errors(&text).len(), 1);
    let c = good(&text.replace("{ threads: \"x\" }", "\n  threads: ${THREADS}")).config;
    assert_eq!(c.upstreams[0].endpoints[0].address.to_string(), "192.0.2.1:3000");
    assert_eq!(c.server.threads, 3);
    let e = wrong("http://10.0.1.10:3000", "http://${NO_NODE}:3000");
    assert_eq!(e, ["17:17: upstreams[0].endpoints[0]: the environment variable NO_NODE is not set"]);
    assert_eq!(wrong("upstream: hive", "upstream: ${NO}").len(), 1);
    assert_eq!(wrong("address: 0.0.0.0:8443", "address: ${NO}").len(), 1);
}

#[test]
fn a_missing_variable_for_the_admin_secret_is_the_only_error() {
    let e = errors(&(GOOD.to_owned() + "admin:\n  address: 0.0.0.0:9901\n  bearer_secret: ${NO}\n"));
    assert_eq!(e, ["20:18: admin.bearer_secret: the environment variable NO is not set"]);
}

#[test]
fn secrets_are_never_shown() {
    let secret = "0123456789abcdef0123456789abcdef";
    let inline = "s3cret-inline-s3cret-inline-s3cret";
    let text =
        GOOD.to_owned() + "hive:\n  gateway_auth_secret: ${GATEWAY_SECRET}\nadmin:\n  bearer_secret: " + inline + "\n";
    let loaded = good(&text);
    assert_eq!(loaded.config.hive.gateway_auth.as_ref().unwrap().expose(), secret);
    let debug = format!("{loaded:?}");
    assert!(!debug.contains(secret) && !debug.contains(inline), "{debug}");
    let later = loaded.located.error("admin.bearer_secret", format!("{inline} and {secret}"));
    assert_eq!(later.message, "<secret> and ${GATEWAY_SECRET}");

    for (tail, hidden) in [
        ("hive: { gateway_auth_secret: hunter2 }\n", "hunter2"),
        ("hive: { gateway_auth_secret: 12345678 }\n", "12345678"),
        ("hive: { gateway_auth_secret: [hunter2] }\n", "hunter2"),
        ("hive: { gateway_auth_secret: hunter2, gateway_auth_secret_file: x }\n", "hunter2"),
        ("hive:\n  gateway_auth_secret: ${SHORT_SECRET}\n", "hunter2hunter2"),
        ("server:\n  drain: ${SHORT_SECRET}\n", "hunter2hunter2"),
        ("admin: { bearer_secret: \"hunter2 hunter2 hunter2\" }\n", "hunter2"),
        ("hive:\n  gateway_auth_secret: !hunter2\n", "hunter2"),
        ("hive:\n  gateway_auth_secret: *hunter2\n", "hunter2"),
        ("hive:\n  gateway_auth_secret: x${hunter2-}\n", "hunter2"),
        ("hive:\n  gateway_auth_secret: {hunter2: 1}: x\n", "hunter2"),
        ("admin: { bearer_sercet: hunter2hunter2hunter2 }\n", "hunter2"),
    ] {
        let all = loaded_errors(&(GOOD.to_owned() + tail));
        assert!(!all.is_empty(), "{tail}");
        assert!(!format!("{all:?} {}", shown(&all)).contains(hidden), "{tail}: {}", shown(&all));
    }
}

fn loaded_errors(text: &str) -> Vec<ConfigError> {
    loaded(text).err().unwrap_or_default()
}

#[test]
fn names_are_given_once() {
    let e = wrong("routes:\n", "  - { name: paris, dns: x.example }\nroutes:\n");
    assert!(
        e[0].starts_with("9:13: peers[1].name: the name \"paris\" is already taken by peers[0] in line 8"),
        "{e:?}"
    );
    let e = errors(&(GOOD.to_owned() + "  - { name: hive, endpoints: [\"http://10.0.0.1\"] }\n"));
    assert!(e[0].starts_with("18:13: upstreams[1].name: "), "{e:?}");
}

#[test]
fn one_address_is_one_listener_s() {
    let second = "  - { name: b, protocol: http, address: \"127.0.0.1:8443\" }\npeers:\n";
    let e = wrong("peers:\n", second);
    assert!(
        e[0].contains("listeners[1].address: 127.0.0.1:8443 is already taken by listeners[0] (0.0.0.0:8443) in line 3"),
        "{e:?}"
    );
    let e = wrong("0.0.0.0:8443", "127.0.0.1:9901");
    assert!(
        e[0].contains(
            "3:14: listeners[0].address: 127.0.0.1:9901 is already taken by admin (127.0.0.1:9901) by default"
        ),
        "{e:?}"
    );
}

#[test]
fn tls_belongs_to_https() {
    let tls = "    tls:\n      certificates: [{ cert: s.pem, key: s.key }]\n      client_auth: { ca: ca.pem }\n";
    assert!(wrong(tls, "")[0].contains("listeners[0].tls: https needs certificates"));
    assert!(wrong("    tls:\n", "    protocol: http\n    tls:\n")[0].contains("not used with protocol: http"));
    let w = warned(tls, "    protocol: http\n");
    assert!(
        w.contains("plain text on 0.0.0.0:8443") && w.contains("no listener of this route asks for a certificate"),
        "{w}"
    );
    let e = wrong("    tls:\n", "    protocol: htp\n    tls:\n");
    assert!(e.len() == 1 && e[0].contains("did you mean \"http\"?"), "{e:?}");
}

#[test]
fn overlapping_routes_name_each_other() {
    let second = "  - { name: other, paths: [/x, /api/a2a/jsonrpc], methods: [GET, POST], peers: any, upstream: hive }\nupstreams:\n";
    let e = wrong("upstreams:\n", second);
    assert_eq!(e.len(), 1, "{e:?}");
    assert!(e[0].starts_with("15:32: routes[1].paths[1]: POST here is already taken by route a2a in line 10"), "{e:?}");
    let apart = second.replace("paths:", "hosts: [a.example], paths:");
    assert_eq!(wrong("upstreams:\n", &apart), Vec::<String>::new());
}

#[test]
fn peers_have_exactly_one_rule() {
    assert!(wrong(", uri: \"spiffe://mesh.example/hive/paris\"", "")[0].contains("write one of uri, dns, fingerprint"));
    assert!(wrong("{ name: paris,", "{ name: paris, dns: p.example,")[0].contains("has several"));
}

#[test]
fn unused_peers_and_upstreams_are_warnings() {
    let w = warned("peers:\n", "peers:\n  - { name: oslo, dns: oslo.example }\n");
    assert!(w.contains("8:5: peers[0]: no route names the peer oslo"), "{w}");
    let w = warned("peers: [paris]", "peers: any");
    assert!(!w.contains("no route names the peer"), "the route takes any: {w}");
    let two = GOOD.to_owned() + "  - { name: spare, endpoints: [\"http://10.0.0.1\"] }\n";
    assert!(shown(&good(&two).warnings).contains("18:5: upstreams[1]: no route goes to the upstream spare"));
}

#[test]
fn empty_lists_are_errors() {
    for (from, to, path) in [
        ("[/api/a2a/jsonrpc]", "[]", "routes[0].paths"),
        ("[POST]", "[]", "routes[0].methods"),
        ("[paris]", "[]", "routes[0].peers"),
        ("[\"http://10.0.1.10:3000\"]", "[]", "upstreams[0].endpoints"),
        ("[{ cert: s.pem, key: s.key }]", "[]", "listeners[0].tls.certificates"),
    ] {
        let e = wrong(from, to);
        assert!(e.len() == 1 && e[0].contains(&format!("{path}: the list is empty")), "{e:?}");
    }
}

#[test]
fn endpoints_are_plain_urls_of_one_kind() {
    for (to, why) in [
        ("\"http://10.0.1.10:3000/x\"", "leave out the path"),
        ("\"http://u:p@10.0.1.10\"", "holds a user or password"),
        ("\"https://10.0.1.10\"", "need tls"),
        ("\"http://10.0.1.10\", \"https://10.0.1.11\"", "can't be mixed"),
        ("{ url: \"http://10.0.1.10\", weight: 101 }", "endpoints[0].weight: 101 is out of range; write 1 to 100"),
        ("{ url: \"http://10.0.1.10\", wieght: 2 }", "did you mean \"weight\"?"),
        ("{ weight: 2 }", "\"url\" is missing; write url: "),
        ("\"http://nowhere.example:1\"", "the name \"nowhere.example\" has no address: no such host"),
        ("\"http://10.0.1.10\", \"http://10.0.1.10:80\"", "already the node of upstreams[0].endpoints[0]"),
        ("3000", "\"3000\" is not a URL"),
    ] {
        let e = wrong("\"http://10.0.1.10:3000\"", to);
        assert!(e.len() == 1 && e[0].contains(why), "{to}: {e:?}");
    }
    let c = good(&GOOD.replace("http://10.0.1.10:3000", "http://both.example")).config;
    assert_eq!(c.upstreams[0].endpoints[0].address.to_string(), "192.0.2.2:80");
    assert!(warned("10.0.1.10:3000", "many.example").contains("stands for 2 addresses; only 192.0.2.3 is used"));
}

#[test]
fn upstream_tls_is_whole() {
    let https = GOOD.replace("http://10", "https://10");
    let with = |tls: &str| errors(&format!("{https}    tls: {tls}\n"));
    assert_eq!(with("{ ca: x.pem, server_name: hive.internal }"), Vec::<String>::new());
    assert!(with("{ ca: x.pem, server_name: \"\" }")[0].contains("18:36: upstreams[0].tls.server_name: empty"));
    assert!(with("{ ca: x.pem, server_name: h, cert: c.pem }")[0].contains("tls.cert: a certificate needs its key"));
    assert!(with("{ ca: x.pem, server_name: h, key: c.pem }")[0].contains("tls.key: a key needs its certificate"));
    assert!(with("{ ca: x.pem }")[0].contains("nothing says whose certificate is right"));
    assert_eq!(with("{ ca: x.pem, spiffe_id: \"spiffe://mesh.example/hive\" }"), Vec::<String>::new());
    assert_eq!(with("{ ca: x.pem, spiffe_id: \"spiffe://mesh.example/hive\", server_name: h }"), Vec::<String>::new());
    let e = errors(&(GOOD.to_owned() + "    tls: { ca: x.pem, server_name: h }\n"));
    assert!(e[0].contains("not used with http:// endpoints"), "{e:?}");
}

#[test]
fn health_checks_stay_in_hive_s_limits() {
    for (check, why) in [
        ("{ interval: 1s, timeout: 500ms }", "interval: 1s is too often"),
        ("{ interval: 3s, timeout: 4s }", "timeout: 4s is longer than the interval of 3s"),
        ("{ healthy_after: 0 }", "healthy_after: 0 is out of range; write 1 to 100"),
        ("{ path: health }", "path: \"health\" is not a path"),
    ] {
        let e = errors(&format!("{GOOD}    health_check: {check}\n"));
        assert!(e.len() == 1 && e[0].contains(why), "{check}: {e:?}");
    }
}

#[test]
fn limits_have_their_ranges() {
    let route = |tail: &str| wrong("    upstream: hive\n", &format!("    upstream: hive\n    {tail}\n"));
    assert!(route("body: { limit: 17MiB }")[0].contains("body.limit: 17MiB is out of range; write 1B to 16MiB"));
    assert!(route("json_rpc: { max_depth: 513 }")[0].contains("max_depth: 513 is out of range; write 1 to 512"));
    assert!(route("json_rpc: { batch: 2000 }")[0].contains("batch: 2000 can't stand here; write the word reject"));
    assert!(route("json_rpc: { methods: [] }")[0].contains("json_rpc.methods: the list is empty"));
    let header = |size: &str| wrong("    tls:\n", &format!("    limits: {{ request_header: {size} }}\n    tls:\n"));
    assert!(header("1023B")[0].contains("1023B is out of range; write 1KiB to 256KiB"));
    assert_eq!(header("256KiB"), Vec::<String>::new());
    let e = errors(&GOOD.replace(
        "    upstream: hive\n",
        "    upstream: hive\n    body: { limit: 2MiB }\nserver: { body_memory: 1MiB }\n",
    ));
    assert!(e.len() == 1 && e[0].contains("less than one body of route a2a"), "{e:?}");
}

#[test]
fn trusted_proxies_are_networks() {
    let with = |list: &str| wrong("    tls:\n", &format!("    trusted_proxies: {list}\n    tls:\n"));
    assert_eq!(with("[10.0.0.0/8, 192.0.2.1, \"2001:db8::/32\"]"), Vec::<String>::new());
    assert!(
        with("[10.0.0.1/8]")[0]
            .contains("trusted_proxies[0]: 10.0.0.1/8 has address bits beyond its length; write 10.0.0.0/8")
    );
    assert!(with("[10.0.0.0/8, lb.example]")[0].contains("trusted_proxies[1]: \"lb.example\" is not a network"));
}

#[test]
fn the_process_s_blocks() {
    let with = |tail: &str| errors(&format!("{GOOD}{tail}\n"));
    assert!(with("admin: { address: 0.0.0.0:9901 }")[0].contains("can be reached from other machines"));
    assert!(with("admin: { bearer_secret: 0123456789abcde }")[0].contains("15 characters are too few"));
    assert!(with("hive: { header_prefix: X_Hive }")[0].contains("hive.header_prefix: character '_'"));
    assert!(with("access_log: nowhere")[0].contains("\"nowhere\" can't stand here; write stdout, off, or { path }"));
    assert_eq!(with("access_log: off"), Vec::<String>::new());
    assert_eq!(with("access_log: { path: a.log }"), Vec::<String>::new());
    assert_eq!(with("access_log: { format: combined }"), Vec::<String>::new());
    assert!(with("access_log: { path: a.log, rotatr: 1 }")[0].contains("access_log.rotatr: unknown key"));
    assert!(with("access_log: { format: xml }")[0].contains("write json, combined, or { template }"));
    assert!(
        with("access_log: { format: { template: \"{statsu}\" } }")[0].contains("access_log.format.template: {statsu}")
    );
    assert!(with("identity_headers: { xfcc: 1 }")[0].contains("1 is a number; write true or false"));
}

#[test]
fn a_wrong_element_is_one_error() {
    let e = wrong("[/api/a2a/jsonrpc]", "[/a, { b: 1 }, [c], 5]");
    assert_eq!(e.len(), 3, "{e:?}");
    assert!(e[0].contains("paths[1]: this is a block of keys; write text"), "{e:?}");
    assert!(e[2].contains("paths[3]: ") && e[2].contains("\"5\""), "{e:?}");
    let e = wrong("  - { name: paris", "  - paris\n  - { name: paris");
    assert!(e.len() == 1 && e[0].contains("peers[0]: \"paris\" is text; write a block of keys"), "{e:?}");
    assert_eq!(errors("listeners: 1\nroutes: x\nupstreams: {}\n").len(), 3);
}

#[test]
fn nonsense_ends() {
    let many: String = (0..200).map(|i| format!("key{i}: 1\n")).collect();
    assert!(errors(&many).len() <= 70);
    for text in ["1", "[]", "~", "a", "{}", "? [a]\n: b\n", "!x {}", "listeners: !!set {}\n", "&a [*a]"] {
        assert!(!errors(text).is_empty(), "{text}");
    }
}

#[test]
fn what_an_alias_says_is_wrong_where_the_alias_stands() {
    let text = GOOD.replace("paths: [/api/a2a/jsonrpc]", "paths: &p [/a, no-slash]").replace(
        "upstreams:\n",
        "  - { name: b, paths: *p, methods: [GET], peers: any, upstream: hive }\nupstreams:\n",
    );
    let e = errors(&text);
    assert_eq!(e.len(), 2, "{e:?}");
    assert!(e[0].starts_with("11:20: routes[0].paths[1]") && e[1].starts_with("15:23: routes[1].paths[1]"), "{e:?}");
}

#[test]
fn no_damage_to_a_file_makes_more_than_errors_in_it() {
    let reference = include_str!("../../conf/reference.yaml");
    let lines = |text: &str| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>();
    let mut damaged = Vec::new();
    for text in [GOOD, reference] {
        let lines = lines(text);
        for i in 0..lines.len() {
            damaged.push([&lines[..i], &lines[i + 1..]].concat().join("\n"));
            damaged.push(lines[..i].join("\n"));
        }
    }
    for (i, _) in GOOD.char_indices() {
        for new in ["", "[", "}", ":", "\n", "\"", "5", "*", "${"] {
            damaged.push(format!("{}{new}{}", &GOOD[..i], &GOOD[i + 1..]));
        }
    }
    for text in damaged {
        let lines = text.lines().count();
        for e in loaded_errors(&text) {
            let place = e.place.unwrap();
            assert!(place.line >= 1 && place.column >= 1 && place.line <= lines + 2, "{e}\n{text}");
        }
    }
}

#[test]
fn a_large_file_with_wrong_peers_is_read_in_time() {
    let peers: String =
        (0..20_000).map(|i| format!("  - {{ name: {i}, uri: \"spiffe://mesh.example/hive/{i}\" }}\n")).collect();
    let text = GOOD.replace("peers:\n", &format!("peers:\n{peers}  - {{ nam: x }}\n  - 7\n"));
    let e = errors(&text);
    assert_eq!(e.len(), 3, "{e:?}");
    assert!(e[1].starts_with("20008:7: peers[20000].nam: unknown key"), "{e:?}");
}

#[test]
fn the_environment_names_the_spiffe_agent_if_the_file_does_not() {
    let text = GOOD.replace(
        "      certificates: [{ cert: s.pem, key: s.key }]\n      client_auth: { ca: ca.pem }\n",
        "      spiffe: {}\n",
    );
    assert_ne!(text, GOOD);
    let load = |text: &str, socket: Option<&str>| {
        let env = |name: &str| socket.filter(|_| name == "SPIFFE_ENDPOINT_SOCKET").map(str::to_owned);
        let around = Surroundings { read_files: false, ..Surroundings::of_system(&env) };
        load_text(Path::new("gateway.yaml"), text, &around)
    };
    let endpoint = |text: &str, socket| load(text, socket).unwrap().config.spiffe.unwrap().to_string();
    assert_eq!(endpoint(&text, Some("unix:/run/a.sock")), "unix:///run/a.sock");
    let written = format!("spiffe: {{ workload_api: \"unix:///run/b.sock\" }}\n{text}");
    assert_eq!(endpoint(&written, Some("unix:///run/a.sock")), "unix:///run/b.sock");
    let errors = load(&text, Some("/run/a.sock")).unwrap_err();
    assert!(errors[0].message.contains("SPIFFE_ENDPOINT_SOCKET of the environment: \"/run/a.sock\""), "{errors:?}");
    let unused = load(&format!("spiffe: {{}}\n{GOOD}"), None).unwrap();
    assert!(unused.config.spiffe.is_none() && shown(&unused.warnings).contains("nothing is taken from the agent"));
}
