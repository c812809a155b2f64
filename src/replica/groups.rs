//! Groups of shards: each shard goes to a zone of its own, a lost one is made again from the others, and a group that cannot be whole
//! ends: its blocks are replicated one by one, and only then are the others given up.
//!
//! Invariant: no shard of a group is given up as long as a block of it is retained and has not got its own replicas. The first block
//! of a group stands for it in what is to be done.

use std::sync::Arc;

use crate::base::{BlockId, DeviceId};
use crate::store::{GroupChange, Kept, ReplicaChange, ShardGroup, StoreError};

use super::erasure::Group;
use super::group_judge::{GroupJudgement, Shard};
use super::keeping::Plan;
use super::machine::{Machine, Purpose};
use super::message::{Report, Request};
use super::rules::BLOCKS_MAX;
use super::wire;

impl Machine {
    /// The group that a block is in, with its record.
    pub(super) fn group_of(&self, kept: &Kept) -> Result<Option<(ShardGroup, Group)>, StoreError> {
        let Some(n) = kept.group.filter(|n| *n > 0) else {
            return Ok(None);
        };
        self.group(n)
    }

    pub(super) fn group(&self, n: u64) -> Result<Option<(ShardGroup, Group)>, StoreError> {
        let found = self.store.group(n)?;
        Ok(found.and_then(|group| {
            let record = Group::decode(&group.record).ok()?;
            Some((group, record))
        }))
    }

