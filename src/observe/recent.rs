//! What was refused last, for operators who ask. It costs next to nothing: the rings are short, nobody waits for them, and
//! what happens again is counted where it stands.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::{HandshakeRecord, HandshakeResult};

/// Entries of a ring.
const KEPT: usize = 64;
/// New entries of one client each second: whoever asks for another name each time must not use up all that are noted.
const OF_A_CLIENT_MAX: usize = 8;
const SECOND: Duration = Duration::from_secs(1);
/// Longest text of a client's that is kept, in bytes.
const TEXT_MAX: usize = 200;

/// What somebody caused.
pub trait Caused {
    /// Who.
    fn client(&self) -> IpAddr;
}

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

impl<T: Caused> Entries<T> {
    /// The oldest of the client that has the most.
    fn victim(&self) -> Option<usize> {
        let whose: Vec<_> = self.seen.iter().map(|seen| subscriber(seen.what.client())).collect();
        let share = |at: usize| whose.iter().filter(|other| **other == whose[at]).count();
        (0..whose.len()).max_by_key(|&at| (share(at), std::cmp::Reverse(self.seen[at].last)))
    }
}

impl<T: Clone + Caused> Ring<T> {
    /// Notes what `client` did, unless somebody else is at it or a ring's worth has been noted this second: the metrics
    /// count all. `same` tells whether that is what happened before; if it never is, `make` makes the entry, in a full ring
    /// in place of the oldest of whoever has the most there: a client alone pushes out nobody else.
    pub fn note(&self, now: SystemTime, client: IpAddr, same: impl Fn(&T) -> bool, make: impl FnOnce() -> T) {
        let Some(mut entries) = self.0.try_lock() else { return };
        if let Some(seen) = entries.seen.iter_mut().find(|seen| same(&seen.what)) {
            seen.last = now;
            seen.count += 1;
            return;
        }
        let this_second = |at: SystemTime| now.duration_since(at).is_ok_and(|since| since < SECOND);
        if this_second(entries.span.0) && entries.span.1 >= KEPT {
            return;
        }
        let client = subscriber(client);
        let own = entries.seen.iter().filter(|seen| subscriber(seen.what.client()) == client);
        if own.filter(|seen| this_second(seen.last)).count() >= OF_A_CLIENT_MAX {
            return;
        }
        entries.span = if this_second(entries.span.0) { (entries.span.0, entries.span.1 + 1) } else { (now, 1) };
        let seen = Seen { last: now, count: 1, what: make() };
        match entries.victim().filter(|_| entries.seen.len() >= KEPT) {
            Some(at) => entries.seen[at] = seen,
            None => entries.seen.push(seen),
        }
    }

    /// All of them, the newest first.
    pub fn all(&self) -> Vec<Seen<T>> {
        let mut all = self.0.lock().seen.clone();
        all.sort_by_key(|seen| std::cmp::Reverse(seen.last));
        all
    }
}

/// Whose an address is: who has one of IPv6 has its whole /64.
fn subscriber(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
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

impl Caused for RefusedRequest {
    fn client(&self) -> IpAddr {
        self.client
    }
}

impl Caused for FailedHandshake {
    fn client(&self) -> IpAddr {
        self.client
    }
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
            record.client,
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

    /// Each is another client's.
    impl Caused for u32 {
        fn client(&self) -> IpAddr {
            IpAddr::V4((*self).into())
        }
    }

    fn note(ring: &Ring<u32>, ms: u64, what: u32) {
        ring.note(at(ms), what.client(), |seen| *seen == what, || what);
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

    fn failed(recent: &Recent, ms: u64, client: &str, sni: Option<&str>) {
        recent.handshake_failed(&HandshakeRecord {
            time: at(ms),
            listener: "front",
            client: client.parse().unwrap(),
            result: HandshakeResult::Expired,
            detail: None,
            sni,
            tls_version: None,
            subject: None,
            issuer: None,
            duration: Duration::ZERO,
        });
    }

    #[test]
    fn handshakes_for_different_names_are_counted_apart() {
        let recent = Recent::default();
        for sni in [Some("a.test"), Some("b.test"), None, Some("a.test")] {
            failed(&recent, 0, "127.0.0.1", sni);
        }
        let counts: Vec<_> = recent.handshakes.all().into_iter().map(|seen| (seen.what.sni, seen.count)).collect();
        assert_eq!(counts, [(Some("a.test".into()), 2), (Some("b.test".into()), 1), (None, 1)]);
    }

    #[test]
    fn a_client_that_changes_names_pushes_out_nobody_and_its_last_are_shown() {
        for flood in [|_| "10.0.0.1".to_owned(), |n| format!("2001:db8::{n:x}")] {
            let recent = Recent::default();
            failed(&recent, 0, "10.9.9.9", Some("quiet.test"));
            // Ten seconds of a thousand names each.
            for n in 0..10_000_u64 {
                failed(&recent, n, &flood(n), Some(&format!("n{n}.test")));
                if n == 500 {
                    failed(&recent, n, "10.8.8.8", Some("late.test"));
                }
            }
            let all = recent.handshakes.all();
            let shown = |name: &str| all.iter().any(|seen| seen.what.sni.as_deref() == Some(name));
            assert!(shown("quiet.test") && shown("late.test"), "{all:#?}");
            assert_eq!(all.len(), KEPT);
            assert!(all[0].last >= at(8_900), "the flood's newest are shown: {all:#?}");
        }
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
