//! What a device remembers of erasure coding: the groups of its own blocks, and the records of others' groups beside the shards that it
//! holds for them.
//!
//! Invariant: a record stays as long as the shard that it came with is leased or idle here. The store does not look into records: who
//! brings one says which shards it names. Part of [`ReplicaStore`](super::ReplicaStore) and of its conformance suite; used by `replica`.

use std::sync::Arc;

use super::{Kept, StoreError};
use crate::base::{BlockId, DeviceId};

/// A group of this device's blocks that parity shards protect together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardGroup {
    /// Its number on this device; never zero, never used again.
    pub n: u64,
    /// Its record, see `docs/replication.md`.
    pub record: Arc<[u8]>,
    /// Data shards.
    pub data: u8,
    /// Parity shards.
    pub parity: u8,
    /// Bytes of the data shards.
    pub bytes: u64,
    /// Shards that were in zones of their own when it was last looked at.
    pub have: u8,
    /// Its blocks are to be replicated one by one; it stays until they are.
    pub ending: bool,
}

/// One line of the health report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct GroupHealth {
    /// Shards that count.
    pub have: u8,
    /// Data shards of each group.
    pub data: u8,
    /// Parity shards of each group.
    pub parity: u8,
    /// Groups of which this is true.
    pub groups: u64,
    /// Bytes of their data shards.
    pub bytes: u64,
}

/// A change of what is remembered of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// Sets all that is known of a group.
    Set(ShardGroup),
    /// Sets how it is.
    State {
        /// The group.
        n: u64,
        /// Shards that count.
        have: u8,
        /// Whether it is ending.
        ending: bool,
    },
    /// Forgets a group. Its blocks are not touched.
    Forget {
        /// The group.
        n: u64,
    },
    /// Sets what is to be done for a retained block, and nothing else. Without effect when it is not retained, or is so already.
    Todo {
        /// The block.
        block: BlockId,
        /// Urgency.
        todo: Option<u8>,
    },
    /// Remembers the record of an owner's group beside the shard that is held for it. Without effect when the
    /// owner has no lease on it, or when there is a record of a later request.
    Record {
        /// The shard that is here.
        block: BlockId,
        /// Whose group it is.
        owner: DeviceId,
        /// Number of the owner's request.
        seq: u64,
        /// The record.
        record: Arc<[u8]>,
        /// All shards that it names.
        shards: Arc<[BlockId]>,
    },
}

/// Keeps what a device remembers of groups. All calls may block on the disk.
pub trait GroupStore: Send + Sync + 'static {
    /// A group of this device.
    fn group(&self, n: u64) -> Result<Option<ShardGroup>, StoreError>;

    /// Retained blocks that may join a group (their `group` is `Some(0)`), by length and then id, after `after`.
    fn loose(&self, after: Option<(u32, BlockId)>, limit: usize) -> Result<Vec<Kept>, StoreError>;

    /// Groups that are not ending, by how many shards they have; reads all groups.
    fn group_health(&self) -> Result<Vec<GroupHealth>, StoreError>;

    /// Records of others' groups that name a shard; a few may name another one with the same beginning.
    fn records_of(&self, shard: &BlockId, limit: usize) -> Result<Vec<Arc<[u8]>>, StoreError>;

    /// Whether the user wants the space of a block.
    fn is_to_free(&self, block: &BlockId) -> Result<bool, StoreError>;
}

/// By what a shard is looked up: the beginning of its id.
pub(super) fn prefix(shard: &BlockId) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&shard.0[..8]);
    i64::from_le_bytes(first)
}
