//! The scanner: one pass over a body that finds the calls in it.

use std::ops::ControlFlow;

use super::fault::{EnvelopeError, Fault, ParseFault, ParseFaultKind, RequestFault};
use super::lexer::{Lexer, Stop, Stopped};
use super::text::{RawId, Text};

/// Longest `method`, in bytes as written. A2A's longest has 35.
pub const METHOD_LENGTH_MAX: usize = 256;

/// What a body may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Deepest nesting of objects and arrays, the outermost (and a batch's array) counted; 1 to [`super::DEPTH_MAX`].
    pub max_depth: u16,
    /// Most calls of a batch; `None` refuses batches.
    pub batch: Option<u32>,
    /// Whether `jsonrpc` may be missing or hold anything; else it must be `"2.0"`.
    pub any_version: bool,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call<'a> {
    /// `method`.
    pub method: Text<'a>,
    /// `id`; `None` on a notification. An explicit null is an id.
    pub id: Option<RawId<'a>>,
    /// There is no `id` (JSON-RPC 2.0, section 4.1).
    pub is_notification: bool,
    /// `params`.
    pub params: Option<Params<'a>>,
}

/// `params`, well-formed but unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Params<'a> {
    /// Object or array.
    pub kind: ParamsKind,
    /// Its JSON text.
    pub raw: &'a str,
}

/// The two kinds of `params` (JSON-RPC 2.0, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParamsKind {
    /// By name.
    Object,
    /// By position.
    Array,
}

/// What a body held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<B = ()> {
    /// Calls that were shown to the visitor.
    pub calls: u32,
    /// It was an array of calls.
    pub is_batch: bool,
    /// What the visitor broke off with. The rest of a batch has then not been looked at, so the body must be refused.
    pub stopped: Option<B>,
}

/// Scans a whole body and shows each call to `each`, which may break off. Never allocates.
///
/// A single call is shown only after the whole body was found good. The calls of a batch are shown one by one, so an
/// error may still follow.
///
/// JSON is RFC 8259 as `serde_json` reads it, and stricter in this: strings that nobody decodes must be Unicode, too (no
/// lone surrogate), nesting is limited, and there is no byte order mark. Of members that JSON-RPC does not know,
/// duplicates are allowed.
///
/// # Errors
/// Malformed JSON wins over a wrong envelope (the scan goes on to the end, for the grammar and for the id), except for
/// the limits on depth and batches, which end it.
pub fn scan<'a, B>(
    body: &'a [u8],
    limits: &Limits,
    each: impl FnMut(Call<'a>) -> ControlFlow<B>,
) -> Result<Envelope<B>, Fault<'a>> {
    match simdutf8::basic::from_utf8(body) {
        Ok(text) => scan_text(text, limits, each),
        Err(_) => Err(not_utf8(body, limits)),
    }
}

/// The text before the bad byte tells the id, and whether there was a worse fault earlier.
#[cold]
fn not_utf8<'a>(body: &'a [u8], limits: &Limits) -> Fault<'a> {
    let offset = std::str::from_utf8(body).map_or_else(|e| e.valid_up_to(), str::len);
    let before = std::str::from_utf8(&body[..offset]).unwrap_or_default();
    let mut id = None;
    let scanned = scan_text(before, limits, |call| {
        id = call.id;
        ControlFlow::<()>::Continue(())
    });
    let error = EnvelopeError::Parse(ParseFault { kind: ParseFaultKind::NotUtf8, offset });
    match scanned {
        Ok(envelope) => Fault { error, id: id.filter(|_| !envelope.is_batch) },
        Err(fault) => match fault.error {
            EnvelopeError::Parse(ParseFault { kind: ParseFaultKind::UnexpectedEnd, .. })
            | EnvelopeError::InvalidRequest(_)
            | EnvelopeError::DuplicateKey(_) => Fault { error, id: fault.id },
            _ => fault,
        },
    }
}

