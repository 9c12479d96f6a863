//! Warnings of certificates that are about to expire: whoever rotates them has failed to.

use std::collections::HashMap;

use crate::observe::Expiring;
use crate::tls::CertificateFacts;

/// A certificate is looked at so often, in seconds: those of a SPIFFE agent live for an hour.
pub const CHECK_EVERY_SECONDS: i64 = 60;
/// Two warnings of one certificate stand so far apart, in seconds.
const WARN_EVERY_SECONDS: i64 = 24 * 3600;

/// What a certificate is known by: its issuer and serial, per place where it is used.
type Key = (Expiring, String, String, String);

/// Remembers who was warned of.
#[derive(Debug, Default)]
pub struct ExpiryWarnings(HashMap<Key, i64>);

impl ExpiryWarnings {
    /// Warnings that are due at `now` (Unix time in seconds), of certificates of which two thirds of their life are over.
    pub fn due<'a>(
        &mut self,
        certificates: impl Iterator<Item = (Expiring, &'a str, &'a CertificateFacts)>,
        now: i64,
    ) -> Vec<String> {
        let mut said = Vec::new();
        let mut kept = HashMap::new();
        for (kind, owner, c) in certificates {
            let life = c.not_after.saturating_sub(c.not_before);
            if now < c.not_before.saturating_add(life / 3 * 2) {
                continue;
            }
            let key = (kind, owner.to_owned(), c.issuer.clone(), c.serial.clone());
            let last = self.0.get(&key).copied().filter(|last| now < last + WARN_EVERY_SECONDS);
            if last.is_none() && !kept.contains_key(&key) {
                said.push(warning(kind, owner, c, now));
            }
            kept.insert(key, last.unwrap_or(now));
        }
        // Certificates that are no longer used are forgotten.
        self.0 = kept;
        said
    }
}

fn warning(kind: Expiring, owner: &str, c: &CertificateFacts, now: i64) -> String {
    let what = match kind {
        Expiring::Certificate => format!("listener {owner}: its certificate"),
        Expiring::Authority => format!("listener {owner}: the CA"),
        Expiring::UpstreamCertificate => format!("upstream {owner}: the client certificate"),
        Expiring::UpstreamAuthority => format!("upstream {owner}: the CA"),
        Expiring::Staple => format!("listener {owner}: the OCSP answer about"),
    };
    let left = c.not_after - now;
    let when = match left {
        ..0 => format!("expired {} ago", span(-left)),
        _ => format!("expires in {}", span(left)),
    };
    format!("{what} {:?} (serial {}) {when}; two thirds of its life are over", c.subject, c.serial)
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
        let mut at = |hour: i64| warnings.due([(Expiring::Certificate, "l", &cert)].into_iter(), hour * HOUR);
        assert!(at(0).is_empty() && at(47).is_empty());
        let said = at(48);
        assert_eq!(
            said,
            ["listener l: its certificate \"CN=gw\" (serial 01) expires in 24 hours; two thirds of its life are over"]
        );
        assert!(at(49).is_empty() && at(71).is_empty());
        assert!(at(72)[0].contains("expires in 0 minutes"));
        assert!(at(98)[0].contains("expired 26 hours ago"));
    }

    #[test]
    fn a_new_certificate_is_told_apart_and_one_in_two_places_is_told_for_each() {
        let (old, new) = (facts("01", 0, 3), facts("02", 0, 3));
        let mut warnings = ExpiryWarnings::default();
        let both = [(Expiring::Certificate, "l", &old), (Expiring::UpstreamCertificate, "u", &old)];
        assert_eq!(warnings.due(both.into_iter(), 2 * HOUR).len(), 2);
        assert_eq!(warnings.due([(Expiring::Certificate, "l", &new)].into_iter(), 2 * HOUR).len(), 1);
        assert_eq!(warnings.0.len(), 1);
    }
}
