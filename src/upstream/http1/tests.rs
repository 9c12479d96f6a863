use super::*;

fn head(text: &str) -> Result<Head, Malformed> {
    let mut buf = BytesMut::from(text);
    Ok(take_head(&mut buf, &mut 0, false)?.expect("whole"))
}

fn why(text: &str) -> &'static str {
    head(text).err().map_or("accepted", |malformed| malformed.0)
}

/// The body of `answer`, its bytes coming in pieces of `step`, and what is left over.
fn body(answer: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    let (mut buf, mut scanned, mut found) = (BytesMut::new(), 0, None);
    let mut whole = Vec::new();
    for piece in answer.chunks(step) {
        buf.extend_from_slice(piece);
        if found.is_none() {
            found = take_head(&mut buf, &mut scanned, false)?.map(|head| head.body);
        }
        if let Some(body) = &mut found {
            while let Some(data) = body.take(&mut buf)? {
                whole.extend_from_slice(&data);
            }
        }
    }
    let mut body = found.expect("a head");
    if !body.is_done() {
        body.closed()?;
    }
    Ok((whole, buf.to_vec()))
}

#[test]
fn a_head_is_found_however_it_is_cut() {
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nX-A: 2\r\n\r\nhi";
    for step in 1..text.len() {
        assert_eq!(body(text, step).unwrap(), (b"hi".to_vec(), Vec::new()), "{step}");
    }
    let head = head(std::str::from_utf8(text).unwrap()).unwrap();
    assert_eq!(head.header.status, 200);
    assert_eq!(head.header.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert!(head.keep_alive);
}

#[test]
fn what_two_parsers_could_read_in_two_ways_is_refused() {
    let wrong = [
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", "Content-Length together with Transfer-Encoding"),
        ("Content-Length: 2\r\nContent-Length: 2", "more than one Content-Length"),
        ("Content-Length: +2", "a Content-Length that is no number"),
        ("Content-Length: 2, 2", "a Content-Length that is no number"),
        ("Content-Length:", "a Content-Length that is no number"),
        ("Content-Length: 99999999999999999999", "a Content-Length that is too large"),
        ("Transfer-Encoding: gzip", "a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding: chunked, chunked", "a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "a Transfer-Encoding other than chunked"),
        ("X-A: 1\n X-B: 2", "a bare LF in the header"),
        ("X-A: 1\r\n folded", "not an HTTP/1 header"),
        ("X A: 1", "not an HTTP/1 header"),
        ("X-A : 1", "not an HTTP/1 header"),
        ("X-A: \0", "not an HTTP/1 header"),
    ];
    for (fields, expected) in wrong {
        assert_eq!(why(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n")), expected, "{fields:?}");
    }
    assert_eq!(why("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), "Transfer-Encoding from an HTTP/1.0 node");
    assert_eq!(why("HTTP/2 200 OK\r\n\r\n"), "not an HTTP/1 header");
    assert_eq!(why("SSH-2.0-OpenSSH\r\n\r\n"), "not an HTTP/1 header");
    let many = "X-A: 1\r\n".repeat(FIELDS_MAX + 1);
    assert_eq!(why(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")), "more than 128 header fields");
}

#[test]
fn a_head_without_an_end_is_given_up() {
    let (mut buf, mut scanned) = (BytesMut::from("HTTP/1.1 200 OK\r\nX: "), 0);
    while buf.len() <= HEAD_MAX {
        assert!(take_head(&mut buf, &mut scanned, false).unwrap().is_none());
        assert_eq!(scanned, buf.len());
        buf.extend_from_slice(&[b'a'; 1000]);
    }
    assert_eq!(take_head(&mut buf, &mut scanned, false).err().unwrap().0, "a header of more than 64 KiB");
    let whole = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(HEAD_MAX));
    assert_eq!(why(&whole), "a header of more than 64 KiB");
}

#[test]
fn the_connection_stays_only_if_the_node_says_so() {
    let keeps = |text: &str| head(text).unwrap().keep_alive;
    assert!(keeps("HTTP/1.1 204 No Content\r\n\r\n"));
    assert!(!keeps("HTTP/1.1 204 No Content\r\nConnection: x, Close\r\n\r\n"));
    assert!(!keeps("HTTP/1.0 204 No Content\r\n\r\n"));
    assert!(keeps("HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n"));
    assert!(!keeps("HTTP/1.1 200 OK\r\n\r\n"), "its body ends with the connection");
}

#[test]
fn answers_that_can_have_no_body_have_none() {
    for status in ["100 Continue", "204 No Content", "304 Not Modified"] {
        let head = head(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n")).unwrap();
        assert_eq!(head.body, Body::Length(0), "{status}");
    }
    let mut buf = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let head = take_head(&mut buf, &mut 0, true).unwrap().unwrap();
    assert_eq!(head.body, Body::Length(0), "the answer to a HEAD");
    assert_eq!(head.header.headers["content-length"], "5");
}

#[test]
fn a_chunked_body_is_joined_however_it_is_cut() {
    let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n1;a=\"b\"\r\n,\r\n0006 \r\n world\r\n0\r\nX-T: 1\r\n\r\nHTTP";
    for step in 1..text.len() {
        let (whole, left) = body(text, step).unwrap();
        assert_eq!(whole, b"hello, world", "{step}");
        assert_eq!(left, b"HTTP", "what follows is left alone");
    }
}

#[test]
fn broken_chunks_are_refused() {
    let wrong: [(&str, &str); 12] = [
        ("5\nhello\r\n0\r\n\r\n", "a bare LF between chunks"),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", "a bare LF between chunks"),
        ("5;\0\r\nhello\r\n0\r\n\r\n", "a control character between chunks"),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", "a control character between chunks"),
        ("-5\r\nhello\r\n0\r\n\r\n", "a chunk's size that is no number"),
        ("0x5\r\nhello\r\n0\r\n\r\n", "a chunk's size that is no number"),
        ("\r\nhello\r\n0\r\n\r\n", "a chunk's size that is no number"),
        ("00000000000000005\r\nhello\r\n0\r\n\r\n", "a chunk's size that is no number"),
        ("4\r\nhello\r\n0\r\n\r\n", "a chunk that does not end where it says"),
        ("5\r\nhello\r\n0\r\nno colon\r\n\r\n", "a trailer line without a colon"),
        ("5\r\nhello\r\n0\r\nX: 1\n\r\n", "a bare LF between chunks"),
        ("5\r\nhel", "the node closed the connection before the answer's end"),
    ];
    for (chunks, expected) in wrong {
        let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        for step in [1, 7, text.len()] {
            assert_eq!(body(text.as_bytes(), step).err().map(|m| m.0), Some(expected), "{chunks:?} by {step}");
        }
    }
    let long = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;{}", "a".repeat(CHUNK_LINE_MAX));
    assert_eq!(body(long.as_bytes(), 100).err().unwrap().0, "a chunk's size line of more than 256 bytes");
    let trailers = "X: 1\r\n".repeat(TRAILERS_MAX / 6 + 1);
    let long = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}\r\n");
    assert_eq!(body(long.as_bytes(), 100).err().unwrap().0, "trailers of more than 8 KiB");
}

#[test]
fn a_body_that_is_cut_short_is_no_whole_one() {
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell";
    assert_eq!(body(short, 3).err().unwrap().0, "the node closed the connection before the answer's end");
    let open = b"HTTP/1.1 200 OK\r\n\r\nhell";
    assert_eq!(body(open, 3).unwrap().0, b"hell", "without a length, closing is the end");
}
