//! Whether holders have what they say: random slices, and what follows from a wrong one.
//!
//! Invariant: audits of a holder are never closer together than the rules say, whatever it answers; a failed block is not counted from the
//! moment the answer is in, and its repair does not wait for anything.

use std::collections::HashSet;

use crate::base::{BlockId, DeviceId};
use crate::store::{ReplicaChange, StoreError};

use super::machine::{Machine, Purpose};
use super::message::{Checked, Report, Request, Slice};
use super::peers::Peer;
use super::wire::SLICES_MAX;

/// How long a holder that said itself that it lost blocks is not believed, in seconds: it may have a new disk.
const PROBATION_SECS: u64 = 86_400;

/// Time between two parts of the check of everything that a holder has, in milliseconds.
const WALK_MS: u64 = 10_000;

impl Machine {
    /// Begins a check of everything that the holders have that are here.
    pub(super) fn verify(&mut self) {
        self.checked = Checked::default();
        for peer in self.peers.values_mut() {
            if peer.member && peer.connected {
                (peer.walk, peer.hurried) = (Some(BlockId([0; 32])), true);
                peer.next_audit_ms = self.now_ms;
            }
        }
    }

    /// How far that has come.
    pub fn checked(&self) -> Checked {
        let unfinished = |peer: &&Peer| peer.hurried && peer.connected;
        Checked {
            holders: self.peers.values().filter(unfinished).count(),
            ..self.checked
        }
    }

