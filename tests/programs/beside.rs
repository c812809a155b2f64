//! The same calls, chosen at random, on the host's filesystem (ext4 on a usual machine) and in a mount, side by side: every answer and
//! error, and in the end every file, must be the same. A difference is made as small as it can be, then printed with its seed.
//!
//! Not compared: where holes begin (filesystems round differently), times that no call set, order within a directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::Errno;

use crate::harness::volume::TestVolume;
use crate::harness::{long, noise, tree};

/// Names in a directory, and files open at once.
const NAMES: [&str; 4] = ["a", "b", "c", "d.f"];
const OPEN: u8 = 4;

/// Times set by hand begin before this, in seconds: everything later is the time that it was.
const SET_BEFORE: i64 = 1_000_000;

/// A path of one to three of the names.
#[derive(Debug, Clone)]
struct Place(Vec<u8>);

impl Place {
    fn below(&self, root: &Path) -> PathBuf {
        self.0
            .iter()
            .fold(root.to_owned(), |path, name| path.join(NAMES[usize::from(*name)]))
    }
}

#[derive(Debug, Clone)]
enum Call {
    Open {
        slot: u8,
        place: Place,
        flags: OFlags,
        mode: u32,
    },
    Close {
        slot: u8,
    },
    Pread {
        slot: u8,
        offset: u32,
        len: u32,
    },
    Pwrite {
        slot: u8,
        offset: u32,
        len: u32,
        seed: u64,
    },
    Read {
        slot: u8,
        len: u32,
    },
    Write {
        slot: u8,
        len: u32,
        seed: u64,
    },
    Seek {
        slot: u8,
        whence: u8,
        offset: i32,
    },
    Ftruncate {
        slot: u8,
        len: u32,
    },
    Truncate {
        place: Place,
        len: u32,
    },
    Fallocate {
        slot: u8,
        mode: FallocateFlags,
        offset: u32,
        len: u32,
    },
    Copy {
        from: u8,
        offset: u32,
        to: u8,
        to_offset: u32,
        len: u32,
    },
    Fsync {
        slot: u8,
    },
    Rename {
        from: Place,
        to: Place,
        flags: RenameFlags,
    },
    Link {
        from: Place,
        to: Place,
    },
    Symlink {
        target: Place,
        up: bool,
        place: Place,
    },
    Readlink {
        place: Place,
    },
    Unlink {
        place: Place,
    },
    Rmdir {
        place: Place,
    },
    Mkdir {
        place: Place,
        mode: u32,
    },
    Mkfifo {
        place: Place,
    },
    Chmod {
        place: Place,
        mode: u32,
    },
    Chown {
        place: Place,
        uid: u32,
        gid: u32,
    },
    Times {
        place: Place,
        atime: u32,
        mtime: u32,
    },
    Setxattr {
        place: Place,
        name: u8,
        len: u32,
        flags: XattrFlags,
    },
    Getxattr {
        place: Place,
        name: u8,
    },
    Removexattr {
        place: Place,
        name: u8,
    },
    Listxattr {
        place: Place,
    },
    Stat {
        place: Place,
        follow: bool,
    },
    Fstat {
        slot: u8,
    },
    List {
        place: Place,
    },
}

fn place() -> impl Strategy<Value = Place> {
    let name = 0..NAMES.len() as u8;
    prop_oneof![
        6 => name.clone().prop_map(|a| vec![a]),
        3 => (name.clone(), name.clone()).prop_map(|(a, b)| vec![a, b]),
        1 => (name.clone(), name.clone(), name).prop_map(|(a, b, c)| vec![a, b, c]),
    ]
    .prop_map(Place)
}

fn open_flags() -> impl Strategy<Value = OFlags> {
    let access = prop_oneof![1 => Just(OFlags::RDONLY), 1 => Just(OFlags::WRONLY), 4 => Just(OFlags::RDWR)];
    let more = [
        OFlags::EXCL,
        OFlags::TRUNC,
        OFlags::APPEND,
        OFlags::DIRECTORY,
        OFlags::NOFOLLOW,
        OFlags::SYNC,
    ];
    // Never waits for the other end of a pipe.
    let always = OFlags::NONBLOCK | OFlags::CLOEXEC;
    (access, any::<u8>(), any::<u8>()).prop_map(move |(access, create, chosen)| {
        let create = if create % 4 == 0 {
            OFlags::empty()
        } else {
            OFlags::CREATE
        };
        let chosen = more
            .iter()
            .enumerate()
            .filter(|(bit, _)| chosen.is_multiple_of(5) && create.bits() > 0 && chosen >> bit & 1 == 1);
        chosen.fold(access | create | always, |all, (_, flag)| all | *flag)
    })
}

