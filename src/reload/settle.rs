//! When changed files are judged: not while they are being written, and a pair of which only one half is there yet is
//! waited for in silence, for some seconds.

use std::time::{Duration, Instant};

use super::material::Contents;

/// Files that have not changed for so long are taken to be whole.
pub const SETTLE: Duration = Duration::from_millis(200);
/// Files that never come to rest are judged all the same after this.
const CHURN_MAX: Duration = Duration::from_secs(1);
/// So long after the first change may the files make no sense together before that is a failure.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// What failed is tried again so often, for time alone may mend it: a certificate that is not valid yet.
const RETRY: Duration = Duration::from_secs(60);

/// What is to be done about the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing, for now.
    Nothing,
    /// They are to be tried.
    Judge,
    /// They are again what is in use, after it was told that they made no sense.
    Restored,
}

/// What is in use, and what may come into use.
#[derive(Debug)]
pub struct Settle {
    running: Contents,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    contents: Contents,
    /// When anything changed first.
    first: Instant,
    /// Since when there is no rest: that, or the first change after what was judged last.
    restless: Instant,
    /// When these contents were seen first.
    since: Instant,
    /// When these contents were found wanting.
    failed: Option<Instant>,
    /// It has been said that they are.
    told: bool,
}

impl Settle {
    /// Nothing is pending.
    pub fn new(running: Contents) -> Self {
        Self { running, pending: None }
    }

    /// What was last taken into use.
    pub fn running(&self) -> &Contents {
        &self.running
    }

    /// Looks at what stands in the files now; says what to do about it.
    pub fn look(&mut self, contents: Contents, now: Instant) -> Look {
        if contents == self.running {
            return match self.pending.take() {
                Some(p) if p.told => Look::Restored,
                _ => Look::Nothing,
            };
        }
        let p = match &mut self.pending {
            Some(p) => {
                if p.contents != contents {
                    // Contents that come after a failure that was told have their own time.
                    let first = if p.told { now } else { p.first };
                    let restless = if p.failed.is_some() { now } else { p.restless };
                    *p = Pending { contents, first, restless, since: now, failed: None, told: false };
                }
                p
            }
            None => self.pending.insert(Pending {
                contents,
                first: now,
                restless: now,
                since: now,
                failed: None,
                told: false,
            }),
        };
        let after = |then: Instant| now.saturating_duration_since(then);
        let due = match p.failed {
            None => after(p.since) >= SETTLE || after(p.restless) >= CHURN_MAX,
            Some(_) if !p.told => after(p.first) >= PATIENCE,
            Some(at) => after(at) >= RETRY,
        };
        if due { Look::Judge } else { Look::Nothing }
    }

    /// Whether they have been changing for so long that what was read of them is taken although they changed meanwhile:
    /// files that change more often than they can be read would keep every rotation out.
    pub fn never_rests(&self, now: Instant) -> bool {
        self.pending.as_ref().is_some_and(|p| now.saturating_duration_since(p.restless) >= CHURN_MAX)
    }

    /// They are in use.
    pub fn taken(&mut self, running: Contents) {
        self.running = running;
        self.pending = None;
    }

    /// They make no sense. Says whether to tell so: once, and not before their time is over.
    pub fn failed(&mut self, now: Instant) -> bool {
        let Some(p) = &mut self.pending else { return false };
        p.failed = Some(now);
        let tell = !p.told && now.saturating_duration_since(p.first) >= PATIENCE;
        p.told |= tell;
        tell
    }

    /// Someone asked for these contents, and has been told that they make no sense.
    pub fn refused(&mut self, contents: Contents, now: Instant) {
        if contents != self.running {
            let pending = Pending { contents, first: now, restless: now, since: now, failed: Some(now), told: true };
            self.pending = Some(pending);
        }
    }

