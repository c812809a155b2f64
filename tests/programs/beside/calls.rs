//! The calls and how they are chosen: few names and few open files, so that they meet.

use std::path::{Path, PathBuf};

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, XattrFlags};

/// Names in a directory, and files open at once.
const NAMES: [&str; 4] = ["a", "b", "c", "d.f"];
const OPEN: u8 = 4;

/// A path of one to three of the names.
#[derive(Debug, Clone)]
pub struct Place(Vec<u8>);

impl Place {
    pub fn below(&self, root: &Path) -> PathBuf {
        self.0
            .iter()
            .fold(root.to_owned(), |path, name| path.join(NAMES[usize::from(*name)]))
    }
}

#[derive(Debug, Clone)]
pub enum Call {
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

pub fn call() -> impl Strategy<Value = Call> {
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
