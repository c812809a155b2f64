//! What the owner wishes for a file, or for everything below a directory: how many replicas, and whether it stays on this device; and
//! where a file's content is. All three are extended attributes of the mount.
//!
//! Invariant: of several wishes the nearest counts, a file's own before its directory's; of several files with one block, the one that wishes
//! most. Wishes live on the host's inodes, so they move, are copied and are backed up with them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, XattrFlags};

use super::collect::{Marked, host_path};
use super::error::{Result, VolumeError};
use super::look::ID;
use super::open_file::OpenFile;
use super::{ROOT_INO, Volume};
use crate::base::activity::{self, Refused, Waits};
use crate::base::limits::REPLICAS_MAX;
use crate::base::{BlockId, names};
use crate::folder::host::{open_below, proc_path, stat_at};
use crate::store::{Put, PutKind, Want};

/// Replicas of a file, or of everything below a directory: a decimal number.
pub const REPLICAS: &str = "user.dfs.replicas";

/// Whether it stays on this device: `1` or `0`.
pub const PINNED: &str = "user.dfs.pinned";

/// Where a file's content is: `local`, `partial` or `remote`, and `,dirty` after it while some of it lacks replicas. Read only, not listed.
pub const STATE: &str = "user.dfs.state";

/// Deepest directory whose wishes are looked for.
const DEPTH_MAX: usize = 4096;

/// What a block needs, for the sake of the files that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Replicas on other devices.
    pub replicas: u8,
    /// Never freed or evicted here.
    pub pinned: bool,
}

impl Needs {
    /// Of a file for which nothing is wished.
    pub fn of_all(retention: &dyn super::Retention) -> Self {
        Self {
            replicas: retention.default_replicas(),
            pinned: false,
        }
    }

    /// What satisfies both.
    pub fn and(self, other: Self) -> Self {
        Self {
            replicas: self.replicas.max(other.replicas),
            pinned: self.pinned || other.pinned,
        }
    }

    /// These, but for what the owner wished for this inode.
    fn or_as_wished(self, inode: BorrowedFd<'_>) -> Self {
        Self {
            replicas: wish(inode, REPLICAS).unwrap_or(self.replicas),
            pinned: wish(inode, PINNED).map_or(self.pinned, |pinned| pinned > 0),
        }
    }
}

/// A wish on a host inode; one that cannot be read is none.
fn wish(inode: BorrowedFd<'_>, name: &str) -> Option<u8> {
    let mut value = [0u8; 8];
    let len = rustix::fs::fgetxattr(inode, name, &mut value[..]).ok()?;
    parse(name, &value[..len])
}

/// The value of a wish.
fn parse(name: &str, value: &[u8]) -> Option<u8> {
    let most = if name == PINNED { 1 } else { REPLICAS_MAX };
    let number: u8 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number <= most).then_some(number)
}

/// Where the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// Blocks of the file.
    pub blocks: usize,
    /// Those of them that are on this device.
    pub here: usize,
    /// Some of it lacks replicas, or was not sealed yet.
    pub dirty: bool,
}

impl std::fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.here, self.blocks) {
            (here, blocks) if here == blocks => "local",
            (0, _) => "remote",
            _ => "partial",
        })?;
        f.write_str(if self.dirty { ",dirty" } else { "" })
    }
}

impl Volume {
    /// What a file needs when nobody wished anything for it.
    pub(super) fn default_needs(&self) -> Needs {
        let none = Needs {
            replicas: 0,
            pinned: false,
        };
        self.blocks.retention().map_or(none, Needs::of_all)
    }

    /// What `inode` needs, below a directory that needs `inherited`. Takes note of the first wish that is found in the volume.
    pub(super) fn needs_below(&self, inherited: Needs, inode: BorrowedFd<'_>) -> Needs {
        let needs = inherited.or_as_wished(inode);
        if needs != inherited
            && let Some(retention) = self.blocks.retention()
        {
            retention.wishes_found();
        }
        needs
    }

    /// What the directories above and at a host path need.
    pub(super) fn needs_of_dir(&self, host: &Path) -> Result<Needs> {
        let mut needs = self.default_needs();
        let mut at = PathBuf::new();
        let open = |error| VolumeError::host("open a directory", error);
        needs = self.needs_below(needs, self.folder.root().as_fd());
        for part in host {
            at.push(part);
            needs = self.needs_below(needs, self.folder.dir(&at).map_err(open)?.as_fd());
        }
        Ok(needs)
    }

    /// Whether somebody wished something for a file once.
    pub fn has_wishes(&self) -> bool {
        self.blocks.retention().is_some_and(super::Retention::has_wishes)
    }

