//! The demo's Hive node: as much of a Hive as a gateway in front of it can tell from a real one.
//!
//! HTTP/1.1 with keep-alive over plain TCP; health, an agent card, A2A over JSON-RPC as an echo, and an event stream.
//! Like Node.js it closes a connection that was idle for five seconds, and says so beforehand.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Node.js: `server.keepAliveTimeout`.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Longest request header; more is a mistake of the demo's user.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Longest request body, as the gateway's own upper limit.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Events of one `message/stream` answer.
const EVENTS: u32 = 5;
/// Time between two of them.
const EVENT_GAP: Duration = Duration::from_millis(300);

/// A listening node that has not begun to answer.
pub struct Node {
    name: String,
    listener: TcpListener,
}

impl Node {
    /// Takes a free port of 127.0.0.1. `name` appears in every answer.
    ///
    /// # Errors
    /// The system has no port left.
    pub async fn bind(name: &str) -> io::Result<Self> {
        Ok(Self { name: name.into(), listener: TcpListener::bind(("127.0.0.1", 0)).await? })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system can't say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until the task is dropped.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let name = self.name.clone();
                    // A broken connection is the other side's matter; the demo has nobody to tell.
                    tokio::spawn(async move { Connection { name, stream, buffer: Vec::new() }.serve().await });
                }
                // Out of file descriptors, say: try again instead of turning the processor hot.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// A request, read to its end.
struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

struct Connection {
    name: String,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn serve(mut self) -> io::Result<()> {
        // Events are small and must leave at once.
        self.stream.set_nodelay(true)?;
        while let Some(request) = self.read_request().await? {
            self.answer(&request).await?;
        }
        Ok(())
    }

    /// `None`: the client closed, or was idle for too long.
    async fn read_request(&mut self) -> io::Result<Option<Request>> {
        let (mut request, head_length, length) = loop {
            if let Some(found) = parse(&self.buffer)? {
                break found;
            }
            if self.buffer.len() > HEADER_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match timeout(KEEP_ALIVE, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) | Err(_) => return Ok(None),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        };
        if length > BODY_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        while self.buffer.len() < head_length + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        request.body = self.buffer[head_length..head_length + length].to_vec();
        self.buffer.drain(..head_length + length);
        Ok(Some(request))
    }

    async fn answer(&mut self, request: &Request) -> io::Result<()> {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/api/health") => self.json(request, 200, "", &json!({ "ok": true })).await,
            ("GET" | "HEAD", "/.well-known/agent-card.json" | "/.well-known/agent.json") => {
                if request.header("if-none-match") == Some(CARD_ETAG) {
                    return self.json(request, 304, &format!("ETag: {CARD_ETAG}\r\n"), &Value::Null).await;
                }
                self.json(request, 200, &format!("ETag: {CARD_ETAG}\r\n"), &agent_card()).await
            }
            ("POST", "/api/a2a/jsonrpc" | "/api/a2a/federated/jsonrpc") => self.call(request).await,
            _ => {
                let body = json!({ "error": "not_found", "message": "This Hive node has no such path." });
                self.json(request, 404, "", &body).await
            }
        }
    }

    async fn call(&mut self, request: &Request) -> io::Result<()> {
        let call: Value = match serde_json::from_slice(&request.body) {
            Ok(call) => call,
            Err(_) => return self.json(request, 400, "", &failure(&Value::Null, -32700, "Parse error")).await,
        };
        let id = &call["id"];
        match call["method"].as_str() {
            Some("message/send") => {
                let body = json!({ "jsonrpc": "2.0", "id": id, "result": self.message(request, &call) });
                self.json(request, 200, "", &body).await
            }
            // Version 1.0 of A2A wraps the message, and has parts and roles spelt anew.
            Some("SendMessage") => {
                let text = self.text(request, &call);
                let message = json!({ "messageId": "demo-answer", "role": "ROLE_AGENT", "parts": [{ "text": text }] });
                let body = json!({ "jsonrpc": "2.0", "id": id, "result": { "message": message } });
                self.json(request, 200, "", &body).await
            }
            Some("message/stream" | "SendStreamingMessage") => self.stream(request, &call).await,
            Some("tasks/get" | "tasks/cancel" | "tasks/resubscribe" | "GetTask" | "CancelTask" | "SubscribeToTask") => {
                self.json(request, 200, "", &failure(id, -32001, "Task not found")).await
            }
            _ => self.json(request, 200, "", &failure(id, -32601, "Method not found")).await,
        }
    }

