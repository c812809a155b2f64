//! The merged nodes as a tree again: needed directories are there, none is inside itself, every name is somebody's alone.

use std::collections::{BTreeMap, BTreeSet};

use super::names::conflict_name;
use super::tree::{Content, Edits, Node, Place, ROOT, Tree};
use crate::base::FileId;

/// Digits of a conflict name: more when that name is taken by something else.
const DIGITS: [usize; 3] = [8, 16, 32];

/// A tree under repair: changes over a base.
pub(super) struct Shape<'a> {
    base: &'a dyn Tree,
    left: &'a Edits,
    right: &'a Edits,
    now: Edits,
}

impl<'a> Shape<'a> {
    pub(super) fn new(base: &'a dyn Tree, left: &'a Edits, right: &'a Edits) -> Self {
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

    pub(super) fn into_edits(mut self) -> Edits {
        let base = self.base;
        self.now.retain(|id, node| base.node(id) != *node);
        self.now
    }

    /// Repairs until nothing is wrong.
    pub(super) fn settle(&mut self) {
        loop {
            self.revive();
            if !self.break_cycle() && !self.resolve_names() {
                return;
            }
        }
    }

    fn node(&self, id: &FileId) -> Option<Node> {
        self.now.get(id).cloned().unwrap_or_else(|| self.base.node(id))
    }

    fn parent(&self, id: &FileId) -> Option<FileId> {
        Some(self.node(id)?.places.first()?.parent)
    }

    /// Brings directories back that something is in.
    fn revive(&mut self) {
        let live = self.now.values().flatten();
        let mut wanted: Vec<FileId> = live
            .flat_map(|node| &node.places)
            .map(|place| place.parent)
            .collect();
        while let Some(id) = wanted.pop() {
            if id == ROOT || self.node(&id).is_some_and(|node| node.content.is_directory()) {
                continue;
            }
            // Whoever put something in it had it.
            let side = |edits: &Edits| edits.get(&id).cloned().unwrap_or_else(|| self.base.node(&id));
            let known = [side(self.left), side(self.right), self.base.node(&id)];
            let found = known
                .into_iter()
                .flatten()
                .find(|node| node.content.is_directory());
            let node = found.unwrap_or_else(|| lost(&id));
            wanted.extend(node.places.iter().map(|place| place.parent));
            self.now.insert(id, Some(node));
        }
    }

    /// Takes one move back that put a directory inside itself. Whether there was one.
    fn break_cycle(&mut self) -> bool {
        let moved: Vec<FileId> = self.now.keys().copied().collect();
        for start in moved {
            let mut seen = BTreeSet::new();
            let mut at = start;
            while at != ROOT && seen.insert(at) {
                let Some(parent) = self.parent(&at) else { break };
                at = parent;
            }
            if at == ROOT || self.node(&at).is_none() {
                continue;
            }
            // `at` is on the cycle.
            let mut cycle = BTreeSet::from([at]);
            let mut next = self.parent(&at);
            while let Some(id) = next.filter(|id| cycle.insert(*id)) {
                next = self.parent(&id);
            }
            let place_before = |id: &FileId| self.base.node(id).map(|node| node.places);
            let back = cycle
                .iter()
                .rev()
                .find_map(|id| {
                    let before = place_before(id)?;
                    (self.node(id)?.places != before).then_some((*id, before))
                })
                .unwrap_or_else(|| (at, lost(&at).places));
            if let Some(mut node) = self.node(&back.0) {
                node.places = back.1;
                self.now.insert(back.0, Some(node));
            }
            return true;
        }
        false
    }

    /// Has every name belong to one. Whether something had to change.
    fn resolve_names(&mut self) -> bool {
        let mut names: BTreeMap<Place, BTreeSet<FileId>> = BTreeMap::new();
        for (id, node) in &self.now {
            for place in node.iter().flat_map(|node| &node.places) {
                names.entry(place.clone()).or_default().insert(*id);
            }
        }
        for (place, ids) in &mut names {
            let unchanged = self.base.at(place).filter(|id| !self.now.contains_key(id));
            ids.extend(unchanged);
        }
        let Some((place, ids)) = names.into_iter().find(|(_, ids)| ids.len() > 1) else {
            return false;
        };
        let nodes: Vec<(FileId, Node)> = ids.iter().filter_map(|id| Some((*id, self.node(id)?))).collect();
        let rank = |(id, node): &(FileId, Node)| {
            let here = self
                .base
                .node(id)
                .is_some_and(|base| base.places.contains(&place));
            let known = self.base.node(id).is_some();
            (
                node.content.is_directory(),
                here,
                known,
                node.content.clone(),
                std::cmp::Reverse(*id),
            )
        };
        let Some(winner) = nodes.iter().max_by_key(|node| rank(node)).cloned() else {
            return false;
        };
        for (id, node) in nodes {
            if id != winner.0 {
                self.give_way(&place, id, node, &winner);
            }
        }
        true
    }

    /// Two nodes have one name: this one loses it.
    fn give_way(&mut self, place: &Place, id: FileId, mut node: Node, winner: &(FileId, Node)) {
        let is_new = self.base.node(&id).is_none();
        if is_new && node.content.reads_as(&winner.1.content) {
            if node.content.is_directory() {
                // Both made it: what is in one is in the other.
                return self.unite(id, winner.0);
            }
            // The same content under the same name: one of them is enough.
            node.places.remove(place);
            let left = (!node.places.is_empty()).then_some(node);
            self.now.insert(id, left);
            return;
        }
        node.places.remove(place);
        let free = |place: &Place| {
            let taken = self
                .base
                .at(place)
                .filter(|id| !self.now.contains_key(id))
                .is_some();
            !taken
                && !self
                    .now
                    .values()
                    .flatten()
                    .any(|node| node.places.contains(place))
        };
        let candidates = DIGITS.iter().map(|digits| Place {
            parent: place.parent,
            name: conflict_name(&place.name, &node.content, &id.0, *digits),
        });
        let named = candidates.clone().find(free);
        let by_id = || Place {
            parent: place.parent,
            name: conflict_name(
                &place.name,
                &Content::Special(crate::base::types::FileKind::Fifo, 0),
                &id.0,
                32,
            ),
        };
        node.places.insert(named.unwrap_or_else(by_id));
        self.now.insert(id, Some(node));
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
