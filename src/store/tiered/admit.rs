//! The thread that puts fetched blocks into the store, several to a commit, so that whoever delivers them never waits for the disk.
//!
//! Invariant: a flight stays findable until its block is in the store or given up, so that nobody fetches it again meanwhile.

use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::Shared;
use super::flight::Flight;
use crate::store::{BlockStore, CheckedBlock, Put, PutKind};

/// Blocks that may wait to be stored. Prefetches count among them from their start, so that there is always room for those.
pub(super) const QUEUE: usize = 256;

/// Most blocks in one commit.
const BATCH_BLOCKS: usize = 64;

/// Bytes after which a commit takes no further block.
const BATCH_BYTES: usize = 8 << 20;

/// A fetched block, and the flight that it came with.
#[derive(Debug)]
pub(super) struct Admit {
    pub(super) block: CheckedBlock,
    pub(super) flight: Arc<Flight>,
    /// Held until the block is stored, for a prefetch.
    pub(super) slot: Option<super::Slot>,
}

/// Runs until every sender is gone and the queue is empty.
pub(super) fn run(queue: &Receiver<Admit>, shared: &Shared, store: &dyn BlockStore) {
    while let Ok(first) = queue.recv() {
        let mut bytes = first.block.bytes().len();
        let mut batch = vec![first];
        while batch.len() < BATCH_BLOCKS && bytes < BATCH_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.block.bytes().len();
            batch.push(next);
        }
        let puts: Vec<Put> = batch.iter().map(|admit| put(&admit.block)).collect();
        if let Err(error) = store.put(puts) {
            tracing::warn!(%error, "fetched blocks could not be kept; they will be fetched again when they are read again");
        }
        for admit in batch {
            shared.end(admit.block.id(), &admit.flight);
            drop(admit.slot);
        }
    }
}

fn put(block: &CheckedBlock) -> Put {
    Put {
        id: *block.id(),
        bytes: block.bytes().clone(),
        kind: PutKind::Cached,
        plain: None,
    }
}