    /// What the node heard, who it is and what it saw of the client.
    fn text(&self, request: &Request, call: &Value) -> String {
        let heard = call["params"]["message"]["parts"][0]["text"].as_str().unwrap_or("");
        let client = request.header("x-real-ip").unwrap_or("unknown");
        let certificate = request.header("x-forwarded-client-cert").unwrap_or("none");
        format!("{} heard {heard:?} from {client} with certificate {certificate}", self.name)
    }

    fn message(&self, request: &Request, call: &Value) -> Value {
        json!({
            "kind": "message", "messageId": "demo-answer", "role": "agent",
            "parts": [{ "kind": "text", "text": self.text(request, call) }],
            "metadata": { "node": self.name, "requestId": request.header("x-request-id") },
        })
    }

    async fn stream(&mut self, request: &Request, call: &Value) -> io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
                    X-Accel-Buffering: no\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        self.stream.write_all(head.as_bytes()).await?;
        for number in 1..=EVENTS {
            let last = number == EVENTS;
            let update = json!({
                "kind": "status-update", "taskId": "demo-task", "contextId": "demo-context", "final": last,
                "status": {
                    "state": if last { "completed" } else { "working" },
                    "message": self.message(request, call),
                },
                "metadata": { "event": number, "of": EVENTS },
            });
            let event = format!("data: {}\n\n", json!({ "jsonrpc": "2.0", "id": call["id"], "result": update }));
            self.stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
            if !last {
                sleep(EVENT_GAP).await;
            }
        }
        self.stream.write_all(b"0\r\n\r\n").await
    }

    async fn json(&mut self, request: &Request, status: u16, extra: &str, body: &Value) -> io::Result<()> {
        let body = if status == 304 { String::new() } else { body.to_string() };
        let reason = match status {
            200 => "OK",
            304 => "Not Modified",
            404 => "Not Found",
            _ => "Bad Request",
        };
        let length = if status == 304 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let mut answer = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n{length}{extra}\
             Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n"
        );
        if request.method != "HEAD" {
            answer.push_str(&body);
        }
        self.stream.write_all(answer.as_bytes()).await
    }
}

/// The request without its body, the length of its head and that of its body; `None`: more bytes are needed.
///
/// Bodies need a `Content-Length`: the gateway in front has the whole body before it sends one.
fn parse(buffer: &[u8]) -> io::Result<Option<(Request, usize, usize)>> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(head_length) = head.parse(buffer).map_err(invalid)? else {
        return Ok(None);
    };
    let headers: Vec<_> =
        head.headers.iter().map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned())).collect();
    let target = head.path.unwrap_or("");
    let request = Request {
        method: head.method.unwrap_or("").into(),
        path: target.split('?').next().unwrap_or(target).into(),
        headers,
        body: Vec::new(),
    };
    let length = match request.header("content-length").map(str::parse) {
        None => 0,
        Some(Ok(length)) => length,
        Some(Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(Some((request, head_length, length)))
}

fn failure(id: &Value, code: i32, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

const CARD_ETAG: &str = "\"demo-1\"";

fn agent_card() -> Value {
    json!({
        "protocolVersion": "0.3.0",
        "name": "Hive demo node",
        "description": "Echoes what it is told. Part of `hive-gateway demo`.",
        "url": "https://localhost/api/a2a/jsonrpc",
        "preferredTransport": "JSONRPC",
        "version": "1.0.0",
        "capabilities": { "streaming": true, "pushNotifications": false },
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "skills": [{ "id": "echo", "name": "Echo", "description": "Says what it heard.", "tags": ["demo"] }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cut_where_its_header_ends() {
        let bytes = b"POST /a?b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi";
        assert!(parse(&bytes[..20]).unwrap().is_none());
        let (request, head, body) = parse(bytes).unwrap().unwrap();
        assert_eq!((request.path.as_str(), head, body), ("/a", bytes.len() - 2, 2));
    }

    #[tokio::test]
    async fn a_kept_connection_answers_twice() {
        let node = Node::bind("a").await.unwrap();
        let address = node.address().unwrap();
        tokio::spawn(node.serve());
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(br#"{"ok":true}"#) {
                assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
    }
}
