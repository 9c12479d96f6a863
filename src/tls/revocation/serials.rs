//! A million serial numbers in little memory, asked in constant time.
//!
//! Serials lie packed one after the other, all as wide as the widest, ordered by a hash into buckets of a few. Looking
//! one up is one hash, two adjacent offsets and a scan of about four entries that share a cache line or two. The
//! numbers themselves are compared, never only their hashes: no collision can revoke another's certificate.

use std::sync::LazyLock;

use ahash::{AHashSet, RandomState};

/// Longest serial that is packed: RFC 5280, section 4.1.2.2, allows 20 octets.
const PACKED_BYTES_MAX: usize = 20;

/// Serials in a bucket, on average. Each bucket costs four bytes.
const BUCKET_MEAN: usize = 4;

/// One hasher for the process, so that a serial is hashed once and asked of any number of lists.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A serial number, ready to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial {
    number: Number,
    hash: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Number {
    /// Right-aligned, with its length.
    Usual([u8; PACKED_BYTES_MAX], u8),
    /// Negative or too long: against RFC 5280, but seen. The content octets of the DER integer.
    Odd(Box<[u8]>),
}

impl Serial {
    /// From the content octets of an ASN.1 INTEGER.
    pub fn of_der(content: &[u8]) -> Self {
        match usual(content) {
            Some(magnitude) => {
                let mut number = [0; PACKED_BYTES_MAX];
                number[PACKED_BYTES_MAX - magnitude.len()..].copy_from_slice(magnitude);
                // At most 20, see `usual`.
                Self { number: Number::Usual(number, magnitude.len() as u8), hash: HASHER.hash_one(magnitude) }
            }
            None => Self { number: Number::Odd(content.into()), hash: 0 },
        }
    }
}

/// The magnitude without leading zeros; `None` for a negative number or one of more than 20 octets.
fn usual(content: &[u8]) -> Option<&[u8]> {
    if content.first().is_some_and(|first| first & 0x80 != 0) {
        return None;
    }
    let zeros = content.iter().take_while(|b| **b == 0).count();
    Some(&content[zeros..]).filter(|magnitude| magnitude.len() <= PACKED_BYTES_MAX)
}

/// An immutable set of serial numbers.
#[derive(Debug)]
pub struct Serials {
    count: usize,
    /// Bytes of each packed serial.
    width: usize,
    /// Where each bucket begins, in entries; one more than there are buckets.
    offsets: Box<[u32]>,
    packed: Box<[u8]>,
    odd: AHashSet<Box<[u8]>>,
}

impl Serials {
    /// Takes the content octets of ASN.1 INTEGERs. They are walked three times, so that nothing but the set itself is
    /// allocated.
    pub fn build<'a>(serials: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let (mut packed_count, mut width) = (0, 1);
        let mut odd = AHashSet::new();
        for content in serials.clone() {
            match usual(content) {
                Some(magnitude) => {
                    packed_count += 1;
                    width = width.max(magnitude.len());
                }
                None => _ = odd.insert(content.into()),
            }
        }
        let buckets = packed_count / BUCKET_MEAN + 1;
        let packed_serials = serials.filter_map(usual);
        let mut offsets = vec![0_u32; buckets + 1];
        for magnitude in packed_serials.clone() {
            offsets[bucket(HASHER.hash_one(magnitude), buckets) + 1] += 1;
        }
        for at in 1..offsets.len() {
            offsets[at] += offsets[at - 1];
        }
        let mut packed = vec![0; packed_count * width];
        // Each bucket is filled from its begin, which moves to its end; shifting by one bucket restores the begins.
        for magnitude in packed_serials {
            let next = &mut offsets[bucket(HASHER.hash_one(magnitude), buckets)];
            let end = (*next as usize + 1) * width;
            packed[end - magnitude.len()..end].copy_from_slice(magnitude);
            *next += 1;
        }
        offsets.rotate_right(1);
        offsets[0] = 0;
        Self { count: packed_count + odd.len(), width, offsets: offsets.into(), packed: packed.into(), odd }
    }

    /// Whether the serial is one of them.
    pub fn contains(&self, serial: &Serial) -> bool {
        let (number, length) = match &serial.number {
            Number::Usual(number, length) => (number, usize::from(*length)),
            Number::Odd(content) => return self.odd.contains(content),
        };
        if length > self.width {
            return false;
        }
        let at = bucket(serial.hash, self.offsets.len() - 1);
        let (from, to) = (self.offsets[at] as usize * self.width, self.offsets[at + 1] as usize * self.width);
        let wanted = &number[PACKED_BYTES_MAX - self.width..];
        self.packed[from..to].chunks_exact(self.width).any(|entry| entry == wanted)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Memory that it takes, bytes; of odd serials an estimate.
    pub fn memory_bytes(&self) -> usize {
        let odd: usize = self.odd.iter().map(|content| content.len() + 2 * size_of::<Box<[u8]>>()).sum();
        size_of::<Self>() + self.packed.len() + self.offsets.len() * size_of::<u32>() + odd
    }
}

