//! Just enough DER (X.690) to find an extension, and to read a CRL in one pass without building a tree: OpenSSL takes some hundred bytes of memory
//! for each of its entries, and a list may have millions.

pub(in crate::tls) const INTEGER: u8 = 0x02;
pub(in crate::tls) const BIT_STRING: u8 = 0x03;
pub(in crate::tls) const OCTET_STRING: u8 = 0x04;
pub(in crate::tls) const OBJECT: u8 = 0x06;
pub(in crate::tls) const BOOLEAN: u8 = 0x01;
pub(in crate::tls) const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(in crate::tls) struct Reader<'a>(&'a [u8]);

/// One element.
#[derive(Debug, Clone, Copy)]
pub(in crate::tls) struct Element<'a> {
    pub(in crate::tls) tag: u8,
    pub(in crate::tls) content: &'a [u8],
    /// With tag and length.
    pub(in crate::tls) whole: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(in crate::tls) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(in crate::tls) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tag of the next element.
    pub(in crate::tls) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element; `None` if it is cut off or no DER.
    pub(in crate::tls) fn any(&mut self) -> Option<Element<'a>> {
        let (&tag, &first) = (self.0.first()?, self.0.get(1)?);
        // Tags of more than one byte are in no CRL.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, head) = match first {
            0..=0x7f => (usize::from(first), 2),
            0x81..=0x84 => {
                let bytes = usize::from(first & 0x7f);
                let length = self.0.get(2..2 + bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b));
                (length, 2 + bytes)
            }
            _ => return None,
        };
        let end = head.checked_add(length)?;
        let element = Element { tag, content: self.0.get(head..end)?, whole: &self.0[..end] };
        self.0 = &self.0[end..];
        Some(element)
    }

    /// The next element, which must have this tag.
    pub(in crate::tls) fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        if self.peek() == Some(tag) { self.any() } else { None }
    }

    /// The next element if it has this tag. `None`: it is broken.
    pub(in crate::tls) fn optional(&mut self, tag: u8) -> Option<Option<Element<'a>>> {
        if self.peek() == Some(tag) { self.any().map(Some) } else { Some(None) }
    }

    /// UTCTime or GeneralizedTime in seconds since 1970, as RFC 5280, section 4.1.2.5, has them: `Z` at the end, with
    /// seconds, without fractions.
    pub(in crate::tls) fn time(&mut self) -> Option<i64> {
        let element = self.any()?;
        let (year, rest) = match element.tag {
            UTC_TIME => {
                let (year, rest) = (digits(element.content.get(..2)?)?, &element.content[2..]);
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => (digits(element.content.get(..4)?)?, &element.content[4..]),
            _ => return None,
        };
        let [month @ .., _, _, _, _, _, _, _, _, b'Z'] = rest else { return None };
        let month = digits(month).filter(|m| (1..=12).contains(m) && rest.len() == 11)?;
        let at = |from: usize, most: i64| digits(&rest[from..from + 2]).filter(|n| *n <= most);
        let day = at(2, 31).filter(|d| *d >= 1)?;
        let (hour, minute, second) = (at(4, 23)?, at(6, 59)?, at(8, 60)?);
        Some(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
    }
}

/// The value of a certificate's extension (RFC 5280, section 4.1), by the content octets of its object identifier.
pub(in crate::tls) fn certificate_extension<'a>(certificate: &'a [u8], object: &[u8]) -> Option<&'a [u8]> {
    const EXTENSIONS: u8 = 0xa3;
    let mut signed =
        Reader::new(Reader::new(Reader::new(certificate).expect(SEQUENCE)?.content).expect(SEQUENCE)?.content);
    let explicit = loop {
        let element = signed.any()?;
        if element.tag == EXTENSIONS {
            break element.content;
        }
    };
    let mut extensions = Reader::new(Reader::new(explicit).expect(SEQUENCE)?.content);
    loop {
        let (found, _, value) = extension(extensions.expect(SEQUENCE)?)?;
        if found == object {
            return Some(value);
        }
    }
}

/// An extension: its object, whether it is critical, its value.
pub(in crate::tls) fn extension<'a>(element: Element<'a>) -> Option<(&'a [u8], bool, &'a [u8])> {
    let mut reader = Reader::new(element.content);
    let object = reader.expect(OBJECT)?.content;
    let critical = reader.optional(BOOLEAN)?.is_some_and(|value| value.content != [0]);
    Some((object, critical, reader.expect(OCTET_STRING)?.content))
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// Days since 1970-01-01 in the Gregorian calendar: years counted from March, in eras of 400.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_unix_seconds() {
        let time = |tag, text: &str| Reader::new(&[&[tag, text.len() as u8], text.as_bytes()].concat()).time();
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "491231235959Z", 2_524_607_999),
            (UTC_TIME, "500101000000Z", -631_152_000),
            (UTC_TIME, "000229120000Z", 951_825_600),
            (GENERALIZED_TIME, "20270115080000Z", 1_800_000_000),
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(time(tag, text), Some(seconds), "{text}");
        }
        for wrong in ["700101000000", "7001010000Z", "700001000000Z", "700101240000Z", "7001010000+0Z", "", "Z"] {
            assert_eq!(time(UTC_TIME, wrong), None, "{wrong}");
            assert_eq!(time(GENERALIZED_TIME, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        let whole = [0x30, 0x82, 0x01, 0x00].into_iter().chain([7; 256]).collect::<Vec<u8>>();
        assert_eq!(Reader::new(&whole).any().unwrap().content, [7; 256]);
        for length in 0..whole.len() {
            assert!(Reader::new(&whole[..length]).any().is_none(), "{length}");
        }
        for wrong in [
            &[0x30, 0x80, 0, 0][..],
            &[0x30, 0x85, 0, 0, 0, 0, 1, 7],
            &[0x1f, 1, 1],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(Reader::new(wrong).any().is_none(), "{wrong:?}");
        }
    }
}
