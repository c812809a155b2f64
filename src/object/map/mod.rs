//! A sorted map of byte strings in nodes that are stored as blocks: how a snapshot holds the tree of its volume.
//!
//! A Merkle search tree whose nodes end where keys and sizes say so (a "prolly tree", as Noms and Dolt have them). Invariants: equal content has
//! an equal root, whatever changes led there; a change rewrites the few nodes around it and those above; what two maps share they share as
//! nodes, so they are compared at the cost of their difference. Nodes are seen here in plaintext: sealing is the business of [`Nodes`]. A node
//! that contradicts itself or what is above it is [`MapError::Damaged`], never a wrong answer. Called by `merge`, `sync`, `volume`.

mod cursor;
mod cut;
#[cfg(test)]
mod damage_tests;
mod diff;
mod memory;
mod node;
#[cfg(test)]
mod tests;
mod update;

pub use diff::diff;
pub use memory::MemoryNodes;
pub use update::{Edits, update};

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::MAP_DEPTH_MAX;

use cursor::Cursor;
use node::{Expected, Node};

/// Where nodes are kept.
pub trait Nodes {
    /// Why a node cannot be had or kept.
    type Error;

    /// The plaintext of a node.
    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Self::Error>;

    /// Keeps nodes and names them, in the order given. Equal bytes have equal ids.
    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>, Self::Error>;
}

/// Why a map could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError<E> {
    /// A node could not be read or kept.
    #[error(transparent)]
    Nodes(E),
    /// A node is not as dfs writes it, or does not belong where it is.
    #[error("node {0} of the tree is damaged: {1}")]
    Damaged(BlockId, DecodeError),
    /// A key longer than `MAP_KEY_MAX`, of so many bytes.
    #[error("a key of {0} bytes is too long for a map")]
    KeyTooLong(usize),
    /// A value longer than `MAP_VALUE_MAX`, of so many bytes.
    #[error("a value of {0} bytes is too long for a map")]
    ValueTooLong(usize),
}

/// A map: its uppermost node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Root {
    /// The node; `None` of an empty map.
    pub id: Option<BlockId>,
    /// Levels of nodes below it; zero of a leaf.
    pub depth: u8,
    /// Number of entries.
    pub len: u64,
}

impl Root {
    /// The map without an entry.
    pub const EMPTY: Self = Self {
        id: None,
        depth: 0,
        len: 0,
    };

    /// Encoded length, in bytes.
    pub const ENCODED_LEN: usize = 1 + 8 + BlockId::LEN;

    /// Depth, number of entries, id: of the empty map all zeros.
    pub fn encode(&self, writer: &mut Writer) {
        let id = self.id.unwrap_or(BlockId([0; BlockId::LEN]));
        writer.u8(self.depth).u64(self.len).raw(id.as_bytes());
    }

    /// What `encode` wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (depth, len, id) = (reader.u8()?, reader.u64()?, BlockId(reader.array()?));
        if depth > MAP_DEPTH_MAX {
            return Err(DecodeError::Invalid("a map is deeper than any can be"));
        }
        match len {
            0 if depth != 0 || id.0 != [0; BlockId::LEN] => {
                Err(DecodeError::Invalid("an empty map has a node"))
            }
            0 => Ok(Self::EMPTY),
            _ => Ok(Self {
                id: Some(id),
                depth,
                len,
            }),
        }
    }
}

/// The value of a key.
pub fn get<N: Nodes + ?Sized>(
    nodes: &N,
    root: &Root,
    key: &[u8],
) -> Result<Option<Vec<u8>>, MapError<N::Error>> {
    let mut cursor = Cursor::new(nodes, root, 0);
    let Some(leaf) = cursor.seek(key)? else {
        return Ok(None);
    };
    Ok(leaf.find(key).ok().map(|at| leaf.value(at).to_vec()))
}

/// Gives each entry from a key on, in the order of the keys, until `each` breaks.
pub fn scan<N: Nodes + ?Sized>(
    nodes: &N,
    root: &Root,
    from: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), MapError<N::Error>> {
    let mut cursor = Cursor::new(nodes, root, 0);
    let mut next = cursor.seek(from)?;
    let mut start = next
        .as_ref()
        .map_or(0, |leaf| leaf.find(from).unwrap_or_else(|at| at));
    while let Some(leaf) = next {
        for at in start..leaf.count() {
            if each(leaf.key(at), leaf.value(at)).is_break() {
                return Ok(());
            }
        }
        start = 0;
        next = cursor.advance()?;
    }
    Ok(())
}

/// Visits every node, those above before those below: `wanted` is asked before a node is read and says whether to visit it and what is below it
/// (not what was visited already, under another root); `each` is given the entries of the leaves among them, until it breaks.
pub fn walk<N: Nodes + ?Sized>(
    nodes: &N,
    root: &Root,
    mut wanted: impl FnMut(&BlockId) -> bool,
    mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), MapError<N::Error>> {
    let mut waiting: Vec<(BlockId, Expected)> = Expected::of(root).into_iter().collect();
    while let Some((id, expected)) = waiting.pop() {
        if !wanted(&id) {
            continue;
        }
        let node = Node::load(nodes, &id, &expected)?;
        if node.level() > 0 {
            waiting.extend((0..node.count()).rev().map(|at| node.child(at)));
            continue;
        }
        for at in 0..node.count() {
            if each(node.key(at), node.value(at)).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Gives the ids of the leaves, those below one node at once, until `each` breaks. Reads none of them.
pub fn leaves<N: Nodes + ?Sized>(
    nodes: &N,
    root: &Root,
    mut each: impl FnMut(&[BlockId]) -> ControlFlow<()>,
) -> Result<(), MapError<N::Error>> {
    if let (0, Some(id)) = (root.depth, root.id) {
        let _ = each(&[id]);
        return Ok(());
    }
    let mut waiting: Vec<(BlockId, Expected)> = Expected::of(root).into_iter().collect();
    while let Some((id, expected)) = waiting.pop() {
        let node = Node::load(nodes, &id, &expected)?;
        let below = (0..node.count()).map(|at| node.child(at));
        if node.level() > 1 {
            waiting.extend(below.rev());
            continue;
        }
        let ids: Vec<BlockId> = below.map(|(id, _)| id).collect();
        if each(&ids).is_break() {
            return Ok(());
        }
    }
    Ok(())
}
