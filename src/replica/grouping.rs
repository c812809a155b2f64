//! Forming groups: blocks of similar length are put together, `k` at a time, and protected by `m` parity shards.
//!
//! Invariant: a new block waits for others only until the pass over all that may join a group has gone by; what is left over then is
//! replicated by itself, and may join a group later.

use std::collections::BTreeMap;

use crate::base::BlockId;
use crate::store::{GroupChange, Kept, Number, ReplicaChange, ShardGroup, StoreError};

use super::erasure::Group;
use super::machine::{Machine, STEP};
use super::message::Action;

/// How far the pass has come, and what it waits for.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// When it goes on.
    pub(super) next_ms: Option<u64>,
    cursor: Option<(u32, BlockId)>,
    /// It began, and stopped because enough was being computed.
    is_waiting: bool,
    /// Blocks came that it may have gone by.
    again: bool,
    /// Blocks whose parity is being computed, by the first of them.
    forming: BTreeMap<BlockId, Vec<BlockId>>,
    /// Number of the newest group.
    newest: u64,
    /// Until when blocks that have their replicas stay as they are, on this device's clock in seconds.
    pub(super) rest_until: u64,
}

impl Gathering {
    /// `from_ms`: when to look for groups first; `None`: never.
    pub(super) fn new(newest: u64, from_ms: Option<u64>) -> Self {
        Self {
            newest,
            next_ms: from_ms,
            ..Self::default()
        }
    }
}

/// Whether two blocks of one group may have these lengths: shards are as long as the longest.
fn is_similar(shorter: u32, longer: u32) -> bool {
    longer - shorter <= shorter / 4
}

impl Machine {
    /// What a retained block's `group` is as long as it is in none.
    pub(super) fn loose(&self) -> Option<u64> {
        self.setup.groups.map(|_| 0)
    }

    /// Whether a group could be placed, as far as is known.
    pub(super) fn can_group(&self) -> bool {
        self.setup
            .groups
            .is_some_and(|(data, parity)| self.court().usable_zones().len() >= usize::from(data + parity))
    }

    /// Whether a block that nobody else has waits for a group. Such blocks have nothing that is to be done.
    pub(super) fn is_waiting(&self, kept: &Kept) -> bool {
        kept.group == Some(0) && kept.todo.is_none() && kept.copies == 0 && kept.wanted > 0
    }

    /// A block came that may join a group.
    pub(super) fn gather_soon(&mut self) {
        let soon = self.now_ms + self.rules.gather_ms;
        let gathering = &mut self.gathering;
        if gathering.cursor.is_some() || gathering.is_waiting {
            gathering.again = true;
        } else {
            gathering.next_ms = Some(gathering.next_ms.map_or(soon, |at| at.min(soon)));
        }
    }

    /// Goes on with the pass.
    pub(super) fn gather_step(&mut self) -> Result<(), StoreError> {
        let (Some((data, parity)), Some(at)) = (self.setup.groups, self.gathering.next_ms) else {
            return Ok(());
        };
        if at > self.now_ms || !self.knows_hosts() {
            return Ok(());
        }
        self.gathering.next_ms = None;
        let can = self.can_group();
        let mut changes = Vec::new();
        let mut run: Vec<Kept> = Vec::new();
        let mut cursor = self.gathering.cursor.take();
        self.gathering.is_waiting = false;
        loop {
            let page = self.store.loose(cursor, STEP)?;
            for kept in &page {
                cursor = Some((kept.len, kept.block));
                if !can || !self.is_candidate(kept)? {
                    self.leave_over(kept, &mut changes);
                    continue;
                }
                while run.first().is_some_and(|first| !is_similar(first.len, kept.len)) {
                    self.leave_over(&run.remove(0), &mut changes);
                }
                run.push(*kept);
                if run.len() == usize::from(data) {
                    let blocks: Vec<BlockId> = run.drain(..).map(|kept| kept.block).collect();
                    self.out.push(Action::Encode(blocks.clone(), parity));
                    self.gathering.forming.insert(blocks[0], blocks);
                    if self.gathering.forming.len() >= self.rules.encodings_open {
                        self.gathering.cursor = cursor;
                        self.gathering.is_waiting = true;
                        self.store.apply(&changes, false)?;
                        return Ok(());
                    }
                }
            }
            if page.len() < STEP {
                break;
            }
        }
        for kept in &run {
            self.leave_over(kept, &mut changes);
        }
        self.store.apply(&changes, false)?;
        if std::mem::take(&mut self.gathering.again) {
            self.gather_soon();
        }
        self.hurry();
        Ok(())
    }

