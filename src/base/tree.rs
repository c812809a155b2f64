//! What a volume's tree is made of, wherever it is stored or merged: directories by id, names in them, and what a node has besides its content.

use std::collections::BTreeMap;

use super::FileId;
use super::types::Timestamp;

/// The root directory. It has no node: nothing about it is stored or merged.
pub const ROOT: FileId = FileId([0; 16]);

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The directory.
    pub parent: FileId,
    /// The name, as the mount shows it.
    pub name: Box<[u8]>,
}

/// What a node has besides its content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Meta {
    /// Permission bits, 0o7777.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}
