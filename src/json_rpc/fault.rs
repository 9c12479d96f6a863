//! Why a body is refused.
use super::RawId;

/// Not JSON, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseFault {
    /// What is wrong.
    pub kind: ParseFaultKind,
    /// Offset of the wrong byte.
    pub offset: usize,
}

/// What is wrong with text that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParseFaultKind {
    /// Ends too early; empty too.
    UnexpectedEnd,
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Not well-formed JSON.
    Parse(ParseFault),
    /// Nested deeper than the limit.
    TooDeep,
    /// JSON, not a request; says why.
    InvalidRequest(&'static str),
    /// A top-level key twice; says which.
    DuplicateKey(&'static str),
    /// A batch, where none is taken.
    BatchRefused,
    /// More calls than the limit.
    BatchTooLong,
}

impl EnvelopeError {
    /// -32700 for what is not JSON, else -32600.
    pub fn json_rpc_code(&self) -> i32 {
        match self {
            Self::Parse(_) => -32700,
            _ => -32600,
        }
    }
    /// Stable snake_case name for log and metrics.
    pub fn code(&self) -> &'static str {
        unimplemented!()
    }
    /// What the client is told.
    pub fn message(&self) -> &'static str {
        unimplemented!()
    }
}

/// A refusal with the request's id, where it was readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault<'a> {
    /// Why.
    pub error: EnvelopeError,
    /// The id of the call at fault.
    pub id: Option<RawId<'a>>,
}
