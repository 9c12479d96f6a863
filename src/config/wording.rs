//! What serde says, in an operator's words.

use serde_yaml::Value;

use super::nearest::known_ones;

/// An error of decoding, taken apart.
#[derive(Debug, PartialEq)]
pub(super) enum Said<'a> {
    UnknownKey { key: &'a str, known: Vec<&'a str> },
    Missing { key: &'a str },
    WrongType { found: &'a str, expected: &'a str },
    Other(&'a str),
}

pub(super) fn take_apart(message: &str) -> Said<'_> {
    if let Some((key, rest)) = message.strip_prefix("unknown field `").and_then(|m| m.split_once("`, ")) {
        return Said::UnknownKey { key, known: quoted(rest) };
    }
    if let Some(key) = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`')) {
        return Said::Missing { key };
    }
    if let Some((found, expected)) = message.strip_prefix("invalid type: ").and_then(|m| m.split_once(", expected ")) {
        return Said::WrongType { found, expected };
    }
    Said::Other(message)
}

fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

impl Said<'_> {
    /// Whether the place takes text, so that a bare number or word is text there too.
    pub fn takes_text(&self) -> bool {
        match self {
            Said::WrongType { expected, .. } => {
                let other = ["a boolean", "a sequence", "a map", "u16", "u32", "u64", "i64", "usize", "f64"];
                !other.contains(expected) && !expected.starts_with("struct ")
            }
            _ => false,
        }
    }
}

/// What is wrong with `value`, and what to write.
pub(super) fn wrong_value(said: &Said<'_>, value: &Value) -> String {
    match said {
        Said::WrongType { expected, .. } => format!("{}; write {}", found(value), wanted(expected)),
        Said::Other(message) => {
            if let Some((word, rest)) = message.strip_prefix("unknown variant `").and_then(|m| m.split_once("`, ")) {
                return format!("{word:?} is unknown{}", known_ones(word, &quoted(rest)));
            }
            if let Some((_, expected)) =
                message.strip_prefix("invalid value: ").and_then(|m| m.split_once(", expected "))
            {
                return format!("{} can't stand here; write {}", shown(value), wanted(expected));
            }
            if *message == "invalid socket address syntax" {
                let port = "write an IP address and a port, such as 0.0.0.0:8443 or \"[::]:8443\"";
                return format!("{} is not an address to listen on; {port}", shown(value));
            }
            (*message).to_owned()
        }
        Said::UnknownKey { key, known } => format!("unknown key {key:?}{}", known_ones(key, known)),
        Said::Missing { key } => format!("the key {key:?} is missing"),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Null => "nothing".into(),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) | Value::Tagged(_) => "a block of keys".into(),
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing is written here".into(),
        Value::String(text) => format!("{text:?} is text"),
        Value::Number(n) => format!("{n} is a number"),
        Value::Bool(b) => format!("{b} is true-or-false"),
        Value::Sequence(_) => "this is a list".into(),
        Value::Mapping(_) | Value::Tagged(_) => "this is a block of keys".into(),
    }
}

/// What serde expects, without Rust's words.
fn wanted(expected: &str) -> String {
    if expected.starts_with("struct ") || expected == "a map" {
        return "a block of keys".into();
    }
    match expected {
        "a sequence" => "a list".into(),
        "a boolean" => "true or false".into(),
        "a string" => "text".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => "a whole number from 0 to 4294967295".into(),
        "u64" | "usize" => "a whole number".into(),
        "socket address" => "an IP address and a port, such as 0.0.0.0:8443".into(),
        "string or map" | "enum" | "a Value::Tagged enum" => "one word".into(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_s_words_are_taken_apart() {
        let unknown = take_apart("unknown field `hst`, expected one of `name`, `hosts`");
        assert_eq!(unknown, Said::UnknownKey { key: "hst", known: vec!["name", "hosts"] });
        assert_eq!(take_apart("missing field `name`"), Said::Missing { key: "name" });
        let wrong = take_apart("invalid type: integer `3`, expected a name");
        assert!(wrong.takes_text());
        assert_eq!(wrong_value(&wrong, &3.into()), "3 is a number; write a name");
    }

    #[test]
    fn rust_s_words_are_not_shown() {
        let said = take_apart("invalid type: string \"x\", expected struct ListenerLimits");
        assert!(!said.takes_text());
        assert_eq!(wrong_value(&said, &"x".into()), "\"x\" is text; write a block of keys");
        let said = take_apart("invalid value: integer `70000`, expected u16");
        assert_eq!(wrong_value(&said, &70000.into()), "70000 can't stand here; write a whole number from 0 to 65535");
        let said = take_apart("invalid type: unit value, expected a Value::Tagged enum");
        assert_eq!(wrong_value(&said, &Value::Null), "nothing is written here; write one word");
        let said = take_apart("unknown variant `htps`, expected `https` or `http`");
        assert!(wrong_value(&said, &"htps".into()).ends_with("known: https, http (did you mean \"https\"?)"));
    }
}
