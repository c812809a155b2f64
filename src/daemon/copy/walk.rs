//! Finding one's way in a volume: inodes held by a reference that gives itself back.

use std::ffi::OsStr;
use std::path::{Component, Path};

use crate::base::types::{Attr, Caller, FileKind};
use crate::control::Failure;
use crate::volume::{ROOT_INO, Volume, VolumeError};

/// A looked-up inode; forgets itself when dropped.
pub(super) struct Held<'a> {
    volume: &'a Volume,
    pub(super) attr: Attr,
}

impl<'a> Held<'a> {
    /// Takes over the reference that the call which gave `attr` has made.
    pub(super) fn new(volume: &'a Volume, attr: Attr) -> Self {
        Self { volume, attr }
    }

    pub(super) fn ino(&self) -> u64 {
        self.attr.ino
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.attr.ino != ROOT_INO {
            self.volume.forget(self.attr.ino, 1);
        }
    }
}

/// The inode of a name; `None` when there is none.
pub(super) fn lookup<'a>(
    volume: &'a Volume,
    parent: u64,
    name: &OsStr,
) -> Result<Option<Held<'a>>, VolumeError> {
    match volume.lookup(parent, name) {
        Ok(attr) => Ok(Some(Held::new(volume, attr))),
        Err(VolumeError::NotFound) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The inode of a path relative to the volume's root.
pub(super) fn resolve<'a>(volume: &'a Volume, path: &Path, what: &str) -> Result<Held<'a>, Failure> {
    let failure = |e: &dyn std::fmt::Display| Failure::new(what, format!("{}: {e}", path.display()), "");
    let root = volume.getattr(ROOT_INO, None).map_err(|e| failure(&e))?;
    let mut at = Held::new(volume, root);
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                at = lookup(volume, at.ino(), name)
                    .map_err(|e| failure(&e))?
                    .ok_or_else(|| failure(&"there is no such file in the volume"))?;
            }
            Component::CurDir | Component::RootDir => {}
            _ => return Err(failure(&"`..` is not followed")),
        }
    }
    Ok(at)
}

/// As [`resolve`], for a directory.
pub(super) fn resolve_dir<'a>(volume: &'a Volume, path: &Path, what: &str) -> Result<Held<'a>, Failure> {
    let found = resolve(volume, path, what)?;
    if found.attr.kind != FileKind::Directory {
        return Err(Failure::new(
            what,
            format!("{} is no directory", path.display()),
            "name a directory",
        ));
    }
    Ok(found)
}

/// This process as a caller of the volume.
pub(super) fn caller() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
        umask: 0,
    }
}
