//! The kernel's requests, one by one, as calls of the volume. Thin: what a file is, the volume decides; what the kernel leaves to whoever
//! serves it is in `calls`. Called by fuser's dispatch threads.
//!
//! Invariants: every request is answered exactly once; the threads that read requests never wait for the network or for a sync, but hand
//! over to the pool what may; every name that an answer gives to the kernel is one reference that a FORGET gives back.

use std::ffi::OsStr;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attr;
use super::calls::{Adapter, Shared, bare_attr, caller, is_privileged, open_flags, read, send_value};
use super::init;
use super::reply::answer;
use crate::base::activity;
use crate::base::types::{FileKind, RenameMode, SetAttr};
use crate::volume::{Allocate, CAPABILITY, Opened, SeekTo, Synced, Volume, VolumeError, Wait};

/// Most that one `copy_file_range` copies; programs go on after a short copy.
const COPY_MAX: u64 = 1 << 30;

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.agreed = init::negotiate(config, self.want_writeback);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _busy = activity::begin("lookup", parent.0);
        let name = name.to_owned();
        self.look(parent, reply, move |shared, reply| {
            let result = match shared.volume.lookup(parent.0, &name) {
                // Inode zero: the kernel remembers for a while that there is no such name.
                Err(VolumeError::NotFound) => Ok(bare_attr(0, FileKind::Regular)),
                result => result,
            };
            answer("lookup", reply, result, |reply, attr| {
                shared.entry(reply, parent.0, &attr)
            });
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.shared.volume.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _busy = activity::begin("getattr", ino.0);
        self.look(ino, reply, move |shared, reply| {
            let result = shared.volume.getattr(ino.0, fh.map(|fh| fh.0));
            shared.attr("getattr", result, reply);
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
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _busy = activity::begin("setattr", ino.0);
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
            shared.attr("setattr", result, reply);
        };
        // Both may have to bring the .f up to date first.
        if set.size.is_some() || set.mode.is_some_and(|mode| mode & 0o6000 != 0) {
            self.later(reply, job)
        } else {
            job(&self.shared, reply)
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let _busy = activity::begin("readlink", ino.0);
        self.look(ino, reply, move |shared, reply| {
            answer(
                "readlink",
                reply,
                shared.volume.readlink(ino.0),
                |reply, target| reply.data(target.as_encoded_bytes()),
            );
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
        let _busy = activity::begin("mknod", parent.0);
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
            shared.made("mknod", parent.0, made, reply);
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
        let _busy = activity::begin("mkdir", parent.0);
        let (name, caller) = (name.to_owned(), caller(request, umask));
        self.change(reply, move |shared, reply| {
            let made = shared.volume.mkdir(parent.0, &name, mode & 0o7777, &caller);
            shared.made("mkdir", parent.0, made, reply);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _busy = activity::begin("symlink", parent.0);
        let (name, target, caller) = (name.to_owned(), target.to_owned(), caller(request, 0));
        self.change(reply, move |shared, reply| {
            let made = shared
                .volume
                .symlink(parent.0, &name, target.as_os_str(), &caller);
            shared.made("symlink", parent.0, made, reply);
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _busy = activity::begin("link", parent.0);
        let name = name.to_owned();
        self.change(reply, move |shared, reply| {
            let made = shared.volume.link(ino.0, parent.0, &name);
            shared.made("link", parent.0, made, reply);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = activity::begin("unlink", parent.0);
        self.remove("unlink", reply, Volume::unlink, parent, name);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = activity::begin("rmdir", parent.0);
        self.remove("rmdir", reply, Volume::rmdir, parent, name);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _busy = activity::begin("rename", parent.0);
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let rename = move |shared: &Shared, wait| {
            let volume = &shared.volume;
            volume.rename(parent.0, &name, new_parent.0, &new_name, mode, wait)?;
            shared.changed(&[parent.0, new_parent.0])
        };
        let at_once = match self.shared.dirsync {
            true => Err(VolumeError::WouldWait),
            false => rename(&self.shared, Wait::Never),
        };
        match at_once {
            Err(VolumeError::WouldWait) => self.later(reply, move |shared, reply| {
                let result = rename(shared, Wait::Bounded);
                answer("rename", reply, result, |reply, ()| reply.ok());
            }),
            result => answer("rename", reply, result, |reply, ()| reply.ok()),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _busy = activity::begin("open", ino.0);
        let (mode, caller) = (self.open_mode(flags.0), caller(request, 0));
        let opened = |reply: ReplyOpen, result| {
            answer("open", reply, result, |reply, (opened, flags): (Opened, _)| {
                reply.opened(FileHandle(opened.fh), flags)
            });
        };
        if !mode.truncate {
            match self.shared.open(ino.0, mode, &caller, Wait::Never) {
                Err(VolumeError::WouldWait) => {}
                result => return opened(reply, result),
            }
        }
        self.later(reply, move |shared, reply| {
            opened(reply, shared.open(ino.0, mode, &caller, Wait::Bounded))
        });
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
        let _busy = activity::begin("create", parent.0);
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
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _busy = activity::begin("read", ino.0);
        let len = size as usize;
        let shared = &self.shared;
        let beside = read(
            &shared.volume,
            fh.0,
            offset,
            len,
            Wait::Never,
            |result| match result {
                Err(VolumeError::WouldWait) => self.later(reply, move |shared, reply| {
                    let beside = read(&shared.volume, fh.0, offset, len, Wait::Bounded, |result| {
                        answer("read", reply, result, |reply, data| reply.data(data));
                    });
                    shared.give(beside);
                }),
                result => answer("read", reply, result, |reply, data| reply.data(data)),
            },
        );
        shared.give(beside);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _busy = activity::begin("write", ino.0);
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

    fn flush(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let _busy = activity::begin("flush", ino.0);
        match self.shared.volume.flush_at_once(fh.0) {
            Ok(false) => self.sync("flush", reply, Volume::flush, fh),
            result => answer("flush", reply, result, |reply, _| reply.ok()),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = activity::begin("release", ino.0);
        let job = move |shared: &Shared, reply: ReplyEmpty| {
            shared.volume.release(fh.0);
            reply.ok();
        };
        // What was written through a memory mapping after the last close, or what no flush could store, is written back now.
        if self.shared.volume.is_flushed(fh.0) {
            job(&self.shared, reply)
        } else {
            self.later(reply, job)
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _busy = activity::begin("fsync", ino.0);
        let what = if datasync { Synced::Content } else { Synced::All };
        self.sync("fsync", reply, move |volume, fh| volume.fsync(fh, what), fh);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _busy = activity::begin("opendir", ino.0);
        let note = self.shared.note_access && flags.0 & libc::O_NOATIME == 0;
        let result = self.shared.volume.opendir(ino.0).inspect(|fh| {
            if note && let Err(error) = self.shared.volume.note_listing(*fh) {
                tracing::debug!(%error, "an access is not noted");
            }
        });
        answer("opendir", reply, result, |reply, fh| {
            reply.opened(FileHandle(fh), FopenFlags::empty())
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, after: u64, reply: ReplyDirectory) {
        let _busy = activity::begin("readdir", ino.0);
        self.look(ino, reply, move |shared, mut reply| {
            let result = shared.volume.readdir(fh.0, after, &mut |entry| {
                let kind = attr::kind_to_kernel(entry.kind);
                !reply.add(INodeNo(entry.ino), entry.next, kind, &entry.name)
            });
            answer("readdir", reply, result, |reply, ()| reply.ok());
        });
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, fh: FileHandle, after: u64, reply: ReplyDirectoryPlus) {
        let _busy = activity::begin("readdirplus", ino.0);
        self.look(ino, reply, move |shared, mut reply| {
            let result = shared.list_plus(ino.0, fh.0, after, &mut reply);
            answer("readdirplus", reply, result, |reply, ()| reply.ok());
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.volume.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let _busy = activity::begin("fsyncdir", ino.0);
        self.sync("fsyncdir", reply, Volume::fsyncdir, fh);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let _busy = activity::begin("statfs", 0);
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
        _: u32,
        reply: ReplyEmpty,
    ) {
        let _busy = activity::begin("setxattr", ino.0);
        let caller = caller(request, 0);
        let job = move |shared: &Shared, reply: ReplyEmpty, name: &OsStr, value: &[u8]| {
            let result = shared.setxattr(ino.0, name, value, flags, &caller);
            answer("setxattr", reply, result, |reply, ()| reply.ok());
        };
        if name == CAPABILITY {
            // The .f may have to be brought up to date first.
            let (name, value) = (name.to_owned(), value.to_owned());
            self.later(reply, move |shared, reply| job(shared, reply, &name, &value))
        } else {
            job(&self.shared, reply, name, value)
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _busy = activity::begin("getxattr", ino.0);
        let name = name.to_owned();
        self.look(ino, reply, move |shared, reply| {
            let result = shared.volume.getxattr(ino.0, &name);
            answer("getxattr", reply, result, |reply, value| {
                send_value(reply, &value, size)
            });
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _busy = activity::begin("listxattr", ino.0);
        self.look(ino, reply, move |shared, reply| {
            answer(
                "listxattr",
                reply,
                shared.volume.listxattr(ino.0),
                |reply, names| send_value(reply, &names, size),
            );
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = activity::begin("removexattr", ino.0);
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
        let _busy = activity::begin("fallocate", ino.0);
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

    fn lseek(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _busy = activity::begin("lseek", ino.0);
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
        _: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _busy = activity::begin("copy_file_range", ino_out.0);
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
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
