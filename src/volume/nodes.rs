//! Which inode numbers the kernel knows, and under which names: the way from a number back to a place in the folder.
//!
//! Invariant: an inode the kernel holds references to is in the table; its parent directory is too, as long as one name of it is valid.
//! Called by the rest of `volume`; holds its locks only for look-ups, never across host calls other than opening a directory.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use indexmap::map::Entry;
use lru::LruCache;
use parking_lot::Mutex;

use super::ROOT_INO;
use super::error::{Result, VolumeError};
use crate::base::names;
use crate::base::types::FileKind;
use crate::folder::Folder;

/// Directory handles kept open: enough for the directories that a program works in, few against a limit of 1,024 open files.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// Entries below which the table keeps its room when the kernel forgets.
const ROOM_KEPT: usize = 1 << 14;

/// Longest chain of parents: a bound on damage, far beyond what a host filesystem allows.
const DEPTH_MAX: usize = 1 << 16;

#[derive(Debug)]
struct Node {
    kind: FileKind,
    generation: u64,
    lookups: u64,
    names: Vec<(u64, Box<OsStr>)>,
    /// Generation of the content that the kernel may have cached.
    content: Option<u64>,
}

/// The table.
#[derive(Debug)]
pub struct Nodes {
    /// In one array, since the kernel may know a million: it grows in place, where the buckets of a `HashMap` would be there twice while
    /// it doubles, and lie half empty afterwards.
    map: Mutex<IndexMap<u64, Node>>,
    dirs: Mutex<LruCache<u64, Arc<OwnedFd>>>,
}

/// A place in the folder: an open directory and the host name in it.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub dir: Arc<OwnedFd>,
    /// The host name; `.` for the top directory.
    pub host: OsString,
}

impl Nodes {
    /// A table that knows only the root.
    pub fn new() -> Self {
        Self {
            map: Mutex::new(IndexMap::new()),
            dirs: Mutex::new(LruCache::new(OPEN_DIRS)),
        }
    }

    /// One more reference to an inode that was found under a name. Returns its generation.
    pub fn found(&self, ino: u64, kind: FileKind, parent: u64, name: &OsStr) -> u64 {
        if ino == ROOT_INO {
            return 0;
        }
        let mut map = self.map.lock();
        let node = map.entry(ino).or_insert_with(|| Node::new(kind));
        if node.kind != kind {
            // The number was given to another file behind our back.
            node.become_another(kind);
        }
        node.lookups += 1;
        node.add_name(parent, name);
        node.generation
    }

    /// One more reference to an inode that was created just now: whatever had its number before is gone.
    pub fn created(&self, ino: u64, kind: FileKind, parent: u64, name: &OsStr) -> u64 {
        let mut map = self.map.lock();
        let node = match map.entry(ino) {
            Entry::Occupied(old) => {
                let node = old.into_mut();
                node.become_another(kind);
                node
            }
            Entry::Vacant(free) => free.insert(Node::new(kind)),
        };
        node.lookups += 1;
        node.add_name(parent, name);
        let generation = node.generation;
        drop(map);
        self.dirs.lock().pop(&ino);
        generation
    }

