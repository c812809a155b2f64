//! What two members tell each other of heads: the body of the frame HEADS. Pure; described in `docs/protocol.md`.

use crate::base::DeviceId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::head::HEAD_LEN;
use crate::keys::roster::STATEMENTS_MAX;

/// Most heads in one message.
pub const HEADS_AT_ONCE: usize = 64;
/// Most heads that can be known: there are no more members.
const PLACES_MAX: usize = STATEMENTS_MAX;
const PLACE_LEN: usize = 32 + 8 + 32;
/// Longest message, in bytes.
pub(super) const HEAD_NEWS_MAX: usize = 1 + 2 + PLACES_MAX * PLACE_LEN;

const DIGEST: u8 = 1;
const KNOWN: u8 = 2;
const NEWER: u8 = 3;

/// Which head of a device somebody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device.
    pub device: DeviceId,
    /// The head's number.
    pub seq: u64,
    /// The head's hash.
    pub hash: [u8; 32],
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadNews {
    /// This is the digest of the heads that I know.
    Digest([u8; 32]),
    /// Answer to that where the digests differ: I know these, at most one of each member.
    Known(Vec<Place>),
    /// Heads that you lack, 1 to [`HEADS_AT_ONCE`], encoded; not verified yet.
    Newer(Vec<[u8; HEAD_LEN]>),
}

impl HeadNews {
    /// Reads a message.
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            DIGEST => Self::Digest(r.array()?),
            KNOWN => {
                let count = usize::from(r.u16()?);
                if count > PLACES_MAX {
                    return Err(DecodeError::Invalid("more heads than there can be members"));
                }
                let mut places = Vec::with_capacity(count);
                for _ in 0..count {
                    let (device, seq) = (DeviceId(r.array()?), r.u64()?);
                    let hash = r.array()?;
                    places.push(Place { device, seq, hash });
                }
                Self::Known(places)
            }
            NEWER => {
                let count = usize::from(r.u16()?);
                if count == 0 || count > HEADS_AT_ONCE {
                    return Err(DecodeError::Invalid("no head or too many"));
                }
                Self::Newer((0..count).map(|_| r.array()).collect::<Result<_, _>>()?)
            }
            _ => return Err(DecodeError::Invalid("unknown kind of message about heads")),
        })
    }

    /// Writes a message.
    pub(super) fn encode(&self, w: &mut Writer) {
        match self {
            Self::Digest(digest) => drop(w.u8(DIGEST).raw(digest)),
            Self::Known(places) => {
                w.u8(KNOWN).u16(places.len() as u16);
                for place in places {
                    w.raw(place.device.as_bytes()).u64(place.seq).raw(&place.hash);
                }
            }
            Self::Newer(heads) => {
                w.u8(NEWER).u16(heads.len() as u16);
                for head in heads {
                    w.raw(head);
                }
            }
        }
    }
}
