//! A store that fails when it is told to, for tests of everything that stands on a store.
//!
//! Invariant: a call that fails [`Before`](Fault::Before) changes nothing; one that fails [`After`](Fault::After) did its work and
//! lost the answer, as a process does that dies between commit and reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{BlockStore, CommitSeq, Put, StoreError, StoreStats};
use crate::base::{BlockId, PlainHash, StoreId};

/// A fallible call of the trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Op {
    Get,
    Contains,
    Put,
    FindPlain,
    Sync,
    Remove,
    SetDirty,
    List,
    Stats,
}

/// How a call fails.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Without an effect.
    Before(StoreError),
    /// After its effect.
    After(StoreError),
}

/// Decides on each call: which one, and how many calls of any kind there were before it.
pub type Plan = Box<dyn Fn(Op, u64) -> Option<Fault> + Send + Sync>;

/// Wraps a store and fails as planned.
pub struct FaultStore {
    inner: Arc<dyn BlockStore>,
    plan: Plan,
    calls: AtomicU64,
}

impl std::fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultStore")
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}

impl FaultStore {
    /// Fails as `plan` says.
    pub fn new(
        inner: Arc<dyn BlockStore>,
        plan: impl Fn(Op, u64) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            plan: Box::new(plan),
            calls: AtomicU64::new(0),
        }
    }

    /// Fails the `nth` call (from zero) of one kind, once.
    pub fn nth(inner: Arc<dyn BlockStore>, op: Op, nth: u64, fault: Fault) -> Self {
        let seen = AtomicU64::new(0);
        Self::new(inner, move |called, _| {
            (called == op && seen.fetch_add(1, Ordering::SeqCst) == nth).then(|| fault.clone())
        })
    }

    /// Fails about one call in `one_in`, before or after its effect, which ones following from `seed`.
    pub fn seeded(inner: Arc<dyn BlockStore>, seed: u64, one_in: u64) -> Self {
        Self::new(inner, move |_, call| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).update(&call.to_le_bytes());
            let hash = hasher.finalize();
            let dice = u64::from(hash.as_bytes()[0]) | u64::from(hash.as_bytes()[1]) << 8;
            let error = StoreError::Io(format!("planned fault of call {call}"));
            (dice % one_in.max(1) == 0).then(|| match hash.as_bytes()[2] % 2 {
                0 => Fault::Before(error),
                _ => Fault::After(error),
            })
        })
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn run<T>(
        &self,
        op: Op,
        call: impl FnOnce(&dyn BlockStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        match (self.plan)(op, number) {
            None => call(&*self.inner),
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => call(&*self.inner).and(Err(error)),
        }
    }
}

impl BlockStore for FaultStore {
    fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError> {
        self.run(Op::Get, |inner| inner.get(id))
    }

    fn contains(&self, id: &BlockId) -> Result<bool, StoreError> {
        self.run(Op::Contains, |inner| inner.contains(id))
    }

    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq, StoreError> {
        self.run(Op::Put, |inner| inner.put(batch))
    }

    fn find_plain(&self, hash: &PlainHash) -> Result<Option<BlockId>, StoreError> {
        self.run(Op::FindPlain, |inner| inner.find_plain(hash))
    }

    fn sync(&self) -> Result<CommitSeq, StoreError> {
        self.run(Op::Sync, |inner| inner.sync())
    }

    fn remove(&self, ids: &[BlockId]) -> Result<(), StoreError> {
        self.run(Op::Remove, |inner| inner.remove(ids))
    }

    fn set_dirty(&self, ids: &[BlockId], dirty: bool) -> Result<(), StoreError> {
        self.run(Op::SetDirty, |inner| inner.set_dirty(ids, dirty))
    }

    fn list(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<(BlockId, CommitSeq)>, StoreError> {
        self.run(Op::List, |inner| inner.list(after, limit))
    }

    fn id(&self) -> StoreId {
        self.inner.id()
    }

    fn last_seq(&self) -> CommitSeq {
        self.inner.last_seq()
    }

    fn may_be_lost(&self, store: &StoreId, seq: CommitSeq) -> bool {
        self.inner.may_be_lost(store, seq)
    }

    fn stats(&self) -> Result<StoreStats, StoreError> {
        self.run(Op::Stats, |inner| inner.stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{self, block, put};
    use crate::store::{MemoryStore, PutKind};

    #[test]
    fn conforms_without_a_fault() {
        conformance::all(|| Arc::new(FaultStore::new(Arc::new(MemoryStore::default()), |_, _| None)));
    }

    #[test]
    fn faults_come_before_or_after_the_effect() {
        let inner = Arc::new(MemoryStore::default());
        let bytes = block(1, 10);
        let (id, error) = (BlockId::of(&bytes), || StoreError::Io("planned".into()));
        let store = FaultStore::nth(inner.clone(), Op::Put, 1, Fault::Before(error()));
        store.put(vec![]).unwrap();
        assert!(store.put(vec![put(&bytes, PutKind::Dirty)]).is_err());
        assert!(!store.contains(&id).unwrap());
        store.put(vec![put(&bytes, PutKind::Dirty)]).unwrap();
        let store = FaultStore::nth(inner, Op::Remove, 0, Fault::After(error()));
        assert!(store.remove(&[id]).is_err());
        assert!(!store.contains(&id).unwrap());
        assert_eq!(store.calls(), 2);
    }

    #[test]
    fn a_seed_fails_the_same_calls_every_time_and_about_as_many_as_asked() {
        let failed = |seed| -> Vec<bool> {
            let store = FaultStore::seeded(Arc::new(MemoryStore::default()), seed, 4);
            (0..400).map(|_| store.sync().is_err()).collect()
        };
        assert_eq!(failed(1), failed(1));
        assert_ne!(failed(1), failed(2));
        let count = failed(3).into_iter().filter(|failed| *failed).count();
        assert!((50..150).contains(&count), "{count} of 400");
    }
}
