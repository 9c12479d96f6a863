//! A listener's revocation as it stands: lists from files, lists fetched over HTTP, and the set of both, which is swapped
//! under running handshakes and requests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use arc_swap::ArcSwap;
use openssl::x509::X509;
use parking_lot::Mutex;

use super::fetch::CrlUrl;
use super::{Bundle, Crl, Link, RevocationSet, Verdict, read_lists};
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
    urls: Vec<CrlUrl>,
    bundle: Bundle,
    from_files: Vec<Arc<Crl>>,
    /// By URL. Held while the set is replaced, so that no list is lost between two fetches.
    fetched: Mutex<AHashMap<String, FromUrl>>,
    set: ArcSwap<RevocationSet>,
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
        if settings.crl.is_empty() && settings.crl_url.is_empty() {
            return Ok(None);
        }
        let mut faults = Vec::new();
        let mut urls = Vec::new();
        for (at, url) in settings.crl_url.iter().enumerate() {
            match CrlUrl::parse(url) {
                Ok(url) => urls.push(url),
                Err(message) => faults.push(TlsFault { field: format!("client_auth.crl_url[{at}]"), message }),
            }
        }
        let set = RevocationSet::load(&settings.crl, base_dir, ca, now);
        let set = set.map_err(|more| faults.extend(more)).unwrap_or_default();
        if !faults.is_empty() {
            return Err(faults);
        }
        let revocation = Self {
            check: settings.crl_check.unwrap_or_default(),
            expired: settings.expired_crl.unwrap_or_default(),
            refresh: settings.crl_refresh.map_or(ClientAuth::CRL_REFRESH_DEFAULT, |span| span.0),
            urls,
            bundle: Bundle::of(ca),
            from_files: set.crls().cloned().collect(),
            fetched: Mutex::default(),
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
                    ExpiredCrl::Reject => "its clients are refused until a new one comes",
                    ExpiredCrl::Accept => "it is used all the same (expired_crl: accept)",
                };
                doubts
                    .push(format!("the CRL of {who:?} is {} seconds past its nextUpdate; {so}", now - crl.next_update));
            }
            if crl.scope.part.is_some() {
                doubts.push(format!(
                    "the CRL of {who:?} names a distribution point; if it is one of several, list them all"
                ));
            }
        }
        if self.check == CrlCheck::Chain && self.urls.is_empty() {
            for (cert, _) in self.bundle.iter().filter(|(_, id)| !set.by_issuer.contains_key(id)) {
                doubts.push(format!(
                    "no CRL of {:?}; clients below it are refused (crl_check: chain)",
                    name(cert.subject_name())
                ));
            }
        }
        doubts
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
        let set = self.set.load();
        let mut until = i64::MAX;
        let most = match self.check {
            CrlCheck::Leaf => 1,
            CrlCheck::Chain => usize::MAX,
        };
        for (at, link) in links.iter().enumerate().take(most) {
            match set.ask(link, self.expired, now) {
                Verdict::Good { until: one } => until = until.min(one),
                bad => return (at, bad),
            }
        }
        (0, Verdict::Good { until })
    }

    /// Where lists are fetched from.
    pub fn urls(&self) -> &[CrlUrl] {
        &self.urls
    }

    /// How often they are fetched at least.
    pub fn refresh(&self) -> Duration {
        self.refresh
    }

    /// The entity tag of what this URL gave last.
    pub fn tag(&self, url: &CrlUrl) -> Option<String> {
        self.fetched.lock().get(url.as_str())?.tag.clone()
    }

    /// Whether lists from this URL are in use.
    pub fn has(&self, url: &CrlUrl) -> bool {
        self.fetched.lock().contains_key(url.as_str())
    }

    /// When the first list from this URL is due to be replaced.
    pub fn next_update(&self, url: &CrlUrl) -> Option<i64> {
        self.fetched.lock().get(url.as_str())?.lists.iter().map(|crl| crl.next_update).min()
    }

    /// Takes lists that were fetched into use. Returns whether anything changed.
    ///
    /// # Errors
    /// Why they can't be used; the last good ones stay.
    pub fn install(&self, url: &CrlUrl, bytes: &[u8], tag: Option<String>, now: i64) -> Result<bool, String> {
        let lists = read_lists(bytes, &self.bundle, now)?;
        let mut fetched = self.fetched.lock();
        let before = fetched.get(url.as_str()).map(|from| &from.lists);
        for crl in &lists {
            let other = before.into_iter().flatten().find(|other| crl.is_about_the_same_as(other));
            if other.is_some_and(|other| crl.is_older_than(other)) {
                return Err(format!("the CRL of {:?} is older than the one at hand", crl.issuer_name));
            }
            if crl.next_update < now && self.expired == ExpiredCrl::Reject {
                return Err(format!("the CRL of {:?} is past its nextUpdate", crl.issuer_name));
            }
        }
        // A list of another part of the same CA's certificates is no newer one: whose revocations it lacks would be let in.
        let lacks = |old: &&Arc<Crl>| old.next_update >= now && !lists.iter().any(|new| new.is_about_the_same_as(old));
        if let Some(old) = before.into_iter().flatten().find(lacks) {
            return Err(format!("the CRL of {:?} that this URL gave before is not there any more", old.issuer_name));
        }
        let same = before
            .is_some_and(|old| old.len() == lists.len() && old.iter().zip(&lists).all(|(a, b)| Arc::ptr_eq(a, b)));
        fetched.insert(url.as_str().to_owned(), FromUrl { lists, tag });
        if !same {
            self.put_together(&fetched);
        }
        Ok(!same)
    }

    /// Takes over what an earlier snapshot of the same listener has fetched, as far as this one's CAs signed it.
    pub fn adopt(&self, before: &Revocation) {
        let old = before.fetched.lock().clone();
        let mut fetched = self.fetched.lock();
        for url in &self.urls {
            let trusted = |from: &&FromUrl| from.lists.iter().all(|crl| self.bundle.contains(crl.issuer));
            if let Some(from) = old.get(url.as_str()).filter(trusted) {
                fetched.insert(url.as_str().to_owned(), from.clone());
            }
        }
        self.put_together(&fetched);
    }

    fn put_together(&self, fetched: &AHashMap<String, FromUrl>) {
        let lists = self.from_files.iter().chain(fetched.values().flat_map(|from| &from.lists)).cloned();
        self.set.store(Arc::new(RevocationSet::of(lists)));
    }

    /// What there is, for status, metrics and `check`; one entry for each issuer, parts added up.
    pub fn facts(&self) -> Vec<CrlFacts> {
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
                }),
            }
        }
        all.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        all
    }
}

impl std::fmt::Debug for Revocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revocation").field("check", &self.check).field("crls", &self.facts()).finish_non_exhaustive()
    }
}
