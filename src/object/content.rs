//! A manifest's values, and what must be true of them. Encoded by `slot` and `index`; made and read by `volume`.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::{CHUNK_MAX, FILE_MAX, INDEX_DEPTH_MAX};
use crate::base::{BlockId, FileId, RootId, StoreId};

const ROOT_CONTEXT: &str = "dfs 2026 v1 file root";

/// A stretch of a file: one block, part of one, or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Plaintext bytes, more than zero; at most `CHUNK_MAX` where there is a block, at most `FILE_MAX` in a hole.
    pub len: u64,
    /// The block that holds them; `None`: they are zeros.
    pub block: Option<BlockId>,
    /// Bytes of the block's plaintext before them; zero in a hole.
    pub skip: u32,
    /// Length of the block's plaintext: `len`, or more for a part; zero in a hole.
    pub whole: u32,
}

/// An index block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRef {
    /// Plaintext bytes of the file below it, more than zero.
    pub len: u64,
    /// The block.
    pub id: BlockId,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Inline(Vec<u8>),
    /// In these blocks and holes, in the order of the file.
    Extents(Vec<Extent>),
    /// In what these index blocks list, in the order of the file.
    Index {
        /// 1: the blocks list extents; n: they list index blocks of depth n - 1. At most `INDEX_DEPTH_MAX`.
        depth: u8,
        /// At least one.
        refs: Vec<IndexRef>,
    },
}

/// One version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Follows the file through renames; a copied `.f` carries its original's.
    pub file_id: FileId,
    /// Counts the versions of the file: the slot with the higher one is newer.
    pub generation: u64,
    /// Length of the file in bytes: what the content adds up to.
    pub size: u64,
    /// The store that the blocks were committed to.
    pub store: StoreId,
    /// The commit that holds the last of them; zero where none is needed.
    pub seq: u64,
    /// Where the bytes are.
    pub content: Content,
}

/// A manifest or list says of itself what cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inconsistent(pub &'static str);

impl From<Inconsistent> for DecodeError {
    fn from(error: Inconsistent) -> Self {
        Self::Invalid(error.0)
    }
}

impl Extent {
    /// Zeros.
    pub fn hole(len: u64) -> Self {
        Self {
            len,
            block: None,
            skip: 0,
            whole: 0,
        }
    }

    /// All of a block.
    pub fn data(len: u32, id: BlockId) -> Self {
        Self::part(u64::from(len), id, 0, len)
    }

    /// `len` bytes of a block of `whole` bytes, after its first `skip`.
    pub fn part(len: u64, id: BlockId, skip: u32, whole: u32) -> Self {
        Self {
            len,
            block: Some(id),
            skip,
            whole,
        }
    }

    /// Whether it is less than its block.
    pub fn is_part(&self) -> bool {
        self.len < u64::from(self.whole)
    }

    /// Checks the bounds of the lengths.
    pub(super) fn check(&self) -> Result<(), Inconsistent> {
        let max = if self.block.is_some() {
            CHUNK_MAX as u64
        } else {
            FILE_MAX
        };
        match self.len {
            0 => Err(Inconsistent("an extent is empty")),
            len if len > max => Err(Inconsistent("an extent is too long")),
            _ if self.whole > CHUNK_MAX as u32 => Err(Inconsistent("an extent's block is too long")),
            len if self.block.is_some() && u64::from(self.skip) + len > u64::from(self.whole) => {
                Err(Inconsistent("an extent goes beyond its block"))
            }
            _ if self.block.is_none() && (self.skip, self.whole) != (0, 0) => {
                Err(Inconsistent("a hole is part of a block"))
            }
            _ => Ok(()),
        }
    }

    /// Encoded length of a part of a block, in bytes: the longest kind.
    pub(super) const ENCODED_MAX: usize = Self::DATA_LEN + 4 + 4;

    /// Encoded length of an extent that is a whole block, in bytes.
    pub(super) const DATA_LEN: usize = 1 + 4 + BlockId::LEN;

