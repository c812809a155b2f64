//! The frames of `/dfs/GROUP/block/1`: their binary form and its bounds. Pure; the byte-by-byte description is `docs/protocol.md`.
//!
//! Invariant: a head that announces more than its kind may hold is refused before anything is allocated for it, and every decoded
//! frame encodes to the same bytes. `wire` moves frames over streams; `client` and `server` give them their meaning.

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::BLOCK_MAX;
use crate::keys::certificate::CERTIFICATE_MAX;
use crate::keys::invitation::InvitationId;
use crate::keys::presence::PRESENCE_MAX;
use crate::keys::roster::STATEMENTS_MAX;
use crate::keys::statement::{STATEMENT_MAX, StatementId};

use super::announce::BATCH;
pub use super::error_code::Code;
use super::find::{FIND_MAX, Find, IDS_MAX, decode_ids, encode_ids};
use super::head_news::{HEAD_NEWS_MAX, HeadNews};
use super::join_message::PAYLOAD_MAX;

/// Version of the frames, shown in HELLO.
pub const VERSION: u16 = 1;
/// Length of what comes before a frame's body: length of kind and body (4 bytes), kind (1 byte).
pub const HEAD_LEN: usize = 5;
/// Most block ids in one HAVE.
pub const HAVE_MAX: usize = 256;
/// Longest text in an ERROR, in bytes.
pub const TEXT_MAX: usize = 256;
/// Most statements in one STATEMENTS.
pub const STATEMENTS_AT_ONCE: usize = 128;
/// Longest SAY, in bytes: what one member's replication says to another's, see `replica::wire`.
pub const SAY_MAX: usize = 16 << 10;
/// Longest SAID, in bytes: the answer to the longest audit.
pub const SAID_MAX: usize = 256 << 10;

const HELLO: u8 = 1;
const HAVE: u8 = 2;
const HELD: u8 = 3;
const GET: u8 = 4;
const DATA: u8 = 5;
const MISSING: u8 = 6;
const PUT: u8 = 7;
const STORED: u8 = 8;
const CANCEL: u8 = 9;
const BUSY: u8 = 10;
const ERROR: u8 = 11;
const CREDIT: u8 = 12;
const SPENT: u8 = 13;
const ROSTER: u8 = 14;
const KNOWN: u8 = 15;
const STATEMENTS: u8 = 16;
const PRESENCE: u8 = 17;
const SEEN: u8 = 18;
const KEYS_WANTED: u8 = 19;
const KEYS: u8 = 20;
const SAY: u8 = 21;
const SAID: u8 = 22;
const PROVIDE: u8 = 23;
const FIND: u8 = 24;
const FOUND: u8 = 25;
const HEADS: u8 = 26;