    /// Gives back references; the inode leaves the table with the last.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut map = self.map.lock();
        if let Some(node) = map.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                map.swap_remove(&ino);
                if map.len() < map.capacity() / 4 && map.capacity() > ROOM_KEPT {
                    let room = map.len() * 2;
                    map.shrink_to(room);
                }
                drop(map);
                self.dirs.lock().pop(&ino);
            }
        }
    }

    /// Takes note that a name is gone.
    pub fn unlinked(&self, ino: u64, parent: u64, name: &OsStr) {
        if let Some(node) = self.map.lock().get_mut(&ino) {
            node.names.retain(|(p, n)| !(*p == parent && **n == *name));
        }
        self.dirs.lock().pop(&ino);
    }

    /// Takes note that a name moved.
    pub fn renamed(&self, ino: u64, from: (u64, &OsStr), to: (u64, &OsStr)) {
        if let Some(node) = self.map.lock().get_mut(&ino) {
            node.names.retain(|(p, n)| !(*p == from.0 && **n == *from.1));
            node.add_name(to.0, to.1);
        }
    }

    /// The inode that is known under a name, if any.
    pub fn kind(&self, ino: u64) -> Option<FileKind> {
        if ino == ROOT_INO {
            return Some(FileKind::Directory);
        }
        self.map.lock().get(&ino).map(|node| node.kind)
    }

    /// Generation that tells apart files with the same number.
    pub fn generation(&self, ino: u64) -> u64 {
        self.map.lock().get(&ino).map_or(0, |node| node.generation)
    }

    /// Takes note of the content's generation, and says whether the kernel's cache of it is still right.
    pub fn content_seen(&self, ino: u64, generation: u64) -> bool {
        self.map
            .lock()
            .get_mut(&ino)
            .is_some_and(|node| node.content.replace(generation) == Some(generation))
    }

    /// The open directory of an inode.
    pub fn dir(&self, folder: &Folder, ino: u64) -> Result<Arc<OwnedFd>> {
        if ino == ROOT_INO {
            return Ok(Arc::clone(folder.root()));
        }
        if let Some(dir) = self.dirs.lock().get(&ino) {
            return Ok(Arc::clone(dir));
        }
        let relative = self.host_path(ino)?;
        let dir = folder
            .dir(&relative)
            .map_err(|error| VolumeError::host("open directory", error))?;
        self.dirs.lock().put(ino, Arc::clone(&dir));
        Ok(dir)
    }

    /// Where an inode is in the folder: the first of its names whose directory is still known.
    pub fn place(&self, folder: &Folder, ino: u64) -> Result<Place> {
        if ino == ROOT_INO {
            return Ok(Place {
                dir: Arc::clone(folder.root()),
                host: ".".into(),
            });
        }
        let (kind, candidates) = {
            let map = self.map.lock();
            let node = map.get(&ino).ok_or(VolumeError::Stale)?;
            (node.kind, node.names.clone())
        };
        let mut last = VolumeError::Stale;
        for (parent, name) in candidates.iter().rev() {
            match self.dir(folder, *parent) {
                Ok(dir) => {
                    return Ok(Place {
                        dir,
                        host: to_host(kind, name),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// All names of an inode that are known, newest first.
    pub fn names(&self, ino: u64) -> Vec<(u64, Box<OsStr>)> {
        self.map
            .lock()
            .get(&ino)
            .map(|node| node.names.iter().rev().cloned().collect())
            .unwrap_or_default()
    }

    /// The path in the mount, for messages; what is not known any more is `?`.
    pub fn shown_path(&self, ino: u64) -> String {
        let map = self.map.lock();
        let mut parts = Vec::new();
        let mut at = ino;
        while at != ROOT_INO && parts.len() < DEPTH_MAX {
            let Some((parent, name)) = map.get(&at).and_then(|node| node.names.last()) else {
                parts.push("?".to_owned());
                break;
            };
            parts.push(name.to_string_lossy().into_owned());
            at = *parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// A directory and all that it is in, the top one left out.
    pub fn line(&self, ino: u64) -> Vec<u64> {
        let map = self.map.lock();
        let (mut line, mut at) = (Vec::new(), ino);
        while at != ROOT_INO && line.len() < DEPTH_MAX {
            line.push(at);
            let Some((parent, _)) = map.get(&at).and_then(|node| node.names.last()) else {
                break;
            };
            at = *parent;
        }
        line
    }

    /// One more reference to an inode that is known. Says whether it is.
    pub fn hold(&self, ino: u64) -> bool {
        let mut map = self.map.lock();
        let node = map.get_mut(&ino);
        node.map(|node| node.lookups += 1).is_some()
    }

    fn host_path(&self, ino: u64) -> Result<PathBuf> {
        let map = self.map.lock();
        let mut parts = Vec::new();
        let mut at = ino;
        while at != ROOT_INO {
            let node = map.get(&at).ok_or(VolumeError::Stale)?;
            let (parent, name) = node.names.last().ok_or(VolumeError::Stale)?;
            parts.push(names::dir_to_host(name));
            at = *parent;
            if parts.len() > DEPTH_MAX {
                return Err(VolumeError::Stale);
            }
        }
        Ok(parts.iter().rev().collect())
    }
}

/// The host name of a file of this kind.
pub fn to_host(kind: FileKind, name: &OsStr) -> OsString {
    match kind {
        FileKind::Directory => names::dir_to_host(name),
        _ => names::file_to_host(name),
    }
}

impl Node {
    fn new(kind: FileKind) -> Self {
        Self {
            kind,
            generation: 0,
            lookups: 0,
            names: Vec::new(),
            content: None,
        }
    }

    fn become_another(&mut self, kind: FileKind) {
        self.kind = kind;
        self.generation += 1;
        self.names.clear();
        self.content = None;
    }

    fn add_name(&mut self, parent: u64, name: &OsStr) {
        if self.kind == FileKind::Directory {
            self.names.clear();
        } else {
            self.names.retain(|(p, n)| !(*p == parent && **n == *name));
        }
        // Nearly every inode has one name only.
        self.names.reserve_exact(1);
        self.names.push((parent, name.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_when_the_kernel_forgets() {
        let (nodes, many) = (Nodes::new(), 100_000);
        let name = OsString::from("n");
        for ino in 2..many {
            nodes.found(ino, FileKind::Regular, ROOT_INO, &name);
        }
        let names = |map: &IndexMap<u64, Node>| map.values().map(|node| node.names.capacity()).max();
        assert_eq!(names(&nodes.map.lock()), Some(1));
        let before = nodes.map.lock().capacity();
        assert!(before < 2 * many as usize, "room for {before} entries");
        for ino in (2..many).filter(|ino| ino % 1000 != 0) {
            nodes.forget(ino, 1);
        }
        let after = nodes.map.lock().capacity();
        assert!(after <= ROOM_KEPT, "room for {after} entries");
        assert!((2..many).all(|ino| nodes.kind(ino).is_some() == (ino % 1000 == 0)));
    }

    #[test]
    fn names_follow_links_renames_and_removals() {
        let nodes = Nodes::new();
        let (a, b, d) = (OsStr::new("a"), OsStr::new("b"), OsStr::new("d"));
        nodes.found(10, FileKind::Directory, ROOT_INO, d);
        nodes.found(20, FileKind::Regular, 10, a);
        nodes.found(20, FileKind::Regular, ROOT_INO, b);
        assert_eq!(nodes.shown_path(20), "b");
        nodes.unlinked(20, ROOT_INO, b);
        assert_eq!(nodes.shown_path(20), "d/a");
        nodes.renamed(10, (ROOT_INO, d), (ROOT_INO, OsStr::new("e.f")));
        assert_eq!(nodes.shown_path(20), "e.f/a");
        assert_eq!(nodes.host_path(10).unwrap(), PathBuf::from("e.f~"));
        nodes.forget(20, 1);
        assert!(nodes.kind(20).is_some());
        nodes.forget(20, 1);
        assert!(nodes.kind(20).is_none());
    }

    #[test]
    fn a_reused_number_gets_a_new_generation_and_keeps_the_count() {
        let nodes = Nodes::new();
        assert_eq!(nodes.created(5, FileKind::Regular, ROOT_INO, OsStr::new("x")), 0);
        assert_eq!(nodes.created(5, FileKind::Regular, ROOT_INO, OsStr::new("y")), 1);
        assert_eq!(nodes.shown_path(5), "y");
        nodes.forget(5, 1);
        assert!(nodes.kind(5).is_some(), "the kernel still forgets the new one");
        nodes.forget(5, 1);
        assert!(nodes.kind(5).is_none());
    }
}
