//! What dfs shows of itself in the mount: the directory `.dfs` at the top, found by name but not listed, so that nothing that copies,
//! compares or removes a whole tree stumbles over it. What was (`past`) is below it.
//!
//! Invariant: its inode numbers are none of those that the mount shows of the host's, and nothing in it can be changed.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::{Result, VolumeError};
use super::listing::DirHandle;
use super::{Opened, ROOT_INO, Volume, Wait};
use crate::base::names::MARKER;
use crate::base::types::{Attr, DirEntry, FileKind, OpenMode, Timestamp};

/// Gives the text of `.dfs/status`.
pub type StatusText = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// The inode numbers from here on are those of what dfs shows of itself.
const FIRST: u64 = 0xffff << 48;
/// Those of what was.
pub(super) const PAST_FIRST: u64 = FIRST;
pub(super) const PAST_LAST: u64 = u64::MAX - 16;

pub(super) const DIR: u64 = u64::MAX - 1;
const STATUS: u64 = u64::MAX - 2;
pub(super) const SNAPSHOTS: u64 = u64::MAX - 3;

/// Whether an inode number is one of these. Looking there may have to wait for other computers.
pub fn is_shown(ino: u64) -> bool {
    ino >= FIRST
}

/// Whether an inode number is of something that was, and so is what it is for ever.
pub fn is_past(ino: u64) -> bool {
    (PAST_FIRST..=PAST_LAST).contains(&ino)
}

/// A number of the host's that is not one of these: another one for those that would be.
pub(super) fn apart(host: u64) -> u64 {
    match is_shown(host) {
        true => host & (u64::MAX >> 1),
        false => host,
    }
}

/// An error for what is asked to be changed and is one of these.
pub(super) fn check_own(ino: u64) -> Result<()> {
    match is_shown(ino) {
        true => Err(VolumeError::ReadOnly("what dfs shows below .dfs")),
        false => Ok(()),
    }
}

impl Volume {
    /// Finds a name at the top, or in one of the directories.
    pub(super) fn find_shown(&self, parent: u64, name: &OsStr) -> Option<Result<Attr>> {
        Some(match (parent, name.to_str()) {
            (ROOT_INO, Some(MARKER)) => self.attr_shown(DIR),
            (DIR, Some("status")) => self.attr_shown(STATUS),
            (DIR, Some("snapshots")) => self.attr_shown(SNAPSHOTS),
            (SNAPSHOTS, _) => self.find_snapshot(name),
            _ if is_past(parent) => self.find_past(parent, name),
            _ if is_shown(parent) => Err(VolumeError::NotFound),
            _ => return None,
        })
    }

    /// The attributes of one of these inodes. The size of the status is that of its text now; it is read past the kernel's cache.
    pub(super) fn attr_shown(&self, ino: u64) -> Result<Attr> {
        if is_past(ino) {
            return self.attr_past(ino);
        }
        let is_dir = ino != STATUS;
        Ok(Attr {
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
            // How many directories are in one is not counted.
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
        })
    }

    /// Opens the status, or a file as it was, for reading.
    pub(super) fn open_shown(&self, ino: u64, mode: OpenMode, wait: Wait) -> Result<Opened> {
        if mode.write || mode.truncate {
            check_own(ino)?;
        }
        if !is_past(ino) {
            let fh = self.handles.next.fetch_add(1, Ordering::Relaxed);
            let text = Arc::new(self.status_text());
            self.handles.texts.write().insert(fh, text);
            return Ok(Opened {
                fh,
                keep_cache: false,
                direct: true,
            });
        }
        if wait == Wait::Never {
            return Err(VolumeError::WouldWait);
        }
        let file = self.open_past(ino)?;
        Ok(Opened {
            fh: self.handles.add(file, mode),
            keep_cache: true,
            direct: false,
        })
    }

    /// What reading the status gives now.
    pub(super) fn status_text(&self) -> Vec<u8> {
        self.status.as_ref().map(|text| text()).unwrap_or_default()
    }

    /// The entries of one of these directories after position `after`; with `plus` each of what was that is taken counts as a lookup.
    pub(super) fn list_shown(
        &self,
        handle: &DirHandle,
        after: u64,
        plus: bool,
        each: &mut dyn FnMut(DirEntry, Option<Attr>) -> bool,
    ) -> Result<()> {
        match handle.ino {
            DIR => {}
            SNAPSHOTS => return self.list_snapshots(handle, after, plus, each),
            _ => return self.list_past(handle, after, plus, each),
        }
        let entries = [
            (".", DIR),
            ("..", ROOT_INO),
            ("status", STATUS),
            ("snapshots", SNAPSHOTS),
        ];
        for (at, (name, ino)) in entries.into_iter().enumerate().skip(after as usize) {
            let kind = match ino {
                STATUS => FileKind::Regular,
                _ => FileKind::Directory,
            };
            let attr = match at > 1 {
                true => Some(self.attr_shown(ino)?),
                false => None,
            };
            let name = name.into();
            let next = at as u64 + 1;
            if !each(
                DirEntry {
                    ino,
                    name,
                    kind,
                    next,
                },
                attr,
            ) {
                break;
            }
        }
        Ok(())
    }
}
