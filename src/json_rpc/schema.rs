//! JSON Schema for `params`: what the methods of a route take.
//!
//! Here, and only here, values are built. So there is a limit on how many, and a member that comes twice is refused:
//! the schema would see one of them, and a node perhaps the other.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, Validator};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::files::open_regular;

/// Most values (objects, arrays, strings, numbers, …) in `params` that are held against a schema. Each takes up to some
/// hundred bytes while that lasts.
pub const VALUES_MAX: usize = 100_000;
/// Deepest nesting of a body whose `params` are held against a schema: `serde_json` goes no deeper.
pub const SCHEMA_DEPTH_MAX: u16 = 128;
/// Longest schema, in bytes.
pub const SCHEMA_BYTES_MAX: u64 = 1 << 20;
/// Most parts of a schema that are looked at to see whether it is plain; each as often as something refers to it.
const PLAIN_STEPS_MAX: u32 = 10_000;
/// Longest place in the client's JSON that the log is told, in bytes.
const PLACE_LENGTH_MAX: usize = 160;

/// What one method takes.
#[derive(Debug)]
pub struct ParamsSchema {
    validator: Validator,
    /// Whether the first fault can be looked for without the work or the memory multiplying: see [`is_plain`].
    plain: bool,
}

impl ParamsSchema {
    /// Compiles a JSON Schema (drafts 4 to 2020-12; 2020-12 without `$schema`). Patterns run in linear time, and nothing
    /// is fetched: a `$ref` leads into the same text.
    ///
    /// # Errors
    /// Says what is wrong and what to do.
    pub fn compile(text: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let options = jsonschema::options().offline().with_pattern_options(PatternOptions::regex());
        let plain = is_plain(&schema);
        options.build(&schema).map(|validator| Self { validator, plain }).map_err(|e| match e.kind() {
            ValidationErrorKind::Referencing(why) => {
                format!("{why}; nothing is fetched, so put what is referred to under $defs of this file")
            }
            ValidationErrorKind::Format { format } if format == "regex" => {
                let why = "patterns run in linear time: no look-around and no back-references";
                format!("{} at {}; {why}", e, e.instance_path())
            }
            _ => match e.instance_path().as_str() {
                "" => format!("not a JSON Schema: {e}"),
                place => format!("not a JSON Schema: {e} at {place}"),
            },
        })
    }

    /// Reads and compiles a file of at most [`SCHEMA_BYTES_MAX`].
    ///
    /// # Errors
    /// The file's, and those of [`Self::compile`].
    pub fn load(file: &Path) -> Result<Self, String> {
        let cannot = |e: io::Error| format!("can't be read: {e}");
        let mut text = String::new();
        let opened = open_regular(file).map_err(cannot)?;
        opened.take(SCHEMA_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
        if text.len() as u64 > SCHEMA_BYTES_MAX {
            return Err(format!("longer than {} MiB", SCHEMA_BYTES_MAX >> 20));
        }
        Self::compile(&text)
    }

    /// Holds `params`, as scanned, against the schema. Missing ones count as `{}`. The work is at most the product of
    /// what the schema and the params hold, however they are nested: what a `$ref` that goes round said of a value is
    /// remembered.
    ///
    /// # Errors
    /// For the log: where and why they don't fit. No value of the client's is in it.
    pub fn check(&self, params: Option<&str>) -> Result<(), String> {
        let value = match params {
            None => Value::Object(Map::new()),
            Some(text) => read(text)?,
        };
        if self.validator.is_valid(&value) {
            return Ok(());
        }
        if !self.plain {
            return Err("params: the schema, which has branches or goes round, does not take them".into());
        }
        match self.validator.validate(&value) {
            Ok(()) => Ok(()),
            Err(e) => Err(format!("{}: the schema's {}", place(e.instance_path().as_str()), e.schema_path().as_str())),
        }
    }
}

/// Whether a search for the first fault ends there, and looks at each value no more often than the schema's text says.
/// With branches it would gather the faults of each, and round a circle it would do so again at each level of the
/// client's nesting, twice as often each time.
fn is_plain(schema: &Value) -> bool {
    let mut left = PLAIN_STEPS_MAX;
    is_plain_from(schema, schema, &mut Vec::new(), &mut left)
}

/// `way`: what leads to `at`. A part that is met on its own way goes round.
fn is_plain_from<'s>(root: &'s Value, at: &'s Value, way: &mut Vec<&'s Value>, left: &mut u32) -> bool {
    let parts: Vec<(&str, &'s Value)> = match at {
        Value::Object(members) => members.iter().map(|(name, value)| (name.as_str(), value)).collect(),
        Value::Array(items) => items.iter().map(|value| ("", value)).collect(),
        _ => return true,
    };
    if *left == 0 || way.len() > usize::from(SCHEMA_DEPTH_MAX) || way.iter().any(|above| std::ptr::eq(*above, at)) {
        return false;
    }
    *left -= 1;
    way.push(at);
    let plain = parts.into_iter().all(|(name, value)| match (name, value) {
        ("anyOf" | "oneOf" | "$dynamicRef" | "$recursiveRef", _) => false,
        // A text of its own within the text, with a root of its own.
        ("$id" | "id", Value::String(_)) if !std::ptr::eq(root, at) => false,
        ("$ref", Value::String(to)) => {
            to.strip_prefix('#').and_then(|to| root.pointer(to)).is_some_and(|to| is_plain_from(root, to, way, left))
        }
        _ => is_plain_from(root, value, way, left),
    });
    way.pop();
    plain
}

