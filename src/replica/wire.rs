//! Requests and answers as bytes: what one device's replication says to another's. Pure; described in `docs/protocol.md`.
//!
//! Invariant: decoding is bounded by [`BODY_MAX`] and takes nothing that was not written by encoding; whoever decodes checks signatures,
//! proofs and slices before the machine hears of them. The network carries bodies without looking into them.

use crate::base::BlockId;
use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::{DeviceKey, verify};

use std::sync::Arc;

use super::erasure::Group;
use super::erasure::RECORD_MAX;
use super::message::{Outcome, Request, Slice};
use super::rules::BLOCKS_MAX;
use super::slice::SLICE_MAX;

/// Most slices in one audit.
pub const SLICES_MAX: usize = 64;

/// Longest body, in bytes: the answer to the longest audit.
pub const BODY_MAX: usize = 16 + SLICES_MAX * (2 + SLICE_MAX);

/// Longest name of a failure zone, in bytes.
pub const ZONE_MAX: usize = 128;

const CONTEXT: &[u8] = b"dfs receipt v2\0";

const PROFILE: u8 = 1;
const PUT: u8 = 2;
const LEASE: u8 = 3;
const RELEASE: u8 = 4;
const AUDIT: u8 = 5;
const MOVE: u8 = 6;
const SHARDS: u8 = 7;
const WHICH: u8 = 8;

const NOTED: u8 = 1;
const LEASED: u8 = 2;
const RELEASED: u8 = 3;
const SLICES: u8 = 4;
const BUSY: u8 = 5;
const GROUPS: u8 = 6;

/// Longest message with shards, in bytes: what one of the network carries, see `node::frame`.
pub(super) const SHARDS_BODY_MAX: usize = 16 << 10;

/// Most groups in the answer to WHICH.
pub const GROUPS_MAX: usize = 16;

/// How many shards of groups like this one go into a message.
pub fn shards_max(group: &Group) -> usize {
    (SHARDS_BODY_MAX - 12) / (32 + 2 + group.encoded_len())
}

/// What a device says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// What it offers the group; said first on every connection.
    Profile {
        /// Bytes that it keeps for others.
        quota: u64,
        /// Its failure zone.
        zone: String,
    },
    /// A request of its machine.
    Request(Request),
    /// In which groups is this block?
    Which(BlockId),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Taken note of: to a profile and to MOVE.
    Noted,
    /// To PUT and LEASE.
    Leased(Receipt),
    /// To RELEASE.
    Released {
        /// Number of the request.
        seq: u64,
    },
    /// To AUDIT: the slices in the order in which they were asked for; an empty one says that the block is not here.
    Slices {
        /// Number of the request.
        seq: u64,
        /// The slices, with their proofs.
        slices: Vec<Vec<u8>>,
    },
    /// Not now.
    Busy {
        /// Number of the request.
        seq: u64,
        /// When to ask again, in milliseconds.
        retry_ms: u64,
    },
    /// To WHICH: records of groups. Only what is made with them tells whether they are right.
    Groups(Vec<Group>),
}

/// A holder's signed word on which blocks of a request it keeps, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Public key of the device that holds.
    pub holder: [u8; 32],
    /// Public key of the device that it holds for.
    pub owner: [u8; 32],
    /// Number of the owner's request.
    pub seq: u64,
    /// When it was given, by the holder's wall.
    pub issued: UnixSecs,
    /// How long each lease is, in seconds of the clock that the holder keeps for the owner.
    pub term_secs: u64,
    /// For each block what came of it and, if the request held a challenge, the proof.
    pub outcomes: Vec<(BlockId, Outcome, Option<[u8; 32]>)>,
    signature: [u8; 64],
}

impl Receipt {
    /// Signs what is granted, which is on the disk.
    pub fn sign(
        key: &DeviceKey,
        owner: [u8; 32],
        seq: u64,
        issued: UnixSecs,
        term_secs: u64,
        outcomes: Vec<(BlockId, Outcome, Option<[u8; 32]>)>,
    ) -> Self {
        let mut receipt = Self {
            holder: key.public(),
            owner,
            seq,
            issued,
            term_secs,
            outcomes,
            signature: [0; 64],
        };
        receipt.signature = key.sign(&receipt.signed_bytes());
        receipt
    }

