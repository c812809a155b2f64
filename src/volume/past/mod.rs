//! The volume as it was: the trees of the snapshots that are kept, below `.dfs/snapshots`, as directories and files that cannot be changed.
//!
//! Invariant: what is shown is what the snapshot's records say, and content goes the way of every file's: blocks that passed their checks, or an
//! error. Nothing is made of it on the disk, and what memory it takes the kernel's references bound. Once a snapshot is not kept any more its
//! numbers are stale. All of it may wait for blocks that only others have. Called by `shown`.

mod known;
mod listing;
#[cfg(test)]
mod tests;

pub(super) use known::Past;
pub(super) use listing::Going;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rustix::process::{getegid, geteuid};

use self::known::{Snap, directory};
use super::Volume;
use super::error::{Result, VolumeError};
use super::moments::{self, Moment};
use super::open_file::{OpenFile, State, new_file_id};
use super::shown::is_past;
use super::snapshots::of_map;
use crate::base::limits::NAME_MAX;
use crate::base::tree::{Meta, ROOT};
use crate::base::types::{Attr, FileKind, Timestamp};
use crate::object::Content;
use crate::object::map::{self, Root};
use crate::object::record::{Body, Record, key, own_key};

/// Mode of the directory of a snapshot: that of the volume's own is not kept.
const TOP_MODE: u32 = 0o555;

/// What a record says.
struct Thing {
    meta: Meta,
    /// `None`: a directory.
    body: Option<Body>,
    nlink: u32,
}

impl Thing {
    /// The top directory of a snapshot.
    fn top() -> Self {
        let meta = Meta {
            mode: TOP_MODE,
            owner: (geteuid().as_raw(), getegid().as_raw()),
            ..Meta::default()
        };
        Self {
            meta,
            body: None,
            nlink: 1,
        }
    }
}

impl Volume {
    /// Finds a snapshot by its name.
    pub(super) fn find_snapshot(&self, name: &OsStr) -> Result<Attr> {
        let name = name.to_str().ok_or(VolumeError::NotFound)?;
        let found = {
            let retained = self.retained.lock();
            moments::find(retained.as_deref().unwrap_or_default(), name)
        };
        let snap = found.and_then(|moment| self.looked_at(name, &moment));
        let snap = snap.ok_or(VolumeError::NotFound)?;
        let top = own_key(&ROOT);
        let ino = self.past.found(&snap, &top, &top);
        Ok(self.attr_of_thing(&snap, ino, &Thing::top()))
    }

    /// A snapshot to be looked at; `None`: it is not kept any more.
    fn looked_at(&self, name: &str, moment: &Moment) -> Option<Arc<Snap>> {
        // Under the lock, so that it is told when it is let go of.
        let retained = self.retained.lock();
        let is_kept = retained.as_deref().is_some_and(|all| all.contains(moment));
        is_kept.then(|| self.past.look_at(name, moment))
    }

    /// The tree of a snapshot.
    fn root_of(&self, snap: &Snap) -> Result<Root> {
        if let Some(root) = snap.root.get() {
            return Ok(*root);
        }
        let root = self.snapshot(&snap.id)?.root;
        Ok(*snap.root.get_or_init(|| root))
    }

    /// Finds a name in a directory of a snapshot. The caller holds one more reference.
    pub(super) fn find_past(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        if name.len() > NAME_MAX {
            return Err(VolumeError::NameTooLong);
        }
        let known = self.past.get(parent)?;
        let snap = &known.snap;
        let named = key(&directory(&known.key)?, name.as_bytes());
        let found = map::get(&self.tree_nodes(), &self.root_of(snap)?, &named).map_err(of_map)?;
        let found = found.ok_or(VolumeError::NotFound)?;
        let record = decoded(snap, &named, &found)?;
        let (at, thing) = self.resolved(snap, &named, record)?;
        let ino = self.past.found(snap, &at, &named);
        Ok(self.attr_of_thing(snap, ino, &thing))
    }

    /// Gives back references.
    pub(super) fn forget_past(&self, ino: u64, count: u64) {
        self.past.forget(ino, count);
    }

    /// What `stat` shows.
    pub(super) fn attr_past(&self, ino: u64) -> Result<Attr> {
        let known = self.past.get(ino)?;
        let thing = self.thing(&known.snap, &known.key)?;
        Ok(self.attr_of_thing(&known.snap, ino, &thing))
    }

    /// The target of a symbolic link.
    pub(super) fn readlink_past(&self, ino: u64) -> Result<OsString> {
        let known = self.past.get(ino)?;
        match self.thing(&known.snap, &known.key)?.body {
            Some(Body::Symlink(target)) => Ok(OsString::from_vec(target.into_vec())),
            _ => Err(VolumeError::Invalid("not a symbolic link")),
        }
    }

    /// The value of an extended attribute.
    pub(super) fn getxattr_past(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let known = self.past.get(ino)?;
        let mut xattrs = self.thing(&known.snap, &known.key)?.meta.xattrs;
        let value = xattrs.remove(name.as_bytes());
        let none = || VolumeError::host("extended attribute", rustix::io::Errno::NODATA);
        Ok(value.ok_or_else(none)?.into_vec())
    }

    /// The names of extended attributes, each followed by a NUL.
    pub(super) fn listxattr_past(&self, ino: u64) -> Result<Vec<u8>> {
        let known = self.past.get(ino)?;
        let xattrs = self.thing(&known.snap, &known.key)?.meta.xattrs;
        let names = xattrs.keys().flat_map(|name| name.iter().copied().chain([0]));
        Ok(names.collect())
    }

