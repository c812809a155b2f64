//! Storey 4: the same tree on several devices, and its past. Commits what changes in the folder as snapshots, takes in what other devices
//! committed, and says who is at which.
//!
//! `commit` makes a tree of what changed, `merging` makes one of two, `plan` and `apply` bring the folder to one, `journal` remembers; `engine` puts them
//! together. It sees the volume, and other devices through [`Heads`] only. Called by `daemon`.

mod apply;
mod commit;
mod engine;
mod journal;
mod merging;
mod plan;
#[cfg(test)]
mod storm_tests;

pub use engine::{Engine, Heads, Place, Round};
pub use journal::{Journal, Kept};

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
}

/// Of this room.
pub type Result<T> = std::result::Result<T, SyncError>;
