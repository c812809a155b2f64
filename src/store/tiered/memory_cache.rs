//! The blocks that were used last, in memory, bounded by their bytes.

use lru::LruCache;
use parking_lot::Mutex;

use crate::base::BlockId;
use crate::store::CheckedBlock;

#[derive(Debug)]
struct State {
    blocks: LruCache<BlockId, CheckedBlock>,
    bytes: usize,
}

/// Bounded by `limit` bytes of blocks; least recently used go first.
#[derive(Debug)]
pub(super) struct MemoryCache {
    limit: usize,
    state: Mutex<State>,
}

impl MemoryCache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                blocks: LruCache::unbounded(),
                bytes: 0,
            }),
        }
    }

    pub(super) fn get(&self, id: &BlockId) -> Option<CheckedBlock> {
        self.state.lock().blocks.get(id).cloned()
    }

    pub(super) fn insert(&self, block: CheckedBlock) {
        if block.bytes().len() > self.limit {
            return;
        }
        let mut state = self.state.lock();
        state.bytes += block.bytes().len();
        if let Some(old) = state.blocks.put(*block.id(), block) {
            state.bytes -= old.bytes().len();
        }
        while state.bytes > self.limit {
            match state.blocks.pop_lru() {
                Some((_, old)) => state.bytes -= old.bytes().len(),
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::block;

    fn arrived(seed: u64, len: usize) -> CheckedBlock {
        let bytes = block(seed, len);
        CheckedBlock::new(BlockId::of(&bytes), bytes).unwrap()
    }

    #[test]
    fn stays_within_its_bound_and_drops_the_least_recently_used() {
        let cache = MemoryCache::new(1000);
        let blocks: Vec<_> = (0..3).map(|seed| arrived(seed, 400)).collect();
        cache.insert(blocks[0].clone());
        cache.insert(blocks[1].clone());
        assert!(cache.get(blocks[0].id()).is_some());
        cache.insert(blocks[2].clone());
        assert!(cache.get(blocks[1].id()).is_none());
        assert!(cache.get(blocks[0].id()).is_some() && cache.get(blocks[2].id()).is_some());
        cache.insert(blocks[2].clone());
        assert_eq!(cache.state.lock().bytes, 800, "the same block twice counts once");
        cache.insert(arrived(9, 1001));
        assert_eq!(cache.state.lock().blocks.len(), 2, "too large for the cache");
    }
}
