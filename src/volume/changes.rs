//! Which names changed since they were last looked at, so that a commit costs what changed and not what there is.
//!
//! Invariant: between a note and its change, `Volume::renames` is held, so that whoever takes the notes sees the change; a change that is noted
//! when it is made already needs no lock. The directories of noted names stay
//! known to the table of nodes until they are given back. Called by everything in `volume` that changes names, attributes or content.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLockWriteGuard};

use super::collect::host_path;
use super::nodes::Nodes;
use super::{ROOT_INO, Volume};
use crate::base::{FileId, names};

/// Names noted one by one; beyond this everything is looked at.
const NAMES_MAX: usize = 1 << 20;

/// The notes. Nothing is noted until somebody watches.
#[derive(Debug, Default)]
pub struct Changes(Mutex<Option<Noted>>);

/// What changed at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Note {
    /// The file that was there still is, and was written to.
    Written,
    /// Whatever else: it came, went, moved, or has other attributes.
    Any,
}

/// Names that changed.
#[derive(Debug, Default)]
pub struct Noted {
    /// By the inode number of their directory, which the table of nodes knows.
    pub(super) names: HashMap<u64, BTreeMap<Box<OsStr>, Note>>,
    /// By the path of their directory in the folder, with its id where that is known.
    pub(super) paths: BTreeSet<(PathBuf, Box<OsStr>, Option<FileId>)>,
    /// Something changed that nobody can name: all names have to be looked at.
    pub(super) everything: bool,
    count: usize,
    /// Inodes with one reference more, so that the kernel's forgetting does not lose the way to a noted name.
    pinned: Vec<u64>,
    since: Option<(Instant, Instant)>,
}

impl Noted {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.paths.is_empty() && !self.everything
    }

    /// How many names; of everything more than can be said.
    pub fn len(&self) -> usize {
        match self.everything {
            true => usize::MAX,
            false => self.count,
        }
    }

    /// Whether all names have to be looked at.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    fn touched(&mut self) {
        let now = Instant::now();
        self.since = Some((self.since.map_or(now, |(first, _)| first), now));
        if self.count > NAMES_MAX {
            self.everything = true;
            self.names.clear();
            self.paths.clear();
            self.count = 0;
        }
    }

    fn add(&mut self, nodes: &Nodes, parent: u64, name: &OsStr, note: Note) {
        if !self.everything {
            if !self.names.contains_key(&parent) {
                nodes.pin(parent, &mut self.pinned);
                self.names.insert(parent, BTreeMap::new());
            }
            if let Some(names) = self.names.get_mut(&parent) {
                match names.get_mut(name) {
                    Some(known) => *known = note.max(*known),
                    None => {
                        names.insert(name.into(), note);
                        self.count += 1;
                    }
                }
            }
        }
        self.touched();
    }

    fn merge(&mut self, older: Self) {
        for (dir, names) in older.names {
            let known = self.names.entry(dir).or_default();
            for (name, note) in names {
                let now = known.entry(name).or_insert(note);
                *now = note.max(*now);
            }
        }
        self.paths.extend(older.paths);
        self.everything |= older.everything;
        self.count += older.count;
        self.pinned.extend(older.pinned);
        self.touched();
    }
}

/// A volume in which no name changes. What is looked at meanwhile is of one moment.
#[derive(Debug)]
pub struct Frozen<'a> {
    volume: &'a Volume,
    _alone: RwLockWriteGuard<'a, ()>,
}

