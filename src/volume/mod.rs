//! Storey 3: the filesystem without a kernel. Every operation is synchronous, may be called from any thread, and waits no longer than
//! the fetch timeout. Called by `fuse` and by `daemon` (import, export).

mod error;

pub use error::{Result, VolumeError};

use std::ffi::{OsStr, OsString};

use crate::base::types::{Attr, Caller, DirEntry, FileKind, OpenMode, RenameMode, SetAttr, StatFs};

/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;

/// Whether an operation may wait for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Return [`VolumeError::WouldWait`] instead of waiting for a fetch.
    Never,
    /// Wait up to the fetch timeout.
    Bounded,
}

/// A file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Handle for the calls that follow.
    pub fh: u64,
    /// Whether what the kernel has cached of the content is still right.
    pub keep_cache: bool,
}

/// Where `lseek` is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// What `fallocate` is to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Make sure that the range exists; the file grows unless `keep_size`.
    Reserve,
    /// Make the range a hole.
    PunchHole,
    /// Make the range zeros.
    ZeroRange,
}

/// An open volume. `Arc<Volume>` is shared by all faces.
#[derive(Debug)]
pub struct Volume {}

#[allow(unused_variables, missing_docs)]
impl Volume {
    /// Finds a name. The caller holds one more reference to the inode until it calls `forget`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    /// Gives back `count` references from `lookup`, `create`, `mkdir`, `mknod`, `symlink`, `link` and `readdir_plus`.
    pub fn forget(&self, ino: u64, count: u64) {}
    pub fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    pub fn setattr(&self, ino: u64, fh: Option<u64>, set: &SetAttr, caller: &Caller) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    pub fn readlink(&self, ino: u64) -> Result<OsString> {
        Err(VolumeError::Unsupported)
    }
    /// `kind` is anything but a directory or a symbolic link.
    pub fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        rdev: u64,
        caller: &Caller,
    ) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32, caller: &Caller) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    pub fn symlink(&self, parent: u64, name: &OsStr, target: &OsStr, caller: &Caller) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        Err(VolumeError::Unsupported)
    }
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn open(&self, ino: u64, mode: OpenMode) -> Result<Opened> {
        Err(VolumeError::Unsupported)
    }
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        open: OpenMode,
        caller: &Caller,
    ) -> Result<(Attr, Opened)> {
        Err(VolumeError::Unsupported)
    }
    /// Replaces the content of `out` by up to `len` bytes from `offset`; fewer only at the end of the file.
    pub fn read(&self, fh: u64, offset: u64, len: usize, out: &mut Vec<u8>, wait: Wait) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    /// Writes all of `data`. Waits while the write budget is used up.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], wait: Wait) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    /// Called at every `close`: what was written survives the death of the daemon once this returns.
    pub fn flush(&self, fh: u64) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    /// What was written survives a power cut once this returns.
    pub fn fsync(&self, fh: u64) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn release(&self, fh: u64) {}
    /// The entries after position `after` (zero: from the start), `.` and `..` included, until `each` returns false.
    pub fn readdir(&self, fh: u64, after: u64, each: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    /// As `readdir`, with attributes; every entry but `.` and `..` that `each` took counts as a lookup.
    pub fn readdir_plus(
        &self,
        fh: u64,
        after: u64,
        each: &mut dyn FnMut(DirEntry, Option<Attr>) -> bool,
    ) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn opendir(&self, ino: u64) -> Result<u64> {
        Err(VolumeError::Unsupported)
    }
    pub fn releasedir(&self, fh: u64) {}
    pub fn fsyncdir(&self, fh: u64) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn statfs(&self) -> Result<StatFs> {
        Err(VolumeError::Unsupported)
    }
    /// `flags` as in setxattr(2): 1 create, 2 replace.
    pub fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        Err(VolumeError::Unsupported)
    }
    /// Names, each followed by a NUL.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        Err(VolumeError::Unsupported)
    }
    pub fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, what: Allocate, keep_size: bool) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
    pub fn lseek(&self, fh: u64, offset: u64, to: SeekTo) -> Result<u64> {
        Err(VolumeError::Unsupported)
    }
    pub fn copy_file_range(
        &self,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        Err(VolumeError::Unsupported)
    }
    /// Writes back everything, syncs store and folder; called before the daemon ends.
    pub fn shutdown(&self) -> Result<()> {
        Err(VolumeError::Unsupported)
    }
}
