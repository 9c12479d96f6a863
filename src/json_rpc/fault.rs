//! Why a body is refused.

use std::fmt;

use super::RawId;

/// Not JSON, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseFault {
    /// What is wrong.
    pub kind: ParseFaultKind,
    /// Offset of the wrong byte, from 0.
    pub offset: usize,
}

/// What is wrong with a text that is not JSON (RFC 8259).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParseFaultKind {
    /// Ends too early; an empty body, too.
    UnexpectedEnd,
    /// Another byte was expected by the grammar.
    UnexpectedByte,
    /// A zero byte, in a string or between: not JSON in UTF-8, perhaps UTF-16.
    Nul,
    /// A byte order mark at the beginning (RFC 8259, section 8.1).
    ByteOrderMark,
    /// Not UTF-8.
    NotUtf8,
    /// A control character unescaped in a string.
    ControlCharacter,
    /// A backslash with something after it that is no escape.
    BadEscape,
    /// An escaped half of a surrogate pair without the other: no Unicode string. RFC 8259, section 8.2, allows it and
    /// leaves open what it means, so two parsers differ; refused in every string, where `serde_json` only refuses it in
    /// strings that it decodes.
    LoneSurrogate,
    /// `01`, `1.`, `.5`, `1e`, `-`, …
    BadNumber,
    /// More text after the value.
    TrailingText,
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Not well-formed JSON.
    Parse(ParseFault),
    /// Objects and arrays nested deeper than the limit.
    TooDeep,
    /// JSON, not a request (JSON-RPC 2.0, section 4).
    InvalidRequest(RequestFault),
    /// `jsonrpc`, `method`, `id` or `params` twice, in whatever spelling: parsers disagree on which one counts.
    DuplicateKey(&'static str),
    /// A batch, where none is taken.
    BatchRefused,
    /// More calls than the limit.
    BatchTooLong,
}

/// Why JSON is no request (JSON-RPC 2.0, sections 4 and 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestFault {
    /// A single value that is neither an object nor an array.
    NotAnObject,
    /// An array without calls.
    EmptyBatch,
    /// A batch with something in it that is no object.
    CallNotAnObject,
    /// `jsonrpc` is missing, or is not the string `2.0`.
    Version,
    /// `method` is missing.
    MethodMissing,
    /// `method` is not a string.
    MethodNotAString,
    /// `method` is longer than [`super::METHOD_LENGTH_MAX`].
    MethodTooLong,
    /// `id` is neither a string nor a number nor null.
    IdType,
    /// `params` is neither an object nor an array.
    ParamsType,
}

impl EnvelopeError {
    /// -32700 (parse error) for what is not JSON, else -32600 (invalid request).
    pub fn json_rpc_code(&self) -> i32 {
        match self {
            Self::Parse(_) => -32700,
            Self::TooDeep
            | Self::InvalidRequest(_)
            | Self::DuplicateKey(_)
            | Self::BatchRefused
            | Self::BatchTooLong => -32600,
        }
    }

    /// Stable snake_case name for log and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Parse(fault) => fault.kind.row().0,
            Self::TooDeep => "json_too_deep",
            Self::InvalidRequest(fault) => fault.row().0,
            Self::DuplicateKey("jsonrpc") => "rpc_duplicate_jsonrpc",
            Self::DuplicateKey("method") => "rpc_duplicate_method",
            Self::DuplicateKey("id") => "rpc_duplicate_id",
            Self::DuplicateKey(_) => "rpc_duplicate_params",
            Self::BatchRefused => "rpc_batch_refused",
            Self::BatchTooLong => "rpc_batch_too_long",
        }
    }

    /// Everything that [`Self::code`] may say.
    pub const CODES: &'static [&'static str] = &[
        "json_unexpected_end",
        "json_unexpected_byte",
        "json_nul",
        "json_byte_order_mark",
        "json_not_utf8",
        "json_control_character",
        "json_bad_escape",
        "json_lone_surrogate",
        "json_bad_number",
        "json_trailing_text",
        "json_too_deep",
        "rpc_not_an_object",
        "rpc_empty_batch",
        "rpc_call_not_an_object",
        "rpc_version",
        "rpc_method_missing",
        "rpc_method_not_a_string",
        "rpc_method_too_long",
        "rpc_id_type",
        "rpc_params_type",
        "rpc_duplicate_jsonrpc",
        "rpc_duplicate_method",
        "rpc_duplicate_id",
        "rpc_duplicate_params",
        "rpc_batch_refused",
        "rpc_batch_too_long",
    ];

    /// What the client is told.
    pub fn message(&self) -> &'static str {
        match self {
            Self::Parse(fault) => fault.kind.row().1,
            Self::TooDeep => "The JSON is nested too deeply.",
            Self::InvalidRequest(fault) => fault.row().1,
            Self::DuplicateKey("jsonrpc") => "The member \"jsonrpc\" came twice.",
            Self::DuplicateKey("method") => "The member \"method\" came twice.",
            Self::DuplicateKey("id") => "The member \"id\" came twice.",
            Self::DuplicateKey(_) => "The member \"params\" came twice.",
            Self::BatchRefused => "Batches are not accepted here.",
            Self::BatchTooLong => "The batch holds too many calls.",
        }
    }
}