    fn is_candidate(&self, kept: &Kept) -> Result<bool, StoreError> {
        let unavailable = self.unavailable.get(&kept.block);
        let is_settled = kept.copies > 0 && self.secs() < self.gathering.rest_until;
        // What is to have more or fewer replicas than others is by itself.
        Ok(kept.wanted == self.setup.wanted
            && kept.len > 0
            && !is_settled
            && !self.is_dropping(&kept.block)
            && !self.is_forming(&kept.block)
            && unavailable.is_none_or(|(until, _)| self.now_ms >= *until)
            && self.store.length(&kept.block)? == Some(kept.len))
    }

    fn is_forming(&self, block: &BlockId) -> bool {
        self.gathering
            .forming
            .values()
            .any(|blocks| blocks.contains(block))
    }

    /// It is replicated by itself.
    fn leave_over(&self, kept: &Kept, changes: &mut Vec<ReplicaChange>) {
        if self.is_waiting(kept) && !self.is_forming(&kept.block) {
            changes.push(ReplicaChange::Group(GroupChange::Todo {
                block: kept.block,
                todo: Some(0),
            }));
        }
    }

    /// The parity of a group is there.
    pub(super) fn encoded(&mut self, group: &Group) -> Result<(), StoreError> {
        let Some(blocks) = group
            .data
            .first()
            .and_then(|(first, _)| self.gathering.forming.remove(first))
        else {
            return Ok(());
        };
        self.gathering.next_ms = Some(self.now_ms);
        let Some(kepts) = self.fitting(group, &blocks)? else {
            return self.not_formed(&blocks);
        };
        let n = self.gathering.newest + 1;
        self.gathering.newest = n;
        let bytes = group.data.iter().map(|(_, len)| u64::from(*len)).sum();
        let mut changes = vec![
            ReplicaChange::Number(Number::Group, n),
            ReplicaChange::Group(GroupChange::Set(ShardGroup {
                n,
                record: group.encode().into(),
                data: group.data.len() as u8,
                parity: group.parity.len() as u8,
                bytes,
                have: 0,
                ending: false,
            })),
        ];
        for (at, kept) in kepts.into_iter().enumerate() {
            // The first one stands for the group.
            changes.push(ReplicaChange::Keep(Kept {
                group: Some(n),
                todo: (at == 0).then_some(0),
                ..kept
            }));
        }
        for block in &group.parity {
            changes.push(ReplicaChange::Keep(Kept {
                block: *block,
                len: group.shard_len() as u32,
                wanted: 0,
                pinned: false,
                mark: self.mark,
                copies: 0,
                todo: None,
                group: Some(n),
            }));
        }
        self.store.apply(&changes, false)?;
        self.pass = None;
        self.hurry();
        Ok(())
    }

    /// The blocks as they are retained, if the group is what was asked for and nothing has changed meanwhile.
    fn fitting(&self, group: &Group, blocks: &[BlockId]) -> Result<Option<Vec<Kept>>, StoreError> {
        let is_named = group.data.iter().map(|(block, _)| block).eq(blocks);
        let parity = self.setup.groups.map(|(_, parity)| usize::from(parity));
        if !is_named || parity != Some(group.parity.len()) || !group.is_distinct() {
            return Ok(None);
        }
        for block in &group.parity {
            if self.store.kept(block)?.is_some() {
                return Ok(None);
            }
        }
        let mut kepts = Vec::with_capacity(blocks.len());
        // One that is being dropped by the rule for replicas stays under it until that has ended.
        if blocks.iter().any(|block| self.is_dropping(block)) {
            return Ok(None);
        }
        for (block, len) in &group.data {
            match self.store.kept(block)? {
                Some(kept)
                    if kept.group == Some(0) && kept.wanted == self.setup.wanted && kept.len == *len =>
                {
                    kepts.push(kept)
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(kepts))
    }

    /// A group cannot be made now.
    pub(super) fn unencoded(&mut self, blocks: &[BlockId]) -> Result<(), StoreError> {
        let Some(blocks) = blocks
            .first()
            .and_then(|first| self.gathering.forming.remove(first))
        else {
            return Ok(());
        };
        self.gathering.next_ms = Some(self.now_ms);
        self.not_formed(&blocks)
    }

    /// They are replicated by themselves, and may try again after a while.
    fn not_formed(&mut self, blocks: &[BlockId]) -> Result<(), StoreError> {
        self.note_unavailable(blocks);
        let mut changes = Vec::new();
        for block in blocks {
            if let Some(kept) = self.store.kept(block)? {
                self.leave_over(&kept, &mut changes);
            }
        }
        self.store.apply(&changes, false)?;
        self.hurry();
        Ok(())
    }
}