fn scan_text<'a, B>(
    text: &'a str,
    limits: &Limits,
    mut each: impl FnMut(Call<'a>) -> ControlFlow<B>,
) -> Result<Envelope<B>, Fault<'a>> {
    if text.starts_with('\u{feff}') {
        let fault = ParseFault { kind: ParseFaultKind::ByteOrderMark, offset: 0 };
        return Err(Fault { error: EnvelopeError::Parse(fault), id: None });
    }
    let mut lexer = Lexer::new(text, limits.max_depth);
    let mut members = Members::default();
    match lexer.next() {
        Ok(b'[') => return scan_batch(lexer, limits, each),
        Ok(b'{') => object(&mut lexer, 1, &mut members),
        Ok(_) => {
            members.note(EnvelopeError::InvalidRequest(RequestFault::NotAnObject));
            lexer.value(0).map(|_| ())
        }
        Err(stop) => Err(stop),
    }
    .and_then(|()| end(&mut lexer))
    .map_err(|stopped| members.fault(stopped.into()))?;
    let call = members.call(limits).map_err(|error| members.fault(error))?;
    Ok(Envelope { calls: 1, is_batch: false, stopped: each(call).break_value() })
}

fn scan_batch<'a, B>(
    mut lexer: Lexer<'a>,
    limits: &Limits,
    mut each: impl FnMut(Call<'a>) -> ControlFlow<B>,
) -> Result<Envelope<B>, Fault<'a>> {
    let plain = |error| Fault { error, id: None };
    let Some(calls_max) = limits.batch else { return Err(plain(EnvelopeError::BatchRefused)) };
    lexer.open(1).map_err(|stopped| plain(stopped.into()))?;
    let mut calls = 0;
    let mut first_fault = None;
    if lexer.next().map_err(|stopped| plain(stopped.into()))? == b']' {
        first_fault = Some(plain(EnvelopeError::InvalidRequest(RequestFault::EmptyBatch)));
    } else {
        loop {
            if calls == calls_max {
                return Err(plain(EnvelopeError::BatchTooLong));
            }
            calls += 1;
            let mut members = Members::default();
            let more = batch_element(&mut lexer, &mut members).map_err(|stopped| members.fault(stopped.into()))?;
            match members.call(limits) {
                Ok(call) if first_fault.is_none() => {
                    if let ControlFlow::Break(value) = each(call) {
                        return Ok(Envelope { calls, is_batch: true, stopped: Some(value) });
                    }
                }
                Ok(_) => {}
                Err(error) => first_fault = first_fault.or(Some(members.fault(error))),
            }
            if !more {
                break;
            }
            lexer.at += 1;
        }
    }
    lexer.at += 1;
    end(&mut lexer).map_err(|stopped| plain(stopped.into()))?;
    first_fault.map_or(Ok(Envelope { calls, is_batch: true, stopped: None }), Err)
}

/// One call of a batch, up to the comma or bracket after it. Whether it is a comma.
fn batch_element<'a>(lexer: &mut Lexer<'a>, members: &mut Members<'a>) -> Result<bool, Stopped> {
    if lexer.next()? == b'{' {
        object(lexer, 2, members)?;
    } else {
        members.note(EnvelopeError::InvalidRequest(RequestFault::CallNotAnObject));
        lexer.value(1)?;
    }
    match lexer.next()? {
        b',' => Ok(true),
        b']' => Ok(false),
        _ => Err(lexer.unexpected(ParseFaultKind::UnexpectedByte)),
    }
}

/// Nothing but white space may follow.
fn end(lexer: &mut Lexer<'_>) -> Result<(), Stopped> {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = lexer.peek() {
        lexer.at += 1;
    }
    if lexer.peek().is_some() { Err(lexer.unexpected(ParseFaultKind::TrailingText)) } else { Ok(()) }
}

impl From<Stopped> for EnvelopeError {
    fn from(stopped: Stopped) -> Self {
        match stopped.stop {
            Stop::Parse(kind) => Self::Parse(ParseFault { kind, offset: stopped.at }),
            Stop::TooDeep => Self::TooDeep,
        }
    }
}

