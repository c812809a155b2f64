//! One node that both sides may have changed: field by field, and a copy where both wrote.

use std::collections::BTreeSet;

use super::names::conflict_name;
use super::tree::{Content, Meta, Node, Place, Version};
use crate::base::FileId;

const COPY_CONTEXT: &str = "dfs 2026 v1 id of a conflict copy";

/// What comes of a node.
pub(super) struct Merged {
    /// It, or that it is gone.
    pub(super) node: Option<Node>,
    /// What the other side wrote.
    pub(super) copy: Option<Copy>,
}

/// A version that lost and is to be kept as a file of its own.
pub(super) struct Copy {
    of: FileId,
    loser: Node,
    beside: Place,
}

/// Merges a node: as it was, and as it is on either side.
pub(super) fn merge(id: &FileId, base: Option<&Node>, left: Option<Node>, right: Option<Node>) -> Merged {
    let only = |node| Merged { node, copy: None };
    match (left, right) {
        (None, None) => only(None),
        (Some(node), None) | (None, Some(node)) => only(survives(base, &node).then_some(node)),
        (Some(left), Some(right)) => both(id, base, &left, &right),
    }
}

/// Whether a node that one side deleted stays because of what the other did: whoever wrote to it or moved it still wants it. A directory
/// stays only for what is in it.
fn survives(base: Option<&Node>, node: &Node) -> bool {
    let Some(base) = base else { return true };
    !node.content.is_directory() && (!node.content.reads_as(&base.content) || node.places != base.places)
}

fn both(id: &FileId, base: Option<&Node>, left: &Node, right: &Node) -> Merged {
    let meta = meta(base.map(|base| &base.meta), &left.meta, &right.meta);
    let before = base.map(|base| &base.content);
    let is_before = |content: &Content| before.is_some_and(|before| before.reads_as(content));
    let (content, loser) = if left.content.reads_as(&right.content) {
        // Both wrote the same: whose name it has must not depend on the side.
        ((&left.content).min(&right.content).clone(), None)
    } else if is_before(&left.content) {
        (right.content.clone(), None)
    } else if is_before(&right.content) || left.content > right.content {
        let lost = !is_before(&right.content);
        (left.content.clone(), lost.then_some(right))
    } else {
        (right.content.clone(), Some(left))
    };
    let places = if content.is_directory() {
        BTreeSet::from_iter(one_place(base, left, right))
    } else {
        places(base, left, right)
    };
    let places = match places.is_empty() {
        // Each side removed the name that the other one left: neither meant to be rid of the file.
        true => left.places.union(&right.places).cloned().collect(),
        false => places,
    };
    let copy = loser.zip(places.first()).map(|(loser, place)| Copy {
        of: *id,
        loser: loser.clone(),
        beside: place.clone(),
    });
    let node = Node {
        places,
        content,
        meta,
    };
    Merged {
        node: (!node.places.is_empty()).then_some(node),
        copy,
    }
}

impl Copy {
    /// The file that keeps what lost. Its id follows from what it is, so that whoever merges the same finds the same; and from a number, for when
    /// that id is taken by what was made of an earlier copy.
    pub(super) fn file(&self, number: u32) -> (FileId, Node) {
        let loser = &self.loser;
        let copy = copy_id(&self.of, &loser.content, number);
        let name = conflict_name(&self.beside.name, &loser.content, &copy.0, 8);
        let place = Place {
            parent: self.beside.parent,
            name,
        };
        let node = Node {
            places: BTreeSet::from([place]),
            ..loser.clone()
        };
        (copy, node)
    }
}

/// The id of the copy of a version of a file that lost, under this number.
pub fn copy_id(of: &FileId, content: &Content, number: u32) -> FileId {
    let mut hasher = blake3::Hasher::new_derive_key(COPY_CONTEXT);
    hasher.update(&of.0).update(&number.to_le_bytes());
    match content {
        Content::File(Version { hash, .. }) => hasher.update(b"file").update(hash),
        Content::Symlink(target) => hasher.update(b"link").update(target),
        Content::Special(kind, number) => hasher
            .update(format!("{kind:?}").as_bytes())
            .update(&number.to_le_bytes()),
        Content::Directory => hasher.update(b"directory"),
    };
    FileId::derived(hasher.finalize().as_bytes())
}

/// One field: whoever changed it; where both did, the greater.
fn field<T: Ord + Clone>(base: Option<&T>, left: &T, right: &T) -> T {
    if base == Some(left) {
        right.clone()
    } else if base == Some(right) {
        left.clone()
    } else {
        left.max(right).clone()
    }
}

fn meta(base: Option<&Meta>, left: &Meta, right: &Meta) -> Meta {
    let keys: BTreeSet<&Box<[u8]>> = left.xattrs.keys().chain(right.xattrs.keys()).collect();
    let xattrs = keys.into_iter().filter_map(|key| {
        let before = base.map(|base| base.xattrs.get(key));
        let value = field(before.as_ref(), &left.xattrs.get(key), &right.xattrs.get(key));
        value.map(|value| (key.clone(), value.clone()))
    });
    let mode = match base {
        // Both changed it: nobody gets a right that one of them took away.
        Some(base) if base.mode != left.mode && base.mode != right.mode => left.mode & right.mode,
        _ => field(base.map(|base| &base.mode), &left.mode, &right.mode),
    };
    Meta {
        mode,
        owner: field(base.map(|base| &base.owner), &left.owner, &right.owner),
        mtime: field(base.map(|base| &base.mtime), &left.mtime, &right.mtime),
        xattrs: xattrs.collect(),
    }
}

/// Where a directory is.
fn one_place(base: Option<&Node>, left: &Node, right: &Node) -> Option<Place> {
    let base = base.and_then(|base| base.places.first());
    let (left, right) = (left.places.first()?, right.places.first()?);
    Some(field(base, left, right))
}

/// The names of anything else: those that a side gave are there, those that a side took are not. A file that both moved is in one place only.
fn places(base: Option<&Node>, left: &Node, right: &Node) -> BTreeSet<Place> {
    let none = BTreeSet::new();
    let is_new = base.is_none();
    let base = base.map_or(&none, |base| &base.places);
    let (left, right) = (&left.places, &right.places);
    let kept = base
        .iter()
        .filter(|place| left.contains(place) && right.contains(place));
    let given = left.union(right).filter(|place| !base.contains(place));
    let mut places: BTreeSet<Place> = kept.chain(given).cloned().collect();
    let both_took = base
        .iter()
        .any(|place| !left.contains(place) && !right.contains(place));
    let most = left.len().max(right.len());
    while (both_took || is_new) && places.len() > most {
        let contested = places
            .iter()
            .find(|place| left.contains(place) != right.contains(place));
        let Some(contested) = contested.cloned() else {
            break;
        };
        places.remove(&contested);
    }
    places
}