/// Keys on their way to a member: wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Gift(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Gift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gift(secret)")
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
    /// Answer to PUT: it is stored, though not for long unless a lease is asked for it.
    Stored {
        /// Request id.
        request: u32,
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
    /// This is the digest of my roster.
    Roster {
        /// See [`crate::keys::Roster::digest`].
        digest: [u8; 32],
    },
    /// Answer to ROSTER where the digests differ: these statements are in mine.
    Known {
        /// Their names, at most [`STATEMENTS_MAX`].
        ids: Vec<StatementId>,
    },
    /// Statements that you lack.
    Statements {
        /// Encoded, 1 to [`STATEMENTS_AT_ONCE`]; not verified yet.
        statements: Vec<Vec<u8>>,
    },
    /// This is the start I am in.
    Presence {
        /// An encoded [`crate::keys::Presence`], not verified yet.
        presence: Vec<u8>,
    },
    /// Answer to PRESENCE: this one was shown here before, and does not go with it.
    Seen {
        /// As above.
        presence: Vec<u8>,
    },
    /// I lack keys that my role allows.
    KeysWanted {
        /// The newest epoch whose secret I have; 0: none.
        newest: u32,
        /// Whether I am an admin without the root secret.
        root: bool,
    },
    /// Answer to KEYS_WANTED.
    Keys {
        /// What a new member of that role would be given, at most [`PAYLOAD_MAX`] bytes.
        gift: Gift,
    },
    /// I have these files.
    Provide {
        /// Their roots, 1 to [`BATCH`].
        roots: Vec<[u8; 32]>,
    },
    /// Somebody wants blocks.
    Find(Box<Find>),
    /// Answer to FIND, on a stream of the answerer: I have these.
    Found {
        /// The search.
        search: [u8; 16],
        /// The blocks.
        ids: Vec<BlockId>,
    },
    /// What the sender tells of heads.
    Heads(HeadNews),
    /// A message of the sender's replication to ours.
    Say {
        /// Request id.
        request: u32,
        /// At most [`SAY_MAX`] bytes.
        body: Bytes,
    },
    /// Answer to SAY.
    Said {
        /// Request id.
        request: u32,
        /// At most [`SAID_MAX`] bytes.
        body: Bytes,
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
            MISSING | CANCEL | STORED => 4,
            PUT => 4 + 32 + BLOCK_MAX,
            BUSY => 8,
            ERROR => 4 + 2 + 2 + TEXT_MAX,
            CREDIT => 4,
            SPENT => 16 + 8 + 32,
            ROSTER => 32,
            KNOWN => 2 + STATEMENTS_MAX * 16,
            STATEMENTS => 2 + STATEMENTS_AT_ONCE * (2 + STATEMENT_MAX),
            PRESENCE | SEEN => 2 + PRESENCE_MAX,
            KEYS_WANTED => 4 + 1,
            KEYS => 4 + PAYLOAD_MAX,
            SAY => 4 + SAY_MAX,
            SAID => 4 + SAID_MAX,
            PROVIDE => 2 + BATCH * 32,
            FIND => FIND_MAX,
            FOUND => 16 + 2 + IDS_MAX * 32,
            HEADS => HEAD_NEWS_MAX,
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
            STORED => Self::Stored { request: r.u32()? },
            SAY | SAID => {
                let request = r.u32()?;
                let said = body.slice(body.len() - r.remaining()..);
                r.take(said.len())?;
                match head.kind {
                    SAY => Self::Say { request, body: said },
                    _ => Self::Said { request, body: said },
                }
            }
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
            ROSTER => Self::Roster { digest: r.array()? },
            KNOWN => {
                let count = usize::from(r.u16()?);
                if count > STATEMENTS_MAX {
                    return Err(DecodeError::Invalid("more statements than a roster holds"));
                }
                let ids = (0..count).map(|_| r.array().map(StatementId));
                Self::Known {
                    ids: ids.collect::<Result<_, _>>()?,
                }
            }
            STATEMENTS => {
                let count = usize::from(r.u16()?);
                if count == 0 || count > STATEMENTS_AT_ONCE {
                    return Err(DecodeError::Invalid("no statement or too many"));
                }
                let statements = (0..count).map(|_| r.bytes16(STATEMENT_MAX).map(<[u8]>::to_vec));
                Self::Statements {
                    statements: statements.collect::<Result<_, _>>()?,
                }
            }
            PROVIDE => {
                let count = usize::from(r.u16()?);
                if count == 0 || count > BATCH {
                    return Err(DecodeError::Invalid("no file or too many"));
                }
                let roots = (0..count).map(|_| r.array()).collect::<Result<_, _>>()?;
                Self::Provide { roots }
            }
            FIND => Self::Find(Box::new(Find::decode(&mut r)?)),
            FOUND => Self::Found {
                search: r.array()?,
                ids: decode_ids(&mut r)?,
            },
            HEADS => Self::Heads(HeadNews::decode(&mut r)?),
            PRESENCE => Self::Presence {
                presence: r.bytes16(PRESENCE_MAX)?.to_vec(),
            },
            SEEN => Self::Seen {
                presence: r.bytes16(PRESENCE_MAX)?.to_vec(),
            },
            KEYS_WANTED => Self::KeysWanted {
                newest: r.u32()?,
                root: match r.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError::Invalid("a flag that is neither 0 nor 1")),
                },
            },
            KEYS => Self::Keys {
                gift: Gift(Zeroizing::new(r.bytes32(PAYLOAD_MAX)?.to_vec())),
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
            Self::Stored { request } => {
                w.u32(*request);
                STORED
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
            Self::Roster { digest } => {
                w.raw(digest);
                ROSTER
            }
            Self::Known { ids } => {
                w.u16(ids.len() as u16);
                for id in ids {
                    w.raw(&id.0);
                }
                KNOWN
            }
            Self::Statements { statements } => {
                w.u16(statements.len() as u16);
                for statement in statements {
                    w.bytes16(statement);
                }
                STATEMENTS
            }
            Self::Provide { roots } => {
                w.u16(roots.len() as u16);
                for root in roots {
                    w.raw(root);
                }
                PROVIDE
            }
            Self::Find(find) => {
                find.encode(&mut w);
                FIND
            }
            Self::Found { search, ids } => {
                w.raw(search);
                encode_ids(ids, &mut w);
                FOUND
            }
            Self::Heads(news) => {
                news.encode(&mut w);
                HEADS
            }
            Self::Presence { presence } => {
                w.bytes16(presence);
                PRESENCE
            }
            Self::Seen { presence } => {
                w.bytes16(presence);
                SEEN
            }
            Self::KeysWanted { newest, root } => {
                w.u32(*newest).u8(u8::from(*root));
                KEYS_WANTED
            }
            Self::Keys { gift } => {
                w.bytes32(&gift.0);
                KEYS
            }
            Self::Say { request, body } => {
                w.u32(*request);
                tail = Some(body);
                SAY
            }
            Self::Said { request, body } => {
                w.u32(*request);
                tail = Some(body);
                SAID
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
#[path = "frame_tests.rs"]
mod tests;
