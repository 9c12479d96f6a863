//! From SRV's priorities and weights (RFC 2782) to the gateway's.

use std::collections::BTreeMap;

/// The gateway's greatest weight and priority.
const WEIGHT_MAX: u32 = 100;
const PRIORITY_MAX: u8 = 9;

/// An SRV record's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rank {
    pub(super) priority: u16,
    pub(super) weight: u16,
}

/// The priority and the weight of each record.
///
/// The lowest priority of an answer becomes 0, the next 1, and so on; from the tenth on they are one. Weights keep their
/// proportion within a priority: as they are up to 100, beyond that scaled down so that the greatest is 100. A weight of 0
/// stands for "a very small chance" there, so it counts as the least, 1.
pub(super) fn ranks(records: &[Rank]) -> Vec<(u8, u16)> {
    // Of each priority the greatest weight, in order.
    let mut greatest: BTreeMap<u16, u16> = BTreeMap::new();
    for record in records {
        let most = greatest.entry(record.priority).or_default();
        *most = record.weight.max(*most);
    }
    let places: BTreeMap<u16, u8> =
        greatest.keys().copied().zip((0..=PRIORITY_MAX).chain(std::iter::repeat(PRIORITY_MAX))).collect();
    let rank = |record: &Rank| {
        let most = u32::from(greatest.get(&record.priority).copied().unwrap_or(0)).max(WEIGHT_MAX);
        let weight = (u32::from(record.weight) * WEIGHT_MAX + most / 2) / most;
        let weight = u16::try_from(weight.max(1)).unwrap_or(1);
        (places.get(&record.priority).copied().unwrap_or(PRIORITY_MAX), weight)
    };
    records.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(records: &[(u16, u16)]) -> Vec<(u8, u16)> {
        ranks(&records.iter().map(|&(priority, weight)| Rank { priority, weight }).collect::<Vec<_>>())
    }

    #[test]
    fn weights_keep_their_proportion_within_a_priority() {
        assert_eq!(of(&[(10, 60), (10, 20), (10, 20)]), [(0, 60), (0, 20), (0, 20)]);
        assert_eq!(of(&[(10, 30_000), (10, 15_000), (20, 3), (20, 1)]), [(0, 100), (0, 50), (1, 3), (1, 1)]);
        assert_eq!(of(&[(0, 0), (0, 0)]), [(0, 1), (0, 1)]);
        assert_eq!(of(&[(0, 0), (0, 65_535)]), [(0, 1), (0, 100)]);
    }

    #[test]
    fn priorities_become_places() {
        assert_eq!(of(&[(65_535, 1), (5, 1), (100, 1)]), [(2, 1), (0, 1), (1, 1)]);
        let many: Vec<_> = (0..12).map(|priority| (priority * 7, 1)).collect();
        let places: Vec<_> = of(&many).into_iter().map(|(priority, _)| priority).collect();
        assert_eq!(places, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]);
        assert!(of(&[]).is_empty());
    }
}