    pub(super) fn audit(&mut self) -> Result<(), StoreError> {
        if !self.knows_hosts() {
            return Ok(());
        }
        let due: Vec<DeviceId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_open(self.now_ms) && peer.open.audits == 0)
            .filter(|(_, peer)| self.now_ms >= peer.next_audit_ms)
            .map(|(device, _)| *device)
            .collect();
        for holder in due {
            self.audit_one(holder)?;
        }
        Ok(())
    }

    fn audit_one(&mut self, holder: DeviceId) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get(&holder) else {
            return Ok(());
        };
        let walk = peer.walk;
        let mut from = [0; 32];
        for part in from.chunks_mut(8) {
            part.copy_from_slice(&self.random().to_le_bytes());
        }
        let (after, limit) = match walk {
            Some(cursor) => (cursor, SLICES_MAX),
            None => (BlockId(from), self.rules.audit_slices),
        };
        let mut found = self.store.replicas_at(&holder, Some(after), limit)?;
        if walk.is_none() {
            let more = self.audit_size(&found, after);
            if more > found.len() {
                found = self.store.replicas_at(&holder, Some(after), more)?;
            }
            if found.len() < more.max(limit) {
                // Round the end of the ids.
                let mut first = self
                    .store
                    .replicas_at(&holder, None, more.max(limit) - found.len())?;
                let seen: HashSet<BlockId> = found.iter().map(|replica| replica.block).collect();
                first.retain(|replica| !seen.contains(&replica.block));
                found.append(&mut first);
            }
        }
        let wait_ms = self.audit_wait_ms();
        let done = found.len() < limit;
        let Some(peer) = self.peers.get_mut(&holder) else {
            return Ok(());
        };
        peer.next_audit_ms = self.now_ms
            + match walk {
                Some(_) if peer.hurried => 0,
                Some(_) => WALK_MS,
                None => wait_ms,
            };
        // A part that is not answered is asked for again.
        peer.walk_next = walk.map(|_| if done { None } else { found.last().map(|r| r.block) });
        let mut slices = Vec::with_capacity(found.len());
        for replica in found.iter().take(SLICES_MAX) {
            let len = self.store.kept(&replica.block)?.map_or(1, |kept| kept.len);
            let offset = super::slice::offset(self.random(), len);
            slices.push(Slice {
                block: replica.block,
                offset,
            });
        }
        if slices.is_empty() {
            self.walked(&holder, true);
            return Ok(());
        }
        let seq = self.next_seq();
        let request = Request::Audit {
            seq,
            slices: slices.clone(),
        };
        let blocks = slices.iter().map(|slice| slice.block).collect();
        self.ask(holder, seq, request, blocks, Purpose::Audit(slices));
        Ok(())
    }

    /// Takes note that a part of a check was answered; at its end a holder without failures is acquitted of earlier ones.
    pub(super) fn walked(&mut self, holder: &DeviceId, all_right: bool) {
        let wait_ms = self.audit_wait_ms();
        let Some(peer) = self.peers.get_mut(holder) else {
            return;
        };
        let Some(next) = peer.walk_next.take() else { return };
        peer.walk = next;
        if next.is_none() {
            peer.hurried = false;
            peer.next_audit_ms = self.now_ms + wait_ms;
            if all_right {
                peer.strikes = 0;
            }
        }
    }

    /// Until the next audit: spread, so that not all owners audit a holder at the same time.
    fn audit_wait_ms(&mut self) -> u64 {
        self.rules.audit_secs * 750 + self.random() % (self.rules.audit_secs * 500).max(1)
    }

    /// How many slices an audit takes so that every block comes round: ids are uniform, so the span of a few tells how many there are.
    fn audit_size(&self, found: &[crate::store::Replica], after: BlockId) -> usize {
        let number = |block: &BlockId| {
            let mut first = [0; 8];
            first.copy_from_slice(&block.0[..8]);
            u64::from_be_bytes(first)
        };
        let span = found.last().map_or(u64::MAX, |last| {
            number(&last.block).saturating_sub(number(&after))
        });
        let all = found.len() as f64 * (u64::MAX as f64 / span.max(1) as f64);
        let audits = (self.rules.audit_cycle_secs / self.rules.audit_secs.max(1)).max(1);
        ((all / audits as f64) as usize).clamp(self.rules.audit_slices, SLICES_MAX)
    }

    /// Blocks that a holder did not show, and for each whether it is to blame beyond doubt.
    pub(super) fn audited(&mut self, holder: DeviceId, failed: &[(BlockId, bool)]) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut broken = Vec::new();
        for (block, wrong) in failed {
            let mut replicas = self.store.replicas(block)?;
            let before = replicas.len();
            replicas.retain(|replica| replica.holder != holder);
            if replicas.len() == before {
                continue;
            }
            // Not given back: an answer that was garbled or lost must not cost a copy that is good. What is there keeps its lease until
            // that runs out, or the block is sent there again, which mends it.
            changes.push(ReplicaChange::NoReplica {
                block: *block,
                holder,
            });
            if let Some(kept) = self.store.kept(block)? {
                self.settle_todo(&kept, &replicas, &mut changes)?;
            }
            broken.push((*block, *wrong));
            // It believes that it has it: asked whether, it would say yes. What is sent again replaces what is damaged there.
            self.note_absent(*block, holder);
        }
        self.store.apply(&changes, false)?;
        self.failures(holder, &broken)
    }

    /// Draws the conclusions from blocks that a holder had promised to keep.
    pub(super) fn failures(
        &mut self,
        holder: DeviceId,
        failed: &[(BlockId, bool)],
    ) -> Result<(), StoreError> {
        let secs = self.secs();
        for (block, wrong) in failed {
            self.report(Report::Failed(holder, *block));
            let (most, long) = (self.rules.strikes, self.rules.condemned_secs);
            let Some(peer) = self.peers.get_mut(&holder) else {
                return Ok(());
            };
            peer.strikes = peer.strikes.saturating_add(1);
            if peer.walk.is_none() {
                peer.walk = Some(BlockId([0; 32]));
                peer.next_audit_ms = self.now_ms + WALK_MS;
            }
            let until = secs + if *wrong { long } else { PROBATION_SECS.min(long) };
            if peer.strikes >= most && until > peer.condemned {
                let is_new = !std::mem::replace(&mut peer.is_condemned, true);
                peer.condemned = until;
                if is_new {
                    self.report(Report::Condemned(holder));
                }
                let change = self.remember_member(&holder);
                self.store.apply(change.as_slice(), false)?;
                self.look_at_all();
            }
        }
        if !failed.is_empty() {
            self.hurry();
        }
        Ok(())
    }
}
