//! Others' blocks here: leases are granted, released, and end.
//!
//! Invariant: a lease is durable, with its block, before its owner hears of it; a block that is being dropped gets none; a block
//! leaves only after its last lease was given back or ran out, and a while later.

use std::sync::Arc;

use crate::base::{BlockId, DeviceId};
use crate::store::{GroupChange, Lease, ReplicaChange, StoreError};

use super::erasure::Group;
use super::machine::{Machine, STEP};
use super::message::{Action, Answer, Outcome, Report, Request};
use super::rules::BLOCKS_MAX;

/// When one who is not known yet may ask again, in milliseconds.
const NOT_YET_MS: u64 = 1000;

impl Machine {
    pub(super) fn request(&mut self, from: DeviceId, request: Request) -> Result<(), StoreError> {
        if !self.peers.get(&from).is_some_and(|peer| peer.member) {
            // The network knows it as a member, or it could not ask: the roster is on its way here. Silence would cost it a minute.
            let (Request::Put { seq, .. } | Request::Lease { seq, .. } | Request::Release { seq, .. }) =
                request
            else {
                return Ok(());
            };
            let busy = Answer::Busy {
                seq,
                retry_ms: NOT_YET_MS,
            };
            self.out.push(Action::Answer(from, busy, None));
            return Ok(());
        }
        match request {
            Request::Put { seq, blocks } => self.lease(from, seq, &blocks, &[], None, Outcome::Full),
            Request::Lease {
                seq,
                blocks,
                challenge,
            } => self.lease(from, seq, &blocks, &[], challenge, Outcome::Absent),
            Request::Shards { seq, shards, sent } => {
                let blocks: Vec<BlockId> = shards.iter().map(|(block, _)| *block).collect();
                let if_missing = if sent { Outcome::Full } else { Outcome::Absent };
                self.lease(from, seq, &blocks, &shards, None, if_missing)
            }
            Request::Release { seq, blocks } => self.released(from, seq, &blocks),
            // The carrier answers these.
            Request::Audit { .. } => Ok(()),
            Request::Move { blocks } => self.leaving(from, &blocks),
        }
    }

    /// Whether there is room for a block of `len` bytes from this member: asked by the carrier before it takes the bytes.
    pub fn has_room(&self, len: u32) -> Result<bool, StoreError> {
        let held = self.store.held_bytes()?;
        Ok(
            held + u64::from(len) <= self.setup.quota
                && self.disk_free >= self.setup.reserve + u64::from(len),
        )
    }

