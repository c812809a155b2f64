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
use rustix::fs::{Mode, OFlags, Stat};

use super::Volume;
use super::error::{Result, VolumeError};
use crate::base::types::FileKind;
use crate::folder::host::open_below;

/// Most that are kept, each with a descriptor. Usually the kernel forgets a removed inode at once; one that is not kept is stale.
const KEPT: usize = 128;

/// The inodes, each with a descriptor that only stands for it (`O_PATH`).
#[derive(Debug, Default)]
pub struct Nameless {
    kept: Mutex<HashMap<u64, Arc<OwnedFd>>>,
}

impl Nameless {
    fn get(&self, ino: u64) -> Result<Arc<OwnedFd>> {
        self.kept.lock().get(&ino).cloned().ok_or(VolumeError::Stale)
    }

    /// Whether an inode is among them.
    pub fn has(&self, ino: u64) -> bool {
        self.kept.lock().contains_key(&ino)
    }

    /// Keeps an inode whose last name is gone.
    pub fn keep(&self, ino: u64, held: Option<OwnedFd>) {
        let mut kept = self.kept.lock();
        if let Some(held) = held
            && kept.len() < KEPT
        {
            kept.insert(ino, Arc::new(held));
        }
    }

    /// Gives one back.
    pub fn forget(&self, ino: u64) {
        let gone = self.kept.lock().remove(&ino);
        drop(gone);
    }
}

impl Volume {
    /// Holds what is about to lose a name, if that is its last one and the kernel knows it.
    pub(super) fn hold(&self, dir: &OwnedFd, host: &OsStr, stat: &Stat) -> Option<OwnedFd> {
        let is_last = stat.st_nlink <= 1 || rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        if !is_last || self.nodes.kind(self.shown_ino(stat.st_ino)).is_none() {
            return None;
        }
        let held = open_below(dir.as_fd(), host, OFlags::PATH, Mode::empty()).ok()?;
        let same = rustix::fs::fstat(&held).is_ok_and(|now| now.st_ino == stat.st_ino);
        same.then_some(held)
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
