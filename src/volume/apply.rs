//! Changes that come from another device, made to the folder one by one, each whole or not at all.
//!
//! Invariant: nothing that was changed here since the last commit is touched: such a change is left ([`Applied::Busy`]), and what is here is noted,
//! so that the next commit has it and the next merge knows both. Who holds a file open goes on with the version that he opened; one that is open for
//! writing is put [aside](super::aside). Called by `sync`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::aside::{GiveWay, Way};
use super::changes::Note;
use super::error::{Result, VolumeError};
use super::look::{DirAt, ID, What};
use super::nameless::hold;
use super::nodes::to_host;
use super::open_file::new_file_id;
use super::wishes::PINNED;
use super::{Volume, Wait};
use crate::base::FileId;
use crate::base::names::{self, TEMP_PREFIX};
use crate::base::tree::Meta;
use crate::base::types::FileKind;
use crate::folder::host::{attr_of, kind_of, open_below, proc_path, type_of};
use crate::folder::slots::{self, Slot};
use crate::object::{Content, Manifest, slot};

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It is made.
    Done,
    /// Something here keeps it from being made now.
    Busy,
}

/// What the kernel has to forget, since it changed without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forget {
    /// A name in a directory.
    Entry(u64, OsString),
    /// A name in a directory, with the inode that it was the last name of.
    Last(u64, u64, OsString),
    /// Attributes and content of an inode.
    Inode(u64),
}

/// Told what the kernel has to forget. Must not wait.
pub type Forgetter = Arc<dyn Fn(Forget) + Send + Sync>;

/// Something made beside its place, to be put there once it is durable.
#[derive(Debug)]
pub struct Prepared {
    pub(super) dir: DirAt,
    pub(super) temp: OsString,
    pub(super) kept: bool,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = rustix::fs::unlinkat(&self.dir.fd, &self.temp, AtFlags::empty())
        {
            tracing::debug!(%error, "a temporary file is left behind");
        }
    }
}

impl Volume {
    /// Who is told what the kernel has to forget.
    pub fn set_forgetter(&self, forgetter: Option<Forgetter>) {
        *self.forgetter.write() = forgetter;
    }

    pub(super) fn forget_entry(&self, dir: u64, name: &OsStr) {
        // Of a directory that the kernel does not know it knows no names.
        if self.nodes.kind(dir).is_none() {
            return;
        }
        if let Some(tell) = &*self.forgetter.read() {
            tell(Forget::Entry(dir, name.to_owned()));
        }
    }

    /// A name went that was of `ino`, which goes with it unless it has other names.
    fn forget_name(&self, dir: u64, name: &OsStr, ino: u64) {
        match self.nodes.names(ino).is_empty() {
            true => {
                if let Some(tell) = &*self.forgetter.read() {
                    tell(Forget::Last(dir, ino, name.to_owned()));
                }
            }
            false => self.forget_entry(dir, name),
        }
    }

    fn forget_inode(&self, ino: u64) {
        if let Some(tell) = &*self.forgetter.read() {
            tell(Forget::Inode(ino));
        }
    }

