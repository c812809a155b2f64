//! Giving space back: a block leaves this device only under a lock that two devices cannot both hold for the last copies.
//!
//! Invariant: from the moment a drop begins until it ends, this device grants no lease on the block; it ends with the removal only if
//! as many holders as are needed, in distinct zones, granted a lease to a request that was sent after it began, and only if nobody has a
//! lease on the block here. The lock is in memory: confirmations die with it. After git-annex's locking of content before a drop
//! (<https://git-annex.branchable.com/design/v7/> and its `lockcontent`). The proof is in `docs/replication.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{BlockId, DeviceId};
use crate::store::{ReplicaChange, StoreError};

use super::machine::{Machine, Purpose, STEP};
use super::message::{Action, Outcome, Request, Unfreed};
use super::rules::BLOCKS_MAX;

/// Requests for confirmation that a holder is sent before it has answered.
const CONFIRMATIONS_OPEN: usize = 4;

/// A drop that has begun.
#[derive(Debug, Clone)]
pub(super) struct Drop {
    since_ms: u64,
    /// Distinct zones that have to confirm.
    need: usize,
    /// Who is still to be asked.
    to_ask: BTreeSet<DeviceId>,
    /// Who was asked and has not answered.
    waiting: BTreeSet<DeviceId>,
    confirmed: BTreeSet<DeviceId>,
    contended: bool,
}

impl Machine {
    pub(super) fn free(&mut self, blocks: &[BlockId]) -> Result<(), StoreError> {
        let free = |block: &BlockId| ReplicaChange::Free { block: *block };
        let changes: Vec<ReplicaChange> = blocks.iter().map(free).collect();
        self.store.apply(&changes, false)?;
        self.free_again();
        Ok(())
    }

    /// Looks at all wishes to free from the beginning.
    pub(super) fn free_again(&mut self) {
        self.drop_cursor = None;
        self.next_free_ms = Some(self.now_ms);
    }

    pub(super) fn is_dropping(&self, block: &BlockId) -> bool {
        self.drops.contains_key(block) || self.is_in_group_drop(block)
    }

    /// Ends a drop without the removal. From here on leases may be granted again; its confirmations count for nothing.
    pub(super) fn abandon(&mut self, block: &BlockId) {
        if self.drops.remove(block).is_some() || self.leave_group_drop(block) {
            self.out.push(Action::Unfreed(*block, Unfreed::Contended));
        }
    }

    /// A holder's answer to the request for confirmation of one block.
    pub(super) fn confirmed(&mut self, block: &BlockId, holder: &DeviceId, outcome: Outcome) {
        self.group_confirmed(block, holder, outcome);
        if let Some(drop) = self.drops.get_mut(block)
            && drop.waiting.remove(holder)
        {
            match outcome {
                Outcome::Granted => {
                    drop.confirmed.insert(*holder);
                }
                Outcome::Dropping => drop.contended = true,
                Outcome::Absent | Outcome::Full | Outcome::Unproven => {}
            }
            self.next_drops_ms = Some(self.now_ms);
        }
    }

    pub(super) fn drop_step(&mut self) -> Result<(), StoreError> {
        let is_due = |at: Option<u64>| at.is_some_and(|at| at <= self.now_ms);
        if !(is_due(self.next_drops_ms) || is_due(self.next_free_ms)) || !self.knows_hosts() {
            return Ok(());
        }
        self.next_drops_ms = None;
        self.end_drops()?;
        self.end_group_drops()?;
        self.begin_drops()?;
        self.ask_for_confirmations();
        if !self.drops.is_empty() || !self.group_drops.is_empty() {
            let soon = self.now_ms + self.rules.drop_ms;
            self.next_drops_ms = Some(self.next_drops_ms.map_or(soon, |at| at.min(soon)));
        }
        Ok(())
    }

