//! Names: finding, creating, linking, moving and removing them. The host's namespace is ours; only the naming rule lies between.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};

use super::changes::Note;
use super::error::{Result, VolumeError};
use super::nameless::hold;
use super::nodes::to_host;
use super::shown::{check_own, is_past, is_shown};
use super::{ROOT_INO, Volume, Wait};
use crate::base::names::{self, BadName};
use crate::base::types::{Attr, Caller, FileKind, RenameMode};
use crate::folder::host::{kind_of, open_below, stat_at, type_of};

impl Volume {
    /// Finds a name. The caller holds one more reference to the inode until it calls `forget`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        if let Some(shown) = self.find_shown(parent, name) {
            return shown;
        }
        let _still = self.renames.read();
        let dir = self.nodes.dir(&self.folder, parent)?;
        let (host, stat) = self.find(&dir, parent, name)?;
        let mut attr = self.attr_at(&dir, &host, &stat);
        attr.generation = self.nodes.found(attr.ino, attr.kind, parent, name);
        Ok(attr)
    }

    /// Gives back `count` references from `lookup`, `create`, `mkdir`, `mknod`, `symlink`, `link` and `readdir_plus`.
    pub fn forget(&self, ino: u64, count: u64) {
        if is_shown(ino) {
            return self.forget_past(ino, count);
        }
        self.nodes.forget(ino, count);
        if self.nameless.has(ino) && self.nodes.kind(ino).is_none() {
            self.nameless.forget(ino);
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<OsString> {
        if is_past(ino) {
            return self.readlink_past(ino);
        }
        let _still = self.renames.read();
        let place = self.nodes.place(&self.folder, ino)?;
        let target = rustix::fs::readlinkat(&place.dir, &place.host, Vec::new())
            .map_err(|error| VolumeError::host("read the link", error))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Creates an inode of any kind but a directory or a symbolic link.
    pub fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        rdev: u64,
        caller: &Caller,
    ) -> Result<Attr> {
        self.make(parent, name, kind, mode, caller, |dir, host, mode| {
            rustix::fs::mknodat(dir, host, type_of(kind), mode, rdev)
        })
    }

    /// Creates a directory.
    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32, caller: &Caller) -> Result<Attr> {
        self.make(
            parent,
            name,
            FileKind::Directory,
            mode,
            caller,
            |dir, host, mode| rustix::fs::mkdirat(dir, host, mode),
        )
    }

    /// Creates a symbolic link.
    pub fn symlink(&self, parent: u64, name: &OsStr, target: &OsStr, caller: &Caller) -> Result<Attr> {
        self.make(parent, name, FileKind::Symlink, 0o777, caller, |dir, host, _| {
            rustix::fs::symlinkat(target, dir, host)
        })
    }

    /// Gives an inode another name.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        self.check_writable()?;
        check_own(ino)?;
        check_name(parent, name)?;
        let _still = self.renames.read();
        let from = self.nodes.place(&self.folder, ino)?;
        let dir = self.nodes.dir(&self.folder, parent)?;
        let host = names::file_to_host(name);
        self.note_inode(ino, Note::Any);
        self.note(parent, name);
        rustix::fs::linkat(&from.dir, &from.host, &dir, &host, AtFlags::empty())
            .map_err(|error| VolumeError::host("link", error))?;
        self.moved.store(true, Ordering::SeqCst);
        let stat =
            stat_at(dir.as_fd(), &host).map_err(|error| VolumeError::host("look at the new link", error))?;
        let mut attr = self.attr_at(&dir, &host, &stat);
        attr.generation = self.nodes.found(attr.ino, attr.kind, parent, name);
        Ok(attr)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        check_name(parent, name)?;
        let _still = self.renames.read();
        let dir = self.nodes.dir(&self.folder, parent)?;
        let host = names::file_to_host(name);
        let stat =
            stat_at(dir.as_fd(), &host).map_err(|error| VolumeError::host("look at the file", error))?;
        let held = hold(&dir, &host, &stat);
        self.note(parent, name);
        rustix::fs::unlinkat(&dir, &host, AtFlags::empty())
            .map_err(|error| VolumeError::host("unlink", error))?;
        self.name_gone(&stat, held, parent, name);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        check_name(parent, name)?;
        let _still = self.renames.read();
        let dir = self.nodes.dir(&self.folder, parent)?;
        let host = names::dir_to_host(name);
        let stat =
            stat_at(dir.as_fd(), &host).map_err(|error| VolumeError::host("look at the directory", error))?;
        let held = hold(&dir, &host, &stat);
        self.note(parent, name);
        rustix::fs::unlinkat(&dir, &host, AtFlags::REMOVEDIR)
            .map_err(|error| VolumeError::host("rmdir", error))?;
        self.name_gone(&stat, held, parent, name);
        Ok(())
    }

    /// Moves a name. What takes the place of another file is durable before.
    ///
    /// # Errors
    /// [`VolumeError::WouldWait`] when that takes a sync and the caller may not wait.
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        mode: RenameMode,
        wait: Wait,
    ) -> Result<()> {
        self.check_writable()?;
        check_name(parent, name)?;
        check_name(new_parent, new_name)?;
        self.settle_replacement((parent, name), (new_parent, new_name), mode, wait)?;
        let _alone = self.renames.write();
        let dir = self.nodes.dir(&self.folder, parent)?;
        let new_dir = self.nodes.dir(&self.folder, new_parent)?;
        let (host, stat) = self.find(&dir, parent, name)?;
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        let target = match self.find(&new_dir, new_parent, new_name) {
            Ok((host, stat)) => Some((host, stat)),
            Err(VolumeError::NotFound) => None,
            Err(error) => return Err(error),
        };
        let target_kind = target
            .as_ref()
            .map(|(_, stat)| kind_of(FileType::from_raw_mode(stat.st_mode)));
        let is_dir = |kind: FileKind| kind == FileKind::Directory;
        match (mode, target_kind) {
            (RenameMode::NoReplace, Some(_)) => return Err(VolumeError::Exists),
            (RenameMode::Exchange, None) => return Err(VolumeError::NotFound),
            // The two have names of different form on the host, which it cannot exchange in one step.
            (RenameMode::Exchange, Some(other)) if is_dir(kind) != is_dir(other) => {
                return Err(VolumeError::Invalid("a file and a directory cannot be exchanged"));
            }
            (RenameMode::Replace, Some(other)) if is_dir(kind) && !is_dir(other) => {
                return Err(VolumeError::NotDirectory);
            }
            (RenameMode::Replace, Some(other)) if !is_dir(kind) && is_dir(other) => {
                return Err(VolumeError::IsDirectory);
            }
            _ => {}
        }
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        let new_host = to_host(kind, new_name);
        let replaced = target
            .as_ref()
            .filter(|(_, other)| mode == RenameMode::Replace && other.st_ino != stat.st_ino);
        let held = replaced.and_then(|(host, other)| hold(&new_dir, host, other));
        self.note(parent, name);
        self.note(new_parent, new_name);
        rustix::fs::renameat_with(&dir, &host, &new_dir, &new_host, flags)
            .map_err(|error| VolumeError::host("rename", error))?;
        self.moved.store(true, Ordering::SeqCst);
        let ino = self.shown_ino(stat.st_ino);
        match target {
            Some((_, other)) if other.st_ino == stat.st_ino => {}
            Some((_, other)) if mode == RenameMode::Exchange => {
                self.nodes.renamed(ino, (parent, name), (new_parent, new_name));
                self.nodes.renamed(
                    self.shown_ino(other.st_ino),
                    (new_parent, new_name),
                    (parent, name),
                );
            }
            other => {
                if let Some((_, other)) = other {
                    self.name_gone(&other, held, new_parent, new_name);
                }
                self.nodes.renamed(ino, (parent, name), (new_parent, new_name));
            }
        }
        Ok(())
    }

    /// Opens the `.f` that was just created for a caller, or an error if the name is taken. Used by `create`.
    pub(super) fn create_host(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: &Caller,
    ) -> Result<(std::fs::File, Stat)> {
        self.check_writable()?;
        check_name(parent, name)?;
        let dir = self.nodes.dir(&self.folder, parent)?;
        let host = names::file_to_host(name);
        let mode = self.masked(&dir, mode, caller);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.note(parent, name);
        let file = open_below(dir.as_fd(), &host, flags, Mode::from_raw_mode(mode))
            .map_err(|error| VolumeError::host("create", error))?;
        self.give_away(&dir, &host, FileKind::Regular, mode, caller)?;
        let stat =
            rustix::fs::fstat(&file).map_err(|error| VolumeError::host("look at the new file", error))?;
        Ok((file.into(), stat))
    }

    fn make(
        &self,
        parent: u64,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        caller: &Caller,
        how: impl FnOnce(&OwnedFd, &OsStr, Mode) -> rustix::io::Result<()>,
    ) -> Result<Attr> {
        self.check_writable()?;
        check_name(parent, name)?;
        let _still = self.renames.read();
        let dir = self.nodes.dir(&self.folder, parent)?;
        let host = to_host(kind, name);
        let mode = self.masked(&dir, mode, caller);
        self.note(parent, name);
        how(&dir, &host, Mode::from_raw_mode(mode)).map_err(|error| VolumeError::host("create", error))?;
        if kind == FileKind::Directory && self.notes_changes() {
            self.name_new_dir(&dir, &host)?;
        }
        self.give_away(&dir, &host, kind, mode, caller)?;
        let stat = stat_at(dir.as_fd(), &host)
            .map_err(|error| VolumeError::host("look at what was created", error))?;
        let mut attr = self.attr_at(&dir, &host, &stat);
        self.durability.forget(attr.ino);
        attr.generation = self.nodes.created(attr.ino, kind, parent, name);
        Ok(attr)
    }

    /// The mode without the caller's umask, unless the directory has a default ACL, which takes its place (acl(5)).
    fn masked(&self, dir: &Arc<OwnedFd>, mode: u32, caller: &Caller) -> u32 {
        let mut probe = [0u8; 0];
        let has_default_acl = !matches!(
            rustix::fs::fgetxattr(dir, "system.posix_acl_default", &mut probe),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP)
        );
        if has_default_acl {
            mode & 0o7777
        } else {
            mode & !caller.umask & 0o7777
        }
    }

    /// Gives a new inode to the caller. A set-group-id directory has handed down its group already.
    fn give_away(
        &self,
        dir: &Arc<OwnedFd>,
        host: &OsStr,
        kind: FileKind,
        mode: u32,
        caller: &Caller,
    ) -> Result<()> {
        if !self.gives_away || (caller.uid == 0 && caller.gid == 0) {
            return Ok(());
        }
        let parent =
            rustix::fs::fstat(dir).map_err(|error| VolumeError::host("look at the directory", error))?;
        let inherits = parent.st_mode & Mode::SGID.as_raw_mode() != 0;
        let gid = (!inherits).then(|| Gid::from_raw(caller.gid));
        rustix::fs::chownat(
            dir,
            host,
            Some(Uid::from_raw(caller.uid)),
            gid,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|error| VolumeError::host("give the new file to its owner", error))?;
        if mode & 0o6000 != 0 && !matches!(kind, FileKind::Symlink | FileKind::Directory) {
            // The change of owner has cleared the set-id bits.
            rustix::fs::chmodat(dir, host, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(|error| VolumeError::host("set the mode of the new file", error))?;
        }
        Ok(())
    }

    /// The host name and inode of a name, whichever kind it has.
    pub(super) fn find(&self, dir: &Arc<OwnedFd>, parent: u64, name: &OsStr) -> Result<(OsString, Stat)> {
        check_name(parent, name).map_err(|error| match error {
            VolumeError::NotPermitted | VolumeError::Exists => VolumeError::NotFound,
            other => other,
        })?;
        let is_dir = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        for (host, directory) in [
            (names::file_to_host(name), false),
            (names::dir_to_host(name), true),
        ] {
            match stat_at(dir.as_fd(), &host) {
                Ok(stat) if is_dir(&stat) == directory => return Ok((host, stat)),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(VolumeError::host("look up", error)),
            }
        }
        Err(VolumeError::NotFound)
    }
}

/// Whether a name may be used in a directory.
fn check_name(parent: u64, name: &OsStr) -> Result<()> {
    names::check(name).map_err(|bad| match bad {
        BadName::TooLong => VolumeError::NameTooLong,
        BadName::Invalid => VolumeError::Invalid("not a file name"),
        BadName::Reserved => VolumeError::NotPermitted,
    })?;
    // The marker file of the folder has this host name; in the mount it is kept for what dfs shows of itself.
    if parent == ROOT_INO && name == names::MARKER {
        return Err(VolumeError::NotPermitted);
    }
    check_own(parent)
}