    /// Whether what is at a path of the volume is to stay on this device.
    pub fn is_pinned(&self, path: &Path) -> bool {
        let parent = host_path(path.parent().unwrap_or(Path::new("")));
        let Ok(above) = self.needs_of_dir(&parent) else {
            return false;
        };
        let file = path.file_name().and_then(|name| {
            let dir = self.folder.dir(&parent).ok()?;
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            open_below(dir.as_fd(), &names::file_to_host(name), flags, Mode::empty()).ok()
        });
        file.map_or(above, |file| self.needs_below(above, file.as_fd()))
            .pinned
    }

    /// What an open file needs, by the newest of its names.
    pub(super) fn needs_of_open(&self, file: &OpenFile) -> Needs {
        let default = self.default_needs();
        if !self.blocks.retention().is_some_and(super::Retention::has_wishes) {
            return default;
        }
        let mut above = Vec::new();
        let mut at = file.ino;
        while at != ROOT_INO && above.len() < DEPTH_MAX {
            let Some((parent, _)) = self.nodes.names(at).into_iter().next() else {
                return default;
            };
            match self.nodes.dir(&self.folder, parent) {
                Ok(dir) => above.push(dir),
                Err(_) => return default,
            }
            at = parent;
        }
        let needs = above
            .iter()
            .rev()
            .fold(default, |needs, dir| needs.or_as_wished(dir.as_fd()));
        needs.or_as_wished(file.host.as_fd())
    }

    /// Refuses what cannot be wished. True when `name` is a wish.
    pub(super) fn check_wish(name: &OsStr, value: Option<&[u8]>) -> Result<bool> {
        match name.to_str() {
            Some(STATE | ID) => Err(VolumeError::NotPermitted),
            Some(name @ (REPLICAS | PINNED)) => match value {
                Some(value) if parse(name, value).is_none() => Err(VolumeError::Invalid(
                    "user.dfs.replicas is a number from 0 to 16, user.dfs.pinned 1 or 0",
                )),
                _ => Ok(true),
            },
            _ => Ok(false),
        }
    }

    /// The owner wishes something else: what that means for each block is found out in a while.
    pub(super) fn wish_changed(&self) {
        if let Some(retention) = self.blocks.retention() {
            retention.wishes_found();
            retention.look_again();
        }
    }

    /// Where the content of a regular file is, by its inode.
    pub(super) fn whereabouts(&self, ino: u64) -> Result<Whereabouts> {
        let mut marked = Marked::as_far_as_here(self.default_needs());
        let mut dirty = false;
        if let Some(file) = self.handles.open_file(ino) {
            dirty = file.state.lock().changed;
            self.mark_file(&file.host, Path::new(&self.shown_path(ino)), &mut marked)?;
        } else {
            let place = self.nodes.place(&self.folder, ino)?;
            self.mark_at(&place.dir, &place.host, &mut marked)?;
        }
        let store = self.blocks.tiered().store();
        // What an index block names that is elsewhere is counted as one.
        let unknown = usize::from(marked.is_incomplete());
        let blocks: Vec<BlockId> = marked.into_data().into_keys().collect();
        let mut here = 0;
        for id in &blocks {
            here += usize::from(store.contains(id).map_err(VolumeError::store)?);
        }
        dirty |= self
            .blocks
            .retention()
            .is_some_and(|retention| !retention.has_replicas(&blocks));
        Ok(Whereabouts {
            blocks: blocks.len() + unknown,
            here,
            dirty,
        })
    }

    /// Brings everything below a path of the volume to this device, and keeps it from being evicted. `told` gets how far it
    /// is and how many blocks there are, and says whether to go on.
    pub fn bring(&self, path: &Path, told: &mut dyn FnMut(&Brought, u64) -> bool) -> Result<Brought> {
        let needs: Vec<(BlockId, Needs)> = self.blocks_below(path)?.into_iter().collect();
        if let Some(retention) = self.blocks.retention() {
            // Before they come, so that none goes again.
            retention.wished(&needs);
        }
        let blocks: Vec<BlockId> = needs.into_iter().map(|(id, _)| id).collect();
        let store = self.blocks.tiered().store();
        let mut brought = Brought::default();
        for some in blocks.chunks(BROUGHT_AT_ONCE) {
            let mut wants = Vec::new();
            for id in some {
                if !store.contains(id).map_err(VolumeError::store)? {
                    wants.push(Want {
                        id: *id,
                        root: None,
                        ahead: true,
                    });
                }
            }
            self.blocks.tiered().prefetch(&wants);
            let mut here: Vec<BlockId> = some.to_vec();
            for want in wants {
                here.retain(|id| *id != want.id);
                match self.blocks.tiered().get(want) {
                    Ok(bytes) => {
                        brought.blocks += 1;
                        brought.bytes += bytes.len() as u64;
                        // Whether or not what was fetched has come to the store by now.
                        let put = Put {
                            id: want.id,
                            bytes,
                            kind: PutKind::Dirty,
                            plain: None,
                        };
                        store.put(vec![put]).map_err(VolumeError::store)?;
                    }
                    Err(error) => {
                        tracing::warn!(block = %want.id, %error, "a block that is to stay here cannot be had now");
                        brought.missing += 1;
                    }
                }
            }
            store.set_dirty(&here, true).map_err(VolumeError::store)?;
            brought.looked_at += some.len() as u64;
            if !told(&brought, blocks.len() as u64) {
                break;
            }
        }
        Ok(brought)
    }

