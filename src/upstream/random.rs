//! Random numbers for balancing and jitter; nothing here is a secret.

/// 2^64 divided by the golden ratio: an additive sequence of it is spread evenly, with any number of members.
pub(super) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A seed that differs from process to process and from call to call.
pub(super) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded by the system.
    std::hash::RandomState::new().build_hasher().finish()
}

/// SplitMix64 (Steele, Lea, Flood 2014): the n-th random number of a seed, with no state in between.
pub(super) fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
