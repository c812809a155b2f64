//! Import: plain files of the host into the volume, with modes, times, owners, extended attributes and hard links.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::walk::{Held, caller, lookup, resolve_dir};
use super::{STEP, Tally};
use crate::base::types::{Attr, FileKind, OpenMode, SetAttr, SetTime, Timestamp};
use crate::control::{Copied, Failure, Progress};
use crate::volume::{Volume, VolumeError};

const WHAT: &str = "cannot import";

/// Copies `from` (absolute paths outside) into the directory `into` (relative to the volume's root). Stops at the first failure.
pub(in crate::daemon) fn import(
    volume: &Volume,
    from: &[PathBuf],
    into: &Path,
    report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
) -> Result<Copied, Failure> {
    let target = resolve_dir(volume, into, WHAT)?;
    let mut import = Import {
        volume,
        links: HashMap::new(),
        tally: Tally::new(report, None),
    };
    for path in from {
        let name = path
            .file_name()
            .ok_or_else(|| Failure::new(WHAT, format!("{} has no name", path.display()), "name a file"))?;
        import.entry(path, target.ino(), name)?;
    }
    Ok(import.tally.copied)
}

struct Import<'a> {
    volume: &'a Volume,
    /// Host files with several names, and their inodes in the volume.
    links: HashMap<(u64, u64), Held<'a>>,
    tally: Tally<'a>,
}

/// One entry's failure, before it is known under which path.
enum Trouble {
    Host(std::io::Error),
    Volume(VolumeError),
}

impl From<std::io::Error> for Trouble {
    fn from(e: std::io::Error) -> Self {
        Self::Host(e)
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Host(e.into())
    }
}

impl From<VolumeError> for Trouble {
    fn from(e: VolumeError) -> Self {
        Self::Volume(e)
    }
}

impl<'a> Import<'a> {
    fn entry(&mut self, from: &Path, parent: u64, name: &OsStr) -> Result<(), Failure> {
        let failure = |trouble: Trouble| match trouble {
            Trouble::Host(e) => Failure::new(WHAT, format!("{}: {e}", from.display()), ""),
            Trouble::Volume(VolumeError::Exists) => Failure::new(
                WHAT,
                format!("{}: the volume already has one of that name", from.display()),
                "remove it in the volume, or import into another directory",
            ),
            Trouble::Volume(e) => Failure::new(WHAT, format!("{}: {e}", from.display()), ""),
        };
        self.tally.at(from).map_err(|e| failure(e.into()))?;
        let meta = std::fs::symlink_metadata(from).map_err(|e| failure(e.into()))?;
        if meta.is_dir() {
            let dir = self.directory(parent, name).map_err(failure)?;
            let entries = std::fs::read_dir(from).map_err(|e| failure(e.into()))?;
            for entry in entries {
                let entry = entry.map_err(|e| failure(e.into()))?;
                self.entry(&entry.path(), dir.ino(), &entry.file_name())?;
            }
            self.tally.copied.directories += 1;
            return self.dress(from, &meta, &dir).map_err(failure);
        }
        let held = self.other(from, &meta, parent, name).map_err(failure)?;
        if meta.nlink() > 1 {
            self.links.insert((meta.dev(), meta.ino()), held);
        }
        Ok(())
    }

