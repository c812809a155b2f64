//! A snapshot's map as a tree that is merged, and a merged tree as a snapshot's map.
//!
//! A view is of one map, the base. What other maps have made of it comes from comparing the maps; on the way the view learns what the base has of
//! the files that changed, since a file with a single name cannot be asked for by its id, and the contents that edits only name. Invariant:
//! [`View::records`] of what [`View::edits_to`] gives, and `map::update`, lead to the map that was compared. Called by `sync`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::base::FileId;
use crate::base::codec::DecodeError;
use crate::object::map::{self, MapError, Nodes, Root, diff, get};
use crate::object::record::{self, Body, Record, directory_entries, file_entries, version_hash};

use super::tree::{Content, Edits, Meta, Node, Place, Tree, Version};

/// Why a map is not taken for a tree.
#[derive(Debug, thiserror::Error)]
pub enum ViewError<E> {
    /// The map could not be read.
    #[error(transparent)]
    Map(#[from] MapError<E>),
    /// A record is not as dfs writes it.
    #[error("a record of the tree, under the id {id}, is damaged: {error}")]
    Record {
        /// The directory or file under whose id it is; zeros where the key has none.
        id: FileId,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// Two records say of themselves that they are all of one file.
    #[error("the tree has two files with the id {0}")]
    Twice(FileId),
    /// An edit names a version of a file that is in none of the maps.
    #[error("the content of the file {0} is in none of the trees that are merged")]
    NoContent(FileId),
}

/// A file's content and its length.
type Stored = (crate::object::Content, u64);

/// The base of a merge.
#[derive(Debug)]
pub struct View<'a, N: Nodes + ?Sized> {
    nodes: &'a N,
    root: Root,
    met: RefCell<Met>,
}

/// What was learned of the base and of the others while they were read.
#[derive(Debug, Default)]
struct Met {
    /// Contents by version hash.
    contents: BTreeMap<[u8; 32], Stored>,
    /// What the base has: of what changed in another, and of what was asked for. A merge asks for the same again and again.
    nodes: BTreeMap<FileId, Option<Node>>,
    names: BTreeMap<Place, Option<FileId>>,
}

/// What a side of a comparison says of an id.
#[derive(Debug, Default)]
struct Said {
    node: Option<Node>,
    is_twice: bool,
}

impl<'a, N: Nodes + ?Sized> View<'a, N> {
    /// A view of the map `root`.
    pub fn new(nodes: &'a N, root: &Root) -> Self {
        Self {
            nodes,
            root: *root,
            met: RefCell::default(),
        }
    }

