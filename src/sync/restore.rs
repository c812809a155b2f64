//! A tree in which one path is as it was in an earlier one, and the folder brought to it: an ordinary change of this device, which others take in and
//! which can itself be taken back.
//!
//! Invariant: what is outside of the path stays as it is, but for directories above it that come back. An id that somebody has outside of it is
//! not given twice: what comes back gets a new one. Called by `daemon`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::tree::{Place, ROOT};
use crate::base::{BlockId, FileId};
use crate::object::map::{self, Edits, Root};
use crate::object::record::{Record, directory_entries, file_entries, key, own_key};
use crate::volume::{Volume, of_map};

use super::history::At;
use super::journal::Kept;
use super::lookup::{Tree, names};
use super::plan::{Changes, Node, Reading, changes, reads_as};
use super::{Engine, Result, SyncError, apply};

/// How long a restore waits for what others did and is being brought here.
const TURN_WITHIN: Duration = Duration::from_secs(60);

/// How often something that was in the way is tried again.
const TRIES: usize = 3;

/// Records changed before they go into the tree: what is held in memory at once.
const FLUSH: usize = 50_000;

/// What came of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// What it was brought back to.
    pub from: Kept,
    /// The snapshot that says so; `None`: it was like that already.
    pub snapshot: Option<BlockId>,
    /// Changes made in the folder.
    pub changes: usize,
}

impl Engine {
    /// Brings a path of the volume back to what it was in a snapshot that is kept; without one, to the newest in which it existed. An empty path is
    /// the whole volume. Fails with [`SyncError::InTheWay`] when files that are being written kept a part from being done: the rest is.
    pub fn restore(&self, path: &Path, at: Option<&At>) -> Result<Restored> {
        let Some(_turn) = self.turn.try_lock_for(TURN_WITHIN) else {
            return Err(SyncError::Busy);
        };
        if !self.may_write {
            return Err(SyncError::ReadOnly);
        }
        self.commit()?;
        let from = match at {
            Some(at) => self.kept_at(at)?,
            None => self.newest_with(path)?,
        };
        let then = self.snapshot(&from.id)?.root;
        let (mut done, mut left) = (0, 0);
        for _ in 0..TRIES {
            // What was in the way, and what was done of it.
            self.commit()?;
            let head = self.journal().head;
            let now = match head {
                Some(head) => self.snapshot(&head)?.root,
                None => Root::EMPTY,
            };
            let _no_collection = self.volume.committing();
            let target = tree(&self.volume, now, then, path)?;
            if target == now {
                return Ok(Restored {
                    from,
                    snapshot: head.filter(|_| done > 0),
                    changes: done,
                });
            }
            let outcome = apply::apply(&self.volume, now, target, None)?;
            (done, left) = (done + outcome.done, outcome.left);
            if left > 0 {
                continue;
            }
            self.volume.keep_here(&outcome.read)?;
            self.volume.make_durable()?;
            let snapshot = self.made(head, target)?;
            self.tell();
            return Ok(Restored {
                from,
                snapshot: Some(snapshot),
                changes: done,
            });
        }
        Err(SyncError::InTheWay { done, left })
    }

    /// The newest snapshot in which a path existed, which it does not any more.
    fn newest_with(&self, path: &Path) -> Result<Kept> {
        let journal = self.journal();
        for kept in journal.kept.iter().rev() {
            let tree = Tree::new(&self.volume, self.snapshot(&kept.id)?.root);
            if tree.find(path)?.is_none() {
                continue;
            }
            return match Some(kept.id) == journal.head {
                true => Err(SyncError::StillThere(path.to_owned())),
                false => Ok(*kept),
            };
        }
        Err(SyncError::NeverThere(path.to_owned()))
    }
}

/// The tree `now`, with what is at the path as it was `then`.
pub(super) fn tree(volume: &Volume, now: Root, then: Root, path: &Path) -> Result<Root> {
    let names = names(path)?;
    let Some((name, above)) = names.split_last() else {
        return Ok(then);
    };
    let reading = Reading {
        nodes: volume.tree_nodes(),
        read: RefCell::default(),
    };
    let mut restore = Restore {
        volume,
        now: Tree::new(volume, now),
        then: Tree::new(volume, then),
        since: changes(&reading, &then, &now)?,
        root: now,
        edits: Edits::new(),
        cleared: HashSet::new(),
        outside: BTreeMap::new(),
    };
    let Some((was, old)) = restore.then.named(path)? else {
        return Err(SyncError::NotThereThen(path.to_owned()));
    };
    let parent = restore.parents(above)?;
    let place = Place {
        parent,
        name: (*name).into(),
    };
    restore.clear(&place)?;
    restore.bring(old, was, place)?;
    restore.flush(1)?;
    Ok(restore.root)
}

struct Restore<'a> {
    volume: &'a Volume,
    now: Tree<'a>,
    then: Tree<'a>,
    /// What differs: where things are now that were elsewhere then.
    since: Changes,
    /// The new tree so far.
    root: Root,
    edits: Edits,
    /// What was at the path, and has no other name.
    cleared: HashSet<FileId>,
    /// Files that had a name there, with those that they have elsewhere.
    outside: BTreeMap<FileId, BTreeSet<Place>>,
}

