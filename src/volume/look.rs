//! What is at a name, as a snapshot keeps it: kind, attributes, where the content is, and the id of a directory.
//!
//! A directory's id is an extended attribute of the host's inode, so it moves with it; the mount does not show it. Called by `sync`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::Volume;
use super::changes::{Frozen, Noted};
use super::collect::host_path;
use super::error::{Result, VolumeError};
use super::import::entries;
use super::open_file::{choose, new_file_id};
use super::wishes::{PINNED, STATE};
use crate::base::FileId;
use crate::base::names::{self, HostName, TEMP_PREFIX};
use crate::base::tree::{Meta, ROOT};
use crate::base::types::FileKind;
use crate::folder::host::{attr_of, open_below, proc_path, stat_at};
use crate::folder::slots::SlotBytes;
use crate::object::Content;
use crate::object::record::Body;

/// The attribute with a directory's id.
pub(super) const ID: &str = "user.dfs.id";

/// Extended attributes of one file that a snapshot keeps, in bytes; what goes beyond is left out, with a warning.
const XATTRS_MAX: usize = 128 << 10;

/// Longest list of names and longest value that the kernel gives (xattr(7)).
const XATTR_MAX: usize = 64 << 10;

/// A list of names that is long enough for most, in bytes.
const XATTR_FEW: usize = 256;

/// A name, and whether it is a directory's.
pub type Named = (OsString, bool);

/// Extended attributes.
type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A directory of the volume.
#[derive(Debug, Clone)]
pub struct DirAt {
    /// The host's directory.
    pub(super) fd: Arc<OwnedFd>,
    /// Its number in the mount.
    pub(super) ino: u64,
    /// Its id, if it has one yet.
    pub id: Option<FileId>,
}

impl DirAt {
    /// Its number: of two that are open at once each has its own.
    pub fn ino(&self) -> u64 {
        self.ino
    }
}

/// So many directories, one in another, are held open by a walk; below them it goes by paths.
const HELD_DEPTH: usize = 128;

/// What is at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The host's inode.
    pub ino: u64,
    /// It has several names.
    pub linked: bool,
    /// Its id: of a directory that has one, and of a file that is not empty.
    pub id: Option<FileId>,
    /// What it is.
    pub what: What,
    /// The rest.
    pub meta: Meta,
}

/// What something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A file with its content and size.
    File(Content, u64),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A device node, pipe or socket, with its number.
    Special(FileKind, u64),
}

impl Volume {
    /// The directories of the names that were noted, each with these names. One that is gone is left out.
    pub fn noted_dirs(
        &self,
        noted: &Noted,
        frozen: Option<&Frozen<'_>>,
    ) -> Result<Vec<(DirAt, Vec<OsString>)>> {
        let gone = |error: &VolumeError| match error {
            VolumeError::Host { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            error => matches!(
                error,
                VolumeError::Stale | VolumeError::NotFound | VolumeError::NotDirectory
            ),
        };
        let mut found = Vec::new();
        let _still = match frozen {
            Some(_) => None,
            None => Some(self.renames.read()),
        };
        for (ino, names) in &noted.names {
            let fd = match self.nodes.dir(&self.folder, *ino) {
                Ok(fd) => fd,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(error),
            };
            // Found by its path, which may lead to another one by now.
            let at = self.dir_at(fd)?;
            if at.ino == *ino {
                found.push((
                    at,
                    names.keys().map(|name| name.clone().into_os_string()).collect(),
                ));
            }
        }
        for (path, name, id) in &noted.paths {
            let dir = match self.folder.dir(path) {
                Ok(fd) => Some(self.dir_at(fd)?),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(VolumeError::host("open a directory", error)),
            };
            match dir.filter(|dir| id.is_none() || dir.id == *id) {
                Some(dir) => found.push((dir, vec![name.clone().into_os_string()])),
                // It is somewhere else by now.
                None => self.note_everything(),
            }
        }
        Ok(found)
    }

    /// A directory by its path in the volume.
    pub fn dir_by_path(&self, path: &Path) -> Result<DirAt> {
        let fd = self.folder.dir(&host_path(path));
        self.dir_at(fd.map_err(not_opened)?)
    }

    /// All names in a directory.
    pub fn names_in(&self, dir: &DirAt) -> Result<Vec<Named>> {
        let listed = match entries(&dir.fd) {
            // It was removed since it was opened.
            Err(VolumeError::Host { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Vec::new()
            }
            listed => listed?,
        };
        let listed = listed.into_iter().filter_map(|(host, kind)| {
            if host.as_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
                return None;
            }
            let is_dir = kind == FileType::Directory;
            match names::from_host(&host)? {
                HostName::Dir(name) if is_dir => Some((name, true)),
                HostName::File(name) if !is_dir => Some((name, false)),
                _ => None,
            }
        });
        Ok(listed.collect())
    }

    /// A directory in another one.
    pub fn dir_in(&self, dir: &DirAt, name: &OsStr) -> Result<DirAt> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let host = names::dir_to_host(name);
        let fd = open_below(dir.fd.as_fd(), &host, flags, Mode::empty()).map_err(not_opened)?;
        self.dir_at(Arc::new(fd))
    }

