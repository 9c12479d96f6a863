//! Keeps an attack from filling the disk: so many lines a second are written, the rest is counted and told in one line.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The time that lines are counted over, and after which the omitted ones are told.
pub const PERIOD: Duration = Duration::from_secs(1);

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It is written.
    Write,
    /// It is left out. For the first one of a period someone must call [`LineLimit::take_omitted`] when it is over.
    Omit {
        /// When the period ends, for the first one that is left out in it.
        tell_at: Option<Instant>,
    },
}

/// A limit on lines of one kind.
pub struct LineLimit {
    most: u32,
    state: Mutex<State>,
}

struct State {
    since: Option<Instant>,
    written: u32,
    omitted: u64,
}

impl LineLimit {
    /// Lets `most` lines through in each [`PERIOD`].
    pub fn new(most: u32) -> Self {
        Self { most, state: Mutex::new(State { since: None, written: 0, omitted: 0 }) }
    }

    /// Whether a line is written at `now`.
    pub fn admit(&self, now: Instant) -> Line {
        let mut state = self.state.lock();
        let since = match state.since {
            Some(since) if now.saturating_duration_since(since) < PERIOD => since,
            _ => {
                (state.since, state.written) = (Some(now), 0);
                now
            }
        };
        if state.written < self.most {
            state.written += 1;
            return Line::Write;
        }
        state.omitted += 1;
        Line::Omit { tell_at: (state.omitted == 1).then(|| since + PERIOD) }
    }

    /// How many were left out since this was asked last.
    pub fn take_omitted(&self) -> u64 {
        std::mem::take(&mut self.state.lock().omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_some_lines_and_a_count() {
        let limit = LineLimit::new(2);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!([limit.admit(at(0)), limit.admit(at(1))], [Line::Write; 2]);
        assert_eq!(limit.admit(at(2)), Line::Omit { tell_at: Some(at(1000)) });
        assert_eq!(limit.admit(at(999)), Line::Omit { tell_at: None });
        assert_eq!(limit.take_omitted(), 2);
        assert_eq!([limit.admit(at(1000)), limit.admit(at(1001))], [Line::Write; 2]);
        assert_eq!(limit.admit(at(1002)), Line::Omit { tell_at: Some(at(2000)) });
        assert_eq!((limit.take_omitted(), limit.take_omitted()), (1, 0));
    }
}
