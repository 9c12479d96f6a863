//! A listener's revocation as it stands: lists from files, lists fetched over HTTP, and the set of both, which is swapped
//! under running handshakes and requests.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ahash::AHashMap;
use arc_swap::ArcSwap;
use openssl::x509::X509;
use parking_lot::Mutex;

use super::fetch::CrlUrl;
use super::followed::Followed;
use super::points::UrlPrefix;
use super::store::StateDir;
use super::{Bundle, CRL_BYTES_MAX, Crl, Link, READING, RevocationSet, Verdict, read_from, read_lists};
use crate::config::file::{ClientAuth, CrlCheck, ExpiredCrl};
use crate::tls::TlsFault;
use crate::tls::certificate::name;

/// What an operator sees of an issuer's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlFacts {
    /// The issuer (RFC 4514).
    pub issuer: String,
    /// When it was made, seconds since 1970.
    pub this_update: i64,
    /// When a newer one is due, seconds since 1970; `i64::MAX` if it does not say.
    pub next_update: i64,
    /// Revoked certificates.
    pub entries: usize,
    /// Memory that they take, bytes.
    pub memory_bytes: usize,
    /// A file holds an older list than the one in use.
    pub file_is_older: bool,
}

/// What a URL gave last, with its entity tag: the two are handed on together, or the tag would keep away a list that has
/// been lost.
#[derive(Clone)]
struct FromUrl {
    lists: Vec<Arc<Crl>>,
    tag: Option<String>,
}

/// What a listener knows of revoked certificates, and what it does about it.
pub struct Revocation {
    check: CrlCheck,
    expired: ExpiredCrl,
    refresh: Duration,
    files: Vec<PathBuf>,
    urls: Vec<CrlUrl>,
    /// Where clients' certificates send us for their lists.
    followed: Followed,
    bundle: Bundle,
    /// Held while the set is replaced, so that no list is lost between two fetches.
    lists: Mutex<Lists>,
    set: ArcSwap<RevocationSet>,
}

/// Where the lists of the set are from.
#[derive(Default)]
struct Lists {
    from_files: Vec<Arc<Crl>>,
    /// Issuers of which a file holds an older list than the one in use.
    rolled_back: Vec<String>,
    /// By URL.
    fetched: AHashMap<String, FromUrl>,
    /// Those that took over from this one: what comes for it afterwards is theirs too, or a list that is read while a new
    /// snapshot is built would be lost. Those that never came into use are dropped.
    heirs: Vec<Weak<Revocation>>,
}

impl Revocation {
    /// From the configuration; `None` if it asks for no check. Files are read, URLs are not: see [`Self::install`].
    ///
    /// # Errors
    /// What is wrong with any file or URL. What is only doubtful goes to `warnings`.
    pub fn load(
        settings: &ClientAuth,
        base_dir: &Path,
        ca: &[X509],
        now: i64,
        warnings: &mut Vec<TlsFault>,
    ) -> Result<Option<Arc<Self>>, Vec<TlsFault>> {
        if !settings.checks_crls() {
            return Ok(None);
        }
        let mut faults = Vec::new();
        let urls = parse_all(&settings.crl_url, "crl_url", CrlUrl::parse, &mut faults);
        let points = &settings.crl_distribution_points;
        let followed = parse_all(points, "crl_distribution_points", UrlPrefix::parse, &mut faults);
        let set = RevocationSet::load(&settings.crl, base_dir, ca, now);
        let set = set.map_err(|more| faults.extend(more)).unwrap_or_default();
        if !faults.is_empty() {
            return Err(faults);
        }
        let revocation = Self {
            check: settings.crl_check.unwrap_or_default(),
            expired: settings.expired_crl.unwrap_or_default(),
            refresh: settings.crl_refresh.map_or(ClientAuth::CRL_REFRESH_DEFAULT, |span| span.0),
            files: settings.crl.iter().map(|file| base_dir.join(file)).collect(),
            urls,
            followed: Followed::new(followed),
            bundle: Bundle::of(ca),
            lists: Mutex::new(Lists { from_files: set.crls().cloned().collect(), ..Lists::default() }),
            set: ArcSwap::new(set),
        };
        warnings.extend(
            revocation.doubts(now).into_iter().map(|message| TlsFault { field: "client_auth.crl".into(), message }),
        );
        Ok(Some(Arc::new(revocation)))
    }

