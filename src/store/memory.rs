//! Blocks in memory: the [`BlockStore`] of tests, and the model that the others are compared with.
//!
//! Invariant: behaves as [`SqliteStore`](super::SqliteStore) without a bound on an undamaged disk. Nothing of it outlives the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::Mutex;

use super::replica_memory::Tables;
use super::{BlockStore, CommitSeq, Put, PutKind, StoreError, StoreStats};
use crate::base::{BlockId, PlainHash, StoreId};

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) bytes: Bytes,
    seq: CommitSeq,
    pub(super) dirty: bool,
    plain: Option<PlainHash>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct State {
    pub(super) blocks: BTreeMap<BlockId, Entry>,
    plain: HashMap<PlainHash, BlockId>,
    pub(super) seq: CommitSeq,
    pub(super) tables: Tables,
}

/// Blocks in memory.
#[derive(Debug)]
pub struct MemoryStore {
    id: StoreId,
    state: Mutex<State>,
    /// What a power cut would leave, since the first commit that was not synced; only kept when one may come.
    synced: Mutex<Option<Box<State>>>,
    power_cuts: bool,
}

impl MemoryStore {
    /// An empty store with this identity.
    pub fn new(id: StoreId) -> Self {
        Self {
            id,
            state: Mutex::new(State::default()),
            synced: Mutex::new(None),
            power_cuts: false,
        }
    }

    /// An empty store that remembers what a [power cut](MemoryStore::cut_power) would leave.
    pub fn with_power_cuts(id: StoreId) -> Self {
        Self {
            power_cuts: true,
            ..Self::new(id)
        }
    }

    /// Loses every commit since the last sync.
    pub fn cut_power(&self) {
        if let Some(synced) = self.synced.lock().take() {
            *self.state.lock() = *synced;
        }
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        if self.power_cuts {
            self.synced.lock().get_or_insert_with(|| Box::new(state.clone()));
        }
        change(&mut state)
    }

    /// Replaces the bytes of a block that is here by others, as a failing disk would. False when it is not here.
    pub fn damage(&self, id: &BlockId, bytes: Bytes) -> bool {
        self.state
            .lock()
            .blocks
            .get_mut(id)
            .map(|entry| entry.bytes = bytes)
            .is_some()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        let mut id = [0; StoreId::LEN];
        // Without randomness all stores have one identity, which matters to no test.
        let _ = getrandom::fill(&mut id);
        Self::new(StoreId(id))
    }
}

impl State {
    fn put(&mut self, put: Put) -> bool {
        let next = self.seq + 1;
        let mut changed = false;
        let entry = self.blocks.entry(put.id).or_insert_with(|| {
            changed = true;
            Entry {
                bytes: put.bytes.clone(),
                seq: next,
                dirty: put.kind == PutKind::Dirty,
                plain: None,
            }
        });
        if !put.id.matches(&entry.bytes) {
            (entry.bytes, entry.seq, changed) = (put.bytes, next, true);
        }
        if put.kind == PutKind::Dirty && !entry.dirty {
            (entry.dirty, changed) = (true, true);
        }
        if let Some(hash) = put.plain {
            if let Some(old) = entry.plain.replace(hash)
                && old != hash
                && self.plain.get(&old) == Some(&put.id)
            {
                self.plain.remove(&old);
            }
            changed |= self.plain.insert(hash, put.id) != Some(put.id);
        }
        changed
    }

    pub(super) fn remove(&mut self, id: &BlockId) -> bool {
        let Some(entry) = self.blocks.remove(id) else {
            return false;
        };
        if let Some(hash) = entry.plain
            && self.plain.get(&hash) == Some(id)
        {
            self.plain.remove(&hash);
        }
        true
    }
}

impl BlockStore for MemoryStore {
    fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError> {
        match self.state.lock().blocks.get(id).map(|entry| entry.bytes.clone()) {
            Some(bytes) if !id.matches(&bytes) => Err(StoreError::Damaged(*id)),
            found => Ok(found),
        }
    }

