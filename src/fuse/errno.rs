//! The only place where an error of the volume becomes a number that a program sees. Exhaustive: a new error does not compile until it
//! is mapped here. Called by `adapter` for every failed operation.

use std::sync::LazyLock;
use std::time::Instant;

use fuser::Errno;

use super::repeats::Repeats;
use crate::store::StoreError;
use crate::volume::VolumeError;

static REPEATS: LazyLock<Repeats> = LazyLock::new(Repeats::new);

/// The number for an error. What a user can only understand from the log is logged here, once, with the operation that failed.
pub(super) fn errno(operation: &'static str, error: &VolumeError) -> Errno {
    let errno = number(error);
    if is_worth_a_line(error, errno) {
        let line = error.to_string();
        if let Some(left_out) = REPEATS.pass(&line, Instant::now()) {
            tracing::warn!(operation, errno = errno.code(), left_out, "{line}");
        }
    } else {
        tracing::trace!(operation, errno = errno.code(), "{error}");
    }
    errno
}

fn number(error: &VolumeError) -> Errno {
    match error {
        VolumeError::NotFound => Errno::ENOENT,
        VolumeError::Exists => Errno::EEXIST,
        VolumeError::NotDirectory => Errno::ENOTDIR,
        VolumeError::IsDirectory => Errno::EISDIR,
        VolumeError::NotEmpty => Errno::ENOTEMPTY,
        VolumeError::NameTooLong => Errno::ENAMETOOLONG,
        VolumeError::Invalid(_) => Errno::EINVAL,
        VolumeError::TooLarge => Errno::EFBIG,
        VolumeError::ReadOnly(_) => Errno::EROFS,
        VolumeError::NotPermitted => Errno::EPERM,
        VolumeError::NoSpace(_) => Errno::ENOSPC,
        VolumeError::Stale => Errno::ESTALE,
        VolumeError::Busy => Errno::EBUSY,
        VolumeError::BadHandle => Errno::EBADF,
        VolumeError::Unsupported => Errno::EOPNOTSUPP,
        VolumeError::NoSuchData => Errno::ENXIO,
        // The adapter repeats such a call where it may wait. Should one slip through, the program may repeat it.
        VolumeError::WouldWait => Errno::EAGAIN,
        VolumeError::Unavailable { .. } | VolumeError::Damaged { .. } | VolumeError::Crowded => Errno::EIO,
        VolumeError::Store(error) => store_number(error),
        VolumeError::Host { source, .. } => host_number(source),
    }
}

fn store_number(error: &StoreError) -> Errno {
    match error {
        StoreError::NoSpace(_) => Errno::ENOSPC,
        StoreError::Damaged(_) | StoreError::Unusable { .. } | StoreError::Io(_) | StoreError::Closed => {
            Errno::EIO
        }
    }
}

/// The host's own number, except those that would mean something else to a program that talks to us: `EINTR` and `EAGAIN` invite a
/// retry of a call that was not interrupted, and `ENOSYS` makes the kernel stop asking for good.
fn host_number(error: &std::io::Error) -> Errno {
    match error.raw_os_error() {
        None | Some(libc::EINTR | libc::EAGAIN | libc::ENOSYS) => Errno::EIO,
        Some(number) => Errno::from_i32(number),
    }
}

fn is_worth_a_line(error: &VolumeError, errno: Errno) -> bool {
    match error {
        VolumeError::Unavailable { .. }
        | VolumeError::Damaged { .. }
        | VolumeError::Store(_)
        | VolumeError::NoSpace(_)
        | VolumeError::Crowded
        | VolumeError::WouldWait => true,
        VolumeError::Host { .. } => [
            Errno::EIO,
            Errno::ENOSPC,
            Errno::EROFS,
            Errno::EMFILE,
            Errno::ENFILE,
        ]
        .contains(&errno),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::base::BlockId;

    fn host(number: i32) -> VolumeError {
        VolumeError::Host {
            context: "test",
            source: io::Error::from_raw_os_error(number),
        }
    }

    #[test]
    fn programs_see_the_numbers_they_know() {
        let pairs = [
            (VolumeError::NotFound, libc::ENOENT),
            (VolumeError::Exists, libc::EEXIST),
            (VolumeError::NotEmpty, libc::ENOTEMPTY),
            (VolumeError::ReadOnly("mount"), libc::EROFS),
            (VolumeError::NoSpace("/var".into()), libc::ENOSPC),
            (VolumeError::NoSuchData, libc::ENXIO),
            (VolumeError::Unsupported, libc::EOPNOTSUPP),
            (
                VolumeError::Damaged {
                    path: "a".into(),
                    reason: "b".into(),
                },
                libc::EIO,
            ),
            (
                VolumeError::Store(StoreError::NoSpace("/var".into())),
                libc::ENOSPC,
            ),
            (VolumeError::Store(StoreError::Closed), libc::EIO),
        ];
        for (error, expected) in pairs {
            assert_eq!(number(&error).code(), expected, "{error}");
        }
    }

    #[test]
    fn the_hosts_numbers_pass_except_those_that_mislead() {
        for passed in [
            libc::ENODATA,
            libc::ERANGE,
            libc::EDQUOT,
            libc::EMLINK,
            libc::EXDEV,
            libc::EACCES,
        ] {
            assert_eq!(number(&host(passed)).code(), passed);
        }
        for hidden in [libc::EINTR, libc::EAGAIN, libc::ENOSYS] {
            assert_eq!(number(&host(hidden)).code(), libc::EIO);
        }
        let without_number = VolumeError::Host {
            context: "test",
            source: io::Error::other("no number"),
        };
        assert_eq!(number(&without_number).code(), libc::EIO);
    }

    #[test]
    fn what_only_the_log_explains_is_logged() {
        let unavailable = VolumeError::Unavailable {
            path: "a".into(),
            source: Box::new(crate::volume::BlockError::Late(BlockId::of(b"x"))),
        };
        assert!(is_worth_a_line(&unavailable, number(&unavailable)));
        assert!(is_worth_a_line(&host(libc::EIO), Errno::EIO));
        assert!(!is_worth_a_line(&host(libc::ENODATA), Errno::ENODATA));
        assert!(!is_worth_a_line(&VolumeError::NotFound, Errno::ENOENT));
    }
}
