//! Giving the space of grouped blocks back: as `freeing`, but what confirms is the group.
//!
//! Invariant: a block of a group leaves only when all shards of the group count, each in a zone of its own, and the holders of at least
//! one more than are enough to make the block again have confirmed theirs after the drop began. Nothing that is here counts, so that any
//! number of blocks of the group may leave at once. The argument is in `docs/replication.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{BlockId, DeviceId};
use crate::store::{Kept, ReplicaChange, StoreError};

use super::machine::Machine;
use super::message::{Action, Outcome, Unfreed};

/// A drop of blocks of one group that has begun.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupDrop {
    since_ms: u64,
    /// What is to be removed.
    pub(super) blocks: BTreeSet<BlockId>,
    /// Holders that have to confirm.
    need: usize,
    to_ask: BTreeSet<(DeviceId, BlockId)>,
    waiting: BTreeSet<(DeviceId, BlockId)>,
    confirmed: BTreeSet<(DeviceId, BlockId)>,
    contended: bool,
}

impl Machine {
    /// Begins to drop a block of a group, and with it all others of the group that are to be freed; or says why not.
    pub(super) fn begin_group_drop(&mut self, kept: &Kept, n: u64) -> Result<Option<Unfreed>, StoreError> {
        let Some((_, record)) = self.group(n)? else {
            return Ok(Some(Unfreed::TooFew));
        };
        if self.group_drops.contains_key(&n) {
            // It begins when that one has ended.
            return Ok(Some(Unfreed::Contended));
        }
        let (judgement, shards) = self.judge_shards(n, &record)?;
        if !judgement.whole {
            return Ok(Some(Unfreed::TooFew));
        }
        let need = record.data.len() + 1;
        let holders: BTreeSet<(DeviceId, BlockId)> = judgement
            .chosen
            .iter()
            .zip(&shards)
            .filter_map(|(holder, shard)| Some(((*holder)?, shard.block)))
            .collect();
        let is_open = |(holder, _): &&(DeviceId, BlockId)| {
            self.peers
                .get(holder)
                .is_some_and(|peer| peer.is_open(self.now_ms))
        };
        if holders.iter().filter(is_open).count() < need {
            return Ok(Some(Unfreed::HoldersAway));
        }
        let mut blocks = BTreeSet::from([kept.block]);
        for (block, _) in &record.data {
            if self.store.is_to_free(block)?
                && self.store.length(block)?.is_some()
                && self.store.leases(block)?.is_empty()
                && self
                    .store
                    .kept(block)?
                    .is_some_and(|kept| !kept.pinned && kept.wanted > 0)
            {
                blocks.insert(*block);
            }
        }
        for block in &blocks {
            self.shard_drops.insert(*block, n);
        }
        self.shard_drops
            .extend(shards.iter().map(|shard| (shard.block, n)));
        let drop = GroupDrop {
            since_ms: self.now_ms,
            blocks,
            need,
            to_ask: holders,
            ..GroupDrop::default()
        };
        self.group_drops.insert(n, drop);
        Ok(None)
    }

    pub(super) fn is_in_group_drop(&self, block: &BlockId) -> bool {
        let drop = self.shard_drops.get(block).and_then(|n| self.group_drops.get(n));
        drop.is_some_and(|drop| drop.blocks.contains(block))
    }

    /// Takes a block out of the drop that it is in: it stays. The others' confirmations are none of its own.
    pub(super) fn leave_group_drop(&mut self, block: &BlockId) -> bool {
        let drop = self
            .shard_drops
            .get(block)
            .and_then(|n| self.group_drops.get_mut(n));
        drop.is_some_and(|drop| drop.blocks.remove(block))
    }

    /// Who is still to be asked about which shards.
    pub(super) fn group_asks(&self, asks: &mut BTreeMap<DeviceId, Vec<BlockId>>) {
        for drop in self.group_drops.values() {
            for (holder, block) in &drop.to_ask {
                if !self.pairs.contains(&(*block, *holder)) {
                    asks.entry(*holder).or_default().push(*block);
                }
            }
        }
    }