    /// What an operator should know of the lists at hand.
    fn doubts(&self, now: i64) -> Vec<String> {
        let mut doubts = Vec::new();
        let set = self.set.load();
        for crl in set.crls() {
            let who = &crl.issuer_name;
            if crl.next_update < now {
                let so = match self.expired {
                    ExpiredCrl::Reject => "whoever it is to vouch for is refused until a new one comes",
                    ExpiredCrl::Accept => "it is used all the same (expired_crl: accept)",
                };
                doubts
                    .push(format!("the CRL of {who:?} is {} seconds past its nextUpdate; {so}", now - crl.next_update));
            } else if now >= two_thirds(crl.this_update, crl.next_update) {
                let left = crl.next_update - now;
                doubts.push(format!(
                    "the CRL of {who:?} is due to be replaced in {left} seconds; two thirds of its life are over"
                ));
            }
        }
        if self.check == CrlCheck::Chain && self.urls.is_empty() && !self.followed.is_on() {
            for (cert, _) in self.bundle.iter().filter(|(_, id)| !set.by_issuer.contains_key(id)) {
                doubts.push(format!(
                    "no CRL of {:?}; certificates below it are refused (crl_check: chain)",
                    name(cert.subject_name())
                ));
            }
        }
        doubts
    }

    /// Whether clients are refused of whom only a late list tells.
    pub fn rejects_late_lists(&self) -> bool {
        self.expired == ExpiredCrl::Reject
    }

    /// Which certificates of a chain are asked about.
    pub fn crl_check(&self) -> CrlCheck {
        self.check
    }

    /// The generation of the present set.
    pub fn generation(&self) -> u64 {
        self.set.load().generation()
    }

    /// Asks about a chain, of which only the leaf counts with `crl_check: leaf`: the first bad verdict with its place in
    /// the chain, or until when all is good.
    pub fn ask(&self, links: &[Link], now: i64) -> (usize, Verdict) {
        self.ask_but(links, now, |_| false)
    }

    /// As [`Self::ask`], of a client that is just coming in: what a list could say that is about to be fetched is left
    /// open. [`Self::awaits`] tells before the client's first request.
    pub fn ask_at_handshake(&self, links: &[Link], now: i64) -> (usize, Verdict) {
        self.ask_but(links, now, |link| self.want(link, now))
    }

    fn ask_but(&self, links: &[Link], now: i64, left_open: impl Fn(&Link) -> bool) -> (usize, Verdict) {
        let set = self.set.load();
        let mut until = i64::MAX;
        for (at, link) in self.checked(links).iter().enumerate() {
            match set.ask(link, self.expired, now) {
                Verdict::Good { until: one } => until = until.min(one),
                Verdict::NoCrl | Verdict::CrlExpired if left_open(link) => {}
                bad => return (at, bad),
            }
        }
        (0, Verdict::Good { until })
    }

