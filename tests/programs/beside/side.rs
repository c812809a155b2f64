//! One of the two sides: carries out a call, and tells its answer in a form that two filesystems must agree on.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use super::calls::{Call, Place};
use crate::harness::noise;

/// Times set by hand begin before this, in seconds: everything later is the time that it was.
pub const SET_BEFORE: i64 = 1_000_000;

/// What a call answered, in a form that can be compared and read.
pub type Answer = Result<String, Errno>;

/// One of the two sides.
pub struct Side {
    pub root: PathBuf,
    pub open: BTreeMap<u8, OwnedFd>,
}

fn told(bytes: &[u8]) -> String {
    if bytes.len() <= 32 {
        format!("{bytes:?}")
    } else {
        format!("{} bytes, {}", bytes.len(), blake3::hash(bytes))
    }
}

/// What two filesystems agree on about an inode.
fn stat_text(stat: &rustix::fs::Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = if kind == FileType::Directory {
        0
    } else {
        stat.st_size
    };
    let set = |secs: i64, nanos: i64| {
        if secs < SET_BEFORE {
            format!("{secs}.{nanos:09}")
        } else {
            "late".into()
        }
    };
    // What goes through a pipe changes its times on a local filesystem only: the kernel's FUSE is not told.
    let mtime = match kind {
        FileType::Fifo => "a pipe's".to_owned(),
        _ => set(stat.st_mtime, stat.st_mtime_nsec as i64),
    };
    let (mode, owner, links) = (stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid), stat.st_nlink);
    format!("{kind:?} {mode:o} of {owner:?}, {links} links, {size} bytes, {mtime}")
}

fn xattr_name(name: u8) -> &'static str {
    ["user.a", "user.b", "trusted.c"][usize::from(name)]
}