fn call() -> impl Strategy<Value = Call> {
    let (slot, offset) = (0..OPEN, prop_oneof![0_u32..10_000, 0_u32..2_000_000]);
    let len = prop_oneof![3 => 0_u32..6_000, 1 => 0_u32..400_000];
    let mode = prop_oneof![
        Just(0o644),
        Just(0o755),
        Just(0o600),
        Just(0o4755),
        Just(0o2775),
        Just(0o1777),
        Just(0o000)
    ];
    let keep = FallocateFlags::KEEP_SIZE;
    let fallocate = prop_oneof![
        Just(FallocateFlags::empty()),
        Just(keep),
        Just(FallocateFlags::PUNCH_HOLE | keep),
        Just(FallocateFlags::ZERO_RANGE),
        Just(FallocateFlags::ZERO_RANGE | keep),
        Just(FallocateFlags::PUNCH_HOLE)
    ];
    let rename = prop_oneof![3 => Just(RenameFlags::empty()), 1 => Just(RenameFlags::NOREPLACE), 1 => Just(RenameFlags::EXCHANGE)];
    let xattr = prop_oneof![2 => Just(XattrFlags::empty()), 1 => Just(XattrFlags::CREATE), 1 => Just(XattrFlags::REPLACE)];
    let content = prop_oneof![
        (slot.clone(), offset.clone(), len.clone()).prop_map(|(slot, offset, len)| Call::Pread {
            slot,
            offset,
            len
        }),
        (slot.clone(), offset.clone(), len.clone(), any::<u64>()).prop_map(|(slot, offset, len, seed)| {
            Call::Pwrite {
                slot,
                offset,
                len,
                seed,
            }
        }),
        (slot.clone(), len.clone()).prop_map(|(slot, len)| Call::Read { slot, len }),
        (slot.clone(), len.clone(), any::<u64>()).prop_map(|(slot, len, seed)| Call::Write {
            slot,
            len,
            seed
        }),
        (slot.clone(), 0..5_u8, -5_000..50_000_i32).prop_map(|(slot, whence, offset)| Call::Seek {
            slot,
            whence,
            offset
        }),
        (slot.clone(), offset.clone()).prop_map(|(slot, len)| Call::Ftruncate { slot, len }),
        (slot.clone(), fallocate, offset.clone(), len.clone()).prop_map(|(slot, mode, offset, len)| {
            Call::Fallocate {
                slot,
                mode,
                offset,
                len,
            }
        }),
        (
            slot.clone(),
            offset.clone(),
            slot.clone(),
            offset.clone(),
            len.clone()
        )
            .prop_map(|(from, offset, to, to_offset, len)| Call::Copy {
                from,
                offset,
                to,
                to_offset,
                len
            }),
        slot.clone().prop_map(|slot| Call::Fsync { slot }),
        slot.clone().prop_map(|slot| Call::Fstat { slot }),
    ];
    let names = prop_oneof![
        (place(), place(), rename).prop_map(|(from, to, flags)| Call::Rename { from, to, flags }),
        (place(), place()).prop_map(|(from, to)| Call::Link { from, to }),
        (place(), any::<bool>(), place()).prop_map(|(target, up, place)| Call::Symlink { target, up, place }),
        place().prop_map(|place| Call::Readlink { place }),
        place().prop_map(|place| Call::Unlink { place }),
        place().prop_map(|place| Call::Rmdir { place }),
        (place(), mode.clone()).prop_map(|(place, mode)| Call::Mkdir { place, mode }),
        place().prop_map(|place| Call::Mkfifo { place }),
        place().prop_map(|place| Call::List { place }),
    ];
    let attributes = prop_oneof![
        (place(), offset.clone()).prop_map(|(place, len)| Call::Truncate { place, len }),
        (place(), mode.clone()).prop_map(|(place, mode)| Call::Chmod { place, mode }),
        (place(), 0..5_u32, 0..5_u32).prop_map(|(place, uid, gid)| Call::Chown { place, uid, gid }),
        (place(), any::<u32>(), any::<u32>()).prop_map(|(place, atime, mtime)| Call::Times {
            place,
            atime,
            mtime
        }),
        (place(), 0..3_u8, 0..300_u32, xattr).prop_map(|(place, name, len, flags)| Call::Setxattr {
            place,
            name,
            len,
            flags
        }),
        (place(), 0..3_u8).prop_map(|(place, name)| Call::Getxattr { place, name }),
        (place(), 0..3_u8).prop_map(|(place, name)| Call::Removexattr { place, name }),
        place().prop_map(|place| Call::Listxattr { place }),
        (place(), any::<bool>()).prop_map(|(place, follow)| Call::Stat { place, follow }),
    ];
    prop_oneof![
        4 => (slot.clone(), place(), open_flags(), mode).prop_map(|(slot, place, flags, mode)| Call::Open { slot, place, flags, mode }),
        1 => slot.prop_map(|slot| Call::Close { slot }),
        10 => content,
        6 => names,
        5 => attributes,
    ]
}

