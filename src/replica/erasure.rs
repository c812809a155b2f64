//! Erasure coding, pure: a group of `data` blocks becomes `data + parity` shards, any `data` of which give all blocks back.
//!
//! Invariant: what [`restore`] returns was checked against the ids in the [`Group`]; the data shards are the blocks themselves, so that a
//! reader who reaches them needs no arithmetic. A parity shard is a block like any other: its id is the BLAKE3 of its bytes, and leases,
//! receipts, audits and collection do not know it from others. The record of a group is described in `docs/replication.md`.
//!
//! Reed-Solomon over GF(2^16), crate `reed-solomon-simd` (Lin, Al-Naffouri, Han, Chung, "Novel polynomial basis with fast Fourier
//! transform and its application to Reed-Solomon erasure codes", IEEE Trans. Inf. Theory 2016).

use bytes::Bytes;

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::BLOCK_MAX;

/// Most shards of one kind in a group.
pub const SHARDS_MAX: usize = 32;

/// Longest record, in bytes.
pub const RECORD_MAX: usize = 7 + SHARDS_MAX * (36 + 32);

const MAGIC: &[u8; 4] = b"dfsE";
const VERSION: u8 = 1;

/// Why shards cannot be made or blocks not be had back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// Too few or too many shards, or an empty or too long block.
    #[error("a group needs 1 to 32 blocks of 1 to {BLOCK_MAX} bytes, and 1 to 32 parity shards")]
    Shape,
    /// Fewer shards are there than the group has blocks.
    #[error("{have} shards of the group are there, {need} are needed")]
    TooFew {
        /// Right ones among those given.
        have: usize,
        /// Needed.
        need: usize,
    },
    /// The group's parity does not belong to its blocks.
    #[error("the group's record does not fit its shards")]
    Inconsistent,
}

/// What has to be known to get the blocks of a group back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Id and length of each block, in their order.
    pub data: Vec<(BlockId, u32)>,
    /// Ids of the parity shards, in their order.
    pub parity: Vec<BlockId>,
}

impl Group {
    /// Length of a parity shard, in bytes: that of the longest block, made even as the code wants it.
    pub fn shard_len(&self) -> usize {
        let longest = self.data.iter().map(|(_, len)| *len as usize).max().unwrap_or(0);
        longest.next_multiple_of(2)
    }

    /// Whether no shard stands for two.
    pub fn is_distinct(&self) -> bool {
        let all: std::collections::BTreeSet<&BlockId> = self.ids().collect();
        all.len() == self.data.len() + self.parity.len()
    }

    /// Every id, data first.
    pub fn ids(&self) -> impl Iterator<Item = &BlockId> {
        self.data.iter().map(|(id, _)| id).chain(&self.parity)
    }

    /// Length of the binary form, in bytes.
    pub fn encoded_len(&self) -> usize {
        7 + 36 * self.data.len() + 32 * self.parity.len()
    }

    /// Binary form: magic, version, counts, then ids and lengths.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(8 + 36 * self.data.len() + 32 * self.parity.len());
        w.raw(MAGIC).u8(VERSION);
        w.u8(self.data.len() as u8).u8(self.parity.len() as u8);
        for (id, len) in &self.data {
            w.raw(id.as_bytes()).u32(*len);
        }
        for id in &self.parity {
            w.raw(id.as_bytes());
        }
        w.into_vec()
    }

    /// Reads the binary form.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a shard group of a known version"));
        }
        let (data, parity) = (usize::from(r.u8()?), usize::from(r.u8()?));
        if !(1..=SHARDS_MAX).contains(&data) || !(1..=SHARDS_MAX).contains(&parity) {
            return Err(DecodeError::Invalid("a shard group of impossible size"));
        }
        let mut group = Self {
            data: Vec::with_capacity(data),
            parity: Vec::with_capacity(parity),
        };
        for _ in 0..data {
            let (id, len) = (BlockId(r.array()?), r.u32()?);
            if len == 0 || len as usize > BLOCK_MAX {
                return Err(DecodeError::Invalid(
                    "a block of impossible length in a shard group",
                ));
            }
            group.data.push((id, len));
        }
        for _ in 0..parity {
            group.parity.push(BlockId(r.array()?));
        }
        r.finish()?;
        Ok(group)
    }
}

