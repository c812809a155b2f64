//! A snapshot's tree, looked at by path. Called by `history`, `restore`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::base::FileId;
use crate::base::tree::{Place, ROOT};
use crate::object::map::{self, Nodes, Root};
use crate::object::record::{Record, key, own_key};
use crate::volume::{TreeNodes, Volume, VolumeError, of_map};

use super::commit::{damaged, id_at};
use super::plan::{DEPTH_MAX, Node};
use super::{Result, SyncError};

/// A tree.
pub(super) struct Tree<'a> {
    nodes: TreeNodes<'a>,
    root: Root,
    /// Paths of directories that were asked for before.
    paths: RefCell<HashMap<FileId, Option<PathBuf>>>,
}

/// Names with what is at them.
pub(super) type Listed = Vec<(Box<[u8]>, Record)>;

/// The names of a path in the volume. Empty: the volume itself.
pub(super) fn names(path: &Path) -> Result<Vec<&[u8]>> {
    let name = |component| match component {
        Component::Normal(name) => Ok(name.as_bytes()),
        _ => Err(SyncError::NoPath(path.to_owned())),
    };
    path.components().map(name).collect()
}

impl<'a> Tree<'a> {
    pub(super) fn new(volume: &'a Volume, root: Root) -> Self {
        Self {
            nodes: volume.tree_nodes(),
            root,
            paths: RefCell::default(),
        }
    }

    /// What is at a key.
    pub(super) fn record(&self, key: &[u8]) -> Result<Option<Record>> {
        let found = map::get(&self.nodes, &self.root, key).map_err(of_map)?;
        let decoded = found.as_deref().map(Record::decode).transpose();
        decoded.map_err(|error| damaged(&error).into())
    }

    /// The names in a directory, with what is at them.
    pub(super) fn list(&self, id: &FileId) -> Result<Listed> {
        Ok(listed(&self.nodes, &self.root, id)?)
    }

    /// The name at a path, with its record; `None`: there is none, or it is the volume itself.
    pub(super) fn named(&self, path: &Path) -> Result<Option<(Place, Record)>> {
        let (mut at, mut found) = (ROOT, None);
        let names = names(path)?;
        for (n, name) in names.iter().enumerate() {
            let place = Place {
                parent: at,
                name: (*name).into(),
            };
            let Some(record) = self.record(&key(&at, name))? else {
                return Ok(None);
            };
            match record {
                Record::Directory { id } => at = id,
                _ if n + 1 < names.len() => return Ok(None),
                _ => {}
            }
            found = Some((place, record));
        }
        Ok(found)
    }

    /// What is at a path, with its id.
    pub(super) fn find(&self, path: &Path) -> Result<Option<(FileId, Node)>> {
        if names(path)?.is_empty() {
            return Ok(Some((ROOT, Node::default())));
        }
        let Some((place, record)) = self.named(path)? else {
            return Ok(None);
        };
        let Some(id) = id_at(&record) else {
            return Ok(None);
        };
        let node = match record {
            Record::Node { meta, body, .. } => Node {
                places: BTreeSet::from([place]),
                meta,
                body: Some(body),
            },
            _ => match self.own(&id)? {
                Some(node) => node,
                None => return Ok(None),
            },
        };
        Ok(Some((id, node)))
    }

    /// What is found by its id: a directory, or a file of several names.
    pub(super) fn own(&self, id: &FileId) -> Result<Option<Node>> {
        Ok(match self.record(&own_key(id))? {
            Some(Record::Own { parent, name, meta }) => Some(Node {
                places: BTreeSet::from([Place { parent, name }]),
                meta,
                body: None,
            }),
            Some(Record::Shared { places, meta, body }) => Some(Node {
                places,
                meta,
                body: Some(body),
            }),
            _ => None,
        })
    }

    /// The path of a place; `None`: its directory is not in the tree.
    pub(super) fn path(&self, place: &Place) -> Result<Option<PathBuf>> {
        let dir = self.path_of(&place.parent, 0)?;
        Ok(dir.map(|dir| dir.join(OsStr::from_bytes(&place.name))))
    }

    fn path_of(&self, id: &FileId, depth: usize) -> Result<Option<PathBuf>> {
        if *id == ROOT {
            return Ok(Some(PathBuf::new()));
        }
        if let Some(known) = self.paths.borrow().get(id) {
            return Ok(known.clone());
        }
        let place = match depth {
            DEPTH_MAX.. => None,
            _ => self.own(id)?.and_then(|node| node.places.into_iter().next()),
        };
        let path = match place {
            Some(place) => {
                let above = self.path_of(&place.parent, depth + 1)?;
                above.map(|above| above.join(OsStr::from_bytes(&place.name)))
            }
            None => None,
        };
        self.paths.borrow_mut().insert(*id, path.clone());
        Ok(path)
    }
}

/// The names in a directory of a tree, in order, with what is at them.
pub(super) fn listed<N>(nodes: &N, root: &Root, id: &FileId) -> std::result::Result<Listed, VolumeError>
where
    N: Nodes<Error = VolumeError>,
{
    let (mut found, mut wrong) = (Vec::new(), None);
    map::scan(nodes, root, id.as_bytes(), |key, value| {
        match Record::decode_entry(key, value) {
            Ok((at, _, _)) if at != *id => return ControlFlow::Break(()),
            Ok((_, [], _)) => {}
            Ok((_, name, record)) => found.push((name.into(), record)),
            Err(error) => {
                wrong = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })
    .map_err(of_map)?;
    match wrong {
        Some(error) => Err(damaged(&error)),
        None => Ok(found),
    }
}
