//! What has to be done to bring a folder from one tree to another, in an order that mostly works. Pure but for reading the trees. Called by `apply`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::base::tree::{Meta, Place};
use crate::base::{BlockId, FileId};
use crate::object::map::{self, Nodes, Root};
use crate::object::record::{Body, Record, twin};
use crate::volume::{TreeNodes, VolumeError, of_map};

use super::Result;
use super::commit::damaged;

/// Longest chain of directories: a bound on damage.
pub(super) const DEPTH_MAX: usize = 4096;

/// A node in one of the trees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    pub(super) places: BTreeSet<Place>,
    pub(super) meta: Meta,
    /// `None`: a directory.
    pub(super) body: Option<Body>,
}

impl Node {
    /// What is in a directory is in the one that it became.
    pub(super) fn moved_along(&mut self, was: FileId, id: FileId) {
        let renamed = |place: Place| match place.parent == was {
            true => Place { parent: id, ..place },
            false => place,
        };
        self.places = std::mem::take(&mut self.places)
            .into_iter()
            .map(renamed)
            .collect();
    }
}

/// A node that is another one in the other tree.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) before: Node,
    pub(super) after: Node,
}

/// What differs, by id.
pub(super) type Changes = BTreeMap<FileId, Change>;

/// One step from one tree to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A new directory.
    MakeDir(FileId, Place),
    /// A name moves.
    Move(FileId, Place, Place),
    /// A file is put at a place: a new one, or a new version.
    Put(FileId, Place),
    /// A file at the first place gets the second as well.
    Link(FileId, Place, Place),
    /// A name goes.
    Remove(FileId, Place),
    /// Attributes change.
    Dress(FileId, Place),
}

/// Takes note of which nodes are read.
pub(super) struct Reading<'a> {
    pub(super) nodes: TreeNodes<'a>,
    pub(super) read: RefCell<BTreeSet<BlockId>>,
}

impl Nodes for Reading<'_> {
    type Error = VolumeError;

    fn get(&self, id: &BlockId) -> std::result::Result<Arc<Vec<u8>>, VolumeError> {
        self.read.borrow_mut().insert(*id);
        self.nodes.get(id)
    }

    fn put(&self, nodes: &[Vec<u8>]) -> std::result::Result<Vec<BlockId>, VolumeError> {
        self.nodes.put(nodes)
    }
}

