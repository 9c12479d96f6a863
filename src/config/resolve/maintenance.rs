//! `maintenance`

use std::sync::Arc;
use std::time::Duration;

use super::Resolver;
use super::ranges::HOUR;
use crate::config::{Maintenance, file};
use crate::refusal::{Notice, Page};

/// Longest body.
const BODY_MAX: usize = 64 << 10;
/// What browsers show.
const HTML: &str = "text/html; charset=utf-8";

pub(super) fn resolve(r: &mut Resolver<'_>, raw: file::Maintenance, redis: bool) -> Maintenance {
    r.span("maintenance.retry_after", raw.retry_after, Duration::from_secs(1), 24 * HOUR);
    if raw.message.is_empty() || raw.message.len() > 1024 {
        r.error("maintenance.message", "write 1 to 1024 bytes");
    }
    if raw.body.as_ref().is_some_and(|body| body.len() > BODY_MAX) {
        r.error("maintenance.body", "is longer than 64KiB");
    }
    match &raw.content_type {
        Some(_) if raw.body.is_none() && !r.has_guess("maintenance.body") => {
            r.error(
                "maintenance.content_type",
                "is the media type of maintenance.body; write body too, or leave it out",
            );
        }
        Some(kind) if !is_media_type(kind) => {
            r.error("maintenance.content_type", format!("{kind:?} is no media type; write one such as {HTML}"));
        }
        _ => {}
    }
    if raw.fleet && !redis && !r.has_guess("redis") && !r.located.has("redis") {
        r.error("maintenance.fleet", "needs a Redis; write redis: { url: … }");
    }
    let content_type = raw.content_type.unwrap_or_else(|| HTML.into());
    let page = raw.body.map(|body| Page { content_type, body });
    Maintenance {
        retry_after: raw.retry_after.whole_seconds().max(1),
        notice: Arc::new(Notice { message: raw.message, page }),
        fleet: raw.fleet,
    }
}

/// `type/subtype`, with parameters or without (RFC 9110, section 8.3.1).
fn is_media_type(text: &str) -> bool {
    let is_token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let named = essence.trim().split_once('/').is_some_and(|(kind, sub)| is_token(kind) && is_token(sub));
    named && parameters.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_told_from_what_would_break_the_header() {
        for good in ["text/html", "text/html; charset=utf-8", "application/problem+json"] {
            assert!(is_media_type(good), "{good}");
        }
        for bad in ["", "text", "text/", "/html", "text/html\r\nX: y", "text/html; a=\u{e9}", "text html/x"] {
            assert!(!is_media_type(bad), "{bad}");
        }
    }
}
