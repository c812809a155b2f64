//! What [`MemoryStore`] remembers of replication.
//!
//! Invariant: behaves as the tables of the SQLite store. Searches what SQLite has indices for: it is for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::groups_memory::GroupTables;
use super::memory::{MemoryStore, State};
use super::{
    BlockStore, Health, Kept, Lease, MemberState, Number, Replica, ReplicaChange, ReplicaStore, StoreError,
};
use crate::base::{BlockId, DeviceId};

/// The tables.
#[derive(Debug, Default, Clone)]
pub(super) struct Tables {
    pub(super) leases: BTreeMap<(BlockId, DeviceId), Lease>,
    idle: BTreeMap<BlockId, u64>,
    pub(super) kept: BTreeMap<BlockId, Kept>,
    todo: BTreeSet<(u8, BlockId)>,
    replicas: BTreeMap<(BlockId, DeviceId), Replica>,
    owed: BTreeSet<(DeviceId, BlockId)>,
    pub(super) free: BTreeSet<BlockId>,
    members: BTreeMap<DeviceId, MemberState>,
    numbers: BTreeMap<Number, u64>,
    pub(super) groups: GroupTables,
}

const LOWEST: DeviceId = DeviceId([0; 32]);
const HIGHEST: DeviceId = DeviceId([0xff; 32]);

impl Tables {
    fn leases(&self, block: &BlockId) -> impl Iterator<Item = &Lease> {
        self.leases
            .range((*block, LOWEST)..=(*block, HIGHEST))
            .map(|(_, lease)| lease)
    }

    fn replicas(&self, block: &BlockId) -> impl Iterator<Item = &Replica> {
        self.replicas
            .range((*block, LOWEST)..=(*block, HIGHEST))
            .map(|(_, replica)| replica)
    }

    /// Whether a block must not be removed.
    pub(super) fn is_held(&self, block: &BlockId) -> bool {
        self.idle.contains_key(block) || self.leases(block).next().is_some()
    }

    pub(super) fn set_kept(&mut self, kept: Kept) {
        if let Some(Kept { todo: Some(todo), .. }) = self.kept.insert(kept.block, kept) {
            self.todo.remove(&(todo, kept.block));
        }
        if let Some(todo) = kept.todo {
            self.todo.insert((todo, kept.block));
        }
    }
}

impl State {
    fn change(&mut self, change: &ReplicaChange) -> bool {
        let tables = &mut self.tables;
        match *change {
            ReplicaChange::Lease(lease) => {
                let Some(entry) = self.blocks.get_mut(&lease.block) else {
                    return false;
                };
                entry.dirty = true;
                tables.idle.remove(&lease.block);
                tables.leases.insert((lease.block, lease.owner), lease);
                true
            }
            ReplicaChange::EndLease { block, owner, idle } => {
                let ended = tables.leases.remove(&(block, owner)).is_some();
                if ended && tables.leases(&block).next().is_none() {
                    tables.idle.insert(block, idle);
                }
                ended
            }
            ReplicaChange::EndIdle { block } => {
                let ended = tables.idle.remove(&block).is_some();
                if ended {
                    tables.forget_records(&block);
                }
                ended
            }
            ReplicaChange::Remove { block } => {
                if tables.is_held(&block) {
                    return false;
                }
                tables.free.remove(&block);
                tables.forget_records(&block);
                self.remove(&block)
            }
            ReplicaChange::Keep(kept) => {
                tables.set_kept(kept);
                true
            }
            ReplicaChange::Unkeep { block } => {
                let holders: Vec<DeviceId> = tables.replicas(&block).map(|r| r.holder).collect();
                for holder in holders {
                    tables.replicas.remove(&(block, holder));
                    tables.owed.insert((holder, block));
                }
                match tables.kept.remove(&block) {
                    Some(kept) => {
                        if let Some(todo) = kept.todo {
                            tables.todo.remove(&(todo, block));
                        }
                        true
                    }
                    None => false,
                }
            }
            ReplicaChange::Protect { block } => self
                .blocks
                .get_mut(&block)
                .is_some_and(|entry| !std::mem::replace(&mut entry.dirty, true)),
            ReplicaChange::Replica(replica) => {
                tables.owed.remove(&(replica.holder, replica.block));
                tables.replicas.insert((replica.block, replica.holder), replica);
                true
            }
            ReplicaChange::NoReplica { block, holder } => tables.replicas.remove(&(block, holder)).is_some(),
            ReplicaChange::Owe { holder, block } => {
                tables.replicas.remove(&(block, holder));
                tables.owed.insert((holder, block))
            }
            ReplicaChange::Paid { holder, block } => tables.owed.remove(&(holder, block)),
            ReplicaChange::Free { block } => tables.free.insert(block),
            ReplicaChange::Unfree { block } => tables.free.remove(&block),
            ReplicaChange::Member(member) => {
                tables.members.insert(member.device, member);
                true
            }
            ReplicaChange::Number(number, value) => {
                tables.numbers.insert(number, value);
                true
            }
            ReplicaChange::Group(ref change) => tables.group_change(change),
        }
    }
}

