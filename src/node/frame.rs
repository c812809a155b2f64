//! The frames of `/dfs/GROUP/block/1`: their binary form and its bounds. Pure; the byte-by-byte description is `docs/protocol.md`.
//!
//! Invariant: a head that announces more than its kind may hold is refused before anything is allocated for it, and every decoded
//! frame encodes to the same bytes. `wire` moves frames over streams; `client` and `server` give them their meaning.

use bytes::Bytes;

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::BLOCK_MAX;
use crate::keys::certificate::CERTIFICATE_MAX;
use crate::keys::invitation::InvitationId;

/// Version of the frames, shown in HELLO.
pub const VERSION: u16 = 1;
/// Length of what comes before a frame's body: length of kind and body (4 bytes), kind (1 byte).
pub const HEAD_LEN: usize = 5;
/// Most block ids in one HAVE.
pub const HAVE_MAX: usize = 256;
/// Longest text in an ERROR, in bytes.
pub const TEXT_MAX: usize = 256;
/// Longest receipt, in bytes.
pub const RECEIPT_MAX: usize = 256;

const HELLO: u8 = 1;
const HAVE: u8 = 2;
const HELD: u8 = 3;
const GET: u8 = 4;
const DATA: u8 = 5;
const MISSING: u8 = 6;
const PUT: u8 = 7;
const RECEIPT: u8 = 8;
const CANCEL: u8 = 9;
const BUSY: u8 = 10;
const ERROR: u8 = 11;
const CREDIT: u8 = 12;
const SPENT: u8 = 13;

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The peer is not accepted as a member; the connection ends.
    NotAMember,
    /// The peer's role does not allow it.
    NotAllowed,
    /// The store failed or is full.
    StoreFailed,
    /// The peer broke the protocol; the connection ends.
    Violation,
}

impl Code {
    fn to_u16(self) -> u16 {
        match self {
            Self::NotAMember => 1,
            Self::NotAllowed => 2,
            Self::StoreFailed => 3,
            Self::Violation => 4,
        }
    }

    fn from_u16(value: u16) -> Result<Self, DecodeError> {
        match value {
            1 => Ok(Self::NotAMember),
            2 => Ok(Self::NotAllowed),
            3 => Ok(Self::StoreFailed),
            4 => Ok(Self::Violation),
            _ => Err(DecodeError::Invalid("unknown error code")),
        }
    }
}

/// One message. `request` is chosen by the side that asks and returned in the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame of each direction: who speaks, and what it grants the other side.
    Hello {
        /// Highest frame version understood.
        version: u16,
        /// Bytes of blocks that the other side may send before it gets more credit.
        window: u32,
        /// Requests that the other side may have open.
        requests: u16,
        /// The sender's certificate.
        certificate: Vec<u8>,
    },
    /// Which of these blocks do you have?
    Have {
        /// Request id.
        request: u32,
        /// 1 to [`HAVE_MAX`] ids.
        ids: Vec<BlockId>,
    },
    /// Answer to HAVE, in its order.
    Held {
        /// Request id.
        request: u32,
        /// For each id whether it is held.
        held: Vec<bool>,
    },
    /// Send me this block.
    Get {
        /// Request id.
        request: u32,
        /// The block.
        id: BlockId,
    },
    /// Answer to GET.
    Data {
        /// Request id.
        request: u32,
        /// The block, to be checked against the id that was asked for.
        block: Bytes,
    },
    /// Answer to GET: not here.
    Missing {
        /// Request id.
        request: u32,
    },
    /// Keep this block for me.
    Put {
        /// Request id.
        request: u32,
        /// The block's id.
        id: BlockId,
        /// The block.
        block: Bytes,
    },
    /// Answer to PUT: it is on disk. See `receipt`.
    Receipt {
        /// Request id.
        request: u32,
        /// The signed receipt.
        receipt: Vec<u8>,
    },
    /// Forget this request. May cross with its answer.
    Cancel {
        /// Request id.
        request: u32,
    },
    /// Too much is going on here: ask again later.
    Busy {
        /// Request id.
        request: u32,
        /// When to ask again, in milliseconds.
        retry_ms: u32,
    },
    /// The request failed; with request 0, the connection does.
    Error {
        /// Request id, or 0.
        request: u32,
        /// Why.
        code: Code,
        /// Why, for the log.
        text: String,
    },
    /// That many more bytes of blocks may be sent.
    Credit {
        /// Bytes.
        bytes: u32,
    },
    /// From an admin to an admin: this invitation admitted this device.
    Spent {
        /// The invitation.
        invitation: InvitationId,
        /// When the invitation expires, Unix seconds.
        expires: u64,
        /// Public key of the device.
        device: [u8; 32],
    },
}

