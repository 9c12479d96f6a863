//! How a request's line looks: JSON, the combined format of Apache and nginx, or an operator's template.
//!
//! Whatever a client sends, it writes neither a line nor a field of its own: controls, quotes, backslashes and what steers a
//! terminal are written as JSON escapes in every format, and so is a space outside of quotes.

use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderName;

use super::fields::{DETAIL_BYTES_MAX, Field, NAME_BYTES_MAX, Value};
use super::json_line::{JsonLine, civil, push_address, push_cut, push_number, push_time};
use super::record::AccessRecord;

/// What stands for a value that must not be seen: that there was one.
const REDACTED: &[u8] = b"[redacted]";
/// Before a header's name, in JSON and in templates.
const HEADER: &str = "header.";
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The form of a request's line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    #[default]
    Json,
    /// `client - peer [time] "request" status bytes "referer" "user agent"`; the referer only if it is among the headers.
    Combined,
    /// An operator's own.
    Template(Template),
}

/// A text with `{field}` and `{header.name}` in it; `{{` and `}}` are braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `quoted`: between two quotes of the template.
    Value {
        what: Named,
        quoted: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    Field(Field),
    /// Index into [`Extras::headers`].
    Header(usize),
}

/// What an operator adds and hides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    headers: Vec<(HeaderName, bool)>,
    hidden: u128,
}

impl Extras {
    /// Request headers that are logged too, and names (of them, or of fields) whose value is not shown.
    ///
    /// # Errors
    /// The index in `redact` of what is neither, and why.
    pub fn new(headers: &[HeaderName], redact: &[String]) -> Result<Self, (usize, String)> {
        let mut extras = Self { headers: headers.iter().map(|name| (name.clone(), false)).collect(), hidden: 0 };
        for (at, name) in redact.iter().enumerate() {
            let lower = name.to_ascii_lowercase();
            if let Some((_, hidden)) = extras.headers.iter_mut().find(|(header, _)| *header == lower.as_str()) {
                *hidden = true;
            } else if let Some(field) = Field::ALL.iter().find(|field| field.name() == name) {
                let always = [Field::Time, Field::Event, Field::Listener, Field::Method, Field::HttpVersion];
                if always.contains(field) || !field.holds_text() {
                    return Err((at, format!("{name} tells nothing of a client, and is always shown")));
                }
                extras.hidden |= 1 << *field as u32;
            } else {
                return Err((at, format!("{name:?} is neither a field nor one of headers")));
            }
        }
        Ok(extras)
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.hidden == 0
    }

    fn value<'a>(&self, field: Field, record: &AccessRecord<'a>) -> Value<'a> {
        self.shown(field, field.of(record))
    }

    /// A value of this field as it may be seen.
    pub(super) fn shown<'a>(&self, field: Field, value: Value<'a>) -> Value<'a> {
        match value {
            Value::Text(..) | Value::Address(_) if self.hidden & (1 << field as u32) != 0 => {
                Value::Text(REDACTED, NAME_BYTES_MAX)
            }
            value => value,
        }
    }

    fn header<'a>(&self, at: usize, record: &AccessRecord<'a>) -> Option<&'a [u8]> {
        let (name, hidden) = self.headers.get(at)?;
        let value = record.headers?.get(name)?;
        Some(if *hidden { REDACTED } else { value.as_bytes() })
    }
}

impl Field {
    /// Whether it holds a text of somebody's, and no number or moment.
    fn holds_text(self) -> bool {
        use std::time::Duration;
        let full = AccessRecord {
            rpc_calls: Some(1),
            waf_score: Some(1),
            body: Some(Duration::ZERO),
            upstream_queue: Some(Duration::ZERO),
            upstream_connect: Some(Duration::ZERO),
            upstream_first_byte: Some(Duration::ZERO),
            ..AccessRecord::new(UNIX_EPOCH, "", [0, 0, 0, 0].into())
        };
        matches!(self.of(&full), Value::Text(..) | Value::Address(_) | Value::Absent)
    }
}

impl Template {
    /// Parses a template; `headers` are those that it may name.
    ///
    /// # Errors
    /// What is wrong with it, and the right names.
    pub fn parse(text: &str, headers: &[HeaderName]) -> Result<Self, String> {
        if text.is_empty() || text.len() > 4096 {
            return Err("a template has 1 to 4096 bytes".into());
        }
        if text.contains(|c: char| c.is_control() && c != '\t') {
            return Err("a template is one line: no control characters but tabs".into());
        }
        let (mut parts, mut literal, mut quoted, mut rest) = (Vec::new(), String::new(), false, text);
        while let Some(c) = rest.chars().next() {
            let doubled = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}"));
            if let Some(after) = doubled {
                literal.push(c);
                rest = after;
            } else if c == '{' {
                let Some((name, after)) = rest[1..].split_once('}') else {
                    return Err("a { without its }; write {{ for the character itself".into());
                };
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::Value { what: named(name, headers)?, quoted });
                rest = after;
            } else if c == '}' {
                return Err("a } without its {; write }} for the character itself".into());
            } else {
                quoted ^= c == '"';
                literal.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }
}

