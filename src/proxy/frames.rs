//! HTTP/2 frames as they pass by (RFC 9113, section 4): just enough to know when one has begun and does not end, and when
//! they come faster than any use of HTTP/2 needs.
//!
//! The codec has limits of its own on what it keeps in memory (header lists, reset streams, small DATA frames). What it
//! answers or skips at once has none there: each such frame costs little, and a flood of them a processor.

use std::time::{Duration, Instant};

use crate::observe::CloseReason;

const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// GOAWAY for all streams, ENHANCE_YOUR_CALM (RFC 9113, sections 6.8 and 7).
pub const GOAWAY_CALM: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";

/// Why the codec gives up, if its last frame is a GOAWAY that says so; besides the error it holds a few words at most.
pub fn given_up(written: &[u8]) -> Option<CloseReason> {
    const FIXED: usize = FRAME_HEADER_BYTES + 8;
    let tail = &written[written.len().saturating_sub(64)..];
    // Its kind stands behind its length, and nothing behind its end.
    let frame = memchr::memchr_iter(GOAWAY, tail).filter_map(|at| tail.get(at.checked_sub(3)?..)).find(|frame| {
        frame.len() >= FIXED
            && frame[..2] == [0, 0]
            && frame[4..9] == [0; 5]
            && frame.len() == FRAME_HEADER_BYTES + usize::from(frame[2])
    })?;
    let words = &frame[FIXED..];
    match frame[FIXED - 4..FIXED] {
        [0, 0, 0, 1 | 5] => Some(CloseReason::ProtocolError),
        [0, 0, 0, 3] => Some(CloseReason::FlowControlError),
        [0, 0, 0, 6] => Some(CloseReason::FrameSizeError),
        [0, 0, 0, 9] => Some(CloseReason::CompressionError),
        // The codec's own words for its limits.
        [0, 0, 0, 11] => Some(match words {
            b"too_many_internal_resets" => CloseReason::MalformedRequests,
            b"too_many_resets" => CloseReason::RapidReset,
            b"too_many_continuations" => CloseReason::ContinuationFlood,
            _ => CloseReason::EnhanceYourCalm,
        }),
        _ => None,
    }
}

/// A DATA frame with less is as good as empty.
const DATA_LEAST: usize = 16;
/// Points that a client may collect at once, and how many are forgotten each second. See [`cost`].
const POINTS_MAX: u32 = 4000;
const FORGOTTEN_PER_SECOND: u32 = 400;
/// So many bytes of answers make up for one point: their WINDOW_UPDATEs are no flood.
const BYTES_PER_POINT: usize = 64;

