//! Which node of a cluster has a key (redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec).

use super::wire::Reply;

/// Slots of every cluster.
pub const SLOTS: u16 = 16_384;

/// A node and the slots that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub first: u16,
    pub last: u16,
    /// Empty: the host that was asked.
    pub host: String,
    pub port: u16,
}

/// The slot of a key: by what stands in its first braces, else by all of it.
pub fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let inside = &key[open + 1..];
        memchr::memchr(b'}', inside).filter(|length| *length > 0).map(|length| &inside[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// A key that begins so, in a slot of a cluster.
pub fn key_in(slot_of: Option<u16>, prefix: &str) -> String {
    // Some slots take a while to hit. What has braces already is in the slot of these.
    let tries = if prefix.contains('{') { 0 } else { 1_000_000_u32 };
    let found = slot_of.and_then(|wanted| (0..tries).map(|n| n.to_string()).find(|n| slot(n.as_bytes()) == wanted));
    found.map_or_else(|| prefix.to_owned(), |tag| format!("{prefix}{{{tag}}}"))
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    })
}

/// Reads the answer of `CLUSTER SLOTS`.
pub fn ranges(reply: &Reply) -> Vec<Range> {
    let range = |entry: &Reply| {
        let [first, last, node, ..] = entry.array() else { return None };
        let number = |r: &Reply| u16::try_from(r.integer()?).ok();
        let [host, port, ..] = node.array() else { return None };
        let host = match host {
            Reply::Bulk(host) => String::from_utf8(host.clone().unwrap_or_default()).ok()?,
            _ => return None,
        };
        let (first, last) = (number(first)?, number(last)?);
        (last < SLOTS && first <= last).then_some(Range { first, last, host, port: number(port)? })
    };
    reply.array().iter().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"a{foo}b"), 12182);
        assert_eq!(slot(b"{}foo"), crc16(b"{}foo") % SLOTS);
    }

    #[test]
    fn the_nodes_of_slots_are_read() {
        let text = b"*1\r\n*3\r\n:0\r\n:5460\r\n*3\r\n$9\r\n127.0.0.1\r\n:30001\r\n$2\r\nab\r\n";
        let (reply, _) = super::super::wire::read_reply(text).unwrap().unwrap();
        assert_eq!(ranges(&reply), [Range { first: 0, last: 5460, host: "127.0.0.1".into(), port: 30001 }]);
    }
}