    /// Wishes that a file, or all below a directory, stays on this device, or not any more. A reader may wish so too.
    pub fn pin(&self, path: &Path, pinned: bool) -> Result<()> {
        let parent = host_path(path.parent().unwrap_or(Path::new("")));
        let value: &[u8] = if pinned { b"1" } else { b"0" };
        let fail = |error: std::io::Error| VolumeError::host("extended attribute", error);
        let above = match path.file_name() {
            None => {
                rustix::fs::fsetxattr(self.folder.root(), PINNED, value, XattrFlags::empty())
                    .map_err(|error| fail(error.into()))?;
                None
            }
            Some(name) => {
                let dir = self.folder.dir(&parent).map_err(fail)?;
                let file = names::file_to_host(name);
                let host = match stat_at(dir.as_fd(), &file) {
                    Ok(_) => file,
                    Err(_) => names::dir_to_host(name),
                };
                let inode = proc_path(dir.as_fd(), &host);
                rustix::fs::lsetxattr(&inode, PINNED, value, XattrFlags::empty())
                    .map_err(|error| fail(error.into()))?;
                Some((inode, self.needs_of_dir(&parent)?))
            }
        };
        // What follows from above need not be said.
        if let Some((inode, above)) = above
            && above.pinned == pinned
        {
            let _ = rustix::fs::lremovexattr(&inode, PINNED);
        }
        self.wish_changed();
        Ok(())
    }

    /// Waits until a file has the replicas it needs. False when they could not be had in time.
    pub(super) fn wait_for_replicas(&self, file: &OpenFile) -> Result<bool> {
        let Some(retention) = self.blocks.retention() else {
            return Ok(false);
        };
        let mut marked = Marked::new(self.default_needs());
        self.mark_file(&file.host, Path::new(&self.shown_path(file.ino)), &mut marked)?;
        let blocks: Vec<BlockId> = marked.iter().map(|(id, _)| *id).collect();
        if blocks.is_empty() {
            return Ok(true);
        }
        let _waiting = activity::wait(Waits::Network).map_err(|why| match why {
            Refused::Impatient => VolumeError::WouldWait,
            Refused::Crowded => VolumeError::Crowded,
        })?;
        Ok(retention.wait_for_replicas(&blocks, Instant::now() + self.timeout))
    }
}

/// Blocks fetched side by side.
const BROUGHT_AT_ONCE: usize = 64;

/// What was brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Brought {
    /// Blocks that were elsewhere only.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that could not be had.
    pub missing: u64,
    /// Blocks that are needed, here before or not.
    pub looked_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_wished() {
        let check =
            |name: &str, value: &str| Volume::check_wish(OsStr::new(name), Some(value.as_bytes())).ok();
        assert_eq!(check(REPLICAS, "3"), Some(true));
        assert_eq!(check(PINNED, "1"), Some(true));
        assert_eq!(check("user.other", "x"), Some(false));
        for (name, value) in [
            (REPLICAS, "17"),
            (REPLICAS, ""),
            (REPLICAS, "-1"),
            (PINNED, "2"),
            (STATE, "local"),
        ] {
            assert_eq!(check(name, value), None, "{name}={value}");
        }
        assert!(Volume::check_wish(OsStr::new(PINNED), None).unwrap());
    }

    #[test]
    fn where_content_is() {
        let said = |here, blocks, dirty| Whereabouts { blocks, here, dirty }.to_string();
        assert_eq!(said(0, 0, false), "local");
        assert_eq!(said(3, 3, true), "local,dirty");
        assert_eq!(said(1, 3, false), "partial");
        assert_eq!(said(0, 3, false), "remote");
    }
}
