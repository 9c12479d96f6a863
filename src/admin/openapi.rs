//! The API's description, for people and for programs.

/// OpenAPI 3.1. The tests hold it against the paths that there are and the answers that they give.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");
