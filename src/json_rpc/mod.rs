//! The JSON-RPC 2.0 envelope: scan, refuse, answer (design, decision 5).

mod answer;
mod fault;
mod method_policy;
pub mod scan;
mod text;

pub use answer::error_body;
pub use fault::{EnvelopeError, Fault, ParseFault, ParseFaultKind};
pub use method_policy::MethodPolicy;
pub use scan::{Call, Envelope, Limits, Params, ParamsKind, scan};
pub use text::{RawId, Text};
