//! The kernel's requests, one by one, as calls of the volume. Thin: what a file is, the volume decides. Owns only what the kernel leaves to
//! whoever serves it: clearing set-id bits, the owner shown by `-o uid=`, syncing by `-o sync` and `-o dirsync`.
//!
//! Invariants: every request is answered exactly once; the threads that read requests never wait for the network or for a sync, but hand
//! over to the pool what may; every name that an answer gives to the kernel is one reference that a FORGET gives back.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::MountRequest;
use super::attr::{self, Owner};
use super::init::{self, Agreed};
use super::pool::Pool;
use super::reply::{Answer, answer};
use crate::base::types::{Attr, Caller, FileKind, OpenMode, RenameMode, SetAttr, Timestamp};
use crate::volume::{Allocate, Opened, Result, SeekTo, Volume, VolumeError, Wait};

/// Most that one `copy_file_range` copies; programs go on after a short copy.
const COPY_MAX: u64 = 1 << 30;
/// Read buffers larger than this are not kept between requests.
const BUFFER_KEPT: usize = 1 << 20;

thread_local! {
    /// Reused, because the first touch of fresh memory is slow on virtual machines.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub(super) struct Adapter {
    /// What requests on the pool's threads need too.
    shared: Arc<Shared>,
    pool: Pool,
    want_writeback: bool,
    agreed: Agreed,
}

#[derive(Debug)]
struct Shared {
    volume: Arc<Volume>,
    owner: Owner,
    ttl: Duration,
    sync: bool,
    dirsync: bool,
}

impl Adapter {
    pub(super) fn new(volume: Arc<Volume>, pool: Pool, request: &MountRequest) -> Self {
        let shared = Shared {
            volume,
            owner: Owner {
                uid: request.uid,
                gid: request.gid,
            },
            ttl: request.ttl,
            sync: request.flags.sync,
            dirsync: request.flags.sync || request.flags.dirsync,
        };
        Self {
            shared: Arc::new(shared),
            pool,
            want_writeback: request.writeback,
            agreed: Agreed::default(),
        }
    }

    /// Answers from a thread that may wait.
    fn later<R: Answer>(&self, reply: R, job: impl FnOnce(&Shared, R) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.pool.run(move || job(&shared, reply));
    }

    /// A change of a directory: at once, or where syncing may take its time.
    fn change<R: Answer>(&self, reply: R, job: impl FnOnce(&Shared, R) + Send + 'static) {
        if self.shared.dirsync {
            self.later(reply, job)
        } else {
            job(&self.shared, reply)
        }
    }

    fn open_mode(&self, flags: i32) -> OpenMode {
        let access = OpenFlags(flags).acc_mode();
        let write = access != OpenAccMode::O_RDONLY;
        let writeback = self.agreed.writeback;
        OpenMode {
            read: access != OpenAccMode::O_WRONLY || writeback,
            write,
            append: write && flags & libc::O_APPEND != 0 && !writeback,
            truncate: flags & libc::O_TRUNC != 0,
            sync: write && (self.shared.sync || flags & libc::O_DSYNC != 0),
        }
    }
}

impl Shared {
    fn file_attr(&self, attr: &Attr) -> FileAttr {
        attr::to_kernel(attr, self.owner)
    }

    fn entry(&self, reply: ReplyEntry, attr: &Attr) {
        reply.entry(&self.ttl, &self.file_attr(attr), Generation(attr.generation));
    }

    /// What follows a change in a directory on a mount with `dirsync`.
    fn changed(&self, directories: &[u64]) -> Result<()> {
        if !self.dirsync {
            return Ok(());
        }
        directories.iter().try_for_each(|directory| {
            let fh = self.volume.opendir(*directory)?;
            let synced = self.volume.fsyncdir(fh);
            self.volume.releasedir(fh);
            synced
        })
    }

    /// The mode without set-id bits when changing the content must clear them, as `file_remove_privs` of the kernel does.
    fn mode_without_privileges(&self, ino: u64) -> Result<Option<u32>> {
        let attr = self.volume.getattr(ino, None)?;
        let mut mode = attr.mode & !libc::S_ISUID;
        if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP {
            mode &= !libc::S_ISGID;
        }
        Ok((attr.kind == FileKind::Regular && mode != attr.mode).then_some(mode))
    }

    fn drop_privileges(&self, ino: u64, caller: &Caller) -> Result<()> {
        match self.mode_without_privileges(ino)? {
            None => Ok(()),
            mode => self
                .volume
                .setattr(
                    ino,
                    None,
                    &SetAttr {
                        mode,
                        ..SetAttr::default()
                    },
                    caller,
                )
                .map(drop),
        }
    }

