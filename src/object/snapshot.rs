//! A snapshot: what a volume's tree was, and what it was made from. Sealed and stored as one block, whose id is the snapshot's.
//!
//! Invariant: what decodes encodes to the same bytes, and a merge says nothing of who made it or when, so that whoever merges the same makes the
//! same. Layout in `docs/format.md`. Called by `sync`.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::SNAPSHOT_PARENTS_MAX;
use crate::base::types::Timestamp;
use crate::base::{BlockId, DeviceId};

use super::map::Root;

const MAGIC: [u8; 4] = *b"dfss";
const VERSION: u8 = 1;

/// A commit of the volume's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The snapshots that it was made from, in strictly ascending order: none of the first, two of a merge. At most `SNAPSHOT_PARENTS_MAX`.
    pub parents: Vec<BlockId>,
    /// The tree.
    pub root: Root,
    /// Who made it; `None` of a merge, which anyone makes alike.
    pub made: Option<Made>,
}

/// Who made a snapshot, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The device.
    pub device: DeviceId,
    /// Counts the snapshots of the device.
    pub seq: u64,
    /// The newest epoch that the device had a key of.
    pub epoch: u32,
    /// The device's clock. Shown, never relied on.
    pub time: Timestamp,
}

impl Snapshot {
    /// The plaintext of the snapshot's block.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(self.parents.len() <= SNAPSHOT_PARENTS_MAX && self.parents.is_sorted());
        let mut writer = Writer::default();
        writer.raw(&MAGIC).u8(VERSION).u8(self.parents.len() as u8);
        writer.u8(u8::from(self.made.is_some())).u8(0);
        self.parents.iter().for_each(|id| {
            writer.raw(id.as_bytes());
        });
        self.root.encode(&mut writer);
        if let Some(made) = &self.made {
            writer.raw(made.device.as_bytes()).u64(made.seq).u32(made.epoch);
            writer.u64(made.time.secs as u64).u32(made.time.nanos);
        }
        writer.into_vec()
    }

    /// What `encode` wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != MAGIC {
            return Err(DecodeError::Invalid("not a snapshot"));
        }
        if reader.u8()? != VERSION {
            return Err(DecodeError::Invalid("a snapshot of a newer dfs: update it"));
        }
        let (count, has_made) = (usize::from(reader.u8()?), reader.u8()?);
        if count > SNAPSHOT_PARENTS_MAX || has_made > 1 || reader.u8()? != 0 {
            return Err(DecodeError::Invalid("a snapshot of an unknown kind"));
        }
        let mut parents: Vec<BlockId> = Vec::with_capacity(count);
        for _ in 0..count {
            let id = BlockId(reader.array()?);
            if parents.last().is_some_and(|last| *last >= id) {
                return Err(DecodeError::Invalid("the parents of a snapshot are not in order"));
            }
            parents.push(id);
        }
        let root = Root::decode(&mut reader)?;
        let made = match has_made {
            0 => None,
            _ => Some(Made::decode(&mut reader)?),
        };
        reader.finish()?;
        Ok(Self { parents, root, made })
    }
}

impl Made {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let made = Self {
            device: DeviceId(reader.array()?),
            seq: reader.u64()?,
            epoch: reader.u32()?,
            time: Timestamp {
                secs: reader.u64()? as i64,
                nanos: reader.u32()?,
            },
        };
        if made.time.nanos >= 1_000_000_000 {
            return Err(DecodeError::Invalid(
                "a time with more than a second of nanoseconds",
            ));
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshots() -> Vec<Snapshot> {
        let root = Root {
            id: Some(BlockId([3; 32])),
            depth: 2,
            len: 1000,
        };
        let made = Made {
            device: DeviceId([4; 32]),
            seq: 5,
            epoch: 6,
            time: Timestamp {
                secs: -7,
                nanos: 999_999_999,
            },
        };
        let first = Snapshot {
            parents: vec![],
            root: Root::EMPTY,
            made: Some(made),
        };
        let merge = Snapshot {
            parents: vec![BlockId([1; 32]), BlockId([2; 32])],
            root,
            made: None,
        };
        vec![first, merge]
    }

    #[test]
    fn snapshots_round_trip_and_nothing_shorter_or_longer_is_one() {
        for snapshot in snapshots() {
            let bytes = snapshot.encode();
            assert_eq!(Snapshot::decode(&bytes), Ok(snapshot));
            for len in 0..bytes.len() {
                assert!(Snapshot::decode(&bytes[..len]).is_err());
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Snapshot::decode(&longer), Err(DecodeError::TrailingBytes(1)));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let [_, merge] = &snapshots()[..] else {
            panic!("two")
        };
        let with = |at: usize, byte: u8| {
            let mut bytes = merge.encode();
            bytes[at] = byte;
            Snapshot::decode(&bytes)
        };
        let root = 8 + 2 * 32;
        // Magic, version, number of parents, presence, reserved, order of the parents, depth, an empty map with a node.
        for (at, byte) in [(0, 0), (4, 2), (5, 9), (6, 2), (7, 1), (8, 3), (root, 17)] {
            assert!(
                matches!(with(at, byte), Err(DecodeError::Invalid(_))),
                "byte {at}"
            );
        }
        let mut bytes = merge.encode();
        bytes[root + 1..root + 9].fill(0);
        assert!(matches!(Snapshot::decode(&bytes), Err(DecodeError::Invalid(_))));
        let mut late = snapshots()[0].clone();
        late.made = late.made.map(|made| Made {
            time: Timestamp {
                secs: 0,
                nanos: 1_000_000_000,
            },
            ..made
        });
        assert!(matches!(
            Snapshot::decode(&late.encode()),
            Err(DecodeError::Invalid(_))
        ));
    }
}
