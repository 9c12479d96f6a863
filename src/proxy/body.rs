//! Reads a request's body whole, before a node is chosen: a slow or bad sender never occupies a Hive node (design,
//! decision 4).

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use pingora::Error;
use pingora::proxy::Session;

use super::Shared;
use super::context::Context;
use crate::headers;
use crate::refusal::Refusal;

/// Memory taken at once, whatever length the client announces.
const RESERVE_MAX: usize = 64 << 10;

/// So many pieces a body may come in, however small they are.
const PIECES_FREE: u64 = 1024;
/// Beyond that, what they must hold on average: a chunk, a frame or a record of one byte costs as much as a full one.
const PIECE_LEAST: u64 = 16;

/// Why there is no body.
pub enum NoBody {
    /// The client is to be told.
    Refused(Refusal),
    /// The client is gone.
    Gone(Box<Error>),
}

impl From<Refusal> for NoBody {
    fn from(refusal: Refusal) -> Self {
        NoBody::Refused(refusal)
    }
}

/// The announced length, if there is one. It has been checked to be a number.
pub fn announced(session: &Session) -> Option<u64> {
    session.req_header().headers.get(headers::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Reads the body, at most `limit` bytes of it and not longer than `within`.
pub async fn read(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut Context,
    limit: u64,
    within: Duration,
    started: Instant,
) -> Result<Bytes, NoBody> {
    if session.is_body_empty() {
        return Ok(Bytes::new());
    }
    let announced = announced(session);
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::BodyTooLarge.into());
    }
    answer_expectation(session).await?;
    let deadline = tokio::time::Instant::from_std(started + within);
    let body = tokio::time::timeout_at(deadline, collect(shared, session, ctx, announced, limit)).await;
    let body = body.map_err(|_| NoBody::Refused(Refusal::BodyTimeout))??;
    if announced.is_some_and(|length| length != body.len() as u64) {
        // HTTP/1.1 can't end early without an error; HTTP/2 has been checked by the h2 crate (RFC 9113, 8.1.1).
        return Err(Refusal::AmbiguousRequest("the body is not as long as Content-Length says").into());
    }
    ctx.body.took = Some(shared.clock.now().saturating_duration_since(started));
    Ok(body)
}

/// A client that waits for `100 Continue` gets it only now, when everything but the body has been accepted.
async fn answer_expectation(session: &mut Session) -> Result<(), NoBody> {
    match session.req_header().headers.get(headers::EXPECT) {
        None => Ok(()),
        Some(expect) if expect.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            session.as_downstream_mut().write_continue_response().await.map_err(NoBody::Gone)
        }
        Some(_) => Err(Refusal::ExpectationFailed.into()),
    }
}

async fn collect(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut Context,
    announced: Option<u64>,
    limit: u64,
) -> Result<Bytes, NoBody> {
    let memory = ctx.body.memory.insert(shared.bodies.share());
    let mut whole = BytesMut::new();
    let mut pieces: u64 = 0;
    loop {
        let chunk = session.as_downstream_mut().read_request_body().await.map_err(NoBody::Gone)?;
        let Some(chunk) = chunk else { return Ok(whole.freeze()) };
        ctx.body.length += chunk.len() as u64;
        if ctx.body.length > limit {
            return Err(Refusal::BodyTooLarge.into());
        }
        pieces += 1;
        if pieces > PIECES_FREE && ctx.body.length < pieces * PIECE_LEAST {
            return Err(Refusal::BodyFragmented.into());
        }
        if !memory.grow(chunk.len() as u64) {
            return Err(Refusal::BodyMemoryExhausted.into());
        }
        shared.show_body_memory();
        if whole.is_empty() && announced == Some(chunk.len() as u64) {
            // The usual small call: one chunk, not copied again. Reading on until the end costs nothing.
            while session.as_downstream_mut().read_request_body().await.map_err(NoBody::Gone)?.is_some() {}
            return Ok(chunk);
        }
        if whole.is_empty() {
            let expected = announced.and_then(|a| usize::try_from(a).ok()).unwrap_or(0);
            whole.reserve(expected.clamp(chunk.len(), RESERVE_MAX.max(chunk.len())));
        }
        whole.extend_from_slice(&chunk);
    }
}
