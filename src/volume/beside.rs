//! What a random read opened beside the bytes that it asked for: a chunk is opened whole, so the kernel may as well keep all of it.
//!
//! Invariant: the kernel is given only what is still the content of the file, and never while somebody could be changing it: a chunk that
//! arrived after a newer write would undo it in the page cache. So opening for writing waits for what is on its way. Called by `fuse`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::error::{Result, VolumeError};
use super::open_file::OpenFile;
use super::{Volume, Wait};

/// Pages are given whole.
const PAGE: u64 = 4096;

/// Part of a chunk that was opened for a read of less.
#[derive(Debug)]
pub struct Beside {
    file: Arc<OpenFile>,
    /// The file's pieces as they were when it was read.
    stamp: u64,
    /// Where the part begins in the file, in bytes.
    offset: u64,
    chunk: Arc<Vec<u8>>,
    part: Range<usize>,
}

/// As [`Beside`], before it is known whose it is.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) stamp: u64,
    pub(super) offset: u64,
    pub(super) chunk: Arc<Vec<u8>>,
    pub(super) part: Range<usize>,
}

impl Fresh {
    pub(super) fn of(self, file: &Arc<OpenFile>) -> Beside {
        Beside {
            file: Arc::clone(file),
            stamp: self.stamp,
            offset: self.offset,
            chunk: self.chunk,
            part: self.part,
        }
    }
}

impl Volume {
    /// Gives `send` the inode, an offset and the bytes from there, in whole pages, if they are still right; nobody can open the file for
    /// writing until it returns.
    pub fn give_beside(&self, beside: &Beside, send: impl FnOnce(u64, u64, &[u8])) {
        let file = &beside.file;
        let size = {
            let mut state = file.state.lock();
            let same = state.pieces.stamp() == beside.stamp && !state.unlinked;
            if !same || state.writers > 0 || state.handles == 0 {
                return;
            }
            // As a handle: the file is not loaded anew meanwhile.
            state.handles += 1;
            state.given += 1;
            state.pieces.size()
        };
        let end = beside.offset + beside.part.len() as u64;
        let from = beside.offset.next_multiple_of(PAGE);
        let to = if end == size { end } else { end / PAGE * PAGE };
        if from < to {
            let skip = beside.part.start + (from - beside.offset) as usize;
            send(file.ino, from, &beside.chunk[skip..skip + (to - from) as usize]);
        }
        file.state.lock().given -= 1;
        file.given.notify_all();
        self.give_back(file, false);
    }

    /// Waits until nothing of the file is on its way to the kernel any more. Its writers are counted already.
    pub(super) fn await_given(&self, file: &OpenFile, wait: Wait) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut state = file.state.lock();
        while state.given > 0 {
            if wait == Wait::Never {
                return Err(VolumeError::WouldWait);
            }
            if file.given.wait_until(&mut state, deadline).timed_out() {
                return Err(VolumeError::Busy);
            }
        }
        Ok(())
    }
}
