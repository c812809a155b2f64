//! The two traits that the store room is built around: [`BlockStore`], what keeps blocks here, and [`Fetch`], what a miss falls into.
//!
//! Every implementation passes `store::conformance`. `volume` reads and writes through these and never sees the network.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::base::{BlockId, PlainHash, RootId, StoreId};

/// Number of a commit; grows with every commit of one store and is never used twice, also across power cuts. Zero: no commit.
pub type CommitSeq = u64;

/// Why a store operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The bytes on disk are not the block they are filed as.
    #[error("block {0} in the local store is damaged")]
    Damaged(BlockId),
    /// No space is left under the state directory.
    #[error("no space left for the local store at {0}")]
    NoSpace(String),
    /// The database file cannot be used at all.
    #[error("the local store {path} cannot be used: {reason}")]
    Unusable {
        /// The database file.
        path: String,
        /// What SQLite said.
        reason: String,
    },
    /// Input or output failed.
    #[error("the local store failed: {0}")]
    Io(String),
    /// The store was closed.
    #[error("the local store is closed")]
    Closed,
}

/// A block on its way into the store.
#[derive(Debug, Clone)]
pub struct Put {
    /// Id of the block. The caller vouches that `bytes` hash to it.
    pub id: BlockId,
    /// The block.
    pub bytes: Bytes,
    /// What the store may do with it later.
    pub kind: PutKind,
    /// Entry for the index from plaintext to block, when the caller sealed it.
    pub plain: Option<PlainHash>,
}

/// What the store may do with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutKind {
    /// Written here and not known to be anywhere else: never evicted.
    Dirty,
    /// Fetched from others: may be evicted. Replaces damaged bytes; leaves a dirty block dirty.
    Cached,
}

/// Totals of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct StoreStats {
    /// Blocks held.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that may not be evicted.
    pub dirty_bytes: u64,
    /// Bytes that the store may hold before it evicts; zero: no bound.
    pub cache_size: u64,
}

/// Keeps blocks on this device. All calls may block on the disk, none waits for the network.
pub trait BlockStore: Send + Sync + 'static {
    /// The block, checked against its id; `None` when it is not here.
    fn get(&self, id: &BlockId) -> Result<Option<Bytes>, StoreError>;

    /// Whether the block is here, without reading it.
    fn contains(&self, id: &BlockId) -> Result<bool, StoreError>;

    /// Stores a batch in one commit (or shares one) and returns once it would survive the death of this process, though not a power cut.
    /// All or nothing.
    fn put(&self, batch: Vec<Put>) -> Result<CommitSeq, StoreError>;

    /// The block that this plaintext was last sealed into, if it is still here.
    fn find_plain(&self, hash: &PlainHash) -> Result<Option<BlockId>, StoreError>;

    /// Makes every commit made before the call durable and returns the newest of them. Concurrent calls share one sync.
    fn sync(&self) -> Result<CommitSeq, StoreError>;

    /// As [`BlockStore::sync`], and does something else `meanwhile` that takes its time on the disk too.
    fn sync_with(&self, meanwhile: &mut dyn FnMut()) -> Result<CommitSeq, StoreError> {
        meanwhile();
        self.sync()
    }

    /// Deletes blocks, dirty ones too: the caller knows that nothing refers to them. Unknown ids are ignored.
    fn remove(&self, ids: &[BlockId]) -> Result<(), StoreError>;

    /// Marks blocks as held elsewhere (evictable) or not.
    fn set_dirty(&self, ids: &[BlockId], dirty: bool) -> Result<(), StoreError>;

    /// Every id in the store with its commit number, in ascending order after `after`, at most `limit` of them.
    fn list(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<(BlockId, CommitSeq)>, StoreError>;

    /// Identity of this store: a rebuilt store has another.
    fn id(&self) -> StoreId;

    /// The newest commit.
    fn last_seq(&self) -> CommitSeq;

    /// Whether commit `seq` of store `store` may have been lost in a power cut: its number lies in a range that this store
    /// skipped after an unclean stop, or beyond its newest commit. Always false for other stores and for `seq` zero.
    fn may_be_lost(&self, store: &StoreId, seq: CommitSeq) -> bool;

    /// Totals.
    fn stats(&self) -> Result<StoreStats, StoreError>;
}

/// A block that is wanted from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Its id.
    pub id: BlockId,
    /// The file it belongs to, under which its holders may have announced themselves.
    pub root: Option<RootId>,
    /// Nobody waits for it yet: it comes after what somebody waits for.
    pub ahead: bool,
}

/// Why a block could not be had from elsewhere.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Nobody is there to ask.
    #[error("block {id} is not on this device and no other device can be reached")]
    Alone {
        /// The block.
        id: BlockId,
    },
    /// Those who were asked do not have it, or did not answer in time.
    #[error("block {id} could not be had in time; asked: {asked}")]
    Unavailable {
        /// The block.
        id: BlockId,
        /// The peers asked and what each answered, for the log.
        asked: String,
    },
    /// dfs is shutting down.
    #[error("shutting down")]
    Closed,
}

/// Bytes that were checked against the id they are known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedBlock {
    id: BlockId,
    bytes: Bytes,
}

impl CheckedBlock {
    /// The block, if `bytes` hash to `id`.
    pub fn new(id: BlockId, bytes: Bytes) -> Option<Self> {
        id.matches(&bytes).then_some(Self { id, bytes })
    }

    /// A block that a [`BlockStore`] gave, which checks.
    pub(super) fn from_store(id: BlockId, bytes: Bytes) -> Self {
        Self { id, bytes }
    }

    /// Its id.
    pub fn id(&self) -> &BlockId {
        &self.id
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Called exactly once with the result of a fetch, on a thread that must not be blocked.
pub type FetchDone = Box<dyn FnOnce(Result<CheckedBlock, FetchError>) + Send>;

/// Where blocks come from that are not here.
pub trait Fetch: Send + Sync + 'static {
    /// Starts to fetch a block and returns at once. `done` gets the block, or an error by `deadline` at the latest.
    fn start(&self, want: Want, deadline: Instant, done: FetchDone);

    /// Somebody waits now for a block that was started ahead. Without effect on any other.
    fn hurry(&self, _id: &BlockId) {}
}

/// Nobody to ask: the `Fetch` of a device that is alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFetch;

impl Fetch for NoFetch {
    fn start(&self, want: Want, _deadline: Instant, done: FetchDone) {
        done(Err(FetchError::Alone { id: want.id }));
    }
}

impl<T: Fetch + ?Sized> Fetch for Arc<T> {
    fn start(&self, want: Want, deadline: Instant, done: FetchDone) {
        (**self).start(want, deadline, done);
    }

    fn hurry(&self, id: &BlockId) {
        (**self).hurry(id);
    }
}