    pub(super) fn dir_at(&self, fd: Arc<OwnedFd>) -> Result<DirAt> {
        let stat = rustix::fs::fstat(&fd).map_err(|error| VolumeError::host("look at a directory", error))?;
        let ino = self.shown_ino(stat.st_ino);
        let id = match stat.st_ino == self.root_host_ino {
            true => Some(ROOT),
            false => id_of(&fd)?,
        };
        Ok(DirAt { fd, ino, id })
    }

    /// The id of a directory, which gets one if it has none.
    pub fn ensure_dir_id(&self, dir: &mut DirAt) -> Result<FileId> {
        if dir.id.is_none() {
            // It may have got one since it was opened.
            dir.id = id_of(&dir.fd)?;
        }
        match dir.id {
            Some(id) => Ok(id),
            None => {
                let id = new_file_id()?;
                self.set_dir_id(dir, id)?;
                Ok(id)
            }
        }
    }

    /// Gives a directory an id.
    pub fn set_dir_id(&self, dir: &mut DirAt, id: FileId) -> Result<()> {
        let set = || rustix::fs::fsetxattr(&dir.fd, ID, id.as_bytes(), XattrFlags::empty());
        let outcome = match set() {
            // The owner may not write into it.
            Err(Errno::ACCESS) => with_mode(&dir.fd, set),
            outcome => outcome,
        };
        outcome.map_err(|error| {
            let context = match error {
                Errno::OPNOTSUPP => {
                    "keep the id of a directory: the folder's filesystem has no extended attributes"
                }
                _ => "keep the id of a directory",
            };
            VolumeError::host(context, error)
        })?;
        dir.id = Some(id);
        Ok(())
    }

    /// Gives a directory that was just made its id: later that would change its time of change under who reads it. What fails now is done then.
    pub(super) fn name_new_dir(&self, dir: &OwnedFd, host: &OsStr) -> Result<()> {
        let (path, id) = (proc_path(dir.as_fd(), host), new_file_id()?);
        if let Err(error) = rustix::fs::lsetxattr(path, ID, id.as_bytes(), XattrFlags::CREATE) {
            tracing::debug!(%error, "a new directory gets its id later");
        }
        Ok(())
    }

    /// A new id.
    pub fn new_id(&self) -> Result<FileId> {
        new_file_id()
    }

    /// What is at a name; `None`: nothing.
    pub fn look(&self, dir: &DirAt, name: &OsStr) -> Result<Option<Seen>> {
        let (host, stat) = match self.find(&dir.fd, dir.ino, name) {
            Ok(found) => found,
            Err(VolumeError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let seen = self.see(dir, &host, &stat);
        if seen.is_err() {
            // It may have gone while it was looked at: then it is noted again.
            match stat_at(dir.fd.as_fd(), &host).map_err(|error| Errno::from_io_error(&error)) {
                Ok(now) if now.st_ino == stat.st_ino && now.st_mode == stat.st_mode => {}
                Ok(_) | Err(Some(Errno::NOENT)) => return Ok(None),
                Err(_) => {}
            }
        }
        seen.map(Some)
    }

    pub(super) fn see(&self, dir: &DirAt, host: &OsStr, stat: &Stat) -> Result<Seen> {
        let attr = attr_of(stat);
        let mut meta = Meta {
            mode: attr.mode,
            owner: (attr.uid, attr.gid),
            mtime: attr.mtime,
            ..Meta::default()
        };
        let (what, id) = match attr.kind {
            FileKind::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let fd = open_below(dir.fd.as_fd(), host, flags, Mode::empty())
                    .map_err(|error| VolumeError::host("open a directory", error))?;
                // Changes with everything in it: nobody could say who changed it last.
                meta.mtime = Default::default();
                (What::Directory, id_of(&fd)?)
            }
            FileKind::Symlink => {
                let target = rustix::fs::readlinkat(&dir.fd, host, Vec::new())
                    .map_err(|error| VolumeError::host("read a link", error))?;
                (What::Symlink(target.into_bytes().into()), None)
            }
            FileKind::Regular => {
                let (id, content, size) = self.content_at(dir, host)?;
                (What::File(content, size), id)
            }
            kind => (What::Special(kind, attr.rdev), None),
        };
        if attr.kind != FileKind::Symlink {
            meta.xattrs = xattrs(&proc_path(dir.fd.as_fd(), host))?;
        }
        Ok(Seen {
            ino: stat.st_ino,
            linked: attr.kind != FileKind::Directory && attr.nlink > 1,
            id,
            what,
            meta,
        })
    }

    pub(super) fn content_at(&self, dir: &DirAt, host: &OsStr) -> Result<(Option<FileId>, Content, u64)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = open_below(dir.fd.as_fd(), host, flags, Mode::empty())
            .map_err(|error| VolumeError::host("open a .f", error))?;
        let bytes =
            SlotBytes::read(&File::from(file)).map_err(|error| VolumeError::host("read a .f", error))?;
        let store = self.blocks.tiered().store();
        let chosen =
            choose(&bytes, self.blocks.keys(), store.as_ref()).map_err(|reason| VolumeError::Damaged {
                path: host.to_string_lossy().into_owned(),
                reason,
            })?;
        Ok(match chosen.manifest {
            Some(manifest) => (Some(manifest.file_id), manifest.content, manifest.size),
            None => (None, Content::Inline(Vec::new()), 0),
        })
    }

