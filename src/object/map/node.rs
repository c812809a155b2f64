//! One node: its bytes, and what must be true of them on its own and under the node above. Layout in `docs/format.md`.

use std::sync::Arc;

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::{CHUNK_MAX, MAP_DEPTH_MAX, MAP_KEY_MAX, MAP_VALUE_MAX};

use super::{MapError, Nodes, Root, cut};

const MAGIC: [u8; 4] = *b"dfsn";
const VERSION: u8 = 1;
pub(super) const HEADER_LEN: usize = 12;

/// Length of what an inner entry says of the node below, in bytes: number of entries and id.
pub(super) const REF_LEN: usize = 8 + BlockId::LEN;

/// Longest entry of a leaf, in bytes; those of inner nodes are shorter.
pub(super) const ENTRY_MAX: usize = 2 + MAP_KEY_MAX + 4 + MAP_VALUE_MAX;

/// Longest node, in bytes.
pub(super) const NODE_MAX: usize = HEADER_LEN + cut::SIZE_MAX + ENTRY_MAX;

const _: () = assert!(NODE_MAX <= CHUNK_MAX);
const _: () = assert!(2 + MAP_KEY_MAX + REF_LEN <= ENTRY_MAX);

/// What the node above (or the root) says of a node.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    level: u8,
    len: u64,
    /// What comes before its first key.
    after: Option<Vec<u8>>,
    /// Its last key.
    last: Option<Vec<u8>>,
}

impl Expected {
    /// Of the uppermost node, with its id; `None` in an empty map.
    pub(super) fn of(root: &Root) -> Option<(BlockId, Self)> {
        let expected = Self {
            level: root.depth,
            len: root.len,
            after: None,
            last: None,
        };
        Some((root.id?, expected))
    }
}

/// Where an entry lies in the node's bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    key_at: u32,
    key_len: u16,
    value_at: u32,
    value_len: u32,
}

/// A decoded node: at least one entry, keys strictly ascending.
#[derive(Debug, Clone)]
pub(super) struct Node {
    bytes: Arc<Vec<u8>>,
    level: u8,
    spans: Vec<Span>,
    /// What comes before its first key, for the nodes below.
    after: Option<Vec<u8>>,
}

impl Node {
    /// Reads a node and holds it against what is said of it.
    pub(super) fn load<N: Nodes + ?Sized>(
        nodes: &N,
        id: &BlockId,
        expected: &Expected,
    ) -> Result<Self, MapError<N::Error>> {
        let bytes = nodes.get(id).map_err(MapError::Nodes)?;
        let node = Self::decode(bytes).and_then(|node| node.held_against(expected));
        node.map_err(|error| MapError::Damaged(*id, error))
    }

    fn held_against(mut self, expected: &Expected) -> Result<Self, DecodeError> {
        let wrong = if self.level != expected.level {
            Some("a node of another level than the one above says")
        } else if expected.last.as_deref().is_some_and(|last| last != self.last()) {
            Some("a node that ends with another key than the one above says")
        } else if expected
            .after
            .as_deref()
            .is_some_and(|after| after >= self.key(0))
        {
            Some("a node that begins before the one on its left ends")
        } else if self.len() != Some(expected.len) {
            Some("a node with another number of entries than the one above says")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(DecodeError::Invalid(wrong));
        }
        self.after.clone_from(&expected.after);
        Ok(self)
    }

