//! The allow-list of methods: `routes[].json_rpc.methods`.

use std::collections::HashSet;

use ahash::RandomState;

use super::{METHOD_LENGTH_MAX, Text};

/// The methods that a route lets through. Names are compared byte for byte; the default lets everything through.
#[derive(Debug, Clone, Default)]
pub struct MethodPolicy {
    list: Option<List>,
}

#[derive(Debug, Clone, Default)]
struct List {
    exact: HashSet<Box<str>, RandomState>,
    /// What stands before a trailing `*`; few, so they are tried one by one.
    prefixes: Vec<Box<str>>,
}

impl MethodPolicy {
    /// From names, exact (`message/send`) or with a trailing `*` (`tasks/*`, `*`). `None` lets every method through, an
    /// empty list none.
    ///
    /// # Errors
    /// Says which pattern is wrong: empty, longer than [`METHOD_LENGTH_MAX`], a `*` elsewhere, a control character, or
    /// there twice.
    pub fn new(patterns: Option<&[String]>) -> Result<Self, String> {
        let Some(patterns) = patterns else { return Ok(Self::default()) };
        let mut list = List::default();
        for pattern in patterns {
            let prefix = pattern.strip_suffix('*');
            let fixed = prefix.unwrap_or(pattern);
            if pattern.is_empty() {
                return Err("a method can't be empty".into());
            }
            if fixed.contains('*') {
                return Err(format!("method {pattern:?}: a * may only stand at the end"));
            }
            if pattern.len() > METHOD_LENGTH_MAX || pattern.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(format!("method {pattern:?}: at most {METHOD_LENGTH_MAX} bytes without white space"));
            }
            let new = match prefix {
                Some(prefix) if list.prefixes.iter().any(|p| **p == *prefix) => false,
                Some(prefix) => {
                    list.prefixes.push(prefix.into());
                    true
                }
                None => list.exact.insert(pattern.as_str().into()),
            };
            if !new {
                return Err(format!("method {pattern:?} is there twice"));
            }
        }
        Ok(Self { list: Some(list) })
    }

    /// Whether a method passes.
    pub fn allows(&self, method: &str) -> bool {
        let Some(list) = &self.list else { return true };
        list.exact.contains(method) || list.prefixes.iter().any(|prefix| method.starts_with(&**prefix))
    }

    /// As [`Self::allows`], on a method as scanned. Does not allocate.
    pub fn allows_text(&self, method: &Text<'_>) -> bool {
        if self.list.is_none() {
            return true;
        }
        // A decoded text is never longer than its spelling, and the scanner takes no longer method.
        method.decode_into(&mut [0; METHOD_LENGTH_MAX]).is_some_and(|method| self.allows(method))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(patterns: &[&str]) -> Result<MethodPolicy, String> {
        MethodPolicy::new(Some(&patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>()))
    }

    #[test]
    fn names_are_exact_or_begin_with_what_stands_before_the_star() {
        let policy = policy(&["message/send", "tasks/*"]).unwrap();
        for method in ["message/send", "tasks/get", "tasks/", "tasks/pushNotificationConfig/set"] {
            assert!(policy.allows(method), "{method}");
        }
        for method in ["", "message/sen", "message/send2", "Message/Send", "tasks", "task/get", "message/send\0"] {
            assert!(!policy.allows(method), "{method}");
        }
    }

    #[test]
    fn no_list_lets_everything_through_and_an_empty_one_nothing() {
        assert!(MethodPolicy::new(None).unwrap().allows("x"));
        assert!(!policy(&[]).unwrap().allows("x"));
        assert!(policy(&["*"]).unwrap().allows(""));
    }

    #[test]
    fn a_spelling_with_escapes_is_the_same_method() {
        let policy = policy(&["message/send"]).unwrap();
        assert!(policy.allows_text(&Text::new(r"message\/s\u0065nd", true)));
        assert!(!policy.allows_text(&Text::new(r"message\/s\u0066nd", true)));
        assert!(policy.allows_text(&Text::new("message/send", false)));
    }

    #[test]
    fn a_bad_pattern_says_why() {
        for bad in ["", "a*b", "**", "a b", "a\n", &"x".repeat(257)] {
            assert!(policy(&[bad]).is_err(), "{bad}");
        }
        assert!(policy(&["a", "a"]).unwrap_err().contains("twice"));
        assert!(policy(&["a*", "a*"]).unwrap_err().contains("twice"));
        assert!(policy(&["a", "a*"]).is_ok());
    }
}
