//! Warnings of certificates and revocation lists that are about to expire: whoever renews them has failed to.

use std::collections::HashMap;

use crate::observe::Expiring;
use crate::snapshot::Snapshot;
use crate::tls::{CertificateFacts, two_thirds};

/// A certificate is looked at so often, in seconds: those of a SPIFFE agent live for an hour.
pub const CHECK_EVERY_SECONDS: i64 = 60;
/// Two warnings of one certificate stand so far apart, in seconds, but for the one at its end.
const WARN_EVERY_SECONDS: i64 = 24 * 3600;

/// What has an end.
pub struct Ending {
    /// `listener front: its certificate`.
    what: String,
    /// Its subject, and what tells it from others of the same.
    subject: String,
    id: String,
    /// What comes of its end, if that is to be said.
    then: String,
    begin: i64,
    end: i64,
}

impl Ending {
    /// Of a certificate, and what it is for.
    pub fn of_certificate(kind: Expiring, owner: &str, c: &CertificateFacts) -> Self {
        let what = match kind {
            Expiring::Certificate => format!("listener {owner}: its certificate"),
            Expiring::Authority => format!("listener {owner}: the CA"),
            Expiring::UpstreamCertificate => format!("upstream {owner}: the client certificate"),
            Expiring::UpstreamAuthority => format!("upstream {owner}: the CA"),
            Expiring::Staple => format!("listener {owner}: the OCSP answer about"),
        };
        let id = format!("serial {}", c.serial);
        Self { what, subject: c.subject.clone(), id, then: String::new(), begin: c.not_before, end: c.not_after }
    }
}

/// The revocation lists that are in use, from files and fetched.
fn lists_of(snapshot: &Snapshot) -> impl Iterator<Item = Ending> {
    let listeners = snapshot.config.listeners.iter().zip(&snapshot.listeners).filter_map(|(config, built)| {
        let what = format!("listener {}: the CRL of", config.name);
        Some((what, built.tls.as_ref()?.revocation()?, "clients are"))
    });
    let upstreams = snapshot.upstreams.iter().filter_map(|upstream| {
        let what = format!("upstream {}: the CRL of", upstream.upstream.name());
        Some((what, upstream.tls.as_ref()?.revocation.as_ref()?, "nodes are"))
    });
    listeners.chain(upstreams).flat_map(|(what, revocation, who)| {
        let then = match revocation.rejects_late_lists() {
            true => format!("; past its end its {who} refused"),
            false => "; past its end it is used all the same (expired_crl: accept)".to_owned(),
        };
        revocation.facts().into_iter().map(move |facts| Ending {
            what: what.clone(),
            subject: facts.issuer,
            id: format!("{} revoked", facts.entries),
            then: then.clone(),
            begin: facts.this_update,
            end: facts.next_update,
        })
    })
}

/// What is in use past its end, of at most so many things.
const OVERDUE_MAX: usize = 50;

/// What is in use although its end is past, a sentence each. `now` is Unix time in seconds.
pub fn overdue(snapshot: &Snapshot, now: i64) -> Vec<String> {
    let over = endings(snapshot).filter(|ending| now > ending.end);
    over.take(OVERDUE_MAX).map(|ending| warning(&ending, now)).collect()
}

/// All that a snapshot uses and that has an end.
pub fn endings(snapshot: &Snapshot) -> impl Iterator<Item = Ending> {
    let certificates = snapshot.certificates().map(|(kind, owner, c)| Ending::of_certificate(kind, owner, c));
    certificates.chain(lists_of(snapshot))
}

/// What a warning is known by: what it is about, the subject, and its serial and life.
type Key = (String, String, String, i64);

/// When it was warned of last, and whether it was over then.
type Told = (i64, bool);

/// Remembers who was warned of.
#[derive(Debug, Default)]
pub struct ExpiryWarnings(HashMap<Key, Told>);

impl ExpiryWarnings {
    /// Warnings that are due at `now` (Unix time in seconds), of what has two thirds of its life behind it: then, at its
    /// end, and once a day.
    pub fn due(&mut self, all: impl Iterator<Item = Ending>, now: i64) -> Vec<String> {
        let mut said = Vec::new();
        let mut kept = HashMap::new();
        for ending in all.filter(|e| now >= two_thirds(e.begin, e.end)) {
            let key = (ending.what.clone(), ending.subject.clone(), ending.id.clone(), ending.end);
            let over = now > ending.end;
            let known = |told: &Told| now < told.0 + WARN_EVERY_SECONDS && told.1 == over;
            let told = self.0.get(&key).copied().filter(known);
            if told.is_none() && !kept.contains_key(&key) {
                said.push(warning(&ending, now));
            }
            kept.insert(key, told.unwrap_or((now, over)));
        }
        // What is no longer used is forgotten.
        self.0 = kept;
        said
    }
}

fn warning(ending: &Ending, now: i64) -> String {
    let Ending { what, subject, id, then, end, .. } = ending;
    let when = match end - now {
        left @ ..0 => format!("expired {} ago", span(-left)),
        left => format!("expires in {}; two thirds of its life are over", span(left)),
    };
    format!("{what} {subject:?} ({id}) {when}{then}")
}

fn span(seconds: i64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} hours", seconds / 3600),
        _ => format!("{} minutes", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn facts(serial: &str, not_before: i64, hours: i64) -> CertificateFacts {
        CertificateFacts {
            subject: "CN=gw".into(),
            issuer: "CN=ca".into(),
            serial: serial.into(),
            names: Vec::new(),
            uris: Vec::new(),
            not_before,
            not_after: not_before + hours * HOUR,
        }
    }

    #[test]
    fn warnings_begin_at_two_thirds_and_come_once_a_day() {
        let cert = facts("01", 0, 72);
        let mut warnings = ExpiryWarnings::default();
        let mut at = |hour: i64| {
            warnings.due([Ending::of_certificate(Expiring::Certificate, "l", &cert)].into_iter(), hour * HOUR)
        };
        assert!(at(0).is_empty() && at(47).is_empty());
        let said = at(48);
        assert_eq!(
            said,
            ["listener l: its certificate \"CN=gw\" (serial 01) expires in 24 hours; two thirds of its life are over"]
        );
        assert!(at(49).is_empty() && at(71).is_empty());
        assert!(at(72)[0].contains("expires in 0 minutes"));
        assert!(at(73)[0].contains("expired 60 minutes ago"), "its end is told");
        assert!(at(74).is_empty() && at(96).is_empty());
        assert!(at(98)[0].contains("expired 26 hours ago"));
    }

    #[test]
    fn a_new_certificate_is_told_apart_and_one_in_two_places_is_told_for_each() {
        let (old, new) = (facts("01", 0, 3), facts("02", 0, 3));
        let mut warnings = ExpiryWarnings::default();
        let both = [Expiring::Certificate, Expiring::UpstreamCertificate].map(|k| Ending::of_certificate(k, "l", &old));
        assert_eq!(warnings.due(both.into_iter(), 2 * HOUR).len(), 2);
        let new = Ending::of_certificate(Expiring::Certificate, "l", &new);
        assert_eq!(warnings.due([new].into_iter(), 2 * HOUR).len(), 1);
        assert_eq!(warnings.0.len(), 1);
    }
}
