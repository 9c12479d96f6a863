//! Hosts, paths and methods of routes.

pub(super) fn host(text: &str) -> Result<String, String> {
    Ok(text.to_ascii_lowercase())
}

pub(super) fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("{text:?} does not begin with '/'")) }
}

pub(super) fn method(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

pub(super) fn rpc_method(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("a method can't be empty".into()) } else { Ok(text.to_owned()) }
}
