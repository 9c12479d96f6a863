//! The scanner.
use std::ops::ControlFlow;

use super::{Fault, RawId, Text};

/// What a body may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Deepest nesting of objects and arrays, the outermost counted; 1 to 512.
    pub max_depth: u16,
    /// Most calls of a batch; `None` refuses batches.
    pub batch: Option<u32>,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// `method`.
    pub method: Text<'a>,
    /// `id`; `None` on a notification.
    pub id: Option<RawId<'a>>,
    /// Without `id` (JSON-RPC 2.0, section 4.1).
    pub is_notification: bool,
    /// `params`.
    pub params: Option<Params<'a>>,
}

/// `params`, unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params<'a> {
    /// Object or array.
    pub kind: ParamsKind,
    /// Its JSON text.
    pub raw: &'a str,
}

/// The two kinds of `params`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamsKind {
    /// By name.
    Object,
    /// By position.
    Array,
}

/// What a body held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<B = ()> {
    /// Calls that were visited.
    pub calls: u32,
    /// Whether it was a batch.
    pub is_batch: bool,
    /// The visitor's break value; the rest of the body was then not looked at.
    pub stopped: Option<B>,
}

/// Scans a whole body and shows each call to `each`.
pub fn scan<'a, B>(
    body: &'a [u8],
    limits: &Limits,
    each: impl FnMut(Call<'a>) -> ControlFlow<B>,
) -> Result<Envelope<B>, Fault<'a>> {
    let _ = (body, limits, each);
    unimplemented!()
}