/// The five bytes before a frame's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    kind: u8,
    body_len: usize,
}

impl Head {
    /// Reads a head and refuses lengths that its kind cannot have.
    pub fn decode(bytes: [u8; HEAD_LEN]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(&bytes);
        let len = r.u32()? as usize;
        let kind = r.u8()?;
        let max = match kind {
            HELLO => 2 + 4 + 2 + 2 + CERTIFICATE_MAX,
            HAVE => 4 + 2 + HAVE_MAX * 32,
            HELD => 4 + 2 + HAVE_MAX / 8,
            GET => 4 + 32,
            DATA => 4 + BLOCK_MAX,
            MISSING | CANCEL => 4,
            PUT => 4 + 32 + BLOCK_MAX,
            RECEIPT => 4 + 2 + RECEIPT_MAX,
            BUSY => 8,
            ERROR => 4 + 2 + 2 + TEXT_MAX,
            CREDIT => 4,
            SPENT => 16 + 8 + 32,
            _ => return Err(DecodeError::Invalid("unknown kind of frame")),
        };
        let body_len = len
            .checked_sub(1)
            .ok_or(DecodeError::Invalid("a frame without a kind"))?;
        if body_len > max {
            return Err(DecodeError::Invalid("a frame longer than its kind allows"));
        }
        Ok(Self { kind, body_len })
    }

    /// Length of the body, in bytes; bounded by the kind's limit.
    pub fn body_len(&self) -> usize {
        self.body_len
    }
}

impl Frame {
    /// Reads a body of exactly [`Head::body_len`] bytes. Blocks are not copied.
    pub fn decode(head: Head, body: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let frame = match head.kind {
            HELLO => Self::Hello {
                version: r.u16()?,
                window: r.u32()?,
                requests: r.u16()?,
                certificate: r.bytes16(CERTIFICATE_MAX)?.to_vec(),
            },
            HAVE => {
                let request = r.u32()?;
                let count = usize::from(r.u16()?);
                if count == 0 || count > HAVE_MAX {
                    return Err(DecodeError::Invalid("a HAVE for no block or too many"));
                }
                let mut ids = Vec::with_capacity(count);
                for _ in 0..count {
                    ids.push(BlockId(r.array()?));
                }
                Self::Have { request, ids }
            }
            HELD => {
                let request = r.u32()?;
                let count = usize::from(r.u16()?);
                if count == 0 || count > HAVE_MAX {
                    return Err(DecodeError::Invalid("an answer about no block or too many"));
                }
                let bits = r.take(count.div_ceil(8))?;
                if count % 8 != 0 && bits[count / 8] >> (count % 8) != 0 {
                    return Err(DecodeError::Invalid("bits set beyond the last block"));
                }
                let held = (0..count).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect();
                Self::Held { request, held }
            }
            GET => Self::Get {
                request: r.u32()?,
                id: BlockId(r.array()?),
            },
            DATA => {
                let request = r.u32()?;
                let block = body.slice(body.len() - r.remaining()..);
                r.take(block.len())?;
                Self::Data { request, block }
            }
            MISSING => Self::Missing { request: r.u32()? },
            PUT => {
                let (request, id) = (r.u32()?, BlockId(r.array()?));
                let block = body.slice(body.len() - r.remaining()..);
                r.take(block.len())?;
                Self::Put { request, id, block }
            }
            RECEIPT => Self::Receipt {
                request: r.u32()?,
                receipt: r.bytes16(RECEIPT_MAX)?.to_vec(),
            },
            CANCEL => Self::Cancel { request: r.u32()? },
            BUSY => Self::Busy {
                request: r.u32()?,
                retry_ms: r.u32()?,
            },
            ERROR => Self::Error {
                request: r.u32()?,
                code: Code::from_u16(r.u16()?)?,
                text: r.str16(TEXT_MAX)?.to_owned(),
            },
            CREDIT => Self::Credit { bytes: r.u32()? },
            SPENT => Self::Spent {
                invitation: InvitationId(r.array()?),
                expires: r.u64()?,
                device: r.array()?,
            },
            _ => return Err(DecodeError::Invalid("unknown kind of frame")),
        };
        r.finish()?;
        Ok(frame)
    }

