//! What [`MemoryStore`] remembers of erasure coding.
//!
//! Invariant: behaves as the tables of the SQLite store. Searches what SQLite has indices for: it is for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::groups::prefix;
use super::memory::MemoryStore;
use super::replica_memory::Tables;
use super::{GroupChange, GroupHealth, GroupStore, Kept, ShardGroup, StoreError};
use crate::base::{BlockId, DeviceId};

/// A record beside a shard.
#[derive(Debug, Clone)]
struct Held {
    seq: u64,
    record: Arc<[u8]>,
    shards: Arc<[BlockId]>,
}

/// The tables.
#[derive(Debug, Default, Clone)]
pub(super) struct GroupTables {
    groups: BTreeMap<u64, ShardGroup>,
    records: BTreeMap<(BlockId, DeviceId), Held>,
}

impl Tables {
    pub(super) fn group_change(&mut self, change: &GroupChange) -> bool {
        let groups = &mut self.groups.groups;
        match change {
            GroupChange::Set(group) => {
                groups.insert(group.n, group.clone());
                true
            }
            GroupChange::State { n, have, ending } => match groups.get_mut(n) {
                Some(group) => {
                    (group.have, group.ending) = (*have, *ending);
                    true
                }
                None => false,
            },
            GroupChange::Forget { n } => groups.remove(n).is_some(),
            GroupChange::Todo { block, todo } => match self.kept.get(block).copied() {
                Some(kept) if kept.todo == *todo => false,
                Some(kept) => {
                    self.set_kept(Kept { todo: *todo, ..kept });
                    true
                }
                None => false,
            },
            GroupChange::Record {
                block,
                owner,
                seq,
                record,
                shards,
            } => {
                let at = (*block, *owner);
                let newest = self.groups.records.get(&at).map(|held| held.seq);
                if !self.leases.contains_key(&at) || newest >= Some(*seq) {
                    return false;
                }
                let (record, shards) = (Arc::clone(record), Arc::clone(shards));
                self.groups.records.insert(
                    at,
                    Held {
                        seq: *seq,
                        record,
                        shards,
                    },
                );
                true
            }
        }
    }

    pub(super) fn forget_records(&mut self, block: &BlockId) {
        self.groups.records.retain(|(shard, _), _| shard != block);
    }

    /// Blocks of groups that are ending count one by one.
    pub(super) fn is_single(&self, kept: &Kept) -> bool {
        match kept.group {
            None | Some(0) => true,
            Some(n) => kept.wanted > 0 && self.groups.groups.get(&n).is_some_and(|group| group.ending),
        }
    }
}

impl GroupStore for MemoryStore {
    fn group(&self, n: u64) -> Result<Option<ShardGroup>, StoreError> {
        Ok(self.look(|state| state.tables.groups.groups.get(&n).cloned()))
    }

    fn loose(&self, after: Option<(u32, BlockId)>, limit: usize) -> Result<Vec<Kept>, StoreError> {
        Ok(self.look(|state| {
            let is_later = |kept: &&Kept| after.is_none_or(|after| (kept.len, kept.block) > after);
            let loose = state.tables.kept.values().filter(|kept| kept.group == Some(0));
            let mut found: Vec<Kept> = loose.filter(is_later).copied().collect();
            found.sort_by_key(|kept| (kept.len, kept.block));
            found.truncate(limit);
            found
        }))
    }

    fn group_health(&self) -> Result<Vec<GroupHealth>, StoreError> {
        Ok(self.look(|state| {
            let mut lines: BTreeMap<(u8, u8, u8), (u64, u64)> = BTreeMap::new();
            for group in state.tables.groups.groups.values().filter(|group| !group.ending) {
                let line = lines.entry((group.have, group.data, group.parity)).or_default();
                line.0 += 1;
                line.1 += group.bytes;
            }
            let line = |((have, data, parity), (groups, bytes))| GroupHealth {
                have,
                data,
                parity,
                groups,
                bytes,
            };
            lines.into_iter().map(line).collect()
        }))
    }

    fn records_of(&self, shard: &BlockId, limit: usize) -> Result<Vec<Arc<[u8]>>, StoreError> {
        Ok(self.look(|state| {
            let records = state.tables.groups.records.values();
            let named = records.filter(|held| held.shards.iter().any(|other| prefix(other) == prefix(shard)));
            let mut found: Vec<Arc<[u8]>> = named.map(|held| Arc::clone(&held.record)).collect();
            found.sort();
            found.dedup();
            found.truncate(limit);
            found
        }))
    }

    fn is_to_free(&self, block: &BlockId) -> Result<bool, StoreError> {
        Ok(self.look(|state| state.tables.free.contains(block)))
    }
}
