//! RESP2, Redis' protocol (redis.io/docs/latest/develop/reference/protocol-spec): as much of it as is needed.

/// Deepest nesting of an answer; `CLUSTER SLOTS` has 4.
const DEPTH_MAX: u32 = 8;
/// Longest answer, bytes. That of a large cluster's slots takes some 100 KiB.
pub const ANSWER_MAX: usize = 4 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Integer(i64),
    /// A text; `None` is null.
    Bulk(Option<Vec<u8>>),
    /// Several.
    Array(Vec<Reply>),
}

impl Reply {
    /// The elements; none if it is no array.
    pub fn array(&self) -> &[Reply] {
        match self {
            Reply::Array(elements) => elements,
            _ => &[],
        }
    }

    /// The number.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Reply::Integer(n) => Some(*n),
            _ => None,
        }
    }
}

/// Appends a command.
pub fn write_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    use std::io::Write;
    // Writing to a vector can't fail.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Not RESP2, or more of it than is ever needed.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the answer at the beginning of `bytes`, and how long it is. `None`: it is not whole yet.
pub fn read_reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
    let mut at = 0;
    Ok(element(bytes, &mut at, 0)?.map(|reply| (reply, at)))
}

fn element(bytes: &[u8], at: &mut usize, depth: u32) -> Result<Option<Reply>, Malformed> {
    let rest = &bytes[*at..];
    let Some(end) = memchr::memchr(b'\n', rest) else {
        return if rest.len() > ANSWER_MAX { Err(Malformed) } else { Ok(None) };
    };
    let (kind, line) = match &rest[..end] {
        [kind, line @ .., b'\r'] => (*kind, std::str::from_utf8(line).map_err(|_| Malformed)?),
        _ => return Err(Malformed),
    };
    *at += end + 1;
    let length = || line.parse::<i64>().map_err(|_| Malformed);
    let limited = |n: i64| usize::try_from(n).ok().filter(|n| *n <= ANSWER_MAX).ok_or(Malformed);
    Ok(Some(match kind {
        b'+' => Reply::Simple(line.to_owned()),
        b'-' => Reply::Error(line.to_owned()),
        b':' => Reply::Integer(length()?),
        b'$' if line == "-1" => Reply::Bulk(None),
        b'$' => {
            let text = limited(length()?)?;
            let Some(found) = bytes.get(*at..*at + text + 2) else { return Ok(None) };
            *at += text + 2;
            Reply::Bulk(Some(found[..text].to_vec()))
        }
        b'*' if line == "-1" => Reply::Bulk(None),
        b'*' if depth < DEPTH_MAX => {
            let mut elements = Vec::new();
            for _ in 0..limited(length()?)? {
                match element(bytes, at, depth + 1)? {
                    Some(reply) => elements.push(reply),
                    None => return Ok(None),
                }
            }
            Reply::Array(elements)
        }
        _ => return Err(Malformed),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_only_when_it_is_whole() {
        let all = b"*3\r\n:1\r\n$5\r\nab\r\nc\r\n*1\r\n-ERR no\r\n+OK\r\n";
        let first = Reply::Array(vec![
            Reply::Integer(1),
            Reply::Bulk(Some(b"ab\r\nc".to_vec())),
            Reply::Array(vec![Reply::Error("ERR no".into())]),
        ]);
        let end = all.len() - 5;
        for length in 0..end {
            assert_eq!(read_reply(&all[..length]), Ok(None), "{length}");
        }
        assert_eq!(read_reply(all), Ok(Some((first, end))));
        assert_eq!(read_reply(&all[end..]), Ok(Some((Reply::Simple("OK".into()), 5))));
        assert_eq!(read_reply(b"$-1\r\n"), Ok(Some((Reply::Bulk(None), 5))));
    }

    #[test]
    fn what_is_not_resp_is_refused() {
        for text in ["HTTP/1.1 400\r\n", "$x\r\n", "*99999999999\r\n", ":1\n", "$-5\r\n"] {
            assert_eq!(read_reply(text.as_bytes()), Err(Malformed), "{text:?}");
        }
        assert_eq!(read_reply("*1\r\n".repeat(20).as_bytes()), Err(Malformed));
    }

    #[test]
    fn a_command_is_an_array_of_texts() {
        let mut out = Vec::new();
        write_command(&mut out, &[b"GET", b"a b"]);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$3\r\na b\r\n");
    }
}
