//! The query of an admin request: what it is about. A body would do too, but a line for `curl` is then harder to write.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// Longest query.
const LENGTH_MAX: usize = 4096;

/// Names and values, each name once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads `name=value&…` with names of `known` alone: one that is not understood must not be passed over.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(super) fn read(text: &str, known: &[&str]) -> Result<Self, String> {
        if text.len() > LENGTH_MAX {
            return Err("The query is too long.".to_owned());
        }
        let mut values = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| {
                let text = text.replace('+', " ");
                percent_decode_str(&text)
                    .decode_utf8()
                    .map(String::from)
                    .map_err(|_| "The query is no UTF-8.".to_owned())
            };
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !known.contains(&name.as_str()) {
                return Err(format!("{name:?} is no parameter here; there are: {}.", known.join(", ")));
            }
            if values.contains_key(&name) {
                return Err(format!("{name} is given twice."));
            }
            values.insert(name, value);
        }
        Ok(Self(values))
    }

    /// The value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A value that has to be there.
    ///
    /// # Errors
    /// It is not, or it is empty.
    pub(super) fn need(&self, name: &str) -> Result<&str, String> {
        self.get(name).filter(|value| !value.is_empty()).ok_or(format!("{name} is missing in the query."))
    }

    /// `true` or `false`, which is the default.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn flag(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(format!("{name} is true or false.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_what_is_not_understood_is_refused() {
        let known = ["node", "fleet"];
        let query = Query::read("node=http%3A%2F%2F%5B%3A%3A1%5D%3A3000&fleet=true&", &known).unwrap();
        assert_eq!(query.need("node"), Ok("http://[::1]:3000"));
        assert_eq!(query.flag("fleet"), Ok(true));
        assert_eq!(Query::read("node=http://a:1/?x=y", &known).unwrap().get("node"), Some("http://a:1/?x=y"));
        assert!(Query::read("", &known).unwrap().need("node").is_err());
        assert!(Query::read("fleet=yes", &known).unwrap().flag("fleet").is_err());
        for bad in ["nod=x", "node=%ff", "node=a&node=b"] {
            assert!(Query::read(bad, &known).is_err(), "{bad}");
        }
        assert!(Query::read(&format!("node={}", "x".repeat(5000)), &known).is_err());
    }
}