    /// Whether something is about to be judged: then the next look should come soon.
    pub fn is_waiting(&self) -> bool {
        self.pending.as_ref().is_some_and(|p| !p.told)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::super::material::Reader;
    use super::*;

    /// Contents that are equal for equal numbers: of files that are not there.
    fn contents(n: u32) -> Contents {
        Reader::default().contents([PathBuf::from(format!("/nowhere/{n}"))].iter(), SystemTime::UNIX_EPOCH)
    }

    fn judges(s: &mut Settle, contents: Contents, now: Instant) -> bool {
        s.look(contents, now) == Look::Judge
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn files_are_judged_when_they_have_come_to_rest() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        assert!(!judges(&mut s, contents(0), t) && !s.is_waiting());
        assert!(!judges(&mut s, contents(1), t + ms(10)) && s.is_waiting());
        assert!(!judges(&mut s, contents(2), t + ms(150)));
        assert!(!judges(&mut s, contents(2), t + ms(349)));
        assert!(judges(&mut s, contents(2), t + ms(350)));
        s.taken(contents(2));
        assert!(!judges(&mut s, contents(2), t + ms(400)) && !s.is_waiting());
    }

    #[test]
    fn files_that_never_rest_are_judged_too() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        let judged = (1..100).find(|n| judges(&mut s, contents(*n), t + ms(100) * *n));
        assert_eq!(judged, Some(11));
        assert!(s.never_rests(t + ms(1100)) && !s.never_rests(t + ms(1000)));
    }

    #[test]
    fn a_change_that_is_taken_back_is_none() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        s.look(contents(1), t);
        assert!(!judges(&mut s, contents(0), t + ms(500)) && !s.is_waiting());
        assert!(!judges(&mut s, contents(1), t + ms(600)));
    }

    #[test]
    fn half_of_a_pair_is_waited_for_in_silence() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        s.look(contents(1), t);
        assert!(judges(&mut s, contents(1), t + ms(200)));
        assert!(!s.failed(t + ms(200)));
        // The same half is not judged again and again.
        assert!(!judges(&mut s, contents(1), t + ms(1000)));
        assert!(!judges(&mut s, contents(2), t + ms(4000)));
        assert!(judges(&mut s, contents(2), t + ms(4200)));
        s.taken(contents(2));
        assert_eq!(s.running(), &contents(2));
    }

    #[test]
    fn what_stays_broken_is_told_once_and_tried_again_in_silence() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        s.look(contents(1), t);
        assert!(judges(&mut s, contents(1), t + ms(200)) && !s.failed(t + ms(200)));
        assert!(judges(&mut s, contents(1), t + PATIENCE) && s.failed(t + PATIENCE));
        assert!(!s.is_waiting());
        assert!(!judges(&mut s, contents(1), t + PATIENCE + ms(59_000)));
        assert!(judges(&mut s, contents(1), t + PATIENCE + RETRY));
        assert!(!s.failed(t + PATIENCE + RETRY));
        // The next contents have a time of their own.
        let t = t + PATIENCE + RETRY + ms(1000);
        assert!(!judges(&mut s, contents(2), t));
        assert!(judges(&mut s, contents(2), t + SETTLE) && !s.failed(t + SETTLE));
    }

    #[test]
    fn what_was_told_and_then_restored_is_said_once() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        s.look(contents(1), t);
        s.failed(t + PATIENCE);
        assert_eq!(s.look(contents(0), t + PATIENCE + ms(1)), Look::Restored);
        assert_eq!(s.look(contents(0), t + PATIENCE + ms(2)), Look::Nothing);
        s.look(contents(1), t + PATIENCE * 2);
        s.failed(t + PATIENCE * 2);
        assert_eq!(s.look(contents(0), t + PATIENCE * 2), Look::Nothing, "nobody was told of it");
    }

    #[test]
    fn what_someone_was_told_is_not_told_again() {
        let t = Instant::now();
        let mut s = Settle::new(contents(0));
        s.refused(contents(1), t);
        assert!(!judges(&mut s, contents(1), t + PATIENCE * 2));
        assert!(judges(&mut s, contents(1), t + RETRY) && !s.failed(t + RETRY));
        s.refused(contents(0), t);
        assert!(!judges(&mut s, contents(0), t));
    }
}
