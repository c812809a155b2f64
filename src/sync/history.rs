//! What was: the snapshots that are kept, what changed from one to the next, and the versions of a path.
//!
//! A snapshot was the folder's tree from when the folder came to it until it came to the next one, by this device's clock. Called by `daemon`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base::tree::Place;
use crate::base::{BlockId, DeviceId, FileId};
use crate::object::map::Root;
use crate::object::record::Body;

use super::journal::Kept;
use super::lookup::{Tree, names};
use super::plan::{self, Node, Reading, changes, reads_as};
use super::{Engine, Result, SyncError};

/// Which snapshot is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The one that was current then, in seconds since the Unix epoch.
    Time(u64),
    /// The one whose id begins like this, in hexadecimal digits.
    Id(String),
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was there in the oldest snapshot that is kept.
    There,
    /// It came to be.
    Created,
    /// Its content is another one.
    Changed,
    /// Only its mode, owner, time or extended attributes are others.
    Attributes,
    /// It came from another path.
    Moved,
    /// It went.
    Deleted,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, or the volume itself.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device node.
    Special,
}

/// One path in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In the newer tree; of what was deleted in the older one.
    pub path: PathBuf,
    /// What became of it.
    pub change: Change,
    /// Where it was before, if that was elsewhere.
    pub from: Option<PathBuf>,
    /// What it is, or was.
    pub kind: Kind,
    /// Its size before, in bytes: of a file.
    pub before: Option<u64>,
    /// Its size after, in bytes: of a file.
    pub after: Option<u64>,
}

/// How many paths in a directory changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Came to be.
    pub created: u64,
    /// Have another content, or other attributes.
    pub changed: u64,
    /// Came from another path.
    pub moved: u64,
    /// Went.
    pub deleted: u64,
}

/// A snapshot in which a path is not what it was in the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The snapshot.
    pub kept: Kept,
    /// The device that made it; `None` of a merge.
    pub device: Option<DeviceId>,
    /// The path then.
    pub path: PathBuf,
    /// What became of it.
    pub change: Change,
    /// Where it was before, or where it went to, if that was elsewhere.
    pub other: Option<PathBuf>,
    /// What it is; `None`: it is gone.
    pub kind: Option<Kind>,
    /// Its size, in bytes: of a file.
    pub size: Option<u64>,
    /// Of a directory: what changed in it, as far as two snapshots were compared.
    pub counts: Option<Counts>,
}

impl Engine {
    /// The kept snapshot that is meant.
    pub fn kept_at(&self, at: &At) -> Result<Kept> {
        let kept = self.journal().kept;
        match at {
            At::Time(time) => {
                // The very second is the name of the first that came in it: see the volume's `moments`.
                let named = kept.iter().find(|kept| kept.time == *time && !kept.twin);
                let then = named
                    .or_else(|| kept.iter().rfind(|kept| kept.time <= *time))
                    .copied();
                let oldest = kept.first().ok_or(SyncError::NoSnapshot)?;
                then.ok_or(SyncError::Older(oldest.time))
            }
            At::Id(text) => {
                let text = text.to_ascii_lowercase();
                let mut found = kept.iter().filter(|kept| kept.id.to_string().starts_with(&text));
                match (found.next(), found.count()) {
                    (Some(only), 0) => Ok(*only),
                    (None, _) => Err(SyncError::NotOne(text, 0)),
                    (Some(_), more) => Err(SyncError::NotOne(text, more + 1)),
                }
            }
        }
    }

    /// The newest kept snapshot, and the one before another one.
    pub fn newest(&self) -> Result<Kept> {
        self.journal().kept.last().copied().ok_or(SyncError::NoSnapshot)
    }

    /// The kept snapshot before another one; `None`: that is the oldest.
    pub fn kept_before(&self, id: &BlockId) -> Option<Kept> {
        let kept = self.journal().kept;
        let at = kept.iter().position(|kept| kept.id == *id)?;
        kept.get(at.checked_sub(1)?).copied()
    }

