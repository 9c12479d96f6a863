//! Fetches a CRL or asks an OCSP responder: one GET or POST over plain HTTP/1.1 (RFC 5280, section 4.2.1.13, has it so). The list is signed, so the way
//! needs no protection; an older list replayed on the way is found by [`super::Revocation::install`].

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::CRL_BYTES_MAX;

/// Longest wait for the TCP connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for the whole list, its turn not counted.
const WHOLE: Duration = Duration::from_secs(60);
/// Read at once, bytes.
const READ_BYTES: usize = 64 << 10;
/// Longest line with the size of a chunk, extensions included.
const CHUNK_LINE_MAX: usize = 256;
/// Longest answer header, bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Most fields of an answer header.
const FIELDS_MAX: usize = 64;

/// Where a CRL is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlUrl {
    text: String,
    authority: String,
    host: String,
    port: u16,
    target: String,
}

impl CrlUrl {
    /// Parses `http://host[:port]/path`.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no URL of a CRL; write one such as http://ca.example/mesh.crl");
        if text.starts_with("https://") {
            return Err(format!("{text:?}: only http:// can be fetched; that is safe, since the list is signed"));
        }
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.scheme_str() != Some("http") || authority.host().is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            text: text.to_owned(),
            authority: authority.as_str().to_owned(),
            // An IPv6 address without its brackets.
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            target: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        })
    }

    /// Path and query.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// Whether both are asked at the same host and port.
    pub(super) fn same_host(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host) && self.port == other.port
    }

    /// The URL as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// What a fetch brought.
#[derive(Debug)]
pub enum Fetched {
    /// The list that was named by its tag is still the present one.
    NotModified,
    /// A list, unchecked.
    List(Answer),
}

/// A body, with its entity tag if it has one.
#[derive(Debug)]
pub struct Answer {
    /// The body.
    pub bytes: Vec<u8>,
    /// The tag.
    pub tag: Option<String>,
    /// A large one's turn: as long as it is held, no other is read.
    _turn: Option<SemaphorePermit<'static>>,
}

/// Larger answers are read one at a time, so that many lists do not take many times the memory of one.
const FREE_BYTES: usize = 1 << 20;
static TURN: Semaphore = Semaphore::const_new(1);

/// Fetches; `tag` is the entity tag of the list at hand. Redirects are not followed.
///
/// # Errors
/// Why there is no list, in one line.
pub async fn fetch(url: &CrlUrl, tag: Option<&str>) -> Result<Fetched, String> {
    let condition = tag.map(|tag| format!("If-None-Match: {tag}\r\n")).unwrap_or_default();
    let request = format!("GET {} HTTP/1.1\r\nAccept: application/pkix-crl, */*\r\n{condition}", url.target);
    exchange(url, request, &[], CRL_BYTES_MAX).await
}

/// Posts a body and gives back that of the answer; for OCSP. The caller limits the time.
///
/// # Errors
/// Why there is no answer, in one line.
pub(in crate::tls) async fn ask(url: &CrlUrl, kind: &str, body: &[u8], bytes_max: u64) -> Result<Vec<u8>, String> {
    let length = body.len();
    let request = format!("POST {} HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n", url.target);
    match exchange(url, request, body, bytes_max).await? {
        Fetched::List(answer) => Ok(answer.bytes),
        Fetched::NotModified => Err("status 304".into()),
    }
}

/// Sends a request, of which `head` lacks what all have, and reads the answer.
async fn exchange(url: &CrlUrl, head: String, body: &[u8], bytes_max: u64) -> Result<Fetched, String> {
    let connect = TcpStream::connect((url.host.as_str(), url.port));
    let mut tcp = match timeout(CONNECT, connect).await {
        Ok(connected) => connected.map_err(|e| e.to_string())?,
        Err(_) => return Err("no connection in time".to_owned()),
    };
    let mut request =
        format!("{head}Host: {}\r\nUser-Agent: hive-gateway\r\nConnection: close\r\n\r\n", url.authority).into_bytes();
    request.extend_from_slice(body);
    match timeout(WHOLE, tcp.write_all(&request)).await {
        Ok(written) => written.map_err(|e| e.to_string())?,
        Err(_) => return Err("no whole answer in time".to_owned()),
    }
    receive(&mut tcp, bytes_max).await
}

/// An answer's header, as far as it matters.
struct Head {
    length: usize,
    not_modified: bool,
    tag: Option<String>,
    body: Body,
}

/// How the end of a body is known, and what has come of it: `whole` never is longer than it may be.
struct Body {
    whole: Vec<u8>,
    bytes_max: usize,
    ends: Ends,
}

