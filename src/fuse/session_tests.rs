//! Mounts for real, with a filesystem of one directory that is independent of the volume: mounting, the end of a session, and above all
//! what is not unmounted. Needs root and `/dev/fuse`; says so when it has neither.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr,
    ReplyEntry, ReplyOpen, Request,
};
use rustix::mount::{MountFlags as Flags, UnmountFlags};

use super::pool::Pool;
use super::{Access, Atime, MountError, MountHandle, MountRequest, attach, mountinfo, session};

const LONG: Duration = Duration::from_secs(20);

/// A root directory with one empty file.
struct Tiny;

fn attr(ino: u64) -> FileAttr {
    let kind = if ino == 1 {
        FileType::Directory
    } else {
        FileType::RegularFile
    };
    let (atime, mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
    let (perm, nlink, uid, gid, rdev, blksize, flags) = (0o755, 1, 0, 0, 0, 4096, 0);
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime,
        mtime,
        ctime,
        crtime,
        kind,
        perm,
        nlink,
        uid,
        gid,
        rdev,
        blksize,
        flags,
    }
}

impl Filesystem for Tiny {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &std::ffi::OsStr, reply: ReplyEntry) {
        if name == "file" {
            reply.entry(&LONG, &attr(2), Generation(0))
        } else {
            reply.error(Errno::ENOENT)
        }
    }
    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &attr(ino.0));
    }
    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(7), FopenFlags::FOPEN_NOFLUSH);
    }
}

/// A mount point that nothing stays mounted on.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root()
            || File::options().read(true).write(true).open("/dev/fuse").is_err()
        {
            eprintln!("SKIPPED: mounting for real needs root and /dev/fuse");
            return None;
        }
        Some(Self {
            directory: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self) -> PathBuf {
        self.directory
            .path()
            .canonicalize()
            .unwrap_or_else(|_| self.directory.path().to_owned())
    }

    fn request(&self) -> MountRequest {
        MountRequest::new("/some folder", self.path())
    }

    fn mount(&self, request: &MountRequest) -> MountHandle {
        session::start(Tiny, Pool::new(), request).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while rustix::mount::unmount(
            self.directory.path(),
            UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
        )
        .is_ok()
        {}
    }
}

fn ends(handle: &MountHandle) {
    handle
        .wait(Some(LONG))
        .expect("the session ends")
        .expect("without an error");
    assert!(handle.has_ended());
}

#[test]
fn a_mount_answers_and_shows_what_it_is() {
    let Some(place) = Place::new() else { return };
    let mut request = place.request();
    request.access = Access::Everyone;
    request.flags.read_only = true;
    request.flags.noexec = true;
    request.flags.atime = Atime::Never;
    let handle = place.mount(&request);
    assert!(place.path().join("file").exists());
    assert!(!place.path().join("other").exists());
    let entry = mountinfo::at(&place.path()).unwrap().unwrap();
    assert_eq!(&entry, handle.entry());
    assert_eq!(
        (entry.fs_type.as_str(), entry.source.as_path(), entry.read_only),
        ("fuse.dfs", Path::new("/some folder"), true)
    );
    let read_ahead = std::fs::read_to_string(format!("/sys/class/bdi/{}/read_ahead_kb", entry.device_name()));
    assert_eq!(read_ahead.unwrap().trim(), "4096");
    let written = std::fs::write(place.path().join("file"), "x").unwrap_err();
    assert_eq!(
        written.raw_os_error(),
        Some(rustix::io::Errno::ROFS.raw_os_error())
    );
    assert!(handle.wait(Some(Duration::ZERO)).is_none());
    handle.unmount(false).unwrap();
    ends(&handle);
    handle.unmount(false).unwrap();
}

#[test]
fn unmounting_from_outside_ends_the_session() {
    let Some(place) = Place::new() else { return };
    let handle = place.mount(&place.request());
    assert!(attach::unmount_path(&place.path(), false).unwrap());
    ends(&handle);
    assert!(!attach::unmount_path(&place.path(), false).unwrap());
}

