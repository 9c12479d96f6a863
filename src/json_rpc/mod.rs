//! The JSON-RPC 2.0 envelope: scan, refuse, answer (design, decision 5).
//!
//! [`scan`](scan()) reads a body once and builds nothing: it checks that the whole text is JSON and shows each call's method and
//! id, as slices of the body. The forwarded bytes are the received ones.

#[doc(hidden)]
pub mod agreement;
mod a2a_ids;
mod answer;
mod fault;
mod lexer;
mod method_policy;
mod plain;
pub mod scan;
mod schema;
mod text;

pub use a2a_ids::{A2aIds, a2a_ids};
pub use answer::{ID_ECHO_LENGTH_MAX, error_body};
pub use fault::{EnvelopeError, Fault, ParseFault, ParseFaultKind, RequestFault};
pub use lexer::DEPTH_MAX;
pub use method_policy::MethodPolicy;
pub use scan::{Call, Envelope, Limits, METHOD_LENGTH_MAX, Params, ParamsKind, scan};
pub use schema::{ParamsSchema, SCHEMA_DEPTH_MAX, VALUES_MAX};
pub use text::{RawId, Text};