    /// Whether the device with this public key signed it for that one.
    pub fn verify(&self, holder: &[u8; 32], owner: &[u8; 32]) -> bool {
        self.holder == *holder
            && self.owner == *owner
            && verify(holder, &self.signed_bytes(), &self.signature)
    }

    fn body(&self, w: &mut Writer) {
        w.raw(&self.holder)
            .raw(&self.owner)
            .u64(self.seq)
            .u64(self.issued)
            .u64(self.term_secs)
            .u16(self.outcomes.len() as u16);
        for (block, outcome, proof) in &self.outcomes {
            w.raw(block.as_bytes())
                .u8(outcome_byte(*outcome))
                .u8(u8::from(proof.is_some()));
            if let Some(proof) = proof {
                w.raw(proof);
            }
        }
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(128 + 66 * self.outcomes.len());
        w.raw(CONTEXT);
        self.body(&mut w);
        w.into_vec()
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (holder, owner) = (r.array()?, r.array()?);
        let (seq, issued, term_secs) = (r.u64()?, r.u64()?, r.u64()?);
        let count = bounded(r.u16()?, BLOCKS_MAX)?;
        let mut outcomes = Vec::with_capacity(count);
        for _ in 0..count {
            let block = BlockId(r.array()?);
            let outcome = outcome_of(r.u8()?)?;
            let proof = match r.u8()? {
                0 => None,
                1 => Some(r.array()?),
                _ => return Err(DecodeError::Invalid("neither a proof nor none")),
            };
            outcomes.push((block, outcome, proof));
        }
        Ok(Self {
            holder,
            owner,
            seq,
            issued,
            term_secs,
            outcomes,
            signature: r.array()?,
        })
    }
}

impl Said {
    /// Binary form.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(64);
        match self {
            Self::Profile { quota, zone } => {
                w.u8(PROFILE).u64(*quota).bytes16(zone.as_bytes());
            }
            Self::Request(Request::Put { seq, blocks }) => {
                w.u8(PUT).u64(*seq);
                ids(&mut w, blocks);
            }
            Self::Request(Request::Lease {
                seq,
                blocks,
                challenge,
            }) => {
                w.u8(LEASE).u64(*seq).u8(u8::from(challenge.is_some()));
                w.raw(challenge.as_ref().map_or(&[], |bytes| &bytes[..]));
                ids(&mut w, blocks);
            }
            Self::Request(Request::Release { seq, blocks }) => {
                w.u8(RELEASE).u64(*seq);
                ids(&mut w, blocks);
            }
            Self::Request(Request::Audit { seq, slices }) => {
                w.u8(AUDIT).u64(*seq).u16(slices.len() as u16);
                for slice in slices {
                    w.raw(slice.block.as_bytes()).u64(slice.offset);
                }
            }
            Self::Request(Request::Move { blocks }) => {
                w.u8(MOVE);
                ids(&mut w, blocks);
            }
            Self::Request(Request::Shards { seq, shards, sent }) => {
                w.u8(SHARDS)
                    .u64(*seq)
                    .u8(u8::from(*sent))
                    .u16(shards.len() as u16);
                for (block, group) in shards {
                    w.raw(block.as_bytes()).bytes16(&group.encode());
                }
            }
            Self::Which(block) => {
                w.u8(WHICH).raw(block.as_bytes());
            }
        }
        w.into_vec()
    }

    /// Reads the binary form.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let said = match r.u8()? {
            PROFILE => Self::Profile {
                quota: r.u64()?,
                zone: String::from_utf8(r.bytes16(ZONE_MAX)?.to_vec())
                    .map_err(|_| DecodeError::Invalid("the name of a zone is not UTF-8"))?,
            },
            PUT => Self::Request(Request::Put {
                seq: r.u64()?,
                blocks: read_ids(&mut r)?,
            }),
            LEASE => {
                let seq = r.u64()?;
                let challenge = match r.u8()? {
                    0 => None,
                    1 => Some(r.array()?),
                    _ => return Err(DecodeError::Invalid("neither a challenge nor none")),
                };
                let blocks = read_ids(&mut r)?;
                Self::Request(Request::Lease {
                    seq,
                    blocks,
                    challenge,
                })
            }
            RELEASE => Self::Request(Request::Release {
                seq: r.u64()?,
                blocks: read_ids(&mut r)?,
            }),
            AUDIT => {
                let seq = r.u64()?;
                let count = bounded(r.u16()?, SLICES_MAX)?;
                let slices = (0..count).map(|_| {
                    Ok(Slice {
                        block: BlockId(r.array()?),
                        offset: r.u64()?,
                    })
                });
                let slices = slices.collect::<Result<_, DecodeError>>()?;
                Self::Request(Request::Audit { seq, slices })
            }
            MOVE => Self::Request(Request::Move {
                blocks: read_ids(&mut r)?,
            }),
            SHARDS => {
                let seq = r.u64()?;
                let sent = match r.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError::Invalid("neither sent nor not")),
                };
                let count = bounded(r.u16()?, BLOCKS_MAX)?;
                let shards = (0..count).map(|_| {
                    let block = BlockId(r.array()?);
                    let group = Group::decode(r.bytes16(RECORD_MAX)?)?;
                    if !group.ids().any(|id| *id == block) {
                        return Err(DecodeError::Invalid("the record is of another shard"));
                    }
                    Ok((block, Arc::new(group)))
                });
                let shards = shards.collect::<Result<_, DecodeError>>()?;
                Self::Request(Request::Shards { seq, shards, sent })
            }
            WHICH => Self::Which(BlockId(r.array()?)),
            _ => return Err(DecodeError::Invalid("unknown request")),
        };
        r.finish()?;
        Ok(said)
    }
}

