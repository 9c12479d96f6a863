//! Who a client is: what its certificate says, as plain data, read once per connection.

use std::fmt;

/// Longest SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
pub const SPIFFE_ID_LENGTH_MAX: usize = 2048;

/// Longest trust domain in bytes (SPIFFE-ID, section 2.3).
pub const TRUST_DOMAIN_LENGTH_MAX: usize = 255;

/// Longest `X-Forwarded-Client-Cert` value in bytes. Node.js takes 16 KiB of header in all, so a certificate with a
/// thousand names must not fill it: names that don't fit are left out of the header, not of the identity.
pub const XFCC_LENGTH_MAX: usize = 4096;

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Beyond [`SPIFFE_ID_LENGTH_MAX`].
    #[error("longer than 2048 bytes")]
    TooLong,
    /// Not `spiffe://…`, in lower case.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// Nothing between `spiffe://` and the next slash, or more than [`TRUST_DOMAIN_LENGTH_MAX`] bytes.
    #[error("the trust domain must have 1 to 255 characters")]
    TrustDomainLength,
    /// A port, user information, an upper-case letter or another odd character in the trust domain.
    #[error("the trust domain may hold lower-case letters, digits, '-', '_' and '.' only")]
    TrustDomainCharacter,
    /// `//`, or a slash at the end.
    #[error("empty path segment, or a slash at the end")]
    EmptySegment,
    /// `.` or `..` as a path segment.
    #[error("'.' and '..' can't be path segments")]
    DotSegment,
    /// A query, a fragment, percent-encoding or another odd character in the path.
    #[error("a path segment may hold letters, digits, '-', '_' and '.' only")]
    PathCharacter,
}

/// A SPIFFE ID: `spiffe://trust-domain/path` (SPIFFE-ID, section 2). The path may be missing; a certificate that
/// names a workload has one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    uri: String,
    path_at: usize,
}

/// `spiffe://`: the one scheme that a SPIFFE ID can have.
pub(crate) const SPIFFE_SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Takes a URI that is a SPIFFE ID to the letter: nothing is normalised.
    ///
    /// # Errors
    /// Says which rule of SPIFFE-ID, section 2, is broken.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        if uri.len() > SPIFFE_ID_LENGTH_MAX {
            return Err(SpiffeError::TooLong);
        }
        let rest = uri.strip_prefix(SPIFFE_SCHEME).ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(trust_domain)?;
        if let Some(segments) = path.strip_prefix('/') {
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self { uri: uri.to_owned(), path_at: SPIFFE_SCHEME.len() + trust_domain.len() })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain: `mesh.example` of `spiffe://mesh.example/hive/paris`.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SPIFFE_SCHEME.len()..self.path_at]
    }

    /// The path with its first slash, `/hive/paris`; empty if there is none.
    pub fn path(&self) -> &str {
        &self.uri[self.path_at..]
    }

    /// The path's segments: `hive`, `paris`.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        // The path is empty or begins with a slash, so the first piece is always the empty one before it.
        self.path().split('/').skip(1)
    }
}

/// Checks one trust domain.
pub(crate) fn check_trust_domain(name: &str) -> Result<(), SpiffeError> {
    if name.is_empty() || name.len() > TRUST_DOMAIN_LENGTH_MAX {
        return Err(SpiffeError::TrustDomainLength);
    }
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if name.bytes().all(good) { Ok(()) } else { Err(SpiffeError::TrustDomainCharacter) }
}

/// Checks one path segment.
pub(crate) fn check_segment(segment: &str) -> Result<(), SpiffeError> {
    match segment {
        "" => Err(SpiffeError::EmptySegment),
        "." | ".." => Err(SpiffeError::DotSegment),
        _ if segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) => Ok(()),
        _ => Err(SpiffeError::PathCharacter),
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.uri, f)
    }
}

/// A client, as its verified certificate describes it. Every text in here is printable ASCII: what is not was escaped
/// when the certificate was read, so that each can stand in a header or a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Set only if the certificate is an X.509-SVID: exactly one URI SAN, a valid SPIFFE ID with a path, and not a
    /// CA's.
    pub spiffe_id: Option<SpiffeId>,
    /// Every URI SAN, in order.
    pub uris: Vec<String>,
    /// Every DNS SAN, in lower case, in order.
    pub dns: Vec<String>,
    /// The subject (RFC 4514); empty if the certificate has none.
    pub subject: String,
    /// The issuer (RFC 4514).
    pub issuer: String,
    /// The serial number in upper-case hex.
    pub serial: String,
    /// SHA-256 of the certificate in DER.
    pub fingerprint: [u8; 32],
    /// Begin of the validity, Unix time in seconds.
    pub not_before: i64,
    /// End of the validity, Unix time in seconds.
    pub not_after: i64,
    /// The value of `X-Forwarded-Client-Cert`, as [`xfcc`] makes it.
    pub xfcc: String,
    /// The value of `Client-Cert`, as [`client_cert`] makes it (RFC 9440, section 2.2).
    pub client_cert: String,
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// One element of `X-Forwarded-Client-Cert` as Envoy writes it ("HTTP header manipulation",
/// `x-forwarded-client-cert`): `Hash=…;Subject="…";URI=…;DNS=…`. `Subject` is always quoted, other values when they
/// hold `,`, `;`, `=`, a quote or a backslash; inside quotes, quotes and backslashes are escaped by a backslash. At
/// most [`XFCC_LENGTH_MAX`] bytes long.
pub fn xfcc(fingerprint: &[u8; 32], subject: &str, uris: &[String], dns: &[String]) -> String {
    let mut out =
        String::with_capacity(96 + subject.len() + uris.iter().chain(dns).map(|n| n.len() + 5).sum::<usize>());
    out.push_str("Hash=");
    push_hex(&mut out, fingerprint);
    push_pair(&mut out, ";Subject=", subject, true);
    for uri in uris {
        push_pair(&mut out, ";URI=", uri, false);
    }
    for name in dns {
        push_pair(&mut out, ";DNS=", name, false);
    }
    out
}

