//! What inodes carry: the host's own attributes and extended attributes, with the size of the content in place of the `.f`'s.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};

use super::changes::Note;
use super::error::{Result, VolumeError};
use super::look::ID;
use super::nodes::Place;
use super::open_file::{OpenFile, choose};
use super::shown::{check_own, is_past, is_shown};
use super::sizes::{Mark, day_of};
use super::wishes::STATE;
use super::{Volume, Wait};
use crate::base::limits::{FILE_MAX, NAME_MAX};
use crate::base::types::{Attr, Caller, FileKind, SetAttr, SetTime, StatFs, Timestamp};
use crate::folder::host::{attr_of, open_below, proc_path, stat_at};
use crate::folder::slots::SlotBytes;
use crate::object::Content;

/// Longest list of extended attribute names, and longest value: the kernel's own bounds (xattr(7)).
const XATTR_MAX: usize = 64 << 10;

/// The attribute that the host drops whenever a file is written (capabilities(7)).
pub const CAPABILITY: &str = "security.capability";

impl Volume {
    /// What `stat` shows. `fh` helps where no name is left.
    pub fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Attr> {
        if is_shown(ino) {
            return self.attr_shown(ino);
        }
        let open = fh
            .and_then(|fh| self.handles.file(fh))
            .or_else(|| self.handles.open_file(ino));
        let mut attr = match open {
            Some(file) => {
                let stat = rustix::fs::fstat(&file.host)
                    .map_err(|error| VolumeError::host("look at the .f", error))?;
                self.attr_of_open(&file, &stat)
            }
            None => {
                let _still = self.renames.read();
                match self.stat_place(ino) {
                    Ok((place, stat)) => self.attr_at(&place.dir, &place.host, &stat),
                    Err(VolumeError::Stale) => self.attr_nameless(ino)?,
                    Err(error) => return Err(error),
                }
            }
        };
        attr.generation = self.nodes.generation(ino);
        Ok(attr)
    }

    /// Changes attributes. A change of size without a handle survives the death of the daemon when this returns, as after `close`.
    pub fn setattr(&self, ino: u64, fh: Option<u64>, set: &SetAttr, _caller: &Caller) -> Result<Attr> {
        self.check_writable()?;
        check_own(ino)?;
        let open = fh
            .and_then(|fh| self.handles.file(fh))
            .or_else(|| self.handles.open_file(ino));
        if let Some(size) = set.size {
            if size > FILE_MAX {
                return Err(VolumeError::TooLarge);
            }
            match (&open, fh) {
                (Some(file), Some(_)) => self.resize(file, size)?,
                _ => self.with_open(ino, true, |file| {
                    file.may_change()?;
                    self.resize(file, size)?;
                    self.write_back(file)
                })?,
            }
        }
        if set.mode.is_some_and(|mode| mode & 0o6000 != 0)
            && let Some(file) = &open
        {
            // Writing the .f later would make the host clear the set-id bits again.
            self.write_back(file)?;
        }
        let owner = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
        let times = timestamps(set);
        let context = "change attributes";
        let host = |error: rustix::io::Errno| VolumeError::host(context, error);
        if let Some(file) = &open {
            let _still = self.renames.read();
            self.note_inode(ino, Note::Any);
            if owner != (None, None) {
                rustix::fs::fchown(&file.host, owner.0, owner.1).map_err(host)?;
            }
            if let Some(mode) = set.mode {
                rustix::fs::fchmod(&file.host, Mode::from_raw_mode(mode)).map_err(host)?;
            }
            if let Some(times) = &times {
                // Under the lock, so that a write-back comes wholly before or wholly after.
                let mut state = file.state.lock();
                rustix::fs::futimens(&file.host, times).map_err(host)?;
                if let Some(mtime) = set.mtime {
                    // A slot that is written later must not undo it.
                    state.mtime = state.changed.then(|| match mtime {
                        SetTime::At(time) => time,
                        SetTime::Now => now(),
                    });
                }
            }
        } else if owner != (None, None) || set.mode.is_some() || times.is_some() {
            let _still = self.renames.read();
            self.note_inode(ino, Note::Any);
            let (place, _) = self.stat_place(ino)?;
            if owner != (None, None) {
                rustix::fs::chownat(
                    &place.dir,
                    &place.host,
                    owner.0,
                    owner.1,
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .map_err(host)?;
            }
            if let Some(mode) = set.mode {
                if self.nodes.kind(ino) == Some(FileKind::Symlink) {
                    return Err(VolumeError::Unsupported);
                }
                rustix::fs::chmodat(
                    &place.dir,
                    &place.host,
                    Mode::from_raw_mode(mode),
                    AtFlags::empty(),
                )
                .map_err(host)?;
            }
            if let Some(times) = &times {
                rustix::fs::utimensat(&place.dir, &place.host, times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(host)?;
            }
        }
        self.getattr(ino, fh)
    }

    /// Capacity, as the folder's filesystem has it.
    pub fn statfs(&self) -> Result<StatFs> {
        let host = self
            .folder
            .statvfs()
            .map_err(|error| VolumeError::host("statfs", error))?;
        Ok(StatFs {
            block_size: u32::try_from(host.f_frsize).unwrap_or(4096),
            blocks: host.f_blocks,
            blocks_free: host.f_bfree,
            blocks_available: host.f_bavail,
            files: host.f_files,
            files_free: host.f_ffree,
            name_max: NAME_MAX as u32,
        })
    }

    /// Sets an extended attribute. `flags` as in setxattr(2): 1 create, 2 replace.
    pub fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.check_writable()?;
        let wish = Self::check_wish(name, Some(value))?;
        if name == CAPABILITY
            && let Some(file) = self.handles.open_file(ino)
        {
            // Writing the .f later would make the host drop the capability again.
            self.write_back(&file)?;
        }
        let flags = XattrFlags::from_bits_truncate(flags.cast_unsigned());
        self.at_inode(ino, true, |at| match at {
            At::Path(path) => rustix::fs::lsetxattr(path, name, value, flags),
            At::Open(host) => rustix::fs::fsetxattr(host, name, value, flags),
        })?;
        if wish {
            self.wish_changed();
        }
        Ok(())
    }

    /// The value of an extended attribute.
    pub fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        if is_past(ino) {
            return self.getxattr_past(ino, name);
        }
        if name == STATE && self.nodes.kind(ino) == Some(FileKind::Regular) {
            return Ok(self.whereabouts(ino)?.to_string().into_bytes());
        }
        if name == ID {
            return Err(VolumeError::host("extended attribute", rustix::io::Errno::NODATA));
        }
        let mut value = vec![0u8; XATTR_MAX];
        let len = self.at_inode(ino, false, |at| match at {
            At::Path(path) => rustix::fs::lgetxattr(path, name, &mut value[..]),
            At::Open(host) => rustix::fs::fgetxattr(host, name, &mut value[..]),
        })?;
        value.truncate(len);
        Ok(value)
    }

