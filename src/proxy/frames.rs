//! HTTP/2 frames as they pass by (RFC 9113, section 4): just enough to know when one has begun and does not end.

use std::time::{Duration, Instant};

use crate::observe::CloseReason;

const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the client's half of an HTTP/2 connection.
#[derive(Debug)]
pub struct Frames {
    /// Bytes of the preface still to come, and since when it is awaited.
    preface_left: usize,
    since: Instant,
    head: [u8; FRAME_HEADER_BYTES],
    head_bytes: usize,
    payload_left: usize,
    /// A header block is open: HEADERS without END_HEADERS.
    block_open: bool,
    data: bool,
}

impl Frames {
    /// Awaits the preface.
    pub fn new(now: Instant) -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            since: now,
            head: [0; FRAME_HEADER_BYTES],
            head_bytes: 0,
            payload_left: 0,
            block_open: false,
            data: false,
        }
    }

    /// Whether nothing is half-way: the connection may rest.
    fn at_rest(&self) -> bool {
        self.preface_left == 0 && self.head_bytes == 0 && self.payload_left == 0 && !self.block_open
    }

    /// By when the frame, header block or preface that has begun must be whole.
    pub fn deadline(&self, header: Duration, body: Duration) -> Option<(Instant, CloseReason)> {
        if self.at_rest() {
            None
        } else if self.data {
            Some((self.since + body, CloseReason::HeaderTimeout))
        } else {
            Some((self.since + header, CloseReason::HeaderTimeout))
        }
    }

    /// Takes note of bytes that the client sent.
    pub fn read(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = self.payload_left.min(bytes.len());
                self.payload_left -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            if self.at_rest() {
                self.since = now();
            }
            let take = (FRAME_HEADER_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..self.head_bytes + take].copy_from_slice(&bytes[..take]);
            self.head_bytes += take;
            bytes = &bytes[take..];
            if self.head_bytes == FRAME_HEADER_BYTES {
                self.begin_frame();
            }
        }
    }

    fn begin_frame(&mut self) {
        let [l0, l1, l2, kind, flags, ..] = self.head;
        self.payload_left = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        self.head_bytes = 0;
        self.data = kind == DATA;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block_open = flags & END_HEADERS == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const BODY: Duration = Duration::from_secs(30);

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER_BYTES + payload, 0);
        frame
    }

    fn rested(start: Instant) -> Frames {
        let mut frames = Frames::new(start);
        frames.read(&[0; PREFACE_BYTES], || start);
        frames.read(&frame(4, 0, 18), || start);
        assert_eq!(frames.deadline(HEADER, BODY), None);
        frames
    }

    #[test]
    fn a_silent_preface_has_a_deadline() {
        let start = Instant::now();
        let mut frames = Frames::new(start);
        frames.read(&[0; 10], || start + HEADER);
        assert_eq!(frames.deadline(HEADER, BODY), Some((start + HEADER, CloseReason::HeaderTimeout)));
    }

    #[test]
    fn an_open_header_block_has_a_deadline_from_its_first_frame() {
        let start = Instant::now();
        let mut frames = rested(start);
        let later = start + Duration::from_secs(5);
        frames.read(&frame(HEADERS, 0, 5), || start);
        frames.read(&frame(CONTINUATION, 0, 5), || later);
        assert_eq!(frames.deadline(HEADER, BODY), Some((start + HEADER, CloseReason::HeaderTimeout)));
        frames.read(&frame(CONTINUATION, END_HEADERS, 5), || later);
        assert_eq!(frames.deadline(HEADER, BODY), None);
    }

    #[test]
    fn a_half_data_frame_has_the_bodys_deadline_whatever_way_it_is_cut() {
        let start = Instant::now();
        let whole = frame(DATA, 0, 100);
        for cut in 1..whole.len() {
            let mut frames = rested(start);
            frames.read(&whole[..cut], || start);
            assert!(frames.deadline(HEADER, BODY).is_some(), "cut at {cut}");
            frames.read(&whole[cut..], || start + BODY);
            assert_eq!(frames.deadline(HEADER, BODY), None, "cut at {cut}");
        }
    }
}
