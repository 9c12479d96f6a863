//! Connections to HTTP/2 nodes that say, frame by frame, what no library would.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection of HTTP/2, frame by frame.
struct Frames(TcpStream);

const HEADERS: u8 = 1;

impl Frames {
    async fn begin(mut tcp: TcpStream) -> std::io::Result<Self> {
        tcp.set_nodelay(true)?;
        // SETTINGS without any; and what comes after the preface is frames.
        tcp.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
        tcp.read_exact(&mut [0; 24]).await?;
        Ok(Self(tcp))
    }

    /// The stream of the next request.
    async fn request(&mut self) -> std::io::Result<[u8; 4]> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            self.0.read_exact(&mut vec![0; length as usize]).await?;
            if head[3] == HEADERS {
                return Ok([head[5], head[6], head[7], head[8]]);
            }
        }
    }

    /// An answer without a body.
    async fn answer(&mut self, stream: [u8; 4], block: &[u8]) -> std::io::Result<()> {
        const END_STREAM_AND_HEADERS: u8 = 5;
        let length = (block.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], HEADERS, END_STREAM_AND_HEADERS];
        frame.extend(stream);
        frame.extend(block);
        self.0.write_all(&frame).await
    }
}

/// Answers each request with this header block, and no body.
pub async fn answer_with(tcp: TcpStream, block: Vec<u8>) -> std::io::Result<()> {
    let mut frames = Frames::begin(tcp).await?;
    loop {
        let stream = frames.request().await?;
        frames.answer(stream, &block).await?;
    }
}

/// Takes so many requests, and says GOAWAY with the last of them, or to the first if it takes none.
pub async fn go_away(tcp: TcpStream, requests: u32, reason: h2::Reason) -> std::io::Result<()> {
    const STATUS_200: u8 = 0x88;
    let mut frames = Frames::begin(tcp).await?;
    let mut taken = Vec::new();
    loop {
        let stream = frames.request().await?;
        let left = requests as usize - taken.len();
        if left > 0 {
            taken.push(stream);
        }
        if left <= 1 {
            let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
            frame.extend(taken.last().copied().unwrap_or_default());
            frame.extend(u32::from(reason).to_be_bytes());
            frames.0.write_all(&frame).await?;
        }
        if left == 1 {
            for stream in &taken {
                frames.answer(*stream, &[STATUS_200]).await?;
            }
        }
    }
}
