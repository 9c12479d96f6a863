//! Writes one flat JSON object on one line, by hand: an access log line is a few hundred bytes and costs less than the
//! allocations of a value tree would.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::fields::Value;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// What follows a text that was cut.
const CUT: &[u8] = b"...";

/// Bytes that can't be copied as they are: controls, quote, backslash, DEL and all of non-ASCII.
fn needs_care(b: u8) -> bool {
    b < 0x20 || b == b'"' || b == b'\\' || b >= 0x7f
}

/// Whether no byte needs care: eight at a time, the last eight once more rather than the rest one by one.
fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    match text.last_chunk::<8>() {
        Some(last) if !rest.is_empty() => words.iter().chain([last]).all(|w| is_plain_word(*w)),
        Some(_) => words.iter().all(|w| is_plain_word(*w)),
        None => !text.iter().any(|&b| needs_care(b)),
    }
}

/// [`needs_care`] of no byte in the word. Subtracting borrows into a byte's highest bit if the byte was less; a byte is
/// equal to another if their difference by XOR is less than 1. A borrow can only spread from a byte that needs care.
fn is_plain_word(word: [u8; 8]) -> bool {
    const fn each(b: u8) -> u64 {
        u64::from_ne_bytes([b; 8])
    }
    const fn less(word: u64, than: u8) -> u64 {
        word.wrapping_sub(each(than)) & !word
    }
    let word = u64::from_ne_bytes(word);
    let special = less(word ^ each(b'"'), 1) | less(word ^ each(b'\\'), 1) | less(word ^ each(0x7f), 1);
    (word | less(word, 0x20) | special) & each(0x80) == 0
}

/// An object being written to the end of a buffer.
pub(super) struct JsonLine<'o>(&'o mut Vec<u8>);

impl<'o> JsonLine<'o> {
    /// Opens the object.
    pub(super) fn begin(out: &'o mut Vec<u8>) -> Self {
        out.reserve(1024);
        out.push(b'{');
        Self(out)
    }

    /// Opens the object of something that is no request, with what every line has.
    pub(super) fn event(out: &'o mut Vec<u8>, time: SystemTime, event: &'static str) -> Self {
        let mut line = Self::begin(out);
        line.time("time", time);
        line.text("event", event.as_bytes(), usize::MAX);
        line
    }

    /// A field of the table.
    #[inline(always)]
    pub(super) fn value(&mut self, key: &'static str, value: Value<'_>) {
        match value {
            Value::Absent => {}
            Value::Text(text, bytes_max) => self.text(key, text, bytes_max),
            Value::Number(number) => self.number(key, number),
            Value::Micros(duration) => self.micros(key, Some(duration)),
            Value::Address(address) => self.address(key, address),
            Value::Time(time) => self.time(key, time),
        }
    }

    /// A moment: the first field of every line, so that no comma stands before it.
    pub(super) fn time(&mut self, key: &'static str, value: SystemTime) {
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":\"");
        push_time(self.0, value);
        self.0.push(b'"');
    }

    /// A text under a key that is made at run time; it is escaped too.
    pub(super) fn text_of(&mut self, group: &'static str, key: &str, value: &[u8], bytes_max: usize) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(group.as_bytes());
        push_escaped(self.0, key.as_bytes());
        self.0.extend_from_slice(b"\":\"");
        push_cut(self.0, value, bytes_max);
        self.0.push(b'"');
    }

    // Inlined with its callers, so that a key is a few constant stores and not a copy: an eighth of the whole line.
    #[inline(always)]
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// A text of which at most `bytes_max` bytes are kept; what is cut ends in `...`.
    #[inline(always)]
    pub(super) fn text(&mut self, key: &'static str, value: &[u8], bytes_max: usize) {
        self.key(key);
        self.0.push(b'"');
        push_cut(self.0, value, bytes_max);
        self.0.push(b'"');
    }

    /// A text, or nothing at all.
    #[inline(always)]
    pub(super) fn optional(&mut self, key: &'static str, value: Option<impl AsRef<[u8]>>, bytes_max: usize) {
        if let Some(value) = value {
            self.text(key, value.as_ref(), bytes_max);
        }
    }

    #[inline(always)]
    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        push_number(self.0, value);
    }

    /// Whole microseconds, or nothing at all.
    pub(super) fn micros(&mut self, key: &'static str, value: Option<Duration>) {
        if let Some(value) = value {
            self.number(key, u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn address(&mut self, key: &'static str, value: IpAddr) {
        self.key(key);
        self.0.push(b'"');
        push_address(self.0, value);
        self.0.push(b'"');
    }

    /// Closes the object; no line end.
    pub(super) fn end(self) {
        self.0.push(b'}');
    }
}

/// A text, escaped, of which at most `bytes_max` bytes are kept; what is cut ends in `...`.
#[inline(always)]
pub(super) fn push_cut(out: &mut Vec<u8>, value: &[u8], bytes_max: usize) {
    if value.len() <= bytes_max {
        push_escaped(out, value);
    } else {
        push_escaped(out, cut(value, bytes_max));
        out.extend_from_slice(CUT);
    }
}

/// Appends an address, as it is written everywhere.
pub fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            push_number(out, u64::from(a));
            for octet in [b, c, d] {
                out.push(b'.');
                push_number(out, u64::from(octet));
            }
        }
        // Writing to a `Vec` can't fail.
        IpAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// The first `bytes_max` bytes or a few less, so that no character is cut in half.
fn cut(value: &[u8], bytes_max: usize) -> &[u8] {
    let mut end = bytes_max;
    // A character has at most three bytes after its first.
    while end > 0 && bytes_max - end < 3 && value[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    // More of them than that: it is no UTF-8 anyway.
    if value[end] & 0xC0 == 0x80 { &value[..bytes_max] } else { &value[..end] }
}

fn push_escaped(out: &mut Vec<u8>, mut rest: &[u8]) {
    // Nearly always there is nothing to escape.
    if is_plain(rest) {
        out.extend_from_slice(rest);
        return;
    }
    loop {
        let plain = rest.iter().position(|&b| needs_care(b)).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        match rest {
            [] => return,
            [b, tail @ ..] if b.is_ascii() => {
                push_ascii_escape(out, *b);
                rest = tail;
            }
            _ => {
                let end = rest.iter().position(u8::is_ascii).unwrap_or(rest.len());
                push_non_ascii(out, &rest[..end]);
                rest = &rest[end..];
            }
        }
    }
}

fn push_ascii_escape(out: &mut Vec<u8>, b: u8) {
    match b {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => push_unicode_escape(out, u16::from(b)),
    }
}

fn push_unicode_escape(out: &mut Vec<u8>, unit: u16) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(HEX[usize::from(unit >> shift & 0xF)]);
    }
}

