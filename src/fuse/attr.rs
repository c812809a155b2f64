//! Turns the volume's attributes into the kernel's and back. Pure. Times before 1970 and device numbers survive both ways.
//! Called by `adapter`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::base::types::{Attr, FileKind, SetTime, Timestamp};

/// What `stat` recommends as unit of reading and writing, in bytes: one request of the kernel.
const BLOCK_SIZE: u32 = 128 << 10;

/// Owner and group to show instead of those of the host's inode (`-o uid=`, `-o gid=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Owner {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

pub(super) fn to_kernel(attr: &Attr, owner: Owner) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind_to_kernel(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: owner.uid.unwrap_or(attr.uid),
        gid: owner.gid.unwrap_or(attr.gid),
        rdev: rdev_to_kernel(attr.rdev),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn kind_to_kernel(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind that `mknod` asks for; `None` for what it cannot make.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// `makedev` of the C library to the kernel's 32 bits (`new_encode_dev`): minor's low byte, major's 12 bits, the rest of minor.
fn rdev_to_kernel(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The way back (`new_decode_dev`).
pub(super) fn rdev_from_kernel(rdev: u32) -> u64 {
    rustix::fs::makedev((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

/// Saturates where `SystemTime` ends, some 292 thousand million years away.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// fuser 0.18 reads the kernel's pair (seconds, nanoseconds) before 1970 as `epoch - (-seconds) - nanoseconds`, where the kernel means
/// `epoch - (-seconds) + nanoseconds`; taking both parts of the difference apart again gives the kernel's pair.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else {
        return SetTime::Now;
    };
    let (secs, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_nanos(),
        ),
        Err(error) => {
            let before = error.duration();
            (
                0i64.saturating_sub_unsigned(before.as_secs()),
                before.subsec_nanos(),
            )
        }
    };
    SetTime::At(Timestamp { secs, nanos })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attr() -> Attr {
        let time = Timestamp { secs: 5, nanos: 7 };
        Attr {
            ino: 3,
            generation: 1,
            size: 1 << 40,
            blocks: 8,
            atime: time,
            mtime: Timestamp {
                secs: -2,
                nanos: 800_000_000,
            },
            ctime: time,
            kind: FileKind::Regular,
            mode: 0o6755,
            nlink: 2,
            uid: 10,
            gid: 20,
            rdev: 0,
        }
    }

    #[test]
    fn attributes_arrive() {
        let seen = to_kernel(&attr(), Owner::default());
        assert_eq!(
            (seen.ino, seen.size, seen.blocks, seen.perm),
            (INodeNo(3), 1 << 40, 8, 0o6755)
        );
        assert_eq!(
            (seen.uid, seen.gid, seen.nlink, seen.kind),
            (10, 20, 2, FileType::RegularFile)
        );
        // 1.2 s before the epoch.
        assert_eq!(seen.mtime, UNIX_EPOCH - Duration::from_millis(1200));
    }

    #[test]
    fn mount_options_replace_the_owner() {
        let seen = to_kernel(
            &attr(),
            Owner {
                uid: Some(1000),
                gid: None,
            },
        );
        assert_eq!((seen.uid, seen.gid), (1000, 20));
    }

    #[test]
    fn mknod_makes_no_directories() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFDIR | 0o755), None);
        assert_eq!(kind_of_mode(libc::S_IFLNK | 0o777), None);
    }

    /// As `fuser::time::system_time_from_time` in 0.18, which is private.
    fn as_fuser_reads(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new((-secs) as u64, nanos)
        }
    }

    proptest! {
        #[test]
        fn times_from_the_kernel_keep_their_parts(secs in -1_000_000_000_000i64..1_000_000_000_000, nanos in 0u32..1_000_000_000) {
            let seen = set_time(TimeOrNow::SpecificTime(as_fuser_reads(secs, nanos)));
            // Before the epoch, zero seconds with nanoseconds cannot be told from after it, and need not: both mean the same.
            prop_assert_eq!(seen, SetTime::At(Timestamp { secs, nanos }));
        }

        #[test]
        fn device_numbers_survive(major in 0u32..4096, minor in 0u32..(1 << 20)) {
            let rdev = rustix::fs::makedev(major, minor);
            prop_assert_eq!(rdev_from_kernel(rdev_to_kernel(rdev)), rdev);
        }
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for secs in [i64::MIN, -1, 0, i64::MAX] {
            for nanos in [0, 999_999_999] {
                let _ = system_time(Timestamp { secs, nanos });
            }
        }
        assert_eq!(set_time(TimeOrNow::Now), SetTime::Now);
    }
}
