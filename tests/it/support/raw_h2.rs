//! An HTTP/2 client that sends the frames that a test makes, whatever the protocol says.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use openssl::ssl::SslStream;

use super::client::{Client, small_tcp};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block without compression: each field a literal that is not indexed (RFC 7541, section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Lengths of 127 and more take another form, which no test needs.
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// `method path` at the test's host.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "https"), (":authority", "gateway.test"), (":path", path)])
}

pub struct RawH2 {
    stream: SslStream<TcpStream>,
}

impl RawH2 {
    /// A connection with its preface and these settings sent; what the gateway sends is read by nobody yet.
    pub fn connect(client: &Client, address: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Self> {
        let stream = client.ssl(b"\x02h2").connect(small_tcp(address)?).map_err(|e| io::Error::other(e.to_string()))?;
        let mut this = Self { stream };
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        this.send(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &payload)].concat())?;
        this.send(&frame(SETTINGS, 1, 0, b""))?;
        Ok(this)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends the same again and again until the gateway ends the connection; how often, at most `most` times. Reads what
    /// comes meanwhile.
    pub fn flood(&mut self, most: u32, mut bytes: impl FnMut(u32) -> Vec<u8>) -> u32 {
        for n in 0..most {
            if self.send(&bytes(n)).is_err() || !self.take() {
                return n;
            }
        }
        most
    }

    /// Reads frames until one of this kind comes on this stream; all those before it, as kind, flags and stream.
    pub fn frames_until(&mut self, kind: u8, stream: u32) -> io::Result<Vec<(u8, u8, u32)>> {
        let mut before = Vec::new();
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            io::copy(&mut (&mut self.stream).take(length.into()), &mut io::sink())?;
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            if (head[3], of) == (kind, stream) {
                return Ok(before);
            }
            before.push((head[3], head[4], of));
        }
    }

    /// Reads what is there; false: the connection has ended.
    pub fn take(&mut self) -> bool {
        let tcp = self.stream.get_ref();
        tcp.set_nonblocking(true).unwrap();
        let mut buffer = [0; 16 << 10];
        let alive = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(e) => break e.kind() == io::ErrorKind::WouldBlock,
            }
        };
        self.stream.get_ref().set_nonblocking(false).unwrap();
        alive
    }
}
