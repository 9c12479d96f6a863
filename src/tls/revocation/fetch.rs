//! Fetches a CRL or asks an OCSP responder: one GET or POST over plain HTTP/1.1 (RFC 5280, section 4.2.1.13, has it so). The list is signed, so the way
//! needs no protection; an older list replayed on the way is found by [`super::Revocation::install`].

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::CRL_BYTES_MAX;

/// Longest wait for the TCP connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for the whole list.
const WHOLE: Duration = Duration::from_secs(60);
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

    /// The URL as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// What a fetch brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The list that was named by its tag is still the present one.
    NotModified,
    /// A list, unchecked, with its entity tag if it has one.
    List(Vec<u8>, Option<String>),
}

/// Fetches; `tag` is the entity tag of the list at hand. Redirects are not followed.
///
/// # Errors
/// Why there is no list, in one line.
pub async fn fetch(url: &CrlUrl, tag: Option<&str>) -> Result<Fetched, String> {
    let condition = tag.map(|tag| format!("If-None-Match: {tag}\r\n")).unwrap_or_default();
    let request = format!("GET {} HTTP/1.1\r\nAccept: application/pkix-crl, */*\r\n{condition}", url.target);
    let whole = tokio::time::timeout(WHOLE, exchange(url, request, &[], CRL_BYTES_MAX));
    read_answer(whole.await.map_err(|_| "no whole list in time".to_owned())??)
}

/// Posts a body and gives back that of the answer; for OCSP. The caller limits the time.
///
/// # Errors
/// Why there is no answer, in one line.
pub(super) async fn ask(url: &CrlUrl, kind: &str, body: &[u8], bytes_max: u64) -> Result<Vec<u8>, String> {
    let length = body.len();
    let request = format!("POST {} HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n", url.target);
    let told = |why| format!("{}: {why}", url.as_str());
    match exchange(url, request, body, bytes_max).await.and_then(read_answer).map_err(told)? {
        Fetched::List(answer, _) => Ok(answer),
        Fetched::NotModified => Err(told("status 304".into())),
    }
}

/// Sends a request, of which `head` lacks what all have, and reads the answer to its end: that of the connection, or of
/// a body of known length, for not every server closes when it is asked to.
async fn exchange(url: &CrlUrl, head: String, body: &[u8], bytes_max: u64) -> Result<Vec<u8>, String> {
    let connect = TcpStream::connect((url.host.as_str(), url.port));
    let mut tcp = match tokio::time::timeout(CONNECT, connect).await {
        Ok(connected) => connected.map_err(|e| e.to_string())?,
        Err(_) => return Err("no connection in time".to_owned()),
    };
    let mut request =
        format!("{head}Host: {}\r\nUser-Agent: hive-gateway\r\nConnection: close\r\n\r\n", url.authority).into_bytes();
    request.extend_from_slice(body);
    tcp.write_all(&request).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let limit = bytes_max + HEADER_BYTES_MAX as u64;
    let mut whole = None;
    loop {
        if tcp.read_buf(&mut answer).await.map_err(|e| e.to_string())? == 0 {
            return Ok(answer);
        }
        whole = whole.or_else(|| whole_length(&answer));
        if whole.is_some_and(|whole| answer.len() >= whole) {
            return Ok(answer);
        }
        if answer.len() as u64 > limit {
            return Err(format!("longer than {bytes_max} bytes"));
        }
    }
}

/// How long an answer is with its header, once that is here and says so.
fn whole_length(answer: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = head.parse(&answer[..answer.len().min(HEADER_BYTES_MAX)]) else {
        return None;
    };
    if head.code == Some(304) {
        return Some(length);
    }
    let announced = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"))?;
    std::str::from_utf8(announced.value).ok()?.trim().parse::<usize>().ok()?.checked_add(length)
}

fn read_answer(mut answer: Vec<u8>) -> Result<Fetched, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let begin = &answer[..answer.len().min(HEADER_BYTES_MAX)];
    let length = match head.parse(begin).map_err(|e| format!("no HTTP answer: {e}"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Err("the answer breaks off in its header".into()),
    };
    let field = |name: &str| {
        let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok().map(str::trim)
    };
    match head.code {
        Some(200) => {}
        Some(304) => return Ok(Fetched::NotModified),
        code => return Err(format!("status {}", code.unwrap_or(0))),
    }
    // What goes back in a request must be one field's value.
    let tag = field("etag").filter(|tag| tag.bytes().all(|b| matches!(b, b' '..=b'~'))).map(str::to_owned);
    let announced: Option<usize> = field("content-length").and_then(|n| n.parse().ok());
    let chunked = field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    if field("content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err("the answer is compressed".into());
    }
    answer.drain(..length);
    if chunked {
        return Ok(Fetched::List(join_chunks(&answer)?, tag));
    }
    match announced {
        Some(whole) if answer.len() < whole => Err("the answer breaks off".into()),
        Some(whole) => {
            answer.truncate(whole);
            Ok(Fetched::List(answer, tag))
        }
        None => Ok(Fetched::List(answer, tag)),
    }
}

fn join_chunks(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut whole = Vec::with_capacity(rest.len());
    loop {
        let (head, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((head, size))) => (head, usize::try_from(size).unwrap_or(usize::MAX)),
            _ => return Err("the answer breaks off between chunks".into()),
        };
        if size == 0 {
            return Ok(whole);
        }
        let end = head.checked_add(size).and_then(|end| end.checked_add(2));
        let (Some(chunk), Some(next)) =
            (rest.get(head..head.saturating_add(size)), end.and_then(|end| rest.get(end..)))
        else {
            return Err("the answer breaks off in a chunk".into());
        };
        whole.extend_from_slice(chunk);
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(answer: &str) -> Result<Fetched, String> {
        read_answer(answer.as_bytes().to_vec())
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
        let list = |text: &str, tag: Option<&str>| Ok(Fetched::List(text.into(), tag.map(str::to_owned)));
        assert_eq!(
            answered("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 3\r\n\r\nabcd"),
            list("abc", Some("\"a\""))
        );
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\nabc"), list("abc", None));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n";
        assert_eq!(answered(chunks), list("abc", None));
        assert_eq!(answered("HTTP/1.1 304 Not Modified\r\n\r\n"), Ok(Fetched::NotModified));
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
        ] {
            assert!(answered(wrong).is_err(), "{wrong}");
        }
    }
}
