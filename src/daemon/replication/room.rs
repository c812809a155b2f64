//! Keeping the store within `cache_size` where what is over it is this volume's own: the blocks that were not used for longest are
//! freed, as the user would free them, under the same safeguards.
//!
//! The store itself evicts what can be had elsewhere for certain; a block of our own can only go once its holders have confirmed it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::{Freed, Freeing, Replicator};
use crate::base::BlockId;
use crate::replica::message::Event;
use crate::store::{BlockStore, ReplicaStore};

/// Blocks freed in one go.
const AT_ONCE: usize = 2048;

/// Pause after a try that freed nothing.
const AFTER_NOTHING: Duration = Duration::from_secs(60);

/// The part of `cache_size` that is filled when freeing ends: so that it does not begin again with the next block.
const FILLED: (u64, u64) = (15, 16);

/// What is freed to make room.
pub(super) struct Room {
    cache_size: u64,
    going_on: Option<Receiver<Freed>>,
    rest_until: Instant,
}

impl Room {
    pub(super) fn new(cache_size: u64) -> Self {
        Self {
            cache_size,
            going_on: None,
            rest_until: Instant::now(),
        }
    }

    /// Whether another try may be made.
    fn is_idle(&mut self) -> bool {
        if let Some(told) = &self.going_on {
            let Ok(freed) = told.try_recv() else { return false };
            self.going_on = None;
            if freed.blocks == 0 {
                self.rest_until = Instant::now() + AFTER_NOTHING;
            } else {
                tracing::debug!(
                    blocks = freed.blocks,
                    bytes = freed.bytes,
                    "freed to stay within cache_size"
                );
            }
        }
        Instant::now() >= self.rest_until
    }
}

impl Replicator {
    /// What is to be freed for the store to stay within its bound.
    pub(super) fn make_room(&mut self) -> Option<Event> {
        let bound = self.room.cache_size;
        if bound == 0 || !self.room.is_idle() {
            return None;
        }
        // What is kept for others is theirs.
        let for_others = self.store.held_bytes().ok()?;
        let held = self.store.stats().ok()?.bytes.saturating_sub(for_others);
        if held <= bound {
            return None;
        }
        let goal = held - bound / FILLED.1 * FILLED.0;
        let mut left = HashMap::new();
        let mut bytes = 0;
        for cold in self.store.cold(self.shared.possible(), AT_ONCE).ok()? {
            if bytes >= goal {
                break;
            }
            bytes += cold.len;
            left.insert(cold.block, cold.len);
        }
        if left.is_empty() {
            self.room.rest_until = Instant::now() + AFTER_NOTHING / 10;
            return None;
        }
        let (tell, told) = bounded(1);
        self.room.going_on = Some(told);
        let blocks: Vec<BlockId> = left.keys().copied().collect();
        self.frees.push(Freeing {
            left,
            freed: Freed::default(),
            tell,
        });
        Some(Event::Free(blocks))
    }
}