    /// The binary form: what comes before the block, and the block, if the frame carries one. Blocks are not copied.
    pub fn encode(&self) -> (Vec<u8>, Option<&Bytes>) {
        let mut w = Writer::with_capacity(64);
        let mut tail = None;
        let kind = match self {
            Self::Hello {
                version,
                window,
                requests,
                certificate,
            } => {
                w.u16(*version).u32(*window).u16(*requests).bytes16(certificate);
                HELLO
            }
            Self::Have { request, ids } => {
                w.u32(*request).u16(ids.len() as u16);
                for id in ids {
                    w.raw(id.as_bytes());
                }
                HAVE
            }
            Self::Held { request, held } => {
                w.u32(*request).u16(held.len() as u16);
                for eight in held.chunks(8) {
                    w.u8(eight.iter().rev().fold(0, |bits, &h| bits << 1 | u8::from(h)));
                }
                HELD
            }
            Self::Get { request, id } => {
                w.u32(*request).raw(id.as_bytes());
                GET
            }
            Self::Data { request, block } => {
                w.u32(*request);
                tail = Some(block);
                DATA
            }
            Self::Missing { request } => {
                w.u32(*request);
                MISSING
            }
            Self::Put { request, id, block } => {
                w.u32(*request).raw(id.as_bytes());
                tail = Some(block);
                PUT
            }
            Self::Receipt { request, receipt } => {
                w.u32(*request).bytes16(receipt);
                RECEIPT
            }
            Self::Cancel { request } => {
                w.u32(*request);
                CANCEL
            }
            Self::Busy { request, retry_ms } => {
                w.u32(*request).u32(*retry_ms);
                BUSY
            }
            Self::Error { request, code, text } => {
                let mut end = text.len().min(TEXT_MAX);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                w.u32(*request)
                    .u16(code.to_u16())
                    .bytes16(&text.as_bytes()[..end]);
                ERROR
            }
            Self::Credit { bytes } => {
                w.u32(*bytes);
                CREDIT
            }
            Self::Spent {
                invitation,
                expires,
                device,
            } => {
                w.raw(&invitation.0).u64(*expires).raw(device);
                SPENT
            }
        };
        let fixed = w.into_vec();
        let len = 1 + fixed.len() + tail.map_or(0, Bytes::len);
        let mut whole = Writer::with_capacity(HEAD_LEN + fixed.len());
        whole.u32(len as u32).u8(kind).raw(&fixed);
        (whole.into_vec(), tail)
    }
}