impl Told {
    /// Binary form.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(64);
        match self {
            Self::Noted => {
                w.u8(NOTED);
            }
            Self::Leased(receipt) => {
                w.u8(LEASED);
                receipt.body(&mut w);
                w.raw(&receipt.signature);
            }
            Self::Released { seq } => {
                w.u8(RELEASED).u64(*seq);
            }
            Self::Slices { seq, slices } => {
                w.u8(SLICES).u64(*seq).u16(slices.len() as u16);
                for slice in slices {
                    w.bytes16(slice);
                }
            }
            Self::Busy { seq, retry_ms } => {
                w.u8(BUSY).u64(*seq).u64(*retry_ms);
            }
            Self::Groups(groups) => {
                w.u8(GROUPS).u16(groups.len() as u16);
                for group in groups {
                    w.bytes16(&group.encode());
                }
            }
        }
        w.into_vec()
    }

    /// Reads the binary form. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let told = match r.u8()? {
            NOTED => Self::Noted,
            LEASED => Self::Leased(Receipt::decode(&mut r)?),
            RELEASED => Self::Released { seq: r.u64()? },
            SLICES => {
                let seq = r.u64()?;
                let count = bounded(r.u16()?, SLICES_MAX)?;
                let slices = (0..count).map(|_| r.bytes16(SLICE_MAX).map(<[u8]>::to_vec));
                let slices = slices.collect::<Result<_, _>>()?;
                Self::Slices { seq, slices }
            }
            BUSY => Self::Busy {
                seq: r.u64()?,
                retry_ms: r.u64()?,
            },
            GROUPS => {
                let count = bounded(r.u16()?, GROUPS_MAX)?;
                let groups = (0..count).map(|_| Group::decode(r.bytes16(RECORD_MAX)?));
                Self::Groups(groups.collect::<Result<_, _>>()?)
            }
            _ => return Err(DecodeError::Invalid("unknown answer")),
        };
        r.finish()?;
        Ok(told)
    }
}

fn ids(w: &mut Writer, blocks: &[BlockId]) {
    w.u16(blocks.len() as u16);
    for block in blocks {
        w.raw(block.as_bytes());
    }
}

fn read_ids(r: &mut Reader<'_>) -> Result<Vec<BlockId>, DecodeError> {
    let count = bounded(r.u16()?, BLOCKS_MAX)?;
    (0..count).map(|_| r.array().map(BlockId)).collect()
}

