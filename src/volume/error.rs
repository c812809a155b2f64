//! Why a filesystem operation failed, in the filesystem's own words; `fuse::errno` maps each to its number.

use crate::base::BlockId;
use crate::base::activity::Refused;
use crate::store::{ReadError, StoreError};

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
    /// The kernel is still taking up what was read of the file.
    #[error("the file is busy")]
    Busy,
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
    /// More operations wait for other computers than may.
    #[error(
        "too many operations wait for other computers already; those that can be reached answer when the others have been given up"
    )]
    Crowded,
    /// A block of the file cannot be had.
    #[error("{path}: {source}")]
    Unavailable {
        /// The file, relative to the mount.
        path: String,
        /// Which block, and who was asked.
        source: Box<BlockError>,
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

/// Why the plaintext of a block could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlockError {
    /// It is not in the local store, and the caller may not wait.
    #[error("would wait")]
    WouldWait,
    /// It is not in the local store, and too many wait for other computers already.
    #[error("block {0} is on other computers, and too many operations wait for those already")]
    Crowded(BlockId),
    /// Another reader's fetch of it did not end in time.
    #[error("block {0} did not arrive in time")]
    Late(BlockId),
    /// Neither the store nor another device gave it.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its bytes are what its id says, but not what this volume's key opens, or not what the file's manifest says.
    #[error("block {id} cannot be opened: {reason}")]
    Damaged {
        /// The block.
        id: BlockId,
        /// What is wrong.
        reason: String,
    },
    /// It was sealed under a key that this device was never given.
    #[error(
        "block {id} is sealed under key epoch {epoch}, which this device does not have: connect to another member once"
    )]
    NoKey {
        /// The block.
        id: BlockId,
        /// The epoch.
        epoch: u32,
    },
}

impl From<Refused> for VolumeError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Impatient => VolumeError::WouldWait,
            Refused::Crowded => VolumeError::Crowded,
        }
    }
}

impl VolumeError {
    /// A refusal of the host filesystem; a full disk is told apart.
    pub fn host(context: &'static str, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                VolumeError::NoSpace(format!("the folder's filesystem is full ({context})"))
            }
            _ => VolumeError::Host { context, source },
        }
    }

    /// A failure of the store; a full disk is told apart.
    pub fn store(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace(path) => VolumeError::NoSpace(format!("the local store at {path} is full")),
            other => VolumeError::Store(other),
        }
    }

    /// A failure to seal: of memory or of the compressor, never of the data.
    pub fn seal(error: impl std::fmt::Display) -> Self {
        VolumeError::Store(StoreError::Io(format!("sealing failed: {error}")))
    }

    /// A block of a file that could not be had.
    pub fn block(path: impl FnOnce() -> String, error: BlockError) -> Self {
        match error {
            BlockError::WouldWait => VolumeError::WouldWait,
            error @ BlockError::Damaged { .. } => VolumeError::Damaged {
                path: path(),
                reason: error.to_string(),
            },
            error => VolumeError::Unavailable {
                path: path(),
                source: Box::new(error),
            },
        }
    }
}
