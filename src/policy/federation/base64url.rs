//! base64url without padding (RFC 4648, section 5; RFC 7515, section 2), to the letter: one text for each value, so that
//! two parties can't read a token differently.

/// Decodes a text. `None`: another letter, padding, white space, an impossible length, or bits set behind the last byte.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0u32);
    for letter in text {
        bits = bits << 6 | u32::from(value(*letter)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            // The upper bits have been taken already.
            bytes.push((bits >> count & 0xff) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // Six bits left over are a letter that began no byte.
    (count < 6 && bits == 0).then_some(bytes)
}

fn value(letter: u8) -> Option<u8> {
    match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_decode() {
        for (text, bytes) in
            [("", ""), ("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9vYmE", "fooba")]
        {
            assert_eq!(decode(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
        assert_eq!(decode(b"-_-_").unwrap(), [0xfb, 0xff, 0xbf]);
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for text in ["Zg==", "Zh", "Zm9", "Z", "Zm9vY", "Zm+v", "Zm/v", "Zm 9v", "Zm9v\n", "Zm9v.", "Zmé"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }
}