    /// What differs at a path and below it from one snapshot, or from nothing, to another one, by path.
    pub fn differences(&self, from: Option<&BlockId>, to: &BlockId, path: &Path) -> Result<Vec<Difference>> {
        names(path)?;
        let from = match from {
            Some(from) => self.snapshot(from)?.root,
            None => Root::EMPTY,
        };
        let to = self.snapshot(to)?.root;
        let all = self.compared(from, to)?;
        // A directory above that came, moved or went took the path with it.
        let is_above =
            |one: &Difference| path.starts_with(&one.path) && !matches!(one.change, Change::Attributes);
        let is_below = |one: &Difference| {
            one.path.starts_with(path) || one.from.as_ref().is_some_and(|from| from.starts_with(path))
        };
        Ok(all
            .into_iter()
            .filter(|one| is_below(one) || is_above(one))
            .collect())
    }

    /// The versions of a path, newest first, at most so many. Where it was moved to the path from another one, it goes on with that one.
    pub fn log(&self, path: &Path, most: usize) -> Result<Vec<Version>> {
        let kept = self.journal().kept;
        let mut path: PathBuf = names(path).map(|_| path.components().collect())?;
        let mut found = Vec::new();
        for at in (0..kept.len()).rev() {
            if found.len() >= most {
                break;
            }
            let before = at.checked_sub(1).map(|at| kept[at]);
            if let Some(version) = self.version(&kept[at], before.as_ref(), &path)? {
                if let (Change::Moved, Some(from)) = (version.change, &version.other) {
                    path.clone_from(from);
                }
                found.push(version);
            }
        }
        Ok(found)
    }

    /// What became of a path from one snapshot to the next; `None`: nothing.
    fn version(&self, kept: &Kept, before: Option<&Kept>, path: &Path) -> Result<Option<Version>> {
        let snapshot = self.snapshot(&kept.id)?;
        let tree = Tree::new(&self.volume, snapshot.root);
        let is = tree.find(path)?;
        let mut version = Version {
            kept: *kept,
            device: snapshot.made.map(|made| made.device),
            path: path.to_owned(),
            change: Change::There,
            other: None,
            kind: is.as_ref().map(|(_, node)| kind(node)),
            size: is.as_ref().and_then(|(_, node)| size(node)),
            counts: None,
        };
        let Some(before) = before else {
            return Ok(is.map(|_| version));
        };
        let older = self.snapshot(&before.id)?.root;
        if older == snapshot.root {
            return Ok(None);
        }
        let was = Tree::new(&self.volume, older).find(path)?;
        version.change = match (&was, &is) {
            (None, None) => return Ok(None),
            (Some(was), None) => {
                version.other = self.where_is(was, older, snapshot.root)?;
                Change::Deleted
            }
            (None, Some(is)) => {
                version.other = self.where_is(is, snapshot.root, older)?;
                match version.other {
                    Some(_) => Change::Moved,
                    None => Change::Created,
                }
            }
            (Some((_, was)), Some((_, is))) if was.body.is_none() && is.body.is_none() => {
                let below = self.compared(older, snapshot.root)?;
                let counts = count(&below, path);
                if counts == Counts::default() {
                    return Ok(None);
                }
                version.counts = Some(counts);
                Change::Changed
            }
            (Some((_, was)), Some((_, is))) => match became(was, is) {
                Some(change) => change,
                None => return Ok(None),
            },
        };
        Ok(Some(version))
    }

    /// Where in another tree something is that is not at its place there; `None`: nowhere.
    fn where_is(&self, (id, node): &(FileId, Node), from: Root, to: Root) -> Result<Option<PathBuf>> {
        let changes = changes(&self.reading(), &from, &to)?;
        let place = match changes.get(id) {
            Some(change) => change.after.places.difference(&change.before.places).next(),
            // Its place is the same; a directory above moved.
            None => node.places.first(),
        };
        match place {
            Some(place) => Tree::new(&self.volume, to).path(place),
            None => Ok(None),
        }
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            nodes: self.volume.tree_nodes(),
            read: RefCell::default(),
        }
    }

    /// All paths in which two trees differ, in order.
    fn compared(&self, from: Root, to: Root) -> Result<Vec<Difference>> {
        let changes = changes(&self.reading(), &from, &to)?;
        let mut compared = Compared {
            from: Tree::new(&self.volume, from),
            to: Tree::new(&self.volume, to),
            found: BTreeMap::new(),
        };
        for plan::Change { before, after } in changes.values() {
            compared.add(before, after)?;
        }
        Ok(compared.found.into_values().collect())
    }
}

