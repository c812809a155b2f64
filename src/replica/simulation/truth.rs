//! The truth that no device has: what is lost, what is held, what a holder could prove.

use std::collections::BTreeSet;

use super::{Device, World};
use crate::base::BlockId;
use crate::replica::message::{Answer, Outcome, Slice, Verdict};
use crate::replica::slice;
use crate::store::{BlockStore, ReplicaStore};

impl World {
    /// Blocks that just lost their last honest copy to fate.
    pub(in crate::replica) fn excuse(&mut self) {
        let lost: Vec<BlockId> = self.lost();
        self.excused.extend(lost);
    }

    /// Retained blocks without any honest copy.
    pub(in crate::replica) fn lost(&self) -> Vec<BlockId> {
        let living = self.devices.iter().filter(|d| !d.gone && d.lie.is_none());
        let retained: BTreeSet<BlockId> = living.flat_map(|d| d.retained.keys().copied()).collect();
        let is_lost = |block: &BlockId| !self.is_there(block);
        retained.into_iter().filter(is_lost).collect()
    }

    /// Nothing that is removed may be the last honest copy of what a living device retains.
    pub(super) fn check_removed(&mut self, at: usize, happened: bool) {
        let removed = std::mem::take(&mut *self.devices[at].disk.removed.lock());
        for block in removed {
            self.removals += 1;
            let wanted = self
                .devices
                .iter()
                .any(|d| !d.gone && d.lie.is_none() && d.retained.contains_key(&block));
            let is_there = !wanted || self.is_there(&block);
            assert!(
                !wanted || is_there || self.excused.contains(&block) || self.devices[at].lie.is_some(),
                "{} removed the last honest copy of {block} (told: {happened})",
                self.devices[at].setup.device
            );
        }
    }

    /// Holders that are honest, have the block and a lease for this owner, by zone.
    pub(in crate::replica) fn honest_replicas(&self, owner: usize, block: &BlockId) -> usize {
        let me = &self.devices[owner].setup;
        let holds = |d: &&Device| {
            let leases = d.disk.inner.leases(block).unwrap();
            d.has(block) && leases.iter().any(|lease| lease.owner == me.device) && d.setup.zone != me.zone
        };
        let zones: BTreeSet<_> = self
            .devices
            .iter()
            .filter(holds)
            .map(|d| d.setup.zone.clone())
            .collect();
        zones.len()
    }

    /// Replicas that placement allows.
    pub(in crate::replica) fn allowed(&self, owner: usize, wanted: usize) -> usize {
        let own = &self.devices[owner].setup.zone;
        let hosts = self
            .devices
            .iter()
            .filter(|d| !d.removed && d.setup.quota > 0 && d.setup.zone != *own);
        let zones: BTreeSet<_> = hosts.map(|d| d.setup.zone.clone()).collect();
        wanted.min(zones.len())
    }

    pub(super) fn check_freed(&mut self, at: usize, block: &BlockId) {
        let Some(wanted) = self.devices[at].retained.get(block) else {
            return;
        };
        if let Some(group) = self.group_of(at, block) {
            let have = self.honest_shards(at, &group);
            let excused = self.devices.iter().any(|d| d.gone);
            assert!(
                have > group.data.len() || excused,
                "{block} was freed with {have} shards"
            );
            return;
        }
        let (have, need) = (
            self.honest_replicas(at, block),
            self.allowed(at, usize::from(*wanted)),
        );
        assert!(
            have >= need || self.excused.contains(block) || self.devices.iter().any(|d| d.gone),
            "{block} was freed with {have} replicas instead of {need}"
        );
    }

    pub(super) fn show(&self, at: usize, asked: &Slice) -> Verdict {
        match self.devices[at].disk.inner.get(&asked.block) {
            Ok(Some(bytes)) => {
                match slice::check(&asked.block, asked.offset, &slice::prove(&bytes, asked.offset)) {
                    Ok(()) => Verdict::Right,
                    Err(_) => Verdict::Wrong,
                }
            }
            Ok(None) => Verdict::Absent,
            Err(_) => Verdict::Wrong,
        }
    }

    /// What the asker's carrier makes of an answer: a proof that is wrong is no grant.
    pub(super) fn prove(&self, at: usize, answer: Answer, challenged: bool) -> Answer {
        let Answer::Leased {
            seq,
            term_secs,
            mut outcomes,
        } = answer
        else {
            return answer;
        };
        for (block, outcome) in &mut outcomes {
            let right = matches!(self.devices[at].disk.inner.get(block), Ok(Some(_)));
            if challenged && *outcome == Outcome::Granted && !right {
                *outcome = Outcome::Unproven;
            }
        }
        Answer::Leased {
            seq,
            term_secs,
            outcomes,
        }
    }
}