    /// A file as it was, open for reading. It is in no table of open files: nobody changes it, and it has no `.f` to be brought up to date.
    pub(super) fn open_past(&self, ino: u64) -> Result<Arc<OpenFile>> {
        let known = self.past.get(ino)?;
        let Some(Body::File { content, .. }) = self.thing(&known.snap, &known.key)?.body else {
            return Err(VolumeError::Invalid("not a regular file"));
        };
        let folder = self.folder.root().try_clone();
        let folder = folder.map_err(|error| VolumeError::host("open the folder once more", error))?;
        let mut state = State::of_content(new_file_id()?, content);
        state.handles = 1;
        Ok(OpenFile::new(ino, File::from(folder), false, state))
    }

    /// An error for what is of a snapshot that is not kept any more: blocks that are not here need not be waited for.
    pub(super) fn check_kept(&self, ino: u64) -> Result<()> {
        match is_past(ino) {
            true => self.past.get(ino).map(drop),
            false => Ok(()),
        }
    }

    /// Where what stands at a name has its record, and what that says.
    fn resolved(&self, snap: &Snap, named: &[u8], record: Record) -> Result<(Vec<u8>, Thing)> {
        match record {
            Record::Directory { id } | Record::Link { id } => {
                let at = own_key(&id);
                let thing = self.thing(snap, &at)?;
                Ok((at, thing))
            }
            record => Ok((named.to_vec(), thing_of(snap, record)?)),
        }
    }

    /// What the record at a key says.
    fn thing(&self, snap: &Snap, at: &[u8]) -> Result<Thing> {
        if at == ROOT.as_bytes() {
            return Ok(Thing::top());
        }
        let found = map::get(&self.tree_nodes(), &self.root_of(snap)?, at).map_err(of_map)?;
        let found = found.ok_or_else(|| damaged(snap, &"a name leads to nothing"))?;
        thing_of(snap, decoded(snap, at, &found)?)
    }

    fn attr_of_thing(&self, snap: &Snap, ino: u64, thing: &Thing) -> Attr {
        let meta = &thing.meta;
        let then = Timestamp {
            secs: i64::try_from(snap.time).unwrap_or(i64::MAX),
            nanos: 0,
        };
        let kind = kind_of(thing.body.as_ref());
        let (size, stored, rdev) = match &thing.body {
            None => (0, 0, 0),
            Some(Body::File { content, size, .. }) => (*size, stored(content), 0),
            Some(Body::Symlink(target)) => (target.len() as u64, 0, 0),
            Some(Body::Special(_, rdev)) => (0, 0, *rdev),
        };
        // Those of directories are not kept.
        let time = match kind {
            FileKind::Directory => then,
            _ => meta.mtime,
        };
        // Only root can show files as somebody else's and have that mean anything.
        let (uid, gid) = match self.gives_away {
            true => meta.owner,
            false => (geteuid().as_raw(), getegid().as_raw()),
        };
        Attr {
            ino,
            generation: 0,
            size,
            blocks: stored.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            kind,
            mode: meta.mode,
            nlink: thing.nlink,
            uid,
            gid,
            rdev,
        }
    }

    /// The path in the mount, for messages.
    pub(super) fn path_past(&self, ino: u64) -> String {
        format!(".dfs/snapshots/{}", self.past.path(ino))
    }
}

/// The record of an entry.
fn decoded(snap: &Snap, key: &[u8], value: &[u8]) -> Result<Record> {
    let decoded = Record::decode_entry(key, value).map_err(|error| damaged(snap, &error))?;
    Ok(decoded.2)
}

fn thing_of(snap: &Snap, record: Record) -> Result<Thing> {
    Ok(match record {
        Record::Node { meta, body, .. } => Thing {
            meta,
            body: Some(body),
            nlink: 1,
        },
        // How many directories are in it is not counted: one link says so, as on btrfs.
        Record::Own { meta, .. } => Thing {
            meta,
            body: None,
            nlink: 1,
        },
        Record::Shared { places, meta, body } => Thing {
            meta,
            body: Some(body),
            nlink: u32::try_from(places.len()).unwrap_or(u32::MAX),
        },
        Record::Directory { .. } | Record::Link { .. } => {
            return Err(damaged(snap, &"a name leads to a name"));
        }
    })
}

fn kind_of(body: Option<&Body>) -> FileKind {
    match body {
        None => FileKind::Directory,
        Some(Body::File { .. }) => FileKind::Regular,
        Some(Body::Symlink(_)) => FileKind::Symlink,
        Some(Body::Special(kind, _)) => *kind,
    }
}

/// Bytes that are not holes, as far as that is known without reading more.
fn stored(content: &Content) -> u64 {
    match content {
        Content::Inline(bytes) => bytes.len() as u64,
        Content::Extents(extents) => {
            let data = extents.iter().filter(|extent| extent.block.is_some());
            data.map(|extent| extent.len).sum()
        }
        Content::Index { refs, .. } => refs.iter().map(|entry| entry.len).sum(),
    }
}

fn damaged(snap: &Snap, reason: &dyn std::fmt::Display) -> VolumeError {
    VolumeError::Damaged {
        path: format!(".dfs/snapshots/{}", snap.name),
        reason: reason.to_string(),
    }
}
