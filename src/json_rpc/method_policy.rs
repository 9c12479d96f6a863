//! `routes[].json_rpc.methods`.
use super::Text;

/// The methods that a route lets through.
#[derive(Debug, Clone, Default)]
pub struct MethodPolicy {}

impl MethodPolicy {
    /// `None` lets every method through. Exact names, or with a trailing `*`.
    pub fn new(patterns: Option<&[String]>) -> Result<Self, String> {
        let _ = patterns;
        Ok(Self {})
    }
    /// Whether a method passes.
    pub fn allows(&self, method: &str) -> bool {
        let _ = method;
        unimplemented!()
    }
    /// As [`Self::allows`], on a method as scanned; never allocates.
    pub fn allows_text(&self, method: &Text<'_>) -> bool {
        let _ = method;
        unimplemented!()
    }
}