    fn checked<'l>(&self, links: &'l [Link]) -> &'l [Link] {
        match self.check {
            CrlCheck::Leaf => links.get(..1).unwrap_or(links),
            CrlCheck::Chain => links,
        }
    }

    /// Whether certificates' own distribution points are asked.
    pub fn follows_points(&self) -> bool {
        self.followed.is_on()
    }

    /// Whether a client of whom nothing is known is to wait, because a distribution point of its certificates has not
    /// been asked yet. Sees to it that it will be.
    pub fn awaits(&self, links: &[Link], now: i64) -> bool {
        let set = self.set.load();
        let mut awaited = false;
        // Each of them is asked for, not only the first.
        for link in self.checked(links) {
            if let Verdict::NoCrl | Verdict::CrlExpired = set.ask(link, self.expired, now) {
                awaited |= self.want(link, now);
            }
        }
        awaited
    }

    /// Has the distribution points of a certificate asked; whether one has not answered for the first time. Only
    /// certificates of a verified chain come here.
    fn want(&self, link: &Link, now: i64) -> bool {
        let useful = |url: &CrlUrl| self.next_update(url).is_some_and(|next| next >= now);
        self.followed.want(&link.points, |url| self.urls.contains(url), useful)
    }

    /// A URL has been asked: nobody waits for it any more.
    pub fn note_asked(&self, url: &CrlUrl) {
        self.followed.note_asked(url);
        let heirs = self.lists.lock().heirs.clone();
        heirs.iter().filter_map(Weak::upgrade).for_each(|heir| heir.note_asked(url));
    }

    /// Where the configuration has lists fetched from.
    pub fn urls(&self) -> &[CrlUrl] {
        &self.urls
    }

    /// All URLs to fetch lists from: those of the configuration, and those that clients' certificates named.
    pub fn sources(&self) -> Vec<CrlUrl> {
        self.urls.iter().cloned().chain(self.followed.urls()).collect()
    }

    /// What an operator sees of the places that lists are fetched from: each URL, and whether its lists are in use.
    pub fn source_facts(&self) -> Vec<(String, bool)> {
        let has = |url: &CrlUrl| (url.as_str().to_owned(), self.has(url));
        self.sources().iter().map(has).collect()
    }

    /// How often they are fetched at least.
    pub fn refresh(&self) -> Duration {
        self.refresh
    }

    /// The entity tag of what this URL gave last.
    pub fn tag(&self, url: &CrlUrl) -> Option<String> {
        self.lists.lock().fetched.get(url.as_str())?.tag.clone()
    }

    /// Whether lists from this URL are in use.
    pub fn has(&self, url: &CrlUrl) -> bool {
        self.lists.lock().fetched.contains_key(url.as_str())
    }

    /// When the first list from this URL is due to be replaced.
    pub fn next_update(&self, url: &CrlUrl) -> Option<i64> {
        self.lists.lock().fetched.get(url.as_str())?.lists.iter().map(|crl| crl.next_update).min()
    }

    /// Takes lists that were fetched into use. Returns whether anything changed.
    ///
    /// # Errors
    /// Why they can't be used; the last good ones stay.
    pub fn install(&self, url: &CrlUrl, bytes: &[u8], tag: Option<String>, now: i64) -> Result<bool, String> {
        let read = {
            let _turn = READING.lock();
            read_lists(bytes, &self.bundle, now)?
        };
        let mut lists = self.lists.lock();
        let before = lists.fetched.get(url.as_str()).map(|from| &from.lists);
        for crl in &read {
            let other = before.into_iter().flatten().find(|other| crl.is_about_the_same_as(other));
            if other.is_some_and(|other| crl.is_older_than(other)) {
                return Err(format!("the CRL of {:?} is older than the one at hand", crl.issuer_name));
            }
            if crl.next_update < now && self.expired == ExpiredCrl::Reject {
                return Err(format!("the CRL of {:?} is past its nextUpdate", crl.issuer_name));
            }
        }
        // A list of another part of the same CA's certificates is no newer one: whose revocations it lacks would be let in.
        let lacks = |old: &&Arc<Crl>| old.next_update >= now && !read.iter().any(|new| new.is_about_the_same_as(old));
        if let Some(old) = before.into_iter().flatten().find(lacks) {
            return Err(format!("the CRL of {:?} that this URL gave before is not there any more", old.issuer_name));
        }
        Ok(self.take(&mut lists, url, FromUrl { lists: read, tag }))
    }

    /// Puts what a URL gave into use, here and where it was handed on to. Returns whether anything changed here.
    fn take(&self, lists: &mut Lists, url: &CrlUrl, from: FromUrl) -> bool {
        let before = lists.fetched.get(url.as_str()).map(|before| &before.lists);
        let alike = |old: &Vec<Arc<Crl>>| {
            old.len() == from.lists.len() && old.iter().zip(&from.lists).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        let same = before.is_some_and(alike);
        // Always in the order of their making: from one to its heirs.
        for heir in lists.heirs.iter().filter_map(Weak::upgrade).filter(|heir| heir.trusts(&from)) {
            heir.take(&mut heir.lists.lock(), url, from.clone());
        }
        lists.fetched.insert(url.as_str().to_owned(), from);
        if !same {
            self.put_together(lists);
        }
        !same
    }

    /// Takes into use what `other` has from a URL. For one that several reloads lie between: those in between may be gone, and
    /// with them the way of what is handed on.
    pub fn take_from(&self, other: &Revocation, url: &CrlUrl) {
        let from = other.lists.lock().fetched.get(url.as_str()).cloned();
        if let Some(from) = from.filter(|from| self.trusts(from)) {
            self.take(&mut self.lists.lock(), url, from);
        }
    }

    fn trusts(&self, from: &FromUrl) -> bool {
        from.lists.iter().all(|crl| self.bundle.contains(crl.issuer))
    }

    /// Takes into use what a URL gave to an earlier process, if nothing from there is in use. A list past its end counts
    /// as that: what it revokes stays revoked, and nobody else comes in by it. Returns whether there was anything.
    pub fn restore(&self, url: &CrlUrl, store: &StateDir, now: i64) -> bool {
        if self.has(url) {
            return false;
        }
        let read = {
            let _turn = READING.lock();
            store.read(url.as_str().as_bytes(), CRL_BYTES_MAX).map(|bytes| read_lists(&bytes, &self.bundle, now))
        };
        match read {
            None => false,
            Some(Ok(read)) => {
                let mut lists = self.lists.lock();
                let from = FromUrl { lists: read, tag: None };
                lists.fetched.entry(url.as_str().to_owned()).or_insert(from);
                self.put_together(&mut lists);
                true
            }
            Some(Err(why)) => {
                log::warn!("the CRL of {} in server.state_dir is not used: {why}", url.as_str());
                false
            }
        }
    }

    /// Takes over what an earlier snapshot of the same listener has fetched, as far as this one's CAs signed it. A file's
    /// list that is older than the one that was in use does not take its place: whose revocations it lacks would be let
    /// in, and a file goes back by mistake (a backup, a slow mirror) rather than on purpose.
    ///
    /// What is fetched for the earlier one from now on is this one's too.
    pub fn adopt(self: &Arc<Self>, before: &Revocation) {
        let mut old = before.lists.lock();
        old.heirs.retain(|heir| heir.strong_count() > 0);
        old.heirs.push(Arc::downgrade(self));
        let mut lists = self.lists.lock();
        let mut rolled_back = Vec::new();
        for crl in &mut lists.from_files {
            let newer = old.from_files.iter().find(|other| crl.is_about_the_same_as(other) && crl.is_older_than(other));
            if let Some(newer) = newer {
                rolled_back.push(crl.issuer_name.clone());
                *crl = newer.clone();
            }
        }
        lists.rolled_back = rolled_back;
        self.followed.adopt(&before.followed);
        lists.fetched =
            old.fetched.iter().filter(|(_, f)| self.trusts(f)).map(|(u, f)| (u.clone(), f.clone())).collect();
        self.put_together(&mut lists);
    }

    /// Takes newer lists of the files into use while a reload fails for something else: what is broken elsewhere must not
    /// keep a revocation out. No list goes: that of a file which can't be read stays. Returns whether anything changed.
    pub fn renew_from_files(&self, now: i64) -> bool {
        let read = self.files.iter().filter_map(|file| read_from(file, &self.bundle, now).ok());
        let read: Vec<_> = read.flatten().collect();
        let mut lists = self.lists.lock();
        let mut changed = false;
        for crl in read {
            match lists.from_files.iter_mut().find(|other| crl.is_about_the_same_as(other)) {
                Some(other) if other.is_older_than(&crl) => *other = crl,
                Some(_) => continue,
                None => lists.from_files.push(crl),
            }
            changed = true;
        }
        if changed {
            self.put_together(&mut lists);
        }
        changed
    }

    /// Issuers of which a file holds an older list than the one in use, which it does not replace.
    pub fn rolled_back(&self) -> Vec<String> {
        self.lists.lock().rolled_back.clone()
    }

    /// Builds the set of all lists that are still wanted.
    fn put_together(&self, lists: &mut Lists) {
        let sources = self.sources();
        lists.fetched.retain(|url, _| sources.iter().any(|source| source.as_str() == url));
        let all = lists.from_files.iter().chain(lists.fetched.values().flat_map(|from| &from.lists)).cloned();
        self.set.store(Arc::new(RevocationSet::of(all)));
    }

    /// Tells what the lists say from what others say.
    pub fn print(&self) -> String {
        let set = self.set.load();
        let mut each: Vec<_> = set.crls().map(|crl| crl.print()).collect();
        each.sort_unstable();
        each.join("\n")
    }

    /// What there is, for status, metrics and `check`; one entry for each issuer, parts added up.
    pub fn facts(&self) -> Vec<CrlFacts> {
        let rolled_back = self.rolled_back();
        let set = self.set.load();
        let mut all: Vec<CrlFacts> = Vec::new();
        for crl in set.crls() {
            let (this_update, next_update, entries) = (crl.this_update, crl.next_update, crl.len());
            match all.iter_mut().find(|facts| facts.issuer == crl.issuer_name) {
                Some(facts) => {
                    facts.this_update = facts.this_update.min(this_update);
                    facts.next_update = facts.next_update.min(next_update);
                    facts.entries += entries;
                    facts.memory_bytes += crl.memory_bytes();
                }
                None => all.push(CrlFacts {
                    issuer: crl.issuer_name.clone(),
                    this_update,
                    next_update,
                    entries,
                    memory_bytes: crl.memory_bytes(),
                    file_is_older: rolled_back.contains(&crl.issuer_name),
                }),
            }
        }
        all.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        all
    }
}

/// When two thirds of a life are over: whoever was to renew it has had the time.
pub fn two_thirds(begin: i64, end: i64) -> i64 {
    begin.saturating_add(end.saturating_sub(begin) / 3 * 2)
}

fn parse_all<T>(
    texts: &[String],
    key: &str,
    parse: impl Fn(&str) -> Result<T, String>,
    faults: &mut Vec<TlsFault>,
) -> Vec<T> {
    let each = texts.iter().enumerate().filter_map(|(at, text)| {
        let fault = |message| faults.push(TlsFault { field: format!("client_auth.{key}[{at}]"), message });
        parse(text).map_err(fault).ok()
    });
    each.collect()
}

impl std::fmt::Debug for Revocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revocation").field("check", &self.check).field("crls", &self.facts()).finish_non_exhaustive()
    }
}
