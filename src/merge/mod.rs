//! Two trees that grew from a common one, made into one again: a pure function, the same result on every device and from either side.
//!
//! Files are followed by their ids, so a rename and an edit of the same file meet, also inside directories that were moved. Invariants of
//! the result: every content that one side wrote is in it, under its name or as a conflict copy; every name is in a directory that is
//! there; no directory is inside itself; no two files have one name. `docs/semantics.md` says what comes of each pair of changes. Made for
//! `sync`; a [`View`] turns the maps of snapshots into [`Edits`] against their common ancestor, and back.

mod ancestors;
mod fields;
mod names;
mod shape;
mod tree;
mod view;

#[cfg(test)]
mod convergence_tests;
#[cfg(test)]
mod pairs_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod view_tests;

pub use ancestors::{History, lowest_common};
pub use fields::copy_id;
pub use names::{ConflictName, conflict_name, parse_conflict_name};
pub use tree::{Content, Edits, MemoryTree, Meta, Node, Place, ROOT, Tree, Version};
pub use view::{View, ViewError};

use std::collections::BTreeSet;

use crate::base::FileId;
use fields::Merged;
use shape::Shape;

/// What `left` and `right`, both changes of `base`, make of it together. Costs what they changed, not what there is. Fails only where `base` does.
pub fn merge<T: Tree + ?Sized>(base: &T, left: &Edits, right: &Edits) -> Result<Edits, T::Error> {
    let mut shape = Shape::new(base, left, right);
    let mut copies = Vec::new();
    let ids: BTreeSet<&FileId> = left.keys().chain(right.keys()).collect();
    for id in ids {
        let before = base.node(id)?;
        let side = |edits: &Edits| edits.get(id).map_or_else(|| before.clone(), Clone::clone);
        let Merged { node, copy } = fields::merge(id, before.as_ref(), side(left), side(right));
        shape.set(*id, node);
        copies.extend(copy);
    }
    // Once all else is known: what became of an earlier copy is not to be overwritten.
    for copy in copies {
        shape.keep(&copy)?;
    }
    shape.settle()?;
    shape.into_edits()
}