/// A request object, from its brace.
#[inline(always)]
fn object<'a>(lexer: &mut Lexer<'a>, depth: usize, members: &mut Members<'a>) -> Result<(), Stopped> {
    lexer.open(depth)?;
    if lexer.next()? == b'}' {
        lexer.at += 1;
        return Ok(());
    }
    loop {
        let name = lexer.name()?;
        let first = lexer.next()?;
        let start = lexer.at;
        let escaped = lexer.value(depth)?;
        let raw = lexer.since(start);
        // Only now is it sure that the value ended here and not with the body.
        let more = match lexer.next()? {
            b',' => true,
            b'}' => false,
            _ => return Err(lexer.unexpected(ParseFaultKind::UnexpectedByte)),
        };
        members.take(&name, first, raw, escaped);
        lexer.at += 1;
        if !more {
            return Ok(());
        }
    }
}

/// What is known of a request object, while it is read.
#[derive(Default)]
struct Members<'a> {
    version: bool,
    method: Option<Text<'a>>,
    params: Option<Params<'a>>,
    id: Option<RawId<'a>>,
    /// Which names were there, whatever their values: one bit each.
    seen: u8,
    fault: Option<EnvelopeError>,
}

const NAMES: [&str; 4] = ["jsonrpc", "method", "id", "params"];
const VERSION: usize = 0;
const METHOD: usize = 1;
const ID: usize = 2;
const PARAMS: usize = 3;

impl<'a> Members<'a> {
    /// Takes a member in; `first` is the first byte of its value `raw`.
    #[inline(always)]
    fn take(&mut self, name: &Text<'a>, first: u8, raw: &'a str, escaped: bool) {
        if let Some(index) = NAMES.iter().position(|known| *name == **known) {
            self.take_known(index, first, raw, escaped);
        }
    }

    fn take_known(&mut self, index: usize, first: u8, raw: &'a str, escaped: bool) {
        if self.seen & (1 << index) != 0 {
            // Says more than any other fault: which of the two would that be about?
            self.fault = Some(EnvelopeError::DuplicateKey(NAMES[index]));
            if index == ID {
                self.id = None;
            }
            return;
        }
        self.seen |= 1 << index;
        let text = || raw.get(1..raw.len() - 1).map(|inside| Text::new(inside, escaped)).filter(|_| first == b'"');
        match index {
            VERSION => self.version = text().is_some_and(|version| version == "2.0"),
            METHOD => self.take_method(text()),
            ID => match first {
                b'"' | b'-' | b'0'..=b'9' | b'n' => self.id = Some(RawId(raw)),
                _ => self.note(EnvelopeError::InvalidRequest(RequestFault::IdType)),
            },
            PARAMS => match first {
                b'{' => self.params = Some(Params { kind: ParamsKind::Object, raw }),
                b'[' => self.params = Some(Params { kind: ParamsKind::Array, raw }),
                _ => self.note(EnvelopeError::InvalidRequest(RequestFault::ParamsType)),
            },
            _ => {}
        }
    }

    fn take_method(&mut self, method: Option<Text<'a>>) {
        match method {
            Some(method) if method.raw().len() > METHOD_LENGTH_MAX => {
                self.note(EnvelopeError::InvalidRequest(RequestFault::MethodTooLong));
            }
            Some(method) => self.method = Some(method),
            None => self.note(EnvelopeError::InvalidRequest(RequestFault::MethodNotAString)),
        }
    }

    /// Keeps the first fault.
    fn note(&mut self, error: EnvelopeError) {
        self.fault.get_or_insert(error);
    }

    fn call(&self, limits: &Limits) -> Result<Call<'a>, EnvelopeError> {
        if let Some(error) = self.fault {
            return Err(error);
        }
        if !self.version && !limits.any_version {
            return Err(EnvelopeError::InvalidRequest(RequestFault::Version));
        }
        let Some(method) = self.method else {
            return Err(EnvelopeError::InvalidRequest(RequestFault::MethodMissing));
        };
        Ok(Call { method, id: self.id, is_notification: self.id.is_none(), params: self.params })
    }

    fn fault(&self, error: EnvelopeError) -> Fault<'a> {
        Fault { error, id: self.id }
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
