//! What a `.f` says: both slots of a manifest, decoded with the volume's keys. Needs neither daemon nor store.

use std::fs::File;
use std::path::Path;

use anyhow::Context;

use super::{Located, PassphraseSource};
use crate::folder::slots::{Slot, SlotBytes};
use crate::object::{Content, Manifest, slot};

/// Most blocks that are listed one by one.
const BLOCKS_MAX: usize = 4096;

/// One slot of a `.f`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownSlot {
    /// `A` or `B`.
    pub slot: &'static str,
    /// What it holds; `None` when it is empty or damaged.
    pub manifest: Option<ShownManifest>,
    /// Why it cannot be read.
    pub damage: Option<String>,
}

/// A manifest for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownManifest {
    /// Identity of the file.
    pub file_id: String,
    /// Number of the version.
    pub generation: u64,
    /// Size of the content, in bytes.
    pub size_bytes: u64,
    /// The store it was written with.
    pub store: String,
    /// The commit of that store that holds its blocks.
    pub seq: u64,
    /// Under which its holders announce themselves.
    pub root: Option<String>,
    /// `inline`, `extents` or `index`.
    pub content: &'static str,
    /// Depth of the index; zero without one.
    pub index_depth: u8,
    /// What the manifest itself names, in order, at most 4,096 of them.
    pub parts: Vec<ShownPart>,
}

/// One extent or index block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownPart {
    /// Bytes of the file it stands for.
    pub len_bytes: u64,
    /// The block; `None`: a hole.
    pub block: Option<String>,
}

/// Decodes the slots of the `.f` at `path`, a file of the volume in `located`.
pub fn show(located: &Located, passphrase: PassphraseSource, path: &Path) -> anyhow::Result<Vec<ShownSlot>> {
    let keys = located.unlock(passphrase)?;
    let keys = keys
        .volume
        .context("this device is a host of the group and cannot read the volume")?;
    let bytes = File::open(path)
        .and_then(|file| SlotBytes::read(&file))
        .with_context(|| path.display().to_string())?;
    let shown = |(place, name)| match slot::decode(bytes.slot(place), &keys) {
        Ok(manifest) => ShownSlot {
            slot: name,
            manifest: manifest.map(|manifest| shown_manifest(&manifest)),
            damage: None,
        },
        Err(e) => ShownSlot {
            slot: name,
            manifest: None,
            damage: Some(e.to_string()),
        },
    };
    Ok([(Slot::A, "A"), (Slot::B, "B")].into_iter().map(shown).collect())
}

fn shown_manifest(manifest: &Manifest) -> ShownManifest {
    let part = |len, block: Option<crate::base::BlockId>| ShownPart {
        len_bytes: len,
        block: block.map(|id| id.to_string()),
    };
    let (content, index_depth, parts) = match &manifest.content {
        Content::Inline(_) => ("inline", 0, Vec::new()),
        Content::Extents(extents) => {
            let parts = extents.iter().take(BLOCKS_MAX);
            (
                "extents",
                0,
                parts.map(|extent| part(extent.len, extent.block)).collect(),
            )
        }
        Content::Index { depth, refs } => {
            let parts = refs.iter().take(BLOCKS_MAX);
            (
                "index",
                *depth,
                parts.map(|entry| part(entry.len, Some(entry.id))).collect(),
            )
        }
    };
    ShownManifest {
        file_id: manifest.file_id.to_string(),
        generation: manifest.generation,
        size_bytes: manifest.size,
        store: manifest.store.to_string(),
        seq: manifest.seq,
        root: manifest.content.root().map(|root| root.to_string()),
        content,
        index_depth,
        parts,
    }
}