    /// Walks all directories, the top one first; `each` gets every directory with the names in it, before what is below.
    pub fn walk_dirs(&self, each: &mut dyn FnMut(&mut DirAt, &[Named]) -> Result<()>) -> Result<()> {
        let mut todo: Vec<(Option<DirAt>, PathBuf)> = vec![(None, PathBuf::new())];
        while let Some((above, path)) = todo.pop() {
            let found = match (above, path.file_name()) {
                // Also when something above it moved meanwhile.
                (Some(above), Some(name)) => self.dir_in(&above, name),
                _ => self.dir_by_path(&path),
            };
            let mut dir = match found {
                Err(VolumeError::NotFound | VolumeError::NotDirectory) => continue,
                dir => dir?,
            };
            let names = self.names_in(&dir)?;
            each(&mut dir, &names)?;
            let above = (path.components().count() < HELD_DEPTH).then_some(&dir);
            let below = names.into_iter().filter(|(_, is_dir)| *is_dir);
            todo.extend(below.map(|(name, _)| (above.cloned(), path.join(name))));
        }
        Ok(())
    }
}

impl What {
    /// As a record has it; `None`: a directory.
    pub fn into_body(self, author: crate::base::DeviceId) -> Option<Body> {
        Some(match self {
            Self::Directory => return None,
            Self::File(content, size) => Body::File {
                content,
                size,
                author,
            },
            Self::Symlink(target) => Body::Symlink(target),
            Self::Special(kind, rdev) => Body::Special(kind, rdev),
        })
    }
}

/// A directory that is not there, or not any more, is told apart.
fn not_opened(error: std::io::Error) -> VolumeError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => VolumeError::NotFound,
        // A link, too.
        Some(Errno::NOTDIR | Errno::LOOP) => VolumeError::NotDirectory,
        _ => VolumeError::host("open a directory", error),
    }
}

/// Does something while the owner may write.
fn with_mode(dir: &OwnedFd, what: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(dir)?.st_mode & 0o7777);
    rustix::fs::fchmod(dir, mode | Mode::WUSR)?;
    let outcome = what();
    rustix::fs::fchmod(dir, mode)?;
    outcome
}

fn id_of(dir: &OwnedFd) -> Result<Option<FileId>> {
    let mut id = [0u8; FileId::LEN];
    match rustix::fs::fgetxattr(dir, ID, &mut id[..]) {
        Ok(FileId::LEN) => Ok(Some(FileId(id))),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(VolumeError::host("read the id of a directory", error)),
    }
}

/// The extended attributes of the user's that are not about this device alone.
fn xattrs(path: &Path) -> Result<Xattrs> {
    let mut kept = Xattrs::new();
    let host = |error| VolumeError::host("read extended attributes", error);
    // Few have any, and hardly one has many.
    let mut list = vec![0u8; XATTR_FEW];
    let mut len = rustix::fs::llistxattr(path, &mut list[..]);
    if len == Err(Errno::RANGE) {
        list.resize(XATTR_MAX, 0);
        len = rustix::fs::llistxattr(path, &mut list[..]);
    }
    let len = match len {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(host(error)),
    };
    let mut total = 0;
    for name in list[..len].split(|byte| *byte == 0) {
        let own = [ID, PINNED, STATE].iter().any(|own| own.as_bytes() == name);
        if !name.starts_with(b"user.") || own {
            continue;
        }
        let mut value = vec![0u8; XATTR_MAX];
        let len = match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(host(error)),
        };
        value.truncate(len);
        total += name.len() + len;
        if total > XATTRS_MAX {
            tracing::warn!(
                attribute = %String::from_utf8_lossy(name),
                "a file has more extended attributes than a snapshot keeps; this one is left out"
            );
            continue;
        }
        kept.insert(name.into(), value.into());
    }
    Ok(kept)
}
