//! Hosts, paths and methods of routes, in their normal form.

use crate::json_rpc::MethodPolicy;
use crate::route::{HostPattern, MethodSet, PathPattern};

pub(super) fn host(text: &str) -> Result<String, String> {
    HostPattern::parse(text).map(|pattern| pattern.as_str().to_owned())
}

pub(super) fn path(text: &str) -> Result<String, String> {
    PathPattern::parse(text).map(|pattern| pattern.as_str().to_owned())
}

/// One path, for what can't be put together of a pattern.
pub(super) fn full_path(text: &str) -> Result<(), String> {
    match PathPattern::parse(text) {
        Ok(_) if text.ends_with("/*") => Err(format!("path {text:?}: one path is needed here, without a *")),
        parsed => parsed.map(|_| ()),
    }
}

pub(super) fn method(text: &str) -> Result<String, String> {
    MethodSet::parse(&[text]).map(|_| text.to_owned())
}

pub(super) fn rpc_method(text: &str) -> Result<String, String> {
    MethodPolicy::new(Some(&[text.to_owned()])).map(|_| text.to_owned())
}