    fn setattr(&self, ino: u64, fh: Option<u64>, mut set: SetAttr, caller: &Caller) -> Result<Attr> {
        // Files that are shown as somebody's cannot be given away.
        for (wanted, shown) in [(&mut set.uid, self.owner.uid), (&mut set.gid, self.owner.gid)] {
            match (*wanted, shown) {
                (Some(wanted_id), Some(shown)) if wanted_id != shown => {
                    return Err(VolumeError::NotPermitted);
                }
                (Some(_), Some(_)) => *wanted = None,
                _ => {}
            }
        }
        if set.size.is_some() && set.mode.is_none() && !is_privileged(caller) {
            set.mode = self.mode_without_privileges(ino)?;
        }
        if set == SetAttr::default() {
            return self.volume.getattr(ino, fh);
        }
        self.volume.setattr(ino, fh, &set, caller)
    }

    fn open(&self, ino: u64, mode: OpenMode, caller: &Caller) -> Result<(Opened, FopenFlags)> {
        if mode.truncate && !is_privileged(caller) {
            self.drop_privileges(ino, caller)?;
        }
        let opened = self.volume.open(ino, mode)?;
        Ok((opened, open_flags(&opened, mode)))
    }

    fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32, caller: &Caller) -> Result<()> {
        self.volume.setxattr(ino, name, value, flags)?;
        if name != "system.posix_acl_access" || is_privileged(caller) {
            return Ok(());
        }
        // chmod by somebody outside the group clears set-group-id; setting a list is a chmod. The kernel tells who is in the group in
        // a form of the request that fuser cannot read, so only the caller's first group counts.
        let attr = self.volume.getattr(ino, None)?;
        if attr.mode & libc::S_ISGID == 0 || attr.gid == caller.gid {
            return Ok(());
        }
        let set = SetAttr {
            mode: Some(attr.mode & !libc::S_ISGID),
            ..SetAttr::default()
        };
        self.volume.setattr(ino, None, &set, caller).map(drop)
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

/// Whether the caller keeps set-id bits when it changes content (`CAP_FSETID`; the kernel sends us no capabilities).
fn is_privileged(caller: &Caller) -> bool {
    caller.uid == 0
}

fn open_flags(opened: &Opened, mode: OpenMode) -> FopenFlags {
    let keep = if opened.keep_cache {
        FopenFlags::FOPEN_KEEP_CACHE
    } else {
        FopenFlags::empty()
    };
    // Nothing to flush when nothing can be written.
    let flush = if mode.write {
        FopenFlags::empty()
    } else {
        FopenFlags::FOPEN_NOFLUSH
    };
    keep | flush
}

fn is_dot(name: &OsStr) -> bool {
    name == "." || name == ".."
}

/// For an entry without attributes: the kernel links no inode to `.` and `..`, and none to inode zero.
fn bare_attr(ino: u64, kind: FileKind) -> Attr {
    let never = Timestamp::default();
    Attr {
        ino,
        generation: 0,
        size: 0,
        blocks: 0,
        atime: never,
        mtime: never,
        ctime: never,
        kind,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
    }
}

fn read(volume: &Volume, fh: u64, offset: u64, len: usize, wait: Wait, done: impl FnOnce(Result<&[u8]>)) {
    BUFFER.with_borrow_mut(|buffer| {
        let result = volume.read(fh, offset, len, buffer, wait);
        done(result.map(|()| &buffer[..buffer.len().min(len)]));
        if buffer.capacity() > BUFFER_KEPT {
            *buffer = Vec::new();
        }
    });
}

/// The two-step protocol of extended attributes: first the size, then the value.
fn send_value(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.agreed = init::negotiate(config, self.want_writeback);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.shared.volume.lookup(parent.0, name) {
            // Inode zero: the kernel remembers for a while that there is no such name.
            Err(VolumeError::NotFound) => self.shared.entry(reply, &bare_attr(0, FileKind::Regular)),
            result => answer("lookup", reply, result, |reply, attr| {
                self.shared.entry(reply, &attr)
            }),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.shared.volume.forget(ino.0, lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let result = self.shared.volume.getattr(ino.0, fh.map(|fh| fh.0));
        answer("getattr", reply, result, |reply, attr| {
            reply.attr(&self.shared.ttl, &self.shared.file_attr(&attr))
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mode = mode.map(|mode| mode & 0o7777);
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(attr::set_time),
            mtime: mtime.map(attr::set_time),
        };
        let (fh, caller) = (fh.map(|fh| fh.0), caller(request, 0));
        let job = move |shared: &Shared, reply: ReplyAttr| {
            let result = shared.setattr(ino.0, fh, set, &caller);
            answer("setattr", reply, result, |reply, attr| {
                reply.attr(&shared.ttl, &shared.file_attr(&attr))
            });
        };
        if set.size.is_some() {
            self.later(reply, job)
        } else {
            job(&self.shared, reply)
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let result = self.shared.volume.readlink(ino.0);
        answer("readlink", reply, result, |reply, target| {
            reply.data(target.as_encoded_bytes())
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), caller(request, umask));
        self.change(reply, move |shared, reply| {
            let kind =
                attr::kind_of_mode(mode).ok_or(VolumeError::Invalid("mknod makes no such kind of file"));
            let rdev = attr::rdev_from_kernel(rdev);
            let made = kind.and_then(|kind| {
                shared
                    .volume
                    .mknod(parent.0, &name, kind, mode & 0o7777, rdev, &caller)
            });
            let result = made.and_then(|attr| shared.changed(&[parent.0]).map(|()| attr));
            answer("mknod", reply, result, |reply, attr| shared.entry(reply, &attr));
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), caller(request, umask));
        self.change(reply, move |shared, reply| {
            let made = shared.volume.mkdir(parent.0, &name, mode & 0o7777, &caller);
            let result = made.and_then(|attr| shared.changed(&[parent.0]).map(|()| attr));
            answer("mkdir", reply, result, |reply, attr| shared.entry(reply, &attr));
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, caller) = (name.to_owned(), target.to_owned(), caller(request, 0));
        self.change(reply, move |shared, reply| {
            let made = shared
                .volume
                .symlink(parent.0, &name, target.as_os_str(), &caller);
            let result = made.and_then(|attr| shared.changed(&[parent.0]).map(|()| attr));
            answer("symlink", reply, result, |reply, attr| shared.entry(reply, &attr));
        });
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.change(reply, move |shared, reply| {
            let made = shared.volume.link(ino.0, parent.0, &name);
            let result = made.and_then(|attr| shared.changed(&[parent.0]).map(|()| attr));
            answer("link", reply, result, |reply, attr| shared.entry(reply, &attr));
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(reply, move |shared, reply| {
            let result = shared
                .volume
                .unlink(parent.0, &name)
                .and_then(|()| shared.changed(&[parent.0]));
            answer("unlink", reply, result, |reply, ()| reply.ok());
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(reply, move |shared, reply| {
            let result = shared
                .volume
                .rmdir(parent.0, &name)
                .and_then(|()| shared.changed(&[parent.0]));
            answer("rmdir", reply, result, |reply, ()| reply.ok());
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.change(reply, move |shared, reply| {
            let renamed = shared
                .volume
                .rename(parent.0, &name, new_parent.0, &new_name, mode);
            let result = renamed.and_then(|()| shared.changed(&[parent.0, new_parent.0]));
            answer("rename", reply, result, |reply, ()| reply.ok());
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (mode, caller) = (self.open_mode(flags.0), caller(request, 0));
        let job = move |shared: &Shared, reply: ReplyOpen| {
            let result = shared.open(ino.0, mode, &caller);
            answer("open", reply, result, |reply, (opened, flags)| {
                reply.opened(FileHandle(opened.fh), flags)
            });
        };
        if mode.truncate {
            self.later(reply, job)
        } else {
            job(&self.shared, reply)
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller, open) = (name.to_owned(), caller(request, umask), self.open_mode(flags));
        self.change(reply, move |shared, reply| {
            let made = shared
                .volume
                .create(parent.0, &name, mode & 0o7777, open, &caller);
            let result = made.and_then(|made| shared.changed(&[parent.0]).map(|()| made));
            answer("create", reply, result, |reply, (attr, opened)| {
                let (kernel_attr, generation) = (shared.file_attr(&attr), Generation(attr.generation));
                let flags = open_flags(&opened, open);
                reply.created(
                    &shared.ttl,
                    &kernel_attr,
                    generation,
                    FileHandle(opened.fh),
                    flags,
                );
            });
        });
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = size as usize;
        read(
            &self.shared.volume,
            fh.0,
            offset,
            len,
            Wait::Never,
            |result| match result {
                Err(VolumeError::WouldWait) => self.later(reply, move |shared, reply| {
                    read(&shared.volume, fh.0, offset, len, Wait::Bounded, |result| {
                        answer("read", reply, result, |reply, data| reply.data(data));
                    });
                }),
                result => answer("read", reply, result, |reply, data| reply.data(data)),
            },
        );
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let shared = &self.shared;
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) && self.agreed.killpriv;
        let cleared = if kill {
            shared.drop_privileges(ino.0, &caller(request, 0))
        } else {
            Ok(())
        };
        // The kernel's largest request fits.
        let written = data.len() as u32;
        match cleared.and_then(|()| shared.volume.write(fh.0, offset, data, Wait::Never)) {
            Err(VolumeError::WouldWait) => {
                let data = data.to_vec();
                self.later(reply, move |shared, reply| {
                    let result = shared.volume.write(fh.0, offset, &data, Wait::Bounded);
                    answer("write", reply, result, |reply, ()| reply.written(written));
                });
            }
            result => answer("write", reply, result, |reply, ()| reply.written(written)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.later(reply, move |shared, reply| {
            answer("flush", reply, shared.volume.flush(fh.0), |reply, ()| reply.ok());
        });
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let job = move |shared: &Shared, reply: ReplyEmpty| {
            shared.volume.release(fh.0);
            reply.ok();
        };
        // What was written through a memory mapping after the last close is written back now.
        if flags.acc_mode() == OpenAccMode::O_RDONLY {
            job(&self.shared, reply)
        } else {
            self.later(reply, job)
        }
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.later(reply, move |shared, reply| {
            answer("fsync", reply, shared.volume.fsync(fh.0), |reply, ()| reply.ok());
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let result = self.shared.volume.opendir(ino.0);
        answer("opendir", reply, result, |reply, fh| {
            reply.opened(FileHandle(fh), FopenFlags::empty())
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        after: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.shared.volume.readdir(fh.0, after, &mut |entry| {
            !reply.add(
                INodeNo(entry.ino),
                entry.next,
                attr::kind_to_kernel(entry.kind),
                &entry.name,
            )
        });
        answer("readdir", reply, result, |reply, ()| reply.ok());
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        after: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let shared = &self.shared;
        let result = shared.volume.readdir_plus(fh.0, after, &mut |entry, attr| {
            let attr = attr
                .unwrap_or_else(|| bare_attr(if is_dot(&entry.name) { entry.ino } else { 0 }, entry.kind));
            let generation = Generation(attr.generation);
            let seen = shared.file_attr(&attr);
            !reply.add(
                INodeNo(attr.ino),
                entry.next,
                &entry.name,
                &shared.ttl,
                &seen,
                generation,
            )
        });
        answer("readdirplus", reply, result, |reply, ()| reply.ok());
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.volume.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.later(reply, move |shared, reply| {
            answer("fsyncdir", reply, shared.volume.fsyncdir(fh.0), |reply, ()| {
                reply.ok()
            });
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer("statfs", reply, self.shared.volume.statfs(), |reply, fs| {
            let (unit, name_max) = (fs.block_size, fs.name_max);
            reply.statfs(
                fs.blocks,
                fs.blocks_free,
                fs.blocks_available,
                fs.files,
                fs.files_free,
                unit,
                name_max,
                unit,
            );
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let result = self
            .shared
            .setxattr(ino.0, name, value, flags, &caller(request, 0));
        answer("setxattr", reply, result, |reply, ()| reply.ok());
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let result = self.shared.volume.getxattr(ino.0, name);
        answer("getxattr", reply, result, |reply, value| {
            send_value(reply, &value, size)
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let result = self.shared.volume.listxattr(ino.0);
        answer("listxattr", reply, result, |reply, names| {
            send_value(reply, &names, size)
        });
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.shared.volume.removexattr(ino.0, name);
        answer("removexattr", reply, result, |reply, ()| reply.ok());
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Allocate::Reserve,
            libc::FALLOC_FL_PUNCH_HOLE => Allocate::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::ZeroRange,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let caller = caller(request, 0);
        self.later(reply, move |shared, reply| {
            let cleared = if is_privileged(&caller) {
                Ok(())
            } else {
                shared.drop_privileges(ino.0, &caller)
            };
            let result = cleared.and_then(|()| shared.volume.fallocate(fh.0, offset, len, what, keep_size));
            answer("fallocate", reply, result, |reply, ()| reply.ok());
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let to = match whence {
            libc::SEEK_DATA => SeekTo::Data,
            libc::SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.later(reply, move |shared, reply| {
            answer(
                "lseek",
                reply,
                shared.volume.lseek(fh.0, offset, to),
                |reply, offset| {
                    reply.offset(i64::try_from(offset).unwrap_or(i64::MAX));
                },
            );
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let caller = caller(request, 0);
        self.later(reply, move |shared, reply| {
            let cleared = if is_privileged(&caller) {
                Ok(())
            } else {
                shared.drop_privileges(ino_out.0, &caller)
            };
            let len = len.min(COPY_MAX);
            let copy = || {
                shared
                    .volume
                    .copy_file_range(fh_in.0, offset_in, fh_out.0, offset_out, len)
            };
            let result = cleared.and_then(|()| copy());
            answer("copy_file_range", reply, result, |reply, copied| {
                reply.written(copied.min(COPY_MAX) as u32)
            });
        });
    }

    /// No ioctl is known: the number that says so, which programs expect for file attributes that a filesystem does not have.
    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// `ENOSYS`, once: from then on the kernel answers itself that files are always ready.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
