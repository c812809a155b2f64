//! Storey 4: the kernel's face of a volume. Owns the mount, its dispatch threads and its cache invalidation; decides nothing about files,
//! which is the volume's part. Invariant: every request of the kernel gets exactly one answer within a bounded time, and nothing is
//! unmounted that this process did not mount (but a dfs mount whose daemon is dead). Called by `daemon`.

mod adapter;
mod attach;
mod attr;
mod calls;
mod errno;
mod init;
mod mountinfo;
mod notify;
mod pool;
mod repeats;
mod reply;
mod session;
#[cfg(test)]
mod session_tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use attach::{remount, resolve_mountpoint, unmount_path};
pub use mountinfo::{FS_TYPE, MountEntry, at as mount_at, read as mounts};
pub use notify::Invalidator;
pub use session::MountHandle;

use crate::volume::Volume;

/// How long names and attributes are believed before the volume is asked again, when nothing else is said: the folder may be changed
/// from outside.
pub const DEFAULT_TTL: Duration = Duration::from_secs(1);

/// A mount to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// The folder, as `findmnt` shows it.
    pub source: PathBuf,
    /// Where to mount: absolute, without links (see [`resolve_mountpoint`]).
    pub mountpoint: PathBuf,
    /// What the kernel is to allow.
    pub flags: MountFlags,
    /// Who may enter.
    pub access: Access,
    /// All files seem to belong to this user.
    pub uid: Option<u32>,
    /// All files seem to belong to this group.
    pub gid: Option<u32>,
    /// How long names and attributes are believed.
    pub ttl: Duration,
    /// Lets the kernel collect writes (`FUSE_WRITEBACK_CACHE`): faster for small writes.
    pub writeback: bool,
}

impl MountRequest {
    /// A mount with all defaults: read and write, for its owner only, without set-id programs and device nodes.
    pub fn new(source: impl Into<PathBuf>, mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            mountpoint: mountpoint.into(),
            flags: MountFlags::default(),
            access: Access::Owner,
            uid: None,
            gid: None,
            ttl: DEFAULT_TTL,
            writeback: false,
        }
    }
}

/// Flags of mount(2). The default is what is right for files that may come from other devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountFlags {
    /// Nothing may be changed.
    pub read_only: bool,
    /// Set-id bits work.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs may not be run.
    pub noexec: bool,
    /// When access times change.
    pub atime: Atime,
    /// Every write is an fsync, and every change of a directory too.
    pub sync: bool,
    /// Every change of a directory is an fsync of it.
    pub dirsync: bool,
}

/// When access times change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Atime {
    /// When they lie before the last change, or a day back.
    #[default]
    Relative,
    /// At every reading.
    Strict,
    /// Never.
    Never,
}

/// Who may enter the mount. The files' own permissions are checked by the kernel in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Who mounted it.
    #[default]
    Owner,
    /// Who mounted it, and root (`-o allow_root`).
    OwnerAndRoot,
    /// Everybody (`-o allow_other`).
    Everyone,
}

/// Why mounting or unmounting failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is missing or no directory.
    #[error("{path}: the mount point cannot be used: {source}")]
    Mountpoint {
        /// The mount point.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// A dfs mount is there and works.
    #[error("{path}: {folder} is already mounted here; unmount it first")]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// What is mounted there.
        folder: PathBuf,
    },
    /// What is mounted there does not answer.
    #[error("{path}: what is mounted here does not answer; `umount -l {path}` removes it")]
    Unresponsive {
        /// The mount point.
        path: PathBuf,
    },
    /// `/dev/fuse` cannot be opened.
    #[error("/dev/fuse: {0}; the kernel's FUSE module is needed (try `modprobe fuse`)")]
    Device(std::io::Error),
    /// The kernel refused.
    #[error("{path}: mounting failed: {source}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// `fusermount3`, which mounts for ordinary users, is missing or refused.
    #[error("{path}: {reason}")]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// Files in the mount are in use.
    #[error(
        "{path}: in use; close what is open there (`fuser -m {path}` shows it) or unmount with `umount -l`"
    )]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// Another filesystem is mounted over ours.
    #[error("{path}: {fs_type} was mounted over it since; unmount that first")]
    Covered {
        /// The mount point.
        path: PathBuf,
        /// Type of the other one.
        fs_type: String,
    },
    /// The kernel's protocol failed.
    #[error("{path}: the connection to the kernel failed: {source}")]
    Session {
        /// The mount point.
        path: PathBuf,
        /// How.
        source: std::io::Error,
    },
}

/// Mounts the volume and returns once the mount answers. The folder's directory handle must be open by then: the mount may cover it.
pub fn mount(volume: Arc<Volume>, request: &MountRequest) -> Result<MountHandle, MountError> {
    let pool = pool::Pool::new();
    let (beside, given) = notify::beside();
    let adapter = calls::Adapter::new(Arc::clone(&volume), pool.clone(), beside, request);
    let handle = session::start(adapter, pool, request)?;
    notify::give_beside(handle.notifier(), volume, given).map_err(|source| MountError::Session {
        path: request.mountpoint.clone(),
        source,
    })?;
    Ok(handle)
}
