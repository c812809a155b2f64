//! What lies between a request of the kernel and a call of the volume: clearing set-id bits, the owner shown by `-o uid=`, syncing by
//! `-o dirsync`, and the forms of answers. Shared by the dispatch threads and the pool's. Called by `adapter`.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags, ReplyAttr,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyXattr, Request,
};

use super::attr::{self, Owner};
use super::init::Agreed;
use super::pool::Pool;
use super::reply::{Answer, answer};
use super::{Atime, DEFAULT_TTL, MountRequest};
use crate::base::types::{Attr, Caller, FileKind, OpenMode, SetAttr, Timestamp};
use crate::volume::{Beside, Opened, Result, Volume, VolumeError, Wait, is_past, is_shown};

/// Read buffers larger than this are not kept between requests.
const BUFFER_KEPT: usize = 1 << 20;

/// How long the kernel may rely on what was: it does not change. That it is still kept is found out at the name of the snapshot.
const LASTING: Duration = Duration::from_secs(3600);

thread_local! {
    /// Reused, because the first touch of fresh memory is slow on virtual machines.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The volume as the kernel sees it; `adapter` holds the requests themselves.
#[derive(Debug)]
pub(super) struct Adapter {
    /// What requests on the pool's threads need too.
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Pool,
    pub(super) want_writeback: bool,
    pub(super) agreed: Agreed,
}

impl Adapter {
    pub(super) fn new(
        volume: Arc<Volume>,
        pool: Pool,
        beside: Sender<Beside>,
        request: &MountRequest,
    ) -> Self {
        let shared = Shared {
            volume,
            beside,
            owner: Owner {
                uid: request.uid,
                gid: request.gid,
            },
            ttl: request.ttl,
            sync: request.flags.sync,
            dirsync: request.flags.sync || request.flags.dirsync,
            note_access: request.flags.atime != Atime::Never,
        };
        Self {
            shared: Arc::new(shared),
            pool,
            want_writeback: request.writeback,
            agreed: Agreed::default(),
        }
    }

    /// Answers from a thread that may wait.
    pub(super) fn later<R: Answer>(&self, reply: R, job: impl FnOnce(&Shared, R) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.pool.run(move || job(&shared, reply));
    }

    /// A look at something: at once, or where waiting is allowed, if it is of what was, which others may have to be asked for.
    pub(super) fn look<R: Answer>(
        &self,
        ino: INodeNo,
        reply: R,
        job: impl FnOnce(&Shared, R) + Send + 'static,
    ) {
        if is_shown(ino.0) {
            self.later(reply, job)
        } else {
            job(&self.shared, reply)
        }
    }

    /// A change of a directory: at once, or where syncing may take its time.
    pub(super) fn change<R: Answer>(&self, reply: R, job: impl FnOnce(&Shared, R) + Send + 'static) {
        if self.shared.dirsync {
            self.later(reply, job)
        } else {
            job(&self.shared, reply)
        }
    }

    pub(super) fn sync(
        &self,
        operation: &'static str,
        reply: ReplyEmpty,
        call: impl FnOnce(&Volume, u64) -> Result<()> + Send + 'static,
        fh: FileHandle,
    ) {
        self.later(reply, move |shared, reply| {
            answer(operation, reply, call(&shared.volume, fh.0), |reply, ()| {
                reply.ok()
            });
        });
    }

    pub(super) fn remove(
        &self,
        operation: &'static str,
        reply: ReplyEmpty,
        call: fn(&Volume, u64, &OsStr) -> Result<()>,
        parent: INodeNo,
        name: &OsStr,
    ) {
        let name = name.to_owned();
        self.change(reply, move |shared, reply| {
            let result = call(&shared.volume, parent.0, &name).and_then(|()| shared.changed(&[parent.0]));
            answer(operation, reply, result, |reply, ()| reply.ok());
        });
    }

    pub(super) fn open_mode(&self, flags: i32) -> OpenMode {
        let access = OpenFlags(flags).acc_mode();
        let write = access != OpenAccMode::O_RDONLY;
        let writeback = self.agreed.writeback;
        OpenMode {
            read: access != OpenAccMode::O_WRONLY || writeback,
            write,
            append: write && flags & libc::O_APPEND != 0 && !writeback,
            truncate: flags & libc::O_TRUNC != 0,
            sync: write && (self.shared.sync || flags & libc::O_DSYNC != 0),
            note_access: access != OpenAccMode::O_WRONLY
                && self.shared.note_access
                && flags & libc::O_NOATIME == 0,
        }
    }
}

/// The volume as the adapter uses it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) volume: Arc<Volume>,
    /// To the thread that gives the kernel what was opened beside what it asked for.
    pub(super) beside: Sender<Beside>,
    pub(super) owner: Owner,
    pub(super) ttl: Duration,
    pub(super) sync: bool,
    pub(super) dirsync: bool,
    pub(super) note_access: bool,
}

impl Shared {
    pub(super) fn file_attr(&self, attr: &Attr) -> FileAttr {
        attr::to_kernel(attr, self.owner)
    }