    fn directory(&self, parent: u64, name: &OsStr) -> Result<Held<'a>, Trouble> {
        match lookup(self.volume, parent, name)? {
            Some(found) if found.attr.kind == FileKind::Directory => Ok(found),
            Some(_) => Err(VolumeError::Exists.into()),
            None => {
                let attr = self.volume.mkdir(parent, name, 0o700, &caller())?;
                Ok(Held::new(self.volume, attr))
            }
        }
    }

    fn other(
        &mut self,
        from: &Path,
        meta: &Metadata,
        parent: u64,
        name: &OsStr,
    ) -> Result<Held<'a>, Trouble> {
        if lookup(self.volume, parent, name)?.is_some() {
            return Err(VolumeError::Exists.into());
        }
        if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
            let attr = self.volume.link(first.ino(), parent, name)?;
            self.tally.copied.others += 1;
            return Ok(Held::new(self.volume, attr));
        }
        let held = if meta.is_file() {
            self.file(from, parent, name)?
        } else {
            self.tally.copied.others += 1;
            let attr = self.special(from, meta, parent, name)?;
            Held::new(self.volume, attr)
        };
        self.dress(from, meta, &held)?;
        Ok(held)
    }

    fn special(&self, from: &Path, meta: &Metadata, parent: u64, name: &OsStr) -> Result<Attr, Trouble> {
        let kind = meta.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(from)?;
            return Ok(self.volume.symlink(parent, name, target.as_os_str(), &caller())?);
        }
        let kind = if kind.is_fifo() {
            FileKind::Fifo
        } else if kind.is_socket() {
            FileKind::Socket
        } else if kind.is_char_device() {
            FileKind::CharDevice
        } else {
            FileKind::BlockDevice
        };
        Ok(self
            .volume
            .mknod(parent, name, kind, 0o600, meta.rdev(), &caller())?)
    }

    fn file(&mut self, from: &Path, parent: u64, name: &OsStr) -> Result<Held<'a>, Trouble> {
        let mut file = File::open(from)?;
        let mode = OpenMode {
            write: true,
            ..OpenMode::default()
        };
        let (attr, opened) = self.volume.create(parent, name, 0o600, mode, &caller())?;
        let held = Held::new(self.volume, attr);
        let written = self
            .content(from, &mut file, opened.fh)
            .and_then(|()| Ok(self.volume.flush(opened.fh)?));
        self.volume.release(opened.fh);
        if written.is_err() {
            // Half a file is worse than none.
            let _ = self.volume.unlink(parent, name);
        }
        written?;
        self.tally.copied.files += 1;
        Ok(held)
    }

    fn content(&mut self, from: &Path, file: &mut File, fh: u64) -> Result<(), Trouble> {
        let mut buffer = vec![0; STEP];
        let mut offset = 0;
        loop {
            let len = match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            self.volume
                .write(fh, offset, &buffer[..len], crate::volume::Wait::Bounded)?;
            offset += len as u64;
            self.tally.copied.bytes += len as u64;
            self.tally.at(from)?;
        }
    }

    /// Gives an inode the attributes of its original. What this device may not give (owners, as an ordinary user) is left.
    fn dress(&self, from: &Path, meta: &Metadata, held: &Held<'_>) -> Result<(), Trouble> {
        self.extended_attributes(from, held)?;
        let time = |secs, nanos: i64| {
            let nanos = u32::try_from(nanos).unwrap_or_default();
            Some(SetTime::At(Timestamp { secs, nanos }))
        };
        let me = caller();
        let set = SetAttr {
            mode: (!meta.is_symlink()).then_some(meta.mode() & 0o7777),
            uid: (me.uid == 0).then_some(meta.uid()),
            gid: (me.uid == 0).then_some(meta.gid()),
            size: None,
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
        };
        self.volume.setattr(held.ino(), None, &set, &me)?;
        Ok(())
    }

    fn extended_attributes(&self, from: &Path, held: &Held<'_>) -> Result<(), Trouble> {
        let mut names = vec![0; 64 << 10];
        let len = match rustix::fs::llistxattr(from, &mut names[..]) {
            Ok(len) => len,
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let mut value = vec![0; 64 << 10];
        for name in names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(name);
            let len = match rustix::fs::lgetxattr(from, name, &mut value[..]) {
                Ok(len) => len,
                Err(rustix::io::Errno::NODATA) => continue,
                Err(e) => return Err(e.into()),
            };
            match self.volume.setxattr(held.ino(), name, &value[..len], 0) {
                Ok(()) | Err(VolumeError::Unsupported | VolumeError::NotPermitted) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
