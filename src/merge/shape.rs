//! The merged nodes as a tree again: needed directories are there, none is inside itself, every name is somebody's alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::fields::Copy;
use super::names::conflict_name;
use super::tree::{Content, Edits, Node, Place, ROOT, Tree};
use crate::base::FileId;
use crate::base::types::FileKind;

/// Digits of a conflict name: more when that name is taken by something else.
const DIGITS: [usize; 3] = [8, 16, 32];

/// A tree under repair: changes over a base.
pub(super) struct Shape<'a, T: Tree + ?Sized> {
    base: &'a T,
    left: &'a Edits,
    right: &'a Edits,
    now: Edits,
}

impl<'a, T: Tree + ?Sized> Shape<'a, T> {
    pub(super) fn new(base: &'a T, left: &'a Edits, right: &'a Edits) -> Self {
        Self {
            base,
            left,
            right,
            now: Edits::new(),
        }
    }

    pub(super) fn set(&mut self, id: FileId, node: Option<Node>) {
        self.now.insert(id, node);
    }

    /// Has a version that lost in the tree, if it is not there already: under the first of its ids that nothing else has.
    pub(super) fn keep(&mut self, copy: &Copy) -> Result<(), T::Error> {
        for number in 0.. {
            let (id, file) = copy.file(number);
            match self.node(&id)? {
                Some(there) if !there.content.reads_as(&file.content) => {}
                Some(_) => break,
                None => {
                    self.now.insert(id, Some(file));
                    break;
                }
            }
        }
        Ok(())
    }

    pub(super) fn into_edits(self) -> Result<Edits, T::Error> {
        let mut edits = Edits::new();
        for (id, node) in self.now {
            if self.base.node(&id)? != node {
                edits.insert(id, node);
            }
        }
        Ok(edits)
    }

    /// Repairs until nothing is wrong.
    pub(super) fn settle(&mut self) -> Result<(), T::Error> {
        loop {
            self.revive()?;
            if !self.break_cycle()? && !self.resolve_names()? {
                return Ok(());
            }
        }
    }

    fn node(&self, id: &FileId) -> Result<Option<Node>, T::Error> {
        match self.now.get(id) {
            Some(node) => Ok(node.clone()),
            None => self.base.node(id),
        }
    }

    fn parent(&self, id: &FileId) -> Result<Option<FileId>, T::Error> {
        let node = self.node(id)?;
        Ok(node.and_then(|node| Some(node.places.first()?.parent)))
    }

    /// Who has a name in the base and still is what it was there.
    fn unchanged_at(&self, place: &Place) -> Result<Option<FileId>, T::Error> {
        Ok(self.base.at(place)?.filter(|id| !self.now.contains_key(id)))
    }

    /// Brings directories back that something is in.
    fn revive(&mut self) -> Result<(), T::Error> {
        let live = self.now.values().flatten();
        let mut wanted: Vec<FileId> = live
            .flat_map(|node| &node.places)
            .map(|place| place.parent)
            .collect();
        while let Some(id) = wanted.pop() {
            if id == ROOT || self.node(&id)?.is_some_and(|node| node.content.is_directory()) {
                continue;
            }
            // Whoever put something in it had it.
            let before = self.base.node(&id)?;
            let side = |edits: &Edits| edits.get(&id).cloned().unwrap_or_else(|| before.clone());
            let known = [side(self.left), side(self.right), before.clone()];
            let found = known
                .into_iter()
                .flatten()
                .find(|node| node.content.is_directory());
            let node = found.unwrap_or_else(|| lost(&id));
            wanted.extend(node.places.iter().map(|place| place.parent));
            self.now.insert(id, Some(node));
        }
        Ok(())
    }

