//! server

/// stub
pub fn run(_: &std::path::Path) -> Result<(), String> {
    Err("not built yet".into())
}
