//! Turns a [`Refusal`] into an answer: the only place that does.

use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora::http::ResponseHeader;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::answer::Form;
use super::context::{Context, Over};
use super::watch::refusal_of;
use super::{Shared, body, forward, overload};
use crate::config::file::LocalReply;
use crate::headers;
use crate::json_rpc::RawId;
use crate::observe::CloseReason;
use crate::refusal::Refusal;

/// How long a refused client may go on sending what is not read, so that it comes to read the answer.
pub const LINGER: Duration = Duration::from_secs(2);
/// How much of it is taken.
const LINGER_BYTES: u64 = 256 << 10;

/// Answers with `refusal` and leaves it in `ctx` for the log.
pub async fn refuse(shared: &Shared, session: &mut Session, ctx: &mut Context, refusal: Refusal) {
    let body_left = !session.as_downstream_mut().is_body_done();
    let much_left = body_left && body::announced(session).is_none_or(|n| n > LINGER_BYTES);
    if refusal.closes_connection() || much_left {
        if let Some(begun) = &ctx.begun {
            begun.connection.ends_for(CloseReason::Refused);
            begun.connection.refused();
        }
        session.set_keepalive(None);
    }
    overload::give_back(shared, ctx);
    if session.is_http2() && ctx.body.memory.take().is_some() {
        // By HTTP/1.1 the session keeps its buffer.
        shared.show_body_memory();
    }
    // The client may be gone; then there is nobody to answer, and the log says so by the bytes sent.
    let answered = write_answer(session, ctx, &refusal).await;
    ctx.refusal = Some(refusal);
    ctx.answered = Some(Instant::now());
    if answered.is_err() && session.is_http2() {
        // Else Pingora ends the stream as if this were all, and a part is taken for the whole (RFC 9113, 8.1.1).
        session.as_downstream_mut().shutdown().await;
    }
    if answered.is_ok() && body_left && session.as_downstream().get_keepalive().is_none() {
        linger(session).await;
    }
}

async fn write_answer(session: &mut Session, ctx: &Context, refusal: &Refusal) -> Result<()> {
    let on_json_rpc = ctx.route.as_ref().or(ctx.shape.as_ref()).is_some_and(|r| r.json_rpc.is_some());
    // What is refused of a batch whose calls are each allowed is the batch, and that has no id.
    let rpc = ctx.rpc.as_ref().filter(|rpc| !(rpc.batch && rpc.allowed));
    let id = rpc.and_then(|rpc| rpc.id.as_deref()).map(RawId::of_scanned);
    let form = Form { reply: local_reply(ctx), on_json_rpc };
    let body = form.body(refusal, id);
    let mut header = ResponseHeader::build(form.status(refusal), Some(8))?;
    header.insert_header(headers::CONTENT_TYPE, form.content_type(refusal))?;
    header.insert_header(headers::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    header.insert_header(headers::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    header.insert_header(headers::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))?;
    if let Some(id) = &ctx.request_id {
        header.insert_header(headers::X_REQUEST_ID, id.clone())?;
    }
    for (name, value) in form.fields(refusal) {
        header.insert_header(name, value)?;
    }
    let head_only = session.req_header().method == http::Method::HEAD;
    session.as_downstream_mut().write_response_header(Box::new(header)).await?;
    if !head_only {
        session.as_downstream_mut().write_response_body(body, true).await?;
    }
    session.as_downstream_mut().finish_body().await
}

/// The form that the request's listener gives to the gateway's own answers.
fn local_reply(ctx: &Context) -> LocalReply {
    let listener = ctx.begun.as_ref().and_then(|begun| begun.snapshot.listener(begun.connection.listener.index));
    listener.map_or(LocalReply::Hive, |listener| listener.local_reply)
}

/// Reads on for a moment: closing a socket with unread bytes resets it, and the client would lose the answer.
async fn linger(session: &mut Session) {
    let mut left = LINGER_BYTES;
    let _ = tokio::time::timeout(LINGER, async {
        while let Ok(Some(chunk)) = session.as_downstream_mut().read_request_body().await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                break;
            }
        }
    })
    .await;
}

/// Forwarding failed: answers, unless an answer has begun. Then the connection ends without the answer's end, so that
/// the client can't take a part for the whole.
pub async fn failed(shared: &Shared, session: &mut Session, ctx: &mut Context, error: &Error) -> FailToProxy {
    if ctx.error.is_none() {
        ctx.error = Some(forward::describe(error));
    }
    let gone = *error.esource() == ErrorSource::Downstream
        && matches!(
            error.etype(),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed | ErrorType::H2Error
        );
    if let Some(Over::Gone(gone)) = ctx.upstream.over {
        // An answer that has begun can't be taken back; the log and the metric say why it was cut off.
        ctx.refusal = Some(refusal_of(gone));
    }
    if session.response_written().is_some() || (gone && ctx.upstream.status.is_none() && ctx.refusal.is_none()) {
        if let Some(begun) = &ctx.begun {
            let upstream = *error.esource() == ErrorSource::Upstream;
            begun.connection.ends_for(if upstream { CloseReason::UpstreamAborted } else { CloseReason::Aborted });
        }
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    let refusal = ctx.refusal.take().unwrap_or_else(|| forward::refusal_for(error, ctx));
    let told = refusal.status();
    refuse(shared, session, ctx, refusal).await;
    let status = session.response_written().map_or(told, |answer| answer.status.as_u16());
    FailToProxy { error_code: status, can_reuse_downstream: session.as_downstream().get_keepalive().is_some() }
}
