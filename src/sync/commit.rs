//! A commit: what changed in the folder becomes a new tree, at the cost of what changed.
//!
//! Files are followed by the ids in their slots, directories by theirs; what has none (links, special files, empty files) by its place.
//! Invariant: the new tree has every name that was looked at as it was then, and all others as before. Names that change meanwhile may be in it
//! twice, or not at all: they are noted, and another commit over this one has them right. Called by `engine`, which does that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::apply::is_possible;
use super::lookup::listed;
use crate::base::tree::{Meta, Place, ROOT};
use crate::base::{DeviceId, FileId};
use crate::object::map::{self, Edits, Root};
use crate::object::record::{Body, Record, file_entries, key, own_key};
use crate::volume::{DirAt, Frozen, Named, Noted, Seen, TreeNodes, Volume, VolumeError, What, of_map};

/// Of the volume.
type Result<T> = std::result::Result<T, VolumeError>;

/// Records changed before they go into the tree: what is held in memory at once.
const FLUSH: usize = 50_000;

/// A commit under way.
struct Commit<'a> {
    volume: &'a Volume,
    device: DeviceId,
    nodes: TreeNodes<'a>,
    /// The tree before.
    before: Root,
    /// The tree so far.
    now: Root,
    edits: Edits,
    /// Directories that have a place, and those that lost theirs.
    placed: HashSet<FileId>,
    lost: BTreeSet<(FileId, Place)>,
    /// Directories in which something was looked at.
    touched: BTreeSet<FileId>,
    /// Files of several names, before or now: where they were seen, and where they are not any more.
    links: BTreeMap<FileId, Linked>,
    /// Everything is looked at: what came from outside, copies among it.
    everything: bool,
    /// The inode that has an id.
    claimed: HashMap<FileId, u64>,
    /// What has no id of its own, to be looked at last: only then it is known which ids are free.
    later: Vec<(FileId, OsString, Seen)>,
    looked: &'a mut Looked,
    /// Directories that are in the tree now, though nobody looked into them: their id, where they are, their name.
    unlooked: Vec<(FileId, DirAt, OsString)>,
}

/// The directories into which one commit looked so far, over all its looks at what changed meanwhile.
#[derive(Default)]
pub(super) struct Looked {
    /// Everything was to be looked at: what moved out of the way of that look is in here or has to be looked into.
    everything: bool,
    /// With their inodes.
    dirs: HashMap<FileId, u64>,
    /// Files of several names of which one was found so far.
    single: HashMap<FileId, Place>,
    /// Empty files that were taken for the ones that had their places before: they have no ids of their own.
    assumed: HashMap<FileId, Place>,
}

#[derive(Default)]
struct Linked {
    seen: BTreeMap<Place, (Meta, Body)>,
    gone: BTreeSet<Place>,
}

/// The tree with all that was noted.
pub(super) fn tree(
    volume: &Volume,
    device: DeviceId,
    before: Root,
    noted: &Noted,
    frozen: Option<&Frozen<'_>>,
    looked: &mut Looked,
) -> Result<Root> {
    let mut commit = Commit {
        volume,
        device,
        nodes: volume.tree_nodes(),
        before,
        now: before,
        edits: Edits::new(),
        placed: HashSet::new(),
        lost: BTreeSet::new(),
        touched: BTreeSet::new(),
        links: BTreeMap::new(),
        everything: noted.is_everything(),
        claimed: HashMap::new(),
        later: Vec::new(),
        looked,
        unlooked: Vec::new(),
    };
    match commit.everything {
        true => commit.look_at_everything()?,
        false => commit.look_at(noted, frozen)?,
    }
    commit.look_at_rest()?;
    commit.finish()
}

