//! Storey 4: the same tree on several devices, and its past. Commits what changes in the folder as snapshots, takes in what other devices
//! committed, and says who is at which.
//!
//! `commit` makes a tree of what changed, `merging` makes one of two, `plan` and `apply` bring the folder to one, `fill` an empty folder to its first, `journal` remembers; `engine` puts them
//! together. `conflicts` finds what was kept twice, `news` says what changed in few words, `history` looks at what was, `restore` brings it back, `ahead` brings content before it is read, `thinning` says what of it may go. It sees the volume, and other devices through [`Heads`] only. Called by `daemon`.

mod ahead;
#[cfg(test)]
mod ahead_tests;
mod apply;
mod commit;
mod conflicts;
#[cfg(test)]
mod conflicts_tests;
#[cfg(test)]
mod devices_tests;
mod engine;
mod fill;
#[cfg(test)]
mod fill_tests;
mod history;
#[cfg(test)]
mod history_tests;
mod journal;
mod lookup;
mod merging;
#[cfg(test)]
mod moving_tests;
mod news;
mod plan;
mod restore;
#[cfg(test)]
mod restore_tests;
#[cfg(test)]
mod storm_tests;
mod thinning;
mod whereabouts;

pub use ahead::{Bring, Brought};
pub use conflicts::Conflict;
pub use engine::{Engine, Heads, Place, Round};
pub use history::{At, Change, Counts, Difference, Kind, Version};
pub use journal::{Journal, Kept};
pub use news::{Arrival, News};
pub use restore::Restored;

use std::path::PathBuf;

use crate::folder::state::StateError;
use crate::volume::VolumeError;

/// Why a commit, a merge or its application did not come to its end. What was done stays; the next round goes on.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What this device remembers.
    #[error(transparent)]
    State(#[from] StateError),
    /// A path that none in the volume can be.
    #[error("{} is no path in the volume", .0.display())]
    NoPath(PathBuf),
    /// Nothing was committed yet.
    #[error("no snapshot is kept yet")]
    NoSnapshot,
    /// No kept snapshot was current then: the oldest is of this time, in seconds since the Unix epoch.
    #[error("the oldest snapshot that is kept is newer")]
    Older(u64),
    /// No kept snapshot has an id that begins like this, or several have: so many.
    #[error("{1} snapshots have an id that begins with {0}")]
    NotOne(String, usize),
    /// The path did not exist in the snapshot.
    #[error("{} did not exist then", .0.display())]
    NotThereThen(PathBuf),
    /// The path exists in no snapshot that is kept.
    #[error("{} is in no snapshot that is kept", .0.display())]
    NeverThere(PathBuf),
    /// The path exists, and it was not said which version is wanted instead.
    #[error("{} exists", .0.display())]
    StillThere(PathBuf),
    /// Something else is now what was a directory.
    #[error("{} is no directory now", .0.display())]
    NotADirectory(PathBuf),
    /// This device may not change the tree.
    #[error("nothing may be changed on this device")]
    ReadOnly,
    /// Something else is being brought to the folder for too long.
    #[error("what others changed is being brought here")]
    Busy,
    /// Files that are being written were in the way of a restore.
    #[error(
        "{left} changes could not be made because files are open for writing or were just changed; {done} were"
    )]
    InTheWay {
        /// Changes made.
        done: usize,
        /// Changes left.
        left: usize,
    },
}

/// Of this room.
pub type Result<T> = std::result::Result<T, SyncError>;
