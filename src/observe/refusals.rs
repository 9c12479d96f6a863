//! Refusals, counted without a look-up by text.

use std::sync::OnceLock;

use prometheus::{IntCounter, IntCounterVec};

/// Slots of [`RefusalTable`]: a few times the number of refusals.
const REFUSAL_SLOTS: usize = 256;

/// Counters by refusal code, found by the address of the code's text: no hash over text and no lock.
pub(super) struct RefusalTable(Box<[OnceLock<(&'static str, IntCounter)>]>);

impl RefusalTable {
    pub(super) fn new() -> Self {
        Self((0..REFUSAL_SLOTS).map(|_| OnceLock::new()).collect())
    }

    pub(super) fn inc(&self, code: &'static str, family: &IntCounterVec) {
        let start = code.as_ptr().addr().wrapping_mul(0x9E37_79B9) >> 7;
        for step in 0..REFUSAL_SLOTS {
            let slot = &self.0[(start + step) % REFUSAL_SLOTS];
            let (here, counter) = slot.get_or_init(|| (code, family.with_label_values(&[code])));
            // The compiler may keep one text at two addresses: that is two slots of one counter.
            if std::ptr::eq(*here, code) {
                counter.inc();
                return;
            }
        }
        family.with_label_values(&[code]).inc();
    }
}
