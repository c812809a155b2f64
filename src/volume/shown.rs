//! What dfs shows of itself in the mount: the directory `.dfs` at the top, found by name but not listed, so that nothing that copies,
//! compares or removes a whole tree stumbles over it.
//!
//! Invariant: its inode numbers are none of the host's, and nothing in it can be changed.

use std::ffi::OsStr;
use std::sync::Arc;

use super::error::{Result, VolumeError};
use super::{ROOT_INO, Volume};
use crate::base::names::MARKER;
use crate::base::types::{Attr, DirEntry, FileKind, Timestamp};

/// Gives the text of `.dfs/status`.
pub type StatusText = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

const DIR: u64 = u64::MAX - 1;
const STATUS: u64 = u64::MAX - 2;
const SNAPSHOTS: u64 = u64::MAX - 3;

/// Whether an inode number is one of these.
pub(super) fn is_shown(ino: u64) -> bool {
    matches!(ino, DIR | STATUS | SNAPSHOTS)
}

impl Volume {
    /// Finds a name at the top, or in the directory.
    pub(super) fn find_shown(&self, parent: u64, name: &OsStr) -> Option<Result<Attr>> {
        let ino = match (parent, name.to_str()) {
            (ROOT_INO, Some(MARKER)) => DIR,
            (DIR, Some("status")) => STATUS,
            (DIR, Some("snapshots")) => SNAPSHOTS,
            (DIR | STATUS | SNAPSHOTS, _) => return Some(Err(VolumeError::NotFound)),
            _ => return None,
        };
        Some(Ok(self.attr_shown(ino)))
    }

    /// The attributes of one of these inodes. The size of the status is that of its text now; it is read past the kernel's cache.
    pub(super) fn attr_shown(&self, ino: u64) -> Attr {
        let is_dir = ino != STATUS;
        Attr {
            ino,
            generation: 0,
            size: if is_dir {
                0
            } else {
                self.status_text().len() as u64
            },
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            kind: if is_dir {
                FileKind::Directory
            } else {
                FileKind::Regular
            },
            mode: if is_dir { 0o555 } else { 0o444 },
            nlink: if is_dir { 2 } else { 1 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
        }
    }

    /// What reading the status gives now.
    pub(super) fn status_text(&self) -> Vec<u8> {
        self.status.as_ref().map(|text| text()).unwrap_or_default()
    }

    /// The entries of one of these directories after position `after`.
    pub(super) fn list_shown(
        &self,
        ino: u64,
        after: u64,
        each: &mut dyn FnMut(DirEntry, Option<Attr>) -> bool,
    ) {
        let parent = if ino == DIR { ROOT_INO } else { DIR };
        let mut entries = vec![(".", ino), ("..", parent)];
        if ino == DIR {
            entries.extend([("status", STATUS), ("snapshots", SNAPSHOTS)]);
        }
        for (at, (name, ino)) in entries.into_iter().enumerate().skip(after as usize) {
            let kind = if ino == STATUS {
                FileKind::Regular
            } else {
                FileKind::Directory
            };
            let attr = (at > 1).then(|| self.attr_shown(ino));
            if !each(
                DirEntry {
                    ino,
                    name: name.into(),
                    kind,
                    next: at as u64 + 1,
                },
                attr,
            ) {
                return;
            }
        }
    }
}
