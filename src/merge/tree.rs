//! What is merged: nodes by file id, their places, and the trees that hold them. Data only.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

pub use crate::base::tree::{Meta, Place, ROOT};
use crate::base::types::FileKind;
use crate::base::{DeviceId, FileId};

/// A version of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Keyed hash of what is in it: equal contents have equal ones, whoever wrote them.
    pub hash: [u8; 32],
    /// The device that wrote it.
    pub author: DeviceId,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// A device node, pipe or socket, with the number of a device node.
    Special(FileKind, u64),
    /// A symbolic link, with its target.
    Symlink(Box<[u8]>),
    /// A file.
    File(Version),
    /// A directory. What is in it says so itself.
    Directory,
}

impl Content {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        *self == Self::Directory
    }

    /// Whether they are the same to a reader, whoever wrote them.
    pub fn reads_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => a.hash == b.hash,
            _ => self == other,
        }
    }
}

/// A file, directory or anything else that has names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its names: one, or several of what is no directory.
    pub places: BTreeSet<Place>,
    /// What it is.
    pub content: Content,
    /// The rest.
    pub meta: Meta,
}

/// What changed in a tree, by id: the node as it is then, or that it is gone.
pub type Edits = BTreeMap<FileId, Option<Node>>;

/// A tree as far as a merge asks.
pub trait Tree {
    /// Why the tree cannot say.
    type Error;

    /// A node; `None` when there is none with this id.
    fn node(&self, id: &FileId) -> Result<Option<Node>, Self::Error>;

    /// Who has this name.
    fn at(&self, place: &Place) -> Result<Option<FileId>, Self::Error>;
}

/// A tree in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryTree {
    nodes: BTreeMap<FileId, Node>,
    names: BTreeMap<Place, FileId>,
}

impl MemoryTree {
    /// Every node.
    pub fn nodes(&self) -> &BTreeMap<FileId, Node> {
        &self.nodes
    }

    /// Takes changes.
    pub fn apply(&mut self, edits: &Edits) {
        for id in edits.keys() {
            for place in self.nodes.remove(id).into_iter().flat_map(|old| old.places) {
                if self.names.get(&place) == Some(id) {
                    self.names.remove(&place);
                }
            }
        }
        for (id, node) in edits {
            if let Some(node) = node {
                let places = node.places.iter().cloned();
                self.names.extend(places.map(|place| (place, *id)));
                self.nodes.insert(*id, node.clone());
            }
        }
    }

    /// What makes `other` of this tree.
    pub fn edits_to(&self, other: &Self) -> Edits {
        let gone = self.nodes.keys().filter(|id| !other.nodes.contains_key(id));
        let changed = other
            .nodes
            .iter()
            .filter(|(id, node)| self.nodes.get(id) != Some(node));
        gone.map(|id| (*id, None))
            .chain(changed.map(|(id, node)| (*id, Some(node.clone()))))
            .collect()
    }
}

impl Tree for MemoryTree {
    type Error = Infallible;

    fn node(&self, id: &FileId) -> Result<Option<Node>, Infallible> {
        Ok(self.nodes.get(id).cloned())
    }

    fn at(&self, place: &Place) -> Result<Option<FileId>, Infallible> {
        Ok(self.names.get(place).copied())
    }
}