fn named(name: &str, headers: &[HeaderName]) -> Result<Named, String> {
    if let Some(header) = name.strip_prefix(HEADER) {
        let header = header.to_ascii_lowercase();
        let at = headers.iter().position(|known| *known == header.as_str());
        return at.map(Named::Header).ok_or_else(|| format!("{{{name}}}: {header} must be one of access_log.headers"));
    }
    let field = Field::ALL.iter().find(|field| field.name() == name);
    field.map(|field| Named::Field(*field)).ok_or_else(|| {
        let known: Vec<_> = Field::ALL.iter().map(|field| field.name()).collect();
        format!("{{{name}}} is no field; known: {}, header.NAME", known.join(", "))
    })
}

impl LogFormat {
    /// Appends a request's line, without its end.
    pub(super) fn write(&self, record: &AccessRecord<'_>, extras: &Extras, out: &mut Vec<u8>) {
        match self {
            LogFormat::Json if extras.is_empty() => record.write_json(out),
            LogFormat::Json => write_json(record, extras, out),
            LogFormat::Combined => write_combined(record, extras, out),
            LogFormat::Template(Template(parts)) => {
                for part in parts {
                    match part {
                        Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                        Part::Value { what: Named::Field(field), quoted } => {
                            push_value(out, extras.value(*field, record), *quoted);
                        }
                        Part::Value { what: Named::Header(at), quoted } => {
                            push_value(out, header_value(extras.header(*at, record)), *quoted);
                        }
                    }
                }
            }
        }
    }
}

fn header_value(value: Option<&[u8]>) -> Value<'_> {
    value.map_or(Value::Absent, |value| Value::Text(value, DETAIL_BYTES_MAX))
}

fn write_json(record: &AccessRecord<'_>, extras: &Extras, out: &mut Vec<u8>) {
    let mut line = JsonLine::begin(out);
    for field in Field::ALL {
        line.value(field.name(), extras.value(*field, record));
    }
    for (at, (name, _)) in extras.headers.iter().enumerate() {
        if let Some(value) = extras.header(at, record) {
            line.text_of(HEADER, name.as_str(), value, DETAIL_BYTES_MAX);
        }
    }
    line.end();
}

fn write_combined(record: &AccessRecord<'_>, extras: &Extras, out: &mut Vec<u8>) {
    push_value(out, extras.value(Field::Client, record), false);
    out.extend_from_slice(b" - ");
    push_value(out, extras.value(Field::Peer, record), false);
    out.extend_from_slice(b" [");
    push_common_time(out, record.time);
    out.extend_from_slice(b"] \"");
    push_value(out, extras.value(Field::Method, record), false);
    out.push(b' ');
    push_value(out, extras.value(Field::Path, record), false);
    out.push(b' ');
    push_value(out, extras.value(Field::HttpVersion, record), false);
    out.extend_from_slice(b"\" ");
    push_number(out, record.status.into());
    out.push(b' ');
    push_number(out, record.bytes_out);
    out.extend_from_slice(b" \"");
    let referer = extras.headers.iter().position(|(name, _)| *name == http::header::REFERER);
    push_value(out, header_value(referer.and_then(|at| extras.header(at, record))), true);
    out.extend_from_slice(b"\" \"");
    push_value(out, extras.value(Field::UserAgent, record), true);
    out.push(b'"');
}

/// `-` for what is absent, as in every log of this kind.
fn push_value(out: &mut Vec<u8>, value: Value<'_>, quoted: bool) {
    match value {
        Value::Absent | Value::Text([], _) => out.push(b'-'),
        Value::Text(text, bytes_max) if quoted => push_cut(out, text, bytes_max),
        Value::Text(text, bytes_max) => {
            let start = out.len();
            push_cut(out, text, bytes_max);
            if memchr::memchr(b' ', &out[start..]).is_some() {
                let text = out.split_off(start);
                let words: Vec<_> = text.split(|b| *b == b' ').collect();
                out.extend_from_slice(&words.join(b"\\u0020".as_slice()));
            }
        }
        Value::Number(number) => push_number(out, number),
        Value::Micros(duration) => push_number(out, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        Value::Address(address) => push_address(out, address),
        Value::Time(time) => push_time(out, time),
    }
}

/// `21/Nov/2026:22:30:05 +0000`
fn push_common_time(out: &mut Vec<u8>, time: SystemTime) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let two = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&[b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8]);
    two(out, day);
    out.push(b'/');
    let month = usize::try_from(month).ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)));
    out.extend_from_slice(month.map_or(b"---".as_slice(), |month| month.as_bytes()));
    out.push(b'/');
    push_number(out, year);
    let second = seconds % 86_400;
    for part in [second / 3600, second / 60 % 60, second % 60] {
        out.push(b':');
        two(out, part);
    }
    out.extend_from_slice(b" +0000");
}

#[cfg(test)]
#[path = "log_format_tests.rs"]
mod tests;