impl Frozen<'_> {
    /// Takes what was noted. What was noted and is not made yet would be looked at too early, and never again: there is nothing of that kind now.
    pub fn take(&self) -> Noted {
        let mut noted = self.volume.changes.0.lock();
        noted.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Volume {
    /// Notes from now on what changes. What changed before has to be found by looking at everything, which the first notes say.
    pub fn watch_changes(&self) {
        let noted = Noted {
            everything: true,
            since: Some((Instant::now(), Instant::now())),
            ..Noted::default()
        };
        *self.changes.0.lock() = Some(noted);
    }

    /// Whether anybody wants to know.
    pub(super) fn notes_changes(&self) -> bool {
        self.changes.0.lock().is_some()
    }

    /// How long ago the first and the last of the changes were noted that nobody has taken yet.
    pub fn changed_since(&self) -> Option<(Duration, Duration)> {
        let noted = self.changes.0.lock();
        let (first, last) = noted.as_ref()?.since?;
        Some((first.elapsed(), last.elapsed()))
    }

    /// Takes what was noted. To be given back.
    pub fn take_changes(&self) -> Noted {
        self.freeze().take()
    }

    /// Keeps all names where they are until the guard goes: whoever wants to change one waits.
    pub fn freeze(&self) -> Frozen<'_> {
        Frozen {
            volume: self,
            _alone: self.renames.write(),
        }
    }

    /// Notes what was taken again: it was not dealt with.
    pub fn put_back_changes(&self, taken: Noted) {
        if let Some(noted) = self.changes.0.lock().as_mut()
            && !taken.is_empty()
        {
            noted.merge(taken);
        }
    }

    /// What was taken has been dealt with.
    pub fn forget_changes(&self, taken: Noted) {
        for ino in taken.pinned {
            self.forget(ino, 1);
        }
    }

    /// Everything has to be looked at.
    pub fn note_everything(&self) {
        if let Some(noted) = self.changes.0.lock().as_mut() {
            noted.everything = true;
            noted.touched();
        }
    }

    /// What is noted of a name, if anything.
    pub(super) fn noted(&self, parent: u64, name: &OsStr) -> Option<Note> {
        let noted = self.changes.0.lock();
        let noted = noted.as_ref()?;
        match noted.everything {
            true => Some(Note::Any),
            false => noted.names.get(&parent)?.get(name).copied(),
        }
    }

    /// A name changed, or what it stands for.
    pub(super) fn note(&self, parent: u64, name: &OsStr) {
        self.note_as(parent, name, Note::Any);
    }

    /// As [`Volume::note`], with what it was.
    pub(super) fn note_as(&self, parent: u64, name: &OsStr, note: Note) {
        if let Some(noted) = self.changes.0.lock().as_mut() {
            noted.add(&self.nodes, parent, name, note);
        }
    }

    /// Something about an inode changed: it is noted under every name that is known.
    pub(super) fn note_inode(&self, ino: u64, note: Note) {
        if ino == ROOT_INO {
            return;
        }
        let mut changes = self.changes.0.lock();
        let Some(noted) = changes.as_mut() else { return };
        let names = self.nodes.names(ino);
        if names.is_empty() && !self.nameless.has(ino) {
            noted.everything = true;
            noted.touched();
        }
        for (parent, name) in names {
            noted.add(&self.nodes, parent, &name, note);
        }
    }

    /// A name in a directory of the volume, which has this id, was changed as another device has it.
    pub fn note_applied(&self, directory: &Path, id: FileId, name: &OsStr) {
        let mut changes = self.changes.0.lock();
        let Some(noted) = changes.as_mut() else { return };
        let at = (host_path(directory), name.into(), Some(id));
        if !noted.everything && noted.paths.insert(at) {
            noted.count += 1;
        }
        noted.touched();
    }

    /// A name in a directory of the folder came or changed, by its host name.
    pub(super) fn note_path(&self, directory: &Path, host: &OsStr) {
        let mut changes = self.changes.0.lock();
        let Some(noted) = changes.as_mut() else { return };
        if !noted.everything
            && let Some(names::HostName::File(name) | names::HostName::Dir(name)) = names::from_host(host)
            && noted
                .paths
                .insert((directory.to_owned(), name.into_boxed_os_str(), None))
        {
            noted.count += 1;
        }
        noted.touched();
    }
}

impl Nodes {
    /// One more reference to a directory and to all above it. Adds each to `pinned`.
    fn pin(&self, ino: u64, pinned: &mut Vec<u64>) {
        for ino in self.line(ino) {
            // Its kind is known, and so is its name: only the count changes.
            if self.hold(ino) {
                pinned.push(ino);
            }
        }
    }
}
