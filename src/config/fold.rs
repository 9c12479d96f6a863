//! What is said of thousands of places alike, for a log and a status: a few of each kind, and how many more there are.

use std::collections::HashMap;

use super::error::ConfigError;
use super::place::Steps;

/// Of one kind so many are told.
const OF_A_KIND_MAX: usize = 5;
/// Of all kinds together.
const ALL_MAX: usize = 100;
/// Words of a message that make its kind: what follows are names.
const WORDS: usize = 3;

/// A few of each kind in their order, the last of a kind with the number of those left out. `check` names them all.
pub fn folded(all: &[ConfigError]) -> Vec<ConfigError> {
    // By kind: how many, and where the last that is told stands.
    let mut kinds: HashMap<(String, String), (usize, usize)> = HashMap::new();
    let (mut told, mut left_out): (Vec<ConfigError>, usize) = (Vec::new(), 0);
    for one in all {
        let (count, last) = kinds.entry(kind(one)).or_default();
        if *count < OF_A_KIND_MAX {
            if told.len() == ALL_MAX {
                left_out += 1;
                continue;
            }
            *last = told.len();
            told.push(one.clone());
        }
        *count += 1;
    }
    for (count, last) in kinds.into_values().filter(|(count, _)| *count > OF_A_KIND_MAX) {
        let (message, more) = (&mut told[last].message, count - OF_A_KIND_MAX);
        *message = format!("{message} (and {more} more like this; `hive-gateway check` names each)");
    }
    if let Some(first) = all.first().filter(|_| left_out > 0) {
        let message = format!("and {left_out} more of other kinds; `hive-gateway check` names each");
        told.push(ConfigError::of_file(&first.file, message));
    }
    told
}

/// The key without its indexes, and what its message begins with.
fn kind(one: &ConfigError) -> (String, String) {
    let plain = |word: &&str| !word.contains(|c: char| c == '"' || c.is_ascii_digit());
    let words: Vec<_> = one.message.split(' ').filter(plain).take(WORDS).collect();
    (Steps::parse(&one.path).pattern(), words.join(" "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn about(path: String, message: String) -> ConfigError {
        ConfigError { path, ..ConfigError::of_file(Path::new("g.yaml"), message) }
    }

    fn texts(all: &[ConfigError]) -> Vec<String> {
        folded(all).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn thousands_alike_are_a_few_and_a_number_and_others_are_told() {
        let mut all: Vec<_> =
            (0..20_000).map(|i| about(format!("peers[{i}]"), format!("no route names p{i}"))).collect();
        all.insert(7_000, about("peers[7000]".into(), "its name is odd".into()));
        all.push(about("routes[3].peers".into(), "no route names it".into()));
        let said = texts(&all);
        assert_eq!(said.len(), OF_A_KIND_MAX + 2, "{said:?}");
        assert_eq!(said[0], "g.yaml: peers[0]: no route names p0");
        let last = "no route names p4 (and 19995 more like this; `hive-gateway check` names each)";
        assert_eq!(said[4], format!("g.yaml: peers[4]: {last}"));
        assert_eq!(said[5..], ["g.yaml: peers[7000]: its name is odd", "g.yaml: routes[3].peers: no route names it"]);
    }

    #[test]
    fn few_are_told_as_they_are_and_names_make_no_kinds() {
        let few: Vec<_> = (0..5).map(|i| about(format!("a[{i}]"), format!("\"n{i}\" is taken"))).collect();
        assert_eq!(folded(&few), few);
        let many: Vec<_> = (0..500).map(|i| about(format!("a[{i}]"), format!("\"n{i}\" is taken"))).collect();
        assert_eq!(folded(&many).len(), OF_A_KIND_MAX);
    }

    #[test]
    fn however_many_kinds_there_are_the_whole_is_bounded() {
        let name = |i: usize| format!("{}x", "y".repeat(i));
        let all: Vec<_> = (0..400).map(|i| about(name(i), "wrong".into())).collect();
        let said = texts(&all);
        assert_eq!(said.len(), ALL_MAX + 1);
        assert_eq!(said[ALL_MAX], "g.yaml: and 300 more of other kinds; `hive-gateway check` names each");
    }
}