    /// Takes one move back that put a directory inside itself. Whether there was one.
    fn break_cycle(&mut self) -> Result<bool, T::Error> {
        let moved: Vec<FileId> = self.now.keys().copied().collect();
        for start in moved {
            let mut seen = BTreeSet::new();
            let mut at = start;
            while at != ROOT && seen.insert(at) {
                let Some(parent) = self.parent(&at)? else { break };
                at = parent;
            }
            if at == ROOT || self.node(&at)?.is_none() {
                continue;
            }
            // `at` is on the cycle.
            let mut cycle = BTreeSet::from([at]);
            let mut next = self.parent(&at)?;
            while let Some(id) = next.filter(|id| cycle.insert(*id)) {
                next = self.parent(&id)?;
            }
            let mut back = (at, lost(&at).places);
            for id in cycle.iter().rev() {
                let Some(before) = self.base.node(id)? else {
                    continue;
                };
                if self.node(id)?.is_some_and(|node| node.places != before.places) {
                    back = (*id, before.places);
                    break;
                }
            }
            if let Some(mut node) = self.node(&back.0)? {
                node.places = back.1;
                self.now.insert(back.0, Some(node));
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Has every name belong to one. Whether something had to change.
    fn resolve_names(&mut self) -> Result<bool, T::Error> {
        let mut names: BTreeMap<Place, BTreeSet<FileId>> = BTreeMap::new();
        for (id, node) in &self.now {
            for place in node.iter().flat_map(|node| &node.places) {
                names.entry(place.clone()).or_default().insert(*id);
            }
        }
        for (place, ids) in &mut names {
            ids.extend(self.unchanged_at(place)?);
        }
        let mut has_changed = false;
        // All in one pass: two people who import the same pictures meet at every name.
        for (place, ids) in names.into_iter().filter(|(_, ids)| ids.len() > 1) {
            has_changed |= self.resolve_name(&place, &ids)?;
        }
        Ok(has_changed)
    }

    /// Has a name belong to one of these, as far as it still is theirs. Whether something had to change.
    fn resolve_name(&mut self, place: &Place, ids: &BTreeSet<FileId>) -> Result<bool, T::Error> {
        let mut nodes = Vec::new();
        for id in ids {
            let Some(node) = self.node(id)?.filter(|node| node.places.contains(place)) else {
                continue;
            };
            let before = self.base.node(id)?;
            let here = before
                .as_ref()
                .is_some_and(|before| before.places.contains(place));
            let rank = (
                node.content.is_directory(),
                here,
                before.is_some(),
                node.content.clone(),
                Reverse(*id),
            );
            nodes.push((rank, *id, node));
        }
        nodes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let Some((_, first, winner)) = nodes.pop().filter(|_| !nodes.is_empty()) else {
            return Ok(false);
        };
        // In the order of their ids, which names that are taken depend on.
        nodes.sort_unstable_by_key(|(_, id, _)| *id);
        for (_, id, node) in nodes {
            self.give_way(place, id, node, (first, &winner))?;
        }
        Ok(true)
    }

    /// Two nodes have one name: this one loses it.
    fn give_way(
        &mut self,
        place: &Place,
        id: FileId,
        mut node: Node,
        winner: (FileId, &Node),
    ) -> Result<(), T::Error> {
        let is_new = self.base.node(&id)?.is_none();
        if is_new && node.content.reads_as(&winner.1.content) {
            if node.content.is_directory() {
                // Both made it: what is in one is in the other.
                self.unite(id, winner.0);
                return Ok(());
            }
            // The same content under the same name: one of them is enough.
            node.places.remove(place);
            let left = (!node.places.is_empty()).then_some(node);
            self.now.insert(id, left);
            return Ok(());
        }
        node.places.remove(place);
        let by_id = Content::Special(FileKind::Fifo, 0);
        let mut new = Place {
            parent: place.parent,
            name: conflict_name(&place.name, &by_id, &id.0, 32),
        };
        for digits in DIGITS {
            let name = conflict_name(&place.name, &node.content, &id.0, digits);
            let candidate = Place {
                parent: place.parent,
                name,
            };
            if self.is_free(&candidate)? {
                new = candidate;
                break;
            }
        }
        node.places.insert(new);
        self.now.insert(id, Some(node));
        Ok(())
    }

    fn is_free(&self, place: &Place) -> Result<bool, T::Error> {
        let is_given = self
            .now
            .values()
            .flatten()
            .any(|node| node.places.contains(place));
        Ok(!is_given && self.unchanged_at(place)?.is_none())
    }

    /// Moves what is in the directory `from`, which is not of the base, into `into`.
    fn unite(&mut self, from: FileId, into: FileId) {
        for node in self.now.values_mut().flatten() {
            let inside: Vec<Place> = node
                .places
                .iter()
                .filter(|place| place.parent == from)
                .cloned()
                .collect();
            for mut place in inside {
                node.places.remove(&place);
                place.parent = into;
                node.places.insert(place);
            }
        }
        self.now.insert(from, None);
    }
}

/// A directory of which nothing is known but what is in it.
fn lost(id: &FileId) -> Node {
    let place = Place {
        parent: ROOT,
        name: format!("recovered-{}", id.short()).into_bytes().into(),
    };
    Node {
        places: BTreeSet::from([place]),
        content: Content::Directory,
        meta: super::tree::Meta {
            mode: 0o700,
            ..super::tree::Meta::default()
        },
    }
}