/// What a call answered, in a form that can be compared and read.
type Answer = Result<String, Errno>;

/// One of the two sides.
struct Side {
    root: PathBuf,
    open: BTreeMap<u8, OwnedFd>,
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
    // A directory's own time of access depends on who listed it when.
    let mtime = set(stat.st_mtime, stat.st_mtime_nsec as i64);
    let (mode, owner, links) = (stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid), stat.st_nlink);
    format!("{kind:?} {mode:o} of {owner:?}, {links} links, {size} bytes, {mtime}")
}

fn xattr_name(name: u8) -> &'static str {
    ["user.a", "user.b", "trusted.c"][usize::from(name)]
}

impl Side {
    fn new(root: PathBuf) -> Self {
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

    fn run(&mut self, call: &Call) -> Answer {
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

/// Everything below a root, without the times that nobody set.
fn settled(root: &Path) -> BTreeMap<PathBuf, tree::Entry> {
    let mut found = tree::snapshot(root);
    for entry in found.values_mut() {
        entry.mtime = entry
            .mtime
            .filter(|mtime| *mtime < i128::from(SET_BEFORE) * 1_000_000_000);
    }
    found
}

/// Runs the calls on both sides of a fresh pair of directories. Returns the two.
fn replay(calls: &[Call], plain: PathBuf, ours: PathBuf) -> Result<(PathBuf, PathBuf), TestCaseError> {
    let (mut plain, mut ours) = (Side::new(plain), Side::new(ours));
    for (step, call) in calls.iter().enumerate() {
        let (expected, found) = (plain.run(call), ours.run(call));
        if expected != found {
            let said = format!("step {step}, {call:?}: {expected:?} on the host, {found:?} in the mount");
            return Err(TestCaseError::fail(said));
        }
    }
    let same = |plain: &Side, ours: &Side, when: &str| {
        let (expected, found) = (settled(&plain.root), settled(&ours.root));
        let differs = expected
            .iter()
            .find(|(path, entry)| found.get(*path) != Some(entry));
        match differs {
            Some((path, entry)) => Err(TestCaseError::fail(format!(
                "{when}, {path:?}: {entry:?} on the host, {:?} in the mount",
                found.get(path)
            ))),
            None if found.len() != expected.len() => Err(TestCaseError::fail(format!(
                "{when}: {:?} on the host, {:?} in the mount",
                expected.keys(),
                found.keys()
            ))),
            None => Ok(()),
        }
    };
    same(&plain, &ours, "with files open")?;
    plain.open.clear();
    ours.open.clear();
    same(&plain, &ours, "with all closed")?;
    Ok((plain.root, ours.root))
}

#[test]
fn random_calls_have_the_same_answers_as_on_the_host() {
    let mut volume = TestVolume::mounted();
    let plain = volume.place().join("plain");
    fs::create_dir(&plain).unwrap();
    let (seeds, calls) = if long() { (400, 600) } else { (24, 250) };
    // Another first seed, for a search: the ones after it follow.
    let first: u64 = std::env::var("DFS_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let mut pairs = Vec::new();
    for seed in first..first + seeds {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &{
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            bytes
        });
        let config = Config {
            cases: 1,
            max_shrink_iters: 3_000,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let tries = std::cell::Cell::new(0);
        let done = std::cell::RefCell::new(None);
        let outcome = runner.run(&proptest::collection::vec(call(), calls), |calls| {
            tries.set(tries.get() + 1);
            let name = format!("{seed}-{}", tries.get());
            done.replace(Some(replay(&calls, plain.join(&name), volume.at(&name))?));
            Ok(())
        });
        assert!(outcome.is_ok(), "seed {seed}: {}", outcome.unwrap_err());
        pairs.extend(done.take());
        if seed % 8 == 0 {
            volume.kill();
            volume.mount();
            for (plain, ours) in pairs.drain(..) {
                tree::assert_same(&settled(&plain), &settled(&ours));
            }
        }
    }
}