    pub(super) fn has_group_asks(&self) -> bool {
        self.group_drops.values().any(|drop| !drop.to_ask.is_empty())
    }

    /// A holder is being asked about a shard.
    pub(super) fn group_asked(&mut self, holder: DeviceId, block: BlockId) {
        if let Some(drop) = self
            .shard_drops
            .get(&block)
            .and_then(|n| self.group_drops.get_mut(n))
            && drop.to_ask.remove(&(holder, block))
        {
            drop.waiting.insert((holder, block));
        }
    }

    /// Its answer.
    pub(super) fn group_confirmed(&mut self, block: &BlockId, holder: &DeviceId, outcome: Outcome) {
        let at = (*holder, *block);
        if let Some(drop) = self
            .shard_drops
            .get(block)
            .and_then(|n| self.group_drops.get_mut(n))
            && drop.waiting.remove(&at)
        {
            match outcome {
                Outcome::Granted => {
                    drop.confirmed.insert(at);
                }
                Outcome::Dropping => drop.contended = true,
                Outcome::Absent | Outcome::Full | Outcome::Unproven => {}
            }
            self.next_drops_ms = Some(self.now_ms);
        }
    }

    /// Ends the drops that have come to an end, and removes what they were for.
    pub(super) fn end_group_drops(&mut self) -> Result<(), StoreError> {
        let mut over = Vec::new();
        for (n, drop) in &self.group_drops {
            let found = self.group(*n)?.filter(|(group, _)| !group.ending);
            let Some((_, record)) = found else {
                over.push((*n, Some(Unfreed::Contended)));
                continue;
            };
            let (judgement, shards) = self.judge_shards(*n, &record)?;
            // Only holders that still count, and that nothing was given back to since.
            let counted: BTreeSet<(DeviceId, BlockId)> = judgement
                .chosen
                .iter()
                .zip(&shards)
                .filter_map(|(holder, shard)| Some(((*holder)?, shard.block)))
                .collect();
            let confirmed = drop.confirmed.intersection(&counted).count();
            if drop.blocks.is_empty() || drop.contended {
                over.push((*n, Some(Unfreed::Contended)));
            } else if judgement.whole && confirmed >= drop.need {
                over.push((*n, None));
            } else if !judgement.whole || confirmed + drop.waiting.len() + drop.to_ask.len() < drop.need {
                over.push((*n, Some(Unfreed::TooFew)));
            } else if self.now_ms >= drop.since_ms + self.rules.drop_ms {
                over.push((*n, Some(Unfreed::HoldersAway)));
            }
        }
        let ended = !over.is_empty();
        let mut changes = Vec::new();
        for (n, why) in over {
            let Some(drop) = self.group_drops.remove(&n) else {
                continue;
            };
            self.shard_drops.retain(|_, other| *other != n);
            let Some(why) = why else {
                self.remove_freed(&drop.blocks)?;
                continue;
            };
            for block in drop.blocks {
                self.out.push(Action::Unfreed(block, why));
                if why != Unfreed::Contended {
                    changes.push(ReplicaChange::Unfree { block });
                }
            }
        }
        self.store.apply(&changes, false)?;
        if ended && std::mem::take(&mut self.free_deferred) {
            self.free_again();
        }
        Ok(())
    }

    fn remove_freed(&mut self, blocks: &BTreeSet<BlockId>) -> Result<(), StoreError> {
        let remove = |block: &BlockId| {
            let block = *block;
            [ReplicaChange::EndIdle { block }, ReplicaChange::Remove { block }]
        };
        let changes: Vec<ReplicaChange> = blocks.iter().flat_map(remove).collect();
        let effects = self.store.apply(&changes, false)?;
        for (block, removed) in blocks.iter().zip(effects.into_iter().skip(1).step_by(2)) {
            self.out.push(match removed {
                true => Action::Freed(*block),
                false => Action::Unfreed(*block, Unfreed::HeldForOthers),
            });
        }
        Ok(())
    }
}
