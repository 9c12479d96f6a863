//! An OCSP responder that says what a test wants of whichever certificate it is asked about.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hive_gateway::cli::pki::Authority;
use openssl::hash::MessageDigest;
use openssl::sign::Signer;

/// What it says from now on.
#[derive(Clone)]
pub enum Says {
    Good,
    Revoked,
    DoesNotKnow,
    /// Nothing, and holds the connection.
    Silence,
    Garbage,
}

struct State {
    says: Mutex<Says>,
    signer: Authority,
    /// How long its answers hold, seconds.
    seconds: i64,
    asked: Mutex<usize>,
    held: Mutex<Vec<TcpStream>>,
}

pub struct OcspServer {
    address: SocketAddr,
    state: Arc<State>,
}

impl OcspServer {
    pub fn start(signer: Authority, seconds: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (says, asked, held) = (Mutex::new(Says::Good), Mutex::new(0), Mutex::default());
        let state = Arc::new(State { says, signer, seconds, asked, held });
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
    let status: Vec<u8> = match *state.says.lock().unwrap() {
        Says::Good => element(0x80, &[]),
        Says::Revoked => element(0xa1, &time(-3600)),
        Says::DoesNotKnow => element(0x82, &[]),
        Says::Silence => {
            state.held.lock().unwrap().push(tcp);
            return Ok(());
        }
        Says::Garbage => return tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<p>"),
    };
    let body = signed(&state.signer, &request, &status, state.seconds);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    tcp.write_all(&[head.as_bytes(), &body].concat())
}

/// OCSPResponse (RFC 6960, section 4.2.1).
fn signed(signer: &Authority, request: &[u8], status: &[u8], seconds: i64) -> Vec<u8> {
    // OCSPRequest, TBSRequest, requestList, Request: the CertID stands within four short headers.
    let id = &request[8..8 + 2 + usize::from(request[9])];
    let next = element(0xa0, &time(seconds));
    let single = element(0x30, &[id, status, &time(-60), &next].concat());
    let by_name = element(0xa1, &signer.cert.subject_name().to_der().unwrap());
    let data = element(0x30, &[by_name, time(-60), element(0x30, &single)].concat());
    let ecdsa_sha256 = [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let signature = Signer::new(MessageDigest::sha256(), &signer.key).unwrap().sign_oneshot_to_vec(&data).unwrap();
    let signature = element(3, &[&[0], &signature[..]].concat());
    let basic = element(0x30, &[&data[..], &ecdsa_sha256, &signature].concat());
    let kind = [6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
    let bytes = element(0x30, &[&kind[..], &element(4, &basic)].concat());
    element(0x30, &[&[0x0a, 1, 0][..], &element(0xa0, &bytes)].concat())
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
