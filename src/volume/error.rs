//! Why a filesystem operation failed, in the filesystem's own words; `fuse::errno` maps each to its number.

use crate::store::{FetchError, StoreError};

/// Result of a volume operation.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// Why a filesystem operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such file or directory.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was expected.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The name is longer than the mount allows.
    #[error("file name too long")]
    NameTooLong,
    /// An argument has no meaning here.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The file would be larger than a file can be.
    #[error("file too large")]
    TooLarge,
    /// The mount, or this device's role, does not allow writing.
    #[error("read-only: {0}")]
    ReadOnly(&'static str),
    /// The caller may not do this.
    #[error("operation not permitted")]
    NotPermitted,
    /// No space is left under the folder or the state directory.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// The file is gone, or was replaced behind our back.
    #[error("stale file handle")]
    Stale,
    /// The handle is not open, or not for this.
    #[error("bad file handle")]
    BadHandle,
    /// Not supported here.
    #[error("operation not supported")]
    Unsupported,
    /// No data or hole beyond this offset (`SEEK_DATA`, `SEEK_HOLE`), or no device behind it.
    #[error("no such data")]
    NoSuchData,
    /// The call would have to wait and was told not to: repeat it where waiting is allowed. Never reaches a program.
    #[error("would wait")]
    WouldWait,
    /// A block of the file cannot be had.
    #[error("{path}: {source}")]
    Unavailable {
        /// The file, relative to the mount.
        path: String,
        /// Which block, and who was asked.
        source: FetchError,
    },
    /// The file's manifest or one of its blocks is damaged.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file, relative to the mount.
        path: String,
        /// What is damaged, and what can be done.
        reason: String,
    },
    /// The local store failed.
    #[error("{0}")]
    Store(StoreError),
    /// The host filesystem refused.
    #[error("{context}: {source}")]
    Host {
        /// What was tried.
        context: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}
