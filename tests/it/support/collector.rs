//! An OpenTelemetry collector as far as the gateway sees it: takes OTLP over HTTP and decodes it with the official messages.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use openssl::ssl::SslContext;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
pub use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::wait_until;

#[derive(Default)]
struct State {
    spans: Mutex<Vec<Span>>,
    resource: Mutex<BTreeMap<String, String>>,
    heads: Mutex<Vec<String>>,
    /// What is answered.
    status: Mutex<u16>,
}

pub struct Collector {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Collector {
    pub fn start() -> Self {
        Self::start_with(None)
    }

    pub fn start_with(tls: Option<SslContext>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { status: Mutex::new(200), ..State::default() });
        let shared = state.clone();
        // Ends with the process: nothing else asks on this port.
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let (shared, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(tcp, &shared),
                    Some(context) => {
                        let mut stream = openssl::ssl::SslStream::new(openssl::ssl::Ssl::new(&context).unwrap(), tcp)?;
                        stream.accept().map_err(std::io::Error::other)?;
                        serve(stream, &shared)
                    }
                });
            }
        });
        Self { address, state }
    }

    pub fn answer_with(&self, status: u16) {
        *self.state.status.lock().unwrap() = status;
    }

    pub fn spans(&self) -> Vec<Span> {
        self.state.spans.lock().unwrap().clone()
    }

    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    pub fn resource(&self) -> BTreeMap<String, String> {
        self.state.resource.lock().unwrap().clone()
    }

    /// The spans of the trace with this id (hex), once there is a server's among them.
    #[track_caller]
    pub fn trace(&self, id: &str) -> Vec<Span> {
        let mut found = Vec::new();
        wait_until("the trace arrives", || {
            found = self.spans().into_iter().filter(|span| hex(&span.trace_id) == id).collect();
            !found.is_empty()
        });
        found
    }
}

fn serve<S: Read + Write>(stream: S, state: &State) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        state.heads.lock().unwrap().push(head);
        let status = *state.status.lock().unwrap();
        if status == 200 {
            let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("a protobuf message");
            for resource in request.resource_spans {
                *state.resource.lock().unwrap() = attributes(&resource.resource.unwrap().attributes);
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                state.spans.lock().unwrap().extend(spans);
            }
        }
        let answer =
            format!("HTTP/1.1 {status} X\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n");
        reader.get_mut().write_all(answer.as_bytes())?;
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Attributes as text.
pub fn attributes(all: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &KeyValue| match value.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("an attribute of {other:?}"),
    };
    let found: BTreeMap<_, _> = all.iter().map(|kv| (kv.key.clone(), text(kv))).collect();
    assert_eq!(found.len(), all.len(), "a key twice: {all:?}");
    found
}