    pub(super) fn encoded_len(&self) -> usize {
        match self.block {
            None => 1 + 8,
            Some(_) if self.is_part() => Self::ENCODED_MAX,
            Some(_) => Self::DATA_LEN,
        }
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        match &self.block {
            None => writer.u8(0).u64(self.len),
            Some(id) if self.is_part() => {
                writer.u8(2).u32(self.len as u32).u32(self.skip).u32(self.whole);
                writer.raw(id.as_bytes())
            }
            Some(id) => writer.u8(1).u32(self.len as u32).raw(id.as_bytes()),
        };
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let extent = match reader.u8()? {
            0 => Self::hole(reader.u64()?),
            1 => {
                let len = reader.u32()?;
                Self::data(len, BlockId(reader.array()?))
            }
            2 => {
                let (len, skip, whole) = (reader.u32()?, reader.u32()?, reader.u32()?);
                if len == whole {
                    return Err(DecodeError::Invalid("a part is all of its block"));
                }
                Self::part(u64::from(len), BlockId(reader.array()?), skip, whole)
            }
            _ => return Err(DecodeError::Invalid("unknown kind of extent")),
        };
        extent.check()?;
        Ok(extent)
    }
}

impl IndexRef {
    /// Encoded length, in bytes.
    pub(super) const ENCODED_LEN: usize = 8 + BlockId::LEN;

    pub(super) fn check(&self) -> Result<(), Inconsistent> {
        match self.len {
            0 => Err(Inconsistent("an index block covers nothing")),
            len if len > FILE_MAX => Err(Inconsistent("an index block covers too much")),
            _ => Ok(()),
        }
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        writer.u64(self.len).raw(self.id.as_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let entry = Self {
            len: reader.u64()?,
            id: BlockId(reader.array()?),
        };
        entry.check()?;
        Ok(entry)
    }
}

/// What lengths add up to; `None` beyond `FILE_MAX`.
pub(super) fn total(lens: impl Iterator<Item = u64>) -> Option<u64> {
    lens.into_iter().try_fold(0_u64, |sum, len| {
        sum.checked_add(len).filter(|sum| *sum <= FILE_MAX)
    })
}

impl Content {
    /// The bytes of the file that it covers; `None` beyond `FILE_MAX`.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Inline(bytes) => total(std::iter::once(bytes.len() as u64)),
            Self::Extents(extents) => total(extents.iter().map(|extent| extent.len)),
            Self::Index { refs, .. } => total(refs.iter().map(|entry| entry.len)),
        }
    }

    /// Whether it names parts of blocks, which the first version of the formats could not.
    pub(super) fn has_parts(&self) -> bool {
        matches!(self, Self::Extents(extents) if extents.iter().any(Extent::is_part))
    }

    /// Whether it is an empty file's.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The blocks named directly: chunks, or index blocks.
    pub fn block_ids(&self) -> impl Iterator<Item = BlockId> + '_ {
        let (extents, refs): (&[Extent], &[IndexRef]) = match self {
            Self::Inline(_) => (&[], &[]),
            Self::Extents(extents) => (extents, &[]),
            Self::Index { refs, .. } => (&[], refs),
        };
        let direct = extents.iter().filter_map(|extent| extent.block);
        direct.chain(refs.iter().map(|entry| entry.id))
    }

    /// Identity of the content for those who look for its blocks: BLAKE3 of the references. `None` when it names no block.
    pub fn root(&self) -> Option<RootId> {
        self.block_ids().next()?;
        let mut writer = Writer::default();
        self.encode(&mut writer);
        let hash = blake3::Hasher::new_derive_key(ROOT_CONTEXT)
            .update(&writer.into_vec())
            .finalize();
        Some(RootId(*hash.as_bytes()))
    }

    /// Checks everything but the sum against `size`.
    pub(super) fn check(&self) -> Result<(), Inconsistent> {
        match self {
            Self::Inline(_) => Ok(()),
            Self::Extents(extents) => extents.iter().try_for_each(Extent::check),
            Self::Index { depth, refs } => {
                if !(1..=INDEX_DEPTH_MAX).contains(depth) {
                    return Err(Inconsistent("the index is deeper than any file needs"));
                }
                if refs.is_empty() {
                    return Err(Inconsistent("the index lists nothing"));
                }
                refs.iter().try_for_each(IndexRef::check)
            }
        }
    }

    /// Length of what `encode` writes, in bytes.
    pub(super) fn encoded_len(&self) -> usize {
        match self {
            Self::Inline(bytes) => 1 + bytes.len(),
            Self::Extents(extents) => 1 + 4 + extents.iter().map(Extent::encoded_len).sum::<usize>(),
            Self::Index { refs, .. } => 1 + 1 + 4 + refs.len() * IndexRef::ENCODED_LEN,
        }
    }

    /// Form, counts and entries. The references of a root id and the payload of a slot are exactly this.
    pub(super) fn encode(&self, writer: &mut Writer) {
        match self {
            Self::Inline(bytes) => {
                writer.u8(0).raw(bytes);
            }
            Self::Extents(extents) => {
                writer.u8(1).u32(extents.len() as u32);
                extents.iter().for_each(|extent| extent.encode(writer));
            }
            Self::Index { depth, refs } => {
                writer.u8(2).u8(*depth).u32(refs.len() as u32);
                refs.iter().for_each(|entry| entry.encode(writer));
            }
        }
    }

    /// What `encode` wrote, and nothing after it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let content = match reader.u8()? {
            0 => Self::Inline(reader.take(reader.remaining())?.to_vec()),
            1 => {
                let count = reader.u32()?;
                Self::Extents(entries(&mut reader, count, Extent::decode)?)
            }
            2 => {
                let depth = reader.u8()?;
                let count = reader.u32()?;
                let refs = entries(&mut reader, count, IndexRef::decode)?;
                Self::Index { depth, refs }
            }
            _ => return Err(DecodeError::Invalid("unknown form of content")),
        };
        reader.finish()?;
        content.check()?;
        Ok(content)
    }
}