/// Reads one whole frame from a slice, as the fuzz target and the tests do.
pub fn decode_whole(bytes: &[u8]) -> Result<Frame, DecodeError> {
    let mut r = Reader::new(bytes);
    let head = Head::decode(r.array()?)?;
    let body = Bytes::copy_from_slice(r.take(head.body_len())?);
    r.finish()?;
    Frame::decode(head, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(frame: &Frame) -> Vec<u8> {
        let (mut bytes, tail) = frame.encode();
        if let Some(tail) = tail {
            bytes.extend_from_slice(tail);
        }
        bytes
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let hex = |frame: &Frame| data_encoding::HEXLOWER.encode(&whole(frame));
        let id = BlockId([0xab; 32]);
        assert_eq!(
            hex(&Frame::Get { request: 7, id }),
            format!("250000000407000000{}", "ab".repeat(32))
        );
        assert_eq!(
            hex(&Frame::Data {
                request: 7,
                block: Bytes::from_static(b"xyz")
            }),
            "080000000507000000 78797a".replace(' ', "")
        );
        assert_eq!(hex(&Frame::Missing { request: 1 }), "050000000601000000");
        assert_eq!(
            hex(&Frame::Held {
                request: 1,
                held: vec![true, false, true, false, false, false, false, false, true]
            }),
            "0900000003010000000900 0501".replace(' ', "")
        );
        assert_eq!(hex(&Frame::Cancel { request: 2 }), "050000000902000000");
        assert_eq!(
            hex(&Frame::Busy {
                request: 2,
                retry_ms: 256
            }),
            "090000000a0200000000010000"
        );
        assert_eq!(
            hex(&Frame::Error {
                request: 0,
                code: Code::NotAMember,
                text: "no".into()
            }),
            "0b0000000b00000000010002006e6f"
        );
        assert_eq!(hex(&Frame::Credit { bytes: 1 }), "050000000c01000000");
        assert_eq!(
            hex(&Frame::Hello {
                version: 1,
                window: 2,
                requests: 3,
                certificate: vec![9]
            }),
            "0c00000001010002000000 0300 0100 09".replace(' ', "")
        );
    }

    #[test]
    fn giants_are_refused_by_their_head_alone() {
        let head = |len: u32, kind: u8| {
            let mut bytes = [0; HEAD_LEN];
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            bytes[4] = kind;
            Head::decode(bytes)
        };
        assert!(head(u32::MAX, DATA).is_err());
        assert!(head(BLOCK_MAX as u32 + 6, DATA).is_err());
        assert!(head(BLOCK_MAX as u32 + 5, DATA).is_ok());
        assert!(head(38, GET).is_err());
        assert!(head(0, GET).is_err());
        assert!(head(1, 0).is_err());
        assert!(head(1, 99).is_err());
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = any::<[u8; 32]>().prop_map(BlockId);
        let block = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        let bytes = proptest::collection::vec(any::<u8>(), 0..200);
        prop_oneof![
            (any::<u16>(), any::<u32>(), any::<u16>(), bytes.clone()).prop_map(
                |(version, window, requests, certificate)| Frame::Hello {
                    version,
                    window,
                    requests,
                    certificate
                }
            ),
            (any::<u32>(), proptest::collection::vec(id.clone(), 1..HAVE_MAX))
                .prop_map(|(request, ids)| Frame::Have { request, ids }),
            (
                any::<u32>(),
                proptest::collection::vec(any::<bool>(), 1..HAVE_MAX)
            )
                .prop_map(|(request, held)| Frame::Held { request, held }),
            (any::<u32>(), id.clone()).prop_map(|(request, id)| Frame::Get { request, id }),
            (any::<u32>(), block.clone()).prop_map(|(request, block)| Frame::Data { request, block }),
            any::<u32>().prop_map(|request| Frame::Missing { request }),
            (any::<u32>(), id, block).prop_map(|(request, id, block)| Frame::Put { request, id, block }),
            (any::<u32>(), bytes).prop_map(|(request, receipt)| Frame::Receipt { request, receipt }),
            any::<u32>().prop_map(|request| Frame::Cancel { request }),
            (any::<u32>(), any::<u32>()).prop_map(|(request, retry_ms)| Frame::Busy { request, retry_ms }),
            (any::<u32>(), 1u16..5, "[a-zé]{0,40}").prop_map(|(request, code, text)| Frame::Error {
                request,
                code: Code::from_u16(code).unwrap(),
                text
            }),
            any::<u32>().prop_map(|bytes| Frame::Credit { bytes }),
            (any::<[u8; 16]>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(id, expires, device)| {
                Frame::Spent {
                    invitation: InvitationId(id),
                    expires,
                    device,
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_round_trips(frame in any_frame()) {
            prop_assert_eq!(decode_whole(&whole(&frame)), Ok(frame));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(kind in 0u8..16, body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut bytes = (body.len() as u32 + 1).to_le_bytes().to_vec();
            bytes.push(kind);
            bytes.extend_from_slice(&body);
            if let Ok(frame) = decode_whole(&bytes) {
                prop_assert_eq!(whole(&frame), bytes);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_whole(&bytes);
        }
    }
}