    /// Whether a block is judged with its group; then something is to be done for that.
    pub(super) fn is_grouped(
        &self,
        kept: &Kept,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<bool, StoreError> {
        match self.group_of(kept)? {
            Some((group, record)) if !group.ending => {
                // Looked at again, if that is not due anyway.
                let first = record.data[0].0;
                if self.store.kept(&first)?.is_some_and(|first| first.todo.is_none()) {
                    changes.push(todo(first, Some(0)));
                }
                Ok(true)
            }
            // Of one that is ending only what is retained is looked after.
            Some(_) => Ok(kept.wanted == 0),
            None => Ok(false),
        }
    }

    pub(super) fn judge_shards(
        &self,
        n: u64,
        record: &Group,
    ) -> Result<(GroupJudgement, Vec<Shard>), StoreError> {
        let mut shards = Vec::with_capacity(record.data.len() + record.parity.len());
        for block in record.ids() {
            let asked = self.hosts.iter().map(|host| host.device);
            shards.push(Shard {
                block: *block,
                replicas: self.store.replicas(block)?,
                asked: asked
                    .filter(|device| self.pairs.contains(&(*block, *device)))
                    .collect(),
            });
        }
        let judgement = self.court().judge_group(n, record.data.len(), &shards);
        Ok((judgement, shards))
    }

    /// Decides what is to be done for a group, of which this is the first block.
    pub(super) fn work_group(
        &mut self,
        group: &ShardGroup,
        record: Group,
        plan: &mut Plan,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<(), StoreError> {
        let n = group.n;
        let (judgement, shards) = self.judge_shards(n, &record)?;
        if judgement.hopeless || self.is_beyond_repair(&judgement, &shards, &record)? {
            if judgement.hopeless {
                // Many end for one reason: the first is told of.
                if self.gathering.rest_until <= self.secs() {
                    self.report(Report::GroupEnds {
                        shards: shards.len() as u8,
                        have: judgement.have as u8,
                    });
                }
                self.gathering.rest_until = self.secs() + self.rules.regroup_secs;
            }
            return self.end_group(group, &record, changes);
        }
        let dropping = self.group_drops.contains_key(&n);
        for (at, holder) in &judgement.forget {
            let block = shards[*at].block;
            changes.push(ReplicaChange::NoReplica {
                block,
                holder: *holder,
            });
        }
        let mut left = false;
        for (at, holder) in &judgement.release {
            let block = shards[*at].block;
            if dropping || self.pairs.contains(&(block, *holder)) {
                left = true;
            } else {
                changes.push(ReplicaChange::Owe {
                    holder: *holder,
                    block,
                });
            }
        }
        let have = if judgement.whole {
            shards.len()
        } else {
            judgement.have.min(shards.len() - 1)
        };
        if usize::from(group.have) != have {
            changes.push(state(n, have as u8, false));
            self.note_copies(&record, judgement.whole, changes)?;
            if judgement.whole {
                // Where the others have them they are not needed here.
                changes.extend(
                    record
                        .parity
                        .iter()
                        .map(|block| ReplicaChange::Remove { block: *block }),
                );
            }
        }
        if !judgement.whole {
            // A copy here may be what the group is made whole from.
            let data = record.data.iter();
            changes.extend(data.map(|(block, _)| ReplicaChange::Protect { block: *block }));
        }
        // What is given back now is no reason to look again.
        let only_releases = judgement.put.is_empty() && judgement.confirm.is_empty() && judgement.whole;
        let rest = judgement.todo.filter(|_| left || !only_releases);
        changes.push(todo(record.data[0].0, rest));
        let record = Arc::new(record);
        for (at, holder) in judgement.put.iter().chain(&judgement.confirm) {
            let is_put = judgement.put.contains(&(*at, *holder));
            let len = match record.data.get(*at) {
                Some((_, len)) => *len,
                None => record.shard_len() as u32,
            };
            let is_parity = *at >= record.data.len();
            self.plan_shard(
                (shards[*at].block, &record, len),
                *holder,
                is_put,
                is_parity,
                plan,
            )?;
        }
        Ok(())
    }

    /// The blocks of a whole group have what they need; of another they lack something.
    fn note_copies(
        &self,
        record: &Group,
        whole: bool,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<(), StoreError> {
        for (block, _) in &record.data {
            if let Some(kept) = self.store.kept(block)?.filter(|kept| kept.wanted > 0) {
                let copies = if whole { kept.wanted } else { 0 };
                changes.push(ReplicaChange::Keep(Kept { copies, ..kept }));
            }
        }
        Ok(())
    }

    /// A block is to have more replicas than its group is worth.
    pub(super) fn leave_group(
        &mut self,
        kept: &Kept,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<(), StoreError> {
        match self.group_of(kept)? {
            Some((group, record)) if !group.ending => self.end_group(&group, &record, changes),
            _ => Ok(()),
        }
    }

    /// A block that nobody retains any more, and nobody has, is not made again for the sake of the others: they find a new group.
    fn is_beyond_repair(
        &self,
        judgement: &GroupJudgement,
        shards: &[Shard],
        record: &Group,
    ) -> Result<bool, StoreError> {
        for (at, (block, _)) in record.data.iter().enumerate() {
            if judgement.chosen[at].is_none()
                && shards[at].asked.is_empty()
                && self.store.kept(block)?.is_none_or(|kept| kept.wanted == 0)
                && self.store.length(block)?.is_none()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn plan_shard(
        &self,
        (block, group, len): (BlockId, &Arc<Group>, u32),
        holder: DeviceId,
        is_put: bool,
        is_parity: bool,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let unavailable = self.unavailable.get(&block);
        let Some(peer) = self.peers.get(&holder) else {
            return Ok(());
        };
        let is_left_alone = is_put && unavailable.is_some_and(|(until, _)| self.now_ms < *until);
        if is_left_alone || self.pairs.contains(&(block, holder)) || !peer.is_open(self.now_ms) {
            return Ok(());
        }
        let (open, most) = (peer.open.puts, self.rules.puts_open);
        // Only a block of the volume may be there already.
        let is_new =
            is_parity || (self.store.replicas(&block)?.is_empty() && self.store.length(&block)?.is_some());
        let shard = (block, Arc::clone(group));
        if is_put && (is_new || self.absent.contains(&(block, holder))) {
            let (shards, bytes) = plan.shard_puts.entry(holder).or_default();
            let most_shards = wire::shards_max(group).min(self.rules.put_blocks);
            let fits = shards.is_empty() || *bytes + u64::from(len) <= self.rules.put_bytes;
            if fits && open < most && shards.len() < most_shards {
                shards.push(shard);
                *bytes += u64::from(len);
            }
        } else if peer.open.claims == 0 {
            let shards = plan.shard_claims.entry(holder).or_default();
            if shards.len() < wire::shards_max(group).min(BLOCKS_MAX) {
                shards.push(shard);
            }
        }
        Ok(())
    }

    /// Asks for leases on shards, whose groups' records go along.
    pub(super) fn ask_for_shards(
        &mut self,
        holder: DeviceId,
        shards: Vec<(BlockId, Arc<Group>)>,
        sent: bool,
    ) -> Result<(), StoreError> {
        if shards.is_empty() {
            return Ok(());
        }
        let mut records = Vec::with_capacity(shards.len());
        for (block, _) in &shards {
            records.push(self.store.kept(block)?.and_then(|kept| kept.group).unwrap_or(0));
        }
        let seq = self.next_seq();
        let blocks = shards.iter().map(|(block, _)| *block).collect();
        let purpose = if sent { Purpose::Put } else { Purpose::Claim };
        self.ask(
            holder,
            seq,
            Request::Shards { seq, shards, sent },
            blocks,
            purpose,
        );
        if let Some(asked) = self.asked.get_mut(&seq) {
            asked.records = records;
        }
        Ok(())
    }

    /// From now on the blocks of a group are looked after one by one.
    pub(super) fn end_group(
        &mut self,
        group: &ShardGroup,
        record: &Group,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<(), StoreError> {
        changes.push(state(group.n, group.have, true));
        for block in record.ids() {
            let retained = self.store.kept(block)?.is_some_and(|kept| kept.wanted > 0);
            changes.push(todo(*block, retained.then_some(0)));
        }
        self.hurry();
        Ok(())
    }

    /// Forgets a group that is ending once each of its blocks that is retained has replicas of its own.
    pub(super) fn finish_group(&mut self, n: u64) -> Result<(), StoreError> {
        let Some((group, record)) = self.group(n)? else {
            return Ok(());
        };
        let mut changes = vec![ReplicaChange::Group(GroupChange::Forget { n })];
        for (block, _) in &record.data {
            let Some(kept) = self.store.kept(block)? else {
                continue;
            };
            if kept.wanted == 0 {
                changes.push(ReplicaChange::Unkeep { block: *block });
                continue;
            }
            let judgement = self.court().judge(&kept, &self.store.replicas(block)?);
            if !group.ending || judgement.copies < judgement.need.max(1) {
                return Ok(());
            }
            changes.push(ReplicaChange::Keep(Kept {
                group: self.loose(),
                ..kept
            }));
        }
        for block in &record.parity {
            changes.push(ReplicaChange::Unkeep { block: *block });
            changes.push(ReplicaChange::Remove { block: *block });
        }
        // That they are not kept any more must be durable before their leases are given back.
        self.store.apply(&changes, true)?;
        if self.setup.groups.is_some() {
            self.gather_soon();
        }
        Ok(())
    }

    /// A block of a group is not retained any more: it stays for the sake of the others, unless there are few or none.
    pub(super) fn sweep_shard(
        &mut self,
        kept: &Kept,
        mark: u64,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<(), StoreError> {
        let Some((group, record)) = self.group_of(kept)? else {
            changes.push(ReplicaChange::Unkeep { block: kept.block });
            return Ok(());
        };
        let mut retained = 0;
        for (block, _) in &record.data {
            retained += usize::from(self.store.kept(block)?.is_some_and(|kept| kept.mark >= mark));
        }
        if retained == 0 {
            for block in record.ids() {
                self.abandon(block);
                changes.push(ReplicaChange::Unkeep { block: *block });
            }
            changes.extend(
                record
                    .parity
                    .iter()
                    .map(|block| ReplicaChange::Remove { block: *block }),
            );
            changes.push(ReplicaChange::Group(GroupChange::Forget { n: group.n }));
            return Ok(());
        }
        if kept.wanted > 0 {
            self.abandon(&kept.block);
            changes.push(ReplicaChange::Keep(Kept { wanted: 0, ..*kept }));
        }
        let (data, parity) = (record.data.len(), record.parity.len());
        if !group.ending && retained * (parity + 1) < data + parity {
            self.end_group(&group, &record, changes)?;
        }
        Ok(())
    }

    /// Brings a block under the settings as they are now; its group, if it is in one of another shape, ends.
    pub(super) fn renew_settings(
        &mut self,
        kept: &Kept,
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<Kept, StoreError> {
        let mut new = *kept;
        match self.group_of(kept)? {
            Some((group, record)) => {
                let shape = Some((record.data.len() as u8, record.parity.len() as u8));
                if !group.ending && shape != self.setup.groups {
                    self.end_group(&group, &record, changes)?;
                    new.todo = (new.wanted > 0).then_some(0);
                }
            }
            None => new.group = self.loose(),
        }
        if new != *kept {
            changes.push(ReplicaChange::Keep(new));
        }
        Ok(new)
    }
}

pub(super) fn todo(block: BlockId, todo: Option<u8>) -> ReplicaChange {
    ReplicaChange::Group(GroupChange::Todo { block, todo })
}

fn state(n: u64, have: u8, ending: bool) -> ReplicaChange {
    ReplicaChange::Group(GroupChange::State { n, have, ending })
}