/// So many entries. Reserves no more than the bytes that are there could hold.
pub(super) fn entries<T>(
    reader: &mut Reader<'_>,
    count: u32,
    decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    const SHORTEST: usize = 9;
    let mut entries = Vec::with_capacity((count as usize).min(reader.remaining() / SHORTEST));
    for _ in 0..count {
        entries.push(decode(reader)?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> BlockId {
        BlockId([n; 32])
    }

    #[test]
    fn only_content_with_blocks_has_a_root() {
        assert_eq!(Content::Inline(b"abc".to_vec()).root(), None);
        let hole = Extent::hole(5);
        assert_eq!(Content::Extents(vec![hole]).root(), None);
        let block = Extent::data(5, id(1));
        let (a, b) = (Content::Extents(vec![block]), Content::Extents(vec![hole, block]));
        assert!(a.root().is_some());
        assert_ne!(a.root(), b.root());
        assert_eq!(b.block_ids().collect::<Vec<_>>(), [id(1)]);
    }

    #[test]
    fn an_index_has_another_root_than_its_extents() {
        let extents = Content::Extents(vec![Extent::data(5, id(1))]);
        let refs = vec![IndexRef { len: 5, id: id(1) }];
        let (one, two) = (
            Content::Index {
                depth: 1,
                refs: refs.clone(),
            },
            Content::Index { depth: 2, refs },
        );
        assert_ne!(extents.root(), one.root());
        assert_ne!(one.root(), two.root());
    }

    #[test]
    fn a_sum_beyond_any_file_is_no_length() {
        let hole = Extent::hole(FILE_MAX);
        assert_eq!(Content::Extents(vec![hole]).len(), Some(FILE_MAX));
        assert_eq!(Content::Extents(vec![hole, hole]).len(), None);
        let wrapping = IndexRef {
            len: u64::MAX,
            id: id(1),
        };
        let content = Content::Index {
            depth: 1,
            refs: vec![wrapping, wrapping],
        };
        assert_eq!(content.len(), None);
    }
}