    fn contains(&self, id: &BlockId) -> Result<bool, StoreError> {
        Ok(self.state.lock().blocks.contains_key(id))
    }

    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq, StoreError> {
        self.change(|state| {
            let mut changed = false;
            for put in batch {
                changed |= state.put(put);
            }
            state.seq += u64::from(changed);
            Ok(state.seq)
        })
    }

    fn find_plain(&self, hash: &PlainHash) -> Result<Option<BlockId>, StoreError> {
        Ok(self.state.lock().plain.get(hash).copied())
    }

    fn sync(&self) -> Result<CommitSeq, StoreError> {
        *self.synced.lock() = None;
        Ok(self.last_seq())
    }

    fn remove(&self, ids: &[BlockId]) -> Result<(), StoreError> {
        self.change(|state| {
            let before = state.blocks.len();
            for id in ids {
                if !state.tables.is_held(id) {
                    state.remove(id);
                }
            }
            state.seq += u64::from(state.blocks.len() < before);
            Ok(())
        })
    }

    fn set_dirty(&self, ids: &[BlockId], dirty: bool) -> Result<(), StoreError> {
        self.change(|state| {
            let mut changed = false;
            for id in ids {
                let held = state.tables.is_held(id);
                if let Some(entry) = state.blocks.get_mut(id) {
                    let dirty = dirty || held;
                    changed |= std::mem::replace(&mut entry.dirty, dirty) != dirty;
                }
            }
            state.seq += u64::from(changed);
            Ok(())
        })
    }

    fn list(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<(BlockId, CommitSeq)>, StoreError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state.lock();
        let range = state.blocks.range((from, Bound::Unbounded)).take(limit);
        Ok(range.map(|(id, entry)| (*id, entry.seq)).collect())
    }

    fn id(&self) -> StoreId {
        self.id
    }

    fn last_seq(&self) -> CommitSeq {
        self.state.lock().seq
    }

    fn may_be_lost(&self, store: &StoreId, seq: CommitSeq) -> bool {
        *store == self.id && seq > self.last_seq()
    }

    fn stats(&self) -> Result<StoreStats, StoreError> {
        let state = self.state.lock();
        let len = |entry: &Entry| entry.bytes.len() as u64;
        Ok(StoreStats {
            blocks: state.blocks.len() as u64,
            bytes: state.blocks.values().map(len).sum(),
            dirty_bytes: state.blocks.values().filter(|e| e.dirty).map(len).sum(),
            cache_size: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::conformance::{self, block, put};
    use crate::store::replica_conformance;

    #[test]
    fn conforms() {
        conformance::all(|| Arc::new(MemoryStore::default()));
        replica_conformance::all(|| Arc::new(MemoryStore::default()));
    }

    #[test]
    fn a_power_cut_takes_what_was_not_synced() {
        let store = MemoryStore::with_power_cuts(StoreId([1; 16]));
        let (a, b) = (block(1, 100), block(2, 100));
        store.put(vec![put(&a, PutKind::Dirty)]).unwrap();
        store.sync().unwrap();
        store.put(vec![put(&b, PutKind::Dirty)]).unwrap();
        store.remove(&[BlockId::of(&a)]).unwrap();
        store.cut_power();
        assert!(store.contains(&BlockId::of(&a)).unwrap() && !store.contains(&BlockId::of(&b)).unwrap());
        assert_eq!(store.last_seq(), 1);
    }

    #[test]
    fn damage_is_found_and_healed_by_a_put() {
        let store = MemoryStore::default();
        let bytes = block(1, 100);
        let id = BlockId::of(&bytes);
        store.put(vec![put(&bytes, PutKind::Dirty)]).unwrap();
        assert!(store.damage(&id, block(2, 100)));
        assert!(matches!(store.get(&id), Err(StoreError::Damaged(found)) if found == id));
        store.put(vec![put(&bytes, PutKind::Cached)]).unwrap();
        assert_eq!(store.get(&id).unwrap(), Some(bytes));
        assert_eq!(store.stats().unwrap().dirty_bytes, 100);
    }
}
