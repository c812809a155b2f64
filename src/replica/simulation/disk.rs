//! The disk of a simulated device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::base::{BlockId, DeviceId};
use crate::store::{
    GroupHealth, GroupStore, Health, Kept, Lease, MemberState, MemoryStore, Number, Replica, ReplicaChange,
    ReplicaStore, ShardGroup, StoreError,
};

/// The store of a device: dies at a chosen commit, before or after its effect, and remembers what was removed.
pub(in crate::replica) struct Disk {
    pub(super) inner: MemoryStore,
    /// Commits until it dies; the lowest bit says whether after the effect.
    pub(super) fuse: AtomicU64,
    pub(super) removed: Mutex<Vec<BlockId>>,
}

impl Disk {
    fn burn(&self) -> u64 {
        let fuse = self.fuse.load(Ordering::Relaxed);
        if fuse > 1 {
            self.fuse.store(fuse - 2, Ordering::Relaxed);
        }
        fuse
    }
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> { self.inner.$name($($arg),*) })*
    };
}

impl GroupStore for Disk {
    forward! {
        group(n: u64) -> Option<ShardGroup>;
        loose(after: Option<(u32, BlockId)>, limit: usize) -> Vec<Kept>;
        group_health() -> Vec<GroupHealth>;
        records_of(shard: &BlockId, limit: usize) -> Vec<Arc<[u8]>>;
        is_to_free(block: &BlockId) -> bool;
    }
}

impl ReplicaStore for Disk {
    fn apply(&self, changes: &[ReplicaChange], durable: bool) -> Result<Vec<bool>, StoreError> {
        let fuse = if changes.is_empty() { u64::MAX } else { self.burn() };
        if fuse == 2 {
            return Err(StoreError::Closed);
        }
        let effects = self.inner.apply(changes, durable)?;
        for (change, took_effect) in changes.iter().zip(&effects) {
            if let (ReplicaChange::Remove { block }, true) = (change, took_effect) {
                self.removed.lock().push(*block);
            }
        }
        if fuse == 3 {
            Err(StoreError::Closed)
        } else {
            Ok(effects)
        }
    }

    forward! {
        length(block: &BlockId) -> Option<u32>;
        held_bytes() -> u64;
        balance(member: &DeviceId, secs: u64) -> (u64, u64);
        leases(block: &BlockId) -> Vec<Lease>;
        leases_ending(owner: &DeviceId, until: u64, limit: usize) -> Vec<Lease>;
        idle(until: u64, limit: usize) -> Vec<BlockId>;
        strays(after: Option<BlockId>, limit: usize) -> Vec<BlockId>;
        kept(block: &BlockId) -> Option<Kept>;
        kept_after(after: Option<BlockId>, limit: usize) -> Vec<Kept>;
        kept_todo(after: Option<(u8, BlockId)>, limit: usize) -> Vec<Kept>;
        health() -> Vec<Health>;
        replicas(block: &BlockId) -> Vec<Replica>;
        replicas_due(holder: &DeviceId, renew: u64, limit: usize) -> Vec<Replica>;
        replicas_at(holder: &DeviceId, after: Option<BlockId>, limit: usize) -> Vec<Replica>;
        owed(holder: &DeviceId, limit: usize) -> Vec<BlockId>;
        owed_to() -> Vec<DeviceId>;
        to_free(after: Option<BlockId>, limit: usize) -> Vec<BlockId>;
        members() -> Vec<MemberState>;
        number(number: Number) -> u64;
    }
}
