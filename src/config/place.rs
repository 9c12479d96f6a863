//! Places in the file's text, ways into its tree, and what is wrong there.

use std::fmt;

use yaml_rust2::scanner::Marker;

/// A line and a column, both from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl Place {
    pub(super) fn of(mark: &Marker) -> Self {
        // Unlike what yaml-rust2's own comment says, its columns start at 0.
        Self { line: mark.line(), column: mark.col() + 1 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One step into the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A way into the tree, shown as `routes[1].upstream`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Steps(pub Vec<Step>);

impl Steps {
    pub fn parse(path: &str) -> Self {
        let mut steps = Vec::new();
        for part in path.split('.').filter(|p| !p.is_empty()) {
            let (key, indexes) = part.split_at(part.find('[').unwrap_or(part.len()));
            if !key.is_empty() {
                steps.push(Step::Key(key.into()));
            }
            let indexes = indexes.split(['[', ']']).filter_map(|n| n.parse().ok());
            steps.extend(indexes.map(Step::Index));
        }
        Self(steps)
    }

    pub fn with(&self, key: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.into()));
        Self(steps)
    }

    /// The same way with every index left out: `routes[].upstream`.
    pub fn pattern(&self) -> String {
        self.shown(|_| "[]".into())
    }

    fn shown(&self, index: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        for step in &self.0 {
            match step {
                Step::Index(i) => text.push_str(&index(*i)),
                Step::Key(key) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(key);
                }
            }
        }
        text
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown(|i| format!("[{i}]")))
    }
}

/// Something wrong, before it has a file name.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub place: Place,
    pub path: String,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_back() {
        for path in ["routes[1].upstream", "a", "listeners[0].tls.certificates[10].key", ""] {
            assert_eq!(Steps::parse(path).to_string(), path);
        }
        assert_eq!(Steps::parse("routes[1].paths[2]").pattern(), "routes[].paths[]");
    }
}