fn bounded(count: u16, max: usize) -> Result<usize, DecodeError> {
    match usize::from(count) {
        count if count <= max => Ok(count),
        _ => Err(DecodeError::Invalid("more than one message holds")),
    }
}

fn outcome_byte(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Granted => 1,
        Outcome::Absent | Outcome::Unproven => 2,
        Outcome::Dropping => 3,
        Outcome::Full => 4,
    }
}

fn outcome_of(byte: u8) -> Result<Outcome, DecodeError> {
    match byte {
        1 => Ok(Outcome::Granted),
        2 => Ok(Outcome::Absent),
        3 => Ok(Outcome::Dropping),
        4 => Ok(Outcome::Full),
        _ => Err(DecodeError::Invalid("unknown outcome")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receipt() -> Receipt {
        let key = DeviceKey::from_bytes(&[1; 32]);
        let outcomes = vec![
            (BlockId([3; 32]), Outcome::Granted, Some([4; 32])),
            (BlockId([5; 32]), Outcome::Full, None),
        ];
        Receipt::sign(&key, [2; 32], 7, 8, 9, outcomes)
    }

    fn said() -> Vec<Said> {
        let blocks = vec![BlockId([1; 32]), BlockId([2; 32])];
        let slice = Slice {
            block: BlockId([1; 32]),
            offset: 3072,
        };
        vec![
            Said::Profile {
                quota: 5,
                zone: "Köln".into(),
            },
            Said::Request(Request::Put {
                seq: 1,
                blocks: blocks.clone(),
            }),
            Said::Request(Request::Lease {
                seq: 2,
                blocks: blocks.clone(),
                challenge: None,
            }),
            Said::Request(Request::Lease {
                seq: 3,
                blocks: blocks.clone(),
                challenge: Some([7; 32]),
            }),
            Said::Request(Request::Release {
                seq: 4,
                blocks: blocks.clone(),
            }),
            Said::Request(Request::Audit {
                seq: 5,
                slices: vec![slice],
            }),
            Said::Request(Request::Move { blocks }),
        ]
    }

    fn told() -> Vec<Told> {
        vec![
            Told::Noted,
            Told::Leased(receipt()),
            Told::Released { seq: 4 },
            Told::Slices {
                seq: 5,
                slices: vec![vec![1; 100], Vec::new()],
            },
            Told::Busy { seq: 6, retry_ms: 7 },
        ]
    }

    #[test]
    fn everything_comes_back_as_it_was() {
        for said in said() {
            assert_eq!(Said::decode(&said.encode()), Ok(said));
        }
        for told in told() {
            assert_eq!(Told::decode(&told.encode()), Ok(told));
        }
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let all: Vec<u8> = said()
            .iter()
            .flat_map(Said::encode)
            .chain(told().iter().flat_map(Told::encode))
            .collect();
        assert_eq!(
            blake3::hash(&all).to_hex().as_str(),
            "2724cc43f3ffc42a9f607d4cf62050132993c61738b46858b2975bff867ece43",
            "the messages of replication changed: raise the version of the protocol"
        );
    }

    #[test]
    fn a_receipt_is_of_its_holder_for_its_owner() {
        let (receipt, key) = (receipt(), DeviceKey::from_bytes(&[1; 32]));
        assert!(receipt.verify(&key.public(), &[2; 32]));
        assert!(!receipt.verify(&key.public(), &[3; 32]));
        assert!(!receipt.verify(&[2; 32], &[2; 32]));
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_never_believed(bit in 0usize..1000) {
            let mut bytes = Told::Leased(receipt()).encode();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let key = DeviceKey::from_bytes(&[1; 32]).public();
            let believed = matches!(Told::decode(&bytes), Ok(Told::Leased(receipt)) if receipt.verify(&key, &[2; 32]));
            prop_assert!(!believed);
        }

        #[test]
        fn what_is_decoded_encodes_to_the_same(kind in 0u8..10, mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            bytes.insert(0, kind);
            if let Ok(said) = Said::decode(&bytes) {
                prop_assert_eq!(said.encode(), bytes.clone());
            }
            if let Ok(told) = Told::decode(&bytes) {
                prop_assert_eq!(told.encode(), bytes);
            }
        }
    }
}
