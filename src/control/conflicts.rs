//! What two devices changed at the same time, as `dfs conflicts` is told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path_text;

/// The conflict copies in a volume, or below a path of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conflicts {
    /// They, by directory.
    pub conflicts: Vec<ConflictCopy>,
    /// So many more are not in the list.
    pub left_out: u64,
    /// What was closed before the question is in the newest snapshot, so that it can be brought back.
    pub committed: bool,
}

/// A conflict copy: what somebody wrote while somebody else changed the same file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictCopy {
    /// Where it is in the volume.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// The file that kept the name; none: it is not there any more.
    #[serde(with = "path_text::option")]
    pub of: Option<PathBuf>,
    /// The beginning of the id of the device that wrote the copy; none where nobody is known.
    pub device: Option<String>,
    /// When the copy's content was changed last, in seconds since the Unix epoch.
    pub time: i64,
    /// Size of the copy, in bytes: of a regular file.
    pub size: Option<u64>,
    /// Size of the file that kept the name, in bytes.
    pub of_size: Option<u64>,
}
