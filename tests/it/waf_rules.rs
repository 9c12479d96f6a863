//! The files of a firewall's rules: what is missing, cut off, comes and goes, and what counts without the last of them.

use std::fs;
use std::path::Path;

use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::wait_until;

const CORE: &str = "/usr/share/modsecurity-crs/rules";
const EVALUATION: &str = "REQUEST-949-BLOCKING-EVALUATION.conf";
const ATTACK: &str = "/echo?q=1%27%20UNION%20SELECT%20username,password%20FROM%20users--%20-";

fn gateway(rules: &str, prepare: impl FnOnce(&Path)) -> (Gateway, Node) {
    let node = Node::start();
    let mut setup = Setup::new(&[node.address]);
    prepare(setup.dir.path());
    setup.listener = format!("    waf: {{ mode: blocking, rules: [ {rules} ], timeout: 30s }}\n");
    setup.server = "watch: 100ms".into();
    (setup.start(), node)
}

#[track_caller]
fn status(gateway: &Gateway, target: &str) -> u16 {
    gateway.client("alice").get(gateway.address, target).unwrap().status
}

/// The core rules in a directory of their own.
fn copy_core(dir: &Path) {
    fs::create_dir(dir.join("crs")).unwrap();
    for file in fs::read_dir(CORE).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.join("crs").join(file.file_name())).unwrap();
    }
}

#[test]
fn what_counts_for_paranoia_levels_counts_up_to_the_one_that_blocks() {
    for (set, evil) in [
        ("setvar:tx.paranoia_level=1,setvar:tx.anomaly_score_pl2=+5", 200),
        ("setvar:tx.paranoia_level=2,setvar:tx.anomaly_score_pl1=+2", 200),
        ("setvar:tx.paranoia_level=2,setvar:tx.anomaly_score_pl1=+2,setvar:tx.anomaly_score_pl2=+3", 403),
        ("setvar:tx.anomaly_score=0,setvar:tx.anomaly_score_pl4=+5", 403),
        ("setvar:tx.anomaly_score=5,setvar:tx.anomaly_score_pl1=+1", 403),
        ("setvar:tx.blocking_paranoia_level=1,setvar:tx.inbound_anomaly_score_pl2=+5", 200),
        ("setvar:tx.blocking_paranoia_level=9,setvar:tx.inbound_anomaly_score_pl4=+5", 403),
        ("setvar:tx.blocking_inbound_anomaly_score=0,setvar:tx.inbound_anomaly_score_pl1=+5", 403),
    ] {
        let rule = format!("SecRule QUERY_STRING \"@contains evil\" \"id:1,phase:2,pass,log,msg:'x',{set}\"\n");
        let (gateway, _node) = gateway("own.conf", |dir| fs::write(dir.join("own.conf"), rule).unwrap());
        assert_eq!((status(&gateway, "/echo?evil"), status(&gateway, "/echo?good")), (evil, 200), "{set}");
    }
}

#[test]
fn the_core_rules_refuse_without_the_file_that_evaluates_and_one_that_is_cut_or_gone_keeps_the_old() {
    let (gateway, node) = gateway("/etc/modsecurity/crs/crs-setup.conf, crs", |dir| {
        copy_core(dir);
        // The marker alone, to which the file on reputations skips.
        fs::write(dir.join("crs").join(EVALUATION), "SecMarker \"BEGIN-REQUEST-BLOCKING-EVAL\"\n").unwrap();
    });
    let file = gateway.dir().join("crs").join(EVALUATION);
    let both = || (status(&gateway, ATTACK), status(&gateway, "/echo?q=hello"));
    assert_eq!(both(), (403, 200));
    let whole = fs::read_to_string(Path::new(CORE).join(EVALUATION)).unwrap();
    fs::write(&file, &whole).unwrap();
    gateway.reload_ok();
    assert_eq!(both(), (403, 200));
    let (cut, _) = whole.trim_end().rsplit_once('\n').unwrap();
    fs::write(&file, format!("{cut}\n")).unwrap();
    let answer = gateway.reload();
    let said =
        "skipAfter:END-REQUEST-949-BLOCKING-EVALUATION, and no SecMarker END-REQUEST-949-BLOCKING-EVALUATION follows";
    let text = answer.text();
    assert!(answer.status == 422 && text.contains(said) && text.contains(&format!("{EVALUATION}:")), "{text}");
    fs::remove_file(&file).unwrap();
    let answer = gateway.reload();
    let text = answer.text();
    assert!(answer.status == 422 && text.contains("skipAfter:BEGIN-REQUEST-BLOCKING-EVAL, and no"), "{text}");
    assert_eq!(both(), (403, 200));
    // And without what skips there, it only counts.
    fs::remove_file(gateway.dir().join("crs/REQUEST-910-IP-REPUTATION.conf")).unwrap();
    let warnings = gateway.reload_ok()["warnings"].to_string();
    assert!(warnings.contains(&format!("was that meant? REQUEST-910-IP-REPUTATION.conf, {EVALUATION}")), "{warnings}");
    assert_eq!(both(), (403, 200));
    assert_eq!(node.count(), 4);
}

#[test]
fn rule_files_that_come_go_and_come_back_in_a_directory_are_seen() {
    let rule = |id: u8, word: &str| format!("SecRule ARGS:x \"@streq {word}\" \"id:{id},phase:2,deny,log,msg:'x'\"\n");
    let (gateway, _node) = gateway("rules", |dir| {
        fs::create_dir(dir.join("rules")).unwrap();
        fs::write(dir.join("rules/a.conf"), rule(1, "one")).unwrap();
        fs::write(dir.join("rules/b.conf"), rule(2, "two")).unwrap();
    });
    let statuses = || ["one", "two", "three"].map(|x| status(&gateway, &format!("/echo?x={x}")));
    assert_eq!(statuses(), [403, 403, 200]);
    let dir = gateway.dir().join("rules");
    fs::write(dir.join("c.conf"), rule(3, "three")).unwrap();
    wait_until("the new file is in force", || statuses() == [403, 403, 403]);
    fs::remove_file(dir.join("a.conf")).unwrap();
    wait_until("the removed file is not", || statuses() == [200, 403, 403]);
    let said = format!(
        "rule files of {} are gone, and their rules are no longer in force; was that meant? a.conf",
        dir.display()
    );
    wait_until("that is told", || gateway.stderr().contains(&said));
    fs::write(dir.join("a.conf"), rule(1, "one")).unwrap();
    wait_until("it is back", || statuses() == [403, 403, 403]);
}
