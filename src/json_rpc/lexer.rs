//! The grammar of RFC 8259 over text that is known to be UTF-8, without building or allocating anything.

use super::fault::ParseFaultKind as Kind;
use super::text::Text;

/// The deepest nesting that can be configured; a larger limit counts as this.
pub const DEPTH_MAX: u16 = 512;

/// Why the lexer stopped; where is [`Lexer::at`]. One byte, so that results stay in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Parse(Kind),
    TooDeep,
}

/// A place in a text.
pub(super) struct Lexer<'a> {
    text: &'a str,
    pub(super) at: usize,
    depth_max: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, depth_max: u16) -> Self {
        Self { text, at: 0, depth_max: usize::from(depth_max.min(DEPTH_MAX)) }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The text from `start` to here.
    pub(super) fn since(&self, start: usize) -> &'a str {
        // Both ends stand beside ASCII characters; the empty text is never the answer.
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The next byte that has a meaning, which is not consumed.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<u8, Stop> {
        self.skip_white_space();
        self.peek().ok_or(Stop::Parse(Kind::UnexpectedEnd))
    }

    #[inline(always)]
    pub(super) fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// What to say of the byte here, that the grammar does not allow.
    #[cold]
    pub(super) fn unexpected(&self, kind: Kind) -> Stop {
        Stop::Parse(match self.peek() {
            None => Kind::UnexpectedEnd,
            Some(0) => Kind::Nul,
            Some(_) => kind,
        })
    }

    /// Consumes a container's opening bracket, of which it is number `depth` from the outside.
    #[inline(always)]
    pub(super) fn open(&mut self, depth: usize) -> Result<(), Stop> {
        if depth > self.depth_max {
            return Err(Stop::TooDeep);
        }
        self.at += 1;
        Ok(())
    }

    /// A member's name and colon, from white space before it to the value.
    #[inline(always)]
    pub(super) fn name(&mut self) -> Result<Text<'a>, Stop> {
        if self.next()? != b'"' {
            return Err(self.unexpected(Kind::UnexpectedByte));
        }
        let start = self.at + 1;
        let escaped = self.string()?;
        let name = Text::new(self.text.get(start..self.at - 1).unwrap_or_default(), escaped);
        if self.next()? != b':' {
            return Err(self.unexpected(Kind::UnexpectedByte));
        }
        self.at += 1;
        Ok(name)
    }

    /// A string, from its opening quote. Says whether there are escapes in it.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<bool, Stop> {
        self.at = plain_end(self.text.as_bytes(), self.at + 1);
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(false);
        }
        self.string_with_escapes()
    }

    /// The rest of a string whose plain beginning ended with another byte than a quote.
    fn string_with_escapes(&mut self) -> Result<bool, Stop> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(true);
                }
                Some(b'\\') => self.escape()?,
                _ => return Err(self.unexpected(Kind::ControlCharacter)),
            }
            self.at = plain_end(self.text.as_bytes(), self.at);
        }
    }

    /// An escape, from its backslash.
    fn escape(&mut self) -> Result<(), Stop> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => self.unicode_escape(),
            _ => Err(self.unexpected(Kind::BadEscape)),
        }
    }

    /// From the `u` of `\uXXXX`; the second half of a surrogate pair belongs to it.
    fn unicode_escape(&mut self) -> Result<(), Stop> {
        let start = self.at - 1;
        let lone = |lexer: &mut Self| {
            lexer.at = start;
            Err(Stop::Parse(Kind::LoneSurrogate))
        };
        match self.unit()? {
            0xd800..=0xdbff => {}
            0xdc00..=0xdfff => return lone(self),
            _ => return Ok(()),
        }
        match self.text.as_bytes().get(self.at..) {
            Some([b'\\', b'u', ..]) => self.at += 1,
            // The text ends inside of what may become a pair.
            Some([] | [b'\\']) => {
                self.at = self.text.len();
                return Err(Stop::Parse(Kind::UnexpectedEnd));
            }
            _ => return lone(self),
        }
        match self.unit()? {
            0xdc00..=0xdfff => Ok(()),
            _ => lone(self),
        }
    }

    /// Four hex digits, from the `u` before them.
    fn unit(&mut self) -> Result<u32, Stop> {
        let mut unit = 0;
        for _ in 0..4 {
            self.at += 1;
            let digit = self.peek().and_then(|b| char::from(b).to_digit(16));
            unit = unit << 4 | digit.ok_or_else(|| self.unexpected(Kind::BadEscape))?;
        }
        self.at += 1;
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), Stop> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if matches!(self.peek(), Some(b'0'..=b'9')) {
                return Err(Stop::Parse(Kind::BadNumber));
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
    fn digits(&mut self) -> Result<(), Stop> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.unexpected(Kind::BadNumber)) } else { Ok(()) }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Stop> {
        for byte in word {
            if self.peek() != Some(*byte) {
                return Err(self.unexpected(Kind::UnexpectedByte));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// A whole value, from its first byte; `outside` containers are open around it. Says whether it was a string with
    /// escapes. Not recursive: what is open is kept in bits.
    pub(super) fn value(&mut self, outside: usize) -> Result<bool, Stop> {
        let mut open = OpenContainers::default();
        let mut depth = outside;
        let mut in_object = false;
        loop {
            let mut escaped = false;
            match self.next()? {
                b'"' => escaped = self.string()?,
                b'{' => {
                    self.open(depth + 1)?;
                    if self.next()? == b'}' {
                        self.at += 1;
                    } else {
                        open.set(depth - outside, in_object);
                        (depth, in_object) = (depth + 1, true);
                        self.name()?;
                        continue;
                    }
                }
                b'[' => {
                    self.open(depth + 1)?;
                    if self.next()? == b']' {
                        self.at += 1;
                    } else {
                        open.set(depth - outside, in_object);
                        (depth, in_object) = (depth + 1, false);
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
                    return Ok(escaped);
                }
                match self.next()? {
                    b',' => break,
                    b'}' if in_object => {}
                    b']' if !in_object => {}
                    _ => return Err(self.unexpected(Kind::UnexpectedByte)),
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

/// Where the next quote, backslash or control character is, or the end.
///
/// Short strings, the most of them names, are found by words of eight bytes; a longer one is taken by blocks that the
/// compiler turns into vector code.
#[inline(always)]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const WORDS_BEFORE_BLOCKS: usize = 4;
    for _ in 0..WORDS_BEFORE_BLOCKS {
        match special_in_word(bytes, at) {
            Some(8) => at += 8,
            Some(offset) => return at + offset,
            None => return plain_end_bytewise(bytes, at),
        }
    }
    plain_end_by_blocks(bytes, at)
}

fn plain_end_by_blocks(bytes: &[u8], mut at: usize) -> usize {
    const BLOCK: usize = 64;
    while let Some(block) = bytes.get(at..at + BLOCK) {
        if block.iter().fold(false, |found, b| found | is_special(*b)) {
            break;
        }
        at += BLOCK;
    }
    loop {
        match special_in_word(bytes, at) {
            Some(8) => at += 8,
            Some(offset) => return at + offset,
            None => return plain_end_bytewise(bytes, at),
        }
    }
}

fn plain_end_bytewise(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().position(|b| is_special(*b)).map_or(bytes.len(), |offset| at + offset)
}

#[inline(always)]
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The offset of the first special byte among the eight at `at`; 8 if there is none, `None` if there are no eight.
///
/// All at once in a word, from Bit Twiddling Hacks ("Determine if a word has a byte less than n"): the lowest mark is
/// always right, and a higher one is never looked at.
#[inline(always)]
fn special_in_word(bytes: &[u8], at: usize) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let word = u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let less = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
    let (quote, backslash) = (word ^ (ONES * 0x22), word ^ (ONES * 0x5c));
    let marks = (less(word, 0x20) | less(quote, 1) | less(backslash, 1)) & HIGH;
    Some((marks.trailing_zeros() / 8) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_plain_run_is_found_wherever_it_is() {
        for length in 0..300 {
            for filler in [b'a', 0x7f, 0x80, 0xff, b'#', b'!', b'[', b']', b' '] {
                for special in [b'"', b'\\', 0, 0x1f, b'\n'] {
                    let mut bytes = vec![filler; length];
                    assert_eq!(plain_end(&bytes, 0), length);
                    bytes.extend([special, b'"', filler, special]);
                    assert_eq!(plain_end(&bytes, 0), length, "{filler} {special}");
                }
            }
        }
    }

    #[test]
    fn what_the_lexer_says_stays_small() {
        assert_eq!(size_of::<Result<bool, Stop>>(), 2);
    }
}
