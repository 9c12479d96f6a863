//! Reads a request's body whole, before a node is chosen: a slow or bad sender never occupies a Hive node (design,
//! decision 4).

use std::time::{Duration, Instant};

use bytes::Bytes;
use pingora::Error;
use pingora::proxy::Session;

use super::context::Context;
use super::{Shared, check};
use crate::headers;
use crate::refusal::Refusal;

/// What Pingora takes to read a body by HTTP/1.1, however little comes; less if a shorter one is announced.
const READ_BUFFER: u64 = 64 << 10;
/// First memory taken for a body that comes in pieces. From there it doubles.
const RESERVE_LEAST: usize = 1 << 10;
/// A piece shorter than this is copied: by HTTP/2 it is a part of a buffer of several frames, which it would keep.
const PIECE_KEPT_LEAST: usize = 4 << 10;

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
    headers::content_length(&session.req_header().headers)
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
    if check::expectation(&session.req_header().headers)? {
        session.as_downstream_mut().write_continue_response().await.map_err(NoBody::Gone)?;
    }
    Ok(())
}

async fn collect(
    shared: &Shared,
    session: &mut Session,
    ctx: &mut Context,
    announced: Option<u64>,
    limit: u64,
) -> Result<Bytes, NoBody> {
    let http2 = session.is_http2();
    let memory = ctx.body.memory.insert(shared.bodies.share());
    if !http2 && !memory.grow(announced.unwrap_or(READ_BUFFER).min(READ_BUFFER)) {
        return Err(Refusal::BodyMemoryExhausted.into());
    }
    shared.show_body_memory();
    let mut whole = Vec::new();
    let mut pieces: u64 = 0;
    loop {
        let chunk = session.as_downstream_mut().read_request_body().await.map_err(NoBody::Gone)?;
        let Some(chunk) = chunk else { return Ok(whole.into()) };
        ctx.body.length += chunk.len() as u64;
        if ctx.body.length > limit {
            return Err(Refusal::BodyTooLarge.into());
        }
        pieces += 1;
        if pieces > PIECES_FREE && ctx.body.length < pieces * PIECE_LEAST {
            return Err(Refusal::BodyFragmented.into());
        }
        let only = whole.is_empty() && announced == Some(chunk.len() as u64);
        let room = if only { chunk.len() } else { room_for(&whole, chunk.len(), announced.unwrap_or(limit)) };
        // Charged is what is taken, which may be more than what came.
        if !memory.grow((room - whole.capacity()) as u64) {
            return Err(Refusal::BodyMemoryExhausted.into());
        }
        shared.show_body_memory();
        if only {
            // The usual small call: one chunk. Reading on until the end costs nothing.
            while session.as_downstream_mut().read_request_body().await.map_err(NoBody::Gone)?.is_some() {}
            let copied = http2 && chunk.len() < PIECE_KEPT_LEAST;
            return Ok(if copied { Bytes::copy_from_slice(&chunk) } else { chunk });
        }
        whole.reserve_exact(room - whole.len());
        whole.extend_from_slice(&chunk);
    }
}

/// The memory that `whole` is to have with `more` bytes: what it has, or twice that, but no more than the whole body can
/// take. It grows with what has come, whatever is announced.
fn room_for(whole: &Vec<u8>, more: usize, most: u64) -> usize {
    let needed = whole.len() + more;
    if needed <= whole.capacity() {
        return whole.capacity();
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    needed.max(RESERVE_LEAST).max(whole.capacity() * 2).min(most).max(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_what_has_come_and_never_beyond_the_body() {
        let mut whole = Vec::new();
        let mut taken = 0;
        for _ in 0..10_000 {
            let room = room_for(&whole, 1, 9_999);
            whole.reserve_exact(room - whole.len());
            assert!(room > whole.len() && room <= RESERVE_LEAST.max(2 * (whole.len() + 1)));
            taken += room - taken;
            assert_eq!(whole.capacity(), room);
            whole.push(0);
        }
        assert_eq!(taken, 10_000, "one byte more than was said is still held, and then refused");
        assert_eq!(room_for(&Vec::new(), 3, 20), 20);
        assert_eq!(room_for(&Vec::new(), 30 << 10, 1 << 20), 30 << 10);
    }
}