struct Compared<'a> {
    from: Tree<'a>,
    to: Tree<'a>,
    found: BTreeMap<PathBuf, Difference>,
}

impl Compared<'_> {
    /// What became of one thing, at all its places.
    fn add(&mut self, before: &Node, after: &Node) -> Result<()> {
        let mut gone = before.places.difference(&after.places);
        for place in after.places.difference(&before.places) {
            match gone.next() {
                Some(from) => self.one(before, after, Some(from), Some(place), Change::Moved)?,
                None => self.one(before, after, None, Some(place), Change::Created)?,
            }
        }
        for place in gone {
            self.one(before, after, Some(place), None, Change::Deleted)?;
        }
        if let Some(change) = became(before, after) {
            for place in before.places.intersection(&after.places) {
                self.one(before, after, None, Some(place), change)?;
            }
        }
        Ok(())
    }

    fn one(
        &mut self,
        before: &Node,
        after: &Node,
        from: Option<&Place>,
        to: Option<&Place>,
        change: Change,
    ) -> Result<()> {
        let path = |tree: &Tree<'_>, place: Option<&Place>| match place {
            Some(place) => tree.path(place),
            None => Ok(None),
        };
        let (from, to) = (path(&self.from, from)?, path(&self.to, to)?);
        let (path, from) = match (to, from) {
            (Some(to), from) => (to, from),
            (None, Some(from)) => (from, None),
            (None, None) => return Ok(()),
        };
        let is = match change {
            Change::Deleted => before,
            _ => after,
        };
        let new = Difference {
            path: path.clone(),
            change,
            from,
            kind: kind(is),
            before: size(before).filter(|_| change != Change::Created),
            after: size(after).filter(|_| change != Change::Deleted),
        };
        let Some(other) = self.found.remove(&path) else {
            self.found.insert(path, new);
            return Ok(());
        };
        // Something else took the place of what was there.
        let (gone, mut came) = match new.change {
            Change::Deleted => (new, other),
            _ => (other, new),
        };
        if came.change == Change::Created {
            came.change = Change::Changed;
            came.before = gone.before;
        }
        self.found.insert(path, came);
        Ok(())
    }
}

/// What became of something that has a place before and after.
fn became(before: &Node, after: &Node) -> Option<Change> {
    let same = match (&before.body, &after.body) {
        (Some(before), Some(after)) => reads_as(before, after),
        (None, None) => true,
        _ => false,
    };
    match (same, before.meta == after.meta) {
        (false, _) => Some(Change::Changed),
        (true, false) => Some(Change::Attributes),
        (true, true) => None,
    }
}

/// What changed at a path and below it.
fn count(all: &[Difference], path: &Path) -> Counts {
    let mut counts = Counts::default();
    for one in all {
        let here = one.path.starts_with(path);
        match one.change {
            Change::Created if here => counts.created += 1,
            Change::Changed | Change::Attributes if here => counts.changed += 1,
            Change::Moved if here => counts.moved += 1,
            Change::Moved if one.from.as_ref().is_some_and(|from| from.starts_with(path)) => {
                counts.deleted += 1
            }
            Change::Deleted if here => counts.deleted += 1,
            _ => {}
        }
    }
    counts
}

fn kind(node: &Node) -> Kind {
    match &node.body {
        None => Kind::Directory,
        Some(Body::File { .. }) => Kind::File,
        Some(Body::Symlink(_)) => Kind::Symlink,
        Some(Body::Special(..)) => Kind::Special,
    }
}

fn size(node: &Node) -> Option<u64> {
    match &node.body {
        Some(Body::File { size, .. }) => Some(*size),
        _ => None,
    }
}
