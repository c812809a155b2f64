//! What this device remembers of its snapshots: which one the folder is at, which ones it keeps, and how it numbers what it makes.
//!
//! Invariant: replaced whole and durable before anybody is told of a new head. Called by `engine`.

use serde::{Deserialize, Serialize};

use crate::base::BlockId;
use crate::folder::state::{StateDir, StateError};
use crate::volume::Moment;

/// Name of the list in the state directory.
const LIST: &str = "snapshots";

/// A snapshot that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// It.
    pub id: BlockId,
    /// When the folder came to it, in seconds since the Unix epoch, by this device's clock.
    pub time: u64,
    /// It was made by merging others.
    pub merge: bool,
    /// It came in the same second as one that was kept then: its id belongs to its name.
    #[serde(default)]
    pub twin: bool,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// What the folder was at, but for what was changed since.
    pub head: Option<BlockId>,
    /// Number of the newest snapshot that it made.
    pub made: u64,
    /// The snapshots that are kept, oldest first.
    pub kept: Vec<Kept>,
}

impl Journal {
    /// What was remembered; an empty journal where nothing was yet.
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        match state.read_list(LIST)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let path = state.path().join(LIST);
                StateError::Io {
                    action: "understand",
                    path,
                    source: std::io::Error::other(error),
                }
            }),
            None => Ok(Self::default()),
        }
    }

    /// Remembers it.
    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(self).map_err(|error| StateError::Io {
            action: "write",
            path: state.path().join(LIST),
            source: std::io::Error::other(error),
        })?;
        state.write_list(LIST, &bytes)
    }

    /// The folder is at a snapshot from now on.
    pub fn arrive(&mut self, id: BlockId, time: u64, merge: bool) {
        self.head = Some(id);
        self.kept.retain(|kept| kept.id != id);
        let twin = self.kept.iter().any(|kept| kept.time == time);
        self.kept.push(Kept {
            id,
            time,
            merge,
            twin,
        });
    }

    /// What is kept, as the volume has it.
    pub fn moments(&self) -> Vec<Moment> {
        let moment = |kept: &Kept| Moment {
            id: kept.id,
            time: kept.time,
            twin: kept.twin,
        };
        self.kept.iter().map(moment).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_remembered_and_damage_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temp.path().join("state")).unwrap();
        assert_eq!(Journal::load(&state).unwrap(), Journal::default());
        let mut journal = Journal {
            made: 3,
            ..Journal::default()
        };
        journal.arrive(BlockId([1; 32]), 10, false);
        journal.arrive(BlockId([2; 32]), 20, true);
        journal.arrive(BlockId([1; 32]), 30, false);
        journal.save(&state).unwrap();
        assert_eq!(Journal::load(&state).unwrap(), journal);
        let moment = |n, time| Moment {
            id: BlockId([n; 32]),
            time,
            twin: false,
        };
        assert_eq!(journal.moments(), [moment(2, 20), moment(1, 30)]);
        journal.arrive(BlockId([3; 32]), 30, false);
        journal.kept.remove(1);
        journal.arrive(BlockId([4; 32]), 30, false);
        assert!(journal.kept[1..].iter().all(|kept| kept.twin), "whoever is gone");
        std::fs::write(state.path().join(LIST), "nonsense").unwrap();
        assert!(
            Journal::load(&state)
                .unwrap_err()
                .to_string()
                .contains("snapshots")
        );
    }
}