#[test]
fn a_mount_in_use_stays_and_a_lazy_unmount_waits_for_the_last_user() {
    let Some(place) = Place::new() else { return };
    let handle = place.mount(&place.request());
    let open = File::open(place.path().join("file")).unwrap();
    assert!(matches!(handle.unmount(false), Err(MountError::Busy { .. })));
    assert!(place.path().join("file").exists());
    handle.unmount(true).unwrap();
    assert_eq!(mountinfo::at(&place.path()).unwrap(), None);
    assert!(!handle.has_ended());
    assert_eq!(open.metadata().unwrap().len(), 0, "an open file goes on");
    drop(open);
    ends(&handle);
}

#[test]
fn what_was_mounted_over_it_is_not_unmounted() {
    let Some(place) = Place::new() else { return };
    let handle = place.mount(&place.request());
    rustix::mount::mount("over", &*place.path(), "tmpfs", Flags::empty(), c"size=4k").unwrap();
    assert!(matches!(handle.unmount(true), Err(MountError::Covered { fs_type, .. }) if fs_type == "tmpfs"));
    assert_eq!(mountinfo::at(&place.path()).unwrap().unwrap().fs_type, "tmpfs");
    rustix::mount::unmount(&*place.path(), UnmountFlags::empty()).unwrap();
    handle.unmount(false).unwrap();
    ends(&handle);
    // The path belongs to somebody else by now.
    rustix::mount::mount("after", &*place.path(), "tmpfs", Flags::empty(), c"size=4k").unwrap();
    handle.unmount(true).unwrap();
    attach::detach(handle.entry(), true).unwrap();
    assert_eq!(
        mountinfo::at(&place.path()).unwrap().unwrap().source,
        Path::new("after")
    );
}

#[test]
fn a_dead_mount_is_replaced_and_a_living_one_is_not() {
    let Some(place) = Place::new() else { return };
    // A daemon that dies without unmounting closes the device.
    drop(attach::attach(&place.request()).unwrap().device);
    let dead = std::fs::metadata(place.path()).unwrap_err();
    assert_eq!(
        dead.raw_os_error(),
        Some(rustix::io::Errno::NOTCONN.raw_os_error())
    );
    let resolved = attach::resolve_mountpoint(place.directory.path()).unwrap();
    assert_eq!(resolved, place.path());
    assert_eq!(mountinfo::at(&resolved).unwrap(), None);

    let handle = place.mount(&place.request());
    let refused = attach::resolve_mountpoint(&place.path());
    assert!(
        matches!(refused, Err(MountError::AlreadyMounted { folder, .. }) if folder == Path::new("/some folder"))
    );
    handle.unmount(false).unwrap();
    ends(&handle);
}

#[test]
fn remounting_changes_flags() {
    let Some(place) = Place::new() else { return };
    let mut request = place.request();
    let handle = place.mount(&request);
    request.flags.read_only = true;
    attach::remount(&place.path(), &request.flags).unwrap();
    assert!(mountinfo::at(&place.path()).unwrap().unwrap().read_only);
    request.flags.read_only = false;
    attach::remount(&place.path(), &request.flags).unwrap();
    assert!(!mountinfo::at(&place.path()).unwrap().unwrap().read_only);
    handle.unmount(false).unwrap();
    ends(&handle);
    assert!(attach::remount(&place.path(), &request.flags).is_err());
}

#[test]
fn a_mount_that_died_a_moment_ago_is_known_to_be_dead() {
    let Some(place) = Place::new() else { return };
    let connections = tempfile::tempdir().unwrap();
    rustix::mount::mount("none", connections.path(), "fusectl", Flags::empty(), c"").unwrap();
    let handle = place.mount(&place.request());
    // The attributes of the root are cached for long.
    assert!(std::fs::metadata(place.path()).unwrap().is_dir());
    let connection = connections.path().join(handle.entry().device.1.to_string());
    std::fs::write(connection.join("abort"), "1").unwrap();
    rustix::mount::unmount(connections.path(), UnmountFlags::empty()).unwrap();
    let resolved = attach::resolve_mountpoint(&place.path()).unwrap();
    assert_eq!(mountinfo::at(&resolved).unwrap(), None);
    ends(&handle);
}
