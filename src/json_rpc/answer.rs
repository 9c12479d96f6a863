//! The gateway's own answers in JSON-RPC's shape.

use super::RawId;

/// Longest id, in bytes of JSON text, that an answer repeats; a longer one is answered with null.
pub const ID_ECHO_LENGTH_MAX: usize = 1024;

/// An error response (JSON-RPC 2.0, section 5): `{"jsonrpc":"2.0","id":…,"error":{"code":…,"message":…,"data":…}}`.
///
/// `id` is repeated as the client wrote it; without one, or with one over [`ID_ECHO_LENGTH_MAX`], it is null. `data` is
/// JSON text and goes in as it is.
pub fn error_body(id: Option<RawId<'_>>, code: i32, message: &str, data: Option<&str>) -> Vec<u8> {
    let id = id.map(|id| id.as_str()).filter(|id| id.len() <= ID_ECHO_LENGTH_MAX).unwrap_or("null");
    // A string always has a JSON form.
    let message = serde_json::to_string(message).unwrap_or_else(|_| "\"\"".into());
    let mut body = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}"#);
    if let Some(data) = data {
        body.push_str(",\"data\":");
        body.push_str(data);
    }
    body.push_str("}}");
    body.into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(id: Option<&'static str>, message: &str, data: Option<&str>) -> Value {
        serde_json::from_slice(&error_body(id.map(RawId), -32601, message, data)).unwrap()
    }

    #[test]
    fn the_id_is_repeated_as_it_was_written() {
        assert!(String::from_utf8(error_body(Some(RawId("1e400")), 1, "", None)).unwrap().contains(r#""id":1e400,"#));
        assert_eq!(answer(Some(r#""\u0061""#), "x", None)["id"], "a");
        assert_eq!(answer(None, "x", None)["id"], Value::Null);
    }

    #[test]
    fn a_very_long_id_is_not_repeated() {
        let long = format!("\"{}\"", "x".repeat(ID_ECHO_LENGTH_MAX));
        let body: Value = serde_json::from_slice(&error_body(Some(RawId(&long)), 1, "", None)).unwrap();
        assert_eq!(body["id"], Value::Null);
    }

    #[test]
    fn message_and_data_keep_the_body_json() {
        let body = answer(Some("7"), "a \"b\"\n\u{1}é", Some(r#"{"limit":3}"#));
        let error = json!({"code": -32601, "message": "a \"b\"\n\u{1}é", "data": {"limit": 3}});
        assert_eq!(body, json!({"jsonrpc": "2.0", "id": 7, "error": error}));
    }
}