/// `params/message/kind`, not too long: member names are the client's.
fn place(pointer: &str) -> String {
    let end = (0..=pointer.len().min(PLACE_LENGTH_MAX)).rev().find(|i| pointer.is_char_boundary(*i)).unwrap_or(0);
    let more = if end < pointer.len() { "…" } else { "" };
    format!("params{}{more}", &pointer[..end])
}

fn read(text: &str) -> Result<Value, String> {
    let mut left = VALUES_MAX;
    let mut text = serde_json::Deserializer::from_str(text);
    Counted(&mut left).deserialize(&mut text).map_err(|e| {
        let why = e.to_string();
        // serde_json's own words on numbers and depth, and ours, come with a place in the text.
        format!("params: {}", why.split(" at line ").next().unwrap_or_default())
    })
}

/// Builds a value, and counts down for it and each below it.
struct Counted<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| D::Error::custom(format_args!("over {VALUES_MAX} values")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Counted(&mut *self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Counted(&mut *self.0))?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member came twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const MESSAGE: &str = r##"{ "type": "object", "required": ["message"], "properties": { "message": { "$ref": "#/$defs/message" } },
        "$defs": { "message": { "type": "object", "required": ["kind"], "properties": {
            "kind": { "const": "message" }, "id": { "pattern": "^[a-z]{1,8}$" }, "n": { "maximum": 5 },
            "parts": { "items": { "type": "string" } } } } } }"##;

    fn refused(params: Option<&str>) -> String {
        ParamsSchema::compile(MESSAGE).unwrap().check(params).unwrap_err()
    }

    #[test]
    fn params_are_held_against_the_schema_and_the_log_is_told_where_they_fail() {
        let schema = ParamsSchema::compile(MESSAGE).unwrap();
        for good in
            [r#"{"message":{"kind":"message"}}"#, r#"{"message":{"kind":"m\u0065ssage","id":"abc","n":5,"parts":[]}}"#]
        {
            assert_eq!(schema.check(Some(good)), Ok(()), "{good}");
        }
        for (bad, place) in [
            (r#"{"message":{"kind":"secret"}}"#, "params/message/kind: "),
            (r#"{"message":{}}"#, "params/message: "),
            (r#"{"message":{"kind":"message","id":"ABC"}}"#, "params/message/id: "),
            (r#"{"message":{"kind":"message","n":6}}"#, "params/message/n: "),
            (r#"{"message":{"kind":"message","parts":["a",1]}}"#, "params/message/parts/1: "),
            ("[]", "params: "),
            ("{}", "params: "),
        ] {
            let why = refused(Some(bad));
            assert!(why.starts_with(place) && !why.contains("secret"), "{bad}: {why}");
        }
        assert!(refused(None).ends_with("/required"), "missing params are an empty object");
    }

    #[test]
    fn what_parsers_read_in_two_ways_is_refused() {
        for (bad, why) in [
            (r#"{"message":{"kind":"x","kind":"message"}}"#, "twice"),
            (r#"{"message":{"kind":"x","k\u0069nd":"message"}}"#, "twice"),
            (r#"{"message":{"kind":"message","n":1e400}}"#, "out of range"),
        ] {
            assert!(refused(Some(bad)).contains(why), "{}", refused(Some(bad)));
        }
    }

    #[test]
    fn a_schema_costs_no_more_than_its_limits() {
        assert!(refused(Some(&format!("[{}0]", "0,".repeat(VALUES_MAX)))).contains("100000 values"));
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(refused(Some(&nested(200))).contains("recursion limit"));
        assert!(refused(Some(&nested(usize::from(SCHEMA_DEPTH_MAX) - 1))).contains("type"), "deep, but read");
        let long =
            refused(Some(&format!(r#"{{"message":{{"kind":"message","parts":[{}]}}}}"#, "\"a\",".repeat(9) + "1")));
        assert!(long.len() < 300, "{long}");
        // Catastrophic for an engine that backtracks.
        let schema = ParamsSchema::compile(r#"{"properties":{"a":{"pattern":"^(a+)+$"}}}"#).unwrap();
        assert!(schema.check(Some(&format!(r#"{{"a":"{}b"}}"#, "a".repeat(100_000)))).is_err());
    }

    #[test]
    fn a_schema_that_goes_round_in_circles_ends() {
        for schema in [
            r##"{"$ref":"#"}"##,
            r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##,
            r##"{"allOf":[{"$ref":"#"}]}"##,
        ] {
            assert_eq!(ParamsSchema::compile(schema).unwrap().check(Some("{}")), Ok(()), "{schema}");
        }
        // One that follows the client's nesting goes no deeper than that may be.
        let tree = r##"{"type":["array","object"],"items":{"$ref":"#"},"additionalProperties":{"$ref":"#"}}"##;
        let deep = format!("{}1{}", "[{\"a\":".repeat(63), "}]".repeat(63));
        assert!(ParamsSchema::compile(tree).unwrap().check(Some(&deep)).unwrap_err().contains("goes round"));
    }

    /// Each of these asks the same of the same value in two ways at every level of the client's nesting.
    #[test]
    fn the_clients_nesting_does_not_multiply_the_work() {
        let branches = |of: &str| {
            let branch = |op: &str| {
                format!(
                    r##"{{"type":"object","properties":{{"op":{{"const":"{op}"}},"a":{{"$ref":"#"}},"z":{{"$ref":"#"}}}},
                        "required":["op"]}}"##
                )
            };
            format!(r#"{{"{of}":[{},{}]}}"#, branch("and"), branch("or"))
        };
        let child = r##"{"properties":{"a":{"$ref":"#"},"sub":{"items":{"$ref":"#"}}}}"##;
        let schemas = [
            branches("anyOf"),
            branches("oneOf"),
            format!(r#"{{"type":"object","oneOf":[{child},{child},{child}]}}"#),
            format!(r#"{{"type":"object","allOf":[{child},{child}]}}"#),
            format!(r#"{{"type":"object","not":{{"anyOf":[{{"not":{child}}},{{"not":{child}}}]}}}}"#),
            format!(r#"{{"type":"object","if":{child},"then":{child},"else":{child}}}"#),
            format!(r#"{{"type":"object","anyOf":[{child},{child}],"unevaluatedProperties":false}}"#),
            r##"{"type":"object","properties":{"a":{"$ref":"#"}},"patternProperties":{"a":{"$ref":"#"},"^a":{"$ref":"#"}}}"##
                .to_owned(),
            r##"{"$dynamicAnchor":"n","type":"object","anyOf":[{"properties":{"a":{"$dynamicRef":"#n"}},"required":["no"]},
                {"properties":{"a":{"$dynamicRef":"#n"}}, "maxProperties":9}]}"##
                .to_owned(),
            r##"{"$id":"https://example.com/s","type":"object","anyOf":[{"properties":{"a":{"$ref":"#n"}}},
                {"properties":{"a":{"$ref":"#n"},"b":true}}],"$defs":{"n":{"$anchor":"n","$ref":"https://example.com/s"}}}"##
                .to_owned(),
            r##"{"$schema":"https://json-schema.org/draft/2019-09/schema","$recursiveAnchor":true,"type":"object",
                "anyOf":[{"properties":{"a":{"$recursiveRef":"#"}}},{"additionalProperties":{"$recursiveRef":"#"}}]}"##
                .to_owned(),
            include_str!("../../tests/fixtures/schemas/tree.json").to_owned(),
        ];
        for (i, schema) in schemas.iter().enumerate() {
            let schema = ParamsSchema::compile(schema).unwrap_or_else(|e| panic!("{i}: {e}"));
            for leaf in ["1", r#"{"op":"or"}"#, r#"{"op":"is","field":1}"#] {
                let levels = [
                    ("{\"op\":\"or\",\"a\":", "}"),
                    ("{\"a\":", ",\"op\":\"and\"}"),
                    ("{\"op\":\"all\",\"sub\":[", "]}"),
                ];
                for (open, close) in levels {
                    let levels = if open.ends_with('[') { 60 } else { 120 };
                    let nested = format!("{}{leaf}{}", open.repeat(levels), close.repeat(levels));
                    let doc = format!(r#"{{"op":"or","filter":{nested},"a":{nested},"sub":[{nested}]}}"#);
                    let start = Instant::now();
                    let _ = schema.check(Some(&doc));
                    let took = start.elapsed();
                    assert!(took < Duration::from_secs(2), "schema {i}, {leaf}: {took:?}");
                }
            }
        }
    }

    #[test]
    fn a_bad_schema_says_what_to_do() {
        for (schema, why) in [
            ("{", "not JSON"),
            ("3", "not a JSON Schema"),
            (r#"{"type":"strin"}"#, "at /type"),
            (r#"{"$ref":"https://example.com/a.json"}"#, "under $defs"),
            (r#"{"$ref":"other.json"}"#, "under $defs"),
            (r##"{"$ref":"#/$defs/none"}"##, "none"),
            (r#"{"properties":{"a":{"pattern":"(?=a)b"}}}"#, "linear time"),
            (r#"{"properties":{"a":{"pattern":"(a)\\1"}}}"#, "linear time"),
        ] {
            let said = ParamsSchema::compile(schema).unwrap_err();
            assert!(said.contains(why), "{schema}: {said}");
        }
    }
}