/// What comes next.
enum Ends {
    /// So many bytes, and the end.
    After(usize),
    /// Whatever comes until the connection ends.
    WithConnection,
    /// The line with a chunk's size, as much of it as is here.
    AfterSize(Vec<u8>),
    /// So many bytes of a chunk, its line end included.
    AfterChunk(usize),
    /// Nothing.
    Now,
}

/// Reads an answer to its end: that of the connection, or of its body, for not every server closes when it is asked to.
async fn receive(from: &mut (impl AsyncRead + Unpin), bytes_max: u64) -> Result<Fetched, String> {
    let mut deadline = Instant::now() + WHOLE;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut head = loop {
        if read_some(from, &mut buffer, deadline).await? == 0 {
            return Err("the answer breaks off in its header".into());
        }
        if let Some(head) = Head::of(&buffer, bytes_max)? {
            break head;
        }
    };
    if head.not_modified {
        return Ok(Fetched::NotModified);
    }
    buffer.drain(..head.length);
    let mut turn = None;
    loop {
        if turn.is_none() && head.body.may_exceed(FREE_BYTES) {
            let asked = Instant::now();
            // Never closed.
            turn = TURN.acquire().await.ok();
            deadline += asked.elapsed();
        }
        if head.body.feed(&buffer)? {
            return Ok(Fetched::List(Answer { bytes: head.body.whole, tag: head.tag, _turn: turn }));
        }
        buffer.clear();
        if read_some(from, &mut buffer, deadline).await? == 0 {
            return match head.body.ends {
                Ends::WithConnection => {
                    Ok(Fetched::List(Answer { bytes: head.body.whole, tag: head.tag, _turn: turn }))
                }
                _ => Err("the answer breaks off".into()),
            };
        }
    }
}

async fn read_some(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    deadline: Instant,
) -> Result<usize, String> {
    let mut limited = from.take(READ_BYTES as u64);
    match timeout_at(deadline, limited.read_buf(buffer)).await {
        Ok(read) => read.map_err(|e| e.to_string()),
        Err(_) => Err("no whole answer in time".into()),
    }
}

impl Head {
    /// `None`: it is not whole yet.
    fn of(begin: &[u8], bytes_max: u64) -> Result<Option<Self>, String> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(begin).map_err(|e| format!("no HTTP answer: {e}"))? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial if begin.len() > HEADER_BYTES_MAX => return Err("its header is too long".into()),
            httparse::Status::Partial => return Ok(None),
        };
        let field = |name: &str| {
            let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok().map(str::trim)
        };
        let not_modified = head.code == Some(304);
        if !not_modified && head.code != Some(200) {
            return Err(format!("status {}", head.code.unwrap_or(0)));
        }
        if field("content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return Err("the answer is compressed".into());
        }
        let announced: Option<u64> = field("content-length").and_then(|n| n.parse().ok());
        if announced.is_some_and(|announced| announced > bytes_max) {
            return Err(format!("longer than {bytes_max} bytes"));
        }
        let chunked = field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let ends = match announced {
            _ if chunked => Ends::AfterSize(Vec::new()),
            // Not more than `bytes_max`, which is less than the memory has.
            Some(announced) => Ends::After(usize::try_from(announced).unwrap_or(usize::MAX)),
            None => Ends::WithConnection,
        };
        // What goes back in a request must be one field's value.
        let tag = field("etag").filter(|tag| tag.bytes().all(|b| matches!(b, b' '..=b'~'))).map(str::to_owned);
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Ok(Some(Self { length, not_modified, tag, body: Body { whole: Vec::new(), bytes_max, ends } }))
    }
}

impl Body {
    /// Whether it is longer, or will be, as far as that is known.
    fn may_exceed(&self, bytes: usize) -> bool {
        let next = match self.ends {
            Ends::After(left) | Ends::AfterChunk(left) => left,
            Ends::WithConnection | Ends::AfterSize(_) | Ends::Now => 2 * READ_BYTES,
        };
        self.whole.len().saturating_add(next) > bytes
    }

