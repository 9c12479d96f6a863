//! Where rules skip to. A rule that skips to a marker that never comes skips all that is behind it, the whole rest of the
//! set: that is what a file leaves behind that was cut off at a line's end, or that is gone.

use std::path::Path;

use super::Fault;

const SKIP: &str = "skipafter:";

/// The skips of which the marker has not come yet.
#[derive(Default)]
pub struct Skips(Vec<Skip>);

struct Skip {
    entry: usize,
    place: String,
    marker: String,
}

impl Skips {
    /// Goes on with the next file.
    pub fn read(&mut self, entry: usize, file: &Path, text: &str) {
        for (line, directive) in directives(text) {
            match directive.trim_start().split_once([' ', '\t']) {
                Some((word, name)) if word.eq_ignore_ascii_case("secmarker") => {
                    let name = bare(name);
                    self.0.retain(|skip| skip.marker != name);
                }
                _ => self.0.extend(targets(&directive).map(|marker| Skip {
                    entry,
                    place: format!("{}:{line}", file.display()),
                    marker: marker.into(),
                })),
            }
        }
    }

    /// After the last file.
    ///
    /// # Errors
    /// A marker has not come.
    pub fn end(self) -> Result<(), Fault> {
        let Some(Skip { entry, place, marker }) = self.0.into_iter().next() else { return Ok(()) };
        let message = format!(
            "{place}: skipAfter:{marker}, and no SecMarker {marker} follows, so that all rules behind it would be skipped, as \
             if a file were cut off or missing; bring it back, or leave this rule out"
        );
        Err(Fault { entry: Some(entry), message })
    }
}

/// Directives with the lines that they begin in; each as one line.
fn directives(text: &str) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if !goes_on {
            if line.trim_start().starts_with('#') {
                continue;
            }
            all.push((i + 1, String::new()));
        }
        goes_on = line.ends_with('\\');
        if let Some((_, directive)) = all.last_mut() {
            directive.push_str(line.strip_suffix('\\').unwrap_or(line));
        }
    }
    all
}

/// The names of the markers to which a rule skips.
fn targets(directive: &str) -> impl Iterator<Item = &str> {
    let lower = directive.to_ascii_lowercase();
    let at: Vec<_> = lower.match_indices(SKIP).map(|(at, _)| at).collect();
    let begins = |at: &usize| directive[..*at].ends_with(|c: char| c.is_whitespace() || matches!(c, ',' | '"'));
    at.into_iter().filter(begins).filter_map(|at| {
        let rest = directive[at + SKIP.len()..].trim_start().trim_start_matches('\'');
        let name = rest.split([',', '"', '\'', ' ', '\t']).next().unwrap_or_default();
        (!name.is_empty()).then_some(name)
    })
}

fn bare(name: &str) -> &str {
    name.trim().trim_matches(['"', '\''])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(files: &[&str]) -> Option<Fault> {
        let mut skips = Skips::default();
        for (i, text) in files.iter().enumerate() {
            skips.read(i, Path::new(&format!("f{i}.conf")), text);
        }
        skips.end().err()
    }

    #[test]
    fn each_skip_has_its_marker_behind_it() {
        let rule = "# x\n\nSecRule TX:LEVEL \"@lt 1\" \\\n  \"id:1,\\\n  pass,\\\n  skipAfter:END-X\"\n";
        for marker in ["SecMarker \"END-X\"\n", "  secmarker END-X", "# cut\nSecMarker\t'END-X' \r\n"] {
            assert_eq!(said(&[rule, marker]), None, "{marker}");
            assert_eq!(said(&[&format!("{rule}{marker}")]), None, "{marker}");
            assert!(said(&[marker, rule]).is_some(), "it comes too early");
        }
        for none in ["", "# SecMarker \"END-X\"\n", "SecMarker \"END-XY\"\n", "SecMarker \"end-x\"\n"] {
            let fault = said(&["", rule, none]).unwrap();
            assert_eq!(fault.entry, Some(1));
            assert!(fault.message.starts_with("f1.conf:3: skipAfter:END-X, and no SecMarker END-X follows"));
        }
    }

    #[test]
    fn skips_are_found_however_they_are_written() {
        for rule in
            ["\"id:1,SkipAfter:A,pass\"", "\"skipAfter:'A',id:1\"", "\"id:1, skipAfter: A\"", "id:1,skipAfter:A"]
        {
            let directive = format!("SecAction {rule}");
            assert_eq!(targets(&directive).collect::<Vec<_>>(), ["A"], "{rule}");
        }
        assert_eq!(targets("SecAction \"id:1,msg:'noskipAfter:A'\"").count(), 0);
    }
}
