//! The JSON-RPC firewall of a route: `routes[].json_rpc`.

use std::collections::HashMap;
use std::ops::ControlFlow;

use ahash::RandomState;
use http::HeaderMap;

use crate::headers::{CONTENT_TYPE, has_content_coding};
use crate::json_rpc::{Call, Limits, METHOD_LENGTH_MAX, MethodPolicy, ParamsSchema, RawId, Text, scan};
use crate::refusal::Refusal;

/// What the calls of a route may be.
#[derive(Debug)]
pub struct JsonRpcPolicy {
    /// Depth, batch size and version.
    pub limits: Limits,
    /// Methods let through.
    pub methods: MethodPolicy,
    /// Whether calls without an id pass.
    pub notifications: bool,
    /// Longest `params`, in bytes as written.
    pub params_max: usize,
    /// What methods take; a method that is not there takes anything.
    pub schemas: HashMap<Box<str>, ParamsSchema, RandomState>,
}

/// A good body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// How many calls there are.
    pub calls: u32,
    /// Whether they came as a batch.
    pub is_batch: bool,
}

/// A refused body, and what is known of the call at fault, wherever in a batch it stood.
#[derive(Debug)]
pub struct Denied<'a> {
    /// Why.
    pub refusal: Refusal,
    /// Its id.
    pub id: Option<RawId<'a>>,
    /// Its method, if it was as far as that a call.
    pub method: Option<Text<'a>>,
    /// Calls that were looked at, this one included; 0 if it is no call.
    pub calls: u32,
    /// Whether they came as a batch.
    pub is_batch: bool,
}