impl Restore<'_> {
    /// The directory above. Those that are gone come back, without what was in them.
    fn parents(&mut self, above: &[&[u8]]) -> Result<FileId> {
        let (mut at, mut path) = (ROOT, PathBuf::new());
        for name in above {
            path.push(OsStr::from_bytes(name));
            match self.now.record(&key(&at, name))? {
                Some(Record::Directory { id }) => at = id,
                Some(_) => return Err(SyncError::NotADirectory(path)),
                None => {
                    let Some((was, node)) = self.then.find(&path)? else {
                        return Err(SyncError::NotThereThen(path));
                    };
                    let place = Place {
                        parent: at,
                        name: (*name).into(),
                    };
                    at = self.free(was)?;
                    self.put(directory_entries(at, place, node.meta))?;
                }
            }
        }
        Ok(at)
    }

    /// Takes away what is at a place now, with everything below.
    fn clear(&mut self, place: &Place) -> Result<()> {
        let mut todo = vec![place.clone()];
        let mut linked: BTreeMap<FileId, BTreeSet<Place>> = BTreeMap::new();
        while let Some(place) = todo.pop() {
            let at = key(&place.parent, &place.name);
            match self.now.record(&at)? {
                Some(Record::Node { id, .. }) => drop(self.cleared.insert(id)),
                Some(Record::Directory { id }) => {
                    self.cleared.insert(id);
                    self.edits.insert(own_key(&id), None);
                    let below = self.now.list(&id)?.into_iter();
                    todo.extend(below.map(|(name, _)| Place { parent: id, name }));
                }
                Some(Record::Link { id }) => drop(linked.entry(id).or_default().insert(place)),
                Some(Record::Own { .. } | Record::Shared { .. }) | None => continue,
            }
            self.edits.insert(at, None);
            self.flush(FLUSH)?;
        }
        for (id, gone) in linked {
            let Some(Node { places, meta, body }) = self.now.own(&id)? else {
                continue;
            };
            let left: BTreeSet<Place> = places.difference(&gone).cloned().collect();
            self.edits.insert(own_key(&id), None);
            match body {
                Some(body) if !left.is_empty() => {
                    self.put(file_entries(id, left.clone(), meta, body))?;
                    self.outside.insert(id, left);
                }
                _ => drop(self.cleared.insert(id)),
            }
        }
        Ok(())
    }

    /// Puts what was at a place to another one, with everything below.
    fn bring(&mut self, old: Record, was: Place, place: Place) -> Result<()> {
        let mut todo = vec![(old, was, place)];
        // Of files with several names: those here as they were then, and as they are to be.
        let mut linked: BTreeMap<FileId, (BTreeSet<Place>, BTreeSet<Place>)> = BTreeMap::new();
        while let Some((old, was, place)) = todo.pop() {
            match old {
                Record::Node { id, meta, body } => {
                    let id = self.free(id)?;
                    self.put(file_entries(id, BTreeSet::from([place]), meta, body))?;
                }
                Record::Directory { id: old } => {
                    let Some(Node { meta, .. }) = self.then.own(&old)? else {
                        continue;
                    };
                    let id = self.free(old)?;
                    self.put(directory_entries(id, place, meta))?;
                    for (name, record) in self.then.list(&old)? {
                        let at = |parent| Place {
                            parent,
                            name: name.clone(),
                        };
                        todo.push((record, at(old), at(id)));
                    }
                }
                Record::Link { id } => {
                    let (then, new) = linked.entry(id).or_default();
                    then.insert(was);
                    new.insert(place);
                }
                Record::Own { .. } | Record::Shared { .. } => {}
            }
        }
        for (was, (then, mut places)) in linked {
            let Some(node) = self.then.own(&was)? else {
                continue;
            };
            let Node {
                meta,
                body: Some(body),
                ..
            } = &node
            else {
                continue;
            };
            let id = match self.rest_of(&was, &node, &then)? {
                Some(elsewhere) => {
                    places.extend(elsewhere);
                    was
                }
                None => self.free(was)?,
            };
            self.put(file_entries(id, places, meta.clone(), body.clone()))?;
        }
        Ok(())
    }

    /// The names that a file has outside of the path, if it is still what it was and had one of them then.
    fn rest_of(&self, id: &FileId, then: &Node, here: &BTreeSet<Place>) -> Result<Option<BTreeSet<Place>>> {
        let now = match self.since.get(id) {
            Some(change) => &change.after,
            None => then,
        };
        let same = match (&now.body, &then.body) {
            (Some(now), Some(then)) => reads_as(now, then),
            _ => false,
        };
        if self.cleared.contains(id) || !same || now.meta != then.meta {
            return Ok(None);
        }
        let left = self.outside.get(id).unwrap_or(&now.places);
        let had = then.places.difference(here).any(|place| left.contains(place));
        Ok(had.then(|| left.clone()))
    }

    /// An id for what had this one: the same, unless somebody has it now.
    fn free(&self, id: FileId) -> Result<FileId> {
        let exists = match self.since.get(&id) {
            Some(change) => !change.after.places.is_empty(),
            None => true,
        };
        match exists && !self.cleared.contains(&id) {
            true => Ok(self.volume.new_id()?),
            false => Ok(id),
        }
    }

    fn put(&mut self, entries: BTreeMap<Vec<u8>, Record>) -> Result<()> {
        let entries = entries
            .into_iter()
            .map(|(key, record)| (key, Some(record.encode())));
        self.edits.extend(entries);
        self.flush(FLUSH)
    }

    fn flush(&mut self, at_least: usize) -> Result<()> {
        if self.edits.len() >= at_least {
            let edits = std::mem::take(&mut self.edits);
            self.root = map::update(&self.volume.tree_nodes(), &self.root, &edits).map_err(of_map)?;
        }
        Ok(())
    }
}