fn padded(block: &[u8], len: usize) -> Vec<u8> {
    let mut shard = block.to_vec();
    shard.resize(len, 0);
    shard
}

/// The parity shards of these blocks, and the record of the group.
pub fn protect(blocks: &[Bytes], parity: usize) -> Result<(Group, Vec<Bytes>), ErasureError> {
    let sizes = 1..=SHARDS_MAX;
    let fits = |block: &Bytes| !block.is_empty() && block.len() <= BLOCK_MAX;
    if !sizes.contains(&blocks.len()) || !sizes.contains(&parity) || !blocks.iter().all(fits) {
        return Err(ErasureError::Shape);
    }
    let mut group = Group {
        data: blocks
            .iter()
            .map(|block| (BlockId::of(block), block.len() as u32))
            .collect(),
        parity: Vec::new(),
    };
    let len = group.shard_len();
    let shards = blocks.iter().map(|block| padded(block, len));
    let made = reed_solomon_simd::encode(blocks.len(), parity, shards).map_err(|_| ErasureError::Shape)?;
    let made: Vec<Bytes> = made.into_iter().map(Bytes::from).collect();
    group.parity = made.iter().map(|shard| BlockId::of(shard)).collect();
    Ok((group, made))
}

/// All shards of a group, data first, from those that are there. Wrong ones are taken for missing.
///
/// # Errors
/// [`ErasureError::TooFew`] when fewer right ones are there than the group has blocks.
pub fn restore(group: &Group, shards: &[Bytes]) -> Result<Vec<Bytes>, ErasureError> {
    let (k, m, len) = (group.data.len(), group.parity.len(), group.shard_len());
    let mut found: Vec<Option<Bytes>> = vec![None; k + m];
    for shard in shards {
        let id = BlockId::of(shard);
        // Equal blocks of one group have one id and stand in for each other.
        for (at, _) in group.ids().enumerate().filter(|(_, wanted)| **wanted == id) {
            found[at] = Some(shard.clone());
        }
    }
    let have = found.iter().flatten().count();
    let fits = |at: usize, shard: &Bytes| match group.data.get(at) {
        Some((_, block_len)) => shard.len() == *block_len as usize,
        None => shard.len() == len,
    };
    if found
        .iter()
        .enumerate()
        .any(|(at, shard)| shard.as_ref().is_some_and(|s| !fits(at, s)))
    {
        return Err(ErasureError::Inconsistent);
    }
    if have < k {
        return Err(ErasureError::TooFew { have, need: k });
    }
    if found[..k].iter().any(Option::is_none) {
        let there = |range: std::ops::Range<usize>, first: usize| {
            let found = &found;
            range.filter_map(move |at| Some((at - first, padded(found[at].as_ref()?, len))))
        };
        let mut restored = reed_solomon_simd::decode(k, m, there(0..k, 0), there(k..k + m, k))
            .map_err(|_| ErasureError::Inconsistent)?;
        for (at, (id, block_len)) in group.data.iter().enumerate() {
            if found[at].is_none() {
                let mut shard = restored.remove(&at).ok_or(ErasureError::Inconsistent)?;
                shard.truncate(*block_len as usize);
                if !id.matches(&shard) {
                    return Err(ErasureError::Inconsistent);
                }
                found[at] = Some(shard.into());
            }
        }
    }
    let data: Vec<Bytes> = found.drain(..k).flatten().collect();
    if found.iter().any(Option::is_none) {
        let (again, made) = protect(&data, m)?;
        if again != *group {
            return Err(ErasureError::Inconsistent);
        }
        return Ok(data.into_iter().chain(made).collect());
    }
    Ok(data.into_iter().chain(found.into_iter().flatten()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(seed: u64, len: usize) -> Bytes {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes.into()
    }

    #[test]
    fn any_four_of_four_and_two_give_everything_back() {
        let blocks: Vec<Bytes> = [5000, 1, 300_000, 4097]
            .iter()
            .zip(0..)
            .map(|(len, seed)| block(seed, *len))
            .collect();
        let (group, parity) = protect(&blocks, 2).unwrap();
        assert_eq!(group.shard_len(), 300_000);
        let all: Vec<Bytes> = blocks.iter().chain(&parity).cloned().collect();
        for a in 0..6 {
            for b in 0..a {
                let left: Vec<Bytes> = all
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| ![a, b].contains(n))
                    .map(|(_, s)| s.clone())
                    .collect();
                assert_eq!(restore(&group, &left).unwrap(), all);
                assert_eq!(
                    restore(&group, &left[1..]),
                    Err(ErasureError::TooFew { have: 3, need: 4 })
                );
            }
        }
    }

    #[test]
    fn wrong_shards_are_taken_for_missing() {
        let blocks: Vec<Bytes> = (0..3).map(|n| block(n, 1000)).collect();
        let (group, parity) = protect(&blocks, 2).unwrap();
        let wrong = block(9, 1000);
        let given = [
            wrong.clone(),
            blocks[1].clone(),
            wrong,
            parity[0].clone(),
            parity[1].clone(),
        ];
        assert_eq!(restore(&group, &given).unwrap()[..3], blocks);
    }

    #[test]
    fn a_record_that_does_not_fit_is_an_error() {
        let blocks: Vec<Bytes> = (0..2).map(|n| block(n, 1000)).collect();
        let (group, parity) = protect(&blocks, 1).unwrap();
        let (_, strange) = protect(&[block(7, 1000), block(8, 1000)], 1).unwrap();
        let mut mixed = group.clone();
        mixed.parity[0] = BlockId::of(&strange[0]);
        assert_eq!(
            restore(&mixed, &[blocks[0].clone(), strange[0].clone()]),
            Err(ErasureError::Inconsistent)
        );
        assert_eq!(restore(&mixed, &blocks), Err(ErasureError::Inconsistent));
        let mut short = group;
        short.data[0].1 = 999;
        assert_eq!(
            restore(&short, &[blocks[0].clone(), parity[0].clone()]),
            Err(ErasureError::Inconsistent)
        );
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let group = Group {
            data: vec![(BlockId([1; 32]), 100), (BlockId([2; 32]), 65_537)],
            parity: vec![BlockId([3; 32])],
        };
        let bytes = group.encode();
        assert_eq!(bytes.len(), 7 + 2 * 36 + 32);
        assert_eq!(&bytes[..7], b"dfsE\x01\x02\x01");
        assert_eq!(Group::decode(&bytes), Ok(group));
    }

    proptest! {
        #[test]
        fn what_is_left_is_enough(lens in prop::collection::vec(1_usize..3000, 1..8), parity in 1_usize..5, seed in any::<u64>()) {
            let blocks: Vec<Bytes> = lens.iter().zip(seed & 0xffff_ffff..).map(|(len, n)| block(n, *len)).collect();
            let (group, made) = protect(&blocks, parity).unwrap();
            let all: Vec<Bytes> = blocks.iter().chain(&made).cloned().collect();
            let mut left = all.clone();
            for n in 0..parity {
                left.remove((seed >> (8 * n)) as usize % left.len());
            }
            prop_assert_eq!(restore(&group, &left).unwrap(), all);
            prop_assert_eq!(Group::decode(&group.encode()).unwrap(), group);
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Group::decode(&bytes);
            bytes.splice(0..0, *b"dfsE\x01");
            if let Ok(group) = Group::decode(&bytes) {
                prop_assert_eq!(group.encode(), bytes);
            }
        }
    }
}