/// What a frame costs in points, and what a flood of it is called. None: other limits hold for it.
fn cost(kind: u8, flags: u8, payload: usize) -> Option<(u32, CloseReason)> {
    match kind {
        // A stream ends once, and streams are counted as requests.
        DATA if flags & END_STREAM != 0 || payload >= DATA_LEAST => None,
        DATA if payload == 0 => Some((10, CloseReason::EmptyDataFlood)),
        DATA => Some((1, CloseReason::EmptyDataFlood)),
        HEADERS => None,
        PRIORITY => Some((1, CloseReason::PriorityFlood)),
        // Each may have set a request going: 200 at once and 20 a second.
        RST_STREAM => Some((20, CloseReason::RapidReset)),
        SETTINGS | PING if flags & ACK != 0 => Some((1, CloseReason::UnknownFrameFlood)),
        SETTINGS => Some((10, CloseReason::SettingsFlood)),
        PING => Some((5, CloseReason::PingFlood)),
        WINDOW_UPDATE => Some((1, CloseReason::WindowUpdateFlood)),
        CONTINUATION => Some((10, CloseReason::ContinuationFlood)),
        _ => Some((1, CloseReason::UnknownFrameFlood)),
    }
}

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
    points: u32,
    forgotten_at: Instant,
    /// Bytes of answers that have made up for no point yet.
    sent: usize,
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
            points: 0,
            forgotten_at: now,
            sent: 0,
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
    ///
    /// # Errors
    /// The flood that they belong to; the connection must end.
    pub fn read(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), CloseReason> {
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
                self.begin_frame(&now)?;
            }
        }
        Ok(())
    }

    /// Takes note of bytes sent to the client.
    pub fn wrote(&mut self, bytes: usize) {
        if self.points > 0 {
            self.sent += bytes;
            let points = u32::try_from(self.sent / BYTES_PER_POINT).unwrap_or(u32::MAX);
            self.points = self.points.saturating_sub(points);
            self.sent %= BYTES_PER_POINT;
        }
    }

    fn begin_frame(&mut self, now: &impl Fn() -> Instant) -> Result<(), CloseReason> {
        let [l0, l1, l2, kind, flags, ..] = self.head;
        self.payload_left = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        self.head_bytes = 0;
        self.data = kind == DATA;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block_open = flags & END_HEADERS == 0;
        }
        match cost(kind, flags, self.payload_left) {
            None => Ok(()),
            Some((points, flood)) => self.collect(points, flood, now),
        }
    }

    fn collect(&mut self, points: u32, flood: CloseReason, now: &impl Fn() -> Instant) -> Result<(), CloseReason> {
        self.points += points;
        if self.points <= POINTS_MAX {
            return Ok(());
        }
        // The clock is asked only now: whoever stays below never pays for it.
        let now = now();
        let ms = now.saturating_duration_since(self.forgotten_at).as_millis();
        let forgotten = u32::try_from(ms).unwrap_or(u32::MAX).saturating_mul(FORGOTTEN_PER_SECOND) / 1000;
        if forgotten > 0 {
            self.points = self.points.saturating_sub(forgotten);
            self.forgotten_at = now;
        }
        if self.points <= POINTS_MAX { Ok(()) } else { Err(flood) }
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
        frames.read(&[0; PREFACE_BYTES], || start).unwrap();
        frames.read(&frame(4, 0, 18), || start).unwrap();
        assert_eq!(frames.deadline(HEADER, BODY), None);
        frames
    }

    #[test]
    fn a_silent_preface_has_a_deadline() {
        let start = Instant::now();
        let mut frames = Frames::new(start);
        frames.read(&[0; 10], || start + HEADER).unwrap();
        assert_eq!(frames.deadline(HEADER, BODY), Some((start + HEADER, CloseReason::HeaderTimeout)));
    }

    #[test]
    fn an_open_header_block_has_a_deadline_from_its_first_frame() {
        let start = Instant::now();
        let mut frames = rested(start);
        let later = start + Duration::from_secs(5);
        frames.read(&frame(HEADERS, 0, 5), || start).unwrap();
        frames.read(&frame(CONTINUATION, 0, 5), || later).unwrap();
        assert_eq!(frames.deadline(HEADER, BODY), Some((start + HEADER, CloseReason::HeaderTimeout)));
        frames.read(&frame(CONTINUATION, END_HEADERS, 5), || later).unwrap();
        assert_eq!(frames.deadline(HEADER, BODY), None);
    }

    #[test]
    fn a_half_data_frame_has_the_bodys_deadline_whatever_way_it_is_cut() {
        let start = Instant::now();
        let whole = frame(DATA, 0, 100);
        for cut in 1..whole.len() {
            let mut frames = rested(start);
            frames.read(&whole[..cut], || start).unwrap();
            assert!(frames.deadline(HEADER, BODY).is_some(), "cut at {cut}");
            frames.read(&whole[cut..], || start + BODY).unwrap();
            assert_eq!(frames.deadline(HEADER, BODY), None, "cut at {cut}");
        }
    }

    #[test]
    fn what_the_codec_gives_up_for_is_read_from_its_last_frame() {
        let goaway = |code: u8, words: &[u8]| {
            let length = 8 + u8::try_from(words.len()).unwrap();
            [&[0, 0, length, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, code], words].concat()
        };
        for (code, words, reason) in [
            (0, "", None),
            (1, "", Some(CloseReason::ProtocolError)),
            (3, "", Some(CloseReason::FlowControlError)),
            (6, "", Some(CloseReason::FrameSizeError)),
            (9, "", Some(CloseReason::CompressionError)),
            (11, "", Some(CloseReason::EnhanceYourCalm)),
            (11, "too_many_resets", Some(CloseReason::RapidReset)),
            (11, "too_many_internal_resets", Some(CloseReason::MalformedRequests)),
        ] {
            let frame = goaway(code, words.as_bytes());
            assert_eq!(given_up(&frame), reason, "{code} {words}");
            assert_eq!(given_up(&[&[7; 100], &frame[..]].concat()), reason, "after something else");
            assert_eq!(given_up(&[&frame[..], b"x"].concat()), None, "not the last");
        }
        assert_eq!(given_up(GOAWAY_CALM), Some(CloseReason::EnhanceYourCalm));
        assert_eq!(given_up(b""), None);
    }

    /// How many of a frame are let through at once, and the reason that the next is not.
    fn until_cut(frame: &[u8], ms_between: u64, most: u32) -> (u32, Option<CloseReason>) {
        let start = Instant::now();
        let mut frames = rested(start);
        for n in 0..most {
            let now = start + Duration::from_millis(ms_between * u64::from(n));
            if let Err(reason) = frames.read(frame, || now) {
                return (n, Some(reason));
            }
        }
        (most, None)
    }

    #[test]
    fn every_flood_is_cut_by_its_name() {
        for (kind, flags, payload, reason, at_once) in [
            (RST_STREAM, 0, 4, CloseReason::RapidReset, 200),
            (SETTINGS, 0, 0, CloseReason::SettingsFlood, 400),
            (PING, 0, 8, CloseReason::PingFlood, 800),
            (PING, ACK, 8, CloseReason::UnknownFrameFlood, 4000),
            (PRIORITY, 0, 5, CloseReason::PriorityFlood, 4000),
            (WINDOW_UPDATE, 0, 4, CloseReason::WindowUpdateFlood, 4000),
            (CONTINUATION, END_HEADERS, 0, CloseReason::ContinuationFlood, 400),
            (DATA, 0, 0, CloseReason::EmptyDataFlood, 400),
            (DATA, 0, 1, CloseReason::EmptyDataFlood, 4000),
            (0xfa, 0, 0, CloseReason::UnknownFrameFlood, 4000),
        ] {
            let (passed, why) = until_cut(&frame(kind, flags, payload), 0, 10_000);
            assert_eq!(why, Some(reason));
            assert!(passed.abs_diff(at_once) <= 10, "{reason:?} after {passed}");
        }
    }

    #[test]
    fn what_honest_clients_send_is_never_a_flood() {
        for (kind, flags, payload, ms) in [
            (HEADERS, END_HEADERS, 40, 0),
            (DATA, 0, 1000, 0),
            (DATA, END_STREAM, 0, 0),
            // A ping each 100 ms, ten cancelled requests a second, two hundred window updates a second.
            (PING, 0, 8, 100),
            (RST_STREAM, 0, 4, 100),
            (WINDOW_UPDATE, 0, 4, 5),
        ] {
            let (passed, why) = until_cut(&frame(kind, flags, payload), ms, 50_000);
            assert_eq!((passed, why), (50_000, None), "frame {kind}");
        }
    }

    #[test]
    fn window_updates_for_what_was_sent_are_no_flood() {
        let start = Instant::now();
        let mut frames = rested(start);
        let update = frame(WINDOW_UPDATE, 0, 4);
        // Two for each event of 200 bytes, as fast as they come.
        for _ in 0..100_000 {
            frames.wrote(200);
            frames.read(&update, || start).unwrap();
            frames.read(&update, || start).unwrap();
        }
        // Windows of one byte: ten bytes of frame for each.
        let mut tiny = 0;
        while frames.read(&update, || start).is_ok() {
            frames.wrote(10);
            tiny += 1;
        }
        assert!(tiny < 5000, "{tiny}");
    }
}
