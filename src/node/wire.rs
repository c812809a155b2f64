//! Moves frames over streams. Blocks are neither copied nor joined with their head.
//!
//! Invariant: nothing is allocated for a frame before its head was accepted, and nothing more than the head announces.

use std::io;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::base::codec::DecodeError;

use super::frame::{Frame, HEAD_LEN, Head};

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The stream broke or ended.
    #[error("the connection was lost: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no frame.
    #[error("a malformed frame: {0}")]
    Malformed(#[from] DecodeError),
}

impl WireError {
    /// Whether the peer is to blame, rather than the network.
    pub(super) fn is_violation(&self) -> bool {
        matches!(self, Self::Malformed(_))
    }
}

/// Waits for the next frame. Not safe to cancel half-way.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Frame, WireError> {
    let mut head = [0; HEAD_LEN];
    stream.read_exact(&mut head).await?;
    let head = Head::decode(head)?;
    let mut body = vec![0; head.body_len()];
    stream.read_exact(&mut body).await?;
    Ok(Frame::decode(head, &Bytes::from(body))?)
}

/// Writes a frame, without flushing; returns the bytes of blocks in it.
pub(super) async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, frame: &Frame) -> io::Result<u64> {
    let (head, block) = frame.encode();
    stream.write_all(&head).await?;
    if let Some(block) = block {
        stream.write_all(block).await?;
    }
    Ok(block.map_or(0, Bytes::len) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;

    #[tokio::test]
    async fn frames_follow_one_another() {
        let mut bytes = Vec::new();
        let frames = [
            Frame::Missing { request: 1 },
            Frame::Data {
                request: 2,
                block: Bytes::from_static(b"block"),
            },
            Frame::Credit { bytes: 3 },
        ];
        for frame in &frames {
            write_frame(&mut bytes, frame).await.unwrap();
        }
        let mut stream = Cursor::new(bytes);
        for frame in &frames {
            assert_eq!(read_frame(&mut stream).await.unwrap(), *frame);
        }
        assert!(!read_frame(&mut stream).await.unwrap_err().is_violation());
    }

    #[tokio::test]
    async fn a_giant_is_refused_before_its_body_is_read() {
        let mut stream = Cursor::new(vec![0xff, 0xff, 0xff, 0xff, 5]);
        assert!(read_frame(&mut stream).await.unwrap_err().is_violation());
    }
}