/// A hash's bucket: the upper half is spread over their number without a division.
fn bucket(hash: u64, buckets: usize) -> usize {
    // Both factors are below 2^32, so the product fits, and the result is below `buckets`.
    (((hash >> 32) * buckets as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn set(serials: &[Vec<u8>]) -> Serials {
        Serials::build(serials.iter().map(Vec::as_slice))
    }

    #[test]
    fn none_is_in_the_empty_set() {
        let set = set(&[]);
        assert!(set.is_empty());
        for content in [&[][..], &[0], &[1], &[0xff], &[1; 40]] {
            assert!(!set.contains(&Serial::of_der(content)));
        }
    }

    #[test]
    fn leading_zeros_say_nothing_and_the_sign_does() {
        let set = set(&[vec![0, 0xff], vec![0x80, 1], vec![0]]);
        for inside in [&[0, 0xff][..], &[0, 0, 0xff], &[0x80, 1], &[0], &[]] {
            assert!(set.contains(&Serial::of_der(inside)), "{inside:?}");
        }
        for outside in [&[0xff][..], &[0, 0x80, 1], &[1], &[0xff, 0], &[0, 0xff, 0]] {
            assert!(!set.contains(&Serial::of_der(outside)), "{outside:?}");
        }
    }

    #[test]
    fn numbers_of_every_length_are_found_and_no_other() {
        let number = |n: u64, length: usize| {
            let mut content = vec![0x11; length];
            content.iter_mut().rev().zip(n.to_le_bytes()).for_each(|(to, from)| *to = from);
            content[0] &= 0x7f;
            content
        };
        let inside: Vec<_> =
            (0..30_000_u64).map(|n| number(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 1 + (n as usize % 24))).collect();
        let known: HashSet<_> = inside.iter().map(|content| Serial::of_der(content).number.clone_key()).collect();
        let set = set(&inside);
        assert!(inside.iter().all(|content| set.contains(&Serial::of_der(content))));
        for n in 0..30_000_u64 {
            let serial = Serial::of_der(&number(n.wrapping_mul(0xd134_2543_de82_ef95), 1 + (n as usize % 24)));
            assert_eq!(set.contains(&serial), known.contains(&serial.number.clone_key()));
        }
    }

    impl Number {
        fn clone_key(&self) -> Vec<u8> {
            match self {
                Number::Usual(number, _) => number.to_vec(),
                Number::Odd(content) => [b"odd", &content[..]].concat(),
            }
        }
    }

    #[test]
    fn a_million_cost_little_more_than_themselves() {
        let serials: Vec<[u8; 16]> =
            (0..1_000_000_u128).map(|n| (n * 0x1234_5678_9abc_def1 + 1).to_be_bytes()).collect();
        let set = Serials::build(serials.iter().map(|s| &s[..]));
        assert_eq!(set.len(), serials.len());
        assert!(set.memory_bytes() <= 18 * serials.len(), "{}", set.memory_bytes());
        assert!(set.contains(&Serial::of_der(&serials[999_999])));
    }
}
