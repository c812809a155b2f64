//! The messages of `/dfs/GROUP/join/1`: their binary form and its bounds. Byte by byte in `docs/protocol.md`.
//!
//! Invariant: messages that hold secrets are kept in memory that is wiped when dropped.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::certificate::CERTIFICATE_MAX;
use crate::keys::invitation::INVITATION_MAX;

use super::wire::WireError;

/// Longest payload handed to a member, in bytes: the secrets of [`crate::keys::EPOCH_MAX`] epochs, and room.
pub const PAYLOAD_MAX: usize = 192 << 10;
/// Longest reason in a refusal, in bytes.
const TEXT_MAX: usize = 256;
/// Longest message, in bytes.
const MESSAGE_MAX: usize = 1 + 4 + CERTIFICATE_MAX + PAYLOAD_MAX + 16;

/// One message.
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// Joiner: I was invited.
    Ask {
        /// The signed invitation, without its secret.
        invitation: Vec<u8>,
    },
    /// Admin: this is who I am.
    Admin {
        /// The admin's certificate.
        certificate: Vec<u8>,
    },
    /// Joiner, once it has verified the admin: the secret.
    Secret(Zeroizing<[u8; 32]>),
    /// Admin: welcome.
    Admitted {
        /// The new member's certificate.
        certificate: Vec<u8>,
        /// What a member of that role gets: opaque here.
        payload: Zeroizing<Vec<u8>>,
    },
    /// Admin: no.
    Refused(String),
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ask { .. } => f.write_str("Ask"),
            Self::Admin { .. } => f.write_str("Admin"),
            Self::Secret(_) => f.write_str("Secret"),
            Self::Admitted { .. } => f.write_str("Admitted"),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

impl Message {
    /// The binary form, without the length that precedes it on the wire.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut w = Writer::with_capacity(MESSAGE_MAX);
        match self {
            Self::Ask { invitation } => w.u8(1).bytes16(invitation),
            Self::Admin { certificate } => w.u8(2).bytes16(certificate),
            Self::Secret(secret) => w.u8(3).raw(secret.as_ref()),
            Self::Admitted { certificate, payload } => w.u8(4).bytes16(certificate).bytes32(payload),
            Self::Refused(why) => {
                let mut end = why.len().min(TEXT_MAX);
                while !why.is_char_boundary(end) {
                    end -= 1;
                }
                w.u8(5).bytes16(&why.as_bytes()[..end])
            }
        };
        Zeroizing::new(w.into_vec())
    }

    /// Reads the binary form.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let message = match r.u8()? {
            1 => Self::Ask {
                invitation: r.bytes16(INVITATION_MAX)?.to_vec(),
            },
            2 => Self::Admin {
                certificate: r.bytes16(CERTIFICATE_MAX)?.to_vec(),
            },
            3 => Self::Secret(Zeroizing::new(r.array()?)),
            4 => Self::Admitted {
                certificate: r.bytes16(CERTIFICATE_MAX)?.to_vec(),
                payload: Zeroizing::new(r.bytes32(PAYLOAD_MAX)?.to_vec()),
            },
            5 => Self::Refused(r.str16(TEXT_MAX)?.to_owned()),
            _ => return Err(DecodeError::Invalid("unknown kind of message")),
        };
        r.finish()?;
        Ok(message)
    }

    /// Sends the message and flushes.
    pub(super) async fn write<W: AsyncWrite + Unpin>(&self, stream: &mut W) -> Result<(), WireError> {
        let bytes = self.encode();
        stream.write_all(&(bytes.len() as u32).to_le_bytes()).await?;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        Ok(())
    }

    /// Waits for a message.
    pub(super) async fn read<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Self, WireError> {
        let mut len = [0; 4];
        stream.read_exact(&mut len).await?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MESSAGE_MAX {
            return Err(DecodeError::Invalid("a message longer than any may be").into());
        }
        let mut bytes = Zeroizing::new(vec![0; len]);
        stream.read_exact(&mut bytes).await?;
        Ok(Self::decode(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let hex = |m: Message| data_encoding::HEXLOWER.encode(&m.encode());
        assert_eq!(hex(Message::Ask { invitation: vec![7] }), "01010007");
        assert_eq!(hex(Message::Admin { certificate: vec![8] }), "02010008");
        assert_eq!(
            hex(Message::Secret(Zeroizing::new([9; 32]))),
            format!("03{}", "09".repeat(32))
        );
        let admitted = Message::Admitted {
            certificate: vec![1],
            payload: Zeroizing::new(vec![2, 3]),
        };
        assert_eq!(hex(admitted), "04010001020000000203");
        assert_eq!(hex(Message::Refused("no".into())), "0502006e6f");
    }

    #[tokio::test]
    async fn giants_are_refused() {
        let mut stream = futures::io::Cursor::new(vec![0xff; 8]);
        assert!(Message::read(&mut stream).await.unwrap_err().is_violation());
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(
            format!("{:?}", Message::Secret(Zeroizing::new([1; 32]))),
            "Secret"
        );
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(kind in 0u8..8, mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            bytes.insert(0, kind);
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(&message.encode()[..], &bytes[..]);
            }
        }
    }
}
