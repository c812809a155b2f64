//! Inodes that lost their last name while the kernel still knows them. Whoever holds one, or looked its name up a moment before, goes on
//! with it: a program in a directory that was removed, a reader of a file that is just being replaced.
//!
//! Invariant: what is kept here has no name that the table of nodes knows, and is given back when the kernel forgets the inode. Files that
//! are open need none of this: their handles keep them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::Volume;
use super::error::{Result, VolumeError};
use crate::base::types::FileKind;
use crate::folder::host::open_below;

/// Most that are kept, each with a descriptor. Usually the kernel forgets a removed inode at once; one that is not kept is stale.
const KEPT: usize = 128;

/// The inodes, each with a descriptor that only stands for it (`O_PATH`).
#[derive(Debug, Default)]
pub struct Nameless {
    kept: Mutex<HashMap<u64, Kept>>,
}

#[derive(Debug)]
struct Kept {
    held: Arc<OwnedFd>,
    /// Another device's version took the name.
    replaced: bool,
}

impl Nameless {
    fn get(&self, ino: u64) -> Result<Arc<OwnedFd>> {
        let kept = self.kept.lock();
        let kept = kept.get(&ino).ok_or(VolumeError::Stale)?;
        Ok(Arc::clone(&kept.held))
    }

    /// Whether an inode is among them.
    pub fn has(&self, ino: u64) -> bool {
        self.kept.lock().contains_key(&ino)
    }

    /// Keeps an inode whose last name is gone.
    pub fn keep(&self, ino: u64, held: OwnedFd) {
        let mut kept = self.kept.lock();
        if kept.len() < KEPT {
            kept.insert(ino, Kept::new(held, false));
        }
    }

    /// Keeps one that is open and that another device's version took the name of. Of these there are no more than open files.
    pub fn keep_open(&self, ino: u64, held: OwnedFd) {
        self.kept.lock().insert(ino, Kept::new(held, true));
    }

    /// Another device's version took the name of one that is kept.
    pub fn replaced(&self, ino: u64) {
        if let Some(kept) = self.kept.lock().get_mut(&ino) {
            kept.replaced = true;
        }
    }

    /// Whether it did.
    pub fn is_replaced(&self, ino: u64) -> bool {
        self.kept.lock().get(&ino).is_some_and(|kept| kept.replaced)
    }

    /// Gives one back.
    pub fn forget(&self, ino: u64) {
        let gone = self.kept.lock().remove(&ino);
        drop(gone);
    }
}

impl Kept {
    fn new(held: OwnedFd, replaced: bool) -> Self {
        Self {
            held: Arc::new(held),
            replaced,
        }
    }
}

/// Holds what is about to lose a name.
pub(super) fn hold(dir: &OwnedFd, host: &OsStr, stat: &Stat) -> Option<OwnedFd> {
    let held = open_below(dir.as_fd(), host, OFlags::PATH, Mode::empty()).ok()?;
    let same = rustix::fs::fstat(&held).is_ok_and(|now| now.st_ino == stat.st_ino);
    same.then_some(held)
}

/// Whether the last name of an open file is gone. The host is asked each time: what was known before a name went may have changed since,
/// by a link that somebody made or by a new file with the same inode number.
pub(super) fn has_no_name(file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
}

impl Volume {
    /// Takes note that a name of an inode is gone, and keeps the inode if that was its last one and the kernel knows it.
    ///
    /// `held` is from before the name went: once the last name is gone and nobody holds the inode, the host gives its number to the next
    /// new file, and what is known under that number is then known of that file. Without it only the name is forgotten.
    pub(super) fn name_gone(&self, stat: &Stat, held: Option<OwnedFd>, parent: u64, name: &OsStr) {
        let ino = self.shown_ino(stat.st_ino);
        let open = self.handles.open_file(ino);
        self.nodes.unlinked(ino, parent, name);
        if let Some(file) = &open
            && has_no_name(&file.host)
        {
            file.state.lock().unlinked = true;
        }
        // A removed directory has links left on some filesystems.
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        let Some(held) = held.filter(|held| is_dir || has_no_name(held)) else {
            return;
        };
        if !is_dir {
            let known = self.sizes.lock().stored(ino);
            self.freed(
                known
                    .or_else(|| Some(open.as_ref()?.state.lock().pieces.stored()))
                    .unwrap_or_default(),
            );
            self.durability.forget(ino);
            self.sizes.lock().forget(ino);
        }
        if self.nodes.kind(ino).is_some() {
            self.nameless.keep(ino, held);
        }
    }

