//! Distribution points: which part of a CA's certificates a list is about, and where a certificate's own list is to be had
//! (RFC 5280, sections 4.2.1.13, 5.2.5 and 6.3.3).

use std::ffi::c_int;

use foreign_types::ForeignTypeRef;
use openssl::x509::X509Ref;

use super::der::{Reader, SEQUENCE};
use super::fetch::CrlUrl;

/// GeneralName: uniformResourceIdentifier.
const URI: u8 = 0x86;
/// GeneralName: directoryName.
const DIRECTORY_NAME: u8 = 0xa4;
/// DistributionPointName: fullName.
const FULL_NAME: u8 = 0xa0;

/// Most names of a certificate's distribution points that are looked at; real certificates have one or two.
const NAMES_MAX: usize = 8;

/// Names of distribution points, each a GeneralName whole in DER: two are the same if their bytes are.
pub type Names = Box<[Box<[u8]>]>;

/// The names of a certificate's distribution points. Left out are those whose list is another CA's (cRLIssuer) or about
/// some reasons only: such lists are not taken.
pub fn of_certificate(cert: &X509Ref) -> Names {
    if !has_points(cert) {
        return Names::default();
    }
    let names = cert.to_der().ok().and_then(|der| {
        // 2.5.29.31
        let value = super::der::certificate_extension(&der, &[0x55, 0x1d, 31])?;
        let mut points = Reader::new(Reader::new(value).expect(SEQUENCE)?.content);
        let mut names = Vec::new();
        while !points.is_empty() {
            let mut fields = Reader::new(points.expect(SEQUENCE)?.content);
            let name = fields.optional(0xa0)?;
            if fields.is_empty() {
                names.extend(name.and_then(|name| names_of(name.content)).unwrap_or_default());
            }
        }
        names.truncate(NAMES_MAX);
        Some(names.into())
    });
    names.unwrap_or_default()
}

/// Whether there is any at all, without writing the certificate out.
fn has_points(cert: &X509Ref) -> bool {
    const FROM_THE_FIRST: c_int = -1;
    // SAFETY: the pointer belongs to a live certificate, which is only read.
    let at = unsafe {
        openssl_sys::X509_get_ext_by_NID(cert.as_ptr(), openssl_sys::NID_crl_distribution_points, FROM_THE_FIRST)
    };
    at >= 0
}

/// The names in a DistributionPointName. A name relative to the issuer stands for itself: both sides of a comparison have
/// the same issuer.
pub(super) fn names_of(point: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut outer = Reader::new(point);
    let choice = outer.any().filter(|_| outer.is_empty())?;
    if choice.tag != FULL_NAME {
        return Some(vec![choice.whole.into()]);
    }
    let mut names = Vec::new();
    let mut each = Reader::new(choice.content);
    while !each.is_empty() {
        names.push(each.any()?.whole.into());
    }
    Some(names)
}

/// Whether a name is this one of a CA, a Name in DER. Such a distribution point is that of every certificate of the CA
/// (section 6.3.3, last paragraph).
pub(super) fn is_directory_name(name: &[u8], of: &[u8]) -> bool {
    Reader::new(name).any().is_some_and(|one| one.tag == DIRECTORY_NAME && one.content == of)
}

/// The `http://` URLs among names.
pub(super) fn urls(names: &[Box<[u8]>]) -> impl Iterator<Item = CrlUrl> {
    let text = |name: &[u8]| {
        let uri = Reader::new(name).any().filter(|one| one.tag == URI)?;
        CrlUrl::parse(std::str::from_utf8(uri.content).ok()?).ok()
    };
    names.iter().filter_map(move |name| text(name))
}

/// Which URLs of certificates are asked: those of a host, below a path. The host and port must be the same, so that
/// `http://ca.example` does not let `http://ca.example.evil.example` in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPrefix(CrlUrl);

impl UrlPrefix {
    /// Parses `http://host[:port][/path]`.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = CrlUrl::parse(text)?;
        if climbs(url.target()) {
            return Err(format!("{text:?}: its path may have no . or .. between slashes"));
        }
        Ok(Self(url))
    }

    /// Whether the URL begins with it. A path that a server might read as another one does not.
    pub fn allows(&self, url: &CrlUrl) -> bool {
        self.0.same_host(url) && url.target().starts_with(self.0.target()) && !climbs(url.target())
    }
}

/// Whether a path could lead out of the one that it begins with, to whatever server: dot segments, also encoded or with
/// parameters, and backslashes. What servers decode in different ways is as bad: an encoded percent sign, which some decode
/// twice, and what is not UTF-8.
fn climbs(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let Some(path) = decoded(path) else { return true };
    let leads_out = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    path.contains(['%', '\\']) || path.contains(char::is_control) || path.split('/').any(leads_out)
}

/// A text without its percent-encodings; `None` if one is broken.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        // Its own parser takes a sign, too.
        let digits = code.bytes().all(|b| b.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(code, 16).ok().filter(|_| digits)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_host_and_the_begin_of_a_path() {
        let allows = |prefix: &str, url: &str| UrlPrefix::parse(prefix).unwrap().allows(&CrlUrl::parse(url).unwrap());
        for (prefix, url) in [
            ("http://ca.example", "http://ca.example/a.crl"),
            ("http://ca.example/", "http://CA.example:80/a/b.crl?x=1"),
            ("http://ca.example/crl/", "http://ca.example/crl/a%20b.crl"),
            ("http://ca.example/crl/", "http://ca.example/crl/%C3%A9;v=1?x=%252e%252e/"),
            ("http://[::1]:8080/", "http://[::1]:8080/x"),
        ] {
            assert!(allows(prefix, url), "{prefix} {url}");
        }
        for (prefix, url) in [
            ("http://ca.example", "http://ca.example.evil.example/a.crl"),
            ("http://ca.example", "http://ca.example:8080/a.crl"),
            ("http://ca.example", "http://evil.example/http://ca.example/"),
            ("http://ca.example/crl/", "http://ca.example/admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/../admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/%2E%2e/admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/..%2Fadmin"),
            ("http://ca.example/crl/", "http://ca.example/crl/.%2e%5cadmin"),
            ("http://ca.example/crl/", "http://ca.example/crl/%252e%252e/admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/%25252e%25252e%25252fadmin"),
            ("http://ca.example/crl/", "http://ca.example/crl/..;x=1/admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/%c0%ae%c0%ae/admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/%u002e./admin"),
            ("http://ca.example/crl/", "http://ca.example/crl/a%+1b"),
            ("http://ca.example/crl/", "http://ca.example/crl/a%0d%0ab"),
            ("http://ca.example/crl/", "http://ca.example/crl/a%2"),
        ] {
            assert!(!allows(prefix, url), "{prefix} {url}");
        }
        for wrong in ["https://ca.example/", "http://ca.example/a/../b", "ca.example", "http://u:p@ca.example/"] {
            assert!(UrlPrefix::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn broken_names_are_no_names() {
        assert_eq!(names_of(&[0xa0, 3, 0x86, 1, b'a']), Some(vec![[0x86, 1, b'a'].into()]));
        assert_eq!(names_of(&[0xa1, 2, 0x31, 0]), Some(vec![[0xa1, 2, 0x31, 0].into()]));
        for broken in [&[][..], &[0xa0], &[0xa0, 3, 0x86, 2, b'a'], &[0xa0, 0, 0xa0, 0]] {
            assert_eq!(names_of(broken), None, "{broken:?}");
        }
        assert_eq!(urls(&[[0x86, 1, b'a'].into(), [0x82, 1, b'a'].into()]).count(), 0);
    }
}
