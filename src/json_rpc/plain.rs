//! Finds the end of a plain run in a string: the next quote, backslash or control character.
//!
//! This is where the scanner spends its time. A run is short in most strings (names): found sixteen bytes at a time with
//! what every x86-64 processor has. A long one is taken by blocks, in code that the compiler makes vectors of, once for
//! AVX2 and once for any processor. The two `unsafe` blocks do nothing but state that the processor has the instructions.

/// Where the next quote, backslash or control character at or behind `at` is, or the end.
#[inline(always)]
pub(super) fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const STEPS_BEFORE_BLOCKS: usize = 4;
    for _ in 0..STEPS_BEFORE_BLOCKS {
        match special_in_step(bytes, at) {
            Some(STEP) => at += STEP,
            Some(offset) => return at + offset,
            None => return plain_end_by_words(bytes, at),
        }
    }
    plain_end_by_blocks(bytes, at)
}

/// Where the run of spaces at `at` ends, as far as there are eight bytes to look at; perhaps earlier.
#[inline(always)]
pub(super) fn spaces_end(bytes: &[u8], mut at: usize) -> usize {
    const SPACES: u64 = u64::from_le_bytes(*b"        ");
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let spaces = (u64::from_le_bytes(*word) ^ SPACES).trailing_zeros() as usize / 8;
        at += spaces;
        if spaces < 8 {
            break;
        }
    }
    at
}

#[inline(never)]
fn plain_end_by_blocks(bytes: &[u8], at: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    let at = if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the line above says.
        unsafe { skip_plain_blocks_avx2(bytes, at) }
    } else {
        skip_plain_blocks::<256>(bytes, at)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let at = skip_plain_blocks::<256>(bytes, at);
    plain_end_by_words(bytes, skip_plain_blocks::<32>(bytes, at))
}

/// [`skip_plain_blocks`], compiled for wider vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn skip_plain_blocks_avx2(bytes: &[u8], at: usize) -> usize {
    skip_plain_blocks::<256>(bytes, at)
}

/// Goes on to a block that has a special byte in it, or to less than a block.
#[inline(always)]
fn skip_plain_blocks<const LENGTH: usize>(bytes: &[u8], mut at: usize) -> usize {
    while let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk::<LENGTH>()) {
        // Zero for each special byte: flipping the second bit puts the quote (0x22) behind the control characters and
        // leaves them where they are, which saves a comparison.
        let least = block.iter().fold(u8::MAX, |least, b| least.min((b ^ 2).saturating_sub(0x20)).min(b ^ b'\\'));
        if least == 0 {
            break;
        }
        at += LENGTH;
    }
    at
}

/// For what is less than a block or a step.
fn plain_end_by_words(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match special_in_word(bytes, at) {
            Some(8) => at += 8,
            Some(offset) => return at + offset,
            None => break,
        }
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    rest.iter().position(special).map_or(bytes.len(), |offset| at + offset)
}

/// Bytes that [`special_in_step`] looks at.
#[cfg(target_arch = "x86_64")]
const STEP: usize = 16;
#[cfg(not(target_arch = "x86_64"))]
const STEP: usize = 8;

#[cfg(not(target_arch = "x86_64"))]
use special_in_word as special_in_step;

/// As [`special_in_word`], for sixteen bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn special_in_step(bytes: &[u8], at: usize) -> Option<usize> {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8,
    };
    let step: &[u8; STEP] = bytes.get(at..)?.first_chunk()?;
    let whole = u128::from_le_bytes(*step);
    // SAFETY: SSE2 is part of x86-64. The functions only take values, no pointers.
    let marks = unsafe {
        let text = _mm_set_epi64x((whole >> 64) as i64, whole as i64);
        let control = _mm_cmpeq_epi8(_mm_min_epu8(text, _mm_set1_epi8(0x1f)), text);
        let quote = _mm_cmpeq_epi8(text, _mm_set1_epi8(0x22));
        let backslash = _mm_cmpeq_epi8(text, _mm_set1_epi8(0x5c));
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, backslash), control))
    };
    // The bit behind the last stands for none.
    Some((marks | 1 << STEP).trailing_zeros() as usize)
}

/// The offset of the first special byte among the eight at `at`; 8 if there is none, `None` if there are no eight.
///
/// All at once in a word, as in Bit Twiddling Hacks, "Determine if a word has a byte less than n": the lowest mark is
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
    fn spaces_end_where_something_else_begins() {
        for length in 0..40 {
            let text = format!("{}x{}", " ".repeat(length), " ".repeat(9));
            assert_eq!(spaces_end(text.as_bytes(), 0), length);
            assert!(spaces_end(" ".repeat(length).as_bytes(), 0) <= length);
        }
    }

    #[test]
    fn the_end_of_a_plain_run_is_found_wherever_it_is() {
        for length in (0..300).chain([511, 512, 513, 700]) {
            for filler in [b'a', 0x7f, 0x80, 0xff, b'#', b'!', b'[', b']', b' ', b'\\' ^ 2, b'^'] {
                for special in [b'"', b'\\', 0, 2, 0x1f, b'\n'] {
                    let mut bytes = vec![filler; length];
                    assert_eq!(plain_end(&bytes, 0), length);
                    bytes.extend([special, b'"', filler, special]);
                    bytes.extend(vec![filler; 20]);
                    let ends = [plain_end(&bytes, 0), plain_end_by_words(&bytes, 0), plain_end_by_blocks(&bytes, 0)];
                    assert_eq!(ends, [length; 3], "{filler} {special}");
                }
            }
        }
        for byte in 0..=255 {
            let special = byte < 0x20 || byte == b'"' || byte == b'\\';
            let end = if special { 0 } else { 256 };
            assert_eq!(skip_plain_blocks::<256>(&[byte; 256], 0), end, "{byte}");
        }
    }
}
