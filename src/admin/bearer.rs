//! The admin listener's secret.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use openssl::memcmp;
use openssl::sha::sha256;

use crate::secret::Secret;

/// What a request must show. Only the secret's digest is kept.
pub(super) struct Bearer([u8; 32]);

impl Bearer {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(sha256(secret.expose().as_bytes()))
    }

    /// Whether the request has `Authorization: Bearer <secret>` (RFC 6750, section 2.1), exactly once.
    ///
    /// Digests are compared, in constant time: neither the secret's length nor how much of it was right shows in the time.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => token(value).is_some_and(|t| memcmp::eq(&sha256(t), &self.0)),
            _ => false,
        }
    }
}

fn token(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        Bearer::new(&Secret::new("correct horse".into())).admits(&headers)
    }

    #[test]
    fn the_secret_is_let_in_and_nothing_else() {
        assert!(admits(&["Bearer correct horse"]));
        assert!(admits(&["bearer  correct horse"]));
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer correct hors",
            "Bearer correct horse2",
            "Basic correct horse",
            "correct horse",
        ] {
            assert!(!admits(&[bad]), "{bad:?}");
        }
        assert!(!admits(&[]));
        assert!(!admits(&["Bearer correct horse", "Bearer correct horse"]));
    }
}