/// Finds what differs.
pub(super) fn changes(nodes: &Reading<'_>, from: &Root, to: &Root) -> Result<Changes> {
    let mut changes = Changes::new();
    let mut wrong = None;
    map::diff(nodes, from, to, |key, old, new| {
        for (value, is_new) in [(old, false), (new, true)] {
            let Some(value) = value else { continue };
            match Record::decode_entry(key, value) {
                Ok(entry) => take(&mut changes, key, entry, is_new),
                Err(error) => {
                    wrong = Some(error);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    })
    .map_err(of_map)?;
    match wrong {
        Some(error) => Err(damaged(&error).into()),
        None => Ok(changes),
    }
}

fn take(changes: &mut Changes, key: &[u8], (at, name, record): (FileId, &[u8], Record), is_new: bool) {
    let place = Place {
        parent: at,
        name: name.into(),
    };
    let (id, places, meta, body) = match record {
        Record::Node { id, meta, body } => (id, BTreeSet::from([place]), meta, Some(body)),
        Record::Own { parent, name, meta } => (at, BTreeSet::from([Place { parent, name }]), meta, None),
        Record::Shared { places, meta, body } => (at, places, meta, Some(body)),
        // The records by id say the same.
        Record::Directory { .. } | Record::Link { .. } => return,
    };
    let taken = |change: &Change| match is_new {
        true => !change.after.places.is_empty(),
        false => !change.before.places.is_empty(),
    };
    // As `merge::View` takes it.
    let id = match changes.get(&id).is_some_and(taken) {
        true => twin(&id, key),
        false => id,
    };
    let change = changes.entry(id).or_default();
    let side = if is_new {
        &mut change.after
    } else {
        &mut change.before
    };
    *side = Node { places, meta, body };
}

/// All steps, in an order that mostly works: the rest is tried again.
pub(super) fn plan(changes: &Changes) -> Vec<Step> {
    let (mut make, mut moves, mut put, mut removed, mut dress) = (vec![], vec![], vec![], vec![], vec![]);
    for (id, Change { before, after }) in changes {
        let mut gone = before.places.difference(&after.places).cloned();
        let mut new = after.places.difference(&before.places).cloned();
        let stays = before.places.intersection(&after.places).next().cloned();
        let is_dir = after.body.is_none();
        let mut first = stays;
        if after.places.is_empty() {
            removed.extend(gone.map(|place| Step::Remove(*id, place)));
            continue;
        }
        if before.places.is_empty() {
            let Some(place) = new.next() else { continue };
            first = Some(place.clone());
            match is_dir {
                true => make.push(Step::MakeDir(*id, place)),
                false => put.push(Step::Put(*id, place)),
            }
        } else if first.is_none()
            && let (Some(from), Some(to)) = (gone.next(), new.next())
        {
            first = Some(to.clone());
            moves.push(Step::Move(*id, from, to));
        }
        let Some(first) = first else { continue };
        let same_body = match (&before.body, &after.body) {
            (Some(before), Some(after)) => reads_as(before, after),
            _ => true,
        };
        if !before.places.is_empty() && !same_body {
            put.push(Step::Put(*id, first.clone()));
        } else if !before.places.is_empty() && before.meta != after.meta {
            dress.push(Step::Dress(*id, first.clone()));
        }
        put.extend(new.map(|place| Step::Link(*id, first.clone(), place)));
        removed.extend(gone.map(|place| Step::Remove(*id, place)));
    }
    // New files come first, conflict copies among them: a crash must not come between another's version and what keeps this one's. What is done in one
    // directory is done together; directories are made from the top, and removed from the bottom.
    let is_new = |step: &Step| {
        let change = changes.get(step.id());
        matches!(step, Step::Put(..)) && change.is_some_and(|change| change.before.places.is_empty())
    };
    put.sort_by(|a, b| (!is_new(a), a.place()).cmp(&(!is_new(b), b.place())));
    make.sort_by_cached_key(|step| depth(changes, step.id(), |change| &change.after));
    removed.sort_by_cached_key(|step| std::cmp::Reverse(depth(changes, step.id(), |change| &change.before)));
    let all = [make, moves, put, removed, dress];
    all.into_iter().flatten().collect()
}

/// How many of the directories above something change, too.
fn depth(changes: &Changes, id: &FileId, side: impl Fn(&Change) -> &Node) -> usize {
    let (mut at, mut depth) = (*id, 0);
    while let Some(place) = changes.get(&at).and_then(|change| side(change).places.first()) {
        (at, depth) = (place.parent, depth + 1);
        if depth > DEPTH_MAX {
            break;
        }
    }
    depth
}

impl Step {
    /// What is changed.
    pub(super) fn id(&self) -> &FileId {
        match self {
            Self::MakeDir(id, _)
            | Self::Move(id, ..)
            | Self::Put(id, _)
            | Self::Link(id, ..)
            | Self::Remove(id, _)
            | Self::Dress(id, _) => id,
        }
    }

    /// What moves is somewhere else by now.
    pub(super) fn set_from(&mut self, place: Place) {
        if let Self::Move(_, from, _) = self {
            *from = place;
        }
    }

    /// Where it leads to.
    pub(super) fn place(&self) -> &Place {
        match self {
            Self::MakeDir(_, place)
            | Self::Move(_, _, place)
            | Self::Put(_, place)
            | Self::Link(_, _, place)
            | Self::Remove(_, place)
            | Self::Dress(_, place) => place,
        }
    }
}

/// Whether they are the same to a reader, whoever wrote them.
pub(super) fn reads_as(a: &Body, b: &Body) -> bool {
    match (a, b) {
        (Body::File { content: a, .. }, Body::File { content: b, .. }) => a == b,
        _ => a == b,
    }
}