    fn end_drops(&mut self) -> Result<(), StoreError> {
        let mut over: Vec<(BlockId, Option<Unfreed>)> = Vec::new();
        for (block, drop) in &self.drops {
            let replicas = self.store.replicas(block)?;
            let court = self.court();
            // Only holders that still count, and that nothing was given back to since.
            let zones: BTreeSet<_> = replicas
                .iter()
                .filter(|replica| drop.confirmed.contains(&replica.holder) && court.counts(replica))
                .filter_map(|replica| court.zone(&replica.holder))
                .collect();
            let possible = zones.len() + drop.waiting.len() + drop.to_ask.len() >= drop.need;
            if zones.len() >= drop.need {
                over.push((*block, None));
            } else if drop.contended {
                over.push((*block, Some(Unfreed::Contended)));
            } else if !possible {
                over.push((*block, Some(Unfreed::TooFew)));
            } else if self.now_ms >= drop.since_ms + self.rules.drop_ms {
                over.push((*block, Some(Unfreed::HoldersAway)));
            }
        }
        over.sort_by_key(|(block, _)| *block);
        let freed: Vec<BlockId> = over
            .iter()
            .filter(|(_, why)| why.is_none())
            .map(|(b, _)| *b)
            .collect();
        // That another device might still take the block up is no reason to keep it here. A lease is, which nobody can be granted in
        // between: that is this machine's work, too.
        let remove = |block: &BlockId| {
            let block = *block;
            [ReplicaChange::EndIdle { block }, ReplicaChange::Remove { block }]
        };
        let effects = self
            .store
            .apply(&freed.iter().flat_map(remove).collect::<Vec<_>>(), false)?;
        for (block, removed) in freed.iter().zip(effects.into_iter().skip(1).step_by(2)) {
            self.drops.remove(block);
            let action = if removed {
                Action::Freed(*block)
            } else {
                Action::Unfreed(*block, Unfreed::HeldForOthers)
            };
            self.out.push(action);
        }
        let mut changes = Vec::new();
        for (block, why) in over.into_iter().filter_map(|(block, why)| Some((block, why?))) {
            self.drops.remove(&block);
            self.out.push(Action::Unfreed(block, why));
            if why != Unfreed::Contended {
                changes.push(ReplicaChange::Unfree { block });
            }
        }
        self.store.apply(&changes, false)?;
        Ok(())
    }

    /// Goes on with the pass over what is wished to be freed, as far as drops may be open at a time.
    fn begin_drops(&mut self) -> Result<(), StoreError> {
        if self.next_free_ms.is_none_or(|at| at > self.now_ms) {
            return Ok(());
        }
        self.next_free_ms = None;
        let mut moves: BTreeMap<DeviceId, Vec<BlockId>> = BTreeMap::new();
        let mut changes = Vec::new();
        while self.drops_begun() < self.rules.drops_open {
            let page = self.store.to_free(self.drop_cursor, STEP)?;
            for block in &page {
                if self.is_dropping(block) {
                    continue;
                }
                match self.begin_drop(block)? {
                    None => {}
                    Some(Unfreed::HeldForOthers) => {
                        for lease in self.store.leases(block)? {
                            moves.entry(lease.owner).or_default().push(*block);
                        }
                        self.out.push(Action::Unfreed(*block, Unfreed::HeldForOthers));
                    }
                    // With others of its group, once those that are under way have ended.
                    Some(Unfreed::Contended) => self.free_deferred = true,
                    Some(why) => {
                        changes.push(ReplicaChange::Unfree { block: *block });
                        self.out.push(Action::Unfreed(*block, why));
                    }
                }
            }
            self.drop_cursor = page.last().copied();
            if page.len() < STEP {
                self.drop_cursor = None;
                break;
            }
        }
        // The rest when some have ended; those that wait for others, and those that could not be had, after a while.
        let left = self.drop_cursor.is_some();
        let wishes = left || !self.store.to_free(None, 1)?.is_empty();
        let wait = if left { 100 } else { self.rules.refree_ms };
        self.next_free_ms = wishes.then_some(self.now_ms + wait);
        self.store.apply(&changes, false)?;
        for (owner, blocks) in moves {
            if !self
                .peers
                .get(&owner)
                .is_some_and(|peer| peer.is_open(self.now_ms))
            {
                continue;
            }
            for part in blocks.chunks(BLOCKS_MAX) {
                let request = Request::Move {
                    blocks: part.to_vec(),
                };
                self.out.push(Action::Ask(owner, request));
            }
        }
        Ok(())
    }