    /// Makes anything but a directory, beside where it is to be.
    pub fn prepare(&self, dir: &DirAt, id: FileId, what: &What, meta: &Meta) -> Result<Prepared> {
        let temp = OsString::from(format!("{TEMP_PREFIX}{}", new_file_id()?));
        let failed = |error| VolumeError::host("create a temporary file", error);
        let prepared = |temp| Prepared {
            dir: dir.clone(),
            temp,
            kept: false,
        };
        let made = match what {
            What::Directory => return Err(VolumeError::IsDirectory),
            What::Symlink(target) => {
                rustix::fs::symlinkat(&target[..], &dir.fd, &temp).map_err(failed)?;
                prepared(temp)
            }
            What::Special(kind, rdev) => {
                let file_type = type_of(*kind);
                rustix::fs::mknodat(&dir.fd, &temp, file_type, Mode::RUSR, *rdev).map_err(failed)?;
                prepared(temp)
            }
            What::File(content, size) => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                let host = open_below(dir.fd.as_fd(), &temp, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|error| VolumeError::host("create a temporary file", error))?;
                let made = prepared(temp);
                self.bring_index(content)?;
                let manifest = Manifest {
                    file_id: id,
                    generation: 1,
                    size: *size,
                    store: self.blocks.tiered().store().id(),
                    // Others have its blocks.
                    seq: 0,
                    content: content.clone(),
                };
                let encoded = slot::encode(&manifest, self.blocks.keys()).map_err(VolumeError::seal)?;
                let host = File::from(host);
                slots::write(&host, Slot::A, &encoded)
                    .map_err(|error| VolumeError::host("write a .f", error))?;
                self.dress_new(&host, &made, meta)?;
                return Ok(made);
            }
        };
        let kind = match what {
            What::Symlink(_) => FileKind::Symlink,
            _ => FileKind::Regular,
        };
        self.dress(&made.dir, &made.temp, kind, meta, None)?;
        Ok(made)
    }

    /// The blocks that say where a long file's are: without them nobody here could say what it needs.
    fn bring_index(&self, content: &Content) -> Result<()> {
        let Content::Index { refs, .. } = content else {
            return Ok(());
        };
        for entry in refs {
            self.blocks
                .read_once(entry.id, None, Wait::Bounded)
                .map_err(|error| VolumeError::Damaged {
                    path: format!("index block {}", entry.id.short()),
                    reason: error.to_string(),
                })?;
        }
        Ok(())
    }

    /// Puts what was prepared at a name: over what is there, if that is to be replaced. A file that is open for writing is left unless it can give way.
    pub fn install(
        &self,
        mut prepared: Prepared,
        name: &OsStr,
        replace: bool,
        give_way: Option<GiveWay>,
    ) -> Result<Applied> {
        let dir = prepared.dir.clone();
        let alone = self.renames.write();
        let there = self.find_there(&dir, name)?;
        let noted = self.noted(dir.ino, name);
        if noted == Some(Note::Any) {
            return Ok(self.busy(&dir, name));
        }
        let host = names::file_to_host(name);
        if there.is_some() != replace {
            return Ok(match there {
                Some((there, stat)) if self.is_as_prepared(&prepared, &there, &stat)? => Applied::Done,
                _ => self.busy(&dir, name),
            });
        }
        let Some((_, stat)) = there else {
            if noted.is_some() {
                return Ok(self.busy(&dir, name));
            }
            let flags = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(&dir.fd, &prepared.temp, &dir.fd, &host, flags)
                .map_err(|error| VolumeError::host("put a file in place", error))?;
            prepared.kept = true;
            self.moved.store(true, Ordering::SeqCst);
            self.forget_entry(dir.ino, name);
            return Ok(Applied::Done);
        };
        if kind_of(FileType::from_raw_mode(stat.st_mode)) == FileKind::Directory {
            return Ok(self.busy(&dir, name));
        }
        let way = self.make_way((&dir, name), &stat, give_way)?;
        if matches!(way, Way::Busy) {
            return Ok(self.busy(&dir, name));
        }
        let held = hold(&dir.fd, &host, &stat);
        if let Err(error) = rustix::fs::renameat(&dir.fd, &prepared.temp, &dir.fd, &host) {
            self.way_not_taken(way);
            return Err(VolumeError::host("put a file in place", error));
        }
        prepared.kept = true;
        self.moved.store(true, Ordering::SeqCst);
        let made_way = self.way_taken(way, (&stat, held), dir.ino, name);
        self.forget_name(dir.ino, name, self.shown_ino(stat.st_ino));
        drop(alone);
        self.keep_written(made_way);
        Ok(Applied::Done)
    }

    /// Makes a directory. One that is there with this id is it.
    pub fn install_dir(
        &self,
        dir: &DirAt,
        name: &OsStr,
        id: FileId,
        meta: &Meta,
    ) -> Result<(Applied, Option<DirAt>)> {
        let _alone = self.renames.write();
        if self.noted(dir.ino, name).is_some() {
            return Ok((self.busy(dir, name), None));
        }
        if self.find_there(dir, name)?.is_some() {
            return Ok(match self.dir_in(dir, name) {
                Ok(there) if there.id == Some(id) => (Applied::Done, Some(there)),
                Ok(_) | Err(VolumeError::NotFound | VolumeError::NotDirectory) => {
                    (self.busy(dir, name), None)
                }
                Err(error) => return Err(error),
            });
        }
        let host = names::dir_to_host(name);
        rustix::fs::mkdirat(&dir.fd, &host, Mode::RWXU)
            .map_err(|error| VolumeError::host("create a directory", error))?;
        let mut made = self.dir_in(dir, name)?;
        self.set_dir_id(&mut made, id)?;
        self.dress(dir, &host, FileKind::Directory, meta, None)?;
        self.forget_entry(dir.ino, name);
        Ok((Applied::Done, Some(made)))
    }

    /// Makes a directory that is to be another one that other one: it gets its id and its attributes, and keeps what is in it.
    pub fn adopt_dir(
        &self,
        dir: &DirAt,
        name: &OsStr,
        (was, before): (FileId, &Meta),
        (id, meta): (FileId, &Meta),
    ) -> Result<(Applied, Option<DirAt>)> {
        let _alone = self.renames.write();
        let mut there = match self.dir_in(dir, name) {
            Ok(there) if there.id == Some(was) && self.noted(dir.ino, name).is_none() => there,
            Ok(_) | Err(VolumeError::NotFound | VolumeError::NotDirectory) => {
                return Ok((self.busy(dir, name), None));
            }
            Err(error) => return Err(error),
        };
        self.set_dir_id(&mut there, id)?;
        let host = names::dir_to_host(name);
        self.dress(dir, &host, FileKind::Directory, meta, Some(before))?;
        self.forget_inode(there.ino);
        Ok((Applied::Done, Some(there)))
    }

    /// Gives a file another name.
    pub fn add_name(&self, from: (&DirAt, &OsStr), to: (&DirAt, &OsStr)) -> Result<Applied> {
        let _alone = self.renames.write();
        let noted = |(dir, name): (&DirAt, &OsStr)| self.noted(dir.ino, name);
        let from_noted = noted(from);
        let in_the_way = from_noted == Some(Note::Any) || noted(to).is_some();
        if let (false, Some((_, there))) = (in_the_way, self.find_there(to.0, to.1)?) {
            let from_there = self.find_there(from.0, from.1)?;
            return Ok(match from_there {
                Some((_, stat)) if stat.st_ino == there.st_ino => Applied::Done,
                _ => self.busy(to.0, to.1),
            });
        }
        if in_the_way {
            return Ok(self.busy(to.0, to.1));
        }
        let hosts = (names::file_to_host(from.1), names::file_to_host(to.1));
        rustix::fs::linkat(&from.0.fd, &hosts.0, &to.0.fd, &hosts.1, AtFlags::empty())
            .map_err(|error| VolumeError::host("link", error))?;
        if let Some(note) = from_noted {
            self.note_as(to.0.ino, to.1, note);
        }
        self.moved.store(true, Ordering::SeqCst);
        self.forget_entry(to.0.ino, to.1);
        Ok(Applied::Done)
    }

    /// Moves a name to where none is, or exchanges it with what is there.
    pub fn move_name(&self, from: (&DirAt, &OsStr), to: (&DirAt, &OsStr), exchange: bool) -> Result<Applied> {
        let _alone = self.renames.write();
        let noted = |(dir, name): (&DirAt, &OsStr)| self.noted(dir.ino, name);
        let (Some((host, stat)), there) = (self.find_there(from.0, from.1)?, self.find_there(to.0, to.1)?)
        else {
            return Ok(self.busy(from.0, from.1));
        };
        // What was only written to may move: it is the same file.
        let (from_noted, to_noted) = (noted(from), noted(to));
        let in_the_way = from_noted.max(to_noted) == Some(Note::Any) || (to_noted.is_some() && !exchange);
        if in_the_way || there.is_some() != exchange {
            self.busy(from.0, from.1);
            return Ok(self.busy(to.0, to.1));
        }
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        let flags = match exchange {
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::NOREPLACE,
        };
        match rustix::fs::renameat_with(&from.0.fd, &host, &to.0.fd, to_host(kind, to.1), flags) {
            Ok(()) => {}
            // Into itself: something else has to move first.
            Err(Errno::INVAL | Errno::NOTEMPTY) => return Ok(Applied::Busy),
            Err(error) => return Err(VolumeError::host("rename", error)),
        }
        for (note, at) in [(from_noted, to), (to_noted, from)] {
            if let Some(note) = note {
                self.note_as(at.0.ino, at.1, note);
            }
        }
        self.moved.store(true, Ordering::SeqCst);
        let places = ((from.0.ino, from.1), (to.0.ino, to.1));
        self.nodes
            .renamed(self.shown_ino(stat.st_ino), places.0, places.1);
        if let Some((_, other)) = there {
            self.nodes
                .renamed(self.shown_ino(other.st_ino), places.1, places.0);
        }
        self.forget_entry(from.0.ino, from.1);
        self.forget_entry(to.0.ino, to.1);
        Ok(Applied::Done)
    }

    /// Removes a name; a directory only when it is empty. A file that is open for writing is left unless it can give way.
    pub fn remove_name(
        &self,
        dir: &DirAt,
        name: &OsStr,
        is_dir: bool,
        give_way: Option<GiveWay>,
    ) -> Result<Applied> {
        let alone = self.renames.write();
        let Some((host, stat)) = self.find_there(dir, name)? else {
            return Ok(Applied::Done);
        };
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        let noted = self.noted(dir.ino, name);
        if noted.is_some() || (kind == FileKind::Directory) != is_dir {
            return Ok(self.busy(dir, name));
        }
        let has_others = stat.st_nlink > 1 && give_way.is_some();
        let way = match is_dir || has_others {
            true => Way::Free,
            false => self.make_way((dir, name), &stat, give_way)?,
        };
        if matches!(way, Way::Busy) {
            return Ok(self.busy(dir, name));
        }
        let held = hold(&dir.fd, &host, &stat);
        let flags = if is_dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        if let Err(error) = rustix::fs::unlinkat(&dir.fd, &host, flags) {
            self.way_not_taken(way);
            return match error {
                Errno::NOTEMPTY | Errno::EXIST => Ok(Applied::Busy),
                error => Err(VolumeError::host("remove", error)),
            };
        }
        let made_way = self.way_taken(way, (&stat, held), dir.ino, name);
        self.forget_name(dir.ino, name, self.shown_ino(stat.st_ino));
        drop(alone);
        self.keep_written(made_way);
        Ok(Applied::Done)
    }

    /// Gives what is at a name other attributes, of which it has `before`.
    pub fn set_meta(&self, dir: &DirAt, name: &OsStr, before: &Meta, meta: &Meta) -> Result<Applied> {
        let _alone = self.renames.write();
        let Some((host, stat)) = self.find_there(dir, name)? else {
            return Ok(self.busy(dir, name));
        };
        let noted = self.noted(dir.ino, name);
        if noted == Some(Note::Any) {
            return Ok(self.busy(dir, name));
        }
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        let mut meta = meta.clone();
        let open = self.handles.open_file(self.shown_ino(stat.st_ino));
        if noted.is_some() || open.is_some_and(|file| file.state.lock().changed) {
            // What is being written has its own time.
            meta.mtime = attr_of(&stat).mtime;
        }
        self.dress(dir, &host, kind, &meta, Some(before))?;
        self.forget_inode(self.shown_ino(stat.st_ino));
        Ok(Applied::Done)
    }

    /// Sets what differs from `before`; all of it where there was nothing.
    fn dress(
        &self,
        dir: &DirAt,
        host: &OsStr,
        kind: FileKind,
        meta: &Meta,
        before: Option<&Meta>,
    ) -> Result<()> {
        let failed = |error| VolumeError::host("set the attributes of a file", error);
        let path = proc_path(dir.fd.as_fd(), host);
        if self.gives_away && self.owners {
            let (uid, gid) = (
                Some(Uid::from_raw(meta.owner.0)),
                Some(Gid::from_raw(meta.owner.1)),
            );
            rustix::fs::chownat(&dir.fd, host, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        if kind != FileKind::Symlink {
            let none = Default::default();
            let had = before.map_or(&none, |before| &before.xattrs);
            for (name, value) in &meta.xattrs {
                if had.get(name) != Some(value) {
                    self.set_xattr(&path, name, value)?;
                }
            }
            for name in had.keys().filter(|name| !meta.xattrs.contains_key(*name)) {
                match rustix::fs::lremovexattr(&path, &name[..]) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            if before.is_none_or(|before| before.mode != meta.mode) {
                let mode = Mode::from_raw_mode(meta.mode);
                rustix::fs::chmodat(&dir.fd, host, mode, AtFlags::empty()).map_err(failed)?;
            }
        }
        if kind != FileKind::Directory {
            let mut times = times_of(meta);
            if before.is_some() {
                times.last_access.tv_nsec = UTIME_OMIT;
            }
            rustix::fs::utimensat(&dir.fd, host, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        Ok(())
    }

    /// As [`Volume::dress`], of a file that was just made and is open: none of it has to be found again.
    fn dress_new(&self, host: &File, made: &Prepared, meta: &Meta) -> Result<()> {
        let failed = |error| VolumeError::host("set the attributes of a file", error);
        if self.gives_away && self.owners {
            let (uid, gid) = meta.owner;
            rustix::fs::fchown(host, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
        }
        for (name, value) in &meta.xattrs {
            self.set_xattr(&proc_path(made.dir.fd.as_fd(), &made.temp), name, value)?;
        }
        rustix::fs::fchmod(host, Mode::from_raw_mode(meta.mode)).map_err(failed)?;
        rustix::fs::futimens(host, &times_of(meta)).map_err(failed)
    }

    fn set_xattr(&self, path: &Path, name: &[u8], value: &[u8]) -> Result<()> {
        // What another device wrote says nothing of what this one keeps.
        if !name.starts_with(b"user.") || [ID, PINNED].iter().any(|own| own.as_bytes() == name) {
            return Ok(());
        }
        match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            Err(error @ (Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE)) => {
                let name = String::from_utf8_lossy(name);
                tracing::warn!(attribute = %name, %error, "the folder's filesystem does not take an extended attribute");
                Ok(())
            }
            Err(error) => Err(VolumeError::host("set an extended attribute", error)),
        }
    }

    pub(super) fn find_there(&self, dir: &DirAt, name: &OsStr) -> Result<Option<(OsString, Stat)>> {
        match self.find(&dir.fd, dir.ino, name) {
            Ok(found) => Ok(Some(found)),
            Err(VolumeError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn busy(&self, dir: &DirAt, name: &OsStr) -> Applied {
        tracing::debug!(name = %name.to_string_lossy(), "a change from another device waits for one that was made here");
        self.note(dir.ino, name);
        Applied::Busy
    }
}

/// Nobody has read it here since it changed.
fn times_of(meta: &Meta) -> Timestamps {
    let mtime = Timespec {
        tv_sec: meta.mtime.secs,
        tv_nsec: i64::from(meta.mtime.nanos),
    };
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}
