//! An OCSP responder that says what a test wants of whichever certificate it is asked about.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hive_gateway::cli::pki::{Authority, Issued};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Signer};
use openssl::x509::X509;

/// What it says from now on.
#[derive(Clone)]
pub enum Says {
    Good,
    Revoked,
    DoesNotKnow,
    /// Nothing, and holds the connection.
    Silence,
    Garbage,
    /// That all is well with some other certificate.
    OtherSerial,
    /// Not now.
    TryLater,
}

/// How it signs.
#[derive(Debug, Clone, Copy)]
pub enum Signature {
    EcdsaSha256,
    RsaSha256,
    RsaPssSha256,
    RsaSha1,
}

/// Who it is.
#[derive(Clone)]
pub struct Responder {
    /// Its certificate, and whether that goes along with the answers.
    pub cert: X509,
    pub sends_cert: bool,
    pub key: PKey<Private>,
    pub signature: Signature,
    /// A nonce that nobody asked for.
    pub nonce: bool,
}

impl Responder {
    /// The CA itself.
    pub fn ca(ca: &Authority) -> Self {
        let (cert, key) = (ca.cert.clone(), ca.key.clone());
        Self { cert, sends_cert: false, key, signature: Signature::EcdsaSha256, nonce: false }
    }

    /// Somebody with this certificate.
    pub fn delegated(identity: &Issued, signature: Signature) -> Self {
        let (cert, key) = (identity.cert.clone(), identity.key.clone());
        Self { cert, sends_cert: true, key, signature, nonce: false }
    }
}

struct State {
    says: Mutex<Says>,
    responder: Responder,
    /// How long its answers hold, seconds.
    seconds: Mutex<i64>,
    asked: Mutex<usize>,
    held: Mutex<Vec<TcpStream>>,
}

pub struct OcspServer {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl OcspServer {
    /// The CA itself answers.
    pub fn start(signer: Authority, seconds: i64) -> Self {
        Self::start_as(Responder::ca(&signer), seconds)
    }

    pub fn start_as(responder: Responder, seconds: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (says, asked, held) = (Mutex::new(Says::Good), Mutex::new(0), Mutex::default());
        let state = Arc::new(State { says, responder, seconds: Mutex::new(seconds), asked, held });
        let shared = state.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let _ = answer(tcp, &shared);
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/ocsp", self.address)
    }

    pub fn say(&self, says: Says) {
        *self.state.says.lock().unwrap() = says;
    }

    /// How long its answers hold from now on.
    pub fn lasts(&self, seconds: i64) {
        *self.state.seconds.lock().unwrap() = seconds;
    }

    pub fn asked(&self) -> usize {
        *self.state.asked.lock().unwrap()
    }
}

fn answer(mut tcp: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(tcp.try_clone()?);
    while reader.read_line(&mut head)? > 2 {}
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).and_then(|n| n.parse().ok());
    let mut request = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut request)?;
    *state.asked.lock().unwrap() += 1;
    // OCSPRequest, TBSRequest, requestList, Request: the CertID stands within four short headers.
    let mut id = request[8..8 + 2 + usize::from(request[9])].to_vec();
    let status: Vec<u8> = match *state.says.lock().unwrap() {
        Says::Good => element(0x80, &[]),
        Says::OtherSerial => {
            *id.last_mut().unwrap() ^= 1;
            element(0x80, &[])
        }
        Says::TryLater => {
            return tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\x30\x03\x0a\x01\x03");
        }
        Says::Revoked => element(0xa1, &time(-3600)),
        Says::DoesNotKnow => element(0x82, &[]),
        Says::Silence => {
            state.held.lock().unwrap().push(tcp);
            return Ok(());
        }
        Says::Garbage => return tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<p>"),
    };
    let body = signed(&state.responder, &id, &status, *state.seconds.lock().unwrap());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    tcp.write_all(&[head.as_bytes(), &body].concat())
}

/// OCSPResponse (RFC 6960, section 4.2.1).
fn signed(responder: &Responder, id: &[u8], status: &[u8], seconds: i64) -> Vec<u8> {
    let next = element(0xa0, &time(seconds));
    let single = element(0x30, &[id, status, &time(-60), &next].concat());
    let by_name = element(0xa1, &responder.cert.subject_name().to_der().unwrap());
    let nonce = [&[6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2][..], &element(4, &element(4, &[7; 32]))].concat();
    let nonce = element(0xa1, &element(0x30, &element(0x30, &nonce)));
    let nonce = if responder.nonce { nonce } else { Vec::new() };
    let data = element(0x30, &[by_name, time(-60), element(0x30, &single), nonce].concat());
    let (algorithm, signature) = sign(responder, &data);
    let signature = element(3, &[&[0], &signature[..]].concat());
    let certs = element(0xa0, &element(0x30, &responder.cert.to_der().unwrap()));
    let certs = if responder.sends_cert { certs } else { Vec::new() };
    let basic = element(0x30, &[&data[..], &algorithm, &signature, &certs].concat());
    let kind = [6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
    let bytes = element(0x30, &[&kind[..], &element(4, &basic)].concat());
    element(0x30, &[&[0x0a, 1, 0][..], &element(0xa0, &bytes)].concat())
}

/// AlgorithmIdentifier and signature.
fn sign(responder: &Responder, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let rsa = |last: u8| element(0x30, &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last, 5, 0]);
    let digest = match responder.signature {
        Signature::RsaSha1 => MessageDigest::sha1(),
        _ => MessageDigest::sha256(),
    };
    let mut signer = Signer::new(digest, &responder.key).unwrap();
    let algorithm = match responder.signature {
        Signature::EcdsaSha256 => element(0x30, &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]),
        Signature::RsaSha256 => rsa(11),
        Signature::RsaSha1 => rsa(5),
        Signature::RsaPssSha256 => {
            signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            signer.set_rsa_mgf1_md(digest).unwrap();
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::custom(32)).unwrap();
            let sha256 = element(0x30, &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0]);
            let mgf1 = [&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8][..], &sha256].concat();
            let salt = element(0xa2, &[2, 1, 32]);
            let parameters = [element(0xa0, &sha256), element(0xa1, &element(0x30, &mgf1)), salt].concat();
            let pss = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
            element(0x30, &[&pss[..], &element(0x30, &parameters)].concat())
        }
    };
    (algorithm, signer.sign_oneshot_to_vec(data).unwrap())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match content.len() {
        0..128 => vec![tag, length[1]],
        128..256 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [head, content.to_vec()].concat()
}

/// GeneralizedTime, so many seconds from now.
fn time(seconds: i64) -> Vec<u8> {
    let at = super::certs::from_now(seconds, 0).not_before;
    let (days, of_day) = (at.div_euclid(86_400), at.rem_euclid(86_400));
    // Days since 1970 to a date, by years of 365 or 366 and their months.
    let (mut year, mut day) = (1970, days);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while day >= 365 + i64::from(leap(year)) {
        day -= 365 + i64::from(leap(year));
        year += 1;
    }
    let months = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    element(0x18, format!("{year}{:02}{:02}{hour:02}{minute:02}{second:02}Z", month + 1, day + 1).as_bytes())
}
