//! Many new files at once, each at a name of its own, and what is there before them. Called by `sync`.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;

use super::apply::{Applied, Prepared};
use super::error::{Result, VolumeError};
use super::open_file::new_file_id;
use super::{ROOT_INO, Volume};
use crate::base::names::{self, TEMP_PREFIX};
use crate::base::types::FileKind;
use crate::folder::host::{kind_of, stat_at, type_of};

/// Names put in place while whoever wants to change others waits.
const WHILE_OTHERS_WAIT: usize = 32;

impl Volume {
    /// Puts what was prepared at names where nothing is. Says how many are there then, and how many are not, since something else is.
    pub fn install_all(&self, prepared: Vec<(Prepared, OsString)>) -> Result<(usize, usize)> {
        let (mut done, mut left, mut waiting) = (0, 0, prepared.into_iter().peekable());
        while waiting.peek().is_some() {
            let _alone = self.renames.write();
            for (prepared, name) in waiting.by_ref().take(WHILE_OTHERS_WAIT) {
                match self.install_new(prepared, &name)? {
                    Applied::Done => done += 1,
                    Applied::Busy => left += 1,
                }
            }
        }
        Ok((done, left))
    }

    /// With [`Volume::renames`] held.
    fn install_new(&self, mut prepared: Prepared, name: &OsStr) -> Result<Applied> {
        let dir = &prepared.dir;
        let host = names::file_to_host(name);
        let is_free = self.noted(dir.ino, name).is_none() && !self.is_directory_there(&prepared, name)?;
        if is_free {
            match rustix::fs::renameat_with(&dir.fd, &prepared.temp, &dir.fd, &host, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    prepared.kept = true;
                    self.moved.store(true, Ordering::SeqCst);
                    self.forget_entry(prepared.dir.ino, name);
                    return Ok(Applied::Done);
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(VolumeError::host("put a file in place", error)),
            }
        }
        match self.find_there(dir, name)? {
            Some((there, stat)) if is_free && self.is_as_prepared(&prepared, &there, &stat)? => {
                Ok(Applied::Done)
            }
            _ => Ok(self.busy(dir, name)),
        }
    }

    fn is_directory_there(&self, prepared: &Prepared, name: &OsStr) -> Result<bool> {
        match stat_at(prepared.dir.fd.as_fd(), &names::dir_to_host(name)) {
            Ok(stat) => Ok(kind_of(FileType::from_raw_mode(stat.st_mode)) == FileKind::Directory),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(VolumeError::host("look up", error)),
        }
    }

    /// Whether what is at a name is what was prepared for it: it was put there before something stopped this device.
    pub(super) fn is_as_prepared(&self, prepared: &Prepared, there: &OsStr, stat: &Stat) -> Result<bool> {
        if kind_of(FileType::from_raw_mode(stat.st_mode)) == FileKind::Directory {
            return Ok(false);
        }
        let made = stat_at(prepared.dir.fd.as_fd(), &prepared.temp)
            .map_err(|error| VolumeError::host("look at a temporary file", error))?;
        let mut made = self.see(&prepared.dir, &prepared.temp, &made)?;
        let seen = match self.see(&prepared.dir, there, stat) {
            Err(VolumeError::Damaged { .. }) => return Ok(false),
            seen => seen?,
        };
        (made.ino, made.linked) = (seen.ino, seen.linked);
        Ok(made == seen)
    }

    /// Whether this device can make special files of a kind: only root makes device nodes, and some filesystems take none.
    pub fn can_make(&self, kind: FileKind) -> Result<bool> {
        let dir = self.nodes.dir(&self.folder, ROOT_INO)?;
        let temp = OsString::from(format!("{TEMP_PREFIX}{}", new_file_id()?));
        // The number of `/dev/null`: anybody may make the device 0, which overlay filesystems take for a name that is gone.
        match rustix::fs::mknodat(&dir, &temp, type_of(kind), Mode::RUSR, 0x103) {
            Ok(()) => {
                rustix::fs::unlinkat(&dir, &temp, AtFlags::empty())
                    .map_err(|error| VolumeError::host("remove a temporary file", error))?;
                Ok(true)
            }
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(error) => Err(VolumeError::host("create a temporary file", error)),
        }
    }
}