impl RequestFault {
    fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::NotAnObject => ("rpc_not_an_object", "The body is not a JSON-RPC request object."),
            Self::EmptyBatch => ("rpc_empty_batch", "The batch is empty."),
            Self::CallNotAnObject => ("rpc_call_not_an_object", "A call of the batch is not an object."),
            Self::Version => ("rpc_version", "\"jsonrpc\" is not \"2.0\"."),
            Self::MethodMissing => ("rpc_method_missing", "\"method\" is missing."),
            Self::MethodNotAString => ("rpc_method_not_a_string", "\"method\" is not a string."),
            Self::MethodTooLong => ("rpc_method_too_long", "\"method\" is too long."),
            Self::IdType => ("rpc_id_type", "\"id\" is neither a string nor a number nor null."),
            Self::ParamsType => ("rpc_params_type", "\"params\" is neither an object nor an array."),
        }
    }
}

impl ParseFaultKind {
    fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::UnexpectedEnd => ("json_unexpected_end", "The JSON text ends too early."),
            Self::UnexpectedByte => ("json_unexpected_byte", "The body is not valid JSON."),
            Self::Nul => ("json_nul", "The body holds a NUL byte; JSON is UTF-8."),
            Self::ByteOrderMark => ("json_byte_order_mark", "The body begins with a byte order mark."),
            Self::NotUtf8 => ("json_not_utf8", "The body is not UTF-8."),
            Self::ControlCharacter => ("json_control_character", "A string holds an unescaped control character."),
            Self::BadEscape => ("json_bad_escape", "A string holds a bad escape."),
            Self::LoneSurrogate => ("json_lone_surrogate", "A string holds half of a surrogate pair."),
            Self::BadNumber => ("json_bad_number", "The body holds a malformed number."),
            Self::TrailingText => ("json_trailing_text", "There is text after the JSON value."),
        }
    }
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parse(fault) => write!(f, "{} (byte {})", fault.kind.row().1, fault.offset),
            _ => f.write_str(self.message()),
        }
    }
}

impl std::error::Error for EnvelopeError {}

/// A refusal, with the request's id where it was readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault<'a> {
    /// Why.
    pub error: EnvelopeError,
    /// The id of the call at fault, if it stood before what ended the scan. `None` if it was missing, of a wrong type, or
    /// there twice.
    pub id: Option<RawId<'a>>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The metrics show them from the start: one that is missing here is missing there until it happens.
    #[test]
    fn every_code_is_in_the_list() {
        let source = include_str!("fault.rs").split_once("fn json_rpc_code").unwrap().1;
        let source = source.split_once("#[cfg(test)]").unwrap().0;
        let code = regex::Regex::new(r#"=> \(?"((?:rpc|json)_[a-z0-9_]+)""#).unwrap();
        let written: BTreeSet<_> = code.captures_iter(source).map(|found| found.get(1).unwrap().as_str()).collect();
        assert_eq!(EnvelopeError::CODES.iter().copied().collect::<BTreeSet<_>>(), written);
        assert_eq!(EnvelopeError::CODES.len(), written.len());
    }
}
