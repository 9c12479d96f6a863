use std::path::Path;

use clap::Parser;
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    pki: PkiArgs,
}

/// A directory that goes away with the test.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("hive-gateway-pki-{}", uuid::Uuid::now_v7()));
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pki(dir: &Path, words: &[&str]) -> Result<Vec<PathBuf>, String> {
    let (command, options) = words.split_first().unwrap();
    let line = ["pki", command, dir.to_str().unwrap()].into_iter().chain(options.iter().copied());
    let program = Program::try_parse_from(line).map_err(|e| e.to_string())?;
    execute(&program.pki, Clock::System.unix_seconds()).map_err(|e| e.to_string())
}

fn certs(path: &Path) -> Vec<X509> {
    X509::stack_from_pem(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_the_commands_write_is_a_chain_to_the_root() {
    let dir = TempDir::new();
    pki(&dir.0, &["init"]).unwrap();
    let options = ["client", "paris", "--spiffe", "spiffe://m/paris", "--dns", "paris.example"];
    let written = pki(&dir.0, &options).unwrap();
    assert_eq!(written, [dir.0.join("paris.pem"), dir.0.join("paris.key")]);

    let chain = certs(&written[0]);
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(certs(&dir.0.join("ca.pem")).remove(0)).unwrap();
    let mut sent = openssl::stack::Stack::new().unwrap();
    sent.push(chain[1].clone()).unwrap();
    let mut context = openssl::x509::X509StoreContext::new().unwrap();
    let good = context.init(&store.build(), &chain[0], &sent, |context| context.verify_cert()).unwrap();
    assert!(good, "{}", context.error());

    let identity = crate::tls::identity_of(&chain[0]).unwrap();
    assert_eq!(identity.spiffe_id.unwrap().as_str(), "spiffe://m/paris");
    assert_eq!(identity.dns, ["paris.example"]);
    assert_eq!(identity.subject, "CN=paris");
    assert_eq!(identity.not_after - identity.not_before, 24 * 3600 + 60);
    assert!(identity.serial.len() >= 32, "{}", identity.serial);
    assert_eq!(certs(&dir.0.join("bundle.pem")).len(), 2);
}

#[cfg(unix)]
#[test]
fn keys_are_for_their_owner_only_even_when_they_replace_open_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new();
    pki(&dir.0, &["init"]).unwrap();
    std::fs::write(dir.0.join("gw.key"), "open to all").unwrap();
    std::fs::set_permissions(dir.0.join("gw.key"), std::fs::Permissions::from_mode(0o666)).unwrap();
    pki(&dir.0, &["server", "gw", "--dns", "gw.example", "--ip", "127.0.0.1", "--force"]).unwrap();
    for file in ["ca.key", "intermediate.key", "gw.key"] {
        let mode = std::fs::metadata(dir.0.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let dir = TempDir::new();
    pki(&dir.0, &["init"]).unwrap();
    let before = std::fs::read(dir.0.join("ca.key")).unwrap();
    assert!(pki(&dir.0, &["init"]).unwrap_err().contains("--force"));
    pki(&dir.0, &["server", "gw", "--dns", "gw.example"]).unwrap();
    assert!(pki(&dir.0, &["server", "gw", "--dns", "gw.example"]).unwrap_err().contains("gw.pem exists"));
    for name in ["ca", "CA", "intermediate", "../x", ".x", "a/b", ""] {
        assert!(pki(&dir.0, &["server", name, "--dns", "gw.example", "--force"]).is_err(), "{name}");
    }
    assert_eq!(std::fs::read(dir.0.join("ca.key")).unwrap(), before);
    assert!(pki(&dir.0, &["init", "--force"]).is_ok());
    assert_ne!(std::fs::read(dir.0.join("ca.key")).unwrap(), before);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = TempDir::new();
    assert!(pki(&dir.0, &["server", "gw", "--dns", "x"]).unwrap_err().contains("ca.pem"));
    pki(&dir.0, &["init", "--days", "10"]).unwrap();
    for (options, why) in [
        (&["server", "gw"][..], "--dns or --ip"),
        (&["client", "c"], "--spiffe or --dns"),
        (&["client", "c", "--spiffe", "spiffe://M/x"], "lower-case"),
        (&["client", "c", "--dns", "x", "--days", "11"], "outlive"),
        (&["client", "c", "--dns", "x", "--days", "1", "--hours", "1"], "cannot be used with"),
        (&["server", "c", "--ip", "300.1.1.1"], "invalid"),
    ] {
        let error = pki(&dir.0, options).unwrap_err();
        assert!(error.contains(why), "{options:?}: {error}");
    }
}

#[test]
fn a_revocation_list_holds_what_it_is_told() {
    let dir = TempDir::new();
    pki(&dir.0, &["init"]).unwrap();
    pki(&dir.0, &["client", "paris", "--dns", "paris.example"]).unwrap();
    let paris = dir.0.join("paris.pem");
    for revoked in [&[][..], &["--revoke", paris.to_str().unwrap()]] {
        let files = pki(&dir.0, &[&["crl"], revoked].concat()).unwrap();
        assert_eq!(files, [dir.0.join("intermediate.crl")]);
        let list = openssl::x509::X509Crl::from_pem(&std::fs::read(&files[0]).unwrap()).unwrap();
        assert!(list.verify(&certs(&dir.0.join("intermediate.pem"))[0].public_key().unwrap()).unwrap());
        assert_eq!(list.get_revoked().map_or(0, |all| all.len()), revoked.len() / 2);
    }
    let wrong = pki(&dir.0, &["crl", "--revoke", dir.0.join("ca.pem").to_str().unwrap()]).unwrap_err();
    assert!(wrong.contains("is not by this intermediate"), "{wrong}");
}