    /// How long the kernel may rely on a name in this directory, and on what it leads to.
    pub(super) fn ttl_in(&self, directory: u64) -> Duration {
        match directory {
            past if is_past(past) => LASTING,
            // Which snapshots are kept is not for the owner of the mount to say.
            shown if is_shown(shown) => self.ttl.min(DEFAULT_TTL),
            _ => self.ttl,
        }
    }

    pub(super) fn entry(&self, reply: ReplyEntry, parent: u64, attr: &Attr) {
        let ttl = self.ttl_in(parent);
        reply.entry(&ttl, &self.file_attr(attr), Generation(attr.generation));
    }

    /// Lists a directory with attributes, as far as the reply has room.
    pub(super) fn list_plus(
        &self,
        directory: u64,
        fh: u64,
        after: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        let ttl = self.ttl_in(directory);
        self.volume.readdir_plus(fh, after, &mut |entry, attr| {
            let dot = if is_dot(&entry.name) { entry.ino } else { 0 };
            let attr = attr.unwrap_or_else(|| bare_attr(dot, entry.kind));
            let (seen, generation) = (self.file_attr(&attr), Generation(attr.generation));
            !reply.add(
                INodeNo(attr.ino),
                entry.next,
                &entry.name,
                &ttl,
                &seen,
                generation,
            )
        })
    }

    pub(super) fn attr(&self, operation: &'static str, result: Result<Attr>, reply: ReplyAttr) {
        answer(operation, reply, result, |reply, attr| {
            reply.attr(&self.ttl_in(attr.ino), &self.file_attr(&attr))
        });
    }

    /// Answers for a new name in a directory.
    pub(super) fn made(&self, operation: &'static str, parent: u64, made: Result<Attr>, reply: ReplyEntry) {
        let result = made.and_then(|attr| self.changed(&[parent]).map(|()| attr));
        answer(operation, reply, result, |reply, attr| {
            self.entry(reply, parent, &attr)
        });
    }

    /// Lets the kernel have more than it asked for, if that can be done at once.
    pub(super) fn give(&self, beside: Option<Beside>) {
        if let Some(beside) = beside {
            // When many wait already, reading goes on without.
            let _ = self.beside.try_send(beside);
        }
    }

    /// What follows a change in a directory on a mount with `dirsync`.
    pub(super) fn changed(&self, directories: &[u64]) -> Result<()> {
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
    pub(super) fn mode_without_privileges(&self, ino: u64) -> Result<Option<u32>> {
        let attr = self.volume.getattr(ino, None)?;
        let mut mode = attr.mode & !libc::S_ISUID;
        if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP {
            mode &= !libc::S_ISGID;
        }
        Ok((attr.kind == FileKind::Regular && mode != attr.mode).then_some(mode))
    }

    pub(super) fn drop_privileges(&self, ino: u64, caller: &Caller) -> Result<()> {
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

    pub(super) fn setattr(
        &self,
        ino: u64,
        fh: Option<u64>,
        mut set: SetAttr,
        caller: &Caller,
    ) -> Result<Attr> {
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

    pub(super) fn open(
        &self,
        ino: u64,
        mode: OpenMode,
        caller: &Caller,
        wait: Wait,
    ) -> Result<(Opened, FopenFlags)> {
        if mode.truncate && !is_privileged(caller) {
            self.drop_privileges(ino, caller)?;
        }
        let opened = self.volume.open(ino, mode, wait)?;
        Ok((opened, open_flags(&opened, mode)))
    }

    pub(super) fn setxattr(
        &self,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        caller: &Caller,
    ) -> Result<()> {
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

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

/// Whether the caller keeps set-id bits when it changes content (`CAP_FSETID`; the kernel sends us no capabilities).
pub(super) fn is_privileged(caller: &Caller) -> bool {
    caller.uid == 0
}

pub(super) fn open_flags(opened: &Opened, mode: OpenMode) -> FopenFlags {
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
    let direct = if opened.direct {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::empty()
    };
    keep | flush | direct
}

fn is_dot(name: &OsStr) -> bool {
    name == "." || name == ".."
}

/// For an entry without attributes: the kernel links no inode to `.` and `..`, and none to inode zero.
pub(super) fn bare_attr(ino: u64, kind: FileKind) -> Attr {
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

pub(super) fn read(
    volume: &Volume,
    fh: u64,
    offset: u64,
    len: usize,
    wait: Wait,
    done: impl FnOnce(Result<&[u8]>),
) -> Option<Beside> {
    // Taken, not borrowed: an operation that has to wait is begun again from `done`, on this thread.
    let mut buffer = BUFFER.take();
    let keep = |buffer: Vec<u8>| {
        if buffer.capacity() <= BUFFER_KEPT {
            BUFFER.set(buffer);
        }
    };
    match volume.read(fh, offset, len, &mut buffer, wait) {
        Ok(beside) => {
            done(Ok(&buffer[..buffer.len().min(len)]));
            keep(buffer);
            beside
        }
        Err(error) => {
            keep(buffer);
            done(Err(error));
            None
        }
    }
}

/// The two-step protocol of extended attributes: first the size, then the value.
pub(super) fn send_value(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