    /// What is in a node's bytes.
    pub(super) fn decode(bytes: Arc<Vec<u8>>) -> Result<Self, DecodeError> {
        if bytes.len() > NODE_MAX {
            return Err(DecodeError::Invalid("too long for a node"));
        }
        let mut reader = Reader::new(&bytes);
        if reader.array()? != MAGIC {
            return Err(DecodeError::Invalid("not a node"));
        }
        if reader.u8()? != VERSION {
            return Err(DecodeError::Invalid("a node of a newer dfs: update it"));
        }
        let level = reader.u8()?;
        if level > MAP_DEPTH_MAX || reader.u16()? != 0 {
            return Err(DecodeError::Invalid("a node of an unknown kind"));
        }
        let count = reader.u32()? as usize;
        if count == 0 {
            return Err(DecodeError::Invalid("a node without an entry"));
        }
        let shortest = if level == 0 { 2 + 4 } else { 2 + REF_LEN };
        let mut spans: Vec<Span> = Vec::with_capacity(count.min(reader.remaining() / shortest));
        let mut last: Option<&[u8]> = None;
        for _ in 0..count {
            let key = reader.bytes16(MAP_KEY_MAX)?;
            let key_at = bytes.len() - reader.remaining() - key.len();
            let value = match level {
                0 => reader.bytes32(MAP_VALUE_MAX)?,
                _ => reader.take(REF_LEN)?,
            };
            if last.is_some_and(|last| last >= key) {
                return Err(DecodeError::Invalid("the keys of a node are not in order"));
            }
            last = Some(key);
            spans.push(Span {
                key_at: key_at as u32,
                key_len: key.len() as u16,
                value_at: (bytes.len() - reader.remaining() - value.len()) as u32,
                value_len: value.len() as u32,
            });
        }
        reader.finish()?;
        Ok(Self {
            bytes,
            level,
            spans,
            after: None,
        })
    }

    /// Levels below it.
    pub(super) fn level(&self) -> u8 {
        self.level
    }

    /// Number of its own entries.
    pub(super) fn count(&self) -> usize {
        self.spans.len()
    }

    /// Number of entries of the map that are in it and below it; `None` when that cannot be.
    pub(super) fn len(&self) -> Option<u64> {
        match self.level {
            0 => Some(self.count() as u64),
            _ => (0..self.count()).try_fold(0_u64, |sum, at| sum.checked_add(self.reference(at).0)),
        }
    }

    pub(super) fn key(&self, at: usize) -> &[u8] {
        let span = self.spans[at];
        &self.bytes[span.key_at as usize..][..usize::from(span.key_len)]
    }

    /// A value; of an inner node the encoded reference.
    pub(super) fn value(&self, at: usize) -> &[u8] {
        let span = self.spans[at];
        &self.bytes[span.value_at as usize..][..span.value_len as usize]
    }

    /// Its last key.
    pub(super) fn last(&self) -> &[u8] {
        self.key(self.count() - 1)
    }

    /// Where a key is, or where it would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.spans.binary_search_by(|span| {
            let found = &self.bytes[span.key_at as usize..][..usize::from(span.key_len)];
            found.cmp(key)
        })
    }

    /// What an inner node says of a node below it: number of entries and id.
    pub(super) fn reference(&self, at: usize) -> (u64, BlockId) {
        parse_reference(self.value(at))
    }

    /// A node below an inner node.
    pub(super) fn child(&self, at: usize) -> (BlockId, Expected) {
        let (len, id) = self.reference(at);
        let after = match at {
            0 => self.after.clone(),
            _ => Some(self.key(at - 1).to_vec()),
        };
        let expected = Expected {
            // Only inner nodes have nodes below them.
            level: self.level.saturating_sub(1),
            len,
            after,
            last: Some(self.key(at).to_vec()),
        };
        (id, expected)
    }
}

/// What an inner node says of a node below it.
pub(super) fn reference(len: u64, id: &BlockId) -> Vec<u8> {
    let mut writer = Writer::with_capacity(REF_LEN);
    writer.u64(len).raw(id.as_bytes());
    writer.into_vec()
}

/// What `reference` made, and an inner node's entries hold.
pub(super) fn parse_reference(bytes: &[u8]) -> (u64, BlockId) {
    debug_assert_eq!(bytes.len(), REF_LEN);
    let (mut number, mut hash) = ([0; 8], [0; BlockId::LEN]);
    number.copy_from_slice(&bytes[..8]);
    hash.copy_from_slice(&bytes[8..REF_LEN]);
    (u64::from_le_bytes(number), BlockId(hash))
}

/// Length of an entry, in bytes.
pub(super) fn entry_len(level: u8, key: &[u8], value: &[u8]) -> usize {
    2 + key.len() + value.len() + if level == 0 { 4 } else { 0 }
}

/// Writes an entry.
pub(super) fn write_entry(level: u8, key: &[u8], value: &[u8], out: &mut Writer) {
    out.bytes16(key);
    match level {
        0 => out.bytes32(value),
        _ => out.raw(value),
    };
}

/// The bytes before the entries.
pub(super) fn header(level: u8, count: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = level;
    header[8..].copy_from_slice(&count.to_le_bytes());
    header
}
