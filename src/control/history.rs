//! What was: versions of a path and differences of snapshots, as `dfs log`, `dfs diff` and `dfs restore` ask and are told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path_text;
use crate::base::{BlockId, DeviceId};

/// Which snapshot is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The one that was current then, in seconds since the Unix epoch.
    Time(u64),
    /// The one whose id begins like this.
    Snapshot(String),
}

/// A snapshot that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// It.
    pub snapshot: BlockId,
    /// When the folder came to it, in seconds since the Unix epoch, by this device's clock.
    pub time: u64,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// It was there in the oldest snapshot that is kept.
    There,
    /// It came to be.
    Created,
    /// Its content is another one.
    Changed,
    /// Only its mode, owner, time or extended attributes are others.
    Attributes,
    /// It came from another path.
    Moved,
    /// It went.
    Deleted,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// A directory, or the volume itself.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device node.
    Special,
}

/// How many paths in a directory changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Came to be.
    pub created: u64,
    /// Have another content, or other attributes.
    pub changed: u64,
    /// Came from another path.
    pub moved: u64,
    /// Went.
    pub deleted: u64,
}

/// A snapshot in which a path is not what it was in the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathVersion {
    /// The snapshot.
    #[serde(flatten)]
    pub at: Past,
    /// The device that made it; none of a merge.
    pub device: Option<DeviceId>,
    /// The path then, in the volume.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// What became of it.
    pub change: Became,
    /// Where it was before, or where it went to, if that was elsewhere.
    #[serde(with = "path_text::option")]
    pub other: Option<PathBuf>,
    /// What it is; none: it is gone.
    pub kind: Option<PathKind>,
    /// Its size, in bytes: of a file.
    pub size: Option<u64>,
    /// Of a directory: what changed in it.
    pub counts: Option<Tally>,
}

/// One path in which two snapshots differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathDifference {
    /// In the newer one; of what was deleted in the older one.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// What became of it.
    pub change: Became,
    /// Where it was before, if that was elsewhere.
    #[serde(with = "path_text::option")]
    pub from: Option<PathBuf>,
    /// What it is, or was.
    pub kind: PathKind,
    /// Its size before, in bytes: of a file.
    pub before: Option<u64>,
    /// Its size after, in bytes: of a file.
    pub after: Option<u64>,
}

/// The versions of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathLog {
    /// Newest first.
    pub versions: Vec<PathVersion>,
    /// Whether there are, or may be, older ones that are not told.
    pub more: bool,
}

/// What differs between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathDiff {
    /// The older one; none: the empty folder.
    pub from: Option<Past>,
    /// The newer one.
    pub to: Past,
    /// By path.
    pub differences: Vec<PathDifference>,
    /// Paths left out, since they would be too many for one answer.
    pub left_out: u64,
}

/// What came of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRestored {
    /// The path in the volume.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// What it was brought back to.
    pub from: Past,
    /// The snapshot that has it; none: it was like that already.
    pub snapshot: Option<BlockId>,
    /// Changes made in the folder.
    pub changes: usize,
}
