//! What was refused last, for operators who ask. It costs next to nothing: the rings are short, nobody waits for them, and
//! what happens again is counted where it stands.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::{HandshakeRecord, HandshakeResult};

/// Entries of a ring.
const KEPT: usize = 64;
/// Longest text of a client's that is kept, in bytes.
const TEXT_MAX: usize = 200;

/// What happened, when, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<T> {
    /// The last time.
    pub last: SystemTime,
    /// How often in all.
    pub count: u64,
    /// What.
    pub what: T,
}

/// The last of what happened.
pub struct Ring<T>(Mutex<Entries<T>>);

struct Entries<T> {
    seen: Vec<Seen<T>>,
    /// Since when new entries are counted, and how many there were.
    span: (SystemTime, usize),
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self(Mutex::new(Entries { seen: Vec::with_capacity(KEPT), span: (SystemTime::UNIX_EPOCH, 0) }))
    }
}

impl<T: Clone> Ring<T> {
    /// Notes what happened, unless somebody else is at it or a ring's worth has been noted this second: the metrics count
    /// all. `same` tells whether that is what happened before; if it never is, `make` makes the entry.
    pub fn note(&self, now: SystemTime, same: impl Fn(&T) -> bool, make: impl FnOnce() -> T) {
        let Some(mut entries) = self.0.try_lock() else { return };
        if let Some(seen) = entries.seen.iter_mut().find(|seen| same(&seen.what)) {
            seen.last = now;
            seen.count += 1;
            return;
        }
        if now.duration_since(entries.span.0).is_ok_and(|since| since < Duration::from_secs(1)) {
            if entries.span.1 >= KEPT {
                return;
            }
            entries.span.1 += 1;
        } else {
            entries.span = (now, 1);
        }
        let seen = Seen { last: now, count: 1, what: make() };
        if entries.seen.len() < KEPT {
            entries.seen.push(seen);
        } else if let Some(oldest) = entries.seen.iter_mut().min_by_key(|seen| seen.last) {
            *oldest = seen;
        }
    }

    /// All of them, the newest first.
    pub fn all(&self) -> Vec<Seen<T>> {
        let mut all = self.0.lock().seen.clone();
        all.sort_by_key(|seen| std::cmp::Reverse(seen.last));
        all
    }
}

/// A request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRequest {
    /// [`crate::refusal::Refusal::code`].
    pub code: &'static str,
    /// The answer's.
    pub status: u16,
    /// Where it came.
    pub listener: String,
    /// Who asked.
    pub client: IpAddr,
    /// Whose certificate it is.
    pub peer: Option<String>,
    /// What it was for.
    pub route: Option<String>,
    /// Path without query, of the first such request.
    pub path: String,
    /// Name in the access log, of the first such request.
    pub request_id: Option<String>,
}

/// A handshake that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedHandshake {
    /// How.
    pub result: HandshakeResult,
    /// More about it.
    pub detail: String,
    /// Where.
    pub listener: String,
    /// Who.
    pub client: IpAddr,
    /// The name that was asked for.
    pub sni: Option<String>,
    /// The certificate's.
    pub subject: Option<String>,
    /// The certificate's.
    pub issuer: Option<String>,
}

/// The rings of the process.
#[derive(Default)]
pub struct Recent {
    /// Requests.
    pub refusals: Ring<RefusedRequest>,
    /// Handshakes.
    pub handshakes: Ring<FailedHandshake>,
}

impl Recent {
    /// Notes a handshake that failed.
    pub fn handshake_failed(&self, record: &HandshakeRecord<'_>) {
        let shown = |text: Option<&str>| text.map(|text| readable(text.as_bytes()));
        let (sni, subject) = (shown(record.sni), shown(record.subject));
        self.handshakes.note(
            record.time,
            |seen| {
                let same = seen.client == record.client && seen.result == record.result;
                same && seen.listener == record.listener && seen.sni == sni && seen.subject == subject
            },
            || FailedHandshake {
                result: record.result,
                detail: shown(record.detail).unwrap_or_default(),
                listener: record.listener.to_owned(),
                client: record.client,
                sni: sni.clone(),
                subject: subject.clone(),
                issuer: shown(record.issuer),
            },
        );
    }
}

/// A client's text, shortened, for people to read.
pub fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_MAX)]).into_owned();
    if bytes.len() > TEXT_MAX { text + "…" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + ms)
    }

    fn note(ring: &Ring<u32>, ms: u64, what: u32) {
        ring.note(at(ms), |seen| *seen == what, || what);
    }

    #[test]
    fn what_happens_again_is_counted_and_the_newest_comes_first() {
        let ring = Ring::default();
        note(&ring, 0, 1);
        note(&ring, 1, 2);
        note(&ring, 2, 1);
        let seen = |last, count, what| Seen { last: at(last), count, what };
        assert_eq!(ring.all(), [seen(2, 2, 1), seen(1, 1, 2)]);
    }

    #[test]
    fn a_flood_neither_grows_the_ring_nor_makes_more_than_a_ring_s_worth_each_second() {
        let ring = Ring::default();
        for n in 0..100 {
            note(&ring, 0, n);
        }
        let all: Vec<_> = ring.all().into_iter().map(|seen| seen.what).collect();
        assert_eq!((all.len(), *all.iter().max().unwrap()), (KEPT, KEPT as u32 - 1));
        note(&ring, 1001, 500);
        assert_eq!((ring.all().len(), ring.all()[0].what), (KEPT, 500));
    }

    #[test]
    fn handshakes_for_different_names_are_counted_apart() {
        let recent = Recent::default();
        for sni in [Some("a.test"), Some("b.test"), None, Some("a.test")] {
            recent.handshake_failed(&HandshakeRecord {
                time: at(0),
                listener: "front",
                client: [127, 0, 0, 1].into(),
                result: HandshakeResult::Expired,
                detail: None,
                sni,
                tls_version: None,
                subject: None,
                issuer: None,
                duration: Duration::ZERO,
            });
        }
        let counts: Vec<_> = recent.handshakes.all().into_iter().map(|seen| (seen.what.sni, seen.count)).collect();
        assert_eq!(counts, [(Some("a.test".into()), 2), (Some("b.test".into()), 1), (None, 1)]);
    }

    #[test]
    fn nobody_waits_for_a_ring() {
        let ring = Ring::default();
        let held = ring.0.lock();
        note(&ring, 0, 1);
        drop(held);
        assert!(ring.all().is_empty());
    }

    #[test]
    fn long_texts_are_shortened() {
        assert_eq!(readable(b"/a\xff"), "/a\u{fffd}");
        assert_eq!(readable(&[b'x'; 500]), format!("{}…", "x".repeat(TEXT_MAX)));
    }
}
