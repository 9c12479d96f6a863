//! Making revocation lists: for `pki crl`, for tests, and for lists larger than OpenSSL's builder is good for.

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::sign::Signer;
use openssl::x509::X509Ref;

use super::issue::Authority;

/// AlgorithmIdentifier of ecdsa-with-SHA256: every [`Authority`] has a P-256 key.
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// A revocation list to be.
#[derive(Clone, Default)]
pub struct CrlSpec {
    /// Content octets of the serial numbers.
    pub serials: Vec<Vec<u8>>,
    /// When it is made, Unix time in seconds.
    pub this_update: i64,
    /// When the next one comes, Unix time in seconds.
    pub next_update: Option<i64>,
    /// Grows with each list.
    pub number: u64,
    /// More extensions, each whole in DER.
    pub extensions: Vec<Vec<u8>>,
}

impl CrlSpec {
    /// An empty list with these dates and the first of them as its number.
    pub fn new(this_update: i64, next_update: i64) -> Self {
        let number = u64::try_from(this_update).unwrap_or(0);
        Self { this_update, next_update: Some(next_update), number, ..Self::default() }
    }

    /// Adds a certificate.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn revoke(mut self, cert: &X509Ref) -> Result<Self, ErrorStack> {
        let mut serial = cert.serial_number().to_bn()?.to_vec();
        if serial.first().is_none_or(|first| first & 0x80 != 0) {
            serial.insert(0, 0);
        }
        self.serials.push(serial);
        Ok(self)
    }

    /// The list in DER, signed by `authority`.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn issue(&self, authority: &Authority) -> Result<Vec<u8>, ErrorStack> {
        let date = time(self.this_update)?;
        let mut entries = Vec::with_capacity(self.serials.len() * 40);
        for serial in &self.serials {
            let entry = [element(0x02, serial), date.clone()].concat();
            entries.extend(element(0x30, &entry));
        }
        let mut number = self.number.to_be_bytes().to_vec();
        number.insert(0, 0);
        let zeros = number.windows(2).take_while(|two| two[0] == 0 && two[1] & 0x80 == 0).count();
        let number = element(0x02, &number[zeros..]);
        let number = element(0x30, &[&[0x06, 3, 0x55, 0x1d, 20][..], &element(0x04, &number)].concat());
        let extensions = [number, self.extensions.concat()].concat();
        let mut tbs = vec![0x02, 1, 1];
        tbs.extend_from_slice(ECDSA_SHA256);
        tbs.extend(authority.cert.subject_name().to_der()?);
        tbs.extend(date);
        if let Some(next) = self.next_update {
            tbs.extend(time(next)?);
        }
        if !entries.is_empty() {
            tbs.extend(element(0x30, &entries));
        }
        tbs.extend(element(0xa0, &element(0x30, &extensions)));
        let tbs = element(0x30, &tbs);
        let signature = Signer::new(MessageDigest::sha256(), &authority.key)?.sign_oneshot_to_vec(&tbs)?;
        let signature = element(0x03, &[&[0], &signature[..]].concat());
        Ok(element(0x30, &[&tbs, ECDSA_SHA256, &signature].concat()))
    }

    /// The same in PEM.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn issue_pem(&self, authority: &Authority) -> Result<Vec<u8>, ErrorStack> {
        let base64 = openssl::base64::encode_block(&self.issue(authority)?);
        let mut pem = b"-----BEGIN X509 CRL-----\n".to_vec();
        for line in base64.as_bytes().chunks(64) {
            pem.extend_from_slice(line);
            pem.push(b'\n');
        }
        pem.extend_from_slice(b"-----END X509 CRL-----\n");
        Ok(pem)
    }
}

pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let mut whole = vec![tag];
    if content.len() < 0x80 {
        whole.push(length[7]);
    } else {
        let zeros = length.iter().take_while(|b| **b == 0).count();
        whole.push(0x80 | (8 - zeros) as u8);
        whole.extend_from_slice(&length[zeros..]);
    }
    whole.extend_from_slice(content);
    whole
}

/// UTCTime until 2049, GeneralizedTime from then on (RFC 5280, section 5.1.2.4).
fn time(unix: i64) -> Result<Vec<u8>, ErrorStack> {
    // OpenSSL prints `Jan  5 13:04:05 2027 GMT`.
    let text = Asn1Time::from_unix(unix)?.to_string();
    let mut words = text.split([' ', ':']).filter(|word| !word.is_empty());
    let mut next = || words.next().unwrap_or_default();
    let (month, day, hour, minute, second, year) = (next(), next(), next(), next(), next(), next());
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = MONTHS.find(month).unwrap_or(0) / 3 + 1;
    let text = match year.parse::<u32>() {
        Ok(year @ 1950..=2049) => format!("{:02}{month:02}{day:0>2}{hour}{minute}{second}Z", year % 100),
        _ => format!("{year}{month:02}{day:0>2}{hour}{minute}{second}Z"),
    };
    Ok(element(if text.len() == 13 { 0x17 } else { 0x18 }, text.as_bytes()))
}