    /// What makes `other` of the base. Costs what differs.
    pub fn edits_to(&mut self, other: &Root) -> Result<Edits, ViewError<N::Error>> {
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        let mut failed = None;
        let met = self.met.get_mut();
        diff(self.nodes, &self.root, other, |key, old, new| {
            for (side, value) in [(&mut before, old), (&mut after, new)] {
                if let Err(error) = value.map_or(Ok(()), |value| met.hear(side, key, value)) {
                    failed = Some(damaged(key, error));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(failed) = failed {
            return Err(failed);
        }
        let twice = before.iter().chain(&after).find(|(_, said)| said.is_twice);
        if let Some((id, _)) = twice {
            return Err(ViewError::Twice(*id));
        }
        let mut edits = Edits::new();
        let ids: BTreeSet<FileId> = before.keys().chain(after.keys()).copied().collect();
        for id in ids {
            let said = |side: &mut BTreeMap<FileId, Said>| side.remove(&id).and_then(|said| said.node);
            let (old, new) = (said(&mut before), said(&mut after));
            if old != new {
                edits.insert(id, new);
            }
            met.nodes.insert(id, old);
        }
        Ok(edits)
    }

    /// What the edits, of this view or merged from such, change in the base's map. Of the contents only those can be written that are in the base
    /// or in what it was compared with.
    pub fn records(&self, edits: &Edits) -> Result<map::Edits, ViewError<N::Error>> {
        let mut changes = map::Edits::new();
        for id in edits.keys() {
            let Some(old) = self.node(id)? else { continue };
            changes.insert(record::own_key(id), None);
            let keys = old
                .places
                .iter()
                .map(|place| record::key(&place.parent, &place.name));
            changes.extend(keys.map(|key| (key, None)));
        }
        // After all that goes: what comes may have the name of what goes.
        for (id, node) in edits {
            let Some(node) = node else { continue };
            let entries = self.entries(*id, node)?;
            changes.extend(
                entries
                    .into_iter()
                    .map(|(key, record)| (key, Some(record.encode()))),
            );
        }
        Ok(changes)
    }

    fn entries(&self, id: FileId, node: &Node) -> Result<BTreeMap<Vec<u8>, Record>, ViewError<N::Error>> {
        let (places, meta) = (node.places.clone(), node.meta.clone());
        let body = match &node.content {
            Content::Directory => {
                let place = places.into_iter().next();
                return Ok(place.map_or_else(BTreeMap::new, |place| directory_entries(id, place, meta)));
            }
            Content::Symlink(target) => Body::Symlink(target.clone()),
            Content::Special(kind, number) => Body::Special(*kind, *number),
            Content::File(version) => {
                let met = self.met.borrow();
                let stored = met.contents.get(&version.hash).ok_or(ViewError::NoContent(id))?;
                let (content, size) = stored.clone();
                Body::File {
                    content,
                    size,
                    author: version.author,
                }
            }
        };
        Ok(file_entries(id, places, meta, body))
    }

    fn record(&self, key: &[u8]) -> Result<Option<Record>, ViewError<N::Error>> {
        let Some(value) = get(self.nodes, &self.root, key)? else {
            return Ok(None);
        };
        let (_, _, record) = Record::decode_entry(key, &value).map_err(|error| damaged(key, error))?;
        Ok(Some(record))
    }
}

impl<N: Nodes + ?Sized> Tree for View<'_, N> {
    type Error = ViewError<N::Error>;

    /// A node of the base. A file with a single name is found if it differs in a map that the base was compared with, if its name was asked for,
    /// or if its id is derived: nobody asks for another one.
    fn node(&self, id: &FileId) -> Result<Option<Node>, Self::Error> {
        if let Some(known) = self.met.borrow().nodes.get(id) {
            return Ok(known.clone());
        }
        let record = self.record(&record::own_key(id))?;
        let mut met = self.met.borrow_mut();
        let node = record.and_then(|record| met.node(*id, None, record));
        let node = node.map(|(_, node)| node);
        met.nodes.insert(*id, node.clone());
        Ok(node)
    }

    fn at(&self, place: &Place) -> Result<Option<FileId>, Self::Error> {
        if let Some(known) = self.met.borrow().names.get(place) {
            return Ok(*known);
        }
        let record = self.record(&record::key(&place.parent, &place.name))?;
        let mut met = self.met.borrow_mut();
        let id = match record {
            Some(record @ Record::Node { .. }) => {
                let found = met.node(place.parent, Some(place.name.clone()), record);
                found.map(|(id, node)| {
                    met.nodes.insert(id, Some(node));
                    id
                })
            }
            Some(Record::Directory { id } | Record::Link { id }) => Some(id),
            Some(Record::Own { .. } | Record::Shared { .. }) | None => None,
        };
        met.names.insert(place.clone(), id);
        Ok(id)
    }
}

impl Met {
    /// Takes what one side of a comparison has under a key.
    fn hear(
        &mut self,
        side: &mut BTreeMap<FileId, Said>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), DecodeError> {
        let (id, name, record) = Record::decode_entry(key, value)?;
        let name = (!name.is_empty()).then(|| name.into());
        if let Some((id, node)) = self.node(id, name, record) {
            let taken = side.get(&id).is_some_and(|said| said.node.is_some());
            // Two files of one id, which no device should make: the second is taken for one of its own, the same on every device.
            let id = if taken { record::twin(&id, key) } else { id };
            let said = side.entry(id).or_default();
            said.is_twice |= said.node.replace(node).is_some();
        }
        Ok(())
    }

    /// The node that a record says all of, with its id. Of the others the record at their id says it.
    fn node(&mut self, id: FileId, name: Option<Box<[u8]>>, record: Record) -> Option<(FileId, Node)> {
        let (id, places, content, meta) = match record {
            Record::Directory { .. } | Record::Link { .. } => return None,
            Record::Own { parent, name, meta } => {
                let places = BTreeSet::from([Place { parent, name }]);
                (id, places, Content::Directory, meta)
            }
            Record::Shared { places, meta, body } => (id, places, self.content(body), meta),
            Record::Node { id: own, meta, body } => {
                let places = BTreeSet::from_iter(name.map(|name| Place { parent: id, name }));
                (own, places, self.content(body), meta)
            }
        };
        Some((id, node(places, content, meta)))
    }

    fn content(&mut self, body: Body) -> Content {
        match body {
            Body::Symlink(target) => Content::Symlink(target),
            Body::Special(kind, number) => Content::Special(kind, number),
            Body::File {
                content,
                size,
                author,
            } => {
                let hash = version_hash(&content);
                self.contents.insert(hash, (content, size));
                Content::File(Version { hash, author })
            }
        }
    }
}

fn node(places: BTreeSet<Place>, content: Content, meta: Meta) -> Node {
    Node {
        places,
        content,
        meta,
    }
}

fn damaged<E>(key: &[u8], error: DecodeError) -> ViewError<E> {
    let id = record::parse_key(key).map_or(FileId([0; FileId::LEN]), |(id, _)| id);
    ViewError::Record { id, error }
}
