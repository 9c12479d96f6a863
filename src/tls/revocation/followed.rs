//! URLs that clients' certificates name for their own lists: which of them are asked, and who waits for the first answer.
//!
//! A URL is looked at only in a certificate whose chain has been verified, only if the configuration allows its host and
//! path, and there may be only so many: a CA's mistake must not turn the gateway into somebody's errand boy.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::fetch::CrlUrl;
use super::points::{self, Names, UrlPrefix};

/// Most URLs that clients' certificates may make a listener ask for lists. CAs that split their lists have some dozen.
const POINTS_MAX: usize = 256;

/// A certificate has named a URL that is not known yet.
static WANTED: Notify = Notify::const_new();
/// A URL was asked, with or without success.
static ASKED: Notify = Notify::const_new();

/// Waits until some certificate names a new URL.
pub async fn crl_wanted() {
    WANTED.notified().await;
}

/// Waits until some URL has been asked. What happens after the call counts, also before the first poll.
pub fn crl_asked() -> Notified<'static> {
    ASKED.notified()
}

/// The distribution points that a listener follows.
#[derive(Default)]
pub(super) struct Followed {
    allowed: Vec<UrlPrefix>,
    /// Each URL, and whether it was asked once.
    points: Mutex<Vec<(CrlUrl, bool)>>,
    /// Some URL was left out for want of room, and that was told.
    full: AtomicBool,
}

impl Followed {
    pub(super) fn new(allowed: Vec<UrlPrefix>) -> Self {
        Self { allowed, ..Self::default() }
    }

    /// Whether any is followed.
    pub(super) fn is_on(&self) -> bool {
        !self.allowed.is_empty()
    }

    fn allows(&self, url: &CrlUrl) -> bool {
        self.allowed.iter().any(|prefix| prefix.allows(url))
    }

    /// Has the distribution points of a certificate asked, but for those that are asked anyway. Whether one of them has
    /// not been asked to its end yet. If there is no room, those go that are not `useful`.
    pub(super) fn want(
        &self,
        names: &Names,
        anyway: impl Fn(&CrlUrl) -> bool,
        useful: impl Fn(&CrlUrl) -> bool,
    ) -> bool {
        if self.allowed.is_empty() {
            return false;
        }
        let mut awaited = false;
        for url in points::urls(names).filter(|url| self.allows(url) && !anyway(url)) {
            if self.points.lock().len() >= POINTS_MAX {
                self.make_room(&useful);
            }
            let mut points = self.points.lock();
            match points.iter().find(|(known, _)| *known == url) {
                Some((_, asked)) => awaited |= !asked,
                None if points.len() < POINTS_MAX => {
                    points.push((url, false));
                    WANTED.notify_one();
                    awaited = true;
                }
                None => self.tell_full(&url),
            }
        }
        awaited
    }

    /// Not under the lock: `useful` has one of its own.
    fn make_room(&self, useful: impl Fn(&CrlUrl) -> bool) {
        let asked =
            self.points.lock().iter().filter(|(_, asked)| *asked).map(|(url, _)| url.clone()).collect::<Vec<_>>();
        let useless: Vec<_> = asked.into_iter().filter(|url| !useful(url)).collect();
        self.points.lock().retain(|(url, _)| !useless.contains(url));
    }

    fn tell_full(&self, url: &CrlUrl) {
        if !self.full.swap(true, Ordering::Relaxed) {
            let url = url.as_str();
            log::warn!("clients' certificates name more than {POINTS_MAX} distribution points; {url} is not asked");
        }
    }

    /// A URL has been asked: nobody waits for it any more.
    pub(super) fn note_asked(&self, url: &CrlUrl) {
        self.points.lock().iter_mut().filter(|(known, _)| known == url).for_each(|(_, asked)| *asked = true);
        ASKED.notify_waiters();
    }

    /// The URLs.
    pub(super) fn urls(&self) -> Vec<CrlUrl> {
        self.points.lock().iter().map(|(url, _)| url.clone()).collect()
    }

    /// Goes on with those of an earlier snapshot that are still allowed.
    pub(super) fn adopt(&self, before: &Self) {
        let points = before.points.lock().iter().filter(|(url, _)| self.allows(url)).cloned().collect();
        *self.points.lock() = points;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(url: &str) -> Names {
        let uri = [&[0x86, url.len() as u8], url.as_bytes()].concat();
        [uri.into()].into()
    }

    #[test]
    fn a_url_is_awaited_until_it_was_asked_and_others_are_not_followed() {
        let followed = Followed::new(vec![UrlPrefix::parse("http://ca.example/").unwrap()]);
        let want = |url: &str| followed.want(&names(url), |_| false, |_| true);
        assert!(!want("http://other.example/a") && !want("https://ca.example/a") && followed.urls().is_empty());
        assert!(want("http://ca.example/a") && want("http://ca.example/a"));
        let [url] = &followed.urls()[..] else { panic!("asked twice") };
        followed.note_asked(url);
        assert!(!want("http://ca.example/a"));
        assert!(!followed.want(&names("http://ca.example/b"), |_| true, |_| true), "it is asked anyway");
        let after = Followed::new(vec![UrlPrefix::parse("http://ca.example/a").unwrap()]);
        want("http://ca.example/b");
        after.adopt(&followed);
        assert_eq!(after.urls().len(), 1, "what is no longer allowed is forgotten");
    }

    #[test]
    fn there_is_an_end_to_the_urls_and_useless_ones_make_room() {
        let followed = Followed::new(vec![UrlPrefix::parse("http://ca.example/").unwrap()]);
        let want =
            |n: usize, useful: bool| followed.want(&names(&format!("http://ca.example/{n}")), |_| false, |_| useful);
        assert!((0..POINTS_MAX).all(|n| want(n, true)));
        assert!(!want(POINTS_MAX, false), "none has been asked yet");
        for url in followed.urls() {
            followed.note_asked(&url);
        }
        assert!(!want(POINTS_MAX, true), "all are in use");
        assert!(want(POINTS_MAX, false));
        assert!(followed.urls().len() <= POINTS_MAX);
    }
}