/// Appends `key` and `value`, or nothing if they don't fit.
fn push_pair(out: &mut String, key: &str, value: &str, always_quote: bool) {
    let before = out.len();
    out.push_str(key);
    let special = |c: char| matches!(c, ',' | ';' | '=' | '"' | '\\' | ' ');
    if always_quote || value.is_empty() || value.contains(special) {
        out.push('"');
        for c in value.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    } else {
        out.push_str(value);
    }
    if out.len() > XFCC_LENGTH_MAX {
        out.truncate(before);
    }
}

/// A certificate in DER as a byte sequence of structured fields: `:base64:` (RFC 9440, section 2.2).
pub fn client_cert(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(der.len().div_ceil(3) * 4 + 2);
    out.push(':');
    for chunk in der.chunks(3) {
        let group = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            if at <= chunk.len() {
                out.push(char::from(DIGITS[(group >> (18 - 6 * at) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out.push(':');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_taken_apart() {
        let id = SpiffeId::parse("spiffe://mesh.example/hive/Paris-1_a.b").unwrap();
        assert_eq!(id.trust_domain(), "mesh.example");
        assert_eq!(id.path(), "/hive/Paris-1_a.b");
        assert_eq!(id.segments().collect::<Vec<_>>(), ["hive", "Paris-1_a.b"]);
        let domain = SpiffeId::parse("spiffe://mesh.example").unwrap();
        assert_eq!(domain.path(), "");
        assert_eq!(domain.segments().count(), 0);
    }

    #[test]
    fn what_the_spiffe_specification_forbids_is_refused() {
        use SpiffeError::*;
        for (uri, why) in [
            ("", Scheme),
            ("https://mesh.example/a", Scheme),
            ("SPIFFE://mesh.example/a", Scheme),
            ("spiffe:/mesh.example/a", Scheme),
            ("spiffe://", TrustDomainLength),
            ("spiffe:///a", TrustDomainLength),
            ("spiffe://Mesh.example/a", TrustDomainCharacter),
            ("spiffe://mesh.example:443/a", TrustDomainCharacter),
            ("spiffe://user@mesh.example/a", TrustDomainCharacter),
            ("spiffe://mesh.example?x", TrustDomainCharacter),
            ("spiffe://mesh.exämple/a", TrustDomainCharacter),
            ("spiffe://mesh.example/", EmptySegment),
            ("spiffe://mesh.example/a/", EmptySegment),
            ("spiffe://mesh.example//a", EmptySegment),
            ("spiffe://mesh.example/./a", DotSegment),
            ("spiffe://mesh.example/a/..", DotSegment),
            ("spiffe://mesh.example/a?b", PathCharacter),
            ("spiffe://mesh.example/a#b", PathCharacter),
            ("spiffe://mesh.example/a%2fb", PathCharacter),
            ("spiffe://mesh.example/a\0", PathCharacter),
            ("spiffe://mesh.example/*", PathCharacter),
        ] {
            assert_eq!(SpiffeId::parse(uri), Err(why), "{uri}");
        }
        let long = format!("spiffe://{}/a", "x".repeat(256));
        assert_eq!(SpiffeId::parse(&long), Err(TrustDomainLength));
        let long = format!("spiffe://x/{}", "y".repeat(2048 - 11));
        assert!(SpiffeId::parse(&long).is_ok());
        assert_eq!(SpiffeId::parse(&(long + "y")), Err(TooLong));
    }

    #[test]
    fn xfcc_quotes_what_a_parser_would_split() {
        let value = xfcc(
            &[0xab; 32],
            r#"CN=a \"b\",O=c;d"#,
            &["spiffe://m/a".into(), "https://x/?a=b".into()],
            &["a.example".into()],
        );
        let hash = "ab".repeat(32);
        assert_eq!(
            value,
            format!(
                r#"Hash={hash};Subject="CN=a \\\"b\\\",O=c;d";URI=spiffe://m/a;URI="https://x/?a=b";DNS=a.example"#
            )
        );
        assert!(xfcc(&[0; 32], "", &[], &[]).ends_with(r#";Subject="""#));
    }

    #[test]
    fn a_thousand_names_do_not_fill_the_header() {
        let names: Vec<String> = (0..1000).map(|n| format!("name-{n}.example")).collect();
        let value = xfcc(&[0; 32], "CN=x", &[], &names);
        assert!(value.len() <= XFCC_LENGTH_MAX);
        assert!(value.contains("DNS=name-0.example"));
        assert!(!value.ends_with(';'));
    }

    #[test]
    fn client_cert_is_base64_between_colons() {
        for (bytes, text) in
            [("", "::"), ("f", ":Zg==:"), ("fo", ":Zm8=:"), ("foo", ":Zm9v:"), ("foobar", ":Zm9vYmFy:")]
        {
            assert_eq!(client_cert(bytes.as_bytes()), text);
        }
        assert_eq!(client_cert(&[0xfb, 0xff, 0xfe]), ":+//+:");
    }
}