    /// The names of extended attributes, each followed by a NUL.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        if is_past(ino) {
            return self.listxattr_past(ino);
        }
        let mut list = vec![0u8; XATTR_MAX];
        let len = self.at_inode(ino, false, |at| match at {
            At::Path(path) => rustix::fs::llistxattr(path, &mut list[..]),
            At::Open(host) => rustix::fs::flistxattr(host, &mut list[..]),
        })?;
        list.truncate(len);
        if let Some(at) = list
            .windows(ID.len() + 1)
            .position(|name| name.split_last() == Some((&0, ID.as_bytes())))
        {
            list.drain(at..=at + ID.len());
        }
        Ok(list)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let wish = Self::check_wish(name, None)?;
        self.at_inode(ino, true, |at| match at {
            At::Path(path) => rustix::fs::lremovexattr(path, name),
            At::Open(host) => rustix::fs::fremovexattr(host, name),
        })?;
        if wish {
            self.wish_changed();
        }
        Ok(())
    }

    /// Runs a call on the host inode: through the open `.f` where there is one, since its names may be gone, by name otherwise.
    fn at_inode<T>(
        &self,
        ino: u64,
        changes: bool,
        call: impl FnOnce(At<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        if changes {
            check_own(ino)?;
        }
        if is_shown(ino) {
            return Err(VolumeError::Unsupported);
        }
        let _still = self.renames.read();
        if changes {
            self.note_inode(ino, Note::Any);
        }
        let outcome = if let Some(file) = self.handles.open_file(ino) {
            call(At::Open(&file.host))
        } else {
            let place = self.nodes.place(&self.folder, ino)?;
            call(At::Path(&proc_path(place.dir.as_fd(), &place.host)))
        };
        outcome.map_err(|error| VolumeError::host("extended attribute", error))
    }

    /// The attributes of what a host name stands for.
    pub(super) fn attr_at(&self, dir: &Arc<OwnedFd>, host: &OsStr, stat: &Stat) -> Attr {
        let mut attr = attr_of(stat);
        attr.ino = self.shown_ino(stat.st_ino);
        if attr.kind != FileKind::Regular {
            return attr;
        }
        if let Some(file) = self.handles.open_file(attr.ino) {
            return self.attr_of_open(&file, stat);
        }
        let (size, stored) = match stat.st_size {
            0 => (0, 0),
            _ => self.size_at(dir, host, &attr),
        };
        attr.size = size;
        attr.blocks = stored.div_ceil(512);
        attr
    }

    /// Size and stored bytes of a closed file whose `.f` looks like this.
    fn size_at(&self, dir: &Arc<OwnedFd>, host: &OsStr, seen: &Attr) -> (u64, u64) {
        let (mark, now) = (Mark::of(seen), now());
        let day = day_of(now);
        let known = mark.and_then(|mark| self.sizes.lock().get(seen.ino, mark, day));
        if let Some(known) = known {
            return known;
        }
        match self.read_size(dir, host) {
            Ok(read) => {
                if mark.is_some_and(|mark| mark.is_settled(now)) {
                    self.sizes.lock().set(seen.ino, mark, read, day);
                }
                read
            }
            Err(error) => {
                // A listing goes on; opening the file tells the caller.
                tracing::warn!(file = %host.to_string_lossy(), %error, "the size of a file cannot be read");
                (0, 0)
            }
        }
    }

    /// Takes note of the size of a file whose `.f` was just written, with this time of its last change if one was set.
    pub(super) fn size_written(&self, file: &OpenFile, known: (u64, u64), mtime: Option<Timestamp>) {
        let stat = mtime.and_then(|_| rustix::fs::fstat(&file.host).ok());
        // Without a time of its own, another's write in the same instant would go unseen.
        let mark = stat
            .map(|stat| attr_of(&stat))
            .filter(|attr| Some(attr.mtime) == mtime)
            .and_then(|attr| Mark::of(&attr))
            .filter(Mark::has_own_mtime);
        self.sizes.lock().set(file.ino, mark, known, day_of(now()));
    }

    fn attr_of_open(&self, file: &OpenFile, stat: &Stat) -> Attr {
        let mut attr = attr_of(stat);
        attr.ino = file.ino;
        let state = file.state.lock();
        attr.size = state.pieces.size();
        attr.blocks = state.pieces.stored().div_ceil(512);
        if let Some(mtime) = state.mtime {
            attr.mtime = mtime;
            attr.ctime = attr.ctime.max(mtime);
        }
        attr
    }

    fn attr_nameless(&self, ino: u64) -> Result<Attr> {
        let stat = self.stat_nameless(ino)?;
        let mut attr = attr_of(&stat);
        attr.ino = ino;
        if attr.kind == FileKind::Regular {
            let bytes = SlotBytes::read(&self.open_nameless(ino)?)
                .map_err(|error| VolumeError::host("read the .f", error))?;
            let store = self.blocks.tiered().store();
            let chosen = choose(&bytes, self.blocks.keys(), store.as_ref());
            attr.size = chosen
                .ok()
                .and_then(|chosen| chosen.manifest)
                .map_or(0, |manifest| manifest.size);
        }
        Ok(attr)
    }

    fn read_size(&self, dir: &Arc<OwnedFd>, host: &OsStr) -> std::result::Result<(u64, u64), String> {
        let file = open_below(
            dir.as_fd(),
            host,
            OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )
        .map_err(|error| error.to_string())?;
        let bytes = SlotBytes::read(&File::from(file)).map_err(|error| error.to_string())?;
        let chosen = choose(&bytes, self.blocks.keys(), self.blocks.tiered().store().as_ref())?;
        Ok(chosen.manifest.map_or((0, 0), |manifest| {
            let holes = match &manifest.content {
                Content::Extents(extents) => {
                    extents.iter().filter(|e| e.block.is_none()).map(|e| e.len).sum()
                }
                Content::Inline(_) | Content::Index { .. } => 0,
            };
            (manifest.size, manifest.size.saturating_sub(holes))
        }))
    }

    /// Where an inode is, and its host inode: the first of its names that still leads to it.
    pub(super) fn stat_place(&self, ino: u64) -> Result<(Place, Stat)> {
        let place = self.nodes.place(&self.folder, ino)?;
        let context = "look at the file";
        let found =
            stat_at(place.dir.as_fd(), &place.host).map_err(|error| VolumeError::host(context, error));
        match found {
            Ok(stat) if self.shown_ino(stat.st_ino) == ino => return Ok((place, stat)),
            Err(error) if self.nodes.names(ino).len() < 2 => return Err(error),
            _ => {}
        }
        let kind = self.nodes.kind(ino).ok_or(VolumeError::Stale)?;
        for (parent, name) in self.nodes.names(ino) {
            let Ok(dir) = self.nodes.dir(&self.folder, parent) else {
                continue;
            };
            let host = super::nodes::to_host(kind, &name);
            match stat_at(dir.as_fd(), &host) {
                Ok(stat) if self.shown_ino(stat.st_ino) == ino => return Ok((Place { dir, host }, stat)),
                _ => {}
            }
        }
        Err(VolumeError::Stale)
    }

    /// Cuts or extends an open file.
    pub(super) fn resize(&self, file: &OpenFile, size: u64) -> Result<()> {
        let _gate = file.enter(Wait::Bounded)?;
        if size > 0 {
            // The index block across the new end is looked up, so that it can be divided.
            self.expand(file, size.saturating_sub(1)..size, Wait::Bounded)?;
        }
        let mut state = file.state.lock();
        if state.pieces.size() == size {
            return Ok(());
        }
        let before = state.pieces.in_memory();
        state.pieces.set_size(size);
        state.changed = true;
        state.mtime = Some(now());
        self.budget.changed(before, state.pieces.in_memory());
        Ok(())
    }
}

enum At<'a> {
    Path(&'a std::path::Path),
    Open(&'a File),
}

/// The time of day, as the host would stamp a file.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

fn timestamps(set: &SetAttr) -> Option<Timestamps> {
    let one = |time: Option<SetTime>| match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.secs,
            tv_nsec: i64::from(time.nanos),
        },
    };
    (set.atime.is_some() || set.mtime.is_some()).then(|| Timestamps {
        last_access: one(set.atime),
        last_modification: one(set.mtime),
    })
}
