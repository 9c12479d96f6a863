//! The scanner held against `serde_json`, for the property tests and the fuzz target.

use std::ops::ControlFlow;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Call, EnvelopeError, Limits, RequestFault, scan};

/// Scans any bytes and asserts that the scanner and `serde_json` agree: on what is JSON, on what is a request, on its
/// method, id and parameters.
///
/// # Panics
/// When they don't.
pub fn agrees_with_serde_json(body: &[u8]) {
    let limits = Limits { max_depth: super::DEPTH_MAX, batch: Some(u32::MAX), any_version: false };
    let mut calls: Vec<Call<'_>> = Vec::new();
    let scanned = scan(body, &limits, |call| {
        calls.push(call);
        ControlFlow::<()>::Continue(())
    });
    let valid = match &scanned {
        Err(fault) => match fault.error {
            EnvelopeError::TooDeep => return,
            EnvelopeError::Parse(_) => false,
            _ => true,
        },
        Ok(_) => true,
    };
    let ignored = serde_json::from_slice::<IgnoredAny>(body).is_ok() && std::str::from_utf8(body).is_ok();
    let value = serde_json::from_slice::<Value>(body);
    if valid {
        assert!(ignored, "the scanner takes what serde_json does not");
    }
    let value = match value {
        Ok(value) => value,
        // Its limits on numbers and depth are not the grammar's.
        Err(e) if e.to_string().contains("out of range") || e.to_string().contains("recursion limit") => {
            assert!(valid || !ignored || body.windows(2).any(|w| w == b"\\u"), "the scanner refuses valid JSON");
            return;
        }
        Err(e) => return assert!(!valid, "serde_json refuses: {e}"),
    };
    assert!(valid, "the scanner refuses valid JSON: {scanned:?}");
    match scanned {
        Ok(envelope) => {
            assert_eq!(envelope.calls as usize, calls.len());
            let requests = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            assert_eq!(envelope.is_batch, value.is_array());
            assert_eq!(requests.len(), calls.len());
            for (request, call) in requests.iter().zip(&calls) {
                assert!(is_request(request));
                assert_eq!(request["method"], *call.method.decode());
                assert_eq!(request.get("id").cloned(), call.id.map(|id| json(id.as_str())));
                assert_eq!(request.get("params").cloned(), call.params.map(|params| json(params.raw)));
                assert_eq!(request.get("id").is_none(), call.is_notification);
            }
        }
        // serde_json takes the last of two members, so it can't see this.
        Err(fault) if matches!(fault.error, EnvelopeError::DuplicateKey(_)) => {}
        Err(fault) if fault.error == EnvelopeError::InvalidRequest(RequestFault::MethodTooLong) => {}
        Err(_) => assert!(!is_request(&value) && !is_batch(&value), "the scanner refuses a request"),
    }
}

#[allow(clippy::expect_used)] // A panic is how the caller learns of it.
fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("a part of JSON text that is JSON itself")
}

fn is_batch(value: &Value) -> bool {
    value.as_array().is_some_and(|calls| !calls.is_empty() && calls.iter().all(is_request))
}

/// JSON-RPC 2.0, section 4.
fn is_request(value: &Value) -> bool {
    let id = value.get("id").is_none_or(|id| id.is_null() || id.is_number() || id.is_string());
    let params = value.get("params").is_none_or(|params| params.is_array() || params.is_object());
    let method = value.get("method").and_then(Value::as_str).is_some();
    value.is_object() && value["jsonrpc"] == "2.0" && method && id && params
}