    /// Takes what came. Returns whether that was the end; what follows it is of no interest.
    fn feed(&mut self, mut input: &[u8]) -> Result<bool, String> {
        loop {
            match &mut self.ends {
                Ends::Now | Ends::After(0) => return Ok(true),
                _ if input.is_empty() => return Ok(false),
                Ends::After(left) => {
                    let (here, _) = input.split_at(input.len().min(*left));
                    let announced = *left;
                    *left -= here.len();
                    self.push(here, announced)?;
                    input = &[];
                }
                Ends::WithConnection => {
                    self.push(input, input.len())?;
                    return Ok(false);
                }
                Ends::AfterSize(line) => {
                    let taken = memchr::memchr(b'\n', input).map_or(input.len(), |at| at + 1);
                    line.extend_from_slice(&input[..taken]);
                    input = &input[taken..];
                    if line.len() > CHUNK_LINE_MAX {
                        return Err("the size of a chunk can't be read".into());
                    }
                    if line.ends_with(b"\n") {
                        self.ends = match httparse::parse_chunk_size(line) {
                            Ok(httparse::Status::Complete((_, 0))) => Ends::Now,
                            Ok(httparse::Status::Complete((_, size))) if size <= self.bytes_max as u64 => {
                                Ends::AfterChunk(usize::try_from(size).unwrap_or(usize::MAX).saturating_add(2))
                            }
                            Ok(httparse::Status::Complete(_)) => {
                                return Err(format!("longer than {} bytes", self.bytes_max));
                            }
                            _ => return Err("the size of a chunk can't be read".into()),
                        };
                    }
                }
                Ends::AfterChunk(left) => {
                    // The last two are CR and LF.
                    let data = input.len().min(left.saturating_sub(2));
                    let taken = input.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.ends = Ends::AfterSize(Vec::new());
                    }
                    self.push(&input[..data], data)?;
                    input = &input[taken..];
                }
            }
        }
    }

    /// Adds bytes, of which `coming` are known to come in all: the memory is taken once if that is known.
    fn push(&mut self, bytes: &[u8], coming: usize) -> Result<(), String> {
        let length = self.whole.len() + bytes.len();
        if length > self.bytes_max {
            return Err(format!("longer than {} bytes", self.bytes_max));
        }
        if length > self.whole.capacity() {
            // A large one gets room for the largest at once: what is not written to takes no memory, while a block that
            // grows by copies takes up to three times its size.
            let announced = self.whole.len().saturating_add(coming).min(self.bytes_max);
            let wanted = if length > FREE_BYTES { self.bytes_max } else { announced.max(2 * length) };
            self.whole.reserve_exact(wanted.max(length) - self.whole.len());
        }
        self.whole.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an answer is taken for, however it is cut into reads: its text and tag; none for 304.
    fn answered(answer: &str) -> Result<Option<(String, Option<String>)>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let read = |mut from: &mut (dyn AsyncRead + Unpin)| match runtime.block_on(receive(&mut from, 16))? {
            Fetched::NotModified => Ok(None),
            Fetched::List(list) => Ok(Some((String::from_utf8(list.bytes).unwrap(), list.tag))),
        };
        let whole = read(&mut answer.as_bytes());
        for cut in 0..answer.len() {
            let (begin, end) = answer.as_bytes().split_at(cut);
            assert_eq!(read(&mut begin.chain(end)).ok(), whole.clone().ok(), "{answer:?} cut at {cut}");
        }
        whole
    }

    #[test]
    fn a_url_is_plain_http_with_a_host() {
        let url = CrlUrl::parse("http://ca.example:8080/a/b.crl?x=1").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.target.as_str()), ("ca.example", 8080, "/a/b.crl?x=1"));
        assert_eq!(url.authority, "ca.example:8080");
        let url = CrlUrl::parse("http://[::1]").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.target.as_str()), ("::1", 80, "/"));
        for wrong in
            ["https://ca.example/a", "ldap://ca.example/a", "/a", "ca.example/a", "http:///a", "http://u@h/", ""]
        {
            assert!(CrlUrl::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let list = |text: &str, tag: Option<&str>| Ok(Some((text.to_owned(), tag.map(str::to_owned))));
        assert_eq!(
            answered("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 3\r\n\r\nabcd"),
            list("abc", Some("\"a\""))
        );
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\nabc"), list("abc", None));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n";
        assert_eq!(answered(chunks), list("abc", None));
        assert_eq!(answered("HTTP/1.1 304 Not Modified\r\n\r\n"), Ok(None));
        for wrong in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\nabc",
            "HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc",
            "SSH-2.0-x\r\n",
            // Longer than 16 bytes.
            "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n0123456789abcdefg",
            "HTTP/1.1 200 OK\r\n\r\n0123456789abcdefg",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n012345678\r\n9\r\n012345678\r\n0\r\n\r\n",
        ] {
            assert!(answered(wrong).is_err(), "{wrong}");
        }
    }
}
