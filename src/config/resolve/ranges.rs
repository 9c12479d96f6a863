//! Least and greatest values.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Resolver;
use crate::units::{Size, Span};

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

impl Resolver<'_> {
    /// A duration out of `least..=most`.
    pub(super) fn span(&mut self, path: &str, value: Span, least: Duration, most: Duration) {
        self.range(path, &value, &(Span(least)..=Span(most)));
    }

    /// A size out of `range`, in bytes.
    pub(super) fn size(&mut self, path: &str, value: Size, range: &RangeInclusive<u64>) {
        self.range(path, &value, &(Size(*range.start())..=Size(*range.end())));
    }

    /// A number out of `range`.
    pub(super) fn range<T: PartialOrd + fmt::Display>(&mut self, path: &str, value: &T, range: &RangeInclusive<T>) {
        if !range.contains(value) {
            self.error(path, format!("{value} is out of range; write {} to {}", range.start(), range.end()));
        }
    }
}
