//! Strings as written, and ids.
use std::borrow::Cow;

/// A JSON string as written, decoded when asked.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Text<'a> {
    /// The text between the quotes, escapes as written.
    pub fn raw(&self) -> &'a str {
        self.raw
    }
    /// The decoded text; allocates only if there are escapes.
    pub fn decode(&self) -> Cow<'a, str> {
        let _ = self.escaped;
        unimplemented!()
    }
}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        let _ = other;
        unimplemented!()
    }
}

impl PartialEq<&str> for Text<'_> {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, _other: &Self) -> bool {
        unimplemented!()
    }
}
impl Eq for Text<'_> {}

/// A request's id: the JSON text of a number, a string or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawId<'a>(pub(super) &'a str);

impl<'a> RawId<'a> {
    /// The JSON text, as the client wrote it.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}
