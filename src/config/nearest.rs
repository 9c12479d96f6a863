//! The known word that was probably meant.

/// The one of `known` that is nearest to `word`, if it is near: one change in three letters, swapped letters count once.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Words of a file are short; a long one is no typing error of another.
    if word.len() > 128 {
        return None;
    }
    let best = known.into_iter().map(|k| (distance(word, k), k)).min_by_key(|(d, _)| *d);
    best.filter(|(d, k)| *d <= (word.len().max(k.len()) / 3).max(1)).map(|(_, k)| k)
}

/// `; known: a, b (did you mean "a"?)`, at most eight known ones.
pub(super) fn known_ones(word: &str, known: &[&str]) -> String {
    const SHOWN: usize = 8;
    if known.is_empty() {
        return "; none is known".into();
    }
    let mut text = format!("; known: {}", known[..known.len().min(SHOWN)].join(", "));
    if known.len() > SHOWN {
        text.push_str(&format!(" and {} more", known.len() - SHOWN));
    }
    if let Some(meant) = nearest(word, known.iter().copied()) {
        text.push_str(&format!(" (did you mean {meant:?}?)"));
    }
    text
}

/// Optimal string alignment: insertions, deletions, changes, and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (mut before, mut last) = (Vec::new(), (0..=b.len()).collect::<Vec<_>>());
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = usize::from(!a[i - 1].eq_ignore_ascii_case(&b[j - 1]));
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        (before, last) = (last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_near_and_other_words_are_not() {
        assert_eq!(nearest("hvie", ["nodes", "hive"]), Some("hive"));
        assert_eq!(nearest("upsteam", ["upstream", "peers"]), Some("upstream"));
        assert_eq!(nearest("method", ["paths", "methods"]), Some("methods"));
        assert_eq!(nearest("hive", ["paris", "london"]), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_long_list_is_cut() {
        let known: Vec<String> = (0..10).map(|i| format!("node-{i}")).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        assert!(known_ones("zebra-crossing", &known).ends_with("node-7 and 2 more"));
        assert_eq!(known_ones("hvie", &["hive"]), "; known: hive (did you mean \"hive\"?)");
    }
}