impl JsonRpcPolicy {
    /// Checks a whole body; shows every call that passes to `passed`. Of a batch with one bad call nothing passes in the
    /// end. Never allocates for what passes, unless its method has a schema.
    ///
    /// # Errors
    /// The first refusal.
    pub fn check<'a>(&self, body: &'a [u8], mut passed: impl FnMut(&Call<'a>)) -> Result<Checked, Denied<'a>> {
        let scanned = scan(body, &self.limits, |call| match self.check_call(&call) {
            Ok(()) => {
                passed(&call);
                ControlFlow::Continue(())
            }
            Err(refusal) => ControlFlow::Break((refusal, call)),
        });
        let envelope = scanned.map_err(|fault| Denied {
            refusal: Refusal::Envelope(fault.error),
            id: fault.id,
            method: None,
            calls: 0,
            is_batch: false,
        })?;
        let (calls, is_batch) = (envelope.calls, envelope.is_batch);
        match envelope.stopped {
            None => Ok(Checked { calls, is_batch }),
            Some((refusal, call)) => Err(Denied { refusal, id: call.id, method: Some(call.method), calls, is_batch }),
        }
    }

    fn check_call(&self, call: &Call<'_>) -> Result<(), Refusal> {
        if !self.methods.allows_text(&call.method) {
            return Err(Refusal::JsonRpcMethodNotAllowed);
        }
        if call.is_notification && !self.notifications {
            return Err(Refusal::NotificationRefused);
        }
        let params = call.params.map(|params| params.raw);
        if params.is_some_and(|params| params.len() > self.params_max) {
            return Err(Refusal::ParamsTooLong);
        }
        match self.schema_of(&call.method) {
            Some(schema) => schema.check(params).map_err(Refusal::ParamsInvalid),
            None => Ok(()),
        }
    }

    fn schema_of(&self, method: &Text<'_>) -> Option<&ParamsSchema> {
        if self.schemas.is_empty() {
            return None;
        }
        // A decoded text is never longer than its spelling, and the scanner takes no longer method.
        self.schemas.get(method.decode_into(&mut [0; METHOD_LENGTH_MAX])?)
    }
}

/// A JSON-RPC route takes `application/json` in UTF-8 as it is: what another coding or character set would make of the
/// bytes is not what was checked.
///
/// # Errors
/// Says what is sent instead.
pub fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Err(Refusal::UnsupportedMediaType("no Content-Type"));
    };
    let mut parts = value.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii);
    if !parts.next().is_some_and(|media_type| media_type.eq_ignore_ascii_case(b"application/json")) {
        return Err(Refusal::UnsupportedMediaType("not application/json"));
    }
    for parameter in parts {
        let (name, value) = parameter.split_at(parameter.iter().position(|b| *b == b'=').unwrap_or(parameter.len()));
        let utf8 = || [&b"=utf-8"[..], b"=\"utf-8\""].iter().any(|good| value.eq_ignore_ascii_case(good));
        if name.trim_ascii().eq_ignore_ascii_case(b"charset") && !utf8() {
            return Err(Refusal::UnsupportedMediaType("a charset other than utf-8"));
        }
    }
    if has_content_coding(headers) { Err(Refusal::UnsupportedContentCoding) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::CONTENT_ENCODING;

    use super::*;

    fn policy() -> JsonRpcPolicy {
        let schema = ParamsSchema::compile(r#"{"required":["message"]}"#).unwrap();
        JsonRpcPolicy {
            limits: Limits { max_depth: 64, batch: Some(3), any_version: false },
            methods: MethodPolicy::new(Some(&["message/send".into(), "tasks/*".into()])).unwrap(),
            notifications: false,
            params_max: 20,
            schemas: [("message/send".into(), schema)].into_iter().collect(),
        }
    }

    fn code(policy: &JsonRpcPolicy, body: &str) -> (&'static str, Option<String>) {
        let denied = policy.check(body.as_bytes(), |_| {}).unwrap_err();
        (denied.refusal.code(), denied.id.map(|id| id.as_str().to_owned()))
    }

    fn call(id: u32, method: &str, params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
    }

    #[test]
    fn each_call_is_held_against_each_rule() {
        let policy = policy();
        let good = call(1, "message/send", r#"{"message":1}"#);
        let mut seen = Vec::new();
        let batch = format!("[{good},{}]", call(2, r"t\u0061sks\/get", "{}"));
        let checked = policy.check(batch.as_bytes(), |call| seen.push(call.method.decode().into_owned()));
        assert_eq!(checked.unwrap(), Checked { calls: 2, is_batch: true });
        assert_eq!(seen, ["message/send", "tasks/get"]);
        let notification = r#"{"jsonrpc":"2.0","method":"tasks/get"}"#;
        for (bad, why, id) in [
            (call(7, "other", "{}"), "json_rpc_method_not_allowed", Some("7")),
            (notification.to_owned(), "rpc_notification_refused", None),
            (call(7, "tasks/get", "[1,2,3,4,5,6,7,8,9,10]"), "rpc_params_too_long", Some("7")),
            (call(7, "message/send", r#"{"massage":1}"#), "rpc_params_invalid", Some("7")),
            (call(7, r"message\/s\u0065nd", r#"{"massage":1}"#), "rpc_params_invalid", Some("7")),
            (r#"{"jsonrpc":"2.0","id":7,"method":"message/send"}"#.to_owned(), "rpc_params_invalid", Some("7")),
        ] {
            assert_eq!(code(&policy, &bad), (why, id.map(str::to_owned)), "{bad}");
            assert_eq!(code(&policy, &format!("[{good},{bad}]")).0, why, "in a batch: {bad}");
        }
    }

    #[test]
    fn the_version_may_be_left_to_the_node() {
        let mut policy = policy();
        for odd in [r#"{"id":7,"method":"tasks/get"}"#, r#"{"jsonrpc":1,"id":7,"method":"tasks/get"}"#] {
            assert_eq!(code(&policy, odd), ("rpc_version", Some("7".into())), "{odd}");
        }
        policy.limits.any_version = true;
        for odd in [r#"{"id":7,"method":"tasks/get"}"#, r#"{"jsonrpc":1,"id":7,"method":"tasks/get"}"#] {
            assert!(policy.check(odd.as_bytes(), |_| {}).is_ok(), "{odd}");
        }
        let twice = r#"{"jsonrpc":"2.0","id":7,"method":"tasks/get","jsonrpc":"1.0"}"#;
        assert_eq!(code(&policy, twice).0, "rpc_duplicate_jsonrpc");
    }

    #[test]
    fn json_in_utf_8_is_taken_and_nothing_else() {
        let of = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            value.map(|v| headers.insert(CONTENT_TYPE, HeaderValue::from_static(v)));
            check_media_type(&headers)
        };
        for good in [
            "application/json",
            "Application/JSON ; charset=UTF-8",
            "application/json;charset=\"utf-8\"; v=1",
            "application/json;",
        ] {
            assert_eq!(of(Some(good)), Ok(()), "{good}");
        }
        for bad in [
            "text/plain",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-7",
            "application/json; charset=utf-8; charset=utf-16",
            "application/json; Charset = utf-16",
            "application/json, text/plain",
            "",
        ] {
            assert!(matches!(of(Some(bad)), Err(Refusal::UnsupportedMediaType(_))), "{bad}");
        }
        assert_eq!(of(None), Err(Refusal::UnsupportedMediaType("no Content-Type")));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (coding, taken) in [("Identity", true), ("gzip", false), ("identity, gzip", false), ("", false)] {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
            let refused = Err(Refusal::UnsupportedContentCoding);
            assert_eq!(check_media_type(&headers), if taken { Ok(()) } else { refused }, "{coding}");
        }
    }
}
