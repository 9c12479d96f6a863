//! A CA's web server: answers every request with the list of the moment.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

struct State {
    /// `None`: 503.
    list: Mutex<Option<Vec<u8>>>,
    /// Request heads, in order.
    asked: Mutex<Vec<String>>,
}

pub struct CrlServer {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl CrlServer {
    pub fn start(list: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { list: Mutex::new(Some(list)), asked: Mutex::default() });
        let shared = state.clone();
        // Ends with the process: nothing else asks on this port.
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let _ = answer(tcp, &shared);
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/mesh.crl", self.address)
    }

    pub fn set(&self, list: Option<Vec<u8>>) {
        *self.state.list.lock().unwrap() = list;
    }

    pub fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }
}

fn answer(mut tcp: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(tcp.try_clone()?);
    while reader.read_line(&mut head)? > 2 {}
    let list = state.list.lock().unwrap().clone();
    state.asked.lock().unwrap().push(head.clone());
    let Some(list) = list else { return tcp.write_all(b"HTTP/1.1 503 Gone\r\nContent-Length: 0\r\n\r\n") };
    let tag = format!("\"{}\"", &super::node::sha256(&list)[..16]);
    if head.contains(&tag) {
        return tcp.write_all(b"HTTP/1.1 304 Not Modified\r\n\r\n");
    }
    let answer = format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {}\r\n\r\n", list.len());
    tcp.write_all(&[answer.as_bytes(), &list].concat())
}
