//! Export: files of the volume out as plain files of the host, with modes, times, owners, extended attributes and hard links.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};

use super::walk::{Held, lookup, resolve};
use super::{STEP, Tally};
use crate::base::types::{Attr, FileKind, OpenMode, Timestamp};
use crate::control::{Copied, Failure, Progress};
use crate::folder::host::type_of;
use crate::volume::{Volume, VolumeError, Wait};

const WHAT: &str = "cannot export";

/// Copies `from` (relative to the volume's root) to `to` (absolute), which must not exist. Stops at the first failure.
pub(in crate::daemon) fn export(
    volume: &Volume,
    from: &Path,
    to: &Path,
    report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
) -> Result<Copied, Failure> {
    if to.symlink_metadata().is_ok() {
        return Err(Failure::new(
            WHAT,
            format!("{} exists", to.display()),
            "name a path that does not exist",
        ));
    }
    let held = resolve(volume, from, WHAT)?;
    let total = (held.attr.kind == FileKind::Regular).then_some(held.attr.size);
    let mut export = Export {
        volume,
        links: HashMap::new(),
        tally: Tally::new(report, total),
    };
    export.entry(&held, from, to)?;
    Ok(export.tally.copied)
}

struct Export<'a> {
    volume: &'a Volume,
    /// Inodes with several names, and the first of them outside.
    links: HashMap<u64, PathBuf>,
    tally: Tally<'a>,
}

impl Export<'_> {
    fn entry(&mut self, held: &Held<'_>, from: &Path, to: &Path) -> Result<(), Failure> {
        let failure = |e: &dyn std::fmt::Display| Failure::new(WHAT, format!("{}: {e}", from.display()), "");
        let attr = held.attr;
        self.tally.at(from).map_err(|e| failure(&e))?;
        if attr.kind == FileKind::Directory {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(to)
                .map_err(|e| failure(&e))?;
            for name in self.names(attr.ino).map_err(|e| failure(&e))? {
                // Gone since: as if it had never been.
                if let Some(child) = lookup(self.volume, attr.ino, &name).map_err(|e| failure(&e))? {
                    self.entry(&child, &from.join(&name), &to.join(&name))?;
                }
            }
            self.tally.copied.directories += 1;
        } else if let Some(first) = self.links.get(&attr.ino) {
            self.tally.copied.others += 1;
            return std::fs::hard_link(first, to).map_err(|e| failure(&e));
        } else if attr.kind == FileKind::Regular {
            if let Err(e) = self.file(attr.ino, from, to) {
                let _ = std::fs::remove_file(to);
                return Err(failure(&e));
            }
            self.tally.copied.files += 1;
        } else {
            self.special(&attr, to).map_err(|e| failure(&e))?;
            self.tally.copied.others += 1;
        }
        if attr.nlink > 1 && attr.kind != FileKind::Directory {
            self.links.insert(attr.ino, to.to_owned());
        }
        self.dress(&attr, to).map_err(|e| failure(&e))
    }

    fn names(&self, ino: u64) -> Result<Vec<OsString>, VolumeError> {
        let fh = self.volume.opendir(ino)?;
        let mut names = Vec::new();
        let listed = self.volume.readdir(fh, 0, &mut |entry| {
            // The mount's own directory of status and snapshots is no part of the tree.
            let own = ino == crate::volume::ROOT_INO && entry.name == crate::base::names::MARKER;
            if entry.name != "." && entry.name != ".." && !own {
                names.push(entry.name);
            }
            true
        });
        self.volume.releasedir(fh);
        listed.map(|()| names)
    }

    fn file(&mut self, ino: u64, from: &Path, to: &Path) -> anyhow::Result<()> {
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)?;
        let mode = OpenMode {
            read: true,
            ..OpenMode::default()
        };
        let opened = self.volume.open(ino, mode, Wait::Bounded)?;
        let copied = self.content(opened.fh, from, &mut out);
        self.volume.release(opened.fh);
        copied
    }

    fn content(&mut self, fh: u64, from: &Path, out: &mut File) -> anyhow::Result<()> {
        let mut buffer = Vec::with_capacity(STEP);
        let mut offset = 0;
        loop {
            self.volume.read(fh, offset, STEP, &mut buffer, Wait::Bounded)?;
            if buffer.is_empty() {
                return Ok(());
            }
            out.write_all(&buffer)?;
            offset += buffer.len() as u64;
            self.tally.copied.bytes += buffer.len() as u64;
            self.tally.at(from)?;
        }
    }

    fn special(&self, attr: &Attr, to: &Path) -> anyhow::Result<()> {
        if attr.kind == FileKind::Symlink {
            let target = self.volume.readlink(attr.ino)?;
            return Ok(std::os::unix::fs::symlink(target, to)?);
        }
        let mode = Mode::from_raw_mode(0o600);
        Ok(rustix::fs::mknodat(CWD, to, type_of(attr.kind), mode, attr.rdev)?)
    }

    /// Gives what was made the attributes of its original; owners and protected extended attributes only where the host allows.
    fn dress(&self, attr: &Attr, to: &Path) -> anyhow::Result<()> {
        for name in self
            .volume
            .listxattr(attr.ino)
            .unwrap_or_default()
            .split(|&b| b == 0)
        {
            if name.is_empty() {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let value = self.volume.getxattr(attr.ino, name)?;
            if let Err(e) = rustix::fs::lsetxattr(to, name, &value, rustix::fs::XattrFlags::empty()) {
                tracing::debug!("{}: {name:?} not set: {e}", to.display());
            }
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(to, Some(attr.uid), Some(attr.gid))?;
        }
        if attr.kind != FileKind::Symlink {
            std::fs::set_permissions(to, std::fs::Permissions::from_mode(attr.mode))?;
        }
        let time = |at: Timestamp| Timespec {
            tv_sec: at.secs,
            tv_nsec: at.nanos.into(),
        };
        let times = Timestamps {
            last_access: time(attr.atime),
            last_modification: time(attr.mtime),
        };
        Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