impl Side {
    pub fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap();
        Self {
            root,
            open: BTreeMap::new(),
        }
    }

    fn fd(&self, slot: u8) -> Result<&OwnedFd, Errno> {
        self.open.get(&slot).ok_or(Errno::BADF)
    }

    fn is_dir(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
    }

    pub fn run(&mut self, call: &Call) -> Answer {
        let done = |()| "done".to_owned();
        let at = |place: &Place| place.below(&self.root);
        match call {
            Call::Open {
                slot,
                place,
                flags,
                mode,
            } => {
                let opened = rustix::fs::open(at(place), *flags, Mode::from_raw_mode(*mode))?;
                self.open.insert(*slot, opened);
                Ok("open".into())
            }
            Call::Close { slot } => {
                drop(self.open.remove(slot));
                Ok("closed".into())
            }
            Call::Pread { slot, offset, len } => {
                let mut buffer = vec![0; *len as usize];
                let read = rustix::io::pread(self.fd(*slot)?, &mut buffer[..], u64::from(*offset))?;
                Ok(told(&buffer[..read]))
            }
            Call::Pwrite {
                slot,
                offset,
                len,
                seed,
            } => rustix::io::pwrite(self.fd(*slot)?, &noise(*seed, *len as usize), u64::from(*offset))
                .map(|n| n.to_string()),
            Call::Read { slot, len } => {
                let mut buffer = vec![0; *len as usize];
                let read = rustix::io::read(self.fd(*slot)?, &mut buffer[..])?;
                Ok(told(&buffer[..read]))
            }
            Call::Write { slot, len, seed } => {
                rustix::io::write(self.fd(*slot)?, &noise(*seed, *len as usize)).map(|n| n.to_string())
            }
            Call::Seek { slot, whence, offset } => {
                let (fd, offset) = (self.fd(*slot)?, i64::from(*offset));
                if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory {
                    return Ok("positions in directories are their own".into());
                }
                let before = rustix::fs::tell(fd)?;
                let places = match whence {
                    0 => {
                        return rustix::fs::seek(fd, SeekFrom::Start(offset.unsigned_abs()))
                            .map(|at| at.to_string());
                    }
                    1 => return rustix::fs::seek(fd, SeekFrom::Current(offset)).map(|at| at.to_string()),
                    2 => return rustix::fs::seek(fd, SeekFrom::End(offset)).map(|at| at.to_string()),
                    3 => rustix::fs::seek(fd, SeekFrom::Hole(offset.unsigned_abs())),
                    _ => rustix::fs::seek(fd, SeekFrom::Data(offset.unsigned_abs())).or_else(|errno| {
                        // Within the file, whether there is any more data may be told differently.
                        let within = rustix::fs::fstat(fd)?.st_size > offset.abs();
                        if within && errno == Errno::NXIO {
                            Ok(0)
                        } else {
                            Err(errno)
                        }
                    }),
                };
                rustix::fs::seek(fd, SeekFrom::Start(before))?;
                places.map(|_| "some place".into())
            }
            Call::Ftruncate { slot, len } => {
                rustix::fs::ftruncate(self.fd(*slot)?, u64::from(*len)).map(done)
            }
            Call::Truncate { place, len } => {
                let file = rustix::fs::open(at(place), OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty())?;
                rustix::fs::ftruncate(file, u64::from(*len)).map(done)
            }
            Call::Fallocate {
                slot,
                mode,
                offset,
                len,
            } => rustix::fs::fallocate(self.fd(*slot)?, *mode, u64::from(*offset), u64::from(*len)).map(done),
            Call::Copy {
                from,
                offset,
                to,
                to_offset,
                len,
            } => {
                let (mut offset, mut to_offset) = (u64::from(*offset), u64::from(*to_offset));
                let copied = rustix::fs::copy_file_range(
                    self.fd(*from)?,
                    Some(&mut offset),
                    self.fd(*to)?,
                    Some(&mut to_offset),
                    *len as usize,
                );
                copied.map(|n| n.to_string())
            }
            Call::Fsync { slot } => rustix::fs::fsync(self.fd(*slot)?).map(done),
            Call::Rename { from, to, flags } => {
                let (from, to) = (at(from), at(to));
                if *flags == RenameFlags::EXCHANGE && self.is_dir(&from) != self.is_dir(&to) {
                    return Ok("a file and a directory cannot be exchanged here".into());
                }
                rustix::fs::renameat_with(CWD, from, CWD, to, *flags).map(done)
            }
            Call::Link { from, to } => {
                rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty()).map(done)
            }
            Call::Symlink { target, up, place } => {
                let target = target.below(Path::new(if *up { ".." } else { "" }));
                rustix::fs::symlink(target, at(place)).map(done)
            }
            Call::Readlink { place } => {
                rustix::fs::readlink(at(place), Vec::new()).map(|target| format!("{target:?}"))
            }
            Call::Unlink { place } => rustix::fs::unlink(at(place)).map(done),
            Call::Rmdir { place } => rustix::fs::rmdir(at(place)).map(done),
            Call::Mkdir { place, mode } => rustix::fs::mkdir(at(place), Mode::from_raw_mode(*mode)).map(done),
            Call::Mkfifo { place } => {
                rustix::fs::mknodat(CWD, at(place), FileType::Fifo, Mode::from_raw_mode(0o600), 0).map(done)
            }
            Call::Chmod { place, mode } => rustix::fs::chmod(at(place), Mode::from_raw_mode(*mode)).map(done),
            Call::Chown { place, uid, gid } => {
                let ids = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
                rustix::fs::chownat(
                    CWD,
                    at(place),
                    Some(ids.0),
                    Some(ids.1),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .map(done)
            }
            Call::Times { place, atime, mtime } => {
                let spec = |time: u32| Timespec {
                    tv_sec: i64::from(time) % SET_BEFORE,
                    tv_nsec: i64::from(time) % 1_000_000_000,
                };
                let times = Timestamps {
                    last_access: spec(*atime),
                    last_modification: spec(*mtime),
                };
                rustix::fs::utimensat(CWD, at(place), &times, AtFlags::SYMLINK_NOFOLLOW).map(done)
            }
            Call::Setxattr {
                place,
                name,
                len,
                flags,
            } => rustix::fs::lsetxattr(at(place), xattr_name(*name), &noise(1, *len as usize), *flags)
                .map(done),
            Call::Getxattr { place, name } => {
                let mut value = [0; 400];
                let len = rustix::fs::lgetxattr(at(place), xattr_name(*name), &mut value[..])?;
                Ok(told(&value[..len]))
            }
            Call::Removexattr { place, name } => {
                rustix::fs::lremovexattr(at(place), xattr_name(*name)).map(done)
            }
            Call::Listxattr { place } => {
                let mut names = [0; 400];
                let len = rustix::fs::llistxattr(at(place), &mut names[..])?;
                let mut names: Vec<_> = names[..len]
                    .split(|byte| *byte == 0)
                    .map(String::from_utf8_lossy)
                    .collect();
                names.sort();
                Ok(format!("{names:?}"))
            }
            Call::Stat { place, follow } => {
                let flags = if *follow {
                    AtFlags::empty()
                } else {
                    AtFlags::SYMLINK_NOFOLLOW
                };
                rustix::fs::statat(CWD, at(place), flags).map(|stat| stat_text(&stat))
            }
            Call::Fstat { slot } => rustix::fs::fstat(self.fd(*slot)?).map(|stat| stat_text(&stat)),
            Call::List { place } => {
                let dir = rustix::fs::open(at(place), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
                let list = rustix::fs::Dir::read_from(dir)?;
                let mut names = list.map(|entry| {
                    entry.map(|entry| format!("{:?} {:?}", entry.file_name(), entry.file_type()))
                });
                let mut names = names.by_ref().collect::<Result<Vec<_>, _>>()?;
                names.sort();
                Ok(format!("{names:?}"))
            }
        }
    }
}