    /// The host inode of one that has no name.
    pub(super) fn stat_nameless(&self, ino: u64) -> Result<Stat> {
        rustix::fs::fstat(self.nameless.get(ino)?)
            .map_err(|error| VolumeError::host("look at the file", error))
    }

    /// An open `.f` that has no name.
    pub(super) fn open_nameless(&self, ino: u64) -> Result<File> {
        if self.nodes.kind(ino) != Some(FileKind::Regular) {
            return Err(VolumeError::Invalid("not a regular file"));
        }
        let held = self.nameless.get(ino)?;
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| VolumeError::host("open the .f", error))?;
        Ok(file.into())
    }

    /// The directory of an inode, also of one that was removed.
    pub(super) fn dir_or_removed(&self, ino: u64) -> Result<Arc<OwnedFd>> {
        match self.nodes.dir(&self.folder, ino) {
            Err(VolumeError::Stale) if self.nodes.kind(ino) == Some(FileKind::Directory) => {
                self.nameless.get(ino)
            }
            known => known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, CALLER, RW};
    use super::super::{ROOT_INO, Wait};
    use super::*;
    use crate::folder::host::stat_at;

    /// An open file `name` that holds "content", which is not in its `.f` yet, and its host inode.
    fn written(volume: &Volume, name: &str) -> (u64, Stat) {
        let (_, opened) = volume
            .create(ROOT_INO, OsStr::new(name), 0o644, RW, &CALLER)
            .unwrap();
        volume.write(opened.fh, 0, b"content", Wait::Bounded).unwrap();
        let stat = stat_at(volume.folder.root().as_fd(), OsStr::new(&format!("{name}.f"))).unwrap();
        (opened.fh, stat)
    }

    #[test]
    fn a_new_file_with_the_number_of_a_removed_one_is_written_back() {
        let bench = Bench::new();
        let volume = bench.start();
        let (fh, stat) = written(&volume, "new");
        // Only now is it noted that "old" is gone, which had this number and was held by nobody.
        volume.name_gone(&stat, None, ROOT_INO, OsStr::new("old"));
        volume.flush(fh).unwrap();
        volume.name_gone(&stat, None, ROOT_INO, OsStr::new("old"));
        assert_eq!(volume.durability.len(), 1, "it is not durable yet");
        volume.release(fh);
        drop(volume);
        assert_eq!(bench.read(&bench.start(), "new"), b"content");
    }

    #[test]
    fn a_file_that_got_another_name_while_one_was_removed_is_written_back() {
        let bench = Bench::new();
        let volume = bench.start();
        let (fh, stat) = written(&volume, "a");
        let held = hold(volume.folder.root(), OsStr::new("a.f"), &stat);
        let at = |name: &str| bench.path().join(name);
        std::fs::hard_link(at("a.f"), at("b.f")).unwrap();
        std::fs::remove_file(at("a.f")).unwrap();
        volume.name_gone(&stat, held, ROOT_INO, OsStr::new("a"));
        volume.flush(fh).unwrap();
        volume.release(fh);
        let ino = volume.lookup(ROOT_INO, OsStr::new("b")).unwrap().ino;
        let again = volume.open(ino, RW, Wait::Bounded).unwrap().fh;
        volume.write(again, 7, b", more", Wait::Bounded).unwrap();
        volume.flush(again).unwrap();
        volume.release(again);
        drop(volume);
        assert_eq!(bench.read(&bench.start(), "b"), b"content, more");
    }
}
