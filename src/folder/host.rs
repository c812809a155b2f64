//! The folder on the host filesystem, reached only through a directory handle opened once: a mount that covers the folder, a rename of it,
//! or a symbolic link inside it never leads anywhere else.
//!
//! Knows nothing of manifests. Called by `volume`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfs};

use crate::base::types::{Attr, FileKind, Timestamp};

/// Longest path handed to the kernel in one call; deeper ones are walked in steps (`PATH_MAX` is 4,096 with its NUL).
const PATH_STEP: usize = 3500;

/// The backing directory, held open for as long as the volume is.
#[derive(Debug)]
pub struct Folder {
    root: Arc<OwnedFd>,
    path: PathBuf,
    device: u64,
}

impl Folder {
    /// Opens a folder. `path` is kept for messages only.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self {
            root: Arc::new(root),
            path: path.to_owned(),
            device,
        })
    }

    /// The path it was opened under, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The top directory.
    pub fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// Device number of the filesystem that the folder is on.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Opens a directory below the top, following no symbolic link and crossing no mount.
    pub fn dir(&self, relative: &Path) -> io::Result<Arc<OwnedFd>> {
        let bytes = relative.as_os_str().as_bytes();
        if bytes.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        let mut at: Option<OwnedFd> = None;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (step, left) = split_step(rest);
            let base = at.as_ref().map_or_else(|| self.root.as_fd(), AsFd::as_fd);
            let next = open_below(
                base,
                OsStr::from_bytes(step),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            at = Some(next);
            rest = left;
        }
        at.map(Arc::new).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Makes everything in the folder's filesystem durable (`syncfs`).
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// Kind of the folder's filesystem: its magic number (statfs(2)).
    pub fn fs_type(&self) -> io::Result<u32> {
        // Longer on some architectures; the numbers have 32 bits on all.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::unnecessary_cast
        )]
        Ok(rustix::fs::fstatfs(&self.root)?.f_type as u32)
    }

    /// Capacity of the folder's filesystem.
    pub fn statvfs(&self) -> io::Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.root)?)
    }
}

/// Opens one host name (or a path of several) below a directory handle, without following links or crossing mounts. What is read through
/// it is no access that anybody sees, until `note_access` says otherwise.
pub fn open_below(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let mut flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if !flags.contains(OFlags::PATH) {
        flags |= OFlags::NOATIME;
    }
    loop {
        match rustix::fs::openat2(dir, name, flags, mode, resolve) {
            // openat2 gives up with EAGAIN when a rename races with its walk; it does not block.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Only the owner and root may read unseen.
            Err(rustix::io::Errno::PERM) if flags.contains(OFlags::NOATIME) => flags.remove(OFlags::NOATIME),
            other => return Ok(other?),
        }
    }
}

/// Makes the next readings through a descriptor accesses that the host notes, or not, as its mount says. `O_NONBLOCK`, which this sets, means
/// nothing for the regular files and directories of a folder.
pub fn note_access(file: BorrowedFd<'_>, note: bool) -> io::Result<()> {
    let unseen = if note { OFlags::empty() } else { OFlags::NOATIME };
    Ok(rustix::fs::fcntl_setfl(file, OFlags::NONBLOCK | unseen)?)
}

/// The host inode behind a name, links not followed.
pub fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// A path that names an entry of an open directory, for the calls that take only paths (extended attributes). Never followed further:
/// to be used with the `l…` variants.
pub fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    use std::os::fd::AsRawFd;
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(name);
    path
}

/// What a host `stat` says, as attributes; the size is the host's.
pub fn attr_of(stat: &Stat) -> Attr {
    Attr {
        ino: stat.st_ino,
        generation: 0,
        size: stat.st_size.max(0).cast_unsigned(),
        blocks: stat.st_blocks.max(0).cast_unsigned(),
        atime: Timestamp {
            secs: stat.st_atime,
            nanos: stat.st_atime_nsec as u32,
        },
        mtime: Timestamp {
            secs: stat.st_mtime,
            nanos: stat.st_mtime_nsec as u32,
        },
        ctime: Timestamp {
            secs: stat.st_ctime,
            nanos: stat.st_ctime_nsec as u32,
        },
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
    }
}

/// The kind of a host inode.
pub fn kind_of(file_type: FileType) -> FileKind {
    match file_type {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::RegularFile | FileType::Unknown => FileKind::Regular,
    }
}

/// The host's type of a kind.
pub fn type_of(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
    }
}

fn split_step(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= PATH_STEP {
        return (path, &[]);
    }
    match path[..PATH_STEP].iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_deeper_than_a_path_can_be_are_reached() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let mut at = folder.dir(Path::new("")).unwrap();
        let mut relative = PathBuf::new();
        let name = "d".repeat(200);
        for _ in 0..30 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = Arc::new(
                open_below(
                    at.as_fd(),
                    OsStr::new(&name),
                    OFlags::RDONLY | OFlags::DIRECTORY,
                    Mode::empty(),
                )
                .unwrap(),
            );
            relative.push(&name);
        }
        let deep = folder.dir(&relative).unwrap();
        assert_eq!(
            rustix::fs::fstat(&deep).unwrap().st_ino,
            rustix::fs::fstat(&at).unwrap().st_ino
        );
    }

    #[test]
    fn links_and_parents_lead_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("inside/out")).unwrap();
        let folder = Folder::open(&temp.path().join("inside")).unwrap();
        assert!(folder.dir(Path::new("out")).is_err());
        assert!(folder.dir(Path::new("..")).is_err());
        assert!(folder.dir(Path::new("/etc")).is_err());
    }
}
