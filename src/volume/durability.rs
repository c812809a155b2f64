//! Which files have a newest version that a power cut could still take, after they were closed too.
//!
//! Invariant: a file that is not listed has its newest version on the disk. Entries go when a sync that began after the slot was written
//! has ended and no newer slot was written meanwhile. Called by `write_back` and by the background sync.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::open_file::State;
use crate::base::FileId;
use crate::folder::slots::Slot;

/// A version of a file: its id and generation. The number of an inode would not do, which comes again with another file.
pub type Version = (FileId, u64);

/// What is known of a file that is not durable yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsynced {
    /// Its newest version.
    pub version: Version,
    /// The slot that holds the newest version known to be durable.
    pub durable: Option<Slot>,
    /// A sync failed since the newest version was written: the kernel may have dropped it and count it as written, so that no later sync
    /// brings it to the disk. It must be written again first.
    pub suspect: bool,
}

/// The list.
#[derive(Debug, Default)]
pub struct Durability {
    files: Mutex<HashMap<u64, Unsynced>>,
}

impl Durability {
    /// A slot was written.
    pub fn wrote(&self, ino: u64, state: &State) {
        self.files.lock().insert(
            ino,
            Unsynced {
                version: state.version(),
                durable: state.durable,
                suspect: false,
            },
        );
    }

    /// A sync that was to make a file durable failed.
    pub fn suspect(&self, ino: u64) {
        if let Some(file) = self.files.lock().get_mut(&ino) {
            file.suspect = true;
        }
    }

    /// Whether the newest version of a file must be written again before a sync can make it durable.
    pub fn is_suspect(&self, ino: u64) -> bool {
        self.files.lock().get(&ino).is_some_and(|file| file.suspect)
    }

    /// All files whose newest version must be written again.
    pub fn suspects(&self) -> Vec<u64> {
        let files = self.files.lock();
        let suspects = files.iter().filter(|(_, file)| file.suspect);
        suspects.map(|(ino, _)| *ino).collect()
    }

    /// What is known of a file.
    pub fn of(&self, ino: u64) -> Option<Unsynced> {
        self.files.lock().get(&ino).copied()
    }

    /// This version of a file is on the disk. False when there is a newer one, or when it must be written again.
    pub fn is_durable(&self, ino: u64, version: Version) -> bool {
        let mut files = self.files.lock();
        match files.get(&ino) {
            Some(file) if file.version == version && !file.suspect => {
                files.remove(&ino);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// The inode is gone, or its number was given to another file.
    pub fn forget(&self, ino: u64) {
        self.files.lock().remove(&ino);
    }

    /// Everything listed: inodes and the versions that a sync begun now will make durable.
    pub fn snapshot(&self) -> Vec<(u64, Version)> {
        self.files
            .lock()
            .iter()
            .map(|(ino, file)| (*ino, file.version))
            .collect()
    }

    /// How many files are listed.
    pub fn len(&self) -> usize {
        self.files.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_settles_only_the_version_it_saw() {
        let list = Durability::default();
        let mut state = State::empty(FileId([0; 16]));
        state.generation = 1;
        list.wrote(7, &state);
        let seen = list.snapshot();
        state.generation = 2;
        list.wrote(7, &state);
        assert_eq!(seen, vec![(7, (state.id, 1))]);
        assert!(!list.is_durable(7, (state.id, 1)));
        assert_eq!(list.len(), 1);
        assert!(list.is_durable(7, (state.id, 2)));
        assert_eq!(list.len(), 0);
    }

    #[test]
    fn a_sync_settles_no_other_file_that_got_the_number_meanwhile() {
        let list = Durability::default();
        let state_of = |id| {
            let mut state = State::empty(FileId([id; 16]));
            state.generation = 1;
            state
        };
        list.wrote(7, &state_of(0));
        let seen = list.snapshot();
        list.forget(7);
        list.wrote(7, &state_of(1));
        for (ino, version) in seen {
            list.is_durable(ino, version);
        }
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn a_version_that_a_failed_sync_may_have_dropped_is_durable_only_when_written_again() {
        let list = Durability::default();
        let mut state = State::empty(FileId([0; 16]));
        state.generation = 1;
        list.wrote(7, &state);
        list.suspect(7);
        list.suspect(8);
        assert_eq!(list.suspects(), vec![7]);
        assert!(!list.is_durable(7, (state.id, 1)));
        state.generation = 2;
        list.wrote(7, &state);
        assert!(!list.is_suspect(7));
        assert!(list.is_durable(7, (state.id, 2)));
    }
}
