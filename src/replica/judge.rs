//! What is to be done for one block: how many of its replicas count, where others are to go, which are too many. Pure.
//!
//! Invariant: a replica is given up only when at least as many as are wanted and possible, in zones of their own and where they
//! belong, were confirmed a short while ago. A replica that may be gone is never counted, one that may be there never forgotten.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::DeviceId;
use crate::store::{Kept, Replica};

use super::peers::Peer;
use super::placement::{Host, Zone, possible, ranked};
use super::rules::{REBALANCE, Rules};

/// What is known of a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// It is a member.
    pub(super) member: bool,
    /// It can be asked.
    pub(super) connected: bool,
    /// It has been away for too long.
    pub(super) lost: bool,
    /// Until when nothing that it says is believed; what it said before is not believed afterwards either.
    pub(super) condemned: u64,
    /// It has no room now.
    pub(super) full: bool,
    /// It wants to be left alone for a while.
    pub(super) busy: bool,
}

/// What a judgement is made from.
#[derive(Debug)]
pub(super) struct Court<'a> {
    pub(super) hosts: &'a [Host],
    pub(super) peers: &'a BTreeMap<DeviceId, Peer>,
    pub(super) own_zone: &'a Zone,
    pub(super) rules: &'a Rules,
    pub(super) now_ms: u64,
    /// This device's clock.
    pub(super) secs: u64,
}

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Judgement {
    /// Distinct zones with a replica that counts.
    pub(super) copies: u8,
    /// Wanted, as far as it is possible.
    pub(super) need: u8,
    /// Urgency; `None` when all is well.
    pub(super) todo: Option<u8>,
    /// Who should get a replica now.
    pub(super) put: Vec<DeviceId>,
    /// Whose replica is to be confirmed before others are given up.
    pub(super) confirm: Vec<DeviceId>,
    /// Who need not hold one any more.
    pub(super) release: Vec<DeviceId>,
    /// Replicas that are none: their holder was removed, or they have expired.
    pub(super) forget: Vec<DeviceId>,
}

impl Court<'_> {
    pub(super) fn standing(&self, device: &DeviceId) -> Standing {
        let peer = self.peers.get(device);
        peer.map(|peer| peer.standing(self.now_ms)).unwrap_or_default()
    }

    /// Whether a replica counts.
    pub(super) fn counts(&self, replica: &Replica) -> bool {
        let holder = self.standing(&replica.holder);
        holder.member
            && !holder.lost
            && replica.until > self.secs
            && holder.condemned <= replica.granted
            && self
                .zone(&replica.holder)
                .is_some_and(|zone| zone != self.own_zone)
    }

    /// Whether a replica is none any more: its holder was removed, or it has expired.
    pub(super) fn is_over(&self, replica: &Replica) -> bool {
        !self.standing(&replica.holder).member || replica.until <= self.secs
    }

    pub(super) fn zone(&self, device: &DeviceId) -> Option<&Zone> {
        self.peers.get(device).map(|peer| &peer.zone)
    }

    /// Replicas that a block needs: as many as are wanted, or as there are zones of other hosts.
    pub(super) fn need(&self, wanted: u8) -> u8 {
        let possible = possible(self.hosts, self.own_zone).min(usize::from(u8::MAX)) as u8;
        wanted.min(possible)
    }

    pub(super) fn judge(&self, kept: &Kept, replicas: &[Replica]) -> Judgement {
        let mut judgement = Judgement {
            need: self.need(kept.wanted),
            ..Judgement::default()
        };
        let is_over = |replica: &&Replica| self.is_over(replica);
        judgement.forget = replicas.iter().filter(is_over).map(|r| r.holder).collect();
        let counted: BTreeSet<&Zone> = replicas
            .iter()
            .filter(|replica| self.counts(replica))
            .filter_map(|replica| self.zone(&replica.holder))
            .collect();
        judgement.copies = counted.len().min(usize::from(u8::MAX)) as u8;
        let at = |device: &DeviceId| replicas.iter().find(|replica| replica.holder == *device);
        if judgement.copies < judgement.need {
            judgement.todo = Some(judgement.copies);
            let mut without = counted;
            without.insert(self.own_zone);
            let takes = |host: &&Host| {
                let standing = self.standing(&host.device);
                let can = standing.connected && !standing.full && !standing.busy;
                can && standing.condemned <= self.secs && !at(&host.device).is_some_and(|r| r.leaving)
            };
            let best = ranked(&kept.block, self.hosts.iter().filter(takes), &without);
            let missing = usize::from(judgement.need - judgement.copies);
            judgement.put = best.iter().take(missing).map(|host| host.device).collect();
            return judgement;
        }
        if judgement.need == 0 {
            return judgement;
        }
        let belongs = |host: &&Host| {
            let standing = self.standing(&host.device);
            let replica = at(&host.device);
            let is_fit = standing.member && !standing.lost && standing.condemned <= self.secs;
            is_fit && !replica.is_some_and(|r| r.leaving) && (replica.is_some() || !standing.full)
        };
        let ideal: Vec<DeviceId> = ranked(
            &kept.block,
            self.hosts.iter().filter(belongs),
            &BTreeSet::from([self.own_zone]),
        )
        .iter()
        .take(usize::from(judgement.need))
        .map(|host| host.device)
        .collect();
        // A holder that cannot be told stays as it is: it may come back to where it belongs. When there are too few zones for what is
        // wanted, because a host is one no more, what is there stays too, unless it wants to leave.
        let short = ideal.len() < usize::from(kept.wanted);
        let surplus: Vec<DeviceId> = replicas
            .iter()
            .filter(|replica| !ideal.contains(&replica.holder) && !judgement.forget.contains(&replica.holder))
            .filter(|replica| !short || replica.leaving || !self.counts(replica))
            .map(|replica| replica.holder)
            .filter(|holder| self.standing(holder).connected)
            .collect();
        let is_confirmed = |replica: &Replica| self.counts(replica);
        let lacking: Vec<DeviceId> = ideal
            .iter()
            .filter(|device| !at(device).is_some_and(is_confirmed))
            .copied()
            .collect();
        let can_take = |device: &DeviceId| {
            let standing = self.standing(device);
            standing.connected && !standing.busy
        };
        if !lacking.is_empty() || ideal.len() < usize::from(judgement.need) {
            // With fewer good places than needed everything stays where it is, as long as there are enough.
            judgement.todo = (!lacking.is_empty()).then_some(REBALANCE);
            judgement.put = lacking.into_iter().filter(can_take).collect();
            return judgement;
        }
        if surplus.is_empty() {
            return judgement;
        }
        judgement.todo = Some(REBALANCE);
        let is_fresh = |device: &DeviceId| {
            at(device).is_some_and(|r| r.granted.saturating_add(self.rules.fresh_secs) > self.secs)
        };
        if ideal.iter().all(is_fresh) {
            judgement.todo = None;
            judgement.release = surplus;
        } else {
            judgement.confirm = ideal
                .into_iter()
                .filter(|d| !is_fresh(d))
                .filter(can_take)
                .collect();
        }
        judgement
    }
}
