//! Strings as they are written, and ids.

use std::borrow::Cow;
use std::fmt;

/// A JSON string as it is written, decoded only when somebody asks. Equality is that of the decoded texts.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Text<'a> {
    /// From what stood between the quotes of a well-formed string.
    pub(super) fn new(raw: &'a str, escaped: bool) -> Self {
        Self { raw, escaped }
    }

    /// What stands between the quotes, escapes as written.
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// The decoded text. Allocates only if there are escapes.
    pub fn decode(&self) -> Cow<'a, str> {
        if self.escaped { Cow::Owned(self.chars().collect()) } else { Cow::Borrowed(self.raw) }
    }

    /// The decoded text, in `buffer` if there are escapes; `None` if it is too small. Never allocates. The buffer is
    /// large enough if it has the length of [`Self::raw`].
    pub fn decode_into<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b str>
    where
        'a: 'b,
    {
        if !self.escaped {
            return Some(self.raw);
        }
        let mut length = 0;
        for character in self.chars() {
            let end = length + character.len_utf8();
            character.encode_utf8(buffer.get_mut(length..end)?);
            length = end;
        }
        std::str::from_utf8(&buffer[..length]).ok()
    }

    /// The decoded characters.
    fn chars(&self) -> Chars<'a> {
        Chars(self.raw)
    }
}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        if self.escaped { self.chars().eq(other.chars()) } else { self.raw == other }
    }
}

impl PartialEq<&str> for Text<'_> {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.chars().eq(other.chars())
    }
}

impl Eq for Text<'_> {}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.decode())
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.decode(), f)
    }
}

/// Decodes the inside of a string that the scanner found well-formed. What could not be in one comes out as U+FFFD.
struct Chars<'a>(&'a str);

impl Chars<'_> {
    fn unit(&mut self) -> Option<u32> {
        let digits = self.0.get(..4)?;
        self.0 = &self.0[4..];
        u32::from_str_radix(digits, 16).ok()
    }

    fn escape(&mut self) -> Option<char> {
        let mut rest = self.0.chars();
        let kind = rest.next()?;
        self.0 = rest.as_str();
        match kind {
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'u' => match self.unit()? {
                high @ 0xd800..=0xdbff => {
                    self.0 = self.0.strip_prefix("\\u")?;
                    let low = self.unit()?.checked_sub(0xdc00)?;
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)
                }
                unit => char::from_u32(unit),
            },
            other => Some(other),
        }
    }
}

impl Iterator for Chars<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let mut rest = self.0.chars();
        let character = rest.next()?;
        self.0 = rest.as_str();
        if character == '\\' { Some(self.escape().unwrap_or(char::REPLACEMENT_CHARACTER)) } else { Some(character) }
    }
}

/// A request's id: the JSON text of a number, a string or null, as the client wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawId<'a>(pub(super) &'a str);

impl<'a> RawId<'a> {
    /// An id that a scan has shown before.
    pub fn of_scanned(json: &'a str) -> Self {
        Self(json)
    }

    /// The JSON text. Valid JSON by itself, so it can be put into an answer as it is.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl fmt::Display for RawId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_when_compared() {
        let text = Text::new(r#"\"\\\/\b\f\n\r\tA\u00e9\u20AC\ud83d\udc1dé"#, true);
        let decoded = "\"\\/\u{8}\u{c}\n\r\tAé€🐝é";
        assert!(text == decoded);
        assert_eq!(text.decode(), decoded);
        assert_eq!(text.decode_into(&mut [0; 64]), Some(decoded));
        assert_eq!(text.decode_into(&mut [0; 10]), None);
        assert!(text == Text::new(&text.decode().replace('"', "\\\""), true) || text.raw().len() > 10);
        assert!(
            text != "x" && Text::new("abc", false) == "abc" && Text::new("abc", false) == Text::new(r"\u0061bc", true)
        );
        assert_eq!(format!("{text}"), decoded);
    }

    #[test]
    fn a_plain_text_is_borrowed() {
        assert!(matches!(Text::new("message/send", false).decode(), Cow::Borrowed("message/send")));
    }

    #[test]
    fn nothing_that_could_be_inside_makes_the_decoder_panic() {
        for raw in [
            "\\",
            "\\u",
            "\\u12",
            "\\ud800",
            "\\ud800\\u",
            "\\ud800\\u0000",
            "\\ud800\\uffff",
            "\\udc00",
            "\\ué000",
            "\\u+123",
        ] {
            assert!(Text::new(raw, true).decode().chars().count() <= raw.len());
        }
    }
}