    fn drops_begun(&self) -> usize {
        let grouped: usize = self.group_drops.values().map(|drop| drop.blocks.len()).sum();
        self.drops.len() + grouped
    }

    /// Begins to drop a block; or says why not.
    fn begin_drop(&mut self, block: &BlockId) -> Result<Option<Unfreed>, StoreError> {
        if !self.store.leases(block)?.is_empty() {
            return Ok(Some(Unfreed::HeldForOthers));
        }
        let Some(kept) = self.store.kept(block)? else {
            return Ok(Some(Unfreed::NotRetained));
        };
        if kept.pinned {
            return Ok(Some(Unfreed::Pinned));
        }
        if self.store.length(block)?.is_none() {
            return Ok(Some(Unfreed::NotHere));
        }
        if let Some((group, _)) = self.group_of(&kept)?.filter(|(group, _)| !group.ending) {
            return self.begin_group_drop(&kept, group.n);
        }
        let court = self.court();
        let need = usize::from(court.need(kept.wanted).max(1));
        let replicas = self.store.replicas(block)?;
        let counted: Vec<_> = replicas.iter().filter(|replica| court.counts(replica)).collect();
        let zones = |open: bool| {
            let asked = counted.iter().filter(|replica| {
                let peer = self.peers.get(&replica.holder);
                !open || peer.is_some_and(|peer| peer.is_open(self.now_ms))
            });
            asked
                .filter_map(|replica| court.zone(&replica.holder))
                .collect::<BTreeSet<_>>()
                .len()
        };
        if zones(false) < need {
            return Ok(Some(Unfreed::TooFew));
        }
        if zones(true) < need {
            return Ok(Some(Unfreed::HoldersAway));
        }
        let drop = Drop {
            since_ms: self.now_ms,
            need,
            to_ask: counted.iter().map(|replica| replica.holder).collect(),
            waiting: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            contended: false,
        };
        self.drops.insert(*block, drop);
        Ok(None)
    }

    fn ask_for_confirmations(&mut self) {
        let mut asks: BTreeMap<DeviceId, Vec<BlockId>> = BTreeMap::new();
        for (block, drop) in &self.drops {
            for holder in &drop.to_ask {
                // One that is being asked something about this block already is asked when it has answered.
                if !self.pairs.contains(&(*block, *holder)) {
                    asks.entry(*holder).or_default().push(*block);
                }
            }
        }
        self.group_asks(&mut asks);
        for (holder, mut blocks) in asks {
            blocks.sort_unstable();
            for part in blocks.chunks(BLOCKS_MAX) {
                let peer = self.peers.get(&holder);
                let open = peer.map_or(CONFIRMATIONS_OPEN, |peer| peer.open.confirmations);
                if open >= CONFIRMATIONS_OPEN || !peer.is_some_and(|peer| peer.is_open(self.now_ms)) {
                    break;
                }
                for block in part {
                    if let Some(drop) = self.drops.get_mut(block) {
                        drop.to_ask.remove(&holder);
                        drop.waiting.insert(holder);
                    }
                    self.group_asked(holder, *block);
                }
                let mut challenge = [0; 32];
                for eight in challenge.chunks_mut(8) {
                    eight.copy_from_slice(&self.random().to_le_bytes());
                }
                self.ask_lease(holder, part.to_vec(), Some(challenge), Purpose::Confirmation);
            }
        }
        let unasked = self.drops.values().any(|drop| !drop.to_ask.is_empty()) || self.has_group_asks();
        if unasked {
            let again = self.now_ms + self.rules.retry_ms.min(1000);
            self.next_drops_ms = Some(self.next_drops_ms.map_or(again, |at| at.min(again)));
        }
    }
}
