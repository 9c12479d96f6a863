//! The gateway's own answers.
use super::RawId;

/// `{"jsonrpc":"2.0","id":…,"error":{"code":…,"message":…,"data":…}}`. `data` is raw JSON.
pub fn error_body(id: Option<RawId<'_>>, code: i32, message: &str, data: Option<&str>) -> Vec<u8> {
    let _ = (id, code, message, data);
    unimplemented!()
}
