//! Listing directories, at the host's own positions: nothing is lost or repeated while a directory changes, as far as the host keeps that.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};

use super::error::{Result, VolumeError};
use super::past::Going;
use super::shown::is_shown;
use super::{ROOT_INO, Volume};
use crate::base::names::{self, HostName, TEMP_PREFIX};
use crate::base::types::{Attr, DirEntry, FileKind};
use crate::folder::host::{self, kind_of, open_below, stat_at};

/// Room for the entries that the host returns at once, in bytes.
const BUFFER: usize = 32 << 10;

/// An open directory.
#[derive(Debug)]
pub struct DirHandle {
    pub(super) ino: u64,
    dir: Arc<OwnedFd>,
    /// Host position of the next entry; the lock also keeps two readers of one handle apart.
    at: Mutex<u64>,
    /// The same, of what was.
    pub(super) going: Mutex<Going>,
}

impl DirHandle {
    fn new(ino: u64, dir: Arc<OwnedFd>) -> Self {
        let (at, going) = (Mutex::new(0), Mutex::default());
        Self { ino, dir, at, going }
    }
}

impl Volume {
    /// Opens a directory.
    pub fn opendir(&self, ino: u64) -> Result<u64> {
        if is_shown(ino) {
            self.check_kept(ino)?;
            let dir = Arc::clone(self.folder.root());
            return Ok(self.handles.add_dir(DirHandle::new(ino, dir)));
        }
        let _still = self.renames.read();
        let known = self.dir_or_removed(ino)?;
        // A handle of its own, since the position is the handle's.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = open_below(known.as_fd(), OsStr::new("."), flags, Mode::empty())
            .map_err(|error| VolumeError::host("open the directory", error))?;
        Ok(self.handles.add_dir(DirHandle::new(ino, Arc::new(dir))))
    }

    /// Makes listing an open directory an access to it, when the host notes accesses to its own.
    pub fn note_listing(&self, fh: u64) -> Result<()> {
        let handle = self.handles.dir(fh)?;
        if is_shown(handle.ino) {
            return Ok(());
        }
        host::note_access(handle.dir.as_fd(), true)
            .map_err(|error| VolumeError::host("note the access", error))
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: u64) {
        self.handles.remove_dir(fh);
    }

    /// Makes the names in a directory durable.
    pub fn fsyncdir(&self, fh: u64) -> Result<()> {
        let handle = self.handles.dir(fh)?;
        if is_shown(handle.ino) {
            return Ok(());
        }
        rustix::fs::fsync(&handle.dir).map_err(|error| VolumeError::host("fsync the directory", error))
    }

    /// The entries after position `after` (zero: from the start), `.` and `..` included, until `each` returns false.
    pub fn readdir(&self, fh: u64, after: u64, each: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        let handle = self.handles.dir(fh)?;
        if is_shown(handle.ino) {
            return self.list_shown(&handle, after, false, &mut |entry, _| each(entry));
        }
        self.list(&handle, after, &mut |_, entry| each(entry))
    }

    /// As `readdir`, with attributes; every entry but `.` and `..` that `each` took counts as a lookup.
    pub fn readdir_plus(
        &self,
        fh: u64,
        after: u64,
        each: &mut dyn FnMut(DirEntry, Option<Attr>) -> bool,
    ) -> Result<()> {
        let handle = self.handles.dir(fh)?;
        if is_shown(handle.ino) {
            return self.list_shown(&handle, after, true, each);
        }
        self.list(&handle, after, &mut |host, entry| {
            if entry.name == "." || entry.name == ".." {
                return each(entry, None);
            }
            let Ok(stat) = stat_at(handle.dir.as_fd(), host) else {
                // Removed since: it is no longer an entry.
                return true;
            };
            let mut attr = self.attr_at(&handle.dir, host, &stat);
            let name = entry.name.clone();
            attr.generation = self.nodes.found(attr.ino, attr.kind, handle.ino, &name);
            let taken = each(entry, Some(attr));
            if !taken {
                self.nodes.forget(attr.ino, 1);
            }
            taken
        })
    }

    fn list(
        &self,
        handle: &DirHandle,
        after: u64,
        each: &mut dyn FnMut(&OsStr, DirEntry) -> bool,
    ) -> Result<()> {
        let mut at = handle.at.lock();
        if *at != after {
            rustix::fs::seek(&handle.dir, SeekFrom::Start(after))
                .map_err(|error| VolumeError::host("go on in the directory", error))?;
            *at = after;
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        let mut entries = RawDir::new(&handle.dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| VolumeError::host("read the directory", error))?;
            let next = entry.next_entry_cookie();
            let host = OsStr::from_bytes(entry.file_name().to_bytes());
            if let Some(shown) = self.shown_entry(handle, host, entry.file_type(), entry.ino(), next)
                && !each(host, shown)
            {
                // Entries already read from the host are read again from here.
                rustix::fs::seek(&handle.dir, SeekFrom::Start(*at))
                    .map_err(|error| VolumeError::host("go on in the directory", error))?;
                return Ok(());
            }
            *at = next;
        }
        Ok(())
    }

    fn shown_entry(
        &self,
        handle: &DirHandle,
        host: &OsStr,
        file_type: FileType,
        host_ino: u64,
        next: u64,
    ) -> Option<DirEntry> {
        let entry = |ino, name: &OsStr, kind| {
            Some(DirEntry {
                ino,
                name: name.into(),
                kind,
                next,
            })
        };
        if host == "." {
            return entry(handle.ino, host, FileKind::Directory);
        }
        if host == ".." {
            let parent = self
                .nodes
                .names(handle.ino)
                .first()
                .map_or(ROOT_INO, |(parent, _)| *parent);
            return entry(parent, host, FileKind::Directory);
        }
        if host.as_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            return None;
        }
        let kind = match file_type {
            // Some filesystems do not say.
            FileType::Unknown => {
                let stat = stat_at(handle.dir.as_fd(), host).ok()?;
                kind_of(FileType::from_raw_mode(stat.st_mode))
            }
            known => kind_of(known),
        };
        match names::from_host(host)? {
            HostName::File(name) if kind != FileKind::Directory => {
                entry(self.shown_ino(host_ino), &name, kind)
            }
            HostName::Dir(name) if kind == FileKind::Directory => {
                entry(self.shown_ino(host_ino), &name, kind)
            }
            // A plain file that waits to be imported, or the marker.
            _ => None,
        }
    }
}