impl Commit<'_> {
    fn look_at(&mut self, noted: &Noted, frozen: Option<&Frozen<'_>>) -> Result<()> {
        for (mut dir, names) in self.volume.noted_dirs(noted, frozen)? {
            let id = self.volume.ensure_dir_id(&mut dir)?;
            if self.is_unlooked(&id)? {
                let names = self.volume.names_in(&dir)?;
                self.look_in(&mut dir, &names)?;
                continue;
            }
            self.touched.insert(id);
            for name in names {
                let old = self.record(&key(&id, name.as_bytes()))?;
                let seen = self.volume.look(&dir, &name);
                self.take(&dir, id, &name, old, seen)?;
            }
            self.flush(FLUSH)?;
        }
        while let Some((id, above, name)) = self.unlooked.pop() {
            if self.looked.dirs.contains_key(&id) {
                continue;
            }
            match self.volume.dir_in(&above, &name) {
                Ok(mut dir) => {
                    let names = self.volume.names_in(&dir)?;
                    self.look_in(&mut dir, &names)?;
                }
                // It moved again, and is noted again.
                Err(VolumeError::NotFound | VolumeError::NotDirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a directory is new in the tree, or moved while everything was looked at, so that what is in it is not known.
    fn is_unlooked(&self, id: &FileId) -> Result<bool> {
        Ok(!self.looked.dirs.contains_key(id)
            && *id != ROOT
            && (self.looked.everything || self.record(&own_key(id))?.is_none()))
    }

    fn look_at_everything(&mut self) -> Result<()> {
        let volume = self.volume;
        *self.looked = Looked {
            everything: true,
            ..Looked::default()
        };
        volume.walk_dirs(&mut |dir, names| {
            let known = dir.id.and_then(|id| self.looked.dirs.get(&id));
            if known == Some(&dir.ino()) {
                // It moved to where it is met again, and is noted.
                return Ok(());
            }
            // A copy of a directory has the id of the first.
            if known.is_some() {
                volume.set_dir_id(dir, volume.new_id()?)?;
            }
            self.look_in(dir, names)
        })
    }

    /// Looks at all names in a directory, and at those that were in it before.
    fn look_in(&mut self, dir: &mut DirAt, names: &[Named]) -> Result<()> {
        let id = self.volume.ensure_dir_id(dir)?;
        self.looked.dirs.insert(id, dir.ino());
        self.touched.insert(id);
        let mut old = BTreeMap::from_iter(listed(&self.nodes, &self.before, &id)?);
        for (name, _) in names {
            let before = old.remove(name.as_bytes());
            let seen = self.volume.look(dir, name);
            self.take(dir, id, name, before, seen)?;
        }
        for (name, before) in old {
            self.take(dir, id, OsStr::from_bytes(&name), Some(before), Ok(None))?;
        }
        self.flush(FLUSH)
    }

    fn look_at_rest(&mut self) -> Result<()> {
        let mut by_inode = HashMap::new();
        for (dir, name, seen) in std::mem::take(&mut self.later) {
            let old = self.record(&key(&dir, name.as_bytes()))?;
            let free = |id: &FileId| !self.claimed.contains_key(id);
            // A copied `.f`, or nothing but its place says which one it is: then it is what was there, or new.
            let same = match &old {
                Some(Record::Node { id, body, .. }) if is_alike(body, &seen) => Some(*id),
                Some(Record::Link { id }) if seen.linked => Some(*id),
                _ => None,
            };
            let known = by_inode.get(&seen.ino).copied();
            // Another name of what was met already.
            let own = |id: &FileId| self.claimed.get(id).is_none_or(|ino| *ino == seen.ino);
            let own = known.or(seen.id.filter(own));
            let same = same.filter(free);
            let id = own.or(same).map_or_else(|| self.volume.new_id(), Ok)?;
            if own.is_none() && same.is_some() && matches!(seen.what, What::File(..)) {
                let name = name.as_bytes().into();
                self.looked.assumed.insert(id, Place { parent: dir, name });
            }
            self.claimed.insert(id, seen.ino);
            by_inode.insert(seen.ino, id);
            self.put(dir, &name, old, seen, id)?;
            self.flush(FLUSH)?;
        }
        Ok(())
    }

    fn record(&self, key: &[u8]) -> Result<Option<Record>> {
        let found = map::get(&self.nodes, &self.before, key).map_err(of_map)?;
        let decode = |value: Vec<u8>| Record::decode(&value).map_err(|error| damaged(&error));
        found.map(decode).transpose()
    }

    /// What was found at a name takes the place of what was there before.
    fn take(
        &mut self,
        dir: &DirAt,
        id: FileId,
        name: &OsStr,
        old: Option<Record>,
        seen: Result<Option<Seen>>,
    ) -> Result<()> {
        let seen = match seen {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                // What cannot be made on this device was never here to be removed.
                if self.is_possible(old.as_ref())? {
                    self.gone(id, name, old.as_ref(), None);
                }
                return Ok(());
            }
            Err(VolumeError::Damaged { path, reason }) => {
                tracing::warn!(file = %path, %reason, "a damaged file stays in the snapshots as it was");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let own = match seen.id {
            Some(own) => own,
            None if seen.what == What::Directory => match self.volume.dir_in(dir, name) {
                Ok(mut below) => self.volume.ensure_dir_id(&mut below)?,
                // It moved meanwhile, and is noted.
                Err(VolumeError::NotFound | VolumeError::NotDirectory) => {
                    self.gone(id, name, old.as_ref(), None);
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
            None => {
                self.later.push((id, name.to_owned(), seen));
                return Ok(());
            }
        };
        let is_first = || self.before.id.is_none() || old.as_ref().and_then(id_at) == Some(own);
        let is_other = match self.claimed.get(&own) {
            Some(ino) => *ino != seen.ino,
            None => self.everything && seen.what != What::Directory && !is_first(),
        };
        if is_other && seen.what != What::Directory {
            self.later.push((id, name.to_owned(), seen));
            return Ok(());
        }
        self.claimed.insert(own, seen.ino);
        if seen.id.is_some() {
            self.not_assumed(own, id, name)?;
        }
        if seen.what == What::Directory && !self.everything && self.is_unlooked(&own)? {
            self.unlooked.push((own, dir.clone(), name.to_owned()));
        }
        self.put(id, name, old, seen, own)
    }

    /// Whether what a record says can be on this device.
    fn is_possible(&self, record: Option<&Record>) -> Result<bool> {
        match record {
            Some(Record::Node { body, .. }) => is_possible(self.volume, body),
            Some(Record::Link { id }) => match self.record(&own_key(id))? {
                Some(Record::Shared { body, .. }) => is_possible(self.volume, &body),
                _ => Ok(true),
            },
            _ => Ok(true),
        }
    }

    /// A file was found by its id: what was taken for it elsewhere is another one.
    fn not_assumed(&mut self, id: FileId, dir: FileId, name: &OsStr) -> Result<()> {
        let elsewhere = |place: &Place| place.parent != dir || *place.name != *name.as_bytes();
        let Some(place) = self.looked.assumed.remove(&id).filter(elsewhere) else {
            return Ok(());
        };
        let at = key(&place.parent, &place.name);
        if let Some(Record::Node {
            id: there,
            meta,
            body,
        }) = self.now_at(&at)?
            && there == id
        {
            let id = self.volume.new_id()?;
            self.edits
                .insert(at, Some(Record::Node { id, meta, body }.encode()));
        }
        Ok(())
    }

    /// Records what is at a name.
    fn put(&mut self, dir: FileId, name: &OsStr, old: Option<Record>, seen: Seen, id: FileId) -> Result<()> {
        let before = old.as_ref().and_then(id_at);
        self.gone(dir, name, old.as_ref(), Some(&id));
        let place = Place {
            parent: dir,
            name: name.as_bytes().into(),
        };
        let at = key(&dir, name.as_bytes());
        let mut meta = seen.meta;
        let Some(body) = seen.what.into_body(self.device) else {
            let old = self.record(&own_key(&id))?;
            if let Some(Record::Own { meta: old, .. }) = &old {
                meta.owner = old.owner;
            }
            let own = Record::Own {
                parent: dir,
                name: place.name,
                meta,
            };
            self.placed.insert(id);
            if old.as_ref() != Some(&own) {
                self.edits.insert(own_key(&id), Some(own.encode()));
            }
            if before != Some(id) {
                self.edits.insert(at, Some(Record::Directory { id }.encode()));
            }
            return Ok(());
        };
        let was_linked = matches!(old, Some(Record::Link { id: old }) if old == id);
        if seen.linked || was_linked || id.is_derived() {
            self.links.entry(id).or_default().seen.insert(place, (meta, body));
            return Ok(());
        }
        let node = match &old {
            Some(Record::Node {
                id: old,
                meta: had,
                body: was,
            }) if *old == id => {
                meta.owner = had.owner;
                Record::Node {
                    id,
                    meta,
                    body: by_its_author(body, was),
                }
            }
            _ => Record::Node { id, meta, body },
        };
        if old.as_ref() != Some(&node) {
            self.edits.insert(at, Some(node.encode()));
        }
        Ok(())
    }

    /// What was at a name is there no more, unless it is `now`.
    fn gone(&mut self, dir: FileId, name: &OsStr, old: Option<&Record>, now: Option<&FileId>) {
        let Some(id) = old.and_then(id_at) else { return };
        if Some(&id) == now {
            return;
        }
        let place = Place {
            parent: dir,
            name: name.as_bytes().into(),
        };
        match old {
            Some(Record::Directory { .. }) => drop(self.lost.insert((id, place))),
            Some(Record::Link { .. }) => drop(self.links.entry(id).or_default().gone.insert(place)),
            _ => {}
        }
        self.edits.insert(key(&dir, name.as_bytes()), None);
    }

    fn flush(&mut self, at_least: usize) -> Result<()> {
        if self.edits.len() >= at_least {
            let edits = std::mem::take(&mut self.edits);
            self.now = map::update(&self.nodes, &self.now, &edits).map_err(of_map)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Root> {
        for (id, linked) in std::mem::take(&mut self.links) {
            self.link(id, linked)?;
        }
        self.flush(1)?;
        // What is below a directory that is gone is gone with it, but for what has a place elsewhere now. One that moves has none until its new
        // name is looked at.
        let mut lost = BTreeSet::new();
        for (id, place) in &self.lost {
            // Met elsewhere already, its old name was only found out later.
            if !self.placed.contains(id) && self.is_at(id, place)? {
                lost.insert(*id);
            }
        }
        for id in &self.touched {
            if *id != ROOT && !self.placed.contains(id) && self.now_at(&own_key(id))?.is_none() {
                lost.insert(*id);
            }
        }
        let mut lost = Vec::from_iter(lost);
        while let Some(id) = lost.pop() {
            // What was seen in it before it was lost, too.
            self.flush(1)?;
            self.looked.dirs.remove(&id);
            for (name, record) in listed(&self.nodes, &self.now, &id)? {
                match record {
                    Record::Directory { id: below } => {
                        let name = name.clone();
                        if self.is_at(&below, &Place { parent: id, name })? {
                            lost.push(below);
                        }
                    }
                    Record::Link { id: file } => {
                        let place = Place {
                            parent: id,
                            name: name.clone(),
                        };
                        let linked = Linked {
                            gone: BTreeSet::from([place]),
                            ..Linked::default()
                        };
                        self.link(file, linked)?;
                    }
                    _ => {}
                }
                // Also where a file was just given its other names: this one went with the directory.
                self.edits.insert(key(&id, &name), None);
            }
            self.edits.insert(own_key(&id), None);
        }
        self.flush(1)?;
        Ok(self.now)
    }

    /// Whether this is a directory's place in the new tree.
    fn is_at(&self, id: &FileId, place: &Place) -> Result<bool> {
        let own = self.now_at(&own_key(id))?;
        Ok(
            matches!(own, Some(Record::Own { parent, name, .. }) if parent == place.parent && name == place.name),
        )
    }

    /// A record as this commit leaves it so far.
    fn now_at(&self, key: &[u8]) -> Result<Option<Record>> {
        let found = match self.edits.get(key) {
            Some(changed) => changed.clone(),
            None => map::get(&self.nodes, &self.now, key).map_err(of_map)?,
        };
        let decode = |value: Vec<u8>| Record::decode(&value).map_err(|error| damaged(&error));
        found.map(decode).transpose()
    }

    /// Records a file of several names, where they are now.
    fn link(&mut self, id: FileId, linked: Linked) -> Result<()> {
        let old = match self.now_at(&own_key(&id))? {
            Some(Record::Shared { places, meta, body }) => Some((places, meta, body)),
            _ => None,
        };
        let mut places = old
            .as_ref()
            .map(|(places, ..)| places.clone())
            .unwrap_or_default();
        places.retain(|place| !linked.gone.contains(place));
        if let Some(place) = self.looked.single.get(&id).cloned()
            && !linked.gone.contains(&place)
            && let Some(Record::Node { id: there, .. }) = self.now_at(&key(&place.parent, &place.name))?
            && there == id
        {
            places.insert(place);
        }
        places.extend(linked.seen.keys().cloned());
        let newest = linked.seen.into_values().next_back();
        let (meta, body) = match (newest, old) {
            (Some((mut meta, body)), Some((_, had, was))) => {
                meta.owner = had.owner;
                (meta, by_its_author(body, &was))
            }
            (Some(new), None) => new,
            (None, Some((_, meta, body))) => (meta, body),
            // The one that is left, if any, is in the tree.
            (None, None) => return Ok(()),
        };
        self.looked.single.remove(&id);
        self.edits.insert(own_key(&id), None);
        if let Some(place) = places.first().filter(|_| places.len() == 1) {
            self.looked.single.insert(id, place.clone());
        }
        if !places.is_empty() {
            let entries = file_entries(id, places, meta, body).into_iter();
            self.edits
                .extend(entries.map(|(key, record)| (key, Some(record.encode()))));
        }
        Ok(())
    }
}

/// The id of what has a name.
pub(super) fn id_at(record: &Record) -> Option<FileId> {
    match record {
        Record::Node { id, .. } | Record::Directory { id } | Record::Link { id } => Some(*id),
        Record::Own { .. } | Record::Shared { .. } => None,
    }
}

/// Whether a link or special file, or a file that was empty, may be the one that was there before.
fn is_alike(body: &Body, seen: &Seen) -> bool {
    match (body, &seen.what) {
        // One that ever had content has an id in its `.f`.
        (Body::File { size, .. }, What::File(..)) => *size == 0 || seen.id.is_some(),
        (Body::Symlink(_), What::Symlink(_)) => true,
        (Body::Special(was, _), What::Special(is, _)) => was == is,
        _ => false,
    }
}

/// Content that is as it was is still its author's.
fn by_its_author(body: Body, was: &Body) -> Body {
    match (&body, was) {
        (Body::File { content, .. }, Body::File { content: before, .. }) if content == before => was.clone(),
        _ => body,
    }
}

pub(super) fn damaged(error: &dyn std::fmt::Display) -> VolumeError {
    VolumeError::Damaged {
        path: "snapshot".into(),
        reason: error.to_string(),
    }
}