fn after<T>(key: Option<T>) -> (Bound<T>, Bound<T>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

impl ReplicaStore for MemoryStore {
    fn apply(&self, changes: &[ReplicaChange], durable: bool) -> Result<Vec<bool>, StoreError> {
        let effects = self.change(|state| {
            let effects: Vec<bool> = changes.iter().map(|change| state.change(change)).collect();
            state.seq += u64::from(effects.contains(&true));
            effects
        });
        if durable {
            self.sync()?;
        }
        Ok(effects)
    }

    fn length(&self, block: &BlockId) -> Result<Option<u32>, StoreError> {
        Ok(self.look(|state| state.blocks.get(block).map(|entry| entry.bytes.len() as u32)))
    }

    fn held_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.look(|state| {
            let leased = state.tables.leases.keys().map(|(block, _)| block);
            let held: BTreeSet<&BlockId> = leased.chain(state.tables.idle.keys()).collect();
            let len = |block: &BlockId| state.blocks.get(block).map_or(0, |e| e.bytes.len() as u64);
            held.into_iter().map(len).sum()
        }))
    }

    fn balance(&self, member: &DeviceId, secs: u64) -> Result<(u64, u64), StoreError> {
        Ok(self.look(|state| {
            let leased = state.tables.leases.keys().filter(|(_, owner)| owner == member);
            let len = |block: &BlockId| state.blocks.get(block).map_or(0, |e| e.bytes.len() as u64);
            let replicas = state.tables.replicas.values();
            let stored = replicas.filter(|replica| replica.holder == *member && replica.until > secs);
            let kept = |block: &BlockId| state.tables.kept.get(block).map_or(0, |kept| u64::from(kept.len));
            (
                leased.map(|(block, _)| len(block)).sum(),
                stored.map(|replica| kept(&replica.block)).sum(),
            )
        }))
    }

    fn leases(&self, block: &BlockId) -> Result<Vec<Lease>, StoreError> {
        Ok(self.look(|state| state.tables.leases(block).copied().collect()))
    }

    fn leases_ending(&self, owner: &DeviceId, until: u64, limit: usize) -> Result<Vec<Lease>, StoreError> {
        Ok(self.look(|state| {
            let ends = |lease: &&Lease| lease.owner == *owner && lease.until < until;
            let mut found: Vec<Lease> = state.tables.leases.values().filter(ends).copied().collect();
            found.sort_by_key(|lease| (lease.until, lease.block));
            found.truncate(limit);
            found
        }))
    }

    fn idle(&self, until: u64, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        Ok(self.look(|state| {
            let ended = state.tables.idle.iter().filter(|(_, end)| **end < until);
            let mut found: Vec<(u64, BlockId)> = ended.map(|(block, end)| (*end, *block)).collect();
            found.sort_unstable();
            found.into_iter().take(limit).map(|(_, block)| block).collect()
        }))
    }

    fn strays(&self, from: Option<BlockId>, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        Ok(self.look(|state| {
            let is_stray =
                |block: &BlockId| !state.tables.is_held(block) && !state.tables.kept.contains_key(block);
            let evictable = state.blocks.range(after(from)).filter(|(_, entry)| !entry.dirty);
            evictable
                .map(|(block, _)| *block)
                .filter(is_stray)
                .take(limit)
                .collect()
        }))
    }

    fn kept(&self, block: &BlockId) -> Result<Option<Kept>, StoreError> {
        Ok(self.look(|state| state.tables.kept.get(block).copied()))
    }

    fn kept_after(&self, from: Option<BlockId>, limit: usize) -> Result<Vec<Kept>, StoreError> {
        Ok(self.look(|state| {
            let kept = state.tables.kept.range(after(from));
            kept.take(limit).map(|(_, kept)| *kept).collect()
        }))
    }

    fn kept_todo(&self, from: Option<(u8, BlockId)>, limit: usize) -> Result<Vec<Kept>, StoreError> {
        Ok(self.look(|state| {
            let todo = state.tables.todo.range(after(from)).take(limit);
            todo.filter_map(|(_, block)| state.tables.kept.get(block).copied())
                .collect()
        }))
    }

    fn health(&self) -> Result<Vec<Health>, StoreError> {
        Ok(self.look(|state| {
            let mut lines: BTreeMap<(u8, u8), (u64, u64)> = BTreeMap::new();
            for kept in state
                .tables
                .kept
                .values()
                .filter(|kept| state.tables.is_single(kept))
            {
                let line = lines.entry((kept.copies, kept.wanted)).or_default();
                line.0 += 1;
                line.1 += u64::from(kept.len);
            }
            let line = |((copies, wanted), (blocks, bytes))| Health {
                copies,
                wanted,
                blocks,
                bytes,
            };
            lines.into_iter().map(line).collect()
        }))
    }

    fn replicas(&self, block: &BlockId) -> Result<Vec<Replica>, StoreError> {
        Ok(self.look(|state| state.tables.replicas(block).copied().collect()))
    }

    fn replicas_due(&self, holder: &DeviceId, renew: u64, limit: usize) -> Result<Vec<Replica>, StoreError> {
        Ok(self.look(|state| {
            let is_due = |replica: &&Replica| replica.holder == *holder && replica.renew < renew;
            let mut found: Vec<Replica> = state.tables.replicas.values().filter(is_due).copied().collect();
            found.sort_by_key(|replica| (replica.renew, replica.block));
            found.truncate(limit);
            found
        }))
    }

    fn replicas_at(
        &self,
        holder: &DeviceId,
        from: Option<BlockId>,
        limit: usize,
    ) -> Result<Vec<Replica>, StoreError> {
        Ok(self.look(|state| {
            let later = state
                .tables
                .replicas
                .range(after(from.map(|block| (block, HIGHEST))));
            let here = later
                .map(|(_, replica)| *replica)
                .filter(|replica| replica.holder == *holder);
            here.take(limit).collect()
        }))
    }

    fn owed(&self, holder: &DeviceId, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        Ok(self.look(|state| {
            let from = (*holder, BlockId([0; 32]));
            let theirs = state.tables.owed.range(from..).take_while(|(to, _)| to == holder);
            theirs.take(limit).map(|(_, block)| *block).collect()
        }))
    }

    fn owed_to(&self) -> Result<Vec<DeviceId>, StoreError> {
        Ok(self.look(|state| {
            let holders: BTreeSet<DeviceId> = state.tables.owed.iter().map(|(to, _)| *to).collect();
            holders.into_iter().collect()
        }))
    }

    fn to_free(&self, from: Option<BlockId>, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        Ok(self.look(|state| {
            state
                .tables
                .free
                .range(after(from))
                .take(limit)
                .copied()
                .collect()
        }))
    }

    fn members(&self) -> Result<Vec<MemberState>, StoreError> {
        Ok(self.look(|state| state.tables.members.values().copied().collect()))
    }

    fn number(&self, number: Number) -> Result<u64, StoreError> {
        Ok(self.look(|state| state.tables.numbers.get(&number).copied().unwrap_or(0)))
    }
}
