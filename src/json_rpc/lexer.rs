//! The grammar of RFC 8259 over text that is known to be UTF-8, without building or allocating anything.

use super::fault::ParseFaultKind as Kind;
use super::plain::{plain_end, spaces_end};
use super::text::Text;

/// The deepest nesting that can be configured; a larger limit counts as this.
pub const DEPTH_MAX: u16 = 512;

/// Why the lexer stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Parse(Kind),
    TooDeep,
}

/// Why and where it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) stop: Stop,
    pub(super) at: usize,
}

/// A place in a text.
///
/// What is called often is always inlined, and the rest takes the lexer by value: so the place stays in a register.
#[derive(Clone, Copy)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    pub(super) at: usize,
    depth_max: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, depth_max: u16) -> Self {
        Self { text, at: 0, depth_max: usize::from(depth_max.min(DEPTH_MAX)) }
    }

    #[inline(always)]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The text from `start` to here.
    #[inline(always)]
    pub(super) fn since(&self, start: usize) -> &'a str {
        // Both ends stand beside ASCII characters; the empty text is never the answer.
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The next byte that has a meaning, which is not consumed.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<u8, Stopped> {
        loop {
            match self.peek() {
                // Most JSON has no white space.
                Some(byte) if byte > b' ' => return Ok(byte),
                // A line's indentation.
                Some(b'\n') => self.at = spaces_end(self.text.as_bytes(), self.at + 1),
                Some(b' ' | b'\r' | b'\t') => self.at += 1,
                _ => return Err(self.unexpected(Kind::UnexpectedByte)),
            }
        }
    }

    /// What to say of the byte here, that the grammar does not allow.
    #[cold]
    pub(super) fn unexpected(self, kind: Kind) -> Stopped {
        self.stopped(match self.peek() {
            None => Kind::UnexpectedEnd,
            Some(0) => Kind::Nul,
            Some(_) => kind,
        })
    }

    fn stopped(self, kind: Kind) -> Stopped {
        Stopped { stop: Stop::Parse(kind), at: self.at }
    }

    /// Consumes a container's opening bracket, of which it is number `depth` from the outside.
    #[inline(always)]
    pub(super) fn open(&mut self, depth: usize) -> Result<(), Stopped> {
        if depth > self.depth_max {
            return Err(Stopped { stop: Stop::TooDeep, at: self.at });
        }
        self.at += 1;
        Ok(())
    }

    /// A member's name and colon, from white space before it to the value.
    #[inline(always)]
    pub(super) fn name(&mut self) -> Result<Text<'a>, Stopped> {
        if self.next()? != b'"' {
            return Err(self.unexpected(Kind::UnexpectedByte));
        }
        let start = self.at + 1;
        let escaped = self.string()?;
        let end = self.at - 1;
        if self.next()? != b':' {
            return Err(self.unexpected(Kind::UnexpectedByte));
        }
        self.at += 1;
        Ok(Text::new(self.text.get(start..end).unwrap_or_default(), escaped))
    }

    /// A string, from its opening quote. Says whether there are escapes in it.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<bool, Stopped> {
        self.at = plain_end(self.text.as_bytes(), self.at + 1);
        let escaped = self.peek() != Some(b'"');
        if escaped {
            self.at = self.string_with_escapes()?;
        }
        self.at += 1;
        Ok(escaped)
    }

    /// The closing quote of a string whose plain beginning ended with another byte.
    #[inline(never)]
    fn string_with_escapes(mut self) -> Result<usize, Stopped> {
        let bytes = self.text.as_bytes();
        loop {
            match self.peek() {
                Some(b'"') => return Ok(self.at),
                Some(b'\\') => {}
                _ => return Err(self.unexpected(Kind::ControlCharacter)),
            }
            self.at += 1;
            match self.peek() {
                Some(b'u') => self.unicode_escape()?,
                Some(byte) if SHORT_ESCAPES[usize::from(byte)] => self.at += 1,
                _ => return Err(self.unexpected(Kind::BadEscape)),
            }
            // Escapes come in groups (`\n\t`, or a whole text of `\u0436`); then there is no run to look for.
            if self.peek() != Some(b'\\') {
                self.at = plain_end(bytes, self.at);
            }
        }
    }

    /// `\uXXXX`, from its `u`; the second half of a surrogate pair belongs to it.
    #[inline(always)]
    fn unicode_escape(&mut self) -> Result<(), Stopped> {
        let unit = self.unit()?;
        if unit & 0xf800 == 0xd800 {
            self.at = self.surrogate_pair(unit)?;
        }
        Ok(())
    }

    /// What follows a pair of escaped surrogates, from behind the first.
    fn surrogate_pair(mut self, first: u32) -> Result<usize, Stopped> {
        const ESCAPE_LENGTH: usize = 6;
        let lone = Stopped { stop: Stop::Parse(Kind::LoneSurrogate), at: self.at - ESCAPE_LENGTH };
        if first >= 0xdc00 {
            return Err(lone);
        }
        match self.text.as_bytes().get(self.at..) {
            Some([b'\\', b'u', ..]) => self.at += 1,
            // The text ends inside of what may become a pair.
            Some([] | [b'\\']) => {
                self.at = self.text.len();
                return Err(self.stopped(Kind::UnexpectedEnd));
            }
            _ => return Err(lone),
        }
        match self.unit()? {
            0xdc00..=0xdfff => Ok(self.at),
            _ => Err(lone),
        }
    }

    /// Four hex digits, from the `u` before them.
    #[inline(always)]
    fn unit(&mut self) -> Result<u32, Stopped> {
        self.at += 1;
        let Some([a, b, c, d]) = self.text.as_bytes().get(self.at..self.at + 4) else { return Err(self.bad_unit()) };
        let digit = |byte: &u8| u32::from(HEX[usize::from(*byte)]);
        let unit = digit(a) << 12 | digit(b) << 8 | digit(c) << 4 | digit(d);
        // No digit is 0xff, whose upper half ends up in the bits above.
        if unit > 0xffff || digit(b) > 15 || digit(c) > 15 || digit(d) > 15 {
            return Err(self.bad_unit());
        }
        self.at += 4;
        Ok(unit)
    }

    /// Which of four hex digits is missing, or none.
    #[cold]
    fn bad_unit(mut self) -> Stopped {
        while self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
            self.at += 1;
        }
        self.unexpected(Kind::BadEscape)
    }

    #[inline(always)]
    fn number(&mut self) -> Result<(), Stopped> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if matches!(self.peek(), Some(b'0'..=b'9')) {
                return Err(self.stopped(Kind::BadNumber));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one digit.
    #[inline(always)]
    fn digits(&mut self) -> Result<(), Stopped> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.unexpected(Kind::BadNumber)) } else { Ok(()) }
    }

    #[inline(always)]
    fn literal(&mut self, word: &[u8]) -> Result<(), Stopped> {
        for byte in word {
            if self.peek() != Some(*byte) {
                return Err(self.unexpected(Kind::UnexpectedByte));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// A whole value, from its first byte; `outside` containers are open around it. Says whether it was a string with
    /// escapes.
    #[inline(always)]
    pub(super) fn value(&mut self, outside: usize) -> Result<bool, Stopped> {
        if self.next()? == b'"' {
            return self.string();
        }
        self.at = self.value_end(outside)?;
        Ok(false)
    }

    /// Where a value ends. Not recursive: what is open is kept in bits.
    #[inline(never)]
    fn value_end(mut self, outside: usize) -> Result<usize, Stopped> {
        let mut open = OpenContainers::default();
        let mut depth = outside;
        let mut in_object = false;
        loop {
            match self.next()? {
                b'"' => drop(self.string()?),
                bracket @ (b'{' | b'[') => {
                    self.open(depth + 1)?;
                    // The closing bracket stands two after the opening one in ASCII, of either kind.
                    if self.next()? == bracket + 2 {
                        self.at += 1;
                    } else {
                        open.set(depth - outside, in_object);
                        (depth, in_object) = (depth + 1, bracket == b'{');
                        if in_object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => return Err(self.unexpected(Kind::UnexpectedByte)),
            }
            // After a value: close what ends here, or go on behind a comma.
            loop {
                if depth == outside {
                    return Ok(self.at);
                }
                let byte = self.next()?;
                if byte == b',' {
                    break;
                }
                if byte != if in_object { b'}' } else { b']' } {
                    return Err(self.unexpected(Kind::UnexpectedByte));
                }
                self.at += 1;
                depth -= 1;
                in_object = open.get(depth - outside);
            }
            self.at += 1;
            if in_object {
                self.name()?;
            }
        }
    }
}

/// The bytes that may follow a backslash, without `u`.
const SHORT_ESCAPES: [bool; 256] = {
    let mut table = [false; 256];
    let bytes = b"\"\\/bfnrt";
    let mut i = 0;
    while i < bytes.len() {
        table[bytes[i] as usize] = true;
        i += 1;
    }
    table
};

/// The value of each hex digit; 0xff for other bytes.
const HEX: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 16 {
        let digit = b"0123456789abcdef"[i];
        table[digit as usize] = i as u8;
        table[digit.to_ascii_uppercase() as usize] = i as u8;
        i += 1;
    }
    table
};

/// One bit per open container: whether what is around it is an object.
#[derive(Default)]
struct OpenContainers([u64; DEPTH_MAX as usize / 64]);

impl OpenContainers {
    // The lexer's limit keeps the index below DEPTH_MAX.
    #[inline(always)]
    fn set(&mut self, index: usize, object: bool) {
        let bit = 1 << (index % 64);
        let word = &mut self.0[index / 64];
        *word = if object { *word | bit } else { *word & !bit };
    }

    #[inline(always)]
    fn get(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }
}
