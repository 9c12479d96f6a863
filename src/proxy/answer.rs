//! What a refused client reads, but for status and length.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::config::file::LocalReply;
use crate::headers;
use crate::json_rpc::{self, RawId};
use crate::refusal::Refusal;

/// The form of an answer that is the gateway's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// As the listener has it.
    pub reply: LocalReply,
    /// The request meant a JSON-RPC route.
    pub on_json_rpc: bool,
}

impl Form {
    /// The status sent; the log and the metric of refusals keep to [`Refusal::code`].
    pub fn status(self, refusal: &Refusal) -> u16 {
        match self.reply {
            LocalReply::Hive => refusal.status(),
            LocalReply::GatewayV1 => refusal.gateway_v1().0,
        }
    }

    /// The body: what Hive itself would say, or the form of JSON-RPC routes with the call's `id`, or the small JSON one.
    pub fn body(self, refusal: &Refusal, id: Option<RawId<'_>>) -> Bytes {
        let older = self.reply == LocalReply::GatewayV1;
        match refusal.own_body() {
            Some(own) => Bytes::from_static(own.as_bytes()),
            None if self.on_json_rpc && (!older || refusal.is_of_call()) => {
                let data = refusal.json_rpc_data();
                json_rpc::error_body(id, refusal.json_rpc_code(), &refusal.message(), data.as_deref()).into()
            }
            // The codes are words of the source; none needs escaping.
            None if older => format!(r#"{{"error":"{}"}}"#, refusal.gateway_v1().1).into(),
            None => match refusal.page() {
                Some(page) => page.body.clone().into(),
                None => small_body(refusal).into(),
            },
        }
    }

    /// Its media type.
    pub fn content_type(self, refusal: &Refusal) -> HeaderValue {
        let page = refusal.page().filter(|_| !self.on_json_rpc && self.reply == LocalReply::Hive);
        // A media type that can't be sent is refused with the configuration.
        let own = page.and_then(|page| HeaderValue::from_str(&page.content_type).ok());
        own.unwrap_or(HeaderValue::from_static("application/json"))
    }

    /// The fields that only some refusals have.
    pub fn fields(self, refusal: &Refusal) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let mut fields = [const { None }; 4];
        if let Some(seconds) = refusal.retry_after_seconds() {
            fields[0] = Some((headers::RETRY_AFTER, HeaderValue::from(seconds)));
        }
        if let Refusal::RateLimited { limit, remaining, .. } = refusal {
            fields[1] = Some((headers::X_RATELIMIT_LIMIT, HeaderValue::from(*limit)));
            fields[2] = Some((headers::X_RATELIMIT_REMAINING, HeaderValue::from(*remaining)));
        }
        fields[3] = match refusal {
            // RFC 9110, section 12.5.3: which codings would do.
            Refusal::UnsupportedContentCoding => Some((headers::ACCEPT_ENCODING, HeaderValue::from_static("identity"))),
            // A list of methods of the configuration; a header can always carry it.
            Refusal::MethodNotAllowed { allow } if self.reply == LocalReply::Hive => {
                allow.parse().ok().map(|value| (headers::ALLOW, value))
            }
            _ => None,
        };
        fields.into_iter().flatten()
    }
}

/// `{"error":"<stable_snake_case>","message":"…"}` (`hive-contract`, "Answers in Hive's own shape").
fn small_body(refusal: &Refusal) -> Vec<u8> {
    let mut body = String::with_capacity(96);
    // Writing to a String can't fail; the message is escaped by serde_json.
    let message = serde_json::Value::from(refusal.message().into_owned());
    let _ = write!(body, r#"{{"error":"{}","message":{message}}}"#, refusal.code());
    body.into_bytes()
}