/// Text as it is; what is not UTF-8 as U+FFFD; what could move a terminal's cursor, end a line or turn its direction as an
/// escape.
fn push_non_ascii(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match u16::try_from(u32::from(c)) {
                Ok(unit @ (0x80..=0x9F | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x2069 | 0xFEFF)) => {
                    push_unicode_escape(out, unit);
                }
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

pub(super) fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// RFC 3339 in UTC with microseconds: `2026-11-21T22:30:05.000123Z`. Before 1970 is 1970.
pub(super) fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(since.as_secs() / 86_400);
    let second = since.as_secs() % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let fields = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 6, u64::from(since.subsec_micros())),
    ];
    for (start, width, mut value) in fields {
        for place in (start..start + width).rev() {
            text[place] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    out.extend_from_slice(&text);
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year, and days from 0000-03-01; 400 years always
/// have 146,097 days, a century 36,524 and four years 1,461, each with one more or less at its end.
pub(super) fn civil(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let century = (day_of_era / 36_524).min(3);
    let day_of_century = day_of_era - century * 36_524;
    let (quad, day_of_quad) = (day_of_century / 1461, day_of_century % 1461);
    let year_of_quad = (day_of_quad / 365).min(3);
    let day_of_year = day_of_quad - year_of_quad * 365;
    // From March on, months of 31 and 30 days alternate in groups of 153 days for five months.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + century * 100 + quad * 4 + year_of_quad + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(value: &[u8]) -> String {
        let mut out = Vec::new();
        push_escaped(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    fn time(seconds: u64, micros: u64) -> String {
        let mut out = Vec::new();
        push_time(&mut out, UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whatever_the_bytes_the_text_is_one_json_string_without_a_raw_control() {
        for value in
            (0..=255u8).map(|b| vec![b'a', b, b'z']).chain([b"\xf0\x9f\x98".to_vec(), b"\xed\xa0\x80x".to_vec()])
        {
            let text = escaped(&value);
            assert!(text.chars().all(|c| !c.is_control()), "{value:?} became {text:?}");
            let back: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
            assert_eq!(back, String::from_utf8_lossy(&value), "{value:?}");
        }
    }

    #[test]
    fn a_byte_that_needs_care_is_found_at_every_place_of_every_length() {
        for length in 0..40 {
            assert!(is_plain(&vec![b' '; length]) && is_plain(&vec![b'~'; length]) && is_plain(&vec![b'!'; length]));
            for (place, b) in (0..length).flat_map(|place| (0..=255u8).map(move |b| (place, b))) {
                let mut text = vec![b'a'; length];
                text[place] = b;
                assert_eq!(is_plain(&text), !needs_care(b), "{b:#x} at {place} of {length}");
            }
        }
    }

    #[test]
    fn text_stays_readable_and_direction_marks_do_not_act() {
        assert_eq!(escaped("Zürich 北京 😀".as_bytes()), "Zürich 北京 😀");
        assert_eq!(escaped("a\u{202e}b\u{2028}c\u{9b}d".as_bytes()), "a\\u202eb\\u2028c\\u009bd");
        assert_eq!(escaped(b"\xc3\x28 \xff\xfe"), "\\ufffd( \\ufffd\\ufffd");
    }

    #[test]
    fn a_cut_never_halves_a_character() {
        assert_eq!(cut("aé".as_bytes(), 2), b"a");
        assert_eq!(cut("aéb".as_bytes(), 3), "aé".as_bytes());
        assert_eq!(cut("😀😀".as_bytes(), 7), "😀".as_bytes());
        assert_eq!(cut(&[0x80; 20], 10), [0x80; 10]);
        assert_eq!(cut(b"abc", 0), b"");
    }

    #[test]
    fn numbers_and_times_read_right() {
        let mut out = Vec::new();
        for n in [0, 7, 10, u64::MAX] {
            push_number(&mut out, n);
            out.push(b' ');
        }
        assert_eq!(out, b"0 7 10 18446744073709551615 ");
        assert_eq!(time(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(951_782_400, 1), "2000-02-29T00:00:00.000001Z");
        assert_eq!(time(1_709_251_199, 999_999), "2024-02-29T23:59:59.999999Z");
        assert_eq!(time(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
        assert_eq!(time(1_795_300_205, 123_456), "2026-11-21T22:30:05.123456Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = civil(0);
        for day in 1..200_000 {
            let (year, month, date) = civil(day);
            let next_in_month = (last.0, last.1, last.2 + 1);
            let next_month = if last.1 == 12 { (last.0 + 1, 1, 1) } else { (last.0, last.1 + 1, 1) };
            assert!((year, month, date) == next_in_month || (year, month, date) == next_month, "day {day}");
            assert!(date <= 31);
            last = (year, month, date);
        }
    }
}
