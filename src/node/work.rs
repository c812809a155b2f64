//! What a node has asked of others since its start, counted: what reading costs is told in frames and bytes, not in seconds.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WorkDone {
    /// Blocks asked for (GET).
    pub gets: u64,
    /// Questions who has blocks (HAVE), each about up to 256 of them.
    pub haves: u64,
    /// Requests taken back (CANCEL): the block was had from another peer, or is not wanted any more.
    pub cancels: u64,
    /// Bytes of blocks that came after they were taken back.
    pub wasted_bytes: u64,
    /// Searches from member to member (FIND) that this device began.
    pub finds: u64,
    /// Messages that told of files, each of up to 512 of them (PROVIDE).
    pub announcements: u64,
}

/// Counts, for any number of tasks.
#[derive(Debug, Default)]
pub(super) struct Work {
    gets: AtomicU64,
    haves: AtomicU64,
    cancels: AtomicU64,
    wasted_bytes: AtomicU64,
    finds: AtomicU64,
    announcements: AtomicU64,
}

impl Work {
    /// One more GET.
    pub(super) fn get(&self) {
        self.gets.fetch_add(1, Ordering::Relaxed);
    }

    /// One more HAVE.
    pub(super) fn have(&self) {
        self.haves.fetch_add(1, Ordering::Relaxed);
    }

    /// One more CANCEL.
    pub(super) fn cancel(&self) {
        self.cancels.fetch_add(1, Ordering::Relaxed);
    }

    /// These bytes came for nothing.
    pub(super) fn waste(&self, bytes: u64) {
        self.wasted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One more search.
    pub(super) fn find(&self) {
        self.finds.fetch_add(1, Ordering::Relaxed);
    }

    /// So many messages told of files.
    pub(super) fn announce(&self, messages: u64) {
        self.announcements.fetch_add(messages, Ordering::Relaxed);
    }

    /// The counts now.
    pub(super) fn done(&self) -> WorkDone {
        WorkDone {
            gets: self.gets.load(Ordering::Relaxed),
            haves: self.haves.load(Ordering::Relaxed),
            cancels: self.cancels.load(Ordering::Relaxed),
            wasted_bytes: self.wasted_bytes.load(Ordering::Relaxed),
            finds: self.finds.load(Ordering::Relaxed),
            announcements: self.announcements.load(Ordering::Relaxed),
        }
    }
}
