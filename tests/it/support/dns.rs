//! A small authoritative DNS server, over UDP and TCP, that says what a test wants.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A record's data.
#[derive(Debug, Clone)]
pub enum Data {
    Address(IpAddr),
    Srv { priority: u16, weight: u16, port: u16, target: String },
}

/// What is said to a question.
#[derive(Debug, Clone)]
pub enum Says {
    /// These records, of so many seconds.
    Records(u32, Vec<Data>),
    /// The same, but over UDP only that they do not fit.
    OverTcpOnly(u32, Vec<Data>),
    /// The name is there, and has no such record.
    NoData,
    /// Only a code: 2 is SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    Code(u8),
    /// Nothing at all.
    Silence,
    /// No DNS.
    Garbage,
}

pub const A: u16 = 1;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const SERVFAIL: u8 = 2;
pub const NXDOMAIN: u8 = 3;

#[derive(Default)]
struct State {
    zone: HashMap<(String, u16), Says>,
    /// Name, type, whether over TCP, and when.
    asked: Vec<(String, u16, bool, Instant)>,
}

/// On a free port of 127.0.0.1. What it has not been told of does not exist.
pub struct DnsServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

impl DnsServer {
    pub fn start() -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let (state, stopped) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (for_udp, udp_stopped) = (state.clone(), stopped.clone());
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !udp_stopped.load(Ordering::SeqCst) {
                let Ok((length, from)) = udp.recv_from(&mut bytes) else { continue };
                if let Some(answer) = answer(&bytes[..length], &for_udp, false) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let (for_tcp, tcp_stopped) = (state.clone(), stopped.clone());
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                if tcp_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = for_tcp.clone();
                std::thread::spawn(move || serve_tcp(stream, &state));
            }
        });
        Self { address, state, stopped }
    }

    /// From now on this is said to questions for `name`, without a dot at its end.
    pub fn set(&self, name: &str, kind: u16, says: Says) {
        self.state.lock().unwrap().zone.insert((name.to_owned(), kind), says);
    }

    pub fn set_a(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let data = addresses.iter().map(|a| Data::Address(a.parse().unwrap())).collect();
        self.set(name, A, Says::Records(ttl, data));
    }

    /// How often it was asked this.
    pub fn asked(&self, name: &str, kind: u16) -> usize {
        self.times(name, kind).len()
    }

    /// When it was asked this.
    pub fn times(&self, name: &str, kind: u16) -> Vec<Instant> {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|(n, k, ..)| n == name && *k == kind).map(|(.., at)| *at).collect()
    }

    /// How often it was asked this over TCP.
    pub fn asked_over_tcp(&self, name: &str) -> usize {
        self.state.lock().unwrap().asked.iter().filter(|(n, _, tcp, _)| n == name && *tcp).count()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve_tcp(mut stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question).ok()?;
        let answer = answer(&question, state, true)?;
        send_tcp(&mut stream, &answer).ok()?;
    }
}

fn send_tcp(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], answer].concat())
}

/// `None`: nothing is said.
fn answer(question: &[u8], state: &Mutex<State>, tcp: bool) -> Option<Vec<u8>> {
    let (name, after) = read_name(question.get(12..)?)?;
    let end = 12 + after + 4;
    let kind = u16::from_be_bytes(question.get(end - 4..end - 2)?.try_into().ok()?);
    let says = {
        let mut state = state.lock().unwrap();
        state.asked.push((name.clone(), kind, tcp, Instant::now()));
        let has_name = state.zone.keys().any(|(known, _)| *known == name);
        let missing = if has_name { Says::NoData } else { Says::Code(NXDOMAIN) };
        state.zone.get(&(name, kind)).cloned().unwrap_or(missing)
    };
    let (code, truncated, ttl, data) = match says {
        Says::Records(ttl, data) => (0, false, ttl, data),
        Says::OverTcpOnly(ttl, data) if tcp => (0, false, ttl, data),
        Says::OverTcpOnly(..) => (0, true, 0, Vec::new()),
        Says::NoData => (0, false, 0, Vec::new()),
        Says::Code(code) => (code, false, 0, Vec::new()),
        Says::Silence => return None,
        Says::Garbage => return Some(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
    };
    // An answer, authoritative, recursion desired.
    let flags = 0x8500 | if truncated { 0x0200 } else { 0 } | u16::from(code);
    let mut out = question[..2].to_vec();
    out.extend(flags.to_be_bytes());
    for count in [1, u16::try_from(data.len()).unwrap(), 0, 0] {
        out.extend(count.to_be_bytes());
    }
    out.extend(&question[12..end]);
    for data in &data {
        let (kind, bytes) = encode(data);
        // The name is that of the question.
        out.extend([0xc0, 0x0c]);
        out.extend(kind.to_be_bytes());
        out.extend(1u16.to_be_bytes());
        out.extend(ttl.to_be_bytes());
        out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
    }
    Some(out)
}

fn encode(data: &Data) -> (u16, Vec<u8>) {
    match data {
        Data::Address(IpAddr::V4(ip)) => (A, ip.octets().to_vec()),
        Data::Address(IpAddr::V6(ip)) => (AAAA, ip.octets().to_vec()),
        Data::Srv { priority, weight, port, target } => {
            let mut bytes: Vec<u8> = [priority, weight, port].iter().flat_map(|n| n.to_be_bytes()).collect();
            for label in target.split('.').filter(|label| !label.is_empty()) {
                bytes.push(u8::try_from(label.len()).unwrap());
                bytes.extend(label.as_bytes());
            }
            bytes.push(0);
            (SRV, bytes)
        }
    }
}

/// A name in lower case without the last dot, and its length.
fn read_name(bytes: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).to_lowercase());
        at += length;
    }
}