    fn lease(
        &mut self,
        from: DeviceId,
        seq: u64,
        blocks: &[BlockId],
        shards: &[(BlockId, Arc<Group>)],
        challenge: Option<[u8; 32]>,
        if_missing: Outcome,
    ) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get(&from) else {
            return Ok(());
        };
        let until = peer.clock_secs(self.now_ms, &self.rules) + self.rules.term_secs;
        let guest = peer.guest;
        let mut held = self.store.held_bytes()?;
        let mut outcomes = Vec::with_capacity(blocks.len());
        let mut changes = Vec::new();
        for block in blocks.iter().take(BLOCKS_MAX) {
            if self.is_dropping(block) {
                // One of two who free the same block goes first; else both would wait for the other for ever.
                if from < self.setup.device {
                    self.abandon(block);
                } else {
                    outcomes.push((*block, Outcome::Dropping));
                    continue;
                }
            }
            // Of a PUT: the carrier had no room for it.
            let Some(len) = self.store.length(block)? else {
                outcomes.push((*block, if_missing));
                continue;
            };
            let leases = self.store.leases(block)?;
            let renewed = leases.iter().any(|lease| lease.owner == from);
            let (new, len) = (leases.is_empty(), u64::from(len));
            let room = !new || (held + len <= self.setup.quota && self.disk_free >= self.setup.reserve);
            if !room || (guest && !self.grants_guest(&from, len, renewed)?) {
                if new && !self.setup.has_volume {
                    changes.push(ReplicaChange::Remove { block: *block });
                }
                outcomes.push((*block, Outcome::Full));
                continue;
            }
            held += if new { len } else { 0 };
            let newest = leases
                .iter()
                .find(|l| l.owner == from)
                .map_or(seq, |l| l.seq.max(seq));
            changes.push(ReplicaChange::Lease(Lease {
                block: *block,
                owner: from,
                until,
                seq: newest,
            }));
            changes.extend(
                shards
                    .iter()
                    .filter(|(shard, _)| shard == block)
                    .map(|(_, group)| record(*block, from, seq, group)),
            );
            outcomes.push((*block, Outcome::Granted));
        }
        let effects = self.store.apply(&changes, true)?;
        // A cached block may have been evicted since it was looked at.
        for (change, took_effect) in changes.iter().zip(effects) {
            if let ReplicaChange::Lease(lease) = change
                && !took_effect
                && let Some(outcome) = outcomes.iter_mut().find(|(block, _)| *block == lease.block)
            {
                outcome.1 = if_missing;
                self.weigh_again(&from);
            }
        }
        let answer = Answer::Leased {
            seq,
            term_secs: self.rules.term_secs,
            outcomes,
        };
        self.out.push(Action::Answer(from, answer, challenge));
        Ok(())
    }

    fn released(&mut self, from: DeviceId, seq: u64, blocks: &[BlockId]) -> Result<(), StoreError> {
        let idle = self.secs() + self.rules.released_secs;
        let mut changes = Vec::new();
        for block in blocks.iter().take(BLOCKS_MAX) {
            // One that was overtaken by a later grant ends nothing.
            if self
                .store
                .leases(block)?
                .iter()
                .any(|l| l.owner == from && l.seq < seq)
            {
                changes.push(ReplicaChange::EndLease {
                    block: *block,
                    owner: from,
                    idle,
                });
            }
        }
        self.store.apply(&changes, true)?;
        self.weigh_again(&from);
        self.free_again();
        self.out
            .push(Action::Answer(from, Answer::Released { seq }, None));
        Ok(())
    }

    /// Ends leases that ran out, and lets go of blocks whose idle time is over.
    pub(super) fn end_leases(&mut self) -> Result<(), StoreError> {
        let idle = self.secs() + self.rules.expired_secs;
        let owners: Vec<(DeviceId, u64)> = self
            .peers
            .iter()
            .map(|(device, peer)| (*device, peer.clock_secs(self.now_ms, &self.rules)))
            .collect();
        for (owner, clock) in owners {
            let mut ended = 0;
            loop {
                let leases = self.store.leases_ending(&owner, clock, STEP)?;
                let end = |lease: &Lease| ReplicaChange::EndLease {
                    block: lease.block,
                    owner,
                    idle,
                };
                let changes: Vec<ReplicaChange> = leases.iter().map(end).collect();
                ended += changes.len();
                self.store.apply(&changes, false)?;
                if changes.len() < STEP {
                    break;
                }
            }
            if ended > 0 {
                self.weigh_again(&owner);
                self.report(Report::Expired(owner, ended));
            }
        }
        loop {
            let blocks = self.store.idle(self.secs(), STEP)?;
            let mut changes = Vec::with_capacity(blocks.len() * 2);
            for block in &blocks {
                changes.push(ReplicaChange::EndIdle { block: *block });
                // A volume's own collection knows whether its files need the block.
                if !self.setup.has_volume {
                    changes.push(ReplicaChange::Remove { block: *block });
                }
            }
            self.store.apply(&changes, false)?;
            if blocks.len() < STEP {
                break;
            }
        }
        self.sweep_strays()
    }

    /// On a host: blocks that came, but whose lease did not before the process died. Once after the start.
    fn sweep_strays(&mut self) -> Result<(), StoreError> {
        while let Some(after) = self.stray_cursor {
            let strays = self.store.strays(after, STEP)?;
            self.stray_cursor = (strays.len() == STEP).then(|| strays.last().copied());
            let changes: Vec<ReplicaChange> = strays
                .iter()
                .map(|block| ReplicaChange::Remove { block: *block })
                .collect();
            self.store.apply(&changes, false)?;
        }
        Ok(())
    }
}

fn record(block: BlockId, owner: DeviceId, seq: u64, group: &Group) -> ReplicaChange {
    ReplicaChange::Group(GroupChange::Record {
        block,
        owner,
        seq,
        record: group.encode().into(),
        shards: group.ids().copied().collect(),
    })
}
